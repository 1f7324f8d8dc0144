"""The stand-ins of a remote block: what they can do there, and what the client gets back."""

import pickle
from types import SimpleNamespace

import pytest
import torch

from nnsight_nla import Sampling
from nnsight_nla.explanation.handle import Explanation
from nnsight_nla.remote import wire
from nnsight_nla.remote.pickling import SAMPLING
from nnsight_nla.remote.wire import Direction, Located, RemoteNLA, Sealed, direction, handle

K, D_MODEL = 3, 128


@pytest.fixture
def there(nla, monkeypatch) -> RemoteNLA:
    """The stand-in of the tiny NLA; outside a trace, nnsight has nothing to save."""
    monkeypatch.setattr(wire, "nnsight", SimpleNamespace(save=lambda value: value))
    return RemoteNLA(nla.uid, K, D_MODEL)


@pytest.fixture
def vectors() -> torch.Tensor:
    return torch.randn(2, 3, D_MODEL, generator=torch.Generator().manual_seed(0))


def test_a_handle_has_a_shape_vectors_and_rows(there, vectors):
    thought = there.explain(vectors)
    assert thought.shape == (2, 3)
    assert torch.equal(thought.vectors, vectors)
    assert len(thought) == 2
    assert [row.shape for row in thought] == [(3,), (3,)]
    assert repr(thought) == "<Explanation shape=(2, 3) on the server>"
    for key in (1, (0, -1), (slice(None), 2), torch.tensor([1, 0]), ...):
        assert torch.equal(thought[key].vectors, vectors[key])
        assert thought[key].shape == tuple(vectors[key].shape[:-1])
    assert there.explain(vectors[0, 0]).shape == ()
    with pytest.raises(TypeError, match=r"len\(\) of a 0-d explanation"):
        len(thought[0, 0])


def test_later_changes_of_the_tensor_do_not_reach_the_handle(there, vectors):
    before = vectors.clone()
    thought = there.explain(vectors)
    vectors.zero_()
    assert torch.equal(thought.vectors, before)


@pytest.mark.parametrize("name", ["text", "trust", "resolve"])
def test_what_a_handle_refuses(there, vectors, name):
    with pytest.raises(AttributeError, match=rf"^{name}: The text .* generated on the client.*len"):
        getattr(there.explain(vectors), name)
    assert not hasattr(there.explain(vectors), "__array__")


@pytest.mark.parametrize("name", ["av", "reconstruct", "score"])
def test_what_an_nla_refuses(there, name):
    with pytest.raises(
        AttributeError, match=rf"^{name}: .* layer\(\), explain\(\) and ask\(\) only"
    ):
        getattr(there, name)
    assert not hasattr(there, "__len__")


@pytest.mark.parametrize(
    ("given", "got"),
    [
        ("Paris", "got str"),
        (torch.zeros(4), r"got torch.float32 \[4\]"),
        (torch.zeros(2, D_MODEL, dtype=torch.int64), r"got torch.int64 \[2, 128\]"),
        (torch.tensor(1.0), "got Tensor"),
    ],
)
def test_explain_checks_its_vectors(there, given, got):
    with pytest.raises(ValueError, match=rf"floating-point tensor of shape \[..., 128\], {got}"):
        there.explain(given)


def test_layer_is_block_k_of_the_served_model(there, nla, model):
    assert there.layer(model)._module is nla.layer(model)._module
    with pytest.raises(ValueError, match=r"has blocks 0 to \d; block 99 was requested"):
        RemoteNLA(nla.uid, 99, D_MODEL).layer(model)


def test_the_client_gets_a_handle_with_the_options(there, nla, vectors):
    tokens, numbers = [["a", "b", "c"]] * 2, torch.arange(6).reshape(2, 3)
    thought = there.explain(vectors, tokens=tokens, positions=numbers)
    got, row = pickle.loads(pickle.dumps((thought, thought[1])))
    assert type(got) is Explanation
    assert got.shape == (2, 3)
    assert torch.equal(got.vectors, vectors)
    assert got.capture is row.capture
    assert torch.equal(row.vectors, vectors[1])
    here = nla.explain(vectors, tokens=tokens, positions=numbers)
    assert got.capture.tokens == here.capture.tokens
    assert got.capture.positions == here.capture.positions
    assert got[1].text == row.text == here[1].text


def test_a_capture_that_comes_back_twice_is_one(there, vectors):
    sent = pickle.dumps(there.explain(vectors))
    first, second = pickle.loads(sent), pickle.loads(sent)
    assert first.capture is second.capture


def test_a_handle_of_the_client_returns_as_the_same_capture(nla, there, vectors):
    from nnsight_nla.remote.pickling import _ship_capture

    thought = nla.explain(vectors)
    make, args = _ship_capture(thought.capture)
    sent = handle(make(*args), thought.rows, thought.shape)
    assert torch.equal(sent[1].vectors, vectors[1])
    assert pickle.loads(pickle.dumps(sent)).capture is thought.capture


def test_a_sealed_value_is_rebuilt_by_the_client():
    sampling = Sampling(temperature=0.7, seed=3)
    sealed = Sealed(SAMPLING, tuple(vars(sampling).values()))
    assert pickle.loads(pickle.dumps(sealed)) == sampling
    with pytest.raises(RuntimeError, match="can only be called where the result is read"):
        Located(SAMPLING)()


def test_a_direction_takes_the_dtype_of_the_other_tensor():
    vector = torch.randn(4)
    along = direction(vector)
    assert isinstance(2 * along, Direction)
    residual = torch.randn(3, 4, dtype=torch.bfloat16)
    summed = residual + 2 * along
    assert type(summed) is torch.Tensor
    assert summed.dtype == torch.bfloat16
    assert torch.equal(summed, residual + (2 * vector).bfloat16())
