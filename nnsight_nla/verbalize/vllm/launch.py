"""The options that vLLM has to be started with to serve a verbalizer.

They are the same for ``LLM(...)`` in this process and for ``vllm serve``::

    options = engine_options(verbalizer, load={}, given={"max_num_seqs": 512})
    llm = LLM(**options)
    subprocess.run(serve_command(verbalizer, load={}, port=8000, more=["--max-num-seqs", "512"]))
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from ...errors import CheckpointError, VerbalizationError, shown
from ...models import hosts
from . import draws, receipts, rows
from .settings import Settings

if TYPE_CHECKING:
    from ..verbalizer import Verbalizer

INSTALL = "pip install 'nnsight-nla[vllm]'"
ADAPTER = "nla"
"""The name of a verbalizer that is an adapter, in vLLM."""
MIDDLEWARE = f"{__package__}.server.VerbalizerRoutes"
_FIXED = ("model", "enable_prompt_embeds", "worker_extension_cls", "generation_config")
_FIXED_TO_SERVE = (*_FIXED, "hf_overrides", "logits_processors", "lora_modules", "host", "port")
_NOT_VLLMS = (
    "quantization_config", "load_in_4bit", "load_in_8bit", "subfolder", "gguf_file", "variant",
)  # fmt: skip
"""Options of transformers that say which weights are loaded, and that vLLM does not have."""
_DEFAULT_RANK = 16
_LACKING = {"use_dora": (False, None), "bias": ("none", None), "modules_to_save": ([], None)}
"""Fields of an adapter's configuration of which vLLM's LoRA takes these values only."""
_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)


def check_installed() -> None:
    """Check that vLLM can be imported.

    Raises:
        VerbalizationError: It is not installed.
    """
    if find_spec("vllm") is None:
        raise VerbalizationError(
            f"engine='vllm' needs vLLM: {INSTALL}. Without it, use engine='fast', or a server: "
            "NLA(url='http://...', engine='vllm')."
        )


def engine_options(
    verbalizer: Verbalizer, load: Mapping[str, Any], given: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the keyword arguments of vLLM's ``LLM``, without those of an adapter.

    Args:
        verbalizer: What to serve; its weights are not loaded.
        load: The options that it was opened with.
        given: The caller's own; they go before ours.

    Raises:
        VerbalizationError: A given option would break the injection, or the checkpoint cannot be
            served.
    """
    checkpoint, prompt, av = verbalizer.checkpoint, verbalizer.prompt, verbalizer.av
    _check(load, given)
    if checkpoint.d_model < rows.LEAST_WIDTH:
        raise CheckpointError(
            f"engine='vllm' needs a d_model of {rows.LEAST_WIDTH} or more, this verbalizer has "
            f"{checkpoint.d_model}. Use engine='fast'."
        )
    settings = Settings.of(checkpoint, prompt, name_of(verbalizer))
    if given.get("dtype") == "auto":  # vLLM's would be float16 where the weights are float32.
        given = {name: value for name, value in given.items() if name != "dtype"}
    own = {
        "model": _source(verbalizer),
        "dtype": str(hosts.dtype_of(av)).removeprefix("torch."),
        "enable_prompt_embeds": True,
        "generation_config": "vllm",
        "worker_extension_cls": receipts.EXTENSION,
        **({"tokenizer": name} if (name := _tokenizer(verbalizer)) else {}),
        **({"trust_remote_code": True} if load.get("trust_remote_code") else {}),
        **({"revision": load["revision"]} if load.get("revision") else {}),
        **({} if (adapter := adapter_of(verbalizer)) is None else lora_options(_rank(adapter))),
    }
    return {
        **own,
        **given,
        "hf_overrides": {
            **given.get("hf_overrides", {}),
            **settings.overrides(architecture(verbalizer)),
        },
        "logits_processors": [*given.get("logits_processors", []), draws.PROCESSOR],
    }


