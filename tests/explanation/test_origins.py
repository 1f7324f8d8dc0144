"""A handle says what its vectors are, and whatever takes a handle looks."""

import pickle

import pytest
import torch

from nnsight_nla import InjectionError, NLAError, Origin, Sampling
from nnsight_nla.evaluation.direction import direction

SHORT = Sampling(max_new_tokens=3)
VECTORS = torch.randn(2, 128, generator=torch.Generator().manual_seed(5))
OTHERS = {"model": "Some/Other", "layer": 1, "d_model": 64, "norm": "whitened"}


def test_a_handle_takes_its_vectors_for_what_the_verbalizer_reads(nla):
    handle = nla.explain(VECTORS, sampling=SHORT)
    expected = Origin("nnsight_nla/tiny/weights/target", 3, 128, "none", "residual")
    for each in (handle, handle[0], pickle.loads(pickle.dumps(handle))):
        assert each.origin == expected
    assert handle.to_dict()["origin"] == expected.to_dict()
    assert "another" not in str(handle.warnings)


@pytest.mark.parametrize("name", OTHERS)
def test_another_origin_is_refused_and_an_insisted_handle_says_so(nla, name):
    origin = Origin(**{name: OTHERS[name]})
    message = f"This tensor does not hold .*: {name} is {OTHERS[name]}, expected"
    with pytest.raises(InjectionError, match=message):
        nla.explain(VECTORS, origin=origin)
    handle = nla.explain(VECTORS, origin=origin, claims="ignore", sampling=SHORT)
    assert handle.origin.to_dict()[name] == OTHERS[name]
    for sentences in handle.warnings:
        assert any(f"{name} is {OTHERS[name]}, expected" in each for each in sentences)


def test_whatever_takes_a_handle_refuses_one_of_another_block(nla):
    mine = nla.explain(VECTORS, sampling=SHORT)
    other = nla.explain(VECTORS, origin=Origin(layer=1), claims="ignore", sampling=SHORT)
    for use in (
        lambda: nla.score(other, failures="zero"),
        lambda: nla.trust(other),
        lambda: nla.claims(other),
        lambda: nla.compare(mine, other),
        lambda: nla.compare(other, mine),
        lambda: nla.controls(1, like=other),
        lambda: nla.direction(to="About Rome.", away_from=other),
    ):
        with pytest.raises(InjectionError, match=r"This handle does not hold .*layer.*is [13], ex"):
            use()
    # What the refusals say to do.
    assert nla.compare(mine, other, claims="ignore").shape == (2,)
    assert nla.score(other.text, other.vectors, failures="zero").cosine.shape == (2,)
    assert nla.controls(1, like=other.vectors).random.shape == (1,)
    assert nla.trust(nla.explain(other.vectors, sampling=SHORT))


def test_a_direction_is_known_by_its_type(nla):
    step = direction(torch.randn(1, 128), torch.randn(1, 128), 15.0)
    assert nla.explain(step).origin.kind == "direction"
    said = nla.explain(VECTORS, origin=Origin(kind="difference"), sampling=SHORT)
    note = "its vector is a difference, and the verbalizer was trained on residuals"
    assert all(note in sentences for sentences in said.warnings)


def test_what_is_no_origin(nla):
    with pytest.raises(InjectionError, match=r"origin=\{'layer': 3\}: expected Origin\(model="):
        nla.explain(VECTORS, origin={"layer": 3})
    with pytest.raises(NLAError, match=r"claims='no': expected 'check' or 'ignore'"):
        nla.explain(VECTORS, claims="no")
