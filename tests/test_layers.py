"""One verbalizer for several layers: the prompt says which, call by call."""

import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch

from nnsight_nla import NLA, CheckpointError, InjectionError, NLAError, Origin, Sampling, tiny
from nnsight_nla.bulk import run
from nnsight_nla.checkpoint.checkpoint import Checkpoint, parse_sidecar
from nnsight_nla.remote.wire import RemoteNLA

SHORT = Sampling(max_new_tokens=12)
TOLD = (1, 3, 4)
TEMPLATE = (
    "Layer {layer}, at {depth_pct}%.\n\n<concept>{injection_char}</concept>\n\n"
    "Please provide an explanation."
)


def tiny_checkpoint() -> Checkpoint:
    return Checkpoint.load(tiny.paths()["av"])


@pytest.fixture(scope="module")
def several() -> NLA:
    """The tiny verbalizer, as if it had been trained on three layers."""
    checkpoint = replace(tiny_checkpoint(), template=TEMPLATE, layers=TOLD)
    paths = tiny.paths()
    return NLA(paths["av"], ar=paths["ar"], checkpoint=checkpoint, dtype=torch.float32)


def by_hand(layer: int, blocks: int) -> NLA:
    """An NLA for one layer, whose template was filled in by hand."""
    depth = round(100 * layer / blocks)
    filled = TEMPLATE.replace("{layer}", str(layer)).replace("{depth_pct}", str(depth))
    checkpoint = replace(tiny_checkpoint(), template=filled, layer=layer, baseline=None)
    return NLA(tiny.paths()["av"], checkpoint=checkpoint, dtype=torch.float32)


@pytest.mark.parametrize("layer", TOLD)
def test_each_layer_gets_the_prompt_that_names_it(several, model, residuals, layer):
    blocks = model.config.num_hidden_layers
    plain = by_hand(layer, blocks)
    thought = several.explain(residuals, layer=layer, sampling=SHORT)
    expected = plain.explain(residuals, sampling=SHORT)
    assert several.at_layer(layer).prompt.ids == plain.prompt.ids
    assert thought.raw == expected.raw
    assert thought.origin.layer == layer
    assert thought.receipt.prompt_hash == plain.prompt.hash
    assert f"output of block {layer}," in thought.receipt.layer_convention
    assert not any("expected" in each for row in thought.warnings for each in row)


def test_layers_share_the_weights_and_wait_in_one_nla(several, residuals):
    other = several.at_layer(4)
    assert other.av is several.av
    assert other.runtime is several.runtime
    assert other.at_layer(4) is other is several.at_layer(4)
    assert other.at_layer(3) is several
    waiting = [several.explain(residuals[:2], layer=k, sampling=SHORT) for k in TOLD]
    assert set(several.pending) == set(waiting) == set(other.pending)
    several.resolve(waiting[2])
    assert [each.resolved for each in waiting] == [False, False, True]
    several.resolve()
    assert all(each.resolved for each in waiting)
    assert len({each.receipt.prompt_hash for each in waiting}) == 3
    several.batch_size = 2
    assert other.batch_size == 2


def test_a_trace_reads_and_explains_each_layer(several, model):
    thoughts = {}
    with model.trace("The tower stands in Paris"):
        for layer in TOLD:
            residual = several.layer(model, layer).output[0, -1]
            thoughts[layer] = several.explain(residual, layer=layer, sampling=SHORT)
    with torch.no_grad():
        ids = model.tokenizer("The tower stands in Paris", return_tensors="pt").input_ids
        states = model._module(ids, output_hidden_states=True).hidden_states
    for layer, thought in thoughts.items():
        torch.testing.assert_close(thought.vectors, states[layer + 1][0, -1])
        assert thought.origin.layer == layer
    assert several.layer(model).path == several.layer(model, 3).path


def test_the_reconstructor_belongs_to_one_layer(several, residuals):
    own, other = (several.explain(residuals[:2], layer=k, sampling=SHORT) for k in (3, 4))
    assert own.trust is not None
    assert other.trust is None
    assert several.has_reconstructor
    assert not several.at_layer(4).has_reconstructor
    with pytest.raises(CheckpointError, match=r"is of layer 3, and this NLA reads layer 4\. Use"):
        several.at_layer(4).score(other)
    with pytest.raises(InjectionError, match="layer is 4, expected 3"):
        several.score(other)


