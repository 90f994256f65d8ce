"""Times what it takes to get a batch of normalised splats, our shards beside other ways to store them.

    python scripts/bench/loading.py [--objects 300] [--gaussians 8000] [--rounds 9] [--batch 128] [--window 1024]

Synthetic splats (seeded, SH degree 0, 0.5 to 1.5 times --gaussians rows) are written in every format below a temporary
folder. Each round draws one batch of random objects and makes it in every way, one after the other, so that a busy
machine disturbs all alike. Every way ends with the same [batch, window, 14] normalised features and uses one thread;
the page cache is warm. Before timing, every way must give the same rows for the same object.

What is not the same work: the shards hold rows in random order, so a window is read instead of chosen; `in memory`
normalises once, before the clock starts (that time is shown), `mapped` keeps only each object's constants.
"""

import argparse
import json
import logging
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from plyfile import PlyData
from safetensors import safe_open
from safetensors.numpy import save_file

from data.datasets import SplatDataset, to_gaussians
from data.shards import pack, raw_rows
from data.streams import BatchStream, batches
from gsmae.features import FeatureSpec, normalize
from gsmae.files import sha256
from gsmae.gaussians import Gaussians
from gsmae.ply import write_ply

SPEC = FeatureSpec()
PROPERTIES = ["x", "y", "z", "rot_0", "rot_1", "rot_2", "rot_3", "scale_0", "scale_1", "scale_2", "opacity"]
PROPERTIES += ["f_dc_0", "f_dc_1", "f_dc_2"]


def splat(seed: int, count: int) -> Gaussians:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    means = torch.nn.functional.normalize(normal(count, 3), dim=1) * (0.7 + 0.05 * normal(count, 1))
    return Gaussians(means, normal(count, 4), normal(count, 3) - 4.5, 3 * normal(count), 0.5 * normal(count, 1, 3))


