"""Activations and labels to train on: the published columns, by document, resumable."""

import functools
import importlib
import json
import operator
import random
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from typer.testing import CliRunner

from nnsight_nla import Checkpoint, InjectionError, NLAError, bulk, cli, tiny, training
from nnsight_nla.bulk.finished_file import read_note
from nnsight_nla.bulk.residuals import ItemResiduals, Prefixes, ResidualReader
from nnsight_nla.bulk.sources import Item
from nnsight_nla.bulk.token_selection import parse_positions
from nnsight_nla.tiny.documents import sample
from nnsight_nla.training.published import is_held_out
from tutorials.reference import families

RNG = random.Random(2)
TEXTS = [sample(RNG, "Paris", "cheerful").text for _ in range(30)]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    path = tmp_path_factory.mktemp("corpus") / "corpus.jsonl"
    records = [{"doc_id": f"doc-{i}", "text": text} for i, text in enumerate(TEXTS)]
    records.insert(7, {"doc_id": "bad", "text": None})
    path.write_text("".join(json.dumps(record) + "\n" for record in records), "utf-8")
    return path


def extract(pair, corpus, output, **options):
    model, nla = pair
    settings = {"checkpoint": nla.checkpoint, "positions": "random:3", "chunk": 8, **options}
    return bulk.extract(model, corpus, output, **settings)


def rows(path):
    return pq.read_table(path).to_pylist()


def test_rows_have_the_published_columns_and_the_targets_residuals(pair, corpus, tmp_path):
    model, nla = pair
    output = tmp_path / "rows.parquet"
    report = extract(pair, corpus, output)
    found = rows(output)
    assert (report.rows, report.errors) == (len(found), 1) == (90, 1)
    assert pq.read_schema(output).field("activation_vector").type.list_size == 128
    assert list(found[0]) == [
        "doc_id", "position", "n_raw_tokens", "token", "activation_layer",
        "detokenized_text_truncated", "activation_vector",
    ]  # fmt: skip
    for row in found[:9]:
        text = TEXTS[int(row["doc_id"].removeprefix("doc-"))]
        with model.trace(text):
            residual = nla.layer(model).output[0, row["position"]].detach().save()
        assert np.allclose(row["activation_vector"], residual.numpy(), atol=2e-5)
        assert text.startswith(row["detokenized_text_truncated"])
        # The prefix is what the activation came from: it tokenizes to exactly its tokens.
        ids = model.tokenizer(row["detokenized_text_truncated"])["input_ids"]
        assert len(ids) == row["n_raw_tokens"] == row["position"] + 1
        assert row["activation_layer"] == nla.checkpoint.layer
    (bad,) = rows(tmp_path / "rows.errors.parquet")
    assert (bad["doc_id"], bad["activation_vector"]) == ("bad", None)
    assert bad["error"] == "its 'text' is of type NoneType, not a string"
    sidecar = yaml.safe_load((tmp_path / "rows.parquet.nla_meta.yaml").read_text("utf-8"))
    assert sidecar["kind"] == "nla_dataset"
    assert "role" not in sidecar
    assert sidecar["extraction"]["norm"] == "none"
    loaded = Checkpoint.load(str(output))
    assert (loaded.layer, loaded.template) == (nla.checkpoint.layer, nla.checkpoint.template)


def test_an_interrupted_extraction_goes_on_to_the_same_bytes(pair, corpus, tmp_path, monkeypatch):
    whole, cut = tmp_path / "whole.parquet", tmp_path / "cut.parquet"
    splits = {"train": 0.6, "test": 0.4}
    extract(pair, corpus, whole, splits=splits)
    from nnsight_nla.bulk.chunk_store import ChunkStore

    write = ChunkStore.write

    def stops(self, number, parts):
        if number == 2:
            raise KeyboardInterrupt
        return write(self, number, parts)

    monkeypatch.setattr(ChunkStore, "write", stops)
    with pytest.raises(KeyboardInterrupt):
        extract(pair, corpus, cut, splits=splits)
    monkeypatch.undo()
    assert extract(pair, corpus, cut, splits=splits).resumed == 2
    for part in ("train", "test", "errors"):
        first, second = (tmp_path / f"{name}.{part}.parquet" for name in ("whole", "cut"))
        assert first.read_bytes() == second.read_bytes()
    with pytest.raises(NLAError, match=r"splits\.train: 0\.6 before, 0\.5 now"):
        extract(pair, corpus, cut, splits={"train": 0.5, "test": 0.5})


