"""``nnsight-nla calibrate``: labelled rows in, a file in the verbalizer's folder out."""

import json
import shutil

import pytest
import torch
from typer.testing import CliRunner

from nnsight_nla import NLA, NLAError, tiny
from nnsight_nla.cli import app
from nnsight_nla.core.calibration import FILE, Calibration
from tests.helpers.tiny_rows import tiny_rows, write_rows

runner = CliRunner()


def run(*arguments):
    found = runner.invoke(app, [str(each) for each in arguments])
    if found.exception is not None and not isinstance(found.exception, SystemExit):
        raise found.exception
    return found


@pytest.fixture(scope="module")
def files(pair, tmp_path_factory):
    folder = tmp_path_factory.mktemp("rows")
    for name, seed in (("rows", 11), ("test", 12)):
        rows = tiny_rows(pair[0], documents=40, seed=seed, noise=2.0)
        write_rows(rows, folder / f"{name}.parquet")
    return folder


@pytest.fixture
def av(tmp_path):
    folder = tmp_path / "av"
    shutil.copytree(tiny.paths()["av"], folder)
    (folder / FILE).unlink(missing_ok=True)
    return folder


def command(av, files, *more):
    return run(
        "calibrate", av, files / "rows.parquet", "--ar", tiny.paths()["ar"], "--dtype", "float32",
        "--population", "held-out words", "--held-out", "0", *more,
    )  # fmt: skip


def test_it_stores_what_labels_then_use(av, files):
    before = {each.name: each.read_bytes() for each in av.iterdir()}
    found = command(av, files, "--test", files / "test.parquet", "--limit", "90")
    assert found.exit_code == 0, found.output
    assert f"{av / FILE}: trust labels" in found.stdout.replace("\n", "")
    for word in ("held-out words: 90 vectors", "whole", "subject", "next", "strong from a margin"):
        assert word in found.stdout
    assert {each.name: each.read_bytes() for each in av.iterdir() if each.name != FILE} == before
    stored = Calibration.from_dict(json.loads((av / FILE).read_text("utf-8")))
    assert (stored.n, stored.population) == (90, "held-out words")
    assert set(stored.notes["reliability"]) == {each.name for each in stored.statements}
    nla = NLA(av, ar=tiny.paths()["ar"], dtype=torch.float32)
    assert nla.checkpoint.calibration == stored
    away = -torch.tensor(stored.residuals.mean)
    assert nla.explain(away).trust.grade == "none"  # These vectors point the other way.


def test_json_is_the_calibration(av, files):
    found = command(av, files, "--json")
    assert found.exit_code == 0, found.output
    printed = Calibration.from_dict(json.loads(found.stdout))
    assert printed == Calibration.from_dict(json.loads((av / FILE).read_text("utf-8")))
    assert printed.n == 120
    # Not measured, as no other documents were given.
    assert {each.error for each in printed.statements} == {None}
    again = command(av, files, "--json")
    assert json.loads(again.stdout) == json.loads(found.stdout)


def test_a_verbalizer_that_is_no_folder_is_refused(files, tmp_path):
    for av in (tmp_path / "lost", "owner/name"):
        with pytest.raises(NLAError, match=r"is not a folder, so nothing can be stored in it\. D"):
            command(av, files)


def test_too_few_rows_leave_the_old_file(av, files, pair, tmp_path):
    old = json.dumps(Calibration("old", 1).to_dict())
    (av / FILE).write_text(old, "utf-8")
    (tmp_path / "few").mkdir()
    write_rows(tiny_rows(pair[0], documents=9, seed=1), tmp_path / "few" / "rows.parquet")
    with pytest.raises(NLAError, match="has 27 rows; a calibration needs 50 or more"):
        command(av, tmp_path / "few")
    assert (av / FILE).read_text("utf-8") == old


def test_rows_without_texts_and_files_that_are_not_there_are_refused(av, files, tmp_path):
    import pyarrow.parquet as pq

    table = pq.read_table(files / "rows.parquet")
    pq.write_table(table.drop_columns(["detokenized_text_truncated"]), tmp_path / "rows.parquet")
    with pytest.raises(NLAError, match="has no column 'detokenized_text_truncated'"):
        command(av, tmp_path)
    with pytest.raises(NLAError, match="cannot be read as Parquet"):
        command(av, files, "--early", tmp_path / "lost.parquet")
    assert not (av / FILE).exists()
