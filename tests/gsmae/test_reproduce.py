"""Tables of runs: what an arm becomes, what is shared, how noise is told from a difference, what is written."""

import importlib.util
import json
import math
from typing import Any

import pytest

from gsmae.config import from_mapping
from gsmae.errors import InputError
from gsmae.reproduce import TABLES, Base, Data, Table, collect, markdown, plan, read_base, read_table, write
from gsmae.reproduce.noise import binomial, compare, mean_std
from gsmae.reproduce.timing import Size, expected_seconds

SPLATS, POINTS, OTHER = (Data("p", "aaa"), Data("q", "bbb"), Data("r", "ccc"))  # type: ignore[arg-type]


def table(*arms: dict, against: tuple = ()) -> Table:
    return from_mapping(Table, {"about": "a test", "arms": arms, "against": against})


def planned(*arms: dict, seeds=(0,), data=None, **more) -> Any:
    return plan(table(*arms), seeds, data or {"splats": SPLATS}, recipe="tiny", **more)


def test_arms_that_need_the_same_pretraining_share_it_and_seeds_do_not():
    made = planned({"name": "full"}, {"name": "linear", "finetune": {"model": {"protocol": "linear"}}}, seeds=(0, 1))
    kinds = [step.kind for step in made.steps]
    assert kinds == ["pretrain", "classify", "classify"] * 2
    full, linear = (cell.finetune for cell in made.cells[:2])
    assert full.init.digest == linear.init.digest and full.digest != linear.digest
    assert len({step.digest for step in made.steps}) == 6
    assert [step.train.seed for step in made.steps] == [0, 0, 0, 1, 1, 1]


def test_a_run_is_found_by_what_it_is_and_not_by_the_arm_that_made_it(tmp_path):
    (first,), (again,) = (planned({"name": name, "pretrained": False}).steps for name in ("one", "two"))
    assert first.folder(tmp_path).name.startswith("classify-one-s0-")
    first.folder(tmp_path).mkdir()
    assert again.folder(tmp_path) == first.folder(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        {"base": Base(pretrain={"train": {"epochs": 3}})},
        {"data": {"splats": OTHER}},
        {"data": {"splats": SPLATS, "pretrain-splats": OTHER}},
        {"seeds": (1,)},
    ],
)
def test_another_configuration_pack_or_seed_is_another_run(change):
    assert planned({"name": "a"}).steps[1].digest != planned({"name": "a"}, **change).steps[1].digest


def test_overrides_reach_the_runs_they_are_for():
    arm = {
        "name": "a", "shared": {"spec": {"embed": ["means"]}, "train": {"gaussians": 64}},
        "pretrain": {"model": {"mask_ratio": 0.4}}, "finetune": {"train": {"lr": 0.5}},
    }  # fmt: skip
    base = Base(shared={"model": {"encoder": {"groups": 5}}, "train": {"gaussians": 32}}, classify={"train": {"lr": 9}})
    pretrained, tuned = planned(arm, base=base).steps
    assert pretrained.config.spec.embed == ("means",) and pretrained.config.model.mask_ratio == 0.4
    assert pretrained.config.model.encoder.groups == 5 and pretrained.train.gaussians == tuned.train.gaussians == 64
    assert tuned.train.lr == 0.5 and pretrained.train.lr != 0.5
    assert "spec" not in tuned.asked and "encoder" not in tuned.asked["model"]  # the pretrained run decides them
    (scratch,) = planned({**arm, "pretrained": False}, base=base).steps
    assert scratch.asked["spec"]["embed"] == ["means"] and scratch.asked["model"]["encoder"]["groups"] == 5


def test_points_are_another_pack_in_both_runs():
    arm = {"name": "points", "input": "points"}
    data = {"splats": SPLATS, "points": POINTS}
    assert [step.data for step in planned(arm, data=data).steps] == [POINTS, POINTS]
    assert "--points" in planned(arm).cells[0].problem
    assert "--pretrain-points" in planned(arm, data={**data, "pretrain-splats": OTHER}).cells[0].problem


@pytest.mark.parametrize(
    "arm, said",
    [
        ({"shared": {"spec": {"embed": ["mean"]}}}, "did you mean 'means'"),
        ({"pretrain": {"train": {"epohcs": 3}}}, "did you mean 'epochs'"),
        ({"finetune": {"spec": {"embed": ["means"]}}}, "use `shared`"),
    ],
)
def test_an_arm_that_is_not_valid_is_a_cell_with_a_problem_and_the_others_stay(arm, said):
    made = planned({"name": "good"}, {"name": "bad", **arm})
    assert made.cells[0].problem == "" and said in made.cells[1].problem and "bad" in made.cells[1].problem
    assert len(made.steps) == 2


