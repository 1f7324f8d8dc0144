"""What the model class does in a pass, on stand-ins for vLLM's models."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from nnsight_nla import CheckpointError, Injection
from nnsight_nla.core.injection import OPERATIONS
from nnsight_nla.verbalize.vllm import rows
from nnsight_nla.verbalize.vllm.settings import FIELD, Settings
from nnsight_nla.verbalize.vllm.writer import Writer

D, MARKER = 32, 9
ADD = Injection("add", "block", 1)
REPLACE = Injection("replace", "embedding", None, 5.0)


class Block(nn.Module):
    """One block, in one of the forms that vLLM's have."""

    def __init__(self, kind):
        super().__init__()
        self.kind, self.inner = kind, nn.Linear(D, D)

    def forward(self, hidden, residual=None):
        whole = hidden if residual is None else hidden + residual
        delta = torch.tanh(self.inner(whole))
        if self.kind == "tensor":
            return whole + delta
        return (delta, whole) if self.kind == "pair" else {"hidden": delta}


class Model(nn.Module):
    def __init__(self, kind="pair"):
        super().__init__()
        self.table = nn.Embedding(64, D)
        self.layers = nn.ModuleList(
            map(Block, ("pair" if kind == "dictionary" else kind, kind, kind))
        )

    def embed_input_ids(self, ids):
        return self.table(ids)

    def forward(self, embeds):
        state = (embeds,)
        seen = []
        for layer in self.layers:
            out = layer(*state)
            state = out if isinstance(out, tuple) else (out,)
            seen.append(sum(state).clone())
        return seen


def built(injection, kind="pair", *, slots=1, sequences=4, tokens=64):
    torch.manual_seed(0)
    model = Model(kind)
    described = Settings(injection, MARKER, slots).text
    config = SimpleNamespace(
        hf_config=SimpleNamespace(**{FIELD: described}),
        hf_text_config=SimpleNamespace(num_hidden_layers=3),
        dtype=torch.float32, get_hidden_size=lambda: D,
    )  # fmt: skip
    scheduler = SimpleNamespace(max_num_seqs=sequences, max_num_batched_tokens=tokens)
    whole = SimpleNamespace(
        model_config=config, scheduler_config=scheduler,
        device_config=SimpleNamespace(device="cpu"),
    )  # fmt: skip
    return model, Writer(model, whole, model.embed_input_ids)


@torch.no_grad()
def run(model, writer, embeds, positions):
    read = writer.begin(embeds.clone(), positions)
    seen = model(read)
    writer.end()
    return read, seen


def drawn(count=3):
    return torch.randn(count, D, generator=torch.Generator().manual_seed(5)) * 100


@pytest.mark.parametrize("kind", ["pair", "tensor"])
def test_a_block_is_written_at_the_markers_and_nowhere_else(kind):
    ids = [3, 4, MARKER, 5]
    (one, two, _), (model, writer) = drawn(), built(ADD, kind)
    embedding = torch.randn(2, D)  # Of tokens that another request is decoding.
    prompts = [rows.encoded(ids, [2], each, torch.float32) for each in (one, two)]
    embeds = torch.cat([prompts[0], embedding, prompts[1][1:]])  # A prompt cut in two.
    positions = torch.tensor([0, 1, 2, 3, 40, 41, 1, 2, 3])
    read, seen = run(model, writer, embeds, positions)
    plain = Model(kind)
    plain.load_state_dict({n: each for n, each in model.state_dict().items() if "nla" not in n})
    expected = plain.table(torch.tensor([*ids, 0, 0, *ids[1:]]))
    expected[4:6] = embedding
    assert torch.equal(read, expected)
    with torch.no_grad():
        before = plain(expected)[1]
    for row, vector in ((2, one), (7, two)):
        written = OPERATIONS["add"](before[row][None], vector[None], None)[0]
        torch.testing.assert_close(seen[1][row], written)
        (measured,) = writer.receipts([key := int(rows.keys(embeds[row][None]))])[key]
        assert measured[0] == 2
        assert measured[1:] == pytest.approx(
            (before[row].norm().item(), written.norm().item(), 1.0), rel=1e-4
        )
        before[row] = seen[1][row]
    assert torch.equal(seen[1], before)


def test_the_embedding_is_replaced_at_every_slot():
    ids, vector = [MARKER, 4, MARKER, 5], drawn()[0]
    model, writer = built(REPLACE, slots=2)
    embeds = rows.encoded(ids, [0, 2], vector, torch.float32)
    read, _ = run(model, writer, embeds, torch.arange(4))
    expected = model.table(torch.tensor(ids)).detach()
    expected[[0, 2]] = 5.0 * vector / vector.norm()
    torch.testing.assert_close(read, expected)
    key = int(rows.keys(embeds[:1]))
    assert [at for at, *_ in writer.receipts([key])[key]] == [0, 2]


