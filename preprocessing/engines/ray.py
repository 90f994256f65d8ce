"""The engine of a Ray cluster (extra `ray`): a Ray Core task per job, with whole or fractional GPUs."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

from gsmae.errors import GsmaeError

from .failures import Nodes, NoWorkers, WorkerDied
from .resources import SHARED_BY, Resources
from .worker import Seat, hidden

log = logging.getLogger(__name__)

J = TypeVar("J")
R = TypeVar("R")

AHEAD = 4  # tasks submitted per slot of the cluster: enough that no slot waits, few enough for 200,000 jobs
NODES = 20  # nodes that may be lost under one job before it is given up
_seat = Seat()  # in a Ray worker: the process that does its jobs


def on_ray(
    work: Callable[[J], R],
    jobs: Sequence[J],
    resources: Resources,
    tick: Callable[[], None] = lambda: None,
    patience: float = 60,
) -> Iterator[tuple[J, R | Exception]]:
    """Work on a Ray cluster; yields (job, result or error) as they are done.

    Each Ray worker keeps a child that does the job and that it ends over a limit. A job whose Ray worker dies is tried
    `resources.tries` times in all; the loss of a node is not counted against it. A job that meets a fault of a GPU is
    given to another node, and a node with nothing but faults gets no more. Every node needs this package in the same
    Python version and the build's folders at the same paths.

    patience  seconds in which nothing ends and nothing is in use before that is told, once
    Raises GsmaeError where Ray is not installed or not reachable, or no node has what one job is to get; NoWorkers
    where no node is left that can work.
    """
    try:
        ray = import_module("ray")
    except ImportError:
        raise GsmaeError("the engine ray needs Ray: pip install 'gsmae[ray]'") from None

    exceptions, options = ray.exceptions, resources.ray
    ours = not ray.is_initialized()
    if ours:
        _connect(ray, resources)
    key = os.urandom(8).hex()
    waiting = Waiting(patience)
    remote = ray.remote(num_cpus=options.cpus, num_gpus=options.gpus, max_retries=0)(_do)
    todo, shared, settings = iter(jobs), ray.put(work), ray.put(resources)
    nodes, nowhere = Nodes(), frozenset[str]()
    running: dict[Any, tuple[J, int, int, frozenset[str]]] = {}

    def submit(job: J, tries: int, lost: int, without: frozenset[str]) -> None:
        task, not_there = remote, without.union(nodes.left_out)
        if not_there:
            task = remote.options(scheduling_strategy=_other_than(not_there))
        running[task.remote(shared, job, settings, key)] = (job, tries, lost, without)

    try:
        check_nodes(ray.nodes(), options.cpus, options.gpus)
        while True:
            room = AHEAD * _slots(ray, options.cpus, options.gpus) - len(running)
            for _, job in zip(range(room), todo, strict=False):
                submit(job, 1, 0, nowhere)
            if not running:
                return
            ended = ray.wait(list(running), num_returns=1, timeout=min(1, patience))[0]
            if waiting.look(bool(ended)):
                waiting.tell(ray.cluster_resources(), ray.available_resources(), len(running))
            for reference in ended:
                job, tries, lost, without = running.pop(reference)
                try:
                    node, result = ray.get(reference)
                except (exceptions.NodeDiedError, exceptions.ObjectLostError) as error:
                    if lost + 1 < NODES:
                        submit(job, tries, lost + 1, without)
                        continue
                    node, result = "", WorkerDied(lost + 1, f"{type(error).__name__}: nodes were lost")
                except (exceptions.WorkerCrashedError, exceptions.OutOfMemoryError) as error:
                    if tries < resources.tries:
                        submit(job, tries + 1, lost, without)
                        continue
                    node, result = "", WorkerDied(tries, type(error).__name__)
                except exceptions.RayError as error:
                    raise GsmaeError(f"Ray: {error}") from error
                if isinstance(result, WorkerDied) and tries < resources.tries:  # the child of a worker of Ray's
                    submit(job, tries + 1, lost, without)
                    continue
                if nodes.elsewhere(node, result, without, lambda: able(ray.nodes(), options.cpus, options.gpus)):
                    submit(job, tries, lost, without | {node})
                    continue
                yield job, WorkerDied(tries, result.what) if isinstance(result, WorkerDied) else result
            tick()
    finally:
        for reference in running:
            ray.cancel(reference, force=True)
        if ours:
            ray.shutdown()


def check_nodes(nodes: Sequence[dict[str, Any]], cpus: float, gpus: float) -> None:
    """Raise GsmaeError where no living node, as `ray.nodes` lists them, has that: Ray would wait for one for ever."""
    if able(nodes, cpus, gpus):
        return
    there = able(nodes, 0, 0).values()
    found = ", ".join(sorted({f"{has.get('CPU', 0):g} CPU and {has.get('GPU', 0):g} GPU" for has in there})) or "none"
    raise GsmaeError(
        f"no node of the Ray cluster has {cpus:g} CPU and {gpus:g} GPU, which --ray.cpus and --ray.gpus ask for one "
        f"worker; nodes have {found}"
    )


def able(nodes: Sequence[dict[str, Any]], cpus: float, gpus: float) -> dict[str, dict[str, float]]:
    """What the living nodes have that have so much, by their names."""
    there = {node["NodeID"]: node.get("Resources", {}) for node in nodes if node.get("Alive", node.get("alive"))}
    return {name: has for name, has in there.items() if has.get("CPU", 0) >= cpus and has.get("GPU", 0) >= gpus}


class Waiting:
    """Tells, once, that nothing runs although jobs were submitted."""

    def __init__(self, patience: float):
        self.patience, self.since, self.told = patience, time.monotonic(), False

    def look(self, ended: bool) -> bool:
        """Whether it is time to see what the cluster does: nothing has ended for a while."""
        if ended:
            self.since = time.monotonic()
        return not self.told and time.monotonic() - self.since >= self.patience

    def tell(self, there: Mapping[str, float], free: Mapping[str, float], jobs: int) -> None:
        """A warning where all of the cluster's processors and GPUs are free, or there are none left."""
        self.since = time.monotonic()
        if any(free.get(name, 0) < there.get(name, 0) for name in ("CPU", "GPU")):
            return  # something runs, and takes its time
        self.told = True
        has = f"{there.get('CPU', 0):g} CPU and {there.get('GPU', 0):g} GPU"
        log.warning("Ray: %d jobs wait and nothing has run for %g s; the cluster has %s", jobs, self.patience, has)


