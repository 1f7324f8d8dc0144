"""vLLM in this machine, with an ``LLM`` that finishes what the test says."""

import os
import sys
import threading
from types import SimpleNamespace

import pytest
import torch

from nnsight_nla import NLA, VerbalizationError, tiny
from nnsight_nla.verbalize.vllm import local
from nnsight_nla.verbalize.vllm.requests import Request

AV = tiny.paths()["av"]


class FakeLLM:
    """Has requests and finishes the oldest at each step; its only token is the prompt's number."""

    def __init__(self, **options):
        self.has, self.most, self.aborted, self.order = {}, 0, [], []
        self.llm_engine = SimpleNamespace(
            step=self.step, abort_request=self.abort, engine_core=SimpleNamespace(shutdown=list)
        )

    def enqueue(self, prompts, chosen, lora_request, use_tqdm):
        number = int(prompts[0]["prompt_embeds"][0, 0])
        if number < 0:
            raise ValueError("too long")
        name = f"{len(self.order)}-random"
        self.order.append(number)
        self.has[name] = number
        self.most = max(self.most, len(self.has))
        return [name]

    def step(self):
        if not self.has:
            raise AssertionError("a step of an engine that has nothing would wait for ever")
        name = next(iter(self.has))
        completion = SimpleNamespace(token_ids=[self.has.pop(name)], logprobs=None)
        left = SimpleNamespace(finished=False, request_id="7")
        done = SimpleNamespace(
            finished=True, request_id=name.partition("-")[0], outputs=[completion]
        )
        return [left, done]

    def abort(self, names, internal):
        assert internal
        self.aborted += [self.has.pop(each) for each in names]

    def collective_rpc(self, method, args):
        return []


@pytest.fixture
def engine(monkeypatch):
    listed = SimpleNamespace(get_supported_archs=lambda: ["NlaQwen3ForCausalLM"])
    vllm = SimpleNamespace(LLM=FakeLLM, ModelRegistry=listed, SamplingParams=SimpleNamespace)
    monkeypatch.setitem(sys.modules, "vllm", vllm)
    monkeypatch.setattr(local, "check_installed", lambda: None)
    monkeypatch.setattr(local, "_PLACES", 4)
    made = local.LocalEngine(NLA(AV)._verbalizer, {}, {})

    def start():
        made._llm, made._process = FakeLLM(), os.getpid()

    monkeypatch.setattr(made, "_start", start)
    made.start()
    return made


def request(number):
    return Request(torch.full((1, 8), float(number)), (number,), 5)


def ran(engine, rows):
    return {row: output.ids for row, output in engine.run(rows, request)}


def test_only_some_requests_are_made_before_there_is_room(engine):
    made = []

    def counted(row):
        made.append(row)
        return request(row)

    rows = engine.run(range(10), counted)
    assert next(rows)[0] == 0
    assert made == [0, 1, 2, 3]
    assert [row for row, _ in rows] == list(range(1, 10))
    assert engine._llm.most == 4


def test_each_thread_gets_its_own_and_the_earlier_comes_first(engine):
    first, second = engine.run(range(6), request), engine.run(range(10, 16), request)
    assert next(first)[0] == 0
    assert next(second) == (10, local.Output([10]))  # By its steps, the first was finished.
    assert engine._llm.order[:7] == [0, 1, 2, 3, 4, 5, 10]
    assert [row for row, _ in first] == [1, 2, 3, 4, 5]
    assert [row for row, _ in second] == [11, 12, 13, 14, 15]
    assert engine._llm.most == 4


def test_many_threads(engine):
    found = {}
    threads = [
        threading.Thread(target=lambda n=n: found.update({n: ran(engine, range(n, n + 50))}))
        for n in range(100, 500, 50)
    ]
    for each in threads:
        each.start()
    for each in threads:
        each.join(30)
    assert found == {n: {row: [row] for row in range(n, n + 50)} for n in range(100, 500, 50)}
    assert engine._llm.has == {}


def test_a_request_that_vllm_refuses_fails_its_own_call(engine):
    bad = engine.run([1, 2, 3, 4, 5, -1, 6], request)
    assert next(bad)[0] == 1
    assert ran(engine, range(20, 25)) == {row: [row] for row in range(20, 25)}
    with pytest.raises(ValueError, match="too long"):
        list(bad)
    assert engine._runs == []
    assert engine._llm.has == {}


def test_a_call_that_is_left_is_aborted(engine):
    rows = engine.run(range(10), request)
    next(rows)
    rows.close()
    assert engine._llm.aborted == [1, 2, 3]
    assert ran(engine, [30]) == {30: [30]}


def test_stopping_the_engine_ends_a_call_and_the_next_starts_it(engine):
    rows = engine.run(range(10), request)
    next(rows)
    engine.close()
    engine.start()
    with pytest.raises(VerbalizationError, match=r"stopped by unload\(\).*call nla.resolve\(\)"):
        list(rows)
    assert ran(engine, [30]) == {30: [30]}
    engine.close()
    with pytest.raises(VerbalizationError, match=r"stopped by unload\(\)"):
        engine.receipts([1])