def test_splits_are_by_document_and_do_not_coincide_with_what_training_holds_out(
    pair, corpus, tmp_path
):
    extract(pair, corpus, tmp_path / "all.parquet", seed=1)
    extract(pair, corpus, tmp_path / "r.parquet", seed=1, splits={"train": 0.5, "test": 0.5})
    parts = [rows(tmp_path / f"r.{name}.parquet") for name in ("train", "test")]
    documents = [{row["doc_id"] for row in part} for part in parts]
    assert documents[0] & documents[1] == set()
    assert documents[0] | documents[1] == {f"doc-{i}" for i in range(30)}
    assert min(map(len, documents)) >= 8
    key = lambda row: (row["doc_id"], row["position"])  # noqa: E731
    assert sorted(functools.reduce(operator.iadd, parts, []), key=key) == sorted(
        rows(tmp_path / "all.parquet"), key=key
    )
    for each in documents:
        assert {is_held_out(name, 0.5) for name in each} == {True, False}


def test_shards_of_an_extraction_merge(pair, corpus, tmp_path):
    extract(pair, corpus, tmp_path / "all.parquet")
    parts = [tmp_path / f"{part}.parquet" for part in (1, 2)]
    for number, part in enumerate(parts, start=1):
        extract(pair, corpus, part, shard=f"{number}/2")
    assert bulk.merge(parts, tmp_path / "merged.parquet") == (90, 1)
    assert (tmp_path / "merged.parquet").read_bytes() == (tmp_path / "all.parquet").read_bytes()


def test_what_does_not_fit_is_refused(pair, corpus, tmp_path):
    model, _nla = pair
    output = tmp_path / "rows.parquet"
    with pytest.raises(NLAError, match="shares above 0 that add up to 1"):
        extract(pair, corpus, output, splits={"train": 0.5})
    narrow = training.describe(model.tokenizer, layer=3, d_model=64)
    with pytest.raises(InjectionError, match="has d_model 128, the checkpoint says 64"):
        extract(pair, corpus, output, checkpoint=narrow)
    np.save(tmp_path / "v.npy", torch.zeros(2, 128).numpy())
    with pytest.raises(NLAError, match="holds vectors already"):
        extract(pair, tmp_path / "v.npy", output)
    with pytest.raises(NLAError, match=r"Row 'bad': its 'text' is of type NoneType"):
        extract(pair, corpus, output, strict=True)


# Labels.


@pytest.fixture(scope="module")
def extracted(pair, corpus, tmp_path_factory):
    output = tmp_path_factory.mktemp("extracted") / "rows.parquet"
    extract(pair, corpus, output)
    return output


def about(row):
    assert row["activation_vector"].shape == (128,)
    return f"About {row['token'].strip()}." if row["position"] % 2 else None


def test_labels_of_a_function_are_rows_to_train_on(extracted, tmp_path):
    output = tmp_path / "labelled.parquet"
    report = bulk.label(extracted, output, by=about, workers=3, chunk=7)
    before, after = rows(extracted), rows(output)
    expected = [{**row, "api_explanation": about(numpy(row))} for row in before]
    assert after == [row for row in expected if row["api_explanation"]]
    unlabelled = rows(tmp_path / "labelled.errors.parquet")
    assert report.errors == len(unlabelled) == len(before) - len(after) > 0
    assert {row["error"] for row in unlabelled} == {"it has no label"}
    from nnsight_nla.training.published import Published

    held = list(Published(output).batches(128))
    assert sum(len(batch.names) for batch in held) == len(after)
    assert held[0].responses[0] == f"<explanation>\n{after[0]['api_explanation']}\n</explanation>"


def numpy(row):
    return {**row, "activation_vector": np.asarray(row["activation_vector"])}


