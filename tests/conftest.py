"""What many tests share."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from gsmae.gaussians import Gaussians

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def examples() -> Path:
    """The real meshes that ship with the project."""
    return ROOT / "examples"


@pytest.fixture
def make_splat():
    """A seeded splat of N Gaussians on a bumpy shell: make_splat(n, degree=0, seed=0)."""

    def make(n: int, degree: int = 0, seed: int = 0) -> Gaussians:
        g = torch.Generator().manual_seed(seed)
        directions = torch.nn.functional.normalize(torch.randn(n, 3, generator=g), dim=1)
        return Gaussians(
            directions * (0.7 + 0.3 * torch.rand(n, 1, generator=g)),
            torch.randn(n, 4, generator=g),
            torch.randn(n, 3, generator=g) * 0.5 - 4,
            torch.randn(n, generator=g) * 2,
            torch.randn(n, (degree + 1) ** 2, 3, generator=g) * 0.4,
        )

    return make
