"""Make the table of architectures: what of each is served, and why the rest is refused.

    python -m tutorials.reference.families        # writes tutorials/reference/families.rst

For every family that the installed transformers has a causal language model for, the smallest
random model is built from its configuration and wrapped as an nnsight model. It is read, explained
(it is its own verbalizer) and patched, and each result is compared with a plain PyTorch hook on the
plain model. tests/families does the same for all families, tests/models/test_families.py for some.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from nnsight import TransformersModel
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedConfig, PreTrainedTokenizerFast
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from nnsight_nla import NLA, Checkpoint, Injection, NLAError, Sampling
from nnsight_nla.experiments import logit_difference, patch
from nnsight_nla.models import hosts
from nnsight_nla.models.blocks import find_blocks

FAMILIES: tuple[str, ...] = tuple(MODEL_FOR_CAUSAL_LM_MAPPING._model_mapping)
TABLE = Path(__file__).with_suffix(".rst")
D_MODEL, DEPTH, HEADS, VOCABULARY, CONTEXT = 32, 4, 4, 264, 192
K = 1
"""The block that is read and written."""
PAD, UNKNOWN, END, MARKER = 0, 1, 2, 3
TEMPLATE = "Say <c>{injection_char}</c>:"
TEXTS = "a tiny text", "a tidy text"
FEW = Sampling(max_new_tokens=6)
ADDED = Injection("add", "block", K, 9.0)
REPLACED = Injection("replace", "embedding", None, 90.0)

# A configuration's attribute, by pattern, to its small value.
_SMALL: tuple[tuple[str, int], ...] = (
    (r"num_hidden_layers|n_layers?|num_layers|(num_)?(de|en)coder_layers|num_blocks|depth", DEPTH),
    (
        r"hidden_size|n_embd|d_model|emb_dim|embedding_dim|embedding_size|word_embed_proj_dim|"
        r"(in|out)put_embedding_size|lru_width|attention_hidden_size|hidden_size_global|"
        r"hidden_size_per_layer_input|out_hidden_size|backbone_hidden_size|"
        r"cross_attention_hidden_size|ple_embed_dim|input_size",
        D_MODEL,
    ),
    (
        r"(.*_)?intermediate_size(_mlp)?|((de|en)coder_)?ffn_dim|(expert_)?ffn_hidden_size|n_inner|"
        r"dff|d_ff|dim_ff|d_inner|feed_forward_size|mlp_dim",
        48,
    ),
    (
        r"(num_|decoder_|encoder_|swa_num_)+attention_heads|n_heads?|num_heads|attention_heads|"
        r"linear_num(_value|_key)?_heads|index_n_heads",
        HEADS,
    ),
    (r"(swa_)?num_key_value_heads|num_kv_heads|num_query_groups", 2),
    (
        r"((swa|linear|linear_key|linear_value|index|global|local|v|qk_nope|qk_rope)_)?head_dim|"
        r"linear_head_dim|attention_head_size|kv_channels|dim_head|d_kv|d_head|rotary_dim|"
        r"attention_head_dim",
        D_MODEL // HEADS,
    ),
    (r"qk_head_dim|(q|kv|o)_lora_rank|adapter_rank|gated_norm_rank|laurel_rank|hc_lowrank", 16),
    (r"(num|n_routed|num_local|moe_num)_experts|zero_expert_num", 4),
    (r"num_experts_per_tok(en)?|moe_k|moe_topk|top_k_experts", 2),
    (r"n_group|topk_group|num_expert_group|n_groups|mamba_n_groups|o_groups", 1),
    (r"((de|en)coder_|shape_|pronunciation_)?vocab_size(_per_layer_input)?", VOCABULARY),
    (
        r"(original_)?max_position_embeddings|n_positions|max_seq_len|model_max_length|n_ctx|"
        r"context_length|max_(target|source)_positions",
        CONTEXT,
    ),
    (
        r"sliding_window(_size)?|attention_window_size|attention_chunk_size|window_size|"
        r"local_attention|(mamba_)?chunk_size",
        64,
    ),
    (r"image_size", 16),
    (r"mamba_d_state|(ssm_)?state_size|time_step_rank|mamba_dt_rank|mamba_(n|num)_heads", 8),
    (r"n_mamba_heads|mamba_(d_head|head_dim|headdim)|patch_size", 8),
    (r"router_hidden_size", 24),
    (r"pad_token_id", PAD),
    (r"bos_token_id|eos_token_id", END),
    (r"is_decoder", True),
)
_FILLED_IF_NONE = ("token_id", "head_dim", "_experts", "_per_tok")
_MIXED = ["linear_attention", "full_attention"] * 2
_ROPE = {"rope_type": "default", "rope_theta": 1e4}
_INVALID_BY_DEFAULT = {"gemma4_assistant"}
_ASSISTANT = {
    "hidden_size_per_layer_input": 0,
    "vocab_size_per_layer_input": 0,
    "num_hidden_layers": DEPTH,
    "num_kv_shared_layers": DEPTH,
}
_INDEXER = {
    "indexer_n_heads": 4,
    "indexer_kv_heads": 1,
    "indexer_head_dim": 8,
    "indexer_budget": 16,
    "indexer_compress_ratio": 2,
}
# What a family's configuration needs beyond that.
_SPECIAL: dict[str, dict[str, Any]] = {
    "bailing_hybrid": {"layer_group_size": 2},
    "bamba": {"attn_layer_indices": [1, 3]},
    "blt": {"encoder_hash_byte_group_vocab": 16},
    "cohere_compass_text": {
        "layer_types": ["full_attention"] * DEPTH,
        "rope_parameters": {"full_attention": _ROPE},
    },
    "dbrx": {
        "attn_config": {"rope_theta": 1e4, "kv_n_heads": 2, "clip_qkv": 8.0},
        "rope_parameters": _ROPE,
    },
    "dots1": {"n_shared_experts": 1},
    "falcon_h1": {"mamba_d_ssm": 2 * D_MODEL},
    "gemma3n_text": {
        "num_kv_shared_layers": 1,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
    },
    "gemma4_assistant": {"text_config": _ASSISTANT},
    "gpt_neo": {"attention_types": [[["global", "local"], 2]]},
    "granitemoehybrid": {"layer_types": _MIXED},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "kimi_linear": {"layer_types": _MIXED},
    "lfm2": {"layer_types": ["conv", "full_attention"] * 2},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2},
    "mamba2": {"num_heads": 8, "head_dim": 8},
    "nemotron": {"num_key_value_heads": 2},
    "qwen4_exp": {"text_config": _INDEXER},
    "qwen4_exp_text": _INDEXER,
    "reformer": {
        "attn_layers": ["local", "lsh"] * 2,
        "axial_pos_shape": [12, 16],
        "axial_pos_embds_dim": [16, 16],
    },
    "xlstm": {
        "hidden_size": 64,
        "embedding_dim": 64,
        "qk_dim_factor": 1.0,
        "v_dim_factor": 1.0,
    },
    "xmod": {"default_language": "en_XX"},
    "zamba": {
        "layers_block_type": ["linear_attention"] * 2 + ["hybrid"] * 2,
        "attention_hidden_size": 2 * D_MODEL,
        "attention_head_dim": 16,
    },
    "zamba2": {
        "layers_block_type": ["linear_attention", "hybrid"] * 2,
        "mamba_expand": 2,
        "attention_hidden_size": 2 * D_MODEL,
        "attention_head_dim": 16,
    },
    "zaya": {"num_experts_per_tok": 1},
}


@dataclass(frozen=True)
class Row:
    """What of one family is served."""

    family: str
    """Its ``model_type``."""
    model: str
    """The class of the model."""
    blocks: str = ""
    """The path of its blocks."""
    output: str = ""
    """The kind of value that a block returns: ``tensor``, ``tuple`` or ``list``."""
    read: str = ""
    explain: str = ""
    patch: str = ""
    padded: str = ""
    """``yes`` where the result is a plain hook's; otherwise how it differs."""
    engine: str = ""
    """The engine that ``engine="fast"`` runs; both give the same text."""
    refused: str = ""
    """Why it is refused, or cannot be built here."""

    @property
    def results(self) -> dict[str, str]:
        """The comparisons with plain hooks."""
        return {name: getattr(self, name) for name in ("read", "explain", "patch", "padded")}


