"""Collect the corpus: the passages that the model wrote, and those of the packaged books."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path

from .packaged_texts import packaged_passages
from .sources import is_held_out, subject_of

PER_KIND, PER_HELD_OUT = 450, 60
"""Passages of each kind of book, to train on and held out."""
FRAGMENTS = 0.4
"""The share of passages of which the end is a document of its own, so that some texts are short."""


def write_corpus(folder: Path) -> None:
    """Write ``folder/train.jsonl`` and ``folder/held_out.jsonl``: id and text of each document.

    A passage of the model that is short, says nothing of its subject or falls into repetition is
    left out.
    """
    rng = random.Random(0)
    written = [
        (row["id"], re.sub(r"\s*\n\s*", "\n", row["text"]).strip())
        for file in sorted(folder.glob("passages.*.jsonl"))
        for row in map(json.loads, file.open())
    ]
    kept = [(name, text) for name, text in written if _is_usable(name, text)]
    documents = kept + packaged_passages(folder, PER_KIND, PER_HELD_OUT)
    ends = [(f"{name}-end", _end(text, rng)) for name, text in documents]
    documents += [(name, text) for name, text in ends if text and rng.random() < FRAGMENTS]
    rng.shuffle(documents)
    for name, held_out in (("train", False), ("held_out", True)):
        rows = [{"id": n, "text": t} for n, t in documents if is_held_out(n) == held_out]
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(lines, "utf-8")
    print(f"{len(documents)} documents; of {len(written)} written passages {len(kept)} are kept")


def _end(text: str, rng: random.Random) -> str | None:
    """Return the end of a passage from one of its sentences on; ``None`` if it has one only."""
    starts = [match.end() for match in re.finditer(r"[.!?]\s+(?=[A-Z])", text)]
    return text[rng.choice(starts) :] if starts else None


def _is_usable(name: str, text: str) -> bool:
    words = re.findall(r"[a-z]+", text.lower())
    stem = max(re.findall(r"[a-z]+", subject_of(name).lower()), key=len)[:4]
    trigrams = set(zip(words, words[1:], words[2:], strict=False))
    return (
        text.isascii()
        and len(words) >= 45
        and any(word.startswith(stem) for word in words)
        and len(trigrams) > 0.85 * (len(words) - 2)
    )
