"""Register the model classes with vLLM; the entry point ``vllm.general_plugins`` calls this.

vLLM calls it in each of its processes. For every architecture that vLLM has, there is one of the
same name with the prefix ``NLA``, which is made when it is asked for (see `model`)::

    LLM(path, hf_overrides={"architectures": ["NLAQwen3ForCausalLM"], "nla": ...})
"""

from __future__ import annotations

PREFIX = "NLA"
"""Begins the name of an architecture whose model class writes vectors."""
_HOME = f"{__package__}.model"


def register() -> None:
    """Register a model class for each architecture of vLLM; imports none of them."""
    from vllm import ModelRegistry  # pyright: ignore

    for name in list(ModelRegistry.get_supported_archs()):
        if not name.startswith(PREFIX):
            ModelRegistry.register_model(f"{PREFIX}{name}", f"{_HOME}:{PREFIX}{name}")
