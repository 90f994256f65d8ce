"""What the builder does with an engine: jobs out, records in, and again what one job or one node spoilt for others."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from gsmae.errors import InputError
from gsmae.progress import bar

from ..engines import ENGINES, Resources
from ..sources import MeshItem
from . import ledgers, notes
from .jobs import build_objects, settle
from .records import MAX_TRIES, Order

log = logging.getLogger(__name__)

Job = tuple[MeshItem, ...]


def worked(
    engine: str,
    order: Order,
    todo: list[MeshItem],
    resources: Resources,
    *,
    batch: int = 1,
    tried: Mapping[str, int] | None = None,
    already: int = 0,
    told: Callable[[], str] = lambda: "",
) -> Iterator[dict[str, Any]]:
    """The records of the objects as the engine gets them done, with a bar.

    batch    objects in one job
    tried    uid -> how often an object has failed before; a worker may die under it only as often as is left of
             MAX_TRIES, but once in any case
    already  objects that the bar begins with
    told     what else it says
    A batch that fails as a whole is taken apart: one of its objects is at fault, and takes no other with it when it is
    alone. What one host of a cluster cannot read or write, others are given; OSError where a second host cannot either,
    or it cannot be done again. Raises InputError where another build takes over.
    """
    shown = bar("build", "object", total=already + len(todo), initial=already, smoothing=0.05)
    follower, seen, ended = ledgers.Follower(order.out), 0, 0

    def tick() -> None:  # a Slurm task tells nothing until it ends, but its workers' ledgers do
        nonlocal seen
        if engine == "slurm":
            seen += len(follower.look())
            shown.update(max(0, already + seen - shown.n))

    spent: dict[str, int] = {}
    left: list[Job] = [tuple(todo[i : i + batch]) for i in range(0, len(todo), batch)]
    hosts: set[str] = set()  # that could not read or write
    spoilt: list[Job] = []
    try:
        while left or spoilt:
            groups, again = _alike(left + spoilt, tried or {}, spent), bool(spoilt)
            left, spoilt = [], []
            now = replace(order, spent=dict(spent))
            more = {"folder": order.out / "slurm", "settle": partial(settle, order=now)} if engine == "slurm" else {}
            work = partial(build_objects, order=now)
            for (size, tries), jobs in groups.items():
                for job, result in ENGINES[engine](work, jobs, _given(resources, size, tries), tick, **more):
                    if isinstance(result, notes.Superseded):
                        cause = "another build has taken over this folder"
                        raise InputError(order.out, cause, "stop it, or wait for it")
                    if isinstance(result, OSError):
                        host = getattr(result, "host", "")
                        hosts.add(host)
                        if engine == "local" or again or len(hosts) > 1:
                            raise result
                        log.warning("%s: %s; its objects are given to others", host, result)
                        spoilt.append(job)
                        continue
                    if isinstance(result, Exception) and len(job) > 1:
                        left += [(item,) for item in job]
                        deaths = int(getattr(result, "tries", 1))
                        spent |= {item.uid: spent.get(item.uid, 0) + deaths for item in job}
                        continue
                    for record in settle(job, result, now):
                        ended += 1
                        yield record
                        shown.update(max(0, already + ended - shown.n))
                        shown.set_postfix_str(f"{record['uid']}{told()}", refresh=False)
    finally:
        shown.close()


def _alike(jobs: list[Job], tried: Mapping[str, int], spent: Mapping[str, int]) -> dict[tuple[int, int], list[Job]]:
    """(objects in a job, how often it may be begun) -> jobs; a batch once, for its objects are then begun alone."""
    groups: dict[tuple[int, int], list[Job]] = defaultdict(list)
    largest = max(map(len, jobs))
    for job in jobs:
        before = tried.get(job[0].uid, 0) + spent.get(job[0].uid, 0)
        groups[(1, max(1, MAX_TRIES - before)) if len(job) == 1 else (largest, 1)].append(job)
    return groups


def _given(resources: Resources, size: int, tries: int) -> Resources:
    """What is meant for objects, for jobs of so many; `tries` only lowers what the resources say."""
    slurm = resources.slurm.model_copy(update={"shard": max(1, resources.slurm.shard // size)})
    tries = min(tries, resources.tries)
    return resources.model_copy(update={"tries": tries, "slurm": slurm})
