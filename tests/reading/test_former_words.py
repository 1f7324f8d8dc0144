"""Readings that version 0.1 wrote are read with the words of today."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nnsight_nla import NLAError, Reading

LINE = "(cosine 0.95; against null 0.10, no other vectors)"


def write_old(path, grades, trust):
    """As version 0.1 did: no column ``grounded``, other words for the grades."""
    text, number = pa.string(), pa.float64()
    schema = pa.schema(
        [
            pa.field("position", pa.int64(), nullable=False),
            pa.field("token", text, nullable=False),
            pa.field("part", text, nullable=False),
            ("explanation", text), ("norm", number), ("cosine", number), ("fve", number),
            ("grade", text), ("trust", text), ("warnings", pa.list_(text)), ("error", text),
        ]
    )  # fmt: skip
    rows = [
        {
            "position": i, "token": f" {i}", "part": "prompt", "explanation": "About bees.",
            "norm": 3.5, "cosine": 0.95, "grade": grade, "trust": line, "warnings": ["early"],
        }
        for i, (grade, line) in enumerate(zip(grades, trust, strict=True))
    ]  # fmt: skip
    header = {"target": "target", "verbalizer": "av", "layer": 3}
    note = json.dumps({"format": "nnsight_nla.reading", "version": 1, **header})
    table = pa.Table.from_pylist(rows, schema=schema.with_metadata({"nnsight_nla.reading": note}))
    pq.write_table(table, path)
    return path


def test_the_words_of_0_1_are_read_with_those_of_today(tmp_path):
    grades = ["high", "medium", "low", "none", None]
    trust = [f"trust: {grade} {LINE}" for grade in grades[:3]] + ["trust: none (no tag)", None]
    found = Reading.from_parquet(write_old(tmp_path / "old.parquet", grades, trust))
    assert [each.grade for each in found] == ["strong", "partial", "weak", "none", None]
    assert [each.trust for each in found] == [
        f"reconstruction: strong {LINE}",
        f"reconstruction: partial {LINE}",
        f"reconstruction: weak {LINE}",
        "reconstruction: none (no tag)",
        None,
    ]
    assert {each.grounded for each in found} == {None}
    assert (found.target, found.layer) == ("target", 3)
    assert found[0].warnings == ("early",)
    found.to_parquet(tmp_path / "new.parquet")
    assert Reading.from_parquet(tmp_path / "new.parquet") == found
    assert "strong" in found._repr_html_()


def test_lines_and_words_that_0_1_did_not_write_stay(tmp_path):
    trust = [None, "trusted", "reconstruction: strong", "the trust: high"]
    grades = ["high", "low", "strong", "certain"]
    found = Reading.from_parquet(write_old(tmp_path / "old.parquet", grades, trust))
    assert [each.trust for each in found] == trust
    assert [each.grade for each in found] == ["strong", "weak", "strong", "certain"]


def test_another_column_that_is_missing_is_still_named(tmp_path):
    path = write_old(tmp_path / "old.parquet", ["high"], [None])
    table = pq.read_table(path)
    pq.write_table(table.drop_columns(["grade"]), path)
    with pytest.raises(NLAError, match="grade"):
        Reading.from_parquet(path)


def test_the_cosine_of_version_1_is_the_reconstructions(tmp_path):
    line = "trust: high (cosine 0.95; FVE 0.90 over 0.965; against null 0.10)"
    found = Reading.from_parquet(write_old(tmp_path / "old.parquet", ["high"], [line]))
    assert found.scores == (0.95,)
    assert found[0].reconstruction_cosine == 0.95
    assert found[0].trust == (
        "reconstruction: strong (cosine 0.95; FVE 0.90 (denominator 0.965); against null 0.10)"
    )
    with pytest.warns(DeprecationWarning, match="TokenReading.cosine is called reconstruction_cos"):
        assert found[0].cosine == 0.95
    with pytest.warns(DeprecationWarning, match="The column 'cosine'"):
        assert found.to_pandas()["cosine"].tolist() == [0.95]
