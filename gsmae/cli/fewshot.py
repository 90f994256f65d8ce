"""folds, fewshot: learning from few objects of few classes, ten times over."""

from __future__ import annotations

import shutil
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro

from gsmae import checkpoint, recipes, zoo
from gsmae.config import digest
from gsmae.errors import InputError
from gsmae.files import read_json, sha256, write_json
from gsmae.locks import only_writer
from gsmae.models import Classifier
from gsmae.probes import Features, fit_few
from gsmae.tasks import TASKS
from gsmae.training import train
from gsmae.weights import load_weights

from .inputs import alone, augmentation, device_named, placed, stream_of
from .kept import kept_result
from .probing import seen_by
from .runs import TrainArguments, inherited, parse_run, versions
from .verb import NO_PREFIX, Arguments, Flag, Outcome, parse


class FoldsArguments(Arguments):
    """Draw few-shot folds of a pack by seed into a JSON file: objects to learn from out of train and val, objects to
    ask about out of test."""

    data: tyro.conf.Positional[Path]
    """folder written by `gsmae pack`; or modelnet40 or modelnet10, whose folds need only the names of its objects"""
    out: Path
    """JSON file"""
    ways: tuple[int, ...] = (5, 10)
    """classes of a fold"""
    shots: tuple[int, ...] = (10, 20)
    """objects of each class to learn from"""
    queries: int = 20
    """objects of each class to ask about"""
    folds: int = 10
    """folds of each number of ways and shots"""
    seed: int = 0
    """of the draws"""


def folds(argv: list[str]) -> Outcome:
    """gsmae folds"""
    from data.audit import STANDARDS
    from data.folds import draw_folds, draw_modelnet

    a = parse(FoldsArguments, "folds", argv)
    if min(*a.ways, *a.shots, a.queries, a.folds) < 1 or min(a.ways) < 2:
        raise InputError("gsmae folds", f"{a.ways} ways, {a.shots} shots, {a.queries} queries, {a.folds} folds",
                         "at least two ways and one of the others")  # fmt: skip
    settings: dict[str, Any] = {
        "ways": a.ways, "shots": a.shots, "queries": a.queries, "folds": a.folds, "seed": a.seed
    }  # fmt: skip
    named = str(a.data) in STANDARDS and not a.data.exists()
    drawn = draw_modelnet(str(a.data), **settings) if named else draw_folds(a.data, **settings)
    content = drawn.model_dump(mode="json")
    if a.out.exists() and read_json(a.out) != content:
        raise InputError(a.out, "holds other folds", "choose another --out, or delete it")
    write_json(a.out, content)
    return Outcome({"out": str(a.out), "folds": len(drawn.folds), "settings": drawn.settings()}, 0, a.as_json)


class FewshotArguments(TrainArguments):
    """Learn from the few objects of each fold and be asked about others: accuracy, mean +- standard deviation (n - 1)
    over the folds. full: the whole network is fine-tuned for all epochs and its last state is asked, as there is
    nothing to choose by. linear, svm, knn: on frozen features of --init, with the parameter chosen by cross-validation
    within the fold. A stopped run goes on; the queries, which are of the test split, are read once, as by `evaluate`.
    """

    folds: tyro.conf.Positional[Path]
    """file written by `gsmae folds`; modelnet40: those that come with gsmae"""
    init: Path | None = None
    """run whose encoder and FeatureSpec to begin with; without it: random weights"""
    protocol: Literal["full", "linear", "svm", "knn"] = "full"
    """what learns"""
    again: Flag = False
    """read the queries again although a result is kept"""
    run: Annotated[recipes.ClassifyRun, NO_PREFIX] = recipes.ClassifyRun()


def fewshot(argv: list[str]) -> Outcome:
    """gsmae fewshot"""
    from data.datasets import SplatDataset
    from data.folds import check_folds, fold_file, read_folds

    a = parse_run(FewshotArguments, "fewshot", "classify", argv)
    alone("fewshot")
    file = fold_file(a.folds)
    drawn = read_folds(file)
    check_folds(drawn, file, a.data)
    init = zoo.load_trained(a.init) if a.init else None
    if init is None and a.protocol != "full":
        raise InputError("--init", f"--protocol {a.protocol} needs a trained encoder", "name a run")
    config, model = a.run.train, a.run.model
    if init:
        model = model.model_copy(update={"encoder": inherited(a, "classify", init)})
    spec = init.spec if init else a.run.spec
    pack = SplatDataset(a.data).fingerprint[:12]
    identity = {
        "folds": sha256(file)[:12],
        "data": pack,
        "protocol": a.protocol,
        "init": init.weights_hash[:12] if init else None,
        "config": digest(type(a.run)(spec=spec, model=model, train=config)),
    }
    with only_writer(a.out, "process", does="learns from folds", keep=True):
        return _all_folds(a, drawn, identity, lambda fold, place: _one_fold(a, fold, place, init, spec, model, pack))


