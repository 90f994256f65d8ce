"""What can be asked of the loop: micro-batches, clipping, averaged weights, bf16, and what it does about bad losses."""

import json
import os
import signal
from dataclasses import replace

import pytest
import torch
from test_training import CONFIG, Stream, Toy, network, rows, run_toy
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from gsmae import checkpoint
from gsmae.batch import Batch
from gsmae.cli.runs import open_run
from gsmae.errors import GsmaeError, InputError
from gsmae.features import FeatureSpec
from gsmae.files import read_json, write_json
from gsmae.groups import block_mask, random_mask
from gsmae.models import Classifier, ClassifierConfig, EncoderConfig
from gsmae.models.blocks import DropPath
from gsmae.recipes import PretrainRun
from gsmae.shares import Dropout, divide, working_on
from gsmae.tasks import Classify, Segment
from gsmae.training import Interrupted, processes, train
from gsmae.training.loop import BLOCK
from gsmae.training.optimizer import adamw, learning_rate, step_seed


def settings(**changes):
    return CONFIG.model_copy(update=changes)


def losses(run):
    return [r["loss"] for r in rows(run) if r["split"] == "train"]


def states_equal(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


class Plainest(Toy):
    """Nothing random."""

    def loss(self, model, batch, generator):
        return nn.functional.cross_entropy(model(batch.points.mean(dim=1)), batch.labels), {}


def test_the_loop_is_the_one_that_anybody_would_write(tmp_path):
    config, model, task = settings(clip=0.5, epochs=3), network(), Toy()
    optimizer, expected = adamw(model, config), []
    for step in range(24):
        batch = next(iter(Stream().epoch(step // 8, skip=step % 8)))
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, 8, config)
        torch.manual_seed(step_seed(0, step))
        generator = torch.Generator().manual_seed(step_seed(0, step))
        loss, _ = task.loss(model.train(), batch, generator)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
        optimizer.zero_grad()
        expected.append(loss.item())
    trained, _ = run_toy(tmp_path / "run", config)
    assert losses(tmp_path / "run") == expected
    assert states_equal(model, trained)


@pytest.fixture
def gradients(monkeypatch):
    """What the optimiser was given, step by step."""
    seen, real = [], torch.optim.AdamW.step

    def step(self, *a, **k):
        seen.append(torch.cat([p.grad.flatten().clone() for g in self.param_groups for p in g["params"]]))
        return real(self, *a, **k)

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    return seen


def smooth(dropout: float) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(14, 8), nn.GELU(), Dropout(dropout), DropPath(dropout), nn.Linear(8, 2))


@pytest.mark.parametrize("pieces", [2, 3, 4])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_micro_batches_have_the_gradient_of_the_batch_and_one_step(tmp_path, gradients, pieces, dropout):
    for accumulate in (1, pieces):
        config = settings(epochs=1, accumulate=accumulate)
        train(Plainest(), smooth(dropout), Stream(), None, config, tmp_path / f"{accumulate}", {})
    whole, cut = gradients[:8], gradients[8:]
    assert len(cut) == 8
    torch.testing.assert_close(cut[0], whole[0], rtol=1e-5, atol=1e-7)
    assert losses(tmp_path / f"{pieces}") == pytest.approx(losses(tmp_path / "1"), rel=1e-5)


def test_gradients_are_clipped_once_and_when_they_are_complete(tmp_path, gradients):
    clip = 0.01
    for accumulate, limit in ((1, 0.0), (4, clip)):
        config = settings(epochs=1, accumulate=accumulate, clip=limit)
        train(Plainest(), smooth(0.0), Stream(), None, config, tmp_path / f"{accumulate}", {})
    whole, clipped = gradients[0], gradients[8]
    assert whole.norm() > 2 * clip
    torch.testing.assert_close(clipped, whole * clip / whole.norm(), rtol=1e-4, atol=1e-8)


def test_a_mean_over_labelled_points_stays_one_when_their_number_differs():
    task = Segment(["a"], {"a": [0, 1]})
    scores = torch.randn(4, 6, 2, generator=torch.Generator().manual_seed(0)).log_softmax(dim=-1)
    parts = torch.tensor([[0, 1, -1, -1, -1, -1], [-1] * 6, [0, 1, 1, 1, 0, 0], [1, -1, 0, -1, -1, -1]])
    batch = Batch(torch.zeros(4, 5, 14), torch.zeros(4, dtype=torch.int64), tuple("abcd"), torch.zeros(4, 6, 3), parts)

    def loss(batch):
        return task.loss(lambda points, *_: scores[[ord(u) - 97 for u in batch.uids]], batch, torch.Generator())[0]

    pieces = [piece for piece, _ in divide(batch, 4)]
    weights = [int(task.weight(piece)) for piece in pieces]
    assert weights == [2, 0, 6, 2]
    total = sum(w * loss(p) for w, p in zip(weights, pieces, strict=True)) / sum(weights)
    torch.testing.assert_close(total, loss(batch))


@pytest.mark.parametrize("world", [1, 2])
def test_a_share_draws_what_its_samples_draw_in_the_whole_batch(world):
    points, whole = torch.randn(8, 16, 14), torch.ones(8, 5)
    batch = Batch(points, torch.arange(8), tuple("abcdefgh"))

    def draw(points, values):
        torch.manual_seed(3)
        generators = [torch.Generator().manual_seed(i) for i in range(2)]
        masks = random_mask(len(points), 16, 0.6, generators[0]), block_mask(points, 0.6, generators[1])
        return [Dropout(0.5)(values), DropPath(0.5)(values), *masks, DropPath(0.5)(values.repeat_interleave(3, dim=0))]

    expected = draw(points, whole)
    for rank in range(world):
        mine = replace(batch, points=points[rank::world], labels=batch.labels[rank::world])
        for piece, share in divide(mine, 2, rank, world):
            rows_of = torch.arange(8)[share.rows]
            assert piece.labels.tolist() == rows_of.tolist()
            with working_on(share):
                got = draw(piece.points, whole[rows_of])
            rows_of_three = (3 * rows_of[:, None] + torch.arange(3)).flatten()
            for ours, theirs in zip(got[:-1], expected[:-1], strict=True):
                assert torch.equal(ours, theirs[rows_of])
            assert torch.equal(got[-1], expected[-1][rows_of_three])


def test_a_signal_between_micro_batches_leaves_no_trace_of_the_step(tmp_path):
    config = settings(accumulate=2)
    whole, _ = run_toy(tmp_path / "whole", config)

    class Stopping(Toy):
        def loss(self, model, batch, generator):
            if len(self.modes) == 2 * 10:  # the first half of step 10
                os.kill(os.getpid(), signal.SIGTERM)
            return super().loss(model, batch, generator)

    with pytest.raises(Interrupted, match="at step 10"):
        run_toy(tmp_path / "cut", config, task=Stopping())
    again, _ = run_toy(tmp_path / "cut", config)
    assert states_equal(whole, again) and rows(tmp_path / "cut") == rows(tmp_path / "whole")


def test_a_signal_while_it_validates_is_heard_and_the_validation_made_good(tmp_path):
    whole, _ = run_toy(tmp_path / "whole")

    class Stopping(Stream):
        def epoch(self, epoch, skip=0):
            for number, batch in enumerate(super().epoch(epoch, skip)):
                if number == 3:
                    os.kill(os.getpid(), signal.SIGTERM)
                yield batch

    with pytest.raises(Interrupted, match="at step 8"):
        train(Toy(), network(), Stream(), Stopping(), CONFIG, tmp_path / "cut", {"task": "toy"})
    assert [r["split"] for r in rows(tmp_path / "cut")] == ["train"] * 8
    again, _ = run_toy(tmp_path / "cut")
    assert states_equal(whole, again) and rows(tmp_path / "cut") == rows(tmp_path / "whole")


def test_the_average_is_what_is_measured_and_what_a_checkpoint_holds(tmp_path):
    seen = []

    class Watching(Toy):
        def after_step(self, model, share_done):
            seen.append({k: v.clone() for k, v in model.state_dict().items()})

    model, _ = run_toy(tmp_path / "run", settings(ema=0.9, epochs=1), task=Watching())
    average = seen[0]
    for state in seen[1:]:
        average = {k: v if v.dtype == torch.int64 else 0.9 * average[k] + 0.1 * v for k, v in state.items()}
    found = checkpoint.load(checkpoint.find(tmp_path / "run"), with_optimizer=True)
    for name, value in average.items():
        if value.is_floating_point():
            torch.testing.assert_close(found.weights[name], value)
            assert torch.equal(found.live[name], model.state_dict()[name])
    assert not torch.equal(found.weights["0.weight"], found.live["0.weight"])
    measured = network()
    measured.load_state_dict(found.weights)
    assert Toy().evaluate(measured.eval(), Stream().epoch(0))["loss"] == rows(tmp_path / "run")[-1]["loss"]


@pytest.mark.parametrize("stop_after", [0, 11])
def test_an_averaged_run_goes_on_bit_for_bit(tmp_path, stop_after):
    config = settings(ema=0.95)
    run_toy(tmp_path / "whole", config)

    class Stopping(Stream):
        def epoch(self, epoch, skip=0):
            for number, batch in enumerate(super().epoch(epoch, skip), start=skip):
                if 8 * epoch + number == stop_after:
                    os.kill(os.getpid(), signal.SIGTERM)
                yield batch

    with pytest.raises(Interrupted):
        run_toy(tmp_path / "cut", config, stream=Stopping())
    run_toy(tmp_path / "cut", config)
    assert rows(tmp_path / "cut") == rows(tmp_path / "whole")
    for name in ("weights.safetensors", "live.safetensors", "optimizer.safetensors"):
        files = [tmp_path / run / "step_00000032" / name for run in ("whole", "cut")]
        assert files[0].read_bytes() == files[1].read_bytes()


class Poison(Toy):
    """A loss that is not finite the first `times` times that one of the steps comes by."""

    def __init__(self, steps, times=1):
        super().__init__()
        self.left = {step_seed(0, step): times for step in steps}
        self.bad = 0

    def loss(self, model, batch, generator):
        loss, logs = super().loss(model, batch, generator)
        seed = generator.initial_seed()
        if self.left.get(seed, 0) > 0:
            self.left[seed] -= 1
            self.bad += 1
            return loss * float("nan"), logs
        return loss, logs


@pytest.fixture(params=[True, False], ids=["known at once", "read in blocks"])
def prompt(request, monkeypatch):
    """Like a CPU, whose results are there at once, or like a GPU, which is asked every few steps."""
    monkeypatch.setattr(processes.Team, "prompt", property(lambda self: request.param))
    return request.param


def test_three_bad_steps_lead_back_to_the_checkpoint_and_to_half_the_rate(tmp_path, prompt, caplog):
    model, report = run_toy(tmp_path / "run", task=Poison((10, 11, 12)))
    assert report.steps == 32 and all(torch.isfinite(v).all() for v in model.state_dict().values())
    assert caplog.text.count("the step is skipped") == 3 and "going back to step 8, at 0.5" in caplog.text
    steps = [r for r in rows(tmp_path / "run") if r["split"] == "train"]
    assert [r["step"] for r in steps] == list(range(1, 33)) and all(r["loss"] is not None for r in steps)
    shares = [r["lr"] / learning_rate(r["step"] - 1, 8, CONFIG) for r in steps]
    assert shares == pytest.approx([1.0] * 8 + [0.5] * 24)
    assert losses(tmp_path / "run")[-1] < losses(tmp_path / "run")[0]


def test_before_the_first_checkpoint_the_way_back_leads_to_the_beginning(tmp_path, prompt):
    for name, poison in (("bad", (2, 3, 4)), ("good", ())):
        config = CONFIG if poison else settings(lr=CONFIG.lr / 2, lr_end=CONFIG.lr_end / 2)
        run_toy(tmp_path / name, config, task=Poison(poison))
    assert losses(tmp_path / "bad") == losses(tmp_path / "good")


def test_bad_steps_that_come_again_after_the_way_back_stop_the_run_with_the_reason(tmp_path, prompt):
    task = Poison((10, 11, 12), times=2)
    with pytest.raises(GsmaeError, match=r"three steps up to \d+, again after going back to step 8 at 0.5"):
        run_toy(tmp_path / "run", task=task)
    assert task.bad == 6
    steps = [r["step"] for r in rows(tmp_path / "run") if r["split"] == "train"]
    assert steps[:13] == list(range(1, 14))  # what went wrong stays to be read


def test_a_run_that_went_back_goes_on_bit_for_bit(tmp_path):
    whole, _ = run_toy(tmp_path / "whole", task=Poison((10, 11, 12)))

    class Stopping(Poison):
        def loss(self, model, batch, generator):
            if generator.initial_seed() == step_seed(0, 19):
                os.kill(os.getpid(), signal.SIGTERM)
            return super().loss(model, batch, generator)

    with pytest.raises(Interrupted, match="at step 20"):
        run_toy(tmp_path / "cut", task=Stopping((10, 11, 12)))
    again, _ = run_toy(tmp_path / "cut")
    assert states_equal(whole, again) and rows(tmp_path / "cut") == rows(tmp_path / "whole")


class Following(Poison):
    """A teacher of frozen parameters and a counter in a buffer, both of which every step that is taken moves."""

    def after_step(self, model, share_done):
        with torch.no_grad():
            model[1].teacher.lerp_(model[0].weight, 0.1)
            model[1].counted.add_(1)


class Taught(nn.Module):
    def __init__(self, like):
        super().__init__()
        self.teacher = nn.Parameter(like.detach().clone(), requires_grad=False)
        self.register_buffer("counted", torch.zeros([], dtype=torch.int64))

    def forward(self, x):
        return x


@pytest.mark.parametrize("steps", [(10, 11), (0, 5)])
def test_a_skipped_step_moves_neither_teacher_nor_average_whenever_it_is_known(tmp_path, monkeypatch, steps):
    found = []
    for known in (True, False):
        monkeypatch.setattr(processes.Team, "prompt", property(lambda self, known=known: known))
        first = network()[0]
        model = nn.Sequential(first, Taught(first.weight), *network()[1:])
        run = tmp_path / str(known)
        train(Following(steps), model, Stream(), None, settings(ema=0.9, epochs=2), run, {"task": "toy"})
        found.append(checkpoint.load(checkpoint.find(run), with_optimizer=True))
    now, later = found
    assert int(now.live["1.counted"]) == 14 and now.state["averaged"] == later.state["averaged"] == 14
    for ours, theirs in ((now.live, later.live), (now.weights, later.weights)):
        for name, value in ours.items():
            torch.testing.assert_close(theirs[name], value, rtol=1e-6, atol=1e-7)


def test_without_a_readable_checkpoint_nothing_is_rewound(tmp_path):
    class Damaging(Poison):
        def loss(self, model, batch, generator):
            if generator.initial_seed() == step_seed(0, 10):
                for file in (tmp_path / "run").glob("step_*/weights.safetensors"):
                    file.write_bytes(file.read_bytes()[:-1])
            return super().loss(model, batch, generator)

    with pytest.raises(GsmaeError, match="no checkpoint is readable"):
        run_toy(tmp_path / "run", task=Damaging((10, 11, 12)))
    assert [r["step"] for r in rows(tmp_path / "run") if r["split"] == "train"] == list(range(1, 14))


def test_a_run_whose_checkpoints_are_all_damaged_does_not_silently_begin_anew(tmp_path):
    run_toy(tmp_path / "run")
    before = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    for file in (tmp_path / "run").glob("step_*/weights.safetensors"):
        file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(InputError, match="none of its checkpoints is whole .*delete these folders"):
        run_toy(tmp_path / "run")
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == before


def test_two_bad_steps_change_nothing_but_themselves(tmp_path, prompt):
    run_toy(tmp_path / "run", settings(ema=0.9), task=Poison((10, 11)))
    steps = [r for r in rows(tmp_path / "run") if r["split"] == "train"]
    assert [r["step"] for r in steps if r["loss"] is None] == [11, 12]
    assert {r["lr"] / learning_rate(r["step"] - 1, 8, CONFIG) for r in steps[12:]} == {1.0}


class Waits(TorchDispatchMode):
    """Counts the calls for which a GPU would have to be waited for."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += "_local_scalar_dense" in str(func) or "nonzero" in str(func)
        return func(*args, **(kwargs or {}))


def test_a_step_waits_for_nothing_and_its_numbers_are_read_in_blocks(tmp_path, monkeypatch):
    expected, _ = run_toy(tmp_path / "known")
    monkeypatch.setattr(processes.Team, "prompt", property(lambda self: False))
    written, waits = [], Waits()

    class Counting(Toy):
        def loss(self, model, batch, generator):
            written.append(len(rows(tmp_path / "run")))
            return super().loss(model, batch, generator)

    with waits:
        model, _ = run_toy(tmp_path / "run", settings(epochs=2, val_every=2, save_every=2), task=Counting())
    assert written == [0] * 8 + [8] * 8  # read at the end of each epoch of eight, which is before BLOCK steps
    assert BLOCK > 8
    assert waits.count == 1  # the float() of Toy.evaluate
    run_toy(tmp_path / "read")
    assert rows(tmp_path / "read") == rows(tmp_path / "known")


def test_bf16_rounds_the_products_and_keeps_the_weights(tmp_path):
    run_toy(tmp_path / "fp32", settings(epochs=2))
    model, _ = run_toy(tmp_path / "bf16", settings(epochs=2, precision="bf16"))
    fine, rough = losses(tmp_path / "fp32"), losses(tmp_path / "bf16")
    assert fine != rough and rough == pytest.approx(fine, rel=0.05)
    assert {v.dtype for v in model.parameters()} == {torch.float32}
    run_toy(tmp_path / "again", settings(epochs=2))  # the precision of one run is not that of the next
    assert losses(tmp_path / "again") == fine


def test_a_frozen_encoder_is_the_same_after_training(tmp_path):
    encoder = EncoderConfig(width=24, depth=2, heads=2, groups=4, group_size=4, drop_path=0.5)
    for protocol, changes in (("mlp3", False), ("full", True)):
        config = ClassifierConfig(encoder=encoder, classes=2, protocol=protocol)
        model = Classifier(config, FeatureSpec(), generator=torch.Generator().manual_seed(0))
        before = {k: v.clone() for k, v in model.encoder.state_dict().items()}
        head = model.head[0].weight.clone()
        train(Classify(), model, Stream(), Stream(), settings(epochs=2), tmp_path / protocol, {"task": "classify"})
        after = model.encoder.state_dict()
        assert any(not torch.equal(v, after[k]) for k, v in before.items()) == changes
        assert not torch.equal(model.head[0].weight, head)


def test_a_run_of_an_older_version_goes_on_where_new_options_have_their_defaults(tmp_path):
    header = {"task": "pretrain", "classes": [], "parts": [], "init_weights": None, "data": {"hash": "x"}}
    run = PretrainRun()
    open_run(tmp_path, run, header)
    text = (tmp_path / "config.yaml").read_text()
    lines = [line for line in text.splitlines() if not line.strip().startswith(("accumulate:", "ema:", "precision:"))]
    assert len(lines) == len(text.splitlines()) - 3
    (tmp_path / "config.yaml").write_text("\n".join(lines))
    write_json(tmp_path / "run.json", {**read_json(tmp_path / "run.json"), "config_hash": "of another time"})
    asked = run.model_copy(update={"train": run.train.model_copy(update={"ema": 0.9})})
    with pytest.raises(InputError, match="another configuration"):
        open_run(tmp_path, asked, header)
    with pytest.raises(InputError, match="another configuration"):
        open_run(tmp_path, run, {**header, "data": {"hash": "y"}})
    open_run(tmp_path, run, header)
    assert json.loads((tmp_path / "run.json").read_text())["config_hash"] != "of another time"
