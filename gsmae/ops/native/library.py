"""Finds, checks and loads the compiled kernels of csrc/, once per process.

Setup builds up to three variants of one library: `baseline`, which runs on any processor of the architecture, `avx2`
and `avx512`. The processor decides at load time. Without a usable library `available()` is false, a single warning is
logged, and gsmae.ops uses its plain torch twins.
"""

import contextlib
import ctypes
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

ABI = 4  # GSMAE_ABI in csrc/common.h
FOLDER = Path(__file__).parent
VARIANTS = ["baseline", "avx2", "avx512"]  # by gsmae_level in csrc/library.cpp
REFERENCE = "reference"  # the variant that stands for "no library"

_log = logging.getLogger(__name__)
_TYPES = {"p": ctypes.c_void_p, "i": ctypes.c_int32, "l": ctypes.c_int64, "f": ctypes.c_float, "d": ctypes.c_double}


class Library:
    """One loaded variant; calling `kernel` binds an exported function."""

    def __init__(self, variant: str, handle: ctypes.CDLL):
        self.variant = variant
        self._handle = handle
        self._kernels: dict[str, Callable[..., Any]] = {}

    def kernel(self, name: str, arguments: str, result: str = "") -> Callable[..., Any]:
        """The exported function `name`; its C types as letters: p pointer, i int32, l int64, f float, d double."""
        found = self._kernels.get(name)
        if found is None:
            found = getattr(self._handle, name)
            found.argtypes = [_TYPES[letter] for letter in arguments]
            found.restype = _TYPES[result] if result else None
            self._kernels[name] = found
        return found


class _State:
    loaded: dict[str, Library | None] = {}
    chosen: str | None = None  # what the processor gets, once asked
    forced: str | None = None
    threads: int | None = None


def library() -> Library:
    """The library in use; RuntimeError when there is none (ask `available` first)."""
    found = _current()
    if found is None:
        raise RuntimeError("gsmae.ops.native: no compiled kernels; reinstall gsmae on a machine with a C++ compiler")
    return found


def available() -> bool:
    """Whether compiled kernels can be used in this process."""
    return _current() is not None


def variant() -> str:
    """Name of the variant in use: one of VARIANTS, or "reference" when there is no library."""
    found = _current()
    return REFERENCE if found is None else found.variant


def variants() -> list[str]:
    """The variants that this machine can load, fastest first."""
    baseline = _load("baseline")
    if baseline is None:
        return []
    level = baseline.kernel("gsmae_level", "", "i")()
    return [name for name in reversed(VARIANTS[: level + 1]) if _load(name) is not None]


@contextlib.contextmanager
def using(name: str) -> Iterator[None]:
    """Inside the block, use this variant ("reference": none) instead of the one the processor would get."""
    if name != REFERENCE and name not in variants():
        raise ValueError(f"kernel variant {name!r} cannot be loaded here; there are {[*variants(), REFERENCE]}")
    before, _State.forced = _State.forced, name
    try:
        yield
    finally:
        _State.forced = before


def set_threads(count: int | None) -> None:
    """Number of threads that kernels use; None (the default) follows torch.get_num_threads()."""
    if count is not None and count < 1:
        raise ValueError(f"threads must be at least 1, not {count}")
    _State.threads = count


def threads() -> int:
    """Number of threads that kernels use."""
    return torch.get_num_threads() if _State.threads is None else _State.threads


def _current() -> Library | None:
    if _State.forced is not None:
        return None if _State.forced == REFERENCE else _load(_State.forced)
    if _State.chosen is None:
        names = variants()
        _State.chosen = names[0] if names else REFERENCE
        if not names:
            _log.warning("no compiled kernels in %s: using plain torch, which is much slower", FOLDER)
    return None if _State.chosen == REFERENCE else _load(_State.chosen)


def _load(name: str) -> Library | None:
    if name not in _State.loaded:
        _State.loaded[name] = _open(name)
    return _State.loaded[name]


def _open(name: str) -> Library | None:
    path = FOLDER / f"_kernels_{name}.so"
    if not path.exists():
        return None
    try:
        found = Library(name, ctypes.CDLL(str(path)))
        abi = found.kernel("gsmae_abi", "", "i")()
    except (OSError, AttributeError) as error:
        _log.warning("%s cannot be loaded (%s): reinstall gsmae", path, error)
        return None
    if abi != ABI:
        _log.warning("%s is of version %s, this gsmae needs %s: reinstall gsmae (pip install -e .)", path, abi, ABI)
        return None
    return found
