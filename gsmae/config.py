"""Configurations are values: frozen, typed, unknown keys refused, written as YAML into every run."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from .errors import InputError, nearest_name
from .files import write_aside

C = TypeVar("C", bound="Config")
MAX_YAML = 1 << 18  # bytes


class Config(BaseModel):
    """Base of every configuration: immutable, and a key that it does not know is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


def from_mapping(cls: type[C], values: Any, path: str | Path = "configuration") -> C:
    """Build a configuration from plain values; errors name the key and the nearest known one.

    Raises InputError that names `path` and every offending key.
    """
    try:
        return cls.model_validate(values)
    except ValidationError as error:
        raise InputError(path, "; ".join(_explain(cls, e) for e in error.errors())) from None


def from_yaml(cls: type[C], path: str | Path, over: C | None = None) -> C:
    """Read a configuration from a YAML file (safe loader; nothing is executed).

    over  where the file does not say, this configuration does; else the defaults
    """
    try:
        if (size := Path(path).stat().st_size) > MAX_YAML:  # it is parsed at 0.3 MB/s
            raise InputError(path, f"has {size} bytes; a configuration may have {MAX_YAML}", "is it one?")
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(path, "no such file") from None
    except OSError as error:
        raise InputError(path, error.strerror or str(error)) from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise InputError(path, f"not readable as YAML: {' '.join(str(error).split())}") from None
    values = values if values is not None else {}
    if over is not None and isinstance(values, dict):
        values = merged(over.model_dump(mode="json"), values)
    return from_mapping(cls, values, path)


def to_yaml(config: Config | dict[str, Any], path: str | Path) -> None:
    """Write the whole configuration, defaults included; or plain values, as they are."""
    values = config.model_dump(mode="json") if isinstance(config, Config) else config
    with write_aside(path) as temporary:
        temporary.write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")


def digest(*configs: Config | dict[str, Any]) -> str:
    """Twelve hex digits that change when any value of the configurations does."""
    plain = [c.model_dump(mode="json") if isinstance(c, Config) else c for c in configs]
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:12]


def merged(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Nested values of `above` over those of `below`."""
    both = {k: merged(below[k], v) for k, v in above.items() if isinstance(v, dict) and isinstance(below.get(k), dict)}
    return {**below, **above, **both}


def _explain(cls: type[BaseModel], error: Any) -> str:
    """One pydantic error in words, with the nearest valid name for an unknown key."""
    where = ".".join(str(part) for part in error["loc"])
    if error["type"] != "extra_forbidden":
        return f"'{where}': {error['msg']}" if where else error["msg"]
    owner: Any = cls
    for part in error["loc"][:-1]:
        field = getattr(owner, "model_fields", {}).get(part)
        owner = field.annotation if field is not None else None
    known = getattr(owner, "model_fields", {})
    return (
        f"unknown key '{where}' ({nearest_name(str(error['loc'][-1]), known)})" if known else f"unknown key '{where}'"
    )