def _all_folds(a: Any, drawn: Any, identity: dict[str, Any], measure: Callable[[Any, Path], dict[str, Any]]) -> Outcome:
    """Every fold that has no result yet, and what comes out of all."""
    kept = a.out / "fewshot.json"
    if a.again:  # once, and then as ever: what is stopped after this goes on without --again
        kept.unlink(missing_ok=True)
        for place in a.out.glob("*way_*shot/fold_*"):
            shutil.rmtree(place)
    before = kept_result(kept, identity, "test", False)
    if before:
        return _shown(before, a.as_json)
    results = []
    for fold in drawn.folds:
        place = a.out / f"{fold.ways}way_{fold.shots}shot" / f"fold_{fold.number:02d}"
        begun, done = place / "fold.json", place / "result.json"
        if begun.exists() and read_json(begun) != identity:
            raise InputError(place, "holds a fold of another run", "choose another --out; --again reads test once more")
        if not (begun.exists() and done.exists()):
            write_json(begun, identity)
            settings = {"ways": fold.ways, "shots": fold.shots, "number": fold.number}
            write_json(done, {**settings, **measure(fold, place)})
        results.append(read_json(done))
    settings = {}
    for ways, shots in drawn.settings():
        found = [r["accuracy"] for r in results if (r["ways"], r["shots"]) == (ways, shots)]
        spread = statistics.stdev(found) if len(found) > 1 else None
        settings[f"{ways}-way {shots}-shot"] = {"mean": statistics.mean(found), "std": spread, "folds": found}
    result = {**identity, "queries": drawn.queries, "settings": settings}
    write_json(kept, result)
    return _shown({**result, "read": "now"}, a.as_json)


def _one_fold(
    a: Any, fold: Any, place: Path, init: zoo.Trained | None, spec: Any, model: Any, pack: str
) -> dict[str, Any]:
    from data.datasets import SplatDataset

    whole = SplatDataset(a.data, classes=fold.classes)
    teach, ask = whole.take(fold.train), whole.take(fold.test)
    if a.protocol == "full":
        sized = model.model_copy(update={"classes": fold.ways})
        accuracy = _tuned(a, place, init, spec, sized, teach, ask, pack)
    else:
        assert init is not None
        accuracy = _probed(a, init, teach, ask, a.run.train.seed)
    return {"accuracy": accuracy, "objects": len(ask)}


def _tuned(a: Any, place: Path, init: Any, spec: Any, model_config: Any, teach: Any, ask: Any, pack: str) -> float:
    """Accuracy after fine-tuning on one fold; the checkpoints are only kept until then."""
    config, device = a.run.train, device_named(a.device)
    model = Classifier(model_config, spec, generator=torch.Generator().manual_seed(config.seed))
    if init:
        load_weights(model.encoder, init.encoder.state_dict()).require(init.path)
    header = {"task": "classify", "spec": spec.model_dump(mode="json"), "model": model_config.model_dump(mode="json"),
              "classes": list(teach.class_names), "parts": [],
              "data": {"path": str(a.data), "hash": pack}, "init": str(init.path) if init else None,
              "init_weights": init.weights_hash if init else None, "versions": versions()}  # fmt: skip
    drop = len(teach) >= config.batch_size
    where = placed([teach, ask], device)
    stream = stream_of(teach, spec, config, augmentation(config.augment), None, where, drop_last=drop)
    task = TASKS["classify"]()
    report = train(task, model, stream, None, config, place, header, device)
    model.load_state_dict(checkpoint.load(place / report.best).weights)  # their average, where one was asked for
    with torch.no_grad():
        asked = stream_of(ask, spec, config, None, None, where)
        metrics = task.evaluate(model.eval(), (batch.to(device) for batch in asked.epoch(0)))
    for folder in checkpoint.steps(place):
        shutil.rmtree(folder)
    return float(metrics["accuracy"])


def _probed(a: Any, init: zoo.Trained, teach: Any, ask: Any, seed: int) -> float:
    """Accuracy of a simple classifier of frozen features on one fold."""
    encoder = init.encoder
    seen: list[Features] = [seen_by(init, encoder, dataset, a.device) for dataset in (teach, ask)]
    best = fit_few(a.protocol, seen[0], seed)
    return float((best.predict(seen[1].vectors) == seen[1].labels).mean())


def _shown(result: dict[str, Any], as_json: bool) -> Outcome:
    lines = [f"{k}: {v}" for k, v in result.items() if not isinstance(v, dict)]
    for name, values in result["settings"].items():
        spread = "" if values["std"] is None else f" +- {values['std']:.4f}"
        lines.append(f"{name}: {values['mean']:.4f}{spread} ({len(values['folds'])} folds)")
    return Outcome(result, 0, as_json, lines)
