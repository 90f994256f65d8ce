"""The command line on a GPU: a run is stopped, goes on, is fine-tuned and measured; and steps without waiting."""

import itertools
import json

import pytest
import torch
from test_reproducing import call, objects

from gsmae.recipes import RECIPES
from gsmae.tasks import TASKS
from gsmae.training.processes import Team
from gsmae.training.steps import Stepper

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")]

QUICK = ["--recipe", "tiny", "--device", "cuda", "--train.batch-size", "4", "--train.gaussians", "32"]
ENCODER = ["--model.encoder.groups", "4", "--model.encoder.group-size", "4"]


@pytest.fixture(scope="module")
def pack(tmp_path_factory):
    out = tmp_path_factory.mktemp("gpu")
    call("pack", objects(out / "objects", 12), "--source", "folder", "--out", out / "pack", "--val", "0.25")
    return out / "pack"


def test_pretrain_resume_finetune_and_evaluate(pack, tmp_path, monkeypatch):
    run = tmp_path / "pretrained"
    command = ["pretrain", pack, "--out", run, *QUICK, *ENCODER, "--train.epochs", "4", "--train.save-every", "1"]
    real, steps = Stepper.take, []

    def stopping(self, *a):
        steps.append(1)
        if len(steps) == 7:
            raise KeyboardInterrupt
        return real(self, *a)

    monkeypatch.setattr(Stepper, "take", stopping)
    call(*command, code=130)
    monkeypatch.setattr(Stepper, "take", real)
    call(*command)
    assert json.loads((run / "summary.json").read_text())["resumed_from"] > 0
    call("finetune", "classify", pack, "--init", run, "--out", tmp_path / "tuned", *QUICK, "--train.epochs", "2")
    call("evaluate", tmp_path / "tuned", pack, "--device", "cuda")
    assert 0 <= json.loads((tmp_path / "tuned" / "evaluation_test.json").read_text())["accuracy"] <= 1


@pytest.mark.parametrize("ema", [0.0, 0.9])
@pytest.mark.parametrize("resident", [True, False])
def test_ten_steps_wait_for_nothing(pack, ema, resident):
    from data import SplatDataset, batches
    from data.augment import AUGMENTATIONS

    recipe = RECIPES["pretrain"]["tiny"]
    config = recipe.train.model_copy(update={"ema": ema, "batch_size": 4, "gaussians": 32})
    encoder = recipe.model.encoder.model_copy(update={"groups": 4, "group_size": 4})
    task = TASKS["pretrain"]()
    model = task.model(recipe.model.model_copy(update={"encoder": encoder}), recipe.spec).cuda().train()
    stepper = Stepper(task, model, config, Team("cuda", "fp32"), lambda: False)
    where = {"device": "cuda"} if resident else {"workers": 2, "pin": True}
    stream = batches(
        SplatDataset(pack, split="train"), recipe.spec, batch_size=4, gaussians=32,
        augment=AUGMENTATIONS["default"], **where,
    )  # fmt: skip
    served = itertools.chain.from_iterable(stream.epoch(epoch) for epoch in itertools.count())
    taken = [stepper.take(next(served), 0, 1e-3, 0.0)]  # what is made at first use may wait
    torch.cuda.set_sync_debug_mode("error")
    try:
        taken += [stepper.take(next(served), step, 1e-3, step / 11) for step in range(1, 11)]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(t.finite is None and torch.isfinite(t.values).all() for t in taken)