def _connect(ray: Any, resources: Resources) -> None:
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.WARNING}
    address, before = resources.ray.address, Path.cwd()
    if hidden():
        os.chdir(Path(__file__).resolve().parents[2])  # Ray has its workers look first where we are now
    try:
        if address:
            ray.init(address=address, **quiet)
        else:
            cores = max(1, round(resources.workers * resources.ray.cpus))
            ray.init(address="local", num_cpus=cores, include_dashboard=False, **quiet)  # not one that is there
    except (ConnectionError, ValueError, RuntimeError, OSError) as error:
        token = "; where `ray start` told of token authentication, set RAY_AUTH_MODE=token here, too"
        cure = token if address and "RAY_AUTH_MODE" not in os.environ else ""
        raise GsmaeError(f"no Ray cluster at '{address or 'this machine'}': {error}{cure}") from None
    finally:
        os.chdir(before)


def _slots(ray: Any, cpus: float, gpus: float) -> int:
    """Jobs that the cluster can work on side by side now; at least one, so that a lost node is waited for."""
    there = ray.cluster_resources()
    slots = there.get("CPU", 0) / cpus
    if gpus:
        slots = min(slots, there.get("GPU", 0) / gpus)
    return max(1, int(slots))


def _other_than(nodes: frozenset[str]) -> Any:
    """Ray's way to say: anywhere but there."""
    strategies = import_module("ray.util.scheduling_strategies")
    return strategies.NodeLabelSchedulingStrategy({"ray.io/node-id": strategies.NotIn(*sorted(nodes))})


def _do(work: Callable[[Any], Any], job: Any, resources: Resources, key: str) -> tuple[str, Any]:
    """In a Ray worker: this node, and the job's result or NoWorkers, by a child that is kept for the next job.

    Kept for the same build on the same GPUs.
    """
    node = import_module("ray").get_runtime_context().get_node_id()
    once = resources.model_copy(update={"tries": 1})
    sharing = round(1 / resources.ray.gpus) if 0 < resources.ray.gpus < 1 else 1
    where = (key, os.environ.get("CUDA_VISIBLE_DEVICES"))
    try:
        return node, _seat.do(work, job, once, where, {SHARED_BY: str(sharing)})
    except NoWorkers as error:
        return node, error
