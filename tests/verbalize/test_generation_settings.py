"""What a checkpoint's generation settings say does not change a text, in either engine."""

import json

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from transformers import GenerationConfig, Qwen3NextConfig, Qwen3NextForCausalLM

from nnsight_nla import NLA, Sampling
from nnsight_nla.errors import CheckpointError
from nnsight_nla.models.generation import reply_ends
from tests.checkpoint.test_prompt import tokenizer
from tests.verbalize.test_architectures import END, INJECTIONS, D, build, described, wrapped

VECTORS = torch.randn(4, D, generator=torch.Generator().manual_seed(5)) * 9
WARM = Sampling(temperature=4.0, max_new_tokens=7)
IDS = ("eos_token_id", "pad_token_id")
KNOWN = sorted(
    {*GenerationConfig().to_dict(), *vars(GenerationConfig())} - {*IDS, "_from_model_config"}
)
SEVERE = {  # Each changed a text, raised, or lost the vector with nnsight's own generate.
    "use_cache": False,
    "suppress_tokens": list(range(40, 250)),
    "begin_suppress_tokens": list(range(250)),
    "min_new_tokens": 6,
    "min_length": 180,
    "max_length": 3,
    "max_time": 0.0,
    "num_beams": 4,
    "num_return_sequences": 2,
    "repetition_penalty": 3.0,
    "no_repeat_ngram_size": 1,
    "guidance_scale": 3.0,
    "sequence_bias": [[[5], 90.0]],
    "bad_words_ids": [[n] for n in range(40, 200)],
    "forced_bos_token_id": 5,
    "forced_eos_token_id": 5,
    "exponential_decay_length_penalty": [1, 9.0],
    "watermarking_config": {"bias": 9.0},
    "return_dict_in_generate": True,
    "prompt_lookup_num_tokens": 3,
    "penalty_alpha": 0.6,
    "dola_layers": "high",
    "prefill_chunk_size": 2,
    "token_healing": True,
    "use_mtp": True,
    "stop_strings": ["a", "e"],
    "cache_implementation": "static",
    "compile_config": {"fullgraph": True},
    "early_stopping": "bogus",
    "output_attentions": True,
    "an_unknown_key": {"and": ["its", "value"]},
}
VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 300), st.floats(-2, 4), st.text(max_size=5),
    st.lists(st.integers(0, 263), max_size=5),
    st.dictionaries(st.text(max_size=4), st.integers(0, 9), max_size=2),
)  # fmt: skip
SETTINGS = st.dictionaries(
    st.sampled_from(KNOWN) | st.text("abcxyz_", min_size=9, max_size=9), VALUES, max_size=8
) | st.fixed_dictionaries({}, optional={key: st.just(value) for key, value in SEVERE.items()})


def stateful() -> torch.nn.Module:
    """A model that the fast engine cannot run."""
    config = Qwen3NextConfig(
        vocab_size=264, hidden_size=D, intermediate_size=48, num_hidden_layers=4,
        num_attention_heads=2, num_key_value_heads=1, head_dim=16, num_experts=0,
        linear_num_key_heads=1, linear_num_value_heads=2, linear_key_head_dim=8,
        linear_value_head_dim=8, eos_token_id=END, pad_token_id=0, max_position_embeddings=256,
    )  # fmt: skip
    torch.manual_seed(0)
    return Qwen3NextForCausalLM(config).eval()


@pytest.fixture(scope="module", params=["qwen3", "gpt2", "always generate"])
def engines(request):
    """Every engine of one live model, and what it says with blank settings."""
    module = stateful() if request.param == "always generate" else build(request.param)
    module.generation_config = GenerationConfig(eos_token_id=END)
    av = wrapped(module)
    names = ["generate"] if request.param == "always generate" else ["fast", "generate"]
    nlas = [
        NLA(av, checkpoint=described(INJECTIONS["replace"]), sampling=WARM, engine=name)
        for name in names
    ]
    blank = said(nlas[0])
    assert len({raw for raw, _ in blank}) == len(VECTORS)
    return module, nlas, blank


def said(nla):
    """The raw replies and how each ended."""
    thought = nla.explain(VECTORS)
    return list(zip(thought.raw, thought.finish, strict=True))