def write(folder: Path, objects: int, gaussians: int, seed: int) -> list[str]:
    """A build folder, one HDF5 file with a dataset per object, and one safetensors file; returns the uids."""
    rng = np.random.default_rng(seed)
    uids, tensors = [], {}
    (folder / "build").mkdir()
    (folder / "build" / "build.json").write_text(
        json.dumps({"schema": 1, "frame": "z-up", "config_hash": "", "seed": 0})
    )
    for i in range(objects):
        g = splat(seed + i, int(rng.integers(gaussians // 2, gaussians * 3 // 2)))
        uid = f"class{i % 10}/{i:05d}"
        file = folder / "build" / "splats" / f"{uid}.ply"
        write_ply(file, g)
        record = {"uid": uid, "category": uid.split("/")[0], "split": "train", "status": "done"}
        record |= {"gaussians": len(g), "sha256": sha256(file)}
        path = folder / "build" / "records" / f"{uid}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(record))
        uids.append(uid)
        tensors[uid] = raw_rows(g)
    with h5py.File(folder / "objects.h5", "w") as file:
        for uid, rows in tensors.items():
            file.create_dataset(uid, data=rows)
    save_file(tensors, folder / "objects.safetensors")
    return uids


def chosen(rows: np.ndarray, window: int, rng: np.random.Generator) -> torch.Tensor:
    """Normalise a whole object, then take random rows without replacement."""
    points, _ = normalize(to_gaussians(rows), SPEC)
    return points[torch.from_numpy(rng.permutation(len(rows))[:window])]


def read_plyfile(path: Path) -> np.ndarray:
    vertex = PlyData.read(str(path))["vertex"]
    return np.stack([np.asarray(vertex[name], dtype=np.float32) for name in PROPERTIES], axis=1)


def official(path: Path, window: int, rng: np.random.Generator) -> torch.Tensor:
    """The steps of the released loader: one PLY, float64 temporaries, 8,192 rows with replacement, then the window."""
    vertex = PlyData.read(str(path))["vertex"]
    columns = [np.asarray(vertex[name]).astype(np.float64) for name in PROPERTIES]
    means, quats = np.stack(columns[:3], 1), np.stack(columns[3:7], 1)
    scales, opacities, sh = (
        np.exp(np.stack(columns[7:10], 1)),
        1 / (1 + np.exp(-columns[10])),
        np.stack(columns[11:], 1),
    )
    means -= means.mean(0)
    radius = np.sqrt((means**2).sum(1)).max()
    means, scales = means / radius, scales / radius
    quats /= np.linalg.norm(quats, axis=1, keepdims=True)
    quats *= np.sign(quats[:, :1])
    scales -= scales.mean(0)
    scales /= np.sqrt((scales**2).sum(1)).max()
    sh = np.clip(sh * 0.28209479, -0.5, 0.5) * 2 / np.sqrt(3)
    points = np.concatenate([means, 2 * opacities[:, None] - 1, scales, quats, sh], axis=1)
    points = points[rng.choice(len(points), 8192, replace=True)].astype(np.float32)
    return torch.from_numpy(points)[torch.from_numpy(rng.permutation(8192)[:window])]


def ways(folder: Path, uids: list[str], options: argparse.Namespace) -> dict[str, Callable[[np.ndarray], torch.Tensor]]:
    """Name -> function from object numbers to a batch."""
    rng = np.random.default_rng(1)
    h5: Any = h5py.File(folder / "objects.h5")
    st = safe_open(folder / "objects.safetensors", framework="np")
    plies = [folder / "build" / "splats" / f"{uid}.ply" for uid in uids]
    window = options.window

    def each(one: Callable[[int], torch.Tensor]) -> Callable[[np.ndarray], torch.Tensor]:
        return lambda objects: torch.stack([one(int(i)) for i in objects])

    def ours(resident: bool, quantize: str) -> Callable[[np.ndarray], torch.Tensor]:
        dataset = SplatDataset(folder / f"pack{quantize}")
        start = time.perf_counter()
        stream = batches(dataset, SPEC, batch_size=options.batch, gaussians=window, resident=resident)
        for k in range(0, len(dataset), options.batch):  # a first epoch: constants of every object
            batch_of(stream, np.arange(k, min(k + options.batch, len(dataset))))
        what = f"{'in memory' if resident else 'mapped'} {quantize or 'f32'}"
        print(f"{what}: {time.perf_counter() - start:.2f} s to warm up")
        return lambda objects: batch_of(stream, objects)

    return {
        "PLY, plyfile, steps of the released loader": each(lambda i: official(plies[i], window, rng)),
        "PLY, plyfile": each(lambda i: chosen(read_plyfile(plies[i]), window, rng)),
        "HDF5, a dataset per object": each(lambda i: chosen(h5[uids[i]][()], window, rng)),
        "safetensors": each(lambda i: chosen(st.get_tensor(uids[i]), window, rng)),
        "ours, mapped u16": ours(False, "u16"),
        "ours, mapped": ours(False, ""),
        "ours, in memory": ours(True, ""),
    }


def batch_of(stream: BatchStream, objects: np.ndarray) -> torch.Tensor:
    return stream._batch(objects, epoch=0).points


def agree(folder: Path, uids: list[str]) -> None:
    """The same object has the same rows in every format, up to their order; ours packs them all."""
    dataset = SplatDataset(folder / "pack")
    h5: Any = h5py.File(folder / "objects.h5")
    st = safe_open(folder / "objects.safetensors", framework="np")
    for uid in (uids[0], uids[-1]):
        truth = read_plyfile(folder / "build" / "splats" / f"{uid}.ply")
        packed = dataset.rows(dataset.uids.index(uid))
        for rows in (h5[uid][()], st.get_tensor(uid), packed):
            assert np.array_equal(rows[np.lexsort(rows.T)], truth[np.lexsort(truth.T)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--objects", type=int, default=300)
    parser.add_argument("--gaussians", type=int, default=8000)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--window", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    logging.basicConfig(level=logging.WARNING)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        uids = write(folder, options.objects, options.gaussians, options.seed)
        for quantize in (None, "u16"):
            start = time.perf_counter()
            report = pack(folder / "build", folder / f"pack{quantize or ''}", quantize=quantize, val_fraction=0)
            size = report.bytes / report.gaussians
            print(f"packed {quantize or 'f32'}: {time.perf_counter() - start:.2f} s, {size:.1f} bytes a Gaussian")
        agree(folder, uids)
        calls = ways(folder, uids, options)
        spent: dict[str, list[tuple[float, float]]] = {name: [] for name in calls}
        rng = np.random.default_rng(options.seed)
        for number in range(options.rounds + 2):  # two rounds to warm up
            objects = rng.permutation(options.objects)[: options.batch]
            for name, call in calls.items():
                cpu, wall = time.process_time(), time.perf_counter()
                call(objects)
                if number >= 2:
                    spent[name].append((time.process_time() - cpu, time.perf_counter() - wall))
    best = "ours, in memory"
    print(f"\n{options.rounds} rounds, batch {options.batch} x {options.window}, 1 thread, medians\n")
    print("| way | CPU ms a batch | wall ms | objects/s (CPU) | CPU ratio to ours in memory, median (min to max) |")
    print("|---|---|---|---|---|")
    for name, times in spent.items():
        cpu, wall = (statistics.median(column) for column in zip(*times, strict=True))
        ratios = [a[0] / b[0] for a, b in zip(times, spent[best], strict=True)]
        ratio = f"{statistics.median(ratios):.1f} ({min(ratios):.1f} to {max(ratios):.1f})"
        print(f"| {name} | {cpu * 1000:.1f} | {wall * 1000:.1f} | {options.batch / cpu:,.0f} | {ratio} |")


if __name__ == "__main__":
    main()
