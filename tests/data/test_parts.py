"""ShapeNetPart's labelled points lie on the splats: joined by id, brought into frame and scale, labels untouched."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from data.datasets import SplatDataset
from data.parts import APART, categories, labelled, placed, read_labels
from data.released import read_released
from data.shards import pack
from gsmae.cli import main
from gsmae.errors import InputError
from gsmae.gaussians import Gaussians
from gsmae.ply import write_ply

CHAIR, TABLE, MUG = "03001627", "04379243", "03797390"


def surface(count: int, seed: int, uneven: bool = False) -> np.ndarray:
    """Points on an object with truth known: a plate at z = 0 and a pole up from one corner of it, z up."""
    rng = np.random.default_rng(seed)
    plate = rng.uniform(-1, 1, (count, 3)) * [0.5, 0.3, 0]
    if uneven:  # as a fit does: more Gaussians where there is more to see
        plate = plate[rng.random(count) < np.where(plate[:, 0] > 0, 1, 0.2)]
    angle, height = rng.uniform(0, 2 * np.pi, count // 3), rng.uniform(0, 0.8, count // 3)
    pole = np.stack([0.4 + 0.05 * np.cos(angle), 0.2 + 0.05 * np.sin(angle), height], axis=1)
    return np.concatenate([plate, pole])


def splat_of(points: np.ndarray, seed: int = 0, floaters: int = 0, mist: int = 0) -> Gaussians:
    """Gaussians on a surface, opaque ones that float beside it, and a faint mist around it."""
    rng = np.random.default_rng(seed)
    around = rng.normal(size=(floaters + mist, 3))
    around *= rng.uniform(1.2, 2, (len(around), 1)) / np.linalg.norm(around, axis=1, keepdims=True)
    means = torch.from_numpy(np.concatenate([points, around])).float()
    opacity = torch.cat([torch.full((len(points) + floaters,), 3.0), torch.full((mist,), -3.0)])
    n = len(means)
    return Gaussians(means, torch.eye(4)[:1].repeat(n, 1), torch.full((n, 3), -5.0), opacity, torch.zeros(n, 1, 3))


def annotated(points: np.ndarray, first: int) -> str:
    """The same object as ShapeNetPart has it: y up, centroid at 0, in the unit sphere; plate and pole are two parts."""
    rows = np.stack([points[:, 0], points[:, 2], -points[:, 1]], axis=1)
    rows = rows - rows.mean(axis=0)
    rows /= np.linalg.norm(rows, axis=1).max()
    parts = first + (points[:, 2] > 0)
    return "\n".join(f"{x:.5f} {y:.5f} {z:.5f} 0 1 0 {k:.6f}" for (x, y, z), k in zip(rows, parts, strict=True))


class Benchmark:
    """Writes a small ShapeNetPart."""

    def __init__(self, path: Path):
        self.path, self.lists = path, {"train": [], "val": [], "test": []}
        path.mkdir(parents=True)
        lines = [f"{c.name}\t{c.synset}" for c in categories().values()]
        (path / "synsetoffset2category.txt").write_text("\n".join(lines) + "\n")

    def add(self, synset: str, name: str, split: str, text: str | None = None) -> Benchmark:
        if text is None:
            text = annotated(surface(600, 7), categories()[synset].first)
        (self.path / synset).mkdir(exist_ok=True)
        (self.path / synset / f"{name}.txt").write_text(text)
        self.lists[split].append(f"shape_data/{synset}/{name}")
        (self.path / "train_test_split").mkdir(exist_ok=True)
        for kind, names in self.lists.items():
            (self.path / "train_test_split" / f"shuffled_{kind}_file_list.json").write_text(json.dumps(names))
        return self


@pytest.fixture
def benchmark_folder(tmp_path) -> Benchmark:
    return Benchmark(tmp_path / "partanno")


def test_the_table_has_sixteen_categories_and_fifty_parts_one_after_another():
    table = sorted(categories().values(), key=lambda c: c.synset)
    assert len(table) == 16 and sum(len(c.parts) for c in table) == 50
    firsts = np.cumsum([0] + [len(c.parts) for c in table[:-1]])
    assert [c.first for c in table] == firsts.tolist()
    assert all(len(set(c.parts)) == len(c.parts) for c in table)
    assert [c.name for c in table] == sorted(c.name for c in table)


@pytest.mark.parametrize("floaters", [0, 20])
@pytest.mark.parametrize(("scale", "shift"), [(1.0, (0, 0, 0)), (0.3, (0.2, -0.1, 0.4)), (50.0, (-90, 3, 7))])
def test_points_are_brought_onto_a_splat_whose_scale_and_place_are_unknown(scale, shift, floaters):
    truth = surface(2000, 1)
    splat = splat_of(surface(9000, 2, uneven=True), floaters=floaters, mist=100)
    moved = splat.replace(means=splat.means * scale + torch.tensor(shift))
    given = (truth - truth.mean(axis=0)) / np.linalg.norm(truth - truth.mean(axis=0), axis=1).max()
    p = placed(given, moved)
    error = np.linalg.norm(p.scale * given + p.shift - (truth * scale + shift), axis=1)
    assert error.mean() < 0.005 * scale and error.max() < 0.01 * scale  # the object's radius is about 0.8
    assert p.error < APART / 2


def test_gaussians_that_are_not_finite_do_not_move_the_points():
    truth = surface(2000, 1)
    splat = splat_of(surface(9000, 2))
    spoilt = splat.means.clone()
    spoilt[::50] = torch.tensor([float("nan"), 0, float("inf")])
    p = placed(truth, splat.replace(means=spoilt))
    assert abs(p.scale - 1) < 0.01 and np.abs(p.shift).max() < 0.005
    with pytest.raises(ValueError, match="no finite Gaussian"):
        placed(truth, splat.replace(means=spoilt * float("nan")))


def test_points_of_another_object_are_told(caplog, benchmark_folder, tmp_path):
    rng = np.random.default_rng(0)
    ball = rng.normal(size=(2000, 3))
    write_ply(tmp_path / "s" / f"{CHAIR}-a.ply", splat_of(ball / np.linalg.norm(ball, axis=1, keepdims=True)))
    benchmark_folder.add(CHAIR, "a", "train")
    build = labelled(read_released(tmp_path / "s"), read_labels(benchmark_folder.path))
    assert "off the splat" in build.done[0].warnings[-1] and "off the splat" in caplog.text


def test_labels_join_splats_by_id_across_synsets_and_everything_is_accounted_for(benchmark_folder, tmp_path):
    folder = tmp_path / "splats"
    for name in (f"{CHAIR}-a", f"{TABLE}-b", "02828884-c", f"{TABLE}-a", f"{TABLE}-unlabelled"):
        write_ply(folder / f"{name}.ply", splat_of(surface(3000, len(name))))
    (folder / f"{TABLE}-broken.ply").write_text("ply")
    benchmark_folder.add(CHAIR, "a", "train").add(TABLE, "b", "val").add(TABLE, "c", "test").add(CHAIR, "none", "train")
    benchmark_folder.add(TABLE, "broken", "train").add(CHAIR, "words", "train", "a b c").add(TABLE, "gone", "train")
    write_ply(folder / f"{CHAIR}-words.ply", splat_of(surface(3000, 5)))
    (benchmark_folder.path / TABLE / "gone.txt").unlink()
    labels = read_labels(benchmark_folder.path)
    build = labelled(read_released(folder, names=labels.names), labels)
    assert {r.uid: (r.split, build.splat(r).name) for r in build.done} == {
        f"{CHAIR}/a": ("train", f"{CHAIR}-a.ply"),  # its own synset before another
        f"{TABLE}/b": ("val", f"{TABLE}-b.ply"),
        f"{TABLE}/c": ("test", "02828884-c.ply"),  # filed anew: the labels' category counts
    }
    assert "02828884/c" in next(r for r in build.done if r.uid.endswith("/c")).warnings[-1]
    reasons = {r.uid.split("/")[1]: r.reason for r in build.failed}
    assert "no splat" in reasons["none"] and "read: no 'end_header'" in reasons["broken"]
    assert "rows of numbers" in reasons["words"] and "no points there" in reasons["gone"]
    report = pack(build, tmp_path / "p")
    assert (report.objects, report.failed, report.splits) == (3, 4, {"train": 1, "val": 1, "test": 1})


def test_packed_points_lie_in_the_splats_frame_with_their_own_labels(benchmark_folder, tmp_path):
    shape = surface(600, 7) * 0.4 + [0.1, 0.2, 0.3]
    write_ply(tmp_path / "s" / f"{CHAIR}-a.ply", splat_of(surface(4000, 3) * 0.4 + [0.1, 0.2, 0.3]))
    benchmark_folder.add(CHAIR, "a", "train")
    build = labelled(read_released(tmp_path / "s"), read_labels(benchmark_folder.path))
    pack(build, tmp_path / "p")
    found = SplatDataset(tmp_path / "p")[0].surface
    assert found is not None
    nearest = torch.cdist(found.points, torch.from_numpy(shape).float()).argmin(dim=1).numpy()
    assert np.linalg.norm(found.points.numpy() - shape[nearest], axis=1).max() < 0.01
    assert len(found.points) == len(shape) and len(set(nearest.tolist())) > 0.95 * len(shape)  # none is lost
    assert (found.parts.numpy() == (shape[nearest, 2] > 0.3)).mean() > 0.99  # but for those where pole and plate meet
    assert torch.allclose(found.normals, torch.tensor([0.0, 0.0, 1.0]))  # y up became z up


def test_zips_on_both_sides_with_all_categories_give_the_benchmarks_fifty_labels(benchmark_folder, tmp_path):
    splats = splat_of(surface(300, 3))
    write_ply(tmp_path / "one.ply", splats)
    with zipfile.ZipFile(tmp_path / "all_0.zip", "w") as file:
        for c in categories().values():
            file.write(tmp_path / "one.ply", f"{c.synset}-m{c.first}.ply")
            text = annotated(surface(60, 7), c.first)
            last = text.splitlines()[-1].rsplit(" ", 1)[0] + f" {c.first + len(c.parts) - 1}"
            benchmark_folder.add(c.synset, f"m{c.first}", "train", text + "\n" + last)
    with zipfile.ZipFile(tmp_path / "partanno.zip", "w") as file:
        for path in sorted(benchmark_folder.path.rglob("*.*")):
            file.write(path, path.relative_to(tmp_path))
    code = main(["pack", str(tmp_path / "all_0.zip"), "--parts", str(tmp_path / "partanno.zip"), "--val", "0",
                 "--out", str(tmp_path / "p"), "--json"])  # fmt: skip
    dataset = SplatDataset(tmp_path / "p")
    assert code == 0 and dataset.n_parts == 50 and len(dataset) == 16
    for sample in dataset:
        c = categories()[sample.category]
        assert sample.surface is not None
        assert set(sample.surface.parts.tolist()) == {c.first, c.first + 1, c.first + len(c.parts) - 1}


@pytest.mark.parametrize(
    ("text", "cause"),
    [("1 2 3 4 5 6 0", "labels 0 to 0"), ("1 2 3 4 5 6 12.5", "labels 12.5"), ("1 2 3", "3 columns"),
     ("nan 2 3 4 5 6 12", "non-finite"), ("", "no points"), ("1 2 3 0 0 1 12\n1 2 3 0 0 1 12", "no extent")],
)  # fmt: skip
def test_points_that_are_not_the_categorys_are_failed_records(benchmark_folder, tmp_path, text, cause):
    write_ply(tmp_path / "s" / f"{CHAIR}-a.ply", splat_of(surface(300, 3)))
    benchmark_folder.add(CHAIR, "a", "train", text)
    build = labelled(read_released(tmp_path / "s"), read_labels(benchmark_folder.path))
    assert not build.done and cause in (build.failed[0].reason or "")


def test_other_folders_and_unknown_categories_are_refused(benchmark_folder, tmp_path):
    with pytest.raises(InputError, match="no such"):
        read_labels(tmp_path / "none")
    with pytest.raises(InputError, match=r"holds no SYNSET/ID\.txt"):
        read_labels(benchmark_folder.path)
    benchmark_folder.add(CHAIR, "a", "train")
    with (benchmark_folder.path / "synsetoffset2category.txt").open("a") as file:
        file.write("Boat\t04530566\n")
    with pytest.raises(InputError, match="'Boat 04530566' is not one of the 16"):
        read_labels(benchmark_folder.path)
    (benchmark_folder.path / "synsetoffset2category.txt").unlink()
    with pytest.raises(InputError, match="0 files synsetoffset2category"):
        read_labels(benchmark_folder.path)
