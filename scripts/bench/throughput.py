"""Times whole training steps on a GPU beside the released structure: samples a second and memory.

    python scripts/bench/throughput.py [--ways ...] [--sizes 128 512 1024] [--pooling hard soft] [--budget 600]
    python scripts/bench/throughput.py --profile bf16 --sizes 512 --pooling hard
    python scripts/bench/throughput.py --device cpu --tiny --sizes 4            (a trial of the script itself)

Paper widths, 64 groups of 32 of 1,024 Gaussians of 14 columns. A step of ours is `gsmae.training.steps.Stepper.take`:
grouping, mask, forward, backward, gradient norm, AdamW. The released structure gets a plain loop; `fixed` has scaled
dot product attention, torch.topk and fused AdamW. Data are on the GPU: `--data fixed` is one batch of synthetic splats,
`stream` is `data.batches` with everything resident, windows and augmentation included, from --pack or a synthetic pack.
Float32 matrix products are torch's default: no TF32.

First the losses of both networks are compared, with the same weights and mask. Then each row warms up, which is where
it compiles, and is timed by an event after each step, without waiting between them: the median of --steps. Memory is
the peak of tensors (max_memory_allocated) and what the process held (max_memory_reserved). A row that fails says why
and the next one goes on; one that is still running when the budget ends is cut off, the rows after it are left out.
"""

import argparse
import gc
import json
import signal
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from itertools import repeat
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from grouping import splats
from released_structure import Released
from torch import Tensor, nn

from gsmae import ops
from gsmae.batch import Batch
from gsmae.features import FeatureSpec
from gsmae.groups import random_mask, rows
from gsmae.models import EncoderConfig, GaussianMAE, MAEConfig
from gsmae.models.mae import _losses
from gsmae.released_names import to_released
from gsmae.tasks import Pretrain
from gsmae.training import TrainConfig
from gsmae.training.processes import Team
from gsmae.training.steps import Stepper

OURS: dict[str, tuple[dict[str, Any], str]] = {  # name -> TrainConfig, which groups pass the tokenizer
    "fp32": ({}, "all"),
    "bf16": ({"precision": "bf16"}, "all"),
    "bf16-visible": ({"precision": "bf16"}, "visible"),
    "bf16-fuse": ({"precision": "bf16", "compile": "fuse"}, "all"),
    "bf16-fuse-visible": ({"precision": "bf16", "compile": "fuse"}, "visible"),
    "bf16-graphs": ({"precision": "bf16", "compile": "graphs"}, "all"),
    "bf16-graphs-visible": ({"precision": "bf16", "compile": "graphs"}, "visible"),
}
THEIRS = {"released": (False, False), "fixed": (True, False), "fixed-bf16": (True, True)}  # fixed, bf16
WAYS = [*THEIRS, *OURS]
Step = Callable[[], None]


class OutOfTime(Exception):
    """The budget ended."""


def encoder(options: argparse.Namespace, pooling: str) -> EncoderConfig:
    sizes = {"width": 48, "depth": 2, "heads": 3, "groups": 16, "group_size": 8, "points": 128} if options.tiny else {}
    return EncoderConfig.model_validate({"pooling": pooling == "soft", **sizes})


def network(options: argparse.Namespace, pooling: str, tokenize: str = "all") -> MAEConfig:
    sizes = {"decoder_depth": 1, "decoder_heads": 3} if options.tiny else {}
    return MAEConfig.model_validate({"encoder": encoder(options, pooling), "tokenize": tokenize, **sizes})


def ours(config: MAEConfig, device: str) -> GaussianMAE:
    return GaussianMAE(config, FeatureSpec(), generator=torch.Generator().manual_seed(0)).to(device)


def theirs(config: MAEConfig, device: str, fixed: bool) -> Released:
    made = Released(config, fixed)
    made.load_state_dict(to_released(ours(config, "cpu")))
    return made.to(device)


def fixed_batch(options: argparse.Namespace, size: int) -> Batch:
    points = splats(size, options.points, 14)
    batch = Batch(points, torch.zeros(size, dtype=torch.int64), tuple(map(str, range(size))))
    return batch.to(options.device)


