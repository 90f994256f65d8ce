"""The engine of a Slurm cluster (extra `slurm`): submitit arrays over shards of the jobs, in their order."""

from __future__ import annotations

import logging
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from gsmae.errors import GsmaeError

from .local import local
from .resources import Resources, SlurmOptions
from .worker import WorkerDied

log = logging.getLogger(__name__)

J = TypeVar("J")
R = TypeVar("R")

ARRAY = 1000  # tasks in one array; Slurm's own default limit is 1001
SMALLER = 10  # a task that dies is submitted again in so many pieces


class Task:
    """One array task: a shard of jobs, worked on side by side by the local engine."""

    def __call__(self, work: Callable[[J], R], jobs: Sequence[J], resources: Resources) -> list[tuple[int, Any]]:
        """The jobs' places in `jobs`, with their results or errors."""
        places = {id(job): i for i, job in enumerate(jobs)}
        return [(places[id(job)], result) for job, result in local(work, jobs, resources)]

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
) -> Iterator[tuple[J, R | Exception]]:
    """Work in Slurm array tasks; yields (job, result or error) as their tasks end.

    folder  for submitit's scripts and logs, seen by every node
    A preempted task is requeued by Slurm and goes on where it stopped. The jobs of a task that died are submitted again
    in smaller shards, until a job that is alone dies: its result is WorkerDied. Tasks are cancelled when the caller
    stops. Raises GsmaeError where submitit or Slurm is missing, or Slurm refuses the submission.
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
    inside = resources.model_copy(update={"workers": options.cpus})
    waiting = shards(jobs, options.shard)
    running: dict[Any, Sequence[J]] = {}
    absent: set[str] = set()
    try:
        while waiting or running:
            room = options.parallel - len(running) if options.cluster == "local" else ARRAY
            if waiting and room > 0:
                now, waiting = waiting[:room], waiting[room:]
                try:
                    tasks = executor.map_array(Task(), *zip(*((work, list(s), inside) for s in now), strict=True))
                except FailedJobError as error:
                    raise GsmaeError(f"Slurm refused the tasks: {error}") from None
                running.update(zip(tasks, now, strict=True))
                continue
            ended = _ended(list(running), options, absent)
            for task in ended:
                shard = running.pop(task)
                error = None if task.paths.result_pickle.exists() else "it left no result"
                error = error or task.exception()
                if error is None:
                    yield from ((shard[place], result) for place, result in task.result())
                elif len(shard) > 1:
                    log.warning("task %s died (%s): its %d jobs again", task.job_id, _line(error), len(shard))
                    waiting += shards(shard, -(-len(shard) // SMALLER))
                else:
                    yield shard[0], WorkerDied(1, f"Slurm task {task.job_id}: {_line(error)}")
            tick()
            if running and not ended:
                time.sleep(options.poll)
    finally:
        for task in running:
            task.cancel(check=False)


def _ended(tasks: list[Any], options: SlurmOptions, absent: set[str]) -> list[Any]:
    """Tasks with a result, and those that are gone without one: twice in a row not in Slurm's queue.

    submitit would ask `sacct`, which many clusters do not have; `squeue` is always there.
    """
    if options.cluster == "local":
        return [task for task in tasks if task.done()]
    here = subprocess.run(["squeue", "-h", "-r", "-o", "%i %F_%K", "--me"], capture_output=True, text=True)
    queued = set(here.stdout.split()) if here.returncode == 0 else {task.job_id for task in tasks}
    done = [task for task in tasks if task.paths.result_pickle.exists()]
    gone = {task.job_id for task in tasks if task.job_id not in queued} - {task.job_id for task in done}
    dead = [task for task in tasks if task.job_id in gone & absent and not task.paths.result_pickle.exists()]
    absent.clear()
    absent.update(gone)
    return done + dead


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
    executor = submitit.AutoExecutor(folder=folder, cluster="slurm", slurm_max_num_timeout=1000)
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
