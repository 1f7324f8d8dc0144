"""Handles: shape, parts, values, and what a handle shows of itself."""

import copy
import json

import numpy as np
import pytest
import torch

from nnsight_nla import Sampling, VerbalizationError


@pytest.fixture
def grid(nla, residuals):
    """A handle of shape (2, 3)."""
    return nla.explain(residuals[-6:].reshape(2, 3, -1))


def test_shape_len_and_iteration_are_a_tensors(grid):
    assert grid.shape == (2, 3)
    assert len(grid) == 2
    assert [part.shape for part in grid] == [(3,), (3,)]
    assert np.shape(grid.text) == (2, 3)
    assert np.shape(grid.raw) == np.shape(grid.finish) == (2, 3)


@pytest.mark.parametrize(
    "key",
    [0, -1, (0, 1), (slice(None), -1), slice(1, None), Ellipsis, (Ellipsis, 0), None, [1, 0]],
    ids=str,
)
def test_indexing_is_a_tensors(grid, key):
    part = grid[key]
    assert part.shape == tuple(grid.vectors[key].shape[:-1]) or isinstance(key, tuple)
    expected = np.array(grid.text, dtype=object)[key]
    assert part.text == (expected.tolist() if isinstance(expected, np.ndarray) else expected)


def test_a_boolean_mask_picks_rows(grid):
    norms = grid.vectors.norm(dim=-1)
    mask = norms > norms.median()
    part = grid[mask]
    assert part.shape == (int(mask.sum()),)
    assert torch.equal(part.vectors, grid.vectors[mask])


def test_a_scalar_has_no_length_and_no_iteration(grid):
    with pytest.raises(TypeError, match="0-d"):
        len(grid[0, 0])
    with pytest.raises(TypeError, match="0-d"):
        iter(grid[0, 0])
    with pytest.raises(IndexError):
        grid[2]


def test_repr_never_runs_a_model_and_str_does(nla, grid):
    assert repr(grid) == "<Explanation shape=(2, 3) 6 pending>"
    assert repr(grid[0, 0]) == "<Explanation shape=() 1 pending>"
    assert not grid.resolved
    label = "\n".join(f"[{line}]" for line in grid[0, 0].trust.lines)
    assert str(grid[0, 0]) == f"{grid[0, 0].text}\n{label}"
    assert repr(grid) == "<Explanation shape=(2, 3) resolved>"
    assert grid.text[1][2] in str(grid)


def test_a_part_shares_its_parents_state(nla, grid, monkeypatch):
    part = grid[1]
    assert not part.resolved
    texts = part.text
    monkeypatch.setattr(nla._verbalizer, "verbalize", None)  # nothing may be run twice
    assert part.resolved
    assert grid.text[1] == texts


def test_an_empty_batch_is_an_empty_result(nla):
    thought = nla.explain(torch.empty(0, 128))
    assert thought.shape == (0,)
    assert thought.resolved
    assert thought.text == thought.samples == thought.raw == []
    assert thought.errors == {}
    assert list(thought) == []
    assert thought.to_pandas().empty
    assert thought.vectors.shape == (0, 128)
    assert nla.explain(torch.empty(2, 0, 128)).text == [[], []]


def test_vectors_are_a_copy(nla, residuals):
    given = residuals[-1].clone()
    thought = nla.explain(given)
    text = nla.explain(residuals[-1]).text
    given.zero_()
    assert torch.equal(thought.vectors, residuals[-1])
    assert thought.text == text


def test_samples_have_a_last_axis_and_sample_0_is_the_text(nla, residuals):
    warm = Sampling(temperature=1.0, max_new_tokens=30)
    thought = nla.explain(residuals[-4:].reshape(2, 2, -1), samples=3, sampling=warm)
    assert np.shape(thought.samples) == (2, 2, 3)
    assert [[each[0] for each in row] for row in thought.samples] == thought.text
    assert isinstance(thought[0, 0].samples, list)


