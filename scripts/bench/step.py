"""Times one training step on one thread beside the released structure, with and without its obvious fixes.

    OMP_NUM_THREADS=1 python scripts/bench/step.py [--batch 16] [--rounds 5] [--profile]

Paper widths, 64 groups of 32 of 1,024 synthetic Gaussians of 14 columns. First all ways get the same weights and mask:
their losses agree in evaluation and in training, and so do their gradients. Each round then runs every way once;
figures are medians of CPU seconds (lowest to highest), ratios are those of the rounds. A step is everything from the
batch on: grouping, mask, forward, backward, gradient norm, AdamW.
"""

import argparse
import time
from collections.abc import Callable

import torch
from grouping import splats, spread
from released_structure import Released
from torch import Tensor, nn

from gsmae.batch import Batch
from gsmae.features import FeatureSpec
from gsmae.groups import random_mask
from gsmae.models import EncoderConfig, GaussianMAE, MAEConfig
from gsmae.ops.native import library
from gsmae.released_names import to_released
from gsmae.tasks import Pretrain
from gsmae.training import TrainConfig
from gsmae.training.optimizer import adamw

OURS, VISIBLE, EAGER, FIXED = "gsmae", "gsmae, visible groups only", "released structure", "released structure, fixed"


def config(pooling: bool, drop_path: float, tokenize: str = "all") -> MAEConfig:
    encoder = EncoderConfig(pooling=pooling, drop_path=drop_path)
    return MAEConfig.model_validate({"encoder": encoder, "tokenize": tokenize})


def ours(config: MAEConfig) -> GaussianMAE:
    return GaussianMAE(config, FeatureSpec(), generator=torch.Generator().manual_seed(0))


def theirs(config: MAEConfig, fixed: bool) -> Released:
    made = Released(config, fixed)
    made.load_state_dict(to_released(ours(config)))
    return made


def compare(pooling: bool, points: Tensor) -> None:
    """Losses and gradients of all ways, without what is random."""
    plain = config(pooling, 0.0)
    model = ours(plain)
    groups = model.encoder.group(points)
    mask = model.draw_mask(groups, torch.Generator().manual_seed(1))
    visible = ours(config(pooling, 0.0, "visible"))
    assert abs(visible.eval()(points, mask).loss.item() - model.eval()(points, mask).loss.item()) < 1e-4
    for fixed in (False, True):
        model, other = ours(plain), theirs(plain, fixed)  # anew: training moves BatchNorm's statistics
        for training in (False, True):
            first, second = model.train(training)(points, mask).loss, other.train(training)(points, mask)
            assert abs(first.item() - second.item()) < 1e-4, (pooling, fixed, training, first.item(), second.item())
        model.zero_grad()
        first.backward()
        second.backward()
        named = {name: p.grad for name, p in other.named_parameters()}
        for mine, released in [("heads.sh.weight", "sh_head.0.weight"), ("encoder.blocks.0.attention.qkv.weight",
                               "MAE_encoder.blocks.blocks.0.attn.qkv.weight"), ("encoder.tokenizer.lift.weight",
                               "MAE_encoder.encoder.first_conv.0.weight")]:  # fmt: skip
            a, b = model.get_parameter(mine).grad, named[released]
            assert a is not None and b is not None
            b = b.reshape_as(a)
            # a maximum that rounding gives to another point changes a little of what comes before it
            assert (a - b).norm() < 1e-2 * a.norm(), (pooling, fixed, mine, float((a - b).norm() / a.norm()))


def our_step(config: MAEConfig, batch: Batch) -> Callable[[], None]:
    """As `gsmae.training` takes it."""
    model, task = ours(config).train(), Pretrain()
    optimizer, generator = adamw(model, TrainConfig()), torch.Generator().manual_seed(0)

    def step() -> None:
        buffers = [b.clone() for b in model.buffers()]
        loss, _ = task.loss(model, batch, generator)
        loss.backward()
        norm = nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
        optimizer.found_inf = 1 - (torch.isfinite(loss) & torch.isfinite(norm)).float()  # pyright: ignore
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        del buffers  # kept for a step that has to be undone

    return step


def their_step(config: MAEConfig, batch: Batch, fixed: bool) -> Callable[[], None]:
    model = theirs(config, fixed).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05, fused=fixed)
    generator = torch.Generator().manual_seed(0)

    def step() -> None:
        loss = model(batch.points, random_mask(len(batch), config.encoder.groups, config.mask_ratio, generator))
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), float("inf"))
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--profile", action="store_true", help="where our step spends its time, instead")
    options = parser.parse_args()
    torch.set_num_threads(1)
    library.set_threads(1)
    points = splats(options.batch, 1024, 14)
    batch = Batch(points, torch.zeros(len(points), dtype=torch.int64), tuple(map(str, range(len(points)))))
    lines = []
    for name, pooling in (("hard", False), ("soft", True)):
        compare(pooling, points[:4])
        usual = config(pooling, 0.1)
        ways = {OURS: our_step(usual, batch), VISIBLE: our_step(config(pooling, 0.1, "visible"), batch)}
        if options.profile:
            profile(name, ways[OURS])
            continue
        ways |= {EAGER: their_step(usual, batch, False), FIXED: their_step(usual, batch, True)}
        times: dict[str, list[float]] = {way: [] for way in ways}
        for round_ in range(options.rounds + 1):  # one to warm up
            for way, step in ways.items():
                begin = time.process_time()
                step()
                if round_:
                    times[way].append(time.process_time() - begin)
        for way, spent in times.items():
            cells = [name, way, spread(spent, 2)]
            for mine in (OURS, VISIBLE):
                ratios = [other / own for other, own in zip(spent, times[mine], strict=True)]
                cells.append(spread(ratios, 2) if way != mine else "")
            lines.append(f"| {' | '.join(cells)} |")
    print(f"batch {options.batch}, {options.rounds} rounds, 1 thread\n")
    print(f"| pooling | way | CPU s | times {OURS} | times {VISIBLE} |\n| --- | --- | --- | --- | --- |")
    print("\n".join(lines))


def profile(name: str, step: Callable[[], None]) -> None:
    step()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], record_shapes=True) as profiler:
        step()
    print(name)
    print(profiler.key_averages(group_by_input_shape=True).table(sort_by="self_cpu_time_total", row_limit=25,
                                                                 max_name_column_width=40))  # fmt: skip


if __name__ == "__main__":
    main()
