"""Own vectors are recognised by who knows them, and by nobody else."""

import random

import pytest
import torch

from nnsight_nla.evaluation.grounding.matching import CHANCE, by_cosine, by_likelihood, match
from nnsight_nla.evaluation.grounding.rows import GroundedRow, GroundedRows
from tests.helpers.tiny_rows import tiny_rows

KINDS = ("position", "source")


def rows_of(documents: int, length: int) -> GroundedRows:
    """Row i has the vector (i, 0) and the text ``i``, after its document's other words."""
    rows = [
        GroundedRow(f"d{d}", " ".join(str(d * length + w) for w in range(end + 1)), position=end)
        for d in range(documents)
        for end in range(length)
    ]
    vectors = torch.stack([torch.arange(float(len(rows))), torch.zeros(len(rows))], dim=-1)
    return GroundedRows(tuple(rows), vectors)


SOURCE = rows_of(40, 30)
NUMBERS = list(range(len(SOURCE)))
TEXTS = [str(number) for number in NUMBERS]


def oracle(texts, vectors):
    """Score by the distance of the number that the text says from the vector's."""
    return -(torch.tensor([float(text) for text in texts]) - vectors[:, 0]).abs()


@pytest.mark.parametrize("kind", KINDS)
def test_an_oracle_is_always_right_and_its_opposite_never(kind):
    found = match(kind, TEXTS, SOURCE, NUMBERS, oracle)
    assert (found.value, found.n, found.chance) == (1.0, len(SOURCE), CHANCE[kind])
    opposite = match(kind, TEXTS, SOURCE, NUMBERS, lambda *given: -oracle(*given))
    assert opposite.value == 0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("how", ["random", "constant", "nan", "by vector alone"])
def test_who_does_not_read_the_text_is_at_chance(kind, how):
    draw = torch.Generator().manual_seed(3)
    scores = {
        "random": lambda texts, _: torch.rand(len(texts), generator=draw),
        "constant": lambda texts, _: torch.zeros(len(texts)),
        "nan": lambda texts, _: torch.full((len(texts),), torch.nan),
        "by vector alone": lambda _, vectors: vectors[:, 0],
    }[how]
    found = [match(kind, TEXTS, SOURCE, NUMBERS, scores, seed) for seed in range(8)]
    assert sum(each.value for each in found) / 8 == pytest.approx(CHANCE[kind], abs=0.015)
    assert sum(each.low <= CHANCE[kind] <= each.high for each in found) >= 6
    assert all(each.high - each.low < 0.06 for each in found)


def test_who_knows_only_the_document_finds_that_and_not_the_place():
    def documents(texts, vectors):
        return -(torch.tensor([int(text) // 30 for text in texts]) - vectors[:, 0] // 30).abs()

    assert match("source", TEXTS, SOURCE, NUMBERS, documents).value == 1
    found = match("position", TEXTS, SOURCE, NUMBERS, documents)
    assert found.low <= 0.2 <= found.high


@pytest.mark.parametrize("kind", KINDS)
def test_a_malformed_reply_is_wrong_and_is_not_scored(kind):
    scored: set[str] = set()

    def scores(texts, vectors):
        scored.update(texts)
        return oracle(texts, vectors)

    texts = [None, "", *TEXTS[2:]]
    found = match(kind, texts, SOURCE, NUMBERS, scores)
    assert found.value == pytest.approx(1 - 2 / len(SOURCE))
    assert scored == set(TEXTS[2:])
    assert match(kind, [None], SOURCE, [0], None).value == 0


def test_a_part_of_the_rows_in_any_order_and_twice():
    numbers = random.Random(0).sample(NUMBERS, 50)
    texts = [TEXTS[n] for n in numbers]
    assert match("position", texts + texts, SOURCE, numbers + numbers, oracle).n == 100
    assert match("source", texts, SOURCE, numbers, oracle).value == 1
    assert match("source", texts[1:] + texts[:1], SOURCE, numbers, oracle).value < 0.5


def test_without_enough_candidates_there_is_no_figure():
    assert match("position", TEXTS[:8], rows_of(2, 4), range(8), oracle) is None
    assert match("source", TEXTS[:15], rows_of(3, 5), range(15), oracle) is None
    assert match("source", [], SOURCE, [], oracle) is None
    one = rows_of(1, 30)
    assert match("source", TEXTS[:30], one, range(30), oracle) is None
    assert match("position", TEXTS[:30], one, range(30), oracle).value == 1


def test_each_text_is_reconstructed_once():
    calls: list[list[str]] = []

    class Reconstructor:
        def reconstruct(self, texts):
            calls.append(texts)
            return torch.tensor([[1.0, 0.0] if text == "x" else [0.0, 1.0] for text in texts])

    vectors = torch.tensor([[2.0, 0.0], [0.0, 3.0], [-1.0, 0.0]])
    found = by_cosine(Reconstructor())(["x", "y", "x"], vectors)
    assert found.tolist() == pytest.approx([1, 1, -1])
    assert calls == [["x", "y"]]


def test_the_tiny_pair_recognises_its_own_vectors_and_not_those_of_others(model, nla):
    source = tiny_rows(model, documents=12, per_document=6, seed=5)
    numbers = list(range(0, len(source), 3))
    texts = [source.rows[n].label for n in numbers]
    for scores in (by_cosine(nla), by_likelihood(nla)):
        for kind in KINDS:
            assert match(kind, texts, source, numbers, scores).value > 0.95
            # Texts of other documents, each six rows further on.
            other = match(kind, texts[2:] + texts[:2], source, numbers, scores)
            assert other.value < 0.5


def test_the_likelihood_is_that_of_the_verbalizer(model, nla):
    source = tiny_rows(model, documents=2, seed=5)
    text = source.rows[0].label
    found = by_likelihood(nla)([text, text], source.vectors[[0, 5]])
    reply = nla.av.tokenizer(f"<explanation>\n{text}\n</explanation>", add_special_tokens=False)
    tokens = len(reply["input_ids"])
    assert -0.2 * tokens < found[0] < 0
    assert found[0] > found[1]
