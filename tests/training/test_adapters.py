"""The weights of adapters, and their files, against PEFT's own."""

import json

import torch
from safetensors.torch import load_file

from nnsight_nla.training import Lora
from nnsight_nla.training.adapters import adapter_weights, save_adapter, with_adapters
from tests.verbalize.test_architectures import build


def test_the_weights_are_those_that_peft_trains():
    module = build("qwen3")
    assert adapter_weights(module) == {}
    wrapped = with_adapters(module, Lora(rank=2), seed=0)
    trained = {name for name, each in wrapped.named_parameters() if each.requires_grad}
    assert set(adapter_weights(wrapped)) == trained != set()
    # The same tensors, by their names in the module that PEFT put them into.
    inside = {id(each) for each in adapter_weights(module).values()}
    assert inside == {id(each) for each in adapter_weights(wrapped).values()}


def test_an_adapter_is_saved_as_peft_saves_it(tmp_path):
    module = build("gpt2")
    wrapped = with_adapters(module, Lora(rank=2), seed=0)
    with torch.no_grad():
        for weight in adapter_weights(module).values():
            weight.uniform_(-1, 1)
    theirs, ours = tmp_path / "theirs", tmp_path / "ours"
    wrapped.save_pretrained(theirs)
    ours.mkdir()
    save_adapter(module, ours)
    one, two = (load_file(each / "adapter_model.safetensors") for each in (theirs, ours))
    assert set(one) == set(two)
    assert all(torch.equal(one[name], two[name]) for name in one)
    configs = [json.loads((each / "adapter_config.json").read_text()) for each in (theirs, ours)]
    assert configs[0] == configs[1]
    assert wrapped.peft_config["default"].inference_mode is False