def test_a_pointnet2_takes_what_is_shared_but_the_encoder():
    shared = {"model": {"encoder": {"groups": 5}}, "train": {"gaussians": 32}}
    base = Base(shared=shared, pointnet2={"train": {"lr": 9}})
    arm = {"name": "p", "task": "pointnet2", "pretrained": False, "shared": {"spec": {"embed": ["means"]}}}
    (step,) = planned(arm, base=base).steps
    assert step.kind == "pointnet2" and step.config.spec.embed == ("means",)
    assert (step.train.gaussians, step.train.lr) == (32, 9)
    compared = table(arm, {"name": "ours", "pretrained": False}, against=("ours",))
    assert [a.kind for a in compared.arms] == ["classify", "classify"]  # one column of numbers


def test_a_probe_lies_in_the_run_that_it_reads_and_few_shot_learning_in_its_own(tmp_path):
    probe, few = (planned({"name": task, "task": task}).steps[1] for task in ("probe", "fewshot"))
    assert probe.folder(tmp_path) == probe.init.folder(tmp_path) and probe.method == "svm"
    assert few.folder(tmp_path).name.startswith("fewshot-fewshot-s0-") and few.method == "full"
    other = planned({"name": "knn", "task": "probe", "method": "knn"}).steps[1]
    assert other.init.digest == probe.init.digest and other.digest != probe.digest
    folds = planned({"name": "few", "task": "fewshot"}, base=Base(folds={"ways": [2]})).steps[1]
    assert folds.more == {"ways": [2]} and folds.digest != few.digest


def test_only_some_arms_and_a_misspelt_one():
    arms = [{"name": "E(C)"}, {"name": "E(All)"}]
    assert [cell.arm.name for cell in planned(*arms, arms=["E(All)"]).cells] == ["E(All)"]
    with pytest.raises(InputError, match=r"did you mean 'E\(All\)'"):
        planned(*arms, arms=["E(Al)"])


@pytest.mark.parametrize(
    "values, said",
    [
        ({"arms": [{"name": "a"}, {"name": "a"}]}, "two arms"),
        ({"arms": [{"name": "abc"}], "against": ["abd"]}, "did you mean 'abc'"),
        ({"arms": [{"name": "a"}, {"name": "b"}], "against": ["a", "b"]}, "two arms of one task"),
        ({"arms": [{"name": "a", "task": "probe", "pretrained": False}]}, "needs a pretrained run"),
        ({"arms": [{"name": "a", "method": "svm"}]}, "not for classify"),
        ({"arms": [{"name": "a", "task": "pointnet2"}]}, "pretrained: false"),
        ({"arms": []}, "at least 1"),
    ],
)
def test_a_table_of_ones_own_is_checked(tmp_path, values, said):
    (tmp_path / "mine.yaml").write_text(json.dumps({"about": "x", **values}))
    with pytest.raises(InputError, match=said):
        read_table(str(tmp_path / "mine.yaml"))


def test_unknown_tables_and_keys_are_refused_with_the_nearest_name(tmp_path):
    with pytest.raises(InputError, match="did you mean 'embedding'"):
        read_table("embeding")
    (tmp_path / "base.yaml").write_text("pretrian: {}\n")
    with pytest.raises(InputError, match="did you mean 'pretrain'"):
        read_base(tmp_path / "base.yaml")


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize("recipe", ["tiny", "small", "base"])
def test_every_arm_of_the_papers_tables_is_a_valid_run(name, recipe):
    made = plan(TABLES[name], (0,), {"splats": SPLATS}, recipe=recipe)
    assert [cell.problem for cell in made.cells] == [""] * len(TABLES[name].arms)
    named = {cell.finetune.digest for cell in made.cells if cell.finetune}
    assert len(named) == len(TABLES[name].arms)  # no two arms are the same run


def test_the_time_of_every_kind_of_run_can_be_told_before_it_begins():
    small = {"model": {"encoder": {"width": 12, "depth": 3, "heads": 3, "groups": 4, "group_size": 4}},
             "train": {"gaussians": 32, "batch_size": 4, "queries": 8, "epochs": 3}}  # fmt: skip
    sizes = {"model": {"centers": [8, 4], "neighbors": [4, 4], "share": 0.1}}
    base = Base(shared=small, pretrain={"model": {"decoder_heads": 3}}, pointnet2=sizes)
    arms = [
        {"name": "full"}, {"name": "parts", "task": "segment"}, {"name": "probe", "task": "probe"},
        {"name": "few", "task": "fewshot"}, {"name": "net", "task": "pointnet2", "pretrained": False},
        {"name": "masks", "task": "probe", "pretrain": {"model": {"mask": "importance"}}},
        {"name": "fails", "pretrained": False, "shared": {"model": {"encoder": {"groups": 64}}}},
    ]  # fmt: skip
    steps = planned(*arms, base=base).steps
    found = expected_seconds(steps, {SPLATS.path: Size(train=40, classes=3, parts=5)}, "cpu")
    told = {step.kind + " " + step.name: seconds for step, seconds in zip(steps, found, strict=True)}
    assert isinstance(told.pop("classify fails"), str)
    if importlib.util.find_spec("torch_geometric") is None:
        assert "pip install" in str(told.pop("pointnet2 net"))
    assert all(isinstance(seconds, float) and seconds > 0 for seconds in told.values()), told


