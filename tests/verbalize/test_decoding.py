"""The fast engine against nnsight's own ``generate``, and what it must not do twice."""

import pytest
import torch

from nnsight_nla import NLA, Checkpoint, NLAWarning, Sampling, tiny
from nnsight_nla.errors import VerbalizationError
from nnsight_nla.verbalize.decoding import MOST, rows_that_fit, unfit
from tests.helpers import plain
from tests.verbalize.test_architectures import FAMILIES, INJECTIONS, D, build, described, wrapped
from tests.verbalize.test_verbalizer import NEAR, PROMPTS

WARM = Sampling(temperature=0.8, top_p=0.95, seed=3)


@pytest.fixture(scope="module")
def vectors(pair):
    """At least 200 residuals, so that the last batch is not a full one."""
    model, nla = pair
    found = []
    for prompt in PROMPTS:
        with model.trace(prompt):
            found.append(nla.layer(model).output[0].detach().save())
    return torch.cat(found)


@pytest.fixture
def reference(nla):
    """The same verbalizer on nnsight's own ``generate``."""
    return NLA(nla.av, checkpoint=nla.checkpoint, engine="generate", batch_size=128)


def replies(handle):
    handle.text if handle._capture.samples == 1 else handle.samples  # noqa: B018
    return [
        (reply.raw, reply.finish, reply.new_tokens)
        for _, reply in sorted(handle._capture.replies.items())
    ]


class Forwards:
    """The (rows, tokens) of every forward pass of a model, while the block lasts."""

    def __init__(self, nla):
        nla.av.dispatch()
        self.embedding = nla.av._module.get_input_embeddings()
        self.shapes = []

    def __enter__(self):
        self.handle = self.embedding.register_forward_pre_hook(
            lambda module, args: self.shapes.append(tuple(args[0].shape))
        )
        return self.shapes

    def __exit__(self, *_):
        self.handle.remove()


@pytest.mark.measured
def test_texts_are_those_of_generate(nla, reference, vectors, capsys):
    assert len(vectors) >= 200
    fast, slow = replies(nla.explain(vectors)), replies(reference.explain(vectors))
    differ = [row for row in range(len(vectors)) if fast[row] != slow[row]]
    close = plain.verbalize(tiny.paths()["av"], vectors[differ], 60)
    with capsys.disabled():
        print(f"\nfast engine: {len(vectors)} vectors, {len(differ)} differ at a near-tie")
    assert all(min(each.margins) < NEAR for each in close)
    assert len(differ) <= 0.01 * len(vectors)


def test_draws_are_those_of_generate(nla, reference, vectors):
    fast = nla.explain(vectors[::9], samples=3, sampling=WARM)
    slow = reference.explain(vectors[::9], samples=3, sampling=WARM)
    assert replies(fast) == replies(slow)
    assert len({text for row in fast.samples for text in row}) > len(fast)


@pytest.mark.parametrize(("operation", "temperature"), [("add", 4.0), ("replace", 0.0)])
@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_every_architecture(family, operation, temperature):
    """Grouped queries, sliding windows shorter than the prompt, learned positions, a wrapper."""
    av, few = wrapped(build(family)), Sampling(temperature=temperature, max_new_tokens=24)
    checkpoint = described(INJECTIONS[operation])
    fast = NLA(av, checkpoint=checkpoint, sampling=few, batch_size=70)
    slow = NLA(av, checkpoint=checkpoint, sampling=few, batch_size=70, engine="generate")
    assert fast.info()["engine"] == {"name": "fast", "why": None}
    vectors = torch.randn(200, D, generator=torch.Generator().manual_seed(5)) * 9
    ours, theirs = replies(fast.explain(vectors)), replies(slow.explain(vectors))
    # Greedy text of random weights is dull; drawn text shows that every step's logits are right.
    assert len({raw for raw, _, _ in ours}) > (150 if temperature else 0)
    differ = sum(one != other for one, other in zip(ours, theirs, strict=True))
    assert differ <= 2  # Weights from U(-1, 1) have their near-ties too.


def test_a_window_shorter_than_the_reply_and_one_that_is_longer():
    """Both caches of a sliding-window model: transformers' own, and the one written in place."""
    few = Sampling(max_new_tokens=40)
    kind, config, _ = FAMILIES["gemma3"]
    for window in (8, 4096):
        module = build("gemma3")
        wide = kind(type(config)(**{**config.to_dict(), "sliding_window": window})).eval()
        wide.load_state_dict(module.state_dict())
        av = wrapped(wide)
        checkpoint = described(INJECTIONS["add"])
        vectors = torch.randn(12, D, generator=torch.Generator().manual_seed(6)) * 9
        texts = [
            NLA(av, checkpoint=checkpoint, sampling=few, engine=engine).explain(vectors).raw
            for engine in ("fast", "generate")
        ]
        assert texts[0] == texts[1]


