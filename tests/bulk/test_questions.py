"""Questions about the rows of a data set: a column of them, or one for all rows."""

import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from nnsight import TransformersModel
from typer.testing import CliRunner

from nnsight_nla import NLA, Checkpoint, NLAError, Sampling, bulk, cli, tiny
from nnsight_nla.checkpoint.checkpoint import ORACLE_TEMPLATE
from nnsight_nla.errors import CheckpointError, VerbalizationError

D = 128
TONE = "What is the tone?"
GENERATOR = torch.Generator().manual_seed(2)
VECTORS = [torch.randn(slots, D, generator=GENERATOR) for slots in (1, 3, 1, 3, 2)]
QUESTIONS = [TONE, "What is the subject?", "Is it?", TONE, TONE]


@pytest.fixture(scope="module")
def oracle():
    """An oracle that was never trained: the target itself."""
    checkpoint = Checkpoint(
        layer=3, d_model=D, template=ORACLE_TEMPLATE, marker="?",
        base_model="nnsight_nla/tiny/weights/target",
    )  # fmt: skip
    target = TransformersModel(str(tiny.paths()["target"]), task="text-generation")
    return NLA(target, checkpoint=checkpoint, sampling=Sampling(max_new_tokens=3))


def rows(path: Path, vectors=VECTORS, questions=QUESTIONS) -> Path:
    vectors = [None if each is None else each.tolist() for each in vectors]
    columns = {
        "activation_vectors": pa.array(vectors, pa.list_(pa.list_(pa.float32()))),
        "question": pa.array(questions, pa.string()),
    }
    pq.write_table(pa.table(columns), path)
    return path


def opened(path: Path):
    return bulk.open_source(path, question="question")


def table(path: Path) -> list[dict]:
    return pq.read_table(path).to_pylist()


def test_each_row_has_its_question_and_its_number_of_vectors(oracle, tmp_path):
    output, again = tmp_path / "out.parquet", tmp_path / "again.parquet"
    bulk.run(oracle, opened(rows(tmp_path / "in.parquet")), output, vectors=True, chunk=2)
    made = table(output)
    assert [row["text"] for row in made] == oracle.ask(VECTORS, QUESTIONS).text
    assert [row["question"] for row in made] == QUESTIONS
    assert [row["slots"] for row in made] == [1, 3, 1, 3, 2]
    assert [row["activation_vectors"] for row in made] == [each.tolist() for each in VECTORS]
    assert [row["norm"] for row in made] == pytest.approx(
        [each.norm(dim=-1).mean().item() for each in VECTORS]
    )
    bulk.run(oracle, opened(output), again, vectors=True, chunk=2)  # The output is an input.
    assert table(again) == made


def test_a_bad_row_is_its_own_error(oracle, tmp_path):
    vectors = [*VECTORS, None, torch.ones(2, 5), torch.zeros(1, D), VECTORS[0]]
    questions = ["", None, "What? " * 400, *QUESTIONS[:5], TONE]
    path = rows(tmp_path / "in.parquet", vectors, questions)
    report = bulk.run(oracle, opened(path), tmp_path / "out.parquet", chunk=4)
    made = table(tmp_path / "out.parquet")
    said = ["is empty", "expected a text", "reads 512", "no vector", "has 5 numbers", "zero"]
    errors = [row["error"] for row in made if row["error"] is not None]
    assert report.errors == len(said)
    for error, message in zip(errors, said, strict=True):
        assert message in error
    assert made[-1]["text"] == oracle.ask(VECTORS[0], TONE).text


def test_several_vectors_are_not_explained_as_one(nla, tmp_path):
    bulk.run(nla, rows(tmp_path / "in.parquet"), tmp_path / "out.parquet", score=False)
    errors = [row["error"] for row in table(tmp_path / "out.parquet")]
    said = [f"its vector has shape [{slots}, 128], expected one axis" for slots in (3, 3, 2)]
    assert errors == [None, said[0], None, said[1], said[2]]


def test_an_interrupted_run_ends_with_the_same_bytes(oracle, tmp_path, monkeypatch):
    source = rows(tmp_path / "in.parquet")
    whole, output = tmp_path / "whole.parquet", tmp_path / "out.parquet"
    bulk.run(oracle, opened(source), whole, chunk=2, batch_size=2)
    with monkeypatch.context() as patched:
        calls, resolve = [], oracle.resolve

        def fail(handles):
            calls.append(handles)
            if len(calls) == 2:
                raise KeyboardInterrupt
            resolve(handles)

        patched.setattr(oracle, "resolve", fail)
        with pytest.raises(KeyboardInterrupt):
            bulk.run(oracle, opened(source), output, chunk=2, batch_size=2)
    with pytest.raises(NLAError, match="question_column"):
        bulk.run(oracle, source, output, question=TONE, chunk=2)
    report = bulk.run(oracle, opened(source), output, chunk=2)
    assert (report.chunks, report.resumed) == (2, 1)
    assert output.read_bytes() == whole.read_bytes()


