"""Word diffs by hand."""

import re

import pytest
from rich.cells import cell_len

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


def plain(text):
    """The texts of a diff in a terminal: before, after."""
    removed, added = re.compile(r"\[-(.*?)-\]"), re.compile(r"\{\+(.*?)\+\}")
    joined = " ".join(text.split())
    sides = added.sub("", removed.sub(r"\1", joined)), removed.sub("", added.sub(r"\1", joined))
    return [re.findall(r"\w+|[^\w\s]", side) for side in sides]


@pytest.mark.parametrize("width", [20, 33, 80])
def test_in_a_terminal_the_same_words_are_marked_and_no_line_is_too_wide(width):
    found = difference(ROME, PARIS)
    lines = found.to_text(width).splitlines()
    assert max(map(len, lines)) <= width
    whole = found.to_text(1000)
    assert whole == (
        "About [-Rome-] {+Paris+}, the capital of [-Italy-] {+France+}; cheerful tone.\n"
        "Stating the language."
    )
    assert " ".join(lines).split() == whole.split()
    assert plain("\n".join(lines)) == [re.findall(r"\w+|[^\w\s]", side) for side in (ROME, PARIS)]
    assert found.removed == tuple(re.findall(r"\[-(.*?)-\]", whole))
    assert found.added == tuple(re.findall(r"\{\+(.*?)\+\}", whole))


def test_a_terminal_has_as_many_columns_as_it_says(monkeypatch):
    monkeypatch.setenv("COLUMNS", "30")
    text = str(difference("one " * 40, "two"))
    assert 20 < max(map(len, text.splitlines())) <= 30
    wide = difference("", "巴黎" * 20).to_text(30)
    assert max(map(cell_len, wide.splitlines())) == 30, "these letters take two columns"


def test_a_terminal_gets_no_control_characters_and_each_line_its_marks():
    text = difference("a", "b\x1b[31m\n\u202ec").to_text(80)
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert difference("same", "same one\ntwo").to_text(80) == "same {+one+}\n{+two+}"
    assert difference(None, "b", error="is zero").to_text() == "is zero"
    assert str(difference("a", None)) == "no text"
