"""A chat template whose generation prompt opens the tag, or writes the beginning of the text."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from nnsight_nla import NLA, Sampling, tiny
from nnsight_nla.checkpoint.checkpoint import Checkpoint
from nnsight_nla.checkpoint.prompt import Prompt, _opened
from nnsight_nla.checkpoint.reply import complete, extract, opened, proper, remainder, wrap
from nnsight_nla.evaluation.evaluate import evaluate
from nnsight_nla.training.rows import verbalizer_rows
from tests.verbalize.test_architectures import INJECTIONS, D, build, described, wrapped

HEADER = "<|im_start|>assistant\n"
START = "<explanation>\nAbout"


@pytest.fixture(params=["<explanation>\n", "<explanation>", START])
def head_start(request):
    return request.param


@pytest.fixture(params=["chat template", "prefill"])
def pair_that_opens(pair, head_start, request):
    """The trained verbalizer, whose chat template or checkpoint begins the reply for it."""
    tokenizer = AutoTokenizer.from_pretrained(tiny.paths()["av"])
    _, nla = pair
    checkpoint = nla.checkpoint
    if request.param == "prefill":
        checkpoint = replace(checkpoint, prefill=head_start)
    else:
        tokenizer.chat_template += "{% if add_generation_prompt %}" + head_start + "{% endif %}"
    from nnsight import TransformersModel

    nla.av.dispatch()
    av = TransformersModel(nla.av._module, task="text-generation", tokenizer=tokenizer)
    return NLA(av, checkpoint=checkpoint, ar=nla.ar, baseline=nla.baseline)


@pytest.mark.parametrize("engine", ["fast", "generate"])
def test_what_the_prompt_opened_is_open(pair_that_opens, head_start, engine, nla, residuals):
    theirs = pair_that_opens
    assert theirs.prompt.text.endswith(HEADER + head_start)
    assert theirs.prompt.opened == head_start
    theirs._verbalizer.engine = engine
    thought, plain = theirs.explain(residuals), nla.explain(residuals)
    assert thought.finish[-1] == "tag"
    assert thought.text[-1].startswith("About Paris, the capital of France; cheerful tone.")
    assert thought.text[-1] == plain.text[-1]
    assert "<explanation>" not in thought.raw[-1]
    label = thought.trust[-1]
    assert (label.grade, label.reason) == (nla.trust(plain)[-1].grade, None)
    assert label.cosine == pytest.approx(plain.trust[-1].cosine, abs=1e-4)
    zero, strict = (theirs.score(thought[-1], failures=each) for each in ("zero", "raise"))
    assert zero.failed == strict.failed == ()
    assert zero.mean["cosine"] == pytest.approx(nla.score(plain[-1]).mean["cosine"], abs=1e-4)


def test_evaluate_counts_it_as_an_explanation(pair_that_opens, residuals, nla):
    labels = nla.explain(residuals).text
    figures = evaluate(pair_that_opens, residuals, labels)
    closed = [finish == "tag" for finish in pair_that_opens.explain(residuals).finish]
    assert figures["extraction"] == sum(closed) / len(closed) > 0.8


def test_training_rows_do_not_open_it_again(head_start):
    """The response's first ids are those that inference has to generate."""
    av = wrapped(build("qwen3"))
    av.tokenizer.chat_template = av.tokenizer.chat_template.replace(
        "<|assistant|>", "<|assistant|>" + head_start
    )
    checkpoint = described(INJECTIONS["add"])
    content = checkpoint.template.replace("{injection_char}", "<INJECT>")
    row = {
        "prompt": [{"role": "user", "content": content}],
        "response": wrap("About Paris."),
        "activation_vector": torch.randn(D).tolist(),
    }
    rows, prompt = verbalizer_rows([row], av.tokenizer, checkpoint)
    text = av.tokenizer.decode(rows[0]["input_ids"][len(prompt.ids) :], skip_special_tokens=True)
    assert prompt.opened == head_start
    assert (
        text.lstrip() == "About Paris.\n</explanation>"[5 * head_start.endswith("About") :].lstrip()
    )
    assert complete(text, prompt.opened).replace("\n", "") == row["response"].replace("\n", "")


