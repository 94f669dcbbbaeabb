"""YAML of unknown origin read as plain values, without tags, aliases or interpolations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from vitsee.errors import UserError
from vitsee.io.files import opened

LARGEST = 2**20
"""Largest size of an experiment.yaml, in bytes."""
DEEPEST = 30
"""Deepest nesting of mappings and lists in an experiment.yaml."""


def read(path: Path) -> dict[str, Any]:
    """Return the mapping in a YAML file. Raises UserError if it is not a mapping of plain values.

    Aliases can make a small file fill the memory, and interpolations read the environment. The parsed
    values are checked, which finds escapes such as "\\x24{" too.
    """
    try:
        with opened(path) as file:
            content = file.read(LARGEST + 1)
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        raise UserError(
            f"there is no file {path}; give the experiment.yaml of a result folder"
        ) from error
    try:
        if len(content) > LARGEST:
            raise UserError(f"{path} is not an experiment: it is larger than {LARGEST} bytes")
        _refuse_aliases_and_depth(path, content)
        stored = yaml.safe_load(content)
    except (yaml.YAMLError, UnicodeError, ValueError, RecursionError) as error:
        if isinstance(error, UserError):
            raise
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{path} is not an experiment: {reason}") from error
    if not isinstance(stored, dict):
        raise UserError(f"{path} is not an experiment: it is not a mapping of names to values")
    _refuse_interpolations(path, stored)
    return stored


def analysis_of(stored: dict[str, Any], path: Path) -> str:
    """Return the name of a stored experiment's analysis. Raises UserError if it does not name one."""
    analysis = stored.get("analysis")
    if not isinstance(analysis, dict) or not isinstance(analysis.get("name"), str):
        raise UserError(f"{path} is not an experiment: it does not name an analysis")
    return analysis["name"]


_ONLY = "an experiment.yaml may contain plain values only"


def _refuse_aliases_and_depth(path: Path, content: bytes) -> None:
    """Refuse them during parsing: the rest of a very deeply nested file would take hours."""
    depth = 0
    for event in yaml.parse(content, yaml.SafeLoader):
        if isinstance(event, yaml.AliasEvent):
            raise UserError(f"{path} has an alias (*{event.anchor}); {_ONLY}")
        if isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        elif isinstance(event, yaml.NodeEvent) and depth == DEEPEST:
            raise UserError(
                f"{path} is not an experiment: it is nested more than {DEEPEST} levels deep"
            )
        depth += isinstance(event, yaml.CollectionStartEvent)


def _refuse_interpolations(path: Path, value: Any) -> None:
    if isinstance(value, str) and "${" in value:
        raise UserError(f"{path} has an interpolation (${{…}}); {_ONLY}")
    if isinstance(value, dict):
        value = [*value, *value.values()]
    if isinstance(value, (list, tuple, set)):
        for one in value:
            _refuse_interpolations(path, one)
