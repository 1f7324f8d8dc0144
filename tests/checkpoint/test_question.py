"""The prompt of an oracle: its ids on the real Qwen vocabulary, and its slots."""

import re
from dataclasses import replace

import pytest
from transformers import AutoTokenizer

from nnsight_nla import Checkpoint, tiny
from nnsight_nla.checkpoint.checkpoint import ORACLE_TEMPLATE, PRESETS
from nnsight_nla.checkpoint.oracle_presets import ORACLE_FIELDS
from nnsight_nla.checkpoint.prompt import marker_of
from nnsight_nla.checkpoint.question import EXAMPLE, first_prompt, question_prompt
from nnsight_nla.errors import CheckpointError
from tests.helpers.qwen_vocabulary import qwen_tokenizer

QWEN3_8B = "adamkarvonen/checkpoints_latentqa_cls_past_lens_addition_Qwen3-8B"
THINKS_NOT = (
    "{%- if enable_thinking is defined and enable_thinking is false %}"
    "{{ '<think>\n\n</think>\n\n' }}{%- endif %}{%- endif %}"
)


@pytest.fixture(scope="module")
def qwen():
    tokenizer = qwen_tokenizer()
    tokenizer.chat_template = tokenizer.chat_template.removesuffix("{%- endif %}") + THINKS_NOT
    return tokenizer


@pytest.fixture(scope="module")
def small():
    return AutoTokenizer.from_pretrained(tiny.paths()["target"])


@pytest.fixture
def checkpoint():
    return Checkpoint(layer=3, d_model=128, template=ORACLE_TEMPLATE, marker="?", layers=[3, 4])


def test_the_ids_of_the_published_prompt(qwen):
    preset = Checkpoint.preset(QWEN3_8B)
    prompt = question_prompt(preset, qwen, "Is the model hiding a ? ?", slots=3, layer=27)
    chat = [151644, 872, 198]  # <|im_start|> user \n
    said = [9188, 25, 220, 17, 22, 198]  # Layer :   2 7 \n
    question = [3872, 279, 1614, 25037, 264, 937, 937]  # Is the model hiding a ? ?
    expected = [*chat, *said, 937, 937, 937, 715, *question, 151645, 198, 151644, 77091, 198]
    assert list(prompt.ids[: len(expected)]) == expected
    assert prompt.text.endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")
    assert prompt.sites == (9, 10, 11)
    assert marker_of(preset, qwen) == (" ?", 937)


def test_there_is_a_preset_for_each_published_oracle():
    assert len(ORACLE_FIELDS) == 12
    layers = {name.rpartition("_")[2]: PRESETS[name].layers for name in ORACLE_FIELDS}
    assert layers["Qwen3-8B"] == (9, 18, 27)
    assert layers["gemma-2-9b-it"] == (10, 21, 31)
    for name in ORACLE_FIELDS:
        preset = PRESETS[name]
        assert preset.asks
        assert preset.thinking is False
        assert preset.layer == preset.layers[1]
    assert not PRESETS["ceselder/nanonla-l24-av-qwen3-8b"].asks


@pytest.mark.parametrize("question", ["What is it?", "???", "? ??? ?", "Layer: 3\n??? \nWhat?"])
@pytest.mark.parametrize("slots", [1, 3, 20])
def test_a_question_with_the_marker_adds_no_slot(small, checkpoint, question, slots):
    prompt = question_prompt(checkpoint, small, question, slots=slots)
    first = len(small.encode("<|im_start|>user\nLayer: 3\n"))
    assert prompt.sites == tuple(range(first, first + slots))
    assert all(prompt.ids[site] == small.convert_tokens_to_ids("?") for site in prompt.sites)


def test_the_layer_is_told(small, checkpoint):
    assert "Layer: 4\n" in question_prompt(checkpoint, small, "What?", layer=4).text
    assert "Layer: 3\n" in first_prompt(checkpoint, small).text
    assert EXAMPLE in first_prompt(checkpoint, small).text
    with pytest.raises(CheckpointError, match=r"layer=2: .*trained on.* 3, 4"):
        question_prompt(checkpoint, small, "What?", layer=2)


def test_a_marker_by_its_text_or_its_id(small, checkpoint):
    special = small.convert_tokens_to_ids("<|endoftext|>")
    for marker, number in (("?", None), (None, 33), ("?", 33), (None, special), (" tone", None)):
        found = replace(checkpoint, marker=marker, marker_id=number)
        prompt = question_prompt(found, small, "What is it?", slots=2)
        assert {prompt.ids[site] for site in prompt.sites} == {marker_of(found, small)[1]}
    with pytest.raises(CheckpointError, match=re.escape("' ?' tokenizes to [223, 33]")):
        question_prompt(replace(checkpoint, marker=" ?"), small, "What?")
    with pytest.raises(CheckpointError, match="is 99999, the tokenizer has the ids 0 to 1492"):
        question_prompt(replace(checkpoint, marker=None, marker_id=99999), small, "What?")
    with pytest.raises(CheckpointError, match="neither marker nor marker_id"):
        replace(checkpoint, marker=None)


def test_a_special_token_is_the_marker_of_a_fixed_prompt(small):
    fixed = Checkpoint(
        layer=3, d_model=128, template="The <|endoftext|> {injection_char} here.", marker_id=0
    )
    with pytest.raises(CheckpointError, match="found 2"):
        first_prompt(fixed, small)
    fixed = replace(fixed, template="The {injection_char} here.")
    assert first_prompt(fixed, small).ids[first_prompt(fixed, small).marker_position] == 0


def test_a_template_has_one_question_and_one_run_of_slots(checkpoint):
    with pytest.raises(CheckpointError, match=re.escape("{injection_char} 2 times")):
        replace(checkpoint, template="{injection_char}{injection_char} {question}")
    with pytest.raises(CheckpointError, match=re.escape("contains {question} 2 times")):
        replace(checkpoint, template="{injection_char} {question} {question}")


def test_a_chat_template_that_splits_the_slots_is_refused(small, checkpoint):
    glued = replace(checkpoint, template="Layer: {layer}?{injection_char} {question}")
    with pytest.raises(CheckpointError, match="Expected 2 x"):
        question_prompt(
            replace(glued, template="a{injection_char}?{question}"), small, "b", slots=2
        )
