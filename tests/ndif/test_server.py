"""The server is a real one: what it computes is what this machine computes, bit for bit.

With as many threads: on some processors two sum in another order than one.
"""

import time
from collections.abc import Callable
from pathlib import Path

import httpx
import nnsight
import pytest
import torch
from nnsight import TransformersModel
from nnsight.intervention.backends.remote import RemoteBackend, RemoteError
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from .server import NdifServer

PROMPT = "the cat sat on a mat"
_LAYER = 2
_WORDS = ["<pad>", "<end>", *PROMPT.split()]
_POLL_LIMIT = 120.0


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Qwen3 with random weights and a tokenizer of eight words, saved as a checkpoint."""
    folder = tmp_path_factory.mktemp("qwen3")
    vocabulary = {word: index for index, word in enumerate(_WORDS)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<end>", unk_token="<pad>"
    ).save_pretrained(folder)
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=len(_WORDS),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
    )
    Qwen3ForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture
def remote_model(model_folder: Path, by_path: Callable[[Path], str]) -> TransformersModel:
    return TransformersModel(by_path(model_folder), task="text-generation")


@pytest.fixture
def expected(model_folder: Path) -> torch.Tensor:
    """The output of the block, computed here by transformers alone."""
    model = Qwen3ForCausalLM.from_pretrained(model_folder, dtype=torch.float32)
    ids = torch.tensor([[_WORDS.index(word) for word in PROMPT.split()]])
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # As the server's actors do.
    try:
        with torch.no_grad():
            return model(ids, output_hidden_states=True).hidden_states[_LAYER + 1]
    finally:
        torch.set_num_threads(threads)


def test_blocking_is_bit_equal(
    either_ndif: NdifServer, remote_model: TransformersModel, expected: torch.Tensor
) -> None:
    residual = _residual(remote_model)

    assert residual.dtype == torch.float32
    assert torch.equal(residual, expected)
    assert {weight.device.type for weight in remote_model._module.parameters()} == {"meta"}


def test_non_blocking_is_bit_equal(
    either_ndif: NdifServer, remote_model: TransformersModel, expected: torch.Tensor
) -> None:
    backend = _submit_residual(remote_model)

    assert torch.equal(_poll(backend)["residual"], expected)


def test_a_sandboxed_block_has_no_weights(
    server: NdifServer, remote_model: TransformersModel, request: pytest.FixtureRequest
) -> None:
    devices: dict[str, str] = {}
    for name in ("ndif", "sandboxed_ndif"):
        request.getfixturevalue(name)
        with remote_model.trace(PROMPT, remote=True):
            device = nnsight.save(str(remote_model.lm_head.weight.device))
        devices[name] = device

    assert devices == {"ndif": "cpu", "sandboxed_ndif": "meta"}


def test_the_server_does_not_have_the_package(
    ndif: NdifServer, remote_model: TransformersModel
) -> None:
    with pytest.raises(RemoteError, match="No module named 'nnsight_nla'"):
        _import_the_package(remote_model)


def test_away_and_back(
    ndif: NdifServer, remote_model: TransformersModel, expected: torch.Tensor
) -> None:
    backend = _submit_residual(remote_model)
    _poll(backend)

    with ndif.away():
        with pytest.raises(ConnectionRefusedError, match="Connection refused"):
            _residual(remote_model)
        with pytest.raises(httpx.ConnectError, match="Connection refused"):
            backend.poll()

    assert torch.equal(_poll(backend)["residual"], expected)
    assert torch.equal(_residual(remote_model), expected)


def _residual(model: TransformersModel) -> torch.Tensor:
    with model.trace(PROMPT, remote=True):
        residual = model.model.layers[_LAYER].output.save()
    return residual


def _submit_residual(model: TransformersModel) -> RemoteBackend:
    with model.trace(PROMPT, remote=True, blocking=False) as tracer:
        residual = model.model.layers[_LAYER].output.save()  # noqa: F841 - the poll returns it
    return tracer.backend


def _import_the_package(model: TransformersModel) -> None:
    with model.trace(PROMPT, remote=True):
        import nnsight_nla  # noqa: F401


def _poll(backend: RemoteBackend) -> dict[str, torch.Tensor]:
    deadline = time.monotonic() + _POLL_LIMIT
    while time.monotonic() < deadline:
        saved = backend.poll()
        if saved is not None:
            return saved
        time.sleep(0.1)
    raise TimeoutError(f"job {backend.job_id} was still {backend.status} after {_POLL_LIMIT} s")
