"""The published checkpoint on the real Qwen vocabulary and on Qwen3-8B's real shape, no weights."""

import copy
import json
import re
import warnings
from dataclasses import replace
from pathlib import Path

import nnsight
import pytest
import torch
from nnsight import TransformersModel
from tokenizers import Tokenizer, models, processors
from transformers import PreTrainedTokenizerFast

from nnsight_nla import NLA, Checkpoint, Injection
from nnsight_nla.checkpoint.checkpoint import AR_TEMPLATE
from nnsight_nla.checkpoint.prompt import Prompt
from nnsight_nla.errors import CheckpointError, InjectionError, NLAWarning
from tests.helpers.qwen_vocabulary import qwen_tokenizer

PUBLISHED = "ceselder/nanonla-l24-av-qwen3-8b"
QWEN3_8B = {
    "architectures": ["Qwen3ForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 151643,
    "eos_token_id": 151645,
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 4096,
    "initializer_range": 0.02,
    "intermediate_size": 12288,
    "max_position_embeddings": 40960,
    "max_window_layers": 36,
    "model_type": "qwen3",
    "num_attention_heads": 32,
    "num_hidden_layers": 36,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000,
    "sliding_window": None,
    "tie_word_embeddings": False,
    "use_cache": True,
    "use_sliding_window": False,
    "vocab_size": 151936,
}


@pytest.fixture(scope="module")
def tokenizer():
    return qwen_tokenizer()


@pytest.fixture(scope="module")
def preset() -> Checkpoint:
    return Checkpoint.preset(PUBLISHED)


def ids(tokenizer, text: str) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=False)


# The vocabulary.


def test_it_is_the_real_vocabulary(tokenizer):
    assert len(tokenizer) == 151643 + 3
    assert [tokenizer.convert_tokens_to_ids(each) for each in ("<|im_start|>", "<|im_end|>")] == [
        151644,
        151645,
    ]
    text = "Qwen's 3rd tokenizer: naïve café, 漢字, 12345\n\n\t  done."
    assert tokenizer.decode(ids(tokenizer, text)) == text
    # A long word is one token, digits stand alone.
    assert len(ids(tokenizer, " international")) == 1
    assert len(ids(tokenizer, "12345")) == 5


def test_the_marker_and_its_neighbours(tokenizer, preset):
    assert ids(tokenizer, "㈎") == [149705]
    assert ids(tokenizer, "<concept>㈎</concept>") == [27, 68487, 29, 149705, 522, 68487, 29]
    assert (preset.marker_id, preset.left_id, preset.right_id) == (149705, 29, 522)


def test_the_reconstructors_prompt_ends_in_the_suffix_ids(tokenizer, preset):
    prompt = ids(tokenizer, AR_TEMPLATE.replace("{explanation}", "About a city."))
    assert tuple(prompt[-5:]) == preset.ar_suffix_ids == (1318, 29, 366, 1708, 29)


def test_the_prompt(tokenizer, preset):
    prompt = Prompt.render(preset, tokenizer)
    assert (len(prompt.ids), prompt.marker_position) == (104, 90)
    assert prompt.ids[89:92] == (29, 149705, 522)
    assert (prompt.left_id, prompt.right_id) == (29, 522)
    assert prompt.ids[:3] == (151644, *ids(tokenizer, "user\n"))
    assert prompt.text.endswith("<|im_end|>\n<|im_start|>assistant\n")
    assert prompt.ids.count(149705) == 1


def test_neighbours_that_are_not_given_are_found(tokenizer, preset):
    unknown = replace(preset, left_id=None, right_id=None)
    assert Prompt.render(unknown, tokenizer) == Prompt.render(preset, tokenizer)


@pytest.mark.parametrize("wrong", [{"left_id": 30}, {"right_id": 523}, {"left_id": 522}])
def test_a_wrong_neighbour(tokenizer, preset, wrong):
    with pytest.raises(CheckpointError, match=r"found 0\. .* in the prompt: \(29, 522\)"):
        Prompt.render(replace(preset, **wrong), tokenizer)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"marker_id": 149704}, r"^'㈎' tokenizes to \[149705\], but preset .* says \[149704\]"),
        ({"marker": "㈜"}, r"^'㈜' tokenizes to \[\d+(, \d+)*\], but preset .* says \[149705\]"),
        ({"marker": "x"}, r"^'x' tokenizes to \[87\], but preset .* says \[149705\]"),
    ],
)
def test_a_wrong_marker(tokenizer, preset, wrong, message):
    with pytest.raises(CheckpointError, match=message):
        Prompt.render(replace(preset, **wrong), tokenizer)


def test_a_tokenizer_with_a_bos_of_its_own_moves_nothing(tokenizer, preset):
    eager = copy.deepcopy(tokenizer)
    eager._tokenizer.post_processor = processors.TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 151643)]
    )
    assert eager.encode("x")[0] == 151643
    assert Prompt.render(preset, eager) == Prompt.render(preset, tokenizer)


