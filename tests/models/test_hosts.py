"""Where a host keeps its blocks, its embedding and its real positions."""

import copy
import re

import nnsight
import pytest
import torch
from nnsight import TransformersModel
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from nnsight_nla.errors import InjectionError
from nnsight_nla.models import hosts

WORDS = ["[PAD]", "[UNK]", "user", "end", *["a", "b", "c", "d", "e", "f", "g", "h", "i", "j"]]
CHAT = "{% for m in messages %}user {{ m.content }} end {% endfor %}"
SHAPE = {
    "vocab_size": 32,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "pad_token_id": 0,
    "bos_token_id": 0,
    "eos_token_id": 3,
}
HOSTS = {
    "qwen3": (Qwen3ForCausalLM, Qwen3Config(**SHAPE), "model.layers", "model.embed_tokens"),
    "llama": (LlamaForCausalLM, LlamaConfig(**SHAPE), "model.layers", "model.embed_tokens"),
    "gemma3": (
        Gemma3ForCausalLM,
        Gemma3TextConfig(**SHAPE, sliding_window=8),
        "model.layers",
        "model.embed_tokens",
    ),
    "gpt2": (
        GPT2LMHeadModel,
        GPT2Config(
            vocab_size=32, n_embd=16, n_layer=4, n_head=2, bos_token_id=0, eos_token_id=3
        ),
        "transformer.h",
        "transformer.wte",
    ),
}  # fmt: skip


def tokenizer() -> PreTrainedTokenizerFast:
    built = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="[UNK]"))
    built.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=built, unk_token="[UNK]", pad_token="[PAD]", eos_token="end"
    )
    fast.chat_template = CHAT
    return fast


def build(name: str) -> nn.Module:
    torch.manual_seed(0)
    kind, config, _, _ = HOSTS[name]
    return kind(copy.deepcopy(config)).eval()