@contextmanager
def streams(options: argparse.Namespace) -> Iterator[Callable[[int], Iterator[Batch]]]:
    """Batch size -> batches without end, from a pack."""
    from data.augment import AUGMENTATIONS
    from data.datasets import SplatDataset
    from data.streams import batches

    with tempfile.TemporaryDirectory() as name:
        pack = options.pack or synthetic(Path(name), 2 * max(options.sizes), options.points)
        dataset = SplatDataset(pack, split="train")

        def endless(size: int) -> Iterator[Batch]:
            stream = batches(
                dataset, FeatureSpec(), batch_size=size, gaussians=options.points, drop_last=True,
                augment=AUGMENTATIONS["default"], device=options.device,
            )  # fmt: skip
            epoch = 0
            while True:
                yield from stream.epoch(epoch)
                epoch += 1

        yield endless


def synthetic(folder: Path, objects: int, points: int) -> Path:
    """A pack of random splats that have one to two times as many Gaussians as are drawn."""
    from loading import splat

    from data.shards import pack
    from gsmae.files import sha256
    from gsmae.ply import write_ply

    build = folder / "build"
    for i in range(objects):
        uid, made = f"class/{i:05d}", splat(i, points + i % points)
        write_ply(build / "splats" / f"{uid}.ply", made)
        record = {"uid": uid, "category": "class", "split": "train", "status": "done", "gaussians": len(made)}
        record["sha256"] = sha256(build / "splats" / f"{uid}.ply")
        path = build / "records" / f"{uid}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(record))
    (build / "build.json").write_text(json.dumps({"schema": 1, "frame": "z-up", "config_hash": "", "seed": 0}))
    pack(build, folder / "pack", val_fraction=0)
    return folder / "pack"


def our_step(options: argparse.Namespace, way: str, pooling: str, given: Iterator[Batch]) -> Step:
    changes, tokenize = OURS[way]
    model = ours(network(options, pooling, tokenize), options.device).train()
    config = TrainConfig.model_validate(changes)
    task: Any = Pretrain()
    stepper = Stepper(task, model, config, Team(options.device, config.precision), lambda: False)
    number = 0

    def step() -> None:
        nonlocal number
        taken = stepper.take(next(given), number, 1e-4, 0.1)
        step.loss = taken.values[1]  # pyright: ignore[reportFunctionMemberAccess]
        number += 1

    return step


def their_step(options: argparse.Namespace, way: str, pooling: str, given: Iterator[Batch]) -> Step:
    (fixed, bf16), config = THEIRS[way], network(options, pooling)
    model = theirs(config, options.device, fixed).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.05, fused=fixed)
    generator = torch.Generator(options.device).manual_seed(0)

    def step() -> None:
        points = next(given).points
        mask = random_mask(len(points), config.encoder.groups, config.mask_ratio, generator)
        with torch.autocast(options.device, torch.bfloat16, enabled=bf16):
            loss = model(points, mask)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), float("inf"))
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        step.loss = loss.detach()  # pyright: ignore[reportFunctionMemberAccess]

    return step


def compare(options: argparse.Namespace, pooling: str) -> str:
    """Losses of both networks for the same weights and mask, without what is random."""
    config = network(options, pooling)
    points = fixed_batch(options, 4).points
    model, other = ours(config, options.device).eval(), theirs(config, options.device, True).eval()
    mask = random_mask(4, config.encoder.groups, config.mask_ratio, torch.Generator().manual_seed(1)).to(options.device)
    with torch.no_grad():
        first, second = model(points, mask).loss.item(), other(points, mask).item()
    return f"{pooling}: loss of ours {first:.6f}, of the released {second:.6f}, apart {abs(first - second):.1e}"


def grouped_by(options: argparse.Namespace) -> str:
    """Which twin of `ops.group` takes the batches."""
    points = fixed_batch(options, 2).points[..., :3].contiguous()
    for twin in (ops.native, ops.warp, ops.reference):
        found = getattr(getattr(twin, "points", None), "group", None)
        if found is None:
            continue
        with patch.object(twin.points, "group", wraps=found) as seen:
            ops.group(points, 4, 4)
        if seen.called:
            return twin.__name__.rpartition(".")[2]
    return "unknown"


class Clock:
    """Marks on the device's own time; nothing waits before `gaps` is asked for."""

    def __init__(self, device: str):
        self.device, self.marks = device, []

    def mark(self) -> None:
        if self.device == "cuda":
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self.marks.append(event)
        else:
            self.marks.append(time.perf_counter())

    def gaps(self) -> list[float]:
        """Milliseconds between marks."""
        settle(self.device)
        pairs = zip(self.marks, self.marks[1:], strict=False)
        return [a.elapsed_time(b) if self.device == "cuda" else 1000 * (b - a) for a, b in pairs]


