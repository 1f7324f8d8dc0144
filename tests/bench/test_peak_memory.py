"""Peak memory with random weights of real sizes: one base and adapters; the larger, not the sum.

    pytest tests/bench/test_peak_memory.py -s

Each figure is of a process of its own, which builds a Qwen3 of random weights on the CPU: the
high-water mark of its resident memory (``VmHWM``) over what it had before any weights were loaded.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM

from nnsight_nla import tiny

PATHS = tiny.paths()
D_MODEL, BLOCKS = 1024, 18

SCRIPT = r"""
import json, re, sys, warnings
from pathlib import Path
warnings.simplefilter("ignore")
import torch
from nnsight import TransformersModel
from nnsight_nla import NLA, Sampling

how, target, av, ar, adapter, lora_ar = sys.argv[1:]
short = Sampling(max_new_tokens=3)
status = Path("/proc/self/status")
read = lambda name: int(re.search(name + r":\s+(\d+)", status.read_text())[1]) * 1024
load = dict(dtype=torch.float32)
vectors = torch.randn(1, 1024)
model = TransformersModel(target, task="text-generation", **load)
if how == "shared":
    nla = NLA.on(model, adapter, ar=lora_ar, sampling=short)
elif how == "base":
    nla = None
else:
    nla = NLA(av, ar=ar, target=model, placement=how, sampling=short, **load)
before = read("VmRSS")
Path("/proc/self/clear_refs").write_text("5")
model.dispatch()
ids = torch.tensor([[1, 2, 3, 4]])
with model.trace(ids):
    first = model.lm_head.output.detach().save()
if nla is not None:
    nla.explain(vectors).raw
    nla.reconstruct("About Paris.")
with model.trace(ids):
    last = model.lm_head.output.detach().save()
print(json.dumps({
    "peak": read("VmHWM") - before, "end": read("VmRSS") - before,
    "same": bool(torch.equal(first, last)),
}))
"""


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A target, a verbalizer, a reconstructor and two adapters of random weights."""
    from safetensors.torch import save_file
    from transformers import AutoTokenizer

    root, found = tmp_path_factory.mktemp("weights"), {}
    tokenizer = AutoTokenizer.from_pretrained(PATHS["target"])
    torch.manual_seed(0)
    for name, blocks in (("target", BLOCKS), ("av", BLOCKS), ("ar", 4)):
        config = AutoConfig.from_pretrained(PATHS["target"])
        config.update({"hidden_size": D_MODEL, "intermediate_size": 3 * D_MODEL})
        config.update({"num_hidden_layers": blocks, "layer_types": ["full_attention"] * blocks})
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        found[name] = root / name
        model.save_pretrained(found[name])
        tokenizer.save_pretrained(found[name])
        if name != "av":
            lora = LoraConfig(r=8, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
            adapted = get_peft_model(model, lora)
            adapted.peft_config["default"].base_model_name_or_path = str(root / "target")
            found[f"{name} adapter"] = root / f"{name}-adapter"
            adapted.save_pretrained(found[f"{name} adapter"])
    sidecar = (PATHS["av"] / "nla_meta.yaml").read_text("utf-8").replace("128", str(D_MODEL))
    for name in ("av", "target adapter"):
        (found[name] / "nla_meta.yaml").write_text(sidecar, "utf-8")
    for name in ("ar", "ar adapter"):
        save_file({"weight": torch.eye(D_MODEL)}, found[name] / "value_head.safetensors")
    return found


def test_peak_memory(folders, tmp_path, capsys):
    script = tmp_path / "peak.py"
    script.write_text(SCRIPT, "utf-8")
    names = ("target", "av", "ar", "target adapter", "ar adapter")
    sizes = {
        name: sum(file.stat().st_size for file in folders[name].glob("*.safetensors")) / 1e6
        for name in names
    }
    found = {}
    for how in ("base", "shared", "sequential", "together"):
        paths = [str(folders[name]) for name in names]
        ran = subprocess.run(
            [sys.executable, str(script), how, *paths],
            capture_output=True, text=True, cwd=Path(__file__).parents[2],
        )  # fmt: skip
        assert ran.returncode == 0, ran.stderr[-2000:]
        found[how] = json.loads(ran.stdout.splitlines()[-1])
    with capsys.disabled():
        print("\nweights on disk, MB:", {name: round(value) for name, value in sizes.items()})
        for how, each in found.items():
            print(f"{how:>11}: peak {each['peak'] / 1e6:6.0f} MB, end {each['end'] / 1e6:6.0f} MB")
    assert all(each["same"] for each in found.values())
    one, peak = found["base"]["peak"], {how: each["peak"] for how, each in found.items()}
    adapters = sizes["target adapter"] + sizes["ar adapter"]
    slack = 0.2 * sizes["target"] * 1e6
    assert peak["shared"] < one + adapters * 1e6 + slack
    assert peak["sequential"] < one + slack
    assert peak["together"] > one + (sizes["av"] + sizes["ar"]) * 1e6 - slack
