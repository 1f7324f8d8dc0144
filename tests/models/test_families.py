"""Architectures, small and random: read, explained and patched as by a plain hook, or refused.

One family of each shape of block; tests/families has all of them, and the table in
tutorials/reference/families.rst says what is expected.
"""

import re
import warnings
from pathlib import Path

import nnsight
import pytest
import torch
import transformers
import yaml
from safetensors.torch import save_file

from nnsight_nla import Checkpoint, CheckpointError, InjectionError, NLAWarning
from nnsight_nla.models import architecture, hosts
from nnsight_nla.models.blocks import find_blocks, residual_envoy
from nnsight_nla.training.saving import HEAD_FILE
from tutorials.reference import families

(TABLES_VERSION,) = re.findall(
    r"transformers (\d+\.\d+\.[\w.]*\w)", families.TABLE.read_text("utf-8")
)
"""The transformers that the table was made with; the page says it once."""
needs_the_tables_version = pytest.mark.skipif(
    transformers.__version__ != TABLES_VERSION,
    reason="the table is of another transformers: python -m tutorials.reference.families",
)
SHAPES = (
    "bamba",  # (residual, None), attention and state-space blocks
    "bart",  # The decoder of an encoder-decoder.
    "bert",  # encoder.layer, as a decoder
    "bloom",  # (residual, attention)
    "codegen",
    "deepseek_v3",
    "falcon",
    "falcon_h1",  # (residual,)
    "gemma3",  # A wrapper with a vision tower as deep as the language model.
    "gemma4_text",  # Inputs for each layer; head_dim differs by layer.
    "gpt2",
    "gpt_neo",
    "gptj",
    "jamba",  # Its prompt is not shared; see verbalize/states.py.
    "lfm2",
    "llama",
    "mamba",  # backbone.layers
    "mllama",  # A block that only runs for images.
    "moss_transcribe_diarize",  # An audio tower before the language model.
    "mpt",
    "openai-gpt",  # [residual], no cache
    "qwen3_next",
    "rwkv",  # (residual, state, None)
    "whisper",
    "xlstm",
)
REFUSED = {
    "blt": "its configuration has no hidden_size",
    "cpmant": "block 1 returns [3, 37, 32] for 3 texts of 5 tokens; expected one residual stream",
    "deepseek_v4": "block 1 returns [3, 5, 4, 32] for 3 texts of 5 tokens",
    "gemma3n_text": "block 1 returns [4, 3, 5, 32] for 3 texts of 5 tokens",
    "gemma4_unified_assistant": "does not run on token ids alone (ValueError: inputs_embeds and",
    "hrm_text": "no list of 32 blocks in HrmTextForCausalLM",
    "musicgen": "its token embedding is a ModuleList, not one nn.Embedding",
    "qwen4_exp_text": "block 1 returns [3, 5, 128] for 3 texts of 5 tokens",
    "reformer": "block 1 returns several residual streams, which the next block reads",
    "roberta": "it numbers positions from the padding token's id",
    "xlm": "are spread over the lists transformer.attentions, transformer.ffns",
    "xlnet": "block 1 returns [5, 3, 32] for 3 texts of 5 tokens",
}


def check(family: str) -> None:
    """What is found is what the reference says, and nothing that is served differs."""
    row = families.examine(family)
    if not row.refused:
        assert (row.read, row.patch) == ("yes", "yes")
        assert row.explain == "yes" or row.explain.startswith("as a verbalizer: ")
    assert families.entry(row) in families.TABLE.read_text("utf-8")


@needs_the_tables_version
@pytest.mark.parametrize("family", SHAPES)
def test_a_family_is_read_explained_and_patched_as_by_a_plain_hook(family):
    check(family)


@pytest.fixture(autouse=True)
def quiet():
    """Transformers and nnsight warn about random models; their warnings are no errors here."""
    with families.quiet():
        yield


@needs_the_tables_version
@pytest.mark.parametrize("family", sorted(REFUSED))
def test_a_family_is_refused_at_construction_by_name(family):
    module = families.smallest(family)
    model = families.wrapped(module)
    expected = rf"{type(module).__name__} is not supported: .*{re.escape(REFUSED[family])}"
    with pytest.raises(CheckpointError, match=expected):
        families.opened(model, families.ADDED)
    served = families.opened(families.wrapped(families.smallest("llama")), families.ADDED)
    with pytest.raises(InjectionError, match=expected):
        served.layer(model)


