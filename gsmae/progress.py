"""Progress bars with an estimate, that fill neither a terminal nor a log file."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm

TERMINAL, LOG = 0.2, 10.0  # seconds between two drawings


def bar(what: str, unit: str, items: Iterable[Any] | None = None, **more: Any) -> tqdm:
    """A bar on standard error: redrawn five times a second on a terminal, every ten seconds in a log."""
    return tqdm(items, desc=what, unit=unit, mininterval=TERMINAL if sys.stderr.isatty() else LOG, **more)
