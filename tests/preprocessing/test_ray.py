"""The engine of Ray without a cluster: what it refuses, and what it tells while it waits."""

import logging
import sys
from types import SimpleNamespace

import pytest

from gsmae.errors import GsmaeError
from preprocessing.engines import RayOptions, Resources
from preprocessing.engines.ray import _connect, check_nodes, on_ray

NODES = [
    {"Alive": True, "Resources": {"CPU": 4.0}},
    {"Alive": False, "Resources": {"CPU": 64.0, "GPU": 8.0}},
    {"Alive": True, "Resources": {"CPU": 2.0, "GPU": 1.0}},
]


@pytest.mark.parametrize(("cpus", "gpus"), [(4, 0), (1, 1), (2, 0.25)])
def test_what_one_living_node_has_is_enough(cpus, gpus):
    check_nodes(NODES, cpus, gpus)


@pytest.mark.parametrize(("cpus", "gpus"), [(8, 0), (1, 2), (4, 1)])
def test_what_no_living_node_has_is_refused(cpus, gpus):
    with pytest.raises(GsmaeError, match=f"no node .* {cpus} CPU and {gpus} GPU.*2 CPU and 1 GPU, 4 CPU and 0 GPU"):
        check_nodes(NODES, cpus, gpus)


@pytest.fixture
def ray(monkeypatch):
    """ray(looks, free=) -> a stub of Ray whose only task ends after so many looks."""

    def start(looks: int, free: float) -> None:
        left = iter(range(looks))
        stub = SimpleNamespace(
            is_initialized=lambda: True, nodes=lambda: NODES, put=lambda value: value, get=lambda reference: "done",
            cluster_resources=lambda: {"CPU": 6.0, "GPU": 1.0}, available_resources=lambda: {"CPU": free, "GPU": 1.0},
            cancel=lambda *_, **__: None, remote=lambda **_: lambda do: SimpleNamespace(remote=lambda *_: object()),
            wait=lambda references, **_: ([], references) if next(left, None) is not None else (references, []),
            exceptions=SimpleNamespace(
                NodeDiedError=KeyError, ObjectLostError=KeyError, WorkerCrashedError=KeyError,
                OutOfMemoryError=KeyError, RayError=KeyError,
            ),
        )  # fmt: skip
        monkeypatch.setitem(sys.modules, "ray", stub)

    return start


@pytest.mark.parametrize(("free", "told"), [(6.0, 1), (5.0, 0)])
def test_jobs_that_wait_while_the_cluster_idles_are_told_once(ray, caplog, free, told):
    ray(5, free)
    with caplog.at_level(logging.WARNING):
        assert list(on_ray(str, ["job"], Resources(), patience=0)) == [("job", "done")]
    assert caplog.text.count("nothing has run") == told


def test_a_job_too_large_for_every_node_is_not_submitted(ray):
    ray(0, 6.0)
    with pytest.raises(GsmaeError, match="no node"):
        list(on_ray(str, ["job"], Resources(ray=RayOptions(cpus=5))))


def test_a_cluster_of_its_own_is_started_beside_one_that_is_there():
    given = {}
    _connect(SimpleNamespace(init=lambda **more: given.update(more)), Resources(workers=2))
    assert (given["address"], given["num_cpus"]) == ("local", 2)
