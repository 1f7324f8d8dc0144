"""A TransformerBridge as the target: the same vectors and texts as in an nnsight trace."""

import copy
import re
import warnings

import pytest
import torch

from nnsight_nla import NLA, InjectionError, NLAError, tiny
from tests.models.test_hosts import build, tokenizer

PARIS = "What a lovely day! People in Paris speak"
SHORT = "The cow lives in the"


def boot(name, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from transformer_lens.model_bridge import TransformerBridge

        return TransformerBridge.boot_transformers(str(name), **options)


@pytest.fixture(scope="module")
def bridge():
    return boot(tiny.paths()["target"])


@pytest.fixture(scope="module")
def local(pair):
    """Vectors and texts of every position in an nnsight trace."""
    model, nla = pair
    found = {}
    for prompt in (PARIS, SHORT):
        with model.trace(prompt):
            thought = nla.explain(nla.layer(model).output[0])
        found[prompt] = (thought.vectors, thought.text)
    return found


def test_the_hook_point_exists_and_is_the_residual(bridge, nla, local):
    assert nla.hook_name == "blocks.3.hook_out"
    assert nla.layer(bridge) is bridge.hook_dict["blocks.3.hook_out"]
    assert nla.layer(bridge) is bridge.blocks[3].hook_out
    _, cache = bridge.run_with_cache(PARIS)
    torch.testing.assert_close(cache[nla.hook_name][0].detach(), local[PARIS][0])
    assert nla.explain(cache[nla.hook_name]).text == [local[PARIS][1]]


def test_positions_are_the_bridges_own_tokens(bridge, nla, model):
    ours, theirs = nla.positions(bridge, [PARIS, SHORT]), nla.positions(model, [PARIS, SHORT])
    assert [each.ids for each in ours] == [each.ids for each in theirs]
    assert [each.tokens for each in ours] == [each.tokens for each in theirs]
    assert nla.positions(bridge, PARIS)[0].ids == tuple(bridge.to_tokens(PARIS)[0].tolist())
    with pytest.raises(InjectionError, match=r"\[5\] is one prompt of token ids"):
        nla.positions(bridge, [5])


@pytest.mark.parametrize("positions", ["last", "all"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_a_hook_reads_a_padded_batch_without_its_padding(bridge, nla, local, side, positions):
    hook = nla.hook(bridge, positions=positions)
    bridge.run_with_hooks([PARIS, SHORT], fwd_hooks=hook.fwd_hooks, padding_side=side)
    ((first, second),) = hook.explanations
    for thought, prompt in ((first, PARIS), (second, SHORT)):
        vectors, texts = local[prompt]
        tokens = list(nla.positions(bridge, prompt)[0].tokens)
        if positions == "last":
            vectors, texts, tokens = vectors[-1], texts[-1], tokens[-1]
        torch.testing.assert_close(thought.vectors, vectors, atol=1e-4, rtol=1e-4)
        assert thought.text == texts
        assert thought.tokens == tokens
        assert thought.positions == (len(local[prompt][1]) - 1 if positions == "last" else
                                     list(range(len(local[prompt][1]))))  # fmt: skip


def test_a_hook_changes_nothing_and_stays_nowhere(bridge, nla):
    before = bridge(PARIS)
    hook = nla.hook(bridge)
    during = bridge.run_with_hooks(PARIS, fwd_hooks=hook.fwd_hooks)
    assert torch.equal(before, during)
    bridge(PARIS)
    assert len(hook.explanations) == 1


def test_the_bare_hook_reads_one_prompt_and_refuses_a_batch(bridge, nla, local):
    hook = nla.hook(bridge)
    bridge.run_with_hooks(PARIS, fwd_hooks=[(nla.hook_name, hook)], remove_batch_dim=True)
    assert hook.explanations[0][0].text == local[PARIS][1][-1]
    message = "A batch of 2 prompts came without its token ids"
    with pytest.raises(InjectionError, match=message):
        bridge.run_with_hooks([PARIS, SHORT], fwd_hooks=[(nla.hook_name, hook)])


@pytest.mark.parametrize("cached", [True, False])
def test_a_hook_follows_a_generation(bridge, nla, model, cached):
    hook = nla.hook(bridge)
    with bridge.hooks(fwd_hooks=hook.fwd_hooks):
        written = bridge.generate(
            PARIS, max_new_tokens=3, do_sample=False, verbose=False, return_type="tokens",
            use_past_kv_cache=cached,
        )  # fmt: skip
    said = [thought.text for (thought,) in hook.explanations]
    assert [thought.positions for (thought,) in hook.explanations] == [8, 9, 10]
    with model.trace(written):
        expected = nla.explain(nla.layer(model).output[0, 8:11])
    assert said == expected.text
    tokens = [thought.tokens for (thought,) in hook.explanations]
    assert tokens == bridge.to_str_tokens(written[0])[8:11]


def test_a_hook_follows_a_batch_of_generations(bridge, nla):
    hook = nla.hook(bridge)
    with bridge.hooks(fwd_hooks=hook.fwd_hooks):
        bridge.generate([PARIS, SHORT], max_new_tokens=2, do_sample=False, verbose=False)
    assert [[part.positions for part in step] for step in hook.explanations] == [[8, 4], [9, 5]]
    assert "cow" in hook.explanations[1][1].text


def test_another_layer_is_read_as_on_the_nnsight_path(bridge, nla, model):
    other = {"layer": 1, "claims": "ignore", "positions": [2, -1]}
    ours, theirs = nla.read(bridge, PARIS, **other), nla.read(model, PARIS, **other)
    assert ours.layer == 1
    assert ours.explanations == theirs.explanations
    assert ours[-1].grade == "none"


def test_reading_a_bridge_is_reading_the_model(bridge, nla, model):
    ours, theirs = nla.read(bridge, PARIS), nla.read(model, PARIS)
    assert ours.tokens == theirs.tokens
    assert ours.explanations == theirs.explanations
    assert ours.norms == pytest.approx(theirs.norms, rel=1e-4)
    assert ours.target == "target"
    chat = [{"role": "user", "content": PARIS}]
    ours, theirs = nla.read(bridge, chat, generate=2), nla.read(model, chat, generate=2)
    assert ours.tokens == theirs.tokens
    assert ours.explanations == theirs.explanations
    assert [record.part for record in ours] == [record.part for record in theirs]
    assert nla.read(bridge, [PARIS, chat], positions=-1) == [
        nla.read(bridge, each, positions=-1) for each in (PARIS, chat)
    ]


def test_remote_is_for_nnsight_models(bridge, nla):
    with pytest.raises(NLAError, match="remote=True needs an nnsight model"):
        nla.read(bridge, PARIS, remote=True)


def test_processed_weights_are_noticed_and_refused(nla):
    renamed = boot(tiny.paths()["target"])
    renamed.enable_compatibility_mode(no_processing=True)
    nla.layer(renamed)  # the old names alone change no weight
    hook = nla.hook(renamed)
    renamed.enable_compatibility_mode()
    message = "were processed (compatibility mode folds layer norms and centres"
    for use in (
        lambda: nla.layer(renamed),
        lambda: nla.hook(renamed),
        lambda: nla.read(renamed, PARIS),
        lambda: renamed.run_with_hooks(PARIS, fwd_hooks=hook.fwd_hooks),
    ):
        with pytest.raises(InjectionError, match=re.escape(message)):
            use()


def test_centred_weights_do_give_another_residual():
    """The reason for the refusal, measured: a GPT-2's residual after centring is another one."""
    plain, centred = (
        boot("gpt2", hf_model=copy.deepcopy(build("gpt2")), tokenizer=tokenizer()) for _ in range(2)
    )
    centred.enable_compatibility_mode()
    ids = torch.tensor([[4, 5, 6, 7]])
    before, after = (each.run_with_cache(ids)[1]["blocks.2.hook_out"] for each in (plain, centred))
    assert (before - after).abs().max() > 1e-3


def test_a_bridge_of_another_shape(nla):
    other = boot("gpt2", hf_model=build("gpt2"), tokenizer=tokenizer())
    with pytest.raises(InjectionError, match=r"gpt2 has d_model 16, the verbalizer reads 128\."):
        nla.layer(other)
    from nnsight_nla.models import bridge

    with pytest.raises(InjectionError, match="gpt2 has blocks 0 to 3; block 4 was requested"):
        bridge.block(other, 4)


def test_a_hook_is_for_a_bridge(nla, model, bridge):
    with pytest.raises(InjectionError, match="A hook is for a TransformerBridge, got"):
        nla.hook(model)
    with pytest.raises(InjectionError, match="positions='first': expected 'last' or 'all'"):
        nla.hook(bridge, positions="first")


def padded(bridge, rows):
    """The slices of a hook whose call was given these token ids."""
    from nnsight_nla.models.bridge import Hook

    return Hook(lambda *_, **__: None, bridge, 3)._unpadded(torch.tensor(rows))


@pytest.fixture
def pad_is(bridge):
    """Make the pad token other special tokens too; undone after the test."""
    tokenizer = bridge.tokenizer
    before = {name: getattr(tokenizer, name) for name in ("bos_token", "eos_token")}

    def change(*names):
        for name in names:
            setattr(tokenizer, name, tokenizer.pad_token)

    yield change
    for name, token in before.items():
        setattr(tokenizer, name, token)


def test_a_pad_token_of_its_own_is_padding_wherever_it_is(bridge):
    pad = bridge.tokenizer.pad_token_id
    assert pad not in (bridge.tokenizer.eos_token_id, bridge.tokenizer.bos_token_id)
    rows = [[pad, pad, 5, 6, pad], [pad, 5, 6, 7, 8]]
    assert padded(bridge, rows) == [slice(2, 4), slice(1, 5)]
    assert padded(bridge, [[5, 6, pad]]) == [slice(0, 2)]
    assert padded(bridge, [[pad, pad]]) == [slice(1, 2)], "one token is always left"


@pytest.mark.parametrize(
    ("rows", "kept"),
    [
        ([[0, 0, 5, 6], [0, 5, 6, 7]], [slice(1, 4), slice(0, 4)]),
        ([[0, 5, 6], [0, 5, 6]], [slice(0, 3), slice(0, 3)]),
        ([[5, 6, 0], [5, 6, 7]], [slice(0, 2), slice(0, 3)]),
        ([[0, 5, 0], [0, 6, 7]], [slice(0, 2), slice(0, 3)]),
        ([[0, 5, 6, 0]], [slice(0, 4)]),
    ],
    ids=["left", "none", "right", "right with BOS", "alone"],
)
def test_a_pad_token_that_begins_and_ends_texts(bridge, pad_is, rows, kept):
    """The longest row has no padding, so what all rows begin with is BOS."""
    pad_is("bos_token", "eos_token")
    pad = bridge.tokenizer.pad_token_id
    rows = [[pad if token == 0 else token + 1000 for token in row] for row in rows]
    assert padded(bridge, rows) == kept


@pytest.mark.parametrize(
    "rows", [[[0, 0, 5, 0], [5, 6, 7, 0]], [[5, 6, 0], [5, 0, 0]], [[0, 5, 6], [5, 6, 0]]]
)
def test_padding_that_cannot_be_told_from_text_is_refused(bridge, pad_is, rows):
    pad_is("eos_token")
    pad = bridge.tokenizer.pad_token_id
    rows = [[pad if token == 0 else token + 1000 for token in row] for row in rows]
    with pytest.raises(InjectionError, match=r"nla.hook\(bridge, at=nla.positions"):
        padded(bridge, rows)


def test_a_hook_is_told_where_the_tokens_are(bridge, nla, local):
    rows = bridge.to_tokens([PARIS, SHORT])
    hook = nla.hook(bridge, at=nla.positions(bridge, [PARIS, SHORT]))
    bridge.run_with_hooks(rows, fwd_hooks=hook.fwd_hooks)
    nla.resolve(hook.explanations[0])
    assert [each.text for each in hook.explanations[0]] == [local[each][1][-1] for each in local]
    with pytest.raises(InjectionError, match="The hook was given 2 prompts with at="):
        bridge.run_with_hooks(rows[:1], fwd_hooks=hook.fwd_hooks)
    with pytest.raises(InjectionError, match=r"at='x': expected nla.positions\(bridge, prompts\)"):
        nla.hook(bridge, at="x")


def test_an_nla_of_ones_own_on_a_bridge(bridge, local):
    alone = NLA(tiny.paths()["av"], dtype=torch.float32)
    assert alone.explain(local[PARIS][0][-1]).text == local[PARIS][1][-1]
    assert alone.read(bridge, PARIS, positions=-1)[-1].explanation == local[PARIS][1][-1]
