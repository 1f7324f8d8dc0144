"""A data set in, explanations out: what the rows hold, and what becomes of bad ones."""

import io
import json
import random
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from typer.testing import CliRunner

from nnsight_nla import NLA, Checkpoint, HostError, InjectionError, NLAError, Sampling, bulk, cli
from nnsight_nla.bulk import residuals
from nnsight_nla.bulk.pipeline import Job
from nnsight_nla.bulk.residuals import ResidualReader
from nnsight_nla.bulk.sources import Item
from nnsight_nla.bulk.token_selection import parse_positions
from nnsight_nla.tiny.documents import sample

SHORT = Sampling(max_new_tokens=6)
RNG = random.Random(4)
TEXTS = [
    sample(RNG, subject, "gloomy").text for subject in ("Paris", "Rome", "cow", "Paris", "Rome")
]


def lines(folder: Path, *records: object) -> Path:
    path = folder / "in.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records), "utf-8")
    return path


def table(path: Path) -> list[dict]:
    return pq.read_table(path).to_pylist()


def test_a_row_holds_what_reading_the_text_by_hand_gives(model, nla, tmp_path):
    source = lines(tmp_path, *({"id": f"d{i}", "text": text} for i, text in enumerate(TEXTS)))
    output = tmp_path / "out.parquet"
    report = bulk.run(
        nla, source, output, model=model, positions="every:6", vectors=True, chunk=2, batch_size=4
    )
    rows = table(output)
    assert report.rows == len(rows)
    assert (report.errors, report.chunks, report.resumed) == (0, 3, 0)
    for number, text in enumerate(TEXTS):
        (span,) = nla.positions(model, text)
        places = list(range(5, len(span.ids), 6))
        with model.trace(text):
            residual = nla.layer(model).output[0][places].detach().save()
        thoughts = nla.explain(residual, tokens=[span.tokens[i] for i in places], positions=places)
        scores = nla.score(thoughts).cosine
        mine = [row for row in rows if row["doc_id"] == f"d{number}"]
        assert [row["position"] for row in mine] == places
        for row, place, thought in zip(mine, range(len(places)), thoughts, strict=True):
            assert row["token"] == thought.tokens
            assert row["text"] == thought.text
            assert row["norm"] == pytest.approx(residual[place].norm().item(), rel=1e-5)
            assert row["reconstruction_cosine"] == pytest.approx(scores[place].item(), abs=1e-4)
            assert text.startswith(row["context"])
            assert row["context"].endswith(row["token"].strip())
            assert row["snippets"] == list(thought.snippets)
            assert (row["sample"], row["seed"], row["error"]) == (0, 0, None)
            assert row["finish"] == "tag"
            assert row["warnings"] == list(thought.warnings)
            assert np.allclose(row["activation_vector"], residual[place].numpy(), atol=2e-5)
    again = bulk.run(nla, source, output, model=model, positions="every:6", vectors=True, chunk=2)
    assert (again.rows, again.chunks, again.resumed) == (report.rows, 0, 3)
    found = Checkpoint.load(str(output))  # The sidecar is one of the projects' own.
    assert (found.layer, found.d_model, found.marker_id) == (3, 128, nla.checkpoint.marker_id)


def test_its_own_output_is_an_input_with_the_same_texts(model, nla, tmp_path):
    source = lines(tmp_path, *({"text": text} for text in TEXTS))
    first, second = tmp_path / "first.parquet", tmp_path / "second.parquet"
    options = {"sampling": SHORT, "vectors": True}
    bulk.run(nla, source, first, model=model, positions="last", **options)
    bulk.run(nla, first, second, **options)
    kept = ("doc_id", "position", "token", "context", "norm", "text", "activation_vector")
    for row, again in zip(table(first), table(second), strict=True):
        assert [row[name] for name in kept] == [again[name] for name in kept]


