"""Adapters on the target's own weights: bit for bit the base for the user, the adapter for us."""

import ast
import json
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from nnsight import TransformersModel
from peft import LoraConfig, get_peft_model, inject_adapter_in_model
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

from nnsight_nla import (
    NLA,
    Checkpoint,
    CheckpointError,
    NLAWarning,
    Sampling,
    VerbalizationError,
    tiny,
)
from nnsight_nla.models.adapter import AdapterModel
from nnsight_nla.models.reconstructor_files import ADAPTER, HEAD, META
from nnsight_nla.remote.block import check_block

PATHS = tiny.paths()
K = 3
PROMPT = "What a lovely day! People in Paris speak"
SHORT = Sampling(max_new_tokens=8)
TEXTS = ["About Paris, the capital of France.", "Short."]
TARGETS = ["q_proj", "v_proj"]


def load(**options) -> TransformersModel:
    return TransformersModel(
        str(PATHS["target"]), task="text-generation", dtype=torch.float32, **options
    )


def base(blocks: int | None = None):
    model = AutoModelForCausalLM.from_pretrained(PATHS["target"], dtype=torch.float32)
    if blocks is not None:
        model.model.layers = model.model.layers[:blocks]
        model.config.num_hidden_layers = blocks
    return model


def lora(folder, blocks=None, seed=0, **options):
    """A PEFT adapter with random matrices, as PEFT stores it."""
    torch.manual_seed(seed)
    config = LoraConfig(r=4, target_modules=TARGETS, init_lora_weights=False, **options)
    model = get_peft_model(base(blocks), config)
    for name, value in model.named_parameters():
        if "lora_" in name:
            value.data.normal_(std=0.3)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def av(tmp_path_factory):
    """A verbalizer as an adapter; its dropout must never act."""
    folder = lora(tmp_path_factory.mktemp("av"), lora_dropout=0.5)
    sidecar = (PATHS["av"] / "nla_meta.yaml").read_text("utf-8")
    (folder / "nla_meta.yaml").write_text(sidecar, "utf-8")
    return folder


@pytest.fixture(scope="module", params=["peft", "ar_meta"])
def ar(request, tmp_path_factory):
    """A reconstructor as an adapter, in both layouts."""
    folder = tmp_path_factory.mktemp("ar")
    head = torch.randn(128, 128, generator=torch.Generator().manual_seed(3)) / 11
    if request.param == "peft":
        lora(folder, K + 1, seed=1)
        save_file({"weight": head}, folder / HEAD)
        return folder
    torch.manual_seed(1)
    model = base(K + 1)
    config = LoraConfig(r=4, lora_alpha=8, use_rslora=True, target_modules=TARGETS)
    inject_adapter_in_model(config, model)
    state = {}
    for name, value in model.named_parameters():
        if "lora_" in name:
            state[f"backbone.{name}"] = value.data.normal_(std=0.3).clone()
    save_file({**state, "value_head.weight": head}, folder / ADAPTER)
    meta = {"ar_num_layers": K + 1, "lora_r": 4, "lora_alpha": 8, "target_modules": TARGETS}
    meta |= {"final_norm_stripped": True, "base_model": str(PATHS["target"])}
    (folder / META).write_text(json.dumps(meta), "utf-8")
    return folder


@pytest.fixture(scope="module")
def alone(av):
    """The same adapter on a copy of the base of its own: what texts should be."""
    return NLA(PATHS["target"], peft=str(av), sampling=SHORT, dtype=torch.float32)


@pytest.fixture
def target():
    return load(dispatch=True)


@pytest.fixture(scope="module")
def vectors():
    return torch.randn(2, 128, generator=torch.Generator().manual_seed(2)) * 5


def logits(model) -> torch.Tensor:
    with model.trace(PROMPT):
        found = model.lm_head.output.detach().save()
    return found


def anatomy(model) -> dict:
    """Everything of a target that a role might leave behind."""
    modules = {name: type(module) for name, module in model._module.named_modules()}
    tensors = {
        name: (id(each), each.data_ptr(), each.requires_grad, each._version)
        for name, each in [*model._module.named_parameters(), *model._module.named_buffers()]
    }
    envoys = [envoy.path for envoy in model.modules()]
    training = {name: module.training for name, module in model._module.named_modules()}
    return {"modules": modules, "tensors": tensors, "envoys": envoys, "training": training}


def test_the_target_is_the_base_bit_for_bit_at_every_moment(target, av, ar, vectors):
    model = target._module
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    before, whole = logits(target), anatomy(target)

    def same() -> None:
        assert torch.equal(logits(target), before)
        assert anatomy(target) == whole

    nla = NLA.on(target, av=av, ar=ar, sampling=SHORT)
    same()
    thought = nla.explain(vectors)
    assert thought.text
    same()
    assert nla.reconstruct(TEXTS).shape == (2, 128)
    same()
    assert nla.score(thought.raw, vectors, failures="keep").cosine.shape == (2,)
    nla.unload()
    same()
    assert nla.explain(vectors).raw == thought.raw
    same()


