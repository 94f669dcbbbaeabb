"""Finds the choices of each group (model=NAME, figure=NAME, …) in vitsee's YAML files and the user's."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from os import PathLike, fspath
from pathlib import Path
from typing import Any

import yaml
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.plugins import Plugins
from hydra.plugins.search_path_plugin import SearchPathPlugin

from vitsee.errors import UserError, expanded, nearest, unknown
from vitsee.io.files import visible

_PACKAGED = Path(__file__).parent / "conf"

CONF = _PACKAGED if _PACKAGED.is_dir() else Path(__file__).parents[1] / "conf"
"""vitsee's own folder."""
GROUPS = ("model", "dataset", "protocol", "recipe", "figure", "zoo")
GLOBAL = ("protocol", "recipe")
"""Groups whose files set options of any group; the other files set those of one thing, and say its name."""
PACKAGE = "# @package _global_"
FLAGS = ("--config-dir", "-cd")
NEEDS = "a folder of YAML files: --config-dir conf"
PROVIDER = "vitsee --config-dir"

_theirs: ContextVar[tuple[Path, ...]] = ContextVar("_theirs", default=())
"""The user's folders, in this thread."""


@contextmanager
def using(*given: str | PathLike[str]) -> Iterator[None]:
    """Run the block with choices from these folders too.

    Raises UserError if one is missing, has no choices, or has one under a name that is taken: a name never means
    another model than it did.
    """
    before = _theirs.set(())
    try:
        for each in given:
            if _is_there(each):
                continue
            folder = _checked(each)
            _theirs.set((*_theirs.get(), folder))
            _check_files(folder)
        if given:
            Plugins.instance().register(SearchTheirs)
        yield
    finally:
        _theirs.reset(before)


class SearchTheirs(SearchPathPlugin):
    """Lets Hydra find what is in the user's folders."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        for folder in _theirs.get():
            search_path.append(PROVIDER, f"file://{folder.absolute()}")


def folders() -> tuple[Path, ...]:
    """The folders with choices: the user's, then vitsee's."""
    return (*_theirs.get(), CONF)


def names(group: str, *where: Path) -> list[str]:
    """The choices in a group, in these folders or in all."""
    there = where or folders()
    return sorted(file.stem for folder in there for file in visible(folder / group, ".yaml"))


def path(group: str, name: str) -> Path:
    """The file of a choice. Raises UserError if there is none."""
    for folder in folders():
        if (file := folder / group / f"{name}.yaml").is_file():
            return file
    raise no_such(group, name, names(group))


def no_such(group: str, name: str, valid: Iterable[str]) -> UserError:
    """The error for a choice that does not exist."""
    own = " (if it is your own: --import its file)" if group == "analysis" else ""
    near = re.sub(r"^(?:fig)?(\d)$", r"fig0\1", name)
    known = unknown(f"there is no {group}={name}{own}", near, valid, f"{group} can be")
    elsewhere = {
        "model": f" One of timm: model=timm model.timm={name}",
        "dataset": f" Your own images: dataset=folder dataset.root={name}",
    }
    yours = "" if own or _theirs.get() else " (files of your own: --config-dir FOLDER)"
    return UserError(f"{known}{elsewhere.get(group, '')}{yours}")


def options(group: str, name: str) -> dict[str, Any]:
    """The options in the file of a choice, including those inherited from others of its group."""
    own = _read(path(group, name))
    defaults = [str(each) for each in own.pop("defaults", [])]
    found: dict[str, Any] = {}
    for each in defaults if "_self_" in defaults else [*defaults, "_self_"]:
        if each.startswith("/schema"):
            continue
        parent = each.partition("@")[0].rpartition("/")[2]
        for key, value in (own if each == "_self_" else options(group, parent)).items():
            mapping = isinstance(value, dict) and isinstance(found.get(key), dict)
            found[key] = found[key] | value if mapping else value
    return found


def _read(file: Path) -> dict[str, Any]:
    try:
        found = yaml.load(file.read_text(encoding="utf-8"), yaml.CSafeLoader)
    except yaml.MarkedYAMLError as error:
        at = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise UserError(f"{file}{at} is not YAML: {error.problem}") from error
    except (yaml.YAMLError, UnicodeError) as error:
        raise UserError(f"{file} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(found, dict):
        raise UserError(f"{file}: it has no options, which are written NAME: VALUE")
    return found


def _is_there(given: str | PathLike[str]) -> bool:
    """Whether the folder is one of the user's already: a folder that is given twice counts once."""
    folder = expanded(fspath(given))
    return folder.is_dir() and any(folder.samefile(one) for one in _theirs.get())


