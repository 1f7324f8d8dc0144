"""What is read: every form of input gives the same rows, from anywhere."""

import gzip
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from nnsight_nla import NLAError
from nnsight_nla.bulk.sources import Item, Source, open_source

TEXTS = [f"text {number}" for number in range(700)]


def everything(source: Source, size: int = 100) -> list[Item]:
    return [item for _, items in source.chunks(size, lambda _: True) for item in items]


@given(
    count=st.integers(0, 50), size=st.integers(1, 9), shards=st.integers(1, 4), known=st.booleans(),
    done=st.sets(st.integers(0, 20)),
)  # fmt: skip
def test_chunks_are_fixed_ranges_whoever_reads_them(count, size, shards, known, done):
    source = Source(
        "texts", {}, count if known else None,
        lambda start: iter(range(start, count)), lambda row, raw: Item(row, str(raw), raw),
    )  # fmt: skip
    found: dict[int, list[Item]] = {}
    for shard in range(shards):
        wanted = source.chunks(
            size, lambda number, shard=shard: number % shards == shard and number not in done
        )
        for number, items in wanted:
            assert number not in found
            found[number] = items
    chunks = -(-count // size)
    assert sorted(found) == [number for number in range(chunks) if number not in done]
    for number, items in found.items():
        rows = list(range(number * size, min((number + 1) * size, count)))
        assert [item.row for item in items] == [item.value for item in items] == rows


def forms_of_texts(folder):
    records = [{"id": f"d{number}", "body": text} for number, text in enumerate(TEXTS)]
    lines = "".join(json.dumps(record) + "\n" for record in records)
    (folder / "a.jsonl").write_text(lines.removesuffix("\n"), "utf-8")
    with gzip.open(folder / "a.jsonl.gz", "wt") as file:
        file.write(lines)
    pq.write_table(pa.Table.from_pylist(records), folder / "a.parquet", row_group_size=150)
    return [folder / name for name in ("a.jsonl", "a.jsonl.gz", "a.parquet")]


def test_every_form_of_texts_gives_the_same_rows(tmp_path):
    for path in forms_of_texts(tmp_path):
        source = open_source(path, text="body")
        items = everything(source)
        assert (source.kind, source.count) == ("texts", len(TEXTS))
        assert [item.value for item in items] == TEXTS
        assert [item.doc_id for item in items] == [f"d{number}" for number in range(len(TEXTS))]
        later = [number for number, _ in source.chunks(100, lambda number: number in (3, 6))]
        assert later == [3, 6]
        assert [item.value for item in map(source.item, [450], source.raw(450))] == ["text 450"]


def test_hugging_face_data_sets_on_disk_and_streamed_by_name(tmp_path):
    datasets = pytest.importorskip("datasets")
    held = datasets.Dataset.from_dict({"text": TEXTS[:30], "id": [f"d{i}" for i in range(30)]})
    held.save_to_disk(str(tmp_path / "saved"))
    datasets.DatasetDict({"train": held, "test": held.select(range(3))}).save_to_disk(
        str(tmp_path / "splits")
    )
    (tmp_path / "streamed").mkdir()
    held.to_json(str(tmp_path / "streamed" / "train.jsonl"))
    for name, split, count in (
        ("saved", None, 30), ("splits", "test", 3), ("splits", None, 30), ("streamed", None, 30),
    ):  # fmt: skip
        source = open_source(tmp_path / name, split=split)
        assert [item.value for item in everything(source, 7)] == TEXTS[:count]
        assert source.count == (None if name == "streamed" else count)
        again = open_source(tmp_path / name, split=split)
        assert source.identity == again.identity
    with pytest.raises(NLAError, match=r"no column 'body'; it has 'text', 'id'"):
        open_source(tmp_path / "saved", text="body")
    with pytest.raises(NLAError, match=r"split 'dev'\) could not be opened"):
        open_source(tmp_path / "splits", split="dev")


@pytest.mark.parametrize("form", ["saved", "streamed"])
def test_a_folder_of_hugging_faces_that_changes_is_found_out(tmp_path, form):
    datasets = pytest.importorskip("datasets")
    folder = tmp_path / "data"

    def write(texts):
        held = datasets.Dataset.from_dict({"text": texts})
        if form == "saved":
            held.save_to_disk(str(folder))
        else:
            folder.mkdir(exist_ok=True)
            held.to_json(str(folder / "train.jsonl"))

    write(TEXTS[:30])
    source = open_source(folder)
    source.check(thorough=True)
    (file,) = [*folder.glob("*.arrow"), *folder.glob("*.jsonl")]
    content = file.read_bytes()
    file.write_bytes(content.replace(b"text 7", b"tent 7"))  # Same size, same data set's name.
    with pytest.raises(NLAError, match=rf"{file.name} was changed while it was read"):
        source.check()
    assert open_source(folder).identity != source.identity
    file.write_bytes(content)
    assert open_source(folder).identity == source.identity


def test_without_the_package_the_error_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(NLAError, match=r"pip install 'nnsight-nla\[datasets\]'"):
        open_source("owner/name")


def test_every_form_of_vectors_gives_the_same_rows(tmp_path):
    vectors = torch.randn(600, 8)
    np.save(tmp_path / "a.npy", vectors.numpy())
    save_file({"W_dec": vectors, "b_dec": torch.zeros(8)}, tmp_path / "a.safetensors")
    lists = vectors.tolist()
    table = pa.table(
        {
            "activation_vector": pa.array(lists, pa.list_(pa.float32(), 8)),
            "n_raw_tokens": range(600),
        }
    )
    pq.write_table(table, tmp_path / "a.parquet")
    pq.write_table(pa.table({"activation_vector": lists}), tmp_path / "b.parquet")
    for name in ("a.npy", "a.safetensors", "a.parquet", "b.parquet"):
        source = open_source(tmp_path / name)
        items = everything(source, 64)
        assert (source.kind, source.count) == ("vectors", 600)
        assert torch.equal(torch.from_numpy(np.stack([item.value for item in items])), vectors)
        assert [item.doc_id for item in items][:2] == ["0", "1"]
        assert [item.row for _, items in source.chunks(64, lambda n: n == 9) for item in items] == [
            *range(576, 600)
        ]
    carried = everything(open_source(tmp_path / "a.parquet"))[5].carried
    assert carried["position"] == 4  # n_raw_tokens counts the token itself


def test_rows_that_cannot_be_used_say_why(tmp_path):
    path = tmp_path / "a.jsonl"
    lines = ['{"text": "good"}', "{", "[1]", '{"text": 3}', '{"body": ""}', '{"text": " "}', ""]
    path.write_text("\n".join([*lines, '{"text": "last"}']), "utf-8")
    items = everything(open_source(path))
    assert [item.value for item in items] == ["good", *[None] * 5, "last"]
    for item, part in zip(
        items[1:-1],
        (
            "line 2 is not JSON",
            "line 3 is a JSON list",
            "of type int",
            "missing",
            "empty",
        ),
        strict=True,
    ):
        assert part in item.error
    table = pa.table({"activation_vector": [[1.0, 2.0], None, [1.0, None]], "id": ["a", "b", "c"]})
    pq.write_table(table, tmp_path / "v.parquet")
    a, b, c = everything(open_source(tmp_path / "v.parquet"))
    assert (a.doc_id, a.value.tolist(), a.error) == ("a", [1.0, 2.0], None)
    assert b.error == "it has no vector"
    assert np.isnan(c.value).tolist() == [False, True]  # found when it is verbalized


def test_blank_lines_are_no_rows_and_do_not_change_the_numbers_of_others(tmp_path):
    path = tmp_path / "a.jsonl"
    for blank in ("\n", "\r\n", " \t\n", "\n\n\n"):
        lines = ['{"text": "a"}', "{", '{"text": "b"}']
        path.write_bytes((blank + f"\n{blank}".join(lines) + "\n" + blank).encode())
        for source in (open_source(path), open_source(compressed(path))):
            a, bad, b = items = everything(source, 2)
            assert (source.count, [item.row for item in items]) == (3, [0, 1, 2])
            assert (a.value, b.value) == ("a", "b")
            number = path.read_bytes().splitlines().index(b"{") + 1
            assert bad.error.startswith(f"line {number} is not JSON")
            assert [item.value for item in map(source.item, [2], source.raw(2))] == ["b"]
    path.write_text("\n \n")
    with pytest.raises(NLAError, match="is empty"):
        open_source(path)


def compressed(path):
    other = path.with_name("b.jsonl.gz")
    other.write_bytes(gzip.compress(path.read_bytes()))
    return other


BAD_LINES = {
    "deep": "[" * 100_000,
    "deep id": '{"id": ' + "[" * 900 + "]" * 900 + ', "text": "x"}',
    "surrogate in an id": '{"id": "\\ud800", "text": "x"}',
    "surrogate in a text": '{"id": "i", "text": "a \\udfff b"}',
    "a number of 5,000 digits": '{"id": ' + "9" * 5000 + ', "text": "x"}',
    "not UTF-8": b'{"id": "i", "text": "\xff"}',
    "NaN for a text": '{"id": NaN, "text": NaN}',
    "an object for a text": '{"id": {"a": 1}, "text": {"b": 2}}',
}


@pytest.mark.parametrize("name", BAD_LINES)
def test_a_bad_line_is_that_rows_error(tmp_path, name):
    bad = BAD_LINES[name]
    bad = bad if isinstance(bad, bytes) else bad.encode()
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "a"}\n' + bad + b'\n{"text": "b"}\n')
    a, row, b = everything(open_source(path))
    assert (a.value, b.value, row.row) == ("a", "b", 1)
    if name == "deep id":  # Deep, and still a name.
        return
    assert row.value is None
    assert row.error
    pa.array([row.doc_id, row.error], pa.string())  # Both can be written.


