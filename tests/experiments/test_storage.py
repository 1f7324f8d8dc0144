"""A sweep in a parquet file, and read back."""

import json
from dataclasses import replace

import pandas as pd
import pytest
import torch

from nnsight_nla import Sweep
from nnsight_nla.experiments import ExperimentError, logit_difference, steer
from tests.experiments.test_sweep import Recites, by_hand

CLEAN = "What a lovely day! People in Paris speak"


def test_there_and_back(tmp_path):
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


def test_any_reader_of_parquet_has_everything(tmp_path):
    frame = pd.read_parquet(by_hand().to_parquet(tmp_path / "sweep.parquet"))
    assert frame["run"].tolist()[:2] == ["clean", "corrupt"]
    assert frame["text"].tolist()[:3] == ["one of them", "two of them", "one of them"]
    assert frame["vector"][0].tolist() == [1.0, 0.5]
    assert len(frame) == 8


def test_distances_need_an_nla(tmp_path):
    path = by_hand().to_parquet(tmp_path / "sweep.parquet")
    assert Sweep.from_parquet(path).differences()["text_distance"].isna().all()
    again = Sweep.from_parquet(path, nla=Recites())
    assert again.differences()["text_distance"].notna().sum() == 4
    assert again.texts.handle is None, "the texts are there already"


def test_an_nla_of_another_layer_or_model_is_refused(tmp_path):
    path, nla = by_hand().to_parquet(tmp_path / "sweep.parquet"), Recites()
    for name, value, said in (
        ("layer", 1, r"layer \(the layer of sweep\.parquet\) is 2, expected 1"),
        ("base_model", "you/t", r"model \(the target of sweep\.parquet\) is a <model>, expected"),
    ):
        nla.checkpoint = replace(Recites.checkpoint, **{name: value})
        with pytest.raises(ExperimentError, match=said):
            Sweep.from_parquet(path, nla=nla)
        Sweep.from_parquet(path, nla=nla, claims="ignore")


def test_what_is_no_sweep(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    (tmp_path / "text").write_text("hello", "utf-8")
    with pytest.raises(ExperimentError, match="is not a parquet file"):
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


def test_of_a_real_sweep_of_heads_and_doses(model, nla, tmp_path):
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


def test_a_sweep_stored_without_its_texts_is_explained_when_read_with_an_nla(tmp_path):
    whole = by_hand()
    silent = Sweep(whole.header, whole.cells, whole.runs, whole.outcomes)
    assert silent.rows()[0]["error"].startswith("before: this vector was not explained")
    path = silent.to_parquet(tmp_path / "sweep.parquet")
    assert Sweep.from_parquet(path).rows() == silent.rows()
    assert Sweep.from_parquet(path, nla=Recites()).rows() == whole.rows()


def test_a_folder_that_is_missing_is_an_error_that_names_the_file(tmp_path):
    with pytest.raises(ExperimentError, match=r"absent/sweep\.parquet cannot be written"):
        by_hand().to_parquet(tmp_path / "absent" / "sweep.parquet")