def test_what_is_timed_is_the_step_that_will_be_taken(monkeypatch):
    from gsmae.training.steps import Stepper

    seen, real = [], Stepper.take

    def take(self, batch, *a):
        seen.append((len(batch), self.config.accumulate, self.config.precision))
        return real(self, batch, *a)

    monkeypatch.setattr(Stepper, "take", take)
    train = {"gaussians": 32, "batch_size": 16, "accumulate": 4, "precision": "bf16"}
    small = {"model": {"encoder": {"width": 12, "depth": 3, "heads": 3, "groups": 4, "group_size": 4}}, "train": train}
    steps = planned({"name": "scratch", "pretrained": False}, base=Base(shared=small)).steps
    (seconds,) = expected_seconds(steps, {SPLATS.path: Size(train=40, classes=3, parts=0)}, "cpu")
    assert isinstance(seconds, float) and seen == [(8, 2, "bf16")] * 2  # pieces of four, as in the run


def test_a_configuration_that_pretraining_decides_is_refused_and_not_dropped():
    base = Base(classify={"model": {"encoder": {"width": 12}}})
    told = {cell.arm.name: cell.problem for cell in planned(
        {"name": "pretrained"}, {"name": "scratch", "pretrained": False}, base=base).cells}  # fmt: skip
    assert "`classify` names spec or model.encoder" in told["pretrained"] and not told["scratch"]


def test_noise_by_hand():
    assert mean_std([1.0, 2.0, 6.0]) == (3.0, pytest.approx(math.sqrt(7)))
    assert mean_std([4.0]) == (4.0, None)
    assert binomial(0.5, 100) == pytest.approx(0.05)
    found: Any = compare({0: 0.5, 1: 0.6, 2: 0.7, 3: 0.9}, {0: 0.4, 1: 0.4, 2: 0.4})
    assert found.seeds == 3 and found.mean == pytest.approx(0.2)  # 0.1, 0.2, 0.3
    assert found.interval == pytest.approx(4.302653 * 0.1 / math.sqrt(3), rel=1e-5)
    assert found.objects is None and not found.beyond_noise
    assert compare({0: 1.0}, {1: 1.0}) is None


def test_the_interval_is_scipys():
    from scipy.stats import ttest_rel

    ours, theirs = [0.61, 0.72, 0.64, 0.7], [0.58, 0.6, 0.66, 0.61]
    found: Any = compare(dict(enumerate(ours)), dict(enumerate(theirs)))
    interval: Any = ttest_rel(ours, theirs).confidence_interval(0.95)  # type: ignore[union-attr]
    assert (found.mean - found.interval, found.mean + found.interval) == pytest.approx((interval.low, interval.high))


def test_noise_over_objects_is_paired_object_by_object():
    """Two arms that differ on one of four objects, in both seeds: the mean is 1/4, its error that of (1, 0, 0, 0)."""
    ours = {s: {"a": 1.0, "b": 1.0, "c": 0.0, "d": 1.0} for s in (0, 1)}
    theirs = {s: {"a": 0.0, "b": 1.0, "c": 0.0, "d": 1.0} for s in (0, 1)}
    found: Any = compare({0: 0.75, 1: 0.75}, {0: 0.5, 1: 0.5}, ours, theirs)
    assert found.mean == 0.25 and found.objects == pytest.approx(0.5 / 2) and found.interval == 0
    assert not found.beyond_noise
    other = {s: {"x": 1.0} for s in (0, 1)}
    pair = {0: 0.9, 1: 0.9}, {0: 0.1, 1: 0.1}
    clear: Any = compare(*pair, {s: {"a": 1.0, "b": 0.8} for s in (0, 1)}, {s: {"a": 0.1, "b": 0.1} for s in (0, 1)})
    assert clear.mean > 1.96 * clear.objects and clear.interval == 0 and not clear.beyond_noise  # two seeds only
    unpaired: Any = compare({0: 0.75, 1: 0.75}, {0: 0.5, 1: 0.5}, ours, other)
    assert unpaired.mean == 0.25 and unpaired.objects is None


