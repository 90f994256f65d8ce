"""show and report from the command line: pictures that show what they say, and messages that name the cure."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

from gsmae.cli import main
from gsmae.cli.looking import STRIP
from gsmae.files import sha256, write_json
from gsmae.gaussians import Gaussians
from gsmae.ply import read_ply, write_ply
from gsmae.render import orbit, render

SIZE = 64


@pytest.fixture
def build(tmp_path):
    """A build of one object: a mesh like an L, of two squares, and a splat that is right, but for its colour."""
    mesh = tmp_path / "meshes" / "tile.obj"
    mesh.parent.mkdir()
    mesh.write_text("v -1 -1 0\nv 1 -1 0\nv 1 0 0\nv 0 0 0\nv 0 1 0\nv -1 1 0\nf 1 2 3 4\nf 1 4 5 6\n")
    folder = tmp_path / "build"
    side = torch.linspace(-1, 1, 24) / 2**0.5
    x, z = (v.flatten() for v in torch.meshgrid(side, side, indexing="ij"))
    corner = (x > 0) & (z > 0)
    x, z = x[~corner], z[~corner]
    n = len(x)
    means = torch.stack([x, torch.zeros(n), z], dim=1)
    quats = torch.tensor([[1.0, 0, 0, 0]]).repeat(n, 1)
    logs = torch.tensor([[0.03, 0.001, 0.03]]).log().repeat(n, 1)
    write_ply(
        folder / "splats" / "flat" / "tile.ply",
        Gaussians(means, quats, logs, torch.full((n,), 4.0), torch.zeros(n, 1, 3)),
    )
    write_json(folder / "build.json", {"schema": 1})
    record = {"uid": "flat/tile", "status": "done", "mesh": str(mesh), "mesh_sha256": sha256(mesh)}
    write_json(folder / "records" / "flat" / "tile.json", record)
    failed = {"uid": "flat/hole", "status": "failed", "stage": "load", "reason": "contains no faces"}
    write_json(folder / "records" / "flat" / "hole.json", failed)
    return folder


def run(*arguments, capsys) -> dict:
    code = main([*map(str, arguments), "--json"])
    out, err = capsys.readouterr()
    assert code == 0, err
    return json.loads(out)


def test_a_splat_is_shown_from_all_sides_as_the_renderer_sees_it(tmp_path, make_splat, capsys):
    write_ply(tmp_path / "ball.ply", make_splat(60))
    made = run("show", tmp_path / "ball.ply", "--out", tmp_path / "x.png", "--views", 3, "--size", SIZE, capsys=capsys)
    pixels = np.asarray(Image.open(tmp_path / "x.png"))
    assert pixels.shape == (SIZE + STRIP, 3 * SIZE, 3) and made["gaussians"] == 60 and made["notes"] == []
    expected = render(read_ply(tmp_path / "ball.ply"), *orbit(3, SIZE), SIZE, SIZE).numpy()
    for view in range(3):
        shown = pixels[STRIP:, view * SIZE : (view + 1) * SIZE] / 255
        assert np.abs(shown - expected[view]).max() < 0.01
    assert expected.min() < 0.9, "something is to be seen"


def test_a_splat_of_another_size_and_place_is_brought_into_the_picture(tmp_path, make_splat, capsys):
    splat = make_splat(200)
    far = splat.replace(means=splat.means * 50 + 300, log_scales=splat.log_scales + np.log(50))
    for name, g in (("near", splat), ("far", far)):
        write_ply(tmp_path / f"{name}.ply", g)
        made = run("show", tmp_path / f"{name}.ply", "--out", tmp_path / f"{name}.png", "--size", SIZE, capsys=capsys)
    assert "moved and scaled" in made["notes"][0]
    near, far = (np.asarray(Image.open(tmp_path / f"{n}.png")).astype(float)[STRIP:] for n in ("near", "far"))
    assert np.corrcoef(near.ravel(), far.ravel())[0, 1] > 0.8


@pytest.mark.parametrize("by", ["file", "uid"])
def test_in_a_build_the_mesh_the_splat_and_their_difference_stand_under_each_other(build, tmp_path, by, capsys):
    path = [build / "splats" / "flat" / "tile.ply"] if by == "file" else [build, "--object", "flat/tile"]
    out = tmp_path / "tile.png"
    made = run("show", *path, "--out", out, "--views", 2, "--size", SIZE, capsys=capsys)
    rows = np.asarray(Image.open(out)).astype(float).reshape(3, SIZE + STRIP, 2 * SIZE, 3)[:, STRIP:]
    mesh, splat, error = rows / 255
    assert np.abs(error - (np.abs(mesh - splat) * 4).clip(0, 1)).max() < 5 / 255 * 2
    seen, drawn = (mesh < 0.8).any(axis=-1), (splat < 0.8).any(axis=-1)
    assert seen.mean() > 0.1 and drawn[seen].mean() > 0.98, "the splat covers the mesh"
    assert (drawn & seen).sum() > 0.75 * drawn.sum(), "and little else; a mirrored one would cover half as much"
    squared = ((mesh - splat) ** 2).reshape(SIZE, 2, SIZE, 3).mean(axis=(0, 2, 3))
    assert made["psnr"] == pytest.approx(-10 * np.log10(squared), abs=0.3)


def test_without_its_mesh_a_splat_is_shown_alone_and_the_reason_is_said(build, tmp_path, capsys):
    mesh = tmp_path / "meshes" / "tile.obj"
    for change, said in ((lambda: mesh.write_text("v 0 0 0\n"), "has changed"), (mesh.unlink, "not there any more")):
        change()
        made = run("show", build, "--object", "flat/tile", "--out", tmp_path / "a.png", "--size", 32, capsys=capsys)
        assert said in made["notes"][0] and "psnr" not in made
        assert Image.open(tmp_path / "a.png").height == 32 + STRIP


def test_the_picture_is_named_after_the_splat_where_no_name_is_given(build, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    made = run("show", build, "--object", "flat/tile", "--size", 32, "--views", 1, capsys=capsys)
    assert made["out"] == "tile.png" and (tmp_path / "tile.png").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["{build}"], "--object flat/hole"),
        (["{build}", "--object", "flat/tilt"], "did you mean 'flat/tile'"),
        (["{build}", "--object", "../build"], "has no object"),
        (["{build}", "--object", "flat/hole"], "load: contains no faces"),
        (["{build}/records"], "has no build.json"),
        (["{build}/nothing.ply"], "no such file"),
        (["{build}/build.json"], "does not begin with 'ply'"),
        (["{build}/build.json", "--object", "a/b"], "is not a build folder"),
        (["{build}/splats/flat/tile.ply", "--out", "x.bmpp"], "no kind of picture"),
        (["{build}/splats/flat/tile.ply", "--views", "0"], "not between 1 and 100"),
        (["{build}/splats/flat/tile.ply", "--out", "{build}/build.json/x.png"], "cannot be written"),
    ],
)
def test_wrong_input_ends_with_code_3_and_a_message_that_helps(build, arguments, said, capsys):
    assert main(["show", *(a.format(build=build) for a in arguments)]) == 3
    assert said in capsys.readouterr().err


def test_report_writes_a_page_with_the_note_and_says_what_is_on_it(build, tmp_path, capsys):
    page = tmp_path / "page.html"
    assert main(["report", str(build), "--out", str(page), "--note", "Two objects prove nothing."]) == 0
    assert "1 build; 0 pictures" in capsys.readouterr().out
    assert "Two objects prove nothing." in page.read_text(encoding="utf-8")
    made = run("report", build, "--out", page, "--most", 5, capsys=capsys)
    assert (made["objects"], made["failed"], made["builds"]) == (2, 1, 1)


def test_report_refuses_a_folder_of_another_kind(tmp_path, capsys):
    assert main(["report", str(tmp_path), "--out", str(tmp_path / "page.html")]) == 3
    assert "neither a build" in capsys.readouterr().err
