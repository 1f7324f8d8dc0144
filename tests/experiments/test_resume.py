"""A sweep goes on with its own metric, model and verbalizer only, known by their contents."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from nnsight_nla import Sampling, Sweep
from nnsight_nla.experiments import (
    ExperimentError,
    ablate,
    kl,
    logit_difference,
    patch,
    probability,
    steer,
)
from nnsight_nla.experiments.records import Outcome
from nnsight_nla.experiments.resume import _apart

CLEAN = "What a lovely day! People in Paris speak"
CORRUPT = "What a lovely day! People in Rome speak"
METRIC = logit_difference(" French", " Italian")
OPTIONS = {"layers": [1, 4], "positions": [-1]}


def scaled(by, tokens=(5, 6)):
    def metric(logits):
        return by * (logits[:, tokens[0]] - logits[:, tokens[1]])

    return metric


def run(experiment, model, nla, **options):
    options = {**OPTIONS, "metric": METRIC, **options}
    if experiment is patch:
        return patch(model, nla, CLEAN, CORRUPT, **options)
    own = {ablate: {"method": "zero"}, steer: {"vector": torch.ones(128)}}[experiment]
    return experiment(model, nla, CLEAN, **own, **options)


METRICS = {
    "a closed-over number": (scaled(1.0), scaled(1.0001)),
    "a closed-over list": (scaled(1.0, [5, 6]), scaled(1.0, [5, 7])),
    "a lambda": (lambda logits: logits[:, 3], lambda logits: logits[:, 4]),
    "given logits": (kl(torch.arange(4096.0) / 4096), kl(torch.arange(4096.0) / 4097)),
    "a token with the same name": (probability(" French"), probability(" Italian")),
}


@pytest.mark.parametrize("stored", [False, True], ids=["in memory", "stored"])
@pytest.mark.parametrize("what", METRICS)
def test_another_metric_of_the_same_name(model, nla, tmp_path, what, stored):
    one, two = METRICS[what]
    if what == "given logits":
        size = model._module.config.vocab_size
        one, two = (kl(each.reference.repeat(4)[:size]) for each in (one, two))
    partial = run(ablate, model, nla, metric=one)
    resume = partial.to_parquet(tmp_path / "sweep") if stored else partial
    with pytest.raises(ExperimentError, match=r"resume= is another sweep: ") as caught:
        run(ablate, model, nla, metric=two, resume=resume)
    if what != "a token with the same name":
        assert str(caught.value) == (
            "resume= is another sweep: its metric has this name and is another function, or reads "
            "other values. Resume with the call it was made by, or make the sweep again: leave out "
            "resume=."
        )
    assert run(ablate, model, nla, metric=one, resume=resume).rows() == partial.rows()


def test_a_metric_that_was_defined_again_is_the_same(model, nla):
    partial = run(ablate, model, nla, metric=scaled(2.0))
    assert run(ablate, model, nla, metric=scaled(2.0), resume=partial).rows() == partial.rows()


@pytest.mark.parametrize("experiment", [patch, ablate, steer])
@pytest.mark.parametrize("where", ["below K", "above K"])
def test_changed_weights(model, nla, tmp_path, experiment, where):
    """Below the explained layer the residual shows it, above it the metric."""
    path = run(experiment, model, nla).to_parquet(tmp_path / "sweep")
    layer = model._module.model.layers[1 if where == "below K" else -1]
    weight = layer.mlp.down_proj.weight
    kept = weight.detach().clone()
    try:
        with torch.no_grad():
            weight.mul_(1.5)
        with pytest.raises(ExperimentError) as caught:
            run(experiment, model, nla, resume=path)
    finally:
        with torch.no_grad():
            weight.copy_(kept)
    message = str(caught.value)
    assert message.startswith("resume= was made by another model, or another state of ")
    said = "the residual of the" if where == "below K" else "the metric of the"
    assert said in message
    assert message.endswith("in the same dtype, or make the sweep again: leave out resume=.")
    assert run(experiment, model, nla, resume=path).complete


def test_texts_by_another_verbalizer(model, nla, tmp_path, monkeypatch):
    partial = run(ablate, model, nla)
    path = partial.to_parquet(tmp_path / "sweep")
    monkeypatch.setattr(nla, "sampling", Sampling(max_new_tokens=3))
    with pytest.raises(ExperimentError) as caught:
        run(ablate, model, nla, resume=path)
    assert str(caught.value) == (
        "resume= is another sweep: its texts are by another verbalizer, prompt or sampling. Resume "
        "with the call it was made by, or make the sweep again: leave out resume=."
    )
    monkeypatch.undo()
    # Stored again, it still says who wrote its texts.
    again = Sweep.from_parquet(path).to_parquet(tmp_path / "again")
    assert Sweep.from_parquet(again).identity == partial.identity
    assert set(partial.identity) == {"metric", "verbalizer"}
    assert run(ablate, model, nla, resume=again).rows() == partial.rows()


def test_a_sweep_of_an_earlier_version_goes_on(model, nla, tmp_path):
    """It has no hashes; its runs are compared all the same."""
    partial = run(ablate, model, nla)
    table = pq.read_table(partial.to_parquet(tmp_path / "sweep"))
    about = json.loads(table.schema.metadata[b"nnsight_nla.sweep"])
    del about["identity"]
    old = table.replace_schema_metadata({"nnsight_nla.sweep": json.dumps(about)})
    pq.write_table(old, tmp_path / "old")
    assert run(ablate, model, nla, resume=tmp_path / "old").rows() == partial.rows()
    with pytest.raises(ExperimentError, match="the metric of the clean run was"):
        run(ablate, model, nla, metric=logit_difference(" French", " Italian"),
            resume=_with_metric(tmp_path / "old", 99.0))  # fmt: skip


def _with_metric(path, value):
    table = pq.read_table(path)
    column = table.schema.get_field_index("metric")
    field = table.schema.field(column)
    changed = table.set_column(column, field, pa.array([value] * len(table), pa.float64()))
    pq.write_table(changed, path)
    return path


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16, torch.float16])
def test_rounding_is_not_a_change_and_a_change_is(kind):
    vector = torch.randn(64, generator=torch.Generator().manual_seed(0)).to(kind).float()
    noise = torch.randn(64, generator=torch.Generator().manual_seed(1))
    before = {"clean": Outcome(4.0, "", {3: vector})}
    for share, same in ((0.1, True), (20, False)):
        bound = 1e-3 if kind == torch.float32 else 3e-2
        moved = vector + noise / noise.norm() * vector.norm() * bound * share
        metric = 4.0 * (1 + bound * share)
        found = [
            list(_apart(before, {"clean": Outcome(*each)}))
            for each in ((4.0, "", {3: moved.to(kind).float()}), (metric, "", {3: vector}))
        ]
        assert [not each for each in found] == [same, same]


@pytest.mark.parametrize(("a", "b"), [(None, 1.0), (1.0, None)])
def test_a_metric_that_was_not_finite(a, b):
    runs = [{"clean": Outcome(each, "", {})} for each in (a, b)]
    assert list(_apart(*runs))
    assert not list(_apart(runs[0], runs[0]))


@pytest.mark.parametrize("width", [16, 20, 7])
def test_a_random_direction_is_the_same_whatever_their_number(width):
    from nnsight_nla.experiments.steer import _random

    vector = torch.arange(1.0, width + 1)
    few, more = (_random(vector, controls, 3) for controls in (2, 5))
    assert list(more) == [f"random {i}" for i in range(5)]
    for name, each in few.items():
        assert torch.equal(each, more[name])
        torch.testing.assert_close(each.norm(), vector.norm())
