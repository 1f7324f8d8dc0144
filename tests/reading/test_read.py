"""Reading a text: which positions are read, and which part of the text each token belongs to."""

import re

import numpy as np
import pytest
import torch

from nnsight_nla import InjectionError, NLAError, NLAWarning, Origin, Reading, Sampling, tiny
from nnsight_nla.reading.read import _token_spans, parts_of, read

PARIS = "What a lovely day! People in Paris speak"
ROME = "What a lovely day! People in Rome speak"


@pytest.fixture(scope="module")
def paris(pair) -> Reading:
    model, nla = pair
    return nla.read(model, PARIS)


def test_every_token_has_the_explanation_of_its_residual(model, nla, paris):
    (span,) = nla.positions(model, PARIS)
    with model.trace(PARIS):
        thought = nla.explain(
            nla.layer(model).output[0], tokens=span.tokens, positions=span.positions
        )
    assert paris.tokens == span.tokens
    assert list(paris.explanations) == thought.text
    assert paris.positions == tuple(range(9))
    assert list(paris.warnings) == thought.warnings
    np.testing.assert_allclose(paris.norms, thought.vectors.norm(dim=-1), rtol=1e-5)
    assert "About Paris" in paris[-1].explanation
    assert (paris.layer, paris.target, paris.verbalizer) == (3, "target", "av")
    assert str(tiny.paths()["target"]) not in paris._repr_html_()
    assert {record.part for record in paris} == {"prompt"}


def test_scores_are_round_trip_cosines(nla, paris, residuals):
    reconstructed = nla.reconstruct(list(paris.explanations))
    expected = torch.nn.functional.cosine_similarity(reconstructed, residuals)
    np.testing.assert_allclose(paris.scores, expected, atol=1e-4)
    assert paris[-1].grade == "strong"
    assert paris[-1].trust.startswith("reconstruction: strong (cosine 0.9")


def test_without_a_reconstructor_there_are_no_scores(model, paris):
    from nnsight_nla import NLA

    alone = NLA(tiny.paths()["av"], dtype=torch.float32)
    reading = alone.read(model, PARIS)
    assert reading.explanations == paris.explanations
    assert reading.scores == (None,) * 9


@pytest.mark.parametrize(
    ("positions", "read"),
    [(-1, [8]), (2, [2]), ([-1, 0, 0], [0, 8]), (slice(6, None), [6, 7, 8]), (range(2), [0, 1])],
)
def test_some_positions(model, nla, paris, positions, read):
    reading = nla.read(model, PARIS, positions=positions)
    assert list(reading.positions) == read
    assert reading.tokens == paris.tokens
    for place, record in enumerate(reading):
        assert record.read is (place in read)
        assert record.explanation == (paris[place].explanation if place in read else None)


def test_token_ids_read_like_their_text(model, nla, paris):
    ids = nla.positions(model, PARIS)[0].ids
    for prompt in (list(ids), ids, torch.tensor([ids])):
        assert nla.read(model, prompt).explanations == paris.explanations


def test_prompt_and_reply(model, nla, paris):
    reading = nla.read(model, PARIS, generate=3)
    with model.generate(PARIS, max_new_tokens=3, do_sample=False) as tracer:
        ids = tracer.result[0].save()
    assert reading.tokens == tuple(model.tokenizer.decode([token]) for token in ids)
    assert reading.explanations[:9] == paris.explanations
    assert [record.part for record in reading] == ["prompt"] * 9 + ["reply"] * 3
    only = nla.read(model, PARIS, generate=3, positions="reply")
    assert only.positions == (9, 10, 11)
    assert only.explanations[9:] == reading.explanations[9:]
    with model.trace(ids[None]):
        thought = nla.explain(nla.layer(model).output[0, -1])
    assert reading[-1].explanation == thought.text


@pytest.mark.parametrize(
    ("name", "value"),
    [("repetition_penalty", 9.0), ("suppress_tokens", list(range(100, 1400))), ("num_beams", 3)],
)
def test_a_reply_is_greedy_whatever_the_targets_own_settings_say(
    model, nla, paris, monkeypatch, name, value
):
    plain = nla.read(model, PARIS, generate=3, positions=[-1])
    monkeypatch.setattr(model._module.generation_config, name, value)
    assert nla.read(model, PARIS, generate=3, positions=[-1]).tokens == plain.tokens


def test_chat_messages_and_their_template_are_separate_parts(model, nla):
    chat = [
        {"role": "user", "content": "What a lovely day!"},
        {"role": "assistant", "content": "People in Paris speak"},
    ]
    reading = nla.read(model, chat, positions=-1)
    by_part = {
        part: "".join(record.token for record in reading if record.part == part)
        for part in ("user", "assistant", "template")
    }
    assert by_part["user"] == "What a lovely day!"
    assert by_part["assistant"] == "People in Paris speak"
    assert by_part["template"] == "<|im_start|>user\n<|im_end|>\n<|im_start|>assistant\n"
    more = nla.read(model, chat[:1], generate=2, positions="reply")
    assert [record.part for record in more][-2:] == ["reply", "reply"]
    assert "".join(r.token for r in more if r.part == "user") == "What a lovely day!"


