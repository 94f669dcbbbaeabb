"""Published figures, panel by panel, in roles; and zoos, which say which model plays each role."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from vitsee.config import CONF
from vitsee.errors import UserError, unknown


@dataclass(kw_only=True)
class Panel:
    """One experiment, or one for each of several roles drawn in one plot."""

    title: str = MISSING
    analysis: str = MISSING
    figure: str = MISSING
    """Which of the analysis's figures is shown."""
    roles: list[str] = MISSING
    """Who plays the model; several are drawn in one plot."""
    other: str | None = None
    """Who plays the second model."""
    options: list[str] = field(default_factory=list)
    """Overrides of `vitsee run`, e.g. analysis.layers=last."""
    role_options: dict[str, list[str]] = field(default_factory=dict)
    """More of them for one of the roles."""


@dataclass(kw_only=True)
class Cost:
    """What a figure takes with those of the paper's models that are public, as scripts/costs.py reckons it."""

    images: int = MISSING
    """That are measured, counted again for each model."""
    gpu_minutes: float = MISSING
    """Of an A100 for the models alone."""


@dataclass(kw_only=True)
class Published:
    """A figure of a publication: what it shows, from which panels, and which claims it tests."""

    name: str = MISSING
    source: str = MISSING
    title: str = MISSING
    shows: str = MISSING
    """What the authors conclude from it, in a sentence."""
    cost: Cost | None = None
    """None where the models are those of the command line."""
    panels: dict[str, Panel] = MISSING
    rows: list[list[str]] = MISSING
    """Names of the panels, row by row."""
    lenient: bool = False
    """A panel that a model cannot give (attention of a CNN) is left out, not an error."""
    claims: dict[str, dict[str, str]] = field(default_factory=dict)
    """For each claim it tests, which panel is which evidence."""


ASKED = ("model", "other")
"""Roles that are played by the models of the command line, model=NAME and model@other=NAME."""


def asks(figure: Published) -> set[str]:
    """The roles of the figure that models of the command line play."""
    roles = {role for panel in figure.panels.values() for role in (*panel.roles, panel.other)}
    return {role for role in ASKED if role in roles}


@dataclass(kw_only=True)
class Role:
    """A model of conf/model, or why there is none and how to get one."""

    model: str | None = None
    missing: str | None = None
    note: str = ""
    """How it differs from the publication's model."""


@dataclass(kw_only=True)
class Zoo:
    """Who plays which role at one scale."""

    name: str = MISSING
    options: list[str] = field(default_factory=list)
    """Overrides that all its experiments begin with."""
    roles: dict[str, Role] = MISSING

    def role(self, name: str) -> Role:
        """Who plays it. Raises UserError if nobody has heard of it."""
        if name not in self.roles:
            raise unknown(f"zoo {self.name} has no role {name}", name, self.roles, "it has")
        return self.roles[name]


def published(name: str) -> Published:
    """The figure of this name. Raises UserError if there is none."""
    return _load("figure", name, Published)


def zoo(name: str) -> Zoo:
    """The zoo of this name. Raises UserError if there is none."""
    return _load("zoo", name, Zoo)


def figures() -> list[str]:
    """Names of all published figures."""
    return _there("figure")


def zoos() -> list[str]:
    """Names of all zoos."""
    return _there("zoo")


def _there(group: str) -> list[str]:
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


def _load(group: str, name: str, kind: type) -> Any:
    if name not in _there(group):
        raise unknown(f"there is no {group}={name}", name, _there(group), f"{group} can be")
    path: Path = CONF / group / f"{name}.yaml"
    try:
        options = yaml.load(path.read_text(encoding="utf-8"), yaml.CSafeLoader)
        merged = OmegaConf.merge(OmegaConf.structured(kind), options)
    except (OmegaConfBaseException, yaml.YAMLError) as error:
        raise UserError(f"{path}: {str(error).splitlines()[0]}") from error
    assert isinstance(merged, DictConfig)
    return OmegaConf.to_object(merged)