def left_by(runs, step, accuracy: float, seconds: float = 5.0, resumed: int = 0, right=()) -> None:
    folder = step.folder(runs)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "summary.json").write_text(json.dumps({"seconds": seconds, "resumed_from": resumed}))
    if step.kind != "pretrain":
        found = {"accuracy": accuracy, "class_accuracy": accuracy / 2, "objects": 4}
        found["predicted"] = {f"o{i}": int(i in right) for i in range(4)}
        (folder / "evaluation_test.json").write_text(json.dumps(found))


def test_a_table_is_read_from_what_the_runs_have_left(tmp_path):
    arms = [{"name": "a", "pretrained": False, "paper": {"modelnet10": 93.5}}, {"name": "b", "pretrained": False,
            "finetune": {"train": {"lr": 0.5}}}, {"name": "c", "shared": {"spec": {"embed": ["mean"]}}}]  # fmt: skip
    made: Any = plan(table(*arms, against=("a",)), (0, 1), {"splats": SPLATS}, recipe="tiny")
    steps = {(cell.arm.name, cell.seed): cell.finetune for cell in made.cells if cell.finetune}
    left_by(tmp_path / "runs", steps["a", 0], 0.50, right=(0, 1))
    left_by(tmp_path / "runs", steps["a", 1], 0.25, seconds=7, right=(0,))
    left_by(tmp_path / "runs", steps["b", 0], 0.75, resumed=3, right=(0, 1, 2))
    labels = dict.fromkeys([f"o{i}" for i in range(4)], 1)
    failures = {steps["b", 1].digest: "no memory | left"}
    result: Any = collect("t", made, tmp_path / "runs", failures=failures, labels=labels, facts={"seeds": "0, 1"})
    a, b, c = result.arms
    assert a.values("accuracy") == {0: 0.5, 1: 0.25} and a.seeds[1].seconds == 7 and a.paper is None
    assert b.seeds[0].seconds is None  # the summary of a run that went on tells only of its last part
    assert b.against.mean == 0.25 and b.against.interval is None and b.against.objects == pytest.approx(0.25)
    assert "did you mean" in c.seeds[0].error

    text = markdown(result)
    assert "| a | 37.50 ± 17.68 | 18.75 ± 8.84 |" in text and "| b | 75.00 |" in text and "+25.00" in text
    assert "1 of 2; failed: no memory \\| left" in text and "paper" not in text
    named = markdown(collect("t", made, tmp_path / "runs", failures={}, labels=labels, dataset="modelnet10"))
    assert "paper (modelnet10)" in named and "| 93.50 |" in named

    made_files = write(result, tmp_path / "out")
    assert [p.name for p in made_files] == ["table.json", "table.csv", "table.md"]
    values = json.loads(made_files[0].read_text())
    assert values["arms"][0]["metrics"]["accuracy"] == {"mean": 0.375, "std": pytest.approx(0.17677669)}
    rows = made_files[1].read_text().splitlines()
    assert len(rows) == 1 + 6 and rows[1].startswith("a,classify,0,0.5,0.25,")


def test_part_segmentation_is_paired_by_the_iou_of_each_object_where_results_have_it(tmp_path):
    arms = [{"name": "a", "task": "segment", "pretrained": False},
            {"name": "b", "task": "segment", "pretrained": False, "finetune": {"train": {"lr": 0.5}}}]  # fmt: skip
    made: Any = plan(table(*arms, against=("a",)), (0,), {"splats": SPLATS}, recipe="tiny")

    def measured(step, ious, kept):
        folder = step.folder(tmp_path)
        folder.mkdir(exist_ok=True)
        (folder / "summary.json").write_text(json.dumps({"seconds": 1, "resumed_from": 0}))
        mean = sum(ious) / len(ious)
        found = {"instance_iou": mean, "class_iou": mean, "objects": len(ious)}
        each = {"iou": {f"o{i}": iou for i, iou in enumerate(ious)}} if kept else {}
        (folder / "evaluation_test.json").write_text(json.dumps(found | each))

    for kept in (True, False):
        measured(made.steps[0], [0.5, 0.5, 0.5, 0.5], True)
        measured(made.steps[1], [0.5, 0.75, 0.5, 0.75], kept)
        against: Any = collect("t", made, tmp_path, failures={}, labels={}).arms[1].against
        assert against.mean == 0.125
        objects = math.sqrt(4 * 0.125**2 / 3) / 2  # differences 0 1/4 0 1/4
        assert against.objects == (pytest.approx(objects) if kept else None)


def test_a_result_that_cannot_be_read_is_said_in_its_row(tmp_path):
    made = planned({"name": "a", "pretrained": False})
    left_by(tmp_path, made.steps[0], 0.5)
    (made.steps[0].folder(tmp_path) / "evaluation_test.json").write_text("{")
    result = collect("t", made, tmp_path, failures={}, labels={})
    assert "not readable" in result.arms[0].seeds[0].error
