"""Seeded damage: bytes, text, numbers in text, and JSON trees, changed as accidents and attackers change them."""

from __future__ import annotations

import json
import random
import re
import struct
from collections.abc import Callable
from copy import deepcopy
from typing import Any

WHOLE = (0, 1, 2, 3, 255, 256, 65535, 65536, 2**31 - 1, 2**31, 2**32 - 1, 10**10, 2**53, 2**63 - 1, 2**63, 2**64 - 1)
WORDS = (
    "0", "-0", "-1", "1e308", "1e309", "-1e308", "1e-320", "nan", "inf", "-inf", "10000000000",
    "9999999999999999999999",
    "2147483648", "4294967296", "1e15", "3.5e38", "", " ", "\0", "\\", "/", "//", "#", "\"", "..", "../..",
    "/etc/passwd", "²", "٣", "1_0", "0x10", "True", "null", "é", "\x85", "\u2028", "\x1b[2J", "9" * 400,
)  # fmt: skip
VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2, 7, 0.5, -0.5, 1e308, 10**10, 2**31, 2**63, 2**64, 10**400,
    float("nan"), float("inf"),
    "", "a", "..", "/etc/passwd", "\0", "x" * 1000, [], {}, [[]], [None], {"a": 1}, [0] * 17, "data:,", "1",
)  # fmt: skip
NUMBER = re.compile(rb"[-+]?\d+(?:\.\d*)?(?:[eE][-+]?\d+)?")
TOKEN = re.compile(rb"[^\s,/<>\[\]{}\"=]+")


def mutated(content: bytes, others: list[bytes], random: random.Random, text: bool) -> bytes:
    """`content` after one to four changes; `others` are good files of the same kind, to splice from."""
    for _ in range(random.choice((1, 1, 1, 2, 2, 3, 4))):
        kinds = (*BYTES, *TEXT, *TEXT) if text else BYTES
        content = random.choice(kinds)(content, others, random)
    return content


def mutated_json(content: bytes, others: list[bytes], random: random.Random) -> bytes:
    """JSON with one to three of its values, keys or lengths changed; every fifth time its bytes are."""
    if random.random() < 0.2:
        return mutated(content, others, random, text=True)
    try:
        tree = json.loads(content)
    except (ValueError, RecursionError):
        return mutated(content, others, random, text=True)
    for _ in range(random.choice((1, 1, 2, 3))):
        tree = _changed_tree(tree, random)
    return json.dumps(tree).encode()


def _places(tree: Any) -> list[tuple[Any, Any]]:
    """(container, key) of every value in a tree."""
    found, stack = [], [tree]
    while stack:
        here = stack.pop()
        items = here.items() if isinstance(here, dict) else enumerate(here) if isinstance(here, list) else ()
        for key, value in items:
            found.append((here, key))
            stack.append(value)
    return found


def _changed_tree(tree: Any, random: random.Random) -> Any:
    places = _places(tree)
    if not places or random.random() < 0.01:
        return deepcopy(random.choice(VALUES))
    home, key = random.choice(places)
    act = random.randrange(7)
    if act <= 2:
        home[key] = deepcopy(random.choice(VALUES))
    elif act == 3:
        del home[key]
    elif act == 4 and isinstance(home, list):
        home[key:key] = [home[key]] * random.choice((1, 2, 50))
    elif act == 4:
        home[str(random.choice(VALUES))[:50]] = home[key]
    elif act == 5:
        other, name = random.choice(places)
        home[key] = json.loads(
            json.dumps(other[name] if name in (other if isinstance(other, dict) else range(len(other))) else None)
        )
    elif isinstance(home[key], int | float) and not isinstance(home[key], bool):
        n = home[key]
        third = n / 3 if abs(n) < 2**1000 else n // 3  # a float cannot hold it
        home[key] = random.choice((n + 1, n - 1, -n, n * 1000, third))
    else:
        home[key] = [home[key]]
    return tree


def _flip(content: bytes, others: list[bytes], random: random.Random) -> bytes:
    out = bytearray(content)
    for _ in range(random.choice((1, 1, 4, 30))):
        if out:
            out[random.randrange(len(out))] = random.randrange(256)
    return bytes(out)