def test_equal_messages_are_parts_of_their_own(model, nla):
    chat = [{"role": role, "content": "The cow"} for role in ("user", "assistant", "user")]
    reading = nla.read(model, chat, positions=0)
    said = [record.part for record in reading if record.part != "template"]
    assert said == ["user", "user", "assistant", "assistant", "user", "user"]


def test_special_tokens_in_a_string_are_template(model, nla):
    reading = nla.read(model, "<|endoftext|>The cow", positions=0)
    assert [record.part for record in reading] == ["template", "prompt", "prompt"]


def test_an_edited_model_reads_as_it_runs(model, nla, paris):
    with model.trace(PARIS):
        donor = model.model.layers[0].output[0, 7].save()
    with model.edit() as (_, edited):
        edited.model.layers[0].output[:, 7] = donor
    clean, patched = nla.read(model, ROME), nla.read(edited, ROME)
    assert patched.tokens == clean.tokens
    assert patched.explanations[:7] == clean.explanations[:7]
    assert patched.explanations[7:] == paris.explanations[7:]
    assert "About Rome" in clean[-1].explanation
    both = clean.beside(patched, labels=("without", "with"))._repr_html_()
    assert both.startswith("<iframe")
    assert both.partition("</iframe>")[0].count("<") == 1
    assert "without" in both


def test_the_sampling_is_used(model, nla):
    cut = nla.read(model, PARIS, positions=-1, sampling=Sampling(max_new_tokens=3))
    assert "cut off" in " ".join(cut[-1].warnings)


def test_the_model_and_other_handles_are_unchanged(model, nla, residuals):
    waiting = nla.explain(residuals[0])
    nla.read(model, ROME, positions=-1)
    assert not waiting.resolved
    with model.trace(PARIS):
        again = nla.layer(model).output[0].save()
    assert torch.equal(again, residuals)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"positions": 9}, "positions=9: the text has 9 tokens, 0 to 8."),
        ({"positions": [0, -10]}, "positions=[0, -10]: the text has 9 tokens, 0 to 8."),
        ({"positions": []}, "positions=[] selects none of the text's 9 tokens."),
        ({"positions": slice(20, None)}, "selects none of the text's 9 tokens."),
        ({"positions": "last"}, "positions='last': expected 'all', 'reply' (with generate=N"),
        ({"positions": "reply"}, "positions='reply': expected 'all', 'reply' (with generate=N"),
        ({"positions": 1.5}, "positions=1.5: expected 'all', 'reply' (with generate=N"),
        ({"positions": None}, "positions=None: expected 'all', 'reply' (with generate=N"),
        ({"positions": True}, "positions=True: expected 'all', 'reply' (with generate=N"),
        ({"positions": [0, None]}, "positions=[0, None]: expected 'all', 'reply' (with generate"),
        ({"positions": slice("a", None)}, "expected 'all', 'reply' (with generate=N"),
        ({"positions": "last"}, "or a slice. The last token is positions=-1."),
        (
            {"generate": 0},
            "generate=0: expected the longest reply in tokens, a whole number from 1",
        ),
        ({"generate": True}, "generate=True: expected the longest reply in tokens, a whole number"),
    ],
)
def test_options_that_do_not_fit(model, nla, options, message):
    with pytest.raises(NLAError, match=re.escape(message)):
        nla.read(model, PARIS, **options)


def test_a_prompt_or_model_of_another_type(model, nla):
    with pytest.raises(InjectionError, match="is 2 lists, and one prompt was expected"):
        nla.read(model, torch.ones(2, 3, dtype=torch.long))
    with pytest.raises(InjectionError, match="Expected an nnsight TransformersModel, got str"):
        nla.read("Qwen/Qwen3-8B", PARIS)


SHORT = "The cow"
CHAT = [{"role": "user", "content": SHORT}]


def test_several_prompts_are_read_as_each_alone(model, nla, paris, monkeypatch):
    ids = list(nla.positions(model, ROME)[0].ids)
    prompts = [PARIS, SHORT, ids, torch.tensor(ids), CHAT]
    alone = [nla.read(model, each) for each in prompts]
    batches = []
    resolve = nla.resolve
    monkeypatch.setattr(nla, "resolve", lambda handles: batches.append(handles) or resolve(handles))
    together = nla.read(model, prompts)
    assert together == alone
    assert [len(each) for each in batches] == [5], "their texts are generated together"
    assert together[0] == paris
    assert [len(each) for each in together] == [9, 2, 9, 9, len(alone[-1])]
    assert together[-1].tokens[0] == "<|im_start|>"
    assert all(score is not None for each in together for score in each.scores)


