"""The compiled kernels of csrc/ under the names of gsmae.ops.reference, for float32 tensors on the CPU."""

import torch
from torch import Tensor

from . import images, library, points, splats

__all__ = ["images", "library", "points", "splats", "usable"]


def usable(*tensors: Tensor | None) -> bool:
    """Whether there are kernels and they can take these tensors."""
    fit = all(t is None or (t.dtype is torch.float32 and t.device.type == "cpu") for t in tensors)
    return fit and library.available()