def test_bad_vectors_are_rows_with_their_error_and_the_others_get_their_text(nla, tmp_path):
    good = torch.randn(128).tolist()
    cells = [good, [0.0] * 128, [float("nan"), *good[1:]], good[:5], None, good]
    path = tmp_path / "v.parquet"
    pq.write_table(pa.table({"activation_vector": cells, "doc_id": list("abcdef")}), path)
    report = bulk.run(nla, path, tmp_path / "out.parquet", sampling=SHORT, score=False)
    rows = table(tmp_path / "out.parquet")
    assert report.errors == 4
    assert [row["doc_id"] for row in rows] == list("abcdef")
    assert [row["text"] is None for row in rows] == [False, True, True, True, True, False]
    assert (
        rows[0]["text"] == rows[5]["text"] == nla.explain(torch.tensor(good), sampling=SHORT).text
    )
    for row, part in zip(
        rows[1:5],
        ("its vector is zero", "NaN", "has 5 numbers, the verbalizer reads 128", "has no vector"),
        strict=True,
    ):
        assert part in row["error"]
    with pytest.raises(NLAError, match=r"Row 'b': its vector is zero.* or pass strict=False"):
        bulk.run(nla, path, tmp_path / "strict.parquet", sampling=SHORT, score=False, strict=True)


def test_bad_documents_are_rows_and_documents_without_a_match_are_none(model, nla, tmp_path):
    source = lines(
        tmp_path,
        {"id": "good", "text": "People in Paris speak"},
        {"id": "number", "text": 3},
        {"id": "none", "text": "The cow lives in the"},
        {"id": "long", "text": "Paris " * 600},
    )
    options = {"model": model, "positions": "regex:Paris", "sampling": SHORT}
    bulk.run(nla, source, tmp_path / "out.parquet", **options)
    rows = table(tmp_path / "out.parquet")
    assert [row["doc_id"] for row in rows] == ["good", "number", "long"]
    assert rows[0]["token"].strip() == "Paris"
    assert "its 'text' is of type int, not a string" in rows[1]["error"]
    limit = model._module.config.max_position_embeddings
    assert (
        f"the target reads {limit}; read its beginning with max_tokens={limit}" in rows[2]["error"]
    )
    bulk.run(nla, source, tmp_path / "cut.parquet", max_tokens=4, **options)
    cut = table(tmp_path / "cut.parquet")
    assert [row["doc_id"] for row in cut] == ["good", "number", "long", "long", "long", "long"]


def test_samples_are_rows_and_a_draw_depends_on_its_vector_only(nla, tmp_path):
    vectors = torch.randn(5, 128)
    np.save(tmp_path / "v.npy", vectors.numpy())
    warm = Sampling(temperature=1.0, max_new_tokens=5, seed=7)
    bulk.run(nla, tmp_path / "v.npy", tmp_path / "a.parquet", samples=2, sampling=warm, chunk=2)
    rows = table(tmp_path / "a.parquet")
    assert [(row["doc_id"], row["sample"]) for row in rows] == [
        (str(number), sample) for number in range(5) for sample in range(2)
    ]
    assert {row["seed"] for row in rows} == {7}
    expected = nla.explain(vectors, samples=2, sampling=warm).samples
    assert [row["text"] for row in rows] == [text for pair in expected for text in pair]
    with pytest.raises(NLAError, match="temperature"):
        bulk.run(nla, tmp_path / "v.npy", tmp_path / "b.parquet", samples=2, sampling=SHORT)
    assert not (tmp_path / "b.parquet.parts").exists()


def test_a_text_that_cannot_be_turned_back_has_no_score(nla, tmp_path):
    np.save(tmp_path / "v.npy", torch.randn(3, 128).numpy())
    options = {"sampling": Sampling(max_new_tokens=1)}
    bulk.run(nla, tmp_path / "v.npy", tmp_path / "out.parquet", **options)
    for row in table(tmp_path / "out.parquet"):
        assert row["finish"] == "length"
        assert (row["reconstruction_cosine"] is None) == (not row["text"].strip())


def test_padding_on_the_right_changes_no_residual(model, nla):
    items = [Item(row, str(row), text) for row, text in enumerate(TEXTS)]
    reader = ResidualReader(model, nla.checkpoint.layer, parse_positions("all"))
    for found in reader.read(items):
        with model.trace(found.item.value):
            alone = nla.layer(model).output[0].detach().save()
        assert torch.allclose(found.vectors, alone, atol=2e-5)


