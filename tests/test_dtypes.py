"""Nothing depends on torch's defaults: dtype, device and autocast are those that the code says."""

import ast
import contextlib
from pathlib import Path

import pytest
import torch

import nnsight_nla
from nnsight_nla import Sampling

SOURCES = sorted(Path(nnsight_nla.__file__).parent.rglob("*.py"))
WITH_A_DEVICE = {"zeros", "ones", "empty", "full", "tensor", "randn", "rand", "randint", "randperm",
                 "arange", "eye", "linspace"}  # fmt: skip
OF_THE_DEFAULT_DTYPE = {"zeros", "ones", "empty", "full", "randn", "rand", "eye", "linspace"}
WARM = Sampling(temperature=0.8, max_new_tokens=30)


@pytest.mark.parametrize("file", SOURCES, ids=lambda file: f"{file.parent.name}/{file.name}")
def test_every_tensor_has_its_dtype_and_device_said(file):
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
            continue
        where = f"{file.name}:{node.lineno}"
        if ast.unparse(node.func.value) == "torch" and node.func.attr in WITH_A_DEVICE:
            said = {keyword.arg for keyword in node.keywords}
            assert "device" in said, where
            assert "dtype" in said or node.func.attr not in OF_THE_DEFAULT_DTYPE, where


@contextlib.contextmanager
def default_dtype(dtype):
    kept = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(kept)


STATES = {
    "float64": lambda: default_dtype(torch.float64),
    "bfloat16": lambda: default_dtype(torch.bfloat16),
    "float16": lambda: default_dtype(torch.float16),
    "meta device": lambda: torch.device("meta"),
    "autocast": lambda: torch.autocast("cpu"),
    "autocast float16": lambda: torch.autocast("cpu", dtype=torch.float16),
    "inference": torch.inference_mode,
}


def everything(nla, residuals):
    """What each part says of three residuals."""
    thought = nla.explain(residuals)
    slow = type(nla)(nla.av, checkpoint=nla.checkpoint, engine="generate")
    step = nla.direction(to="About Rome.", norm=3.0)
    controls = nla.controls(2, like=residuals)
    return {
        "text": thought.text,
        "generate": slow.explain(residuals).text,
        "samples": nla.explain(residuals, samples=2, sampling=WARM).samples,
        "cosine": nla.score(thought).cosine.tolist(),
        "trust": [label.to_dict() for label in thought.trust],
        "reconstruction": nla.reconstruct("About Paris.").tolist(),
        "step": step.tolist(),
        "null": nla.explain_nothing().text,
        "random": controls.random.vectors.tolist(),
        "texts": controls.random.text,
        "claims": [each.to_dict() for each in nla.claims(thought)],
    }


@pytest.fixture(scope="module")
def expected(pair):
    _, nla = pair
    some = torch.randn(3, 128, generator=torch.Generator().manual_seed(0), dtype=torch.float32)
    return some, everything(nla, some)


@pytest.mark.parametrize("state", STATES)
def test_torchs_defaults_and_autocast_change_no_figure(nla, expected, state):
    residuals, plain = expected
    nla.labeller._reference = None  # The controls are measured under the state too.
    with STATES[state]():
        assert everything(nla, residuals) == plain
