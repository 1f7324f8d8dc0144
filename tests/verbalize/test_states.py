"""Hybrid models on the fast engine, against ``generate`` with a plain hook, token for token."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import DynamicCache, GenerationConfig

from nnsight_nla import NLA, Sampling
from nnsight_nla.core.sampling import draw_seed
from nnsight_nla.verbalize.cache import SlotsAndState, in_place
from nnsight_nla.verbalize.decoding import rows_that_fit, unfit
from nnsight_nla.verbalize.states import (
    keeps_states,
    known_reach,
    reach,
    repeat,
    state_bytes,
    state_layers,
)
from tests.helpers.hybrids import HYBRIDS, configured, randomized
from tests.verbalize.test_architectures import (
    END,
    INJECTIONS,
    VOCABULARY,
    D,
    described,
    tokenizer,
    wrapped,
)
from tests.verbalize.test_decoding import Forwards, replies
from tutorials.reference import families

GREEDY = Sampling(max_new_tokens=24)
DRAWN = Sampling(temperature=4.0, top_p=0.98, max_new_tokens=30, seed=3)
ENDS = [*range(200, 212), END]
"""Several, so that drawn replies are of different lengths."""


def build(family):
    torch.manual_seed(0)
    shape = {"vocab_size": VOCABULARY, "max_position_embeddings": 256}
    ids = {"pad_token_id": 0, "bos_token_id": 258, "eos_token_id": END}
    with families.quiet():
        module = randomized(configured(family, width=D, depth=4, head=8, **shape, **ids))
    module.generation_config = GenerationConfig(eos_token_id=ENDS, pad_token_id=0)
    return module


def opened(module, **options):
    with families.quiet():
        return NLA(wrapped(module), checkpoint=described(INJECTIONS["add"]), **options)


@pytest.fixture(scope="module", params=HYBRIDS)
def family(request):
    return request.param


@pytest.fixture(scope="module")
def nla(family):
    return opened(build(family))


@pytest.fixture(scope="module")
def vectors():
    return torch.randn(60, D, generator=torch.Generator().manual_seed(5)) * 9


@torch.no_grad()
def plain(nla, module, vectors, sampling, samples=1):
    """What a hook and transformers' ``generate`` write, one vector and one sample at a time."""
    ids, sites = torch.tensor([nla.prompt.ids]), nla.prompt.sites
    found = []
    for vector in vectors:
        for sample in range(samples):

            def write(each, args, output, vector=vector):
                hidden = output[0] if isinstance(output, tuple) else output
                if hidden.shape[1] < ids.shape[1]:
                    return None
                hidden, direction = hidden.clone(), vector / vector.norm()
                for site in sites:
                    here = hidden[:, site]
                    hidden[:, site] = here + here.norm() * direction
                return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

            seeds = [draw_seed(sampling.seed, vector, sample)]
            handle = module.model.layers[1].register_forward_hook(write)
            written = module.generate(
                ids, attention_mask=torch.ones_like(ids), do_sample=False,
                logits_processor=sampling.processors([] if sampling.greedy else seeds),
                generation_config=GenerationConfig(
                    max_new_tokens=sampling.max_new_tokens, eos_token_id=ENDS, pad_token_id=0
                ),
            )  # fmt: skip
            handle.remove()
            found.append([each for each in written[0, ids.shape[1] :].tolist() if each not in ENDS])
    return found


def tokens(handle):
    handle.text if handle._capture.samples == 1 else handle.samples  # noqa: B018
    ordered = sorted(handle._capture.replies.items())
    return [[each for each in reply.ids if each not in ENDS] for _, reply in ordered]


@pytest.mark.parametrize("sampling", [GREEDY, DRAWN], ids=["greedy", "drawn"])
def test_texts_are_those_of_generate_with_a_plain_hook(nla, family, vectors, sampling):
    assert nla.info()["engine"] == {"name": "fast", "why": None}
    rows, samples = vectors[:5], 1 if sampling.greedy else 2
    expected = plain(nla, build(family), rows, sampling, samples)
    together = nla.explain(rows, sampling=sampling, samples=samples)
    assert tokens(together) == expected
    alone = [nla.explain(each, sampling=sampling, samples=samples) for each in rows[:2]]
    assert [row for each in alone for row in tokens(each)] == expected[: 2 * samples]
    if not sampling.greedy:
        assert len({len(each) for each in expected}) > 5
        assert len({tuple(each) for each in expected}) == len(expected)


def test_many_rows_are_those_of_the_other_engine(nla, vectors):
    """In batches that are not full; a vector twice, and none."""
    given = torch.cat([vectors, vectors[:3]])
    for sampling in (GREEDY, DRAWN):
        options = {"checkpoint": nla.checkpoint, "batch_size": 25, "sampling": sampling}
        found = []
        for engine in ("fast", "generate"):
            same = NLA(nla.av, engine=engine, **options)
            found.append([replies(same.explain_nothing()), replies(same.explain(given))])
        assert found[0] == found[1]


