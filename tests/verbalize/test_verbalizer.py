"""The verbalizer against an independent implementation, and against everything that could leak."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from nnsight_nla import NLA, Checkpoint, Injection, Sampling, tiny
from nnsight_nla.checkpoint.reply import extract
from tests.helpers import plain
from tests.helpers.hooks import left_hooks

PROMPTS = [
    f"{opener} {fact}"
    for opener in ("What a lovely day!", "It is a sad morning.", "This is a scary evening.", "")
    for fact in (
        "People in Paris speak French. There shops take the euro.",
        "The cow lives in the farm. It says moo.",
        "The baker works in the bakery and uses the oven.",
        "Tokyo is the capital of Japan. It lies in Asia.",
    )
]
NEAR = 1e-4
"""Two best logits this close may fall either way (a batch differs from one row by about 6e-6)."""


@pytest.fixture(scope="module")
def vectors(pair):
    """Residuals of every real position of `PROMPTS`: at least 200 vectors."""
    model, nla = pair
    found = []
    for prompt in PROMPTS:
        with model.trace(prompt):
            residual = nla.layer(model).output[0].detach().save()
        found.append(residual)
    return torch.cat(found)


@pytest.mark.measured
def test_text_equals_a_plain_hook_on_the_plain_model(vectors, nla, capsys):
    assert len(vectors) >= 200
    ours = nla.explain(vectors)
    reference = plain.verbalize(tiny.paths()["av"], vectors, 60)
    near = 0
    for raw, theirs in zip(ours.raw, reference, strict=True):
        text = extract(nla.av.tokenizer.decode(theirs.tokens, skip_special_tokens=True))[0]
        if extract(raw)[0] != text:
            assert min(theirs.margins) < NEAR, (raw, text)
            near += 1
    with capsys.disabled():
        print(f"\nplain hook: {len(vectors)} vectors, {near} differ at a near-tie (< {NEAR})")
    assert near <= 0.01 * len(vectors)


def test_layer_k_is_hidden_states_k_plus_1(model, nla):
    text = "What a lovely day! People in Paris speak"
    with model.trace(text):
        ours = nla.layer(model).output[0].detach().save()
    torch.testing.assert_close(ours, plain.residual(tiny.paths()["target"], text, 3))


@pytest.mark.parametrize("wrong", ["layer", "marker position", "scale", "second bos", "raw"])
def test_a_wrong_setting_changes_the_text(nla, vectors, wrong, monkeypatch):
    """Every way of being wrong that users have tripped over turns this red."""
    right = nla.explain(vectors[30:46]).text
    checkpoint = nla.checkpoint
    if wrong == "layer":
        checkpoint = _with(checkpoint, injection=Injection("add", "block", 3))
    elif wrong == "scale":
        checkpoint = _with(checkpoint, injection=Injection("add", "block", 1, 8.0))
    elif wrong == "raw":
        checkpoint = _with(checkpoint, injection=Injection("replace", "embedding", None, 1.0))
    other = NLA(tiny.paths()["av"], checkpoint=checkpoint, dtype=torch.float32)
    if wrong == "marker position":
        object.__setattr__(other.prompt, "marker_position", other.prompt.marker_position + 1)
    elif wrong == "second bos":
        end = nla.av.tokenizer.convert_tokens_to_ids("<|im_end|>")
        object.__setattr__(other.prompt, "ids", (end, *other.prompt.ids))
    assert other.explain(vectors[30:46]).text != right


def _with(checkpoint: Checkpoint, **changes) -> Checkpoint:
    return Checkpoint(**{**vars(checkpoint), **changes})


@pytest.mark.parametrize("engine", ["fast", "generate"])
def test_only_the_marker_is_written(nla, vectors, engine):
    """The residual at the site: every other position is bit-identical, the marker moved by |h|."""
    av = NLA(nla.av, checkpoint=nla.checkpoint, engine=engine, sampling=Sampling(max_new_tokens=1))
    position = nla.prompt.marker_position
    start = position if engine == "fast" else 0  # What lies before the marker is run apart.
    nla.av.dispatch()
    seen = []
    hook = nla.av._module.model.layers[2].register_forward_pre_hook(
        lambda module, args: seen.append(args[0].detach().clone())
    )
    try:
        av.resolve(av.explain_nothing())
        clean = seen[-1]
        thought = av.explain(vectors[40])
        receipt = thought.receipt
    finally:
        hook.remove()
    written = seen[-1]
    assert written.shape == clean.shape == (1, len(nla.prompt.ids) - start, 128)
    here = position - start
    others = [i for i in range(written.shape[1]) if i != here]
    assert torch.equal(written[:, others], clean[:, others])
    before, after = clean[0, here], written[0, here]
    expected = before + before.norm() * vectors[40] / vectors[40].norm()
    torch.testing.assert_close(after, expected)
    assert receipt.norm_before == pytest.approx(before.norm().item())
    assert receipt.norm_after == pytest.approx(after.norm().item())
    assert receipt.injection_cosine == pytest.approx(1.0, abs=1e-5)
    assert receipt.marker_position == position


def test_the_model_is_the_same_afterwards(nla, vectors):
    nla.av.dispatch()
    before = {name: value.clone() for name, value in nla.av._module.state_dict().items()}
    _ = nla.explain(vectors[:8]).text
    after = nla.av._module.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not left_hooks(nla.av._module)


def test_a_checkpoints_generation_config_does_not_leak(nla, vectors):
    expected = nla.explain(vectors[40:48]).text
    config = nla.av._module.generation_config
    hostile = {
        "temperature": 0.1,
        "top_k": 3,
        "top_p": 0.2,
        "repetition_penalty": 3.0,
        "no_repeat_ngram_size": 2,
        "min_new_tokens": 59,
        "min_length": 180,
        "num_beams": 4,
    }
    kept = {name: getattr(config, name) for name in hostile}
    try:
        config.update(**hostile)
        assert nla.explain(vectors[40:48]).text == expected
    finally:
        config.update(**kept)


def test_greedy_text_does_not_depend_on_the_batch(vectors):
    texts = [
        NLA(tiny.paths()["av"], batch_size=size, dtype=torch.float32).explain(vectors[30:60]).text
        for size in (1, 7, 64)
    ]
    assert texts[0] == texts[1] == texts[2]


def test_a_draw_depends_on_seed_vector_and_sample_only(vectors):
    warm = Sampling(temperature=1.2, top_p=0.95, top_k=40, max_new_tokens=40, seed=5)
    one, many = (
        NLA(tiny.paths()["av"], batch_size=size, sampling=warm, dtype=torch.float32)
        for size in (1, 64)
    )
    batch = many.explain(vectors[30:38], samples=3)
    alone = [one.explain(vector, samples=3).samples for vector in vectors[30:38]]
    assert batch.samples == alone
    reverse = many.explain(vectors[30:38].flip(0), samples=3)
    assert reverse.samples == alone[::-1]
    assert len({text for row in alone for text in row}) > 8, "temperature 1.2 gives different texts"
    other = Sampling(temperature=1.2, top_p=0.95, top_k=40, max_new_tokens=40, seed=6)
    assert many.explain(vectors[30:38], samples=3, sampling=other).samples != alone


def test_max_new_tokens_too_small_is_a_warning_and_the_text_is_kept(nla, vectors):
    thought = nla.explain(vectors[40], sampling=Sampling(max_new_tokens=5))
    assert thought.finish == "length"
    assert thought.text
    assert any("cut off after max_new_tokens=5" in note for note in thought.warnings)
    assert nla.explain(vectors[40]).finish == "tag"


def test_a_reply_that_cannot_fit_the_context_is_refused_and_stays_pending(nla, vectors):
    thought = nla.explain(vectors[40], sampling=Sampling(max_new_tokens=10_000))
    with pytest.raises(Exception, match=r"max_new_tokens=10000 .* context of 512") as caught:
        _ = thought.text
    assert f"Sampling(max_new_tokens={512 - len(nla.prompt.ids)})" in str(caught.value)
    assert nla.pending == (thought,)
    del thought, caught
    assert nla.explain(vectors[40]).finish == "tag"


def test_half_precision_and_a_live_model_give_an_explanation_too(vectors):
    live = AutoModelForCausalLM.from_pretrained(tiny.paths()["av"], dtype=torch.bfloat16)
    from nnsight import TransformersModel
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny.paths()["av"])
    av = TransformersModel(live, task="text-generation", tokenizer=tokenizer)
    nla = NLA(av, checkpoint=tiny.paths()["av"])
    thought = nla.explain(vectors[40].to(torch.float16))
    assert nla.av is av
    assert thought.receipt.dtype == "bfloat16"
    assert thought.receipt.injection_cosine == pytest.approx(1.0, abs=0.01)
    assert thought.finish == "tag"
