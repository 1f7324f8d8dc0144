"""The same lines on NDIF: a remote run's handles are real ones, and their texts the local ones."""

import gc
import pickle
import time

import nnsight
import pytest
import torch
from nnsight import TransformersModel

from nnsight_nla import NLA, Explanation, HostError, Sampling, VerbalizationError, tiny

PARIS = "What a lovely day! People in Paris speak"
ROME = "What a lovely day! People in Rome speak"
SHORT = "The cow lives in the"


pytestmark = pytest.mark.usefixtures("as_installed")


@pytest.fixture
def here() -> NLA:
    """The verbalizer on this machine."""
    return NLA(tiny.paths()["av"], ar=tiny.paths()["ar"], dtype=torch.float32)


@pytest.fixture
def there(by_path) -> NLA:
    """The verbalizer on the host."""
    return NLA(by_path(tiny.paths()["av"]), remote=True)


@pytest.fixture(scope="session")
def local():
    """The texts of the last position, run wholly on this machine."""
    model, nla = tiny.load()
    found = {}
    for prompt in (PARIS, ROME, SHORT):
        with model.trace(prompt):
            thought = nla.explain(nla.layer(model).output[0])
        found[prompt] = thought.text
    with model.generate(PARIS, max_new_tokens=3) as tracer:
        steps = nnsight.save([])
        for _ in tracer.iter[:3]:
            steps.append(nla.explain(nla.layer(model).output[0, -1]))
    found["steps"] = [step.text for step in steps]
    return found


def weightless(model: TransformersModel) -> bool:
    return all(each.device.type == "meta" for each in model._module.parameters())


def test_a_trace_on_the_host_with_the_verbalizer_here(either_ndif, target, here, local):
    for _ in range(2):  # the second run of a cell ships the first run's handle with the block
        with target.trace(PARIS, remote=True):
            thought = here.explain(here.layer(target).output[:, -1])
        assert type(thought) is Explanation
        assert thought.shape == (1,)
        assert not thought.resolved
        assert here.pending == (thought,)
        assert thought.text == [local[PARIS][-1]]
    assert weightless(target)


def test_target_and_verbalizer_both_on_the_host(ndif, target, there, local):
    with target.trace([PARIS, SHORT], remote=True):
        thought = there.explain(there.layer(target).output[:, -1])
    assert thought.text == [local[PARIS][-1], local[SHORT][-1]]
    assert weightless(target)
    assert weightless(there.av)
    assert thought.receipt.injection_cosine[0] == pytest.approx(1.0, abs=1e-5)


def test_generation_steps_come_back_as_a_list_of_handles(ndif, target, here, local):
    for _ in range(2):
        with target.generate(PARIS, max_new_tokens=3, remote=True) as tracer:
            steps = nnsight.save([])
            for _ in tracer.iter[:3]:
                steps.append(here.explain(here.layer(target).output[0, -1]))
        assert [type(step) for step in steps] == [Explanation] * 3
        assert [step.text for step in steps] == local["steps"]


def test_several_invokes(ndif, target, here, local):
    with target.trace(remote=True) as tracer:
        with tracer.invoke(PARIS):
            first = here.explain(here.layer(target).output[0, -1])
        with tracer.invoke(SHORT):
            second = here.explain(here.layer(target).output[0, -1])
    assert (first.text, second.text) == (local[PARIS][-1], local[SHORT][-1])


def test_positions_travel_with_the_block(ndif, target, here, local):
    (span,) = here.positions(target, SHORT)
    with target.trace([PARIS, SHORT], remote=True):
        thought = here.explain(
            here.layer(target).output[1, span.slice], tokens=span.tokens, positions=span.positions
        )
    assert thought.text == local[SHORT]
    assert thought.tokens == list(span.tokens)
    assert thought[2].positions == 2


