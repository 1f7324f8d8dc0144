"""Packed weights: the same products, for one batch, and nothing left behind."""

import pytest
import torch
from accelerate.hooks import ModelHook, add_hook_to_module
from torch import nn

from nnsight_nla import NLA, Sampling, _compat
from nnsight_nla.models import packing
from nnsight_nla.models.packing import packed
from tests.verbalize.test_architectures import FAMILIES, D, build, described, wrapped
from tests.verbalize.test_architectures import INJECTIONS as AT

needs_onednn = pytest.mark.skipif(
    not _compat.can_pack(), reason="no x86 processor, or a PyTorch without oneDNN"
)


@pytest.fixture(autouse=True)
def on_amd(monkeypatch):
    """It works on every x86 processor; it is used where it gains."""
    monkeypatch.setattr(packing, "_vendor", lambda: "AuthenticAMD")


def entries(model):
    return {
        name: each.__dict__.get("forward")
        for name, each in model.named_modules()
        if isinstance(each, nn.Linear)
    }


def changed(model, rows=4):
    """The linear layers that multiply by packed weights inside the block."""
    before = entries(model)
    with packed(model, rows):
        inside = entries(model)
    assert entries(model) == before
    return {name for name in before if inside[name] is not before[name]}


@needs_onednn
@pytest.mark.parametrize("family", sorted(FAMILIES))
@pytest.mark.parametrize("instrumented", ["a plain module", "an nnsight model's"])
def test_the_same_logits(family, instrumented):
    model = build(family)
    if instrumented != "a plain module":
        wrapped(model)
    ids, seen = torch.randint(0, 200, (5, 7)), []
    linear = [each for each in model.modules() if type(each) is nn.Linear]
    handle = linear[-1].register_forward_hook(lambda *_: seen.append(1))
    with torch.inference_mode():
        expected = model(input_ids=ids).logits
        with packed(model, 5):
            found = model(input_ids=ids).logits
            alone = model(input_ids=ids[:1]).logits
    handle.remove()
    scale = expected.abs().max()
    torch.testing.assert_close(found / scale, expected / scale, rtol=0, atol=1e-5)
    torch.testing.assert_close(alone / scale, expected[:1] / scale, rtol=0, atol=1e-5)
    assert len(changed(model)) == len(linear)
    assert len(seen) == 3  # Hooks of others are called as ever.


