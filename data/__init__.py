"""Splats to shards to batches: what exists, which split it belongs to, and how it is served.

`SplatDataset` and `batches` are imported on first use, so that importing the package stays light.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

_PUBLIC = {"SplatDataset": "datasets", "batches": "streams"}

__all__ = ["SplatDataset", "batches"]

if TYPE_CHECKING:
    from .datasets import SplatDataset
    from .streams import batches


def __getattr__(name: str):
    if name in _PUBLIC:
        return getattr(import_module(f".{_PUBLIC[name]}", __name__), name)
    raise AttributeError(f"module 'data' has no attribute '{name}'")
