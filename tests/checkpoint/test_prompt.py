"""The prompt and its marker, on small real tokenizers."""

import functools
import re

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from nnsight_nla.checkpoint.checkpoint import Checkpoint, parse_sidecar
from nnsight_nla.checkpoint.prompt import Prompt
from nnsight_nla.errors import CheckpointError, NLAError

MARKER = "㈎"
CHAT = (
    "{{ bos_token }}{% for m in messages %}<|user|>{{ m.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
TEMPLATE = "Explain <concept>{injection_char}</concept>."


def tokenizer(*, whole_marker: bool = True, chat: str | None = CHAT) -> PreTrainedTokenizerFast:
    """A byte-level BPE that merges the marker's bytes (or not) and always adds a BOS of its own."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {char: i for i, char in enumerate(alphabet)}
    merges = []
    if whole_marker:
        splitter = pre_tokenizers.ByteLevel(add_prefix_space=False)
        spelled = splitter.pre_tokenize_str(MARKER)[0][0]
        merges = [(spelled[0], spelled[1]), (spelled[:2], spelled[2])]
        vocabulary |= {spelled[:2]: 256, spelled: 257}
    built = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    # Every character stands alone but for the merges, so a prompt's ids are its bytes.
    built.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    built.decoder = decoders.ByteLevel()
    special = ["<|bos|>", "<|user|>", "<|assistant|>", "<|end|>"]
    built.add_special_tokens([AddedToken(each, special=True) for each in special])
    bos = built.token_to_id("<|bos|>")
    built.post_processor = processors.TemplateProcessing(
        single="<|bos|> $A", special_tokens=[("<|bos|>", bos)]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=built, bos_token="<|bos|>", eos_token="<|end|>", pad_token="<|end|>"
    )
    fast.chat_template = chat
    return fast


def checkpoint(live: PreTrainedTokenizerFast, template: str = TEMPLATE, **changes) -> Checkpoint:
    fields = {
        "layer": 3,
        "d_model": 64,
        "template": template,
        "marker": MARKER,
        "marker_id": 257,
        "left_id": one(live, ">"),
        "right_id": one(live, "<"),
    }
    return Checkpoint(**{**fields, **changes})


def one(live: PreTrainedTokenizerFast, text: str) -> int:
    (found,) = live.encode(text, add_special_tokens=False)
    return found


@pytest.fixture(scope="module")
def live() -> PreTrainedTokenizerFast:
    return tokenizer()


def refused(message: str):
    return pytest.raises(CheckpointError, match=f"^{re.escape(message)}$")


def test_one_marker(live):
    prompt = Prompt.render(checkpoint(live), live)
    text = f"<|bos|><|user|>Explain <concept>{MARKER}</concept>.<|end|><|assistant|>"
    assert prompt.text == text
    assert live.decode(prompt.ids) == text
    # BOS, user, then a token per character up to the marker.
    assert prompt.marker_position == 2 + len("Explain <concept>")
    assert prompt.ids[prompt.marker_position] == 257
    assert (prompt.left_id, prompt.right_id) == (one(live, ">"), one(live, "<"))
    assert len(prompt.ids) == 2 + len("Explain <concept></concept>.") + 1 + 2


def test_there_is_one_bos(live):
    bos = one(live, "<|bos|>")
    assert live.encode("x")[0] == bos  # This tokenizer adds one whenever it may.
    prompt = Prompt.render(checkpoint(live), live)
    assert prompt.ids.count(bos) == 1
    bare = tokenizer(chat=CHAT.replace("{{ bos_token }}", ""))
    assert Prompt.render(checkpoint(bare), bare).ids == prompt.ids[1:]


def test_a_prompts_hash_is_that_of_its_ids(live):
    prompt = Prompt.render(checkpoint(live), live)
    other = Prompt.render(checkpoint(live, "Describe <concept>{injection_char}</concept>."), live)
    assert prompt.hash == Prompt.render(checkpoint(live), live).hash
    assert prompt.hash != other.hash
    assert re.fullmatch("[0-9a-f]{64}", prompt.hash)


def test_the_marker_character_in_other_text_is_no_site(live):
    template = f"The sign {MARKER} stands for a vector: <concept>{{injection_char}}</concept>."
    prompt = Prompt.render(checkpoint(live, template), live)
    assert prompt.ids.count(257) == 2
    assert prompt.marker_position == 2 + len(f"The sign {MARKER} stands for a vector: <concept>")


def test_neighbours_that_a_sidecar_lacks_are_read_off_the_prompt(live):
    prompt = Prompt.render(checkpoint(live, left_id=None, right_id=None), live)
    assert (prompt.left_id, prompt.right_id) == (one(live, ">"), one(live, "<"))
    half = Prompt.render(checkpoint(live, left_id=None), live)
    assert half == prompt


def test_a_chat_template_that_renders_half_of_a_surrogate_pair_is_refused(live, monkeypatch):
    monkeypatch.setattr(live, "chat_template", live.chat_template + "\ud800")
    with refused(
        "The tokenizer's chat template renders what is not Unicode, half of a surrogate pair. Use "
        "the tokenizer that ships with the checkpoint."
    ):
        Prompt.render(checkpoint(live), live)


def test_two_sites(live):
    template = f"<concept>{MARKER}</concept> and <concept>{{injection_char}}</concept>."
    left, right = one(live, ">"), one(live, "<")
    with refused(
        f"Expected exactly 1 x '{MARKER}' (257) between {left} and {right} in the verbalizer's "
        f"prompt, found 2. Neighbours of the marker in the prompt: ({left}, {right}), ({left}, "
        f"{right}). Use the tokenizer and template that ship with the checkpoint."
    ):
        Prompt.render(checkpoint(live, template), live)


def test_no_site_when_other_tokens_stand_beside_the_marker(live):
    left, right, space = one(live, ">"), one(live, "<"), one(live, " ")
    with refused(
        f"Expected exactly 1 x '{MARKER}' (257) between {left} and {right} in the verbalizer's "
        f"prompt, found 0. Neighbours of the marker in the prompt: ({space}, {space}). Use the "
        "tokenizer and template that ship with the checkpoint."
    ):
        Prompt.render(checkpoint(live, "Explain {injection_char} now."), live)


@pytest.mark.parametrize("side", ["left_id", "right_id"])
def test_each_neighbour_counts(live, side):
    with pytest.raises(CheckpointError, match="in the verbalizer's prompt, found 0"):
        Prompt.render(checkpoint(live, **{side: one(live, "x")}), live)


def test_with_unknown_neighbours_a_second_marker_is_ambiguous(live):
    template = f"{MARKER} is: <concept>{{injection_char}}</concept>."
    with pytest.raises(CheckpointError, match=r"between any token and any token .* found 2"):
        Prompt.render(checkpoint(live, template, left_id=None, right_id=None), live)


def test_a_chat_template_that_drops_the_message():
    live = tokenizer(chat="{{ bos_token }}<|assistant|>")
    with pytest.raises(CheckpointError, match=r"leaves out a user message"):
        Prompt.render(checkpoint(live), live)


def test_a_tokenizer_that_splits_the_marker():
    live = tokenizer(whole_marker=False)
    pieces = live.encode(MARKER, add_special_tokens=False)
    assert len(pieces) == 3
    with refused(
        f"'{MARKER}' tokenizes to {pieces}, but the checkpoint says [257]. Use the tokenizer that "
        "ships with the checkpoint."
    ):
        Prompt.render(checkpoint(live), live)


def test_another_id_names_where_it_was_read(live):
    wrong = checkpoint(
        live, marker_id=99, source={"marker_id": "tokens.injection_token_id in m.yaml"}
    )
    with refused(
        f"'{MARKER}' tokenizes to [257], but tokens.injection_token_id in m.yaml says [99]. Use "
        "the tokenizer that ships with the checkpoint."
    ):
        Prompt.render(wrong, live)


def test_no_chat_template():
    live = tokenizer(chat=None)
    with refused(
        "The tokenizer has no chat template, so the verbalizer's prompt cannot be rendered. Use "
        "the tokenizer that ships with the checkpoint or with its base model."
    ):
        Prompt.render(checkpoint(live), live)


@pytest.mark.parametrize(
    "chat", ["{{ raise_exception('a system message is needed') }}", "{% if", "{{ 1 + 'a' }}"]
)
def test_a_chat_template_that_fails(chat):
    live = tokenizer(chat=chat)
    with pytest.raises(CheckpointError, match="chat template does not render one user message"):
        Prompt.render(checkpoint(live), live)


@pytest.mark.parametrize(
    "trick",
    [
        "{injection_char.__class__}",
        "{injection_char!r}",
        "{injection_char:>999999}",
        "{{injection_char}}",
        "%(injection_char)s {}",
        "{{ messages }} {% raw %}",
    ],
)
def test_a_templates_format_tricks_are_never_evaluated(live, trick):
    template = f"{trick} <concept>{{injection_char}}</concept>."
    if trick == "{{injection_char}}":
        # The braces stay, and what is between them is a slot like any other: a second site.
        with pytest.raises(CheckpointError, match=r"Expected exactly 2 .* found 1"):
            Prompt.render(checkpoint(live, template), live)
        return
    prompt = Prompt.render(checkpoint(live, template), live)
    assert f"<|user|>{trick} <concept>{MARKER}</concept>.<|end|>" in prompt.text


def test_a_numbered_slot_is_refused(live):
    with pytest.raises(CheckpointError, match=r"slots that nnsight_nla does not know: \{0\}\."):
        checkpoint(live, "{0} <concept>{injection_char}</concept>")


SEVERAL = [
    # Two slots with the same neighbours.
    ("A <c>{injection_char}</c> B <c>{injection_char}</c>", True),
    # A run of three between two neighbours: what stands inside the run are markers.
    ("Vector: <c>{injection_char}{injection_char}{injection_char}</c>.", True),
    # Slots with different neighbours, which one pair of ids cannot describe.
    ("First ({injection_char}), second [{injection_char}].", False),
]


@pytest.mark.parametrize(("template", "alike"), SEVERAL)
def test_several_slots_are_several_sites(live, template, alike):
    unknown = checkpoint(live, template, left_id=None, right_id=None)
    prompt = Prompt.render(unknown, live)
    slots = template.count("{injection_char}")
    assert len(prompt.sites) == slots == prompt.ids.count(257)
    assert [prompt.ids[site] for site in prompt.sites] == [257] * slots
    assert prompt.sites == (prompt.marker_position, *prompt.more_positions)
    assert list(prompt.sites) == sorted(set(prompt.sites))
    assert (prompt.left_id is not None and prompt.right_id is not None) is alike
    if alike:
        known = checkpoint(live, template, left_id=prompt.left_id, right_id=prompt.right_id)
        assert Prompt.render(known, live) == prompt


def test_neighbours_that_fit_one_slot_only_are_refused_before_any_forward_pass(live):
    template = "First ({injection_char}), second [{injection_char}]."
    ids = {"left_id": one(live, "("), "right_id": one(live, ")")}
    with refused(
        f"Expected exactly 2 x '{MARKER}' (257) between {ids['left_id']} and {ids['right_id']} in "
        "the verbalizer's prompt, found 1. Neighbours of the marker in the prompt: "
        f"({one(live, '(')}, {one(live, ')')}), ({one(live, '[')}, {one(live, ']')}). Use the "
        "tokenizer and template that ship with the checkpoint."
    ):
        Prompt.render(checkpoint(live, template, **ids), live)


def test_a_marker_beside_a_slot_makes_the_run_too_long(live):
    template = f"<concept>{MARKER}{{injection_char}}</concept>."
    with pytest.raises(CheckpointError, match=r"Expected exactly 1 .* found 2"):
        Prompt.render(checkpoint(live, template), live)


def test_the_depth_slot(live):
    template = "From depth {depth_pct}%: <concept>{injection_char}</concept>."
    unfilled = checkpoint(live, template, layer=20, source={"template": "prompt_templates.av in m"})
    with refused(
        "template (prompt_templates.av in m) still has {depth_pct}, the depth of the layer in "
        "percent of the target's blocks. Fill it in with checkpoint.at_depth(blocks), or put the "
        "number in place of {depth_pct}."
    ):
        Prompt.render(unfilled, live)
    filled = unfilled.at_depth(28)
    assert "From depth 71%: <concept>" in Prompt.render(filled, live).text
    assert filled.source["template"] == (
        "prompt_templates.av in m; {depth_pct} is 71, block 20 of 28"
    )
    assert filled.at_depth(28) is filled
    for blocks in (20, 0, -1, "28", None, 28.0):
        with refused(
            f"layer is 20, but the target has {blocks!r} blocks: {{depth_pct}} in the template "
            "cannot be filled in."
        ):
            unfilled.at_depth(blocks)


THINKING = CHAT.replace(
    "<|assistant|>",
    "<|assistant|>{% if enable_thinking is defined and not enable_thinking %}<think></think>"
    "{% endif %}",
)


def test_the_thinking_block_is_the_checkpoints_to_say():
    live = tokenizer(chat=THINKING)
    silent = Prompt.render(checkpoint(live), live)
    assert silent.text.endswith("<|assistant|>")
    assert Prompt.render(checkpoint(live, thinking=True), live) == silent
    off = Prompt.render(checkpoint(live, thinking=False), live)
    assert off.text == silent.text + "<think></think>"
    assert off.sites == silent.sites
    for bad in (1, 0, "false", []):
        with refused(f"thinking is {bad!r}, expected True, False or None."):
            checkpoint(live, thinking=bad)


@settings(max_examples=150, deadline=None)
@given(
    st.text(max_size=30) | st.sampled_from(["{", "}", "{0.__class__}", "%s", "{{ 7 * 7 }}", MARKER])
    | st.builds("{{{}}}".format, st.text(max_size=8)),
    st.sampled_from([TEMPLATE, "{injection_char}", "x{injection_char}{injection_char}y", ""]),
    st.text(max_size=10),
)  # fmt: skip
def test_any_template_gives_a_prompt_or_one_of_our_errors(before, middle, after):
    live = _shared_tokenizer()
    template = before + middle + after
    try:
        unknown = checkpoint(live, template, left_id=None, right_id=None)
        prompt = Prompt.render(unknown, live)
    except NLAError:
        return
    # Verbatim but for the marker: no slot was evaluated, no brace lost, nothing unescaped.
    filled = template.replace("{injection_char}", MARKER)
    assert prompt.text == f"<|bos|><|user|>{filled}<|end|><|assistant|>"
    assert len(prompt.sites) == template.count("{injection_char}")


@functools.cache
def _shared_tokenizer() -> PreTrainedTokenizerFast:
    return tokenizer()


PARTS = (
    "{{ bos_token }}{% for m in messages %}<|user|>"
    "{% for part in m.content %}{% if part.type == 'text' %}{{ part.text }}{% endif %}{% endfor %}"
    "<|end|>{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@pytest.mark.parametrize(
    "chat",
    [
        PARTS,
        PARTS.replace("part.type == 'text'", "part['type'] == 'text'"),
        PARTS.replace("{% for part", "{% if m.content is string %}{{ raise_exception('parts') }}"
                      "{% endif %}{% for part"),
        PARTS.replace("{% if part.type == 'text' %}", "").replace("{% endif %}{% endfor %}<|end|>",
                      "{% endfor %}<|end|>"),
        PARTS.replace("{{ part.text }}", "{{ part.text | trim }}"),
        CHAT.replace("{{ m.content }}", "{% if m.content is string %}{{ m.content }}{% else %}"
                     "{{ m.content[0].text }}{% endif %}"),
    ],
)  # fmt: skip
def test_a_template_that_iterates_over_content_parts(chat):
    """The prompt is that of the same template for a string."""
    plain, parts = tokenizer(), tokenizer(chat=chat)
    expected = Prompt.render(checkpoint(plain), plain)
    found = Prompt.render(checkpoint(parts), parts)
    assert (found.ids, found.text) == (expected.ids, expected.text)
    assert found.marker_position == expected.marker_position


SYSTEM = (  # As in ChatML of SmolLM2 and Qwen2.5: a system message of its own, unless there is one.
    "{% if messages[0]['role'] != 'system' %}Be helpful. {% endif %}"
    "{% for message in messages %}{{ message['content'] }} {% endfor %}"
)


def test_the_system_message_is_the_checkpoints_to_say():
    live = tokenizer(chat=SYSTEM)
    assert Prompt.render(checkpoint(live), live).text.startswith("Be helpful. ")
    for system in ("", "Be brief."):
        made = checkpoint(live, system=system)
        assert Prompt.render(made, live).text.startswith(f"{system} Explain <concept>")
        assert parse_sidecar(made.to_sidecar("av"), "nla_meta.yaml").system == system
        assert parse_sidecar(made.to_sidecar("ar"), "nla_meta.yaml").system == system


def test_a_chat_template_without_system_messages_says_so():
    live = tokenizer(
        chat="{% if messages[0]['role'] == 'system' %}{{ raise_exception('no') }}{% endif %}"
    )
    with pytest.raises(CheckpointError, match="does not render one user message: no"):
        Prompt.render(checkpoint(live, system="Be brief."), live)
