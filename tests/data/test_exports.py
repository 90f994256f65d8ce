from __future__ import annotations

import gzip
import importlib.util
import json
import struct
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import splat

from data import export_compact
from data.export_glb import NAME, read_glb, write_glb
from data.exports import FORMATS, SAME, export, padded, rendered_psnr
from data.objects import Objects
from data.shards import pack
from gsmae.cli import main
from gsmae.errors import GsmaeError, InputError
from gsmae.gaussians import Gaussians
from gsmae.ply import read_ply, write_ply

COMPACT = ("splat", "spz", "sog")
needs_gaussforge = pytest.mark.skipif(
    importlib.util.find_spec("gaussforge") is None, reason="gaussforge is not installed: pip install 'gsmae[formats]'"
)


def equal(a: Gaussians, b: Gaussians) -> bool:
    return all(torch.equal(x, y) for x, y in zip(vars(a).values(), vars(b).values(), strict=True))


def matched(a: Gaussians, b: Gaussians) -> Gaussians:
    """b in the order of a: some formats sort."""
    order = torch.cdist(a.means.double(), b.means.double()).argmin(dim=1)
    assert len(set(order.tolist())) == len(a) == len(b)
    return b[order]


def degrees_between(a: Gaussians, b: Gaussians) -> float:
    cosine = (a.rotations.double() * b.rotations.double()).sum(dim=1).abs().clamp(max=1)
    return float(cosine.acos().max() * 2 * 180 / np.pi)


@pytest.fixture(scope="module")
def lantern() -> Gaussians:
    """A real textured object: one flat Gaussian a surface sample, as a fit begins."""
    from preprocessing.fitting.fit import FitConfig, initialise
    from preprocessing.meshes import load_mesh
    from preprocessing.surface import sample_surface

    file = next((Path(__file__).parents[2] / "examples/meshes/lamp/lantern").rglob("*.obj"))
    return initialise(sample_surface(load_mesh(file), 4000, 0), FitConfig(initial=4000))


