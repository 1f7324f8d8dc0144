"""The table: differences, sorting, parquet, the picture; without the package's models running."""

import json
import re

import pandas as pd
import pytest
import torch

import nnsight_nla
from nnsight_nla import Sweep
from nnsight_nla.experiments import ExperimentError, logit_difference, patch, steer
from nnsight_nla.experiments.reachability import Cell
from nnsight_nla.experiments.records import Header, Outcome

CLEAN = "What a lovely day! People in Paris speak"
CORRUPT = "What a lovely day! People in Rome speak"
TOKENS = ("A", " b", " c", "<i>")
K = 2


class Recites:
    """An NLA whose text is the vector's first number in words; a zero vector has none."""

    has_reconstructor = True

    def __init__(self):
        self.explained = []

    def explain(self, vectors):
        self.explained.append(vectors)
        return _Handle(vectors)

    def reconstruct(self, texts):
        words = ["none", "one", "two", "three", "four", "five"]
        return torch.tensor([[words.index(text.split()[0]) * 1.0, 1.0] for text in texts])


class _Handle:
    """As much of an `Explanation` as a sweep reads."""

    def __init__(self, vectors):
        self.vectors, self.shape, self.resolved = vectors, (len(vectors),), True
        self.errors = {(i,): "is zero" for i, v in enumerate(vectors) if not v.any()}
        self.warnings = [("cut off",) if v[0] == 5 else () for v in vectors]

    def __getitem__(self, key):
        return _Handle(self.vectors[torch.tensor(key[0])])

    @property
    def text(self):
        words = ["none", "one", "two", "three", "four", "five"]
        return [f"{words[int(v[0])]} of them" for v in self.vectors]


def header(experiment="patch", **changes):
    runs = {"clean": TOKENS, "corrupt": TOKENS} if experiment == "patch" else {"clean": TOKENS}
    return Header(
        experiment, "a <model>", K, "logit('a') − logit('b')", runs, (3,), False, **changes
    )


def vector(first):
    return torch.tensor([float(first), 0.5 if first else 0.0])


def by_hand(nla=None, known=None):
    """Text and output move together, apart, not at all, and where the text cannot."""
    runs = {
        "clean": Outcome(4.0, " a", {3: vector(1)}),
        "corrupt": Outcome(-4.0, " b", {3: vector(2)}),
    }
    outcomes = {
        Cell("residual", 0, None, 1, 1): Outcome(4.0, " a", {3: vector(1)}),
        Cell("residual", 0, None, 2, 2): Outcome(-4.0, " b", {3: vector(3)}),
        Cell("residual", 1, None, 1, 1): Outcome(2.0, " a", {3: vector(2)}),
        Cell("residual", 1, None, 2, 2): Outcome(-4.0, " b", {3: vector(2)}),
        Cell("residual", 2, None, 3, 3): Outcome(None, " b", {3: vector(0)}),
        Cell("residual", 4, None, 3, 3): Outcome(4.0, " a", {}),
    }
    return Sweep(header(), list(outcomes), runs, outcomes, nla or Recites(), known)


def test_it_is_what_the_package_exports():
    assert nnsight_nla.Sweep is nnsight_nla.experiments.Sweep
    assert nnsight_nla.experiments.patch is patch


class TestTable:
    def test_effects_texts_and_reach_by_hand(self):
        frame = by_hand().to_pandas()
        assert frame["effect"].tolist()[:4] == [1.0, 0.0, 0.75, 0.0]
        assert frame["effect"].isna().tolist() == [False] * 4 + [True, False]
        assert frame["before"].unique().tolist() == ["two of them"]
        assert frame["after"].tolist() == [
            "one of them", "three of them", "two of them", "two of them", None, None,
        ]  # fmt: skip
        assert frame["clean"].unique().tolist() == ["one of them"]
        assert frame["text_changed"].tolist()[:4] == [True, True, False, False]
        assert frame["text_changed"].isna().tolist() == [False] * 4 + [True, True]
        assert frame["reach"].tolist() == ["reaches"] * 5 + ["downstream of the verbalized layer"]
        assert frame["error"].tolist()[4] == "after: this vector is zero"
        assert frame["token"].tolist()[-1] == "<i>"
        assert frame["source_token"].tolist()[0] == " b"
        assert "unchanged" not in frame.to_json()

    def test_numbers_that_do_not_exist_are_na_and_never_nan(self):
        frame = by_hand().to_pandas()
        for name in ("metric", "effect", "cosine"):
            assert str(frame[name].dtype) == "Float64"
            assert not any(isinstance(each, float) and each != each for each in frame[name])
        assert str(frame["layer"].dtype) == "Int64"

    def test_each_different_vector_is_explained_once_in_one_call(self):
        nla = Recites()
        _ = by_hand(nla).to_pandas()
        assert [each[:, 0].tolist() for each in nla.explained] == [[1.0, 2.0, 3.0, 0.0]]

    def test_a_vector_that_is_zero_has_no_cosine(self):
        rows = by_hand().rows()
        assert rows[4]["cosine"] is None
        expected = torch.cosine_similarity(vector(2), vector(1), dim=0)
        assert rows[0]["cosine"] == pytest.approx(float(expected), abs=1e-6)

    def test_a_warning_of_the_text_is_in_its_row(self):
        runs = {"clean": Outcome(0.0, "", {3: vector(1)})}
        cells = {Cell("residual", 0, None, 0, kind="zero"): Outcome(1.0, "", {3: vector(5)})}
        sweep = Sweep(header("ablate"), list(cells), runs, cells, Recites())
        assert sweep.rows()[0]["warnings"] == ["cut off"]
        assert sweep.rows()[0]["effect"] == 1.0
        assert "clean" not in sweep.rows()[0]

    def test_a_cell_that_is_missing_is_not_in_the_table(self):
        whole = by_hand()
        outcomes = dict(list(whole.outcomes.items())[:2])
        partial = Sweep(whole.header, whole.cells, whole.runs, outcomes, Recites())
        assert (len(partial), len(partial.rows()), partial.complete) == (2, 2, False)
        assert repr(partial) == "<Sweep patch of 'a <model>': 2 of 6 cells>"
        assert repr(whole) == "<Sweep patch of 'a <model>': 6 cells>"


