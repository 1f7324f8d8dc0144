"""The calibration beside a sidecar: found, held against the sidecar, and refused if malformed."""

import hashlib
import json
import re
import warnings

import pytest
import yaml

from nnsight_nla import CheckpointError, NLAWarning
from nnsight_nla.checkpoint.checkpoint import Checkpoint
from nnsight_nla.core.calibration import FILE, Calibration, Residuals, Statement
from tests.checkpoint.test_sidecar import sidecar

MINE = Calibration("mine", 100, (Statement("whole", None, {"log_odds": 1.0}),), 0.7, 0.3, 5)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "nla_meta.yaml").write_text(yaml.safe_dump(sidecar()), "utf-8")
    return tmp_path


def digest(folder) -> str:
    return hashlib.sha256((folder / "nla_meta.yaml").read_bytes()).hexdigest()


def put(folder, calibration=MINE, **changes):
    path = folder / FILE
    path.write_text(json.dumps(calibration.to_dict() | changes), "utf-8")
    return path


def test_it_is_found_beside_the_sidecar(folder):
    assert Checkpoint.load(folder).calibration is None
    put(folder)
    assert Checkpoint.load(folder).calibration == MINE
    put(folder, sidecar_hash=digest(folder))
    found = Checkpoint.load(str(folder))
    assert found.calibration.sidecar_hash == found.sidecar_hash == digest(folder)


def test_it_is_no_part_of_what_a_checkpoint_is(folder):
    without = Checkpoint.load(folder)
    put(folder)
    assert Checkpoint.load(folder) == without
    assert "calibration" not in repr(Checkpoint.load(folder))


def test_one_of_another_checkpoint_warns_and_is_not_used(folder):
    path = put(folder, sidecar_hash="ab" * 32)
    with pytest.warns(
        NLAWarning, match=rf"^{re.escape(str(path))} was measured on another"
    ) as said:
        assert Checkpoint.load(folder).calibration is None
    assert "Measure again: nnsight-nla calibrate." in str(said[0].message)
    put(folder, sidecar_hash=digest(folder))
    sidecar_file = folder / "nla_meta.yaml"
    sidecar_file.write_text(sidecar_file.read_text("utf-8") + "# edited\n", "utf-8")
    with pytest.warns(NLAWarning, match="measured on another checkpoint"):
        assert Checkpoint.load(folder).calibration is None


def test_the_sidecar_of_a_file_has_none(folder):
    put(folder)
    data = folder / "rows.parquet"
    data.write_bytes(b"rows")
    beside = folder / "rows.parquet.nla_meta.yaml"
    beside.write_text(yaml.safe_dump(sidecar()), "utf-8")
    for each in (data, beside, folder / "nla_meta.yaml"):
        assert Checkpoint.load(each).calibration is None
    assert Checkpoint.load(folder).calibration == MINE


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not readable as JSON"),
        ("", "is not readable as JSON"),
        ("[" * 100_000, "is not readable as JSON"),
        ('{"version": ' + "1" * 5000 + "}", "is not readable as JSON"),
        ("\xff", "is not readable as JSON"),
        ("[]", ": it is [], expected an object"),
        ("null", ": it is None, expected an object"),
        ('{"version": 2}', ": version is 2, expected 1"),
        (" " * (1 << 20) + "{}", "is larger than 1,048,576 bytes"),
    ],
)
def test_a_malformed_one_is_an_error_that_names_it(folder, content, message):
    path = folder / FILE
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(CheckpointError, match=re.escape(message)) as caught:
        Checkpoint.load(folder)
    assert str(path) in str(caught.value)


def test_numbers_that_are_none_are_named(folder):
    path = folder / FILE
    path.write_text(json.dumps(MINE.to_dict() | {"strong": float("nan")}), "utf-8")
    with pytest.raises(CheckpointError) as caught:
        Checkpoint.load(folder)
    assert str(caught.value) == f"{path}: strong is nan, expected a number."


def test_residuals_of_another_width_are_refused(folder):
    width = sidecar()["d_model"]
    put(folder, Calibration("x", 1, residuals=Residuals((0.5,) * width, 0, 0, 1)))
    assert Checkpoint.load(folder).calibration.residuals is not None
    path = put(folder, Calibration("x", 1, residuals=Residuals((0.5,) * 3, 0, 0, 1)))
    with pytest.raises(CheckpointError) as caught:
        Checkpoint.load(folder)
    assert str(caught.value) == (
        f"{path}: residuals has a mean of 3 numbers, expected d_model, 64. Measure again: "
        "nnsight-nla calibrate."
    )


def test_a_folder_of_that_name_is_no_calibration(folder):
    (folder / FILE).mkdir()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert Checkpoint.load(folder).calibration is None
