"""The options beyond the paper, from the command line to a fine-tuned classifier."""

import json

import pytest

from gsmae import zoo
from gsmae.cli import main
from gsmae.models import GaussianLatent
from gsmae.ply import write_ply

SMALL = ["--recipe", "tiny", "--train.epochs", "2", "--train.batch-size", "4", "--train.gaussians", "60"]
ENCODER = ["--model.encoder.groups", "8", "--model.encoder.group-size", "6", "--model.encoder.points", "60"]
SHAPES = ["--spec.embed", "means", "opacities", "shapes", "sh", "--spec.draw", "importance"]
OPTIONS = {
    "latent": ["--model.objective", "latent", *SHAPES],
    "centers": ["--model.centers", "predicted", "--model.mask", "importance", "--model.match", "nearest"],
}


@pytest.fixture
def pack(make_splat, tmp_path):
    for category in ("chair", "table"):
        for i in range(12):
            write_ply(tmp_path / "splats" / category / f"{i}.ply", make_splat(80, seed=i + 100 * (category == "chair")))
    call("pack", tmp_path / "splats", "--out", tmp_path / "pack", "--val", "0.2")
    return tmp_path / "pack"


def call(*argv, code=0) -> None:
    assert main([str(a) for a in argv]) == code


@pytest.mark.parametrize("name", OPTIONS)
def test_a_run_with_options_is_pretrained_resumed_fine_tuned_and_used(pack, tmp_path, name, capsys):
    run, splat = tmp_path / "run", tmp_path / "splats" / "chair" / "0.ply"
    call("pretrain", pack, "--out", run, *SMALL, *ENCODER, *OPTIONS[name])
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert ("feature_rank" if name == "latent" else "loss_centers") in [r for r in rows if r["split"] == "val"][-1]
    call("pretrain", pack, "--out", run, *SMALL, *ENCODER, *OPTIONS[name])
    call("finetune", "classify", pack, "--out", tmp_path / "classify", "--init", run, *SMALL)
    assert zoo.load_trained(tmp_path / "classify").spec == zoo.load_trained(run).spec
    call("evaluate", run, pack, "--split", "val")
    call("embed", run, splat, "--out", tmp_path / "e.parquet")
    latent = isinstance(zoo.load_trained(run).model, GaussianLatent)
    assert latent == (name == "latent")
    call("reconstruct", run, splat, "--out", tmp_path / "r", "--size", "32", code=3 if latent else 0)
    assert ("pretrained to reconstruct" in capsys.readouterr().err) == latent
    assert latent or (tmp_path / "r" / "0.png").exists()