@given(st.text(alphabet=st.characters(), max_size=20), st.text(st.characters(), max_size=20))
def test_a_row_of_any_text_can_be_written(tmp_path_factory, name, text):
    path = tmp_path_factory.mktemp("any") / "a.jsonl"
    path.write_text(json.dumps({"id": name, "text": text}) + "\n")
    (item,) = everything(open_source(path))
    assert (item.value is None) == (item.error is not None)
    pa.array([item.doc_id, item.value, item.error], pa.string())
    if item.error is None:
        assert (item.doc_id, item.value) == (name, text)


def test_a_parquet_string_that_is_no_utf_8_is_that_rows_error(tmp_path):
    binary = pa.array([b"good", b"\xff", b"fine"])
    text = pa.Array.from_buffers(pa.string(), 3, binary.buffers())
    pq.write_table(pa.table({"text": text, "id": ["a", "b", "c"]}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"text": ["a", "b", "c"], "id": text}), tmp_path / "b.parquet")
    for name in ("a", "b"):
        first, bad, last = everything(open_source(tmp_path / f"{name}.parquet"))
        assert first.error is last.error is None
        assert bad.error is not None or name == "b"
        pa.array([bad.doc_id], pa.string())


def test_where_a_vector_was_read_is_left_out_where_it_cannot_be_written(tmp_path):
    record = {"activation_vector": [1.0], "position": 2**70, "token": 7, "context": "\ud800"}
    (tmp_path / "a.jsonl").write_text(json.dumps(record))
    (item,) = everything(open_source(tmp_path / "a.jsonl"))
    assert item.carried == {"position": None, "token": None, "context": None}
    assert item.error is None


