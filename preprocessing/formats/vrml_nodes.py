"""The syntax of VRML 2 (VRML97): text -> nodes with fields, whatever they mean."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gsmae.errors import InputError

from .raw import numbers

# comments, strings, arrays of numbers as one token, brackets, words
TOKEN = re.compile(r'#[^\n\r]*|"(?:[^"\\]|\\.)*(?:"|\\?\Z)|\[[\s,\d.eE+\-]*\]|[\[\]{}]|[^\s,\[\]{}"#]+', re.DOTALL)
MAX_DEPTH = 100  # nodes inside nodes


@dataclass(frozen=True, eq=False)
class Node:
    """A node: its type, its DEF name, and each field as a list of words, bracketed arrays and nodes."""

    kind: str
    name: str
    fields: dict[str, list[Any]]

    def node(self, field: str) -> Node | None:
        """The node in a field, or None."""
        return next((value for value in self.fields.get(field, []) if isinstance(value, Node)), None)

    def nodes(self, field: str) -> list[Node]:
        """The nodes in a field."""
        return [value for value in self.fields.get(field, []) if isinstance(value, Node)]

    def values(self, path: Path, field: str, dtype: type, width: int = 1) -> np.ndarray:
        """The numbers in a field, [n, width]; none where it is absent. InputError where they are not such numbers."""
        words = " ".join(map(str, self.fields.get(field, []))).replace(",", " ").strip("[] ").split()
        if len(words) % width:
            raise InputError(path, f"{field} has {len(words)} numbers where {width} belong together", "it is damaged")
        return numbers(path, field, words, dtype).reshape(-1, width)

    def vector(self, path: Path, field: str, *default: float) -> np.ndarray:
        """The few numbers in a field, or the default's."""
        found = self.values(path, field, np.float64, len(default))
        return found[0] if len(found) else np.array(default, dtype=np.float64)


def parse(path: Path, text: str) -> list[Node]:
    """The nodes at the top of a file, those named by USE put in their places.

    Fields are told from nodes by their first letter, as all standard nodes have it, so that no node type need be
    known. Raises InputError for prototypes, a USE before its DEF, and text that ends inside a node.
    """
    return _Parser(path, [word for word in TOKEN.findall(text) if word[0] != "#"]).top()


class _Parser:
    def __init__(self, path: Path, words: list[str]):
        self.path, self.words, self.place = path, words, 0
        self.named: dict[str, Node] = {}

    def top(self) -> list[Node]:
        out = []
        while self.place < len(self.words):
            if self.words[self.place] == "ROUTE":  # ROUTE a.b TO c.d, which moves things; it may stand in nodes, too
                self.place += 4
            else:
                out.append(self.node(0))
        return out

    @property
    def ahead(self) -> str:
        if self.place >= len(self.words):
            raise InputError(self.path, "ends inside a node", "the file is truncated")
        return self.words[self.place]

    def take(self) -> str:
        word = self.ahead
        self.place += 1
        return word

    def node(self, depth: int) -> Node:
        if depth > MAX_DEPTH:
            raise InputError(self.path, f"has more than {MAX_DEPTH} nodes inside nodes", "simplify the scene")
        kind, name = self.take(), ""
        if kind in ("PROTO", "EXTERNPROTO"):
            raise InputError(self.path, "prototypes (PROTO) are not read", "export it as plain VRML 2")
        if kind == "USE":
            name = self.take()
            if name not in self.named:
                raise InputError(self.path, f"USE of {name[:60]}, which is not defined before", "the file is damaged")
            return self.named[name]
        if kind == "DEF":
            name, kind = self.take(), self.take()
        if not kind[0].isalpha() or self.take() != "{":
            raise InputError(self.path, f"'{kind[:60]}' stands where a node should be", "the file is damaged")
        fields: dict[str, list[Any]] = {}
        while self.ahead != "}":
            field = self.take()
            if field == "ROUTE":
                self.place += 3
            else:
                fields[field] = list(self.value(depth + 1))
        self.place += 1
        node = Node(kind, name, fields)
        if name:
            self.named[name] = node
        return node

    def value(self, depth: int) -> Iterator[Any]:
        """A node, a list, or numbers, strings and truth values up to the next field."""
        if self.ahead == "[":
            self.place += 1
            while self.ahead != "]":
                yield self.node(depth) if self.ahead[0].isalpha() else self.take()
            self.place += 1
        elif self.ahead[0] == "[":
            yield self.take()
        elif self.ahead[0].isupper() and self.ahead not in ("TRUE", "FALSE", "NULL"):
            yield self.node(depth)
        else:
            while self.ahead in ("TRUE", "FALSE", "NULL") or self.ahead[0] in '+-.0123456789"':
                yield self.take()
