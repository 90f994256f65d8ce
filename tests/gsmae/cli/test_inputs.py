"""Where the features of open streams lie, and how much memory there is."""

import os

import pytest

from gsmae.cli.inputs import Place, memory_limit, place_of

GB = 2**30


@pytest.mark.parametrize(
    ("size", "device", "free", "place"),
    [
        (4 * GB, "cuda:0", 10 * GB, Place("cuda:0", True, 0, False)),
        (6 * GB, "cuda:0", 10 * GB, Place("cpu", True, 2, True)),
        (20 * GB, "cuda:0", 10 * GB, Place("cpu", False, 2, True)),
        (20 * GB, "cuda:0", 50 * GB, Place("cuda:0", True, 0, False)),
        (4 * GB, "cpu", 0, Place("cpu", True, 0, False)),
        (20 * GB, "cpu", 0, Place("cpu", False, 2, False)),
    ],
)
def test_features_lie_where_half_of_the_room_holds_them(size, device, free, place):
    assert place_of(size, 32 * GB, device, free) == place


def test_memory_is_that_of_the_container_by_the_processes_on_the_machine(tmp_path, monkeypatch):
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    own = tmp_path / "own"
    assert memory_limit(tmp_path / "none", own) == machine
    inner = tmp_path / "two" / "jobs" / "one"
    inner.mkdir(parents=True)
    own.write_text("0::/jobs/one\n")
    (inner / "memory.max").write_text("max\n")
    assert memory_limit(tmp_path / "two", own) == machine
    (inner.parent / "memory.max").write_text("4000000\n")  # of the group above
    assert memory_limit(tmp_path / "two", own) == 4000000
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert memory_limit(tmp_path / "two", own) == 1000000
    old = tmp_path / "one" / "memory" / "docker"
    old.mkdir(parents=True)
    own.write_text("5:cpu:/x\n4:memory:/docker\n")
    (old / "memory.limit_in_bytes").write_text("8000000")
    assert memory_limit(tmp_path / "one", own) == 2000000
