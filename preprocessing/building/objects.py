"""One object: mesh -> views -> splat, with everything that is kept about it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from gsmae.errors import InputError
from gsmae.files import sha256, write_aside
from gsmae.ply import write_ply

from ..fitting.fit import Fit, fit
from ..formats.assets import Limits
from ..meshes import Mesh, load_mesh
from ..profiles import BuildConfig
from ..quality import evaluate, surface_distance
from ..rendering.cameras import Cameras, test_cameras, train_cameras, val_cameras
from ..rendering.views import render_views
from ..sources import MeshItem
from ..surface import SurfaceSamples, part_labels, sample_surface
from .limits import OutOfMemory, capped, within_memory

THUMBNAIL = 200  # pixels
PICTURE_HEIGHT = 0.4  # sine of the elevation that people like to look from: of the test views, the nearest


def make(
    item: MeshItem,
    out: Path,
    config: BuildConfig,
    patterns: dict[str, list[str]],
    seed: int,
    entered: Callable[[str], None],
    limits: Limits | None = None,
) -> dict[str, Any]:
    """Build one object and write its splat, its surface points and its picture; returns its part of the record.

    patterns  part -> patterns of material and group names, for this category
    entered   is told each stage: load, render, fit, quality, write
    limits    of the mesh
    Raises InputError for a mesh that cannot be used or a splat that is not good enough, OutOfMemory where even the
    fewest Gaussians are too many.
    """
    entered("load")
    mesh = load_mesh(item, limits=limits)
    samples = sample_surface(mesh, max(config.fit.initial, config.surface_points), seed)

    entered("render")
    rigs = rigs_of(config)
    views = {name: render_views(mesh, cameras, config.supersample).images for name, cameras in rigs.items()}

    entered("fit")

    def fitted(_: Sequence[MeshItem], cap: int) -> list[Fit]:
        chosen = capped(config.fit, cap)
        return [fit(views["train"], rigs["train"], views["val"], rigs["val"], samples, chosen, seed)]

    ((_, result, cap),) = within_memory(fitted, [item], 1, config.fit.cap)
    if isinstance(result, OutOfMemory):
        raise result
    return finish(item, out, config, patterns, mesh, samples, views["test"], result, cap, entered)


def rigs_of(config: BuildConfig) -> dict[str, Cameras]:
    """The cameras of the training, validation and test views, by "train", "val" and "test"."""
    # views are tested where there are views to train on: the paper's ShapeNet cameras only look down
    band, size = (0.0, 45.0) if config.rig == "paper" else (-90.0, 90.0), config.resolution
    return {
        "train": train_cameras(config.rig, config.views, size),
        "val": val_cameras(config.val_views, size, *band),
        "test": test_cameras(config.test_views, size, *band),
    }


def finish(
    item: MeshItem,
    out: Path,
    config: BuildConfig,
    patterns: dict[str, list[str]],
    mesh: Mesh,
    samples: SurfaceSamples,
    tests: np.ndarray | Tensor,
    result: Fit,
    cap: int,
    entered: Callable[[str], None],
) -> dict[str, Any]:
    """Measure a fitted splat and write everything that is kept about it; see `make`.

    tests  [V, H, W, 3] uint8, the test views, on any device
    cap    most Gaussians that the fit was allowed
    """
    entered("quality")
    cameras = rigs_of(config)["test"]
    warnings = list(mesh.warnings)
    if cap < config.fit.cap:
        warnings.append(f"memory was short: fitted with at most {cap} Gaussians instead of {config.fit.cap}")
    quality = evaluate(result.gaussians, cameras, tests)
    heights = cameras.positions[:, 2] / np.linalg.norm(cameras.positions, axis=1)
    shown = int(np.abs(heights - PICTURE_HEIGHT).argmin())
    image = torch.as_tensor(tests[shown]).cpu().numpy()
    entered("write")  # what cannot be written is not the object's fault
    _picture(out / "views" / f"{item.uid}.png", image, quality.pictures[shown].cpu().numpy())
    entered("quality")
    if quality.psnr < config.min_psnr:
        raise InputError(
            item.path, f"rejected: {quality.psnr:.1f} dB on the test views, {config.min_psnr:g} are asked for"
        )

    distance = surface_distance(result.gaussians, mesh) if config.surface_distance else None

    entered("write")
    kept = slice(0, config.surface_points)
    parts = part_labels(mesh, samples.faces[kept], patterns)
    with write_aside(out / "points" / f"{item.uid}.npz") as path, path.open("wb") as file:
        np.savez_compressed(
            file, points=samples.points[kept].astype(np.float32), normals=samples.normals[kept].astype(np.float32),
            colors=samples.colors[kept], parts=parts.astype(np.int16),
        )  # fmt: skip
    splat = out / "splats" / f"{item.uid}.ply"
    write_ply(splat, result.gaussians)
    return {
        "mesh_sha256": mesh.sha256,
        "mesh_to_splat": np.asarray(mesh.mesh_to_splat).tolist(),
        "gaussians": len(result.gaussians),
        "psnr": round(quality.psnr, 3),
        "ssim": round(quality.ssim, 4),
        "psnr_val": round(result.psnr_val, 3),
        "surface_distance": distance,
        "iterations": result.iterations,
        "sha256": sha256(splat),
        "bytes": splat.stat().st_size,
        "part_names": list(patterns),
        "warnings": warnings,
        "cap": cap,
    }


def _picture(path: Path, image: np.ndarray, splat: np.ndarray) -> None:
    """mesh | splat | error (four times enlarged, dark is good), for people."""
    mesh, splat = image.astype(np.float32), splat * 255
    error = (np.abs(mesh - splat) * 4).clip(0, 255)
    row = np.concatenate([mesh, splat, error], axis=1).round().astype(np.uint8)
    picture = Image.fromarray(row)
    if picture.height > THUMBNAIL:
        picture = picture.resize((3 * THUMBNAIL, THUMBNAIL), Image.Resampling.BOX)
    with write_aside(path) as temporary:
        picture.save(temporary, format="PNG", optimize=True)