@settings(max_examples=20)
@given(SETTINGS)
def test_no_setting_changes_a_text(engines, hostile):
    module, nlas, blank = engines
    kept = module.generation_config
    module.generation_config = GenerationConfig(eos_token_id=END)
    for name, value in hostile.items():  # As a file with a value that transformers would refuse.
        setattr(module.generation_config, name, value)
    try:
        for nla in nlas:
            assert said(nla) == blank
        assert all(getattr(module.generation_config, key) == hostile[key] for key in hostile)
    finally:
        module.generation_config = kept


@pytest.mark.parametrize("name", sorted(SEVERE))
def test_each_severe_setting_of_a_live_model(engines, name):
    test_no_setting_changes_a_text.hypothesis.inner_test(engines, {name: SEVERE[name]})


@settings(max_examples=15)
@given(st.lists(st.integers(0, 263), max_size=120, unique=True), st.integers(0, 263))
def test_end_and_pad_ids_act_in_both_engines(engines, ends, pad):
    """Also where the pad is an ordinary token, which a reply or the prompt may contain."""
    module, nlas, _ = engines
    kept, own = module.generation_config, nlas[0].av.tokenizer.pad_token
    module.generation_config = GenerationConfig(eos_token_id=ends or None, pad_token_id=pad)
    nlas[0].av.tokenizer.pad_token = nlas[0].av.tokenizer.convert_ids_to_tokens(pad)
    try:
        found = [said(nla) for nla in nlas]
        assert all(each == found[0] for each in found)
    finally:
        module.generation_config = kept
        nlas[0].av.tokenizer.pad_token = own


def test_without_the_cache_the_vector_stays(nla, residuals):
    """The smallest case: with `use_cache: false` only the first token knew of the vector."""
    expected = nla.explain(residuals).text
    module = nla.av._module
    slow = NLA(nla.av, checkpoint=nla.checkpoint, engine="generate")
    kept = module.generation_config
    module.generation_config = GenerationConfig.from_dict({**kept.to_dict(), "use_cache": False})
    try:
        assert slow.explain(residuals).text == nla.explain(residuals).text == expected
    finally:
        module.generation_config = kept
    assert "About Paris, the capital of France; cheerful tone." in expected[-1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A checkpoint that is loaded from its files."""
    where = tmp_path_factory.mktemp("av")
    module = build("qwen3")
    module.generation_config = GenerationConfig(eos_token_id=END)
    module.save_pretrained(where)
    tokenizer().save_pretrained(where)
    return where


def from_folder(folder, content, **options):
    file = folder / "generation_config.json"
    file.write_text(content if isinstance(content, str) else json.dumps(content), "utf-8")
    checkpoint = described(INJECTIONS["replace"])
    return NLA(folder, checkpoint=checkpoint, sampling=WARM, dtype="float32", **options)


def test_a_file_that_transformers_refuses_loads_and_changes_no_text(folder):
    blank = said(from_folder(folder, {"eos_token_id": END}))
    everything = {**SEVERE, "eos_token_id": END, "update": 3, "to_dict": "x", "pad_token_id": -1}
    for engine in ("fast", "generate"):
        assert said(from_folder(folder, everything, engine=engine)) == blank
        assert said(from_folder(folder, "{ not JSON", engine=engine)) == blank


def test_a_remote_verbalizer_knows_the_end_ids_of_the_file(folder):
    """Its weights are never loaded here, and config.json lists fewer ids."""
    nla = from_folder(folder, {"eos_token_id": [END, 7], "use_cache": False}, remote=True)
    assert reply_ends(nla.av, nla.av.tokenizer) == [7, END]
    assert not nla.av.dispatched


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"eos_token_id": "</s>"}, r"says eos_token_id: '</s>', expected a token id or a list"),
        ({"eos_token_id": [1, True]}, r"says eos_token_id: \[1, True\], expected a token id"),
        ({"pad_token_id": 1.5}, r"says pad_token_id: 1\.5, expected a token id"),
        ([], r"generation_config\.json of .* has a list, expected a JSON object"),
    ],
)
def test_ids_that_are_none_are_refused(folder, content, message):
    with pytest.raises(CheckpointError, match=message):
        from_folder(folder, content)


def test_ids_of_a_live_model_that_are_none_are_refused():
    module = build("qwen3")
    module.generation_config.eos_token_id = "</s>"
    nla = NLA(wrapped(module), checkpoint=described(INJECTIONS["add"]), sampling=WARM)
    with pytest.raises(CheckpointError, match=r"settings of .* says eos_token_id: '</s>'"):
        _ = nla.explain(VECTORS[0]).text
