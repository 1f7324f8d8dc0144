"""The page marks the words that difference() marks: the same words, by the same algorithm."""

import random
from pathlib import Path

from nnsight_nla import view
from nnsight_nla.evaluation.difference import difference

SCRIPT = (Path(view.__file__).parent / "script" / "diff.js").read_text("utf-8")
WORDS = [
    "Paris",
    "Rome",
    "in",
    "Italy",
    "France",
    ",",
    ".",
    ";",
    "\n",
    "l'eau",
    "don’t",
    "巴黎",
    "à",
    "1",
]


def texts(seed):
    draw = random.Random(seed)
    return [
        "".join(draw.choice(WORDS) + draw.choice([" ", "", " "]) for _ in range(draw.randrange(25)))
        for _ in range(2)
    ]


def test_the_words_are_those_of_difference(context):
    pairs = [texts(seed) for seed in range(300)]
    pairs.append(["About Rome, in Italy;", "About Paris, in France;"])
    found = context.new_page().evaluate(
        """([script, pairs]) => new Function("pairs", script + `
          const own = (found) => found.filter(([, own]) => own).map(([text]) => text);
          return pairs.map(([a, b]) => [own(pieces(a, b, 0)), own(pieces(b, a, 1))]);
        `)(pairs)""",
        [SCRIPT, pairs],
    )
    for (before, after), (removed, added) in zip(pairs, found, strict=True):
        expected = difference(before, after)
        assert (tuple(removed), tuple(added)) == (expected.removed, expected.added), (before, after)
    assert found[-1] == [["Rome", "Italy"], ["Paris", "France"]]
