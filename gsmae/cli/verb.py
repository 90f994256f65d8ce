"""What every verb shares: how its arguments are read and what it hands back."""

from __future__ import annotations

import dataclasses
import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, TypeVar

import tyro

from gsmae.config import Config
from gsmae.errors import nearest_name

Flag = Annotated[bool, tyro.conf.FlagCreatePairsOff]
"""A switch: --name, without a --no-name"""

NO_PREFIX = tyro.conf.arg(name="")
"""For a configuration whose fields are flags of their own: --train.epochs instead of --run.train.epochs"""


class Arguments(Config):
    """Base of every verb's arguments."""

    as_json: Annotated[Flag, tyro.conf.arg(name="json")] = False
    """print the summary as one JSON object, for other programs"""


A = TypeVar("A", bound=Arguments)


@dataclass(frozen=True)
class Outcome:
    """What a verb did: a summary of plain values, the exit code, and lines for people; `quiet` says nothing."""

    summary: dict[str, Any]
    code: int = 0
    as_json: bool = False
    lines: list[str] = field(default_factory=list)
    quiet: bool = False

    def write(self) -> None:
        """The summary on standard output: JSON, or the lines, or the values one by one."""
        if self.quiet:
            return
        if self.as_json:
            sys.stdout.write(json.dumps(self.summary, default=str) + "\n")
        else:
            lines = self.lines or [f"{key}: {value}" for key, value in self.summary.items()]
            sys.stdout.write("".join(line + "\n" for line in lines))


def parse(cls: type[A], verb: str, argv: list[str], default: A | None = None) -> A:
    """Read a verb's arguments; wrong ones end the program with code 2 and the nearest valid name."""
    read = tyro.cli(cls, prog=f"gsmae {verb}", args=argv, default=default)
    assert isinstance(read, cls)
    return read


def with_defaults(cls: type[A], **given: Any) -> A:
    """A default for `parse` in which what a preset decides is `given`; required arguments stay to be asked for."""
    fields = cls.model_fields.items()
    values = {name: tyro.MISSING if field.is_required() else field.default for name, field in fields}
    return cls.model_construct(**{**values, **given})


def preset(argv: list[str], flag: str, known: dict[str, Any], fallback: str) -> str:
    """The value of one flag, read before the rest because it decides the defaults of the rest; the last one counts."""
    value = fallback
    for here, following in zip(argv, [*argv[1:], ""], strict=True):
        name = here.split("=", 1)[1] if here.startswith(flag + "=") else following if here == flag else None
        if name is not None:
            if name not in known:
                sys.stderr.write(f"gsmae: {flag} {name}: {nearest_name(name, known)}\n")
                raise SystemExit(2)
            value = name
    return value


def plain(value: Any) -> Any:
    """Dataclasses, configurations and paths as plain JSON values."""
    if isinstance(value, Config):
        return value.model_dump(mode="json")
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    return str(value) if isinstance(value, Path) else value