def test_the_vectors_of_an_oracles_prompt_are_written_each_at_its_own_marker():
    """There may be more of them than requests."""
    model, writer = built(ADD, slots=None, sequences=1)
    plain, _ = built(REPLACE)
    embeds = rows.encoded([3, MARKER, MARKER, MARKER, 5], [1, 2, 3], drawn(), torch.float32)
    _, seen = run(model, writer, embeds, torch.arange(5))
    with torch.no_grad():
        before = plain(plain.table(torch.tensor([3, MARKER, MARKER, MARKER, 5])))[1]
    written = OPERATIONS["add"](before[1:4], drawn(), None)
    torch.testing.assert_close(seen[1][1:4], written)
    keys = rows.keys(embeds[1:4]).tolist()
    found = writer.receipts(keys)
    assert [[at for at, *_ in found[key]] for key in keys] == [[1], [2], [3]]


@pytest.mark.parametrize("injection", [ADD, REPLACE])
def test_the_null_control_changes_nothing_and_is_measured(injection):
    ids = [3, MARKER, 5]
    model, writer = built(injection)
    embeds = rows.encoded(ids, [1], None, torch.float32, D)
    read, seen = run(model, writer, embeds, torch.arange(3))
    assert torch.equal(read, model.table(torch.tensor(ids)))
    model, _ = built(REPLACE)
    with torch.no_grad():
        assert torch.equal(seen[1], model(model.table(torch.tensor(ids)))[1])
    key = int(rows.keys(embeds[1:2]))
    ((position, before, after, angle),) = writer.receipts([key])[key]
    assert (position, angle, before) == (1, 0.0, after)


def test_a_pass_without_markers_changes_nothing():
    model, writer = built(ADD)
    embeds = torch.randn(5, D)
    read, seen = run(model, writer, embeds, torch.arange(5))
    assert torch.equal(read, embeds)
    with torch.no_grad():
        assert torch.equal(seen[1], built(REPLACE)[0](embeds)[1])
    assert writer.receipts([int(rows.keys(embeds[:1]))]) == {}


def test_a_marker_is_not_found_again_in_the_padding_of_a_later_pass():
    """vLLM pads a pass with what its buffer has from an earlier one."""
    _, writer = built(ADD)
    buffer = rows.encoded([3, MARKER, 5], [1], drawn()[0], torch.float32)
    with torch.no_grad():
        writer.begin(buffer, torch.arange(3))
    assert not rows.decoded(buffer).vector.any()
    assert rows.decoded(buffer).token.tolist() == [True, False, True]


def test_a_generated_token_is_embedded_with_all_other_rows():
    model, writer = built(ADD)
    named = writer.named(torch.tensor([7, 63]))
    read, _ = run(model, writer, torch.cat([named, torch.ones(1, D)]), torch.tensor([9, 9, 3]))
    expected = torch.cat([model.table(torch.tensor([7, 63])), torch.ones(1, D)])
    assert torch.equal(read, expected)


def test_a_marker_too_many_has_no_receipt():
    model, writer = built(ADD, sequences=1)
    prompts = [rows.encoded([MARKER], [0], each, torch.float32) for each in drawn()]
    run(model, writer, torch.cat(prompts), torch.zeros(3, dtype=torch.int64))
    found = writer.receipts([int(rows.keys(each)) for each in prompts])
    assert len(found) == 1


def test_a_block_of_another_kind_is_refused_by_name():
    model, writer = built(ADD, "dictionary")
    embeds = rows.encoded([3], [0], drawn()[0], torch.float32)
    with pytest.raises(CheckpointError, match=r"A Block of vLLM returns dict; expected the resid"):
        run(model, writer, embeds, torch.arange(1))


def test_a_model_without_such_a_list_or_block_is_refused_by_name():
    with pytest.raises(CheckpointError, match="Linear of vLLM has no list of 3 blocks"):
        _without(nn.Linear(2, 2))
    model = Model()
    model.layers[1] = nn.Identity()  # As vLLM leaves a block that another process has.
    with pytest.raises(CheckpointError, match="Block 1 of Model is in another process"):
        _without(model)


def _without(model):
    from nnsight_nla.verbalize.vllm.writer import _block

    _block(model, 1, SimpleNamespace(hf_text_config=SimpleNamespace(num_hidden_layers=3)))
