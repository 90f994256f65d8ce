"""The engine of a Slurm cluster (extra `slurm`): submitit arrays over shards of the jobs, in their order."""

from __future__ import annotations

import logging
import os
import shutil
import socket
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from gsmae.errors import GsmaeError

from .failures import Nodes, NoWorkers, WorkerDied, is_fault, line
from .local import local
from .resources import Resources, SlurmOptions, side_by_side
from .slurm_queue import Queue

log = logging.getLogger(__name__)

J = TypeVar("J")
R = TypeVar("R")

ARRAY = 1000  # tasks in one array; Slurm's own default limit is 1001
SMALLER = 10  # a task that dies is submitted again in so many pieces
REQUEUES = 5  # times that a task goes on after its time limit; then it counts as dead, and is submitted in pieces
SHARE = 0.8  # of a task's time that one job may take: the job that hangs ends, and not each task that it is in


@dataclass(frozen=True, eq=False)
class Shard:
    """The jobs of one task.

    deaths   tasks that have died under them
    without  nodes that have failed under them
    error    what they ended with there
    """

    jobs: Sequence[Any]
    deaths: int = 0
    without: frozenset[str] = frozenset()
    error: Exception | None = None


@dataclass(frozen=True)
class Told:
    """What a task tells when it ends.

    node     where it ran, as Slurm calls it; empty where Slurm has no part in it
    results  places of jobs in their shard, with their results or errors
    useless  why no more could be done there
    """

    node: str
    results: list[tuple[int, Any]]
    useless: NoWorkers | None = None