def test_a_session_with_an_intervention_between_the_traces(ndif, target, here, local):
    with target.session(remote=True):
        with target.trace(PARIS):
            residual = here.layer(target).output[0, -1]
            first = here.explain(residual)
        with target.trace(ROME):
            here.layer(target).output[0, -1] = residual
            second = here.explain(here.layer(target).output[0, -1])
    assert first.text == second.text == local[PARIS][-1]


def test_not_blocking(ndif, target, here, local):
    with target.trace(PARIS, remote=True, blocking=False) as tracer:
        thought = here.explain(here.layer(target).output[0, -1])  # noqa: F841
    result = _poll(tracer.backend)
    assert type(result["thought"]) is Explanation
    assert result["thought"].text == local[PARIS][-1]


def _poll(backend, seconds: float = 60.0):
    end = time.time() + seconds
    while time.time() < end:
        result = backend.poll()
        if result is not None:
            return result
        time.sleep(0.2)
    raise TimeoutError("the job did not finish")


def test_the_asynchronous_backend(ndif, target, here, local):
    import asyncio

    from nnsight.intervention.backends.remote import AsyncRemoteBackend

    async def run():
        backend = AsyncRemoteBackend(target.to_model_key())
        with target.trace(PARIS, backend=backend):
            thought = here.explain(here.layer(target).output[0, -1])  # noqa: F841
        return await backend

    result = asyncio.run(run())
    assert result["thought"].text == local[PARIS][-1]


def test_parts_iteration_and_vectors_inside_the_block(ndif, target, here, local):
    with target.trace(PARIS, remote=True):
        whole = here.explain(here.layer(target).output)
        last = whole[0, -1]
        lengths = nnsight.save([len(whole), len(whole[0]), whole.shape, len(list(whole[0]))])
        norm = whole.vectors.norm(dim=-1).save()
    count = len(local[PARIS])
    assert lengths == [1, count, (1, count), count]
    assert norm.shape == (1, count)
    assert last.text == local[PARIS][-1] == whole.text[0][-1]
    assert last._capture is whole._capture


def test_sampling_and_samples_travel(ndif, target, here):
    warm = Sampling(temperature=1.0, max_new_tokens=40, seed=3)
    with target.trace(PARIS, remote=True):
        thought = here.explain(here.layer(target).output[0, -1], samples=2, sampling=warm)
    assert thought.samples == here.explain(thought.vectors, samples=2, sampling=warm).samples


def test_the_hosts_draws_are_the_local_ones(ndif, here, there):
    warm = Sampling(temperature=1.3, top_p=0.9, top_k=30, max_new_tokens=30, seed=3)
    vectors = torch.randn(4, 128, generator=torch.Generator().manual_seed(0))
    remote = there.explain(vectors, samples=3, sampling=warm)
    assert remote.samples == here.explain(vectors, samples=3, sampling=warm).samples


def test_options_that_do_not_fit_are_recorded_and_lose_nothing(ndif, target, here):
    with target.trace(PARIS, remote=True):
        twice = here.explain(here.layer(target).output[0, -1], samples=2)
        fine = here.explain(here.layer(target).output[0, -1])
    assert fine.text
    assert "would give the same text 2 times" in twice.errors[()]
    assert twice.vectors.shape == (128,)


def test_a_hundred_handles_in_at_most_two_requests(ndif, there, here, monkeypatch):
    vectors = torch.randn(100, 128, generator=torch.Generator().manual_seed(1))
    handles = [there.explain(vector) for vector in vectors]
    sent = _count_requests(monkeypatch)
    there.resolve()
    assert 1 <= len(sent) <= 2
    assert [handle.text for handle in handles] == here.explain(vectors).text


def _count_requests(monkeypatch) -> list[int]:
    """The bytes of each request, as it is made."""
    from nnsight.intervention.backends.remote import RemoteBackend

    sent: list[int] = []
    real = RemoteBackend._serialize

    def serialize(self, tracer):
        blob = real(self, tracer)
        sent.append(len(blob) if isinstance(blob, bytes) else len(blob[0]))
        return blob

    monkeypatch.setattr(RemoteBackend, "_serialize", serialize)
    return sent