class TestDifferences:
    def test_in_place_every_row_is_there(self):
        frame = by_hand().differences()
        assert len(frame) == 6
        assert frame["removed"].tolist()[:3] == [["two"], ["two"], []]
        assert frame["added"].tolist()[:3] == [["one"], ["three"], []]
        assert frame["change"].tolist()[:4] == [pytest.approx(1 / 3)] * 2 + [0.0, 0.0]
        assert frame["change"].isna().tolist() == [False] * 4 + [True] * 2
        # The reconstructor's vectors of "one", "two" are (1, 1) and (2, 1).
        assert frame["text_distance"][0] == pytest.approx(1 - 3 / 10**0.5, abs=1e-6)
        assert frame["text_distance"][2] == 0.0

    def test_the_text_changed_and_the_output_did_not(self):
        frame = by_hand().differences("text, not output")
        assert list(zip(frame["layer"], frame["position"], strict=True)) == [(0, 2), (0, 1)]
        assert frame["effect"].tolist() == [0.0, 1.0]

    def test_the_output_changed_and_the_text_did_not(self):
        frame = by_hand().differences("output, not text")
        assert list(zip(frame["layer"], frame["position"], strict=True)) == [(1, 1), (0, 1)]
        assert 4 not in frame["layer"].tolist(), "its text could not change"

    def test_without_a_reconstructor(self):
        nla = Recites()
        nla.has_reconstructor = False
        assert by_hand(nla).differences()["text_distance"].isna().all()
        assert by_hand().differences(distances=False)["text_distance"].isna().all()

    def test_another_order(self):
        with pytest.raises(
            ExperimentError, match="'place', 'text, not output', 'output, not text'"
        ):
            by_hand().differences("effect")


class TestParquet:
    def test_there_and_back(self, tmp_path):
        sweep = by_hand()
        path = sweep.to_parquet(tmp_path / "sweep.parquet")
        back = Sweep.from_parquet(path)
        assert back.rows() == sweep.rows()
        assert back.header == sweep.header
        assert back.cells == sweep.cells
        assert list(tmp_path.iterdir()) == [path], "nothing beside it is left"
        for cell, outcome in sweep.outcomes.items():
            for at, held in outcome.residuals.items():
                assert torch.equal(back.outcomes[cell].residuals[at], held)

    def test_any_reader_of_parquet_has_everything(self, tmp_path):
        frame = pd.read_parquet(by_hand().to_parquet(tmp_path / "sweep.parquet"))
        assert frame["run"].tolist()[:2] == ["clean", "corrupt"]
        assert frame["text"].tolist()[:3] == ["one of them", "two of them", "one of them"]
        assert frame["vector"][0].tolist() == [1.0, 0.5]
        assert len(frame) == 8

    def test_distances_need_an_nla(self, tmp_path):
        path = by_hand().to_parquet(tmp_path / "sweep.parquet")
        assert Sweep.from_parquet(path).differences()["text_distance"].isna().all()
        again = Sweep.from_parquet(path, nla=Recites())
        assert again.differences()["text_distance"].notna().sum() == 4
        assert again.texts.handle is None, "the texts are there already"

    def test_what_is_no_sweep(self, tmp_path):
        import pyarrow as pa
        import pyarrow.parquet as pq

        (tmp_path / "text").write_text("hello", "utf-8")
        with pytest.raises(ExperimentError, match="no parquet file"):
            Sweep.from_parquet(tmp_path / "text")
        pq.write_table(pa.table({"a": [1]}), tmp_path / "other")
        with pytest.raises(ExperimentError, match=r"not one that sweep.to_parquet\(\) wrote"):
            Sweep.from_parquet(tmp_path / "other")
        table = pq.read_table(by_hand().to_parquet(tmp_path / "sweep"))
        about = json.loads(table.schema.metadata[b"nnsight_nla.sweep"]) | {"version": 99}
        later = table.replace_schema_metadata({"nnsight_nla.sweep": json.dumps(about)})
        pq.write_table(later, tmp_path / "later")
        with pytest.raises(ExperimentError, match="format 99, this package reads up to 1"):
            Sweep.from_parquet(tmp_path / "later")

    def test_of_a_real_sweep_of_heads_and_doses(self, model, nla, tmp_path):
        metric = logit_difference(" French", " Italian")
        vector = torch.randn(32, generator=torch.Generator().manual_seed(0))
        sweep = steer(
            model, nla, CLEAN, layers=[1, 4], positions="every", metric=metric, vector=vector,
            doses=[1, 30], site="head", heads=[0, 2], explain_at=[-1, 3],
        )  # fmt: skip
        assert len(sweep) == 2 * 2 * 2 * 2
        back = Sweep.from_parquet(sweep.to_parquet(tmp_path / "sweep.parquet"))
        assert back.rows() == sweep.rows()
        pd.testing.assert_frame_equal(back.to_pandas(), sweep.to_pandas())