def reconstructor_of(family: str, folder: Path) -> Path:
    """A reconstructor in a folder: a random model of the family, an identity as its head."""
    families.smallest(family).save_pretrained(folder)
    families.tokenizer().save_pretrained(folder)
    save_file({"weight": torch.eye(families.D_MODEL)}, folder / HEAD_FILE)
    described = Checkpoint(
        families.K, families.D_MODEL, template=families.TEMPLATE, marker="㈎",
        marker_id=families.MARKER, ar_template="<text>{explanation}</text>",
    )  # fmt: skip
    sidecar = described.to_sidecar("ar", final_norm_stripped=True)
    (folder / "nla_meta.yaml").write_text(yaml.safe_dump(sidecar, allow_unicode=True), "utf-8")
    return folder


@pytest.mark.parametrize("family", ["llama", "gptj", "rwkv", "roformer"])
def test_a_served_family_reconstructs_a_text_in_a_batch_as_alone(family, tmp_path):
    folder = reconstructor_of(family, tmp_path / "ar")
    nla = families.opened(
        families.wrapped(families.smallest("llama")), families.ADDED, ar=folder,
        ar_options={"dtype": "float32"},
    )  # fmt: skip
    texts = ["a tiny text, longer than the other", "a"]
    alone = torch.stack([nla.reconstruct(text) for text in texts])
    assert torch.allclose(nla.reconstruct(texts), alone, atol=1e-4)


@needs_the_tables_version
@pytest.mark.parametrize("family", ["cpmant", "xlnet"])
def test_a_reconstructor_is_refused_at_construction_by_name(family, tmp_path):
    folder = reconstructor_of(family, tmp_path / "ar")
    with pytest.raises(CheckpointError, match=f"is not supported.*{re.escape(REFUSED[family])}"):
        families.opened(
            families.wrapped(families.smallest("llama")), families.ADDED, ar=folder,
            ar_options={"dtype": "float32"},
        )  # fmt: skip


@pytest.mark.parametrize("family", ["gpt_neox", "gpt_neox_japanese"])
def test_a_flag_that_the_model_does_not_use_is_not_used(family):
    """Published GPT-NeoX configurations have is_decoder=False, and are causal."""
    module = families.smallest(family)
    module.config.is_decoder = False
    assert architecture.refusal(module, 1) is None


def test_an_encoder_is_refused_until_it_is_a_decoder():
    module = families.smallest("bert")
    module.config.is_decoder = False
    expected = "BertLMHeadModel is an encoder.*: set is_decoder=True in its configuration"
    with pytest.raises(CheckpointError, match=expected):
        families.opened(families.wrapped(module), families.ADDED)


def test_a_block_that_is_run_for_images_only_is_refused():
    model = families.wrapped(families.smallest("mllama"))
    assert hosts.block(model, 2).path.endswith("layers.2")
    with pytest.raises(InjectionError, match="block 3 is not run for a text"):
        hosts.block(model, 3)


def test_a_block_that_runs_twice_is_refused():
    module = families.smallest("gpt2")

    class Twice(type(module)):
        def forward(self, *args, **options):
            self.transformer.h[1](torch.zeros(1, 1, self.config.n_embd))
            return super().forward(*args, **options)

    module.__class__ = Twice
    assert architecture.refusal(module, 1) == "block 1 is run 2 times for one text."


def test_an_embedding_of_another_width_is_refused():
    options = {"embedding_size": 16, "hidden_size": 32, "is_decoder": True}
    config = transformers.ElectraConfig(
        num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, vocab_size=99, **options
    )
    model = transformers.ElectraForCausalLM(config).eval()
    assert hosts.block(model, 0) is model.electra.encoder.layer[0]
    with pytest.raises(InjectionError, match=r"the token embedding returns \[3, 5, 16\] for"):
        hosts.embedding(model)


def test_the_check_makes_no_weights_draws_nothing_and_is_made_once(monkeypatch):
    module = families.smallest("llama").to("meta")
    state = torch.get_rng_state()
    assert architecture.refusal(module, 1) is None
    assert torch.equal(torch.get_rng_state(), state)
    monkeypatch.setattr(architecture, "_shapes", lambda *given: pytest.fail("checked again"))
    assert architecture.refusal(module, 1) is None
    again = families.smallest("llama")
    assert architecture.refusal(again, 1) is None