def test_the_prompt_is_run_once_samples_share_it_and_rows_leave(nla, vectors):
    prompt, start = len(nla.prompt.ids), nla.prompt.marker_position
    nla.explain(vectors[0], sampling=GREEDY).text  # noqa: B018  (What the states do is tried here.)
    thought = nla.explain(vectors[:2], samples=4, sampling=DRAWN)
    with Forwards(nla) as shapes:
        nla.resolve(thought)
    assert shapes[:2] == [(1, start), (2, prompt - start)]
    # The end takes no further step; the last token of a reply that is cut is not run.
    steps = [
        reply.new_tokens - (reply.finish == "length") for reply in thought._capture.replies.values()
    ]
    expected = [sum(each >= step for each in steps) for step in range(1, max(steps) + 1)]
    assert shapes[2:] == [(left, 1) for left in expected]
    assert expected[0] == 8 > expected[-1]


def test_no_row_has_a_pad_or_a_mask(nla, vectors):
    """A pad would change the state of its row."""
    nla.explain(vectors[0], sampling=GREEDY).text  # noqa: B018  (What the states do is tried here.)
    seen = []
    module = nla.av._module
    real = module.forward

    def watched(*args, **options):
        seen.append({**options, **({"input_ids": args[0]} if args else {})})
        return real(*args, **options)

    module.forward = watched
    try:
        nla.explain(vectors[:5], samples=2, sampling=DRAWN).samples  # noqa: B018
    finally:
        module.forward = real
    prompt, start = torch.tensor(nla.prompt.ids), nla.prompt.marker_position
    first, rest, *steps = [each["input_ids"] for each in seen]
    assert torch.equal(first, prompt[None, :start])
    assert torch.equal(rest, prompt[start:].expand(5, -1))
    assert len(steps) > 5
    assert all(each.shape[1] == 1 for each in steps)
    masks = [each.get("attention_mask") for each in seen]
    assert all(each is None or bool(each.all()) for each in masks)


def test_a_left_pad_changes_no_row_of_a_trace(family):
    used = families.Used(families.smallest({"qwen3_5": "qwen3_5_text"}.get(family, family)))
    assert used.padded() == "yes"
    assert keeps_states(used.module.config)


def test_an_adapter_on_linear_attention_says_what_its_merged_model_says(vectors):
    def adapted():
        config = LoraConfig(r=2, target_modules=["in_proj_qkvz", "out_proj", "q_proj"])
        with families.quiet():
            lora = get_peft_model(build("qwen3_next"), config).eval()
        generator = torch.Generator().manual_seed(3)
        with torch.no_grad():
            for name, weight in lora.named_parameters():
                if "lora_" in name:
                    weight.copy_(torch.rand(weight.shape, generator=generator) - 0.5)
        return lora

    nla = opened(adapted(), sampling=DRAWN)
    merged = opened(adapted().merge_and_unload(), sampling=DRAWN, engine="generate")
    bare = opened(build("qwen3_next"), sampling=DRAWN)
    assert nla.info()["engine"]["name"] == "fast"
    ours = nla.explain(vectors[:12])
    assert replies(ours) == replies(merged.explain(vectors[:12]))
    assert known_reach(nla.av._module) == "several"
    assert ours.raw != bare.explain(vectors[:12]).raw


@pytest.mark.parametrize(
    ("name", "found"), [("qwen3_next", "several"), ("jamba", "one"), ("bamba", "none")]
)
def test_what_a_pass_may_start_from_is_tried(name, found, vectors):
    """Jamba starts several tokens from nothing; Bamba counts positions from 0 in each pass."""
    module = families.smallest(name)
    with families.quiet():
        nla = families.opened(families.wrapped(module), families.ADDED)
        same = families.opened(nla.av, families.ADDED, engine="generate")
    assert known_reach(module) is None
    texts = nla.explain(vectors[:4]).raw
    assert known_reach(module) == found
    assert texts == same.explain(vectors[:4]).raw
    with Forwards(nla) as shapes:
        nla.explain(vectors[4:7]).text  # noqa: B018
    prompt, start = len(nla.prompt.ids), nla.prompt.marker_position
    assert shapes[0] == ((1, start) if found == "several" else (3, prompt))
    engine = nla.info()["engine"]
    assert engine["name"] == ("generate" if found == "none" else "fast")
    assert found != "none" or "does not continue from its cache" in engine["why"]


