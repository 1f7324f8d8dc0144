"""What one ``explain()`` call records, and the options that are refused."""

import re

import numpy as np
import pytest
import torch

from nnsight_nla import Sampling, VerbalizationError
from nnsight_nla.explanation.capturing import captured, provenance

GREEDY, WARM = Sampling(), Sampling(temperature=1.0)
QUEUE, LABELLER = object(), object()


class Tokenizer:
    def __len__(self):
        return 10

    def decode(self, ids):
        return f"<{ids[0]}>"


def record(shape=(2, 3), default=GREEDY, **options):
    rows = int(np.prod(shape, dtype=int))
    flat = torch.arange(rows * 4.0).reshape(rows, 4)
    return captured(flat, shape, QUEUE, LABELLER, default, Tokenizer(), **options)


def test_without_options():
    made = record()
    assert (made.queue, made.labeller, made.sampling) == (QUEUE, LABELLER, GREEDY)
    assert (made.count, made.samples, made.width, made.null) == (6, 1, 3, False)
    assert (made.tokens, made.positions) == (None, None)
    assert torch.equal(made.vectors, torch.arange(24.0).reshape(6, 4))


@pytest.mark.parametrize(("shape", "count", "width"), [((), 1, 1), ((0,), 0, 0), ((2, 0), 0, 0)])
def test_shapes_of_one_and_of_no_vector(shape, count, width):
    made = record(shape)
    assert (made.count, made.width) == (count, width)


def test_fake_tensors_are_counted_and_have_no_vectors():
    made = captured(None, (2, 3), QUEUE, None, GREEDY, Tokenizer())
    assert (made.vectors, made.count) == (None, 6)


def test_the_calls_sampling_replaces_the_default():
    assert record(sampling=WARM, samples=3).samples == 3
    assert record(sampling=WARM).sampling == WARM
    assert record(default=WARM, samples=2).sampling == WARM
    with pytest.raises(VerbalizationError, match="would give the same text 2 times"):
        record(samples=2)
    with pytest.raises(VerbalizationError, match=r"sampling='warm': expected Sampling\(\.\.\.\)"):
        record(sampling="warm")


@pytest.mark.parametrize(
    "tokens",
    [
        [["a", 1, "b"], [2, "c", 3]],
        (("a", 1, "b"), (2, "c", 3)),
        np.array([["a", 1, "b"], [2, "c", 3]], dtype=object),
    ],
)
def test_tokens_are_strings_or_ids_that_are_decoded(tokens):
    assert record(tokens=tokens).tokens == ["a", "<1>", "b", "<2>", "c", "<3>"]


@pytest.mark.parametrize(
    "positions",
    [torch.arange(6).reshape(2, 3), np.arange(6).reshape(2, 3), [[0, 1, 2], [3, 4, 5]]],
    ids=["tensor", "array", "list"],
)
def test_positions_are_plain_integers(positions):
    found = record(positions=positions).positions
    assert found == [0, 1, 2, 3, 4, 5]
    assert {type(each) for each in found} == {int}


def test_one_vector_has_one_token_and_one_position():
    made = record((), tokens="Paris", positions=7)
    assert (made.tokens, made.positions) == (["Paris"], [7])
    assert record((3,), positions=range(4, 7)).positions == [4, 5, 6]


@pytest.mark.parametrize(
    ("values", "got"),
    [
        (["a"], (1,)),
        ("a", ()),
        (7, ()),
        ([["a", "b"], ["c", "d"]], (2, 2)),
        (torch.zeros(3, 2), (3, 2)),
        (range(6), (6,)),
    ],
)
def test_values_of_another_shape(values, got):
    message = (
        f"tokens have shape {got}, the vectors (without d_model) have (2, 3). Pass tokens of that "
        "shape, one per vector."
    )
    with pytest.raises(VerbalizationError, match=f"^{re.escape(message)}$"):
        provenance(values, (2, 3), "tokens")


@pytest.mark.parametrize(
    "values",
    [[["a", "b", "c"], ["d"]], [np.zeros((2, 3)), np.zeros((2, 4))]],
    ids=["lists", "arrays"],
)
def test_ragged_values(values):
    with pytest.raises(VerbalizationError, match=r"tokens have shape \(2,\), .* \(2, 3\)\."):
        provenance(values, (2, 3), "tokens")
