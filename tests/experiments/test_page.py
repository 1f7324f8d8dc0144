"""The page of a sweep: small, without scripts, with every text of a cell in it."""

import re

import pytest
import torch

from nnsight_nla import Sweep
from nnsight_nla.errors import ExperimentError
from nnsight_nla.experiments import page
from nnsight_nla.experiments.records import Cell, Outcome
from tests.experiments.test_sweep import (
    Recites,
    _Handle,
    by_hand,
    dosed,
    header,
    heads,
    noisy,
    vector,
)


def written(sweep, tmp_path, **options) -> str:
    path = sweep.to_html(tmp_path / "sweep.html", **options)
    assert path == tmp_path / "sweep.html"
    return path.read_text("utf-8")


def test_cells_have_their_texts_and_the_summary_is_below(tmp_path):
    text = written(by_hand(), tmp_path)
    buttons = re.findall(r"<td class=(\w+)><button>(.)<span><b>(.*?)</b>", text)
    assert ("p10", "●", "residual, block 0, ␣b@1") in buttons
    assert ("p0", "●", "residual, block 0, ␣c@2") in buttons
    assert text.count("<button>") == 6
    assert "<del" in text.partition("</table>")[0]
    assert "explanation: downstream of the verbalized layer" in text
    assert by_hand()._repr_html_() in text
    assert "<svg" not in text
    assert "<h1>patch: logit(&#x27;a&#x27;)" in text


def test_rounding_errors_change_no_page(tmp_path):
    assert written(noisy(0), tmp_path) == written(noisy(1), tmp_path)
    assert "-0.000" not in written(noisy(0), tmp_path)


def test_it_runs_and_fetches_nothing_and_escapes(tmp_path):
    text = written(by_hand(), tmp_path, title="<script>")
    assert not re.search(r"https?://|<script|<i>|src=|@import|url\(", text)
    assert "<title>&lt;script&gt;</title>" in text
    assert "default-src 'none'" in text


@pytest.mark.parametrize("value", ["effect", "change"])
def test_negative_values_are_another_colour_and_shares_are_percent(tmp_path, value):
    text = written(dosed(), tmp_path, value=value)
    assert ('class="heat share"' in text) == (value == "change")
    assert ("class=n8" in text) == (value == "effect")
    assert ("33%" in text.partition("<table>")[0]) == (value == "change")
    assert "null" not in text
    assert text.count("<polygon") == 1
    assert "3 random directions, min to max" in text


def test_heads_are_columns(tmp_path):
    text = written(heads([3]), tmp_path)
    head = text.partition("<thead>")[2].partition("</thead>")[0]
    assert re.findall(r"<span>(\d+)</span>", head) == ["0", "1", "2"]
    assert "to the right: head, at 3 &lt;i&gt;" in text


def large(cells, length):
    """A sweep whose every text is long, and different from the one before."""
    tokens = tuple(f" {i}" for i in range(cells))
    outcomes = {
        Cell("residual", 0, None, at, kind="zero"): Outcome(
            float(at), " b", {cells - 1: torch.tensor([1.0, 1.0 + at])}
        )
        for at in range(cells)
    }

    class Handle(_Handle):
        @property
        def text(self):
            return [f"{v[1]:g} {'word ' * length}" for v in self.vectors]

        def __getitem__(self, key):
            return Handle(self.vectors[torch.tensor(key[0])])

    class Long(Recites):
        def explain(self, vectors):
            return Handle(vectors)

    runs = {"clean": Outcome(0.0, " a", {cells - 1: vector(1)})}
    about = header("ablate")
    about = type(about)(**{**vars(about), "tokens": {"clean": tokens}, "positions": (cells - 1,)})
    return Sweep(about, list(outcomes), runs, outcomes, Long())


def test_a_large_sweep_stays_below_a_megabyte_and_says_what_it_leaves_out(tmp_path, monkeypatch):
    sweep = large(60, 400)
    whole = written(sweep, tmp_path)
    assert "Texts are shown" not in whole
    monkeypatch.setattr(page, "LARGEST", 60_000)
    cut = written(sweep, tmp_path)
    assert len(cut.encode()) < len(whole.encode()) < 1_000_000
    shown = cut.count("<button>")
    assert 10 < shown < 60
    assert f"<p>Texts are shown of the {shown} cells with the largest values, of 60;" in cut
    assert "block 0, ␣59@59</b>" in cut, "the largest values have theirs"
    assert "block 0, ␣0@0</b>" not in cut
    grid = cut.partition('class="heat"')[2].partition("</table>")[0]
    assert len(grid.encode()) < 60_000 + 2000, "the room is kept to"


def test_what_was_there_stays_if_it_cannot_be_written(tmp_path):
    with pytest.raises(ExperimentError):
        by_hand().to_html(tmp_path / "none" / "sweep.html")


def test_a_local_folders_place_is_not_published(tmp_path):
    sweep = by_hand()
    about = type(sweep.header)(**{**vars(sweep.header), "target": "/home/me/models/target"})
    sweep.header = about
    text = written(sweep, tmp_path)
    assert "/home/me" not in text
    assert "</b> of target:" in text