def test_a_column_of_any_name_is_read_and_an_error_lists_those_that_could_be(tmp_path):
    vectors = np.arange(12.0, dtype=np.float32).reshape(3, 4)
    table = pa.table(
        {"name": ["a", "b", "c"], "resid": vectors.tolist(), "n": [1, 2, 3], "said": ["x"] * 3}
    )
    pq.write_table(table, tmp_path / "a.parquet")
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(r) + "\n" for r in table.to_pylist()))
    for name in ("a.parquet", "a.jsonl"):
        source = open_source(tmp_path / name, vector="resid", doc_id="name")
        items = everything(source)
        assert (source.kind, source.identity["column"]) == ("vectors", "resid")
        assert [item.doc_id for item in items] == ["a", "b", "c"]
        assert np.array_equal(np.stack([item.value for item in items]), vectors)
        said = "Say which one to read: text='name' or vector='resid' or text='said'."
        for options, message in (
            ({}, "has no column 'text'; it has 'name', 'resid', 'n', 'said'"),
            ({"text": "resid"}, "has no texts in column 'resid'"),
            ({"vector": "name"}, "has no vectors in column 'name'"),
            ({"vector": "n"}, "has no vectors in column 'n'"),
            ({"vector": "absent"}, "has no column 'absent'"),
        ):
            with pytest.raises(NLAError, match=message) as caught:
                open_source(tmp_path / name, **options)
            assert str(caught.value).endswith(said)
        with pytest.raises(NLAError, match="text='said' and vector='resid': an input is read as"):
            open_source(tmp_path / name, text="said", vector="resid")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b"", r"is empty"),
        (
            "a.jsonl",
            b'{"body": "x"}\n',
            r"no column 'text'; it has 'body'\. Say which one to read: text='body'",
        ),
        ("a.parquet", b"nonsense", r"cannot be read as Parquet"),
        ("a.npy", b"nonsense", r"cannot be read as a \.npy array"),
        ("a.safetensors", b"nonsense", r"cannot be read as safetensors"),
        ("a.csv", b"text\n", r"expected \.jsonl \(also \.jsonl\.gz\), \.parquet, \.safetensors"),
    ],
)
def test_an_input_of_no_known_form_is_refused_by_name(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(NLAError, match=message) as caught:
        open_source(tmp_path / name)
    assert name in str(caught.value)


def test_arrays_of_another_shape_and_missing_files(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros((2, 3, 4)))
    with pytest.raises(NLAError, match=r"shape \[2, 3, 4\], expected \[rows, d_model\]"):
        open_source(tmp_path / "a.npy")
    save_file({"W_dec": torch.zeros(2, 3), "W_enc": torch.zeros(3, 2)}, tmp_path / "a.safetensors")
    with pytest.raises(
        NLAError, match=r"holds W_dec \[2, 3\], W_enc \[3, 2\]: say which tensor.*tensor=\"NAME\""
    ):
        open_source(tmp_path / "a.safetensors")
    assert open_source(tmp_path / "a.safetensors", tensor="W_enc").count == 3
    for name in (tmp_path / "nowhere.jsonl", "data/nowhere.jsonl", "nowhere", "../owner/name"):
        with pytest.raises(NLAError, match="there is no such file or folder"):
            open_source(name)
