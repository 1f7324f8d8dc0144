"""Vectors that the verbalizer was not trained on: what does its label say of them?

Text of other kinds (code, other languages, numbers) at the verbalizer's block; other blocks on
text of the right kind; differences of two residuals; and random directions.
"""

from __future__ import annotations

import inspect
import json
import random
import statistics
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

BLOCKS = (0, 5, 10, 15, 20, 22, 24, 26, 29)
"""The other blocks that are read."""
FIRST = 8
"""The first position that is read."""
_LANGUAGES = {
    "German": """
        Am frühen Morgen ging der alte Fischer zum Hafen hinunter, um nach seinem Boot zu sehen. In
        der Nacht hatte es gestürmt, und zwei Taue waren gerissen. Er setzte sich auf eine Kiste,
        nahm Garn und Nadel aus der Tasche und begann, das Netz zu flicken, während hinter ihm die
        ersten Händler ihre Stände aufbauten. Niemand sprach ein Wort, denn alle warteten auf den
        Dampfer, der schon seit drei Tagen überfällig war und die Post aus der Stadt bringen sollte.
    """,
    "French": """
        Le boulanger ouvrit sa boutique avant le lever du soleil, comme il le faisait depuis trente
        ans. Une odeur de pain chaud se répandit dans la rue encore vide, et les premiers clients
        arrivèrent bientôt, le col relevé contre le vent. On parlait peu, on achetait deux baguettes
        et un croissant, puis chacun reprenait son chemin vers la gare. Ce matin-là pourtant, une
        vieille dame demanda un gâteau d'anniversaire pour quelqu'un qui n'existait plus.
    """,
    "Spanish": """
        Cuando terminó la cosecha, los vecinos del pueblo se reunieron en la plaza para decidir qué
        hacer con el viejo molino. Algunos querían venderlo, otros pensaban que debía convertirse en
        una escuela. La discusión duró hasta la noche, y al final nadie recordaba quién había
        hablado primero. Un niño propuso entonces que lo dejaran como estaba, porque allí dormían
        las golondrinas cada primavera, y todos se quedaron callados durante un buen rato.
    """,
    "Finnish": """
        Talven jälkeen järven jää oli ohut, ja kalastajat odottivat rannalla kevään ensimmäisiä
        lämpimiä päiviä. Vanha mies korjasi venettään hiljaa, eikä kukaan halunnut häiritä häntä.
        Lapset keräsivät kiviä ja heittelivät niitä veteen, kunnes aurinko laski metsän taakse.
        Yöllä satoi taas lunta, mutta aamulla se oli jo sulanut, ja ensimmäiset linnut lensivät
        etelästä kohti pohjoisen soita, joilla ne pesivät joka vuosi samoissa paikoissa.
    """,
}


def texts(*, seed: int = 0) -> dict[str, list[str]]:
    """Return texts of kinds that the verbalizer was not trained on."""
    rng = random.Random(seed)
    code = [
        inspect.getsource(module)[start : start + 500]
        for module in (textwrap, statistics, json.decoder, random)
        for start in range(2000, 8000, 1000)
    ]
    numbers = [
        rng.choice((", ", " ", "\n", "; ")).join(
            rng.choice((str(rng.randrange(10**6)), f"{rng.random():.4f}")) for _ in range(25)
        )
        for _ in range(24)
    ]
    passages = {name: " ".join(textwrap.dedent(text).split()) for name, text in _LANGUAGES.items()}
    languages = [
        text[start:].partition(" ")[2]
        for text in passages.values()
        for start in range(0, len(text) // 2, len(text) // 12)
    ]
    return {"code": code, "another language": languages, "numbers": numbers}


def vectors(
    model: Any, own: Sequence[str], layer: int, *, count: int = 100, seed: int = 0
) -> Mapping[str, Tensor]:
    """Return vectors of each kind, with text of the right kind as it is.

    Args:
        model: The target, an nnsight model.
        own: Texts of the right kind.
        layer: The verbalizer's block.
        count: The number of vectors of each kind.
        seed: Chooses positions and directions.
    """
    generator = torch.Generator().manual_seed(seed)
    found = {
        name: _read(model, each, (layer,), count, generator)[layer]
        for name, each in {"text of its kind": list(own), **texts(seed=seed)}.items()
    }
    residuals = found["text of its kind"]
    blocks = _read(model, own, BLOCKS, count, generator)
    found |= {f"block {number}": each for number, each in blocks.items()}
    order = torch.randperm(len(residuals), generator=generator)
    found["a difference"] = residuals - residuals[order].roll(1, 0)
    random_ = torch.randn(len(residuals), residuals.shape[-1], generator=generator)
    lengths = residuals.norm(dim=-1, keepdim=True)
    found["a random direction"] = random_ / random_.norm(dim=-1, keepdim=True) * lengths
    return found


def _read(
    model: Any, given: Sequence[str], layers: Sequence[int], count: int, generator: torch.Generator
) -> dict[int, Tensor]:
    """Read blocks at `count` positions, spread over the texts."""
    each = -(-count // len(given))
    rows: dict[int, list[Tensor]] = {layer: [] for layer in layers}
    for text in given:
        ids = model.tokenizer(text)["input_ids"][:112]
        at = FIRST + torch.randperm(max(1, len(ids) - FIRST), generator=generator)[:each]
        saved: dict[int, Any] = {}
        with torch.no_grad(), model.trace(torch.tensor([ids])):
            for layer in layers:
                saved[layer] = model.model.layers[layer].output[0].detach().float().save()
        for layer in layers:
            rows[layer].append(saved[layer][at[at < len(ids)]])
    return {layer: torch.cat(found)[:count] for layer, found in rows.items()}
