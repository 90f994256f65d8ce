"""The engine of Slurm where Slurm is a stub: what it submits, when it takes a task for dead, when it gives up."""

import logging
import pickle
import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest

from gsmae.errors import GsmaeError
from preprocessing.engines import Resources, SlurmOptions, WorkerDied, slurm
from preprocessing.engines.slurm import Task, on_slurm

pytest.importorskip("submitit", reason="the engine slurm")


@dataclass(eq=False)
class Submitted:
    """What submitit gives back for a task."""

    job_id: str
    paths: SimpleNamespace
    shard: Sequence
    work: Callable

    def exception(self):
        return None

    def result(self):
        return [(place, self.work(job)) for place, job in enumerate(self.shard)]

    def cancel(self, check):
        pass


class Stub:
    """A cluster where a task is what `fate(task)` says: "done", "dead" (gone from the queue), or a line of `squeue`."""

    def __init__(self, folder: Path, fate):
        self.folder, self.fate, self.tasks, self.most, self.given = folder, fate, [], 0, []

    def map_array(self, task, works, shards, resources):
        array = len(self.tasks)
        made = []
        for k, (work, shard, given) in enumerate(zip(works, shards, resources, strict=True)):
            pickled = self.folder / f"{array}_{k}.pkl"
            made.append(Submitted(f"{array}_{k}", SimpleNamespace(result_pickle=pickled), shard, work))
            self.given.append(given)
        self.tasks += made
        self.most = max(self.most, sum(not t.paths.result_pickle.exists() for t in self.tasks))
        return made

    def squeue(self, command, **_):
        lines = []
        for task in self.tasks:
            fate = self.fate(task)
            if fate == "done":
                task.paths.result_pickle.touch()
            elif fate != "dead":
                lines.append(f"{task.job_id}|{task.job_id}|{fate}")
        return subprocess.CompletedProcess(command, 0, "\n".join(lines), "")


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    """cluster(fate) -> a stub in place of Slurm."""

    def start(fate) -> Stub:
        stub = Stub(tmp_path, fate)
        monkeypatch.setattr(slurm, "_executor", lambda *_: stub)
        monkeypatch.setattr(slurm.subprocess, "run", stub.squeue)
        monkeypatch.setattr(shutil, "which", lambda _: "/bin/sbatch")
        return stub

    return start


def run(stub: Stub, jobs, patience=0.0, **options):
    resources = Resources(slurm=SlurmOptions(poll=0.01, **options))
    return list(on_slurm(str, jobs, resources, folder=stub.folder, patience=patience))


def test_never_more_tasks_than_parallel_in_whatever_number_of_arrays(cluster):
    stub = cluster(lambda task: "done")
    assert sorted(run(stub, range(20), shard=2, parallel=3)) == [(i, str(i)) for i in range(20)]
    assert len(stub.tasks) == 10 and stub.most == 3


def test_a_job_may_not_take_as_long_as_its_task(cluster):
    stub = cluster(lambda task: "done")
    run(stub, range(2), minutes=10)
    assert 0 < stub.given[0].longest < 600


def test_a_task_that_is_gone_is_dead_only_after_a_while_and_a_late_result_counts(cluster):
    looks = iter(range(1000))
    stub = cluster(lambda task: "done" if next(looks) > 5 else "dead")
    assert run(stub, ["a"], patience=60) == [("a", "a")] and len(stub.tasks) == 1
    stub = cluster(lambda task: "dead")
    (stub.folder / "0_0.pkl").unlink()
    ((_, result),) = run(stub, ["a"], patience=0.05)
    assert isinstance(result, WorkerDied) and len(stub.tasks) == 1


def test_a_shard_that_dies_is_taken_apart_and_each_death_counts(cluster):
    stub = cluster(lambda task: "dead" if 3 in task.shard else "done")
    results = dict(run(stub, range(20), shard=20))
    died = results.pop(3)
    assert isinstance(died, WorkerDied) and died.tries == 3 and len(results) == 19


def test_tasks_that_somebody_cancelled_are_not_submitted_again(cluster):
    stub = cluster(lambda task: "CANCELLED|None")
    with pytest.raises(GsmaeError, match="cancelled"):
        run(stub, range(6), shard=2)
    assert len(stub.tasks) == 3


def test_one_task_that_is_cancelled_is_submitted_again(cluster):
    def fate(task):
        if task.job_id == "0_0":
            return "CANCELLED|None"
        return "RUNNING|None" if len(stub.tasks) < 4 else "done"

    stub = cluster(fate)
    assert len(run(stub, range(6), shard=2)) == 6


def test_a_task_that_will_never_start_is_told_once(cluster, caplog):
    looks = iter(range(1000))
    stub = cluster(lambda task: "done" if next(looks) > 6 else "PENDING|launch failed requeued held")
    with caplog.at_level(logging.WARNING):
        run(stub, ["a", "b"], shard=1)
    assert caplog.text.count("launch failed requeued held") == 1
    assert not slurm.UNSOLVABLE.search("Resources") and not slurm.UNSOLVABLE.search("Priority")


def fails(job):
    raise ValueError(job)


def settled(job, result):
    return f"{job}: {result}"


def test_a_task_settles_what_its_jobs_ended_with_before_it_ends():
    task = pickle.loads(pickle.dumps(Task(settled)))
    assert task(fails, ["a", "b"], Resources(workers=0)) == [(0, "a: a"), (1, "b: b")]