class TestPicture:
    def test_layers_upwards_positions_to_the_right_explanations_on_hover(self):
        figure = by_hand().plot()
        (trace,) = figure.data
        assert list(trace.y) == ["0", "1", "2", "4"]
        assert list(trace.x) == ["1 ␣b", "2 ␣c", "3 &lt;i&gt;"]
        assert list(trace.z[0][:2]) == [1.0, 0.0]
        assert trace.z[2][2] is None
        assert [line[0] for line in trace.text] == ["●", "○", None, None]
        blank = {(each.x, each.y): each.text for each in figure.layout.annotations}
        shown = trace.text[3][2] or blank[trace.x[2], "4"]
        assert shown == "–"
        assert "two of them" in trace.customdata[0][0]
        assert "one of them" in trace.customdata[0][0]
        assert "downstream of the verbalized layer" in trace.customdata[3][2]
        assert "this vector is zero" in trace.customdata[2][2]
        assert (trace.zmin, trace.zmax, trace.zmid) == (-1.0, 1.0, 0)

    def test_the_words_that_changed_as_colour(self):
        figure = by_hand().plot(value="change")
        (trace,) = figure.data
        assert trace.z[0][0] == pytest.approx(1 / 3)
        assert trace.z[3][2] is trace.text[3][2] is None
        blank = {(each.x, each.y): each.text for each in figure.layout.annotations}
        assert blank[trace.x[2], "4"] == "–", "a mark on the page itself has the page's ink"
        with pytest.raises(ExperimentError, match="'effect' or 'change'"):
            by_hand().plot(value="cosine")

    def test_doses_and_controls_stand_beside_each_other(self, model, nla):
        metric = logit_difference(" French", " Italian")
        sweep = steer(
            model, nla, CLEAN, layers=[1, 3], positions=-1, metric=metric,
            vector=torch.ones(128), doses=[0.5, 2],
        )  # fmt: skip
        (trace,) = sweep.plot().data
        assert list(trace.x) == [
            "8 ␣speak × 0.5", "8 ␣speak × 2", "8 ␣speak × 0.5 (random 0)",
            "8 ␣speak × 2 (random 0)",
        ]  # fmt: skip
        assert all(value is not None for line in trace.z for value in line)

        curves = sweep.plot(form="curves").data
        assert [line.name for line in curves] == [
            "block 1, ␣speak@8: steer", "block 1, ␣speak@8: random 0",
            "block 3, ␣speak@8: steer", "block 3, ␣speak@8: random 0",
        ]  # fmt: skip
        rows = {(row["layer"], row["kind"], row["dose"]): row for row in sweep.rows()}
        for line, (layer, kind) in zip(
            curves, [(1, "steer"), (1, "random 0"), (3, "steer"), (3, "random 0")], strict=True
        ):
            assert list(line.x) == [0.5, 2]
            assert list(line.y) == [rows[layer, kind, dose]["effect"] for dose in (0.5, 2)]
            changed = [rows[layer, kind, dose]["text_changed"] for dose in (0.5, 2)]
            shown = ["circle" if each else "circle-open" for each in changed]
            assert list(line.marker.symbol) == shown

    def test_curves_need_doses_and_forms_are_two(self):
        with pytest.raises(ExperimentError, match="no doses to draw curves of"):
            by_hand().plot(form="curves")
        with pytest.raises(ExperimentError, match="'grid' or 'curves'"):
            by_hand().plot(form="bars")

    def test_the_page_escapes_and_fetches_nothing(self):
        page = by_hand()._repr_html_()
        assert "a &lt;model&gt;" in page
        assert "<i>" not in page
        assert not re.search(r"https?://|<script", page)
        assert "two" in page
        assert "downstream of the verbalized layer" in page

    def test_of_a_real_sweep(self, model, nla):
        metric = logit_difference(" French", " Italian")
        sweep = patch(model, nla, CLEAN, CORRUPT, layers=[0, 4], positions=[7, 8], metric=metric)
        page = sweep._repr_html_()
        assert "Rome" in page
        assert "Paris" in page
        assert "2 largest" not in page
        assert json.loads(sweep.plot().to_json())["data"][0]["type"] == "heatmap"
