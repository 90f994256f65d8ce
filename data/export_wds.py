"""WebDataset: splats and their labels in plain tar files, for loaders that stream."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterable
from itertools import chain, islice
from pathlib import Path
from typing import Any

from gsmae.errors import InputError
from gsmae.files import write_aside

SHARD = "{}-{:06d}.tar"


def key(uid: str) -> str:
    """A uid as a name in a tar file: readers end the key of a sample at the first dot, and folders matter to some."""
    return uid.replace("%", "%25").replace(".", "%2E").replace("/", "__")


def write_shards(
    out: Path, split: str, samples: Iterable[tuple[str, bytes, dict[str, Any]]], per_shard: int
) -> list[dict[str, Any]]:
    """Write samples (uid, PLY bytes, JSON values) as `<split>-000000.tar` and on; one object is held at a time.

    Each is two files, `<key>.ply` and `<key>.json`. Equal input gives equal bytes: no times, owners or modes of the
    machine. Returns name, objects and bytes of each shard. InputError where two uids have one key.
    """
    shards: list[dict[str, Any]] = []
    samples, keys = iter(samples), {}
    ahead = next(samples, None)
    while ahead is not None:
        path, count = out / SHARD.format(split, len(shards)), 0
        with write_aside(path) as temporary, tarfile.open(temporary, "w", format=tarfile.PAX_FORMAT) as tar:
            for uid, ply, values in chain([ahead], islice(samples, per_shard - 1)):
                name = key(uid)
                if keys.setdefault(name, uid) != uid:
                    raise InputError(out, f"'{uid}' and '{keys[name]}' would have one name, {name}", "rename one")
                text = json.dumps(values, allow_nan=False, ensure_ascii=False).encode()
                for suffix, content in ((".ply", ply), (".json", text)):
                    entry = tarfile.TarInfo(name + suffix)
                    entry.size, entry.mode = len(content), 0o644
                    tar.addfile(entry, io.BytesIO(content))
                count += 1
        shards.append({"file": path.name, "objects": count, "bytes": path.stat().st_size})
        ahead = next(samples, None)
    return shards
