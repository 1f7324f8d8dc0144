"""Claims: by hand with a made-up reconstructor, on the pair, and the text around a gap."""

import pytest
import torch

from nnsight_nla import ReconstructionError
from nnsight_nla.evaluation.claims import Claim, Claims, _without, claims

WORDS = {"north": (0.0, 1.0), "east": (1.0, 0.0), "south": (0.0, -1.0)}


def compass(texts):
    """A text is the sum of the directions that it names."""
    return torch.tensor(
        [[sum(WORDS[w][axis] for w in WORDS if w in text) for axis in (0, 1)] for text in texts]
    )


def taken(text, vector, by="snippet"):
    (found,) = claims(compass, lambda: torch.zeros(2), [text], torch.tensor([vector]), by)
    return found


def test_by_hand():
    found = taken("Go north.\nGo east.", [0.0, 5.0])
    root = 0.5**0.5
    assert found.cosine == pytest.approx(root)
    assert [part.text for part in found.parts] == ["Go north.", "Go east."]
    assert [part.carries for part in found.parts] == pytest.approx([root, root - 1])
    assert [part.alone for part in found.parts] == pytest.approx([1, 0])
    assert [part.text for part in found.ranked] == ["Go north.", "Go east."]


def test_rounding_errors_neither_order_claims_nor_have_a_sign():
    carries = {"a": 0.0004, "b": -0.0004, "c": 0.2001, "d": 0.2002}
    parts = tuple(Claim(text, value, 0.0) for text, value in carries.items())
    found = Claims("abcd", 0.5, parts)
    assert [part.text for part in found.ranked] == ["c", "d", "a", "b"]
    assert str(found).splitlines()[1:3] == ["+0.000  a", "+0.000  b"]
    (a, b) = (Claims(text, 0.5, (Claim("x", carries[text], 0.0),)) for text in "ab")
    assert a._repr_html_() == b._repr_html_()


def test_a_single_claim_is_compared_with_no_text():
    found = taken("Go north.", [0.0, 1.0])
    (part,) = found.parts
    assert (part.carries, part.alone) == pytest.approx((1, 1))


def test_snippets_and_sentences():
    text = "Go north. Then east!\n\nNot south?"
    assert [p.text for p in taken(text, [1.0, 1.0]).parts] == ["Go north. Then east!", "Not south?"]
    found = taken(text, [1.0, 1.0], by="sentence")
    assert [p.text for p in found.parts] == ["Go north.", "Then east!", "Not south?"]
    assert [p.text for p in taken("3.5 north e.g. this", [1.0, 1.0], "sentence").parts] == [
        "3.5 north e.g.",
        "this",
    ]


@pytest.mark.parametrize(
    ("text", "parts", "left"),
    [
        ("a\n\nb\n\nc", ["a", "b", "c"], ["b\n\nc", "a\n\nc", "a\n\nb"]),
        ("a. b.\nc.", ["a.", "b.", "c."], ["b.\nc.", "a. c.", "a. b."]),
        ("same\nsame", ["same", "same"], ["same", "same"]),
        ("one", ["one"], [""]),
    ],
)
def test_the_gap_is_closed(text, parts, left):
    assert _without(text, parts) == left


def test_views():
    found = taken("Go <north>.\nGo east.", [0.0, 5.0])
    assert str(found).splitlines()[1] == "+0.707  Go <north>."
    assert found.to_pandas().columns.tolist() == ["text", "carries", "alone"]
    assert found.to_dict()["parts"][1]["text"] == "Go east."
    assert "&lt;north&gt;" in found._repr_html_()
    assert "<north>" not in found._repr_html_()


def test_on_the_pair(nla, residuals):
    thought = nla.explain(residuals[-2:])
    first, second = nla.claims(thought)
    assert [part.text for part in first.parts] == list(thought[0].snippets)
    assert first.cosine == pytest.approx(nla.score(thought[0]).cosine.item(), abs=1e-5)
    one = nla.claims(thought[1])
    assert one.cosine == pytest.approx(second.cosine, abs=1e-5)
    # What is dropped is what was said to be: the figures follow from two reconstructions.
    rest = "\n".join(thought[1].snippets[1:])
    expected = nla.score([thought[1].text, rest], residuals[[-1, -1]]).cosine
    assert one.parts[0].carries == pytest.approx((expected[0] - expected[1]).item(), abs=1e-5)
    made_up = "About the miner, who works in the mine; gloomy tone."
    mixed = nla.claims(f"{made_up}\n{thought[1].text}", residuals[-1])
    assert mixed.ranked[-1].text == made_up
    assert mixed.ranked[-1].carries < 0


def test_one_batch_of_texts(nla, residuals, monkeypatch):
    thought = nla.explain(residuals[-3:])
    nla.resolve(thought)
    calls = []
    kind = type(nla._reconstructor)
    real = kind.reconstruct
    monkeypatch.setattr(
        kind, "reconstruct", lambda self, texts: calls.append(texts) or real(self, texts)
    )
    nla.claims(thought)
    assert len(calls) == 1
    assert len(calls[0]) == len(set(calls[0]))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((["a", ""],), r"Row 1 has no text to take apart: the text is empty"),
        (("a", None), "no vector of its own"),
    ],
)
def test_bad_input(nla, residuals, arguments, message):
    given = arguments if len(arguments) == 2 else (arguments[0], residuals[-2:])
    with pytest.raises(ReconstructionError, match=message):
        nla.claims(*given)


def test_an_unknown_way_to_split(nla, residuals):
    with pytest.raises(ReconstructionError, match="by='word': expected one of snippet, sentence"):
        nla.claims("a text", residuals[-1], by="word")


def test_a_row_without_a_text(nla):
    with pytest.raises(ReconstructionError, match=r"Row 0 has no text.*is zero"):
        nla.claims(nla.explain(torch.zeros(1, 128)))