# The shape.


@pytest.fixture(scope="module")
def folder(tokenizer, tmp_path_factory) -> Path:
    """What of Qwen3-8B there is without its weights."""
    folder = tmp_path_factory.mktemp("hub") / "Qwen3-8B"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(QWEN3_8B), "utf-8")
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def target(folder) -> TransformersModel:
    return TransformersModel(str(folder), task="text-generation", dtype="bfloat16")


@pytest.fixture(scope="module")
def nla(folder, preset) -> NLA:
    return NLA(folder, checkpoint=preset, dtype="bfloat16")


def test_construction_needs_no_weights(nla):
    assert not nla.av.dispatched
    assert {each.device.type for each in nla.av._module.parameters()} == {"meta"}
    assert nla.checkpoint.source["marker_id"] == f"preset {PUBLISHED}"
    assert (len(nla.prompt.ids), nla.prompt.marker_position) == (104, 90)
    assert nla.hook_name == "blocks.24.hook_out"


def test_the_layer_is_the_envoy_of_block_24(nla, target):
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # The folder goes by the base model's name.
        envoy = nla.layer(target)
    assert envoy._module is target._module.model.layers[24]
    assert not target.dispatched


def test_the_site_is_block_1_and_has_the_prompts_shape(nla):
    site = nla._verbalizer.site
    assert site._module is nla.av._module.model.layers[1]
    with nla.av.scan(torch.tensor([nla.prompt.ids])):
        shape = nnsight.save(list(site.output.shape))
    assert shape == [1, 104, 4096]
    assert not nla.av.dispatched


def test_the_residual_under_scan_gives_a_handle_with_a_shape(nla, target):
    with target.scan("The Eiffel Tower is in the city of"):
        thought = nla.explain(nla.layer(target).output)
    assert thought.shape == (1, len(ids(target.tokenizer, "The Eiffel Tower is in the city of")))
    assert not thought.resolved


def test_a_replacement_is_written_at_the_embedding(folder, preset):
    scaled = replace(preset, injection=Injection("replace", "embedding", None, 150.0))
    nla = NLA(folder, checkpoint=scaled)
    assert nla._verbalizer.site._module is nla.av._module.model.embed_tokens


def test_a_wrong_width_of_the_verbalizer(folder, preset):
    message = (
        f"{folder} has d_model 4096, its checkpoint says 3584. Use the weights and the sidecar of "
        "one checkpoint."
    )
    with pytest.raises(CheckpointError, match=f"^{re.escape(message)}$"):
        NLA(folder, checkpoint=replace(preset, d_model=3584))


def test_an_injection_at_a_block_that_does_not_exist(folder, preset):
    message = f"The vector is to be written at block 36, {folder} has blocks 0 to 35."
    with pytest.raises(CheckpointError, match=f"^{re.escape(message)}$"):
        NLA(folder, checkpoint=replace(preset, injection=Injection("add", "block", 36)))


def test_a_target_without_such_a_block(folder, preset, target):
    deep = NLA(folder, checkpoint=replace(preset, layer=36))
    message = (
        f"{folder} has blocks 0 to 35 (at model.layers); block 36 was requested. Use the model "
        "that the verbalizer was trained for."
    )
    with pytest.raises(InjectionError, match=f"^{re.escape(message)}$"):
        deep.layer(target)


def _other(folder: Path, **changes) -> TransformersModel:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({**QWEN3_8B, **changes}), "utf-8")
    # Any tokenizer will do: these models never read text.
    words = Tokenizer(models.WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
    small = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="[UNK]")
    return TransformersModel(str(folder), task="text-generation", tokenizer=small)


def test_a_target_of_another_width(nla, tmp_path):
    narrow = _other(tmp_path / "Qwen3-4B", hidden_size=2560)
    message = (
        f"{tmp_path / 'Qwen3-4B'} has d_model 2560, the verbalizer reads 4096. It was trained on "
        "Qwen/Qwen3-8B."
    )
    with pytest.raises(InjectionError, match=f"^{re.escape(message)}$"):
        nla.layer(narrow)


def test_another_models_name_warns_once_per_model(nla, tmp_path):
    other = _other(tmp_path / "Qwen3-8B-Base")
    message = (
        "The verbalizer was trained on the residuals of Qwen/Qwen3-8B; this is "
        f"{tmp_path / 'Qwen3-8B-Base'}. Do not trust explanations of another model's residuals."
    )
    with pytest.warns(NLAWarning, match=f"^{re.escape(message)}$") as seen:
        envoys = [nla.layer(other), nla.layer(other)]
    assert envoys[0] is envoys[1]
    assert len(seen) == 1
    assert Path(seen[0].filename).name == Path(__file__).name
    third = _other(tmp_path / "Qwen3-8B-Third")
    with pytest.warns(NLAWarning, match="Qwen3-8B-Third"):
        nla.layer(third)