def test_documents_share_a_forward_pass_up_to_its_size(model, nla, monkeypatch):
    monkeypatch.setattr(residuals, "BATCH_TOKENS", 64)
    sizes = []
    trace = ResidualReader._trace

    def counted(self, ids, row, column):
        sizes.append(tuple(ids.shape))
        return trace(self, ids, row, column)

    monkeypatch.setattr(ResidualReader, "_trace", counted)
    items = [Item(row, str(row), text) for row, text in enumerate(TEXTS)]
    found = ResidualReader(model, nla.checkpoint.layer, parse_positions("last")).read(items)
    assert [each.item.row for each in found] == list(range(len(TEXTS)))
    assert len(sizes) > 1
    assert all(rows == 1 or rows * width <= 64 for rows, width in sizes)


def test_the_size_of_a_batch_is_recorded_and_taken_up_again(nla, tmp_path):
    np.save(tmp_path / "v.npy", torch.randn(5, 128).numpy())
    nla.batch_size = 3
    run = [nla, tmp_path / "v.npy", tmp_path / "out.parquet"]
    bulk.run(*run, sampling=SHORT, score=False)
    nla.batch_size = 64
    assert bulk.run(*run, sampling=SHORT, score=False).chunks == 0
    assert nla.batch_size == 3
    nla.batch_size = 64


def test_a_host_that_is_away_is_waited_for_and_one_step_is_not_done_twice(
    nla, tmp_path, monkeypatch
):
    monkeypatch.setattr(nla, "remote", True)
    monkeypatch.setattr("nnsight_nla.bulk.retry._LONGEST_WAIT", 0.01)
    np.save(tmp_path / "v.npy", torch.randn(4, 128).numpy())
    fails = iter([True, True, False])
    resolve, asked = NLA.resolve, []

    def flaky(self, handles=None):
        asked.append([id(handle) for handle in handles])
        if next(fails, False):
            raise HostError("gone") from ConnectionRefusedError("refused")
        resolve(self, handles)

    monkeypatch.setattr(NLA, "resolve", flaky)
    run = [nla, tmp_path / "v.npy", tmp_path / "out.parquet"]
    assert bulk.run(*run, sampling=SHORT, score=False).errors == 0
    assert len(asked) == 3
    assert asked[0] == asked[1] == asked[2]  # The same handles: what had settled stays.

    def broken(self, handles=None):
        raise HostError("the request itself is wrong")

    monkeypatch.setattr(NLA, "resolve", broken)
    with pytest.raises(HostError, match="itself is wrong"):
        bulk.run(nla, tmp_path / "v.npy", tmp_path / "other.parquet", sampling=SHORT)


def test_what_stops_the_reading_thread_stops_the_run(model, nla, tmp_path, monkeypatch):
    source = lines(tmp_path, *({"text": text} for text in TEXTS))
    calls = []

    def fail(self, ids, row, column):
        calls.append(1)
        if len(calls) == 3:
            raise RuntimeError("out of memory")
        return trace(self, ids, row, column)

    trace = ResidualReader._trace
    monkeypatch.setattr(ResidualReader, "_trace", fail)
    output = tmp_path / "out.parquet"
    options = {"model": model, "positions": "last", "sampling": SHORT, "chunk": 1}
    with pytest.raises(RuntimeError, match="out of memory"):
        bulk.run(nla, source, output, **options)
    assert not output.exists()
    assert bulk.run(nla, source, output, **options).resumed == 2


def test_texts_need_a_target_and_one_that_can_be_traced(model, nla, tmp_path):
    source = lines(tmp_path, {"text": "hi"})
    with pytest.raises(NLAError, match=r"in\.jsonl holds texts, .* Pass the target: run\("):
        bulk.run(nla, source, tmp_path / "out.parquet")
    with pytest.raises(InjectionError, match="Expected an nnsight TransformersModel"):
        bulk.run(nla, source, tmp_path / "out.parquet", model=torch.nn.Linear(2, 2))
    with pytest.raises(NLAError, match="shard='3/2': expected \"i/n\""):
        bulk.run(nla, source, tmp_path / "out.parquet", model=model, shard="3/2")
    assert list(tmp_path.iterdir()) == [source]


