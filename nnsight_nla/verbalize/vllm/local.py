"""Run vLLM in this machine: its ``LLM``, started at the first text.

Requests are added all at once and taken as they finish, so vLLM batches them continuously, and a
caller that stops in the middle keeps what is done; the rest is aborted.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import NLAError, VerbalizationError
from ...models import hosts
from . import receipts
from .launch import ADAPTER, adapter_of, architecture, check_installed, engine_options
from .requests import Output

if TYPE_CHECKING:
    import torch

    from ..verbalizer import Verbalizer
    from .requests import Measured, Request

_ROWS = 512


class LocalEngine:
    """vLLM's ``LLM`` with one verbalizer."""

    def __init__(
        self, verbalizer: Verbalizer, load: Mapping[str, Any], given: Mapping[str, Any]
    ) -> None:
        """Check the options; nothing is started.

        Args:
            verbalizer: What to run.
            load: The options that it was opened with.
            given: Keyword arguments of ``LLM``.

        Raises:
            VerbalizationError: vLLM is not installed, or an option cannot be used.
        """
        check_installed()
        self._verbalizer, self._given = verbalizer, dict(given)
        self._options = engine_options(verbalizer, load, given)
        self._llm: Any = None
        self._process = 0
        self._adapter, self._adapters = adapter_of(verbalizer), 1

    @property
    def dtype(self) -> torch.dtype:
        """The dtype that the verbalizer computes in."""
        import torch

        if self._llm is not None:
            return self._llm.model_config.dtype
        asked = self._options["dtype"]
        named = getattr(torch, str(asked), None) if isinstance(asked, str) else asked
        if not isinstance(named, torch.dtype):
            return hosts.dtype_of(self._verbalizer.av)
        return named

    @property
    def rows(self) -> int:
        """How many requests wait or run at a time: more than vLLM runs, so that it stays full."""
        return max(_ROWS, 2 * int(self._given.get("max_num_seqs") or 0))

    @property
    def context(self) -> int:
        """The most tokens that a prompt and its reply may have."""
        return self._llm.model_config.max_model_len

    def start(self) -> None:
        """Start the engine, if it does not run; again, if its process has ended.

        Raises:
            VerbalizationError: vLLM does not have the architecture, or did not start.
        """
        if self._llm is not None and self._process != os.getpid():
            raise VerbalizationError(
                "This process was forked while vLLM ran, whose connections it cannot use. Start "
                "processes with multiprocessing.get_context('spawn'), or call nla.unload() first."
            )
        if self._llm is not None and self._ended:
            self.close()
        if self._llm is not None:
            return
        from vllm import LLM, ModelRegistry  # pyright: ignore

        from .plugin import PREFIX, register

        register()
        name = architecture(self._verbalizer)
        if f"{PREFIX}{name}" not in ModelRegistry.get_supported_archs():
            raise VerbalizationError(f"vLLM has no architecture {name}. Use engine='fast'.")
        try:
            self._llm = LLM(**self._options)
        except NLAError:
            raise
        except Exception as error:
            raise VerbalizationError(
                f"vLLM did not start with {self._verbalizer.runtime.name}: {type(error).__name__}: "
                f"{str(error).strip().rstrip('.')}. If that is not the cause, vLLM's log, above, "
                "has it. Its options are NLA(..., engine='vllm', vllm={...})."
            ) from error
        self._process = os.getpid()

    def run(self, requests: Sequence[Request]) -> Iterator[tuple[int, Output]]:
        """Yield a request's number and its output, in the order in which they finish."""
        from vllm import SamplingParams  # pyright: ignore

        prompts = [
            {"prompt_embeds": each.rows, **({"cache_salt": each.salt} if each.salt else {})}
            for each in requests
        ]
        chosen = [
            SamplingParams(
                **each.parameters(),
                extra_args=each.draw or None,
                logprob_token_ids=list(each.compared) or None,
            )
            for each in requests
        ]
        names = self._llm.enqueue(prompts, chosen, lora_request=self._lora(), use_tqdm=False)
        # vLLM adds random characters to the name of a request, and leaves them out of its outputs.
        waiting = {name.partition("-")[0]: number for number, name in enumerate(names)}
        engine = self._llm.llm_engine
        try:
            while waiting:
                for output in engine.step():
                    # What was added as a Ctrl-C came has no place in `waiting`.
                    if output.finished and output.request_id in waiting:
                        yield waiting.pop(output.request_id), _output(output.outputs[0])
        finally:
            if waiting:
                engine.abort_request([names[number] for number in waiting.values()], internal=True)

    def receipts(self, keys: Sequence[int]) -> dict[int, Measured]:
        """Return what was written for each of these vectors, as far as that is known."""
        return receipts.merged(self._llm.collective_rpc(receipts.METHOD, args=(list(keys),)))

    def use_adapter(self, folder: Path) -> None:
        """Run requests with the adapter in this folder from now on."""
        # Under a new name, so that nothing is found in vLLM's prefix cache.
        self._adapter, self._adapters = str(folder), self._adapters + 1

    def info(self) -> dict[str, Any]:
        """Return the options that were given."""
        return {"started": self._llm is not None, "options": {**self._given}}

    def close(self) -> None:
        """Stop the engine and its processes, if this process started them."""
        if self._llm is not None and self._process == os.getpid():
            self._llm.llm_engine.engine_core.shutdown()
            self._llm = None
            gc.collect()

    @property
    def _ended(self) -> bool:
        """Whether the engine's process has ended, as after a Ctrl-C, which reaches it as well."""
        resources = getattr(self._llm.llm_engine.engine_core, "resources", None)
        return bool(getattr(resources, "engine_dead", False))

    def _lora(self) -> Any:
        if self._adapter is None:
            return None
        from vllm.lora.request import LoRARequest  # pyright: ignore

        return LoRARequest(f"{ADAPTER}-{self._adapters}", self._adapters, self._adapter)


def _output(completion: Any) -> Output:
    first = (completion.logprobs or [{}])[0]
    return Output(
        list(completion.token_ids), {token: each.logprob for token, each in first.items()}
    )
