"""What the methods of an NLA accept, and what each refused argument is told."""

import re

import hypothesis.strategies as st
import jaxtyping
import pytest
import torch
from hypothesis import given
from torch._subclasses.fake_tensor import FakeTensorMode

from nnsight_nla import Sampling
from nnsight_nla.errors import InjectionError, ReconstructionError, VerbalizationError
from nnsight_nla.explanation.arguments import (
    batch_rows,
    check_sampling,
    check_vectors,
    count_samples,
    flat_texts,
)

EXPECTED = "Expected a floating-point tensor of shape [..., 8]"


@pytest.fixture(autouse=True)
def as_users_run_it(monkeypatch):
    """Without the tests' own shape checks, which would refuse a wrong type before we do."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


def refused(error: type[Exception], message: str):
    return pytest.raises(error, match=f"^{re.escape(message)}$")


@pytest.mark.parametrize(
    ("vectors", "got"),
    [
        (
            "text",
            "str 'text'. In a trace: nla.explain(nla.layer(model).output[:, -1]).",
        ),
        (
            torch.arange(8),
            "torch.int64. Pass residuals, not token ids: "
            "nla.explain(nla.layer(model).output[:, -1]).",
        ),
        (
            torch.ones(2, 7),
            "[2, 7]. Read the residual of the model that the verbalizer was trained on: "
            "nla.layer(model).output.",
        ),
        (
            torch.tensor(1.0),
            "[]. Read the residual of the model that the verbalizer was trained on: "
            "nla.layer(model).output.",
        ),
        (
            torch.ones(8, device="meta"),
            "a tensor on the meta device, which has no values. Load the weights first.",
        ),
    ],
    ids=["type", "dtype", "width", "scalar", "meta"],
)
def test_vectors_that_cannot_be_explained(vectors, got):
    with refused(InjectionError, f"{EXPECTED}, got {got}"):
        check_vectors(vectors, 8)


@pytest.mark.parametrize("shape", [(8,), (3, 8), (2, 3, 8), (0, 8)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_vectors_of_any_shape_and_precision(shape, dtype):
    check_vectors(torch.full(shape, torch.nan, dtype=dtype), 8)


def test_a_fake_tensor_of_a_scan_is_a_vector_too():
    with FakeTensorMode():
        check_vectors(torch.empty(3, 8), 8)


def test_sampling():
    assert check_sampling(None) is None
    hot = Sampling(temperature=1.0)
    assert check_sampling(hot) is hot
    with refused(
        VerbalizationError,
        "sampling=0.7: expected Sampling(...), for example Sampling(temperature=1.0).",
    ):
        check_sampling(0.7)


@pytest.mark.parametrize("samples", [0, -1, 1.0, "2", None, True])
def test_a_number_of_samples_that_is_not_one(samples):
    with refused(VerbalizationError, f"samples={samples!r}: expected a whole number from 1."):
        count_samples(samples, Sampling(temperature=1.0))


def test_several_samples_need_a_temperature():
    assert count_samples(1, Sampling()) == 1
    assert count_samples(3, Sampling(temperature=1.0)) == 3
    with refused(
        VerbalizationError,
        "samples=3 at temperature 0 would give the same text 3 times. Add "
        "sampling=Sampling(temperature=1.0).",
    ):
        count_samples(3, Sampling())


def test_batch_size():
    assert batch_rows("auto") is None
    assert batch_rows(7) == 7
    for bad in (0, True, 2.0, "7", None):
        with refused(
            VerbalizationError, f"batch_size={bad!r}: expected 'auto' or a whole number from 1."
        ):
            batch_rows(bad)


nested = st.recursive(st.text(max_size=3), lambda inner: st.lists(inner, max_size=3))


@given(nested)
def test_nested_texts_are_flattened_in_order_or_refused(texts):
    try:
        flat, shape = flat_texts(texts)
    except ReconstructionError:
        return
    assert torch.Size(shape).numel() == len(flat)
    again = iter(flat)

    def rebuilt(left: tuple[int, ...]):
        return [rebuilt(left[1:]) for _ in range(left[0])] if left else next(again)

    assert rebuilt(shape) == texts


def test_what_is_neither_a_text_nor_a_list():
    assert flat_texts(("a", "b")) == (["a", "b"], (2,))
    with refused(
        ReconstructionError,
        "Expected a string or nested lists of them, got int. For a handle, pass its text: "
        "nla.reconstruct(thought.text).",
    ):
        flat_texts(["a", 7])
    with refused(ReconstructionError, "The nested lists of texts are ragged: [(), (1,)]."):
        flat_texts(["a", ["b"]])
