"""What a vLLM server that serves a verbalizer answers in addition to vLLM's own routes.

An ASGI middleware, added by vLLM's option ``--middleware``::

    GET  /nla/verbalizer   how vectors are written, and in which dtype
    POST /nla/receipts     {"keys": [...]}: what was written for these vectors, and all of the above
"""

from __future__ import annotations

from typing import Any

from . import receipts
from .settings import FIELD

VERBALIZER, RECEIPTS = "/nla/verbalizer", "/nla/receipts"


class VerbalizerRoutes:
    """Answers the two routes, and passes on everything else."""

    def __init__(self, app: Any) -> None:
        """Wrap vLLM's application."""
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer one connection."""
        path = scope.get("path") if scope["type"] == "http" else None
        if path not in (VERBALIZER, RECEIPTS):
            await self._app(scope, receive, send)
            return
        from starlette.requests import Request  # pyright: ignore
        from starlette.responses import JSONResponse  # pyright: ignore

        client = scope["app"].state.engine_client
        answer: dict[str, Any] = _described(client.model_config)
        if path == RECEIPTS:
            keys = (await Request(scope, receive).json())["keys"]
            answer["receipts"] = await _asked(client, [int(key) for key in keys])
        await JSONResponse(answer)(scope, receive, send)


def _described(config: Any) -> dict[str, str]:
    settings = getattr(config.hf_config, FIELD, "")
    return {"settings": settings, "dtype": str(config.dtype).removeprefix("torch.")}


async def _asked(client: Any, keys: list[int]) -> list[Any]:
    """Ask all workers of all data-parallel engines; vLLM's own call asks those of one."""
    every = getattr(client.engine_core, "call_utility_all_async", None)
    if every is None:
        return await client.collective_rpc(receipts.METHOD, args=(keys,))
    each = await every("collective_rpc", receipts.METHOD, None, (keys,), None)
    return [answer for answers in each for answer in answers]