@pytest.mark.parametrize("error", [RuntimeError, torch.OutOfMemoryError, KeyboardInterrupt])
def test_the_target_after_an_error_in_the_middle_of_verbalizing(target, av, vectors, error, alone):
    before, whole = logits(target), anatomy(target)
    nla = NLA.on(target, av=av, sampling=SHORT)
    nla.av.dispatch()
    passes = []

    def fail(module, args, output):
        passes.append(1)
        if len(passes) == 3:
            raise error("now")

    hook = nla.av._module.model.layers[2].register_forward_hook(fail)
    thought = nla.explain(vectors[:1])  # Two that do not fit into memory are tried one by one.
    with pytest.raises(KeyboardInterrupt if error is KeyboardInterrupt else VerbalizationError):
        _ = thought.text
    hook.remove()
    assert len(passes) == 3
    assert torch.equal(logits(target), before)
    assert anatomy(target) == whole
    assert nla.pending == (thought,)
    assert thought.raw == alone.explain(vectors[:1]).raw


def test_texts_equal_those_of_a_copy_of_its_own(target, av, vectors, alone):
    shared = NLA.on(target, av=av, sampling=SHORT)
    plain = NLA(target, checkpoint=shared.checkpoint, sampling=SHORT)
    texts = shared.explain(vectors).raw
    assert texts == alone.explain(vectors).raw
    assert texts != plain.explain(vectors).raw
    for nla in (shared, alone):  # The adapter's dropout is off: a second reading is the same.
        assert not any(module.training for module in nla.av._module.modules())
        assert nla.explain(vectors).raw == texts


def test_vectors_equal_those_of_a_copy_of_its_own(target, av, ar):
    checkpoint = replace(Checkpoint.load(av), base_model=str(PATHS["target"]))
    shared = NLA.on(target, av=av, ar=ar, checkpoint=checkpoint)
    own = NLA(PATHS["av"], ar=ar, checkpoint=checkpoint, dtype=torch.float32)
    expected = own.reconstruct(TEXTS)
    torch.testing.assert_close(shared.reconstruct(TEXTS), expected, atol=2e-4, rtol=2e-4)
    assert len(shared.ar._module.model.layers) == K + 1
    assert shared.ar._module.config.num_hidden_layers == K + 1
    assert target._module.config.num_hidden_layers > K + 1
    for module in shared.ar._module.modules():
        if hasattr(module, "lora_B"):
            module.lora_B["default"].weight.data.zero_()
    assert not torch.allclose(shared.reconstruct(TEXTS), expected, atol=0.05)


def held(*models) -> int:
    """The bytes of every distinct storage that these models hold."""
    storages = {}
    for model in models:
        for tensor in [*model._module.parameters(), *model._module.buffers()]:
            storage = tensor.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


def test_one_base_and_the_adapters_are_in_memory(target, av, ar, vectors):
    nla = NLA.on(target, av=av, ar=ar, sampling=SHORT)
    alone = held(target)
    assert not nla.av.dispatched
    assert not nla.ar.dispatched
    _ = nla.explain(vectors).text, nla.reconstruct(TEXTS)
    assert nla.av.dispatched
    assert nla.ar.dispatched
    adapters = sum(
        tensor.nbytes
        for half in (nla.av, nla.ar)
        for name, tensor in half._module.named_parameters()
        if "lora_" in name
    )
    assert held(target, nla.av, nla.ar) == alone + adapters
    assert sum(tensor.nbytes for tensor in nla.av.added() + nla.ar.added()) == adapters
    assert adapters < alone / 10


def test_a_text_read_inside_a_trace_of_the_target(target, av, vectors, alone):
    nla, before, got = NLA.on(target, av=av, sampling=SHORT), logits(target), []
    with target.trace(PROMPT):
        thought = nla.explain(nla.layer(target).output[0, -1])
        got.append(thought.raw)
        after = target.lm_head.output.detach().save()
    assert torch.equal(after, before)
    assert got == [alone.explain(thought.vectors).raw]


def test_patched_and_read_after_the_block(target, av, alone):
    nla = NLA.on(target, av=av, sampling=SHORT)
    with target.trace("What a lovely day! People in Rome speak"):
        other = nla.layer(target).output[0, -1].detach().save()
    with target.trace(PROMPT):
        nla.layer(target).output[0, -1] = other
        thought = nla.explain(nla.layer(target).output[0, -1])
    assert torch.equal(thought.vectors, other)
    assert thought.raw == alone.explain(other).raw