def test_a_prompt_that_begins_with_its_marker(nla, vectors):
    """There is no prefix then; the smallest one that a marker's left neighbour allows is one."""
    template = "<concept>{injection_char}</concept>"
    checkpoint = Checkpoint(
        **{**vars(nla.checkpoint), "template": template, "source": {}, "baseline": None}
    )
    texts = [
        NLA(nla.av, checkpoint=checkpoint, engine=engine).explain(vectors[:6]).raw
        for engine in ("fast", "generate")
    ]
    assert texts[0] == texts[1]


def test_the_prefix_is_run_once_and_rows_leave(nla, vectors):
    prompt, start = len(nla.prompt.ids), nla.prompt.marker_position
    thought = nla.explain(vectors[:8])
    with Forwards(nla) as shapes:
        nla.resolve(thought)
    assert shapes[:2] == [(1, start), (8, prompt - start)]
    lengths = sorted(reply.new_tokens for reply in thought._capture.replies.values())
    assert lengths[0] < lengths[-1]
    # A reply of n tokens that a tag closes takes n - 1 steps: the prefill gives the first.
    assert {reply.finish for reply in thought._capture.replies.values()} == {"tag"}
    expected = [sum(length > step for length in lengths) for step in range(1, lengths[-1])]
    assert shapes[2:] == [(left, 1) for left in expected]


def test_samples_share_their_prompt(nla, vectors):
    thought = nla.explain(vectors[:2], samples=4, sampling=WARM)
    with Forwards(nla) as shapes:
        nla.resolve(thought)
    assert [rows for rows, _ in shapes[:3]] == [1, 2, 8]


def test_equal_vectors_are_computed_once(nla, vectors):
    both = torch.stack([vectors[3], vectors[9], vectors[3]])
    first, second = nla.explain(both), nla.explain(vectors[9])
    with Forwards(nla) as shapes:
        nla.resolve()
    assert shapes[1][0] == 2
    assert first.text[0] == first.text[2] != first.text[1]
    assert second.text == first.text[1]
    drawn = nla.explain(vectors[[3, 3]], samples=2, sampling=WARM)
    with Forwards(nla) as shapes:
        assert drawn.samples[0] == drawn.samples[1]
    assert [rows for rows, _ in shapes[:3]] == [1, 1, 2]


def test_a_null_control_beside_vectors(nla, vectors):
    alone = nla.explain_nothing().text
    nothing, thought = nla.explain_nothing(), nla.explain(torch.zeros(128) + vectors[3])
    again = nla.explain_nothing()
    with Forwards(nla) as shapes:
        nla.resolve()
    assert shapes[1][0] == 2
    assert nothing.text == again.text == alone != thought.text


def test_rows_settle_as_they_finish(nla, vectors, monkeypatch):
    """An error in the middle of a batch costs the rows that were not done, and no other."""
    thought = nla.explain(vectors[[0, 30, 31, 40]])
    model = nla.av._module
    real, calls = model.forward, []

    def failing(*args, **kwargs):
        calls.append(1)
        done = len(thought._capture.replies)
        if 0 < done < 4:
            raise KeyError("pulled plug")
        return real(*args, **kwargs)

    monkeypatch.setattr(model, "forward", failing)
    with pytest.raises(VerbalizationError, match=r"KeyError.*pulled plug.*still pending"):
        nla.resolve(thought)
    kept = dict(thought._capture.replies)
    assert 0 < len(kept) < 4
    monkeypatch.setattr(model, "forward", real)
    with Forwards(nla) as shapes:
        text = thought.text
    assert shapes[1][0] == 4 - len(kept)
    assert text == nla.explain(vectors[[0, 30, 31, 40]]).text


