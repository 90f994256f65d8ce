import csv
import importlib.util
import json
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from preprocessing.meshes import load_mesh
from preprocessing.sources import SOURCES

FOLDER = Path(__file__).parents[2] / "scripts/collections"
SPEC = importlib.util.spec_from_file_location("arrange", FOLDER / "arrange.py")
assert SPEC is not None and SPEC.loader is not None
arrange = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(arrange)


def table(name: str) -> list[dict[str, str]]:
    with (FOLDER / name).open(newline="") as file:
        return list(csv.DictReader(file))


def test_every_label_names_one_model_and_every_part_a_category():
    labels = table("sweethome3d_labels.csv")
    assert len({(row["library"], row["model"]) for row in labels}) == len(labels) == 788
    assert len({row["folder"] for row in table("kicad_categories.csv")}) == len(table("kicad_categories.csv"))
    for name, known in (("sweethome3d", {row["category"] for row in labels}),
                        ("kicad", {row["category"] for row in table("kicad_categories.csv")})):  # fmt: skip
        parts = json.loads((FOLDER / f"{name}_parts.json").read_text())
        assert set(parts) <= known and all(len(of) >= 2 and all(of.values()) for of in parts.values())


def test_a_family_of_kicad_lies_in_one_split_whatever_its_folder(put, tmp_path, capsys):
    for pitch, folder in ((1, "Connector_PinHeader_1.00mm"), (2, "Connector_PinHeader_2.00mm")):
        for pins in range(1, 8):
            for style in ("Vertical", "Horizontal", "SMD"):
                put(f"raw/{folder}.3dshapes/Pin_1x{pins:02}_P{pitch}.50mm_{style}.wrl", f"{pitch} {pins} {style}")
    put("raw/Fuse.3dshapes/Fuse_1x2.5mm.wrl", "one")
    put("raw/Fuse.3dshapes/Holder_1.wrl", "two")
    put("raw/Fuse.3dshapes/Twin_3.wrl", "one")
    put("raw/Unlabelled.3dshapes/x.wrl", "x")
    rows = arrange.kicad(tmp_path / "raw", tmp_path / "out")
    assert len(rows) == 42 + 3
    told = capsys.readouterr().out
    assert "no label for Unlabelled: 1 objects are left out" in told
    assert "not in this version of the package: Varistor" in told and "package: Fuse\n" not in told
    items = {item.uid: item.split for item in SOURCES["folder"](tmp_path / "out")}
    assert items == {row["uid"]: row["split"] for row in rows}
    splits = {(row["uid"].split("/")[0], row["family"]): row["split"] for row in rows}
    assert len(splits) == 3 + 2 and all(row["split"] == splits[row["uid"].split("/")[0], row["family"]] for row in rows)
    assert set(Counter(items.values())) == {"train", "val", "test"}
    assert items["fuse/Fuse_1x2.5mm"] == items["fuse/Twin_3"] == "train" and items["fuse/Holder_1"] == "test"


def test_splits_have_about_the_shares_that_are_wanted():
    sizes = Counter({f"family {i}": 1 + i % 7 for i in range(200)})
    splits = arrange._splits(sizes)
    have = Counter()
    for name, split in splits.items():
        have[split] += sizes[name]
    for split, share in arrange.SHARES.items():
        assert have[split] / sizes.total() == pytest.approx(share, abs=0.02)
    assert splits == arrange._splits(Counter(dict(reversed(sizes.items()))))


def test_an_object_of_sweet_home_3d_takes_along_what_it_names(put, tmp_path):
    label = next(row for row in table("sweethome3d_labels.csv") if row["library"] == "app")
    folder = "raw/app/com/eteks/sweethome3d/io/resources"
    quad = "v 0 0 0\nv 1 0 0\nv 0 1 0\nvt 0 0\nusemtl a\nf 1/1 2/1 3/1\n"
    put(f"{folder}/{label['model']}.obj", f"mtllib paint.mtl\n{quad}")
    put(f"{folder}/paint.mtl", "newmtl a\n map_Kd -s 1 1 1 C:\\maker\\Red Wood.PNG\n")
    put(f"{folder}/red wood.png", np.full((2, 2, 3), (255, 0, 0), np.uint8))
    put(f"{folder}/other.obj", quad)
    (row,) = arrange.sweethome3d(tmp_path / "raw", tmp_path / "out")
    assert row["uid"] == f"{label['category']}/app_{label['model']}" and row["licence"] == "GPL-2+"
    (item,) = SOURCES["folder"](tmp_path / "out")
    mesh = load_mesh(item)
    assert item.uid == row["uid"] and ["-s" in warning for warning in mesh.warnings] == [True]
    assert mesh.textures[0][0, 0].tolist() == [255, 0, 0, 255]
    assert len(list(item.path.parent.iterdir())) == 3


def test_a_part_of_a_collection_is_the_same_part_everywhere(put, tmp_path, monkeypatch, capsys):
    for number in range(12):
        put(f"raw/Fuse.3dshapes/Fuse{number}{'abc'[number % 3]}.wrl", f"fuse {number}")
    put("raw/Battery.3dshapes/Cell.wrl", "cell")

    def kept(out: str, *flags: str) -> set[str]:
        monkeypatch.setattr("sys.argv", ["arrange.py", "kicad", str(copy(out)), str(tmp_path / out), *flags])
        arrange.main()
        items = {item.uid for item in SOURCES["folder"](tmp_path / out)}
        rows = list(csv.DictReader((tmp_path / out / "sources.csv").open(newline="")))
        assert {row["uid"] for row in rows} == items
        assert not [f for f in (tmp_path / out).rglob("*") if f.is_dir() and not any(f.iterdir())]
        return items

    def copy(out: str) -> Path:  # arranging moves the files
        return shutil.copytree(tmp_path / "raw", tmp_path / f"raw {out}")

    whole = kept("all")
    assert len(whole) == 13
    few, more = kept("few", "--most", "3"), kept("more", "--most", "5", "--least", "2")
    assert len(few) == 4 and "battery/Cell" in few
    assert len(more) == 5 and "battery/Cell" not in more and few - {"battery/Cell"} < more < whole
    assert kept("one", "--categories", "battery") == {"battery/Cell"}
    with pytest.raises(SystemExit, match="no category fuze; there are battery, fuse"):
        kept("none", "--categories", "fuze")
