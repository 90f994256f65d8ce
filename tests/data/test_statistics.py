from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from conftest import splat

from data.centroids import CROWDING, REACH, SCORES, as_table, centroids, compare, summary
from data.objects import Objects
from data.shards import pack
from data.statistics import ALL, EDGES, MEASURES, PERCENTS, RATIO, Histogram, as_text, measured, rows, statistics
from gsmae.cli import main
from gsmae.errors import InputError
from gsmae.gaussians import Gaussians
from gsmae.ply import write_ply


@pytest.fixture
def a_build(make_build):
    made = make_build("build")
    made.add("chair/a", count=3000, psnr=31.0).add("chair/b", count=5000, split="test", psnr=33.0)
    made.add("table/c", count=4000, psnr=None)
    return made.fail("table/e")


@pytest.mark.parametrize("name", list(EDGES))
def test_a_histogram_knows_moments_exactly_and_percentiles_within_a_bin(name):
    rng = np.random.default_rng(1)
    logs = rng.normal(-5, 1.5, 200_000)
    values = {"opacity": 1 / (1 + np.exp(-logs - 5)), "scale": np.exp(logs), "anisotropy": np.exp(np.abs(logs))}[name]
    h = Histogram(EDGES[name])
    for part in np.array_split(values, [10, 11, 11, 5000, 120_000]):
        h.add(part)
    s = h.spread()
    np.testing.assert_allclose([s.mean, s.std], [values.mean(), values.std()], rtol=1e-9)
    assert (s.count, s.minimum, s.maximum) == (200_000, values.min(), values.max())
    exact = np.percentile(values, PERCENTS)
    found = np.array([s.percentiles[p] for p in PERCENTS])
    if name == "opacity":
        assert np.abs(found - exact).max() < 1e-3
    else:
        assert np.abs(np.log(found / exact)).max() < np.log(RATIO)


def test_merged_histograms_are_the_histogram_of_everything():
    rng = np.random.default_rng(2)
    a, b, both = (Histogram(EDGES["scale"]) for _ in range(3))
    x, y = rng.lognormal(-4, 1, 1000), rng.lognormal(-6, 2, 50)
    a.add(x), b.add(y), both.add(np.concatenate([x, y]))
    a.merge(b)
    a.merge(Histogram(EDGES["scale"]))
    one, other = a.spread(), both.spread()
    assert one.percentiles == other.percentiles and (one.count, one.maximum) == (other.count, other.maximum)
    np.testing.assert_allclose([one.mean, one.std], [other.mean, other.std], rtol=1e-12)


def test_values_beyond_the_edges_are_counted_and_the_range_stays_true():
    h = Histogram(EDGES["scale"])
    h.add(np.array([1e-30, 1.0, 1e30]))
    s = h.spread()
    assert (s.count, s.minimum, s.maximum) == (3, 1e-30, 1e30)
    assert s.percentiles[50] == pytest.approx(1.0, rel=0.002)
    assert Histogram(EDGES["scale"]).spread().count == 0


def test_a_class_is_the_pool_of_its_objects(a_build):
    found = statistics(a_build.path)
    assert list(found.classes) == ["chair", "table", ALL] and (found.kind, found.failed) == ("build", 1)
    chair, everything = found.classes["chair"], found.classes[ALL]
    assert (chair.objects, chair.gaussians, chair.splits) == (2, 8000, {"test": 1, "train": 1})
    assert (everything.objects, everything.gaussians) == (3, 12000)
    assert chair.measures["psnr"].mean == 32 and found.classes["table"].measures["psnr"].count == 0
    assert everything.measures["psnr"].count == 2
    objects = Objects(a_build.path, classes=["chair"])
    pooled = [measured(objects.gaussians(i)) for i in range(2)]
    for name in ("opacity", "scale", "anisotropy"):
        values = np.concatenate([p[name] for p in pooled])
        assert chair.measures[name].mean == pytest.approx(values.mean(), rel=1e-9)
        assert chair.measures[name].median == pytest.approx(np.median(values), rel=0.002)


def test_measures_are_what_they_say():
    g = splat(0, 3)
    g = g.replace(
        log_scales=np_tensor([[0, 0, 0], [-1, -3, -2], [-20, 0, -1]]), logit_opacities=np_tensor([0, 30, -30])
    )
    values = measured(g)
    np.testing.assert_allclose(values["scale"], np.exp([0, -2, -7]), rtol=1e-6)
    np.testing.assert_allclose(values["anisotropy"], np.exp([0, 2, 20]), rtol=1e-6)
    np.testing.assert_allclose(values["opacity"], [0.5, 1, 0], atol=1e-6)


