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


def controls_of(row: dict) -> dict:
    names = ("answer_without", "answer_random", "answer_other", "unchanged")
    return {name: row[name] for name in names}


def labels_of(handle) -> list[dict]:
    """The same columns, from the labels of a handle."""
    return [
        {
            **{f"answer_{name}": getattr(each, name) for name in ("without", "random", "other")},
            "unchanged": list(each.unchanged),
        }
        for each in handle.trust
    ]


@pytest.mark.parametrize("choices", [None, ["Yes", "No"]])
def test_the_controls_of_a_chunk_are_those_of_one_call(oracle, tmp_path, choices):
    source, output = rows(tmp_path / "in.parquet"), tmp_path / "out.parquet"
    report = bulk.run(oracle, opened(source), output, chunk=3, choices=choices)
    made = table(output)
    parts = [
        oracle.ask(VECTORS[part], QUESTIONS[part], choices=choices)
        for part in (slice(3), slice(3, None))
    ]
    assert list(map(controls_of, made)) == labels_of(parts[0]) + labels_of(parts[1])
    assert made[0]["answer_other"] is not None
    assert made[1]["answer_other"] is None  # No other row of its chunk has three slots.
    shares = {
        name: sum(name in row["unchanged"] for row in made)
        / sum(row[f"answer_{name}"] is not None for row in made)
        for name in ("without", "random", "other")
    }
    assert report.unchanged == pytest.approx(shares)
    assert f"unchanged: {shares['without']:.0%} without vectors" in str(report)
    again = bulk.run(oracle, opened(source), output, chunk=3, choices=choices)
    assert again.unchanged == report.unchanged


def test_answers_and_controls_are_generated_together(oracle, tmp_path, monkeypatch):
    batches, verbalize = [], oracle._verbalizer.verbalize

    def counted(vectors, *args, **options):
        batches.append(len(vectors))
        return verbalize(vectors, *args, **options)

    monkeypatch.setattr(oracle._verbalizer, "verbalize", counted)
    vectors = [*torch.randn(6, 1, D, generator=GENERATOR)]
    source = rows(tmp_path / "in.parquet", vectors, [TONE] * 6)
    bulk.run(oracle, opened(source), tmp_path / "out.parquet", batch_size=64)
    # Six answers, one without vectors, six with random ones; the others' answers are there.
    assert batches == [13]
    bulk.run(oracle, opened(source), tmp_path / "plain.parquet", controls=False)
    assert batches == [13, 6]
    plain, whole = table(tmp_path / "plain.parquet"), table(tmp_path / "out.parquet")
    assert "unchanged" not in plain[0]
    assert [row["text"] for row in plain] == [row["text"] for row in whole]
    with pytest.raises(NLAError, match="controls"):
        bulk.run(oracle, opened(source), tmp_path / "plain.parquet")


def test_the_other_row_is_of_another_document(oracle, model, tmp_path):
    source, output = tmp_path / "in.jsonl", tmp_path / "out.parquet"
    source.write_text('{"text": "People in Paris speak"}\n{"text": "The cow lives"}\n')
    bulk.run(oracle, source, output, model=model, question=TONE)
    made = {(row["doc_id"], row["position"]): row for row in table(output)}
    texts = {place: row["text"] for place, row in made.items()}
    one, other = sorted({doc for doc, _ in made})
    last = max(position for doc, position in made if doc == other)
    for (doc, position), row in made.items():
        place = (other, min(position, last)) if doc == one else (one, position)
        assert row["answer_other"] == texts[place]


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

    def refused(message, nla, source, error=NLAError, **options):
        with pytest.raises(error, match=re.escape(message)):
            bulk.run(nla, source, output, **options)

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
    assert all(row["answer_without"] is not None for row in table(output))
    chosen = tmp_path / "chosen.parquet"
    words[2] = str(chosen)
    words += ["--choices", "Yes,No", "--no-controls", "--layer", "4"]
    assert CliRunner().invoke(cli.app, words).exit_code == 0
    assert [sorted(dict(row["probabilities"])) for row in table(chosen)] == [["No", "Yes"]] * 5
    model = tiny.load()[0]
    oracle = NLA.on(model, av=tiny.paths()["oracle"])
    asked = oracle.ask(VECTORS, QUESTIONS, choices=["Yes", "No"], layer=4)
    assert "unchanged" not in table(chosen)[0]
    assert [row["text"] for row in table(chosen)] == asked.text
    words[-1] = "2"
    assert "trained on layer 3, 4" in str(CliRunner().invoke(cli.app, words).exception)
