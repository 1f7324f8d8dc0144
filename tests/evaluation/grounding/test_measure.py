"""All figures of the tiny pair at once, and rows that there should not be."""

import json

import pytest
import torch

from nnsight_nla import NLA, NLAError, tiny
from nnsight_nla.evaluation import grounded
from nnsight_nla.evaluation.grounding.measure import spread
from nnsight_nla.evaluation.grounding.rows import GroundedRow, GroundedRows
from tests.helpers.tiny_rows import tiny_rows


@pytest.fixture(scope="module")
def source(pair):
    return tiny_rows(pair[0], documents=20, per_document=6, seed=3)


@pytest.fixture(scope="module")
def figures(pair, source):
    return grounded(pair[1], source, limit=40)


def test_the_tiny_pair_says_what_is_true(figures):
    assert (figures["rows"], figures["documents"]) == (40, 20)
    for statement in ("subject", "tone", "current", "attribute", "stage", "label next"):
        assert figures["text"][statement]["value"] > (0.75 if "next" in statement else 0.9)
        assert figures["shuffled"][statement]["value"] < 0.7
    assert figures["text"]["mentions so far"]["value"] > 0.5
    assert figures["shuffled"]["mentions so far"]["value"] < 0.2
    assert figures["text"]["next"]["value"] > figures["shuffled"]["next"]["value"] + 0.3
    for kind, chance in (("position", 0.2), ("source", 0.25)):
        assert set(figures[kind]) == {"cosine", "likelihood"}
        for each in figures[kind].values():
            assert each["low"] > chance == each["chance"]
    assert figures["judge"] is None
    assert set(figures["agreement"]) == {"cosine", "likelihood", "mentions so far", "next"}


def test_next_is_never_more_often_right_than_said(figures):
    for kind in ("text", "shuffled"):
        assert figures[kind]["next"]["value"] <= figures[kind]["says next"]["value"]


def test_the_figures_are_strict_json_and_the_same_again(pair, source, figures):
    assert json.loads(json.dumps(figures, allow_nan=False)) == figures
    assert grounded(pair[1], source, limit=40) == figures


def test_without_labels_there_is_no_truth_and_with_ones_own_there_is(nla, source):
    bare = tuple(GroundedRow(row.document, row.text) for row in source.rows)
    found = grounded(nla, GroundedRows(bare, source.vectors), limit=8)
    assert found["agreement"] is None
    assert set(found["text"]) == {"mentions so far", "mentions later", "mentions nowhere"}
    found = grounded(nla, source, limit=8, truth=lambda text, label: {"same": text == label})
    assert found["text"]["same"]["value"] > 0.5
    assert set(found["agreement"]["cosine"]) == {"same"}


def test_wrong_labels_are_told_from_right_ones(nla, source):
    """Half of the vectors get noise: the likelihood of their texts falls with their truth."""
    draw = torch.Generator().manual_seed(0)
    noise = torch.randn(source.vectors.shape, generator=draw) * 3
    noise[::2] = 0
    rows = GroundedRows(source.rows, source.vectors + noise)
    found = grounded(nla, rows, limit=None)
    assert 0.3 < found["text"]["subject"]["value"] < 0.9
    assert found["agreement"]["cosine"]["subject"] > 0.8
    assert found["agreement"]["likelihood"]["subject"] > 0.8


def test_a_verbalizer_alone_matches_by_its_likelihood(source):
    alone = NLA(tiny.paths()["av"], dtype=torch.float32)
    found = grounded(alone, source, limit=8)
    assert set(found["position"]) == set(found["source"]) == {"likelihood"}
    assert "cosine" not in found["agreement"]


def test_one_document_has_no_other_text_and_no_source(nla, source):
    found = grounded(nla, source.take(source.by_document[source.rows[0].document]))
    assert (found["shuffled"], found["source"], found["documents"]) == ({}, None, 1)
    assert found["position"]["cosine"]["n"] == 6


def test_few_rows_have_what_can_be_measured(nla, source):
    found = grounded(nla, source.take([0]))
    assert (found["rows"], found["position"], found["source"]) == (1, None, None)
    assert found["text"]["subject"]["n"] == 1


def test_vectors_that_cannot_be_explained_are_wrong(nla, source):
    vectors = source.vectors.clone()
    vectors[::6], vectors[1::6] = torch.nan, 0
    found = grounded(nla, GroundedRows(source.rows, vectors), limit=None)
    assert found["text"]["subject"]["n"] == 120
    assert 0.5 < found["text"]["subject"]["value"] <= 4 / 6
    for kind in ("position", "source"):
        assert found[kind]["cosine"]["value"] <= 4 / 6
    json.dumps(found, allow_nan=False)


def test_odd_texts_and_labels_are_measured(nla, source):
    rows = list(source.rows[:6])
    rows[0] = GroundedRow("a", "", label="")
    rows[1] = GroundedRow("a", "", label=None, next_tokens=("",))
    rows[2] = GroundedRow("b", "é\u2028😀\x00" * 20_000, "x", label="odd", next_tokens=("😀",))
    found = grounded(nla, GroundedRows(tuple(rows), source.vectors[:6]))
    assert found["text"]["subject"]["n"] == 3
    assert found["text"]["next"]["n"] == 5


def test_no_rows_and_no_limit_are_refused(nla, source):
    with pytest.raises(NLAError, match=r"source has no rows.*Hold out more documents"):
        grounded(nla, source.take([]))
    for limit in (0, -3, 2.5, True):
        with pytest.raises(NLAError, match=rf"limit is {limit}, expected a number of rows from 1"):
            grounded(nla, source, limit=limit)


def spread_over(lengths, limit):
    rows = [GroundedRow(str(d), "x" * n) for d, count in enumerate(lengths) for n in range(count)]
    source = GroundedRows(tuple(rows), torch.zeros(len(rows), 1))
    return source, spread(source, limit)


def test_rows_are_spread_over_the_documents():
    source, found = spread_over([9, 1, 5, 7], 6)
    counts = [sum(source.rows[n].document == str(d) for n in found) for d in range(4)]
    assert counts == [2, 1, 2, 1]
    assert found == sorted(set(found))
    source, found = spread_over([9] * 10, 5)
    assert [source.rows[n].document for n in found] == ["0", "2", "4", "6", "8"]
    assert [source.rows[n].text for n in found] == ["xxxx"] * 5  # The middle ones.
    for limit in (None, 22, 1000):
        assert spread_over([9, 1, 5, 7], limit)[1] == list(range(22))
    assert spread_over([], None)[1] == []
