"""The warnings: each where it belongs, and silence where nothing is known."""

import math

import pytest
import torch

from nnsight_nla.core.calibration import Calibration
from nnsight_nla.core.sampling import Sampling
from nnsight_nla.explanation.caveats import caveats
from nnsight_nla.explanation.records import Capture, Reply

CJK = (
    "CJK text in every output: the verbalizer seems to describe the marker itself; the vector may "
    "not have been injected where the verbalizer reads it"
)


def reply(text: str, finish: str = "tag") -> Reply:
    return Reply(f"<explanation>{text}", text, finish, 5, 1.0, 2.0, 1.0)


def capture(
    texts: list[str],
    *,
    vectors: torch.Tensor | None = None,
    samples: int = 1,
    width: int | None = None,
    tokens: list[str] | None = None,
    positions: list[int] | None = None,
    **options,
) -> Capture:
    """`texts` row by row, the samples of a row next to each other."""
    rows = len(texts) // samples
    made = Capture(
        queue=None,
        vectors=torch.ones(rows, 4) if vectors is None else vectors,
        count=rows,
        samples=samples,
        sampling=Sampling(temperature=float(samples > 1), max_new_tokens=30),
        tokens=tokens,
        positions=positions,
        width=rows if width is None else width,
        **options,
    )
    for i, text in enumerate(texts):
        made.replies[divmod(i, samples)] = reply(text)
    return made


def test_nothing_to_say():
    assert caveats(capture(["A city.", "A river."])) == {}
    assert caveats(capture([])) == {}


def test_a_reply_that_was_cut_off_or_had_no_tag():
    made = capture(["A", "B", "C"])
    made.replies[0, 0] = reply("A", "length")
    made.replies[2, 0] = reply("C", "eos")
    assert caveats(made) == {
        0: ("cut off after max_new_tokens=30 tokens, without the closing tag",),
        2: ("ended without a closing </explanation> tag",),
    }


def test_a_sample_is_named_where_there_are_several():
    made = capture(["A", "B"], samples=2)
    made.replies[0, 1] = reply("B", "eos")
    assert caveats(made) == {0: ("sample 1: ended without a closing </explanation> tag",)}


@pytest.mark.parametrize("text", ["A 漢字", "㈎㈎", "ひらがな", "한국", "㎡", "豈"])
def test_cjk_in_every_output(text):
    assert caveats(capture([text, f"about {text}"])) == {0: (CJK,), 1: (CJK,)}
    assert caveats(capture([text, "About Paris."])) == {}


@pytest.mark.parametrize("text", ["Ελληνικά", "Русский", "café", "עברית", "∑ → ✓", "😀"])
def test_other_scripts_are_no_cjk(text):
    assert caveats(capture([text])) == {}


def test_early_positions():
    measured = Calibration("texts", 100, noisy_positions=4)
    found = caveats(capture(["A", "B", "C"], positions=[0, 3, 4], calibration=measured))
    said = "explanations of the first 4 positions are worse than later ones"
    assert found == {
        row: (f"position {place}: {said}, as measured for this verbalizer",)
        for row, place in ((0, 0), (1, 3))
    }
    # Where it was not measured, there is nothing to say.
    assert caveats(capture(["A"], positions=[0])) == {}
    unmeasured = Calibration("texts", 100)
    assert caveats(capture(["A"], positions=[0], calibration=unmeasured)) == {}


def test_positions_counted_from_the_right_say_nothing():
    assert caveats(capture(["A"], positions=[-1])) == {}


def norms(*lengths: float) -> torch.Tensor:
    vectors = torch.zeros(len(lengths), 4)
    vectors[:, 1] = torch.tensor(lengths)
    return vectors


def test_norms_far_outside_their_prompts_bulk():
    vectors = norms(100, 120, 14356, 140, 150, 160, 19, 130, 110)
    made = capture(["A"] * 9, vectors=vectors, positions=list(range(20, 29)))
    assert caveats(made) == {
        2: ("its norm 1.436e+04 is far from the prompt's median 130, as at an attention sink",),
        6: ("its norm 19 is far from the prompt's median 130",),
    }
    # Without positions the rows are not known to be one prompt.
    assert caveats(capture(["A"] * 9, vectors=vectors)) == {}


