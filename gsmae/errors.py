"""Errors that speak to the person who can mend them."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path


class GsmaeError(Exception):
    """Anything this project raises on purpose; the command line prints it without a traceback."""


class InputError(GsmaeError):
    """Something outside the program is wrong: which file, what about it, and how to mend it.

    path   the file or folder at fault
    cause  what is wrong with it
    cure   what to do; may be empty where nothing general can be said
    """

    def __init__(self, path: str | Path, cause: str, cure: str = ""):
        self.path, self.cause, self.cure = str(path), cause, cure
        super().__init__(printable(f"{path}: {cause}" + (f" ({cure})" if cure else "")))

    def __reduce__(self):  # Exception's own would call __init__ with the one message
        return type(self), (self.path, self.cause, self.cure)


def printable(text: str) -> str:
    """The text with control characters (and what is no character) spelt out: names come from strangers' files."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)


def nearest_name(name: str, known: Iterable[str]) -> str:
    """A hint such as "did you mean 'depth'?", or the list of known names where none is near."""
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f"did you mean '{near[0]}'?" if near else f"known: {', '.join(known)}"
