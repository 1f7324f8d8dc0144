"""Private API of other libraries: each entry of `_compat`, with what breaks when it changes."""

import datetime
import logging
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import nnsight
import pytest
import torch
from nnsight import TransformersModel
from torch import nn
from transformers import Qwen3Config, Qwen3ForCausalLM

from nnsight_nla import _compat, tiny

PATHS = tiny.paths()
PROMPT = "People in Paris speak"


@pytest.fixture
def target():
    return TransformersModel(
        str(PATHS["target"]), task="text-generation", dtype=torch.float32, dispatch=True
    )


class TestNnsight:
    """Written for nnsight 0.8.1."""

    def test_module_of(self, target):
        assert isinstance(_compat.module_of(target), nn.Module), "Envoy._module is gone"
        assert _compat.module_of("anything else") == "anything else"

    def test_interleaving(self, target):
        assert not _compat.interleaving(target)
        with target.trace(PROMPT):
            running = nnsight.save([_compat.interleaving(target)])
        assert running == [True], "Envoy.interleaver.interleaving is gone"

    def test_has_edits(self, target):
        assert not _compat.has_edits(target)
        with target.edit() as (_, edited):
            edited.model.layers[0].output[:] = 0
        assert _compat.has_edits(edited), "Envoy._edits is gone: edits would not act"

    def test_tokenized(self, target):
        (row,) = _compat.tokenized(target, PROMPT)
        assert row["input_ids"].flatten().tolist() == target.tokenizer(PROMPT)["input_ids"]

    def test_padding_side(self, target):
        assert _compat.padding_side(target) == "left"
        target.tokenizer.padding_side = "right"
        assert _compat.padding_side(target) == "right"

    def test_running_mask_and_rows(self, target):
        assert _compat.running_mask() is None
        assert _compat.running_rows() is None
        with target.trace() as tracer:
            with tracer.invoke("People in Paris speak"):
                found = nnsight.save([_compat.running_mask(), _compat.running_rows()])
            with tracer.invoke(["People", "People in"]):
                second = nnsight.save([_compat.running_rows()])
        assert found[0].sum(dim=1).tolist() == [4, 1, 2], "the batcher's invokes are elsewhere"
        assert found[0][1].tolist() == [0, 0, 0, 1]
        assert (found[1], second[0]) == ((0, 1), (1, 2)), "Mediator.batch_group is gone"

    def test_drop_weights_and_replace_module(self, target):
        envoy, before = target.model.layers[0], _compat.module_of(target)
        _compat.drop_weights(target)
        assert not target.dispatched
        assert _compat.module_of(envoy).input_layernorm.weight.device.type == "meta"
        _compat.replace_module(target, before)
        assert _compat.module_of(envoy) is before.model.layers[0], "TransformersModel._update"
        for hook in ("_load", "_load_meta", "interleave"):
            assert hasattr(TransformersModel, hook), f"{hook}: AdapterModel overrides it"

    def test_quantization(self):
        assert _compat.quantization(torch.float32) is None
        assert _compat.quantization("nf4").bytes_per_element == pytest.approx(0.5, abs=0.1)

    def test_attach_adapter(self, target, tmp_path):
        from peft import LoraConfig, get_peft_model
        from transformers import AutoModelForCausalLM

        base = AutoModelForCausalLM.from_pretrained(PATHS["target"])
        get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj"])).save_pretrained(tmp_path)
        module = AutoModelForCausalLM.from_pretrained(PATHS["target"])
        _compat.attach_adapter(module, str(tmp_path), weights=True)
        assert any("lora_A" in name for name, _ in module.named_parameters())

    def test_requests_have_a_pickler_of_their_own(self):
        from nnsight.intervention.serialization import CustomCloudPickler

        class Ours:
            pass

        _compat.join_requests({Ours: lambda it: (str, ("in a request",))})
        try:
            assert Ours in CustomCloudPickler.dispatch_table
            with pytest.raises((AttributeError, pickle.PicklingError)):
                pickle.dumps(Ours())  # No other pickler knows it.
        finally:
            CustomCloudPickler.dispatch_table.maps.pop(0)

    def test_the_tracer_is_pickled_before_anything_is_sent(self, target):
        from nnsight.schema.request import RequestModel

        kinds = _compat.tracer_types()
        tracer = target.trace(PROMPT)
        assert type(tracer) in kinds, "a remote block would not be checked"
        assert callable(RequestModel.serialize)

    def test_remote_errors_and_the_host(self):
        assert issubclass(_compat.remote_error(), Exception)
        assert "://" in _compat.host()

    def test_a_scan_has_fake_tensors(self, target):
        with target.scan(PROMPT):
            fake = nnsight.save([_compat.is_fake(target.model.layers[0].output)])
        assert fake == [True]
        assert not _compat.is_fake(torch.ones(1))


