"""What does not fit a task is refused through the command line, before anything is trained, with both sides named."""

import json
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data.clouds import mesh_points
from data.manifest import read_build
from data.shards import pack
from gsmae.cli import main
from gsmae.files import sha256

QUICK = ["--recipe", "tiny", "--train.epochs", "1", "--train.batch-size", "4", "--train.gaussians", "16",
         "--train.queries", "8"]  # fmt: skip
ENCODER = ["--model.encoder.groups", "4", "--model.encoder.group-size", "4", "--model.encoder.depth", "1"]


def call(*argv, code=0) -> None:
    assert main([str(a) for a in argv]) == code


@pytest.fixture(scope="module")
def runs(packed, tmp_path_factory):
    """A pretrained run on chairs and tables, a classifier and a run that groups by more than means."""
    folder = tmp_path_factory.mktemp("input")
    call("pretrain", packed, "--out", folder / "mae", *QUICK, *ENCODER)
    call("pretrain", packed, "--out", folder / "grouped", *QUICK, *ENCODER, "--spec.group", "means", "opacities")
    call("finetune", "classify", packed, "--init", folder / "mae", "--out", folder / "cls", *QUICK)
    return folder


@pytest.fixture
def refused(capsys, tmp_path):
    """refused(*argv, told=...): exit code 3, the words on standard error, and no run folder."""

    def check(*argv, told: str) -> None:
        capsys.readouterr()
        out = ["--out", tmp_path / "run"] if argv[0] in ("finetune", "pretrain") else []
        call(*argv, *out, *(QUICK if out else []), code=3)
        error = capsys.readouterr().err
        assert all(words in error for words in told.split(" ... ")), error
        assert not (tmp_path / "run").exists()

    return check


def test_other_features_or_another_encoder_than_those_of_the_run_to_begin_with(runs, packed, refused):
    init = ["finetune", "classify", packed, "--init", runs / "mae"]
    refused(*init, "--spec.embed", "means", told="its features are ... --spec asks for embed=('means',)")
    refused(*init, "--model.encoder.width", "48", told="its encoder is width=96 ... --model asks for width=48")


def test_a_segmenter_has_no_more_than_means_to_place_its_centres_by(runs, packed, refused):
    refused("finetune", "segment", packed, "--init", runs / "grouped",
            told="made of means, opacities, those of part segmentation of means")  # fmt: skip


def test_weights_that_are_not_of_the_network_that_their_state_describes(runs, packed, tmp_path, refused):
    shutil.copytree(runs / "cls", tmp_path / "cls")
    for path in (tmp_path / "cls").glob("step_*/state.json"):
        state = json.loads(path.read_text())
        state["model"]["classes"] = 3
        path.write_text(json.dumps(state))
    refused("evaluate", tmp_path / "cls", packed, told="head.8.weight has shape (2, 256) instead of (3, 256)")


def test_a_pack_of_other_classes_than_the_runs(runs, make_build, tmp_path, refused):
    build = make_build()
    for i in range(6):
        build.add(f"chair/{i}", split="").add(f"lamp/{i}", split="")
    pack(build.path, tmp_path / "pack")
    refused("evaluate", runs / "cls", tmp_path / "pack", told="only in ... pack: lamp ... cls ... : table")


def test_points_for_an_encoder_of_splats(runs, make_build, tmp_path, refused):
    build = make_build()
    for i in range(8):
        build.add(f"chair/{i}", split="").add(f"table/{i}", split="")
    pack(mesh_points(read_build(build.path)), tmp_path / "pack")
    told = "points with means, sh; the features embed means, opacities, scales, quats, sh"
    refused("finetune", "classify", tmp_path / "pack", "--init", runs / "mae", told=told)
    refused("probe", runs / "mae", tmp_path / "pack", told=told)
    refused("retrieve", runs / "mae", tmp_path / "pack", told=told)


def test_a_class_outside_the_taxonomy(packed, tmp_path, refused):
    shutil.copytree(packed, tmp_path / "pack")
    index, head = tmp_path / "pack" / "index.parquet", tmp_path / "pack" / "pack.json"
    table = pq.read_table(index)
    names = ["zebra", *table["category"].to_pylist()[1:]]
    table = table.set_column(table.schema.get_field_index("category"), "category", pa.array(names))
    pq.write_table(table, index, compression="none")
    values = json.loads(head.read_text())
    values["index"] |= {"sha256": sha256(index), "bytes": index.stat().st_size}
    head.write_text(json.dumps(values))
    told = "'chair/0000' is of class 'zebra', which is not among the 2"
    refused("finetune", "classify", tmp_path / "pack", told=told)


def test_a_class_with_nothing_to_learn_from(make_build, tmp_path, refused):
    build = make_build(parts=None)
    for i in range(6):
        build.add(f"chair/{i}").add(f"table/{i}").add(f"bed/{i}", split="test")
    pack(build.path, tmp_path / "pack")
    told = "the split 'train' has no object of 1 of 3 classes: bed ... --classes"
    for task in ("classify", "pointnet2"):
        refused("finetune", task, tmp_path / "pack", told=told)
    out = tmp_path / "two"
    call("finetune", "classify", tmp_path / "pack", "--classes", "chair", "table", "--out", out, *QUICK, *ENCODER)
    call("evaluate", out, tmp_path / "pack", "--split", "val")
    kept = json.loads((out / "evaluation_val.json").read_text())
    assert kept["classes"] == ["chair", "table"] and kept["objects"] == 2


def test_a_split_without_objects(make_build, tmp_path, refused):
    build = make_build(parts=None)
    for i in range(6):
        build.add(f"chair/{i}").add(f"table/{i}")
    pack(build.path, tmp_path / "pack", val_fraction=0)
    for argv in (["pretrain"], ["finetune", "classify"], ["finetune", "pointnet2"]):
        refused(*argv, tmp_path / "pack", told="split 'val' is empty ... there are train (12)")
    refused("finetune", "classify", tmp_path / "pack", "--classes", "chiar", told="has no class 'chiar' ... 'chair'")


def test_objects_without_parts_are_left_out_and_counted(make_build, tmp_path, capsys, refused):
    build = make_build(parts={"chair": ["back", "leg", "seat"]})
    for i in range(10):
        build.add(f"chair/{i}", split="").add(f"box/{i}", split="")
    pack(build.path, tmp_path / "pack")
    out = tmp_path / "seg"
    call("finetune", "segment", tmp_path / "pack", "--out", out, *QUICK, *ENCODER)
    run = json.loads((out / "run.json").read_text())
    assert run["classes"] == ["chair"] and run["left_out"] == {"train": 8, "val": 1}
    call("evaluate", out, tmp_path / "pack")
    kept = json.loads((out / "evaluation_test.json").read_text())
    assert kept["left_out"] == kept["objects"] == 1 and list(kept["per_category"]) == ["chair"]
    refused("finetune", "segment", tmp_path / "pack", "--classes", "box", told="has no part labels")


def test_points_of_the_mesh_are_segmented_too(make_build, tmp_path):
    build = make_build()
    for i in range(8):
        build.add(f"chair/{i}", split="").add(f"table/{i}", split="")
    pack(mesh_points(read_build(build.path)), tmp_path / "pack")
    out = tmp_path / "seg"
    call("finetune", "segment", tmp_path / "pack", "--out", out, *QUICK, *ENCODER, "--spec.embed", "means")
    call("evaluate", out, tmp_path / "pack")
    assert 0 <= json.loads((out / "evaluation_test.json").read_text())["instance_iou"] <= 1