def _checked(given: str | PathLike[str]) -> Path:
    """The folder. Raises UserError if it is missing, or its files cannot be used."""
    folder = expanded(fspath(given))
    if not folder.is_dir():
        beside = [each.name for each in folder.absolute().parent.glob("*/")]
        raise UserError(
            f"--config-dir {given}: there is no such folder.{nearest(folder.name, beside)}"
        )
    mine = _files(folder)
    kinds = {file.parts[0] for file in mine if len(file.parts) > 1}
    read = f"{', '.join(f'{group}/NAME.yaml' for group in GROUPS)}"
    for kind in sorted(kinds - {*GROUPS}):
        if kind in ("analysis", "schema"):
            raise UserError(f"{folder / kind}: analyses are Python files: --import FILE")
        if close := nearest(kind, GROUPS):
            raise UserError(f"{folder / kind} is not read; what is read is {read}.{close}")
    for file in sorted(file for group in GROUPS for file in visible(folder / group, ".yml")):
        raise UserError(f"{file} is not read; rename it {file.stem}.yaml")
    if not kinds & {*GROUPS, "hydra"}:
        raise UserError(f"--config-dir {given} contains no choices, which are {read}")
    for there in folders():
        for file in sorted(mine & _files(there)):
            whose = "vitsee has a file" if there is CONF else f"{there} has one"
            raise UserError(f"{folder / file}: {whose} of that name; rename yours")
    return folder


def _check_files(folder: Path) -> None:
    """Raise UserError for a file that would not be what it seems.

    It lacks its first line or its name, extends a choice that does not exist, or is overridden by what it extends.
    """
    for file in (file for group in GROUPS for file in visible(folder / group, ".yaml")):
        group, name = file.parent.name, file.stem
        own = _read(file)
        _check_defaults(file, own.get("defaults", []))
        if group in GLOBAL and PACKAGE not in file.read_text(encoding="utf-8").splitlines():
            raise UserError(f"{file} lacks its first line: {PACKAGE}")
        if group != "protocol":
            _check_name(file, own)
        if group in GLOBAL:
            continue
        try:
            options(group, name)
        except RecursionError as error:
            raise UserError(f"{file}: its defaults lead back to it") from error
        except UserError as error:
            raise UserError(f"{file}: {error}") from error


def _check_name(file: Path, own: dict[str, Any]) -> None:
    """Raise UserError if a file does not say its own name: it would go by that of what it extends."""
    of_recipe = file.parent.name == "recipe"
    holder = own.get("recipe") if of_recipe else own
    said = holder.get("name") if isinstance(holder, dict) else None
    if str(said) != file.stem and "${" not in str(said):
        has = f"name: {said}" if said else "no name"
        name = f"recipe: {{name: {file.stem}}}" if of_recipe else f"name: {file.stem}"
        raise UserError(f"{file} has {has}; write {name}, as the file is called")


def _check_defaults(file: Path, given: Any) -> None:
    """Raise UserError if the defaults of a file are not a list, or if something in it overrides the file."""
    if not isinstance(given, list):
        parent = given if isinstance(given, str) else "NAME"
        raise UserError(f"{file}: defaults must be a list; write defaults: [{parent}, _self_]")
    after = given[given.index("_self_") + 1 :] if "_self_" in given else []
    over = [each for each in after if not str(each).lstrip("{'\"").startswith("override ")]
    if over:
        written = ", ".join(str(each) for each in (*given, "_self_") if each != "_self_")
        raise UserError(
            f"{file}: what stands after _self_ in its defaults overrides the file itself; write defaults: "
            f"[{written}, _self_]"
        )


def _files(folder: Path) -> set[Path]:
    """The files in a folder that Hydra would find, relative to it."""
    return {
        file.relative_to(folder)
        for pattern in ("*.yaml", "*/*.yaml", "hydra/*/*.yaml")
        for file in folder.glob(pattern)
        if not file.name.startswith(".")
    }
