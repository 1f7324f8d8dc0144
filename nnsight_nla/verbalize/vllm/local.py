"""Run vLLM in this machine: its ``LLM``, started at the first text.

Requests are added as others finish, so vLLM always has enough to batch, and a caller that stops in
the middle keeps what is done; the rest is aborted. Of several threads, one at a time makes the
engine take a step, and hands each output to the thread that waits for it.
"""

from __future__ import annotations

import gc
import os
from collections import deque
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...core.locks import Lock
from ...errors import NLAError, VerbalizationError
from ...models import hosts
from . import liveness, receipts
from .launch import ADAPTER, adapter_of, architecture, check_installed, engine_options
from .requests import Output

if TYPE_CHECKING:
    import torch

    from ..verbalizer import Verbalizer
    from .requests import Measured, Request

_PLACES = 512
_DYING = 10.0
"""How long a process may take to end after a Ctrl-C, in seconds."""
_ENDED = (
    "vLLM's process ended while it generated; a Ctrl-C ends it as well, and otherwise its log, "
    "above, has the cause. The rows without a text are still pending; call nla.resolve() to "
    "continue, which starts it again."
)
_STOPPED = (
    "vLLM was stopped by unload() while it generated. The rows without a text are still pending; "
    "call nla.resolve() to continue."
)


@dataclass(eq=False)
class _Run:
    """A call of `LocalEngine.run`."""

    request: Callable[[int], Request]
    waiting: deque[int]
    """Rows that vLLM does not have yet."""
    lora: Any
    found: deque[tuple[int, Output]] = field(default_factory=deque[tuple[int, "Output"]])
    """Outputs that the caller has not taken yet."""
    under_way: int = 0
    error: Exception | None = None
    """Why it cannot go on."""

    def fail(self, error: Exception) -> None:
        """Let the call raise this as soon as its thread looks."""
        self.error = error
        self.waiting.clear()


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
        self._process, self._interrupted = 0, False
        self._turn = Lock()
        self._runs: list[_Run] = []
        self._under_way: dict[str, tuple[_Run, int, str]] = {}
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
    def context(self) -> int:
        """The most tokens that a prompt and its reply may have."""
        return self._llm.model_config.max_model_len

    def start(self) -> None:
        """Start the engine, if it does not run; again, if its process has ended.

        Raises:
            VerbalizationError: vLLM does not have the architecture, or did not start; or this
                process was forked from the one that started it.
        """
        with self._turn.held():
            if self._llm is not None and self._process != os.getpid():
                raise VerbalizationError(
                    "This process was forked while vLLM ran, whose connections it cannot use. "
                    "Start processes with multiprocessing.get_context('spawn'), or call "
                    "nla.unload() before the fork."
                )
            if self._llm is not None:
                seconds, self._interrupted = _DYING if self._interrupted else 0.0, False
                if liveness.ended(self._llm.llm_engine.engine_core, seconds):
                    self.close()
            if self._llm is None:
                self._start()

    def _start(self) -> None:
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
        liveness.watch(self._llm.llm_engine.engine_core)

    def run(
        self, rows: Sequence[int], request: Callable[[int], Request]
    ) -> Generator[tuple[int, Output], None, None]:
        """Yield each row's number and its output, in the order in which they finish.

        Raises:
            VerbalizationError: Another thread stopped the engine.
        """
        run = _Run(request, deque(rows), self._lora())
        with self._turn.held():
            self._runs.append(run)
        try:
            while run.waiting or run.under_way or run.found or run.error:
                with self._turn.held():
                    if not run.found and run.error is None:
                        self._step()
                if run.error is not None:
                    raise run.error
                while run.found:
                    yield run.found.popleft()
        except KeyboardInterrupt:
            self._interrupted = True  # Ctrl-C reaches vLLM's processes as well.
            raise
        finally:
            with self._turn.held():
                self._leave(run)

    def receipts(self, keys: Sequence[int]) -> dict[int, Measured]:
        """Return what was written for each of these vectors, as far as that is known.

        Raises:
            VerbalizationError: Another thread stopped the engine.
        """
        with self._turn.held():
            if self._llm is None:
                raise VerbalizationError(_STOPPED)
            answers = self._llm.collective_rpc(receipts.METHOD, args=(list(keys),))
        return receipts.merged(answers)

    def use_adapter(self, folder: Path) -> None:
        """Run requests with the adapter in this folder from now on."""
        # Under a new name, so that nothing is found in vLLM's prefix cache.
        self._adapter, self._adapters = str(folder), self._adapters + 1

    def info(self) -> dict[str, Any]:
        """Return the options that were given."""
        return {"started": self._llm is not None, "options": {**self._given}}

    def close(self) -> None:
        """Stop the engine and its processes, if this process started them."""
        with self._turn.held():
            if self._llm is not None and self._process == os.getpid():
                for run in self._runs:
                    run.fail(VerbalizationError(_STOPPED))
                self._under_way.clear()
                self._llm.llm_engine.engine_core.shutdown()
                self._llm = None
                gc.collect()

    def _step(self) -> None:
        """Add what there is room for, let the engine take a step, and hand out its outputs."""
        for run in self._runs:
            try:
                while run.waiting and len(self._under_way) < self._places:
                    self._add(run, run.waiting.popleft())
            except Exception as error:  # Whichever thread is here, the error is that call's.
                run.fail(error)
        if not self._under_way:
            return
        try:
            outputs = self._llm.llm_engine.step()
        except Exception as error:  # For every call that has something under way.
            dead = liveness.ended(self._llm.llm_engine.engine_core)
            for run in self._runs:
                run.fail(VerbalizationError(_ENDED) if dead else error)
            self._under_way.clear()
            return
        for output in outputs:
            if output.finished and output.request_id in self._under_way:
                run, row, _ = self._under_way.pop(output.request_id)
                run.under_way -= 1
                run.found.append((row, _output(output.outputs[0])))

    def _add(self, run: _Run, row: int) -> None:
        from vllm import SamplingParams  # pyright: ignore

        made = run.request(row)
        prompt = {"prompt_embeds": made.rows, **({"cache_salt": made.salt} if made.salt else {})}
        chosen = SamplingParams(
            **made.parameters(),
            extra_args=made.draw or None,
            logprob_token_ids=list(made.compared) or None,
        )
        (name,) = self._llm.enqueue([prompt], [chosen], lora_request=run.lora, use_tqdm=False)
        # vLLM adds random characters to the name of a request, and leaves them out of its outputs.
        self._under_way[name.partition("-")[0]] = run, row, name
        run.under_way += 1

    def _leave(self, run: _Run) -> None:
        """Forget a call, and abort what vLLM still has of it."""
        self._runs.remove(run)
        left = {key: name for key, (each, _, name) in self._under_way.items() if each is run}
        for key in left:
            del self._under_way[key]
        if left:
            self._llm.llm_engine.abort_request(list(left.values()), internal=True)

    @property
    def _places(self) -> int:
        """How many requests vLLM has at a time: more than it runs, so that it stays full."""
        return max(_PLACES, 2 * int(self._given.get("max_num_seqs") or 0))

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
