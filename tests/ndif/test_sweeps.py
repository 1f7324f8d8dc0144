"""Sweeps on a real NDIF server: the same table as on this machine."""

import pytest
import torch

from nnsight_nla import NLA, HostError, tiny
from nnsight_nla.experiments import (
    ExperimentError,
    ablate,
    kl,
    logit_difference,
    patch,
    probability,
    steer,
)

PARIS = "What a lovely day! People in Paris speak"
ROME = "What a lovely day! People in Rome speak"
METRIC = logit_difference(" French", " Italian")


pytestmark = pytest.mark.usefixtures("as_installed")


@pytest.fixture(scope="module")
def local():
    return tiny.load()


def same(remote, here):
    """The two tables, number by number and text by text."""
    rows, expected = remote.rows(), here.rows()
    assert len(rows) == len(expected) > 0
    for row, other in zip(rows, expected, strict=True):
        for name in other:
            if isinstance(other[name], float):
                assert row[name] == pytest.approx(other[name], abs=1e-3), name
            else:
                assert row[name] == other[name], name


@pytest.mark.parametrize("site", ["residual", "head"])
def test_patching(ndif, target, local, site):
    model, nla = local
    options = {"layers": [0, 3, 5], "positions": [7, 8], "metric": METRIC, "site": site}
    options |= {"heads": [1]} if site == "head" else {}
    here = patch(model, nla, PARIS, ROME, **options)
    same(patch(target, nla, PARIS, ROME, batch_size=4, remote=True, **options), here)
    assert all(each.device.type == "meta" for each in target._module.parameters())


def test_patching_where_the_block_runs_without_weights(sandboxed_ndif, target, local):
    model, nla = local
    options = {"layers": [0, 4], "positions": [7, 8], "metric": kl("clean")}
    here = patch(model, nla, PARIS, ROME, **options)
    same(patch(target, nla, PARIS, ROME, remote=True, **options), here)


def test_ablating_and_steering(ndif, target, local):
    model, nla = local
    options = {"layers": [1, 3], "positions": [7, 8], "metric": probability(" French")}
    mean = {"method": "mean", "reference": ["What a lovely day! People in Oslo speak"]}
    project = {"method": "project", "direction": torch.ones(128)}
    for given in ({"method": "zero", "site": "mlp"}, mean, project):
        here = ablate(model, nla, PARIS, **given, **options)
        same(ablate(target, nla, PARIS, remote=True, **given, **options), here)
    with model.trace(PARIS):
        thought = nla.explain(nla.layer(model).output[0, -1])
    vector = nla.direction(to=thought.text.replace("Paris", "Rome"), away_from=thought)
    steered = {"vector": vector, "doses": [0.5, 1]}
    here = steer(model, nla, PARIS, **steered, **options)
    same(steer(target, nla, PARIS, remote=True, **steered, **options), here)


def test_the_verbalizer_on_the_host_too(ndif, target, local, by_path):
    model, nla = local
    there = NLA(by_path(tiny.paths()["av"]), remote=True)
    options = {"layers": [0], "positions": [7, 8], "metric": METRIC}
    here = patch(model, nla, PARIS, ROME, **options)
    same(patch(target, there, PARIS, ROME, remote=True, **options), here)


def test_only_what_the_metric_needs_comes_back(ndif, target, local, monkeypatch):
    from nnsight.intervention.backends.remote import RemoteBackend

    received = []
    real = RemoteBackend.finalize
    monkeypatch.setattr(
        RemoteBackend, "finalize", lambda self, c: received.append(len(c)) or real(self, c)
    )
    options = {"layers": [4], "positions": "all", "metric": METRIC, "batch_size": 64}
    patch(target, local[1], PARIS, ROME, remote=True, **options)
    print(f"\nbytes of the runs of the two prompts, and of nine cells: {received}")
    assert received[-1] < 9 * 1496, "less than one byte for each logit"


def test_a_host_that_goes_away_costs_nothing_that_was_done(ndif, target, local, monkeypatch):
    from nnsight_nla.experiments import model_interface

    model, nla = local
    options = {"layers": [0, 3], "positions": [7, 8], "metric": METRIC, "batch_size": 2}
    real, calls = model_interface.send, []

    def send(request, what):
        calls.append(what)
        if len(calls) == 4:
            raise HostError(f"{what} failed")
        return real(request, what)

    monkeypatch.setattr(model_interface, "send", send)
    with pytest.raises(
        ExperimentError, match=r"stopped after 2 of 4 cells with HostError"
    ) as caught:
        patch(target, nla, PARIS, ROME, remote=True, **options)
    partial = caught.value.partial
    sweep = patch(target, nla, PARIS, ROME, remote=True, resume=partial, **options)
    same(sweep, patch(model, nla, PARIS, ROME, **options))
