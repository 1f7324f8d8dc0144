"""Handles in files: everything but the model comes back, and other files are refused by name."""

import json
import math
import pickle

import hypothesis.strategies as st
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import HealthCheck, given, settings

from nnsight_nla import NLA, Explanation, NLAError, Sampling, VerbalizationError, tiny
from nnsight_nla.bulk.sources import open_source
from nnsight_nla.checkpoint.origin import Origin
from nnsight_nla.core.baseline import Baseline
from nnsight_nla.core.trust import Grounded, Trust
from nnsight_nla.explanation.records import Capture, Receipt, Reply
from nnsight_nla.explanation.unavailable import Unavailable
from tests.view.test_markup import EVIL, OURS, Tags

KEY = b"nnsight_nla.explanation"
TEXT = st.text(max_size=20)
NUMBER = st.floats(width=64, allow_nan=False)
FINITE = st.floats(-1e6, 1e6)
PART = st.none() | st.floats(-1, 1)


def same(one, other):
    """Check that two handles hold the same, whatever made them."""
    assert (one.shape, one.lengths) == (other.shape, other.lengths)
    assert one.vectors.dtype == other.vectors.dtype
    torch.testing.assert_close(one.vectors, other.vectors.cpu(), rtol=0, atol=0, equal_nan=True)
    for name in ("tokens", "positions", "warnings", "errors", "trust", "origin"):
        assert getattr(one, name) == getattr(other, name), name
    assert one.extracted() == other.extracted()
    assert json.dumps(one.to_dict()) == json.dumps(other.to_dict())
    assert repr(one) == repr(other)
    assert str(one) == str(other)
    if not one.errors:
        for name in ("text", "samples", "raw", "finish", "snippets"):
            assert getattr(one, name) == getattr(other, name), name
        assert repr(vars(one.receipt)) == repr(vars(other.receipt))  # NaN equals itself.


@st.composite
def labels(draw):
    grounded = st.builds(Grounded, st.integers(0, 9), st.integers(0, 9), st.none() | TEXT)
    return Trust(
        draw(st.sampled_from(["strong", "partial", "weak", "none"])),
        *(draw(PART) for _ in range(2)),
        draw(
            st.none() | st.builds(Baseline, st.floats(0.1, 4), st.just("x"), st.none() | st.just(3))
        ),
        *(draw(PART) for _ in range(5)),
        tuple(draw(st.lists(TEXT, max_size=2))),
        draw(st.none() | TEXT),
        draw(st.none() | grounded),
        draw(st.dictionaries(TEXT, st.floats(0, 1), max_size=2)),
        draw(st.none() | TEXT),
    )


@st.composite
def handles(draw):
    """A handle with anything in it, as no model would write it."""
    lengths = draw(st.none() | st.lists(st.integers(0, 2), max_size=3))
    shape = tuple(draw(st.lists(st.integers(0, 2), max_size=3)))
    shape = shape if lengths is None else (sum(lengths),)
    count, samples = math.prod(shape), draw(st.integers(1, 2))
    dtype = draw(st.sampled_from([torch.float32, torch.bfloat16, torch.float16, torch.float64]))
    numbers = st.floats(width=16) if dtype == torch.float16 else st.floats(width=32)
    d_model = draw(st.integers(1, 3))
    held = draw(st.lists(numbers, min_size=count * d_model, max_size=count * d_model))
    null = draw(st.booleans())

    def rows(strategy):
        return draw(st.none() | st.lists(strategy, min_size=count, max_size=count))

    sampling = Sampling(temperature=0.5, seed=draw(st.integers(0, 9)))
    receipt = Receipt(
        draw(TEXT), 3, draw(TEXT), "add", draw(st.none() | FINITE), draw(TEXT), "float32", sampling,
        draw(st.none() | TEXT), draw(TEXT), draw(st.none() | TEXT),
    )  # fmt: skip
    capture = Capture(
        Unavailable("gone", receipt), torch.tensor(held).reshape(count, d_model).to(dtype), count,
        samples, sampling, null, rows(TEXT), rows(st.integers(0, 9)),
        width=shape[-1] if shape else 1, lengths=None if lengths is None else tuple(lengths),
        next_tokens=rows(st.lists(TEXT, max_size=2).map(tuple)),
        origin=Origin(draw(st.none() | TEXT), draw(st.none() | st.integers(0, 9)), d_model),
        ignored=tuple(draw(st.lists(TEXT, max_size=1))),
    )  # fmt: skip
    labelled = draw(st.booleans())
    for row in range(count):
        if draw(st.booleans()):
            capture.errors[row] = draw(TEXT)
        else:
            for sample in range(samples):
                capture.replies[row, sample] = Reply(
                    draw(TEXT), draw(TEXT), draw(st.sampled_from(["tag", "eos", "length"])),
                    draw(st.integers(0, 9)), draw(NUMBER), draw(NUMBER),
                    math.nan if null else draw(st.floats(-1, 1)), draw(TEXT),
                )  # fmt: skip
        if labelled:
            capture.trust[row] = draw(labels())
    return Explanation.of(capture, shape)