def test_gradients_are_the_targets_own(target, av, vectors):
    nla, found = NLA.on(target, av=av, sampling=SHORT), []
    target._module.requires_grad_(True)
    _ = nla.explain(vectors).text
    for explain in (False, True):
        target._module.zero_grad()
        with target.trace(PROMPT):
            residual = nla.layer(target).output
            if explain:
                thought = nla.explain(residual[0, -1])
            loss = target.lm_head.output[0, -1, 5].save()
        if explain:
            assert thought.text
        loss.backward()
        found.append(target._module.model.layers[1].self_attn.q_proj.weight.grad.clone())
    assert torch.equal(*found)
    assert found[0].abs().sum() > 0
    assert not any(parameter.requires_grad for parameter in nla.av._module.parameters())
    assert all(parameter.grad is None for parameter in nla.av._module.parameters())


def test_what_the_user_does_to_the_target_does_not_act_on_the_verbalizer(
    target, av, vectors, alone
):
    calls = []

    def double(module, args, output):
        calls.append(module)
        return output * 2

    target._module.model.layers[2].register_forward_hook(double)
    with target.edit(inplace=True):
        target.model.layers[4].output[:] = 0
    changed = logits(target)
    nla = NLA.on(target, av=av, sampling=SHORT)
    calls.clear()
    assert nla.explain(vectors).raw == alone.explain(vectors).raw
    assert not calls
    assert torch.equal(logits(target), changed)
    assert calls


def test_an_adapter_of_the_users_own_stays_as_it_is(target, av, vectors, alone, tmp_path):
    target.load_adapter(str(lora(tmp_path, seed=7)))
    layers = [each for each in target._module.modules() if hasattr(each, "lora_A")]
    assert layers
    layers[0].enable_adapters(False)
    before, whole = logits(target), anatomy(target)
    states = [(each.active_adapters, each.disable_adapters, each.merged) for each in layers]
    nla = NLA.on(target, av=av, sampling=SHORT)
    assert nla.explain(vectors).raw == alone.explain(vectors).raw
    assert torch.equal(logits(target), before)
    assert anatomy(target) == whole
    assert states == [(each.active_adapters, each.disable_adapters, each.merged) for each in layers]
    assert target.peft == str(tmp_path)
    layers[0].merge()
    with pytest.raises(CheckpointError, match=r"merged into 1 of its modules .*unmerge"):
        NLA.on(target, av=av)


def test_it_follows_the_targets_weights(target, av, vectors, alone):
    """What is changed, moved or replaced in the target is what the adapter stands on."""
    nla = NLA.on(target, av=av, sampling=SHORT)
    right = nla.explain(vectors).raw
    assert right == alone.explain(vectors).raw
    weight = target._module.model.layers[1].mlp.down_proj.weight
    kept = weight.detach().clone()
    weight.data.mul_(-3)
    assert nla.explain(vectors).raw != right
    weight.data = kept.clone()  # Another memory.
    assert nla.explain(vectors).raw == right
    target._module.model.layers[1].mlp.down_proj.weight = torch.nn.Parameter(kept * -3)
    assert nla.explain(vectors).raw != right
    target._module.model.layers[1].mlp.down_proj.weight = torch.nn.Parameter(kept)
    assert nla.explain(vectors).raw == right
    target._module.to(torch.float64)
    assert nla.explain(vectors).raw == right
    assert nla.av._module.model.layers[1].mlp.down_proj.weight.dtype == torch.float64


def test_a_target_that_is_not_loaded_yet(av, vectors, alone):
    target = load()
    nla = NLA.on(target, av=av, sampling=SHORT)
    assert nla.layer(target) is not None
    assert not target.dispatched
    assert {each.device.type for each in nla.av._module.parameters()} == {"meta"}
    assert nla.explain(vectors).raw == alone.explain(vectors).raw
    assert target.dispatched
    assert torch.equal(logits(target), logits(load(dispatch=True)))


def test_the_reconstructor_may_be_a_separate_model(target, av, ar, vectors, alone):
    nla = NLA.on(target, av=av, ar=PATHS["ar"], sampling=SHORT, dtype=torch.float32)
    own = NLA(PATHS["av"], ar=PATHS["ar"], sampling=SHORT, dtype=torch.float32)
    assert not isinstance(nla.ar, AdapterModel)
    assert nla.explain(vectors).raw == alone.explain(vectors).raw
    assert torch.equal(nla.reconstruct(TEXTS), own.reconstruct(TEXTS))
    other = NLA.on(target, av=PATHS["av"], ar=ar, sampling=SHORT, dtype=torch.float32)
    assert isinstance(other.ar, AdapterModel)
    assert not isinstance(other.av, AdapterModel)
    assert other.explain(vectors).raw == own.explain(vectors).raw


