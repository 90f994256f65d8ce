"""Probes, retrieval, few-shot, voting and the baseline through the command line, on a pack of drawn splats."""

import json

import numpy as np
import pytest
import torch

from data import SplatDataset
from gsmae.cli import main

QUICK = ["--recipe", "tiny", "--train.epochs", "1", "--train.batch-size", "8", "--train.gaussians", "12"]
ENCODER = ["--model.encoder.groups", "4", "--model.encoder.group-size", "4", "--model.encoder.depth", "1"]


def call(*argv, code=0) -> None:
    assert main([str(a) for a in argv]) == code


def result(capsys, *argv) -> dict:
    capsys.readouterr()
    call(*argv, "--json")
    return json.loads(capsys.readouterr().out.splitlines()[-1])


@pytest.fixture(scope="module")
def mae(lettered, tmp_path_factory):
    """A pretrained run of one epoch."""
    run = tmp_path_factory.mktemp("protocols") / "mae"
    call("pretrain", lettered, "--out", run, *QUICK, *ENCODER)
    return run


@pytest.mark.parametrize("method", ["svm", "linear", "knn"])
def test_a_probe_is_chosen_on_val_and_reads_test_once(mae, lettered, capsys, method):
    found = result(capsys, "probe", mae, lettered, "--method", method)
    test = SplatDataset(lettered, "test")
    truth = dict(zip(test.uids, test.labels.tolist(), strict=True))
    right = np.mean([found["predicted"][uid] == label for uid, label in truth.items()])
    assert found["read"] == "now" and found["objects"] == len(test) and found["accuracy"] == pytest.approx(right)
    assert found["val_accuracy"] == max(found["tried"].values())
    assert found["train_objects"] == len(SplatDataset(lettered, "train"))
    assert result(capsys, "probe", mae, lettered, "--method", method)["read"] == "kept result"
    val = result(capsys, "probe", mae, lettered, "--method", method, "--split", "val")
    assert val["accuracy"] == val["val_accuracy"] == found["val_accuracy"]


def test_another_checkpoint_does_not_read_test_again_unless_told(mae, lettered, capsys):
    call("probe", mae, lettered)
    kept = mae / "probe_svm_test.json"
    kept.write_text(json.dumps({**json.loads(kept.read_text()), "checkpoint": "step_00000001"}))
    call("probe", mae, lettered, code=3)
    assert "checkpoint step_00000001, now step_" in capsys.readouterr().err
    call("probe", mae, lettered, "--again")


def test_a_whole_shape_finds_itself_and_a_part_is_another_query(mae, lettered, capsys):
    whole = result(capsys, "retrieve", mae, lettered, "--keep", "1", "--split", "val")
    assert whole["object"]["map"] == whole["object"]["hit"] == 1 and whole["category"] == whole["category_whole"]
    half = result(capsys, "retrieve", mae, lettered, "--split", "test", "--k", "3")
    assert half["objects"] == half["object"]["queries"] == 42 and 0 < half["object"]["map"] < 1
    assert result(capsys, "retrieve", mae, lettered, "--k", "3")["read"] == "kept result"
    call("retrieve", mae, lettered, "--k", "3", "--seed", "1", code=3)
    assert "seed 0, now 1" in capsys.readouterr().err


def test_few_shot_is_a_mean_over_folds_and_goes_on_where_it_stopped(mae, lettered, tmp_path, capsys):
    drawn = tmp_path / "folds.json"
    folds = ("--ways", "2", "3", "--shots", "2", "--queries", "4", "--folds", "2")
    call("folds", lettered, "--out", drawn, *folds)
    call("folds", lettered, "--out", drawn, *folds)
    call("folds", lettered, "--out", drawn, *folds, "--seed", "1", code=3)
    command = ["fewshot", lettered, drawn, "--init", mae, "--out", tmp_path / "few", *QUICK]
    found = result(capsys, *command)
    assert set(found["settings"]) == {"2-way 2-shot", "3-way 2-shot"} and found["read"] == "now"
    one = found["settings"]["2-way 2-shot"]
    assert one["mean"] == pytest.approx(np.mean(one["folds"]))
    assert one["std"] == pytest.approx(np.std(one["folds"], ddof=1))
    assert not list((tmp_path / "few").rglob("step_*"))  # forty checkpoints would fill a disk
    (tmp_path / "few" / "fewshot.json").unlink()
    (tmp_path / "few" / "3way_2shot" / "fold_01" / "result.json").unlink()
    assert result(capsys, *command)["settings"] == found["settings"]
    call(*command, "--train.seed", "1", code=3)
    assert "--again" in capsys.readouterr().err


def test_few_shot_on_frozen_features(mae, lettered, tmp_path, capsys):
    drawn = tmp_path / "folds.json"
    call("folds", lettered, "--out", drawn, "--ways", "2", "--shots", "3", "--queries", "4", "--folds", "3")
    command = ["fewshot", lettered, drawn, "--out", tmp_path / "few", "--protocol", "linear", *QUICK]
    found = result(capsys, *command, "--init", mae)
    assert all(a * 8 == int(a * 8) for a in found["settings"]["2-way 3-shot"]["folds"])  # eight were asked
    call(*command, code=3)
    assert "needs a trained encoder" in capsys.readouterr().err


