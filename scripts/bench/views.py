"""72 views of real meshes: our renderer at 1x1, 2x2 and 3x3 samples a pixel, and Open3D ray casting where installed.

python scripts/bench/views.py [--rounds 5] [MESH ...]      default: examples
Interleaved rounds; medians of CPU and wall time; first the pictures are compared.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from preprocessing.meshes import Mesh, load_mesh
from preprocessing.rendering.cameras import Cameras, train_cameras
from preprocessing.rendering.views import render_views
from preprocessing.sources import examples

OBJECTS = ("chair/deckChair", "container/dustbin", "cabinet/glassDoorCabinet", "table/tableWithTablecloth")


def cast(mesh: Mesh, cameras: Cameras) -> np.ndarray:
    """What Open3D's embree needs for one ray a pixel, shading left out: [V, H, W] whether something was hit."""
    open3d: Any = import_module("open3d")
    scene = open3d.t.geometry.RaycastingScene()
    scene.add_triangles(open3d.core.Tensor(mesh.vertices), open3d.core.Tensor(mesh.faces.astype(np.uint32)))
    hits = []
    for viewmat, intrinsics in zip(cameras.viewmats, cameras.Ks, strict=True):
        rays = scene.create_rays_pinhole(
            open3d.core.Tensor(intrinsics.astype(np.float64)), open3d.core.Tensor(viewmat.astype(np.float64)),
            cameras.width, cameras.height,
        )  # fmt: skip
        hits.append(np.isfinite(scene.cast_rays(rays)["t_hit"].numpy()))
    return np.stack(hits)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("meshes", nargs="*", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    a = parser.parse_args()
    files = a.meshes or [next((examples() / "meshes" / name / "models").glob("*.obj")) for name in OBJECTS]
    cameras = train_cameras("sphere", 72, 400)
    print("| mesh | faces | renderer | CPU s | wall s |\n| --- | --- | --- | --- | --- |")
    for file in files:
        mesh = load_mesh(file)
        ways: dict[str, Callable[[], object]] = {
            f"ours {s}x{s}": lambda s=s, mesh=mesh: render_views(mesh, cameras, s) for s in (1, 2, 3)
        }
        if "open3d" in sys.modules or _has_open3d():
            covered = render_views(mesh, cameras, 1).alphas > 127
            agree = (cast(mesh, cameras) == covered).mean()
            assert agree > 0.995, f"{file}: Open3D sees another silhouette ({agree:.4f})"
            ways["Open3D rays 1x1, no shading"] = lambda mesh=mesh: cast(mesh, cameras)
        times: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
        for _ in range(a.rounds):
            for name, way in ways.items():
                cpu, wall = time.process_time(), time.perf_counter()
                way()
                times[name].append((time.process_time() - cpu, time.perf_counter() - wall))
        for name, rows in times.items():
            cpu, wall = (statistics.median(column) for column in zip(*rows, strict=True))
            print(f"| {file.stem} | {len(mesh.faces):,} | {name} | {cpu:.2f} | {wall:.2f} |")


def _has_open3d() -> bool:
    try:
        import open3d  # noqa: F401
    except ImportError:
        return False
    return True


if __name__ == "__main__":
    main()
