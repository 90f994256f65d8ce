"""Builds on Ray while its workers are killed and a node is lost, and counts what is lost, doubled or corrupt.

    python scripts/reliability/lose_nodes.py [--objects 400] [--kills 10]

A cluster of a head and two more nodes of one core each, on this machine (`ray.cluster_utils`). Workers of Ray are sent
SIGKILL now and then; when a third of the objects is done one node is removed without a word, and later another is
added. Objects are stubs (stubs.py). Exit code 1 where something is not as it should be.
"""

import argparse
import os
import random
import signal
import sys
import tempfile
import threading
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
os.environ["PYTHONPATH"] = os.pathsep.join([str(HERE), str(HERE.parents[1]), os.environ.get("PYTHONPATH", "")])
os.environ.setdefault("STUB_SECONDS", "0.2")
os.environ.setdefault("RAY_AUTH_MODE", "disabled")
os.environ.setdefault("RAY_worker_niceness", "0")  # not behind everything else on a busy machine

import ray  # noqa: E402
import stubs  # noqa: E402
from ray.cluster_utils import Cluster  # noqa: E402

from preprocessing.build import build  # noqa: E402
from preprocessing.building import ledgers, upkeep  # noqa: E402
from preprocessing.engines import RayOptions, Resources  # noqa: E402
from preprocessing.sources import SOURCES  # noqa: E402


def rays_workers() -> list[int]:
    """Processes of Ray that are doing a task of ours."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if path.read_bytes().startswith(b"ray::_do"):
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--objects", type=int, default=400)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng, start = random.Random(options.seed), time.perf_counter()
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
    ray.init(address=cluster.address, log_to_driver=False)
    told: list[str] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        meshes, out = stubs.collection(folder / "meshes", options.objects), folder / "out"
        items = list(SOURCES["folder"](meshes))

        def trouble() -> None:
            def until(share: float) -> None:
                while sum(1 for _ in (out / "records").rglob("[!.]*.json")) < share * options.objects:
                    time.sleep(0.2)

            for kill in range(options.kills):
                until((kill + 1) / (options.kills + 4))
                if pids := rays_workers():
                    os.kill(rng.choice(pids), signal.SIGKILL)
                    told.append("worker killed")
                if kill == options.kills // 3:
                    cluster.remove_node(nodes[0], allow_graceful=False)
                    told.append("node removed")
                if kill == 2 * options.kills // 3:
                    cluster.add_node(num_cpus=1)
                    told.append("node added")

        threading.Thread(target=trouble, daemon=True).start()
        resources = Resources(ray=RayOptions(address=str(cluster.address)))
        report = build(meshes, out, stubs.CONFIG, source="folder", engine="ray", resources=resources, make=stubs.make)
        upkeep.gc(out)
        found = stubs.faults(out, items)
        lines = sum(1 for _ in ledgers.read(out))
        events = ", ".join(f"{told.count(what)} {what}" for what in dict.fromkeys(told))
        print(f"{options.objects} stubs on a head and two nodes in {time.perf_counter() - start:.0f} s: {events}; "
              f"{report.done} done, {report.failed} failed, {lines} lines in the ledger")  # fmt: skip
        print("; ".join(f"{name}: {count}" for name, count in found.items()))
        for reason in report.failures:
            print(reason)
    ray.shutdown()
    cluster.shutdown()
    sys.exit(1 if any(found.values()) or report.done != options.objects else 0)


if __name__ == "__main__":
    main()