def np_tensor(values):
    import torch

    return torch.tensor(values, dtype=torch.float32)


def test_a_pack_has_the_statistics_of_its_build(a_build, tmp_path):
    pack(a_build.path, tmp_path / "pack", val_fraction=0)
    one, two = statistics(a_build.path).classes, statistics(tmp_path / "pack").classes
    for name in one:
        for measure in MEASURES:
            a, b = one[name].measures[measure], two[name].measures[measure]
            assert (a.count, a.minimum, a.maximum) == (b.count, b.minimum, b.maximum)
            assert a.percentiles == b.percentiles


def test_a_broken_object_is_named_and_the_rest_counted(a_build, capsys):
    broken = a_build.path / "splats/chair/a.ply"
    broken.write_bytes(broken.read_bytes()[:-7])
    assert main(["stats", str(a_build.path), "--json", "--compare", "0"]) == 4
    said = json.loads(capsys.readouterr().out)
    assert "cut off" in said["broken"]["chair/a"] and said["classes"][ALL]["objects"] == 2
    with pytest.raises(InputError, match="cut off"):
        statistics(broken)


def test_the_table_has_a_row_for_each_class_and_measure(a_build):
    found = statistics(a_build.path)
    table = list(rows(found))
    assert [(r["class"], r["measure"]) for r in table] == [
        (c, m) for c in ("chair", "table", ALL) for m in MEASURES if (c, m) != ("table", "psnr")
    ]
    assert all(r["min"] <= r["p5"] <= r["p50"] <= r["p95"] <= r["max"] for r in table)
    lines = as_text(found)
    assert lines[1].startswith("chair") and "32.00 ± 1.00" in lines[1] and len({len(x) for x in lines[:4]}) == 1


