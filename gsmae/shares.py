"""Shares of a batch: random draws that come out the same whether a batch is computed in one piece or in several.

A batch may be spread over processes, micro-batches or both. Everything random in a step is drawn for the whole batch,
by every share from the same seed, and a share keeps the rows of its own samples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass, replace

import torch.nn.functional as F
from torch import Tensor, nn

from .batch import Batch


@dataclass(frozen=True)
class Share:
    """Some samples of a batch: which rows of the whole, and how many samples the whole has."""

    rows: slice
    total: int

    def __len__(self) -> int:
        return len(range(*self.rows.indices(self.total)))


_current: Share | None = None  # of this process: a step is computed by one thread


@contextmanager
def working_on(share: Share | None) -> Iterator[None]:
    """What is drawn meanwhile is drawn for a share; None: for a batch that is whole."""
    global _current
    before, _current = _current, share
    try:
        yield
    finally:
        _current = before


def drawn(rows: int, draw: Callable[[int], Tensor]) -> Tensor:
    """`draw(rows)`, or where the samples are a share of a batch, their rows of what `draw` gives for all of it.

    rows  samples, or a multiple where each sample has several rows that lie side by side
    draw  number of rows -> tensor with as many, random; it must take its randomness from a seed that all shares have
    """
    share = _current
    if share is None:
        return draw(rows)
    each, rest = divmod(rows, len(share))
    if rest:
        raise ValueError(f"{rows} rows are drawn for a share of {len(share)} samples")
    return draw(share.total * each).unflatten(0, (share.total, each))[share.rows].flatten(0, 1)


class Dropout(nn.Dropout):
    """Dropout whose draws do not depend on how a batch is divided."""

    def forward(self, input: Tensor) -> Tensor:
        if _current is None or not self.training or self.p == 0:
            return super().forward(input)
        return input * drawn(len(input), lambda n: F.dropout(input.new_ones(n, *input.shape[1:]), self.p))


def divide(batch: Batch, pieces: int, rank: int = 0, world: int = 1) -> list[tuple[Batch, Share]]:
    """Cut a process's batch into at most `pieces` runs of samples, as equal as can be, with their places in the whole.

    rank, world  the batch holds every world-th sample of the whole, from number `rank` on
    """
    count = len(batch)
    pieces = min(pieces, count)
    ends = [count * i // pieces for i in range(pieces + 1)]
    found = []
    for first, end in zip(ends, ends[1:], strict=False):
        share = Share(slice(first * world + rank, (end - 1) * world + rank + 1, world), count * world)
        found.append((_samples(batch, slice(first, end)) if pieces > 1 else batch, share))
    return found


def _samples(batch: Batch, rows: slice) -> Batch:
    values = {f.name: getattr(batch, f.name) for f in fields(batch)}
    return replace(batch, **{name: _cut(value, rows, name == "uids") for name, value in values.items()})


def _cut(value, rows: slice, of_samples: bool = False):
    if isinstance(value, Tensor) or of_samples:
        return value[rows]
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{f.name: _cut(getattr(value, f.name), rows) for f in fields(value)})
    return value
