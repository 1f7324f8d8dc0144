"""Writing a vector into the residual: by hand, against a plain formula, and for odd vectors."""

import math
import re

import hypothesis.strategies as st
import jaxtyping
import pytest
import torch
from hypothesis import example, given, settings

from nnsight_nla.core.injection import (
    OPERATIONS,
    Injection,
    norm_matched_add,
    scaled_replacement,
    unit,
    unusable,
    write,
)
from nnsight_nla.errors import CheckpointError, shown

ADD = Injection("add", "block", 1)
REPLACE = Injection("replace", "embedding", None, 150.0)


@pytest.fixture
def as_users_run_it(monkeypatch):
    """Without the tests' own shape checks, which would refuse a wrong type before we do."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


def plain_add(hidden: torch.Tensor, vector: torch.Tensor, coefficient: float = 1.0) -> torch.Tensor:
    """Karvonen et al. 2025, eq. 1, entry by entry in Python's float64."""
    length = math.sqrt(sum(x * x for x in hidden.double().tolist()))
    norm = math.sqrt(sum(x * x for x in vector.double().tolist()))
    pairs = zip(hidden.double().tolist(), vector.double().tolist(), strict=True)
    return torch.tensor([h + coefficient * length * v / norm for h, v in pairs])


def test_addition_by_hand():
    hidden, vector = torch.tensor([[3.0, 4.0]]), torch.tensor([[0.0, -2.0]])
    assert norm_matched_add(hidden, vector).tolist() == [[3.0, -1.0]]
    assert norm_matched_add(hidden, vector, 2.0).tolist() == [[3.0, -6.0]]


def test_replacement_by_hand():
    assert scaled_replacement(torch.tensor([[3.0, -4.0]]), 10.0).tolist() == [[6.0, -8.0]]


def test_addition_agrees_with_the_plain_formula():
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(20, 48, generator=generator) * 7
    vectors = torch.randn(20, 48, generator=generator) * 100
    found = norm_matched_add(hidden, vectors, 1.5)
    for row in range(20):
        torch.testing.assert_close(found[row], plain_add(hidden[row], vectors[row], 1.5))


def test_replacement_agrees_with_the_plain_formula():
    vectors = torch.randn(20, 48, generator=torch.Generator().manual_seed(0))
    for vector, found in zip(vectors, scaled_replacement(vectors, 150.0), strict=True):
        norm = math.sqrt(sum(x * x for x in vector.tolist()))
        torch.testing.assert_close(found, torch.tensor([150.0 * x / norm for x in vector.tolist()]))


def test_norms_are_float32_and_the_result_has_the_residuals_dtype():
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(1, 3, 4096, generator=generator).bfloat16()
    vector = torch.randn(1, 4096, generator=generator).bfloat16()
    found = write(hidden, vector, 1, ADD)
    exact = plain_add(hidden[0, 1], vector[0])
    assert found.dtype == torch.bfloat16
    # Rounded once, at the end (float32 itself may tip an entry that lies halfway).
    assert (found[0, 1] == exact.bfloat16()).float().mean() > 0.998
    # Norms taken in bfloat16 would show: this is how many entries they leave right.
    direction = vector / vector.norm(dim=-1, keepdim=True)
    coarse = hidden[:, 1] + hidden[:, 1].norm(dim=-1, keepdim=True) * direction
    assert (coarse[0] == exact.bfloat16()).float().mean() < 0.95


@pytest.mark.parametrize("size", [1e-40, 1e-25, 1e-10, 1.0, 1e20, 3e38])
@pytest.mark.parametrize("injection", [ADD, REPLACE], ids=["add", "replace"])
def test_only_the_direction_counts_at_any_size(size, injection):
    hidden = torch.randn(1, 4, 8, generator=torch.Generator().manual_seed(2))
    vector = torch.tensor([[1.0, -0.5, 0.0, 0.25, 1.0, 0.0, -1.0, 0.5]])
    expected = write(hidden, vector, 2, injection)
    rough = 1e-4 if size < 1e-38 else 1e-6
    torch.testing.assert_close(
        write(hidden, vector * size, 2, injection), expected, rtol=rough, atol=rough
    )


