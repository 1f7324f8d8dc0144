"""The folder of finished chunks."""

from contextlib import suppress
from pathlib import Path

import pyarrow as pa

from nnsight_nla.bulk.chunk_store import ChunkStore


def test_a_kill_in_the_middle_of_the_removal_leaves_a_folder_that_goes_with_the_next_run(
    tmp_path, monkeypatch
):
    """Whichever file is the last that is deleted before the kill."""
    unlink = Path.unlink
    for survivors in range(5):
        store = ChunkStore(tmp_path / f"{survivors}.parquet")
        with store.open({"a": 1}):
            for number in range(2):
                store.write(number, [pa.table({"x": [number]})])
        left = len(list(store.folder.iterdir())) - survivors

        def killed(self, missing_ok=False):
            nonlocal left
            if left <= 0:
                raise KeyboardInterrupt
            left -= 1
            unlink(self, missing_ok)

        with monkeypatch.context() as patch, suppress(KeyboardInterrupt):
            patch.setattr(Path, "unlink", killed)
            store.remove()
        store.remove()
        assert not store.folder.exists()
