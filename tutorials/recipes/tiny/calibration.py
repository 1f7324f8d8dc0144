"""Measure how often the tiny pair's explanations are right, and the label's word on other vectors.

    python -m tutorials.recipes.tiny.calibration

The calibration is measured on new texts of the pairs of subject and tone that the pair was trained
on, and tested on those that were held out of all training. It is written into the shipped
verbalizer's folder, and with all figures into ``calibration.json``.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from nnsight import TransformersModel

from nnsight_nla import NLA, tiny
from nnsight_nla.evaluation import GroundedRows, from_records, grounded, over_length
from nnsight_nla.evaluation.calibrating import calibrate, save, validated
from nnsight_nla.evaluation.grounding.forms import known_truth
from nnsight_nla.evaluation.grounding.measure import spread
from nnsight_nla.tiny.examples import K, collect
from nnsight_nla.tiny.facts import Pair, held_out_pairs, training_pairs

from ..grades import grade_shares

FIGURES = Path(tiny.__file__).parent / "calibration.json"
POPULATION = "residuals of the tiny target, block 3, in texts of its made-up world"
DOCUMENTS, POSITIONS = 200, 5
BLOCKS = (0, 1, 2)


def main() -> None:
    """Measure, store the calibration, and write the figures."""
    model, nla = tiny.load()
    source = rows(model, training_pairs(), seed=910)
    other = rows(model, sorted(held_out_pairs()), seed=900)
    calibration = calibrate(nla, source, population=POPULATION, early=early_rows(model, nla, other))
    calibration, curves = validated(nla, calibration, other)
    save(calibration, tiny.paths()["av"], curves)
    model, nla = tiny.load()  # With its calibration.
    some = other.take(spread(other, DOCUMENTS))
    thought = nla.explain(some.vectors)
    nla.resolve(thought)
    figures = {
        "calibration": {
            "n": calibration.n,
            "strong": calibration.strong,
            "partial": calibration.partial,
            "noisy_positions": calibration.noisy_positions,
            "tested": {name: curve.to_dict() for name, curve in curves.items()},
        },
        "grades": grades(model, nla, other),
        "grounded": grounded(nla, other, limit=DOCUMENTS),
        "over_length": over_length(nla, thought, rows=some.rows).to_dict(),
    }
    FIGURES.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    sys.stdout.write(f"{FIGURES}\n")


def rows(model: TransformersModel, pairs: Sequence[Pair], *, seed: int) -> GroundedRows:
    """Return vectors at five positions of each of 200 documents, with texts and labels."""
    found = collect(model, pairs, documents=DOCUMENTS, per_document=POSITIONS, seed=seed)
    records = (
        {
            "activation_vector": vector.tolist(),
            "detokenized_text_truncated": text,
            "doc_id": str(number // POSITIONS),
            "api_explanation": label,
        }
        for number, (vector, text, label) in enumerate(
            zip(found.vectors, found.prompts, found.explanations, strict=True)
        )
    )
    return from_records(records, f"texts of the made-up world, seed {seed}")


def early_rows(model: Any, nla: NLA, source: GroundedRows) -> GroundedRows:
    """Read all first positions of some documents."""
    longest = [source.rows[numbers[-1]].text for numbers in source.by_document.values()]
    texts = [text for text in longest if len(model.tokenizer(text)["input_ids"]) >= 20][:40]
    records: list[dict[str, Any]] = []
    for document, text in enumerate(texts):
        with torch.no_grad(), model.trace(text):
            residual = nla.layer(model).output[0].detach().float().save()
        records += [
            {
                "activation_vector": vector.tolist(),
                "detokenized_text_truncated": text,
                "doc_id": str(document),
                "position": position,
            }
            for position, vector in enumerate(residual)
        ]
    return from_records(records, "the first positions")


def grades(model: Any, nla: NLA, source: GroundedRows) -> dict[str, dict[str, float]]:
    """Return how often each kind of vector gets each grade."""
    generator = torch.Generator().manual_seed(0)
    own = source.take(spread(source, DOCUMENTS))
    kinds = {"text of its kind": own.vectors}
    for block in BLOCKS:
        read: list[torch.Tensor] = []
        for row in own.rows:
            with torch.no_grad(), model.trace(row.text):
                read.append(model.model.layers[block].output[0, -1].detach().float().save())
        kinds[f"block {block}"] = torch.stack(read)
    words = model.tokenizer.convert_ids_to_tokens(list(range(len(model.tokenizer))))
    plain = [word for word in words if word.isalpha() and word.isascii()]
    shuffled: list[torch.Tensor] = []
    for _ in own.rows:
        order = torch.randint(len(plain), (12,), generator=generator).tolist()
        with torch.no_grad(), model.trace(" ".join(plain[i] for i in order)):
            shuffled.append(model.model.layers[K].output[0, -1].detach().float().save())
    kinds["words at random"] = torch.stack(shuffled)
    turned = own.vectors.roll(len(own) // 2, 0)
    kinds["a difference"] = own.vectors - turned
    noise = torch.randn(own.vectors.shape, generator=generator)
    lengths = own.vectors.norm(dim=-1, keepdim=True)
    kinds["a random direction"] = noise / noise.norm(dim=-1, keepdim=True) * lengths
    truth = known_truth(own.rows)
    assert truth is not None
    found: dict[str, dict[str, float]] = {}
    for name, vectors in kinds.items():
        thought = nla.explain(vectors)
        nla.resolve(thought)
        said: Any = thought.trust
        words = [str(each.grade) for each in said]
        found[name] = grade_shares(words)
        if name.startswith(("block", "text")):  # Then the label holds.
            texts = thought.extracted()[0]
            right = [
                (truth(texts[row], each.label or "") or {}).get("subject", False)
                for row, each in enumerate(own.rows)
                if words[row] == "strong"
            ]
            found[name]["subject right if strong"] = sum(right) / max(1, len(right))
    return found


if __name__ == "__main__":
    main()