@pytest.mark.parametrize(
    ("tail", "expected"),
    [
        ("<|assistant|>\n", ""),
        ("<|assistant|>\n<think>\n\n</think>\n\n", ""),
        ("<|assistant|>\n<think></think><explanation>", "<explanation>"),
        ("Use <explanation>text</explanation>.<|assistant|>", ""),
        ("<explanation>one</explanation><explanation>\n", "<explanation>\n"),
    ],
)
def test_what_a_prompts_end_opens(tail, expected):
    assert opened(tail) == expected


@pytest.mark.parametrize("raw", ["x</explanation>", "<explanation>\nx</explanation>", " x"])
@pytest.mark.parametrize("start", ["", "<explanation>", "<explanation>\n", "<explanation>\nA b"])
def test_complete_and_remainder_are_inverse(start, raw):
    """A model that repeats the tag is taken at its word; nothing is opened twice."""
    assert complete(raw, "") == remainder(raw, "") == raw
    whole = complete(raw, start)
    if start:
        assert whole.count("<explanation>") == 1
        assert (proper(whole) is None) == ("</explanation>" in raw)
        assert complete(remainder(whole, start), start) == whole
    assert extract(whole)[0].endswith("x")


def test_a_template_that_only_mentions_the_tag_opens_nothing(nla):
    """The user's message of the trained pair, and of every published verbalizer, names the tag."""
    av = tiny.paths()["av"]
    tokenizer = AutoTokenizer.from_pretrained(av)
    template = "Write in <explanation> tags: <concept>{injection_char}</concept>, please."
    fields = {**vars(Checkpoint.load(av)), "template": template, "left_id": None, "right_id": None}
    assert Prompt.render(Checkpoint(**fields), tokenizer).opened == ""


# The end of the user message of published verbalizers of all layers (anicka/nla-phi4-universal-av).
ENDS_WITH_TAG = (
    "<concept>{injection_char}</concept>\n\nPlease provide an explanation.\n\n<explanation>"
)


def test_a_user_message_that_ends_with_the_tag_opens_it(residuals):
    paths = tiny.paths()
    checkpoint = replace(Checkpoint.load(paths["av"]), template=ENDS_WITH_TAG)
    theirs = NLA(paths["av"], ar=paths["ar"], checkpoint=checkpoint, dtype=torch.float32)
    assert theirs.prompt.opened == "<explanation>"
    tokenizer: Any = theirs.av.tokenizer
    untagged = tokenizer.encode("About Rome.</explanation>")
    plain = Sampling()
    reply = theirs._verbalizer._reply(untagged, (1.0, 1.0, 1.0), end=None, sampling=plain)
    assert (reply.text, reply.finish, reply.problem) == ("About Rome.", "tag", None)
    label: Any = theirs.explain(residuals[-1]).trust
    assert label.reason is None
    content = ENDS_WITH_TAG.replace("{injection_char}", "<INJECT>")
    row = {
        "prompt": [{"role": "user", "content": content}],
        "response": wrap("About Rome."),
        "activation_vector": residuals[0].tolist(),
    }
    rows, prompt = verbalizer_rows([row], tokenizer, checkpoint)
    learned: Any = tokenizer.decode(rows[0]["input_ids"][len(prompt.ids) :])
    assert "<explanation>" not in learned
    assert learned.lstrip().startswith("About Rome.\n</explanation>")


def test_a_template_that_rewrites_the_message_opens_only_what_is_at_the_end():
    checkpoint = Checkpoint.load(tiny.paths()["av"])
    body = checkpoint.template.replace("{injection_char}", checkpoint.marker)
    for end, found in (("", ""), ("<explanation>\n", "<explanation>\n")):
        assert _opened(f"In <explanation> tags: {body.title()}|assistant|{end}", body) == found
