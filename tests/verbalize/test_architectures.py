"""Every architecture, small and random: block K, and what is written, against a plain hook."""

import copy
import importlib.util
import warnings
from pathlib import Path

import pytest
import torch
from nnsight import TransformersModel
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import (
    Gemma3Config,
    Gemma3ForCausalLM,
    Gemma3ForConditionalGeneration,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from nnsight_nla import NLA, Checkpoint, Injection, Sampling, tiny
from nnsight_nla.errors import CheckpointError, NLAWarning
from nnsight_nla.models import hosts
from nnsight_nla.models.loading import load_model
from tests.checkpoint.test_prompt import tokenizer

TEMPLATE = "Say <concept>{injection_char}</concept>."
VOCABULARY = 264
D, DEPTH, K = 32, 5, 2
TEXT_SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": D,
    "intermediate_size": 48,
    "num_hidden_layers": DEPTH,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 258,
    "eos_token_id": 261,
}
VISION = {
    "hidden_size": 8,
    "intermediate_size": 8,
    "num_hidden_layers": DEPTH,  # As long as the language model is deep.
    "num_attention_heads": 1,
    "image_size": 16,
    "patch_size": 8,
}
GEMMA = {**TEXT_SHAPE, "sliding_window": 8, "layer_types": None, "query_pre_attn_scalar": 16}
FAMILIES = {
    "qwen2": (Qwen2ForCausalLM, Qwen2Config(**TEXT_SHAPE), "model.layers"),
    "qwen3": (Qwen3ForCausalLM, Qwen3Config(**TEXT_SHAPE), "model.layers"),
    "llama": (LlamaForCausalLM, LlamaConfig(**TEXT_SHAPE), "model.layers"),
    "gemma3": (Gemma3ForCausalLM, Gemma3TextConfig(**GEMMA), "model.layers"),
    "gemma3 in its wrapper": (
        Gemma3ForConditionalGeneration,
        Gemma3Config(text_config=GEMMA, vision_config=VISION, mm_tokens_per_image=1),
        "model.language_model.layers",
    ),
    "gpt2": (
        GPT2LMHeadModel,
        GPT2Config(
            vocab_size=VOCABULARY, n_embd=D, n_layer=DEPTH, n_head=2, n_positions=128,
            bos_token_id=258, eos_token_id=261,
        ),
        "transformer.h",
    ),
}  # fmt: skip
RENAMES = {
    "gpt2": {"transformer": "model", "h": "layers"},
    "gemma3 in its wrapper": {"model.language_model": "text"},
}
INJECTIONS = {
    "add": Injection("add", "block", 1),
    "add with its coefficient": Injection("add", "block", 2, 2.5),
    "replace": Injection("replace", "embedding", None, 40.0),
}
END = 261
FEW = Sampling(max_new_tokens=6)


def build(family: str) -> nn.Module:
    """Weights from U(-1, 1): a default-init model is deaf to what is written."""
    kind, config, _ = FAMILIES[family]
    module = kind(copy.deepcopy(config)).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.rand(parameter.shape, generator=generator) * 2 - 1)
    return module


def plain_blocks(module: nn.Module, family: str) -> nn.ModuleList:
    return module.get_submodule(FAMILIES[family][2])


def wrapped(module: nn.Module, **options) -> TransformersModel:
    return TransformersModel(module, tokenizer=tokenizer(), task="text-generation", **options)


def described(injection: Injection, template: str = TEMPLATE) -> Checkpoint:
    return Checkpoint(
        layer=K, d_model=D, template=template, marker="㈎", marker_id=257, injection=injection
    )


def explained(av: TransformersModel, injection: Injection, template: str = TEMPLATE) -> NLA:
    return NLA(av, checkpoint=described(injection, template))


VECTORS = torch.randn(3, D, generator=torch.Generator().manual_seed(2)) * 9