class TestTorch:
    """Written for torch 2.13."""

    def test_an_empty_copy(self):
        layer = nn.BatchNorm1d(2)
        layer.register_buffer("left_out", torch.ones(1), persistent=False)
        new = _compat.empty_copy(layer)
        assert type(new) is nn.BatchNorm1d
        assert list(new.parameters()) == []
        for table, other in zip(_compat.tables(new), _compat.tables(layer), strict=True):
            table.update(other)
        assert new.state_dict().keys() == layer.state_dict().keys()

    def test_tables_and_children(self):
        layer = nn.Linear(2, 2, bias=False)
        parameters, buffers = _compat.tables(layer)
        assert list(parameters) == ["weight", "bias"]
        assert buffers == {}
        assert list(_compat.children(nn.Sequential(layer))) == ["0"]

    @pytest.mark.parametrize(
        "text", ["[enforce fail at alloc_cpu.cpp] can't allocate memory", "CUDA out of memory."]
    )
    def test_a_cpu_without_memory(self, text):
        assert _compat.says_out_of_memory(RuntimeError(text))
        assert not _compat.says_out_of_memory(RuntimeError("mat1 and mat2 shapes"))
        with pytest.raises(RuntimeError) as caught:
            torch.empty(1 << 50)
        assert _compat.says_out_of_memory(caught.value), "torch words it otherwise"

    @pytest.mark.skipif(not _compat.can_pack(), reason="no x86 processor, or no oneDNN")
    def test_packed_product(self):
        layer, states = nn.Linear(7, 5), torch.randn(3, 7)
        found = _compat.packed_product(layer.weight, layer.bias, 3)(states)
        assert torch.allclose(found, layer(states), atol=1e-5), "mkldnn._linear_pointwise"

    def test_is_plain_lora(self):
        from peft import LoraConfig, get_peft_model
        from transformers import LlamaConfig, LlamaForCausalLM

        base = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
                num_attention_heads=1,
            )
        )  # fmt: skip
        model = get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj"])).eval()
        found = [name for name, each in model.named_modules() if _compat.is_plain_lora(each)]
        assert [name.rpartition(".")[2] for name in found] == ["q_proj"], "peft.tuners.lora.layer"
        model.merge_adapter()
        assert not any(map(_compat.is_plain_lora, model.modules())), "LoraLayer.merged"

    def test_runs_own_forward(self, target):
        module = _compat.module_of(target)
        layers = [each for each in module.modules() if type(each) is nn.Linear]
        assert all(map(_compat.runs_own_forward, layers)), "nnsight's entry point is another"
        layers[0].forward = lambda states: states
        assert not _compat.runs_own_forward(layers[0])

    @pytest.mark.parametrize("device", ["cpu", "meta"])
    def test_default_device(self, device):
        assert _compat.default_device().type == "cpu"
        with torch.device(device):
            assert _compat.default_device().type == device


