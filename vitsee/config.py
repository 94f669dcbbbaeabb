"""Composes configurations with Hydra and checks them against the typed options."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from difflib import get_close_matches
from enum import Enum
from numbers import Number
from pathlib import Path
from typing import Any

import numpy as np
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import OverrideType
from hydra.errors import HydraException
from hydra.version import VersionBase
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

import vitsee.analyses  # noqa: F401  (declares the schema of every analysis)
from vitsee import choices, returned
from vitsee.analysis import REGISTERED, Analysis, registered
from vitsee.choices import CONF
from vitsee.errors import UserError
from vitsee.io import plain
from vitsee.mistakes import explain, undeclared
from vitsee.options import DatasetOptions, Experiment


def composed(words: list[str]) -> Experiment:
    """Return the experiment that `vitsee run` with these arguments describes.

    Raises UserError, and Hydra's and OmegaConf's errors, which `mistakes.mistake` explains.
    """
    refuse_bare(words)
    return build(configuration("run", words))


def configuration(name: str, words: list[str]) -> DictConfig:
    """Return conf/NAME.yaml composed with these arguments. Raises the errors of Hydra and OmegaConf."""
    with _hydra_apart(), initialize_config_dir(str(CONF), version_base="1.3"):
        return compose(name, [quoted(word) for word in words])


def refuse_bare(words: Iterable[str]) -> None:
    """Raise UserError for a choice without its group: vit_nano instead of model=vit_nano."""
    for word in (word for word in words if word[:1].isalpha() and "=" not in word):
        groups = {
            name: group for group in ("figure", "dataset", "model") for name in choices.names(group)
        } | dict.fromkeys(REGISTERED, "analysis")
        for name in get_close_matches(word, groups, 1):
            raise UserError(
                f"cannot read {word!r}: options are written key=value. Did you mean {groups[name]}={name}?"
            )


_one_at_a_time = threading.Lock()


@contextmanager
def _hydra_apart() -> Iterator[None]:
    """Run the block with Hydra's global state reset, and restore it afterwards: the caller may be using Hydra."""
    with _one_at_a_time:
        theirs, base = GlobalHydra.instance().hydra, VersionBase.instance().version_base
        GlobalHydra.instance().clear()
        try:
            yield
        finally:
            GlobalHydra.instance().hydra = theirs
            VersionBase.instance().version_base = base


def build(cfg: DictConfig) -> Experiment:
    """Return the composed configuration as typed objects. Raises UserError for an undeclared option."""
    refuse_undeclared(cfg)
    if cfg.dataset.name == "auto":
        cfg.dataset = _suitable_dataset(cfg)
    if OmegaConf.is_missing(cfg, "batch_size"):
        kind = OmegaConf.get_type(cfg.analysis)
        assert kind is not None
        assert issubclass(kind, Analysis)
        cfg.batch_size = kind.default_batch_size
    returned.made(cfg.analysis)
    experiment = OmegaConf.to_object(cfg)
    assert isinstance(experiment, Experiment)
    return experiment


def load_experiment(path: Path, overrides: list[str]) -> Experiment:
    """Return the experiment of an experiment.yaml, with `key=value` changes. Raises UserError if it is invalid.

    Values mean the same as in `vitsee run` without --from: Hydra parses both.
    """
    if path.is_dir():
        raise UserError(f"--from {path} is a folder; name the experiment.yaml in it")
    stored = plain.read(path)
    chosen = registered(plain.analysis_of(stored, path), path)
    schema = OmegaConf.structured(Experiment)
    schema.analysis = OmegaConf.structured(chosen)
    try:
        whole = OmegaConf.merge(schema, OmegaConf.create(stored))
    except OmegaConfBaseException as error:
        raise UserError(f"{path}: {explain(error).removeprefix(': ')}") from error
    assert isinstance(whole, DictConfig)
    for word in overrides:
        key, value = _change(word)
        OmegaConf.update(whole, key, value)
    return build(whole)


