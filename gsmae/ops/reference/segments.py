"""Sums, means, maxima and minima over segments of rows."""

from __future__ import annotations

from importlib import import_module
from typing import Literal, get_args

from torch import Tensor

from ...errors import GsmaeError

Reduce = Literal["sum", "mean", "max", "min"]


def segment_reduce(values: Tensor, index: Tensor, count: int, reduce: Reduce = "sum", engine: str = "torch") -> Tensor:
    """Combine the rows that share a segment; a segment without rows is zero.

    values   [N, ...] floating point
    index    [N] int64, the segment of each row, 0..count - 1, in any order
    count    number of segments
    engine   a key of ENGINES; all give equal values (gradients of tied maxima may differ)
    returns  [count, ...]
    """
    if reduce not in get_args(Reduce):
        raise ValueError(f"segment_reduce: reduce is '{reduce}'; known: {', '.join(get_args(Reduce))}")
    if engine not in ENGINES:
        raise ValueError(f"segment_reduce: engine is '{engine}'; known: {', '.join(ENGINES)}")
    if index.shape != values.shape[:1]:
        raise ValueError(f"segment_reduce: {tuple(index.shape)} indices for {values.shape[0]} rows")
    return ENGINES[engine](values, index, count, reduce)


def _torch(values: Tensor, index: Tensor, count: int, reduce: Reduce) -> Tensor:
    out = values.new_zeros(count, *values.shape[1:])
    if reduce == "sum":
        return out.index_add(0, index, values)
    rows = index.reshape(-1, *[1] * (values.ndim - 1)).expand_as(values)
    name = {"mean": "mean", "max": "amax", "min": "amin"}[reduce]
    return out.scatter_reduce(0, rows, values, name, include_self=False)


def _torch_scatter(values: Tensor, index: Tensor, count: int, reduce: Reduce) -> Tensor:
    try:
        scatter = import_module("torch_scatter")
    except ImportError:
        raise GsmaeError(
            "torch-scatter is not installed: pip install --no-build-isolation 'gsmae[scatter]', or engine='torch'"
        ) from None
    return scatter.scatter(values, index, dim=0, dim_size=count, reduce=reduce)


ENGINES = {"torch": _torch, "torch_scatter": _torch_scatter}