def plain_written(module: nn.Module, family: str, nla: NLA, vector: torch.Tensor):
    """The greedy ids, what the block after the site read, and the first step's logits."""
    injection, sites = nla.checkpoint.injection, nla.prompt.sites
    blocks = plain_blocks(module, family)
    where = module.get_input_embeddings() if injection.layer is None else blocks[injection.layer]
    seen: list[torch.Tensor] = []
    prefill: torch.Tensor | None = None

    def write(each, args, output):
        if seen:
            return None  # The prefill only.
        hidden = (output[0] if isinstance(output, tuple) else output).clone()
        for site in sites:
            here, direction = hidden[:, site], vector / vector.norm()
            if injection.operation == "add":
                hidden[:, site] = here + (injection.scale or 1) * here.norm() * direction
            else:
                hidden[:, site] = injection.scale * direction
        seen.append(hidden)
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    ids = torch.tensor([nla.prompt.ids])
    read: list[torch.Tensor] = []
    handle = where.register_forward_hook(write)
    follower = _after(module, family, nla).register_forward_pre_hook(
        lambda each, args, kwargs: read.append(_hidden(args, kwargs)), with_kwargs=True
    )
    with torch.no_grad():
        for _ in range(FEW.max_new_tokens):
            logits = module(input_ids=ids, use_cache=False).logits
            if prefill is None:
                prefill, first = read[0][0], logits[0, -1]
            seen.clear()  # With no cache every step is a prefill, written anew.
            ids = torch.cat([ids, logits[:, -1].argmax(-1, keepdim=True)], dim=1)
            if int(ids[0, -1]) == END:
                break
    handle.remove()
    follower.remove()
    return ids[0, len(nla.prompt.ids) :].tolist(), prefill, first


@pytest.fixture(scope="module", params=sorted(FAMILIES))
def family(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def module(family) -> nn.Module:
    return build(family)


@pytest.mark.parametrize("road", ["plain", "rename", "adapter"])
def test_layer_finds_block_k_on_every_road(family, module, road):
    blocks = plain_blocks(module, family)
    if road == "rename":
        model = wrapped(build(family), rename=RENAMES.get(family, {"model": "body"}))
        blocks = plain_blocks(model._module, family)
    elif road == "adapter":
        bare = build(family)
        blocks = plain_blocks(bare, family)
        model = wrapped(with_adapter(bare))
    else:
        model = wrapped(module)
    nla = explained(model, INJECTIONS["add"])
    envoy = nla.layer(model)
    assert envoy._module is blocks[K]
    ids = torch.tensor([[4, 9, 10, 11, 5]])
    with torch.no_grad(), model.trace(ids):
        read = envoy.output.save()
        read = read[0] if isinstance(read, tuple) else read
    seen = []
    handle = blocks[K].register_forward_hook(lambda each, args, output: seen.append(output))
    with torch.no_grad():
        model._module(input_ids=ids)
    handle.remove()
    plain = seen[0][0] if isinstance(seen[0], tuple) else seen[0]
    assert read.shape == (1, 5, D)
    assert torch.equal(read, plain)


def with_adapter(module: nn.Module) -> nn.Module:
    """A LoRA that is not the identity."""
    last = [name.rpartition(".")[2] for name, _ in module.named_modules()]
    targets = ["c_attn"] if "c_attn" in last else ["q_proj", "down_proj"]
    # The vision tower's projections go by the same names.
    only = r".*language_model.*\.(q_proj|down_proj)" if "vision_tower" in last else targets
    config = LoraConfig(
        r=2, target_modules=only, task_type="CAUSAL_LM", fan_in_fan_out=targets == ["c_attn"]
    )
    adapted = get_peft_model(module, config).eval()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.rand(parameter.shape, generator=generator) - 0.5)
    return adapted


@pytest.mark.parametrize("name", sorted(INJECTIONS))
def test_what_is_written_and_said_is_what_a_plain_hook_writes(family, module, name):
    nla = explained(wrapped(module), INJECTIONS[name])
    site = nla._verbalizer.site._module
    seen: list[torch.Tensor] = []
    follower = _after(module, family, nla)
    handle = follower.register_forward_pre_hook(
        lambda each, args, kwargs: seen.append(_hidden(args, kwargs)), with_kwargs=True
    )
    thoughts = nla.explain(VECTORS, sampling=FEW)
    raws = thoughts.raw
    handle.remove()
    assert site is (
        module.get_input_embeddings()
        if INJECTIONS[name].layer is None
        else plain_blocks(module, family)[INJECTIONS[name].layer]
    )
    first = []
    for row, vector in enumerate(VECTORS):
        ids, plain, logits = plain_written(module, family, nla, vector)
        # What stands before the marker is run apart, once for all rows.
        start = nla.prompt.marker_position
        torch.testing.assert_close(seen[0][0], plain[:start], rtol=1e-5, atol=1e-4)
        torch.testing.assert_close(seen[1][row], plain[start:], rtol=1e-5, atol=1e-4)
        assert raws[row] == reply(nla, ids)
        first.append(logits)
    # The model hears the vector, or the above would hold for any writing.
    assert (first[0] - first[1]).abs().max() > 0.005