def test_votes_are_asked_for_and_told(mae, lettered, tmp_path, capsys):
    call("finetune", "classify", lettered, "--init", mae, "--out", tmp_path / "cls", *QUICK)
    plain = result(capsys, "evaluate", tmp_path / "cls", lettered, "--split", "val")
    assert plain["votes"] == 1 and plain["voting"] == "none"
    voted = result(capsys, "evaluate", tmp_path / "cls", lettered, "--split", "val", "--votes", "3")
    assert (
        voted["votes"] == 3 and "3 random windows and moves" in voted["voting"] and voted["objects"] == plain["objects"]
    )
    assert voted["loss"] != plain["loss"]
    call("evaluate", mae, lettered, "--split", "val", "--votes", "2", code=3)
    assert "'pretrain' does not vote" in capsys.readouterr().err


def test_the_supervised_baseline_is_trained_and_measured_by_the_same_commands(lettered, tmp_path, capsys):
    call("finetune", "pointnet2", lettered, "--out", tmp_path / "pn2", *QUICK, "--spec.embed", "means")
    found = result(capsys, "evaluate", tmp_path / "pn2", lettered, "--split", "val")
    assert found["task"] == "pointnet2" and 0 <= found["accuracy"] <= 1 and len(found["confusion"]) == 7
    call("probe", tmp_path / "pn2", lettered, code=3)
    assert "has no encoder" in capsys.readouterr().err


def test_a_fold_is_asked_of_the_average_that_its_checkpoint_holds(mae, lettered, tmp_path, monkeypatch):
    from gsmae import checkpoint
    from gsmae.tasks import TASKS

    drawn, asked, real = tmp_path / "folds.json", [], TASKS["classify"].evaluate

    def evaluate(self, model, batches):
        (folder,) = checkpoint.steps(next(tmp_path.glob("few/*/*")))
        found = checkpoint.load(folder, with_optimizer=True)
        same = [all(torch.equal(v, w[k]) for k, v in model.state_dict().items()) for w in (found.weights, found.live)]
        asked.append(same)
        return real(self, model, batches)

    call("folds", lettered, "--out", drawn, "--ways", "2", "--shots", "2", "--queries", "1", "--folds", "1")
    monkeypatch.setattr(TASKS["classify"], "evaluate", evaluate)
    call("fewshot", lettered, drawn, "--init", mae, "--out", tmp_path / "few", *QUICK, "--train.ema", "0.9",
         "--train.epochs", "3")  # fmt: skip
    assert asked == [[True, False]]


def test_again_deletes_what_was_kept_once(mae, lettered, tmp_path, capsys, monkeypatch):
    """Stopped in the middle of --again, the rest is measured by the same command without it."""
    from gsmae.cli import fewshot

    drawn, out = tmp_path / "folds.json", tmp_path / "few"
    call("folds", lettered, "--out", drawn, "--ways", "2", "--shots", "2", "--queries", "1", "--folds", "3")
    command = ["fewshot", lettered, drawn, "--init", mae, "--out", out, "--protocol", "knn"]
    call(*command)
    real, seen = fewshot._probed, []

    def stopping(*a):
        seen.append(1)
        if len(seen) == 2:
            raise KeyboardInterrupt
        return real(*a)

    monkeypatch.setattr(fewshot, "_probed", stopping)
    call(*command, "--again", code=130)
    assert not (out / "fewshot.json").exists() and len(list(out.glob("*/*/result.json"))) == 1
    found = result(capsys, *command)
    assert found["read"] == "now" and len(seen) == 4


def test_probes_of_two_packs_and_two_seeds_are_two_questions(mae, lettered, tmp_path, capsys):
    result(capsys, "probe", mae, lettered, "--method", "svm", "--again")
    call("probe", mae, lettered, "--method", "svm", "--seed", "1", code=3)
    assert "seed 0, now 1" in capsys.readouterr().err
    kept = mae / "probe_svm_test.json"
    kept.write_text(json.dumps({**json.loads(kept.read_text()), "data": "0123456789ab"}))
    found = result(capsys, "probe", mae, lettered, "--method", "svm")
    assert found["read"] == "now" and json.loads(kept.read_text())["data"] == "0123456789ab"
    assert result(capsys, "probe", mae, lettered, "--method", "svm")["read"] == "kept result"


@pytest.mark.parametrize("verb", ["probe", "retrieve", "evaluate", "fewshot", "reproduce"])
def test_a_verb_that_shares_no_work_refuses_torchrun(mae, lettered, tmp_path, capsys, monkeypatch, verb):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    words = {"fewshot": [lettered, tmp_path / "f.json", "--out", tmp_path], "reproduce": ["fusion", lettered]}
    call(verb, *words.get(verb, [mae, lettered]), code=3)
    assert f"start it as `gsmae {verb}`" in capsys.readouterr().err


def test_the_spread_of_a_divided_batch_is_refused(lettered, tmp_path, capsys):
    flags = ["--model.objective", "latent", "--model.latent.spread", "1", "--train.accumulate", "2"]
    call("pretrain", lettered, "--out", tmp_path / "run", *QUICK, *flags, code=3)
    assert "divided into 2" in capsys.readouterr().err and not (tmp_path / "run").exists()