def adapted(**options):
    """A model with LoRA on its linear layers, whose matrices are not zero."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=4, target_modules="all-linear", **options)
    model = get_peft_model(build("qwen3"), config).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.copy_(torch.randn(weight.shape, generator=generator) / 5)
    return model


def owners(model, rows=4):
    """The modules whose forward is replaced inside the block."""
    with packed(model, rows):
        return [n for n, m in model.named_modules() if "<lambda>" in repr(vars(m).get("forward"))]


@needs_onednn
@pytest.mark.parametrize("how", ["plain", "rslora", "as an nnsight model", "two adapters"])
def test_an_adapter_is_added_to_the_packed_weights(how):
    model = adapted(use_rslora=how == "rslora")
    if how == "two adapters":
        model.add_adapter("second", model.peft_config["default"])
        model.base_model.set_adapter(["default", "second"])
    if how == "as an nnsight model":
        wrapped(model)
    ids = torch.randint(0, 200, (5, 7))
    with torch.inference_mode():
        expected, bare = model(input_ids=ids).logits, model.get_base_model()
        with packed(bare, 5):
            found = model(input_ids=ids).logits
        again = model(input_ids=ids).logits
        with model.disable_adapter():
            without = model(input_ids=ids).logits
    scale = expected.abs().max()
    torch.testing.assert_close(found / scale, expected / scale, rtol=0, atol=2e-5)
    assert torch.equal(again, expected)
    assert not torch.allclose(without / scale, expected / scale, atol=1e-2)
    replaced = owners(model)
    assert replaced
    assert not any(part in name for name in replaced for part in ("lora_A", "lora_B", "base_layer"))


needs_bfloat16 = pytest.mark.skipif(
    not (_compat.can_pack() and _compat.can_pack_bfloat16()), reason="no bfloat16 in oneDNN here"
)


@needs_bfloat16
@pytest.mark.parametrize("rows", [1, 5])
def test_bfloat16_is_packed_for_any_number_of_rows(rows):
    model = build("qwen3").bfloat16()
    ids = torch.randint(0, 200, (rows, 7))
    assert len(changed(model, rows)) == len(entries(model))
    with torch.inference_mode():
        expected = model(input_ids=ids).logits
        with packed(model, rows):
            found = model(input_ids=ids).logits
    scale = expected.abs().max()
    torch.testing.assert_close(found / scale, expected / scale, rtol=0, atol=1e-2)


@needs_bfloat16
def test_an_adapter_in_bfloat16_is_as_exact_as_when_it_is_merged():
    model = adapted()
    ids = torch.randint(0, 200, (5, 7))
    with torch.inference_mode():
        exact = model(input_ids=ids).logits
        model.bfloat16()
        with packed(model, 5):
            found = model(input_ids=ids).logits
        merged = model.merge_and_unload()(input_ids=ids).logits

    def error(logits):
        return float((logits - exact).norm() / exact.norm())

    assert error(found) < 1.2 * error(merged)


@needs_onednn
def test_one_row_in_float32_is_packed_where_there_is_an_adapter():
    model = adapted()
    assert len(owners(model, rows=1)) == sum(hasattr(each, "lora_A") for each in model.modules())
    assert owners(build("qwen3"), rows=1) == []


def test_without_bfloat16_in_onednn_it_is_left_alone(monkeypatch):
    monkeypatch.setattr(_compat, "can_pack_bfloat16", lambda: False)
    assert changed(nn.Sequential(nn.Linear(4, 4).bfloat16())) == set()


@needs_onednn
@pytest.mark.filterwarnings("ignore:.lora_bias=True. was passed")
@pytest.mark.parametrize("how", ["dora", "merged", "off", "training", "hook inside", "bias"])
def test_an_adapter_that_does_more_is_packed_part_by_part(how):
    options = {"dora": {"use_dora": True}, "bias": {"lora_bias": True}}.get(how, {})
    model = adapted(**options)
    layers = [m for m in model.modules() if hasattr(m, "lora_A")]
    if how == "merged":
        model.merge_adapter()
    if how == "off":
        model.base_model.disable_adapter_layers()
    if how == "training":
        model.train()
    if how == "hook inside":
        for layer in layers:
            layer.lora_A["default"].register_forward_hook(lambda *_: None)
    ids = torch.randint(0, 200, (5, 7))
    with torch.inference_mode():
        expected = model(input_ids=ids).logits
        with packed(model, 5):
            found = model(input_ids=ids).logits
            assert not any(vars(layer).get("forward") for layer in layers)
    scale = expected.abs().max()
    torch.testing.assert_close(found / scale, expected / scale, rtol=0, atol=2e-5)


@needs_onednn
def test_the_entry_point_is_put_back_also_after_an_error():
    model = wrapped(build("qwen3"))._module
    before = entries(model)
    with pytest.raises(KeyError), packed(model, 4):
        assert entries(model) != before
        raise KeyError("pulled plug")
    assert entries(model) == before


@needs_onednn
def test_what_is_left_alone(monkeypatch):
    class Doubled(nn.Linear):
        def forward(self, states):
            return 2 * super().forward(states)

    plain, patched, moved = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
    patched.forward = lambda states: states
    add_hook_to_module(moved, ModelHook())
    model = nn.ModuleDict(
        {
            "plain": plain, "patched": patched, "moved": moved, "subclass": Doubled(4, 4),
            "narrow": nn.Linear(4, 4).half(), "elsewhere": nn.Linear(4, 4, device="meta"),
        }
    )  # fmt: skip
    assert changed(model) == {"plain"}
    assert changed(model, rows=1) == set()
    # Also what was patched before nnsight wrapped it, or has been wrapped since.
    before = build("qwen3")
    first = next(each for each in before.modules() if type(each) is nn.Linear)
    first.forward = lambda states: nn.Linear.forward(first, states)
    wrapped(before)
    assert len(changed(before)) == len(entries(before)) - 1
    monkeypatch.setattr(packing, "free_bytes", lambda device: 4 * plain.weight.nbytes - 1)
    assert changed(model) == set()
    monkeypatch.setattr(packing, "free_bytes", lambda device: 4 * plain.weight.nbytes)
    assert changed(model) == {"plain"}
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "DEFAULT")
    assert changed(model) == set()


@pytest.mark.parametrize("vendor", ["GenuineIntel", None])
def test_other_processors_are_left_to_pytorch(monkeypatch, vendor):
    monkeypatch.setattr(packing, "_vendor", lambda: vendor)
    assert changed(nn.Sequential(nn.Linear(4, 4))) == set()


@needs_onednn
def test_a_batch_is_decoded_with_packed_weights_and_never_with_old_ones(monkeypatch):
    """The copy is made for each batch, so weights that were changed in between are seen."""
    av, made = wrapped(build("qwen3")), []
    real = _compat.packed_product
    monkeypatch.setattr(
        _compat, "packed_product", lambda *given: made.append(given) or real(*given)
    )
    few = {"batch_size": 4, "sampling": Sampling(max_new_tokens=20)}
    fast = NLA(av, checkpoint=described(AT["add"]), **few)
    slow = NLA(av, checkpoint=described(AT["add"]), engine="generate", **few)
    vectors = torch.randn(8, D, generator=torch.Generator().manual_seed(7)) * 9
    head = av._module.get_output_embeddings().weight
    first = fast.explain(vectors).raw
    assert len(made) == 2 * len(entries(av._module))
    assert {rows for *_, rows in made} == {4}
    assert first == slow.explain(vectors).raw
    with torch.no_grad():
        head.copy_(head.roll(1, dims=0))
    second = fast.explain(vectors.clone()).raw
    assert second == slow.explain(vectors).raw
    assert second != first


@needs_onednn
def test_many_texts_are_reconstructed_with_packed_weights(nla, monkeypatch):
    """A few are not, for which the copy costs more than it gains; nor does an edit get lost."""
    made = []
    real = _compat.packed_product
    monkeypatch.setattr(
        _compat, "packed_product", lambda *given: made.append(given) or real(*given)
    )
    texts = [f"About the number {n}." for n in range(12)]
    few = torch.cat([nla.reconstruct(texts[:6]), nla.reconstruct(texts[6:])])
    assert not made
    torch.testing.assert_close(nla.reconstruct(texts), few, atol=2e-4, rtol=2e-4)
    assert made
    made.clear()
    monkeypatch.setattr(_compat, "has_edits", lambda model: True)
    assert torch.equal(nla.reconstruct(texts), nla.reconstruct(texts))
    assert not made
