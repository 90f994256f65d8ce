"""NVIDIA Warp, started quietly, its work put on torch's streams."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from ...errors import GsmaeError

BLOCK = 256  # threads of a block: one for each pixel of a tile
_streams: dict[tuple[int, int], Any] = {}


def installed() -> bool:
    """Whether the package is there; it is not loaded by asking."""
    return find_spec("warp") is not None


def usable(*tensors: Tensor | None) -> bool:
    """Whether the batched kernels should take these tensors: float32 on a GPU that torch and Warp both see."""
    given = [t for t in tensors if t is not None]
    if not given or any(t.dtype != torch.float32 or t.device.type != "cuda" for t in given):
        return False
    return torch.version.cuda is not None and installed() and warp().is_cuda_available()


def warp() -> Any:
    """The module warp, started; its kernels are kept in the user's cache folder. GsmaeError where it is missing."""
    try:
        wp = importlib.import_module("warp")
    except ImportError:
        raise GsmaeError("drawing by NVIDIA Warp needs its package: pip install 'gsmae[gpu]'") from None
    with quiet(wp):
        wp.init()
    return wp


def kernels(name: str) -> Any:
    """One of this package's modules of kernels: "project", "bins", "blend", "pictures", "points" or "steps"."""
    warp()
    return importlib.import_module(f".kernels_{name}", __package__)


@contextmanager
def on(device: torch.device) -> Iterator[Any]:
    """Work of Warp goes to torch's current stream of a device, and needs no waiting; yields the module warp.

    Nothing is synchronised on the way in or out, so that a CUDA graph can be captured around it.
    """
    wp = warp()
    if device.type == "cpu":
        with quiet(wp):
            yield wp
        return
    with quiet(wp), wp.ScopedStream(stream(torch.cuda.current_stream(device)), sync_enter=False, sync_exit=False):
        yield wp


def stream(of_torch: Any) -> Any:
    """Warp's name for a stream of torch, the same one every time."""
    key = of_torch.device.index, of_torch.cuda_stream
    if key not in _streams:
        _streams[key] = warp().stream_from_torch(of_torch)
    return _streams[key]


def launch(wp: Any, kernel: Any, threads: int, device: torch.device, *arguments: Any) -> None:
    """One thread for each index; tensors become arrays of the kernel's types, without a copy."""
    if threads == 0:
        return
    if threads >= 2**31:
        raise ValueError(f"{threads} threads in one launch: draw fewer objects, views or pixels at once")
    given = []
    for argument, wanted in zip(arguments, kernel.adj.args, strict=True):
        if isinstance(argument, Tensor):
            argument = wp.from_torch(argument, dtype=wanted.type.dtype, requires_grad=False, return_ctype=True)
        given.append(argument)
    place = "cpu" if device.type == "cpu" else f"cuda:{device.index or 0}"
    wp.launch(kernel, dim=threads, inputs=given, device=place, block_dim=BLOCK)


@contextmanager
def quiet(wp: Any) -> Iterator[None]:
    """Warp tells of its start and of every compilation; what it warns of still comes through."""
    name, value = ("log_level", wp.LOG_WARNING) if hasattr(wp.config, "log_level") else ("quiet", True)
    before = getattr(wp.config, name)
    setattr(wp.config, name, value)
    try:
        yield
    finally:
        setattr(wp.config, name, before)