def smallest(family: str) -> nn.Module:
    """Build the smallest random model of a family, from its default configuration.

    Raises:
        Exception: Whatever transformers raises if it cannot be built here.
    """
    special = _SPECIAL.get(family, {})
    given = special if family in _INVALID_BY_DEFAULT else {}
    config = _smaller(CONFIG_MAPPING[family](**given), special)
    kind: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    kind = kind[0] if isinstance(kind, tuple) else kind
    if not isinstance(config, kind.config_class):  # A wrapper whose language model is wanted.
        inner = [getattr(config, name) for name in config.sub_configs]
        config = next(each for each in inner if isinstance(each, kind.config_class))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = kind(config).eval()
        # As it is initialized, a model is deaf to what is written into it.
        with torch.no_grad():
            for parameter in module.parameters():
                if parameter.ndim > 1:
                    parameter.uniform_(-0.5, 0.5)
        # What else a configuration says about generation is under test elsewhere.
        module.generation_config = GenerationConfig(eos_token_id=END, pad_token_id=PAD)
    return module


def _smaller(config: PreTrainedConfig, special: dict[str, Any]) -> PreTrainedConfig:
    values: dict[str, Any] = {}
    for name, value in vars(config).items():
        if isinstance(value, PreTrainedConfig):
            values[name] = _smaller(value, special.get(name, {})).to_dict()
            values[name] |= special.get(name, {})
        elif value is None and not name.endswith(_FILLED_IF_NONE):
            continue
        elif value is None or isinstance(value, int):
            small = (new for pattern, new in _SMALL if re.fullmatch(pattern, name))
            new = next(small, None)
            if new is not None and isinstance(value, bool) == isinstance(new, bool):
                values[name] = new
    if "kv_lora_rank" in values:
        values["num_key_value_heads"] = HEADS
    plain = {
        name: value for name, value in special.items() if not isinstance(values.get(name), dict)
    }
    return type(config)(**{**values, **plain})