def test_a_layer_that_it_was_not_trained_on_is_an_error_with_those_it_was(several, residuals):
    said = r"layer=2: the verbalizer was trained on layers 1, 3, 4\..*claims='ignore'"
    for call in (
        lambda: several.explain(residuals, layer=2),
        lambda: several.layer(None, 2),
        lambda: several.read(None, "text", layer=2),
    ):
        with pytest.raises(CheckpointError, match=said):
            call()
    with pytest.raises(CheckpointError, match="layer='x': expected a block's number, from 0"):
        several.explain(residuals, layer="x")
    one = NLA(tiny.paths()["av"])
    assert one.layers == (3,)
    with pytest.raises(CheckpointError, match="layer=2: the verbalizer was trained on layer 3"):
        one.explain(residuals, layer=2)
    with pytest.raises(CheckpointError, match="layer is 3, but layer is 4"):
        one.explain(residuals, layer=3, origin=Origin(layer=4))


def test_who_insists_is_told_on_the_text(nla, model, residuals):
    thought = nla.explain(residuals, layer=2, claims="ignore", sampling=SHORT)
    assert all(any("is 2, expected 3" in each for each in row) for row in thought.warnings)
    assert {str(each.grade) for each in thought.trust} == {"none"}
    assert nla.layer(model, 2, claims="ignore").path == "model.model.layers.2"


def test_it_travels_to_a_worker_and_a_host(several, model, residuals):
    paths = tiny.paths()
    described = replace(tiny_checkpoint(), template=TEMPLATE, layers=TOLD)
    fresh = NLA(paths["av"], checkpoint=described, layer=4, dtype=torch.float32)
    expected = fresh.prompt
    assert expected == several.at_layer(4).prompt
    spec = fresh.at_layer(1).spec or {}
    assert (spec["layer"], NLA(**spec).prompt) == (1, several.at_layer(1).prompt)
    data = pickle.dumps(several.at_layer(4))
    assert pickle.loads(data) is several.at_layer(4)
    stub = RemoteNLA(several.uid, 3, 128, TOLD)
    assert stub.layer(model, 4).path == several.layer(model, 4).path
    with pytest.raises(ValueError, match="layer=2: the verbalizer was trained on 1, 3, 4"):
        stub.explain(residuals, layer=2)
    with model.trace("In Paris"):
        sent = stub.explain(stub.layer(model, 4).output[0, -1], layer=4)
    capture = several.capture(sent.capture.vectors, **sent.capture.options)
    assert capture.queue is several.at_layer(4).queue
    assert capture.origin.layer == 4


def test_a_data_set_and_a_page_are_of_one_layer(several, model, tmp_path):
    np.save(tmp_path / "v.npy", np.random.default_rng(0).normal(size=(3, 128)).astype("float32"))
    report = run(several.at_layer(4), tmp_path / "v.npy", tmp_path / "o.parquet", sampling=SHORT)
    assert report.errors == 0
    written = Checkpoint.load(tmp_path / "o.parquet")
    assert (written.layer, written.layers) == (4, None)
    reading = several.read(model, "In Paris", layer=4, sampling=SHORT)
    assert reading.layer == 4


def test_a_sidecar_lists_the_layers():
    given = replace(tiny_checkpoint(), template=TEMPLATE, layers=[1, 3, 4])
    assert given.layers == TOLD
    again = parse_sidecar(given.to_sidecar("av"), "s.yaml")
    assert (again.layers, again.template) == (TOLD, TEMPLATE)
    assert given.at_layer(3) is given
    assert (given.at_layer(4).layer, given.at_layer(4).baseline) == (4, None)
    filled = given.at_layer(4).at_depth(8)
    assert filled.template.startswith("Layer 4, at 50%.")
    assert filled.layers is None
    assert filled.source["template"].endswith("{layer} is 4 and {depth_pct} is 50, block 4 of 8")
    for wrong in ((), (1, 2), ("3",), "3"):
        with pytest.raises(
            CheckpointError, match=r"layers is .*expected block numbers from 0, the l"
        ):
            replace(given, layers=wrong)
    with pytest.raises(NLAError, match=r"still has \{layer\}, the number of the layer"):
        from nnsight_nla.checkpoint.prompt import Prompt

        Prompt.render(given, NLA(tiny.paths()["av"]).av.tokenizer)