def settle(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def measure(options: argparse.Namespace, step: Step) -> dict[str, float]:
    begin = time.perf_counter()
    for _ in range(options.warm_up):
        step()
        settle(options.device)
    warm = time.perf_counter() - begin
    if options.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    clock, begin = Clock(options.device), time.perf_counter()
    clock.mark()
    for _ in range(options.steps):
        step()
        clock.mark()
    issued = time.perf_counter() - begin  # how long the host took to ask for the steps
    gaps = clock.gaps()
    found = {"ms": statistics.median(gaps), "low": min(gaps), "high": max(gaps), "warm": warm}
    found |= {"host": 1000 * issued / options.steps, "loss": float(step.loss)}  # pyright: ignore[reportFunctionMemberAccess]
    if options.device == "cuda":
        found["peak"] = torch.cuda.max_memory_allocated() / 2**30
        found["held"] = torch.cuda.max_memory_reserved() / 2**30
    return found


def clean(device: str) -> None:
    torch._dynamo.reset()
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()


def table(options: argparse.Namespace, ends: float) -> None:
    print("| data | pooling | batch | way | samples/s | ms a step (lowest to highest) | host ms | peak GiB | held GiB "
          "| times released | warm-up s | loss |")  # fmt: skip
    print("|" + " --- |" * 12, flush=True)
    with streams(options) if "stream" in options.data else nullcontext() as endless:
        for data in options.data:
            for pooling in options.pooling:
                for size in options.sizes:
                    slowest, batch = None, fixed_batch(options, size)
                    for way in options.ways:
                        given = endless(size) if endless and data == "stream" else repeat(batch)
                        found = row(options, way, pooling, given, ends)
                        if isinstance(found, str):
                            print(f"| {data} | {pooling} | {size} | {way} | {found} |", flush=True)
                            continue
                        slowest = found["ms"] if way == "released" else slowest
                        cells = [data, pooling, str(size), way, f"{1000 * size / found['ms']:,.0f}"]
                        cells += [f"{found['ms']:.2f} ({found['low']:.2f} to {found['high']:.2f})"]
                        cells += [f"{found['host']:.2f}", *(f"{found.get(k, 0):.1f}" for k in ("peak", "held"))]
                        cells += [f"{slowest / found['ms']:.1f}" if slowest else "", f"{found['warm']:.1f}"]
                        print(f"| {' | '.join(cells)} | {found['loss']:.4f} |", flush=True)


def row(options: argparse.Namespace, way: str, pooling: str, given: Iterator[Batch], ends: float) -> Any:
    """What was measured, or why nothing was."""
    left = ends - time.monotonic()
    if left < 1:
        return "left out: the budget is spent"
    clean(options.device)

    def ring(*_: Any) -> None:
        raise OutOfTime("cut off: the budget is spent")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, left)
    try:
        make = our_step if way in OURS else their_step
        return measure(options, make(options, way, pooling, given))
    except Exception as error:  # a row that fails must not lose the table
        return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def parts(options: argparse.Namespace, way: str, pooling: str, size: int) -> None:
    """Milliseconds of the parts of an eager step, each forward and backward on its own."""
    changes, tokenize = OURS[way]
    config, batch = network(options, pooling, tokenize), fixed_batch(options, size)
    model, device = ours(config, options.device).train(), options.device
    enabled = changes.get("precision") == "bf16"
    generator = torch.Generator(device).manual_seed(0)
    task: Any = Pretrain()
    stepper = Stepper(task, model, TrainConfig(), Team(device, "fp32"), lambda: False)

    def cast() -> Any:
        return torch.autocast(device, torch.bfloat16, enabled=enabled)

    with torch.no_grad(), cast():
        groups = model.encoder.group(batch.points)
        mask = model.draw_mask(groups, generator)
        order = mask.to(torch.uint8).argsort(dim=1, stable=True)
        visible, hidden = order.split([order.shape[1] - config.masked, config.masked], dim=1)
        tokens = model._tokens(groups, visible)
        positions = model.encoder.locate(rows(groups.centers, visible))
        encoded = model.encoder.transform(tokens, positions)
        located = rows(groups.centers, order)[..., :3]
        decoded = model._decode(encoded, located, config.masked)

    def differentiated(call: Callable[..., Tensor], *inputs: Tensor) -> Step:
        leaves = [x.detach().requires_grad_() for x in inputs]

        def run() -> None:
            with cast():
                out = call(*leaves)
            out.float().sum().backward() if out.ndim == 0 else out.backward(torch.ones_like(out))
            model.zero_grad(set_to_none=True)
            for leaf in leaves:
                leaf.grad = None

        return run

    def reconstructed(x: Tensor) -> Tensor:
        predicted = model._predict(x)
        return torch.stack([*_losses(predicted, model._targets(rows(groups.points, hidden), predicted)).values()]).sum()

    def optimized() -> None:
        for p in model.parameters():
            p.grad = torch.zeros_like(p) if p.grad is None else p.grad
        stepper._gradient_norm()
        stepper.optimizer.step()

    def prepared() -> None:
        model.draw_mask(model.encoder.group(batch.points), generator)

    steps: dict[str, Step] = {
        "grouping and mask": prepared,
        "tokenizer": differentiated(lambda: model._tokens(groups, visible)),
        "encoder blocks": differentiated(model.encoder.transform, tokens, positions),
        "decoder": differentiated(lambda x: model._decode(x, located, config.masked), encoded),
        "heads and loss": differentiated(reconstructed, decoded),
        "norm and AdamW": optimized,
    }
    print(f"\nparts of a step, {way}, {pooling}, batch {size}, not compiled; forward and backward, ms\n")
    print("| part | ms |\n| --- | --- |")
    for name, step in steps.items():
        for _ in range(3):
            step()
        clock = Clock(device)
        clock.mark()
        for _ in range(10):
            step()
            clock.mark()
        print(f"| {name} | {statistics.median(clock.gaps()):.2f} |", flush=True)