@pytest.mark.parametrize("family", ["llama", "gptj", "openai-gpt"])
def test_the_residual_is_written_in_place_and_by_assignment_and_the_rest_of_the_tuple_stays(family):
    used = families.Used(families.smallest(family))
    layer, own = used.nla.layer(used.model), used.model
    for name in f"{used.path}.{families.K}".split("."):
        own = own[int(name)] if name.isdigit() else getattr(own, name)
    with torch.no_grad(), used.model.trace(used.ids):
        before = own.output
        layer.output = layer.output * 2
        after = own.output
        layer.output[:, 0] = 0
        layer.output *= 3
        last = own.output
        kept = nnsight.save([before, after, last])
    if family == "llama":
        kept = [[value] for value in kept]
    before, after, last = kept
    doubled = 2 * before[0]
    doubled[:, 0] = 0
    assert torch.equal(last[0], 3 * doubled)
    assert len(after) == len(before)
    assert all(mine is theirs for mine, theirs in zip(after[1:], before[1:], strict=True))


def test_a_block_that_returns_a_tensor_keeps_its_envoy_and_a_view_shares_its_state(pair):
    model, nla = pair
    assert nla.layer(model) is model.model.layers[3]
    used = families.Used(families.smallest("gptj"))
    layer, own = used.nla.layer(used.model), used.model.transformer.h[families.K]
    assert layer is not own
    assert (layer._module, layer.mlp, layer.root) == (own._module, own.mlp, used.model)
    assert vars(layer) is vars(own)  # So that it follows when nnsight loads the weights.


def test_an_envoy_class_of_the_users_stays():
    from nnsight import Envoy, TransformersModel

    class Mine(Envoy):
        def half(self):
            return self.output / 2

    module = families.smallest("gptj")
    model = TransformersModel(
        module, tokenizer=families.tokenizer(), task="text-generation", envoys={"h.1": Mine}
    )
    layer = residual_envoy(model.transformer.h[1])
    assert isinstance(layer, Mine)
    with torch.no_grad(), model.trace(torch.tensor([[5, 6]])):
        half, full = layer.half().save(), layer.output.save()
    assert torch.equal(2 * half, full)


def test_the_families_that_do_not_mask_left_padding_are_those_of_the_table():
    rows = families.TABLE.read_text("utf-8").split("   * - ")
    differ = {row.split("\n")[0].replace("\\", "") for row in rows if "differs: short" in row}
    assert differ == hosts.LEFT_PADDING_COUNTS


@pytest.mark.parametrize("family", sorted(hosts.LEFT_PADDING_COUNTS))
def test_a_trace_that_is_padded_on_the_left_warns_where_padding_counts(family):
    used = families.Used(families.smallest(family))
    texts = [families.TEXTS[0], families.TEXTS[0][:4]]

    def warned(texts):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            with torch.no_grad(), used.model.trace(texts):
                found = used.nla.layer(used.model).output.save()
        said = [str(each.message) for each in caught if each.category is NLAWarning]
        return any("does not mask padding on the left" in each for each in said), found

    assert warned(texts)[0]
    assert not warned(texts[:1])[0]
    assert not warned([texts[0], texts[0]])[0]
    used.model.tokenizer.padding_side = "right"
    said, found = warned(texts)
    assert not said
    for row, span in zip(found, used.nla.positions(used.model, texts), strict=True):
        alone, _ = used.plain(torch.tensor([span.ids]))
        assert torch.allclose(row[span.slice], alone[0], rtol=1e-4, atol=1e-4)


def test_a_trace_that_is_padded_on_the_left_does_not_warn_elsewhere(model, nla):
    with model.trace(["People in Paris speak", "People"]):  # A warning would be an error.
        nla.layer(model)


def test_blocks_are_next_to_the_embedding():
    assert find_blocks(families.smallest("gemma3"))[0] == "model.language_model.layers"
    assert find_blocks(families.smallest("git"))[0] == "git.encoder.layer"


def test_a_pad_that_the_model_writes_ends_a_reply_in_neither_engine():
    module = families.smallest("llama")
    bias = torch.zeros(families.VOCABULARY)
    bias[families.PAD] = 1e4
    module.lm_head.bias = torch.nn.Parameter(bias)
    model = families.wrapped(module)
    for engine in ("fast", "generate"):
        nla = families.opened(model, families.ADDED, engine=engine)
        thought = nla.explain(torch.ones(families.D_MODEL))
        assert (thought.finish, thought.raw) == ("length", "")
