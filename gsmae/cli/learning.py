"""pretrain, finetune, evaluate: from shards to checkpoints and numbers."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro

from gsmae import recipes, zoo
from gsmae.errors import InputError, nearest_name
from gsmae.features import FeatureSpec
from gsmae.files import write_json
from gsmae.tasks import TASKS, Segment
from gsmae.training import processes, train
from gsmae.voting import voted
from gsmae.weights import load_weights

from .inputs import Device, alone, augmentation, device_named, placed, share_of_batch, stream_of
from .kept import home, kept_result, shown
from .matches import no_empty_class, part_names, same_classes
from .runs import TrainArguments, inherited, open_run, parse_run, versions
from .verb import NO_PREFIX, Arguments, Flag, Outcome, parse, plain

log = logging.getLogger(__name__)


class PretrainArguments(TrainArguments):
    """Pretrain a Gaussian-MAE on the training split of a pack; the validation split picks the best checkpoint."""

    run: Annotated[recipes.PretrainRun, NO_PREFIX] = recipes.PretrainRun()


class FinetuneArguments(TrainArguments):
    """What both fine-tuning tasks take."""

    init: Path | None = None
    """run whose encoder and FeatureSpec to begin with; without it: random weights"""
    classes: tuple[str, ...] = ()
    """only objects of these classes; none named: all (for segmentation: all that have parts)"""


class PointNet2Arguments(TrainArguments):
    """Train a PointNet++ from scratch on labels alone: a baseline (extra `baselines`)."""

    classes: tuple[str, ...] = ()
    """only objects of these classes; none named: all"""
    run: Annotated[recipes.PointNet2Run, NO_PREFIX] = recipes.PointNet2Run()


class ClassifyArguments(FinetuneArguments):
    """Fine-tune (or, without --init, train from scratch) a classifier of whole objects."""

    run: Annotated[recipes.ClassifyRun, NO_PREFIX] = recipes.ClassifyRun()


class SegmentArguments(FinetuneArguments):
    """Fine-tune (or, without --init, train from scratch) a part segmenter of labelled surface points."""

    run: Annotated[recipes.SegmentRun, NO_PREFIX] = recipes.SegmentRun()


FINETUNE: dict[str, type[ClassifyArguments] | type[SegmentArguments] | type[PointNet2Arguments]] = {
    "classify": ClassifyArguments,
    "segment": SegmentArguments,
    "pointnet2": PointNet2Arguments,
}


def pretrain(argv: list[str]) -> Outcome:
    """gsmae pretrain"""
    a = parse_run(PretrainArguments, "pretrain", "pretrain", argv)
    latent, pieces = a.run.model.latent, a.run.train.accumulate * processes.world()
    if a.run.model.objective == "latent" and latent.spread and pieces > 1:
        cause = f"the spread is one of a whole batch, and batches are divided into {pieces}"
        raise InputError(f"model.latent.spread {latent.spread:g}", cause, "train in one process without accumulate")
    return _run(a, "pretrain", a.run.spec, a.run.model, None)


def finetune(argv: list[str]) -> Outcome:
    """gsmae finetune classify|segment|pointnet2"""
    if not argv or argv[0] in ("-h", "--help"):
        code = 0 if argv else 2
        lines = ["usage: gsmae finetune TASK DATA --out RUN [OPTIONS]      gsmae finetune TASK --help", ""]
        lines += [f"  {name:<10} {cls.__doc__}" for name, cls in FINETUNE.items()]
        return Outcome({}, code, False, lines)
    if argv[0] not in FINETUNE:
        return Outcome({}, 2, False, [f"gsmae finetune: unknown task '{argv[0]}': {nearest_name(argv[0], FINETUNE)}"])
    task = argv[0]
    a = parse_run(FINETUNE[task], f"finetune {task}", task, argv[1:])
    begin = getattr(a, "init", None)
    init = zoo.load_trained(begin) if begin else None
    spec = init.spec if init else a.run.spec
    model = a.run.model
    if init:
        model = model.model_copy(update={"encoder": inherited(a, task, init)})
    return _run(a, task, spec, model, init)


class EvaluateArguments(Arguments):
    """Measure the best checkpoint of a run on one split. The test split is read once: the result is kept in the run,
    shown again when asked again, and only --again reads it a second time."""

    run: tyro.conf.Positional[Path]
    """run folder, or one checkpoint"""
    data: tyro.conf.Positional[Path]
    """folder written by `gsmae pack`"""
    split: Literal["train", "val", "test"] = "test"
    """which objects"""
    votes: int = 1
    """looks at each object whose scores are averaged, with random windows and the moves of training; 1: no voting"""
    again: Flag = False
    """read the split again although a result is kept"""
    device: Device = "auto"
    """auto: a GPU if there is one"""


def evaluate(argv: list[str]) -> Outcome:
    """gsmae evaluate"""
    a = parse(EvaluateArguments, "evaluate", argv)
    alone("evaluate")
    found = zoo.load_trained(a.run)
    if a.votes < 1 or a.votes > 1 and found.task in ("pretrain", "segment"):
        raise InputError(f"--votes {a.votes}", f"'{found.task}' does not vote" if a.votes > 1 else "at least 1")
    dataset, left_out = same_classes(found, a.data, a.split)
    kept = home(found) / f"evaluation_{a.split}.json"
    identity: dict[str, Any] = {
        "checkpoint": found.path.name, "data": dataset.fingerprint[:12], "split": a.split, "votes": a.votes
    }  # fmt: skip
    before = kept_result(kept, identity, a.split, a.again)
    if before:
        return shown(before, a.as_json)
    config, device = found.train, device_named(a.device)
    model, task = found.model.to(device), _task(found.task, dataset)
    place = placed([dataset], device, surface=found.task == "segment")
    with torch.no_grad():
        if a.votes > 1:
            stream = stream_of(dataset, found.spec, config, augmentation(config.augment), None, place)
            metrics = voted(model, ((b.to(device) for b in stream.epoch(vote)) for vote in range(a.votes)))
        else:
            stream = stream_of(dataset, found.spec, config, None, "all" if found.task == "segment" else None, place)
            metrics = task.evaluate(model, (b.to(device) for b in stream.epoch(0)))
    voting = f"scores averaged over {a.votes} random windows and moves ('{config.augment}')" if a.votes > 1 else "none"
    result = {**identity, "task": found.task, "classes": list(dataset.class_names), **metrics, "voting": voting}
    if left_out:
        result["left_out"] = left_out
    write_json(kept, result)
    return shown({**result, "read": "now"}, a.as_json)


def _run(a: Any, name: str, spec: FeatureSpec, model_config: Any, init: zoo.Trained | None) -> Outcome:
    """Train one task and say how it ended."""
    from data.datasets import opened

    chosen = getattr(a, "classes", ()) or None
    found = {split: opened(a.data, split, chosen, parts=name == "segment") for split in ("train", "val")}
    sets, left_out = {k: v[0] for k, v in found.items()}, {k: v[1] for k, v in found.items() if v[1]}
    if left_out:
        log.warning("%s: objects of classes without parts are left out: %s", a.data, left_out)
    dataset, device, config = sets["train"], device_named(a.device), a.run.train
    if name != "pretrain":
        no_empty_class(dataset)
    moves = augmentation(config.augment)
    if name in ("classify", "pointnet2"):
        model_config = model_config.model_copy(update={"classes": len(dataset.class_names)})
    if name == "segment":
        parts = {"parts": dataset.n_parts, "categories": len(dataset.class_names)}
        model_config = model_config.model_copy(update=parts)
    task = _task(name, dataset)
    model = TASKS[name].model(model_config, spec, generator=torch.Generator().manual_seed(config.seed))
    if init:
        load_weights(model.encoder, init.encoder.state_dict()).require(init.path)
    header = {
        "task": name, "spec": spec.model_dump(mode="json"), "model": model_config.model_dump(mode="json"),
        "classes": list(dataset.class_names), "parts": part_names(dataset),
        "pack_classes": list(dataset.info.class_names), "left_out": left_out,
        "data": {"path": str(a.data), "hash": dataset.fingerprint[:12]},
        "init": str(init.path) if init else None,
        "init_weights": init.weights_hash if init else None, "versions": versions(),
    }  # fmt: skip
    queries = config.queries if name == "segment" else None
    drop = len(dataset) >= config.batch_size  # BatchNorm is not to see a last batch of a few
    share = config.model_copy(update={"batch_size": share_of_batch(config)})
    ranks = {"rank": processes.rank(), "world": processes.world()}
    if processes.rank() > 0:  # the first process speaks for all
        logging.getLogger().setLevel(logging.ERROR)
    place = placed([*sets.values()], device, surface=queries is not None)
    streams = {
        "train": stream_of(dataset, spec, share, moves, queries, place, drop_last=drop, **ranks),
        "val": stream_of(sets["val"], spec, config, None, queries and "all", place),
    }
    open_run(a.out, type(a.run)(spec=spec, model=model_config, train=config), header)
    report = train(task, model, streams["train"], streams["val"], config, a.out, header, device)
    if processes.rank() > 0:
        return Outcome({}, quiet=True)
    if report.steps > report.resumed_from or not (a.out / "summary.json").exists():
        write_json(a.out / "summary.json", plain(report))
    numbers = {k: round(v, 4) for k, v in report.metrics.items() if isinstance(v, float)}
    lines = [
        f"{report.run}: {report.steps} steps, {report.trained_parameters:,} of {report.parameters:,} parameters "
        f"trained in {report.seconds} s; best on val: {report.best}"
    ]
    lines += [f"  {k}: {v}" for k, v in numbers.items()]
    return Outcome(plain(report), 0, a.as_json, lines)


def _parts(dataset: Any) -> dict[str, list[int]]:
    """category -> its global part indices"""
    first = dataset.part_offsets
    return {c: list(range(first[c], first[c] + len(names))) for c, names in dataset.part_names.items()}


def _task(name: str, dataset: Any) -> Any:
    if name == "segment":
        return Segment(list(dataset.class_names), _parts(dataset))
    return TASKS[name]()
