"""How reconstructors are stored: each layout against plain PyTorch, and what is refused."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from peft import LoraConfig, inject_adapter_in_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from nnsight_nla import NLA, Checkpoint, CheckpointError, NLAWarning, tiny
from nnsight_nla.models.reconstructor_files import ADAPTER, HEAD, META

PATHS = tiny.paths()
K = 3
TEXTS = ["About Paris, the capital of France.", "Short.", "A much longer text " * 4]
TEMPLATE = "Summary of the following text: <text>{}</text> <summary>"


def pair(ar, **options) -> NLA:
    return NLA(PATHS["av"], ar=ar, dtype=torch.float32, **options)


def plain(model, head, *, norm: bool = False) -> torch.Tensor:
    """Each text alone, no padding: block K at the last token through plain transformers."""
    tokenizer = AutoTokenizer.from_pretrained(PATHS["target"])
    found = []
    for text in TEXTS:
        ids = tokenizer(TEMPLATE.format(text), return_tensors="pt")["input_ids"]
        caught = []
        hook = model.model.layers[K].register_forward_hook(
            lambda module, args, out, caught=caught: caught.append(out)
        )
        with torch.no_grad():
            model(input_ids=ids)
        hook.remove()
        last = caught[0][0, -1]
        found.append((model.model.norm(last) if norm else last) @ head.T)
    return torch.stack(found).detach()


def base():
    return AutoModelForCausalLM.from_pretrained(PATHS["target"], dtype=torch.float32).eval()


def copied(folder: Path, source: str = "ar") -> Path:
    shutil.copytree(PATHS[source], folder)
    return folder


def adapter(folder: Path, *, stripped: bool | None, layers: int = K + 1):
    """A reconstructor as an adapter with random matrices, and the model it is."""
    torch.manual_seed(0)
    model = base()
    model.model.layers = model.model.layers[: K + 1]
    model.config.num_hidden_layers = K + 1
    names = ["q_proj", "v_proj"]
    config = LoraConfig(r=4, lora_alpha=8, use_rslora=True, target_modules=names)
    inject_adapter_in_model(config, model)
    state = {}
    for name, value in model.named_parameters():
        if "lora_" in name:
            value.data.normal_(std=0.3)
            state[f"backbone.{name}"] = value.detach().clone()
    head = torch.randn(128, 128) / 11
    folder.mkdir()
    save_file({**state, "value_head.weight": head}, folder / ADAPTER)
    meta = {"ar_num_layers": layers, "lora_r": 4, "lora_alpha": 8, "target_modules": names}
    meta |= {} if stripped is None else {"final_norm_stripped": stripped}
    (folder / META).write_text(json.dumps(meta), "utf-8")
    return model, head


def named_base(folder: str = "target") -> Checkpoint:
    from dataclasses import replace

    return replace(Checkpoint.load(PATHS["av"]), base_model=str(PATHS[folder]))


def test_a_truncated_model_with_a_head():
    model = AutoModelForCausalLM.from_pretrained(PATHS["ar"], dtype=torch.float32).eval()
    head = load_file(PATHS["ar"] / HEAD)["weight"].float()
    found = pair(PATHS["ar"]).reconstruct(TEXTS)
    torch.testing.assert_close(found, plain(model, head), atol=2e-4, rtol=2e-4)
    assert found.dtype == torch.float32


@pytest.mark.parametrize("stripped", [True, False, None])
def test_an_adapter_with_and_without_the_final_norm(tmp_path, stripped):
    model, head = adapter(tmp_path / "ar", stripped=stripped)
    nla = pair(tmp_path / "ar", checkpoint=named_base())
    expected = plain(model, head, norm=not stripped)
    torch.testing.assert_close(nla.reconstruct(TEXTS), expected, atol=2e-4, rtol=2e-4)
    untouched = plain(base(), head, norm=not stripped)
    assert not torch.allclose(expected, untouched, atol=0.05)
    folder = nla._reconstructor._layout.adapter
    assert folder.is_dir()
    del nla
    import gc

    gc.collect()
    assert not folder.exists()


def test_a_plain_base_model_is_cut_and_warned_of():
    with pytest.warns(NLAWarning, match=r"no value_head.*blocks 0 to 3.*identity"):
        nla = pair(PATHS["target"])
    expected = plain(base(), torch.eye(128))
    torch.testing.assert_close(nla.reconstruct(TEXTS), expected, atol=2e-4, rtol=2e-4)
    assert nla.ar._module.config.num_hidden_layers == K + 1
    assert len(nla.ar._module.model.layers) == K + 1


def test_a_whole_model_with_a_head_is_cut(tmp_path):
    folder = copied(tmp_path / "ar", "target")
    shutil.copy(PATHS["ar"] / HEAD, folder / HEAD)
    with pytest.warns(NLAWarning, match="a head and more blocks than a reconstructor of layer 3"):
        nla = pair(folder)
    expected = plain(base(), load_file(folder / HEAD)["weight"].float())
    torch.testing.assert_close(nla.reconstruct(TEXTS), expected, atol=2e-4, rtol=2e-4)
    assert len(nla.ar._module.model.layers) == K + 1


def test_a_live_model_that_has_all_its_blocks(tmp_path):
    from nnsight import TransformersModel

    folder = copied(tmp_path / "ar", "target")
    shutil.copy(PATHS["ar"] / HEAD, folder / HEAD)
    live = TransformersModel(str(folder), task="text-generation", dtype=torch.float32)
    nla = NLA(PATHS["av"], ar=live)
    assert nla.ar is live
    expected = plain(base(), load_file(folder / HEAD)["weight"].float())
    torch.testing.assert_close(nla.reconstruct(TEXTS), expected, atol=2e-4, rtol=2e-4)


def test_no_weights_before_the_first_text():
    nla = pair(PATHS["ar"])
    assert not nla.ar.dispatched
    assert nla.info()["reconstructor"] == str(PATHS["ar"])
    nla.reconstruct("a text")
    assert nla.ar.dispatched


def damage(folder: Path, name: str, **changes) -> None:
    file = folder / name
    if name.endswith(".yaml"):
        tree = yaml.safe_load(file.read_text("utf-8"))
        for path, value in changes.items():
            node = tree
            *parents, leaf = path.split("__")
            for parent in parents:
                node = node[parent]
            node[leaf] = value
        file.write_text(yaml.safe_dump(tree, allow_unicode=True), "utf-8")
    else:
        meta = json.loads(file.read_text("utf-8"))
        meta |= changes
        file.write_text(json.dumps({k: v for k, v in meta.items() if v is not None}), "utf-8")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"extraction__layer_index": 2, "critic__extraction_layer_index": 2}, "layer is 2, .* 3"),
        ({"d_model": 64}, "d_model is 64, the verbalizer's is 128"),
        ({"tokens__critic_suffix_ids": [1, 2]}, r"ends in the ids \[.*its sidecar says \[1, 2\]"),
        ({"prompt_templates__ar": "{explanation} <summary>"}, "its sidecar says"),
    ],
)
def test_its_own_sidecar_is_checked(tmp_path, changes, message):
    folder = copied(tmp_path / "ar")
    damage(folder, "nla_meta.yaml", **changes)
    with pytest.raises(CheckpointError, match=message):
        pair(folder)


def test_its_own_template_wins(tmp_path):
    folder = copied(tmp_path / "ar")
    template = "Read this: <text>{explanation}</text> <summary>"
    damage(folder, "nla_meta.yaml", prompt_templates__ar=template)
    assert pair(folder)._reconstructor.template == template


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ar_num_layers": 3}, "ar_num_layers is 3; a reconstructor of layer 3 has 4"),
        ({"lora_r": "four"}, "expected numbers for ar_num_layers, lora_r, lora_alpha"),
        ({"lora_alpha": None}, "expected numbers"),
        ({"target_modules": "q_proj"}, "a list of target_modules, got 'q_proj'"),
    ],
)
def test_damaged_meta(tmp_path, changes, message):
    adapter(tmp_path / "ar", stripped=True)
    damage(tmp_path / "ar", META, **changes)
    with pytest.raises(CheckpointError, match=message):
        pair(tmp_path / "ar", checkpoint=named_base())


def test_an_adapter_without_its_parts(tmp_path):
    adapter(tmp_path / "ar", stripped=True)
    weights = tmp_path / "ar" / ADAPTER
    tensors = load_file(weights)
    save_file({k: v for k, v in tensors.items() if "lora" in k}, weights)
    with pytest.raises(CheckpointError, match=r"expected 'value_head.weight' and the adapter's"):
        pair(tmp_path / "ar", checkpoint=named_base())
    weights.unlink()
    with pytest.raises(CheckpointError, match=f"has {META} and no {ADAPTER}"):
        pair(tmp_path / "ar", checkpoint=named_base())


def test_an_adapter_here_cannot_run_there(tmp_path):
    adapter(tmp_path / "ar", stripped=True)
    with pytest.raises(CheckpointError, match="no host can read it"):
        pair(tmp_path / "ar", checkpoint=named_base(), remote=True)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"weight": torch.zeros(64, 64)}, r"head of shape \(64, 64\)"),
        ({"bias": torch.zeros(128)}, r"bias \(128,\); expected one matrix, 'weight'"),
        ({}, "holds nothing"),
    ],
)
def test_a_head_that_does_not_fit(tmp_path, tensors, message):
    folder = copied(tmp_path / "ar")
    save_file(tensors, folder / HEAD)
    with pytest.raises(CheckpointError, match=message):
        pair(folder)


def test_a_head_that_is_no_file_of_tensors(tmp_path):
    folder = copied(tmp_path / "ar")
    (folder / HEAD).write_bytes(b"not tensors")
    with pytest.raises(CheckpointError, match=r"value_head.safetensors cannot be read"):
        pair(folder)
    (folder / HEAD).unlink()
    with pytest.raises(CheckpointError, match=r"has no value_head.safetensors; a reconstructor's"):
        pair(folder)


def test_neither_folder_nor_id(tmp_path):
    with pytest.raises(CheckpointError, match=r"neither a folder .* nor a Hub id"):
        pair(tmp_path / "absent")
    with pytest.raises(CheckpointError, match=r"not in the local Hub cache .*pass its folder"):
        pair("nobody/nothing-l3-ar")