class TestTransformers:
    """Written for transformers 5.15 to 5.22."""

    def test_generation_settings(self, target, caplog, monkeypatch):
        monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
        ids, module = torch.tensor([[5, 6, 7]]), _compat.module_of(target)
        module.generation_config.suppress_tokens = list(range(module.config.vocab_size - 1))
        settings = {"max_new_tokens": 3, "do_sample": False, "eos_token_id": None}
        steered = module.generate(ids, **settings)
        free = module.generate(ids, generation_config=_compat.generation_settings(**settings))
        assert "max_length" not in caplog.text, "GenerationConfig._get_default_generation_params"
        assert steered[0, 3:].tolist() == [module.config.vocab_size - 1] * 3
        assert free.shape == (1, 6)
        assert module.config.vocab_size - 1 not in free, "GenerationConfig.update is not asked"

    def test_template_clock(self, target):
        tokenizer = target.tokenizer
        options = {"tokenize": False, "chat_template": "{{ strftime_now('%Y') }}"}
        message = [{"role": "user", "content": "Hello"}]

        def render():
            return tokenizer.apply_chat_template(message, **options)

        with _compat.template_clock(lambda format: f"then {format}"):
            assert render() == "then %Y", "strftime_now asks another clock"
            with ThreadPoolExecutor(1) as pool:
                elsewhere = pool.submit(render).result()
        assert elsewhere == render() == str(datetime.date.today().year)

    @pytest.mark.parametrize("chosen", [None, "eager", "sdpa"])
    def test_attention_of(self, chosen):
        config = Qwen3Config(num_hidden_layers=1, hidden_size=16, attn_implementation=chosen)
        assert _compat.attention_of(config) == chosen

    def test_a_skeleton_has_shapes_and_no_values(self):
        config = Qwen3Config(
            num_hidden_layers=1, hidden_size=16, intermediate_size=16, vocab_size=9, head_dim=8,
            num_attention_heads=2, num_key_value_heads=1,
        )  # fmt: skip
        module = Qwen3ForCausalLM(config)
        with _compat.without_values():
            copy = _compat.skeleton(module)
            logits = copy(input_ids=torch.ones(2, 3, dtype=torch.long)).logits
            assert _compat.is_fake(logits)
            assert logits.shape == (2, 3, 9)
            with pytest.raises(RuntimeError, match="_local_scalar_dense") as caught:
                logits.sum().item()
            assert _compat.depends_on_values(caught.value), "another error of fake tensors"
            assert _compat.skeleton(nn.Linear(1, 1)) is None
        assert not _compat.is_fake(torch.ones(1))
        with _compat.without_values(symbolic=True):
            assert len(torch.ones(3).nonzero().shape) == 2
        assert not _compat.depends_on_values(ValueError())

    def test_watch_loading(self, tmp_path):
        from transformers import AutoModelForCausalLM, modeling_utils

        from nnsight_nla.models import weights

        weights.watch()
        once = modeling_utils.log_state_dict_report
        weights.watch()
        assert modeling_utils.log_state_dict_report is once
        module = AutoModelForCausalLM.from_pretrained(PATHS["target"])
        assert weights._REPORTS[module] == weights.LoadReport(), (
            "modeling_utils.log_state_dict_report(model=, loading_info=) is gone or not called: "
            "missing weights would not be noticed"
        )

    def test_is_stateful(self):
        from transformers import MambaForCausalLM, Qwen3ForCausalLM

        assert getattr(MambaForCausalLM, "_is_stateful", False), "a state would be cut by rows"
        assert not getattr(Qwen3ForCausalLM, "_is_stateful", False)

    def test_takes_dynamic_cache(self):
        from transformers import MiniMaxForCausalLM, Qwen3NextForCausalLM, xLSTMForCausalLM

        takes = _compat.takes_dynamic_cache
        assert takes(Qwen3NextForCausalLM), "every model would take generate"
        for other in (MiniMaxForCausalLM, xLSTMForCausalLM):
            assert not takes(other), "a cache of its own would be passed a DynamicCache"
        assert takes(nn.Linear(1, 1))

    def test_state_layers(self):
        """Transformers repeats and selects states in `reorder_cache` only."""
        from transformers.cache_utils import LinearAttentionAndFullAttentionLayer as Both

        layer = Both()
        layer.update(torch.ones(1, 1, 2, 4), torch.ones(1, 1, 2, 4))
        layer.update_conv_state(torch.ones(1, 3, 4))
        layer.update_recurrent_state(torch.ones(1, 2, 4, 4))
        layer.reorder_cache(torch.zeros(3, dtype=torch.long))
        kept = layer.keys, layer.conv_states[0], layer.recurrent_states[0]
        assert [len(each) for each in kept] == [3, 3, 3]
        assert layer.has_previous_state[0]

    def test_commit_hash(self, target):
        module = _compat.module_of(target)
        assert _compat.commit_hash(module) is None
        module.config._commit_hash = "abc"
        assert _compat.commit_hash(module) == _compat.commit_of(module.config) == "abc"
        assert _compat.commit_of(None) is None

    def test_cache_layers(self):
        from transformers.cache_utils import DynamicLayer

        layer = DynamicLayer()
        layer.update(torch.ones(1, 1, 2, 4), torch.ones(1, 1, 2, 4))
        assert layer.keys.shape == (1, 1, 2, 4)
        for name in ("dtype", "device", "is_initialized", "reorder_cache"):
            assert hasattr(layer, name), f"DynamicLayer.{name}: the in-place cache sets it"


