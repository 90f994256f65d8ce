"""Where an object is looked at from: training rigs by name, and views for validation and test that no rig has."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from gsmae.errors import GsmaeError, nearest_name
from gsmae.render import DISTANCE, FOV, intrinsics, look_at

GOLDEN_ANGLE = math.pi * (3 - math.sqrt(5))
PAPER_VIEWS = 72
PAPER_SEED = 42


@dataclass(frozen=True, eq=False)
class Cameras:
    """V pinhole cameras in the splats' frame; OpenCV axes: x right, y down, z forward.

    viewmats  [V, 4, 4] float32, world to camera
    Ks        [V, 3, 3] float32, in pixels; the centre of pixel (i, j) is (i + 0.5, j + 0.5)
    """

    viewmats: np.ndarray
    Ks: np.ndarray
    width: int
    height: int

    def __len__(self) -> int:
        return len(self.viewmats)

    def __getitem__(self, views: slice | np.ndarray) -> Cameras:
        return Cameras(self.viewmats[views], self.Ks[views], self.width, self.height)

    @property
    def positions(self) -> np.ndarray:
        """Camera centres in the world, [V, 3] float32."""
        rotation, translation = self.viewmats[:, :3, :3], self.viewmats[:, :3, 3]
        return -(rotation.transpose(0, 2, 1) @ translation[..., None])[..., 0]


def paper(count: int = PAPER_VIEWS, lowest: float = 0.0, highest: float = 45.0) -> np.ndarray:
    """Directions of the paper's rig, [count, 3] unit: even azimuths, random elevations, the same for every object.

    lowest, highest  elevation in degrees. The released render scripts turn a camera at (0, -1, 1) by angles drawn
    with seed 42: 0..45 degrees for ShapeNet, -90..90 for ModelNet. The seed is theirs, the generator is numpy's, so
    the single elevations differ. Their object has its longest side 1 and its camera the distance sqrt(2); ours fills
    the unit sphere, so the camera stands where that sphere just fits (`gsmae.render.DISTANCE`).
    """
    azimuths = np.arange(count) * (2 * math.pi / count)
    elevations = np.radians(np.random.default_rng(PAPER_SEED).uniform(lowest, highest, count))
    return _directions(azimuths, np.sin(elevations))


def sphere(count: int, lowest: float = -90.0, highest: float = 90.0, seed: int | None = None) -> np.ndarray:
    """Directions spread evenly over the sphere, or over a band of elevations in degrees: a Fibonacci lattice.

    seed  turns and shifts the lattice, so that two seeds share no direction; None is the plain one. With 4 and 10, 4
          and 8 views stay more than 4 degrees away from every rig of 72
    """
    turn, shift = (0.0, 0.5) if seed is None else np.random.default_rng(seed).random(2) * (2 * math.pi, 1)
    number = np.arange(count)
    low, high = math.sin(math.radians(lowest)), math.sin(math.radians(highest))
    return _directions(turn + number * GOLDEN_ANGLE, high + (low - high) * (number + shift) / count)


# name -> (number of views) -> directions [V, 3]
RIGS: dict[str, Callable[[int], np.ndarray]] = {
    "sphere": sphere,
    "paper": paper,
    "paper_modelnet": lambda count: paper(count, -90.0, 90.0),
}


def train_cameras(rig: str = "sphere", count: int = PAPER_VIEWS, size: int = 400) -> Cameras:
    """The cameras of a rig, `size` pixels wide and high; GsmaeError for a name that is not in RIGS."""
    if rig not in RIGS:
        raise GsmaeError(f"no camera rig '{rig}' ({nearest_name(rig, RIGS)})")
    return _cameras(RIGS[rig](count), size)


def val_cameras(count: int = 4, size: int = 400, lowest: float = -90.0, highest: float = 90.0) -> Cameras:
    """Cameras for choosing: from directions that neither the rigs nor `test_cameras` use."""
    return _cameras(sphere(count, lowest, highest, seed=4), size)


def test_cameras(count: int = 8, size: int = 400, lowest: float = -90.0, highest: float = 90.0) -> Cameras:
    """Cameras for measuring: from directions that neither the rigs nor `val_cameras` use."""
    return _cameras(sphere(count, lowest, highest, seed=10), size)


def _directions(azimuths: np.ndarray, heights: np.ndarray) -> np.ndarray:
    """Unit vectors [V, 3] from azimuths in radians and z coordinates."""
    level = np.sqrt(np.clip(1 - heights**2, 0, 1))
    return np.stack([level * np.cos(azimuths), level * np.sin(azimuths), heights], axis=1)


def _cameras(directions: np.ndarray, size: int) -> Cameras:
    """Cameras that look at the origin along `directions` [V, 3], from where the unit sphere fits the picture."""
    viewmats = look_at(torch.from_numpy(directions * DISTANCE)).float().numpy()
    return Cameras(viewmats, intrinsics(len(directions), size, size, FOV).numpy(), size, size)
