"""Measure the NLA of SmolLM2 on vectors from sources that were never trained on.

    python -m tutorials.recipes.smollm2.evaluate WORK     measure, and write figures and tables
    python -m tutorials.recipes.smollm2.evaluate          write the tables of the shipped figures

Each slot of an explanation is compared with the text and the target's own next tokens. The controls
are what the verbalizer says for another row's vector (*shuffled*), a random direction (*random*)
and none (*null*). Without a verbalizer a reader gets the commonest answer in the training labels
(*majority*), the label of the nearest training vector by cosine (*nearest*), and a linear *probe*
for the subject, which has a closed list of answers.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch
from torch import Tensor

from nnsight_nla import NLA, Baseline, smollm2
from nnsight_nla.checkpoint.reply import remainder, wrap
from nnsight_nla.core.similarity import cosine, normalise
from nnsight_nla.evaluation.evaluate import explained, texts_of
from nnsight_nla.smollm2.explanations import SLOTS, Slots, explanation, parse
from nnsight_nla.verbalize.likelihood import likelihoods

from .interventions import intervention_rates
from .labels import truth_of
from .sources import HELD_OUT_SUBJECTS, PACKAGES, subject_of
from .tables import page

ROWS, LIKELIHOOD_ROWS = 1000, 128
FIGURES = Path(smollm2.__file__).parent / "figures.json"
TABLES = Path(__file__).parents[2] / "reference" / "smollm2_figures.txt"
"""The figures in the documentation."""


def measure(nla: NLA, work: Path) -> dict[str, Any]:
    """Measure a pair of adapters on the held-out rows of the folder `work`.

    Returns:
        Nested mappings of numbers and names, ready for JSON.
    """
    rows = pq.read_table(work / "held_out.rows.parquet").to_pylist()
    rows = rows[:: max(1, len(rows) // ROWS)][:ROWS]
    train = pq.read_table(work / "train.rows.parquet")
    vectors = _vectors([row["activation_vector"] for row in rows])
    # Every row has a label, so it has a truth.
    true = [slots for slots in map(truth_of, rows) if slots is not None]
    labels = [explanation(slots) for slots in true]
    told, controls = explained(nla, vectors)
    texts = {"true": list(told.extracted()[0]), **texts_of(controls, len(rows))}
    known = normalise(_vectors(train["activation_vector"].to_pylist()))
    nearest = _nearest(train, known, vectors)
    answers = {
        **{name: list(map(parse, said)) for name, said in texts.items()},
        "nearest": [parse(label) for label in nearest],
        "majority": [_majority(train)] * len(rows),
    }
    written = [row["detokenized_text_truncated"] for row in rows]
    baseline = Baseline.from_vectors(vectors, name=f"{len(rows)} held-out vectors")
    sources = {"explanation": texts["true"], "label": labels, "nearest": nearest}
    sources |= {name: texts[name] for name in ("shuffled", "random", "null")}
    made = _reconstructed(nla, sources)
    near = {name: float(cosine(each, vectors).mean()) for name, each in made.items()}
    groups = [group_of(row["doc_id"]) for row in rows]
    return {
        "rows": len(rows),
        "documents": len({row["doc_id"] for row in rows}),
        "train": {"rows": train.num_rows, "documents": len(set(train["doc_id"].to_pylist()))},
        "layer": nla.checkpoint.layer,
        "extraction": 1 - len(told.extracted()[1]) / len(rows),
        "slots": {name: _slots(said, true, written) for name, said in answers.items()},
        "subject_by_source": _subject_by_source(answers["true"], true, groups, written),
        "probe": _probe(train, known, vectors, true, groups),
        "fve": {name: baseline.fve(2 * (1 - each)) for name, each in near.items()},
        "cosine": near,
        "baseline": baseline.to_dict(),
        "retrieval": {name: _retrieval(made[name], vectors) for name in ("explanation", "label")},
        "nats": _nats(nla, vectors[:LIKELIHOOD_ROWS], true[:LIKELIHOOD_ROWS]),
    }


def _vectors(rows: Sequence[Sequence[float]]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float32, device="cpu")


def group_of(document: str) -> str:
    """Return which kind of held-out source a document is of."""
    kind, source, _ = document.split("/")
    if kind in PACKAGES:
        return "a held-out book"
    return "a held-out subject" if source in HELD_OUT_SUBJECTS else "a held-out form of text"


def _slots(
    said: Sequence[Slots | None], true: Sequence[Slots], texts: Sequence[str]
) -> dict[str, float]:
    """Return the share of explanations that are right, slot by slot."""
    pairs = list(zip(said, true, texts, strict=True))

    def share(right: Any) -> float:
        return sum(bool(told and right(told, known, text)) for told, known, text in pairs) / len(
            pairs
        )

    return {
        "subject": share(lambda told, known, _: told.subject == known.subject),
        "content": share(lambda told, known, _: told.content == known.content),
        "content in text": share(lambda told, _, text: told.content.lower() in text.lower()),
        "last word": share(lambda told, known, _: told.last[:1] == known.last[:1]),
        "last three words": share(lambda told, known, _: told.last == known.last),
        "next in top 3": share(lambda told, known, _: told.next[0] in known.next),
        "next exact": share(lambda told, known, _: told.next[0] == known.next[0]),
    }


def _subject_by_source(
    said: Sequence[Slots | None], true: Sequence[Slots], groups: Sequence[str], texts: Sequence[str]
) -> dict[str, dict[str, float]]:
    """Return the share of right subjects by kind of source, and where the text has named it."""
    found: dict[str, list[bool]] = {}
    for told, known, group, text in zip(said, true, groups, texts, strict=True):
        right = told is not None and told.subject == known.subject
        found.setdefault(group, []).append(right)
        if known.subject.lower() in text.lower():
            found.setdefault("the text has named it", []).append(right)
    return {
        name: {"rows": len(right), "subject": sum(right) / len(right)}
        for name, right in sorted(found.items())
    }


def _majority(train: Any) -> Slots:
    """Return the commonest answer to each slot among the training labels."""
    labels = [parse(label) for label in train["api_explanation"].to_pylist()]
    known = [label for label in labels if label is not None]

    def commonest(answers: Any) -> Any:
        return Counter(answers).most_common(1)[0][0]

    return Slots(
        commonest(each.subject for each in known),
        commonest(each.content for each in known),
        (commonest(each.last[0] for each in known),),
        (commonest(each.next[0] for each in known),),
    )


def _nearest(train: Any, known: Tensor, vectors: Tensor) -> list[str]:
    """Return the label of the nearest training vector by cosine."""
    labels = train["api_explanation"].to_pylist()
    return [labels[i] for i in (normalise(vectors) @ known.T).argmax(-1).tolist()]


def _probe(
    train: Any, known: Tensor, vectors: Tensor, true: Sequence[Slots], groups: Sequence[str]
) -> dict[str, float]:
    """Fit a linear probe (ridge regression) for the subject, and measure it where it knows it."""
    subjects = [subject_of(each) for each in train["doc_id"].to_pylist()]
    names = sorted(set(subjects))
    index = {name: i for i, name in enumerate(names)}
    mean = known.mean(0)
    x, target = known - mean, torch.zeros(len(known), len(names))
    target[torch.arange(len(known)), torch.tensor([index[each] for each in subjects])] = 1.0
    gram = x.T @ x
    ridge = 1e-3 * gram.diagonal().mean() * torch.eye(len(gram))
    weights = torch.linalg.solve(gram + ridge, x.T @ (target - target.mean(0)))
    said = ((normalise(vectors) - mean) @ weights + target.mean(0)).argmax(-1).tolist()
    right = [names[i] == slots.subject for i, slots in zip(said, true, strict=True)]
    seen = [r for r, group in zip(right, groups, strict=True) if group != "a held-out subject"]
    return {"subject": sum(right) / len(right), "subject, known ones": sum(seen) / len(seen)}


def _reconstructed(nla: NLA, sources: dict[str, list[str | None]]) -> dict[str, Tensor]:
    """Return the normalised reconstruction of every text; zero for a missing one."""
    every = sorted({text for texts in sources.values() for text in texts if text})
    made = normalise(nla.reconstruct(every).float())
    known = {text: made[i] for i, text in enumerate(every)}
    zero = torch.zeros(made.shape[-1])
    return {
        name: torch.stack([known.get(text or "", zero) for text in texts])
        for name, texts in sources.items()
    }


def _retrieval(made: Tensor, vectors: Tensor) -> float:
    """Return the share of reconstructions that are nearest to their own vector."""
    nearest = (made @ normalise(vectors).T).argmax(-1)
    return float((nearest == torch.arange(len(vectors))).float().mean())


def _nats(nla: NLA, vectors: Tensor, true: Sequence[Slots]) -> dict[str, dict[str, float]]:
    """Return each slot's log-likelihood in nats a row, with its vector, and with another row's.

    What a language model says out of habit it says with any vector. The difference of the two is
    what the vector contributes; its share is that difference over the nats of the other vector.
    """
    verbalizer = nla._verbalizer  # No public call has the likelihood of a text.
    encode = nla.av.tokenizer.encode
    lines = [explanation(slots).splitlines(keepends=True) for slots in true]
    # The replies up to the end of each line, as ids; the sum of a line is a difference of two.
    whole = [remainder(wrap("".join(each)), nla.prompt.opened) for each in lines]
    starts = [text.index("About") for text in whole]
    everyone = torch.ones(len(true), dtype=torch.bool)
    others = vectors.roll(len(vectors) // 2, 0)
    sums: dict[str, list[Tensor]] = {"own": [], "other": []}
    for count in range(len(SLOTS) + 1):
        ids = [
            encode(text[:start] + "".join(each[:count]), add_special_tokens=False)
            for text, start, each in zip(whole, starts, lines, strict=True)
        ]
        tokens = torch.tensor([len(each) for each in ids])
        for name, given in (("own", vectors), ("other", others)):
            sums[name].append(likelihoods(verbalizer, given, everyone, ids) * tokens)
    found: dict[str, dict[str, float]] = {}
    for number, slot in enumerate(SLOTS):
        own, other = (float((sums[name][number + 1] - sums[name][number]).mean()) for name in sums)
        share = (own - other) / -other
        found[slot] = {"own vector": own, "another vector": other, "share": share}
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and write figures and tables, or the tables alone."""
    parser = argparse.ArgumentParser(prog="python -m tutorials.recipes.smollm2.evaluate")
    parser.add_argument("work", type=Path, nargs="?", help="the folder that build made")
    parser.add_argument("--weights", type=Path, help="adapters other than the shipped ones")
    options = parser.parse_args(arguments)
    if options.work is not None:
        given = () if options.weights is None else (options.weights,)
        model, nla = smollm2.load(*given)
        figures = measure(nla, options.work)
        figures["interventions"] = intervention_rates(model, nla)
        # It depends on the rows alone; see `probes`.
        figures["network"] = json.loads(FIGURES.read_text("utf-8"))["network"]
        FIGURES.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    TABLES.write_text(page(smollm2.figures()), encoding="utf-8")
    sys.stdout.write(TABLES.read_text("utf-8"))


if __name__ == "__main__":
    main()
