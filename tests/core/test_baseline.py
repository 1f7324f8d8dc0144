"""Baselines: by hand, streamed, in both definitions, published, and refused."""

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from nnsight_nla import Baseline, Checkpoint, ReconstructionError
from nnsight_nla.core.baseline import PUBLISHED
from nnsight_nla.core.similarity import direction_mse, normalise
from nnsight_nla.errors import CheckpointError


def rows(n=200, shift=1.0, seed=0):
    return torch.randn(n, 16, generator=torch.Generator().manual_seed(seed)) + shift


def test_the_variance_by_hand():
    # Normalised: (√2, 0) and (0, √2), mean (√½, √½): each entry is √½ away.
    baseline = Baseline.from_vectors(torch.tensor([[2.0, 0.0], [0.0, 7.0]]), name="axes")
    assert baseline.value == pytest.approx(0.5)
    assert baseline.norm == pytest.approx(4.5)
    assert (baseline.n, baseline.definition) == (2, "variance")


def test_fve_by_hand():
    baseline = Baseline(0.5, "axes")
    assert baseline.fve(torch.tensor([0.0, 0.25, 0.5, 1.0])).tolist() == [1.0, 0.5, 0.0, -1.0]
    assert [baseline.fve(mse) for mse in (0.0, 0.25, 0.5, 1.0)] == [1.0, 0.5, 0.0, -1.0]


def test_both_definitions_against_plain_formulas():
    vectors = rows()
    scaled = vectors / vectors.norm(dim=-1, keepdim=True) * 4.0
    mean = scaled.mean(dim=0)
    around = (scaled - mean).pow(2).mean().item()
    far = (scaled - mean / mean.norm() * 4.0).pow(2).mean().item()
    variance = Baseline.from_vectors(vectors, name="a")
    constant = Baseline.from_vectors(vectors, name="a", definition="mean_direction")
    assert variance.value == pytest.approx(around, rel=1e-5)
    assert constant.value == pytest.approx(far, rel=1e-5)
    assert constant.value > variance.value


def test_the_best_constant_answer_explains_nothing_of_the_distance_to_the_mean_direction():
    vectors = rows()
    constant = normalise(vectors).mean(dim=0).expand_as(vectors)
    mse = direction_mse(constant, vectors).mean().item()
    baseline = Baseline.from_vectors(vectors, name="a", definition="mean_direction")
    assert baseline.fve(mse) == pytest.approx(0, abs=1e-5)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 60), st.sampled_from(["variance", "mean_direction"]))
def test_streamed_is_the_same_as_at_once(size, definition):
    vectors = rows(120)
    batches = (vectors[i : i + size].reshape(1, -1, 16) for i in range(0, 120, size))
    streamed = Baseline.from_vectors(batches, name="a", definition=definition)
    whole = Baseline.from_vectors(vectors, name="a", definition=definition)
    assert streamed.value == pytest.approx(whole.value, rel=1e-6)
    assert streamed.norm == pytest.approx(whole.norm, rel=1e-6)
    assert streamed.n == whole.n == 120


def test_half_precision_and_lengths_do_not_matter():
    vectors = rows()
    whole = Baseline.from_vectors(vectors, name="a").value
    scaled = vectors * torch.linspace(0.01, 1000, len(vectors))[:, None]
    assert Baseline.from_vectors(scaled, name="a").value == pytest.approx(whole, rel=1e-5)
    assert Baseline.from_vectors(vectors.bfloat16(), name="a").value == pytest.approx(whole, 1e-2)


# Published with the paper's checkpoints: mean MSE, mean cosine, FVE, denominator.
def test_the_published_transcript_follows_from_its_parts():
    mse, cosine, fve, denominator = 0.220, 0.890, 0.700, 0.7335
    baseline = Baseline.published("Qwen/Qwen2.5-7B-Instruct")
    assert baseline.value == denominator
    assert 2 * (1 - cosine) == pytest.approx(mse, abs=5e-4)
    assert baseline.fve(mse) == pytest.approx(fve, abs=5e-4)
    # The same through vectors that lie at just this cosine.
    true = torch.tensor([1.0, 0.0])
    predicted = torch.tensor([cosine, (1 - cosine**2) ** 0.5])
    found = direction_mse(predicted, true).item()
    assert found == pytest.approx(mse, abs=1e-6)
    assert baseline.fve(found) == pytest.approx(fve, abs=5e-4)


