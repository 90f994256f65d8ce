"""The engine of Ray without a cluster: what it refuses, and what it tells while it waits."""

import logging
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

import preprocessing
from gsmae.errors import GsmaeError
from preprocessing.engines import NoWorkers, RayOptions, Resources
from preprocessing.engines.ray import _connect, check_nodes, on_ray

NODES = [
    {"NodeID": "a", "Alive": True, "Resources": {"CPU": 4.0}},
    {"NodeID": "b", "Alive": False, "Resources": {"CPU": 64.0, "GPU": 8.0}},
    {"NodeID": "c", "Alive": True, "Resources": {"CPU": 2.0, "GPU": 1.0}},
]
ILLEGAL = RuntimeError("CUDA error: an illegal memory access was encountered")


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
            is_initialized=lambda: True, nodes=lambda: NODES, put=lambda value: value, get=lambda _: ("a", "done"),
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


def test_ray_looks_for_our_package_and_not_for_that_of_a_checkout_we_are_in(tmp_path, monkeypatch):
    (tmp_path / "preprocessing").mkdir()
    monkeypatch.chdir(tmp_path)
    seen = []
    _connect(SimpleNamespace(init=lambda **_: seen.append(Path.cwd())), Resources())
    assert seen == [Path(preprocessing.__file__).parents[1]] and Path.cwd() == tmp_path


@pytest.fixture
def cluster(monkeypatch):
    """cluster(fate) -> what each task of a stub of Ray was given to: (node, job); fate(node, job) is its result.

    A task goes to the first living node that it is not kept from.
    """

    def start(fate, nodes=NODES) -> list:
        given = []

        class Remote:
            def __init__(self, without=()):
                self.without = without

            def options(self, scheduling_strategy):
                return Remote(scheduling_strategy["ray.io/node-id"])

            def remote(self, work, job, *_):
                alive = [node["NodeID"] for node in nodes if node["Alive"]]
                given.append((next(name for name in alive if name not in self.without), job))
                return len(given) - 1

        stub = SimpleNamespace(
            is_initialized=lambda: True, nodes=lambda: nodes, put=lambda value: value, cancel=lambda *_, **__: None,
            get=lambda reference: (given[reference][0], fate(*given[reference])),
            cluster_resources=lambda: {"CPU": 0.5}, remote=lambda **_: lambda do: Remote(),
            wait=lambda references, **_: (references[:1], references[1:]),
            exceptions=SimpleNamespace(
                NodeDiedError=KeyError, ObjectLostError=KeyError, WorkerCrashedError=KeyError,
                OutOfMemoryError=KeyError, RayError=KeyError,
            ),
        )  # fmt: skip
        monkeypatch.setitem(sys.modules, "ray", stub)
        ways = SimpleNamespace(NodeLabelSchedulingStrategy=dict, NotIn=lambda *names: names)
        monkeypatch.setitem(sys.modules, "ray.util.scheduling_strategies", ways)
        return given

    return start


@pytest.mark.parametrize("spoilt", [NoWorkers("host a: 5 jobs in a row failed there"), ILLEGAL])
def test_a_node_that_cannot_work_gets_no_more_jobs_and_no_job_is_lost(cluster, caplog, spoilt):
    given = cluster(lambda node, job: spoilt if node == "a" else str(job))
    assert sorted(on_ray(str, range(20), Resources())) == [(i, str(i)) for i in range(20)]
    assert [node for node, _ in given].count("a") < 10 and {node for node, _ in given[12:]} == {"c"}
    assert caplog.text.count("node a is given no more jobs") == 1


def test_a_job_that_two_nodes_or_the_only_one_find_at_fault_is_at_fault(cluster):
    for nodes, tries in ((NODES, 2), (NODES[:2], 1)):
        given = cluster(lambda node, job: ILLEGAL if job == 3 else job, nodes)
        assert dict(on_ray(str, range(8), Resources())) == {i: ILLEGAL if i == 3 else i for i in range(8)}
        assert [job for _, job in given].count(3) == tries


@pytest.mark.parametrize("spoilt", [NoWorkers("no GPU"), RuntimeError("CUDA error: no GPU")])
def test_where_no_node_is_left_the_build_ends(cluster, spoilt):
    cluster(lambda node, job: spoilt)
    with pytest.raises(NoWorkers, match="no GPU"):
        list(on_ray(str, range(40), Resources()))
