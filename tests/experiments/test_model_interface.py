"""Experiments on a TransformerBridge: the tables of the nnsight path on the same model."""

import copy
import re

import pytest
import torch
from nnsight import TransformersModel

from nnsight_nla import InjectionError, NLAError, tiny
from nnsight_nla.experiments import ablate, kl, logit_difference, patch, probability, steer
from nnsight_nla.experiments.forward import Edit, Target, find_sites
from nnsight_nla.experiments.metrics import bind
from nnsight_nla.experiments.model_interface import interface_of
from tests.models.test_bridge import boot
from tests.models.test_hosts import build, tokenizer

PARIS = "What a lovely day! People in Paris speak"
ROME = "What a lovely day! People in Rome speak"
OSLO = "What a lovely day! People in Oslo speak"
METRIC = logit_difference(" French", " Italian")
SITES = ("residual", "attention", "mlp", "head")
K = 2


@pytest.fixture(scope="module")
def bridge():
    return boot(tiny.paths()["target"])


def same(ours, theirs):
    """Two tables, number by number and text by text."""
    rows, expected = ours.rows(), theirs.rows()
    assert len(rows) == len(expected) > 0
    for row, other in zip(rows, expected, strict=True):
        assert row.keys() == other.keys()
        for name, value in other.items():
            if isinstance(value, float):
                assert row[name] == pytest.approx(value, abs=1e-3, rel=1e-4), name
            else:
                assert row[name] == value, name


def find(model, *which):
    """The sites in order."""
    return list(find_sites(interface_of(model), *which).values())


def hooks(bridge):
    return sum(
        len(point.fwd_hooks) + len(point._forward_hooks) for point in bridge.hook_dict.values()
    )


@pytest.mark.parametrize("site", SITES)
def test_patching(model, nla, bridge, site):
    options = {"layers": "all", "positions": [7, 8], "metric": METRIC, "site": site}
    options |= {"heads": [0, 3]} if site == "head" else {}
    before, logits = hooks(bridge), bridge(PARIS)
    found = patch(bridge, nla, PARIS, ROME, batch_size=5, **options)
    same(found, patch(model, nla, PARIS, ROME, **options))
    effects = [abs(row["effect"]) for row in found.rows()]
    assert max(effects) > (0.5 if site == "residual" else 0.01), "something was written"
    assert any(row["text_changed"] for row in found.rows()) or site != "residual"
    assert hooks(bridge) == before
    assert torch.equal(bridge(PARIS), logits)


@pytest.mark.parametrize(
    "given",
    [
        {"method": "zero", "site": "mlp"},
        {"method": "mean", "reference": [ROME, OSLO]},
        {"method": "resample", "reference": [ROME, "A dog."], "over": "tokens", "site": "head"},
        {"method": "project", "direction": torch.arange(128.0) - 60},
    ],
    ids=lambda given: given["method"],
)
def test_ablating(model, nla, bridge, given):
    options = {"layers": [1, 3, 5], "positions": [7, 8], "metric": kl("clean"), **given}
    found = ablate(bridge, nla, PARIS, **options)
    same(found, ablate(model, nla, PARIS, **options))
    assert max(row["effect"] for row in found.rows()) > 2e-4
    everywhere = {**options, "positions": "every", "explain_at": [-1, 2]}
    same(ablate(bridge, nla, PARIS, **everywhere), ablate(model, nla, PARIS, **everywhere))


def test_steering(model, nla, bridge):
    with model.trace(PARIS):
        thought = nla.explain(nla.layer(model).output[0, -1])
    vector = nla.direction(to=thought.text.replace("Paris", "Rome"), away_from=thought)
    options = {"layers": [3], "positions": -1, "metric": probability(" French")}
    options |= {"vector": vector, "doses": [0.5, 1], "explain_at": "patched"}
    found = steer(bridge, nla, PARIS, **options)
    same(found, steer(model, nla, PARIS, **options))
    assert any(row["text_changed"] for row in found.rows())


def test_a_sweep_of_a_bridge_is_stored_and_goes_on(nla, bridge, tmp_path):
    options = {"layers": [0, 3], "positions": [7, 8], "metric": METRIC}
    whole = patch(bridge, nla, PARIS, ROME, **options)
    path = whole.to_parquet(tmp_path / "sweep.parquet")
    same(patch(bridge, nla, PARIS, ROME, resume=path, **options), whole)


