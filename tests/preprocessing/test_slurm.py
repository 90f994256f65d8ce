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
from preprocessing.engines import NoWorkers, Resources, SlurmOptions, WorkerDied, slurm, slurm_queue
from preprocessing.engines.slurm import Task, Told, on_slurm

pytest.importorskip("submitit", reason="the engine slurm")
from submitit.core.utils import FailedJobError

ILLEGAL = "CUDA error: an illegal memory access was encountered"


@dataclass(eq=False)
class Submitted:
    """What submitit gives back for a task."""

    job_id: str
    paths: SimpleNamespace
    shard: Sequence
    work: Callable
    node: str

    def exception(self):
        return None

    def result(self):
        return Told(self.node, [(place, self.work(job)) for place, job in enumerate(self.shard)])

    def cancel(self, check):
        pass


class Stub:
    """A cluster where a task is what `fate(task)` says: "done", "dead" (gone from the queue), or a line of `squeue`.

    nodes  that it has; each task runs on the first that it may
    """

    def __init__(self, folder: Path, fate, nodes: Sequence[str] = "abcd", submitted=Submitted):
        self.folder, self.fate, self.tasks, self.most, self.given = folder, fate, [], 0, []
        self.nodes, self.parameters, self.submitted = nodes, {}, submitted

    def update_parameters(self, slurm_additional_parameters):
        self.parameters = slurm_additional_parameters

    def map_array(self, task, works, shards, resources):
        array = len(self.tasks)
        free = [node for node in self.nodes if node not in self.parameters.get("exclude", "").split(",")]
        if not free:
            raise FailedJobError("sbatch: error: Requested node configuration is not available")
        made = []
        for k, (work, shard, given) in enumerate(zip(works, shards, resources, strict=True)):
            pickled = self.folder / f"{array}_{k}.pkl"
            name, paths = f"{array}_{k}", SimpleNamespace(result_pickle=pickled)
            made.append(self.submitted(name, paths, shard, work, free[0]))
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
    """cluster(fate, ...) -> a stub in place of Slurm."""

    def start(fate, **more) -> Stub:
        stub = Stub(tmp_path, fate, **more)
        monkeypatch.setattr(slurm, "_executor", lambda *_: stub)
        monkeypatch.setattr(slurm_queue.subprocess, "run", stub.squeue)
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
    assert not slurm_queue.UNSOLVABLE.search("Resources") and not slurm_queue.UNSOLVABLE.search("Priority")


def fails(job):
    raise ValueError(job)


def settled(job, result):
    return f"{job}: {result}"


def test_a_task_settles_what_its_jobs_ended_with_before_it_ends():
    task = pickle.loads(pickle.dumps(Task(settled)))
    assert task(fails, ["a", "b"], Resources(workers=0)) == Told("", [(0, "a: a"), (1, "b: b")])


def illegal(job):
    raise RuntimeError(ILLEGAL)


def test_of_a_fault_of_its_gpu_a_task_settles_nothing_but_tells_its_node(monkeypatch):
    assert Task(settled)(illegal, ["a"], Resources(workers=0)) == Told("", [(0, f"a: {ILLEGAL}")])
    monkeypatch.setenv("SLURMD_NODENAME", "n7")
    told = Task(settled)(illegal, ["a"], Resources(workers=0))
    ((_, result),) = told.results
    assert told.node == "n7" and isinstance(result, RuntimeError)


class OnBrokenNodes(Submitted):
    """A task that comes to nothing on the node a, after two jobs, one of which met a fault."""

    broken = "a"

    def result(self):
        if self.node not in self.broken:
            return super().result()
        return Told(self.node, [(0, str(self.shard[0])), (1, RuntimeError(ILLEGAL))], NoWorkers(f"{self.node}: no GPU"))


class OnBrokenCluster(OnBrokenNodes):
    broken = "abc"


def test_a_node_that_cannot_work_is_left_out_and_its_jobs_are_done_elsewhere(cluster, caplog):
    stub = cluster(lambda task: "done", submitted=OnBrokenNodes)
    options = {"shard": 5, "parallel": 1, "extra": {"exclude": "x7"}}
    assert sorted(run(stub, range(20), **options)) == [(i, str(i)) for i in range(20)]
    assert [task.node for task in stub.tasks] == ["a", "b", "b", "b", "b"]
    assert stub.parameters["exclude"] == "x7,a" and stub.parameters["requeue"] is True
    assert caplog.text.count("node a is given no more jobs: a: no GPU") == 1


@pytest.mark.parametrize("shard", [5, 20])
def test_a_cluster_whose_nodes_cannot_work_ends_the_build_by_name(cluster, shard):
    stub = cluster(lambda task: "done", submitted=OnBrokenCluster, nodes="abc")
    with pytest.raises(GsmaeError, match="c: no GPU"):
        run(stub, range(20), shard=shard, parallel=1)
    assert [task.node for task in stub.tasks] == ["a", "b", "c"]


def on_gpu(bad):
    """work(job) that meets a fault of its GPU for such jobs"""
    return lambda job: RuntimeError(ILLEGAL) if job in bad else str(job)


@pytest.mark.parametrize(("nodes", "tasks"), [("ab", 6), ("a", 4)])
def test_a_job_that_two_nodes_or_the_only_one_find_at_fault_is_at_fault(cluster, monkeypatch, nodes, tasks):
    stub = cluster(lambda task: "done", nodes=nodes)
    resources = Resources(slurm=SlurmOptions(poll=0.01, shard=5))
    results = dict(on_slurm(on_gpu({3, 11}), range(20), resources, folder=stub.folder, patience=0))
    faults = {job for job, result in results.items() if isinstance(result, RuntimeError)}
    assert faults == {3, 11} and len(results) == 20 and len(stub.tasks) == tasks
    assert {task.node for task in stub.tasks if len(task.shard) == 1} == set(nodes[1:])


def test_a_node_where_job_after_job_meets_a_fault_is_left_out(cluster):
    class OnOneGpu(Submitted):
        def result(self):
            return Told(self.node, [(0, RuntimeError(ILLEGAL) if self.node == "a" else str(self.shard[0]))])

    stub = cluster(lambda task: "done", submitted=OnOneGpu)
    assert sorted(run(stub, range(20), shard=1, parallel=1)) == [(i, str(i)) for i in range(20)]
    assert [task.node for task in stub.tasks].count("a") == 5
