"""One real point cloud of a collection."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Scan:
    """One point cloud: its name and split, what errors call it, and how it is read.

    read  -> [P, 3] float32, z up; InputError when it is broken
    """

    uid: str
    split: str
    source: str
    read: Callable[[], np.ndarray]


def z_up(points: np.ndarray) -> np.ndarray:
    """Points of a y-up collection in our frame: (x, y, z) -> (x, -z, y), [P, 3] float32."""
    return np.stack([points[:, 0], -points[:, 2], points[:, 1]], axis=1).astype(np.float32)