@pytest.mark.parametrize("positions", [None, [0, 1, 2]])
def test_a_few_vectors_are_compared_with_those_of_the_training(positions):
    made = capture(["A"] * 3, vectors=norms(22260, 246, 20), positions=positions)
    made.usual_norm = 250.0
    assert caveats(made) == {
        0: (
            "its norm 2.226e+04 is far from the training vectors' mean 250, as at an "
            "attention sink",
        ),
        2: ("its norm 20 is far from the training vectors' mean 250",),
    }


def test_early_positions_of_a_usual_norm_are_not_warned_about():
    """A sink is found by its norm, wherever it is."""
    made = capture(["A"] * 9, vectors=norms(9000, *[100] * 8), positions=list(range(9)))
    assert set(caveats(made)) == {0}
    made = capture(["A"] * 9, vectors=norms(*[100] * 8, 9000), positions=list(range(9)))
    assert set(caveats(made)) == {8}


def test_each_prompt_has_its_own_bulk():
    vectors = norms(*[1.0] * 8, *[100.0] * 8)
    places = [*range(20, 28), *range(20, 28)]
    assert caveats(capture(["A"] * 16, vectors=vectors, positions=places, width=8)) == {}
    assert set(caveats(capture(["A"] * 16, vectors=vectors, positions=places, width=16)))


def test_a_short_prompt_has_no_bulk():
    made = capture(["A"] * 7, vectors=norms(1, 1, 1, 1, 1, 1, 99), positions=list(range(20, 27)))
    assert caveats(made) == {}


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("place", [0, 4, 7])
def test_unusable_rows_do_not_move_the_median(bad, place):
    lengths = [1.0] * 8 + [50.0]  # In order, so that a NaN in the middle would be the median.
    made = capture(["A"] * 9, vectors=norms(*lengths), positions=list(range(20, 29)))
    made.vectors[place, 0] = bad
    del made.replies[place, 0]
    made.errors[place] = "has NaN in it"
    assert set(caveats(made)) == {8}


def test_an_empty_batch_with_positions():
    made = capture([], vectors=torch.empty(0, 4), positions=[], tokens=[], width=0)
    assert caveats(made) == {}


TOKENS = ["Bon", "jour", ", I live", " in", " Paris", " now"]


@pytest.mark.parametrize(
    ("text", "invented"),
    [
        ('It says "in Paris" here.', ()),
        ('It says "IN  paris" here.', ()),
        ('It says "in Paris," here.', ()),
        ('It says "Bonjour" here.', ()),
        ("It says \u201clive in\u201d here.", ()),
        ('It says "in London" here.', ("in London",)),
        ("It says \u201cin London\u201d and \u201cin Rome\u201d.", ("in London", "in Rome")),
        ('Twice "in London", "in London".', ("in London",)),
        ('Too short to tell: "xy".', ()),
        ("An apostrophe's no quote, isn't it.", ()),
    ],
)
def test_quotes_that_are_not_in_the_text(text, invented):
    made = capture([text] * 6, tokens=TOKENS, positions=list(range(6)))
    found = [note for note in caveats(made).get(5, ()) if note.startswith("quotes")]
    assert found == [
        f"quotes {quote!r}, which is not in the text up to this token" for quote in invented
    ]


def test_a_quote_from_after_the_position_is_invented():
    made = capture(['Says "Paris".'] * 6, tokens=TOKENS, positions=list(range(6)))
    found = caveats(made)
    said = {row for row, notes in found.items() if any("quotes" in note for note in notes)}
    assert said == {0, 1, 2, 3}


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"tokens": TOKENS},
        {"positions": list(range(6))},
        {"tokens": TOKENS, "positions": [3, 4, 5, 6, 7, 8]},  # What came before is not known.
        {"tokens": ["caf", "\ufffd", "\ufffd", " in", " Paris", " now"], "positions": [*range(6)]},
    ],
)
def test_quotes_are_not_judged_where_the_text_is_not_known(given):
    made = capture(['Says "London".'] * 6, **given)
    assert not any("quotes" in note for note in caveats(made).get(5, ()))


def test_the_second_prompt_of_a_batch_has_its_own_text():
    tokens = ["In", " Paris", "In", " Rome"]
    made = capture(['Says "Paris".'] * 4, tokens=tokens, positions=[0, 1, 0, 1], width=2)
    found = caveats(made)
    assert 1 not in found
    assert any("quotes 'Paris'" in note for note in found[3])


def test_rows_that_wait_are_left_out():
    noisy = Calibration("texts", 100, noisy_positions=4)
    made = capture(["A", "B"], positions=[0, 1], calibration=noisy)
    del made.replies[1, 0]
    assert set(caveats(made)) == {0}
