"""A reading as a table, as text, as a page and as files; made by hand, without a model."""

import errno
import os
from dataclasses import replace
from html.parser import HTMLParser

import pandas as pd
import pytest

from nnsight_nla import NLAError, Reading, TokenReading

PARIS = Reading(
    (
        TokenReading(0, "<s>", "template"),
        TokenReading(
            1, "Paris", "prompt", "About Paris.\n\nA city.", 3.5, 0.9, 0.8, "strong",
            "reconstruction: strong", ("position 1: noisy",),
        ),
        TokenReading(2, " speak", "reply", norm=0.0, error="is zero, it has no direction"),
    ),
    "target", "av", 3,
)  # fmt: skip


def test_a_value_per_token():
    assert PARIS.tokens == ("<s>", "Paris", " speak")
    assert PARIS.positions == (1, 2)
    assert PARIS.explanations == (None, "About Paris.\n\nA city.", None)
    assert PARIS.norms == (None, 3.5, 0.0)
    assert PARIS.scores == (None, 0.9, None)
    assert PARIS.warnings == ((), ("position 1: noisy",), ())
    assert [record.read for record in PARIS] == [False, True, True]


def test_it_is_indexed_like_a_tuple():
    assert len(PARIS) == 3
    assert PARIS[-1] is PARIS.records[2]
    assert PARIS[1:] == PARIS.records[1:]


def test_the_table():
    table = PARIS.to_pandas()
    assert list(table.columns) == [
        "position", "token", "part", "explanation", "norm", "reconstruction_cosine", "fve",
        "grade", "trust", "warnings", "error", "grounded", "whole", "next_tokens",
        "next_probabilities", "against", "denominator",
    ]  # fmt: skip
    assert list(table["token"]) == list(PARIS.tokens)
    assert table["warnings"][1] == ["position 1: noisy"]
    assert list(Reading((), "t", "v", 3).to_pandas().columns) == list(table.columns)


def test_str_lists_what_was_read_and_repr_counts_it():
    assert str(PARIS).splitlines() == [
        "   1 'Paris': About Paris. / A city.",
        "   2 ' speak': [is zero, it has no direction]",
    ]
    assert repr(PARIS) == "<Reading of 3 tokens, 2 explained, target block 3>"


def test_parquet_and_back(tmp_path):
    path = tmp_path / "reading.parquet"
    for reading in (PARIS, Reading(PARIS.records[:1], "t", "v", 24), Reading((), "t", "v", 0)):
        reading.to_parquet(path)
        assert Reading.from_parquet(str(path)) == reading
    PARIS.to_parquet(str(path))
    assert list(pd.read_parquet(path)["token"]) == list(PARIS.tokens)


def test_the_page_is_the_same_every_time(tmp_path):
    path = PARIS.to_html(tmp_path / "a.html")
    other = PARIS.to_html(str(tmp_path / "b.html"))
    assert path.read_bytes() == other.read_bytes()
    assert path == tmp_path / "a.html"
    assert "<title>Paris</title>" in path.read_text("utf-8")
    assert "output of block" in path.read_text("utf-8")


def test_two_readings_on_one_page(tmp_path):
    edited = replace(PARIS, target="edited")
    page = PARIS.to_html(tmp_path / "a.html", beside=edited, labels=("one", "other"), title="T")
    text = page.read_text("utf-8")
    assert "<title>T</title>" in text
    assert '"label":"one"' in text
    assert '"label":"other"' in text
    assert "<noscript>" in text


def test_a_notebook_shows_the_page_in_a_sandbox():
    alone, both = PARIS._repr_html_(), PARIS.beside(PARIS, labels=("x1", "x2"))._repr_html_()
    for html in (alone, both):
        assert html.startswith('<iframe title="reading" sandbox="allow-scripts" srcdoc="&lt;!doc')
        frame, _, plain = html.partition("</iframe>")
        assert frame.count("<") == 1
        assert "noscript" not in html
        assert plain.startswith("<details>")
    assert "x1" in both
    assert "x2" in both


def test_a_code_host_which_takes_frames_out_shows_a_table():
    """GitHub and GitLab show `text/html`, without scripts, frames, styles and classes."""
    data = PARIS._repr_mimebundle_()
    assert set(data) == {"text/html", "text/plain"}
    left = as_a_code_host_shows(data["text/html"])
    assert left == as_a_code_host_shows(left) == data["text/html"].partition("</iframe>")[2]
    assert left.startswith(
        "<details><summary>If no page is shown above: target, block 3, 2 tokens as"
    )
    assert "<td>1</td><td><code>Paris</code></td><td>About Paris.<br>A city.<br>" in left
    assert "<em>reconstruction: strong</em>" in left
    assert "<em>no text: this vector is zero, it has no direction</em>" in left
    assert "&lt;s&gt;" not in left  # it was not read