def test_every_option_applies_to_each_of_several_prompts(model, nla):
    for options in (
        {"positions": -1},
        {"positions": "reply", "generate": 2},
        {"layer": 1, "claims": "ignore", "positions": [0]},
        {"sampling": Sampling(temperature=1.0, seed=3), "positions": [-1]},
    ):
        together = nla.read(model, (PARIS, SHORT), **options)
        assert together == [nla.read(model, each, **options) for each in (PARIS, SHORT)]
        assert isinstance(together, list)


def test_a_list_of_one_prompt_is_a_list(model, nla, paris):
    ids = list(nla.positions(model, PARIS)[0].ids)
    assert nla.read(model, [PARIS]) == nla.read(model, [ids]) == [paris]
    chats = nla.read(model, [CHAT], positions=-1)
    assert chats == [nla.read(model, CHAT, positions=-1)]
    assert isinstance(nla.read(model, ids, positions=-1), Reading), "token ids are one prompt"


def test_each_of_several_prompts_is_a_remote_run_of_its_own(model, nla, monkeypatch):
    trace, sent = type(model).trace, []

    def here(self, *args, remote=False, **options):
        sent.append(remote)
        return trace(self, *args, **options)

    alone = [nla.read(model, each, positions=-1) for each in (PARIS, SHORT)]
    monkeypatch.setattr(type(model), "trace", here)
    assert nla.read(model, [PARIS, SHORT], positions=-1, remote=True) == alone
    assert [each for each in sent if each] == [True, True]


@pytest.mark.parametrize(
    ("prompts", "options", "message"),
    [
        ([], {}, "[] is not a prompt. Expected a string, a list of token ids"),
        ([SHORT, 3], {}, "prompts[1]: 3 is not a prompt. Expected a string"),
        ([SHORT, CHAT[0]], {}, "prompts[1]: {'content': 'The cow', 'role': 'user'} is not a prom"),
        ([SHORT, ["a", "b"]], {}, "prompts[1]: ['a', 'b'] is 2 strings, and one prompt was expec"),
        ([SHORT, ""], {}, "prompts[1]: The prompt '' has no tokens; there is nothing to read."),
        ([SHORT, None], {}, "prompts[1]: None is not a prompt."),
        ([[10**6], SHORT], {}, "prompts[0]: Token id 1000000 is not in the target's vocabulary"),
        ([PARIS, SHORT], {"positions": 5}, "prompts[1]: positions=5: the text has 2 tokens"),
        ([PARIS, SHORT], {"generate": 0}, "generate=0: expected the longest reply in tokens"),
    ],
)
def test_one_of_several_prompts_is_wrong(model, nla, monkeypatch, prompts, options, message):
    monkeypatch.setattr(type(model), "trace", lambda *args, **kwargs: pytest.fail("it ran"))
    with pytest.raises(NLAError, match=f"^{re.escape(message)}"):
        nla.read(model, prompts, **options)


@pytest.mark.parametrize("prompt", [PARIS, [PARIS, SHORT]])
def test_the_warning_of_a_long_text_names_the_callers_line(model, nla, monkeypatch, prompt):
    monkeypatch.setattr(model._module.config, "max_position_embeddings", 3)
    with pytest.warns(NLAWarning, match="has 9 tokens, and .* was built for 3") as caught:
        nla.read(model, prompt, positions=0)
    assert [each.filename for each in caught] == [__file__]


def test_a_vector_without_a_text(model, nla, monkeypatch):
    explain = nla.explain
    monkeypatch.setattr(nla, "explain", lambda vectors, **rest: explain(vectors * 0, **rest))
    reading = nla.read(model, "The cow", positions=-1)
    assert reading[-1].error == "is zero, it has no direction"
    assert reading[-1].read
    assert reading[-1].explanation is None
    assert str(reading) == "   1 ' cow': [is zero, it has no direction]"
    assert "this vector is zero" in reading._repr_html_()


class Narrow:
    """An NLA reduced to the members of `Explains` that reading needs."""

    def __init__(self, nla) -> None:
        for name in ("av", "checkpoint", "layer", "positions", "explain", "resolve"):
            setattr(self, name, getattr(nla, name))


def test_anything_that_explains_will_do(model, nla, paris):
    assert read(Narrow(nla), model, PARIS) == paris


