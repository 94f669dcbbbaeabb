"""YAML of unknown origin as plain values: no tags, no aliases, no interpolations, so nothing that acts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from vitsee.errors import UserError
from vitsee.io.files import opened

LARGEST = 2**20
"""Bytes of the largest experiment.yaml that is read."""
DEEPEST = 30
"""Mappings and lists in each other of the deepest one."""


def read(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file. Raises UserError if it is none, or has more than plain values.

    Aliases can make a small file fill the memory, and interpolations read the environment; escapes
    such as "\\x24{" are seen too, because what is judged is what was read.
    """
    try:
        with opened(path) as file:
            content = file.read(LARGEST + 1)
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        raise UserError(
            f"there is no file {path}; name the experiment.yaml of a result folder"
        ) from error
    try:
        if len(content) > LARGEST:
            raise UserError(f"{path} is not an experiment: it is larger than {LARGEST} bytes")
        for event in yaml.parse(content, yaml.SafeLoader):
            if isinstance(event, yaml.AliasEvent):
                raise UserError(f"{path} has an alias (*{event.anchor}); {_ONLY}")
        found = yaml.safe_load(content)
    except (yaml.YAMLError, UnicodeError, ValueError, RecursionError) as error:
        if isinstance(error, UserError):
            raise
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{path} is not an experiment: {reason}") from error
    if not isinstance(found, dict):
        raise UserError(f"{path} is not an experiment: it is no mapping of names to values")
    _refuse_interpolations(path, found, DEEPEST)
    return found


def analysis_of(stored: dict[str, Any], path: Path) -> str:
    """The name of the analysis that a stored experiment asks for. Raises UserError if it names none."""
    analysis = stored.get("analysis")
    if not isinstance(analysis, dict) or not isinstance(analysis.get("name"), str):
        raise UserError(f"{path} is not an experiment: it names no analysis")
    return analysis["name"]


_ONLY = "an experiment.yaml has plain values only"


def _refuse_interpolations(path: Path, value: Any, depth: int) -> None:
    if depth == 0:
        raise UserError(f"{path} is not an experiment: it is nested more than {DEEPEST} deep")
    if isinstance(value, str) and "${" in value:
        raise UserError(f"{path} has an interpolation (${{…}}); {_ONLY}")
    if isinstance(value, dict):
        value = [*value, *value.values()]
    if isinstance(value, (list, tuple, set)):
        for one in value:
            _refuse_interpolations(path, one, depth - 1)
