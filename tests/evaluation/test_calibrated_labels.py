"""Labels of a calibrated checkpoint, of vectors of another kind, and of what the text shows."""

import json
import math
import re
import shutil

import pytest
import torch

from nnsight_nla import NLA, tiny
from nnsight_nla.checkpoint.origin import Origin
from nnsight_nla.core.calibration import FILE, Calibration, Residuals
from nnsight_nla.core.trust import GRADES
from nnsight_nla.evaluation.calibrating import calibrate, save
from nnsight_nla.evaluation.trust_labels import grounded_of
from nnsight_nla.explanation.caveats import atypical, caveats, text_so_far
from tests.evaluation.test_trust_labels import Queue, capture, measured
from tests.helpers.tiny_rows import tiny_rows


def loaded(folder) -> NLA:
    return NLA(folder, ar=tiny.paths()["ar"], dtype=torch.float32)


@pytest.fixture(scope="module")
def source(pair):
    return tiny_rows(pair[0], documents=60, seed=21)


@pytest.fixture(scope="module")
def bare(tmp_path_factory) -> NLA:
    folder = tmp_path_factory.mktemp("bare") / "av"
    shutil.copytree(tiny.paths()["av"], folder)
    (folder / FILE).unlink(missing_ok=True)
    return loaded(folder)


@pytest.fixture(scope="module")
def calibrated(pair, source, tmp_path_factory) -> NLA:
    folder = tmp_path_factory.mktemp("calibrated") / "av"
    shutil.copytree(tiny.paths()["av"], folder)
    save(calibrate(loaded(folder), source, population="the tiny world"), folder)
    return loaded(folder)


@pytest.mark.parametrize("text", ["nan 1", "inf 1"])
def test_a_control_that_is_not_finite_gives_no_grade(text):
    made = capture([[1.0, 0.0], [0.0, 1.0]], ["1 0", "0 1"])
    for label in measured(made, Queue(random=(text,))).values():
        assert (label.grade, label.margin) == ("none", None)
        assert label.reason == "there is no finite control to compare the cosine with"
        assert label.line.startswith(f"reconstruction: none ({label.reason}; cosine 1.00; FVE")
        assert "random nan" in label.line
        json.dumps(label.to_dict(), allow_nan=False)


def test_without_any_control_there_is_no_grade():
    label = measured(capture([[1.0, 0.0]], ["1 0"]), Queue(null="", random=("",)))[0]
    assert (label.grade, label.cosine) == ("none", pytest.approx(1))
    assert "no finite control" in label.reason


@pytest.mark.parametrize("kind", ["direction", "difference"])
def test_a_vector_of_another_kind_has_no_grade(calibrated, source, kind):
    thought = calibrated.explain(
        source.vectors[:2], origin=Origin(kind=kind, d_model=128), claims="ignore"
    )
    for label in thought.trust:
        assert label.grade == "none"
        assert f"is a {kind}" in label.reason or f"kind is {kind}" in label.reason
        assert label.probability is None
        assert math.isfinite(label.cosine)


def test_a_vector_of_another_layer_has_no_grade(calibrated, bare, source):
    for nla in (calibrated, bare):
        label = nla.explain(source.vectors[0], origin=Origin(layer=1), claims="ignore").trust
        assert label.grade == "none"
        assert label.reason.startswith(
            "its vector may differ from what the verbalizer was trained on: "
        )
        assert label.probability is None
        assert nla.explain(source.vectors[0], origin=Origin(layer=3)).trust.reason is None


def test_random_directions_are_not_like_residuals(calibrated, bare, source):
    draw = torch.Generator().manual_seed(0)
    random = torch.randn(40, 128, generator=draw)
    random *= source.vectors.norm(dim=-1).mean() / random.norm(dim=-1, keepdim=True)
    labels = calibrated.explain(random).trust
    graded = [label for label in labels if label.reason is None]
    # A direction by chance has a cosine near 0 with the mean; of residuals, one in a hundred has.
    assert sum(label.grade == "strong" for label in labels) <= 2
    none = [label for label in labels if label.reason and "not like those" in label.reason]
    assert len(none) + len(graded) <= 40
    assert all(label.probability is None for label in none)
    for label in none:
        assert any("not like those" in each for each in label.warnings)
    assert {label.reason for label in bare.explain(random).trust if label.cosine} == {None}


def test_long_and_short_vectors_are_not_like_residuals(calibrated, source):
    labels = calibrated.explain(torch.stack([source.vectors[0], source.vectors[0] * 1e4])).trust
    assert labels[0].reason is None
    assert re.search(r"norm .*, usual .* to ", labels[1].reason)


def test_most_residuals_are_like_residuals(calibrated, pair):
    other = tiny_rows(pair[0], documents=60, seed=22)
    labels = calibrated.explain(other.vectors).trust
    assert sum(label.reason is None for label in labels) >= 0.9 * len(labels)


def test_probabilities_are_there_with_a_calibration_only(calibrated, bare, source):
    label = calibrated.explain(source.vectors[0]).trust
    assert 0 <= label.probability == label.probabilities["whole"] <= 1
    assert label.population == "the tiny world"
    assert label.lines[1].startswith("probability of being right: whole ")
    without = bare.explain(source.vectors[0]).trust
    assert (without.probability, without.population, dict(without.probabilities)) == (
        None, None, {},
    )  # fmt: skip
    assert without.cosine == pytest.approx(label.cosine, abs=1e-5)


