"""A full disk leaves the old file of everything that writes one, and no other."""

import subprocess

import pytest

from nnsight_nla import NLAError
from nnsight_nla.reading.records import Reading, TokenReading
from nnsight_nla.storage.atomic import atomic_file

LONG = Reading(
    tuple(TokenReading(i, f"token {i}", "prompt", f"text {i * 7919} " * 9) for i in range(2000)),
    "a target", "a verbalizer", 3,
)  # fmt: skip


@pytest.fixture
def full_disk(tmp_path):
    """A file system with room for 16 KiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", str(disk)]
    mounted = subprocess.run(command, capture_output=True, text=True, check=False)
    if mounted.returncode:
        pytest.skip(f"a file system cannot be mounted here: {mounted.stderr.strip()}")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.parametrize("write", [Reading.to_parquet, Reading.to_html])
def test_a_reading_is_written_whole_or_not_at_all(full_disk, write):
    path = full_disk / "out"
    path.write_bytes(b"the old file")
    with pytest.raises(NLAError, match=r"The disk of .*disk is full: out could not be written"):
        write(LONG, path)
    assert path.read_bytes() == b"the old file"
    assert list(full_disk.iterdir()) == [path]


def test_a_link_stays_and_its_file_is_replaced(tmp_path):
    (tmp_path / "data").mkdir()
    held, link = tmp_path / "data" / "held", tmp_path / "link"
    held.write_bytes(b"old")
    link.symlink_to(held)
    with atomic_file(link) as file:
        file.write(b"new")
    assert link.is_symlink()
    assert held.read_bytes() == b"new"
    assert sorted(each.name for each in tmp_path.rglob("*")) == ["data", "held", "link"]
