"""Objects that cost nothing: a collection of small files, and a fit that makes bytes out of a name, through the same
commit as real ones. For trials of everything that is not the fit.

Where an object's name says so it behaves badly: `hang` sleeps, `hog` takes 3 GB, `crash` ends its process, `bad` raises
until its file says `mended`.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from gsmae.files import read_json, sha256, write_aside
from preprocessing.profiles import BuildConfig
from preprocessing.sources import MeshItem

CONFIG = BuildConfig()
NAMES = ["x", "y", "z", "nx", "ny", "nz", "f_dc_0", "f_dc_1", "f_dc_2", "opacity", "scale_0", "scale_1", "scale_2"]
NAMES += ["rot_0", "rot_1", "rot_2", "rot_3"]
MESH = "v 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 3\n"


def collection(root: Path, objects: int, categories: int = 10) -> Path:
    """A folder of so many meshes, a triangle each."""
    for i in range(objects):
        path = root / f"class{i % categories}" / f"{i:05d}.obj"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(MESH)
    return root


def splat(uid: str, gaussians: int = 64) -> bytes:
    """The splat of a stub: a whole 3DGS PLY whose numbers depend on the name alone."""
    seed = int.from_bytes(hashlib.sha256(uid.encode()).digest()[:4], "big")
    rows = np.random.default_rng(seed).normal(size=(gaussians, len(NAMES))).astype("<f4")
    lines = ["ply", "format binary_little_endian 1.0", f"element vertex {gaussians}"]
    lines += [f"property float {name}" for name in NAMES] + ["end_header", ""]
    return "\n".join(lines).encode() + rows.tobytes()


def make(
    item: MeshItem,
    out: Path,
    config: BuildConfig,
    patterns: dict[str, list[str]],
    seed: int,
    entered: Callable[[str], None],
    limits: Any = None,
) -> dict[str, Any]:
    """Like `preprocessing.building.objects.make`, in a few milliseconds (STUB_SECONDS for the fit)."""
    entered("load")
    digest = sha256(item.path)
    entered("fit")
    if "hang" in item.uid:
        time.sleep(1000)
    if "hog" in item.uid:
        kept = np.ones(3 << 27)
        time.sleep(1000)
        del kept
    if "crash" in item.uid:
        os._exit(11)
    if "bad" in item.uid and "mended" not in item.path.read_text():
        raise ValueError("no texture of that name")
    time.sleep(float(os.environ.get("STUB_SECONDS", "0.002")))
    entered("write")
    for folder, suffix in (("views", ".png"), ("points", ".npz")):
        with write_aside(out / folder / f"{item.uid}{suffix}") as path, path.open("wb") as file:
            rows = np.zeros((4, 3), np.float32)
            if suffix == ".png":
                file.write(splat(item.uid, 8))
            else:
                np.savez(file, points=rows, normals=rows, colors=rows.astype(np.uint8), parts=np.zeros(4, np.int16) - 1)
    target = out / "splats" / f"{item.uid}.ply"
    with write_aside(target) as path:
        path.write_bytes(splat(item.uid))
    return {"mesh_sha256": digest, "gaussians": 64, "psnr": 30.0, "ssim": 0.9, "psnr_val": 30.0, "iterations": 1,
            "sha256": sha256(target), "bytes": target.stat().st_size}  # fmt: skip


def faults(out: Path, items: list[MeshItem]) -> dict[str, int]:
    """What is lost, doubled or corrupt in a build of stubs, and how many temporaries lie in it."""
    found = {"lost": 0, "failed": 0, "duplicate": 0, "corrupt": 0, "temporaries": len(list(out.rglob(".aside-*")))}
    expected = {item.uid for item in items}
    for folder, suffix in (("records", ".json"), ("splats", ".ply"), ("points", ".npz"), ("views", ".png")):
        there = [
            p.relative_to(out / folder).as_posix().removesuffix(suffix) for p in (out / folder).rglob(f"*{suffix}")
        ]
        there = [uid for uid in there if not uid.rpartition("/")[2].startswith(".")]
        found["duplicate"] += len(there) - len(set(there) & expected)
    for uid in expected:
        record = out / "records" / f"{uid}.json"
        if not record.exists():
            found["lost"] += 1
            continue
        values = read_json(record)
        if values["status"] != "done":
            found["failed"] += 1
        elif (out / "splats" / f"{uid}.ply").read_bytes() != splat(uid):
            found["corrupt"] += 1
    return found
