"""What the released code got silently wrong and no other test would catch: see docs/mistakes.md for all of them."""

from __future__ import annotations

import itertools
import json
import os
import signal
from typing import Any

import pytest
import torch
from torch import nn

from data import datasets
from data.augment import AUGMENTATIONS
from gsmae import recipes
from gsmae.batch import Batch
from gsmae.cli import learning
from gsmae.training import Interrupted, TrainConfig, train


class Enough(Exception):
    """Training was reached."""


@pytest.fixture
def pretrained_with(packed, tmp_path, monkeypatch):
    """What `gsmae pretrain PACK ...` hands to the loop, and which splits it has opened for that."""

    runs = itertools.count()

    def call(*flags: str) -> dict[str, Any]:
        out = tmp_path / f"run{next(runs)}"
        seen: dict[str, Any] = {"splits": []}

        def stop(task, model, stream, val, config, *rest, **more):
            seen.update(model=model, stream=stream, val=val, config=config)
            raise Enough

        class Noted(datasets.SplatDataset):
            def __init__(self, path, split=None, *rest, **more):
                seen["splits"].append(split)
                super().__init__(path, split, *rest, **more)

        monkeypatch.setattr(learning, "train", stop)
        monkeypatch.setattr(datasets, "SplatDataset", Noted)
        with pytest.raises(Enough):
            learning.pretrain([str(packed), "--out", str(out), "--recipe", "tiny", *flags])
        return seen

    return call


def test_pretraining_is_augmented_unless_asked_not_to_be_and_validation_never_is(pretrained_with):
    """The released code asks whether a list is in a list: no augmentation ever runs, and nothing says so."""
    seen = pretrained_with("--train.gaussians", "30")
    assert seen["stream"].augment == AUGMENTATIONS["default"] and not seen["stream"].augment.idle
    assert seen["val"].augment is None
    train_, plain = (
        seen["stream"] for seen in (seen, pretrained_with("--train.gaussians", "30", "--train.augment", "none"))
    )
    a, b = next(iter(train_.epoch(0))), next(iter(plain.epoch(0)))
    assert a.uids == b.uids and (a.points[..., :3] - b.points[..., :3]).abs().mean() > 0.05


def test_models_are_chosen_on_val_and_pretraining_never_opens_the_test_split(pretrained_with):
    """Every released configuration validates on `test`."""
    assert sorted(pretrained_with()["splits"]) == ["train", "val"]


def test_sizes_and_switches_on_the_command_line_take_effect(pretrained_with):
    """`--total_bs` was applied too late; `--soft_knn` could not be turned off."""
    seen = pretrained_with("--train.batch-size", "3", "--train.gaussians", "25", "--model.encoder.no-pooling")
    assert len(next(iter(seen["stream"].epoch(0)))) == 3 and next(iter(seen["stream"].epoch(0))).points.shape[1] == 25
    assert seen["model"].encoder.tokenizer.pool is None
    assert pretrained_with()["model"].encoder.tokenizer.pool is not None


def test_normalisation_asked_for_reaches_the_batches(pretrained_with):
    """In the released segmentation `--norm_attribute` does nothing."""
    few = next(iter(pretrained_with("--spec.normalize", "means", "--train.gaussians", "30")["val"].epoch(0)))
    every = next(iter(pretrained_with("--train.gaussians", "30")["val"].epoch(0)))
    assert few.points[..., 3].min() >= 0 > every.points[..., 3].min()


def test_the_base_recipe_is_the_papers():
    """A typo, 1028 for 1024, changed the sampling of a released configuration."""
    run = recipes.PRETRAIN["base"]
    t = run.train
    assert (t.epochs, t.batch_size, t.gaussians, t.lr, t.weight_decay, t.warmup_epochs) == (
        300,
        128,
        1024,
        1e-3,
        0.05,
        10,
    )
    assert run.spec.embed == run.spec.normalize == ("means", "opacities", "scales", "quats", "sh")
    assert run.model.objective == "reconstruct" and run.model.centers == "given" and run.spec.draw == "uniform"


def test_a_resumed_run_remembers_the_best_score(tmp_path):
    """The released resume reads `best_metric` and goes on with `best_metrics`, which is zero."""

    class Stream:
        def __init__(self, stop: int | None = None):
            self.stop = stop

        def __len__(self):
            return 2

        def epoch(self, epoch, skip=0):
            for number in range(skip, 2):
                if 2 * epoch + number == self.stop:
                    os.kill(os.getpid(), signal.SIGTERM)
                yield Batch(torch.ones(2, 4, 14), torch.zeros(2, dtype=torch.int64), ("a", "b"))

    class Rising:
        selects = ("loss", -1)

        def loss(self, model, batch, generator):
            return model(batch.points).square().mean(), {}

        def evaluate(self, model, batches):
            path = tmp_path / "looks"
            path.write_text(path.read_text() + "." if path.exists() else ".")
            return {"loss": float(len(path.read_text()))}  # the first look is the best

        def after_step(self, model, share_done):
            pass

    config = TrainConfig(epochs=5, warmup_epochs=1, val_every=1, save_every=1, batch_size=2)

    def go(stream):
        model = nn.Linear(14, 2)
        return train(Rising(), model, stream, Stream(), config, tmp_path / "run", {"task": "toy"})  # type: ignore[arg-type]

    with pytest.raises(Interrupted):
        go(Stream(stop=5))
    report = go(Stream())
    assert report.resumed_from == 5 and report.metrics["loss"] == 1
    assert json.loads((tmp_path / "run" / "best.json").read_text())["step"] == 2