class Terminal(io.StringIO):
    """Standard error that somebody watches."""

    def isatty(self) -> bool:
        return True


def test_the_bar_is_shown_on_a_terminal_only(nla, tmp_path, monkeypatch, capsys):
    np.save(tmp_path / "v.npy", torch.randn(4, 128).numpy())
    bulk.run(nla, tmp_path / "v.npy", tmp_path / "a.parquet", sampling=SHORT, score=False)
    assert capsys.readouterr() == ("", "")
    monkeypatch.setattr("nnsight_nla.progress._DELAY", 0)
    monkeypatch.setattr("nnsight_nla.progress._INTERVAL", 0)
    monkeypatch.setattr("sys.stderr", terminal := Terminal())
    bulk.run(nla, tmp_path / "v.npy", tmp_path / "b.parquet", sampling=SHORT, score=False)
    shown = terminal.getvalue()
    assert capsys.readouterr().out == ""
    assert "explaining" in shown
    assert "4/4" in shown
    assert "vector/s" in shown
    assert " rows/s" in shown
    hidden = {"sampling": SHORT, "score": False, "progress": False}
    bulk.run(nla, tmp_path / "v.npy", tmp_path / "c.parquet", **hidden)
    assert terminal.getvalue() == shown


def test_a_host_that_is_away_is_named_next_to_the_bar(nla, tmp_path, monkeypatch):
    monkeypatch.setattr(nla, "remote", True)
    monkeypatch.setattr("nnsight_nla.bulk.retry._LONGEST_WAIT", 0.01)
    monkeypatch.setattr("sys.stderr", terminal := Terminal())
    np.save(tmp_path / "v.npy", torch.randn(2, 128).numpy())
    resolve, fails = NLA.resolve, iter([True])

    def flaky(self, handles=None):
        if next(fails, False):
            raise HostError("gone") from ConnectionRefusedError("refused")
        assert "the host is away; trying again in 0 s" in terminal.getvalue()
        resolve(self, handles)

    monkeypatch.setattr(NLA, "resolve", flaky)
    bulk.run(nla, tmp_path / "v.npy", tmp_path / "out.parquet", sampling=SHORT, score=False)


def test_a_job_is_a_plain_record():
    assert Job.__dataclass_params__.frozen


# The command line.


def command(*arguments: object) -> str:
    ran = CliRunner().invoke(cli.app, [str(each) for each in arguments])
    if ran.exception is not None and not isinstance(ran.exception, SystemExit):
        raise ran.exception
    assert ran.exit_code == 0, ran.output
    return ran.stdout


def test_shards_and_merge_from_the_command_line(tmp_path, pair, monkeypatch):
    monkeypatch.setattr("nnsight_nla.tiny.load", lambda: pair)
    source = lines(tmp_path, *({"name": f"n{i}", "body": text} for i, text in enumerate(TEXTS)))
    options = ["--text-column", "body", "--id-column", "name", "--positions", "last", "--json"]
    options += ["--max-new-tokens", 6, "--no-score", "--chunk", 1, "--seed", 5, "--batch-size", 8]
    told = json.loads(command("run", source, tmp_path / "all.parquet", *options))
    assert (told["rows"], told["errors"], told["chunks"]) == (5, 0, 5)
    parts = [tmp_path / "1.parquet", tmp_path / "2.parquet"]
    for number, part in enumerate(parts, start=1):
        command("run", source, part, *options, "--shard", f"{number}/2")
    assert "merged.parquet: 5 rows, 0 with an error" in command(
        "merge", *parts, tmp_path / "merged.parquet"
    )
    whole = (tmp_path / "all.parquet").read_bytes()
    assert (tmp_path / "merged.parquet").read_bytes() == whole
    rows = table(tmp_path / "all.parquet")
    assert [row["doc_id"] for row in rows] == [f"n{i}" for i in range(5)]
    assert {row["seed"] for row in rows} == {5}
    with pytest.raises(NLAError, match="--remote needs the verbalizer's name on the host"):
        command("run", source, tmp_path / "remote.parquet", *options, "--remote")
