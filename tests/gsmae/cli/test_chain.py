"""The verbs one after another on real meshes, as a user would call them, with runs of seconds."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

import gsmae
from gsmae import checkpoint
from gsmae.cli import EXIT_CODES, VERBS, main

BUILD = [
    "--profile", "tiny", "--workers", "0", "--views", "8", "--val-views", "2", "--test-views", "2",
    "--resolution", "48", "--surface-points", "128", "--fit.iterations", "20",
    "--fit.initial", "300", "--fit.cap", "400", "--min-psnr", "5",
]  # fmt: skip
SMALL = [
    "--recipe", "tiny", "--train.epochs", "2", "--train.batch-size", "4", "--train.gaussians", "128",
    "--train.queries", "64",
]  # fmt: skip
ENCODER = ["--model.encoder.groups", "8", "--model.encoder.group-size", "8"]
OBJECTS = ("deckChair", "chair2", "foldingChair", "table", "bedsideTable2", "tableWithTablecloth")


def call(*argv, code=0) -> None:
    assert main([str(a) for a in argv]) == code


@pytest.fixture(scope="module")
def chain(tmp_path_factory) -> Path:
    """build, pack, pretrain, fine-tune both tasks; the folder that holds all of it."""
    examples = Path(__file__).resolve().parents[3] / "examples"
    out = tmp_path_factory.mktemp("chain")
    for folder in (examples / "meshes").glob("*/*"):
        if folder.name in OBJECTS:
            shutil.copytree(folder, out / "meshes" / folder.parent.name / folder.name)
    call("build", out / "meshes", "--out", out / "build", "--parts", examples / "parts.json", *BUILD)
    call("pack", out / "build", "--out", out / "pack", "--verify")
    call("pretrain", out / "pack", "--out", out / "pretrain", *SMALL, *ENCODER)
    for task in ("classify", "segment"):
        call("finetune", task, out / "pack", "--out", out / task, "--init", out / "pretrain", *SMALL)
    return out


def test_the_whole_chain_leaves_what_it_promises(chain):
    assert len(list((chain / "build" / "splats").rglob("*.ply"))) == 6
    assert len(list((chain / "pack").glob("*.h5"))) == 1
    for run in ("pretrain", "classify", "segment"):
        assert (chain / run / "config.yaml").exists() and (chain / run / "metrics.jsonl").exists()
        summary = json.loads((chain / run / "summary.json").read_text())
        assert summary["steps"] > 0 and np.isfinite(summary["metrics"]["loss"] if run != "segment" else 0)


def test_every_verb_is_safe_to_run_twice(chain, capsys):
    examples = Path(__file__).resolve().parents[3] / "examples"
    call("build", chain / "meshes", "--out", chain / "build", "--parts", examples / "parts.json", *BUILD)
    call("pack", chain / "build", "--out", chain / "pack")
    call("pretrain", chain / "pack", "--out", chain / "pretrain", *SMALL, *ENCODER, "--json")
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert summary["resumed_from"] == summary["steps"]


def test_fine_tuning_begins_with_the_pretrained_encoder_and_its_feature_space(chain):
    """The released configurations normalised five fields in pretraining and one in fine-tuning."""
    run = json.loads((chain / "classify" / "run.json").read_text())
    pretrained = json.loads((chain / "pretrain" / "run.json").read_text())
    assert run["spec"] == pretrained["spec"] and run["model"]["encoder"] == pretrained["model"]["encoder"]
    assert run["init"] is not None


def test_the_test_split_is_read_once(chain, capsys):
    call("evaluate", chain / "classify", chain / "pack", "--json")
    first = json.loads(capsys.readouterr().out)
    assert first["read"] == "now" and first["objects"] == 2 and set(first["predicted"].values()) <= {0, 1}
    call("evaluate", chain / "classify", chain / "pack", "--json")
    assert json.loads(capsys.readouterr().out)["read"] == "kept result"
    kept = chain / "classify" / "evaluation_test.json"
    kept.write_text(json.dumps({**json.loads(kept.read_text()), "checkpoint": "step_00000001"}))
    call("evaluate", chain / "classify", chain / "pack", code=3)
    assert "--again" in capsys.readouterr().err
    call("evaluate", chain / "classify", chain / "pack", "--again")


def test_segmentation_is_measured_on_every_labelled_point(chain, capsys):
    call("evaluate", chain / "segment", chain / "pack", "--json")
    result = json.loads(capsys.readouterr().out)
    assert 0 <= result["instance_iou"] <= 1 and 0 <= result["class_iou"] <= 1 and result["per_category"]


def test_a_run_brings_its_encoder_and_its_feature_space_along(chain):
    encoder = gsmae.load(chain / "pretrain")
    splat = gsmae.read_ply(chain / "build" / "splats" / "chair" / "deckChair.ply")
    with torch.no_grad():
        tokens, centers = encoder(splat)
        again, _ = gsmae.load(checkpoint.find(chain / "pretrain"))(splat)
    assert tokens.shape == (8, 96) and centers.shape == (8, 14) and torch.equal(tokens, again)


def test_embeddings_are_a_table_and_a_broken_splat_is_named(chain, tmp_path, capsys):
    shutil.copytree(chain / "build" / "splats", tmp_path / "splats")
    (tmp_path / "splats" / "broken.ply").write_bytes(b"ply\n")
    call("embed", chain / "classify", tmp_path / "splats", "--out", tmp_path / "e.parquet", "--json", code=4)
    summary = json.loads(capsys.readouterr().out)
    assert list(summary["failed"]) == [str(tmp_path / "splats" / "broken.ply")]
    table = pq.read_table(tmp_path / "e.parquet")
    assert table.num_rows == 6 and np.isfinite(np.stack(table["vector"].to_numpy())).all()


def test_reconstructions_are_pictures_and_splats(chain, tmp_path):
    source = chain / "build" / "splats" / "table" / "table.ply"
    call("reconstruct", chain / "pretrain", source, "--out", tmp_path, "--size", "64")
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "table.png", "table_input.ply", "table_predicted.ply", "table_visible.ply"
    ]  # fmt: skip
    seen, made = gsmae.read_ply(tmp_path / "table_visible.ply"), gsmae.read_ply(tmp_path / "table_predicted.ply")
    assert len(made) == 64 and len(seen) == 32  # 8 groups of 8, half of them... int(0.6 * 8) = 4 hidden


def test_checks_find_what_was_altered(chain, tmp_path, capsys):
    call("check", chain / "build")
    call("check", chain / "pack")
    shutil.copytree(chain / "build", tmp_path / "build")
    splat = tmp_path / "build" / "splats" / "chair" / "deckChair.ply"
    content = bytearray(splat.read_bytes())
    content[-1] ^= 1
    splat.write_bytes(content)
    call("check", tmp_path / "build", code=4)
    assert "deckChair" in capsys.readouterr().out


def test_a_run_of_another_configuration_is_not_touched(chain, capsys):
    call("pretrain", chain / "pack", "--out", chain / "pretrain", *SMALL, *ENCODER, "--train.seed", "1", code=3)
    assert "another configuration" in capsys.readouterr().err


def test_a_yaml_of_another_run_is_a_configuration_and_its_misspelt_keys_are_refused(chain, tmp_path, capsys):
    config = (chain / "pretrain" / "config.yaml").read_text()
    (tmp_path / "c.yaml").write_text(config.replace("epochs: 2", "epochs: 1"))
    call("pretrain", chain / "pack", "--out", tmp_path / "run", "--config", tmp_path / "c.yaml", "--json")
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["epochs"] == 1
    (tmp_path / "c.yaml").write_text(config.replace("epochs: 2", "epoch: 1"))
    call("pretrain", chain / "pack", "--out", tmp_path / "run2", "--config", tmp_path / "c.yaml", code=3)
    assert "did you mean 'epochs'" in capsys.readouterr().err


def test_misspelt_verbs_flags_and_values_are_refused_with_the_nearest_name(chain, capsys):
    call("pretrian", code=2)
    assert "did you mean 'pretrain'" in capsys.readouterr().err
    for argv, hint in ((["--epochs", "3"], "--train.epochs"), (["--train.epohcs", "3"], "--train.epochs")):
        with pytest.raises(SystemExit) as caught:
            main(["pretrain", str(chain / "pack"), "--out", "x", *argv])
        assert caught.value.code == 2 and hint in capsys.readouterr().err
    with pytest.raises(SystemExit) as caught:
        main(["build", "x", "--out", "y", "--profile", "fats"])
    assert caught.value.code == 2
    assert "did you mean 'fast'" in capsys.readouterr().err


def test_what_is_not_there_is_an_error_that_names_it(tmp_path, capsys):
    for argv in (
        ["build", tmp_path / "none", "--out", tmp_path / "o"],
        ["pack", tmp_path / "none", "--out", tmp_path / "o"],
        ["check", tmp_path / "none"],
        ["pretrain", tmp_path / "none", "--out", tmp_path / "o"],
        ["evaluate", tmp_path / "none", tmp_path / "none"],
        ["embed", tmp_path / "none", tmp_path, "--out", tmp_path / "o"],
        ["convert", tmp_path / "none.pth", "--out", tmp_path / "o"],
        ["show", tmp_path / "none.ply"],
        ["report", tmp_path / "none", "--out", tmp_path / "r.html"],
    ):
        call(*argv, code=3)
        assert str(tmp_path / "none") in capsys.readouterr().err, argv
    assert not list(tmp_path.rglob("*.h5"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written_is_an_error(chain, tmp_path, capsys):
    tmp_path.chmod(0o500)
    call("build", chain / "meshes", "--out", tmp_path / "o", code=3)
    assert "cannot be written" in capsys.readouterr().err


@pytest.mark.parametrize("verb", [v for v in VERBS if v != "finetune"])
def test_help_explains_every_option(verb, capsys):
    with pytest.raises(SystemExit) as caught:
        main([verb, "--help"])
    text = capsys.readouterr().out
    assert caught.value.code == 0 and "usage" in text


def test_the_exit_codes_are_documented():
    page = (Path(__file__).resolve().parents[3] / "docs" / "conventions.md").read_text()
    assert all(f"| {code} |" in page for code in EXIT_CODES)


def test_the_command_answers_in_a_folder_that_was_removed(tmp_path, monkeypatch, capsys):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    monkeypatch.setattr("sys.argv", ["gsmae", "--help"])
    monkeypatch.setenv("PYTHONSAFEPATH", "1")
    assert main() == 0 and "usage: gsmae" in capsys.readouterr().out