def square(count: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Uniform points on a square in the unit circle, and their normals."""
    points = np.zeros((count, 3), dtype=np.float32)
    points[:, :2] = rng.uniform(-0.7, 0.7, (count, 2))
    return points, np.tile(np.float32([0, 0, 1]), (count, 1))


def test_uniform_points_score_as_chance_does():
    rng = np.random.default_rng(3)
    points, normals = square(8192, rng)
    found, centres, surface = compare(square(9000, rng)[0], points, normals, uid="x")
    assert centres.shape == surface.shape == (2048, 3) and found.points == 2048
    for name in ("spacing", "unevenness", "to_surface", "from_surface", "chamfer", "coverage"):
        assert getattr(found.centres, name) == pytest.approx(getattr(found.surface, name), rel=0.08), name
    assert found.centres.unevenness == pytest.approx(0.523, abs=0.03)  # of a Rayleigh distribution
    assert found.centres.coverage == pytest.approx(1 - np.exp(-np.pi / 4), abs=0.03)
    assert found.centres.height == found.surface.height == 0
    theory = np.exp(-np.pi / 4 * CROWDING[:-1] ** 2) - np.exp(-np.pi / 4 * CROWDING[1:] ** 2)
    assert np.abs(found.crowding - theory).max() < 0.02
    assert np.abs(found.reach - (1 - np.exp(-np.pi / 4 * REACH**2))).max() < 0.05


def test_a_lattice_clusters_and_lifted_points_are_told_apart():
    rng = np.random.default_rng(4)
    points, normals = square(8192, rng)
    axis = np.linspace(-0.69, 0.69, 45)
    lattice = np.stack([*np.meshgrid(axis, axis), np.zeros((45, 45))], axis=-1).reshape(-1, 3).astype(np.float32)
    clusters = square(60, rng)[0][rng.integers(0, 60, 4000)] + rng.normal(0, 0.02, (4000, 3)).astype(np.float32) * [
        1,
        1,
        0,
    ]
    lifted = square(4000, rng)[0] + np.float32([0, 0, 0.05])
    a, b, c = (compare(m.astype(np.float32), points, normals)[0] for m in (lattice, clusters, lifted))
    assert a.centres.unevenness < 0.01 and a.centres.coverage > a.surface.coverage + 0.1
    assert b.centres.unevenness > 0.6 and b.centres.spacing < 0.6 * b.surface.spacing
    assert b.centres.coverage < 0.7 * b.surface.coverage and b.centres.from_surface > 2 * b.surface.from_surface
    unit = np.linalg.norm(points - (points.min(0) + points.max(0)) / 2, axis=1).max()
    assert c.centres.height == pytest.approx(0.05 / unit, rel=1e-4) and c.centres.unevenness == pytest.approx(
        0.52, abs=0.03
    )


def test_comparisons_do_not_depend_on_place_size_or_the_other_objects():
    rng = np.random.default_rng(5)
    points, normals = square(1000, rng)
    means = square(700, rng)[0] * np.float32(0.9)
    a = compare(means, points, normals, uid="x")[0]
    b = compare(means * 8 + 3, points * 8 + 3, normals, uid="x")[0]
    for name in SCORES:
        assert getattr(a.centres, name) == pytest.approx(getattr(b.centres, name), rel=1e-3, abs=1e-5)
    assert compare(means, points, normals, uid="x", seed=1)[0].centres != a.centres
    assert a.points == 500
    with pytest.raises(ValueError, match="too few"):
        compare(means[:5], points, normals)


def test_no_reference_point_is_among_the_surface_samples():
    """Else what chance gives would look better than it is."""
    points, normals = square(600, np.random.default_rng(6))
    found, _, surface = compare(points, points, normals)
    assert len(np.unique(surface, axis=0)) == 300 and found.surface.to_surface > 0.5 * found.surface.spacing


def test_a_build_and_its_pack_compare_alike_and_objects_without_samples_are_counted(a_build, tmp_path):
    (a_build.path / "points/table/c.npz").unlink()
    pack(a_build.path, tmp_path / "pack", val_fraction=0)
    one, two = centroids(a_build.path), centroids(tmp_path / "pack")
    assert one is not None and two is not None and one.without == two.without == 1
    assert [c.uid for c in one.objects] == [c.uid for c in two.objects] == ["chair/a", "chair/b"]
    for a, b in zip(one.objects, two.objects, strict=True):  # although a pack shuffles both
        assert (a.surface, a.centres) == (b.surface, b.centres)
    said = summary(one)
    assert said["objects"] == 2 and set(said["scores"]) == set(SCORES)
    assert len(as_table(one)) == 2 and one.example[0] in ("chair/a", "chair/b")
    for uid in ("chair/a", "chair/b"):
        (a_build.path / f"points/{uid}.npz").unlink()
    assert centroids(a_build.path) is None


def test_the_command_writes_tables_and_the_figure(a_build, tmp_path, capsys):
    argv = ["stats", str(a_build.path), "--out", str(tmp_path / "o"), "--json"]
    assert main(argv) == 0
    said = json.loads(capsys.readouterr().out)
    assert json.loads((tmp_path / "o/statistics.json").read_text()) == said
    assert said["centroids"]["objects"] == 3 and said["centroids"]["scores"]["chamfer"]["higher"] in range(4)
    names = {f.name for f in (tmp_path / "o").iterdir()}
    assert names == {"statistics.json", "statistics.csv", "centroids.csv", "centroids.png", "centroids.svg"}
    with (tmp_path / "o/statistics.csv").open() as file:
        table = list(csv.DictReader(file))
    assert {r["class"] for r in table} == {"chair", "table", ALL} and float(table[0]["mean"]) == 4000
    from PIL import Image

    with Image.open(tmp_path / "o/centroids.png") as picture:
        values = np.asarray(picture.convert("RGB")).reshape(-1, 3)
    assert len(values) > 1e6 and len(np.unique(values, axis=0)) > 50 and (values[0] == 255).all()
    assert "<svg" in (tmp_path / "o/centroids.svg").read_text()


def test_a_single_splat_has_statistics_too(tmp_path, capsys):
    g: Gaussians = splat(8, 500)
    write_ply(tmp_path / "a.ply", g)
    assert main(["stats", str(tmp_path / "a.ply")]) == 0
    assert "500 ± 0" in capsys.readouterr().out
    assert (
        main(["stats", str(tmp_path / "none")]) == 3 and main(["stats", str(tmp_path / "a.ply"), "--radius", "-1"]) == 3
    )


@pytest.mark.slow
def test_centres_of_fitted_splats_are_not_uniform_on_the_surface(examples: Path, tmp_path):
    """ShapeSplat's first claim, on real objects fitted from uniform points."""
    code = main(["build", str(examples / "meshes"), "--out", str(tmp_path / "b"), "--profile", "fast", "--limit", "2"])
    assert code == 0
    found = centroids(tmp_path / "b")
    assert found is not None
    said = summary(found)["scores"]
    assert said["chamfer"]["higher"] == said["height"]["higher"] == len(found.objects)
    assert said["coverage"]["higher"] == 0 and said["coverage"]["ratio"].median < 0.95
