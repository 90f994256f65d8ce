"""What one object may take, and what happens when it takes more. None of it is part of a build's configuration, but
for a lowered cap on Gaussians, which is in the object's record."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, TypeVar

from pydantic import Field

from gsmae.config import Config
from gsmae.errors import GsmaeError

from ..faults import is_out_of_memory
from ..formats.assets import Limits
from ..profiles import FitConfig

J = TypeVar("J")
R = TypeVar("R")

FLOOR = 500  # Gaussians; below this a fit that runs out of memory is given up


class ObjectLimits(Config):
    """Limits of one object; over them it fails with a record that says so, and the build goes on."""

    seconds: Annotated[float, Field(ge=0)] = 0
    """wall-clock time; 0 = any"""
    memory: Annotated[float, Field(ge=0)] = 0
    """GB of the worker; 0 = any"""
    faces: Annotated[int, Field(ge=1)] = Limits.faces
    """triangles of the mesh"""
    side: Annotated[int, Field(ge=1)] = Limits.side
    """pixels of a texture's longer side"""
    texels: Annotated[int, Field(ge=1)] = Limits.texels
    """pixels of all textures together"""

    @property
    def mesh(self) -> Limits:
        """Those that the readers of meshes keep."""
        return Limits(self.faces, self.side, self.texels)


class OutOfMemory(GsmaeError):
    """A fit ran out of memory even alone and with the fewest Gaussians."""


def within_memory(
    run: Callable[[Sequence[J], int], Sequence[R]], jobs: Sequence[J], batch: int, cap: int, floor: int = FLOOR
) -> Iterator[tuple[J, R | OutOfMemory, int]]:
    """Run jobs in batches; yields (job, result or OutOfMemory, cap) in the jobs' order.

    run    (jobs of one batch, cap on Gaussians) -> their results, in order
    Out of memory, the batch is halved, for all that follow too. A job that is alone is given half the cap, again and
    again for as long as it is at least `floor`; the next job starts with the whole cap. Other errors are the caller's.
    """
    at = 0
    while at < len(jobs):
        some, allowed = jobs[at : at + batch], cap
        while True:
            try:
                results: Sequence[R | OutOfMemory] = run(some, allowed)
                break
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            _let_go()
            if len(some) > 1:
                batch = max(1, len(some) // 2)
                some = jobs[at : at + batch]
            elif allowed // 2 >= floor:
                allowed //= 2
            else:
                results = [OutOfMemory(f"oom: out of memory even with at most {allowed} Gaussians: {reason}")]
                break
        yield from ((job, result, allowed) for job, result in zip(some, results, strict=True))
        at += len(some)


def capped(config: FitConfig, cap: int) -> FitConfig:
    """The configuration of a fit with at most `cap` Gaussians; itself where it asks for no more."""
    return config if cap >= config.cap else config.model_copy(update={"cap": cap, "initial": min(config.initial, cap)})


def _let_go() -> None:
    """Give back what the failed attempt held, so that the next one has it."""
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()
