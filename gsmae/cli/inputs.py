"""What a verb that computes is given: a device, the batches of a split, where they lie, and the moves of training."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from gsmae.errors import InputError, nearest_name
from gsmae.features import FeatureSpec
from gsmae.gaussians import WIDTH
from gsmae.training import TrainConfig, processes

Device = Literal["auto", "cpu", "cuda"]

POINT = 20  # bytes of a labelled surface point in memory: three floats and an int64


@dataclass(frozen=True)
class Place:
    """Where the features of the streams lie that are open at a time.

    device    on which: all of them, or the CPU's
    resident  False: in the shards, read as they are needed
    workers   threads that prepare batches ahead
    pin       whether batches are handed over in memory that a GPU copies from without being waited for
    """

    device: str
    resident: bool
    workers: int
    pin: bool


def place_of(size: int, memory: int, device: str, free: int) -> Place:
    """On the GPU where half of what is free there holds all features, else in half of the memory, else in the shards.

    size    bytes of all streams that will be open
    memory  bytes that this process may use
    device  on which the network is
    free    bytes on it; of no account for "cpu"
    """
    cuda = device.startswith("cuda")
    if cuda and size <= free / 2:
        return Place(device, True, 0, False)
    resident = size <= memory / 2
    return Place("cpu", resident, 2 if cuda or not resident else 0, cuda)


def placed(sets: Sequence[Any], device: str, *, surface: bool = False) -> Place:
    """The place of the streams of some data sets that will be open together; surface: with their labelled points."""
    size = sum(4 * WIDTH * int(s.counts.sum()) + (POINT * int(s.point_counts.sum()) if surface else 0) for s in sets)
    own = f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if device == "cuda" else device
    free = torch.cuda.mem_get_info(own)[0] if device == "cuda" else 0
    return place_of(size, memory_limit(), own, free)


def memory_limit(groups: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> int:
    """Bytes of memory that this process may use: of the machine or the container, by the processes that share it.

    groups, own  where the system says so: the tree of control groups, and the place of this process in it
    """
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    folders = [groups, groups / "memory"]
    for line in own.read_text().splitlines() if own.is_file() else []:
        _, kinds, path = line.split(":", 2)
        if kinds == "" or "memory" in kinds.split(","):
            root = groups / "memory" if kinds else groups
            inside = root / path.lstrip("/")
            folders += [inside, *(p for p in inside.parents if p.is_relative_to(root))]
    for folder in folders:  # a limit of any group above holds as well
        for name in ("memory.max", "memory.limit_in_bytes"):
            try:
                limits.append(int((folder / name).read_text()))
            except (OSError, ValueError):  # no such group, or "max"
                continue
    return min(limits) // int(os.environ.get("LOCAL_WORLD_SIZE", 1))


def stream_of(
    dataset: Any,
    spec: FeatureSpec,
    config: TrainConfig,
    augment: Any,
    queries: Any,
    place: Place,
    **more: Any,
) -> Any:
    """Batches of one split: shuffled and moved where `augment` is given, else every object once in a fixed order."""
    from data.streams import batches

    return batches(
        dataset, spec, batch_size=config.batch_size, gaussians=config.gaussians, seed=config.seed,
        shuffle=augment is not None, augment=augment, queries=queries, device=place.device, resident=place.resident,
        workers=place.workers, pin=place.pin, **more,
    )  # fmt: skip


def alone(verb: str) -> None:
    """Refuse a verb that several processes would each do in full, writing the same files."""
    if processes.world() > 1:
        cause = f"`gsmae {verb}` was started {processes.world()} times, by torchrun, and does not share its work"
        raise InputError("torchrun", cause, f"start it as `gsmae {verb}`; pretrain and finetune can be shared")


def device_named(name: str) -> str:
    """The device of --device: auto is a GPU if there is one. Raises InputError where the GPU asked for is not there."""
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda", "torch sees no GPU here", "use --device cpu, or a CUDA build of torch")
    return ("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name


def augmentation(name: str) -> Any:
    """The moves of a name. Raises InputError for an unknown one."""
    from data.augment import AUGMENTATIONS

    if name not in AUGMENTATIONS:
        raise InputError("train.augment", f"'{name}'", nearest_name(name, AUGMENTATIONS))
    return AUGMENTATIONS[name]


def share_of_batch(config: TrainConfig) -> int:
    """Objects of a batch that each process has."""
    share, rest = divmod(config.batch_size, processes.world())
    if rest or not share:
        raise InputError("train.batch_size", f"{config.batch_size} objects for {processes.world()} processes",
                         "choose a multiple")  # fmt: skip
    return share