def test_what_a_request_carries(ndif, target, here, monkeypatch, capsys):
    sent = _count_requests(monkeypatch)
    with target.trace(PARIS, remote=True):
        a = here.layer(target) and target.model.layers[3].output[0, -1].save()
    with target.trace(PARIS, remote=True):
        a = target.model.layers[3].output[0, -1].save()  # noqa: F841
    with target.trace(PARIS, remote=True):
        one = here.explain(here.layer(target).output[0, -1])
    del one
    with target.trace(PARIS, remote=True):
        one = here.explain(here.layer(target).output[0, -1])  # noqa: F841
        two = here.explain(here.layer(target).output[0, -2])  # noqa: F841
        three = here.explain(here.layer(target).output[0, -3])  # noqa: F841
    with capsys.disabled():
        print(
            f"\nrequest bytes: NLA named {sent[0]}, plain {sent[1]}, one {sent[2]}, three {sent[3]}"
        )
    assert len(sent) == 4
    assert sent[2] - sent[1] <= 8 * 1024
    assert sent[3] - sent[2] <= 2 * 100


class TestWhatCannotWork:
    """Said on the client, before anything is sent."""

    @pytest.fixture(autouse=True)
    def nothing_is_sent(self, ndif, monkeypatch):
        from nnsight.intervention.backends.remote import RemoteBackend

        def submit(*args, **kwargs):
            raise AssertionError("a request was sent")

        monkeypatch.setattr(RemoteBackend, "__call__", _serialize_only(RemoteBackend, submit))

    def test_text_inside_the_block(self, target, here):
        with pytest.raises(VerbalizationError, match=r"line \d+: .text: .*after the block"):
            with target.trace(PARIS, remote=True):
                thought = here.explain(here.layer(target).output[0, -1])
                word = nnsight.save(thought.text)
        with pytest.raises(VerbalizationError, match=r".samples: .*after the block"):
            with target.trace(PARIS, remote=True):
                word = here.explain(here.layer(target).output)[0, -1].samples  # noqa: F841

    def test_a_second_model(self, target, here, by_path):
        other = TransformersModel(by_path(tiny.paths()["av"]), task="text-generation")
        with pytest.raises(VerbalizationError, match=r"names 2 models: .*Use two requests"):
            with target.trace(PARIS, remote=True):
                thought = here.explain(here.layer(target).output[0, -1])
                theirs = other.model.layers[0].output.save()  # noqa: F841
        with pytest.raises(VerbalizationError, match=r"here.av: a remote request runs one model"):
            with target.trace(PARIS, remote=True):
                thought = here.explain(here.av.model.layers[3].output[0, -1])  # noqa: F841

    def test_a_verbalizer_that_is_the_target(self, target):
        same = NLA(target, checkpoint=tiny.paths()["av"])
        with pytest.raises(VerbalizationError, match=r"NLA\(model, remote=True\)"):
            with target.trace(PARIS, remote=True):
                thought = same.explain(same.layer(target).output[0, -1])  # noqa: F841


def _serialize_only(backend_class, submit):
    def call(self, tracer):
        self._serialize(tracer)
        submit()

    return call


def test_an_error_of_the_block_on_the_host_names_what_is_wrong(ndif, target, here):
    with pytest.raises(Exception, match=r"floating-point tensor of shape \[..., 128\]"):
        with target.trace(PARIS, remote=True):
            thought = here.explain(target.lm_head.output)  # noqa: F841


