"""The command line: one verb per arrow of mesh -> splat -> shard -> batch -> checkpoint.

Verbs are imported when they are called, so that `gsmae --help` answers at once. Exit codes: see EXIT_CODES.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import threading
from importlib import import_module
from pathlib import Path

from gsmae.errors import GsmaeError, nearest_name

# verb -> (module below gsmae.cli, one line of help); the function has the verb's name
VERBS = {
    "examples": ("datasets", "where the real example meshes lie that come with gsmae"),
    "build": ("datasets", "meshes -> a folder of Gaussian splats (.ply), one record per object"),
    "plan": ("building", "what is left of a collection, and the hours, disk and money that it takes"),
    "status": ("building", "how far a build is, from any shell; works after a kill, too"),
    "retry": ("building", "try failed objects of a build again"),
    "gc": ("building", "remove what killed builds left"),
    "pack": ("datasets", "a build -> shards (HDF5) and an index, ready for training"),
    "check": ("datasets", "look for missing, altered or broken files in a build, a pack or a splat"),
    "audit": ("auditing", "objects in two splits or categories, missing or doubled; also of bare lists"),
    "repair": ("auditing", "mend a build's records and a pack's index; say what cannot be mended"),
    "show": ("looking", "a picture of a splat, beside its mesh and the error where the mesh is known"),
    "report": ("looking", "one HTML page about builds, packs and runs"),
    "stats": ("exporting", "counts, quality and shapes per class; centroids against the mesh surface"),
    "export": ("exporting", "splats for viewers and other programs: .ply, .splat, .spz, .sog, .glb, WebDataset"),
    "pretrain": ("learning", "shards -> a pretrained encoder (Gaussian-MAE)"),
    "finetune": ("learning", "shards + encoder -> a classifier or a part segmenter"),
    "evaluate": ("learning", "measure a fine-tuned model on a split; test is read once"),
    "reproduce": ("reproducing", "the paper's tables, or your own: all arms and seeds, resumed where it stopped"),
    "probe": ("probing", "linear, SVM or nearest neighbours on frozen features; test is read once"),
    "retrieve": ("probing", "search with partial shapes by frozen features"),
    "folds": ("fewshot", "draw few-shot folds of a pack into a file"),
    "fewshot": ("fewshot", "learn from few objects of few classes, fold by fold"),
    "reconstruct": ("models", "what a pretrained run predicts for hidden groups: pictures and splats"),
    "embed": ("models", "features of splats by a trained encoder"),
    "convert": ("models", "released Gaussian-MAE and Point-MAE checkpoints -> ours, without unpickling code"),
}

EXIT_CODES = {
    0: "all went well",
    1: "a bug in gsmae: please report the traceback",
    2: "the command line is wrong: unknown verb, flag or value",
    3: "the input is wrong: the message names the file, the cause and the cure",
    4: "finished, but some objects failed or some checks found something: see the summary",
    130: "stopped by a signal; the same command goes on where it stopped",
}


def main(argv: list[str] | None = None) -> int:
    """Run one verb; returns the exit code."""
    if argv is None and not {"", _here()} & set(sys.path):  # as the installed command
        os.environ.setdefault("PYTHONSAFEPATH", "1")  # nor shall processes that we start find a checkout that we are in
    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv[0] in ("-h", "--help", "help"):
        sys.stdout.write(_help())
        return 0
    verb, rest = argv[0], argv[1:]
    if verb == "--version":
        from gsmae import __version__

        sys.stdout.write(f"gsmae {__version__}\n")
        return 0
    if verb not in VERBS:
        sys.stderr.write(f"gsmae: unknown verb '{verb}': {nearest_name(verb, VERBS)}\n")
        return 2
    logging.basicConfig(level=logging.INFO, format="%(levelname).1s %(name)s: %(message)s", handlers=[_BarFriendly()])
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _stop)
    try:
        _ours()
        outcome = getattr(import_module(f"gsmae.cli.{VERBS[verb][0]}"), verb)(rest)
    except GsmaeError as error:
        sys.stderr.write(f"error: {error}\n")
        return 130 if type(error).__name__ == "Interrupted" else 3
    except KeyboardInterrupt:
        sys.stderr.write("stopped; run the same command again to go on\n")
        return 130
    except OSError as error:
        sys.stderr.write(f"error: {error}\n")
        return 3
    with contextlib.suppress(BrokenPipeError):  # whoever reads may have read enough
        outcome.write()
        sys.stdout.flush()
    return outcome.code


def _here() -> str:
    try:
        return str(Path.cwd())
    except FileNotFoundError:  # the folder has been removed, which is nothing to us
        return ""


def _stop(*_: object) -> None:
    raise KeyboardInterrupt


def _help() -> str:
    verbs = "".join(f"  {name:<12} {text}\n" for name, (_, text) in VERBS.items())
    codes = "".join(f"  {code:<12} {text}\n" for code, text in EXIT_CODES.items())
    return (
        "usage: gsmae VERB [OPTIONS]\n\n"
        "`gsmae VERB --help` explains every option; --json prints the summary as JSON.\n\n"
        f"{verbs}\nExit codes:\n{codes}"
    )


def _ours() -> None:
    """Refuse to run with a foreign package named `data` or `preprocessing` in front of ours."""
    home = Path(__file__).resolve().parents[2]
    for name in ("data", "preprocessing"):
        found = Path(import_module(name).__file__ or "").resolve().parents[1]
        if found != home:
            raise GsmaeError(f"another package named '{name}' in {found} hides ours in {home}; mind PYTHONPATH")


class _BarFriendly(logging.Handler):
    """Log lines that do not tear a progress bar apart."""

    def emit(self, record: logging.LogRecord) -> None:
        from tqdm import tqdm

        tqdm.write(self.format(record), file=sys.stderr)
