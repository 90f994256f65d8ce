"""Operations on many objects at once, and the sets of kernels that do them. `BACKENDS` is the registry.

each      one object after the other, by the fastest kernels for one: the compiled ones on the CPU
warp      all objects in one launch, by NVIDIA Warp; on the CPU one slow thread, for tests
gsplat    all objects in one launch, by gsplat; only on a GPU
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..errors import GsmaeError, nearest_name
from . import reference, warp


class Backend(NamedTuple):
    """Twins of gsmae.ops.reference.batches and steps.

    static   whether a call with a `capacity` waits for nothing, so that it can be captured as a CUDA graph
    """

    name: str
    rasterize_many: Callable[..., tuple[Tensor, Tensor]]
    contributions_many: Callable[..., Tensor]
    l1_ssim_many: Callable[..., Tensor]
    adam_many: Callable[..., None]
    static: bool


def backend(name: str, device: torch.device | str) -> Backend:
    """A set of kernels for tensors on a device; "auto" is warp on a GPU, each on the CPU.

    Raises GsmaeError for a name that is not known, or a set that cannot work there.
    """
    if name == "auto":
        name = "warp" if torch.device(device).type == "cuda" else "each"
    if name not in BACKENDS:
        raise GsmaeError(f"no set of kernels '{name}' ({nearest_name(name, BACKENDS)})")
    return BACKENDS[name]()


def _each() -> Backend:
    ops: Any = importlib.import_module("gsmae.ops")
    plain = reference.batches
    return Backend(
        "each", partial(plain.rasterize_many, one=ops.rasterize),
        partial(plain.contributions_many, one=ops.contributions), partial(plain.l1_ssim_many, one=ops.l1_ssim),
        reference.steps.adam_many, False,
    )  # fmt: skip


def _warp() -> Backend:
    warp.runtime.warp()  # the error that names the extra comes here
    return Backend(
        "warp",
        warp.splats.rasterize_many,
        warp.splats.contributions_many,
        warp.images.l1_ssim_many,
        warp.steps.adam_many,
        True,
    )


def _gsplat() -> Backend:
    from . import gsplat

    gsplat.prepare()
    ours = warp.runtime.installed()
    loss = warp.images.l1_ssim_many if ours else reference.batches.l1_ssim_many
    adam = warp.steps.adam_many if ours else reference.steps.adam_many
    return Backend("gsplat", gsplat.rasterize_many, gsplat.contributions_many, loss, adam, False)


BACKENDS: dict[str, Callable[[], Backend]] = {"each": _each, "warp": _warp, "gsplat": _gsplat}