def test_one_question_about_texts(oracle, model, tmp_path):
    source, output = tmp_path / "in.jsonl", tmp_path / "out.parquet"
    source.write_text('{"text": "People in Paris speak"}\n{"text": "The cow lives"}\n')
    bulk.run(oracle, source, output, model=model, question=TONE, positions="last")
    with model.trace(["People in Paris speak", "The cow lives"]):
        asked = oracle.ask(oracle.layer(model).output[:, -1:], TONE)
    assert [row["text"] for row in table(output)] == asked.text
    choosing, words = oracle.asking(TONE, choices=["Yes", "No"]), ["Yes", "No"]
    bulk.run(choosing, source, tmp_path / "choices.parquet", model=model, positions="last")
    again = tmp_path / "again.parquet"
    bulk.run(
        oracle, source, again, model=model, question=TONE, choices=words, positions="last"
    )  # fmt: skip
    assert table(again) == table(tmp_path / "choices.parquet")
    with pytest.raises(NLAError, match="choices"):  # Other words are another output.
        bulk.run(
            oracle, source, again, model=model, question=TONE, choices=["No", "Yes"],
            positions="last",
        )  # fmt: skip
    chosen = oracle.ask(asked.vectors, TONE, choices=["Yes", "No"])
    for row, shares, mass in zip(
        table(tmp_path / "choices.parquet"), chosen.probabilities, chosen.mass, strict=True
    ):
        assert dict(row["probabilities"]) == pytest.approx(shares, abs=1e-4)
        assert row["mass"] == pytest.approx(mass, abs=1e-4)


def test_what_cannot_be_asked(oracle, nla, tmp_path):
    source, output = rows(tmp_path / "in.parquet"), tmp_path / "out.parquet"

    def refused(message, nla, *args, error=NLAError, **options):
        with pytest.raises(error, match=re.escape(message)):
            bulk.run(nla, *args, output, **options)

    refused("answers questions, and got none. Pass question=", oracle, source)
    refused("Pass one of them", oracle, opened(source), question=TONE)
    refused("Pass one of them", oracle.asking(TONE), opened(source))
    refused(
        "and the NLA has choices=['a', 'b']",
        oracle.asking(TONE, choices=["a", "b"]),
        source,
        choices=["Yes", "No"],
    )
    refused(
        "choices=['Yes', 'No'] without a question", nla, source, choices=["Yes", "No"],
        error=VerbalizationError,
    )  # fmt: skip
    refused("is empty", oracle, source, question=" ", error=VerbalizationError)
    refused("explains vectors", nla, source, question=TONE, error=CheckpointError)
    with pytest.raises(NLAError, match=r"no column 'ask'.* holds the questions: question='NAME'"):
        bulk.open_source(source, question="ask")
    (tmp_path / "in.npy").touch()
    with pytest.raises(NLAError, match=r"has no columns, and question='question' names one"):
        bulk.open_source(tmp_path / "in.npy", question="question")
    assert not output.exists()


def test_on_the_command_line(tmp_path):
    source, output = rows(tmp_path / "in.parquet"), tmp_path / "out.parquet"
    words = ["run", str(source), str(output), "--av", str(tiny.paths()["oracle"])]
    refused = CliRunner().invoke(cli.app, words)
    assert isinstance(refused.exception, NLAError)
    words += ["--question-column", "question", "--max-new-tokens", "4"]
    assert CliRunner().invoke(cli.app, words).exit_code == 0
    assert [row["question"] for row in table(output)] == QUESTIONS
    chosen = tmp_path / "chosen.parquet"
    words[2] = str(chosen)
    words += ["--choices", "Yes,No", "--layer", "4"]
    assert CliRunner().invoke(cli.app, words).exit_code == 0
    assert [sorted(dict(row["probabilities"])) for row in table(chosen)] == [["No", "Yes"]] * 5
    model = tiny.load()[0]
    oracle = NLA.on(model, av=tiny.paths()["oracle"])
    asked = oracle.ask(VECTORS, QUESTIONS, choices=["Yes", "No"], layer=4)
    assert [row["text"] for row in table(chosen)] == asked.text
    words[-1] = "2"
    assert "trained on layer 3, 4" in str(CliRunner().invoke(cli.app, words).exception)
