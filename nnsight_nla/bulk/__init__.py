"""Data sets: explanations (`run`), activations (`extract`) and labels (`label`) over many rows.

Every one of them goes on where it was interrupted, and two machines may share an input::

    from nnsight_nla import bulk

    bulk.run(nla, "corpus.jsonl", "out.parquet", model=model, positions="every:10")

Read in this order: `sources` (what is read), `places` (at which tokens), `residuals` (the target),
`records` (the rows), `work` (the loop), `parts` (what survives), `whole` (the finished file).
"""

from .extract import extract
from .finished_file import merge
from .label import label
from .pipeline import Report
from .run import run
from .sources import open_source

__all__ = ["Report", "extract", "label", "merge", "open_source", "run"]
