"""Two processes over gloo train what one process trains."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from test_training import rows
from torch import nn
from training_worker import STOP_AT, train_mae, train_toy

from gsmae import checkpoint

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    """The runs of two processes, and of this one."""
    folder = tmp_path_factory.mktemp("together")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    children = []
    for rank in range(2):
        there = os.environ | common | {"RANK": str(rank), "LOCAL_RANK": str(rank), "OMP_NUM_THREADS": "1"}
        there["PYTHONPATH"] = os.pathsep.join([str(HERE), *sys.path])
        command = [sys.executable, str(HERE / "training_worker.py"), str(folder)]
        children.append(subprocess.Popen(command, env=there, stderr=subprocess.PIPE, text=True))
    try:
        said = [child.communicate(timeout=120)[1] for child in children]
    finally:
        for child in children:
            child.kill()
    assert [child.returncode for child in children] == [0, 0], "\n".join(said)
    models = {"mae": train_mae(folder / "alone_mae")[0], "toy": train_toy(folder / "alone_toy")[0]}
    return folder, models, said


@pytest.mark.parametrize("name", ["mae", "toy"])
def test_two_processes_have_the_losses_of_one(together, name):
    folder, _, _ = together
    ours, theirs = rows(folder / name), rows(folder / f"alone_{name}")
    assert [(r["step"], r["split"]) for r in ours] == [(r["step"], r["split"]) for r in theirs]
    for mine, other in zip(ours, theirs, strict=True):
        # what comes before a BatchNorm has biases without a gradient: AdamW makes steps of its rounding errors, of
        # which validation sees more than training
        precise = 1e-4 if mine["split"] == "train" else 1e-2
        measured = [k for k in other if k not in ("step", "epoch", "split")]
        assert [mine[k] for k in measured] == pytest.approx([other[k] for k in measured], rel=precise, abs=1e-6)


def test_two_processes_have_the_batchnorm_statistics_of_one(together):
    folder, models, _ = together
    weights = checkpoint.load(checkpoint.steps(folder / "toy")[-1]).weights
    norm = models["toy"][1]
    assert isinstance(norm, nn.BatchNorm1d) and int(weights["1.num_batches_tracked"]) == 32
    torch.testing.assert_close(weights["1.running_var"], norm.running_var, rtol=1e-3, atol=1e-4)
    mae = checkpoint.load(checkpoint.steps(folder / "mae")[-1]).weights
    for name, value in models["mae"].named_buffers():
        if name.endswith("running_var"):
            torch.testing.assert_close(mae[name], value, rtol=1e-3, atol=1e-5)


def test_a_signal_to_one_process_stops_both_and_both_go_on_from_the_same_checkpoint(together):
    folder, _, _ = together
    for rank in range(2):
        assert f"at step {STOP_AT}" in (folder / f"stopped_{rank}").read_text()
        assert (folder / f"resumed_{rank}").read_text() == str(STOP_AT)


def test_only_the_first_process_writes(together):
    folder, _, said = together
    assert [r["step"] for r in rows(folder / "toy") if r["split"] == "train"] == list(range(1, 33))
    assert len(list((folder / "mae" / "tensorboard").iterdir())) == 1
    assert "100%" in said[0] and "100%" not in said[1]
