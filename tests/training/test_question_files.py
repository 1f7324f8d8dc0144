"""Train an oracle from a Parquet file of questions: the same rows as a list, and a checkpoint."""

import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml

from nnsight_nla import NLA, Sampling
from nnsight_nla.checkpoint.checkpoint import ORACLE_TEMPLATE
from nnsight_nla.training import Published, Settings, TrainingError, Watching, describe, train
from nnsight_nla.training.question_rows import question_rows
from tests.helpers.published import WIDTH, base, publish, records, tokenizer

SETTINGS = Settings(steps=4, batch_size=6, learning_rate=1e-3, warmup=1)


def rows(number: int = 24) -> list[dict]:
    generator = torch.Generator().manual_seed(1)
    return [
        {
            "activation_vectors": torch.randn(i % 3 + 1, WIDTH, generator=generator).tolist(),
            "question": ("Who is it about?", "Is it?")[i % 2],
            "answer": ("Paris", "No")[i % 2],
            "layer": 1 + i % 2,
            "doc_id": f"document {i // 2}",
        }
        for i in range(number)
    ]


def described():
    return describe(
        tokenizer(), layer=1, layers=(1, 2), d_model=WIDTH, base_model="base", marker="?",
        template=ORACLE_TEMPLATE, ar_template=None,
    )  # fmt: skip


def write(file: Path, listed: list[dict]) -> Path:
    pq.write_table(pa.Table.from_pylist(listed), file, row_group_size=7)
    tree = described().to_sidecar("av") | {"kind": "nla_dataset"}
    beside = file.with_name(f"{file.name}.nla_meta.yaml")
    beside.write_text(yaml.safe_dump(tree, allow_unicode=True), "utf-8")
    return file


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("questions")
    base(folder / "base")
    write(folder / "rows.parquet", rows())
    publish(folder / "explanations.parquet", records())
    return folder


def test_a_file_has_the_rows_of_a_list(folder):
    listed = question_rows(rows(), tokenizer(), described())
    read = question_rows(Published(folder / "rows.parquet"), tokenizer(), described())
    assert read.lengths() == listed.lengths()
    for i in range(len(listed)):
        one, other = listed[i], read[i]
        assert torch.equal(one.pop("vector"), other.pop("vector"))
        assert one == other
        assert len(one["input_ids"]) == listed.lengths()[i]
    for held_out, limit, count in ((0.25, 4, 2), (0.25, 1, 1), (1, None, 24)):
        some = Published(folder / "rows.parquet", part="held out", held_out=held_out, limit=limit)
        assert len(question_rows(some, tokenizer(), described())) == count


@pytest.fixture(scope="module")
def trained(folder):
    return train(
        "av", folder / "rows.parquet", base=folder / "base", out=folder / "oracle",
        settings=SETTINGS, held_out=0.25, watching=Watching(every=2, rows=4, best="accuracy"),
    )  # fmt: skip


def test_what_is_trained_is_an_oracle_of_the_rows_layers(folder, trained):
    assert [line["step"] for line in trained.log if "eval_accuracy" in line] == [2, 4]
    oracle = NLA(folder / "oracle", dtype=torch.float32)
    assert oracle.layers == (1, 2)
    assert trained.checkpoint.template == ORACLE_TEMPLATE
    sampling = Sampling(max_new_tokens=2)
    answer = oracle.ask(torch.ones(3, WIDTH), "Is it?", layer=2, sampling=sampling)
    assert isinstance(answer.text, str)
    again = train(
        "av", folder / "rows.parquet", base=folder / "base", out=folder / "oracle",
        settings=SETTINGS, held_out=0.25, watching=Watching(every=2, rows=4, best="accuracy"),
    )  # fmt: skip
    assert again.folder == trained.folder  # Its own result is not an obstacle.


def test_without_a_sidecar(folder, tmp_path):
    file = tmp_path / "rows.parquet"
    pq.write_table(pa.Table.from_pylist([{**row, "layer": 2} for row in rows(6)]), file)
    found = train(
        "av", file, base=folder / "base", out=tmp_path / "oracle", held_out=0,
        settings=Settings(steps=1, batch_size=2),
    )  # fmt: skip
    assert (found.checkpoint.layer, found.checkpoint.layers) == (2, None)
    assert found.checkpoint.asks


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"activation_vectors": [[1.0] * 5]}, "row 3: activation_vector has shape [5], expected"),
        ({"activation_vectors": None}, "row 3 has no vectors"),
        ({"activation_vectors": [[0.0] * WIDTH]}, "row 3: vector 0 of activation_vectors is zero"),
        ({"question": None}, "row 3: the question is empty"),
        ({"answer": " "}, "row 3: the answer is empty"),
        ({"layer": 7}, "are from layer 7; "),
    ],
)
def test_a_bad_row_is_found_before_any_weights_are_loaded(folder, tmp_path, changes, message):
    listed = rows(6)
    listed[3] |= changes
    file = write(tmp_path / "rows.parquet", listed)
    with pytest.raises(TrainingError, match=re.escape(message)):
        train("av", file, base=folder / "base", out=tmp_path / "oracle", held_out=0)


def test_other_files_and_figures(folder, tmp_path):
    def refused(message, role="av", file=folder / "rows.parquet", **options):
        with pytest.raises(TrainingError, match=re.escape(message)):
            train(role, file, base=folder / "base", out=tmp_path / "out", **options)

    refused("They train an oracle (av), which has no reconstructor", "ar")
    refused("leave ar and grounded out", watching=Watching(ar=folder / "base"))
    refused("Expected one of loss, accuracy", watching=Watching(best="fve"), held_out=0.25)
    refused("layer=2, but the vectors of", layer=2)
    with pytest.raises(TrainingError, match="has an oracle's rows"):
        next(Published(folder / "rows.parquet").batches(WIDTH))
    with pytest.raises(TrainingError, match="has rows with an explanation of one vector each"):
        next(Published(folder / "explanations.parquet").questions(WIDTH))
    file = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"activation_vectors": [[[1.0]]], "question": ["a"]}), file)
    refused("has no column 'answer'; it has activation_vectors, question", file=file)
    pq.write_table(
        pa.table({"activation_vectors": [[1.0]], "question": ["a"], "answer": ["b"]}), file
    )
    refused("'activation_vectors' holds list<", file=file)