def profile(options: argparse.Namespace) -> None:
    """The kernels that take longest, of a few steps of one way, and the parts of a step."""
    from torch.profiler import ProfilerActivity

    way, pooling, size = options.profile, options.pooling[0], options.sizes[0]
    make = our_step if way in OURS else their_step
    step = make(options, way, pooling, repeat(fixed_batch(options, size)))
    for _ in range(options.warm_up):
        step()
    settle(options.device)
    kinds = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (options.device == "cuda")
    with torch.profiler.profile(activities=kinds) as profiler:
        for _ in range(3):
            step()
        settle(options.device)
    print(f"\n3 steps of {way}, {pooling}, batch {size}")
    key = "self_device_time_total" if options.device == "cuda" else "self_cpu_time_total"
    averages = profiler.key_averages()
    if options.device == "cuda":
        kernels = [e for e in profiler.events() or [] if "CUDA" in str(e.device_type)]
        print(f"{len(kernels) / 3:,.0f} kernels and copies a step")
    print(averages.table(sort_by=key, row_limit=25, max_name_column_width=80), flush=True)
    if way in OURS:
        del step
        clean(options.device)
        parts(options, way, pooling, size)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS)
    parser.add_argument("--sizes", nargs="+", type=int, default=[128, 512, 1024])
    parser.add_argument("--pooling", nargs="+", choices=["hard", "soft"], default=["hard", "soft"])
    parser.add_argument("--data", nargs="+", choices=["fixed", "stream"], default=["fixed"])
    parser.add_argument("--pack", help="of at least the largest size; default: synthetic")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--warm-up", type=int, default=5)
    parser.add_argument("--budget", type=float, default=600, help="seconds for all of it")
    parser.add_argument("--profile", choices=WAYS, help="kernels and parts of this way, instead of the table")
    parser.add_argument("--tiny", action="store_true", help="a network of a few thousand weights, for trials")
    options = parser.parse_args()
    options.points = 128 if options.tiny else 1024
    ends = time.monotonic() + options.budget
    if options.device == "cuda":
        where = torch.cuda.get_device_name()
    else:
        torch.set_num_threads(1)
        where = "CPU, one thread"
    print(f"{where}, torch {torch.__version__}, {options.steps} steps, grouping by {grouped_by(options)}")
    for pooling in options.pooling:
        try:
            print(compare(options, pooling), flush=True)
        except Exception as error:
            print(f"{pooling}: not compared: {type(error).__name__}: {error}", flush=True)
    profile(options) if options.profile else table(options, ends)


if __name__ == "__main__":
    main()
