"""pack: what is in a shard, equal bytes, safe to kill and to run twice, refusals."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

import data.shards
from data.datasets import SplatDataset, to_gaussians
from data.shardfile import Shard, dequantized, quantized
from data.shards import pack, raw_rows, verify
from gsmae.errors import InputError
from gsmae.ply import read_ply


def contents(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir())}


def six(build):
    for i in range(6):
        build.add(f"chair/{i}", count=20 + i)
    return build


def test_every_gaussian_of_every_object_is_in_the_pack_once_in_a_shuffled_order(make_build, tmp_path):
    build = six(make_build())
    pack(build.path, tmp_path / "p", objects_per_shard=4)
    for i in range(6):
        source = raw_rows(read_ply(build.path / "splats" / "chair" / f"{i}.ply"))
        shard = Shard(tmp_path / "p" / f"shard_{i // 4:05d}.h5")
        rows = shard.rows(i % 4)
        assert not np.array_equal(rows, source)
        assert np.array_equal(rows[np.lexsort(rows.T)], source[np.lexsort(source.T)])


def test_the_row_order_of_an_object_depends_on_its_name_and_the_seed_alone(make_build, tmp_path):
    alone = make_build("a").add("chair/7")
    among = six(make_build("b")).add("chair/7")
    pack(alone.path, tmp_path / "pa")
    pack(among.path, tmp_path / "pb")
    pack(alone.path, tmp_path / "pc", seed=1)
    a, b, c = (SplatDataset(tmp_path / p) for p in ("pa", "pb", "pc"))
    here = a[0].gaussians.means
    assert torch.equal(here, b[b.uids.index("chair/7")].gaussians.means)
    assert not torch.equal(here, c[0].gaussians.means)


@pytest.mark.parametrize("quantize", [None, "u16"])
def test_equal_input_gives_equal_bytes_wherever_it_is_packed(make_build, tmp_path, quantize):
    one, two = six(make_build("a")), six(make_build("b"))
    pack(one.path, tmp_path / "p" / "x", objects_per_shard=4, quantize=quantize)
    time.sleep(1.1)  # a time stamp in the file would now differ
    pack([two.path], tmp_path / "q", objects_per_shard=4, quantize=quantize)
    first = contents(tmp_path / "p" / "x")
    assert first == contents(tmp_path / "q")
    assert set(first) == {"pack.json", "index.parquet", "shard_00000.h5", "shard_00001.h5"}


def test_packing_again_does_nothing_and_other_input_is_refused(make_build, tmp_path):
    build, out = six(make_build()), tmp_path / "p"
    assert not pack(build.path, out).already
    times = {p: p.stat().st_mtime_ns for p in out.iterdir()}
    assert pack(build.path, out).already
    assert times == {p: p.stat().st_mtime_ns for p in out.iterdir()}
    build.add("chair/new")
    with pytest.raises(InputError, match="other objects or options"):
        pack(build.path, out)
    with pytest.raises(InputError, match="other objects or options"):
        pack(build.path, out, seed=9)


def test_failed_objects_are_counted_with_their_reasons_and_not_packed(make_build, tmp_path):
    build = six(make_build()).fail("chair/bad").fail("lamp/worse", "no texture", "render")
    build.record("skipped/tree_x", {"uid": "skipped/x.blend", "category": "", "status": "failed", "reason": "format"})
    report = pack(build.path, tmp_path / "p")
    assert (report.objects, report.failed, report.classes) == (6, 3, 1)
    assert report.failures == {"load: no faces": 1, "render: no texture": 1, ": format": 1}
    assert "chair/bad" not in SplatDataset(tmp_path / "p").uids


def test_one_name_in_two_builds_is_refused_naming_both_files(make_build, tmp_path):
    one, two = six(make_build("a")), make_build("b").add("chair/3")
    with pytest.raises(InputError) as error:
        pack([one.path, two.path], tmp_path / "p")
    for build in (one, two):
        assert str(build.path / "splats" / "chair" / "3.ply") in str(error.value)
    assert not (tmp_path / "p").exists()


def test_several_builds_become_one_pack_whatever_their_order(make_build, tmp_path):
    one, two = six(make_build("a")), make_build("b", config_hash="beef").add("table/1", "test")
    pack([one.path, two.path], tmp_path / "p")
    pack([two.path, one.path], tmp_path / "q")
    assert contents(tmp_path / "p") == contents(tmp_path / "q")
    assert SplatDataset(tmp_path / "p").class_names == ("chair", "table")


def test_a_splat_that_changed_after_its_record_is_refused(make_build, tmp_path):
    build = six(make_build())
    file = build.path / "splats" / "chair" / "2.ply"
    file.write_bytes(file.read_bytes()[:-1] + b"\x01")
    with pytest.raises(InputError, match=r"chair/2\.ply: differs from its record"):
        pack(build.path, tmp_path / "p")
    assert not (tmp_path / "p" / "pack.json").exists()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda b: (b.path / "splats/chair/2.ply").unlink(), "is missing"),
        (lambda b: (b.path / "points/chair/2.npz").write_bytes(b"PK"), "not readable as surface points"),
        (lambda b: b.add("chair/2", gaussians=7), "40 Gaussians, its record says 7"),
        (lambda b: b.add("chair/2", part_names=["other"]), "parts of 'chair'"),
        (lambda b: (b.path / "records/chair/2.json").write_text("{"), "not readable as JSON"),
        (lambda b: b.add("chair/2", split="validation"), "'split'"),
        (lambda b: b.record("chair/2", {"uid": "chair/3", "category": "chair", "status": "done"}), "record of"),
        (lambda b: b.record("chair/2", {"uid": "../2", "category": "..", "status": "done"}), "is not '<category>"),
    ],
)
def test_what_cannot_be_packed_is_named(make_build, tmp_path, spoil, message):
    build = six(make_build())
    spoil(build)
    with pytest.raises(InputError, match=message):
        pack(build.path, tmp_path / "p")
    assert not (tmp_path / "p" / "pack.json").exists()


def test_part_labels_beyond_the_names_are_refused(make_build, tmp_path):
    build = make_build().add("chair/1")
    file = build.path / "points" / "chair" / "1.npz"
    arrays = dict(np.load(file))
    np.savez(file, **{**arrays, "parts": np.full_like(arrays["parts"], 3)})
    with pytest.raises(InputError, match="part labels are 3 to 3, the category has 3 part names"):
        pack(build.path, tmp_path / "p")


def test_a_folder_with_other_things_is_refused(make_build, tmp_path):
    build = six(make_build())
    (tmp_path / "p").mkdir()
    (tmp_path / "p" / "thesis.tex").write_text("x")
    with pytest.raises(InputError, match=r"holds 'thesis\.tex'"):
        pack(build.path, tmp_path / "p")
    with pytest.raises(InputError, match=r"no build\.json"):
        pack(tmp_path / "p", tmp_path / "q")


def test_objects_of_different_sh_degree_share_a_shard_and_keep_their_own(make_build, tmp_path):
    build = make_build()
    for degree in (0, 1, 2, 3):
        build.add(f"chair/{degree}", degree=degree)
    pack(build.path, tmp_path / "p", val_fraction=0)
    dataset = SplatDataset(tmp_path / "p", "train")
    assert [s.gaussians.degree for s in dataset] == [0, 1, 2, 3]
    source = raw_rows(read_ply(build.path / "splats" / "chair" / "2.ply"))
    rows = raw_rows(dataset[2].gaussians)
    assert np.array_equal(rows[np.lexsort(rows.T)], source[np.lexsort(source.T)])


def test_raw_rows_and_gaussians_are_two_forms_of_one_thing(make_splat):
    for degree in (0, 3):
        g = make_splat(1, degree=degree)
        back = to_gaussians(raw_rows(g))
        assert all(torch.equal(getattr(g, f), getattr(back, f)) for f in ("means", "quats", "logit_opacities", "sh"))


def test_u16_keeps_every_value_within_the_stated_bound_in_28_bytes(make_splat, tmp_path, make_build):
    rows = np.concatenate([raw_rows(make_splat(2, 500)), np.full((500, 1), 3.25, np.float32)], axis=1)
    rows[:, 3] = rows[:, 3] * 1e-3 + 500  # an offset column, where float32 rounding dominates
    stored, low, high = quantized(rows)
    bound = (high.astype(np.float64) - low) / 131070 + 2.0**-22 * np.maximum(abs(low), abs(high))
    error = np.abs(dequantized(stored, low, high).astype(np.float64) - rows)
    assert stored.dtype == np.uint16 and (error <= bound).all()
    assert (error.max(axis=0)[:3] > bound[:3] / 4).all()  # the bound is not an idle one
    build = make_build().add("chair/1", count=5000)
    pack(build.path, tmp_path / "u", quantize="u16", val_fraction=0)
    pack(build.path, tmp_path / "f", val_fraction=0)
    u, f = SplatDataset(tmp_path / "u").rows(0), SplatDataset(tmp_path / "f").rows(0)
    span = f.max(axis=0) - f.min(axis=0)
    assert np.abs(u - f).max() > 0 and (np.abs(u - f) <= span / 131070 + 1e-6).all()
    sizes = [sum(p.stat().st_size for p in (tmp_path / d).glob("*.h5")) for d in "uf"]
    assert sizes[1] - sizes[0] > 5000 * 28 * 0.9


def test_objects_below_the_asked_quality_are_left_out_and_counted(make_build, tmp_path):
    build = six(make_build()).add("chair/poor", psnr=12.0).add("chair/unknown", psnr=None)
    report = pack(build.path, tmp_path / "p", min_psnr=20)
    assert (report.objects, report.below_psnr) == (6, 2)
    with pytest.raises(InputError, match="no finished object"):
        pack(build.path, tmp_path / "q", min_psnr=99)


def test_the_index_says_where_everything_lies(packed):
    table = pq.read_table(packed / "index.parquet").to_pylist()
    assert len(table) == 24 and table[0]["uid"] == "chair/0000"
    for row in table:
        shard = Shard(packed / f"shard_{row['shard']:05d}.h5")
        assert shard.uids[row["row"]] == row["uid"] and shard.splits[row["row"]] == row["split"]
        assert row["stop"] - row["start"] == row["gaussians"] == len(shard.rows(row["row"]))
    info = json.loads((packed / "pack.json").read_text())
    assert info["splits"] == {"train": 16, "val": 2, "test": 6} and info["split_rule"]["carved"] == 2


class Stop(Exception):
    """Stands for whatever ends a run."""


@pytest.mark.parametrize("where", ["write_shard", "index_row", "write_index", "write_json"])
def test_a_run_that_breaks_leaves_no_pack_and_the_next_one_finishes_it(make_build, tmp_path, monkeypatch, where):
    build, out = six(make_build()), tmp_path / "p"
    pack(build.path, tmp_path / "whole", objects_per_shard=2)
    original, calls = getattr(data.shards, where), [0]

    def breaks(*args, **kwargs):
        calls[0] += 1
        result = original(*args, **kwargs) if where == "write_shard" else None
        if calls[0] == (2 if where == "write_shard" else 1):
            raise Stop
        return result if where == "write_shard" else original(*args, **kwargs)

    with monkeypatch.context() as patch, pytest.raises(Stop):
        patch.setattr(data.shards, where, breaks)
        pack(build.path, out, objects_per_shard=2)
    assert not (out / "pack.json").exists() and not list(out.glob(".aside-*"))
    for shard in out.glob("shard_*.h5"):
        Shard(shard)
    with pytest.raises(InputError, match="run the same `gsmae pack` again"):
        SplatDataset(out)
    report = pack(build.path, out, objects_per_shard=2)
    assert report.reused == {"write_shard": 1, "index_row": 1, "write_index": 3, "write_json": 3}[where]
    assert contents(out) == contents(tmp_path / "whole") and verify(out).ok


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_disk_that_fails_at_any_step_leaves_no_half_pack(make_build, tmp_path, monkeypatch, call):
    """ENOSPC at the k-th flush or rename, for every k until a run needs no more of them."""
    build = six(make_build())
    pack(build.path, tmp_path / "whole", objects_per_shard=2)
    for k in range(1, 100):
        out, calls = tmp_path / f"p{k}", [0]
        owner = os if call == "fsync" else Path
        original = getattr(owner, call)

        def fails(*args, original=original, calls=calls, k=k):
            calls[0] += 1
            if calls[0] == k:
                raise OSError(28, "No space left on device")
            return original(*args)

        with monkeypatch.context() as patch:
            patch.setattr(owner, call, fails)
            try:
                pack(build.path, out, objects_per_shard=2)
                break
            except InputError as error:
                assert "No space left" in str(error)
        assert not list(out.glob(".aside-*"))
        if (out / "pack.json").exists():  # renamed; only the flush of the folder failed
            assert verify(out).ok
        assert pack(build.path, out, objects_per_shard=2).objects == 6
        assert contents(out) == contents(tmp_path / "whole")
    assert k == (11 if call == "fsync" else 6)


def test_shards_of_an_interrupted_pack_with_other_options_are_not_taken_over(make_build, tmp_path, monkeypatch):
    build, out = six(make_build()), tmp_path / "p"
    with monkeypatch.context() as patch, pytest.raises(Stop):
        patch.setattr(data.shards, "write_json", lambda *_: (_ for _ in ()).throw(Stop()))
        pack(build.path, out, objects_per_shard=1)
    assert len(list(out.glob("*.h5"))) == 6
    report = pack(build.path, out, objects_per_shard=4, seed=5)
    assert report.reused == 0 and len(list(out.glob("*.h5"))) == 2 and verify(out).ok


def test_a_killed_pack_publishes_nothing_unreadable(make_build, tmp_path):
    build = make_build()
    for i in range(60):
        build.add(f"chair/{i}", count=200)
    pack(build.path, tmp_path / "whole", objects_per_shard=2)
    out = tmp_path / "p"
    code = f"from data.shards import pack; print('ready', flush=True); pack({str(build.path)!r}, {str(out)!r}, "
    code += "objects_per_shard=2)"
    killed = 0
    for attempt in range(3):
        process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, cwd=Path(__file__).parents[2])
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(0.03 + 0.06 * attempt)
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
        killed += process.wait() == -signal.SIGKILL
        process.stdout.close()
        for shard in out.glob("shard_*.h5"):
            Shard(shard)
        assert (out / "pack.json").exists() == (process.returncode == 0)
    assert killed >= 1
    pack(build.path, out, objects_per_shard=2)
    assert contents(out) == contents(tmp_path / "whole")


def test_a_pack_has_one_fingerprint_whichever_pyarrow_wrote_its_index(packed, tmp_path):
    def told(change, name: str) -> str:
        """The fingerprint of a copy whose index was rewritten, its hash noted as a packer would."""
        copy = shutil.copytree(packed, tmp_path / name)
        info = json.loads((copy / "pack.json").read_text())
        change(copy, info)
        (copy / "pack.json").write_text(json.dumps(info))
        return SplatDataset(copy).fingerprint

    def rewritten(copy, info):
        table = pq.read_table(copy / "index.parquet")
        pq.write_table(table, copy / "index.parquet", compression="snappy")
        content = (copy / "index.parquet").read_bytes()
        assert info["index"]["sha256"] != hashlib.sha256(content).hexdigest()
        info["index"] |= {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
        info["generator"] = "gsmae 99"

    here = SplatDataset(packed).fingerprint
    assert told(rewritten, "elsewhere") == here
    assert told(lambda copy, info: info["index"].update(contents="0" * 64), "other rows") != here
    assert told(lambda copy, info: info["shards"][0].update(sha256="0" * 64), "other shard") != here
    # packs from before keep theirs, so that runs made with them are found again
    assert (
        told(lambda copy, info: info["index"].pop("contents"), "old")
        == hashlib.sha256((tmp_path / "old" / "pack.json").read_bytes()).hexdigest()
    )
