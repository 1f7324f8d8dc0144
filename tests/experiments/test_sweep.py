"""The table: effects, texts, differences and their order, by hand."""

import pytest
import torch

import nnsight_nla
from nnsight_nla import Checkpoint, Sweep
from nnsight_nla.checkpoint.checkpoint import AV_TEMPLATE
from nnsight_nla.experiments import ExperimentError, patch
from nnsight_nla.experiments.records import Cell, Header, Outcome

TOKENS = ("A", " b", " c", "<i>")
K = 2


class Recites:
    """An NLA whose text is the vector's first number in words; a zero vector has none."""

    has_reconstructor = True
    checkpoint = Checkpoint(layer=K, d_model=2, template=AV_TEMPLATE, marker="x", marker_id=5)

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

    def extracted(self):
        bad = {i: why for (i,), why in self.errors.items()}
        return [None if i in bad else text for i, text in enumerate(self.text)], bad


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


def noisy(seed):
    """Ten cells with effects that are equal but for rounding errors, and one that is larger."""
    generator = torch.Generator().manual_seed(seed)
    noise = (1e-6 * torch.randn(12, generator=generator, dtype=torch.float64)).tolist()
    outcomes = {
        Cell("residual", layer, None, at, kind="zero"): Outcome(
            (5.0 if (layer, at) == (1, 2) else 0.0) + noise.pop(), " b", {3: vector(1 + at % 2)}
        )
        for layer in (0, 1, 2)
        for at in range(4)
    }
    runs = {"clean": Outcome(0.0, " a", {3: vector(1)})}
    return Sweep(header("ablate"), list(outcomes), runs, outcomes, Recites())


def dosed():
    """A vector in two doses, and three random directions; what they say is by hand."""
    effects = {
        "steer": (1.0, 2.0), "random 0": (0.25, 1.0), "random 1": (-0.5, -3.0),
        "random 2": (0.0, 4.0),
    }  # fmt: skip
    outcomes = {
        Cell("residual", 1, None, 2, kind=kind, dose=dose): Outcome(
            effect, " b", {3: vector(1 + (dose > 0))}
        )
        for kind, both in effects.items()
        for dose, effect in zip((-1.0, 2.0), both, strict=True)
    }
    runs = {"clean": Outcome(0.0, " a", {3: vector(1)})}
    return Sweep(header("steer"), list(outcomes), runs, outcomes, Recites())


def heads(positions):
    """Two blocks of three heads, ablated at these positions; the effect is 10 × block + head."""
    outcomes = {
        Cell("head", layer, head, at, kind="zero"): Outcome(
            10.0 * layer + head, " b", {3: vector(1 + head % 2)}
        )
        for layer in (0, 1)
        for head in range(3)
        for at in positions
    }
    runs = {"clean": Outcome(0.0, " a", {3: vector(1)})}
    return Sweep(header("ablate"), list(outcomes), runs, outcomes, Recites())


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

    @pytest.mark.parametrize("order", ["text, not output", "output, not text"])
    def test_rounding_errors_order_nothing(self, order):
        frames = [noisy(seed).differences(order) for seed in range(3)]
        places = [list(zip(each["layer"], each["position"], strict=True)) for each in frames]
        assert places[0] == places[1] == places[2]
        assert len(places[0]) == (5 if order == "text, not output" else 1)

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