def _change(word: str) -> tuple[str, Any]:
    """Return the option and the value of `key=value`. Raises UserError for other kinds of override."""
    if word.startswith("-"):
        raise UserError(f"{word} cannot be given with --from, which repeats one experiment")
    if "=" not in word:
        raise UserError(
            f"{word}: --from takes key=value, with one value, after one experiment.yaml"
        )
    read = OverridesParser.create().parse_override(quoted(word))
    key, value = read.get_key_element(), read.value()
    whole = key in ("analysis", "model", "dataset", "run", "protocol") or "@" in key
    if (whole and not isinstance(value, Mapping)) or (key == "other" and value is not None):
        raise UserError(
            f"{word}: --from changes single options, such as seed=1 or model.checkpoint=PATH; "
            f"for a different {key} give the whole command without --from"
        )
    if read.type is not OverrideType.CHANGE or read.is_sweep_override():
        raise UserError(f"{word}: --from takes key=value, with one value")
    return key, value


def _suitable_dataset(cfg: DictConfig) -> DictConfig:
    """Return the data set that suits the model, with the user's changes to `dataset=auto`."""
    schema = OmegaConf.structured(DatasetOptions)
    chosen = choices.options("dataset", cfg.model.dataset)
    changed = {
        key: cfg.dataset[key]
        for key in schema
        if key not in ("name", "kind") and cfg.dataset[key] != schema[key]
    }
    suitable = OmegaConf.merge(schema, chosen, changed)
    assert isinstance(suitable, DictConfig)
    return suitable


def refuse_undeclared(node: DictConfig, prefix: str = "") -> None:
    """Raise UserError for a key that nothing reads: Hydra lets `+key=value` add any key."""
    kind = OmegaConf.get_type(node)
    if not is_dataclass(kind):
        return
    names = [f.name for f in fields(kind)]
    for key in map(str, node):
        if key not in names:
            raise undeclared(kind, f"{prefix}{key}")
        if not OmegaConf.is_missing(node, key) and OmegaConf.is_dict(node[key]):
            refuse_undeclared(node[key], f"{prefix}{key}.")


PATHS = (
    "dataset.root",
    "dataset.path",
    "model.checkpoint",
    "other.checkpoint",
    "run.outputs",
    "recipe.start",
    *(f"{role}.{option}" for role in ("model", "other") for option in ("id", "weights", "import_")),
)


def quoted(word: str) -> str:
    """Return the argument in the form that Hydra and the typed options accept.

    A value is quoted if it is a path that Hydra's grammar cannot parse. `import` is a Python keyword, so its
    field has a different name.
    """
    key, equals, value = word.partition("=")
    if key in ("model.import", "other.import"):
        key = f"{key}_"
    word = f"{key}{equals}{value}"
    if key not in PATHS:
        return word
    try:
        OverridesParser.create().parse_override(word)
    except HydraException:
        return f"{key}={in_quotes(value)}"
    return word


def in_quotes(text: str) -> str:
    """Return the text as a quoted value in Hydra's grammar, where a backslash escapes only before a quote."""
    escaped = re.sub(r'(\\*)"', r'\1\1\\"', text)
    return '"{}"'.format(re.sub(r"(\\+)\Z", r"\1\1", escaped))


def override(key: str, value: Any) -> str:
    """Return `key=value` for a Python value. Strings are taken literally; a mapping is merged by key.

    Raises UserError for a value that no option can have.
    """
    try:
        return f"{key}={_literal(value)}"
    except ValueError as error:
        raise UserError(f"{key}={value!r}: {error}") from error


def _literal(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, (str, Path)):
        if "${" in str(value):
            raise ValueError("${…} would be read as an interpolation; use a value without it")
        return in_quotes(str(value))
    if isinstance(value, Mapping):
        return "{{{}}}".format(", ".join(f"{key}: {_literal(one)}" for key, one in value.items()))
    if isinstance(value, (list, tuple)):
        return "[{}]".format(", ".join(map(_literal, value)))
    if isinstance(value, Enum):
        return str(value.value)
    if isinstance(value, (Number, np.bool_)):
        return str(value)
    raise ValueError(
        f"a {type(value).__name__} cannot be the value of an option; use a string, number, path, list or mapping"
    )
