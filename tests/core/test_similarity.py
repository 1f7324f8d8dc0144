"""Cosine and MSE: by hand, against plain formulas, and at the edges of float32."""

import math

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from nnsight_nla.core.similarity import cosine, direction_mse, normalise


def test_by_hand():
    a = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
    b = torch.tensor([[5.0, 0.0], [0.0, 2.0], [-3.0, 0.0]])
    assert cosine(a, b).tolist() == pytest.approx([1.0, 0.0, -1.0])
    assert direction_mse(a, b).tolist() == pytest.approx([0.0, 2.0, 4.0])
    assert normalise(torch.tensor([3.0, 4.0])).tolist() == pytest.approx(
        [0.6 * 2**0.5, 0.8 * 2**0.5]
    )


def test_against_plain_formulas():
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 3, 5, 32, generator=generator).unbind()
    torch.testing.assert_close(cosine(a, b), torch.nn.functional.cosine_similarity(a, b, dim=-1))
    torch.testing.assert_close(direction_mse(a, b), 2 * (1 - cosine(a, b)))
    assert cosine(a, b).shape == (3, 5)


@pytest.mark.parametrize("size", [1e-40, 1e-25, 1e-10, 1.0, 1e20, 3e38])
def test_lengths_do_not_matter_at_any_size(size):
    a, b = torch.tensor([1.0, -0.5, 0.25, 0.0]), torch.tensor([0.5, 0.5, 1.0, 1.0])
    rough = 1e-4 if size < 1e-38 else 1e-6
    torch.testing.assert_close(cosine(a * size, b), cosine(a, b), rtol=rough, atol=rough)
    torch.testing.assert_close(
        normalise(a * size).norm(), torch.tensor(2.0), rtol=rough, atol=rough
    )


def test_a_zero_vector_stays_zero_and_half_precision_is_widened():
    assert normalise(torch.zeros(2, 3)).tolist() == [[0.0] * 3] * 2
    assert cosine(torch.zeros(3), torch.ones(3)).item() == 0
    assert cosine(torch.ones(3).bfloat16(), torch.ones(3)).dtype == torch.float32


def test_nan_stays_nan():
    assert math.isnan(cosine(torch.tensor([math.nan, 1.0]), torch.ones(2)).item())


vectors = st.lists(st.floats(-100, 100, width=32), min_size=4, max_size=4).filter(
    lambda row: max(map(abs, row)) > 1e-2
)


@settings(max_examples=60, deadline=None)
@given(vectors, vectors)
def test_mse_is_twice_one_minus_cosine(a, b):
    x, y = torch.tensor(a), torch.tensor(b)
    near = cosine(x, y).item()
    assert -1 - 1e-5 <= near <= 1 + 1e-5
    assert direction_mse(x, y).item() == pytest.approx(2 * (1 - near), abs=1e-5)
    assert near == pytest.approx(cosine(y, x).item(), abs=1e-6)
