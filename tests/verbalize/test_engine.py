"""The seam between the queue and what generates its texts."""

from contextlib import contextmanager, nullcontext

import pytest
import torch

from nnsight_nla import NLA, CheckpointError, VerbalizationError, tiny
from nnsight_nla.verbalize import engine as engines
from nnsight_nla.verbalize.engine import EngineOptions, engine_maker


class Scripted:
    """An engine that says one thing, and has no text for some of the rows."""

    def __init__(self, verbalizer, lost=()):
        self.verbalizer, self.lost, self.calls = verbalizer, lost, []

    dtype = torch.bfloat16
    concurrent = False

    def turn(self):
        return nullcontext()

    @contextmanager
    def use(self):
        self.calls.append("use")
        yield

    def verbalize(self, vectors, given, samples, sampling, prompts=None):
        self.calls.append(len(vectors))
        said = self.verbalizer.tokenizer.encode("Hello", add_special_tokens=False)
        for row in reversed(range(len(vectors))):
            bad = row in self.lost
            yield row, "was lost" if bad else self.verbalizer.reply(said, (1.0, 2.0, 1.0), sampling)

    def rows_that_fit(self, new_tokens):
        return 3

    def engine_info(self):
        return {"name": "scripted", "why": None}

    def unload(self):
        self.calls.append("unload")


@pytest.fixture
def scripted(monkeypatch):
    made = []

    def maker(options):
        return lambda verbalizer: made.append(Scripted(verbalizer)) or made[-1]

    monkeypatch.setitem(engines.ENGINES, "vllm", maker)
    nla = NLA(tiny.paths()["av"], engine="vllm")
    return nla, made[0]


def test_another_engine_generates_and_no_weights_are_loaded(scripted):
    nla, engine = scripted
    handle = nla.explain(torch.randn(5, 128))
    assert set(handle.raw) == {"Hello"}
    assert engine.calls == ["use", 3, 2]
    assert handle.receipt.dtype == "bfloat16"
    assert handle.receipt.norm_after == [2.0] * 5
    assert nla.info()["engine"] == {"name": "scripted", "why": None}
    assert not nla.runtime.loaded
    nla.unload()
    assert engine.calls[-1] == "unload"


def test_a_row_without_a_text_has_an_error_and_is_not_asked_for_again(scripted):
    nla, engine = scripted
    engine.lost = (1,)
    handle = nla.explain(torch.randn(3, 128))
    with pytest.raises(VerbalizationError, match="was lost"):
        _ = handle.text
    assert handle.errors == {(1,): "was lost"}
    assert handle[0].raw == "Hello"
    assert nla.pending == ()
    assert engine.calls == ["use", 3]


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("quick", {}, "engine='quick': expected one of 'fast', 'generate', 'vllm'"),
        ("fast", {"vllm": {"max_num_seqs": 4}}, "vllm={'max_num_seqs': 4} is for engine='vllm'"),
        ("generate", {"url": "http://x"}, "url='http://x' is for engine='vllm', not for engine="),
        ("vllm", {"remote": True}, "remote=True .* an NDIF host, engine='vllm' on vLLM. Leave one"),
    ],
)
def test_an_engine_or_an_option_that_does_not_fit_is_refused(name, options, said):
    with pytest.raises(VerbalizationError, match=said):
        engine_maker(name, EngineOptions(**options))


def test_an_nla_of_nothing_says_what_to_pass():
    with pytest.raises(CheckpointError, match=r"NLA\('path or id'\), or NLA\(url="):
        NLA()