@settings(max_examples=150, suppress_health_check=list(HealthCheck))
@given(handle=handles())
def test_anything_comes_back(handle, tmp_path_factory):
    path = tmp_path_factory.mktemp("any") / "handle.parquet"
    handle.to_parquet(path)
    found = Explanation.from_parquet(path)
    same(found, handle)
    assert found.capture.next_tokens == handle.capture.next_tokens
    found.to_parquet(path)
    same(Explanation.from_parquet(path), handle)


@pytest.fixture
def thought(model, nla):
    prompt = "What a lovely day! People in Paris speak"
    (span,) = nla.positions(model, prompt)
    with model.trace(prompt):
        found = nla.explain(
            nla.layer(model).output[0], tokens=span.tokens, positions=span.positions
        )
    return found


@pytest.fixture
def path(thought, tmp_path):
    thought.to_parquet(tmp_path / "thought.parquet")
    return tmp_path / "thought.parquet"


@pytest.mark.parametrize("key", [slice(None), -1, slice(2, 2), [1, 1, 3]], ids=str)
def test_a_handle_of_the_pair_comes_back_without_a_model(thought, tmp_path, key):
    part = thought[key]
    part.to_parquet(tmp_path / "part.parquet")
    found = Explanation.from_parquet(str(tmp_path / "part.parquet"))
    same(found, part)
    assert found.resolved
    pd.testing.assert_frame_equal(found.to_pandas(), part.to_pandas())
    assert found._repr_html_() == part._repr_html_()


def test_a_ragged_handle_comes_back(model, nla, tmp_path):
    prompts = ["The cow lives in the", "People in Paris speak French", "The cow"]
    places = nla.positions(model, prompts)
    with model.trace(prompts):
        ragged = nla.explain(nla.layer(model).output, at=places)
    ragged.to_parquet(tmp_path / "ragged.parquet")
    found = Explanation.from_parquet(tmp_path / "ragged.parquet")
    same(found, ragged)
    same(found[1], ragged[1])
    assert found[0][-1].text == ragged[0][-1].text


def test_samples_a_failed_row_and_the_null_control_come_back(nla, residuals, tmp_path):
    vectors = torch.stack([residuals[-1], torch.zeros(128)])
    drawn = nla.explain(vectors, samples=2, sampling=Sampling(temperature=1.0, max_new_tokens=20))
    for number, handle in enumerate((drawn, nla.controls(1).null, nla.controls(1).null[None])):
        handle.to_parquet(tmp_path / f"{number}.parquet")
        same(Explanation.from_parquet(tmp_path / f"{number}.parquet"), handle)


def test_without_a_reconstructor_there_are_no_labels(residuals, tmp_path):
    alone = NLA(tiny.paths()["av"], dtype=torch.float32).explain(residuals[-1])
    alone.to_parquet(tmp_path / "alone.parquet")
    found = Explanation.from_parquet(tmp_path / "alone.parquet")
    assert found.trust is alone.trust is None
    assert found.to_pandas()["grade"].tolist() == [None]


