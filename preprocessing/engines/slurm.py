"""The engine of a Slurm cluster (extra `slurm`): submitit arrays over shards of the jobs, in their order."""

from __future__ import annotations

import logging
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from gsmae.errors import GsmaeError

from .failures import NoWorkers, WorkerDied
from .local import local
from .resources import Resources, SlurmOptions, side_by_side

log = logging.getLogger(__name__)

J = TypeVar("J")
R = TypeVar("R")

ARRAY = 1000  # tasks in one array; Slurm's own default limit is 1001
SMALLER = 10  # a task that dies is submitted again in so many pieces
REQUEUES = 5  # times that a task goes on after its time limit; then it counts as dead, and is submitted in pieces
SHARE = 0.8  # of a task's time that one job may take: the job that hangs ends, and not each task that it is in
UNSOLVABLE = re.compile(  # reasons of a pending task that no waiting changes, as `squeue` writes them
    "held|Held|BadConstraints|Invalid(Account|QOS)|DependencyNeverSatisfied|Partition(Node|Time)Limit|PartitionInactive"
    "|PartitionDown|(QOS|Assoc)Max\\w+Per(Job|Node)|AccountNotAllowed|QOSNotAllowed|MaxMemPerLimit"
)
OVER = {"CANCELLED", "COMPLETED", "FAILED", "TIMEOUT", "NODE_FAIL", "PREEMPTED", "OUT_OF_MEMORY", "DEADLINE",
        "BOOT_FAIL", "REVOKED"}  # fmt: skip


class Task:
    """One array task: a shard of jobs, worked on side by side by the local engine.

    settle  (job, result or error) -> what is told of it; called here and at once, so that what was decided about a job
            is not lost with the task
    """

    def __init__(self, settle: Callable[[Any, Any], Any] | None = None):
        self.settle = settle

    def __call__(self, work: Callable[[J], R], jobs: Sequence[J], resources: Resources) -> list[tuple[int, Any]]:
        """The jobs' places in `jobs`, with their results or errors."""
        places = {id(job): i for i, job in enumerate(jobs)}
        found: list[tuple[int, Any]] = []
        try:
            for job, result in local(work, jobs, resources):
                found.append((places[id(job)], self.settled(job, result)))
        except NoWorkers as error:  # by itself, because submitit would tell its text alone
            found.append((-1, error))
        return found

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
    result is WorkerDied. Tasks are cancelled when the caller stops. Raises GsmaeError where submitit or Slurm is
    missing, Slurm refuses the submission, or somebody has cancelled all tasks there were.
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
    waiting = [(shard, 0) for shard in shards(jobs, options.shard)]
    running: dict[Any, tuple[Sequence[J], int]] = {}
    queue = Queue(Path(folder), patience)
    try:
        while waiting or running:
            room = min(options.parallel - len(running), ARRAY)
            if waiting and room > 0:
                now, waiting = waiting[:room], waiting[room:]
                given = [(work, list(shard), inside) for shard, _ in now]
                try:
                    tasks = executor.map_array(Task(settle), *zip(*given, strict=True))
                except FailedJobError as error:
                    raise GsmaeError(f"Slurm refused the tasks: {error}") from None
                running.update(zip(tasks, now, strict=True))
                continue
            if options.cluster == "local":
                ended = [task for task in running if task.done()]
            else:
                ended = queue.ended(list(running))
            for task in ended:
                shard, deaths = running.pop(task)
                error = None if task.paths.result_pickle.exists() else "it left no result"
                error = error or task.exception()
                if error is None:
                    for place, result in task.result():
                        if isinstance(result, NoWorkers):  # the same again would end the same
                            raise result
                        yield shard[place], result
                elif len(shard) > 1:
                    log.warning("task %s died (%s): its %d jobs again", task.job_id, _line(error), len(shard))
                    waiting += [(piece, deaths + 1) for piece in shards(shard, -(-len(shard) // SMALLER))]
                else:
                    yield shard[0], WorkerDied(deaths + 1, f"Slurm task {task.job_id}: {_line(error)}")
            tick()
            if running and not ended:
                time.sleep(options.poll)
    finally:
        for task in running:
            task.cancel(check=False)


class Queue:
    """What `squeue` says of our tasks; submitit would ask `sacct`, which many clusters do not have.

    patience  as `on_slurm`
    """

    def __init__(self, folder: Path, patience: float):
        self.folder, self.patience = folder, patience
        self.absent: dict[str, float] = {}  # task -> when it was first found gone
        self.cancelled: set[str] = set()
        self.warned: set[str] = set()

    def ended(self, tasks: list[Any]) -> list[Any]:
        """Tasks with a result, and those that have been gone without one for long enough.

        Warns once of each reason for which a task will not start; GsmaeError where all tasks were cancelled.
        """
        alive = self._alive(tasks)
        list(self.folder.iterdir())  # a network file system's client then looks for what it believed was not there
        done = [task for task in tasks if task.paths.result_pickle.exists()]
        now = time.monotonic()
        gone = {task.job_id for task in tasks if task not in done and task.job_id not in alive}
        self.absent = {name: self.absent.get(name, now) for name in gone}
        dead = [task for task in tasks if task.job_id in gone and now - self.absent[task.job_id] >= self.patience]
        if dead and not done and all(task.job_id in self.cancelled for task in tasks):
            which = ", ".join(sorted({task.job_id.partition("_")[0] for task in tasks}))
            raise GsmaeError(f"the tasks were cancelled (scancel of {which}): run the same command to go on")
        return done + dead

    def _alive(self, tasks: list[Any]) -> set[str]:
        """Names of tasks that wait or run; all of them where Slurm does not answer."""
        names = {task.job_id for task in tasks}
        command = ["squeue", "-h", "-r", "-t", "all", "-o", "%i|%F_%K|%T|%r", "--me"]
        here = subprocess.run(command, capture_output=True, text=True)
        if here.returncode:
            return names
        alive = set()
        for line in here.stdout.splitlines():
            one, element, state, reason = (*line.strip().split("|", 3), "", "", "")[:4]
            ours = names & {one, element}
            if state == "CANCELLED":
                self.cancelled |= ours
            if state in OVER:
                continue
            alive |= ours
            if ours and state == "PENDING" and UNSOLVABLE.search(reason) and reason not in self.warned:
                self.warned.add(reason)
                log.warning("Slurm task %s waits, and will not start by itself: %s", min(ours), reason)
        return alive


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
    more: dict[str, Any] = {"requeue": True, **options.extra}
    given: dict[str, Any] = {
        "name": "gsmae", "timeout_min": options.minutes, "cpus_per_task": options.cpus, "tasks_per_node": 1, "nodes": 1,
        "slurm_array_parallelism": options.parallel, "slurm_partition": options.partition,
        "slurm_account": options.account, "slurm_qos": options.qos, "slurm_constraint": options.constraint,
        "gpus_per_node": options.gpus, "mem_gb": options.memory, "slurm_setup": list(options.setup),
    }  # fmt: skip
    # since Slurm 22.05 a step does not get its job's cores by itself
    step = ["--cpus-per-task", str(options.cpus)]
    executor.update_parameters(
        **{k: v for k, v in given.items() if v}, slurm_srun_args=step, slurm_additional_parameters=more
    )
    return executor


def _line(error: object) -> str:
    """The first line of an error that says something."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
