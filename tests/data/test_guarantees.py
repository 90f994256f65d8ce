"""What training relies on: the same batches whatever happens, finite values, and memory that does not grow."""

from __future__ import annotations

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

from data.datasets import SplatDataset
from data.shardfile import Shard
from gsmae.errors import InputError
from gsmae.files import sha256

ROOT = Path(__file__).parents[2]

# The stream of one epoch as lines, one hash a batch. A process of its own forks one child for every line of input, so
# that torch is imported once; a child that is told to die is killed while it makes batches and says nothing more.
CHILDREN = """
import hashlib, os, signal, sys
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
