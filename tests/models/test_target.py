"""The target: the right module for each kind of model, and the checks of its residual."""

from dataclasses import replace

import pytest

from nnsight_nla import InjectionError, tiny
from nnsight_nla.models import bridge, hosts, target

CHECKPOINT_NAME = str(tiny.paths()["target"])


def test_each_kind_of_model_has_its_module(model, monkeypatch):
    assert target.kind(model) is hosts
    monkeypatch.setattr(bridge, "is_bridge", lambda value: value is model)
    assert target.kind(model) is bridge


def test_an_nnsight_model(model, nla):
    assert target.describe(model) == hosts.describe(model) == CHECKPOINT_NAME
    assert target.residual(model, nla.checkpoint) is model.model.layers[nla.checkpoint.layer]
    assert target.positions(model, "People in Paris") == hosts.positions(model, "People in Paris")


def test_a_residual_of_another_width_or_depth_is_refused(model, nla):
    wide = replace(nla.checkpoint, d_model=4096, base_model="some/other")
    with pytest.raises(InjectionError, match=r"has d_model 128, .* 4096\. It was trained on some/"):
        target.residual(model, wide)
    nameless = replace(wide, base_model=None)
    with pytest.raises(InjectionError, match="It was trained on another model"):
        target.residual(model, nameless)
    with pytest.raises(InjectionError, match="block 40 was requested"):
        target.residual(model, replace(nla.checkpoint, layer=40))
    with pytest.raises(InjectionError, match="Expected an nnsight TransformersModel, got str"):
        target.residual("gpt2", nla.checkpoint)


def test_a_foreign_model_has_another_name(model, nla):
    named = replace(nla.checkpoint, base_model=f"somebody/{CHECKPOINT_NAME.split('/')[-1].upper()}")
    assert not target.is_foreign(model, named)
    assert not target.is_foreign(model, replace(named, base_model=None))
    assert target.is_foreign(model, replace(named, base_model="Qwen/Qwen3-8B"))