def tokenizer() -> PreTrainedTokenizerFast:
    """Make a tokenizer with one token per character, and as many as the models have."""
    special = ["<pad>", "<unk>", "<end>", "㈎"]
    characters = [chr(code) for code in (*range(32, 127), *range(0x100, 0x200))]
    listed = [*special, *characters][:VOCABULARY]
    built = Tokenizer(
        models.WordLevel({each: i for i, each in enumerate(listed)}, unk_token="<unk>")
    )
    built.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    built.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=built, unk_token="<unk>", pad_token="<pad>", eos_token="<end>",
        chat_template="{% for m in messages %}{{ m.content }}{% endfor %}",
    )  # fmt: skip


def wrapped(module: nn.Module) -> Any:
    """Return the nnsight model of `module`."""
    return TransformersModel(module, tokenizer=tokenizer(), task="text-generation")


def opened(model: Any, injection: Injection, **options: Any) -> NLA:
    """Return an NLA whose verbalizer is `model`."""
    width = int(getattr(hosts.text_config(model), "hidden_size", D_MODEL))
    described = Checkpoint(
        K, width, template=TEMPLATE, marker="㈎", marker_id=MARKER, injection=injection
    )
    return NLA(model, checkpoint=described, sampling=FEW, **options)


def examine(family: str) -> Row:
    """Build a family's model, use it in every way, and compare each with a plain hook."""
    kind = MODEL_FOR_CAUSAL_LM_MAPPING._model_mapping[family]
    name = kind[0] if isinstance(kind, tuple) else kind
    with quiet():
        try:
            module = smallest(family)
        except Exception as error:
            return Row(family, name, refused=f"cannot be built here: {_short(error)}")
        try:
            used = Used(module)
        except NLAError as error:
            return Row(family, name, refused=_reason(error))
        return Row(
            family,
            name,
            used.path,
            type(used.output).__name__.replace("Tensor", "tensor"),
            used.read(),
            used.explain(),
            used.patch(),
            used.padded(),
            "" if used.not_a_verbalizer else used.nla.info()["engine"]["name"],
        )


