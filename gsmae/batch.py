"""What training is handed: one batch of normalised splats, already of equal length."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

from torch import Tensor

from .features import Normalization


@dataclass(frozen=True)
class Batch:
    """B splats of N Gaussians as feature rows, with whatever labels the task needs.

    points     [B, N, 14]  normalised columns in the order of FIELDS
    labels     [B]         class index, int64; -1 where unknown
    uids       B names
    queries    [B, P, 3]   labelled surface points in the normalised frame of `points`, or None
    parts      [B, P]      global part index of each query, int64; -1 = not labelled (ignored), or None
    part_mask  [B, parts]  True where a part belongs to the object's category, or None
    normalization          of the splats, each tensor with a leading B, or None where it is not known
    """

    points: Tensor
    labels: Tensor
    uids: tuple[str, ...]
    queries: Tensor | None = None
    parts: Tensor | None = None
    part_mask: Tensor | None = None
    normalization: Normalization | None = None

    def __len__(self) -> int:
        return len(self.points)

    def to(self, device, non_blocking: bool = False) -> Batch:
        """The same batch on another device."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        movable = {k: v for k, v in values.items() if isinstance(v, Tensor | Normalization)}
        return replace(self, **{k: v.to(device, non_blocking=non_blocking) for k, v in movable.items()})

    def pinned(self) -> Batch:
        """The same batch in memory that a GPU copies from without being waited for."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        tensors = {k: v.pin_memory() for k, v in values.items() if isinstance(v, Tensor | Normalization)}
        return replace(self, **tensors)
