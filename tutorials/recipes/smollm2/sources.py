"""Name every source of the corpus, with its licence, and say which are held out of all training.

A *source* is one kind of request to the model, the requests about one subject, or one book. The
figures are measured on sources of which no text was trained on.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

SUBJECTS = tuple((Path(__file__).parent / "subjects.txt").read_text("utf-8").split("\n")[:-1])
"""What the model was asked to write about; the label of such a text names it."""
HELD_OUT_SUBJECTS = SUBJECTS[7::12]
"""Subjects of which no text is trained on: the verbalizer never saw their names in a label."""


@dataclass(frozen=True)
class Form:
    """A kind of request to the model."""

    name: str
    """Its name in the ids of documents."""
    request: str
    """What the user says, with ``{}`` for the subject."""
    held_out: bool = False
    """Whether no text of this form is trained on."""


FORMS = (
    Form("passage", "Write a short passage about {}."),
    Form("child", "Explain {} to a child in one paragraph."),
    Form("story", "Write the beginning of a short story about {}."),
    Form("news", "Write a news report about {}."),
    Form("history", "Write a paragraph about the history of {}."),
    Form("letter", "Write a letter to a friend about {}."),
    Form("diary", "Write a diary entry about {}."),
    Form("advice", "Give practical advice about {}."),
    Form("opinion", "Write a paragraph with a strong opinion about {}."),
    Form("speech", "Write a short speech about {}.", held_out=True),
    Form("conversation", "Write a conversation between two people about {}.", held_out=True),
)
"""The kinds of requests. Their texts are the model's own, under its licence (Apache-2.0)."""


@dataclass(frozen=True)
class Package:
    """Texts that Debian packages."""

    name: str
    """The name of the package."""
    subject: str
    """What the label of its texts names."""
    licence: str
    """The licence of the texts."""
    held_out: tuple[str, ...]
    """The books, or first letters of entries, that are not trained on."""


PACKAGES = {
    "austen": Package(
        "r-cran-janeaustenr", "an English novel", "public domain (Jane Austen)", ("emma",)
    ),
    "bible": Package(
        "sword-text-web",
        "the Bible",
        "public domain (World English Bible)",
        ("Ruth", "Job", "Luke", "Acts"),
    ),
    "jargon": Package(
        "jargon-text", "hacker slang", "public domain (the Jargon File)", tuple("mnop")
    ),
}
"""Books whose text may be used for anything, and from which weights may be derived."""


def is_held_out(document: str) -> bool:
    """Return whether a document, by its id, is of a source that is not trained on.

    >>> is_held_out("speech/bees/0"), is_held_out("letter/bees/0"), is_held_out("austen/emma/17")
    (True, False, True)
    """
    kind, source, _ = document.split("/")
    if kind in PACKAGES:
        return source in PACKAGES[kind].held_out
    return source in HELD_OUT_SUBJECTS or any(f.held_out for f in FORMS if f.name == kind)


def subject_of(document: str) -> str:
    """Return what a document, by its id, is about.

    >>> subject_of("letter/bees/0"), subject_of("jargon/m/12")
    ('bees', 'hacker slang')
    """
    kind, source, _ = document.split("/")
    return PACKAGES[kind].subject if kind in PACKAGES else source
