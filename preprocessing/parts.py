"""The part patterns of a build: JSON, category -> part -> patterns of material and group names."""

from __future__ import annotations

import fnmatch
import re
from pathlib import Path
from typing import Any

from gsmae.errors import InputError
from gsmae.files import read_json

SHAPE = 'expected {"CATEGORY": {"PART": ["PATTERN", ...], ...}, ...}'
LONGEST = 500  # characters of a name or a pattern
Patterns = dict[str, dict[str, list[str]]]


def read_part_patterns(path: str | Path) -> Patterns:
    """Category -> part -> shell patterns, as `gsmae build --parts` takes them and `surface.part_labels` uses them.

    Raises InputError, naming the entry, for another shape, an empty or very long name, a category without a part, a
    part without a pattern, and a pattern that cannot be one.
    """
    tree = read_json(path)
    if not isinstance(tree, dict):
        raise InputError(path, f"is {_kind(tree)}, not a table of categories", SHAPE)
    for category, parts in tree.items():
        _name(path, category, "a category")
        where = f"'{category[:60]}'"
        if not isinstance(parts, dict) or not parts:
            raise InputError(path, f"{where} has {_kind(parts)}, not its parts", SHAPE)
        for part, patterns in parts.items():
            _name(path, part, f"a part of {where}")
            place = f"'{part[:60]}' of {where}"
            if not isinstance(patterns, list) or not patterns:
                raise InputError(path, f"{place} has {_kind(patterns)}, not a list of patterns", SHAPE)
            for pattern in patterns:
                _pattern(path, pattern, place)
    return tree


def _pattern(path: str | Path, pattern: Any, place: str) -> None:
    if not isinstance(pattern, str):
        raise InputError(path, f"{place} has {_kind(pattern)} where a pattern should be", SHAPE)
    _name(path, pattern, f"a pattern of {place}")
    try:
        re.compile(fnmatch.translate(pattern.lower()))
    except (re.error, OverflowError, RecursionError) as error:
        raise InputError(path, f"{place} has the pattern '{pattern[:60]}', which is none: {error}", SHAPE) from None


def _name(path: str | Path, name: str, what: str) -> None:
    if not name.strip() or not name.isprintable():
        raise InputError(path, f"{what} is empty or has characters that cannot be printed: {name[:60]!r}", SHAPE)
    if len(name) > LONGEST:
        raise InputError(path, f"{what} has {len(name)} characters: '{name[:60]}...'", f"at most {LONGEST}")


def _kind(value: Any) -> str:
    """What a JSON value is, in words."""
    if value in ({}, []):
        return "an empty table" if value == {} else "an empty list"
    words = {dict: "a table", list: "a list", str: "a text", bool: "true or false", type(None): "null"}
    return words.get(type(value), "a number")