class Task:
    """One array task: a shard of jobs, worked on side by side by the local engine.

    settle  (job, result or error) -> what is told of it; called here and at once, so that what was decided about a job
            is not lost with the task. Of a fault of a GPU nothing is decided yet: another node may try the job
    """

    def __init__(self, settle: Callable[[Any, Any], Any] | None = None):
        self.settle = settle

    def __call__(self, work: Callable[[J], R], jobs: Sequence[J], resources: Resources) -> Told:
        """The jobs done, or as many as this node can do."""
        places = {id(job): i for i, job in enumerate(jobs)}
        found: list[tuple[int, Any]] = []
        node = os.environ.get("SLURMD_NODENAME", "")
        try:
            for job, result in local(work, jobs, resources):
                undecided = node and is_fault(result)
                found.append((places[id(job)], result if undecided else self.settled(job, result)))
        except NoWorkers as error:  # not raised, because submitit would tell its text alone
            return Told(node, found, error)
        return Told(node, found)

    def settled(self, job: Any, result: Any) -> Any:
        """What is told of a job's result, or the error that came of telling it."""
        if self.settle is None:
            return result
        try:
            return self.settle(job, result)
        except Exception as error:
            if isinstance(error, OSError):
                error.host = socket.gethostname()  # type: ignore[attr-defined]
            return error

    def checkpoint(self, *args: Any) -> Any:
        """Called by submitit before Slurm ends the task: the same again, because what is done is on the disk."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self, *args)


def on_slurm(
    work: Callable[[J], R],
    jobs: Sequence[J],
    resources: Resources,
    tick: Callable[[], None] = lambda: None,
    folder: str | Path = "slurm",
    settle: Callable[[J, Any], Any] | None = None,
    patience: float = 60,
) -> Iterator[tuple[J, R | Exception]]:
    """Work in Slurm array tasks; yields (job, result or error) as their tasks end.

    folder    for submitit's scripts and logs, seen by every node
    settle    of `Task`
    patience  seconds for which a task without a result must be gone from Slurm's queue before it is taken for dead:
              what a node wrote last may come late over a network file system
    No job may take longer than most of a task's time. A preempted task is requeued by Slurm and goes on where it
    stopped. The jobs of a task that died are submitted again in smaller shards, until a job that is alone dies: its
    result is WorkerDied. A job that meets a fault of a GPU is given to another node, and a node with nothing but faults
    gets no more. Tasks are cancelled when the caller stops. Raises GsmaeError where submitit or Slurm is missing, Slurm
    refuses the submission, or somebody has cancelled all tasks there were; NoWorkers where no node can work.
    """
    try:
        import submitit
        from submitit.core.utils import FailedJobError
    except ImportError:
        raise GsmaeError("the engine slurm needs submitit: pip install 'gsmae[slurm]'") from None
    options = resources.slurm
    if options.cluster == "slurm" and not shutil.which("sbatch"):
        raise GsmaeError("the engine slurm needs Slurm's commands here: sbatch is not in PATH")
    executor = _executor(submitit, options, Path(folder))
    workers = side_by_side(resources.device, options.cpus, options.gpus)
    inside = resources.model_copy(update={"workers": workers, "longest": SHARE * 60 * options.minutes})
    waiting = [Shard(part) for part in shards(jobs, options.shard)]
    running: dict[Any, Shard] = {}
    queue, nodes = Queue(Path(folder), patience), Nodes()
    try:
        while waiting or running:
            room = min(options.parallel - len(running), ARRAY)
            if waiting and room > 0:
                without = waiting[0].without
                now = [shard for shard in waiting if shard.without == without][:room]
                waiting = [shard for shard in waiting if shard not in now]
                _avoid(executor, options, without.union(nodes.left_out))
                given = [(work, list(shard.jobs), inside) for shard in now]
                try:
                    tasks = executor.map_array(Task(settle), *zip(*given, strict=True))
                except FailedJobError as error:
                    yield from _nowhere_else(now, error, nodes)
                    continue
                running.update(zip(tasks, now, strict=True))
                continue
            if options.cluster == "local":
                ended = [task for task in running if task.done()]
            else:
                ended = queue.ended(list(running))
            for task in ended:
                shard = running.pop(task)
                error = None if task.paths.result_pickle.exists() else "it left no result"
                error = error or task.exception()
                if error is None:
                    told, again = _sorted(shard, task.result(), nodes)
                    waiting += again
                    yield from told
                elif len(shard.jobs) > 1:
                    log.warning("task %s died (%s): its %d jobs again", task.job_id, line(error), len(shard.jobs))
                    pieces = shards(shard.jobs, -(-len(shard.jobs) // SMALLER))
                    waiting += [replace(shard, jobs=piece, deaths=shard.deaths + 1) for piece in pieces]
                else:
                    died = WorkerDied(shard.deaths + 1, f"Slurm task {task.job_id}: {line(error)}")
                    yield shard.jobs[0], died
            tick()
            if running and not ended:
                time.sleep(options.poll)
    finally:
        for task in running:
            task.cancel(check=False)


def _sorted(shard: Shard, told: Told, nodes: Nodes) -> tuple[list[tuple[Any, Any]], list[Shard]]:
    """What a task tells of its jobs, as (job, result or error), and what of it is to be tried on another node.

    Raises NoWorkers where no node can do it.
    """
    if told.useless is not None and not told.node:  # on this machine the same again would end the same
        raise told.useless
    without = shard.without | {told.node}
    kept, again = [], []
    rest = dict(enumerate(shard.jobs))
    for place, result in told.results:
        if told.useless is not None and is_fault(result):
            continue  # of the node, too
        job = rest.pop(place)
        if told.node and nodes.elsewhere(told.node, result, shard.without):
            again.append(replace(shard, jobs=[job], without=without, error=result))
        else:
            kept.append((job, result))
    if told.useless is not None and nodes.elsewhere(told.node, told.useless, shard.without):
        again.append(replace(shard, jobs=list(rest.values()), without=without, error=told.useless))
    return kept, again


def _nowhere_else(now: list[Shard], refusal: Exception, nodes: Nodes) -> Iterator[tuple[Any, Exception]]:
    """What becomes of shards that Slurm refuses: where only their node had to be left out, their fault is their own.

    Raises GsmaeError where it is not that.
    """
    for shard in now:
        if shard.error is None or isinstance(shard.error, NoWorkers):
            why = "".join(f"; left out: {reason}" for reason in nodes.left_out.values())
            raise GsmaeError(f"Slurm refused the tasks: {line(refusal)}{why}") from None
        yield from ((job, shard.error) for job in shard.jobs)


def shards(jobs: Sequence[J], size: int) -> list[Sequence[J]]:
    """The jobs in their order, `size` at a time."""
    return [jobs[i : i + size] for i in range(0, len(jobs), size)]


def _executor(submitit: Any, options: SlurmOptions, folder: Path) -> Any:
    """submitit's executor with what the options say."""
    folder.mkdir(parents=True, exist_ok=True)
    if options.cluster == "local":
        executor = submitit.AutoExecutor(folder=folder, cluster="local")
        executor.update_parameters(timeout_min=options.minutes, cpus_per_task=options.cpus)
        return executor
    executor = submitit.AutoExecutor(folder=folder, cluster="slurm", slurm_max_num_timeout=REQUEUES)
    given: dict[str, Any] = {
        "name": "gsmae", "timeout_min": options.minutes, "cpus_per_task": options.cpus, "tasks_per_node": 1, "nodes": 1,
        "slurm_array_parallelism": options.parallel, "slurm_partition": options.partition,
        "slurm_account": options.account, "slurm_qos": options.qos, "slurm_constraint": options.constraint,
        "gpus_per_node": options.gpus, "mem_gb": options.memory, "slurm_setup": list(options.setup),
    }  # fmt: skip
    # since Slurm 22.05 a step does not get its job's cores by itself
    step = ["--cpus-per-task", str(options.cpus)]
    executor.update_parameters(**{k: v for k, v in given.items() if v}, slurm_srun_args=step)
    return executor


def _avoid(executor: Any, options: SlurmOptions, nodes: Collection[str]) -> None:
    """Have what is submitted from now on requeued when it is preempted, and run anywhere but on these nodes."""
    if options.cluster == "local":
        return
    more: dict[str, Any] = {"requeue": True, **options.extra}
    if nodes:
        more["exclude"] = ",".join(filter(None, [options.extra.get("exclude", ""), *sorted(nodes)]))
    executor.update_parameters(slurm_additional_parameters=more)
