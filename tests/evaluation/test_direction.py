"""Directions: the scale, the device and dtype of whoever is added to, and what they do."""

import copy
import pickle

import pytest
import torch

from nnsight_nla import NLA, CheckpointError, ReconstructionError, tiny
from nnsight_nla.evaluation.direction import direction
from nnsight_nla.remote.wire import Direction

EAST, NORTH = torch.tensor([3.0, 0.0]), torch.tensor([0.0, 0.5])


def test_by_hand():
    assert direction(EAST, None, 10.0).tolist() == [10, 0]
    assert direction(EAST, NORTH, 10.0).tolist() == [10, -10]
    several = direction(EAST, torch.stack([NORTH, -EAST]), torch.tensor([1.0, 2.0]))
    assert several.tolist() == [[1, -1], [4, 0]]


def test_adding_it_to_the_start_gives_the_end_at_its_length():
    start = 7.0 * NORTH / NORTH.norm()
    assert (start + direction(EAST, NORTH, 7.0)).tolist() == pytest.approx([7, 0])


def test_no_direction_and_shapes_that_do_not_fit():
    with pytest.raises(ReconstructionError, match="same vector"):
        direction(EAST, 2 * EAST, 1.0)
    with pytest.raises(ReconstructionError, match=r"to has shape \(3,\) and away_from \(2,\)"):
        direction(EAST.expand(3, 2), NORTH.expand(2, 2), 1.0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_it_takes_the_residuals_dtype(dtype):
    step = direction(EAST, NORTH, 1.0)
    residual = torch.zeros(4, 2, dtype=dtype)
    for total in (residual + step, step + residual, residual + 2 * step, torch.add(residual, step)):
        assert total.dtype == dtype
        assert type(total) is torch.Tensor
    residual += -step / 2
    assert residual.dtype == dtype
    assert residual.tolist() == [[-0.5, 0.5]] * 4
    residual[:, 0] = step[1]
    torch.testing.assert_close(residual[:, 0], torch.full((4,), -1.0, dtype=dtype))


def test_it_takes_the_residuals_device():
    step = direction(EAST, NORTH, 1.0)
    total = torch.zeros(4, 2, device="meta", dtype=torch.bfloat16) + step
    assert total.device.type == "meta"
    assert total.dtype == torch.bfloat16


def test_numbers_scale_it_and_it_stays_one():
    step = direction(EAST, NORTH, 1.0)
    for scaled in (2 * step, step / 2, -step, step * torch.tensor(2.0), step[None], step + step):
        assert type(scaled) is Direction
    assert step.norm().item() == pytest.approx(2**0.5)
    assert step.numpy().tolist() == [1, -1]
    assert type(copy.deepcopy(step)) is Direction
    assert pickle.loads(pickle.dumps(step)).tolist() == [1, -1]


def test_in_a_trace_it_changes_what_the_model_says(model, nla):
    with model.trace("People in Paris speak"):
        thought = nla.explain(nla.layer(model).output[0, -1])
    edited = thought.text.replace("Paris", "Tokyo").replace("France", "Japan")
    step = nla.direction(to=edited, away_from=thought)
    assert step.shape == (128,)
    with model.trace("People in Paris speak"):
        nla.layer(model).output[:, -1] += step
        after = nla.explain(nla.layer(model).output[0, -1])
        token = model.lm_head.output[0, -1].argmax(-1).save()
    assert model.tokenizer.decode(token).strip() == "Japanese"
    assert after.text.startswith("About Tokyo, the capital of Japan")
    # Undone, and the model is as it was.
    with model.trace("People in Paris speak"):
        nla.layer(model).output[:, -1] += step
        nla.layer(model).output[:, -1] -= step
        token = model.lm_head.output[0, -1].argmax(-1).save()
    assert model.tokenizer.decode(token).strip() == "French"


def test_the_natural_scale(nla, residuals):
    thought = nla.explain(residuals[-2:])
    texts = ["About Rome, the capital of Italy; calm tone.", "About Cuba; calm tone."]
    norms = residuals[-2:].norm(dim=-1)
    to, away = nla.reconstruct(texts), nla.reconstruct(thought.text)
    unit = torch.nn.functional.normalize
    expected = norms[:, None] * (unit(to, dim=-1) - unit(away, dim=-1))
    found = nla.direction(to=texts, away_from=thought)
    torch.testing.assert_close(found.as_subclass(torch.Tensor), expected, atol=1e-3, rtol=1e-3)
    # Without a handle, the length is the baseline's mean norm; one that is given wins.
    plain = nla.direction(to=texts[0])
    assert plain.norm().item() == pytest.approx(nla.baseline.norm, rel=1e-4)
    assert nla.direction(to=texts[0], norm=3.0).norm().item() == pytest.approx(3, rel=1e-4)
    assert nla.direction(to=texts[0], away_from=thought).shape == (2, 128)
    assert nla.direction(to=thought, away_from=texts[0]).shape == (2, 128)


def test_without_a_length_or_a_reconstructor(nla, monkeypatch):
    monkeypatch.setattr(nla, "baseline", None)
    with pytest.raises(ReconstructionError, match=r"away_from=thought.*norm=.*Baseline"):
        nla.direction(to="About Paris.")
    with pytest.raises(CheckpointError, match="no reconstructor"):
        NLA(tiny.paths()["av"]).direction(to="About Paris.")


@pytest.mark.parametrize("norm", [0, 0.0, -1.0, float("nan"), float("inf"), True, "3"])
def test_a_norm_that_is_none_is_refused(nla, norm):
    """A zero norm was taken for "not given", and a negative one turned the direction round."""
    with pytest.raises(ReconstructionError, match=r"norm=.*: expected a positive, finite number"):
        nla.direction(to="About Rome.", norm=norm)


def test_a_handle_with_a_zero_vector_has_no_norm(nla):
    to = torch.ones(2, 3)
    with pytest.raises(ReconstructionError, match=r"positive, finite residual norm, got \[0.0, "):
        direction(to, None, torch.tensor([0.0, 2.0]))


def test_an_explained_direction_keeps_its_values(nla):
    """The queue indexes it with a tensor, which turned its values into whole numbers."""
    step = nla.direction(to="About Rome.", norm=3.0)
    thought = nla.explain(step)
    assert thought.errors == {}
    plain = nla.explain(step.as_subclass(torch.Tensor).clone())
    assert thought.text == plain.text
    assert torch.equal(torch.as_tensor(thought.vectors), torch.as_tensor(plain.vectors))
    assert "Rome" in thought.text