def test_what_names_a_model_names_the_adapter_and_its_base(target, av, ar, vectors, alone):
    nla, base = NLA.on(target, av=av, ar=ar, sampling=SHORT), str(PATHS["target"])
    assert repr(nla) == f"<NLA {str(av)!r} on {base!r} layer=3 d_model=128 not loaded>"
    for each in (nla, alone, NLA(load(peft=str(av)), checkpoint=av, sampling=SHORT)):
        info = each.info()
        assert (info["verbalizer"], info["verbalizer_base"]) == (str(av), base)
        receipt = each.explain(vectors).receipt
        assert (receipt.verbalizer, receipt.verbalizer_base) == (str(av), base)
        told = f"{av.parent.name}/{av.name} on weights/target"
        assert receipt.facts()["verbalizer"] == f"{told} (float32)"
        assert repr(receipt) == f"<Receipt of {told}: add at block 1, marker at 94>"
    assert (info["reconstructor"], info["reconstructor_base"]) == (None, None)
    assert nla.info()["reconstructor_base"] == base
    assert Path(nla.info()["reconstructor"]).name != "target"
    assert nla.read(target, PROMPT, positions=[-1]).verbalizer == f"{av.name} on target"


def test_a_model_that_is_no_adapter_has_no_base(nla, vectors):
    info = nla.info()
    assert (info["verbalizer"], info["verbalizer_base"]) == (str(PATHS["av"]), None)
    assert (info["reconstructor"], info["reconstructor_base"]) == (str(PATHS["ar"]), None)
    assert nla.explain(vectors).receipt.verbalizer_base is None


def test_on_a_host_the_adapter_runs_on_the_targets_deployment(av):
    target = load()
    nla = NLA.on(target, av=av, remote=True)
    assert nla.av is not target
    assert nla.av.repo_id == target.repo_id
    assert nla.av._remoteable_get_env()["peft"] == str(av)
    assert not target.dispatched
    assert not nla.av.dispatched


def test_a_remote_trace_of_a_target_whose_weights_are_not_here(av):
    """Its text would fetch them; that is refused before the request is sent."""
    target = load()
    nla = NLA.on(target, av=av)
    tracer = SimpleNamespace(
        info=SimpleNamespace(frame=sys._getframe()),
        node=ast.parse("nla.explain(nla.layer(target).output)"),
        envoy=target,
    )
    with pytest.raises(
        VerbalizationError, match=r"load the weights here.*NLA\.on\(model, av=\.\.\."
    ):
        check_block(tracer, [nla])
    target.dispatch()  # Here they are: the block runs there, the text is made here.
    check_block(tracer, [nla])


def test_what_shares_nothing_is_refused(target, tmp_path, av):
    with pytest.raises(CheckpointError, match=r"no adapter in .* write NLA\(av, ar=ar\)"):
        NLA.on(target, av=PATHS["av"], ar=PATHS["ar"])
    with pytest.raises(CheckpointError, match=r"^dtype cannot be applied: .* already loaded"):
        NLA.on(target, av=av, dtype="bfloat16")
    with pytest.raises(CheckpointError, match="needs an nnsight TransformersModel, got Qwen3"):
        AdapterModel(target._module, av)
    with pytest.raises(
        CheckpointError, match=r"has no adapter_config.json, so it is not a PEFT adapter"
    ):
        AdapterModel(target, PATHS["av"])


def test_an_adapter_of_another_base_or_another_depth(target, av, tmp_path):
    folder = lora(tmp_path / "deep")
    file = folder / "adapter_config.json"
    config = json.loads(file.read_text("utf-8"))
    file.write_text(json.dumps({**config, "base_model_name_or_path": "some/other-8B"}), "utf-8")
    with pytest.warns(NLAWarning, match=r"trained on some/other-8B and runs on .*target here"):
        AdapterModel(target, folder)
    file.write_text(json.dumps(config), "utf-8")
    cut = AdapterModel(target, folder, blocks=K + 1)  # Its weights are seen when they are loaded.
    with pytest.raises(CheckpointError, match=r"does not fit .*did not attach"):
        cut.dispatch()
    with pytest.raises(CheckpointError, match=r"has blocks 0 to \d; a reconstructor of layer 49"):
        AdapterModel(target, folder, blocks=50)
    file.write_text("[]", "utf-8")
    with pytest.raises(CheckpointError, match="is not a JSON object"):
        AdapterModel(target, folder)
    assert torch.equal(logits(target), logits(load(dispatch=True)))


def test_a_peft_reconstructor_needs_its_head(target, av, tmp_path):
    with pytest.raises(CheckpointError, match=r"has adapter_config.json and no value_head"):
        NLA.on(target, av=av, ar=lora(tmp_path, K + 1))
