"""probe, retrieve: what the features of a trained encoder are worth without training it further."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import tyro

from gsmae import zoo
from gsmae.errors import InputError
from gsmae.files import write_json
from gsmae.measurements import kept_file
from gsmae.metrics import accuracies, confusion
from gsmae.models import Encoder
from gsmae.probes import Features, features, fit
from gsmae.retrieval import measure, ranking, standardized

from .inputs import Device, alone, device_named, placed, stream_of
from .kept import home, kept_result, shown
from .verb import Arguments, Flag, Outcome, parse, plain


class ProbeArguments(Arguments):
    """Classify objects by the frozen features of a run: maximum and mean over the encoder's tokens, standardised by the
    training split. The classifier's one parameter is chosen on val. The test split is read once, as by `evaluate`."""

    run: tyro.conf.Positional[Path]
    """run folder, or one checkpoint; any with an encoder"""
    data: tyro.conf.Positional[Path]
    """folder written by `gsmae pack`"""
    method: Literal["linear", "svm", "knn"] = "svm"
    """linear: logistic regression; svm: one against all, linear; knn: neighbours by cosine distance"""
    split: Literal["val", "test"] = "test"
    """which objects are measured; val is also what chooses the parameter"""
    seed: int = 0
    """of the SVM's solver"""
    again: Flag = False
    """read the split again although a result is kept"""
    device: Device = "auto"
    """auto: a GPU if there is one"""


def probe(argv: list[str]) -> Outcome:
    """gsmae probe"""
    import torch

    from data.datasets import SplatDataset

    a = parse(ProbeArguments, "probe", argv)
    alone("probe")
    found = zoo.load_trained(a.run)
    encoder = found.encoder
    sets = {split: SplatDataset(a.data, split=split) for split in dict.fromkeys(("train", "val", a.split))}
    measured, data = sets[a.split], sets[a.split].fingerprint[:12]
    kept = kept_file(home(found), f"probe_{a.method}_{a.split}", data)
    identity = {
        "checkpoint": found.path.name, "data": data, "split": a.split, "method": a.method, "seed": a.seed
    }  # fmt: skip
    before = kept_result(kept, identity, a.split, a.again)
    if before:
        return shown(before, a.as_json)
    seen = {split: seen_by(found, encoder, dataset, a.device) for split, dataset in sets.items()}
    best = fit(a.method, seen["train"], seen["val"], a.seed)
    predicted = best.predict(seen[a.split].vectors)
    counts = confusion(torch.from_numpy(seen[a.split].labels), torch.from_numpy(predicted), len(measured.class_names))
    overall, by_class = accuracies(counts)
    result = {
        **identity, "accuracy": overall, "class_accuracy": by_class, "objects": len(predicted),
        "train_objects": len(seen["train"].labels), "parameter": best.parameter, "converged": best.converged,
        "val_accuracy": best.tried[best.parameter], "tried": {str(p): v for p, v in best.tried.items()},
        "feature": "maximum and mean over tokens", "classes": list(measured.class_names),
        "predicted": dict(zip(seen[a.split].uids, predicted.tolist(), strict=True)),
    }  # fmt: skip
    write_json(kept, result)
    return shown({**result, "read": "now"}, a.as_json)


class RetrieveArguments(Arguments):
    """Search with partial shapes by the cosine of frozen features, which the training objects standardise. The part of
    each query beyond a random plane is cut away, before anything is normalised. By category: among the whole training
    objects, those of its class are wanted. By object: among the whole objects of its own split, the one it is a part
    of. The test split is read once, as by `evaluate`."""

    run: tyro.conf.Positional[Path]
    """run folder, or one checkpoint; any with an encoder"""
    data: tyro.conf.Positional[Path]
    """folder written by `gsmae pack`"""
    split: Literal["val", "test"] = "test"
    """whose objects are the queries"""
    keep: float = 0.5
    """share of each query that is left"""
    k: int = 5
    """the first k found are looked at, besides the whole ranking"""
    seed: int = 0
    """of the planes"""
    again: Flag = False
    """read the split again although a result is kept"""
    device: Device = "auto"
    """auto: a GPU if there is one"""


def retrieve(argv: list[str]) -> Outcome:
    """gsmae retrieve"""
    from data.datasets import SplatDataset
    from data.partial import partial_batches

    a = parse(RetrieveArguments, "retrieve", argv)
    alone("retrieve")
    if not 0 < a.keep <= 1 or a.k < 1:
        raise InputError(f"--keep {a.keep} --k {a.k}", "keep is above 0 and at most 1, k at least 1")
    found = zoo.load_trained(a.run)
    encoder, config = found.encoder, found.train
    gallery, asked = SplatDataset(a.data, split="train"), SplatDataset(a.data, split=a.split)
    kept = home(found) / f"retrieval_{a.split}.json"
    identity: dict[str, Any] = {
        "checkpoint": found.path.name, "data": asked.fingerprint[:12], "split": a.split, "keep": a.keep, "k": a.k,
        "seed": a.seed,
    }  # fmt: skip
    before = kept_result(kept, identity, a.split, a.again)
    if before:
        return _shown(before, a.as_json)
    there, whole = (seen_by(found, encoder, dataset, a.device) for dataset in (gallery, asked))
    device = device_named(a.device)
    cut = partial_batches(
        asked, found.spec, batch_size=config.batch_size, gaussians=config.gaussians, keep=a.keep, seed=a.seed
    )
    parts = features(encoder.to(device), (batch.to(device) for batch in cut))
    inside, queried, full = (standardized(f.vectors, there.vectors) for f in (there, parts, whole))
    same_class = parts.labels[:, None] == there.labels[None]
    same_object = np.eye(len(parts.uids), dtype=bool)
    result = {
        **identity, "objects": len(parts.uids), "gallery": len(there.uids),
        "category": plain(measure(ranking(queried, inside), same_class, a.k)),
        "category_whole": plain(measure(ranking(full, inside), same_class, a.k)),
        "object": plain(measure(ranking(queried, full), same_object, a.k)),
    }  # fmt: skip
    write_json(kept, result)
    return _shown({**result, "read": "now"}, a.as_json)


def seen_by(found: zoo.Trained, encoder: Encoder, dataset: Any, device: str) -> Features:
    """The features of a dataset's objects, each seen once as in evaluation."""
    where = device_named(device)
    stream = stream_of(dataset, found.spec, found.train, None, None, placed([dataset], where))
    return features(encoder.to(where), (batch.to(where) for batch in stream.epoch(0)))


def _shown(result: dict[str, Any], as_json: bool) -> Outcome:
    lines = [f"{k}: {v}" for k, v in result.items() if not isinstance(v, dict)]
    for name in ("category", "category_whole", "object"):
        values = result[name]
        numbers = " ".join(f"{m} {values[m]:.4f}" for m in ("map", "precision", "recall", "hit"))
        lines.append(f"{name}: {numbers} (k = {values['k']}, {values['queries']} queries)")
    return Outcome(result, 0, as_json, lines)
