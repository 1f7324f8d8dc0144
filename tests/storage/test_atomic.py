"""Files and folders that are complete or absent, and what a failed write says."""

import errno
import os
import signal
from pathlib import Path

import pytest

from nnsight_nla.errors import NLAError, ReconstructionError
from nnsight_nla.storage import atomic
from nnsight_nla.storage.atomic import (
    atomic_file,
    atomic_folder,
    is_full,
    remove_leftovers,
    write_errors,
)
from tests.helpers.processes import run


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_appears_when_its_block_ends_and_replaces_what_was_there(tmp_path):
    path = tmp_path / "out.bin"
    path.write_bytes(b"old")
    with atomic_file(path) as file:
        file.write(b"new")
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"
    assert names(tmp_path) == ["out.bin"]


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, ValueError])
def test_an_interrupted_write_leaves_the_old_file_and_nothing_else(tmp_path, interruption):
    path = tmp_path / "out.bin"
    path.write_bytes(b"old")
    with pytest.raises(interruption), atomic_file(path) as file:
        file.write(b"new")
        raise interruption
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["out.bin"]


def test_two_writers_of_one_file_do_not_mix(tmp_path):
    path = tmp_path / "out.bin"
    with atomic_file(path) as first:
        first.write(b"first")
        with atomic_file(path) as second:
            second.write(b"second")
        assert path.read_bytes() == b"second"
    assert path.read_bytes() == b"first"


def test_what_a_killed_writer_left_is_removed_by_name(tmp_path):
    path = tmp_path / "out[1].bin"
    (tmp_path / "out[1].bin.tmp").write_text("the user's own")
    script = (
        "import os, signal, sys; from pathlib import Path\n"
        "from nnsight_nla.storage.atomic import atomic_file\n"
        "with atomic_file(Path(sys.argv[1])) as file:\n"
        "    file.write(b'some'); file.flush(); os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    killed = run(script, path)
    assert killed.returncode == -signal.SIGKILL
    assert len(names(tmp_path)) == 2
    assert not path.exists()
    with atomic_file(tmp_path / "other.bin") as other:
        remove_leftovers(path)
        other.write(b"kept")
    assert names(tmp_path) == ["other.bin", "out[1].bin.tmp"]


def test_a_folder_appears_when_its_block_ends_and_replaces_what_was_there(tmp_path):
    folder = tmp_path / "new" / "av"
    for content in ("first", "second"):
        with atomic_folder(folder) as part:
            (part / "weights").mkdir()
            (part / "weights" / content).write_text(content)
            assert part.parent == folder.parent
        assert names(folder / "weights") == [content]
        assert names(folder.parent) == ["av"]
    with pytest.raises(KeyboardInterrupt), atomic_folder(folder) as part:
        (part / "third").write_text("third")
        raise KeyboardInterrupt
    assert names(folder / "weights") == ["second"]
    assert names(folder.parent) == ["av"]


def test_a_folder_that_cannot_be_renamed_leaves_the_old_one_under_its_name(tmp_path, monkeypatch):
    folder = tmp_path / "av"
    folder.mkdir()
    (folder / "old").write_text("old")
    rename = Path.rename

    def refuse(self, target):
        if self.suffix == ".part":
            raise OSError(errno.EIO, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(NLAError, match=r"av cannot be written \(Input/output error\)"):
        with atomic_folder(folder) as part:
            (part / "new").write_text("new")
    assert names(tmp_path) == ["av"]
    assert names(folder) == ["old"]


def test_an_error_says_what_failed_and_what_to_do(tmp_path):
    path = tmp_path / "out.bin"
    full = f"The disk of {tmp_path} is full: out.bin could not be written. Free some space. Again."
    with pytest.raises(NLAError) as caught, write_errors(path, advice="Again."):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert str(caught.value) == full
    with pytest.raises(ReconstructionError) as caught:
        with write_errors(path, error=ReconstructionError):
            raise OSError(errno.EROFS, "Read-only file system")
    unchanged = "What was there before is unchanged."
    assert str(caught.value) == f"{path} cannot be written (Read-only file system). {unchanged}"
    with pytest.raises(NLAError, match=r"nowhere/out cannot be written \(No such file"):
        with atomic_file(tmp_path / "nowhere" / "out"):
            pass


def test_other_errors_pass_as_they_are(tmp_path):
    for error in (ValueError("a bug"), ReconstructionError("ours"), KeyboardInterrupt()):
        with pytest.raises(type(error)) as caught, write_errors(tmp_path / "out"):
            raise error
        assert caught.value is error


def test_an_error_without_a_number_is_a_full_disk_where_the_disk_is_full(tmp_path, monkeypatch):
    error = RuntimeError("PytorchStreamWriter failed")
    assert not is_full(error, tmp_path)
    assert not is_full(error, tmp_path / "nowhere")
    assert is_full(OSError(errno.EDQUOT, "Quota exceeded"), tmp_path)
    assert not is_full(OSError(errno.EIO, "Input/output error"), tmp_path)

    def fsync(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(NLAError, match="is full: out could not be written"):
        with write_errors(tmp_path / "out"):
            raise error
    assert list(tmp_path.iterdir()) == []


def test_a_file_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    path, synced = tmp_path / "out.bin", []
    fsync = os.fsync

    def spy(handle):
        synced.append(path.exists())
        fsync(handle)

    monkeypatch.setattr(atomic.os, "fsync", spy)
    with atomic_file(path) as file:
        file.write(b"new")
    assert synced == [False, True]  # The file, and then the folder that names it.