@pytest.mark.parametrize("injection", [ADD, REPLACE], ids=["add", "replace"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_every_other_position_is_bit_identical_and_the_argument_untouched(injection, dtype):
    hidden = torch.randn(3, 7, 16, generator=torch.Generator().manual_seed(3)).to(dtype)
    before = hidden.clone()
    found = write(hidden, torch.ones(3, 16), 4, injection)
    others = [i for i in range(7) if i != 4]
    assert torch.equal(hidden, before)
    assert torch.equal(found[:, others], before[:, others])
    assert not torch.equal(found[:, 4], before[:, 4])
    assert found.data_ptr() != hidden.data_ptr()


@pytest.mark.parametrize("injection", [ADD, REPLACE], ids=["add", "replace"])
def test_under_autograd_nothing_is_edited_in_place(injection):
    leaf = torch.randn(2, 3, 4, requires_grad=True)
    hidden = leaf * 2
    vectors = torch.randn(2, 4, requires_grad=True)
    hidden_version = hidden._version
    write(hidden, vectors, 1, injection).pow(2).sum().backward()
    assert hidden._version == hidden_version
    assert leaf.grad is not None
    assert torch.isfinite(leaf.grad).all()
    assert vectors.grad is not None
    assert torch.isfinite(vectors.grad).all()
    # A replaced marker no longer depends on what the model computed there.
    assert bool((leaf.grad[:, 1] == 0).all()) is (injection is REPLACE)


def test_the_gradient_is_that_of_the_formula():
    hidden = torch.randn(1, 2, 5, dtype=torch.float32, requires_grad=True)
    vector = torch.randn(1, 5, requires_grad=True)
    weights = torch.randn(5)
    (write(hidden, vector, 1, ADD)[0, 1] @ weights).backward()
    h, v = hidden.detach().clone().requires_grad_(), vector.detach().clone().requires_grad_()
    plain = h[0, 1] + h[0, 1].pow(2).sum().sqrt() * v[0] / v[0].pow(2).sum().sqrt()
    (plain @ weights).backward()
    torch.testing.assert_close(hidden.grad, h.grad)
    torch.testing.assert_close(vector.grad, v.grad)


def test_rows_that_are_not_given_keep_the_markers_own_residual():
    hidden = torch.randn(3, 4, 8, generator=torch.Generator().manual_seed(4)).bfloat16()
    vectors = torch.ones(3, 8)
    vectors[1] = math.nan
    found = write(hidden, vectors, 2, ADD, torch.tensor([True, False, True]))
    everyone = write(hidden, torch.ones(3, 8), 2, ADD)
    assert torch.equal(found[1], hidden[1])
    assert torch.equal(found[[0, 2]], everyone[[0, 2]])


def test_the_null_controls_zero_vector_leaves_no_nan_in_the_gradient():
    hidden = torch.randn(2, 3, 4, requires_grad=True)
    vectors = torch.zeros(2, 4, requires_grad=True)
    write(hidden, vectors, 1, ADD, torch.tensor([False, False])).sum().backward()
    assert hidden.grad is not None
    assert torch.equal(hidden.grad, torch.ones_like(hidden))


def test_each_row_gets_its_own_vector():
    hidden = torch.ones(2, 2, 2)
    found = write(hidden, torch.tensor([[1.0, 0.0], [0.0, 1.0]]), 0, REPLACE)
    assert found[:, 0].tolist() == [[150.0, 0.0], [0.0, 150.0]]


def test_the_scale_of_an_addition_is_its_coefficient():
    hidden, vector = torch.tensor([[[3.0, 4.0]]]), torch.tensor([[1.0, 0.0]])
    assert write(hidden, vector, 0, Injection("add", "block", 1, 2.0)).tolist() == [[[13.0, 4.0]]]


def test_unusable_rows_and_their_reasons():
    vectors = torch.ones(7, 3)
    vectors[1] = 0
    vectors[2, 0] = math.nan
    vectors[3, 1] = math.inf
    vectors[4, 2] = -math.inf
    vectors[5] = torch.tensor([math.inf, math.nan, 0.0])
    vectors[6] = torch.tensor([0.0, 0.0, 1e-45])
    assert unusable(vectors) == {
        1: "is zero, it has no direction",
        2: "has NaN in it",
        3: "is infinite",
        4: "is infinite",
        5: "has NaN in it",
    }
    assert unusable(vectors.bfloat16()[:6]) == unusable(vectors[:6])
    assert unusable(torch.empty(0, 3)) == {}


def test_float64_rows_that_float32_cannot_hold_are_unusable():
    vectors = torch.tensor([[1e60, 1.0], [1e-60, 0.0], [1.0, 1.0]], dtype=torch.float64)
    assert unusable(vectors) == {0: "is infinite", 1: "is zero, it has no direction"}


def test_a_zero_vector_has_no_direction_and_an_empty_batch_is_fine():
    assert unit(torch.zeros(2, 3)).tolist() == [[0.0] * 3] * 2
    assert write(torch.empty(0, 4, 3), torch.empty(0, 3), 1, ADD).shape == (0, 4, 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"operation": "multiply"},
            "Injection(operation='multiply', site='block'): expected the operation 'add' or "
            "'replace' and the site 'block' or 'embedding'. To add an operation: "
            "nnsight_nla.core.injection.OPERATIONS[name] = function.",
        ),
        (
            {"site": "head"},
            "Injection(operation='add', site='head'): expected the operation 'add' or 'replace' "
            "and the site 'block' or 'embedding'. To add an operation: "
            "nnsight_nla.core.injection.OPERATIONS[name] = function.",
        ),
        *(
            (
                {"layer": layer},
                f"Injection(site='block', layer={layer!r}): expected the number of the block whose "
                "output is written, from 0, for example Injection(layer=1).",
            )
            for layer in (None, -1, True, 1.0, "1")
        ),
        (
            {"site": "embedding"},
            "Injection(site='embedding', layer=1): the embedding has no block number. Pass "
            "layer=None.",
        ),
        *(
            (
                {"scale": scale},
                f"Injection(scale={shown(scale)}): expected a positive, finite number.",
            )
            for scale in (0.0, -1.0, math.inf, math.nan, True, "raw", 10**400)
        ),
        (
            {"operation": "replace", "site": "embedding", "layer": None},
            "Injection(operation='replace') needs scale=, the L2 norm that the vector is scaled "
            "to; it has no default. For example: Injection('replace', 'embedding', None, 150.0).",
        ),
    ],
)
@pytest.mark.usefixtures("as_users_run_it")
def test_what_an_injection_refuses(arguments, message):
    with pytest.raises(CheckpointError, match=f"^{re.escape(message)}$"):
        Injection(**arguments)