def test_provenance_is_carried_into_parts_records_and_html(nla, residuals):
    tokens = [f" t{i}" for i in range(len(residuals))]
    thought = nla.explain(residuals, tokens=tokens, positions=range(len(residuals)))
    assert thought[3].tokens == " t3"
    assert thought[3].positions == 3
    assert thought[2:4].tokens == [" t2", " t3"]
    table = thought.to_pandas()
    assert table["token"].tolist() == tokens
    assert table["position"].tolist() == list(range(len(residuals)))
    assert "␣t3" in thought._repr_html_()
    assert str(thought[3]).startswith("' t3'@3: ")


def test_token_ids_are_decoded(model, nla, residuals):
    (span,) = nla.positions(model, "What a lovely day! People in Paris speak")
    thought = nla.explain(residuals, tokens=torch.tensor(span.ids))
    assert thought.tokens == list(span.tokens)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"tokens": ["a"]},
            r"tokens have shape \(1,\), the vectors \(without d_model\) have \(2,\)",
        ),
        ({"positions": [[0, 1]]}, r"positions have shape \(1, 2\)"),
        ({"positions": 3}, r"positions have shape \(\)"),
    ],
)
def test_provenance_of_another_shape_is_refused(nla, residuals, given, message):
    with pytest.raises(VerbalizationError, match=message):
        nla.explain(residuals[:2], **given)


def test_bad_rows_are_recorded_and_everything_else_gets_its_text(nla, residuals):
    bad = residuals[-4:].clone()
    bad[1] = 0
    bad[2, 5] = torch.nan
    bad[3, 5] = torch.inf
    other = nla.explain(residuals[-1])
    thought = nla.explain(bad)
    with pytest.raises(VerbalizationError) as caught:
        _ = thought.text
    message = str(caught.value)
    assert "3 of 4 vectors have no text" in message
    assert "row 1 is zero" in message
    assert "row 2 has NaN" in message
    assert "row 3 is infinite" in message
    assert set(thought.errors) == {(1,), (2,), (3,)}
    assert thought.resolved
    assert thought[0].text == nla.explain(bad[0]).text
    assert other.text
    with pytest.raises(VerbalizationError, match=r"^This vector is zero"):
        _ = thought[1].text
    table = thought.to_pandas()
    assert table["text"].isna().tolist() == [False, True, True, True]
    assert "is zero" in thought._repr_html_()
    assert "[is zero" in str(thought)


def test_to_dict_is_plain_data(nla, grid):
    plain = json.loads(json.dumps(grid.to_dict(), allow_nan=False))
    assert plain["shape"] == [2, 3]
    assert [each["index"] for each in plain["explanations"]][:3] == [[0, 0], [0, 1], [0, 2]]
    assert plain["explanations"][0]["text"] == grid.text[0][0]
    assert plain["receipt"]["operation"] == "add"
    assert plain["receipt"]["site"] == "block 1"
    assert plain["receipt"]["layer_convention"].startswith("output of block 3")
    assert len(plain["receipt"]["sidecar_hash"]) == len(plain["receipt"]["prompt_hash"]) == 64
    json.dumps(nla.controls(1).null.to_dict(), allow_nan=False)


def test_the_receipt_is_nested_like_the_text(nla, grid):
    receipt = grid.receipt
    assert np.shape(receipt.norm_before) == np.shape(receipt.injection_cosine) == (2, 3)
    assert receipt.marker_position == nla.prompt.marker_position
    assert isinstance(grid[0, 0].receipt.injection_cosine, float)
    assert "sampling" in vars(receipt)


def test_snippets_are_the_lines_of_a_one_paragraph_text(grid):
    assert grid[0, 0].snippets == tuple(grid[0, 0].text.split("\n"))
    assert len(grid[0, 0].snippets) == 3


def test_deepcopy_keeps_the_text_and_the_nla(nla, grid):
    texts = grid.text
    twin = copy.deepcopy({"handle": grid, "nla": nla})
    assert twin["nla"] is nla
    assert twin["handle"].text == texts
    assert twin["handle"] is not grid
    assert copy.copy(grid).text == texts
