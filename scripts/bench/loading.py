"""Times what it takes to get a batch of normalised splats, our shards beside other ways to store them.

    python scripts/bench/loading.py [--objects 300] [--gaussians 8000] [--rounds 9] [--batch 128] [--window 1024]

Synthetic splats (seeded, SH degree 0, 0.5 to 1.5 times --gaussians rows) are written in every format below a temporary
folder. Each round draws one batch of random objects and makes it in every way, one after the other, so that a busy
machine disturbs all alike. Every way ends with the same [batch, window, 14] normalised features and uses one thread;
the page cache is warm.

Before timing, the values are compared: every row of a PLY's batch must be a row of the object, normalised in float64 by
formulas of this script; the others read consecutive rows from the same place and must give each other's batch, those
that read a slice bit by bit.

What is not the same work: HDF5 and safetensors are given their rows in random order, as our shards have them, so that a
window is read instead of chosen. Whole objects are normalised each time; slices, theirs and ours, by the constants of
each object, which a first epoch finds; `memory` normalises once. That time is shown. The ratios are to `whole batches`,
ours as training gets them, with labels and names, from `data.batches`.
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
from scipy.spatial import KDTree

from data.datasets import SplatDataset, to_gaussians
from data.shards import pack
from data.stores import FileStore, ResidentStore, Store
from data.streams import batches
from gsmae.features import FeatureSpec, normalize
from gsmae.files import sha256
from gsmae.gaussians import Gaussians
from gsmae.ply import write_ply

SPEC = FeatureSpec()
PROPERTIES = ["x", "y", "z", "rot_0", "rot_1", "rot_2", "rot_3", "scale_0", "scale_1", "scale_2", "opacity"]
PROPERTIES += ["f_dc_0", "f_dc_1", "f_dc_2"]
Way = Callable[[np.ndarray, np.ndarray], torch.Tensor]
"""From object numbers and first rows to a batch"""
QUATS = slice(7, 11)
RELEASED = "one PLY an object, plyfile, steps of the released loader"
SHARDS, MEMORY = "ours, shards, whole batches", "ours, memory, whole batches"


def splat(seed: int, count: int) -> Gaussians:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    means = torch.nn.functional.normalize(normal(count, 3), dim=1) * (0.7 + 0.05 * normal(count, 1))
    return Gaussians(means, normal(count, 4), normal(count, 3) - 4.5, 3 * normal(count), 0.5 * normal(count, 1, 3))


def write(folder: Path, objects: int, gaussians: int, seed: int) -> None:
    """A build folder, packs of it, one HDF5 file with a dataset per object, and one safetensors file."""
    rng = np.random.default_rng(seed)
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
    for quantize in (None, "u16"):
        start = time.perf_counter()
        report = pack(folder / "build", folder / f"pack{quantize or ''}", quantize=quantize, val_fraction=0)
        size = report.bytes / report.gaussians
        print(f"packed {quantize or 'f32'}: {time.perf_counter() - start:.2f} s, {size:.1f} bytes a Gaussian")
    dataset = SplatDataset(folder / "pack")
    tensors = {uid: dataset.rows(i) for i, uid in enumerate(dataset.uids)}
    with h5py.File(folder / "objects.h5", "w") as file:
        for uid, rows in tensors.items():
            file.create_dataset(uid, data=rows)
    save_file(tensors, folder / "objects.safetensors")


def released(path: Path) -> np.ndarray:
    """A PLY as the released loader reads and normalises it: float64 temporaries, all rows."""
    vertex = PlyData.read(str(path))["vertex"]
    columns = [np.asarray(vertex[name]).astype(np.float64) for name in PROPERTIES]
    means, quats = np.stack(columns[:3], 1), np.stack(columns[3:7], 1)
    scales, opacities = np.exp(np.stack(columns[7:10], 1)), 1 / (1 + np.exp(-columns[10]))
    sh = np.stack(columns[11:], 1)
    means -= means.mean(0)
    radius = np.sqrt((means**2).sum(1)).max()
    means, scales = means / radius, scales / radius
    quats /= np.linalg.norm(quats, axis=1, keepdims=True)
    quats *= np.sign(quats[:, :1])
    scales -= scales.mean(0)
    scales /= np.sqrt((scales**2).sum(1)).max()
    sh = np.clip(sh * 0.28209479, -0.5, 0.5) * 2 / np.sqrt(3)
    return np.concatenate([means, 2 * opacities[:, None] - 1, scales, quats, sh], axis=1)


def read_plyfile(path: Path) -> np.ndarray:
    vertex = PlyData.read(str(path))["vertex"]
    return np.stack([np.asarray(vertex[name], dtype=np.float32) for name in PROPERTIES], axis=1)


class Slices(FileStore):
    """Our own reader of windows with another file below it: what is timed is the file."""

    def __init__(self, dataset: SplatDataset, arrays: list[Any]):
        super().__init__(dataset, SPEC)
        self.arrays = arrays

    def _fill(self, out: np.ndarray, i: int, start: int) -> None:
        done, length = 0, int(self.dataset.counts[i])
        while done < len(out):
            step = min(len(out) - done, length - start)
            out[done : done + step] = self.arrays[i][start : start + step]
            done, start = done + step, 0


def ways(folder: Path, options: argparse.Namespace) -> dict[str, Way]:
    """Name -> what makes a batch; each has seen every object once."""
    rng, window = np.random.default_rng(1), options.window
    dataset, small = SplatDataset(folder / "pack"), SplatDataset(folder / "packu16")
    uids, counts = dataset.uids, dataset.counts
    plies = [folder / "build" / "splats" / f"{uid}.ply" for uid in uids]
    h5: Any = h5py.File(folder / "objects.h5")
    st = safe_open(folder / "objects.safetensors", framework="np")
    files, views = [h5[uid] for uid in uids], [st.get_slice(uid) for uid in uids]

    def each(one: Callable[[int, int], torch.Tensor]) -> Way:
        return lambda objects, starts: torch.stack(
            [one(i, s) for i, s in zip(objects.tolist(), starts.tolist(), strict=True)]
        )

    def official(i: int, start: int) -> torch.Tensor:
        points = released(plies[i])
        points = points[rng.choice(len(points), 8192, replace=True)].astype(np.float32)
        return torch.from_numpy(points)[torch.from_numpy(rng.permutation(8192)[:window])]

    def chosen(i: int, start: int) -> torch.Tensor:
        points, _ = normalize(to_gaussians(read_plyfile(plies[i])), SPEC)
        return points[torch.from_numpy(rng.permutation(len(points))[:window])]

    def whole(read: Callable[[int], np.ndarray]) -> Way:
        def one(i: int, start: int) -> torch.Tensor:
            points, _ = normalize(to_gaussians(read(i)), SPEC)
            return torch.cat([points[start : start + window], points[: max(start + window - len(points), 0)]])

        return each(one)

    def served(name: str, make: Callable[[], Store]) -> Way:
        begin = time.perf_counter()
        store = make()
        for k in range(0, len(uids), options.batch):  # a first epoch: the constants of every object
            some = np.arange(k, min(k + options.batch, len(uids)))
            store.windows(some, np.zeros_like(some), window)
        print(f"{name}: {time.perf_counter() - begin:.2f} s for a first epoch")
        return lambda objects, starts: store.windows(objects, starts, window)

    def batch(name: str) -> Way:  # as training gets it: with labels, names, and its own choice of first rows
        stream = batches(dataset, SPEC, batch_size=options.batch, gaussians=window, resident=name == MEMORY)
        stream.store.windows(np.arange(len(uids)), np.zeros_like(counts), window)
        return lambda objects, starts: stream._batch(objects, epoch=0).points

    assert counts.min() >= window, "a window would repeat rows"
    resident = torch.device("cpu")
    stores: dict[str, Callable[[], Store]] = {
        f"HDF5, a slice of {window} rows": lambda: Slices(dataset, files),
        f"safetensors, a slice of {window} rows": lambda: Slices(dataset, views),
        "ours, u16 shards": lambda: FileStore(small, SPEC),
        "ours, shards": lambda: FileStore(dataset, SPEC),
        "ours, memory": lambda: ResidentStore(dataset, SPEC, surface=False, device=resident),
    }
    return {
        RELEASED: each(official),
        "one PLY an object, plyfile, our normalisation": each(chosen),
        "HDF5, whole objects": whole(lambda i: files[i][()]),
        "safetensors, whole objects": whole(lambda i: st.get_tensor(uids[i])),
        **{name: served(name, make) for name, make in stores.items()},
        **{name: batch(name) for name in (SHARDS, MEMORY)},
    }


def draw(rng: np.random.Generator, counts: np.ndarray, batch: int) -> tuple[np.ndarray, np.ndarray]:
    """Objects of a batch, none twice, and a first row of each."""
    objects = rng.permutation(len(counts))[:batch]
    return objects, (rng.random(batch) * counts[objects]).astype(np.int64)


def apart(a: np.ndarray, b: np.ndarray) -> float:
    """Largest difference of feature rows; q and -q are one rotation, and which is stored is rounding where w is 0."""
    either = np.minimum(*(np.abs(a[..., QUATS] - sign * b[..., QUATS]).max(-1) for sign in (1, -1)))
    return max(float(either.max()), float(np.abs(np.delete(a - b, QUATS, axis=-1)).max()))


def compare(folder: Path, calls: dict[str, Way], window: int) -> None:
    """Every way gives the rows of the objects; raises AssertionError where one does not."""
    dataset = SplatDataset(folder / "pack")
    objects, starts = draw(np.random.default_rng(2), dataset.counts, min(24, len(dataset)))
    got = {name: call(objects, starts) for name, call in calls.items()}
    worst = dict.fromkeys(calls, 0.0)
    for k, i in enumerate(objects.tolist()):
        truth = released(folder / "build" / "splats" / f"{dataset.uids[i]}.ply")
        tree = KDTree(truth[:, :7])  # all but quaternions and colours
        for name, batch in got.items():
            points = batch[k].numpy()
            row = np.asarray(tree.query(points[:, :7])[1])
            worst[name] = max(worst[name], apart(points, truth[row]))
            assert name == RELEASED or len(set(row.tolist())) == window, f"{name}: a row twice"
    shards = got["ours, shards"]
    for name, batch in got.items():
        assert batch.shape == (len(objects), window, 14) and batch.dtype == torch.float32
        bound = 1e-3 if "u16" in name else 5e-6
        assert worst[name] < bound, f"{name}: rows differ by {worst[name]}"
        if "slice" in name:
            assert torch.equal(batch, shards), f"{name}: another batch than ours"
        elif "PLY" not in name and "whole batches" not in name:
            assert apart(batch.numpy(), shards.numpy()) < bound, f"{name}: another batch than ours"
    print(f"values equal, {len(objects)} objects; largest distance of a row to its row in float64: "
          f"{max(v for n, v in worst.items() if 'u16' not in n):.1e}, u16 {worst['ours, u16 shards']:.1e}")  # fmt: skip


def spread(values: list[float]) -> str:
    digits = 2 if statistics.median(values) < 2 else 1
    return f"{statistics.median(values):,.{digits}f} ({min(values):,.{digits}f} to {max(values):,.{digits}f})"


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
        write(folder, options.objects, options.gaussians, options.seed)
        calls = ways(folder, options)
        compare(folder, calls, options.window)
        spent: dict[str, list[tuple[float, float]]] = {name: [] for name in calls}
        rng, counts = np.random.default_rng(options.seed), SplatDataset(folder / "pack").counts
        for number in range(options.rounds + 2):  # two rounds to warm up
            objects, starts = draw(rng, counts, options.batch)
            for name, call in calls.items():
                cpu, wall = time.process_time(), time.perf_counter()
                call(objects, starts)
                if number >= 2:
                    spent[name].append((time.process_time() - cpu, time.perf_counter() - wall))
    print(f"\n{options.rounds} rounds, batch {options.batch} x {options.window}, {options.objects} objects of "
          f"{counts.mean():,.0f} Gaussians, 1 thread; median (min to max)\n")  # fmt: skip
    ours = (SHARDS, MEMORY)
    print("| way | CPU ms a batch | wall ms | CPU, times ours from shards | CPU, times ours from memory |")
    print("| --- | --- | --- | --- | --- |")
    for name, times in spent.items():
        cpu, wall = ([t[k] * 1000 for t in times] for k in (0, 1))
        ratios = [[a[0] / b[0] for a, b in zip(times, spent[other], strict=True)] for other in ours]
        print("|", " | ".join([name, spread(cpu), spread(wall), *map(spread, ratios)]), "|")


if __name__ == "__main__":
    main()