def reply(nla: NLA, ids: list[int]) -> str:
    stop = ids.index(END) if END in ids else len(ids)
    return nla.av.tokenizer.decode(ids[:stop], skip_special_tokens=True)


def _after(module: nn.Module, family: str, nla: NLA) -> nn.Module:
    """The module that reads what was written: the block after the site."""
    layer = nla.checkpoint.injection.layer
    return plain_blocks(module, family)[0 if layer is None else layer + 1]


def _hidden(args, kwargs) -> torch.Tensor:
    hidden = args[0] if args else kwargs["hidden_states"]
    return hidden.detach().clone()


def test_gemmas_embedding_is_written_after_its_factor(family, module):
    """The module multiplies by sqrt(d): what is put there has exactly the declared length."""
    if not family.startswith("gemma3"):
        pytest.skip("only Gemma's embedding has a factor")
    table = module.get_input_embeddings()
    assert type(table).__name__ == "Gemma3TextScaledWordEmbedding"
    nla = explained(wrapped(module), INJECTIONS["replace"])
    receipt = nla.explain(VECTORS[0], sampling=FEW).receipt
    assert receipt.norm_after == pytest.approx(40.0, rel=1e-5)
    bare = table.weight[257].norm().item()
    assert receipt.norm_before == pytest.approx(bare * D**0.5, rel=1e-4)
    assert receipt.injection_cosine == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize("road", ["rename", "adapter"])
def test_a_verbalizer_on_every_road_says_what_the_plain_one_says(family, road):
    bare = build(family)
    if road == "adapter":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            merged = with_adapter(build(family)).merge_and_unload().eval()
        reference, other = wrapped(merged), wrapped(with_adapter(bare))
    else:
        reference, other = (
            wrapped(bare),
            wrapped(build(family), rename=RENAMES.get(family, {"model": "body"})),
        )
    for injection in (INJECTIONS["add"], INJECTIONS["replace"]):
        expected = explained(reference, injection).explain(VECTORS, sampling=FEW)
        found = explained(other, injection).explain(VECTORS, sampling=FEW)
        assert found.raw == expected.raw


@pytest.mark.parametrize("name", sorted(INJECTIONS))
def test_several_slots_all_get_the_vector(name):
    module = build("qwen3")
    template = "Say <c>{injection_char}</c> and <c>{injection_char}</c>."
    nla = explained(wrapped(module), INJECTIONS[name], template)
    assert len(nla.prompt.sites) == 2
    ends = [nla.av.tokenizer.encode(each, add_special_tokens=False)[0] for each in "><"]
    assert [nla.checkpoint.left_id, nla.checkpoint.right_id] == ends
    seen: list[torch.Tensor] = []
    handle = _after(module, "qwen3", nla).register_forward_pre_hook(
        lambda each, args: seen.append(args[0].detach().clone())
    )
    raw = nla.explain(VECTORS[0], sampling=FEW).raw
    handle.remove()
    ids, plain, _ = plain_written(module, "qwen3", nla, VECTORS[0])
    torch.testing.assert_close(torch.cat([seen[0][0], seen[1][0]]), plain, rtol=1e-5, atol=1e-4)
    assert raw == reply(nla, ids)


def test_the_depth_slot_is_filled_from_the_verbalizers_own_depth(tmp_path):
    template = "At {depth_pct}%: <c>{injection_char}</c>"
    nla = explained(wrapped(build("llama")), INJECTIONS["add"], template)
    assert "{depth_pct}" not in nla.prompt.text
    assert nla.checkpoint.template == "At 40%: <c>{injection_char}</c>"  # Block 2 of 5.
    assert nla.checkpoint.source["template"] == "the caller; {depth_pct} is 40, block 2 of 5"
    tokenizer().save_pretrained(tmp_path)
    FAMILIES["gemma3 in its wrapper"][1].save_pretrained(tmp_path)
    from_folder = NLA(tmp_path, checkpoint=described(INJECTIONS["add"], template))
    assert from_folder.checkpoint == nla.checkpoint
    assert not from_folder.av.dispatched
    (tmp_path / "config.json").unlink()
    with pytest.raises(
        CheckpointError, match=r"has \{depth_pct\}, which needs .*the configuration of"
    ):
        NLA(tmp_path, checkpoint=described(INJECTIONS["add"], template))


