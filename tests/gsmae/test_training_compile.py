"""Runs whose network goes through torch.compile: the numbers, the names and the way back are those of any other."""

import json
from typing import Any

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters

from gsmae import checkpoint
from gsmae.batch import Batch
from gsmae.errors import GsmaeError
from gsmae.features import FeatureSpec
from gsmae.models import EncoderConfig, MAEConfig
from gsmae.tasks import Pretrain
from gsmae.training import Interrupted, TrainConfig, train

ENCODER = EncoderConfig(width=24, depth=2, heads=2, groups=8, group_size=4, points=32, drop_path=0.3)
NETWORK = MAEConfig(encoder=ENCODER, decoder_depth=1, decoder_heads=2)
CONFIG = TrainConfig(epochs=2, warmup_epochs=1, val_every=1, save_every=1, batch_size=4, lr=1e-3, keep=9)
EAGER = nn.Module.compile


class Stream:
    """Three batches an epoch, a pure function of (epoch, number); validation has one of another size."""

    def __init__(self, size: int = 4, batches: int = 3, stop_at: int = 99):
        self.size, self.batches, self.stop_at = size, batches, stop_at

    def __len__(self):
        return self.batches

    def epoch(self, epoch: int, skip: int = 0):
        for number in range(skip, self.batches):
            if self.batches * epoch + number == self.stop_at:
                raise Interrupted("here")
            generator = torch.Generator().manual_seed(1000 * epoch + number)
            points = torch.randn(self.size, 32, 14, generator=generator).clamp(-1, 1)
            yield Batch(points, torch.zeros(self.size, dtype=torch.int64), tuple("abcdefgh"[: self.size]))


def run(path, network=NETWORK, stream=None, **changes):
    model = Pretrain.model(network, FeatureSpec(), torch.Generator().manual_seed(0))
    task: Any = Pretrain()
    train(task, model, stream or Stream(), Stream(3, 1), CONFIG.model_copy(update=changes), path, {"task": "t"})
    return model


def rows(path):
    lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k.startswith("loss")} for line in lines]


def saved(path):
    found = checkpoint.newest(path)
    assert found is not None
    return {**found.weights, **{f"live/{k}": v for k, v in found.live.items()}, **found.optimizer}


def assert_equal(a, b):
    assert list(a) == list(b)
    assert all(torch.equal(x, b[name]) for name, x in a.items())


@pytest.fixture
def traced(monkeypatch):
    """The graphs that were traced, which then run as torch runs anything: nothing is compiled, and quickly."""
    torch._dynamo.reset()
    counters.clear()
    monkeypatch.setattr(nn.Module, "compile", lambda self, **_: EAGER(self, dynamic=False, backend="eager"))
    yield counters["stats"]
    torch._dynamo.reset()


@pytest.mark.parametrize(
    "changes", [{}, {"ema": 0.9, "clip": 0.1}, {"accumulate": 2}], ids=["plain", "averaged", "in pieces"]
)
def test_a_traced_network_is_trained_as_any_other_and_measured_as_it_is(tmp_path, traced, changes):
    run(tmp_path / "plain", **changes)
    assert not traced
    run(tmp_path / "traced", compile="fuse", **changes)
    assert rows(tmp_path / "traced") == rows(tmp_path / "plain")
    assert_equal(saved(tmp_path / "traced"), saved(tmp_path / "plain"))
    assert traced["unique_graphs"] == changes.get("accumulate", 1) and not counters["graph_break"]


@pytest.mark.parametrize(
    "changes", [{"objective": "latent"}, {"centers": "predicted"}, {"tokenize": "visible", "match": "nearest"}]
)
def test_every_network_of_pretraining_is_one_graph(tmp_path, traced, changes):
    network = MAEConfig.model_validate(NETWORK.model_dump() | changes)
    run(tmp_path / "plain", network, epochs=1)
    run(tmp_path / "traced", network, epochs=1, compile="fuse")
    assert rows(tmp_path / "traced") == rows(tmp_path / "plain")
    assert traced["unique_graphs"] == 1 and not counters["graph_break"]


def test_all_pieces_of_a_batch_and_all_runs_of_a_process_are_traced_however_many_there_are(tmp_path, traced):
    """torch gives up after so many graphs, and runs what is left as written: slowly, with a warning at most."""
    with torch._dynamo.config.patch(recompile_limit=2):
        run(tmp_path / "pieces", NETWORK, Stream(3, 1), epochs=1, compile="fuse", accumulate=3)
    assert traced["unique_graphs"] == 3
    with torch._dynamo.config.patch(recompile_limit=2):
        for ratio in (0.3, 0.4, 0.5):
            network = NETWORK.model_copy(update={"mask_ratio": ratio})
            run(tmp_path / str(ratio), network, Stream(4, 1), epochs=1, compile="fuse")
    assert traced["unique_graphs"] == 6


def assert_goes_on(folder):
    run(folder / "whole", compile="fuse")
    with pytest.raises(Interrupted):
        run(folder / "cut", stream=Stream(stop_at=4), compile="fuse")
    run(folder / "cut", compile="fuse")
    assert rows(folder / "cut") == rows(folder / "whole")
    assert_equal(saved(folder / "cut"), saved(folder / "whole"))


def test_a_traced_run_goes_on(tmp_path, traced):
    assert_goes_on(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("pooling", [False, True])
def test_a_compiled_network_has_the_losses_and_gradients_of_the_one_as_written(pooling):
    import torch._inductor.config as inductor

    network = NETWORK.model_copy(update={"encoder": ENCODER.model_copy(update={"pooling": pooling})})
    found = []
    with inductor.patch(fallback_random=True):  # drop path draws what torch draws
        for how in ("no", "fuse"):
            model = Pretrain.model(network, FeatureSpec(), torch.Generator().manual_seed(0)).train()
            if how != "no":
                model.compile(dynamic=False)
            torch.manual_seed(1)
            loss, _ = Pretrain().loss(model, next(iter(Stream().epoch(0))), torch.Generator().manual_seed(2))
            loss.backward()
            found.append((loss.item(), {k: p.grad for k, p in model.named_parameters()}, dict(model.named_buffers())))
    (loss, gradients, buffers), (other, others, moved) = found
    assert other == pytest.approx(loss, rel=1e-5)
    total = torch.stack([g.norm() for g in gradients.values()]).norm()
    assert all((g - others[name]).norm() < 1e-5 * total for name, g in gradients.items())
    assert all(torch.allclose(value, moved[name], atol=1e-6) for name, value in buffers.items())


@pytest.mark.slow
def test_a_compiled_run_goes_on_bit_by_bit(tmp_path):
    assert_goes_on(tmp_path)


def test_what_cannot_be_compiled_is_refused(tmp_path):
    with pytest.raises(ValueError, match="do not add up"):
        TrainConfig(compile="graphs", accumulate=2)
    with pytest.raises(GsmaeError, match="only networks of pretraining"):
        config = CONFIG.model_copy(update={"compile": "fuse"})
        task: Any = Pretrain()
        train(task, nn.Linear(2, 2), Stream(), None, config, tmp_path, {})