def serve_command(
    verbalizer: Verbalizer, load: Mapping[str, Any], *, host: str, port: int, more: Sequence[str]
) -> list[str]:
    """Return the command that starts a server of this verbalizer.

    Args:
        verbalizer: What to serve.
        load: The options that it was opened with.
        host: The address to listen on.
        port: The port to listen on.
        more: Options of ``vllm serve`` as they are.

    Raises:
        VerbalizationError: The checkpoint cannot be served, or one of `more` would break the
            injection.
    """
    for word in more:
        name = word.partition("=")[0]
        if name.startswith("--") and name[2:].replace("-", "_") in _FIXED_TO_SERVE:
            raise VerbalizationError(
                f"{name} after two dashes: nnsight-nla serve sets this option of vLLM itself. "
                "Leave it out; --host and --port go before the two dashes."
            )
    options = engine_options(verbalizer, load, {})
    # What `vllm serve` runs, without its command line, which vLLM's CPU build has not.
    words = [sys.executable, "-m", "vllm.entrypoints.openai.api_server"]
    for name, value in options.items():
        words.append(f"--{name.replace('_', '-')}")
        if isinstance(value, dict):
            words.append(json.dumps(value))
        elif isinstance(value, list):
            words += map(str, value)
        elif value is not True:
            words.append(str(value))
    adapter = adapter_of(verbalizer)
    if adapter is not None:
        words += ["--lora-modules", f"{ADAPTER}={adapter}"]
    return [*words, "--middleware", MIDDLEWARE, "--host", host, "--port", str(port), *more]


def _check(load: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """Check what the caller gave.

    Raises:
        VerbalizationError: An option would break the injection, has another form than vLLM's, or
            would be lost.
    """
    for name in _FIXED:
        if name in given:
            raise VerbalizationError(
                f"vllm={{{name!r}: {shown(given[name])}}}: the injection of the vector needs this "
                "option as it is set here. Leave it out."
            )
    for name, kind in (("hf_overrides", dict), ("logits_processors", list)):
        if name in given and not isinstance(given[name], kind):
            raise VerbalizationError(
                f"vllm={{{name!r}: {shown(given[name])}}}: expected a {kind.__name__}, to which "
                "what the injection needs is added."
            )
    lost = sorted(name for name in _NOT_VLLMS if load.get(name))
    if lost:
        raise VerbalizationError(
            f"{lost[0]}={shown(load[lost[0]])}: with engine='vllm', vLLM loads the verbalizer, and "
            "has no such option. Pass its own, such as vllm={'quantization': 'fp8'}; for the "
            f"reconstructor alone, ar_options={{{lost[0]!r}: ...}}."
        )


def adapter_of(verbalizer: Verbalizer) -> str | None:
    """Return the folder or the id of the verbalizer's adapter; ``None`` if it has none."""
    adapter = hosts.adapter_of(verbalizer.av)
    return None if adapter is None else _located(adapter)


def name_of(verbalizer: Verbalizer) -> str:
    """Return what `nnsight-nla serve` is to be given: the adapter, or else the model."""
    return adapter_of(verbalizer) or _source(verbalizer)


def lora_options(rank: int) -> dict[str, Any]:
    """Return the options of vLLM for an adapter of this rank."""
    # vLLM allows these only, and takes an adapter of a lower rank.
    allowed = next((each for each in _RANKS if each >= rank), _RANKS[-1])
    return {"enable_lora": True, "max_lora_rank": allowed, "max_loras": 1}


def architecture(verbalizer: Verbalizer) -> str:
    """Return the architecture's name in vLLM: that of the class in transformers."""
    listed = getattr(hosts.config(verbalizer.av), "architectures", None)
    if listed:
        return str(listed[0])
    module: Any = hosts.module_of(verbalizer.av)
    return type(getattr(module, "get_base_model", lambda: module)()).__name__


def _source(verbalizer: Verbalizer) -> str:
    return _located(str(cast("Any", verbalizer.av).repo_id))


def _tokenizer(verbalizer: Verbalizer) -> str | None:
    name = str(getattr(verbalizer.tokenizer, "name_or_path", "") or "")
    return _located(name) if name else None


def _located(name: str) -> str:
    """Return a folder's path from the root, for clients and processes in other folders."""
    return str(Path(name).absolute()) if Path(name).is_dir() else name


def _rank(adapter: str) -> int:
    """Return the highest rank of an adapter.

    Raises:
        VerbalizationError: vLLM's LoRA cannot run it.
    """
    file = Path(adapter) / "adapter_config.json"
    if not file.is_file():
        from huggingface_hub import hf_hub_download

        file = Path(hf_hub_download(adapter, file.name))
    said = json.loads(file.read_text("utf-8"))
    rank = max(
        [int(said.get("r", _DEFAULT_RANK)), *map(int, said.get("rank_pattern", {}).values())]
    )
    lacks = [
        f"{name}={shown(said[name])}"
        for name, taken in _LACKING.items()
        if said.get(name) not in taken
    ]
    if rank > _RANKS[-1]:
        lacks.append(f"a rank of {rank} (the highest is {_RANKS[-1]})")
    if lacks:
        raise VerbalizationError(
            f"The adapter {adapter} has {' and '.join(lacks)}, which vLLM's LoRA lacks. Use "
            "engine='fast', or merge the adapter into its base (PEFT's merge_and_unload) and save "
            "that with the sidecar."
        )
    return rank
