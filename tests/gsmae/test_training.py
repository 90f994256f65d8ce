"""The loop, with a small real task: one linear layer that learns to tell two kinds of batches apart."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import nn

from gsmae import checkpoint
from gsmae.batch import Batch
from gsmae.errors import GsmaeError
from gsmae.shares import Dropout, drawn
from gsmae.training import Interrupted, TrainConfig, train
from gsmae.training.optimizer import adamw, learning_rate

CONFIG = TrainConfig(epochs=4, warmup_epochs=1, val_every=1, save_every=1, batch_size=4, lr=1e-2, keep=2)


class Stream:
    """Eight batches an epoch, a pure function of (epoch, number)."""

    def __init__(self, slow: float = 0.0, poison: tuple[int, ...] = ()):
        self.slow, self.poison = slow, poison

    def __len__(self):
        return 8

    def epoch(self, epoch: int, skip: int = 0):
        for number in range(skip, 8):
            generator = torch.Generator().manual_seed(1000 * epoch + number)
            labels = torch.randint(2, (4,), generator=generator)
            points = torch.randn(4, 16, 14, generator=generator) + labels[:, None, None]
            if 8 * epoch + number in self.poison:
                points = points * float("nan")
            time.sleep(self.slow)
            yield Batch(points, labels, tuple("abcd"))


class Toy:
    selects = ("loss", -1)

    def __init__(self):
        self.modes: list[bool] = []
        self.shares: list[float] = []

    def loss(self, model, batch, generator):
        self.modes.append(model.training)
        noise = 0.01 * drawn(len(batch), lambda n: torch.randn(n, 14, generator=generator))
        return nn.functional.cross_entropy(model(batch.points.mean(dim=1) + noise), batch.labels), {}

    def weight(self, batch):
        return len(batch)

    def after_step(self, model, share_done):
        self.shares.append(share_done)

    def evaluate(self, model, batches):
        assert not model.training
        losses = [nn.functional.cross_entropy(model(b.points.mean(dim=1)), b.labels) for b in batches]
        return {"loss": float(torch.stack(losses).mean())}


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(14, 8), nn.BatchNorm1d(8), nn.ReLU(), Dropout(0.2), nn.Linear(8, 2))


def run_toy(run: Path, config: TrainConfig = CONFIG, stream: Stream | None = None, task: Toy | None = None):
    model = network()
    return model, train(task or Toy(), model, stream or Stream(), Stream(), config, run, {"task": "toy"})


def rows(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_a_run_learns_and_leaves_checkpoints_metrics_and_the_best(tmp_path):
    model, report = run_toy(tmp_path / "run")
    losses = [r["loss"] for r in rows(tmp_path / "run") if r["split"] == "train"]
    assert len(losses) == report.steps == 32 and sum(losses[-8:]) < 0.7 * sum(losses[:8])
    best = json.loads((tmp_path / "run" / "best.json").read_text())
    val = {r["step"]: r["loss"] for r in rows(tmp_path / "run") if r["split"] == "val"}
    assert best["step"] == min(val, key=val.__getitem__)
    assert checkpoint.find(tmp_path / "run").name == best["checkpoint"] == report.best


def test_train_mode_is_back_after_every_validation(tmp_path):
    """The released fine-tuning ran without dropout and with frozen BatchNorm from the second epoch on."""
    task = Toy()
    run_toy(tmp_path / "run", task=task)
    assert task.modes == [True] * 32


def test_one_optimiser_step_per_batch(tmp_path, monkeypatch):
    """The released segmentation stepped twice, the first time before clipping."""
    steps = []
    real = torch.optim.AdamW.step
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda self, *a, **k: (steps.append(1), real(self, *a, **k))[1])
    run_toy(tmp_path / "run")
    assert len(steps) == 32


def test_the_task_is_told_of_every_step_that_was_taken_and_how_much_of_the_run_lies_behind(tmp_path):
    task = Toy()
    run_toy(tmp_path / "run", stream=Stream(poison=(3,)), task=task)
    assert task.shares == [(step + 1) / 32 for step in range(32) if step != 3]


def test_the_same_seed_gives_the_same_weights_and_the_global_state_is_left_alone(tmp_path):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    torch.random.set_rng_state(before)
    a, _ = run_toy(tmp_path / "a")
    b, _ = run_toy(tmp_path / "b")
    assert all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))
    c, _ = run_toy(tmp_path / "c", CONFIG.model_copy(update={"seed": 1}))
    assert not torch.equal(a[0].weight, c[0].weight)


@pytest.mark.parametrize("stop_after", [1, 7, 8, 13])
def test_a_stopped_run_goes_on_bit_for_bit(tmp_path, stop_after):
    whole, _ = run_toy(tmp_path / "whole")

    class Stopping(Stream):
        def epoch(self, epoch, skip=0):
            for number, batch in enumerate(super().epoch(epoch, skip), start=skip):
                if 8 * epoch + number == stop_after:
                    os.kill(os.getpid(), signal.SIGTERM)
                yield batch

    with pytest.raises(Interrupted, match=f"at step {stop_after}"):
        run_toy(tmp_path / "cut", stream=Stopping())
    again, report = run_toy(tmp_path / "cut")
    assert report.resumed_from == stop_after
    pairs = zip(whole.state_dict().values(), again.state_dict().values(), strict=True)
    assert all(torch.equal(x, y) for x, y in pairs)
    assert rows(tmp_path / "cut") == rows(tmp_path / "whole")


def test_a_finished_run_does_nothing_more(tmp_path):
    run_toy(tmp_path / "run")
    before = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    _, report = run_toy(tmp_path / "run")
    assert report.resumed_from == report.steps == 32
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == before


def test_a_broken_newest_checkpoint_is_passed_over_and_it_is_said(tmp_path, caplog):
    run_toy(tmp_path / "run")
    newest = checkpoint.steps(tmp_path / "run")[-1]
    weights = newest / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    _, report = run_toy(tmp_path / "run")
    assert report.resumed_from < 32 and report.steps == 32
    assert "does not match its hash" in caplog.text


def test_a_kill_loses_at_most_what_came_after_the_last_checkpoint(tmp_path):
    code = (
        "import sys; sys.path.insert(0, sys.argv[2]); from pathlib import Path; "
        "from test_training import *; torch.set_num_threads(1); "
        "run_toy(Path(sys.argv[1]) / 'cut', stream=Stream(slow=0.05))"
    )
    child = subprocess.Popen([sys.executable, "-c", code, str(tmp_path), str(Path(__file__).parent)])
    deadline = time.monotonic() + 60
    while not checkpoint.steps(tmp_path / "cut") and time.monotonic() < deadline:
        time.sleep(0.02)
    child.kill()
    child.wait()
    whole, _ = run_toy(tmp_path / "whole")
    again, report = run_toy(tmp_path / "cut")
    assert report.resumed_from >= 8
    assert torch.equal(whole[0].weight, again[0].weight) and rows(tmp_path / "cut") == rows(tmp_path / "whole")
    assert not list((tmp_path / "cut").rglob(".aside-*"))


def test_a_loss_that_is_not_finite_skips_the_step_and_three_in_a_row_stop_the_run(tmp_path, caplog):
    model, report = run_toy(tmp_path / "two", stream=Stream(poison=(9, 10)))
    assert report.steps == 32 and caplog.text.count("not finite, the step") == 2
    assert all(torch.isfinite(v).all() for v in model.state_dict().values())
    with pytest.raises(GsmaeError, match="three steps up to 11"):
        run_toy(tmp_path / "three", stream=Stream(poison=(9, 10, 11)))


def test_a_gradient_that_is_not_finite_never_reaches_the_weights(tmp_path):
    class Steep(Toy):
        def loss(self, model, batch, generator):
            loss, logs = super().loss(model, batch, generator)
            weight = model[0].weight
            steep = (0 * weight[0, 0]).sqrt()  # zero; its gradient is not finite
            return loss + steep if len(self.modes) == 5 else loss, logs

    model, report = run_toy(tmp_path / "run", task=Steep())
    assert report.steps == 32 and all(torch.isfinite(v).all() for v in model.state_dict().values())


def test_two_processes_do_not_train_in_one_folder(tmp_path):
    import fcntl

    with (tmp_path / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(GsmaeError, match="another process trains"):
            run_toy(tmp_path)


def test_a_kill_between_the_checkpoint_and_best_json_is_mended(tmp_path):
    run_toy(tmp_path / "run")
    best = (tmp_path / "run" / "best.json").read_text()
    (tmp_path / "run" / "best.json").write_text(best.replace("step_", "stale_"))
    run_toy(tmp_path / "run")
    assert (tmp_path / "run" / "best.json").read_text() == best


def test_old_checkpoints_are_thinned_but_the_best_stays(tmp_path):
    class Rising(Toy):
        def evaluate(self, model, batches):
            self.count = getattr(self, "count", 0) + 1
            return {"loss": float(self.count)}  # the first look is the best

    run_toy(tmp_path / "run", task=Rising())
    assert [p.name for p in checkpoint.steps(tmp_path / "run")] == ["step_00000008", "step_00000024", "step_00000032"]


def test_the_learning_rate_by_hand():
    c = TrainConfig(epochs=110, warmup_epochs=10, lr=1.0, lr_end=0.0)
    rates = [learning_rate(epoch * 5, 5, c) for epoch in (0, 5, 10, 60, 110)]
    assert rates == pytest.approx([0, 0.5, 1, 0.5, 0])


def test_biases_norms_and_tokens_are_not_decayed_and_frozen_parameters_are_not_there():
    model = network()
    model[0].weight.requires_grad_(False)
    decayed, free = adamw(model, CONFIG).param_groups
    assert [tuple(p.shape) for p in decayed["params"]] == [(2, 8)] and decayed["weight_decay"] == 0.05
    assert len(free["params"]) == 4 and free["weight_decay"] == 0


def test_a_checkpoint_holds_no_pickle(tmp_path):
    run_toy(tmp_path / "run")
    step = checkpoint.steps(tmp_path / "run")[-1]
    assert sorted(p.name for p in step.iterdir()) == ["optimizer.safetensors", "state.json", "weights.safetensors"]
