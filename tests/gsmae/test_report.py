"""The page: everything that is there is on it, whatever is missing or broken is not, and nothing of it gets loose."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from gsmae.batch import Batch
from gsmae.errors import InputError
from gsmae.files import write_json
from gsmae.ply import write_ply
from gsmae.report import report
from gsmae.report.charts import curves, histogram
from gsmae.tasks import Classify
from gsmae.training import Task, TrainConfig, train

EVIL = "<script>alert('x')</script>&\"'><img src=x onerror=alert(1)>"
VOID = {"meta", "img", "br", "link", "input", "hr"}


class Page(HTMLParser):
    """What a browser makes of the page: elements with attributes, texts, and whether all elements are closed."""

    def __init__(self, path: Path):
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.open: list[str] = []
        self.feed(self.source)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-3:]}"
        self.open.pop()

    def handle_data(self, data):
        self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())

    def tags(self, name: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.elements if tag == name]

    def captions(self) -> list[str]:
        return re.findall(r"<figcaption><b>(.*?)</b>", self.source)


@pytest.fixture
def make_build(tmp_path, make_splat):
    """make_build({name: changes of its record}): a build folder in the format of `gsmae build`."""

    def make(objects: dict[str, dict], folder: str = "splats10", gaussians: int = 50) -> Path:
        path = tmp_path / folder
        head = {"schema": 1, "frame": "z-up: x, -z, y", "source": "folder", "root": "meshes", "seed": 3}
        write_json(path / "build.json", {**head, "config_hash": "c0ffee123456", "config": {"fit": {"iterations": 400}}})
        for i, (name, changes) in enumerate(objects.items()):
            record = {
                "schema": 1, "uid": name, "category": name.split("/")[0], "split": "train", "status": "done",
                "reason": "", "stage": "", "mesh": f"meshes/{name}.obj", "gaussians": gaussians, "psnr": 20.0 + i,
                "ssim": 0.9, "seconds": 10.0 + i, "config_hash": "c0ffee123456", "warnings": [], **changes,
            }  # fmt: skip
            write_json(path / "records" / f"{name}.json", record)
            if record["status"] == "done":
                write_ply(path / "splats" / f"{name}.ply", make_splat(gaussians, seed=i))
                picture(path / "views" / f"{name}.png", 60, i)
        return path

    return make


def picture(path: Path, height: int, seed: int) -> None:
    """Three gradients side by side, of another colour for each seed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (1, 1, 3)) * np.linspace(0, 1, height)[:, None, None]
    Image.fromarray(np.broadcast_to(pixels, (height, 3 * height, 3)).astype(np.uint8)).save(path)


