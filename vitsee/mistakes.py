"""The user's mistakes as one-line messages that name the valid choices."""

from __future__ import annotations

import re
import traceback
from collections.abc import Iterable
from dataclasses import fields, is_dataclass
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf.errors import OmegaConfBaseException, ValidationError

from vitsee import choices
from vitsee.analysis import REGISTERED, Analysis
from vitsee.errors import UserError, refused, unknown
from vitsee.options import DatasetOptions, Experiment, ModelOptions, RunOptions, spoken


def of_composition(error: BaseException) -> bool:
    """Return whether Hydra, OmegaConf or a parser under them raised this error, whatever its class."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    where = str(frames[-1].f_globals.get("__name__")) if frames else ""
    return where.split(".")[0] in ("hydra", "omegaconf", "antlr4", "yaml")


def mistake(error: BaseException) -> str | None:
    """Return the message for an error that the user can fix; None for any other error.

    An OSError is almost never a bug: paths, permissions, disks and limits are the user's to fix.
    """
    if isinstance(error, (HydraException, OmegaConfBaseException, UserError)):
        return explain(error)
    if isinstance(error, OSError):
        return refused(error)
    if of_composition(error):
        return f"invalid configuration: {' '.join(str(error).split())}"
    return None


def explain(error: BaseException) -> str:
    """Return one line that says which key, option or value is wrong, and which are valid."""
    if isinstance(error, OverrideParseException):
        if "=" not in str(error.override):
            return f"cannot read {error.override!r}: options are written key=value"
        key, _, value = str(error.override).partition("=")
        wrong, balanced = _balanced(value)
        if wrong and _readable(f"{key}={balanced}"):
            return f"cannot read {error.override!r}: {wrong}; write '{key}={balanced}'"
        return (
            f"cannot read {error.override!r}: quote a value with special characters twice, for the shell and "
            f"for vitsee: '{key}=\"{value}\"'"
        )
    ends = (OmegaConfBaseException, MissingConfigException, UserError, OSError)
    while not isinstance(error, ends):
        deeper = error.__cause__ or error.__context__
        if deeper is None:
            said = str(error).splitlines()[0]
            if said.startswith("Could not override 'recipe'"):
                return (
                    "recipe=NAME is for training: vitsee train recipe=NAME (`vitsee list recipes`)"
                )
            several = re.fullmatch(r"Ambiguous value for argument '(.*)'", said)
            return (
                f"{several[1]}: for several experiments, vitsee run -m {several[1]}"
                if several
                else said
            )
        error = deeper
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, MissingConfigException):
        return _no_such_choice(error)
    if isinstance(error, OSError):
        return refused(error)
    kind, said = error.object_type, str(error.msg).splitlines()[0]
    names = [f.name for f in fields(kind)] if kind and is_dataclass(kind) else []
    if kind and names and error.key not in names:
        return str(undeclared(kind, str(error.full_key)))
    if error.full_key == "other" and isinstance(error, ValidationError):
        return "other: choose the second model with model@other=NAME, and change it with other.OPTION=VALUE"
    if missing := re.search(r"Missing mandatory value: (\S+)", said):
        return f"{missing[1]} is missing: give {missing[1]}=VALUE"
    return f"{error.full_key}: {said}"


_CLOSING = {"[": "]", "{": "}", "(": ")"}
_OPENING = {closing: opening for opening, closing in _CLOSING.items()}


def _balanced(value: str) -> tuple[str, str]:
    """Return what is wrong with the brackets of a value, and the value with matching brackets."""
    wrong, balanced, quote = "", "", ""
    unclosed: list[str] = []
    for each in value:
        if quote or each in "'\"":
            quote = "" if each == quote else quote or each
        elif each in _CLOSING:
            unclosed.append(each)
        elif each in _OPENING and not unclosed:
            wrong, balanced = f"no {_OPENING[each]} opens the {each}", _OPENING[each] + balanced
        elif each in _OPENING and _OPENING[each] not in unclosed:
            wrong, each = f"{each} cannot close the {unclosed[-1]}", _CLOSING[unclosed.pop()]
        elif each in _OPENING:
            while (opening := unclosed.pop()) != _OPENING[each]:
                wrong, balanced = f"nothing closes the {opening}", balanced + _CLOSING[opening]
        balanced += each
    if unclosed:
        wrong = f"nothing closes the {unclosed[-1]} (a space ends the word, unless it is quoted)"
        balanced = balanced.rstrip(", ") + "".join(_CLOSING[each] for each in reversed(unclosed))
    return wrong, balanced


def _readable(word: str) -> bool:
    try:
        OverridesParser.create().parse_override(word)
    except HydraException:
        return False
    return True


def undeclared(kind: type, key: str) -> UserError:
    """Return the error for an option that this dataclass of options does not have. key: with its groups."""
    asked = f"there is no option {key}"
    group, _, name = key.rpartition(".")
    if any(f.name == f"{name}_" for f in fields(kind)):
        return UserError(f"{asked} in a YAML file: write {name}_: VALUE there")
    names = [spoken(f.name) for f in fields(kind)]
    if kind is not Experiment:
        owner = kind.__name__ if issubclass(kind, Analysis) or not group else group
        return unknown(asked, name, names, f"{owner} has")
    groups: dict[str, Iterable[Any]] = {
        "analysis": REGISTERED.values(),
        "dataset": [DatasetOptions],
        "model": [ModelOptions],
        "run": [RunOptions],
    }
    inside = [
        f"{group}.{name}"
        for group, kinds in groups.items()
        if any(name == spoken(f.name) for one in kinds for f in fields(one))
    ]
    if inside:
        return UserError(f"{asked}. Did you mean {' or '.join(inside)}?")
    return unknown(asked, name, [*names, "figure", "protocol", "zoo"], "vitsee run has")


def _no_such_choice(error: MissingConfigException) -> str:
    group, _, option = str(error.missing_cfg_file).rpartition("/")
    if error.options is None:  # a file's defaults name it
        said, valid = str(error).splitlines()[0], choices.names(group)
        file = said.partition(":")[0]
        return f"{file}: {choices.no_such(group, option, valid)}" if valid else said
    if option.startswith("submitit"):
        return f"{group}={option} needs the SLURM launcher: pip install 'vitsee[slurm]'"
    return str(choices.no_such(group, option, error.options))