def test_the_table_of_two_readings_says_where_they_are_the_same():
    records = (*PARIS.records[:1], replace(PARIS.records[1], explanation="<b>Rome</b>"))
    patched = replace(PARIS, records=(*records, PARIS.records[2]))
    left = as_a_code_host_shows(PARIS.beside(patched, labels=("one", "<two>"))._repr_html_())
    assert "<th>token</th><th>one</th><th>&lt;two&gt;</th>" in left
    assert "<td>About Paris.<br>A city.<br><em>reconstruction: strong</em></td>" in left
    assert "<td>&lt;b&gt;Rome&lt;/b&gt;<br>" in left
    same = as_a_code_host_shows(PARIS.beside(PARIS)._repr_html_())
    assert same.count("<em>the same</em>") == 1  # the other vector has no text in either


def test_a_console_shows_the_beginning_of_a_reading():
    assert PARIS._repr_mimebundle_()["text/plain"].splitlines() == [
        repr(PARIS),
        *str(PARIS).splitlines(),
    ]
    record = replace(PARIS.records[1], explanation="x" * 500)
    long = Reading((record,) * 50, "t", "v", 3)._repr_mimebundle_()["text/plain"].splitlines()
    assert len(long) == 32
    assert max(map(len, long[1:])) == 120
    assert long[-1] == "… 20 more: print(reading)"


def test_a_long_table_is_cut():
    long = Reading((PARIS.records[1],) * 500, "t", "v", 3)
    left = as_a_code_host_shows(long._repr_html_())
    assert left.count("<tr>") == 401
    assert "<p>100 more tokens are left out here.</p>" in left


class _Cleaner(HTMLParser):
    """Keeps simple elements without attributes, and drops scripts and frames with their content."""

    KEPT = ("details", "summary", "table", "thead", "tbody", "tr", "th", "td", "code", "em", "p")
    DROPPED = ("iframe", "script", "style")

    def __init__(self):
        super().__init__(convert_charrefs=False)
        self.left, self.inside = [], 0

    def handle_starttag(self, tag, attrs):
        self.inside += tag in self.DROPPED
        if not self.inside and tag in (*self.KEPT, "br"):
            self.left.append(f"<{tag}>")

    def handle_endtag(self, tag):
        self.inside -= tag in self.DROPPED
        if not self.inside and tag in self.KEPT:
            self.left.append(f"</{tag}>")

    def handle_data(self, data):
        if not self.inside:
            self.left.append(data)

    def handle_entityref(self, name):
        self.handle_data(f"&{name};")

    def handle_charref(self, name):
        self.handle_data(f"&#{name};")


def as_a_code_host_shows(html):
    cleaner = _Cleaner()
    cleaner.feed(html)
    cleaner.close()
    return "".join(cleaner.left)


def test_a_notebooks_frame_grows_with_the_text_up_to_a_limit():
    def height(reading) -> int:
        return int(reading._repr_html_().rpartition("height:")[2].partition("px")[0])

    long = Reading(PARIS.records * 400, "t", "v", 3)
    assert height(PARIS) < height(PARIS.beside(PARIS)) < height(long)
    assert height(long) == height(Reading(long.records * 2, "t", "v", 3)) == 700


@pytest.mark.parametrize("write", [Reading.to_parquet, Reading.to_html], ids=["parquet", "html"])
@pytest.mark.parametrize(
    ("problem", "error", "message"),
    [
        (OSError(errno.ENOSPC, "no space"), NLAError, "is full: reading could not be written.*was"),
        (OSError(errno.EIO, "bad disk"), NLAError, r"cannot be written \(bad disk\).*unchanged"),
        (KeyboardInterrupt(), KeyboardInterrupt, None),
    ],
    ids=["full", "broken", "interrupted"],
)
def test_a_failed_write_leaves_the_old_file(write, problem, error, message, tmp_path, monkeypatch):
    path = tmp_path / "reading"
    write(PARIS, path)
    old = path.read_bytes()

    def fail(descriptor):
        raise problem

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(error, match=message):
        write(Reading(PARIS.records[:1], "t", "v", 3), path)
    assert path.read_bytes() == old
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(NLAError, match=r"lost/a.html cannot be written \(No such file"):
        PARIS.to_html(tmp_path / "lost" / "a.html")


def test_layers_of_one_text_are_columns(tmp_path):
    deep = replace(PARIS, layer=9)
    depths = Reading.by_depth([deep, PARIS])
    assert [each.layer for each in depths.readings] == [3, 9]
    assert list(depths.to_pandas().columns) == ["token", 3, 9]
    page = depths.to_html(tmp_path / "depth.html").read_text("utf-8")
    assert '"depth":true' in page
    plain = depths._repr_html_().partition("</iframe>")[2]
    assert "<th>block 3</th><th>block 9</th>" in plain


def test_what_is_no_depth():
    with pytest.raises(NLAError, match=r"by_depth: got layers \[3, 3\]; expected two or more"):
        Reading.by_depth([PARIS, PARIS])
    with pytest.raises(NLAError, match=r"by_depth: the readings of layers 3 and 9 have other"):
        Reading.by_depth([PARIS, replace(PARIS, records=PARIS.records[:2], layer=9)])