class Used:
    """A small model that is its own verbalizer, next to the same model with plain hooks."""

    def __init__(self, module: nn.Module) -> None:
        """Wrap `module`.

        Raises:
            NLAError: It is refused.
        """
        self.module: Any = module
        self.model = wrapped(module)
        self.av, self.not_a_verbalizer = self.model, ""
        try:
            self.nla = self.opened(ADDED)
        except NLAError as error:
            if " as a verbalizer: " not in str(error):
                raise
            self.av, self.not_a_verbalizer = wrapped(smallest("llama")), _reason(error)
            self.nla = self.opened(ADDED)
        self.nla.layer(self.model)
        self.path, self.blocks = find_blocks(module)
        self.ids = torch.tensor([self.model.tokenizer.encode(TEXTS[0])])
        self.output: Any = None
        self.plain(self.ids)

    def opened(self, injection: Injection, **options: Any) -> NLA:
        """Return an NLA with this injection."""
        return opened(self.av, injection, **options)

    @torch.no_grad()
    def plain(
        self, ids: Tensor, edit: Callable[[Tensor], Tensor] | None = None, module: Any = None
    ) -> tuple[Tensor, Tensor]:
        """Run the plain model with a plain hook; return the residual at block K and the logits."""
        kept: list[Tensor] = []

        def hook(_: nn.Module, args: Any, output: Any) -> Any:
            self.output = output
            listed = isinstance(output, tuple | list)
            residual = output[0] if listed else output
            kept.append(residual.clone())
            if edit is None:
                return None
            kept.append(edited := edit(residual.clone()))
            return type(output)([edited, *output[1:]]) if listed else edited

        handle = (self.blocks[K] if module is None else module).register_forward_hook(hook)
        try:
            logits = self.module(input_ids=ids, use_cache=False).logits
        finally:
            handle.remove()
        return kept[-1], logits

    def read(self) -> str:
        """Compare the residuals of a trace, and of `NLA.read`, with a plain hook's."""
        with torch.no_grad(), self.model.trace(self.ids):
            handle = self.nla.explain(self.nla.layer(self.model).output[0])
        plain, _ = self.plain(self.ids)
        reading = self.nla.read(self.model, TEXTS[0])
        texts = [token.explanation for token in reading]
        return _differences(
            residual=_apart(handle.vectors, plain[0]),
            texts=texts != list(self.nla.explain(plain[0]).text),
        )

    def explain(self) -> str:
        """Compare the texts of both engines with those of plain hooks."""
        if self.not_a_verbalizer:
            return self.not_a_verbalizer
        width = hosts.width(self.model)
        vectors = torch.randn(3, width, generator=torch.Generator().manual_seed(7)) * 9
        found: dict[str, bool] = {}
        for name, injection in {"block": ADDED, "embedding": REPLACED}.items():
            fast = self.opened(injection)
            plain, first = zip(*(self.reply(fast, vector) for vector in vectors), strict=True)
            found[name] = fast.explain(vectors).raw != list(plain)
            generate = self.opened(injection, engine="generate")
            found[f"{name}, engine='generate'"] = generate.explain(vectors).raw != list(plain)
            found[f"{name}: deaf"] = torch.allclose(first[0], first[1], atol=1e-3)
        return _differences(**found)

    def reply(self, nla: NLA, vector: Tensor) -> tuple[str, Tensor]:
        """Generate greedily, one forward pass for each token, with the vector in each prompt.

        Returns:
            The reply, and the logits of its first token.
        """
        injection, sites = nla.checkpoint.injection, nla.prompt.sites
        direction = vector / vector.norm()

        def edit(residual: Tensor) -> Tensor:
            for site in sites:
                here = residual[:, site]
                residual[:, site] = (
                    here + injection.scale * here.norm() * direction
                    if injection.operation == "add"
                    else injection.scale * direction
                )
            return residual

        where = self.module.get_input_embeddings() if injection.layer is None else None
        ids = torch.tensor([nla.prompt.ids])
        every: list[Tensor] = []
        for _ in range(FEW.max_new_tokens):
            every.append(self.plain(ids, edit, where)[1][0, -1])
            token = every[-1].argmax()[None]
            if int(token) == END:
                break
            ids = torch.cat([ids, token[:, None]], dim=1)
        reply = ids[0, len(nla.prompt.ids) :]
        return self.model.tokenizer.decode(reply, skip_special_tokens=True), every[0]

    def patch(self) -> str:
        """Compare a patched run, in a trace and in a sweep, with a plain hook's."""
        donor, into = (torch.tensor([self.model.tokenizer.encode(each)]) for each in TEXTS)
        value = self.plain(donor)[0][0, -1]

        def edit(residual: Tensor) -> Tensor:
            residual[0, -1] = value
            return residual

        _, plain = self.plain(into, edit)
        with torch.no_grad(), self.model.trace(into):
            self.nla.layer(self.model).output[0, -1] = value
            logits = self.model.output.logits.save()
        with torch.no_grad(), self.model.trace(into):
            residual = self.nla.layer(self.model).output.clone()
            residual[0, -1] = value
            self.nla.layer(self.model).output = residual
            assigned = self.model.output.logits.save()
        metric = logit_difference("a", "b")
        last = into.shape[1] - 1
        sweep = patch(self.model, self.nla, *TEXTS, layers=[K], positions=[last], metric=metric)
        first, second = self.model.tokenizer.encode("ab")
        wanted = plain[0, -1, first] - plain[0, -1, second]
        return _differences(
            in_place=_apart(logits, plain),
            assigned=_apart(assigned, plain),
            sweep=_apart(torch.tensor(sweep.rows()[0]["metric"]), wanted),
            no_effect=torch.equal(plain, self.plain(into)[1]),
        )

    def padded(self) -> str:
        """Compare the residuals of a short prompt in a padded batch with those it has alone."""
        texts = [TEXTS[0], TEXTS[0][:4]]
        spans = self.nla.positions(self.model, texts)
        with torch.no_grad(), self.model.trace(texts):
            batch = self.nla.layer(self.model).output.save()
        found: dict[str, bool] = {}
        for row, span in enumerate(spans):
            alone, _ = self.plain(torch.tensor([span.ids]))
            found[("long", "short")[row]] = _apart(batch[row, span.slice], alone[0])
        return _differences(**found)


