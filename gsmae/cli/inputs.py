"""What a verb that computes is given: a device, the batches of a split, and the moves of training."""

from __future__ import annotations

import os
from typing import Any, Literal

import torch

from gsmae.errors import InputError, nearest_name
from gsmae.features import FeatureSpec
from gsmae.gaussians import WIDTH
from gsmae.training import TrainConfig, processes

Device = Literal["auto", "cpu", "cuda"]


def device_named(name: str) -> str:
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda", "torch sees no GPU here", "use --device cpu, or a CUDA build of torch")
    return ("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name


def augmentation(name: str) -> Any:
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


def stream_of(dataset: Any, spec: FeatureSpec, config: TrainConfig, augment: Any, queries: Any, **more: Any) -> Any:
    """Batches of one split: shuffled and moved where `augment` is given, else every object once in a fixed order.

    A split that would fill half of the memory is read as it is needed.
    """
    from data.streams import batches

    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if 4 * WIDTH * int(dataset.counts.sum()) > memory / 2:
        more = {"resident": False, "workers": 2, **more}
    return batches(
        dataset, spec, batch_size=config.batch_size, gaussians=config.gaussians, seed=config.seed,
        shuffle=augment is not None, augment=augment, queries=queries, **more,
    )  # fmt: skip
