import os
import signal
import time
from pathlib import Path

import pytest

from preprocessing.engines import ENGINES, WorkerDied, local


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
    results = dict(local(square, range(6), workers))
    assert {k: v for k, v in results.items() if k != 3} == {0: 0, 1: 1, 2: 4, 4: 16, 5: 25}
    assert isinstance(results[3], ValueError)


def test_a_worker_that_dies_takes_no_other_job_with_it(tmp_path):
    jobs = [(str(tmp_path), x) for x in range(5)]
    results = {job[1]: result for job, result in local(deadly, jobs, 2)}
    assert {k: v for k, v in results.items() if k != 2} == {0: 0, 1: 1, 3: 3, 4: 4}
    assert isinstance(results[2], WorkerDied)
    assert 2 <= len(list(tmp_path.glob("2-*"))) <= 3  # it was tried again, alone, and not for ever


def test_no_jobs_is_no_work():
    assert list(ENGINES["local"](square, [], 2)) == []