def test_another_verbalizers_handle_has_no_probability(calibrated, bare, source):
    other = loaded(calibrated.spec["av"])
    for theirs in (bare.explain(source.vectors[:2]), other.explain(source.vectors[:2])):
        for label in calibrated.trust(theirs):
            assert (label.probability, label.population) == (None, None)
            assert label.cosine is not None
    assert all(
        each.probability is not None for each in calibrated.explain(source.vectors[:2]).trust
    )


def test_the_thresholds_are_those_of_the_calibration():
    made = {}
    for strong, partial in ((0.9, 0.5), (0.2, 0.1), (0.99, 0.98)):
        each = capture(
            [[1.0, 0.0]], ["1 1"], calibration=Calibration("x", 1, strong=strong, partial=partial)
        )
        label = measured(each, Queue(null="0 1", random=("-1 0",)))[0]
        made[strong] = (round(label.margin, 2), label.grade)
    assert made == {0.9: (0.71, "partial"), 0.2: (0.71, "strong"), 0.99: (0.71, "weak")}


def test_what_is_atypical_by_hand():
    look = Residuals((1.0, 0.0), least=0.5, shortest=1.0, longest=10.0)
    vectors = [[5.0, 0.0], [0.0, 5.0], [0.5, 0.0], [50.0, 1.0], [math.nan, 1.0], [3.0, 3.0]]
    made = capture(vectors, ["1 0"] * 6, calibration=Calibration("x", 1, residuals=look))
    found = atypical(made)
    assert {1, 2, 3} <= set(found) <= {1, 2, 3, 4}
    assert found[1] == "cosine 0.00 with the mean residual, usual 0.50 or more"
    assert found[2] == "norm 0.5, usual 1 to 10"
    assert atypical(capture(vectors, ["1 0"] * 6)) == {}
    edges = [[1.0 - 1e-4, 0.0], [10.0 + 1e-3, 0.0], [0.99, 0.0], [10.1, 0.0]]
    rounded = capture(edges, ["1 0"] * 4, calibration=Calibration("x", 1, residuals=look))
    assert set(atypical(rounded)) == {2, 3}  # rounding is not a reason, one percent is
    assert all(
        label.grade in GRADES for label in measured(capture(vectors[:4], ["1 0"] * 4)).values()
    )


def test_early_positions_are_those_that_were_measured():
    options = {"positions": [0, 1, 2, 50], "width": 4}
    vectors, texts = [[1.0, 0.0]] * 4, ["1 0"] * 4
    calibration = Calibration("x", 1, noisy_positions=2)
    found = caveats(capture(vectors, texts, calibration=calibration, **options))
    assert set(found) == {0, 1}
    assert found[1] == (
        "position 1: explanations of the first 2 positions are worse than later ones, as measured "
        "for this verbalizer",
    )
    for none in (None, Calibration("x", 1), Calibration("x", 1, noisy_positions=0)):
        assert caveats(capture(vectors, texts, calibration=none, **options)) == {}


TOKENS = ["The", " bees", " fly", " home"]


def shown(text, row=3, **changes):
    options = {"tokens": TOKENS, "positions": [0, 1, 2, 3], "width": 4} | changes
    made = capture([[1.0, 0.0]] * 4, ["1 0"] * 4, **options)
    made.replies[row, 0] = type(made.replies[0, 0])(
        f"<explanation>{text}</explanation>", text, "tag", 5, 1.0, 2.0, 1.0
    )
    return grounded_of(made, row)


def test_quotes_are_looked_up_in_the_text_so_far():
    found = shown('Says "the bees" and "fly  home." and "queen".')
    assert (found.quotes, found.so_far, found.says_next) == (3, 2, None)
    assert shown('Says "fly home".', row=1).so_far == 0
    assert shown('Says "fly home".', row=3).so_far == 1


def test_what_cannot_be_checked_is_not_grounded():
    assert shown("About bees.") is None
    assert shown('Says "bees".', tokens=None) is None
    assert shown('Says "bees".', positions=[4, 5, 6, 7]) is None
    assert shown('Says "bees".', tokens=["\ufffd", *TOKENS[1:]]) is None
    assert shown("Next: hive") is None


def test_the_next_token_is_held_against_the_targets():
    following = [(" a",), (" b",), (" c",), (" to", ".")]
    found = shown("Next: to", next_tokens=following)
    assert (found.says_next, found.next_agrees, found.quotes) == ("to", True, 0)
    found = shown('Says "queen". Next: from', next_tokens=following)
    assert (found.says_next, found.next_agrees, found.quotes, found.so_far) == ("from", False, 1, 0)
    # Without the text the quotes cannot be checked, and the next token can.
    found = shown('Says "queen". Next: to', next_tokens=following, tokens=None)
    assert (found.quotes, found.next_agrees) == (0, True)


def test_the_text_so_far_needs_every_token_of_the_prompt():
    made = capture([[1.0, 0.0]] * 4, ["1 0"] * 4, tokens=TOKENS, positions=[0, 1, 2, 3], width=4)
    assert [text_so_far(made, row) for row in range(4)] == [
        "The", "The bees", "The bees fly", "The bees fly home",
    ]  # fmt: skip
    made = capture([[1.0, 0.0]] * 4, ["1 0"] * 4, tokens=TOKENS, positions=[0, 1, 0, 1], width=2)
    assert text_so_far(made, 3) == " fly home"
    made = capture([[1.0, 0.0]] * 4, ["1 0"] * 4, tokens=TOKENS, positions=[0, 2, 3, 4], width=4)
    assert text_so_far(made, 3) is None


def test_a_reading_shows_what_the_text_says(model, calibrated):
    read = calibrated.read(model, "People in Paris speak French.")
    lines = [record.grounded for record in read if record.grounded]
    assert lines
    assert all(line.startswith("grounded: next ") for line in lines)
