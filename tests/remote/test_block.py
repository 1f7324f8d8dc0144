"""Blocks that are refused before a remote request is sent, and blocks that are not."""

import ast
from types import SimpleNamespace

import pytest
import torch
from nnsight import TransformersModel

from nnsight_nla import NLA, VerbalizationError, tiny
from nnsight_nla.remote.block import check_block

PATHS = tiny.paths()


def block(source: str, envoy=None, **scope) -> SimpleNamespace:
    """A tracer of a block with this source, in a frame with these variables."""
    frame = SimpleNamespace(f_globals={}, f_locals=scope)
    return SimpleNamespace(info=SimpleNamespace(frame=frame), node=ast.parse(source), envoy=envoy)


@pytest.fixture(scope="module")
def other() -> TransformersModel:
    """A model that belongs to no NLA."""
    return TransformersModel(str(PATHS["target"]), task="text-generation")


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("thought = nla.explain(x)\nprint(thought.text)", r"line 2: \.text: .*after the block"),
        ("a = thought = nla.explain(x)\nthought[0].snippets", r"line 2: \.snippets:"),
        ("thoughts = nla.explain(x)[0]\nthoughts.trust", r"line 2: \.trust:"),
        ("nla.explain(x).raw", r"line 1: \.raw:"),
        ("if True:\n    nla.explain(x)[0].receipt", r"line 2: \.receipt:"),
    ],
)
def test_a_text_read_in_a_block(model, nla, source, says):
    with pytest.raises(VerbalizationError, match=says):
        check_block(block(source, model, nla=nla), [nla])


@pytest.mark.parametrize(
    "source",
    [
        "thought = nla.explain(nla.layer(model).output)\nthought.vectors, len(thought[0])",
        "document.text",
        "thought = other_nla.explain(x)\nthought.text",  # Not an NLA of this package.
    ],
)
def test_what_works_on_a_server_is_sent(model, nla, source):
    document, other_nla = SimpleNamespace(), SimpleNamespace()
    scope = {"nla": nla, "model": model, "document": document, "other_nla": other_nla}
    check_block(block(source, model, **scope), [nla])


@pytest.mark.parametrize("name", ["av", "ar"])
def test_the_models_of_an_nla_in_a_block(model, nla, name):
    with pytest.raises(VerbalizationError, match=rf"line 1: nla\.{name}: a remote request runs"):
        check_block(block(f"nla.{name}.lm_head.output", model, nla=nla), [nla])


def test_a_second_model_in_a_block_with_an_nla(model, nla, other):
    source = "nla.explain(other.lm_head.output)"
    with pytest.raises(VerbalizationError, match="names 2 models: a remote request runs one"):
        check_block(block(source, model, nla=nla, other=other), [nla])
    check_block(block(source, other, nla=nla, other=other), [nla])


@pytest.mark.parametrize("source", ["av.lm_head.output", "nla.explain(av.lm_head.output)"])
def test_an_alias_of_the_verbalizer(model, nla, source):
    with pytest.raises(VerbalizationError, match="names 2 models"):
        check_block(block(source, model, nla=nla, av=nla.av), [nla])


def test_an_alias_of_the_reconstructor(model, nla):
    with pytest.raises(VerbalizationError, match="names 2 models"):
        check_block(block("ar.model.norm.output", model, ar=nla.ar), [nla])


@pytest.mark.parametrize("kind", ["list", "tuple in a dict", "closure", "default"])
def test_an_envoy_of_the_verbalizer_inside_another_value(model, nla, kind):
    envoy = nla.av.model.layers[0]
    held = {
        "list": [envoy],
        "tuple in a dict": {"layers": (1, envoy)},
        "closure": lambda: envoy.output,
        "default": lambda at=envoy: at.output,
    }[kind]
    with pytest.raises(VerbalizationError, match="names 2 models"):
        check_block(block("held", model, held=held), [nla])


def test_a_variable_of_a_closure_that_has_no_value_yet(model, nla):
    def later():
        return envoy

    check_block(block("later()", model, later=later, nla=nla), [nla])
    envoy = None


def test_a_block_without_an_nla_may_name_two_models(model, nla, other):
    source = "other.lm_head.output, model.lm_head.output"
    check_block(block(source, model, other=other, model=model), [nla])
    check_block(block(source, model, other=other, model=model), [])


def test_a_tracer_without_source(nla):
    tracer = block("nla.av", nla=nla)
    tracer.info.frame = None
    check_block(tracer, [nla])
    tracer.node = None
    check_block(tracer, [nla])


def test_the_verbalizer_is_the_served_model(other):
    local = NLA(other, checkpoint=PATHS["av"])
    tracer = block("local.explain(x)", other, local=local, x=torch.zeros(128))
    with pytest.raises(VerbalizationError, match=r"load the weights here.*NLA\(model, remote=True"):
        check_block(tracer, [local])
    remote = NLA(other, checkpoint=PATHS["av"], remote=True)
    check_block(block("remote.explain(x)", other, remote=remote), [remote])
