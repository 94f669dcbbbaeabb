"""Definitions of published figures, whose panels refer to roles, and of zoos, which assign a model to each role."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, field, fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import yaml
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException

from vitsee import choices
from vitsee.errors import UserError, nearest, unknown


@dataclass(kw_only=True)
class Panel:
    """One experiment, or one per role, drawn in the same plot."""

    title: str = MISSING
    names_models: bool = False
    """Whether the title names the paper's models, although others may take their place."""
    analysis: str = MISSING
    figure: str = MISSING
    """Which figure of the analysis to show."""
    roles: list[str] = MISSING
    """Roles of the model; several are drawn in the same plot."""
    other: str | None = None
    """Role of the second model."""
    options: list[str] = field(default_factory=list)
    """Overrides of `vitsee run`, e.g. analysis.layers=last."""
    role_options: dict[str, list[str]] = field(default_factory=dict)
    """Further overrides for single roles."""


@dataclass(kw_only=True)
class Cost:
    """Cost of a figure with the paper's public models, as estimated by scripts/costs.py."""

    images: int = MISSING
    """Images measured, counted once per model."""
    gpu_minutes: float = MISSING
    """Minutes on an A100, for the models only."""


@dataclass(kw_only=True)
class Published:
    """A published figure: what it shows, its panels, and the claims it tests."""

    name: str = MISSING
    source: str = MISSING
    title: str = MISSING
    shows: str = MISSING
    """The authors' conclusion, in one sentence."""
    cost: Cost | None = None
    """None if the models come from the command line."""
    panels: dict[str, Panel] = MISSING
    rows: list[list[str]] = MISSING
    """Names of the panels in each row."""
    abreast: int = 1
    """Number of panels side by side if the figure is as wide as a column."""
    extra: bool = False
    """Whether it is from a paper other than the two that figure=all reproduces; figure=extra draws all of these."""
    lenient: bool = False
    """Leave out panels that a model does not support (attention of a CNN) instead of failing."""
    claims: dict[str, dict[str, list[str]]] = field(default_factory=dict)
    """For each claim it tests, the panels used as each piece of evidence; with several, the claim is about all."""


ASKED = ("model", "other")
"""Roles of the models from the command line, model=NAME and model@other=NAME."""


def asks(figure: Published) -> set[str]:
    """The roles of the figure that need models from the command line."""
    return set(ASKED) & _cast(figure)


def wants(figure: Published) -> set[str]:
    """The roles of the figure that need models from the zoo."""
    return _cast(figure) - set(ASKED)


def _cast(figure: Published) -> set[str]:
    roles = (role for panel in figure.panels.values() for role in (*panel.roles, panel.other))
    return {role for role in roles if role}


@dataclass(kw_only=True)
class Role:
    """A model in conf/model, or why none is available and how to get one."""

    model: str | None = None
    missing: str | None = None
    note: str = ""
    """How the model differs from the published one."""


@dataclass(kw_only=True)
class Zoo:
    """The model for each role at one scale."""

    name: str = MISSING
    options: list[str] = field(default_factory=list)
    """Overrides applied first in all its experiments."""
    roles: dict[str, Role] = MISSING

    def role(self, name: str) -> Role:
        """The model for this role. Raises UserError if the role does not exist."""
        self.check({name})
        return self.roles[name]

    def check(self, names: set[str]) -> None:
        """Raise UserError that names all of these roles that do not exist."""
        if lacking := sorted(names - set(self.roles)):
            first = lacking[0]
            close = "" if lacking[1:] else nearest(first, self.roles)
            raise UserError(
                f"zoo {self.name} has no role {', '.join(lacking)}; it has: {', '.join(sorted(self.roles))}.{close} "
                f'In your own zoo, add `{first}: {{model: NAME}}`, or `{first}: {{missing: "why"}}`'
            )


def published(name: str) -> Published:
    """The figure with this name. Raises UserError if it does not exist."""
    return _load("figure", name, Published)


def zoo(name: str) -> Zoo:
    """The zoo with this name. Raises UserError if it does not exist."""
    return _load("zoo", name, Zoo)


def figures() -> list[str]:
    """Names of all figures, those of the user's too."""
    return choices.names("figure")


def zoos() -> list[str]:
    """Names of all zoos."""
    return choices.names("zoo")


def _load(group: str, name: str, kind: type) -> Any:
    path = choices.path(group, name)
    return deepcopy(_parsed(path, path.read_text(encoding="utf-8"), kind))


@cache
def _parsed(path: Path, text: str, kind: type) -> Any:
    try:
        options = yaml.load(text, yaml.CSafeLoader)
        _check_form(path, options, kind)
        merged = OmegaConf.merge(OmegaConf.structured(kind), options)
        assert isinstance(merged, DictConfig)
        return OmegaConf.to_object(merged)
    except ConfigKeyError as error:
        valid = [each.name for each in fields(error.object_type or kind)]
        asked = f"{path}: there is no key {error.full_key}"
        raise unknown(asked, str(error.key), valid, "there can be") from error
    except (OmegaConfBaseException, yaml.YAMLError) as error:
        at = getattr(error, "full_key", "")
        raise UserError(f"{path}: {f'{at}: ' if at else ''}{str(error).splitlines()[0]}") from error


def _check_form(path: Path, given: Any, kind: Any, at: str = "") -> None:
    """Raise UserError for a part of a file that is no list or no mapping where it should be, with its spelling.

    at: the keys that lead to the part, joined by dots. Unknown keys and single values are left to OmegaConf.
    """
    origin, args = get_origin(kind), get_args(kind)
    key = at.rpartition(".")[2]
    if origin is list:
        meant = _as_list(given, args[0])
        if given != meant:
            raise UserError(f"{path}: {at} is a list; write `{key}: {_flow(meant)}`")
    elif origin is dict or is_dataclass(kind):
        if not isinstance(given, dict):
            right = _as_mapping(given, kind)
            raise UserError(f"{path}: {at} has keys of its own; write `{key}: {_flow(right)}`")
        kinds = get_type_hints(kind) if is_dataclass(kind) else dict.fromkeys(given, args[1])
        for name in given.keys() & kinds.keys():
            _check_form(path, given[name], kinds[name], f"{at}.{name}" if at else str(name))


def _as_list(given: Any, item: Any) -> list[Any]:
    """What was probably meant by a part that should be a list of words, or of lists of words."""
    parts = given if isinstance(given, list) else ["…" if given is None else given]
    if item is not str:
        return [part if isinstance(part, list) else [part] for part in parts]
    words: list[Any] = []
    for part in parts:
        options = part if isinstance(part, dict) else {}
        words += [f"{name}={_plain(value)}" for name, value in options.items()] or [part]
    return words


def _as_mapping(given: Any, kind: Any) -> dict[str, Any]:
    """What was probably meant by a part that should be a mapping: its necessary keys, or its first one."""
    if not is_dataclass(kind):
        return {"NAME": "…"}
    needed = [each.name for each in fields(kind) if each.default == MISSING]
    return dict.fromkeys(needed, "…") or {fields(kind)[0].name: "…" if given is None else given}


def _plain(value: Any) -> Any:
    return str(value).lower() if isinstance(value, bool) else value


def _flow(value: Any) -> str:
    """A value in one line of YAML."""
    return yaml.safe_dump(
        value, default_flow_style=True, allow_unicode=True, sort_keys=False, width=10_000
    ).strip()