def test_labelling_goes_on_where_the_function_failed(extracted, tmp_path):
    asked = []

    def flaky(row):
        asked.append((row["doc_id"], row["position"]))
        if len(asked) == 50:
            raise ConnectionError("the API is gone")
        return "A text."

    output, whole = tmp_path / "labelled.parquet", tmp_path / "whole.parquet"
    with pytest.raises(NLAError, match=r"stopped with ConnectionError: the API is gone") as caught:
        bulk.label(extracted, output, by=flaky, chunk=20)
    assert isinstance(caught.value.__cause__, ConnectionError)
    before = len(asked)
    assert bulk.label(extracted, output, by=flaky, chunk=20).resumed == 2
    assert len(asked) - before == 90 - 40  # No finished chunk was asked about again.
    bulk.label(extracted, whole, by=flaky, chunk=20)
    assert output.read_bytes() == whole.read_bytes()


def scripted(tmp_path, monkeypatch, text, name="scripted"):
    """A function of a module of the user's own; the old one fails at its row 50."""
    (tmp_path / f"{name}.py").write_text(
        f"from itertools import count\nTEXT = {text!r}\ncalls = count(1)\n"
        "def label(row):\n"
        "    if next(calls) == 50 and TEXT == 'Old.':\n"
        "        raise ConnectionError('the API is gone')\n"
        "    return TEXT\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.delitem(sys.modules, name, raising=False)
    importlib.invalidate_caches()
    return importlib.import_module(name).label


def test_labels_of_an_edited_function_are_not_mixed_with_the_earlier_ones(
    extracted, tmp_path, monkeypatch
):
    output = tmp_path / "labelled.parquet"
    with pytest.raises(NLAError, match="the API is gone"):
        bulk.label(extracted, output, by=scripted(tmp_path, monkeypatch, "Old."), chunk=20)
    edited = scripted(tmp_path, monkeypatch, "New.")
    with pytest.raises(NLAError) as caught:
        bulk.label(extracted, output, by=edited, chunk=20)
    message = str(caught.value)
    assert message.startswith(
        f"{output} was labelled by an earlier version of scripted:label:\n  uses.TEXT: '"
    )
    assert message.endswith(
        "\nPass edited='accept' to keep those labels and record that, choose another output, or "
        "delete it to start over."
    )
    assert not output.exists()
    with pytest.raises(NLAError, match=r"edited='yes': expected 'refuse' or 'accept'\."):
        bulk.label(extracted, output, by=edited, chunk=20, edited="yes")
    # Accepted: the finished chunks keep their labels, and the output says of which functions.
    assert bulk.label(extracted, output, by=edited, chunk=20, edited="accept").resumed == 2
    assert [row["api_explanation"] for row in rows(output)] == ["Old."] * 40 + ["New."] * 50
    labels = read_note(output)["manifest"]["labels"]
    (earlier,) = labels["earlier"]
    assert earlier["code"] == labels["code"]
    assert earlier["uses"]["TEXT"] != labels["uses"]["TEXT"]
    # The finished file is that of this function; an edited one is refused again.
    assert bulk.label(extracted, output, by=edited, chunk=20).chunks == 0
    again = scripted(tmp_path, monkeypatch, "Newer.")
    with pytest.raises(NLAError, match="was labelled by an earlier version"):
        bulk.label(extracted, output, by=again, chunk=20)


def test_ready_made_labels_are_found_by_document_and_position(extracted, tmp_path):
    made, output = tmp_path / "made.parquet", tmp_path / "labelled.parquet"
    bulk.label(extracted, made, by=about)
    bulk.label(extracted, output, by=made)
    assert rows(output) == rows(made)
    with pytest.raises(NLAError, match="labels need doc_id and n_raw_tokens, and one of"):
        bulk.label(extracted, tmp_path / "other.parquet", by=extracted)
    with pytest.raises(NLAError, match="The label of row 0 is a int, expected a string"):
        bulk.label(extracted, tmp_path / "other.parquet", by=lambda _: 3)


def test_the_command_line_extracts_and_labels(pair, corpus, tmp_path, monkeypatch):
    monkeypatch.setattr("nnsight_nla.tiny.load", lambda: pair)
    output = tmp_path / "rows.parquet"

    def command(*arguments):
        ran = CliRunner().invoke(cli.app, list(map(str, arguments)))
        if isinstance(ran.exception, NLAError):
            raise ran.exception
        assert ran.exit_code == 0, ran.output
        return ran.stdout

    command("extract", corpus, tmp_path / "next.parquet", "--next-tokens", 2, "--positions", "last")
    assert {len(row["next_tokens"]) for row in rows(tmp_path / "next.parquet")} == {2}
    told = json.loads(command("extract", corpus, output, "--splits", "a=0.5,b=0.5", "--json"))
    assert told["outputs"] == [str(tmp_path / "rows.a.parquet"), str(tmp_path / "rows.b.parquet")]
    assert told["rows"] > 200
    labels = [tmp_path / "rows.a.parquet", tmp_path / "l.parquet", "--by", f"{__name__}:about"]
    monkeypatch.setitem(
        __import__("sys").modules, __name__, __import__("types").SimpleNamespace(about=about)
    )
    assert "with an error" in command("label", *labels)
    with pytest.raises(NLAError, match="expected module:function of a module that can be imp"):
        command("label", *labels[:2], "--by", "nowhere:f")
    with pytest.raises(NLAError, match="expected names and shares"):
        command("extract", corpus, output, "--splits", "a")
    target = json.loads(
        command("extract", corpus, tmp_path / "t.parquet", "--layer", 1, "--positions", "last",
                "--target", pair[0].repo_id, "--json")
    )  # fmt: skip
    assert (target["rows"], target["errors"]) == (30, 1)
    assert {row["activation_layer"] for row in rows(tmp_path / "t.parquet")} == {1}
    forms = ["--marker", "~", "--template", "What is <v>{injection_char}</v>?"]
    command("extract", corpus, tmp_path / "m.parquet", "--positions", "last", *forms)
    made = Checkpoint.load(tmp_path / "m.parquet")
    assert (made.marker, made.template, made.system) == ("~", forms[-1], None)
    command("extract", corpus, tmp_path / "s.parquet", "--positions", "last", "--system", "")
    assert Checkpoint.load(tmp_path / "s.parquet").system == ""
    with pytest.raises(NLAError, match=r"--marker, --template: .* already defines it"):
        command("extract", corpus, tmp_path / "n.parquet", "--av", tiny.paths()["av"], *forms)
    with pytest.raises(NLAError, match=r"No layer is given\. Add --layer K"):
        command("extract", corpus, tmp_path / "u.parquet", "--target", pair[0].repo_id)


LENGTH, PLACES = 40_000, 1_000


def long_documents(monkeypatch, pair, folder: Path, count: int) -> Path:
    """Long documents, and a reader that selects many places of each without running the target."""
    file = folder / f"{count}.jsonl"
    with file.open("w") as stream:
        for number in range(count):
            text = "".join(random.Random(number).choices("abcdefgh ", k=LENGTH))
            stream.write(json.dumps({"id": f"{number}", "text": text}) + "\n")
    ends = range(LENGTH // PLACES, LENGTH + 1, LENGTH // PLACES)

    def read(self, items):
        vectors = torch.zeros(PLACES, pair[1].checkpoint.d_model)
        return [
            ItemResiduals(each, list(ends), ["t"] * PLACES, Prefixes(each.value, ends), vectors)
            for each in items
        ]

    monkeypatch.setattr(ResidualReader, "read", read)
    return file


def test_memory_does_not_grow_with_the_number_of_long_documents(pair, tmp_path, monkeypatch):
    """Twenty megabytes of prefixes a document; all of a chunk's would be half a gigabyte."""
    peaks = {}
    for count in (3, 24):
        source = long_documents(monkeypatch, pair, tmp_path, count)
        pool, usual = pa.proxy_memory_pool(pa.default_memory_pool()), pa.default_memory_pool()
        pa.set_memory_pool(pool)
        try:
            report = extract(pair, source, tmp_path / f"{count}.parquet", chunk=64)
        finally:
            pa.set_memory_pool(usual)
        assert (report.rows, report.chunks) == (count * PLACES, 1)
        peaks[count] = pool.max_memory()
    print({count: f"{peak / 2**20:.0f} MiB" for count, peak in peaks.items()})
    # A document has 0.5 MiB of vectors and 20 MiB of text. How much of it is alive at the peak
    # differs with the machine and with what Arrow's threads do.
    assert peaks[24] - peaks[3] < (24 - 3) * 2 * 2**20
    assert peaks[24] < 120 * 2**20
    table = pq.ParquetFile(tmp_path / "24.parquet").read_row_group(0)
    texts = table["detokenized_text_truncated"].to_pylist()
    assert [len(text) for text in texts[:3]] == [40, 80, 120]


def test_shards_of_long_documents_merge_to_the_same_bytes(pair, tmp_path, monkeypatch):
    source = long_documents(monkeypatch, pair, tmp_path, 5)
    extract(pair, source, tmp_path / "whole.parquet", chunk=2)
    shards = [tmp_path / f"s{number}.parquet" for number in (1, 2)]
    for number, output in enumerate(shards, start=1):
        extract(pair, source, output, chunk=2, shard=f"{number}/2")
    bulk.merge(shards, tmp_path / "merged.parquet")
    assert (tmp_path / "merged.parquet").read_bytes() == (tmp_path / "whole.parquet").read_bytes()
    assert pq.ParquetFile(tmp_path / "whole.parquet").num_row_groups > 3


def test_the_targets_own_next_tokens(pair, corpus, tmp_path):
    """Those of a plain forward, at each position, in a batch of unequal documents."""
    model, _ = pair
    plain, output = tmp_path / "plain.parquet", tmp_path / "rows.parquet"
    extract(pair, corpus, plain)
    assert "next_tokens" not in pq.read_schema(plain).names
    extract(pair, corpus, output, next_tokens=3)
    for before, row in zip(rows(plain), rows(output), strict=True):
        ids = model.tokenizer(row["detokenized_text_truncated"], return_tensors="pt")["input_ids"]
        with torch.no_grad():
            likely = model._module(input_ids=ids).logits[0, -1].topk(3).indices.tolist()
        assert row.pop("next_tokens") == [model.tokenizer.decode([token]) for token in likely]
        vectors = before.pop("activation_vector"), row.pop("activation_vector")
        assert np.allclose(*vectors, atol=2e-5)
        assert row == before
    with pytest.raises(NLAError, match="next_tokens: 3 before, None now"):
        extract(pair, corpus, output)


def test_next_tokens_stay_when_rows_are_labelled(pair, corpus, tmp_path):
    output, labelled = tmp_path / "rows.parquet", tmp_path / "labelled.parquet"
    extract(pair, corpus, output, next_tokens=2)
    bulk.label(output, labelled, by=lambda row: f"Next: {', '.join(row['next_tokens'])}")
    for row in rows(labelled):
        assert row["api_explanation"] == f"Next: {', '.join(row['next_tokens'])}"


@pytest.mark.parametrize("number", [-1, 1.5, True, None, 10**6])
def test_a_number_of_next_tokens_that_there_is_not(pair, corpus, tmp_path, number):
    with pytest.raises(NLAError, match="expected a whole number from 0 to 1496, the number of the"):
        extract(pair, corpus, tmp_path / "rows.parquet", next_tokens=number)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gptj", "gemma2", "cohere", "mamba", "bart"])
def test_next_tokens_of_every_kind_of_head(family):
    """With a bias, a scale, a cap, and tied to the embedding."""
    with families.quiet():
        module = families.smallest(family)
        reader = ResidualReader(
            families.wrapped(module), families.K, parse_positions("all"), next_tokens=4
        )
        found = reader.read([Item(i, f"{i}", text) for i, text in enumerate(("a tiny text", "a"))])
        for each, text in zip(found, ("a tiny text", "a"), strict=True):
            ids = torch.tensor([families.tokenizer().encode(text)])
            with torch.no_grad():
                logits = module(input_ids=ids).logits[0]
            decode = families.tokenizer().decode
            expected = [[decode([t]) for t in row] for row in logits.topk(4).indices.tolist()]
            assert each.next_tokens == expected