def _flip_head(content: bytes, others: list[bytes], random: random.Random) -> bytes:
    out = bytearray(content)
    for _ in range(random.choice((1, 2, 4))):
        if out:
            out[random.randrange(min(len(out), 200))] ^= 1 << random.randrange(8)
    return bytes(out)


def _whole(content: bytes, others: list[bytes], random: random.Random) -> bytes:
    """An integer of 1 to 8 bytes somewhere, or near either end, where counts and tables lie."""
    form, value = random.choice("BHIQ"), random.choice(WHOLE)
    raw = struct.pack(random.choice("<>") + form, value % (1 << 8 * struct.calcsize(form)))
    last = max(len(content) - len(raw), 0)
    place = random.choice(
        (random.randint(0, last), random.randint(0, min(last, 256)), max(last - random.randint(0, 256), 0))
    )
    return content[:place] + raw + content[place + len(raw) :]


def _cut(content: bytes, others: list[bytes], random: random.Random) -> bytes:
    return content[: random.randint(0, len(content))]


def _delete(content: bytes, others: list[bytes], random: random.Random) -> bytes:
    start = random.randint(0, len(content))
    return content[:start] + content[start + random.choice((1, 4, 16, 100)) :]


def _insert(content: bytes, others: list[bytes], random: random.Random) -> bytes:
    start = random.randint(0, len(content))
    piece = random.choice(
        (b"\0" * 8, random.randbytes(8), b"\xff" * 16, content[start : start + 64] * 8, b"\n", b" " * 100)
    )
    return content[:start] + piece + content[start:]


def _splice(content: bytes, others: list[bytes], random: random.Random) -> bytes:
    other = random.choice(others)
    return content[: random.randint(0, len(content))] + other[random.randint(0, len(other)) :]


def _swap(content: bytes, others: list[bytes], random: random.Random) -> bytes:
    a, b, c = sorted(random.randint(0, len(content)) for _ in range(3))
    return content[:a] + content[b:c] + content[a:b] + content[c:]


def _number(content: bytes, others: list[bytes], random: random.Random) -> bytes:
    """A number of the text becomes another."""
    found = list(NUMBER.finditer(content[:200_000]))
    if not found:
        return content
    for match in sorted(random.sample(found, min(random.choice((1, 1, 3, 40)), len(found))), key=lambda m: -m.start()):
        new = random.choice((random.choice(WORDS), str(random.choice(WHOLE)), str(random.randint(-5, 30)))).encode()
        content = content[: match.start()] + new + content[match.end() :]
    return content


def _word(content: bytes, others: list[bytes], random: random.Random) -> bytes:
    """A word of the text is replaced by another of it or of another file, or doubled, or left out."""
    found = list(TOKEN.finditer(content[:200_000]))
    if not found:
        return content
    match, source = random.choice(found), random.choice(others)[:200_000]
    words = TOKEN.findall(source) or [b""]
    new = random.choice(
        (random.choice(words), random.choice(WORDS).encode(), match.group() + b" " + match.group(), b"")
    )
    return content[: match.start()] + new + content[match.end() :]


def _line(content: bytes, others: list[bytes], random: random.Random) -> bytes:
    """A line goes, comes again, comes from another file, or changes its place."""
    lines = content.split(b"\n")
    place, act = random.randrange(len(lines)), random.randrange(4)
    line = lines[place]
    if act == 0:
        del lines[place]
    elif act == 1:
        lines[place:place] = [line] * random.choice((1, 2, 200))
    elif act == 2:
        lines.insert(place, random.choice(random.choice(others).split(b"\n")))
    else:
        del lines[place]
        lines.insert(random.randint(0, len(lines)), line)
    return b"\n".join(lines)


Mutation = Callable[[bytes, list[bytes], random.Random], bytes]
BYTES: tuple[Mutation, ...] = (_flip, _flip_head, _whole, _whole, _cut, _delete, _insert, _splice, _swap)
TEXT: tuple[Mutation, ...] = (_number, _number, _word, _word, _line)
