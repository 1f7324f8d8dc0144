"""The reconstructor's input: what is refused, and that batches and padding change nothing."""

import pytest
import torch

from nnsight_nla import ReconstructionError

TEXTS = ["About Paris.", "About the frog, a kind of amphibian; neutral tone.", "x"]


def test_padding_and_batches_change_nothing(nla):
    together = nla.reconstruct(TEXTS)
    alone = torch.stack([nla.reconstruct(text) for text in TEXTS])
    torch.testing.assert_close(together, alone, atol=2e-4, rtol=2e-4)
    small = nla._reconstructor.reconstruct(TEXTS, batch_size=2)
    torch.testing.assert_close(together, small, atol=2e-4, rtol=2e-4)


def test_nested_lists(nla):
    assert nla.reconstruct([TEXTS[:2], TEXTS[1:]]).shape == (2, 2, 128)


def test_it_follows_the_words(nla):
    back = nla.reconstruct(["About Paris, the capital of France.", "About the frog."])
    assert torch.cosine_similarity(back[0], back[1], dim=0) < 0.9


def test_no_text_is_the_template_with_an_empty_slot(nla):
    assert nla._reconstructor.prior().shape == (128,)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<explanation>a</explanation>", r"text 0 still has its tags.*thought.text"),
        (["fine", "a</explanation>"], "text 1 still has its tags"),
        ("word " * 3000, r"text 0 is \d+ tokens with its template, the reconstructor reads \d+"),
    ],
)
def test_what_it_refuses(nla, text, message):
    with pytest.raises(ReconstructionError, match=message):
        nla.reconstruct(text)


def test_inside_a_trace_of_its_own_it_says_so(nla):
    with pytest.raises(ReconstructionError, match="running on the reconstructor itself"):
        with nla.ar.trace("a text"):
            nla.reconstruct("a text")


def test_inside_another_models_trace(model, nla):
    with model.trace("People in Paris speak"):
        back = nla.reconstruct("About Paris.").save()
        nla.layer(model).output[:, -1] = back
        token = model.lm_head.output[0, -1].argmax(-1).save()
    torch.testing.assert_close(back, nla.reconstruct("About Paris."))
    assert token.numel() == 1


def test_what_overflows_is_an_error_and_no_nan(nla, monkeypatch):
    head = nla._reconstructor.head.clone()
    head[0, 0] = torch.inf
    monkeypatch.setattr(nla._reconstructor, "head", head)
    with pytest.raises(ReconstructionError, match=r"text 0 is not finite \(2 of 2 such\)"):
        nla.reconstruct(TEXTS[:2])