def _apart(found: Tensor, wanted: Tensor) -> bool:
    found, wanted = found.float(), wanted.float()
    return not (wanted.isfinite().all() and torch.allclose(found, wanted, rtol=1e-4, atol=1e-4))


def _differences(**differ: bool) -> str:
    wrong = [name for name, yes in differ.items() if yes]
    return f"differs: {', '.join(wrong)}" if wrong else "yes"


def _short(error: Exception) -> str:
    return " ".join(str(error).split())


def _reason(error: Exception) -> str:
    return _short(error).partition(" is not supported")[2].lstrip(": ")


@contextmanager
def quiet() -> Iterator[None]:
    """Silence transformers, which warns about random models and missing kernels."""
    level = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        transformers.logging.set_verbosity(level)


def escaped(text: str) -> str:
    """Return text without markup for reST."""
    return re.sub(r"([*`|_\\])", r"\\\1", text)


def entry(row: Row) -> str:
    """Return the lines of a row in its table of the reference."""
    cells = [row.model]
    if row.refused:
        cells.append(row.refused)
    else:
        cells += [row.blocks, row.output, row.read, row.explain, row.engine, row.patch, row.padded]
    lines = [
        f"   * - {escaped(row.family)}",
        *(f"     - {escaped(cell)}".rstrip() for cell in cells),
    ]
    return "\n".join([*lines, ""])


def page(rows: Iterable[Row]) -> str:
    """Return the page of the reference."""
    listed = sorted(rows, key=lambda row: row.family)
    served = [row for row in listed if not row.refused]
    refused = [row for row in listed if row.refused]
    counts = {"served": len(served), "refused": len(refused), "version": transformers.__version__}
    return _PAGE.format(
        **counts, rows="".join(map(entry, served)), refusals="".join(map(entry, refused))
    )


_PAGE = """Architectures
=============

What works for every family that has a causal language model in transformers {version}. The command
``python -m tutorials.reference.families`` makes this page: it builds the smallest random model of
each family, reads it, explains it (with itself as the verbalizer) and patches it, and compares each
result with a plain PyTorch hook on the plain model. "yes" means that they are equal.

The package has no list of supported architectures. It finds blocks by structure, and takes a
block's output, or the first element of it, as the residual. It refuses a model that does not fit,
with its name and the reason: a verbalizer or a reconstructor when the NLA is made, a target at
``nla.layer(model)``.

**Engine** is what ``engine="fast"`` runs. Hybrids, whose caches also keep the states of linear
attention, of state-space blocks or of convolutions, are decoded fast if the cache can repeat and
select these states by row. Whether a prompt can be shared is tried on the model itself: a model
that does not start several tokens from its states (Jamba, Zamba) runs the prompt for each vector.
Where the fast engine would not give the text of ``generate``, ``generate`` runs;
``nla.info()["engine"]`` says why.

**Padded** says whether a short prompt has the same residuals alone and in a batch with a longer
one, which nnsight pads on the left. If they differ, the model itself does not mask the padding:
trace such prompts one by one, or pad on the right. ``nla.layer(model)`` warns in such a trace;
``read``, experiments, data sets and reconstructors do not pad on the left.

Supported: {served}
-------------------

.. list-table::
   :header-rows: 1

   * - Family
     - Model
     - Blocks
     - A block returns
     - Read
     - Explain
     - Engine
     - Patch
     - Padded
{rows}
Refused, or not built here: {refused}
-------------------------------------

.. list-table::
   :header-rows: 1

   * - Family
     - Model
     - Why
{refusals}"""


if __name__ == "__main__":
    TABLE.write_text(page(map(examine, FAMILIES)), "utf-8")
