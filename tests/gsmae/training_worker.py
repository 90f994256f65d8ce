"""One of several processes: trains what test_training_processes.py compares with a single process."""

import os
import signal
import sys
from dataclasses import replace
from pathlib import Path

import torch
from test_training import CONFIG, Stream, Toy, network
from torch import nn

from gsmae.batch import Batch
from gsmae.features import FeatureSpec
from gsmae.models import EncoderConfig, GaussianMAE, MAEConfig
from gsmae.tasks import Pretrain
from gsmae.training import Interrupted, processes, train

ENCODER = EncoderConfig(width=24, depth=3, heads=2, groups=8, group_size=4, drop_path=0.3)
MAE_CONFIG = CONFIG.model_copy(update={"epochs": 1, "warmup_epochs": 0, "clip": 1.0, "accumulate": 1})
STOP_AT = 13


class Shares(Stream):
    """This process's objects of each batch; the signal reaches only the last process."""

    def __init__(self, stop_at: int = -1):
        super().__init__()
        self.stop_at, self.rank, self.world = stop_at, processes.rank(), processes.world()

    def epoch(self, epoch, skip=0):
        for number, batch in enumerate(super().epoch(epoch, skip), start=skip):
            if 8 * epoch + number == self.stop_at and self.rank == self.world - 1:
                os.kill(os.getpid(), signal.SIGTERM)
            mine = slice(self.rank, None, self.world)
            yield replace(batch, points=batch.points[mine], labels=batch.labels[mine], uids=batch.uids[mine])


class Uneven(Toy):
    """A mean over those of class 1 and half of the others: how many a process has differs."""

    def loss(self, model, batch, generator):
        scores = model(batch.points.mean(dim=1))
        loss = nn.functional.cross_entropy(scores, batch.labels, reduction="none")
        kept = self._kept(batch)
        mean = (loss * kept).sum() / kept.sum().clamp_min(1)
        return mean, {"twice": 2 * mean.detach()}

    def weight(self, batch: Batch):
        return self._kept(batch).sum()

    @staticmethod
    def _kept(batch: Batch):
        return ((batch.labels == 1) | (batch.points[:, 0, 0] > 0)).float()


def mae() -> GaussianMAE:
    config = MAEConfig(encoder=ENCODER, decoder_depth=1, decoder_heads=2)
    return GaussianMAE(config, FeatureSpec(), generator=torch.Generator().manual_seed(0))


def train_mae(run: Path):
    model = mae()
    return model, train(Pretrain(), model, Shares(), Stream(), MAE_CONFIG, run, {})


def train_toy(run: Path, stop_at: int = -1):
    model = network()
    return model, train(Uneven(), model, Shares(stop_at), Stream(), CONFIG, run, {})


def main() -> None:
    folder = Path(sys.argv[1])
    torch.set_num_threads(1)
    train_mae(folder / "mae")
    try:
        train_toy(folder / "toy", STOP_AT)
    except Interrupted as error:
        (folder / f"stopped_{processes.rank()}").write_text(str(error))
    _, report = train_toy(folder / "toy")
    (folder / f"resumed_{processes.rank()}").write_text(str(report.resumed_from))


if __name__ == "__main__":
    main()
