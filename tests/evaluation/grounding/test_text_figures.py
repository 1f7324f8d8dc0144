"""Shares of texts that agree with what was read, by hand."""

import pytest

from nnsight_nla.evaluation.grounding.rows import GroundedRow
from nnsight_nla.evaluation.grounding.text_figures import text_figures, text_shares

BEES = GroundedRow("a", "The bees fly", " home to Rome.", next_tokens=(" home", " to"))
COW = GroundedRow("b", "A cow", "", label="About cow.\nLast: cow\nNext: eats | is\nMentions: A")


def test_by_hand():
    texts = ['Says "the bees" and "home" and "queen"; next "home".', None, 'Says "fly".', ""]
    found = text_shares(texts, [BEES] * 4)
    assert {name: (each.value, each.n) for name, each in found.items()} == {
        "mentions so far": (0.5, 4),  # the bees, fly; home is later, queen nowhere.
        "mentions later": (0.25, 4),
        "mentions nowhere": (0.25, 4),
        "says next": (0.25, 4),
        "next": (0.0, 4),  # "the bees" comes first in that sentence.
    }


def test_a_malformed_reply_says_nothing_and_is_wrong():
    found = text_shares([None, "Next: home"], [BEES, BEES])
    assert found["says next"].value == found["next"].value == 0.5
    assert text_shares([None], [COW])["subject"].value == 0


def test_what_the_rows_do_not_have_is_left_out():
    assert text_shares([], []) == {}
    assert text_shares(["About."], [GroundedRow("a", "b")]) == {}
    assert set(text_shares(["Next: home"], [GroundedRow("a", "b", label="odd")])) == set()


def test_a_statement_on_what_is_next_is_not_mixed_with_the_targets_tokens():
    both = GroundedRow(COW.document, COW.text, next_tokens=(" moos",), label=COW.label)
    found = text_shares(["About cow.\nNext: eats"], [both])
    assert found["next"].value == 0  # The target says "moos".
    assert found["label next"].value == 1  # The label says "eats".
    assert found["subject"].value == 1
    alone = text_shares(["About cow.\nNext: eats"], [COW])
    assert "next" not in alone
    assert alone["label next"].value == 1


def test_truth_and_reading_of_the_callers_own():
    def truth(text, label):
        return None if label == "?" else {"same": text == label} | ({"odd": True} if text else {})

    rows = [GroundedRow("a", "b", label=label) for label in ("x", "?", "y", None)]
    found = text_shares(["x", "x", None, "x"], rows, truth=truth)
    assert {name: (each.value, each.n) for name, each in found.items()} == {
        "same": (0.5, 2), "odd": (1.0, 1),
    }  # fmt: skip
    found = text_shares(["home"], [BEES], says=lambda text: [text])
    assert found["next"].value == 1


def test_figures_for_a_log():
    found = text_figures(["Next: home"], [BEES])
    assert found == {"says_next": 1.0, "next": 1.0}
    with pytest.raises(ValueError, match=r"shorter|longer"):
        text_figures(["a", "b"], [BEES])
