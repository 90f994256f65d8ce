"""AdamW, and what each step has of its own: its learning rate and its seed."""

from __future__ import annotations

import hashlib
import math

import torch
from torch import nn

from .run import TrainConfig


def adamw(model: nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    """AdamW over the parameters that are to be trained, without decay on vectors and tokens."""
    decayed, free = [], []
    for name, p in model.named_parameters():
        if p.requires_grad:
            (free if p.squeeze().ndim <= 1 or name.endswith("bias") else decayed).append(p)
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": free, "weight_decay": 0.0}]
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=config.lr, fused=True)


def learning_rate(step: int, per_epoch: int, config: TrainConfig) -> float:
    """Linear warm-up, then a cosine to `lr_end`, by the step."""
    epoch = step / per_epoch
    if epoch < config.warmup_epochs:
        return config.lr_end + (config.lr - config.lr_end) * epoch / config.warmup_epochs
    share = (epoch - config.warmup_epochs) / max(config.epochs - config.warmup_epochs, 1e-9)
    return config.lr_end + (config.lr - config.lr_end) * (1 + math.cos(math.pi * min(share, 1))) / 2


def step_seed(seed: int, step: int) -> int:
    """The seed of one step: resuming needs no stored random state."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{step}".encode()).digest()[:6], "big")