@pytest.fixture(scope="module", params=sorted(HOSTS))
def family(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def host(family) -> TransformersModel:
    return TransformersModel(build(family), tokenizer=tokenizer(), task="text-generation")


@pytest.fixture(scope="module")
def qwen() -> TransformersModel:
    return TransformersModel(build("qwen3"), tokenizer=tokenizer(), task="text-generation")


def test_block_and_embedding_are_the_modules_that_they_should_be(host, family):
    _, _, blocks, table = HOSTS[family]
    plain = host._module
    for layer in range(4):
        expected = plain.get_submodule(f"{blocks}.{layer}")
        assert hosts.block(host, layer)._module is expected
        assert hosts.block(plain, layer) is expected
    assert hosts.embedding(host)._module is plain.get_submodule(table)
    assert hosts.embedding(plain) is plain.get_submodule(table)
    assert hosts.width(host) == hosts.width(plain) == 16


def test_layer_k_is_the_output_of_block_k(host):
    ids = torch.tensor([[4, 5, 6, 7]])
    with torch.no_grad():
        states = host._module(input_ids=ids, output_hidden_states=True).hidden_states
    for layer in range(3):  # The last entry of hidden_states is after the final norm.
        with torch.no_grad(), host.trace(ids):
            read = hosts.block(host, layer).output.save()
        assert isinstance(read, torch.Tensor)
        torch.testing.assert_close(read, states[layer + 1])


def test_the_embeddings_output_is_what_the_module_gives(host):
    ids = torch.tensor([[4, 5, 6]])
    with torch.no_grad(), host.trace(ids):
        read = hosts.embedding(host).output.save()
    torch.testing.assert_close(read, host._module.get_input_embeddings()(ids))


@pytest.mark.parametrize("layer", [4, 100, -1])
def test_a_block_that_does_not_exist(qwen, layer):
    message = (
        f"{hosts.describe(qwen)} has blocks 0 to 3 (at model.layers); block {layer} was requested. "
        "Use the model that the verbalizer was trained for."
    )
    with pytest.raises(InjectionError, match=f"^{re.escape(message)}$"):
        hosts.block(qwen, layer)


def test_what_is_no_host():
    message = (
        "Expected an nnsight TransformersModel, got {}. Write: from nnsight import "
        "TransformersModel; TransformersModel(name, task='text-generation')."
    )
    for thing in ("Qwen/Qwen3-8B", None, 5, nn.Linear(2, 2), {"config": 1}):
        expected = f"^{re.escape(message.format(type(thing).__name__))}$"
        for ask in (hosts.width, hosts.embedding, lambda thing: hosts.block(thing, 0)):
            with pytest.raises(InjectionError, match=expected):
                ask(thing)


def test_a_model_without_a_list_of_its_blocks():
    odd = build("qwen3")
    odd.config.num_hidden_layers = 7
    message = "Qwen3ForCausalLM is not supported: no list of 7 blocks in Qwen3ForCausalLM."
    with pytest.raises(InjectionError, match=f"^{message}$"):
        hosts.block(odd, 0)


def test_a_list_of_experts_as_long_as_the_model_is_deep_is_no_list_of_blocks():
    odd = build("qwen3")
    odd.model.layers[0].mlp.experts = nn.ModuleList(nn.Linear(2, 2) for _ in range(4))
    assert hosts.block(odd, 1) is odd.model.layers[1]


def test_a_vision_tower_is_not_the_language_model():
    odd = build("qwen3")
    odd.model.vision_tower = nn.ModuleList(nn.Linear(2, 2) for _ in range(4))
    odd.model.layers = odd.model._modules.pop("layers")  # Now after the tower.
    assert hosts.block(odd, 2) is odd.model.layers[2]


PROMPTS = ["a b c d e f", "g", "c d e", "h i j a"]


def test_the_slice_reads_the_unbatched_residuals_in_invokes_and_in_a_list(host):
    places = hosts.positions(host, PROMPTS)
    layer = hosts.block(host, 2)
    alone = []
    for prompt in PROMPTS:
        with torch.no_grad(), host.trace(prompt):
            alone.append(layer.output[0].save())
    with torch.no_grad(), host.trace(PROMPTS):
        together = layer.output.save()
    with torch.no_grad(), host.trace() as tracer:
        invoked = nnsight.save([])
        for prompt, place in zip(PROMPTS, places, strict=True):
            with tracer.invoke(prompt):
                invoked.append(layer.output[0, place.slice].clone())
    for row, place in enumerate(places):
        assert alone[row].shape[0] == len(place.ids)
        for found in (together[row, place.slice], invoked[row]):
            torch.testing.assert_close(found, alone[row], rtol=1e-4, atol=1e-5)
    # Padding is real: the short prompts' first positions are not theirs.
    assert not torch.allclose(together[1, 0], alone[1][0], atol=1e-3)


def test_ids_tokens_and_positions(qwen):
    (short,) = hosts.positions(qwen, "c zzz a")
    assert short.ids == (6, 1, 4)
    assert short.tokens == ("c", "[UNK]", "a")
    assert short.positions == range(3)
    assert short.slice == slice(-3, None)


def _fed(model: TransformersModel, prompt) -> list[int]:
    """The token ids that reach the embedding when `prompt` is traced."""
    with torch.no_grad(), model.trace(prompt):
        ids = hosts.embedding(model).input.save()
    return ids[0].tolist()


CONVERSATION = [{"role": "user", "content": "a b"}, {"role": "assistant", "content": "c"}]


@pytest.mark.parametrize(
    "prompt",
    ["a b c", [4, 5, 6, 7], torch.tensor([4, 5]), CONVERSATION],
    ids=["text", "ids", "tensor", "chat"],
)
def test_positions_are_those_of_what_nnsight_feeds(qwen, prompt):
    (found,) = hosts.positions(qwen, [prompt])
    assert list(found.ids) == _fed(qwen, prompt)


def test_chat_messages(qwen):
    (found,) = hosts.positions(qwen, [CONVERSATION])
    assert found.tokens[:4] == ("user", "a", "b", "end")


def test_several_kinds_in_one_list(qwen):
    kinds = hosts.positions(qwen, ["a b", [6, 7, 8], CONVERSATION])
    assert [len(each.ids) for each in kinds][:2] == [2, 3]
    assert len(kinds) == 3
    assert hosts.positions(qwen, []) == []


@pytest.mark.parametrize(("bad", "kind"), [(["a", "b"], "strings"), ([[1, 2], [3]], "lists")])
def test_a_prompt_that_is_several(qwen, bad, kind):
    message = (
        f"{bad!r} is 2 {kind}, and one prompt was expected. Pass a flat list of prompts: "
        "nla.positions(model, [first, second])."
    )
    with pytest.raises(InjectionError, match=f"^{re.escape(message)}$"):
        hosts.positions(qwen, [bad])


@pytest.mark.parametrize("bad", [5, None, 2.5, object()], ids=lambda bad: type(bad).__name__)
def test_what_is_no_prompt(qwen, bad):
    for prompts in (bad, [bad] if bad != 5 else bad, ["a b", bad]):
        with pytest.raises(InjectionError, match=r"is not a prompt\. Expected a string, a list of"):
            hosts.positions(qwen, prompts)


def test_one_list_of_ids_is_no_list_of_prompts(qwen):
    message = r"^\[4, 5, 6\] is one prompt of token ids, .* nla.positions\(model, \[prompt\]\)"
    with pytest.raises(InjectionError, match=message):
        hosts.positions(qwen, [4, 5, 6])


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_slice_follows_the_tokenizers_side(host, monkeypatch, side):
    monkeypatch.setattr(host.tokenizer, "padding_side", side)
    layer, alone = hosts.block(host, 2), []
    for prompt in PROMPTS:
        with torch.no_grad(), host.trace(prompt):
            alone.append(layer.output[0].save())
    with torch.no_grad(), host.trace(PROMPTS):
        together = layer.output.save()
    for row, place in enumerate(hosts.positions(host, PROMPTS)):
        torch.testing.assert_close(together[row, place.slice], alone[row], rtol=1e-4, atol=1e-5)
    (other,) = hosts.positions(host, PROMPTS[0], padding_side="left")
    assert other.side == "left"


def test_a_prompt_without_tokens_has_no_positions():
    for side in ("left", "right"):
        assert list(range(9))[hosts.Positions((), (), side).slice] == []


def test_options_of_positions_that_do_not_fit(qwen):
    with pytest.raises(InjectionError, match="padding_side='middle': expected 'left' or 'right'"):
        hosts.positions(qwen, "a", padding_side="middle")
    with pytest.raises(InjectionError, match="prepend_bos=True is for a TransformerBridge"):
        hosts.positions(qwen, "a", prepend_bos=True)
