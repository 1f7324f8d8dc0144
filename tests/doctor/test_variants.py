"""The alternatives of each setting, and that each changes nothing else of a checkpoint."""

import copy
from dataclasses import fields, replace

import pytest

from nnsight_nla import Injection
from nnsight_nla.checkpoint.checkpoint import AV_TEMPLATE
from nnsight_nla.doctor.variants import SETTINGS, Candidate, Context, token_ids, variants

THINK = "{% if enable_thinking is defined and enable_thinking is false %}Think.{% endif %}"


@pytest.fixture
def declared(nla) -> Candidate:
    return Candidate("as declared", nla.checkpoint, nla.av.tokenizer)


@pytest.fixture
def context(model, nla) -> Context:
    return Context(model.tokenizer, [3, 2, 4], 14.96, 6, nla.prompt.ids, remote=False)


def with_template(tokenizer, template: str):
    """A copy of a tokenizer with another chat template."""
    other = copy.deepcopy(tokenizer)
    other.chat_template = template
    return other


def changed(one: Candidate, other: Candidate) -> set[str]:
    """The fields in which two candidates differ."""
    names = [field.name for field in fields(one.checkpoint) if field.name != "source"]
    pairs = {
        name: (getattr(one.checkpoint, name), getattr(other.checkpoint, name)) for name in names
    }
    found = {name for name, (mine, theirs) in pairs.items() if mine != theirs}
    return found | ({"tokenizer"} if one.tokenizer is not other.tokenizer else set())


def edit(declared: Candidate, **values) -> Candidate:
    return replace(declared, checkpoint=replace(declared.checkpoint, **values))


def test_what_the_tiny_pair_has_alternatives_for(declared, context):
    found = {name: variants(name, declared, context) for name in SETTINGS}
    assert {name: value for name, (value, _) in found.items()} == {
        "tokenizer": "its own",
        "template": "the published one",
        "marker": f"'㈎' ({declared.checkpoint.marker_id})",
        "thinking block": "as the template has it",
        "injection mode": "add at block 1",
        "injection layer": "block 1",
        "layer": "block 3",
    }
    reasons = {name: others for name, (_, others) in found.items() if isinstance(others, str)}
    assert reasons == {
        "tokenizer": "the target's tokenizer gives the same prompt",
        "template": "it already is the published template",
        "marker": "no other published marker is a single token here",
        "thinking block": "the chat template has no thinking block",
    }


@pytest.mark.parametrize(
    ("name", "field"),
    [("injection mode", "injection"), ("injection layer", "injection"), ("layer", "layer")],
)
def test_an_alternative_changes_its_setting_and_nothing_else(declared, context, name, field):
    _, others = variants(name, declared, context)
    assert [changed(declared, each) for each in others] == [{field}] * len(others)


def test_the_layers_next_to_the_declared_one(declared, context):
    _, others = variants("layer", declared, context)
    assert [(each.value, each.checkpoint.layer) for each in others] == [
        ("block 2", 2),
        ("block 4", 4),
    ]
    assert variants("layer", declared, replace(context, layers=[3])) == ("block 3", [])


@pytest.mark.parametrize(("layer", "others"), [(0, [1]), (1, [0, 2]), (3, [1, 2, 4]), (5, [1, 4])])
def test_the_blocks_next_to_the_injection_and_block_1(declared, context, layer, others):
    at = edit(declared, injection=Injection("add", "block", layer))
    value, found = variants("injection layer", at, context)
    assert value == f"block {layer}"
    assert [each.checkpoint.injection.layer for each in found] == others


def test_an_injection_at_the_embedding_has_no_block_to_change(declared, context):
    at = edit(declared, injection=Injection("replace", "embedding", None, 15.0))
    reason = "the vector is written at the embedding"
    assert variants("injection layer", at, context) == ("the embedding", reason)
    value, (other,) = variants("injection mode", at, context)
    assert value == "replace at the embedding, scale 15"
    assert other.checkpoint.injection == Injection("add", "block", 1)


def test_a_replacement_is_scaled_to_the_norm_of_the_activations(declared, context):
    _, (other,) = variants("injection mode", declared, context)
    assert other.value == "replace at the embedding, scale 15"
    assert other.checkpoint.injection == Injection("replace", "embedding", None, 15.0)


def test_another_template_is_compared_with_the_published_one(declared, context):
    own = edit(declared, template=f"{AV_TEMPLATE}\n\nAbout a dog.")
    value, (other,) = variants("template", own, context)
    assert (value, other.value) == ("its own", "the published one")
    assert other.checkpoint.template == AV_TEMPLATE
    # The neighbours of the marker are those of the declared template.
    assert changed(own, other) == {"template", "left_id", "right_id"}
    assert (other.checkpoint.left_id, other.checkpoint.right_id) == (None, None)


def test_another_marker_is_compared_with_the_published_ones(declared, context):
    (number,) = token_ids(declared.tokenizer, "a")
    value, (other,) = variants("marker", edit(declared, marker="a", marker_id=number), context)
    assert value == f"'a' ({number})"
    assert other.value == f"'㈎' ({declared.checkpoint.marker_id})"
    assert changed(declared, other) == {"left_id", "right_id"}


def test_a_thinking_block_is_switched_where_the_chat_template_has_one(declared, context):
    template = declared.tokenizer.chat_template + THINK
    thinking = replace(declared, tokenizer=with_template(declared.tokenizer, template))
    value, (other,) = variants("thinking block", thinking, context)
    assert (value, other.value) == ("as the template has it", "off")
    assert changed(thinking, other) == {"thinking"}
    # On and "as the template has it" give the same prompt, so only one of the two is compared.
    value, others = variants("thinking block", edit(thinking, thinking=False), context)
    assert (value, [each.value for each in others]) == ("off", ["as the template has it"])


def test_the_targets_tokenizer_is_tried_if_it_gives_another_prompt(declared, context):
    other = with_template(context.tokenizer, context.tokenizer.chat_template + "Reply.")
    value, (tried,) = variants("tokenizer", declared, replace(context, tokenizer=other))
    assert (value, tried.value) == ("its own", "the target's, with its chat template")
    assert tried.tokenizer is other
    assert changed(declared, tried) == {"tokenizer", "left_id", "right_id"}


class Splits:
    """A tokenizer in which the marker is two tokens."""

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        return [1, 2]


def test_a_tokenizer_that_cannot_be_tried_gives_the_reason(declared, context):
    def reason(**values) -> str:
        value, why = variants("tokenizer", declared, replace(context, **values))
        assert value == "its own"
        return why

    assert reason(remote=True) == "a verbalizer on an NDIF host keeps its own tokenizer"
    assert reason(tokenizer=Splits()) == "'㈎' is 2 tokens in the target's tokenizer"
    silent = with_template(context.tokenizer, "Nothing of what the user says.")
    assert reason(tokenizer=silent).startswith("the target's tokenizer cannot render the prompt: ")