@pytest.mark.parametrize(
    ("model", "value"),
    [
        ("google/gemma-3-12b-it", 0.0302),
        ("google/gemma-3-27b-it", 0.0579),
        ("meta-llama/Llama-3.3-70B-Instruct", 0.9169),
    ],
)
def test_the_published_denominators(model, value):
    assert Baseline.published(model).value == value
    assert model.split("/")[1].split("-it")[0].lower()[:8] in str(Baseline.published(model)).lower()


def test_an_unknown_publication_lists_the_known_ones():
    with pytest.raises(ReconstructionError, match=r"for 'x'.*gemma-3-12b-it.*from_vectors"):
        Baseline.published("x")
    assert len(PUBLISHED) == 4


def test_it_is_printed_with_its_data():
    baseline = Baseline(0.7335, "transcripts", 1000)
    assert str(baseline) == "0.7335, the variance of 1,000 vectors: transcripts"
    far = Baseline(0.5, "x", definition="mean_direction")
    assert str(far) == "0.5000, the distance to the mean direction: x"


@pytest.mark.parametrize(
    ("vectors", "message"),
    [
        (torch.zeros(0, 4), "at least two vectors, got 0"),
        (torch.ones(1, 4), "at least two vectors, got 1"),
        ([], "at least two vectors, got 0"),
        (torch.tensor([[1.0, 2.0], [2.0, 4.0]]), "All 2 vectors have the same direction"),
        (torch.tensor([[1.0, 2.0], [0.0, 0.0]]), "Vector 1 is zero"),
        ([torch.ones(3, 2), torch.full((1, 2), torch.nan)], "Vector 3 has NaN"),
        ([torch.ones(1, 2), torch.ones(1, 3)], "width 3 after vectors of width 2"),
        (torch.ones(3, 2, dtype=torch.long), r"got torch.int64"),
        ("vectors", "got str"),
        (7, "got int"),
    ],
)
def test_vectors_that_give_no_baseline(vectors, message):
    with pytest.raises(ReconstructionError, match=message):
        Baseline.from_vectors(vectors, name="a")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"value": 0.0}, "value 0.0"),
        ({"value": 4.5}, "value 4.5"),
        ({"value": float("nan")}, "value nan"),
        ({"value": True}, "value True"),
        ({"value": 10**400}, "value 1000"),
        ({"value": "0.7"}, "value '0.7'"),
        ({"name": " "}, "name ' '"),
        ({"definition": "median"}, "variance, mean_direction"),
        ({"n": 0}, "n 0"),
        ({"norm": -1.0}, "norm -1.0"),
    ],
)
def test_bad_fields(fields, message):
    with pytest.raises(ReconstructionError, match=message):
        Baseline(**{"value": 0.5, "name": "a", **fields})


def test_a_sidecar_carries_it(pair):
    checkpoint = pair[1].checkpoint
    assert checkpoint.baseline.n == 18000
    assert pair[1].baseline is checkpoint.baseline
    sidecar = checkpoint.to_sidecar("av")
    from nnsight_nla.checkpoint.checkpoint import parse_sidecar

    assert parse_sidecar(sidecar, "f").baseline == checkpoint.baseline
    sidecar["extraction"]["fve_baseline"]["value"] = -1
    with pytest.raises(CheckpointError, match=r"fve_baseline in f.*value -1"):
        parse_sidecar(sidecar, "f")
    sidecar["extraction"]["fve_baseline"] = {"value": 0.5}
    with pytest.raises(CheckpointError, match="name"):
        parse_sidecar(sidecar, "f")
    sidecar["extraction"]["fve_baseline"] = 0.5
    with pytest.raises(CheckpointError, match=r"is 0.5, expected a Baseline"):
        parse_sidecar(sidecar, "f")


def test_a_preset_without_one_has_none():
    assert Checkpoint.preset("ceselder/nanonla-l24-av-qwen3-8b").baseline is None