def test_an_adapter_verbalizer_runs_on_the_bases_own_deployment(ndif, target, by_path, tmp_path):
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    base = tiny.paths()["target"]
    torch.manual_seed(0)
    config = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    get_peft_model(AutoModelForCausalLM.from_pretrained(base), config).save_pretrained(tmp_path)
    (tmp_path / "nla_meta.yaml").write_text(
        (tiny.paths()["av"] / "nla_meta.yaml").read_text("utf-8"), "utf-8"
    )
    vectors = torch.randn(3, 128, generator=torch.Generator().manual_seed(2))
    short = Sampling(max_new_tokens=20)
    there = NLA(by_path(base), peft=str(tmp_path), remote=True, sampling=short)
    here = NLA(base, peft=str(tmp_path), sampling=short, dtype=torch.float32)
    plain = NLA(base, checkpoint=here.checkpoint, sampling=short, dtype=torch.float32)
    assert there.explain(vectors).raw == here.explain(vectors).raw
    assert here.explain(vectors).raw != plain.explain(vectors).raw
    with target.trace(PARIS, remote=True):  # the shared deployment is the plain base again
        logits = target.lm_head.output.save()
    model, _ = tiny.load()
    with model.trace(PARIS):
        expected = model.lm_head.output.save()
    torch.testing.assert_close(logits, expected.detach(), atol=1e-4, rtol=1e-4)


def test_status_says_what_runs_where(ndif, target, there, by_path):
    with target.trace(PARIS, remote=True):
        target.lm_head.output.save()
    _ = there.explain(torch.randn(128)).text
    status = there.status()
    assert status.reachable
    assert status.verbalizer == "RUNNING"
    assert any("verbalizer on the host" in way for way in status.ways)
    assert status.host in str(status)


def test_nothing_is_lost_while_the_host_is_away(ndif, target, there, local, monkeypatch):
    from nnsight_nla.remote import ndif as client

    monkeypatch.setattr(client, "ATTEMPTS", 2)
    with target.trace(PARIS, remote=True):
        thought = there.explain(there.layer(target).output[0, -1])
    with ndif.away():
        with pytest.raises(VerbalizationError) as caught:
            there.resolve()
        message = str(caught.value)
        assert "The request to verbalize 1 vectors" in message
        assert "2 of 2 tries" in message
        assert "1 of 1 rows are still pending" in message
        assert "nla.resolve()" in message
        assert isinstance(caught.value.__cause__, HostError)
        assert there.pending == (thought,)
        assert not there.status().reachable
    there.resolve()
    assert thought.text == local[PARIS][-1]


def test_a_dropped_connection_is_tried_again(ndif, there, monkeypatch):
    failures = [ConnectionResetError("dropped"), TimeoutError("slow")]
    real = there._verbalizer._request

    def flaky(*args):
        if failures:
            raise failures.pop()
        return real(*args)

    monkeypatch.setattr(there._verbalizer, "_request", flaky)
    assert there.explain(torch.randn(128)).text
    assert failures == []


def test_one_request_carries_many_vectors_and_the_host_runs_the_prefix_once(
    ndif, by_path, monkeypatch
):
    """The same texts as here, by the fast engine and by ``generate``, drawn ones as well."""
    av, warm = tiny.paths()["av"], Sampling(temperature=1.0, max_new_tokens=40)
    vectors = torch.randn(6, 128, generator=torch.Generator().manual_seed(4))[[0, 1, 2, 3, 4, 5, 0]]
    local = NLA(av, dtype=torch.float32, sampling=warm).explain(vectors, samples=2).samples
    asked = []
    for engine, name in (("fast", "_request"), ("generate", "_generate")):
        nla = NLA(by_path(av), remote=True, sampling=warm, engine=engine)
        real = getattr(nla._verbalizer, name)
        monkeypatch.setattr(
            nla._verbalizer, name, lambda *a, real=real, name=name: asked.append(name) or real(*a)
        )
        assert nla.explain(vectors, samples=2).samples == local
    assert asked == ["_request", "_generate"]


def test_handles_in_ordinary_pickles_keep_their_texts(ndif, target, here):
    with target.trace(PARIS, remote=True):
        thought = here.explain(here.layer(target).output[0, -1])
    text = thought.text
    again = pickle.loads(pickle.dumps(thought))
    assert again.text == text
    gc.collect()
