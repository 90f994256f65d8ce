"""A table of real runs on a pack of two dozen small splats: all of it, cut off and gone on, with arms that fail."""

import csv
import json
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
import yaml

from gsmae.cli import main
from gsmae.gaussians import Gaussians
from gsmae.ply import write_ply

TINY = {
    "shared": {
        "model": {"encoder": {"width": 12, "depth": 3, "heads": 3, "groups": 4, "group_size": 4}},
        "train": {"epochs": 2, "gaussians": 32, "batch_size": 4, "warmup_epochs": 0},
    },
    "pretrain": {"model": {"decoder_heads": 3}},
}
ARMS = [
    {"name": "pretrained"},
    {"name": "linear head", "finetune": {"model": {"protocol": "linear"}}},
    {"name": "frozen", "task": "probe", "method": "knn"},
    {"name": "too many groups", "shared": {"model": {"encoder": {"groups": 100}}}},
    {"name": "misspelt", "shared": {"spec": {"embed": ["mean"]}}},
]


def call(*argv, code=0) -> None:
    assert main([str(a) for a in argv]) == code


def objects(folder: Path, count: int) -> Path:
    """flat/NAME.ply and round/NAME.ply: discs and balls of 60 Gaussians."""
    for category, flat in (("flat", 0.05), ("round", 1.0)):
        for number in range(count):
            g = torch.Generator().manual_seed(number)
            means = torch.nn.functional.normalize(torch.randn(60, 3, generator=g), dim=1)
            means = means * torch.tensor([1, 1, flat])
            splat = Gaussians(
                means, torch.randn(60, 4, generator=g), torch.randn(60, 3, generator=g) - 4,
                torch.randn(60, generator=g), torch.randn(60, 1, 3, generator=g),
            )  # fmt: skip
            path = folder / category / f"{category}{number:02d}.ply"
            path.parent.mkdir(parents=True, exist_ok=True)
            write_ply(path, splat)
    return folder


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A pack, a table and the configuration of its runs."""
    out = tmp_path_factory.mktemp("reproduce")
    call("pack", objects(out / "objects", 12), "--source", "folder", "--out", out / "pack", "--val", "0.25")
    (out / "mine.yaml").write_text(yaml.safe_dump({"about": "a test", "against": ["pretrained"], "arms": ARMS}))
    (out / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    return out


def table(place: Path, out: Path, *more, code=0, name="mine") -> dict:
    flags = ["--recipe", "tiny", "--config", place / "tiny.yaml", "--device", "cpu"]
    call("reproduce", place / f"{name}.yaml", place / "pack", "--out", out, *flags, *more, code=code)
    made = out / name / "table.json"
    return json.loads(made.read_text()) if made.exists() else {}


@pytest.fixture(scope="module")
def whole(place) -> Path:
    """The table run without a break, two seeds."""
    table(place, place / "whole", "--seeds", "0", "1", code=4)
    return place / "whole"


def numbers(out: Path) -> list[dict]:
    """What was measured, without what a clock says."""
    rows = list(csv.DictReader((out / "mine" / "table.csv").open()))
    return [{k: v for k, v in row.items() if not k.endswith("seconds")} for row in rows]


def test_arms_that_fail_are_rows_and_the_others_have_their_numbers(whole):
    arms = {arm["name"]: arm for arm in json.loads((whole / "mine" / "table.json").read_text())["arms"]}
    for name in ("pretrained", "linear head", "frozen"):
        found = [seed["metrics"]["accuracy"] for seed in arms[name]["seeds"]]
        assert len(found) == 2 and all(0 <= value <= 1 for value in found)
        assert arms[name]["metrics"]["accuracy"]["mean"] == pytest.approx(sum(found) / 2)
    assert arms["linear head"]["against"]["seeds"] == 2 and arms["frozen"]["against"] is None
    assert "100" in arms["too many groups"]["seeds"][0]["error"]
    assert "did you mean 'means'" in arms["misspelt"]["seeds"][1]["error"]
    text = (whole / "mine" / "table.md").read_text()
    assert "0 of 2; failed: " in text and "22 train" not in text and "12 train, 6 val, 6 test" in text


def test_the_numbers_are_those_of_the_runs_and_arms_share_their_pretraining(whole):
    runs = whole / "runs"
    rows = [row for row in numbers(whole) if row["run"] and not row["error"]]
    assert len(rows) == 6 and {row["objects"] for row in rows} == {"6"}
    for row in rows:
        file = "probe_knn_test.json" if row["task"] == "probe" else "evaluation_test.json"
        assert float(row["accuracy"]) == json.loads((runs / row["run"] / file).read_text())["accuracy"]
    assert len({row["pretrain"] for row in rows}) == 2  # one for each seed
    started = sorted(p.name.rsplit("-", 1)[0] for p in runs.iterdir() if (p / "summary.json").exists())
    assert started == sorted(
        f"{kind}-s{s}"
        for s in (0, 1)
        for kind in ("pretrain-pretrained", "classify-pretrained", "classify-linear-head")
    )


def test_what_is_finished_is_not_run_again(place, whole, monkeypatch):
    from gsmae.cli import learning

    before = (whole / "mine" / "table.csv").read_text()
    monkeypatch.setattr(learning, "finetune", lambda argv: pytest.fail("fine-tuned again"))
    monkeypatch.setattr(learning, "evaluate", lambda argv: pytest.fail("read test again"))
    table(place, whole, "--seeds", "0", "1", "--limit-arms", "pretrained", "linear head", "frozen")
    table(place, whole, "--seeds", "0", "1", code=4)
    assert (whole / "mine" / "table.csv").read_text() == before


@pytest.mark.parametrize("stop_at", [2, 9])
def test_a_table_that_was_stopped_goes_on_to_the_same_numbers(place, whole, tmp_path, monkeypatch, stop_at):
    """Stopped in the first pretraining, and in a fine-tuning."""
    calls, real = [], torch.Tensor.backward

    def stopping(loss, *a, **k):
        calls.append(1)
        if len(calls) == stop_at:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(loss, *a, **k)

    monkeypatch.setattr(torch.Tensor, "backward", stopping)
    table(place, tmp_path / "cut", "--seeds", "0", code=130)
    assert len(calls) == stop_at
    monkeypatch.setattr(torch.Tensor, "backward", real)
    table(place, tmp_path / "cut", "--seeds", "0", code=4)
    assert numbers(tmp_path / "cut") == [row for row in numbers(whole) if row["seed"] == "0"]


def test_a_failure_of_the_moment_is_tried_again(place, whole, tmp_path, monkeypatch):
    from gsmae.cli import learning

    def full(argv):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(learning, "pretrain", full)
    result = table(place, tmp_path, "--seeds", "0", "--limit-arms", "pretrained", "linear head", code=4)
    assert ["No space" in arm["seeds"][0]["error"] for arm in result["arms"]] == [True, True]
    monkeypatch.undo()
    result = table(place, tmp_path, "--seeds", "0", "--limit-arms", "pretrained", "linear head")
    assert [arm["seeds"][0]["error"] for arm in result["arms"]] == ["", ""]


def test_a_dry_run_says_what_there_is_to_do_and_does_nothing(place, tmp_path, capsys):
    table(place, tmp_path / "out", "--dry-run", code=4)
    said = capsys.readouterr().out
    assert "to do" in said and "pretrain-pretrained-s2-" in said and "minutes on this machine" in said
    assert "cannot be run: misspelt, seed 0" in said and "there are 32 points" in said
    assert not (tmp_path / "out").exists()


def test_points_of_other_objects_are_refused(place, tmp_path, capsys):
    call("pack", objects(tmp_path / "objects", 20), "--source", "folder", "--out", tmp_path / "other", "--val", "0.25")
    table(place, tmp_path / "out", "--points", tmp_path / "other", code=3)
    assert "are not the 6 of" in capsys.readouterr().err


def test_the_tables_that_come_with_it_are_listed(capsys):
    call("reproduce", "list")
    said = capsys.readouterr().out
    assert "embedding: " in said and "    E(C,S,R)" in said


def test_the_papers_number_stands_beside_ours_only_on_the_papers_data(place, whole, tmp_path, monkeypatch):
    """A pack with the classes and the test objects of ModelNet10 is one; half of them are not."""
    from data.audit import modelnet
    from gsmae.cli.reproducing import _dataset

    class Pack:
        class_names = tuple(sorted({o.category for o in modelnet("modelnet10")}))

        def __init__(self, count):
            self.count = count

        def __len__(self):
            return self.count

    assert [_dataset(Pack(n)) for n in (908, 907, 905, 454)] == ["modelnet10", "modelnet10", "", ""]
    shutil.copytree(whole / "runs", tmp_path / "runs")
    monkeypatch.setattr("gsmae.cli.reproducing._dataset", lambda pack: "modelnet10")
    (tmp_path / "paper.yaml").write_text(
        yaml.safe_dump({"about": "x", "arms": [{"name": "pretrained", "paper": {"modelnet10": 95.37}}]})
    )
    for name in ("tiny.yaml", "pack"):
        (tmp_path / name).symlink_to(place / name)
    result = table(tmp_path, tmp_path, "--seeds", "0", name="paper")
    assert result["dataset"] == "modelnet10" and result["arms"][0]["paper"] == 95.37
    assert "| 95.37 |" in (tmp_path / "paper" / "table.md").read_text()


def test_a_probe_of_another_pack_is_measured_and_not_taken_from_the_first(place, tmp_path):
    """Two packs of one pretraining in one folder: each has its own number."""
    call("pack", objects(tmp_path / "objects", 16), "--source", "folder", "--out", tmp_path / "other", "--val", "0.25")
    flags = ["--recipe", "tiny", "--config", place / "tiny.yaml", "--device", "cpu", "--out", tmp_path / "out",
             "--seeds", "0", "--limit-arms", "frozen", "--pretrain-data", place / "pack"]  # fmt: skip
    found = []
    for pack in (place / "pack", tmp_path / "other"):
        call("reproduce", place / "mine.yaml", pack, *flags)
        (arm,) = json.loads((tmp_path / "out" / "mine" / "table.json").read_text())["arms"]
        found.append(arm["seeds"][0])
    assert [f["objects"] for f in found] == [6, 8] and found[0]["run"] == found[1]["run"]
    assert len(list((tmp_path / "out" / "runs" / found[0]["run"]).glob("probe_knn_test*.json"))) == 2


def test_runs_side_by_side_give_the_same_numbers_and_what_fails_fails_alone(place, whole, tmp_path):
    result = table(place, tmp_path, "--seeds", "0", "--jobs", "2", code=4)
    assert numbers(tmp_path) == [row for row in numbers(whole) if row["seed"] == "0"]
    assert "did you mean 'means'" in {arm["name"]: arm for arm in result["arms"]}["misspelt"]["seeds"][0]["error"]


def test_without_time_there_is_a_table_of_what_is_there(place, whole, tmp_path):
    shutil.copytree(whole / "runs", tmp_path / "runs")
    for path in (tmp_path / "runs").glob("classify-linear*-s1-*/evaluation_test.json"):
        path.unlink()
    result = table(place, tmp_path, "--seeds", "0", "1", "--seconds", "0", code=4)
    found = {arm["name"]: [bool(seed["metrics"]) for seed in arm["seeds"]] for arm in result["arms"]}
    assert found["pretrained"] == [True, True] and found["linear head"] == [True, False]
    table(place, tmp_path, "--seconds", "5", code=3)
