"""What a server answers in addition to vLLM's routes, without vLLM."""

import asyncio
from types import SimpleNamespace

import httpx
import pytest
import torch

from nnsight_nla.verbalize.vllm import receipts
from nnsight_nla.verbalize.vllm.server import RECEIPTS, VERBALIZER, VerbalizerRoutes
from nnsight_nla.verbalize.vllm.settings import FIELD

pytest.importorskip("starlette")


class Client:
    """vLLM's client of one or two engines."""

    def __init__(self, engines: int):
        config = SimpleNamespace(**{FIELD: '{"slots": 1}'})
        self.model_config = SimpleNamespace(hf_config=config, dtype=torch.bfloat16)
        self.engine_core = SimpleNamespace()
        self.asked = []
        if engines > 1:
            self.engine_core.call_utility_all_async = self.every

    async def collective_rpc(self, method, args):
        self.asked.append((method, args))
        return [[(7, [[2, 1.0, 2.0, 1.0]])], []]

    async def every(self, call, method, timeout, args, kwargs):
        return [await self.collective_rpc(method, args) for _ in range(2)]


def ask(client, method, path, **body):
    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def under_fastapi(scope, receive, send):
        scope["app"] = SimpleNamespace(state=SimpleNamespace(engine_client=client))
        await VerbalizerRoutes(app)(scope, receive, send)

    async def once():
        transport = httpx.ASGITransport(app=under_fastapi)
        async with httpx.AsyncClient(transport=transport, base_url="http://server") as session:
            return await session.request(method, path, **body)

    return asyncio.run(once())


@pytest.mark.parametrize("engines", [1, 2])
def test_receipts_come_from_all_engines_and_say_whose_they_are(engines):
    client = Client(engines)
    answer = ask(client, "POST", RECEIPTS, json={"keys": [7, 8]}).json()
    assert receipts.merged(answer["receipts"]) == {7: {2: (1.0, 2.0, 1.0)}}
    assert len(answer["receipts"]) == 2 * engines
    assert (answer["settings"], answer["dtype"]) == ('{"slots": 1}', "bfloat16")
    assert client.asked == [(receipts.METHOD, ([7, 8],))] * engines


def test_the_verbalizer_is_described_and_other_routes_are_vllms():
    client = Client(1)
    assert ask(client, "GET", VERBALIZER).json() == {
        "settings": '{"slots": 1}',
        "dtype": "bfloat16",
    }
    assert ask(client, "GET", "/v1/models").status_code == 204
    assert not client.asked
