"""Children with limits, and children that are watched."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts" / "reliability"
sys.path.insert(0, str(SCRIPTS))

# what a child may do that reads a stranger's file: everything else that these events tell of is reported
WATCH = """
import json, os, sys
LOUD = ("os.system", "os.exec", "os.posix_spawn", "subprocess.Popen", "socket.connect", "socket.getaddrinfo",
        "socket.bind", "os.remove", "os.rename", "os.mkdir", "shutil.rmtree", "os.chmod", "os.symlink", "os.fork",
        "exec", "ctypes.dlopen", "pickle.find_class")
seen, watching = [], False
def hook(event, args):
    if not watching:
        return
    if event == "exec" and args[0].co_filename.startswith((sys.prefix + "/", sys.base_prefix + "/")):
        return  # a module of a library that is imported late
    if event in LOUD:
        seen.append([event, repr(args)[:300]])
    elif event == "open" and isinstance(args[0], (str, bytes)):
        name = os.path.realpath(os.fsdecode(args[0]))
        mode, flags = args[1], args[2] or 0
        writes = isinstance(mode, str) and any(c in mode for c in "wax+")
        writes = writes or flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        seen.append(["write" if writes else "read", name])
sys.addaudithook(hook)
"""


@pytest.fixture(scope="session")
def known() -> dict[str, Any]:
    """Every kind of file that is fuzzed, with its good examples."""
    import fuzz_targets

    return fuzz_targets.targets()


@pytest.fixture(scope="session")
def watched() -> Callable[[str], Any]:
    """watched(code) runs Python code in a child whose events are recorded while its `watching` is true; the code
    prints a line of JSON with what it wants to tell, `seen` for instance, and that is returned."""

    def run(code: str, timeout: float = 240) -> Any:
        done = subprocess.run(
            [sys.executable, "-c", WATCH + code], capture_output=True, text=True, timeout=timeout, check=False
        )
        assert done.returncode == 0, done.stderr[-2000:]
        return json.loads(done.stdout.splitlines()[-1])

    return run