def test_a_loaded_handle_works_with_an_nla_and_says_what_it_lacks(nla, thought, path):
    found = Explanation.from_parquet(path)
    expected = nla.score(thought, failures="zero").cosine
    torch.testing.assert_close(nla.score(found, failures="zero").cosine, expected)
    assert nla.trust(found)[-1].grade == thought.trust[-1].grade
    assert nla.compare(found[-1], thought[-1]).change == 0
    assert nla.explain(found.vectors[-1]).text == found[-1].text
    nla.resolve(found)
    assert pickle.loads(pickle.dumps(found)).text == found.text
    found.capture.replies.clear()  # As if something had to be generated.
    with pytest.raises(
        VerbalizationError, match=r"read from .*parquet, without a model: .*explain"
    ):
        _ = found.text


def test_the_file_is_a_data_set_of_the_vectors_too(thought, path):
    source = open_source(path)
    assert source.kind == "vectors"
    assert source.origin == thought.origin
    assert pq.read_table(path)["activation_vector"].type.list_size == 128


def test_the_columns_are_those_of_the_table_and_more(thought, path):
    names = pq.read_schema(path).names
    shared = list(thought.to_pandas().columns)
    assert names[: len(shared)] == shared
    assert names[len(shared) :] == [
        "raw", "opened", "new_tokens", "next_token", "label", "activation_vector",
    ]  # fmt: skip
    assert {"injection_cosine", "reconstruction_cosine", "fve", "grade"} <= set(names)
    assert "cosine" not in names
    note = json.loads(pq.read_schema(path).metadata[KEY])
    assert (note["format"], note["version"]) == ("nnsight_nla.explanation", 1)


def test_a_handle_of_fake_tensors_cannot_be_written(nla, tmp_path):
    capture = Capture(Unavailable("gone"), None, 1, 1, Sampling())
    with pytest.raises(VerbalizationError, match="fake tensors"):
        Explanation.of(capture, (1,)).to_parquet(tmp_path / "fake.parquet")


def test_a_write_that_stops_in_the_middle_leaves_the_old_file(thought, path, monkeypatch):
    def cut(table, file):
        file.write(b"PAR1")
        raise KeyboardInterrupt

    monkeypatch.setattr(pq, "write_table", cut)
    with pytest.raises(KeyboardInterrupt):
        thought[0].to_parquet(path)
    assert Explanation.from_parquet(path).shape == thought.shape
    assert [file.name for file in path.parent.iterdir()] == ["thought.parquet"]


def rewritten(path, change):
    table = pq.read_table(path)
    note = json.loads(table.schema.metadata[KEY])
    table = change(table, note) or table
    pq.write_table(table.replace_schema_metadata({KEY: json.dumps(note)}), path)
    return path


def put(name, value):
    return lambda table, note: note.__setitem__(name, value)


def cell(name, value):
    def change(table, note):
        values = [value, *table[name].to_pylist()[1:]]
        column = pa.array(values, table.schema.field(name).type)
        return table.set_column(table.schema.get_field_index(name), name, column)

    return change


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (put("version", 9), "is an explanation of version 9, this package reads version 1"),
        (put("format", "x"), "does not hold an explanation"),
        (put("shape", [EVIL]), "its shape is"),
        (put("shape", 3), "its shape is"),
        (put("shape", [99]), "it has 9 rows, expected 99"),
        (put("lengths", [1]), "its lengths are"),
        (put("samples", 0), "its samples is 0"),
        (put("dtype", "int8"), "its vectors are 'int8'"),
        (put("d_model", 7), "Size of FixedSizeList"),
        (put("receipt", None), "is not as an explanation is written"),
        (put("receipt", {"sampling": {}}), "is not as an explanation is written"),
        (put("origin", {"layer": "x"}), "layer"),
        (put("origin", []), "is not as an explanation is written"),
        (cell("label", "{}"), "is not as an explanation is written"),
        (cell("label", "[1]"), "is not as an explanation is written"),
        (cell("label", "["), "is not as an explanation is written"),
        (cell("label", '{"grade": "good", "cosine": 1}'), "no grade"),
        (cell("label", '{"grade": "weak", "cosine": "1"}'), "is no number"),
        (cell("finish", "x"), "finish is 'x'"),
        (cell("text", None), "has no text"),
        (cell("sample", 4), "row 0 is sample 4"),
        (lambda table, note: table.drop_columns(["raw"]), "raw"),
        (lambda table, note: table.drop_columns(["activation_vector"]), "activation_vector"),
        (lambda table, note: table[:3], "it has 3 rows, expected 9"),
    ],
)  # fmt: skip
def test_a_damaged_file_is_refused(path, change, why):
    with pytest.raises(NLAError, match=why) as caught:
        Explanation.from_parquet(rewritten(path, change))
    assert str(path) in str(caught.value)