@pytest.mark.parametrize("family", ["qwen3", "llama", "gemma3", "gpt2"])
@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("action", ["write", "add", "project"])
def test_a_batch_of_edits_is_the_nnsight_paths_in_every_architecture(family, site, action):
    plain = build(family)
    plain.config.architectures = [type(plain).__name__]  # As every stored model has it.
    with torch.no_grad():
        for parameter in plain.parameters():
            if parameter.ndim > 1:
                parameter.mul_(8)  # Default initialisation is so small that nothing is heard.
    words = tokenizer()
    models = (
        TransformersModel(plain, tokenizer=words),
        boot(family, hf_model=copy.deepcopy(plain), tokenizer=words),
    )
    places = [(layer, position) for layer in range(4) for position in (0, 2, 4)]
    torch.manual_seed(1)
    vectors, found = None, []
    for each in models:
        where = {layer: find(each, site, layer)[-1] for layer in range(4)}
        if vectors is None:
            vectors = torch.randn(len(places), where[0].width)
            vectors /= vectors.norm(dim=-1, keepdim=True) if action == "project" else 1
        edits = [
            Edit(row, position, where[layer], vectors[row])
            for row, (layer, position) in enumerate(places)
        ]
        found.append(
            Target(interface_of(each), find(each, "residual", K)[0].envoy, K).run(
                [[4, 5, 6, 7, 8]] * len(places),
                bind(lambda logits: logits[:, 0], words),
                edits=edits,
                action=action,
                collect={"here": where[1]},
                read=[(row, 4) for row in range(len(places))],
            )
        )
    near = {"atol": 2e-4, "rtol": 2e-4}
    torch.testing.assert_close(found[1].answers, found[0].answers, **near)
    torch.testing.assert_close(found[1].residuals, found[0].residuals, **near)
    torch.testing.assert_close(found[1].values["here"], found[0].values["here"], **near)
    assert found[1].top == found[0].top
    spread = found[1].answers - found[1].answers[0]
    assert (spread.abs().amax(dim=-1) > 1e-3).sum() >= 8, "the edits are heard"


def test_hooks_of_ones_own_stay_and_act_first(nla, bridge):
    """A bridge that is ablated by hand is swept as it is, and is ablated afterwards too."""
    options = {"layers": [1], "positions": [7], "metric": METRIC}
    alone = patch(bridge, nla, PARIS, ROME, **options)
    silence = [("blocks.0.mlp.hook_out", lambda value, hook: torch.zeros_like(value))]
    with bridge.hooks(fwd_hooks=silence):
        before = hooks(bridge)
        silenced = patch(bridge, nla, PARIS, ROME, **options)
        assert hooks(bridge) == before
    assert silenced.rows()[0]["metric"] != pytest.approx(alone.rows()[0]["metric"], abs=1e-2)


def test_a_bridge_runs_on_this_machine(nla, bridge):
    for experiment, given in (
        (patch, {}),
        (ablate, {"method": "zero"}),
        (steer, {"vector": torch.ones(128)}),
    ):
        prompts = (PARIS, ROME) if experiment is patch else (PARIS,)
        with pytest.raises(NLAError, match=r"remote=True needs an nnsight model; a TransformerB"):
            experiment(
                bridge, nla, *prompts, layers=0, positions=-1, metric=METRIC, remote=True, **given
            )


def test_processed_weights_are_refused(nla):
    folded = boot(tiny.paths()["target"])
    options = {"layers": 0, "positions": -1, "metric": METRIC}
    target = Target.of(folded, nla, remote=False)
    folded.enable_compatibility_mode()
    for use in (
        lambda: patch(folded, nla, PARIS, ROME, **options),
        lambda: target.run([[4, 5]], bind(METRIC, folded.tokenizer)),
    ):
        with pytest.raises(InjectionError, match="were processed"):
            use()


def test_a_block_without_such_a_hook_point_says_what_it_has(bridge, monkeypatch):
    less = {name: point for name, point in bridge.hook_dict.items() if ".attn.o." not in name}
    monkeypatch.setattr(type(bridge), "hook_dict", property(lambda self: less))
    message = "has no hook point blocks.1.attn.o.hook_in; block 1 has attn.hook_"
    with pytest.raises(InjectionError, match=re.escape(message)):
        find(bridge, "head", 1)
    assert len(find(bridge, "residual", "all")) == 6


def test_a_hook_point_that_the_forward_pass_leaves_out_is_no_silent_zero(nla, bridge, monkeypatch):
    target = Target.of(bridge, nla, remote=False)
    site = find(bridge, "mlp", 2)[0]
    deaf = lambda self, rows, fwd_hooks, **options: self(rows)  # noqa: E731
    monkeypatch.setattr(type(bridge), "run_with_hooks", deaf)
    with pytest.raises(InjectionError, match=r"did not come by blocks\.2\.mlp\.hook_out, so"):
        target.run([[4, 5]], bind(METRIC, bridge.tokenizer), collect={"here": site})


def test_what_is_no_model_is_told_of_both_kinds(nla, monkeypatch):
    monkeypatch.setattr(nla, "layer", lambda model: None)
    with pytest.raises(InjectionError, match="TransformersModel or a TransformerLens Transformer"):
        Target.of(torch.nn.Linear(2, 2), nla, remote=False)
