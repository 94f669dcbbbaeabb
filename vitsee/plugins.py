"""Analyses and claims from outside the package: files named by `--import`, and entry points of installed packages."""

from __future__ import annotations

import importlib
import logging
import os
import sys
import traceback
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from pathlib import Path
from sysconfig import get_path

from vitsee.analysis import REGISTERED, Analysis
from vitsee.errors import UserError, nearest
from vitsee.flags import taken

log = logging.getLogger(__name__)

GROUP = "vitsee.analyses"
"""The entry-point group of packages that bring analyses."""


def import_asked(words: list[str]) -> list[str]:
    """Import the files and modules given with `--import` on a command line; return the other words.

    Raises UserError if an import fails.
    """
    asked, rest = taken(words, "--import", needs="a Python file or module: --import my_analysis.py")
    for named in asked:
        _import(named)
    return rest


def _import(named: str) -> None:
    is_file = named.endswith(".py") or os.sep in named
    path = Path(named).expanduser().resolve()
    if is_file and not path.is_file():
        beside = [one.name for one in path.parent.glob("*.py")] if path.parent.is_dir() else []
        raise UserError(f"--import {named}: there is no such file.{nearest(path.name, beside)}")
    if path.is_file() and path.suffix != ".py":
        raise UserError(f"--import {named}: the name of a Python file ends in .py; rename it")
    make_findable(path.parent if is_file else Path.cwd())
    try:
        if is_file:
            _import_file(path)
        else:
            importlib.import_module(named)
    except UserError:
        raise
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and f"{named}.".startswith(f"{error.name}."):
            there = [one.name for one in Path.cwd().glob("*.py")]
            raise UserError(
                f"--import {named}: there is no module of that name (a Python file is named with .py)."
                f"{nearest(named, there)}"
            ) from error
        raise UserError(f"--import {named}: {where(error)}") from error
    for each in _unregistered(path.stem if is_file else named):
        log.warning(
            "warning: --import %s: the analysis %s is not registered; write @register above its class, below "
            "`from vitsee.analysis import register`",
            *(named, each),
        )


def _unregistered(module: str) -> list[str]:
    """Names of the analyses that a module defines and forgets to register, and that no registered one extends."""
    kinds = [
        kind
        for kind in vars(sys.modules[module]).values()
        if isinstance(kind, type) and issubclass(kind, Analysis) and kind.__module__ == module
    ]
    known = tuple(REGISTERED.values())
    return [kind.__name__ for kind in kinds if not any(issubclass(one, kind) for one in known)]


def _import_file(path: Path) -> None:
    """Import a file as the module of the same name, so that other processes find its classes."""
    name = path.stem
    there = sys.modules.get(name)
    if there is not None and Path(getattr(there, "__file__", None) or "").resolve() == path:
        return
    found = find_spec(name) if name.isidentifier() else None
    if not name.isidentifier() or there is not None or found is None or found.origin != str(path):
        raise UserError(
            f"--import {path}: {name!r} is not a valid module name or is already taken; rename the file"
        )
    importlib.import_module(name)


def make_findable(folder: Path) -> None:
    """Let this process and its child processes import from the folder, after everything else."""
    if str(folder) not in sys.path:
        sys.path.append(str(folder))
        paths = [*filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep)), str(folder)]
        os.environ["PYTHONPATH"] = os.pathsep.join(paths)


def where(error: Exception) -> str:
    """The error in user code, with the file and line: the innermost that no library contains, if there is one."""
    frames = traceback.extract_tb(error.__traceback__)
    last = [*frames, *(frame for frame in frames if not _of_library(frame.filename))][-1]
    file, line, said = last.filename, last.lineno, " ".join(str(error).split())
    if isinstance(error, SyntaxError):
        file, line, said = error.filename or file, error.lineno or line, error.msg
    return f"{type(error).__name__}{said and f': {said}'} ({file}, line {line})"


def _of_library(file: str) -> bool:
    path = Path(file)
    ours = any(path.is_relative_to(place) for place in (Path(__file__).parent, get_path("stdlib")))
    return ours or not {"site-packages", "dist-packages"}.isdisjoint(path.parts)


def import_installed() -> None:
    """Import the analyses of installed packages; those that fail are left out with a warning."""
    for point in entry_points(group=GROUP):
        try:
            point.load()
        except Exception as error:  # the other analyses can still be used
            log.warning("warning: %s is left out: %s", _words(point), where(error))


def _words(point: EntryPoint) -> str:
    package = f" of the package {point.dist.name}" if point.dist else ""
    return f"analysis {point.name} ({point.value}){package}"