@pytest.mark.parametrize(
    ("error", "when"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), "prefill"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you"), "step"),
        (MemoryError(), "step"),
    ],
)
def test_running_out_of_memory_halves_the_batch(nla, vectors, error, when, monkeypatch):
    av = NLA(nla.av, checkpoint=nla.checkpoint)
    av.batch_size = 12
    rows = vectors[:14]
    expected = nla.explain(rows).text
    nla.resolve()
    module = av.av._module
    real = module.forward

    def full(*args, **kwargs):
        count, length = kwargs["input_ids"].shape
        if count > 6 and (length > 1) == (when == "prefill"):
            raise error
        return real(*args, **kwargs)

    monkeypatch.setattr(module, "forward", full)
    thought = av.explain(rows)
    with pytest.warns(NLAWarning, match=r"did not fit in memory.*batches of 6.*batch_size=6"):
        av.resolve(thought)
    assert av.batch_size == 6
    assert thought.text == expected


def test_one_row_that_does_not_fit_is_an_error(nla, vectors, monkeypatch):
    av = NLA(nla.av, checkpoint=nla.checkpoint, batch_size=2)
    thought = av.explain(vectors[:3])

    def full(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    with monkeypatch.context() as patch:
        patch.setattr(av.av._module, "forward", full)
        with (
            pytest.warns(NLAWarning, match="batches of 1"),
            pytest.raises(VerbalizationError, match=r"out of memory.*3 of 3.*still pending"),
        ):
            av.resolve(thought)
    assert len(thought.text) == 3


def test_auto_finds_a_size_and_it_can_be_set(nla, monkeypatch):
    av = NLA(nla.av, checkpoint=nla.checkpoint)
    needed = {"prompt": 110, "rest": 16, "new_tokens": 200}
    assert av.batch_size == rows_that_fit(nla.runtime, **needed) == MOST
    sizes = []
    for free in (1 << 20, 50 << 20, 100 << 20):
        monkeypatch.setattr("nnsight_nla.models.runtime.free_for", lambda av, free=free: free)
        sizes.append(rows_that_fit(nla.runtime, **needed))
    assert sizes[0] == 1 < sizes[1] < sizes[2] < MOST
    # The keys and values of a row: 420 positions, 6 layers, 2 heads of 32, in float32.
    assert sizes[2] < (100 << 20) / (420 * 2 * 6 * 2 * 32 * 4)
    av.batch_size = 7
    assert av.batch_size == 7
    av.batch_size = "auto"
    assert av.batch_size == sizes[2]
    with pytest.raises(VerbalizationError, match=r"batch_size=0: expected 'auto' or a whole"):
        av.batch_size = 0


def test_who_takes_the_plain_path_says_why(nla, reference):
    assert reference.info()["engine"]["why"] == "engine='generate' was requested"
    with pytest.raises(
        VerbalizationError, match="engine='quick': expected one of 'fast', 'generate', 'vllm'"
    ):
        NLA(nla.av, checkpoint=nla.checkpoint, engine="quick")


def test_edits_on_the_verbalizer_act(nla, reference, vectors):
    """Edits live in nnsight's traces, so decoding outside of one would leave them out."""
    plain_text = nla.explain(vectors[:2]).text
    with nla.av.edit() as (_, edited):
        edited.lm_head.output = edited.lm_head.output.roll(1, dims=-1)
    assert "the verbalizer has edits" in unfit(edited)
    odd = NLA(edited, checkpoint=nla.checkpoint, sampling=Sampling(max_new_tokens=3))
    same = NLA(
        edited, checkpoint=nla.checkpoint, sampling=Sampling(max_new_tokens=3), engine="generate"
    )
    assert odd.explain(vectors[:2]).raw == same.explain(vectors[:2]).raw
    assert odd.info()["engine"]["name"] == "generate"
    assert nla.explain(vectors[:2]).text == plain_text


def test_a_host_whose_blocks_run_in_another_process_takes_the_plain_path(monkeypatch):
    """A sandboxed block does not see the model's keys and values; the first request finds out."""
    nla = NLA(tiny.paths()["av"], dtype=torch.float32, remote=True)
    half, asked = nla._verbalizer, []

    def request(*_):
        asked.append("fast")
        return False, torch.zeros(2, 1, 128), []

    def plain(vectors, *_):
        asked.append("plain")
        return iter([(row, "reply") for row in range(len(vectors))])

    monkeypatch.setattr(half, "_request", request)
    monkeypatch.setattr(half, "_plain", plain)
    options = (torch.ones(1, 128), torch.ones(1, dtype=torch.bool), [0], Sampling())
    for _ in range(2):
        assert list(half.verbalize(*options)) == [(0, "reply")]
    assert asked == ["fast", "plain", "plain"]
    assert "in another process than the model" in nla.info()["engine"]["why"]
