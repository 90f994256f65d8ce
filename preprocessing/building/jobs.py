"""What a worker does: objects from mesh to committed record, whatever happens to some of them."""

from __future__ import annotations

import socket
import time
from collections.abc import Sequence
from typing import Any

from ..sources import MeshItem
from . import notes
from .records import Order, commit, commit_failure, done, is_charged, settled
from .watches import Watch


def build_objects(items: tuple[MeshItem, ...], order: Order) -> list[dict[str, Any]]:
    """One job: the records of these objects, all committed when it returns.

    Raises as `build_object`; an OSError says in `host` where it was.
    """
    try:
        if order.launch and order.make is None:
            from .batches import build_batch  # torch and the renderers load in the worker

            return build_batch(items, order)
        return [build_object(item, order) for item in items]
    except OSError as error:
        error.host = socket.gethostname()  # type: ignore[attr-defined]
        raise


def settle(items: Sequence[MeshItem], result: Any, order: Order) -> Any:
    """What came of a job: where one object alone is to blame for its error, the committed record of that; else itself.

    Raises as `commit_failure`.
    """
    if not isinstance(result, Exception) or isinstance(result, OSError | notes.Superseded) or len(items) > 1:
        return result
    heard = notes.last_heard(order.out, items[0].uid)  # this process may be on another machine than the worker was
    run = {"machine": heard.get("machine", ""), "host": heard.get("host", ""), "finished": round(time.time(), 3)}
    return [commit_failure(order, items[0], heard.get("stage", "process"), result, run)]


def build_object(item: MeshItem, order: Order) -> dict[str, Any]:
    """One object from mesh to committed record; a failure is a record too, with stage and reason.

    Raises OSError where the folder cannot be written, Superseded where it belongs to a later build.
    """
    notes.check(order.out, order.token)
    before = settled(order, item)
    if before is not None:  # by a worker that was killed before it could tell
        return before
    watch = Watch(order.out, item.uid, order.token)
    try:
        found = item.path.stat()
        watch.enter("load")
        make = order.make
        if make is None:
            from .objects import make  # torch and the renderers load in the worker, not in the parent's start
        patterns, seed = order.parts.get(item.category, {}), order.seed_of(item.uid)
        made = make(item, order.out, order.config, patterns, seed, watch.enter, order.limits.mesh)
    except Exception as error:
        notes.check(order.out, order.token)  # a later build may have swept away what it was writing
        if not is_charged(error, watch.stage):
            raise
        return commit_failure(order, item, watch.stage, error, watch.run())
    notes.check(order.out, order.token)
    return commit(order, item, done(order, item, made, found, watch.run()))
