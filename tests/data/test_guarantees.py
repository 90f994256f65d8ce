"""What training relies on: the same batches whatever happens, finite values, and memory that does not grow."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from data.augment import Augmentation
from data.datasets import SplatDataset
from data.shardfile import Shard
from data.shards import pack, verify
from data.streams import batches
from gsmae.cli import main
from gsmae.errors import InputError
from gsmae.features import FeatureSpec
from gsmae.files import sha256

ROOT = Path(__file__).parents[2]

# The stream of one epoch as lines, one hash a batch. A process of its own forks one child for every line of input, so
# that torch is imported once; a child that is told to die is killed while it makes batches and says nothing more.
CHILDREN = """
import hashlib, os, signal, sys, traceback
import torch
from data.augment import Augmentation
from data.datasets import SplatDataset
from data.streams import batches
from gsmae.features import FeatureSpec

def digest(batch):
    hashed = hashlib.sha256(repr(batch.uids).encode())
    for tensor in (batch.points, batch.labels, batch.queries, batch.parts, batch.part_mask):
        hashed.update(tensor.numpy().tobytes())
    return hashed.hexdigest()

def stream(write, path, epoch, skip, workers, resident):
    wide = Augmentation(turn="any", stretch=(0.6, 1.5), shift=0.2, mirror=0.5)
    dataset = SplatDataset(path, "train")
    made = batches(dataset, FeatureSpec(), batch_size=3, gaussians=40, seed=5, augment=wide, queries=9,
                   workers=workers, resident=bool(resident))
    for batch in made.epoch(epoch, skip=skip):
        os.write(write, (digest(batch) + chr(10)).encode())

torch.set_num_threads(1)
for line in sys.stdin:
    path, *numbers = line.split()
    epoch, skip, workers, resident, die = map(int, numbers)
    read, write = os.pipe()
    child = os.fork()
    if not child:
        os.close(read)
        code = 1
        try:
            stream(write, path, epoch, skip, workers, resident)
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    os.close(write)
    seen = 0
    with open(read) as lines:
        for seen, text in enumerate(lines, 1):
            print(text, end="")
            if seen == die:
                os.kill(child, signal.SIGKILL)
    status = os.waitpid(child, 0)[1]
    print("killed" if os.WIFSIGNALED(status) else f"ended {os.WEXITSTATUS(status)}", flush=True)
