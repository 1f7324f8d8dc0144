"""A file of the tiny world's vectors, and settings under which a step takes a third of a second."""

from pathlib import Path

import pytest

from nnsight_nla import tiny
from nnsight_nla.training import RLSettings, RLWatching, rl
from tests.helpers.tiny_rows import tiny_rows, write_rows

HELD_OUT = 0.25
SETTINGS = RLSettings(
    steps=4, prompts=4, draws=4, max_new_tokens=48, length_margin=8, av_rate=1e-3, ar_rate=1e-3,
    batch_size=16,
)  # fmt: skip
WATCHING = RLWatching(every=2, rows=6)
AV, AR = tiny.paths()["av"], tiny.paths()["ar"]


@pytest.fixture(scope="session")
def rows(pair, tmp_path_factory) -> Path:
    """Vectors at six positions of each of 20 documents, with texts and labels."""
    found = tiny_rows(pair[0], documents=20, per_document=6)
    return write_rows(found, tmp_path_factory.mktemp("rl") / "rows.parquet")


@pytest.fixture(scope="session")
def trained(rows):
    """A function that trains the tiny pair; settings and options may be changed."""

    def run(out, av=AV, ar=AR, watching=WATCHING, rows=rows, **changes):
        options = {
            name: changes.pop(name)
            for name in ("rewards", "held_out", "report", "dtype", "save_dtype", "vllm")
            if name in changes
        }
        settings = RLSettings(**{**vars(SETTINGS), **changes})
        return rl(
            av, rows, ar=ar, out=out, settings=settings, watching=watching,
            **{"held_out": HELD_OUT, **options},
        )  # fmt: skip

    return run
