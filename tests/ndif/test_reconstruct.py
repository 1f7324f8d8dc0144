"""The other half on NDIF: texts to vectors on the host, the head here, and steering there."""

import pytest
import torch
from nnsight import TransformersModel

from nnsight_nla import NLA, HostError, NLAWarning, tiny

PARIS = "What a lovely day! People in Paris speak"
TEXTS = ["About Paris, the capital of France.", "Short.", "A much longer text, and then some."]


@pytest.fixture(scope="module")
def local():
    return tiny.load()


@pytest.fixture
def target(by_path) -> TransformersModel:
    return TransformersModel(by_path(tiny.paths()["target"]), task="text-generation")


@pytest.fixture
def there(by_path) -> NLA:
    """Both halves on the host."""
    return NLA(by_path(tiny.paths()["av"]), ar=by_path(tiny.paths()["ar"]), remote=True)


def weightless(model) -> bool:
    return all(each.device.type == "meta" for each in model._module.parameters())


def test_texts_become_vectors_on_the_host(either_ndif, there, local):
    expected = local[1].reconstruct(TEXTS)
    torch.testing.assert_close(there.reconstruct(TEXTS), expected, atol=2e-4, rtol=2e-4)
    assert weightless(there.ar)


def test_a_whole_model_on_the_host_is_stopped_after_block_k(either_ndif, by_path):
    base = by_path(tiny.paths()["target"])
    with pytest.warns(NLAWarning, match="identity as head"):
        there = NLA(by_path(tiny.paths()["av"]), ar=base, remote=True)
    with pytest.warns(NLAWarning, match="identity as head"):
        here = NLA(tiny.paths()["av"], ar=base, dtype=torch.float32)
    found = there.reconstruct(TEXTS)
    torch.testing.assert_close(found, here.reconstruct(TEXTS), atol=2e-4, rtol=2e-4)
    assert weightless(there.ar)


def test_scores_labels_and_claims_are_the_local_ones(ndif, there, target, local):
    with target.trace(PARIS, remote=True):
        thought = there.explain(there.layer(target).output[0, -3:])
    model, nla = local
    with model.trace(PARIS):
        here = nla.explain(nla.layer(model).output[0, -3:])
    near = {"atol": 2e-4, "rtol": 2e-4}
    torch.testing.assert_close(there.score(thought).cosine, nla.score(here).cosine, **near)
    for one, other in zip(thought.trust, here.trust, strict=True):
        assert one.grade == other.grade
        assert one.margin == pytest.approx(other.margin, abs=2e-4)
    for one, other in zip(there.claims(thought), nla.claims(here), strict=True):
        for a, b in zip(one.parts, other.parts, strict=True):
            assert (a.text, a.carries) == (b.text, pytest.approx(b.carries, abs=2e-4))


def test_an_edited_explanation_steers_the_model_on_the_host(either_ndif, there, target):
    with target.trace(PARIS, remote=True):
        before = there.explain(there.layer(target).output[0, -1])
    edited = before.text.replace("Paris", "Tokyo").replace("France", "Japan")
    step = there.direction(to=edited, away_from=before)
    with target.trace(PARIS, remote=True):
        there.layer(target).output[:, -1] += 1.0 * step
        after = there.explain(there.layer(target).output[0, -1])
        token = target.lm_head.output[0, -1].argmax(-1).save()
    assert target.tokenizer.decode(token).strip() == "Japanese"
    assert after.text.startswith("About Tokyo, the capital of Japan")
    assert weightless(target)


def test_a_host_that_stays_away_is_named_and_one_that_blinks_is_tried_again(
    ndif, there, monkeypatch
):
    half = there._reconstructor
    real = half._read
    failures = [ConnectionResetError("dropped"), TimeoutError("slow")]

    def flaky(*args):
        if failures:
            raise failures.pop()
        return real(*args)

    monkeypatch.setattr(half, "_read", flaky)
    assert there.reconstruct(TEXTS[0]).shape == (128,)
    assert failures == []


def test_a_refused_connection_says_what_was_asked(ndif, there, monkeypatch):
    from nnsight.schema.config import CONFIG

    monkeypatch.setattr("nnsight_nla.remote.ndif.ATTEMPTS", 2)
    monkeypatch.setattr(CONFIG.API, "HOST", "http://127.0.0.1:9")
    with pytest.raises(HostError, match=r"request to reconstruct 3 texts with .*2 of 2 tries"):
        there.reconstruct(TEXTS)