def test_a_model_that_does_not_fit_never_runs(model, nla, monkeypatch):
    def refuse(model, layer=None, *, claims="check"):
        raise InjectionError("another width")

    narrow = Narrow(nla)
    narrow.layer = refuse
    monkeypatch.setattr(type(model), "trace", lambda *args, **kwargs: pytest.fail("it ran"))
    with pytest.raises(InjectionError, match="another width"):
        read(narrow, model, PARIS)


class Letters:
    """A slow tokenizer: an id per letter, without offsets."""

    is_fast = False
    all_special_ids = (0,)

    def decode(self, ids, **options) -> str:
        return "".join("<s>" if token == 0 else chr(token) for token in ids)


def ids(text: str) -> list[int]:
    return [0, *map(ord, text)]


def test_spans_without_offsets():
    assert _token_spans(Letters(), ids("ab")) == ("<s>ab", [(0, 3), (3, 4), (4, 5)])
    assert _token_spans(Letters(), []) == ("", [])


def test_a_fast_tokenizer_whose_text_tokenizes_differently_is_decoded_token_by_token(model):
    tokenizer = model.tokenizer
    split = [tokenizer.encode(each)[0] for each in (" ", "P", "a")]
    text, spans = _token_spans(tokenizer, split)
    assert text == "".join(tokenizer.decode([token]) for token in split)
    assert [text[first:last] for first, last in spans] == [" ", "P", "a"]


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        ([{"role": "user", "content": " ab "}], "tttuut"),
        ([{"role": "user", "content": [{"type": "text", "text": "ab"}]}], "tttuut"),
        ([{"role": "user", "content": [{"type": "image"}, "ab"]}], "tttttt"),
        ([{"role": "user", "content": None}], "tttttt"),
        ([{"role": "user", "content": "rewritten"}, {"role": "model", "content": "b"}], "ttttmt"),
        ([{"content": "ab"}], "tttppt"),
    ],
)
def test_the_parts_of_a_chat(messages, expected):
    parts = parts_of(Letters(), ids("u:ab;"), messages)
    assert "".join(part[0] for part in parts) == expected


def test_the_parts_of_a_text():
    assert parts_of(Letters(), ids("ab"), []) == ["template", "prompt", "prompt"]
    assert parts_of(Letters(), ids("a"), []) == ["template", "prompt"]


def test_another_layer_is_read_if_the_caller_insists(model, nla):
    reading = nla.read(model, PARIS, layer=1, claims="ignore", positions=[6, 8])
    with model.trace(PARIS):
        early = model.model.layers[1].output[0].detach().save()
    assert reading.layer == 1
    np.testing.assert_allclose(
        [reading[i].norm for i in (6, 8)], early[[6, 8]].norm(dim=-1), rtol=1e-5
    )
    thought = nla.explain(
        early[8], tokens=reading[8].token, positions=8, origin=Origin(layer=1), claims="ignore"
    )
    assert reading[8].explanation == thought.text
    assert reading[8].grade == "none"
    assert "layer is 1, expected 3" in reading[8].warnings[0]
    own = nla.read(model, PARIS, layer=3, positions=-1)
    assert own == nla.read(model, PARIS, positions=-1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"layer": 1},
            "layer=1: the verbalizer was trained on layer 3. If it was trained on more, list them: "
            "NLA(..., checkpoint=dataclasses.replace(Checkpoint.load(path), layers=(...))). To "
            "explain its residuals all the same, pass claims='ignore'.",
        ),
        ({"layer": -1}, "layer=-1: expected a block's number, from 0."),
        ({"layer": True, "claims": "ignore"}, "layer=True: expected a block's number, from 0."),
        ({"layer": 6, "claims": "ignore"}, "target has blocks 0 to 5"),
    ],
)
def test_a_layer_that_is_not_there_or_another_is_refused(model, nla, options, message):
    with pytest.raises(NLAError) as caught:
        nla.read(model, PARIS, **options)
    assert message in str(caught.value)


def test_the_targets_next_tokens_are_in_the_records(model, nla, paris):
    with torch.no_grad(), model.trace(PARIS):
        logits = model.output.logits[0].float().save()
    expected = logits.softmax(-1).topk(5)
    np.testing.assert_allclose(
        [record.next_probabilities for record in paris], expected.values, rtol=1e-4, atol=1e-6
    )
    assert paris[-1].next_tokens[0] == " French"
    assert paris[0].next_tokens == tuple(
        model.tokenizer.decode([token]) for token in expected.indices[0].tolist()
    )


def test_what_a_grade_was_measured_against_is_in_the_record(paris):
    assert re.fullmatch(
        r"cosine 0\.9\d, against the other vectors of this text -?0\.\d\d, the text for no vector "
        r"-?0\.\d\d, the texts for random directions -?0\.\d\d",
        paris[-1].against,
    )
    assert paris[-1].denominator.startswith("denominator ")
    assert dict(paris.receipt)["sampling"].startswith("greedy")
