"""Who works in a build folder, and on what: one small file per worker in `at_work`, and the build's own token.

Notes are for `gsmae status` and for the reason of a death; nothing depends on them but that a worker whose build was
replaced by a later one stops.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from gsmae.errors import GsmaeError, InputError
from gsmae.files import read_json, write_json

from .ledgers import whoami

FOLDER = "at_work"
TOKEN = "build.json"


class Superseded(GsmaeError):
    """Another build has taken over this folder; the worker of the old one stops without a trace."""


def announce(out: Path, token: str, **more: Any) -> None:
    """Say that this process builds here; workers with another token stop from now on."""
    write_json(out / FOLDER / TOKEN, {"token": token, "builder": whoami(), "since": time.time(), **more})


def announced(out: Path) -> dict[str, Any]:
    """What the last builder said; empty where none is, or ended in order."""
    try:
        return read_json(out / FOLDER / TOKEN)
    except InputError:
        return {}


def leave(out: Path) -> None:
    """Remove the announcement and all notes of workers; the build has ended."""
    for path in (out / FOLDER).glob("*.json"):
        path.unlink(missing_ok=True)
    with suppress(OSError):  # a worker that was superseded may still write its note
        (out / FOLDER).rmdir()


def check(out: Path, token: str) -> None:
    """Raise Superseded where the folder belongs to another build, OSError where that cannot be read, even again."""
    if not token:
        return
    path = out / FOLDER / TOKEN
    try:
        try:
            said = json.loads(path.read_bytes())
        except (OSError, ValueError):  # on a network file system, a handle of the file that was there before
            said = json.loads(path.read_bytes())
        ours = said.get("token") == token
    except FileNotFoundError:
        ours = False
    except (ValueError, AttributeError):
        raise OSError(errno.EIO, "is damaged", str(path)) from None
    if not ours:
        raise Superseded(f"{out}: another build has taken over")


def note(out: Path, uid: str, stage: str, since: float, machine: str = "") -> None:
    """Write down what this process works on, and on what, if that can be done: it is not worth an error."""
    path = out / FOLDER / f"{whoami()}.json"
    said = {"uid": uid, "stage": stage, "since": since, "machine": machine, "host": socket.gethostname()}
    data = json.dumps(said).encode()
    with suppress(OSError):
        handle = os.open(path, os.O_WRONLY | os.O_CREAT, 0o666)
        try:
            os.write(handle, data + b" " * max(0, os.fstat(handle).st_size - len(data)))  # never empty in between
        finally:
            os.close(handle)


def read(out: Path) -> dict[str, dict[str, Any]]:
    """What each worker has noted; worker -> uid, stage, since, machine, host."""
    found = {}
    for path in (out / FOLDER).glob("*.json"):
        if path.name == TOKEN:
            continue
        try:
            value = json.loads(path.read_text())
        except (ValueError, OSError):
            continue
        if isinstance(value, dict) and "uid" in value:
            found[path.stem] = value
    return found


def last_heard(out: Path, uid: str) -> dict[str, Any]:
    """What a worker had noted when it was last heard of with that object; empty where none was."""
    heard = [note for note in read(out).values() if note["uid"] == uid]
    return max(heard, key=lambda note: note["since"], default={})