def test_files_that_are_something_else(tmp_path, thought):
    with pytest.raises(NLAError, match="does not exist"):
        Explanation.from_parquet(tmp_path / "none.parquet")
    with pytest.raises(NLAError, match="is a folder"):
        Explanation.from_parquet(tmp_path)
    words = tmp_path / "words.parquet"
    words.write_text("words")
    with pytest.raises(NLAError, match="is not a parquet file"):
        Explanation.from_parquet(words)
    pd.DataFrame({"a": [1]}).to_parquet(words)
    with pytest.raises(NLAError, match=r"\(columns: a\). Write one with handle.to_parquet"):
        Explanation.from_parquet(words)
    with pytest.raises(NLAError, match="cannot be written"):
        thought.to_parquet(tmp_path / "no folder" / "x.parquet")


def evil_handle():
    sampling = Sampling()
    receipt = Receipt(EVIL, 3, EVIL, EVIL, 1.0, EVIL, EVIL, sampling, EVIL, EVIL, EVIL)
    capture = Capture(
        Unavailable("gone", receipt), torch.ones(2, 3), 2, 1, sampling, tokens=[EVIL] * 2,
        positions=[0, 1], stored_warnings={0: (EVIL,)}, origin=Origin(EVIL), ignored=(EVIL,),
    )  # fmt: skip
    capture.replies[0, 0] = Reply(EVIL, f"{EVIL}\u202e", "tag", 3, 1.0, 1.0, 1.0, EVIL)
    capture.errors[1] = EVIL
    label = Trust("weak", 0.5, 0.5, Baseline(0.5, EVIL), reason=EVIL, grounded=Grounded(1, 0, EVIL),
                  probabilities={EVIL: 0.5}, population=EVIL, warnings=(EVIL,))  # fmt: skip
    capture.trust.update({0: label, 1: label})
    return Explanation.of(capture, (2,))


def test_markup_in_every_field_stays_text(tmp_path):
    evil_handle().to_parquet(tmp_path / "evil.parquet")
    found = Explanation.from_parquet(tmp_path / "evil.parquet")
    same(found, evil_handle())
    file = found.to_html(tmp_path / "evil.html", title=EVIL)
    page = file.read_text("utf-8")
    for html in (page, found._repr_html_(), found[0].receipt._repr_html_(),
                 found.trust[0]._repr_html_()):  # fmt: skip
        tags = Tags(html)
        assert tags.tags <= OURS | {"html", "head", "meta", "title", "style", "body", "h1"}
        assert not [name for name in tags.attributes if name.startswith("on") or name == "src"]
    assert page.count("&lt;img") >= 8
    assert "\u202e" not in page


def test_a_page_fetches_nothing_and_shows_text_label_and_receipt(thought, tmp_path):
    page = thought.to_html(tmp_path / "page.html").read_text("utf-8")
    assert "default-src &#x27;none&#x27;" in page or "default-src 'none'" in page
    for outside in ("http:", "https:", "src=", "href=", "url(", "<script", "<link", "@import"):
        assert outside not in page
    for shown in (thought[-1].text.splitlines()[0], thought[-1].trust.grade, "greedy", "block 1"):
        assert shown in page
    assert str(tiny.paths()["av"]) not in page  # A page for others has no path of this machine.
    with pytest.raises(NLAError, match="cannot be written"):
        thought.to_html(tmp_path / "no folder" / "x.html")