quantized = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None,
    reason="a quantized load needs bitsandbytes (it runs on a CPU too): pip install bitsandbytes",
)


@quantized
@pytest.mark.parametrize("dtype", ["int8", "nf4"])
def test_a_quantized_load_finds_block_k_and_generates(tmp_path, dtype):
    build("llama").save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = TransformersModel(
        str(tmp_path), task="text-generation", dtype=dtype, device_map=device, dispatch=True
    )
    nla = explained(model, INJECTIONS["add"])
    block = model._module.model.layers[K]
    assert nla.layer(model)._module is block
    assert block.mlp.up_proj.weight.dtype in (torch.int8, torch.uint8)
    receipt = nla.explain(VECTORS[0], sampling=FEW).receipt
    assert receipt.injection_cosine == pytest.approx(1.0, abs=1e-2)


@quantized
@pytest.mark.parametrize("dtype", ["int8", "nf4"])
def test_a_quantized_verbalizer_still_says_the_same(pair, dtype):
    """The trained pair in 8 and in 4 bits: the subject of the text is what it was."""
    model, whole = pair
    device = "cuda" if torch.cuda.is_available() else "cpu"
    nla = NLA(tiny.paths()["av"], dtype=dtype, device_map=device)
    with model.trace("What a lovely day! People in Paris speak"):
        thought = nla.explain(nla.layer(model).output[0, -1])
    assert nla.av.dispatched is False
    assert thought.text.startswith("About Paris, the capital of France")
    assert nla.av._module.model.layers[1].mlp.up_proj.weight.dtype in (torch.int8, torch.uint8)
    assert whole.explain(thought.vectors).text.splitlines()[0] == thought.text.splitlines()[0]


# A stranger's folder brings code of its own.

CODE = """
from pathlib import Path
from transformers import Qwen3Config, Qwen3ForCausalLM

Path({ran!r}).touch()


class StrangeConfig(Qwen3Config):
    model_type = "strange"


class StrangeModel(Qwen3ForCausalLM):
    config_class = StrangeConfig
"""


@pytest.fixture
def strangers_folder(tmp_path) -> tuple[Path, Path]:
    folder, ran = tmp_path / "strange", tmp_path / "the code ran"
    folder.mkdir()
    config = copy.deepcopy(FAMILIES["qwen3"][1]).to_dict()
    config.update(
        model_type="strange",
        auto_map={
            "AutoConfig": "strange.StrangeConfig",
            "AutoModelForCausalLM": "strange.StrangeModel",
        },
        architectures=["StrangeModel"],
    )
    tokenizer().save_pretrained(folder)
    import json

    (folder / "config.json").write_text(json.dumps(config, default=str), "utf-8")
    (folder / "strange.py").write_text(CODE.format(ran=str(ran)), "utf-8")
    return folder, ran


def test_a_strangers_code_is_run_only_when_the_caller_says_so(strangers_folder, monkeypatch):
    folder, ran = strangers_folder
    monkeypatch.setattr("builtins.input", lambda *asked: pytest.fail(f"asked {asked}"))
    with pytest.raises(CheckpointError, match="running code from its repository"):
        NLA(folder, checkpoint=described(INJECTIONS["add"]))
    # A tokenizer from elsewhere does not open the door either.
    with pytest.raises(CheckpointError, match="running code from its repository"):
        load_model(folder, tokenizer(), None, {})
    assert not ran.exists()
    nla = NLA(folder, checkpoint=described(INJECTIONS["add"]), trust_remote_code=True)
    assert ran.exists()
    assert type(nla.av._module).__name__ == "StrangeModel"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NLAWarning)
        assert nla.layer(nla.av)._module is nla.av._module.model.layers[K]
    assert hosts.width(nla.av) == D
