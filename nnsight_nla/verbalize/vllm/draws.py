"""Draw tokens in vLLM as `nnsight_nla.core.sampling` does: by the vector's own generator.

A logits processor of vLLM, one object for each request. The request says how to draw in its
``extra_args`` (over HTTP, ``vllm_xargs``), and vLLM itself takes the most likely token::

    SamplingParams(temperature=0, extra_args=arguments(sampling, seed))

Each step of a request uses its generator once. A request that vLLM preempted is made anew with the
tokens that it has, so its generator is first run to its place.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ...core.sampling import Sampling

if TYPE_CHECKING:
    from collections.abc import Callable

_SEED, _TEMPERATURE, _TOP_P, _TOP_K = "nla_seed", "nla_temperature", "nla_top_p", "nla_top_k"


def arguments(sampling: Sampling, seed: int | None) -> dict[str, int | float]:
    """Return the arguments of a request; none for a greedy one.

    Args:
        sampling: How tokens are chosen.
        seed: The request's seed, from `draw_seed`; ``None`` if greedy.
    """
    if seed is None:
        return {}
    return {
        _SEED: seed,
        _TEMPERATURE: float(sampling.temperature),
        _TOP_P: float(sampling.top_p),
        _TOP_K: sampling.top_k,
    }


class Draw:
    """The draws of one request."""

    def __init__(self, given: dict[str, Any]) -> None:
        """Read the request's arguments."""
        self._seed = int(given[_SEED])
        self._sampling = Sampling(given[_TEMPERATURE], given[_TOP_P], int(given[_TOP_K]))
        self._chain: Any = None
        self._done = 0

    def __call__(self, output_ids: list[int], logits: Tensor) -> Tensor:
        """Return the scores whose largest is the token drawn after `output_ids`."""
        if self._chain is None or self._done != len(output_ids):
            self._chain = self._sampling.processors([self._seed])
            blank = torch.zeros(1, logits.shape[-1], dtype=torch.float32, device="cpu")
            for _ in output_ids:
                self._chain[-1](None, blank)
        self._done = len(output_ids) + 1
        return self._chain(None, logits[None].float())[0]


def processor() -> type:
    """Return the logits processor class for vLLM; imports vLLM."""
    from vllm.v1.sample.logits_processor import AdapterLogitsProcessor  # pyright: ignore

    class VectorDraws(AdapterLogitsProcessor):
        def is_argmax_invariant(self) -> bool:
            return False

        def new_req_logits_processor(self, params: Any) -> Callable[..., Tensor] | None:
            given = params.extra_args or {}
            return Draw(given) if _SEED in given else None

    VectorDraws.__module__, VectorDraws.__qualname__ = __name__, "VectorDraws"
    return VectorDraws


def __getattr__(name: str) -> Any:
    if name != "VectorDraws":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return globals().setdefault(name, processor())


PROCESSOR = f"{__name__}:VectorDraws"
"""The value of vLLM's option ``logits_processors``."""
