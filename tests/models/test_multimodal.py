"""An adapter of a multimodal model: the caller says which task, and so which class, it is of."""

import pytest
import torch
from nnsight import TransformersModel
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForImageTextToText, AutoTokenizer, Qwen3_5Config

from nnsight_nla import NLA, Checkpoint, CheckpointError, Sampling, tiny, training

PATHS = tiny.paths()
ONLY = r".*language_model.*\.(q_proj|down_proj)"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A small Qwen3.5 with a vision tower, and a LoRA on it that is no identity."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("multimodal")
    tokenizer = AutoTokenizer.from_pretrained(PATHS["target"])
    config = Qwen3_5Config(
        text_config={
            "vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 32,
            "num_hidden_layers": 4, "num_attention_heads": 2, "num_key_value_heads": 2,
            "head_dim": 16, "full_attention_interval": 2, "linear_num_key_heads": 2,
            "linear_num_value_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
        },
        vision_config={
            "depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2,
            "patch_size": 8, "out_hidden_size": 32, "num_position_embeddings": 16,
        },
    )  # fmt: skip
    model = AutoModelForImageTextToText.from_config(config)
    model.save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    adapter = LoraConfig(r=2, target_modules=ONLY, init_lora_weights=False)
    get_peft_model(model, adapter).save_pretrained(folder / "lora")
    return folder, tokenizer


def described(tokenizer) -> Checkpoint:
    return training.describe(tokenizer, layer=2, d_model=32)


def test_without_a_task_the_message_says_what_to_pass(folders):
    folder, tokenizer = folders
    with pytest.raises(CheckpointError, match=r"does not fit .* pass task='image-text-to-text'\.$"):
        NLA(folder / "base", peft=str(folder / "lora"), checkpoint=described(tokenizer))


def test_with_the_task_it_runs(folders):
    pytest.importorskip("PIL", reason="transformers' pipeline for images needs pillow")
    folder, tokenizer = folders
    # This model's own processor needs torchvision, and no text needs a processor.
    options = {
        "task": "image-text-to-text", "processor": tokenizer, "image_processor": tokenizer,
        "dtype": torch.float32, "checkpoint": described(tokenizer),
        "sampling": Sampling(max_new_tokens=5), "engine": "generate",
    }  # fmt: skip
    vector = torch.randn(32, generator=torch.Generator().manual_seed(1))
    adapted = NLA(folder / "base", peft=str(folder / "lora"), **options)
    raw = adapted.explain(vector).raw
    assert type(adapted.av._module).__name__ == "Qwen3_5ForConditionalGeneration"
    assert any("lora_A" in name for name, _ in adapted.av._module.named_parameters())
    target = TransformersModel(
        str(folder / "base"), task=options.pop("task"), tokenizer=tokenizer,
        processor=options.pop("processor"), image_processor=options.pop("image_processor"),
        dtype=options.pop("dtype"),
    )  # fmt: skip
    shared = NLA.on(target, folder / "lora", **options)
    assert shared.av.task == "image-text-to-text"
    assert shared.explain(vector).raw == raw
