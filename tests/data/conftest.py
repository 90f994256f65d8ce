"""Small build folders written as `gsmae build` writes them, with seeded splats."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from gsmae.files import sha256
from gsmae.gaussians import Gaussians
from gsmae.ply import write_ply

PARTS = {"chair": ["back", "leg", "seat"], "table": ["leg", "top"]}


def splat(seed: int, count: int = 40, degree: int = 0) -> Gaussians:
    """A seeded splat inside the unit ball with the value ranges of fitted ones."""
    g = torch.Generator().manual_seed(seed)
    means = torch.rand(count, 3, generator=g) * 1.1 - 0.55
    quats = torch.randn(count, 4, generator=g)
    logs = torch.rand(count, 3, generator=g) * 4 - 6
    logits = torch.randn(count, generator=g) * 3
    sh = torch.randn(count, (degree + 1) ** 2, 3, generator=g) * 0.5
    return Gaussians(means, quats, logs, logits, sh)


class MakeBuild:
    """Writes objects into a build folder; each call of `add` is one finished or failed object."""

    def __init__(self, path: Path, config_hash: str = "c0ffee", parts: dict | None = PARTS):
        self.path, self.parts, self.config_hash = path, parts or {}, config_hash
        path.mkdir(parents=True)
        head = {"schema": 1, "frame": "z-up: x, -z, y", "source": "folder", "config_hash": config_hash, "seed": 3}
        (path / "build.json").write_text(json.dumps(head))
        if parts:
            (path / "parts.json").write_text(json.dumps(parts))

    def add(self, uid: str, split: str = "train", seed: int | None = None, count: int = 40, degree: int = 0, **record):
        category = uid.split("/")[0]
        seed = sum(map(ord, uid)) if seed is None else seed
        file = self.path / "splats" / f"{uid}.ply"
        write_ply(file, splat(seed, count, degree))
        rng = np.random.default_rng(seed)
        points = self.path / "points" / f"{uid}.npz"
        points.parent.mkdir(parents=True, exist_ok=True)
        n, names = 20 + seed % 7, self.parts.get(category, [])
        np.savez_compressed(
            points,
            points=rng.uniform(-0.5, 0.5, (n, 3)).astype(np.float32),
            normals=rng.normal(size=(n, 3)).astype(np.float32),
            colors=rng.integers(0, 255, (n, 3)).astype(np.uint8),
            parts=rng.integers(-1, max(len(names), 0), n).astype(np.int16),
        )
        values = {
            "schema": 1, "uid": uid, "category": category, "split": split, "status": "done", "reason": "",
            "stage": "", "mesh": f"{uid}.obj", "mesh_sha256": f"mesh of {uid}", "gaussians": count, "psnr": 30.0,
            "config_hash": self.config_hash, "sha256": sha256(file), "bytes": file.stat().st_size,
            "part_names": list(names), "warnings": [], "a_later_field": 1,
        }  # fmt: skip
        self.record(uid, {**values, **record})
        return self

    def fail(self, uid: str, reason: str = "no faces", stage: str = "load"):
        values = {"schema": 1, "uid": uid, "category": uid.split("/")[0], "split": "train", "status": "failed"}
        self.record(uid, {**values, "reason": reason, "stage": stage, "gaussians": 0, "psnr": None})
        return self

    def record(self, uid: str, values: dict) -> None:
        file = self.path / "records" / f"{uid}.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(values))


@pytest.fixture
def make_build(tmp_path: Path) -> Callable[..., MakeBuild]:
    """make_build(name) -> an empty build folder to add objects to."""
    return lambda name="build", **options: MakeBuild(tmp_path / name, **options)


@pytest.fixture
def make_splat() -> Callable[..., Gaussians]:
    """make_splat(seed, count, degree) -> Gaussians."""
    return splat


@pytest.fixture(scope="session")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pack of 24 chairs and tables, 18 for training (of which 2 carved for validation) and 6 for testing."""
    from data.shards import pack

    build = MakeBuild(tmp_path_factory.mktemp("build") / "b")
    for category in ("chair", "table"):
        for i in range(12):
            build.add(f"{category}/{i:04d}", "train" if i < 9 else "test", count=30 + 5 * i)
    out = tmp_path_factory.mktemp("pack") / "p"
    pack(build.path, out, objects_per_shard=7)
    return out


@pytest.fixture(scope="session")
def lettered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pack of six classes, a to f, of 9 objects for training (1 of them carved) and 6 for testing; g has 2 and 6."""
    from data.shards import pack

    build = MakeBuild(tmp_path_factory.mktemp("lettered") / "b", parts=None)
    for name in "abcdef":
        for i in range(15):
            build.add(f"{name}/{i:02d}", "train" if i < 9 else "test", count=12)
    for i in range(8):
        build.add(f"g/{i:02d}", "train" if i < 2 else "test", count=12)
    out = build.path.with_name("p")
    pack(build.path, out)
    return out
