"""Children with limits, and children that are watched."""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, NoReturn

import pytest

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts" / "reliability"
sys.path.insert(0, str(SCRIPTS))

import fuzz  # noqa: E402  (a script)

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
def settled() -> dict[str, dict[str, fuzz.Outcome]]:
    """What became of the cases of each table that was tried, by the test that asks."""
    return {}


@pytest.fixture
def outcome(request, settled, tmp_path_factory) -> Callable[[Callable[[str, Path], Any]], fuzz.Outcome]:
    """outcome(act): how act(name, folder) ended for this test's `name`, in a child with 1 GB and 5 seconds.

    All of a test's cases that were selected are tried when the first asks, by one child, one after another: to fork a
    process that holds torch costs more than most cases. One that ends the child is told from the others, and what goes
    wrong is tried again alone.
    """

    def of(node: Any) -> str:
        return f"{node.path}::{node.originalname}"

    def ask(act: Callable[[str, Path], Any]) -> fuzz.Outcome:
        if of(request.node) not in settled:
            items = [item for item in request.session.items if isinstance(item, pytest.Function)]
            names = [item.callspec.params["name"] for item in items if of(item) == of(request.node)]
            found = fuzz.settle(fuzz.Acts(act), names, tmp_path_factory.mktemp("cases"))
            settled[of(request.node)] = dict(zip(names, found, strict=True))
        return settled[of(request.node)][request.node.callspec.params["name"]]

    return ask


@pytest.fixture
def refusal(outcome) -> Callable[[Callable[[str, Path], Any]], str]:
    """refusal(act): the words with which this test's case was refused, or "result"; nothing else may happen."""

    def ask(act: Callable[[str, Path], Any]) -> str:
        kind, what, _, _ = outcome(act)
        assert kind != "bad", what
        return what if kind == "refused" else "result"

    return ask


@pytest.fixture(scope="session")
def watched() -> Callable[[str], Any]:
    """watched(code) runs Python code in a forked child whose events are recorded while its `watching` is true; the code
    prints a line of JSON with what it wants to tell, `seen` for instance, and that is returned."""

    def run(code: str, timeout: float = 240) -> Any:
        with tempfile.TemporaryFile("w+") as told, tempfile.TemporaryFile("w+") as wrong:
            number = os.fork()  # torch and the rest are imported, and a hook cannot be taken off: so a child
            if number == 0:
                _watch(code, timeout, told, wrong)
            _, state = os.waitpid(number, 0)
            told.seek(0)
            wrong.seek(0)
            assert state == 0, wrong.read()[-2000:] or f"ended with {os.waitstatus_to_exitcode(state)}"
            return json.loads(told.read().splitlines()[-1])

    return run


def _watch(code: str, timeout: float, told: IO[str], wrong: IO[str]) -> NoReturn:
    """In the child: run the code to its end, or to that of its time, with its output in these files."""
    done = 1
    try:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_REAL, timeout)
        sys.stdout, sys.stderr = told, wrong
        exec(compile(WATCH + code, "<watched>", "exec"), {"__name__": "__watched__"})
        done = 0
    except BaseException:
        traceback.print_exc(file=wrong)
    finally:
        told.flush()
        wrong.flush()
        os._exit(done)