class Spread(nn.Module):
    """The smallest network that the classification task can train: one linear layer over the mean point."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(14, 3)

    def forward(self, points):
        return self.layer(points.mean(dim=1))


class Stream:
    """Two batches an epoch of three classes that differ in their means."""

    def __len__(self):
        return 2

    def epoch(self, epoch: int, skip: int = 0):
        for number in range(skip, 2):
            generator = torch.Generator().manual_seed(epoch * 2 + number)
            labels = torch.randint(3, (6,), generator=generator)
            points = torch.randn(6, 8, 14, generator=generator) + labels[:, None, None]
            yield Batch(points, labels, tuple(f"a/{number}{i}" for i in range(6)))


def begin_run(path: Path, **changes) -> Path:
    """A run folder as it is before the first step."""
    header = {
        "config_hash": "beef00000000", "command": ["gsmae", "finetune", "classify"], "task": "classify",
        "spec": {"embed": ["means"]}, "model": {"classes": 3}, "classes": ["chair", "lamp", "table"], "parts": [],
        "data": {"path": "pack", "hash": "c0ffee123456"}, "init": None, "versions": {"gsmae": "0.1.0"}, **changes,
    }  # fmt: skip
    write_json(path / "run.json", header)
    return path


def trained_run(path: Path) -> Path:
    """A run by the real loop, finished and measured on its test split."""
    begin_run(path)
    torch.manual_seed(0)
    model, task = Spread(), cast(Task, Classify())
    config = TrainConfig(epochs=3, warmup_epochs=1, val_every=1, save_every=3, batch_size=6, lr=0.05)
    made = train(task, model, Stream(), Stream(), config, path, {"task": "classify"})
    write_json(path / "summary.json", {**made.__dict__, "run": str(path)})
    with torch.no_grad():
        metrics = task.evaluate(model.eval(), Stream().epoch(0))
    identity = {"checkpoint": made.best, "data": "c0ffee123456", "split": "test", "task": "classify"}
    write_json(path / "evaluation_test.json", {**identity, "classes": ["chair", "lamp", "table"], **metrics})
    return path


def test_every_object_is_on_the_page_worst_first_with_its_picture_and_numbers(make_build, tmp_path):
    build = make_build({f"chair/c{i}": {"psnr": psnr} for i, psnr in enumerate((31.5, 18.25, 25.0))})
    made = report([build], tmp_path / "page.html")
    page = Page(tmp_path / "page.html")
    assert page.captions() == ["chair/c1", "chair/c2", "chair/c0"]
    assert "18.25 dB · 50 Gaussians · train" in page.text
    assert "24.92 dB" in page.text and "150" in page.text and "c0ffee123456" in page.text  # mean PSNR, sum, hash
    assert sum(str(i["src"]).startswith("data:image/png;base64,") for i in page.tags("img")) == made.pictures == 3
    assert (made.objects, made.failed, made.problems, made.bytes) == (3, 0, 0, (tmp_path / "page.html").stat().st_size)


def test_the_page_loads_nothing_from_elsewhere_and_runs_nothing(make_build, tmp_path):
    run = trained_run(tmp_path / "run")
    report([make_build({"a/b": {}}), run], tmp_path / "page.html")
    page = Page(tmp_path / "page.html")
    assert not page.open, "all elements are closed"
    for tag, attributes in page.elements:
        assert tag not in ("script", "link", "iframe", "object", "embed", "form")
        for name, value in attributes.items():
            assert not name.startswith("on")
            if name in ("src", "href", "xlink:href", "action", "data", "srcset"):
                assert (value or "").startswith(("data:image/png;base64,", "#")), (tag, name, value)
    without_data = re.sub(r"data:image/png;base64,[^\"]*", "", page.source)
    assert "http:" not in without_data and "https:" not in without_data
    assert not re.search(r"url\((?!#)", without_data) and "@import" not in without_data
    ids = [a["id"] for _, a in page.elements if "id" in a]
    used = set(re.findall(r'(?:url\(#|href="#)([^)"]+)', without_data))
    assert len(ids) == len(set(ids)) and used <= set(ids)


def test_hostile_texts_stay_texts(make_build, tmp_path):
    objects = {
        "a/one": {"uid": EVIL, "warnings": [EVIL], "split": EVIL, "category": EVIL},
        "a/two": {"status": "failed", "uid": EVIL, "reason": EVIL, "stage": EVIL, "mesh": EVIL},
    }
    build = make_build(objects)
    head = json.loads((build / "build.json").read_text())
    write_json(build / "build.json", {**head, "source": EVIL, "config": {EVIL: EVIL}, "config_hash": EVIL})
    run = begin_run(tmp_path / "run", task=EVIL, init=EVIL, command=[EVIL, EVIL], versions={EVIL: EVIL})
    rows = [{"step": 1, "loss": 1.0, EVIL: 2.0, "loss_$\\frac{": 3.0, "split": "train"}]
    (run / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    result = {"split": EVIL, "checkpoint": EVIL, "confusion": [[1]], "classes": [EVIL], "per_category": {EVIL: 0.5}}
    write_json(run / "evaluation_val.json", result)
    pack = tmp_path / "pack"
    failed = [{"uid": EVIL, "stage": EVIL, "reason": EVIL}]
    head = {"class_names": [EVIL], "failed": failed, "part_names": {EVIL: [EVIL]}, "dropped": {EVIL: 3, "a": EVIL}}
    write_json(pack / "pack.json", head)
    report([build, run, pack], tmp_path / "page.html", note=EVIL)
    page = Page(tmp_path / "page.html")
    assert not page.tags("script") and not [i for i in page.tags("img") if "onerror" in i] and not page.open
    assert page.text.count(EVIL) >= 20


def test_a_pack_says_which_objects_lost_gaussians(tmp_path):
    write_json(tmp_path / "pack" / "pack.json", {"objects": 3, "dropped": {"a/one": 7, "a/two": 1200}})
    report([tmp_path / "pack"], tmp_path / "page.html")
    text = Page(tmp_path / "page.html").text
    assert "1,207" in text and "of 2 objects" in text and text.index("a/two") < text.index("a/one")


def test_a_record_cannot_name_a_picture_outside_the_build(make_build, tmp_path):
    picture(tmp_path / "secret.png", 30, 9)
    build = make_build({"a/b": {"uid": "../../secret"}})
    (build / "views" / "a" / "b.png").unlink()
    made = report([build], tmp_path / "page.html")
    assert made.pictures == 0 and "no picture" in Page(tmp_path / "page.html").text


def test_a_large_build_shows_its_worst_and_a_sample_that_stays_the_same(make_build, tmp_path):
    build = make_build({f"a/{i:02d}": {"psnr": 40.0 - i} for i in range(30)}, gaussians=2)
    captions = []
    for name in ("one.html", "two.html"):
        assert report([build], tmp_path / name, most=9).pictures == 9
        captions.append(Page(tmp_path / name).captions())
    assert captions[0] == captions[1] and len(set(captions[0])) == 9
    assert captions[0][:5] == [f"a/{i}" for i in (29, 28, 27, 26, 25)]
    assert "The 5 objects with the lowest PSNR" in Page(tmp_path / "one.html").text


def test_failures_are_listed_with_stage_reason_and_file_and_a_rejected_one_with_its_picture(make_build, tmp_path):
    objects = {
        "a/good": {},
        "a/bad": {"status": "failed", "stage": "load", "reason": "contains no faces", "mesh": "in/bad.obj"},
        "a/poor": {"status": "failed", "stage": "quality", "reason": "rejected: 12 dB"},
    }
    build = make_build(objects)
    picture(build / "views" / "a" / "poor.png", 60, 3)
    made = report([build], tmp_path / "page.html")
    text = Page(tmp_path / "page.html").text
    assert made.failed == 2 and made.pictures == 2
    for said in ("contains no faces", "in/bad.obj", "rejected: 12 dB", "1 in load, 1 in quality"):
        assert said in text


@pytest.mark.parametrize("objects", [{}, {"a/b": {"status": "failed", "reason": "no"}}], ids=["empty", "all failed"])
def test_a_build_without_a_splat_has_a_page(make_build, tmp_path, objects):
    made = report([make_build(objects)], tmp_path / "page.html")
    page = Page(tmp_path / "page.html")
    assert made.objects == len(objects) and not page.open and not page.tags("svg")
    assert "nan" not in page.text.lower()


def test_broken_files_are_left_out_and_named(make_build, tmp_path):
    build = make_build({f"a/{name}": {} for name in ("good", "record", "splat", "view", "odd")})
    (build / "records" / "a" / "record.json").write_text('{"uid": "a/rec')
    (build / "splats" / "a" / "splat.ply").write_bytes(b"ply\nnot really")
    (build / "views" / "a" / "view.png").write_bytes(b"\x89PNG not really")
    odd = {"status": "done", "psnr": "high", "gaussians": None, "seconds": 10**400, "warnings": 7, "uid": ["\ud800"]}
    (build / "records" / "a" / "odd.json").write_text(json.dumps(odd))
    made = report([build], tmp_path / "page.html")
    text = Page(tmp_path / "page.html").text
    assert made.objects == 4 and made.problems == 3
    assert "record.json" in text and "splat.ply" in text and "view.png" in text and "PSNR not known" in text


def test_a_run_is_shown_with_its_curves_its_measurements_and_which_split_was_read(tmp_path):
    run = trained_run(tmp_path / "run")
    picture(run / "reconstructions" / "chair_1.png", 40, 1)
    made = report([run], tmp_path / "page.html")
    page = Page(tmp_path / "page.html")
    titles = re.findall(r"<h4>(.*?)</h4>", page.source)
    assert titles[0] == "loss" and titles[-1] == "learning rate" and {"accuracy", "class accuracy"} <= set(titles)
    assert len(page.tags("svg")) == len(titles) and made.pictures == made.runs == 1
    assert "Measured on the test split" in page.text and "test split read by gsmae evaluate" in page.text
    counts = json.loads((run / "evaluation_test.json").read_text())["confusion"]
    cells = [int(n) for n in re.findall(r'<td class="cell[^>]*>(\d+)<', page.source)]
    assert cells == [n for row in counts for n in row] and sum(cells) == 12
    assert "45" in page.text and "all trained" in page.text and "chair_1" in page.text


def test_a_run_that_has_only_begun_has_a_page(tmp_path):
    made = report([begin_run(tmp_path / "run")], tmp_path / "page.html")
    assert made.runs == 1 and "only begun" in Page(tmp_path / "page.html").text


def test_broken_lines_of_metrics_are_left_out_and_counted(tmp_path):
    run = begin_run(tmp_path / "run")
    lines = ['{"step": 1, "loss": 2.0}', "[1]", '{"step": 2, "loss": NaN}', "\xff", '{"step": 3, "loss": 1.0}', '{"st']
    (run / "metrics.jsonl").write_text("\n".join(lines), encoding="latin-1")
    report([run], tmp_path / "page.html")
    text = Page(tmp_path / "page.html").text
    assert "3 broken lines left out" in text and "not finished: step 3" in text and "last: train 1" in text


def test_part_ious_are_listed_and_runs_stand_side_by_side(tmp_path):
    first = trained_run(tmp_path / "scratch")
    second = begin_run(tmp_path / "parts", task="segment", init="runs/pretrain")
    result = {"split": "test", "instance_iou": 0.725, "per_category": {"chair": 0.8125, "lamp": 0.5}, "objects": 4}
    write_json(second / "evaluation_test.json", result)
    report([first, second], tmp_path / "page.html")
    text = Page(tmp_path / "page.html").text
    assert "chair 0.812" in text and "lamp 0.500" in text
    assert "parts segment runs/pretrain only begun instance iou 0.725" in text


def test_a_folder_of_another_kind_is_refused_with_what_was_expected(tmp_path):
    begin_run(tmp_path / "runs" / "base")
    with pytest.raises(InputError, match=r"neither a build \(build.json\).*did you mean .*runs/base"):
        report([tmp_path / "runs"], tmp_path / "page.html")
    with pytest.raises(InputError, match="no such folder"):
        report([tmp_path / "nothing"], tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()


def test_a_histogram_counts_every_value_and_survives_the_odd_ones():
    assert histogram("none", []) is None and histogram("nan", [float("nan")]) is None
    assert histogram("logs of nothing positive", [0.0, -1.0], log=True) is None
    for values in ([5.0], [3.0] * 9, [3999.0, 4000.0], [0.0] * 4, [1e-30, 1e30], [0.0, 1e300], [-2.0, 7.0]):
        made = histogram("values", values)
        assert made is not None and "<svg" in made.svg and "nan" not in made.svg.lower()
    for values in ([2.0, 2.0], [1e-9, 1e9], [1.0, 1e200]):
        made = histogram("values", values, log=True)
        assert made is not None and "nan" not in made.svg.lower()
    assert "median 2" in histogram("values", [1.0, 2.0, 4.0]).caption  # type: ignore[union-attr]


def test_a_long_curve_is_averaged_to_a_few_hundred_points_and_keeps_its_level():
    steps = list(range(50_000))
    made = curves("loss", (steps, [3.0 + (-1) ** s for s in steps]), ([], []))
    assert made is not None and len(made.svg) < 30_000 and made.caption in ("last: train 2.99", "last: train 3")
    assert curves("nothing", ([], []), ([1], [float("inf")])) is None


def test_charts_follow_the_colours_of_the_page():
    made = histogram("values", [1.0, 2.0, 2.5])
    assert made is not None and not re.findall(r"#[0-9a-f]{6}", made.svg) and "var(--first)" in made.svg
