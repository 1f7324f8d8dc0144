"""The head's rows are contiguous wherever only the last logits are computed, and afterwards not."""

import pytest
import torch
from torch.nn import functional

from nnsight_nla import NLA, tiny
from nnsight_nla.experiments import ablate, logit_difference
from nnsight_nla.models.head import contiguous_head, head_of
from nnsight_nla.training import Lora, Settings, describe, train_verbalizer
from nnsight_nla.verbalize import decoding

CLEAN = "What a lovely day! People in Paris speak"
OPTIONS = {
    "layers": [0, 1, 2], "positions": "all", "method": "zero",
    "metric": logit_difference(" French", " Italian"),
}  # fmt: skip


class Watched:
    """Records whether what the head gets is contiguous; a hook would see it before ours."""

    def __init__(self, monkeypatch, module):
        self.weight, self.seen, linear = head_of(module).weight, [], functional.linear

        def watching(value, weight, bias=None):
            if weight.data_ptr() == self.weight.data_ptr() and value.dim() == 3 and len(value) > 1:
                self.seen.append((value.shape[0], value.is_contiguous()))
            return linear(value, weight, bias)

        monkeypatch.setattr(functional, "linear", watching)


@pytest.fixture
def unhooked(pair):
    """The models, which have no hook on their heads afterwards."""
    model, nla = pair
    nla.resolve([nla.explain(torch.randn(1, 128))])
    yield model, nla
    for module in (model._module, nla.av._module):
        assert not head_of(module)._forward_pre_hooks


@pytest.mark.parametrize("engine", ["fast", "generate"])
def test_in_the_verbalizer(unhooked, monkeypatch, engine):
    paths = tiny.paths()
    nla = NLA(paths["av"], engine=engine)
    nla.resolve(nla.explain(torch.randn(1, 128)))
    watched = Watched(monkeypatch, nla.av._module)
    vectors = torch.randn(5, 128, generator=torch.Generator().manual_seed(0))
    assert all(nla.explain(vectors).raw)
    assert (5, True) in watched.seen
    assert all(good for _, good in watched.seen)
    assert not head_of(nla.av)._forward_pre_hooks


def test_in_the_experiments(unhooked, monkeypatch):
    model, nla = unhooked
    watched = Watched(monkeypatch, model._module)
    ablate(model, nla, CLEAN, **OPTIONS)
    assert watched.seen
    assert all(good for _, good in watched.seen)


def test_in_a_bridge(unhooked, monkeypatch):
    pytest.importorskip("transformer_lens")
    from transformer_lens.model_bridge import TransformerBridge

    _, nla = unhooked
    bridge = TransformerBridge.boot_transformers(str(tiny.paths()["target"]), device="cpu")
    watched = Watched(monkeypatch, bridge.original_model)
    ablate(bridge, nla, CLEAN, **OPTIONS)
    assert watched.seen
    assert all(good for _, good in watched.seen)


@pytest.mark.parametrize("lora", [None, Lora(rank=2)], ids=["full", "lora"])
def test_in_training(monkeypatch, lora):
    from tests.helpers.published import tokenizer
    from tests.training.test_training import LAYER, WIDTH, make_rows, random_model

    live = tokenizer()
    model = random_model("Qwen3", live)
    watched = Watched(monkeypatch, model)
    checkpoint = describe(live, layer=LAYER, d_model=WIDTH)
    settings = Settings(steps=2, batch_size=3, lora=lora)
    train_verbalizer(model, live, make_rows(6), checkpoint, settings)
    assert watched.seen == [(3, True)] * 2
    assert not head_of(model)._forward_pre_hooks


def test_the_logits_are_the_same(unhooked):
    model = unhooked[0]._module
    ids = torch.randint(4, 200, (4, 9), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        whole = model(ids).logits[:, -3:]
        with contiguous_head(model):
            part = model(ids, logits_to_keep=3).logits
    torch.testing.assert_close(part, whole)


def test_a_hook_goes_when_its_block_fails(unhooked):
    model, _ = unhooked
    with pytest.raises(RuntimeError, match="mine"), contiguous_head(model):
        assert len(head_of(model)._forward_pre_hooks) == 1
        raise RuntimeError("mine")


def test_a_batch_counts_the_copies_that_a_head_which_is_not_found_makes(unhooked, monkeypatch):
    _, nla = unhooked
    monkeypatch.setattr(type(nla.runtime), "free_bytes", lambda _: 1 << 50)
    monkeypatch.setattr(decoding, "MOST", 1 << 50)
    sizes = {"prompt": 40, "rest": 10, "new_tokens": 60}
    found = decoding.rows_that_fit(nla.runtime, **sizes)
    monkeypatch.setattr(decoding, "head_of", lambda _: None)
    not_found = decoding.rows_that_fit(nla.runtime, **sizes)
    budget, config = 0.6 * (1 << 50), nla.av._module.config
    copied = config.vocab_size * config.hidden_size * 4
    assert budget / not_found - budget / found == pytest.approx(copied, rel=1e-3)