def test_datasets_keep_a_fingerprint():
    datasets = pytest.importorskip("datasets", reason="pip install 'nnsight-nla[datasets]'")
    held = datasets.Dataset.from_dict({"text": ["a", "b"]})
    assert isinstance(_compat.data_set_fingerprint(held), str)


def test_safetensors_has_the_dtypes_of_torch():
    assert _compat.safetensors_dtype("BF16") is torch.bfloat16
    assert _compat.safetensors_dtype("F32") is torch.float32
    assert _compat.safetensors_dtype("X7") is None


def test_accelerate_replaces_forward():
    from accelerate.hooks import ModelHook, add_hook_to_module

    layer = nn.Linear(2, 2)
    add_hook_to_module(layer, ModelHook())
    assert {"forward", "_old_forward"} <= vars(layer).keys() & _compat.NOT_COPIED


def test_the_hub_cache_notes_a_file_that_a_repository_lacks(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.file_download.constants.HF_HUB_CACHE", str(tmp_path))
    assert not _compat.known_absent("you/model", "nla_meta.yaml")
    home = tmp_path / "models--you--model"
    (home / "refs").mkdir(parents=True)
    (home / "refs" / "main").write_text("abc")
    (home / "snapshots" / "abc").mkdir(parents=True)
    (home / ".no_exist" / "abc").mkdir(parents=True)
    (home / ".no_exist" / "abc" / "nla_meta.yaml").touch()
    assert _compat.known_absent("you/model", "nla_meta.yaml"), "huggingface_hub 1.x"


@pytest.mark.parametrize("name", ["_get_train_sampler", "_save", "_load_from_checkpoint"])
def test_the_trainer_has_the_methods_that_training_overrides(name):
    """Written for transformers 5.15 to 5.22; without one of them an override would never run."""
    from transformers import Trainer

    assert callable(getattr(Trainer, name, None))


def test_rows_can_be_grouped_by_length():
    from transformers.trainer_pt_utils import get_length_grouped_indices

    assert sorted(get_length_grouped_indices([3, 1, 2, 5], batch_size=2)) == [0, 1, 2, 3]


@pytest.mark.parametrize("first", ["", "import nnsight\n"])
def test_a_server_in_the_process_can_use_anyio_after_nnsight(first):
    """nnsight 0.8.1 mounts ``.save`` on `object`, which anyio 4.16 refuses later on."""
    code = (
        f"{first}import nnsight_nla, anyio, anyio.to_thread\n"
        "async def main(): return await anyio.to_thread.run_sync(lambda: 'a thread')\n"
        "print(hasattr(object, 'save'), anyio.run(main))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "True a thread\n"