def test_a_difference_is_not_taken_for_rounding(monkeypatch):
    """The trial can fail: a model whose convolutions, alone, start from nothing."""
    module = build("qwen3_next")
    ids = torch.randint(4, 200, (1, 20), generator=torch.Generator().manual_seed(2))
    held = DynamicCache.get_conv_state

    def zeros(*args, **options):
        state = held(*args, **options)
        return None if state is None else state.zero_()

    with monkeypatch.context() as patch:
        patch.setattr(DynamicCache, "get_conv_state", zeros)
        assert reach(module, module.config, ids, 12) == "none"
    other = build("qwen3_next")
    assert reach(other, other.config, ids, 12) == "several"
    # A prompt that begins with its marker has nothing to share.
    again = build("qwen3_next")
    assert reach(again, again.config, ids, 0) == "one"


@torch.no_grad()
def test_a_cache_in_place_holds_the_rows_that_transformers_selects(family):
    module = build(family)
    ids = torch.randint(4, 200, (4, 9), generator=torch.Generator().manual_seed(2))
    rows, left = torch.tensor([2, 0, 2, 3, 1]), torch.tensor([0, 4, 2])

    def prefilled():
        cache = DynamicCache(config=module.config)
        module(input_ids=ids, past_key_values=cache, use_cache=True)
        return cache

    ours, theirs = in_place(prefilled(), rows, 20), prefilled()
    theirs.reorder_cache(rows)
    assert family != "falcon_h1" or type(ours.layers[0]) is SlotsAndState
    for chosen in (None, left, torch.tensor([1, 0])):
        if chosen is not None:
            ours.reorder_cache(chosen)
            theirs.reorder_cache(chosen)
        token = ids[:1, :1].expand(len(rows if chosen is None else chosen), -1)
        found, wanted = (
            module(input_ids=token, past_key_values=each, use_cache=True).logits
            for each in (ours, theirs)
        )
        assert torch.equal(found, wanted)
        for mine, other in zip(state_layers(ours), state_layers(theirs), strict=True):
            for name in ("conv_states", "recurrent_states"):
                assert all(
                    (one is None and two is None) or torch.equal(one, two)
                    for one, two in zip(
                        getattr(mine, name).values(), getattr(other, name).values(), strict=True
                    )
                )


@torch.no_grad()
def test_a_row_is_repeated_with_its_states():
    module = build("falcon_h1")
    cache = DynamicCache(config=module.config)
    module(input_ids=torch.tensor([[5, 6, 7]]), past_key_values=cache, use_cache=True)
    before = cache.layers[0].recurrent_states[0].clone()
    repeat(cache, 3)
    assert torch.equal(cache.layers[0].recurrent_states[0], before.expand(3, -1, -1, -1))
    assert cache.layers[0].keys.shape[0] == 3


def test_states_count_in_the_memory_of_a_row(monkeypatch):
    """Three blocks: a state of 4 heads, 8 x 8, and the last 4 columns of queries, keys, values."""
    nla = opened(build("qwen3_next"))
    module = nla.av._module
    assert state_bytes(module, module.config) == 3 * 4 * (4 * 8 * 8 + 4 * (16 + 16 + 32))
    qwen3 = families.smallest("qwen3")
    assert state_bytes(qwen3, qwen3.config) == 0
    monkeypatch.setattr("nnsight_nla.models.runtime.free_for", lambda av: 1 << 20)
    needed = {"prompt": 20, "rest": 20, "new_tokens": 20}
    fit = rows_that_fit(nla.runtime, **needed)
    monkeypatch.setattr("nnsight_nla.verbalize.decoding.state_bytes", lambda *_: 0)
    assert 1 < fit < rows_that_fit(nla.runtime, **needed)


def test_a_remote_run_takes_generate(tmp_path):
    """A host may have another transformers, whose states are not known to be selected."""
    build("lfm2").save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    options = {"checkpoint": described(INJECTIONS["add"])}
    remote, local = NLA(tmp_path, remote=True, **options), NLA(tmp_path, **options)
    assert local.info()["engine"]["name"] == "fast"
    assert remote.info()["engine"] == {
        "name": "generate",
        "why": "states are repeated and selected in local runs only",
    }


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("rwkv", "RwkvForCausalLM takes no DynamicCache of transformers"),
        ("minimax", "MiniMaxForCausalLM takes no DynamicCache of transformers"),
        ("recurrent_gemma", "RecurrentGemmaForCausalLM keeps a state outside of its cache"),
        ("mamba", "the cache of MambaForCausalLM has no attention"),
        ("deepseek_v32", "has unsupported layers: ['DynamicIndexedLayer']"),
    ],
)
def test_who_keeps_generate_says_why(name, why):
    with families.quiet():
        assert why in unfit(families.wrapped(families.smallest(name)))
