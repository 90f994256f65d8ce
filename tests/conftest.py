"""What many tests share."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from gsmae.gaussians import Gaussians
from gsmae.ops.native import library

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def one_thread():
    """Small problems: waiting for a second thread costs more than it saves, most of all on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    if library.available():
        library.set_threads(1)
    yield
    torch.set_num_threads(threads)


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
