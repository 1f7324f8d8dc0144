"""One runtime for each model: threads wait, weights load in evaluation mode, others make room."""

import json
import threading
from collections import deque

import pytest
import torch
from nnsight import TransformersModel
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from nnsight_nla import NLA, ReconstructionError, Sampling, VerbalizationError, tiny
from nnsight_nla.evaluation.evaluate import evaluate
from nnsight_nla.models.runtime import Runtime
from nnsight_nla.verbalize import verbalizer as graph
from nnsight_nla.verbalize.likelihood import likelihoods
from nnsight_nla.verbalize.verbalizer import Verbalizer

PATHS = tiny.paths()
SHORT = Sampling(max_new_tokens=6)
TEXTS = ["About Rome.", "About a dog.", "About Japan, the country; sad tone."]


def in_threads(work, count=4):
    """Run `work(number)` in threads that start together; raise the first error."""
    start, results, errors = threading.Barrier(count), {}, []

    def run(number):
        start.wait()
        try:
            results[number] = work(number)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return [results[number] for number in range(count)]


class TestThreads:
    def test_reconstruct(self, nla):
        expected = nla.reconstruct(TEXTS)
        for _ in range(3):
            for found in in_threads(lambda _: nla.reconstruct(TEXTS)):
                assert torch.equal(found, expected)

    def test_score_trust_and_str(self, nla, residuals):
        thoughts = [nla.explain(residuals[-3:] * (1 + n / 10)) for n in range(4)]
        nla.resolve()
        scored = in_threads(lambda n: nla.score(thoughts[n]).cosine)
        trusted = in_threads(lambda n: [label.cosine for label in thoughts[n].trust])
        shown = in_threads(lambda n: str(thoughts[n]))
        for n in range(4):
            assert trusted[n] == pytest.approx(scored[n].tolist(), abs=1e-5)
            assert "[reconstruction: " in shown[n]

    def test_one_thread_traces_while_another_reads_texts(self, model, nla, residuals):
        """Adding handles must not change the queue while it is being iterated."""
        kept, done = deque(maxlen=20), threading.Event()

        def work(number):
            if number:
                while not done.is_set():
                    kept.append(nla.explain(residuals[-1], sampling=SHORT))
                    nla.pending  # noqa: B018
                return None
            try:
                with model.trace("People in Paris speak"):
                    thought = nla.explain(nla.layer(model).output[0, -1])
                for _ in range(3):
                    nla.explain(residuals[-2]).text  # noqa: B018
                return thought.text
            finally:
                done.set()

        assert in_threads(work, 2)[0].startswith("About Paris")


@pytest.fixture
def target():
    return TransformersModel(
        str(PATHS["target"]), task="text-generation", dtype=torch.float32, dispatch=True
    )


class TestSequential:
    """Target and verbalizer are never in memory together, whoever runs the verbalizer."""

    @pytest.fixture
    def watched(self, target, monkeypatch):
        """A sequential NLA, and the bytes of the target at each run of the verbalizer."""
        nla = NLA(
            PATHS["av"], ar=PATHS["ar"], dtype=torch.float32, sampling=SHORT,
            placement="sequential", target=target,
        )  # fmt: skip
        held, real = [], graph.Verbalizer.verbalize

        def verbalize(self, *options):
            if self.runtime is nla.runtime:
                held.append(self.av.dispatched and in_memory(target))
            yield from real(self, *options)

        monkeypatch.setattr(graph.Verbalizer, "verbalize", verbalize)
        from nnsight_nla.verbalize import likelihood

        forward = likelihood._forward

        def measured(given, *rest):
            held.append(given.av.dispatched and in_memory(target))
            return forward(given, *rest)

        monkeypatch.setattr(likelihood, "_forward", measured)
        return nla, held

    def test_doctor_and_evaluate(self, watched, target, residuals):
        nla, held = watched
        nla.doctor(target, texts=TEXTS[:2], sampling=SHORT)
        evaluate(nla, residuals[-3:], ["one", "two", "three"])
        assert len(held) > 10
        assert not any(held)
        assert in_memory(target)


