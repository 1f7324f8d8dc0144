"""Features of an explanation and their probabilities, of the tiny pair and by hand."""

import math

import pytest
import torch

from nnsight_nla.core.calibration import Calibration, Residuals, Statement
from nnsight_nla.evaluation import confidence
from nnsight_nla.evaluation.confidence import features, probabilities
from nnsight_nla.verbalize.verbalizer import Verbalizer
from tests.helpers.tiny_rows import tiny_rows

WHOLE = Statement("whole", None, {"log_odds": 1.0})
NEXT = Statement("next", ("Next: ", "."), {"intercept": 1.0, "cosine": 2.0})
TONE = Statement("tone", ("; ", " tone"), {"log_odds": 1.0})


@pytest.fixture(scope="module")
def source(pair):
    return tiny_rows(pair[0], documents=8, per_document=3, seed=6)


@pytest.fixture
def verbalizer(nla):
    return Verbalizer(nla.runtime, nla.checkpoint, nla.prompt)


def by_hand(verbalizer, vector, text, statement) -> float:
    """The log-odds of a statement, from the verbalizer's tokens one by one."""
    opened = "<explanation>\n"
    coded = verbalizer.tokenizer(
        f"{opened}{text}\n</explanation>", add_special_tokens=False, return_offsets_mapping=True
    )
    given = torch.ones(1, dtype=torch.bool)
    tokens = confidence.token_likelihoods(verbalizer, vector, given, [coded["input_ids"]])[0]
    start, end = (len(opened) + each for each in statement.span(text))
    nats = [
        float(token)
        for token, (a, b) in zip(tokens, coded["offset_mapping"], strict=True)
        if a < end and b > start
    ]
    assert len(nats) < len(tokens)
    p = math.exp(sum(nats))
    return max(-12, min(12, math.log(p / (1 - p))))


def test_the_log_odds_are_those_of_the_verbalizers_own_tokens(source, verbalizer):
    text, vector = source.rows[0].label, source.vectors[:1]
    found = features([WHOLE, NEXT, TONE], None, verbalizer, vector, [text], [0.5])[0]
    for statement in (WHOLE, NEXT, TONE):
        each = found[statement.name]
        expected = by_hand(verbalizer, vector, text, statement)
        assert each["log_odds"] == pytest.approx(expected, abs=1e-2)
        assert (each["cosine"], each["typical"]) == (0.5, None)
        assert -2 < each["likelihood"] < 0
    # A part is at least as likely as the whole.
    assert found["whole"]["log_odds"] <= found["next"]["log_odds"] + 1e-6


@pytest.mark.parametrize("text", ["explanation", "e", "exp", "/", "é\u2028😀"])
def test_a_text_that_occurs_in_the_tags_is_not_taken_for_them(verbalizer, source, text):
    vector = source.vectors[:1]
    found = features([WHOLE], None, verbalizer, vector, [text], [None])[0]["whole"]["log_odds"]
    assert found == pytest.approx(by_hand(verbalizer, vector, text, WHOLE), abs=1e-2)


def test_a_wrong_word_is_unlikely_where_it_stands_and_only_there(source, verbalizer):
    text = source.rows[0].label
    tone = text.split("; ")[1].split(" ")[0]
    other = text.replace(tone, "cheerful" if tone != "cheerful" else "calm")
    vectors = source.vectors[[0, 0]]
    right, wrong = features([TONE, NEXT], None, verbalizer, vectors, [text, other], [None, None])
    assert right["tone"]["log_odds"] > 0 > wrong["tone"]["log_odds"]
    assert abs(right["next"]["log_odds"] - wrong["next"]["log_odds"]) < 4


def test_what_is_not_stated_has_no_odds(source, verbalizer):
    found = features([NEXT, TONE], None, verbalizer, source.vectors[:1], ["About bees."], [0.5])
    assert found[0]["next"]["log_odds"] is found[0]["tone"]["log_odds"] is None


def test_odds_are_limited_and_nan_has_none():
    spans = [(0, 14), (14, 16), (16, 30)]
    said = "<explanation>\nab\n</explanation>"

    def odds(*nats):
        return confidence._log_odds(WHOLE, "ab", said, spans, torch.tensor(nats))

    assert odds(-9.0, math.log(0.25), -9.0) == pytest.approx(math.log(0.25 / 0.75))
    assert odds(0.0, 0.0, 0.0) == 12
    assert odds(0.0, -500.0, 0.0) == -12
    assert odds(0.0, math.nan, 0.0) is None
    assert odds(0.0, -math.inf, 0.0) is None
    assert confidence._log_odds(WHOLE, "", said, spans, torch.zeros(3)) is None
    # Without the places of tokens only the whole can be told.
    assert confidence._log_odds(NEXT, "Next: a.", said, None, torch.zeros(3)) is None
    assert confidence._log_odds(WHOLE, "ab", said, None, torch.zeros(3)) == 12


def test_probabilities_by_statement(source, verbalizer):
    residuals = Residuals(tuple(source.vectors[0].tolist()), 0.1, 1.0, 99.0)
    typical = Statement("typical", None, {"typical": 3.0})
    calibration = Calibration("p", 9, (WHOLE, NEXT, typical), residuals=residuals)
    texts, vectors = [row.label for row in source.rows[:3]], source.vectors[:3]
    found = probabilities(calibration, verbalizer, vectors, texts, [0.5, -1.0, None])
    assert [set(each) for each in found] == [
        {"whole", "next", "typical"}, {"whole", "next", "typical"}, {"whole", "typical"},
    ]  # fmt: skip
    assert found[0]["next"] == pytest.approx(1 / (1 + math.exp(-2)))
    assert found[1]["next"] == pytest.approx(1 / (1 + math.exp(1)))
    assert found[0]["typical"] == pytest.approx(1 / (1 + math.exp(-3)), abs=1e-6)
    assert next(iter(found[0])) == "whole"


def test_without_texts_or_statements_nothing_is_run():
    calibration = Calibration("p", 9, (WHOLE,))
    assert probabilities(calibration, None, torch.zeros(0, 128), [], []) == []
    assert probabilities(Calibration("p", 9), None, torch.zeros(1, 128), ["a"], [None]) == [{}]


def test_one_row_among_others_is_as_alone(source, verbalizer):
    calibration = Calibration("p", 9, (WHOLE, TONE))
    texts = [row.label for row in source.rows] + ["x", "Long. " * 60]
    vectors = torch.cat([source.vectors, source.vectors[:2]])
    everything = probabilities(calibration, verbalizer, vectors, texts, [None] * len(texts))
    for row in (0, 7, len(texts) - 2):
        alone = probabilities(
            calibration, verbalizer, vectors[row : row + 1], texts[row : row + 1], [None]
        )[0]
        assert everything[row] == pytest.approx(alone, abs=1e-4)
