"""A `Direction` in torch's functions: only a floating-point residual casts it."""

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given

from nnsight_nla.remote.wire import Direction, direction

VALUES = torch.tensor([0.25, -1.5, 3.75, 0.125, -7.0, 2.5])
FLOATS = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
COUNTS = [torch.int8, torch.int32, torch.int64, torch.uint8]
MASK = torch.tensor([True, False, True, True, False, False])

WITH_NO_HOST = {
    "index by a tensor": lambda d, n: d[n.long() % 6],
    "index by a mask": lambda d, n: d[MASK],
    "index_select": lambda d, n: d.index_select(0, n.long() % 6),
    "gather": lambda d, n: torch.gather(d, 0, n.long() % 6),
    "take": lambda d, n: torch.take(d, n.long() % 6),
    "times a mask": lambda d, n: d * MASK,
    "a mask times it": lambda d, n: MASK * d,
    "times counts": lambda d, n: d * n,
    "over counts": lambda d, n: d / n,
    "where, a number": lambda d, n: torch.where(MASK, d, 0.0),
    "where, a scalar tensor": lambda d, n: torch.where(MASK, d, torch.tensor(0.0)),
    "where, the method": lambda d, n: d.where(MASK, 0.0),
    "masked_fill": lambda d, n: d.masked_fill(MASK, 0.0),
    "masked_select": lambda d, n: torch.masked_select(d, MASK),
    "index_fill": lambda d, n: torch.index_fill(d, 0, n.long() % 6, 1.0),
    "scatter": lambda d, n: d.scatter(0, n.long() % 6, 9.0),
    "repeat_interleave": lambda d, n: torch.repeat_interleave(d, n.long() % 3),
    "a number": lambda d, n: 2 * d - 1,
    "a float64 number": lambda d, n: d * torch.tensor(2.0, dtype=torch.float64),
    "pow": lambda d, n: d**2,
    "cat with itself": lambda d, n: torch.cat([d, d]),
    "stack": lambda d, n: torch.stack((d, -d)),
    "comparison": lambda d, n: d > n,
    "argmax": lambda d, n: d.argmax(),
    "sign as counts": lambda d, n: d.sign().to(torch.int64),
    "topk's values": lambda d, n: d.topk(3).values,
    "topk's indices": lambda d, n: d.topk(3).indices,
    "sort's second": lambda d, n: torch.sort(d)[1],
    "max over an axis": lambda d, n: d.max(dim=0).indices,
    "split": lambda d, n: d.split(2)[1],
    "unbind": lambda d, n: torch.stack(d.unbind()[:2]),
    "cumsum": lambda d, n: d.cumsum(0),
    "nonzero": lambda d, n: torch.nonzero(d > 0),
    "einsum": lambda d, n: torch.einsum("i,i->", d, d),
    "to double": lambda d, n: d.double(),
    "bincount of counts": lambda d, n: torch.bincount((d > 0).long()),
}  # fmt: skip
WITH_A_HOST = {
    "host plus it": lambda d, h: h + d,
    "it plus host": lambda d, h: d + h,
    "minus": lambda d, h: d - h,
    "scaled": lambda d, h: h + 2 * d,
    "masked": lambda d, h: h + d * MASK,
    "indexed": lambda d, h: h[:2] + d[torch.tensor([0, 3])],
    "where": lambda d, h: torch.where(MASK, d, h),
    "where by its own signs": lambda d, h: torch.where(d > 0, h, 0),
    "by its own indices": lambda d, h: h[d.topk(2).indices],
    "cat": lambda d, h: torch.cat([d, h]),
    "cat, host first": lambda d, h: torch.cat((h, d)),
    "stack by keyword": lambda d, h: torch.stack(tensors=[d, h], dim=0),
    "addcmul": lambda d, h: torch.addcmul(h, d, h, value=2),
    "lerp": lambda d, h: torch.lerp(h, d, 0.5),
    "maximum": lambda d, h: torch.maximum(h, d),
    "dot": lambda d, h: h @ d,
    "outer": lambda d, h: torch.outer(d, h),
    "einsum": lambda d, h: torch.einsum("i,j->ij", d, h),
    "a batch": lambda d, h: h.expand(2, 3, 6) + d,
    "its norm": lambda d, h: h * d.norm(),
    "other keyword": lambda d, h: torch.add(h, other=d, alpha=3),
    "like the host": lambda d, h: d.to(h),
    "type_as": lambda d, h: d.type_as(h),
    "masked_scatter": lambda d, h: h.masked_scatter(MASK, d),
    "index_copy": lambda d, h: h.index_copy(0, torch.tensor([1]), d[:1]),
    "equal": lambda d, h: h == d,
    "broadcast": lambda d, h: torch.broadcast_tensors(h, d)[1],
}  # fmt: skip


def plain(value):
    return value.as_subclass(torch.Tensor) if isinstance(value, Direction) else value


@pytest.mark.parametrize("name", WITH_NO_HOST)
@given(st.sampled_from(FLOATS), st.sampled_from(COUNTS), st.data())
def test_counts_masks_and_numbers_leave_its_values(name, dtype, counts, data):
    values = VALUES.to(dtype)
    numbers = torch.tensor(data.draw(st.lists(st.integers(1, 9), min_size=6, max_size=6)))
    numbers = numbers.to(counts)
    operation = WITH_NO_HOST[name]
    expected, found = operation(values, numbers), operation(direction(values.clone()), numbers)
    torch.testing.assert_close(plain(found), expected, rtol=0, atol=0, equal_nan=True)
    assert isinstance(found, Direction) == expected.is_floating_point()


@pytest.mark.parametrize("name", WITH_A_HOST)
@given(st.sampled_from(FLOATS), st.sampled_from(FLOATS))
def test_a_residual_gives_its_dtype_and_a_plain_tensor(name, own, theirs):
    host = torch.arange(6).to(theirs)
    operation = WITH_A_HOST[name]
    values = VALUES.to(own)
    expected = operation(values.to(theirs), host)
    found = operation(direction(values.clone()), host)
    assert type(found) is torch.Tensor
    torch.testing.assert_close(found, expected, rtol=1e-2, atol=1e-2)
    assert found.dtype == expected.dtype


@pytest.mark.parametrize("dtype", FLOATS)
def test_what_writes_into_a_residual_and_into_a_direction(dtype):
    host, step = torch.zeros(6, dtype=dtype), direction(VALUES.clone())
    same = host
    host += step
    host[:] += step
    host[2:4] = step[2:4]
    assert host is same
    assert host.tolist() == torch.cat([2 * VALUES[:2], VALUES[2:4], 2 * VALUES[4:]]).tolist()
    # Written into, it is changed itself and not a copy of it.
    step.add_(torch.ones(6, dtype=dtype))
    step[0] = 5.0
    step[1:2] = torch.ones(1, dtype=dtype)
    assert type(step) is Direction
    assert step.tolist() == [5.0, 1.0, *(VALUES[2:] + 1).tolist()]
    assert step.dtype == torch.float32