def in_memory(model) -> int:
    return sum(each.nbytes for each in model._module.parameters() if each.device.type != "meta")


def test_likelihoods_run_in_evaluation_mode(tmp_path, nla, residuals):
    """A LoRA verbalizer's dropout must not act, whoever runs the model first."""
    base = AutoModelForCausalLM.from_pretrained(PATHS["av"], dtype=torch.float32)
    lora = get_peft_model(
        base, LoraConfig(r=4, lora_dropout=0.5, target_modules=["q_proj"], init_lora_weights=False)
    )
    lora.save_pretrained(tmp_path)
    model = TransformersModel(
        str(PATHS["av"]), task="text-generation", dtype=torch.float32, peft=str(tmp_path)
    )
    verbalizer = Verbalizer(Runtime(model, "verbalizer"), nla.checkpoint, nla.prompt)
    options = (residuals[-2:], torch.ones(2, dtype=torch.bool), [[5, 6, 7], [8, 9]])
    assert torch.equal(likelihoods(verbalizer, *options), likelihoods(verbalizer, *options))
    assert not model._module.training


class TestLabels:
    def test_a_row_that_is_nan_and_never_settled_spoils_no_other_label(self, nla, residuals):
        bad = torch.full((128,), float("nan"))
        part = nla.explain(torch.stack([residuals[-1], residuals[-2], bad, -bad]))[:2]
        label = part.trust[0]
        alone = nla.explain(residuals[[-1, -2]]).trust[0]
        assert label.others == pytest.approx(alone.others, abs=1e-6)
        assert label.margin == pytest.approx(alone.margin, abs=1e-6)
        json.dumps(part.to_dict(), allow_nan=False)

    def test_strict_json_with_rows_that_are_not_finite(self, nla, residuals):
        rows = torch.stack([residuals[-1], torch.full((128,), torch.inf), torch.zeros(128)])
        said = json.loads(json.dumps(nla.explain(rows).to_dict(), allow_nan=False))
        assert [row["norm"] is None for row in said["explanations"]] == [False, True, False]

    def test_a_handle_of_another_nla(self, nla, residuals):
        other = NLA(PATHS["av"], dtype=torch.float32)
        thought = other.explain(residuals[-3:])
        assert thought.trust is None
        labels = nla.trust(thought)
        expected = nla.trust(nla.explain(residuals[-3:]))
        assert [each.grade for each in labels] == [each.grade for each in expected]
        assert labels[0].cosine == pytest.approx(expected[0].cosine, abs=1e-5)
        assert nla.trust(thought[1]).cosine == pytest.approx(expected[1].cosine, abs=1e-5)
        assert thought.trust is None


def test_the_doctor_leaves_a_live_models_tokenizer_alone(target, nla, monkeypatch):
    live = TransformersModel(str(PATHS["av"]), task="text-generation", dtype=torch.float32)
    target.tokenizer.chat_template = "Note. " + target.tokenizer.chat_template
    before, seen = live.tokenizer, []
    real = graph.Verbalizer.verbalize

    def verbalize(self, *options):
        seen.append((self.av.tokenizer, self.tokenizer))
        yield from real(self, *options)

    monkeypatch.setattr(graph.Verbalizer, "verbalize", verbalize)
    found = NLA(live, checkpoint=nla.checkpoint).doctor(target, texts=TEXTS[:1], sampling=SHORT)
    assert {id(held) for held, _ in seen} == {id(before)}
    assert len({id(used) for _, used in seen}) > 1, "another tokenizer was tried"
    assert "tokenizer" in [finding.setting for finding in found.findings]


@pytest.mark.parametrize(
    ("role", "error"),
    [("verbalizer", VerbalizationError), ("reconstructor", ReconstructionError)],
)
def test_a_trace_of_the_users_own_on_the_model_is_an_error(target, role, error):
    runtime = Runtime(target, role)
    with target.trace("About Rome"):
        with pytest.raises(error, match=f"A trace is running on the {role} itself"):
            with runtime.use():
                pass
    with runtime.use() as model:
        assert model is target