@pytest.mark.parametrize("injection", [ADD, REPLACE], ids=["add", "replace"])
def test_several_places_all_get_the_vector_and_no_other_place_does(injection):
    hidden = torch.randn(2, 7, 16, generator=torch.Generator().manual_seed(5)).bfloat16()
    vectors = torch.randn(2, 16, generator=torch.Generator().manual_seed(6))
    found = write(hidden, vectors, (1, 4, 5), injection)
    for site in (1, 4, 5):
        assert torch.equal(found[:, site], write(hidden, vectors, site, injection)[:, site])
    others = [0, 2, 3, 6]
    assert torch.equal(found[:, others], hidden[:, others])
    # Each place has a residual of its own, which an addition keeps and a replacement does not.
    assert torch.equal(found[:, 1], found[:, 4]) is (injection is REPLACE)
    null = write(hidden, vectors, (1, 4, 5), injection, torch.tensor([False, False]))
    assert torch.equal(null, hidden)


@pytest.fixture
def blend(monkeypatch):
    """The third party's operation of the module's own documentation."""

    def blend(hidden, vectors, scale):
        return (hidden + scaled_replacement(vectors, scale)).to(hidden.dtype)

    monkeypatch.setitem(OPERATIONS, "blend", blend)


@pytest.mark.usefixtures("blend")
def test_a_third_partys_operation_is_one_entry():
    injection = Injection("blend", "block", 3, 8.0)
    hidden, vectors = torch.ones(1, 3, 2), torch.tensor([[3.0, -4.0]])
    found = write(hidden, vectors, 1, injection)
    torch.testing.assert_close(found[0, 1], torch.tensor([1 + 8 * 0.6, 1 - 8 * 0.8]))
    assert torch.equal(found[0, [0, 2]], hidden[0, [0, 2]])
    with pytest.raises(CheckpointError, match="operation 'add' or 'replace' or 'blend' and the"):
        Injection("other")


def test_an_operation_is_known_only_while_it_is_registered():
    with pytest.raises(CheckpointError, match="operation 'add' or 'replace' and the site"):
        Injection("blend", "block", 3, 8.0)
    with pytest.raises(CheckpointError, match=r"operation=\['add'\]"):
        Injection(["add"])


def test_the_default_is_the_published_addition():
    assert Injection() == Injection("add", "block", 1, None)


entries = st.floats(-1e3, 1e3, width=32).filter(lambda x: x == 0 or abs(x) > 1e-3)
rows = st.lists(entries, min_size=6, max_size=6).filter(any)


@settings(max_examples=60, deadline=None)
@given(rows, rows)
@example([3.0, 4.0, 0.0, 0.0, 0.0, 0.0], [1e-3, 0.0, 0.0, 0.0, 0.0, 0.0])
def test_what_is_added_has_the_residuals_length_and_the_vectors_direction(hidden, vector):
    h, v = torch.tensor([hidden]), torch.tensor([vector])
    added = norm_matched_add(h, v).double() - h.double()
    length = h.double().norm().item()
    assert added.norm().item() == pytest.approx(length, rel=1e-4)
    assert (added * v.double()).sum().item() / (
        added.norm().item() * v.double().norm().item()
    ) == pytest.approx(1, abs=1e-6)


@settings(max_examples=60, deadline=None)
@given(rows, rows, st.integers(-60, 60))
def test_the_vectors_length_does_not_matter(hidden, vector, power):
    h, v = torch.tensor([hidden]), torch.tensor([vector])
    # A power of two is exact, so are both results.
    assert torch.equal(norm_matched_add(h, v), norm_matched_add(h, v * 2.0**power))
    assert torch.equal(scaled_replacement(v, 5.0), scaled_replacement(v * 2.0**power, 5.0))


def test_shapes_are_checked_at_run_time_here():
    with pytest.raises(jaxtyping.TypeCheckError):
        norm_matched_add(torch.ones(2, 3), torch.ones(2, 4))
