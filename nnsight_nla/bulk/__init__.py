"""Process data sets: explain them (`run`), extract activations (`extract`), label them (`label`).

Each function resumes after an interruption, and several machines can share one input::

    from nnsight_nla import bulk

    bulk.run(nla, "corpus.jsonl", "out.parquet", model=model, positions="every:10")

Read the files in this order: `sources` (the input), `token_selection` (which tokens), `residuals`
(the target), `records` (the rows), `pipeline` (the loop), `chunk_store` (what an interruption
leaves), `finished_file` (the output).
"""

from .extract import extract
from .finished_file import merge
from .label import label
from .pipeline import Report
from .run import run
from .sources import open_source

__all__ = ["Report", "extract", "label", "merge", "open_source", "run"]