@pytest.fixture
def a_build(make_build):
    made = make_build("build")
    for uid, split in (("chair/a", "train"), ("chair/b.2", "train"), ("table/c", "test"), ("table/d", "train")):
        made.add(uid, split=split, degree=1 if uid == "table/d" else 0)
    return made.fail("table/e")


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_a_ply_comes_back_bit_by_bit_and_padded_with_zeros_where_asked(tmp_path, degree):
    g = splat(degree, 50, degree)
    write_ply(tmp_path / "in.ply", g)
    export(tmp_path / "in.ply", tmp_path / "out", "ply")
    assert equal(read_ply(tmp_path / "out/in.ply"), g)
    export(tmp_path / "in.ply", tmp_path / "sh3", "ply-sh3")
    wide = read_ply(tmp_path / "sh3/in.ply")
    assert b"f_rest_44" in (tmp_path / "sh3/in.ply").read_bytes()[:2000]
    assert torch.equal(wide.sh[:, : g.sh.shape[1]], g.sh) and not wide.sh[:, g.sh.shape[1] :].any()
    assert rendered_psnr(g, wide) == SAME
    assert equal(padded(wide), wide)


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_a_glb_holds_float32_exactly_and_reads_back(tmp_path, degree):
    g = splat(degree, 60, degree)
    write_glb(tmp_path / "a.glb", g)
    back = read_glb(tmp_path / "a.glb")
    assert torch.equal(back.means, g.means) and torch.equal(back.sh, g.sh)
    assert torch.equal(back.quats, g.rotations)
    torch.testing.assert_close(back.scales, g.scales, rtol=1e-6, atol=0)
    torch.testing.assert_close(back.opacities, g.opacities, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(back.log_scales, g.log_scales, rtol=0, atol=2e-6)
    assert rendered_psnr(g, back) == SAME
    write_glb(tmp_path / "b.glb", g)
    assert (tmp_path / "a.glb").read_bytes() == (tmp_path / "b.glb").read_bytes()


def test_a_glb_follows_the_extension(tmp_path):
    """KHR_gaussian_splatting, release candidate of 2026, sections Ellipse Kernel and Attributes."""
    g = splat(1, 30, degree=2)
    write_glb(tmp_path / "a.glb", g)
    raw = (tmp_path / "a.glb").read_bytes()
    length = struct.unpack_from("<I", raw, 12)[0]
    document = json.loads(raw[20 : 20 + length])
    primitive = document["meshes"][0]["primitives"][0]
    assert document["extensionsUsed"] == [NAME] and primitive["mode"] == 0
    assert primitive["extensions"][NAME]["kernel"] == "ellipse"
    assert primitive["extensions"][NAME]["colorSpace"] == "srgb_rec709_display"
    harmonics = {f"{NAME}:SH_DEGREE_{d}_COEF_{n}" for d in range(3) for n in range(2 * d + 1)}
    named = {f"{NAME}:{name}" for name in ("ROTATION", "SCALE", "OPACITY")} | {"POSITION", "COLOR_0"}
    assert set(primitive["attributes"]) == harmonics | named

    def values(name: str, width: int) -> np.ndarray:
        view = document["bufferViews"][document["accessors"][primitive["attributes"][name]]["bufferView"]]
        assert view["byteOffset"] % 4 == 0
        return np.frombuffer(raw, "<f4", 30 * width, 28 + length + view["byteOffset"]).reshape(30, width)

    np.testing.assert_array_equal(values(f"{NAME}:SCALE", 3), g.scales.numpy())
    np.testing.assert_array_equal(values(f"{NAME}:OPACITY", 1)[:, 0], g.opacities.numpy())
    xyzw = values(f"{NAME}:ROTATION", 4)
    np.testing.assert_array_equal(xyzw[:, [3, 0, 1, 2]], g.rotations.numpy())
    np.testing.assert_allclose(np.linalg.norm(xyzw, axis=1), 1, atol=1e-6)
    position = document["accessors"][primitive["attributes"]["POSITION"]]
    np.testing.assert_allclose(position["min"], g.means.amin(0))
    np.testing.assert_allclose(position["max"], g.means.amax(0))


def test_another_glTF_reader_sees_coloured_points_that_stand(tmp_path):
    import trimesh

    g = splat(2, 25)
    g = g.replace(sh=torch.full_like(g.sh, -1.0))  # below grey
    write_glb(tmp_path / "a.glb", g)
    cloud = trimesh.load_scene(tmp_path / "a.glb").to_geometry()
    assert isinstance(cloud, trimesh.PointCloud)
    x, y, z = g.means.numpy().T
    np.testing.assert_allclose(cloud.vertices, np.stack([x, z, -y], axis=1), atol=1e-6)  # y is up in glTF
    gray = 0.5 - 0.28209479
    linear = ((gray + 0.055) / 1.055) ** 2.4
    assert np.abs(np.asarray(cloud.colors)[:, :3] / 255 - linear).max() < 0.5 / 255 + 1e-6


def test_a_broken_or_foreign_glb_is_an_input_error(tmp_path):
    write_glb(tmp_path / "a.glb", splat(3, 20))
    raw = (tmp_path / "a.glb").read_bytes()
    rng = np.random.default_rng(0)
    broken = [raw[:k] for k in (0, 3, 19, 30, 400, len(raw) - 1)] + [raw + b"x"]
    broken += [raw.replace(b'"mode":0', b'"mode":4'), raw.replace(b'"count":20', b'"count":21')]
    broken += [raw.replace(b"KHR_gaussian", b"XHR_gaussian"), raw.replace(b'"nodes":[{', b'"nodez":[{')]
    for _ in range(60):
        at = int(rng.integers(20, struct.unpack_from("<I", raw, 12)[0]))
        broken.append(raw[:at] + bytes([int(rng.integers(32, 127))]) + raw[at + 1 :])
    refused = 0
    for content in broken:
        (tmp_path / "b.glb").write_bytes(content)
        try:
            assert len(read_glb(tmp_path / "b.glb")) == 20  # some bytes do not matter
        except InputError as error:
            refused += "b.glb" in str(error)
    assert refused > 40


BOUNDS = {  # means, log scales, degrees of rotation, opacities, base colours within 0..1
    "splat": (0, 1e-6, 1.0, 1 / 255, 1 / 255),
    "spz": (1 / 8192, 1 / 32, 0.25, 1 / 255, 0.5 * 0.2821 / 38.25),
    "sog": (1e-4, 0.05, 1.0, 1 / 255, 0.01),
}


@needs_gaussforge
@pytest.mark.parametrize("kind", COMPACT)
def test_compact_formats_keep_what_they_promise(tmp_path, kind):
    """Quaternions of any length and sign, opacities at both ends, every degree of SH: the bounds of docs/exports.md."""
    g = splat(5, 1500, degree=3)
    g = g.replace(sh=g.sh.clamp(-1, 1), logit_opacities=torch.cat([torch.tensor([-30.0, 30.0]), g.logit_opacities[2:]]))
    (tmp_path / "a").write_bytes(export_compact.encode(g, kind))
    back = matched(g, export_compact.decode(tmp_path / "a", kind))
    means, logs, degrees, opacity, color = BOUNDS[kind]
    assert (back.means - g.means).abs().max() <= means * 1.001
    assert (back.log_scales - g.log_scales).abs().max() <= logs * 1.001
    assert degrees_between(g, back) <= degrees
    assert (back.opacities - g.opacities).abs().max() <= opacity * 1.001
    inside = (g.colors >= 0) & (g.colors <= 1)
    assert (back.colors - g.colors)[inside].abs().max() <= color * 1.01
    assert all(torch.isfinite(values).all() for values in vars(back).values())
    if kind == "splat":
        assert back.degree == 0
    else:
        assert back.degree == 3
        assert (back.sh[:, 1:] - g.sh[:, 1:]).abs().max() < (0.07 if kind == "spz" else 0.02)


@needs_gaussforge
@pytest.mark.parametrize(("kind", "least"), [("splat", 40), ("spz", 45), ("sog", 45)])
def test_compact_formats_look_like_the_original(tmp_path, lantern, kind, least):
    (tmp_path / "a").write_bytes(export_compact.encode(lantern, kind))
    assert rendered_psnr(lantern, export_compact.decode(tmp_path / "a", kind)) > least
    assert export_compact.encode(lantern, kind) == (tmp_path / "a").read_bytes()


@needs_gaussforge
def test_an_spz_has_the_axes_of_its_own_definition():
    """RUB: x right, y up, z back, where a PLY is RDF. Byte by byte, so that our own reader cannot hide a mistake."""
    g = splat(6, 40)
    raw = gzip.decompress(export_compact.encode(g, "spz"))
    magic, version, count = struct.unpack_from("<4sII", raw)
    assert (magic, version, count) == (b"NGSP", 3, 40) and raw[13] == 12  # fractional bits
    wide = np.zeros((40 * 3, 4), dtype=np.uint8)
    wide[:, 1:] = np.frombuffer(raw, np.uint8, 40 * 9, 16).reshape(-1, 3)
    stored = (wide.view("<i4")[:, 0] >> 8).reshape(40, 3) / 4096
    x, y, z = g.means.numpy().T
    np.testing.assert_allclose(stored, np.stack([x, -y, -z], axis=1), atol=1 / 8192 + 1e-6)


@pytest.mark.parametrize("kind", COMPACT)
def test_without_gaussforge_the_cure_is_named(tmp_path, monkeypatch, kind):
    write_ply(tmp_path / "a.ply", splat(0))
    monkeypatch.setattr(export_compact, "PACKAGE", "gaussforge_is_not_here")
    with pytest.raises(GsmaeError, match=r"pip install 'gsmae\[formats\]'"):
        export(tmp_path / "a.ply", tmp_path / "out", kind)
    assert not (tmp_path / "out").exists()


def test_a_build_and_its_pack_export_the_same_objects(a_build, tmp_path):
    pack(a_build.path, tmp_path / "pack", val_fraction=0)
    one = export(a_build.path, tmp_path / "from_build", "glb")
    two = export(tmp_path / "pack", tmp_path / "from_pack", "glb")
    assert one.objects == two.objects == one.files == 4 and one.gaussians == two.gaussians == 160
    for uid in ("chair/a", "chair/b.2", "table/c", "table/d"):
        a, b = (read_glb(tmp_path / folder / f"{uid}.glb") for folder in ("from_build", "from_pack"))
        width = a.sh.shape[1]
        b = matched(a, b)
        assert torch.equal(a.means, b.means) and torch.equal(a.sh, b.sh[:, :width])


def test_splits_classes_and_limits_choose(a_build, tmp_path):
    assert [e.uid for e in Objects(a_build.path, split="train")] == ["chair/a", "chair/b.2", "table/d"]
    assert [e.uid for e in Objects(a_build.path, classes=["table"])] == ["table/c", "table/d"]
    assert [e.uid for e in Objects(a_build.path, limit=2)] == ["chair/a", "table/c"]
    with pytest.raises(InputError, match="did you mean 'chair'"):
        Objects(a_build.path, classes=["chairs"])
    with pytest.raises(InputError, match=r"no objects of split 'val' \(there are: test \(1\), train \(3\)\)"):
        Objects(a_build.path, split="val")
    (tmp_path / "empty").mkdir()
    for nothing in ("empty", "nowhere"):
        with pytest.raises(InputError, match="name a build, or a folder or zip of splats"):
            Objects(tmp_path / nothing)


def test_released_collections_are_exported_as_they_are(tmp_path):
    """ModelNet_Splats: <class>/<split>/<name>/point_cloud.ply, nothing is read before its turn."""
    for uid, split in (("chair/chair_0001", "train"), ("lamp/lamp_0002", "test")):
        category, name = uid.split("/")
        write_ply(tmp_path / "in" / category / split / name / "point_cloud.ply", splat(1, 20, degree=3))
    broken = tmp_path / "in/lamp/train/lamp_0001/point_cloud.ply"
    broken.parent.mkdir(parents=True)
    broken.write_bytes(b"ply\n")
    made = export(tmp_path / "in", tmp_path / "out", "glb")
    assert made.objects == 2 and list(made.failed) == ["lamp/lamp_0001"]
    assert equal(read_glb(tmp_path / "out/lamp/lamp_0002.glb"), read_glb(tmp_path / "out/chair/chair_0001.glb"))
    assert [e.uid for e in Objects(tmp_path / "in", split="test")] == ["lamp/lamp_0002"]


def test_upright_turns_what_has_no_up_of_its_own(tmp_path):
    g = splat(7, 30, degree=1)
    write_ply(tmp_path / "a.ply", g)
    export(tmp_path / "a.ply", tmp_path / "out", "ply", upright=True)
    x, y, z = g.means.T
    torch.testing.assert_close(read_ply(tmp_path / "out/a.ply").means, torch.stack([x, -z, y], dim=1))
    export(tmp_path / "a.ply", tmp_path / "out", "glb", upright=True)
    assert torch.equal(read_glb(tmp_path / "out/a.glb").means, g.means)


def test_a_file_is_never_written_over_the_one_it_is_read_from(tmp_path):
    write_ply(tmp_path / "a.ply", splat(0))
    before = (tmp_path / "a.ply").read_bytes()
    with pytest.raises(InputError, match="is the file that is to be read"):
        export(tmp_path / "a.ply", tmp_path, "ply-sh3")
    assert (tmp_path / "a.ply").read_bytes() == before


def test_broken_objects_are_left_out_and_named(a_build, tmp_path, capsys):
    broken = a_build.path / "splats/chair/a.ply"
    broken.write_bytes(broken.read_bytes()[:-7])
    for kind in ("ply", "wds"):
        code = main(["export", str(a_build.path), "--out", str(tmp_path / kind), "--format", kind, "--json"])
        said = json.loads(capsys.readouterr().out)
        assert code == 4 and said["objects"] == 3 and "cut off" in said["failed"]["chair/a"]
    assert not (tmp_path / "ply/chair/a.ply").exists() and (tmp_path / "ply/chair/b.2.ply").exists()
    assert main(["export", str(broken), "--out", str(tmp_path / "one"), "--format", "ply"]) == 3


@needs_gaussforge
def test_the_command_measures_and_prints_nothing_but_its_summary(a_build, tmp_path, capfd):
    argv = ["export", str(a_build.path), "--out", str(tmp_path / "o"), "--format", "spz", "--measure", "2", "--json"]
    assert main(argv) == 0
    said = json.loads(capfd.readouterr().out)  # gaussforge itself talks on standard output
    assert sorted(said["psnr"]) == ["chair/a", "table/c"] and min(said["psnr"].values()) > 25
    assert {f.relative_to(tmp_path / "o").as_posix() for f in (tmp_path / "o").rglob("*.spz")} == {
        f"{uid}.spz" for uid in ("chair/a", "chair/b.2", "table/c", "table/d")
    }


def members(path: Path) -> dict[str, bytes]:
    with tarfile.open(path) as tar:
        entries = tar.getmembers()
        assert all((e.mtime, e.uid, e.gid, e.uname, e.gname, e.mode) == (0, 0, 0, "", "", 0o644) for e in entries)
        return {e.name: tar.extractfile(e).read() for e in entries}  # type: ignore[union-attr]


def test_webdataset_shards_hold_every_object_once(a_build, tmp_path):
    made = export(a_build.path, tmp_path / "o", "wds", per_shard=2)
    assert made.objects == 4 and made.files == 3
    files = sorted(f.name for f in (tmp_path / "o").iterdir())
    assert files == ["dataset.json", "test-000000.tar", "train-000000.tar", "train-000001.tar"]
    train = members(tmp_path / "o/train-000000.tar") | members(tmp_path / "o/train-000001.tar")
    everything = train | members(tmp_path / "o/test-000000.tar")
    assert set(everything) == {
        f"{key}{suffix}" for key in ("chair__a", "chair__b%2E2", "table__c", "table__d") for suffix in (".ply", ".json")
    }
    said = json.loads(train["table__d.json"])
    expected = {"uid": "table/d", "category": "table", "label": 1, "split": "train", "gaussians": 40, "psnr": 30.0}
    assert said == expected | {"sh_degree": 1}
    (tmp_path / "d.ply").write_bytes(train["table__d.ply"])
    assert equal(read_ply(tmp_path / "d.ply"), read_ply(a_build.path / "splats/table/d.ply"))
    head = json.loads((tmp_path / "o/dataset.json").read_text())
    assert head["class_names"] == ["chair", "table"] and [s["objects"] for s in head["shards"]["train"]] == [2, 1]
    export(a_build.path, tmp_path / "again", "wds", per_shard=2)
    assert all((tmp_path / "again" / f).read_bytes() == (tmp_path / "o" / f).read_bytes() for f in files)


def test_shards_of_another_export_are_not_mixed_in(a_build, tmp_path):
    export(a_build.path, tmp_path / "o", "wds", per_shard=1)
    with pytest.raises(InputError, match="belongs to another export"):
        export(a_build.path, tmp_path / "o", "wds", per_shard=2)


def test_a_killed_export_leaves_no_half_shard(a_build, tmp_path, monkeypatch):
    read = Objects.gaussians

    def stops(self, i):
        if self.entries[i].uid == "table/d":
            raise KeyboardInterrupt
        return read(self, i)

    monkeypatch.setattr(Objects, "gaussians", stops)
    with pytest.raises(KeyboardInterrupt):
        export(a_build.path, tmp_path / "o", "wds")
    assert [f.name for f in (tmp_path / "o").iterdir()] == ["test-000000.tar"]


def test_objects_are_read_one_at_a_time(make_build, monkeypatch, tmp_path):
    """Memory does not grow with the collection: at most one splat is alive when the next one is read."""
    import weakref

    made = make_build("many")
    for k in range(6):
        made.add(f"chair/{k}", seed=k)
    alive: list[weakref.ref] = []
    most = 0
    read = Objects.gaussians

    def counted(self, i):
        nonlocal most
        most = max(most, sum(r() is not None for r in alive))
        g = read(self, i)
        alive.append(weakref.ref(g.means))
        return g

    monkeypatch.setattr(Objects, "gaussians", counted)
    for kind in ("glb", "wds"):
        export(made.path, tmp_path / kind, kind)
    assert len(alive) == 12 and most <= 1


def test_a_pack_from_elsewhere_cannot_write_outside(a_build, tmp_path, monkeypatch):
    from data.objects import Entry

    objects = Objects(a_build.path)
    objects.entries = (Entry("../../evil", "..", "train", None), *objects.entries[1:])
    monkeypatch.setattr("data.exports.Objects", lambda *a, **k: objects)
    with pytest.raises(InputError, match="is not '<category>/<name>'"):
        export(a_build.path, tmp_path / "o", "ply")
    assert not list(tmp_path.rglob("evil*"))


def test_every_format_has_a_reader_of_its_own_files(tmp_path):
    assert list(FORMATS) == ["ply", "ply-sh3", "splat", "spz", "sog", "glb"]
    g = splat(9, 64)
    for name, kind in FORMATS.items():
        try:
            kind.needs()
        except GsmaeError:
            continue
        kind.write(tmp_path / f"{name}{kind.suffix}", g)
        back = matched(g, kind.read(tmp_path / f"{name}{kind.suffix}"))
        assert (back.means - g.means).abs().max() < 2e-4, name  # the same frame
