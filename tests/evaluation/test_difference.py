"""Word diffs by hand."""

import re

import pytest

from nnsight_nla.evaluation.difference import difference

PARIS = "About Paris, the capital of France; cheerful tone.\nStating the language."
ROME = "About Rome, the capital of Italy; cheerful tone.\nStating the language."


def test_what_went_and_what_came():
    found = difference(ROME, PARIS)
    assert found.removed == ("Rome", "Italy")
    assert found.added == ("Paris", "France")
    # 15 words and signs on each side, of which 13 are the same.
    assert found.change == pytest.approx(1 - 2 * 13 / 30)


def test_runs_of_words_stand_together_as_they_stood_in_the_text():
    found = difference("the cat sat", "the big, old dog sat down")
    assert found.removed == ("cat",)
    assert found.added == ("big, old dog", "down")
    assert found.spans == (
        ("same", "the"),
        ("removed", "cat"),
        ("added", "big, old dog"),
        ("same", "sat"),
        ("added", "down"),
    )


def test_the_same_text():
    found = difference(PARIS, PARIS)
    assert (found.removed, found.added, found.change) == ((), (), 0.0)


def test_nothing_in_common_and_nothing_at_all():
    assert difference("one two", "three").change == 1.0
    assert difference("", "").change == 0.0
    assert difference("", "new words").added == ("new words",)


def test_words_are_words():
    """Letters are not compared: 'bark' and 'barn' share nothing."""
    assert difference("a bark", "a barn").removed == ("bark",)
    assert difference("don't", "don’t").change == 1.0


def test_a_missing_side():
    found = difference(None, PARIS, error="why")
    assert found.change is None
    assert (found.added, found.removed, found.error) == ((), (), "why")


def test_the_page_escapes():
    shown = difference("<b>a</b> x", "<script>alert(1)</script>\n\u202ex")._repr_html_()
    assert "<script>" not in shown
    assert "\u202e" not in shown
    assert "<del" in shown
    assert "<ins" in shown


def test_measured_values_are_stored_with_the_words():
    found = difference("a", "b", cosine=0.5, text_distance=0.25, effect=2.0)
    assert (found.cosine, found.text_distance, found.effect, found.error) == (0.5, 0.25, 2.0, None)


def test_the_page_of_a_missing_text():
    assert difference(None, "b", error="is <zero>").to_html() == "<em>is &lt;zero&gt;</em>"
    assert difference("a", None).to_html() == "<em>no text</em>"


def test_a_long_run_is_cut():
    assert "(1,000 more characters)" in difference("", "x" * 5000).to_html()


def test_the_diff_is_spaced_as_the_texts_are():
    def shown(before, after):
        marked = difference(before, after).to_html()
        return re.sub(r' style="[^"]*"', "", marked)

    assert shown("About Rome, in Italy; warm.", "About Paris, in France; warm.") == (
        "About <del>Rome</del> <ins>Paris</ins>, in <del>Italy</del> <ins>France</ins>; warm."
    )
    assert shown("A, b", "A") == "A<del>, b</del>"
    assert shown("one", "one\ntwo") == "one<br><ins>two</ins>"
    assert shown("One.", "One one.") == "One <ins>one</ins>."
