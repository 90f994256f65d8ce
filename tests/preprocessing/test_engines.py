import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gsmae.errors import GsmaeError
from preprocessing.engines import ENGINES, Resources, SlurmOptions, WorkerDied
from preprocessing.engines.local import local


def square(x: int) -> int:
    if x == 3:
        raise ValueError("three")
    return x * x


def deadly(job: tuple[str, int]) -> int:
    folder, x = job
    (Path(folder) / f"{x}-{time.monotonic_ns()}").touch()
    if x == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return x


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_every_job_has_one_result_and_an_error_is_a_result(workers):
    results = dict(local(square, range(6), Resources(workers=workers)))
    assert {k: v for k, v in results.items() if k != 3} == {0: 0, 1: 1, 2: 4, 4: 16, 5: 25}
    assert isinstance(results[3], ValueError)


def test_a_worker_that_dies_takes_no_other_job_with_it(tmp_path):
    jobs = [(str(tmp_path), x) for x in range(5)]
    results = {job[1]: result for job, result in local(deadly, jobs, Resources(workers=2))}
    assert {k: v for k, v in results.items() if k != 2} == {0: 0, 1: 1, 3: 3, 4: 4}
    assert isinstance(results[2], WorkerDied)
    assert 2 <= len(list(tmp_path.glob("2-*"))) <= 3  # it was tried again, alone, and not for ever


def slow(job: tuple[str, int]) -> None:
    folder, x = job
    (Path(folder) / f"pid-{os.getpid()}").touch()
    time.sleep(120)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_workers_end_with_a_parent_that_is_killed(tmp_path, number):
    code = (
        "import sys; sys.path.insert(0, sys.argv[2]); from test_engines import *; "
        "list(local(slow, [(sys.argv[1], x) for x in range(2)], Resources(workers=2)))"
    )
    parent = subprocess.Popen([sys.executable, "-c", code, str(tmp_path), str(Path(__file__).parent)])
    deadline = time.monotonic() + 100
    while len(list(tmp_path.glob("pid-*"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    parent.send_signal(number)
    parent.wait()
    workers = [int(path.name[4:]) for path in tmp_path.glob("pid-*")]
    while any(map(alive, workers)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert workers and not any(map(alive, workers))


def alive(pid: int) -> bool:
    """Whether a process runs; one that nobody has waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_no_jobs_is_no_work():
    assert list(ENGINES["local"](square, [], Resources(workers=2))) == []


@pytest.fixture
def found_elsewhere(monkeypatch):
    """The functions of this file can be imported by processes that others start."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))


def test_slurm_tasks_as_plain_processes_give_every_result(tmp_path, found_elsewhere):
    pytest.importorskip("submitit", reason="the engine slurm")
    options = SlurmOptions(cluster="local", shard=3, parallel=2, cpus=1, poll=0.1)
    results = dict(ENGINES["slurm"](square, range(6), Resources(slurm=options), folder=tmp_path / "slurm"))
    assert {k: v for k, v in results.items() if k != 3} == {0: 0, 1: 1, 2: 4, 4: 16, 5: 25}
    assert isinstance(results[3], ValueError)


def ends_its_task(job: tuple[str, int]) -> int:
    """Kills the process that it is a worker of, as Slurm does when a task is out of memory."""
    if job[1] == 2:
        os.kill(multiprocessing.parent_process().pid, signal.SIGKILL)  # type: ignore[union-attr]
        time.sleep(60)
    return job[1]


@pytest.mark.slow
def test_a_slurm_task_that_dies_is_taken_apart_until_the_job_is_found(tmp_path, found_elsewhere):
    pytest.importorskip("submitit", reason="the engine slurm")
    options = SlurmOptions(cluster="local", shard=4, parallel=1, cpus=1, poll=0.1)
    jobs = [(str(tmp_path), x) for x in range(4)]
    done = ENGINES["slurm"](ends_its_task, jobs, Resources(slurm=options), folder=tmp_path / "slurm")
    results = {job[1]: result for job, result in done}
    assert {k: v for k, v in results.items() if k != 2} == {0: 0, 1: 1, 3: 3}
    assert isinstance(results[2], WorkerDied)


@pytest.mark.slow
def test_ray_gives_every_result_and_outlives_its_workers(tmp_path, found_elsewhere):
    pytest.importorskip("ray", reason="the engine ray")
    results = dict(ENGINES["ray"](square, range(6), Resources(workers=2)))
    assert {k: v for k, v in results.items() if k != 3} == {0: 0, 1: 1, 2: 4, 4: 16, 5: 25}
    assert isinstance(results[3], ValueError)
    jobs = [(str(tmp_path), x) for x in range(5)]
    results = {job[1]: result for job, result in ENGINES["ray"](deadly, jobs, Resources(workers=2))}
    assert {k: v for k, v in results.items() if k != 2} == {0: 0, 1: 1, 3: 3, 4: 4}
    assert isinstance(results[2], WorkerDied) and len(list(tmp_path.glob("2-*"))) == 3


@pytest.mark.parametrize(("engine", "package"), [("ray", "ray"), ("slurm", "submitit")])
def test_an_engine_whose_package_is_missing_says_what_to_install(engine, package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(GsmaeError, match=rf"gsmae\[{engine}\]"):
        list(ENGINES[engine](square, [1], Resources()))