"""


@pytest.fixture(scope="module")
def children() -> Iterator[subprocess.Popen]:
    with subprocess.Popen(
        [sys.executable, "-c", CHILDREN], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
    ) as process:
        yield process
        assert process.stdin is not None
        process.stdin.close()


@pytest.fixture
def stream(packed, children):
    """stream(epoch, skip, workers, resident, die) -> (hashes of the batches that got out, how the process ended)."""

    def run(epoch: int, skip: int, workers: int, resident: bool, die: int = -1) -> tuple[list[str], str]:
        children.stdin.write(f"{packed} {epoch} {skip} {workers} {int(resident)} {die}\n")
        children.stdin.flush()
        lines = []
        for line in children.stdout:
            if line.startswith(("killed", "ended")):
                return lines, line.strip()
            lines.append(line.strip())
        raise AssertionError("the process broke off")

    return run


def test_workers_and_storage_change_nothing_in_an_epoch(stream):
    for epoch in (0, 1):
        first, end = stream(epoch, 0, 0, True)
        assert end == "ended 0" and len(set(first)) == 6  # 16 objects by threes
        for workers in (0, 2, 4):
            for resident in (True, False):
                assert stream(epoch, 0, workers, resident) == (first, end)


@pytest.mark.parametrize(("workers", "after"), [(0, 4), (2, 0), (4, 2)])
def test_a_stream_that_was_killed_goes_on_where_it_stopped_with_any_number_of_workers(stream, workers, after):
    unbroken, _ = stream(1, 0, 0, True)
    killed = 0
    for die in range(1, len(unbroken) + 1):
        lines, end = stream(1, 0, workers, die % 2 == 0, die)
        killed += end == "killed"
        assert len(lines) >= die and lines == unbroken[: len(lines)]
        for seen in {die, len(lines)}:
            assert stream(1, seen, after, die % 2 == 1) == (unbroken[seen:], "ended 0")
    assert killed >= len(unbroken) // 2


PROPERTIES = ["x", "y", "z", "f_dc_0", "f_dc_1", "f_dc_2", "opacity", "scale_0", "scale_1", "scale_2"]
PROPERTIES += ["rot_0", "rot_1", "rot_2", "rot_3"]
LEGAL = {("opacity", np.inf), *((f"scale_{k}", -np.inf) for k in range(3))}


def write_rows(build, uid: str, rows: np.ndarray) -> None:
    """A splat of any values at all in a build."""
    head = f"ply\nformat binary_little_endian 1.0\nelement vertex {len(rows)}\n"
    head += "".join(f"property float {name}\n" for name in PROPERTIES) + "end_header\n"
    file = build.path / "splats" / f"{uid}.ply"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(head.encode() + rows.astype("<f4").tobytes())
    record = {"uid": uid, "category": uid.split("/")[0], "split": "train", "status": "done", "gaussians": len(rows)}
    build.record(uid, {**record, "sha256": sha256(file)})


def rows_of(rng: np.random.Generator, count: int) -> np.ndarray:
    rows = rng.normal(size=(count, len(PROPERTIES)))
    rows[:, 7:10] -= 4
    return rows


@pytest.fixture
def spoiled(make_build) -> tuple[Path, dict[str, int], dict[str, int]]:
    """500 splats of which 1 % of the rows have a NaN, an infinity or no rotation, three of them nothing else; with the
    rows that are left of each object and those that go."""
    build, rng, kept, gone = make_build(), np.random.default_rng(0), {}, {}
    for i in range(500):
        uid = f"class{i % 3}/{i:04d}"
        rows = rows_of(rng, 20 + i % 50)
        chosen = rng.random(len(rows)) < 0.01 if i not in (7, 8, 9) else np.ones(len(rows), dtype=bool)
        bad = 0
        for row in np.flatnonzero(chosen):
            kind = rng.integers(4)
            if kind == 3 and i not in (7, 8, 9):
                rows[row, 10:] = 0
                continue
            column, value = int(rng.integers(len(PROPERTIES))), (np.nan, np.inf, -np.inf)[kind % 3]
            if i in (7, 8, 9):
                column, value = 0, (np.nan, np.inf, -np.inf)[i % 3]
            rows[row, column] = value
            bad += (PROPERTIES[column], value) not in LEGAL
        write_rows(build, uid, rows)
        kept[uid], gone[uid] = len(rows) - bad, bad
    return build.path, kept, gone


def test_one_percent_of_bad_rows_in_500_splats_leaves_finite_batches_and_exact_counts(spoiled, tmp_path):
    build, kept, gone = spoiled
    with pytest.raises(InputError, match=r"of \d+ Gaussians have a non-finite .*--bad-rows drop"):
        pack(build, tmp_path / "strict")
    report = pack(build, tmp_path / "p", objects_per_shard=128, bad_rows="drop")
    dead = sorted(uid for uid, count in kept.items() if not count)
    lost = {uid: count for uid, count in gone.items() if count and uid not in dead}
    assert dead == ["class0/0009", "class1/0007", "class2/0008"] and 100 < sum(lost.values()) < 250
    assert (report.objects, report.unusable, report.failed) == (497, 3, 3)
    assert report.failures == {"pack: none of its Gaussians has finite values": 3}
    assert (report.dropped, report.dropped_from) == (sum(lost.values()), len(lost))
    assert report.gaussians == sum(kept.values())
    assert json.loads((tmp_path / "p" / "pack.json").read_text())["dropped"] == lost
    assert verify(tmp_path / "p").ok

    dataset = SplatDataset(tmp_path / "p")
    assert dict(zip(dataset.uids, dataset.counts.tolist(), strict=True)) == {u: n for u, n in kept.items() if n}
    for fields, resident, wide in itertools.product((None, ("means",)), (True, False), (True, False)):
        spec = FeatureSpec() if fields is None else FeatureSpec(normalize=fields)
        augment = Augmentation(turn="any", stretch=(0.6, 1.5), shift=0.2, mirror=0.5) if wide else None
        stream = batches(dataset, spec, batch_size=32, gaussians=24, augment=augment, resident=resident)
        seen = []
        for batch in stream.epoch(1):
            assert batch.points.shape == (len(batch.uids), 24, 14) and torch.isfinite(batch.points).all()
            seen += batch.uids
        assert sorted(seen) == list(dataset.uids)


def test_the_command_drops_on_request_from_builds_and_from_what_others_made(make_build, tmp_path, capsys):
    build, rows = make_build().add("chair/1"), rows_of(np.random.default_rng(1), 30)
    rows[3, 0] = np.nan
    write_rows(build, "chair/2", rows)
    rows[:, 0] = np.nan
    write_rows(build, "chair/3", rows)

    def command(source: Path, out: str, *options: str) -> tuple[int, dict]:
        code = main(["pack", str(source), "--out", str(tmp_path / out), "--json", *options])
        return code, json.loads(capsys.readouterr().out or "{}")

    assert command(build.path, "strict") == (3, {})
    assert command(build.path / "splats", "others")[1]["failures"] == {
        "read: 1 of 30 Gaussians have a non-finite x, y, z": 1,
        "read: 30 of 30 Gaussians have a non-finite x, y, z": 1,
    }
    for source, out in ((build.path, "p"), (build.path / "splats", "q")):
        code, summary = command(source, out, "--bad-rows", "drop")
        assert code == 4 and (summary["objects"], summary["gaussians"]) == (2, 40 + 29)
        assert (summary["dropped"], summary["dropped_from"], summary["unusable"]) == (1, 1, 1)


def test_looking_for_bad_rows_where_there_are_none_changes_no_byte(make_build, tmp_path):
    build = make_build()
    for i in range(5):
        build.add(f"chair/{i}")
    for bad_rows in ("refuse", "drop"):
        pack(build.path, tmp_path / bad_rows, objects_per_shard=2, bad_rows=bad_rows)
    assert pack(build.path, tmp_path / "refuse", objects_per_shard=2, bad_rows="drop").already
    for file in sorted((tmp_path / "refuse").iterdir()):
        assert file.read_bytes() == (tmp_path / "drop" / file.name).read_bytes()
    assert b"dropped" not in (tmp_path / "refuse" / "pack.json").read_bytes()


def test_a_strict_pack_takes_nothing_over_from_one_that_dropped(make_build, tmp_path):
    build, rows = make_build().add("chair/1").add("chair/2"), rows_of(np.random.default_rng(1), 30)
    rows[3, 0] = np.nan
    write_rows(build, "chair/3", rows)
    pack(build.path, tmp_path / "p", objects_per_shard=1, bad_rows="drop")
    with pytest.raises(InputError, match="1 of 30 Gaussians have a non-finite x"):
        pack(build.path, tmp_path / "q", objects_per_shard=1)
    with pytest.raises(InputError, match="holds a pack of other objects or options"):
        pack(build.path, tmp_path / "p", objects_per_shard=1)
    (tmp_path / "p" / "pack.json").unlink()  # as if it had been killed
    with pytest.raises(InputError, match="1 of 30 Gaussians have a non-finite x"):
        pack(build.path, tmp_path / "p", objects_per_shard=1)
    assert pack(build.path, tmp_path / "p", objects_per_shard=1, bad_rows="drop").reused == 3


@pytest.mark.parametrize("rows_at_most", [1, 2, 30])
def test_values_that_are_finite_but_absurd_do_not_spoil_a_batch(make_build, tmp_path, rows_at_most):
    """A scale of e^89 is finite in the file and infinite once used; one such row made every scale of its splat NaN."""
    build, rng, bad = make_build(), np.random.default_rng(2), {}
    for i in range(40):
        rows = rows_of(rng, rows_at_most)
        rows[rng.random(rows.shape) < 0.2] *= 10.0 ** rng.integers(-30, 36)
        rows = np.clip(rows, -3e38, 3e38)
        far = (np.abs(rows[:, :3]) > 1e15).any(axis=1) | (rows[:, 7:10] > np.log(1e15)).any(axis=1)
        bad[f"chair/{i:02d}"] = int(far.sum())
        write_rows(build, f"chair/{i:02d}", rows)
    with pytest.raises(InputError, match="too far away or too large to compute with"):
        pack(build.path, tmp_path / "strict")
    report = pack(build.path, tmp_path / "p", bad_rows="drop")
    alive = {uid for uid, count in bad.items() if count < rows_at_most}
    assert report.dropped == sum(bad[uid] for uid in alive) and report.objects == len(alive)
    for resident in (True, False):
        stream = batches(SplatDataset(tmp_path / "p"), FeatureSpec(), batch_size=8, gaussians=30, resident=resident)
        assert all(torch.isfinite(batch.points).all() for batch in stream)


def open_files(folder: Path) -> list[str]:
    found = [os.path.realpath(link) for link in Path("/proc/self/fd").iterdir()]
    return [name for name in found if name.startswith(str(folder))]


linux = pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="looks into /proc")


@linux
@pytest.mark.parametrize("cache", [1, 2, 100])
def test_a_dataset_maps_no_file_and_opens_no_more_than_its_cache(packed, cache):
    dataset, everything = SplatDataset(packed, cache=cache), SplatDataset(packed, resident=True)
    shards = len(dataset.info.shards)
    assert shards == 4 and not open_files(packed)
    order = np.random.default_rng(0).integers(0, len(dataset), 200).tolist()
    for i in order:
        assert np.array_equal(dataset.rows(i), everything.rows(i))
        assert len(open_files(packed)) <= cache
    assert len(open_files(packed)) == min(cache, shards)
    assert str(packed) not in Path("/proc/self/maps").read_text()
    del dataset
    assert not open_files(packed)


@linux
def test_threads_that_share_a_dataset_share_its_few_files(packed):
    dataset, everything = SplatDataset(packed, cache=1), SplatDataset(packed, resident=True)
    order = np.random.default_rng(1).integers(0, len(dataset), 2000).tolist()
    with ThreadPoolExecutor(8) as pool:
        for i, rows in zip(order, pool.map(dataset.rows, order), strict=True):
            assert np.array_equal(rows, everything.rows(i))
    assert len(open_files(packed)) <= 1


def test_compressed_shards_of_others_are_forgotten_whole(packed, tmp_path):
    folder = Path(shutil.copytree(packed, tmp_path / "p"))
    info = json.loads((folder / "pack.json").read_text())
    for entry in info["shards"]:  # as `h5repack` leaves them
        file = folder / entry["file"]
        with h5py.File(file, "r") as old, h5py.File(tmp_path / "new.h5", "w") as new:
            new.attrs.update(old.attrs)
            for name, values in old.items():
                options = {"compression": "gzip", "chunks": True} if name == "splats" else {}
                new.create_dataset(name, data=values[()], **options)
        (tmp_path / "new.h5").replace(file)
        entry |= {"sha256": sha256(file), "bytes": file.stat().st_size}
        assert Shard(file).held > 0
    (folder / "pack.json").write_text(json.dumps(info))
    dataset, everything = SplatDataset(folder, cache=2), SplatDataset(packed)
    for i in range(len(dataset)):
        assert np.array_equal(dataset.rows(i), everything.rows(i))
        assert len(dataset._shards) <= 2


def test_a_shard_cut_off_or_replaced_while_it_is_in_use_is_an_error_and_not_the_end(packed, tmp_path):
    folder = Path(shutil.copytree(packed, tmp_path / "p"))
    dataset = SplatDataset(folder, cache=1)
    file = folder / "shard_00000.h5"
    last = max(i for i in range(len(dataset)) if dataset._place[i, 0] == 0)
    dataset.rows(last)
    whole = file.read_bytes()
    with file.open("rb+") as f:
        f.truncate(8192)
    with pytest.raises(InputError, match=r"shard_00000\.h5: was cut off while it was read"):
        dataset.rows(last)
    file.unlink()
    file.write_bytes(whole)
    assert dataset._place[-1, 0] != 0
    dataset.rows(len(dataset) - 1)  # closes the first shard
    with pytest.raises(InputError, match=r"shard_00000\.h5: was replaced while it was in use"):
        dataset.rows(last)
    file.unlink()
    with pytest.raises(InputError, match=r"shard_00000\.h5: No such file"):
        dataset.rows(last)
