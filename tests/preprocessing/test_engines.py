import multiprocessing
import os
import pickle
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gsmae.errors import GsmaeError
from preprocessing.engines import ENGINES, NoWorkers, Resources, SlurmOptions, WorkerDied
from preprocessing.engines.failures import Faults
from preprocessing.engines.local import local
from preprocessing.engines.resources import next_gpu, side_by_side, visible_gpus, workers_of_this_gpu
from preprocessing.engines.slurm import Task
from preprocessing.engines.worker import Seat, hidden


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
    assert len(list(tmp_path.glob("2-*"))) == 3  # it was tried again, and not for ever


ILLEGAL = "CUDA error: an illegal memory access was encountered"
broken = False  # in a worker: its GPU no longer works for it


def sticky(job: tuple[str, int]) -> int:
    """Breaks CUDA for its process at job 2, and leaves a trace of each job and the process that did it."""
    global broken
    folder, x = job
    (Path(folder) / f"{x}-{os.getpid()}").touch()
    broken = broken or x == 2
    if broken:
        raise RuntimeError(ILLEGAL)
    return x


@pytest.fixture(params=["local", "seat"])
def engine(request):
    """Workers of the local engine, and the one that a worker of another engine's keeps."""
    if request.param == "local":
        yield lambda work, jobs: dict(local(work, jobs, Resources(workers=1)))
        return
    seat = Seat()
    yield lambda work, jobs: {job: seat.do(work, job, Resources(tries=1)) for job in jobs}
    seat.leave()


def test_a_fault_of_the_gpu_costs_its_process_and_no_other_job(tmp_path, engine):
    results = engine(sticky, [(str(tmp_path), x) for x in range(5)])
    found = {job[1]: result for job, result in results.items()}
    assert {k: v for k, v in found.items() if k != 2} == {0: 0, 1: 1, 3: 3, 4: 4}
    assert isinstance(found[2], RuntimeError) and str(found[2]) == ILLEGAL
    assert len(list(tmp_path.glob("2-*"))) == 2  # in a fresh process, once


def no_gpu(job: tuple[str, int]) -> int:
    (Path(job[0]) / f"{job[1]}-{time.monotonic_ns()}").touch()
    raise RuntimeError("No CUDA GPUs are available")


def test_a_machine_whose_gpu_fails_job_after_job_ends_the_build_by_name(tmp_path, engine):
    with pytest.raises(NoWorkers, match=rf"{re.escape(socket.gethostname())}.*5 jobs in a row.*No CUDA GPUs"):
        engine(no_gpu, [(str(tmp_path), x) for x in range(20)])
    assert len(list(tmp_path.glob("19-*"))) == 0


def test_faults_are_counted_by_gpu_and_forgotten_when_a_job_is_done():
    faults, fault = Faults(), RuntimeError(ILLEGAL)
    for _ in range(4):
        assert faults.found(fault, "0", 1) and faults.found(fault, "1", 1)
        assert faults.found(fault, "0", 2)  # the same job again
    assert not faults.found("result", "0", 1)
    assert not faults.found(ValueError("a bad mesh"), "0", 1)
    assert faults.found(fault, "0", 1)
    with pytest.raises(NoWorkers, match="GPU 1"):
        faults.found(fault, "1", 1)


def test_a_slurm_task_that_cannot_work_says_so_and_where(tmp_path, monkeypatch):
    monkeypatch.setenv("SLURMD_NODENAME", "n7")
    jobs = [(str(tmp_path), x) for x in range(7)]
    told = pickle.loads(pickle.dumps(Task()(no_gpu, jobs, Resources(workers=1))))
    assert told.node == "n7" and isinstance(told.useless, NoWorkers)
    assert told.results == []  # of its jobs nothing is decided


def meets_the_others(job: tuple[str, int]) -> tuple[str | None, int]:
    """What this worker is told of its GPU; waits until four workers have a job, so that each gets one."""
    folder, x = job
    (Path(folder) / str(x)).touch()
    while len(list(Path(folder).iterdir())) < 4:
        time.sleep(0.02)
    return os.environ.get("CUDA_VISIBLE_DEVICES"), workers_of_this_gpu()


def test_workers_are_spread_over_the_gpus_two_on_each(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,GPU-b")
    jobs = [(str(tmp_path), x) for x in range(4)]
    results = dict(local(meets_the_others, jobs, Resources(workers=8, device="cuda")))
    assert sorted(results.values(), key=str) == [("4", 2), ("4", 2), ("GPU-b", 2), ("GPU-b", 2)]
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "4,GPU-b"


def test_the_next_worker_gets_the_gpu_that_fewest_have():
    taken: list[str] = []
    for _ in range(5):
        taken.append(next_gpu(["0", "1"], taken))
    assert taken == ["0", "1", "0", "1", "0"]
    assert next_gpu(["0", "1"], ["1", "1", "0"]) == "0"  # in place of one that died


@pytest.mark.parametrize(("told", "gpus"), [("", []), ("-1", []), ("0,1,-1,2", ["0", "1"]), ("MIG-x", ["MIG-x"])])
def test_the_gpus_are_those_that_the_environment_names(told, gpus, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", told)
    assert visible_gpus() == gpus


def test_workers_follow_from_gpus_and_cores():
    assert [side_by_side("cuda", 8, gpus) for gpus in (1, 2, 4, 8)] == [2, 4, 8, 8]
    assert side_by_side("cpu", 8, 1) == 8 and side_by_side("cuda", 8, 0) == 8


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


IN_A_CHECKOUT = """
import preprocessing
from preprocessing.engines import ENGINES, Resources

def where(_):
    return preprocessing.__file__

if __name__ == "__main__":
    print(dict(ENGINES["local"](where, [0], Resources(workers=1)))[0])
"""


def test_workers_are_of_the_same_package_in_a_folder_that_holds_another(tmp_path, monkeypatch):
    monkeypatch.delenv("PYTHONSAFEPATH", raising=False)
    (tmp_path / "here" / "preprocessing").mkdir(parents=True)
    (tmp_path / "here" / "preprocessing" / "__init__.py").write_text("")  # a checkout that is not installed
    (tmp_path / "script.py").write_text(IN_A_CHECKOUT)
    root = Path(__file__).resolve().parents[2]
    run = {"cwd": tmp_path / "here", "env": {**os.environ, "PYTHONPATH": str(root)}, "capture_output": True}
    ended = subprocess.run([sys.executable, str(tmp_path / "script.py")], **run)
    assert ended.stdout.decode().strip() == str(root / "preprocessing" / "__init__.py"), ended.stderr.decode()


def test_another_package_is_looked_for_where_we_are_if_we_are_anywhere(tmp_path, monkeypatch):
    (tmp_path / "here" / "preprocessing").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    assert hidden()
    monkeypatch.chdir(Path(__file__).resolve().parents[2])
    assert not hidden()
    monkeypatch.chdir(tmp_path / "here")
    shutil.rmtree(tmp_path / "here")
    assert not hidden()


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
