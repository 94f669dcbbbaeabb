"""Names that tell two models apart on axes and in folder names, and the blocks and branches in layer names."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import fields
from itertools import zip_longest
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vitsee.options import ModelOptions
    from vitsee.setting import Labels

_ENDINGS = re.compile(r"(\.(safetensors|ckpt|pth|pt|bin|npz|tar))+\Z", re.IGNORECASE)
_LONGEST = 60
"""Maximum number of characters added to a name. File systems allow 255 for both models together."""


def told_apart(models: Mapping[str, ModelOptions]) -> dict[str, str]:
    """Return the models' names by role. Equal names get a suffix: the checkpoint, or the options that differ.

    Two models with the same options keep the same name.
    """
    own = {role: model.name for role, model in models.items()}
    if len(own) < 2 or len(set(own.values())) > 1:
        return own
    one, other = models.values()
    differing = _of_checkpoints(one, other) or _of_options(one, other)
    marks = [mark[:_LONGEST] for mark in differing]
    if marks[0] == marks[1] and _decisive(one) != _decisive(other):
        marks = list(own)
    return {
        role: f"{name}-{mark}" if mark else name
        for (role, name), mark in zip(own.items(), marks, strict=True)
    }


def of_lines(results: Sequence[Labels]) -> list[str]:
    """Return names for the lines of several results: the model, and the other model and the data where they differ."""
    others = {one.other for one in results}
    return [
        one.model
        + (f" against {one.other}" if len(others) > 1 else "")
        + (f", {data}" if data else "")
        for one, data in zip(results, data_apart(results), strict=True)
    ]


def data_apart(results: Sequence[Labels]) -> list[str]:
    """Return words for the data of each of several results: the data set, and more where needed; empty if equal."""
    data, datasets = ({getattr(one, of) for one in results} for of in ("data", "dataset"))
    if len(data) == 1:
        return [""] * len(results)
    return [one.dataset if len(data) == len(datasets) else one.data for one in results]


def common_data(results: Sequence[Labels]) -> str:
    """Return the data of several results for a title; empty if they differ, which the names of the lines then say."""
    first, *more = {one.data: None for one in results}
    return "" if more else first


def folder_name(name: str) -> str:
    """The name as a folder name that every file system accepts and that cannot point to another folder."""
    plain = "".join(c if c.isprintable() and c not in '/\\:*?"<>|' else "_" for c in name)
    return plain if plain.strip(". ") else "_" * max(1, len(plain))


def block_numbers(layers: Sequence[str]) -> list[int]:
    """The block numbers in the layers' names, counted from 0; running numbers if the network has stages."""
    numbers = [re.findall(r"\d+", name) for name in layers]
    if all(len(found) == 1 for found in numbers):
        return [int(number) for (number,) in numbers]
    return list(range(len(layers)))


def block_and_branch(name: str) -> tuple[str, str]:
    """Return a sublayer's block and branch: ("blocks.3", "attn"), or ("layer1.0", "unit") for a single branch."""
    block, plus, branch = name.rpartition(".+")
    return (block, branch) if plus else (name, "unit")


def _of_checkpoints(one: ModelOptions, other: ModelOptions) -> tuple[str, str] | None:
    """Return the checkpoints' file names, or the nearest parent folders that differ if those are equal."""
    ones, others = (PurePath(model.checkpoint or "") for model in (one, other))
    folders = zip_longest(ones.parent.parts[::-1], others.parent.parts[::-1], fillvalue="")
    stems = (_ENDINGS.sub("", ones.name), _ENDINGS.sub("", others.name))
    marks = (stems, *folders, (ones.name, others.name))
    return next((pair for pair in marks if pair[0] != pair[1]), None)


def _of_options(one: ModelOptions, other: ModelOptions) -> tuple[str, str]:
    ones, others = _decisive(one), _decisive(other)
    keys = [key for key in ones | others if ones.get(key) != others.get(key)]
    if {"pretrained", "weights"} & {*keys} and "seed" in keys:
        keys.remove("seed")  # only the random model has one
    return _listed(ones, keys), _listed(others, keys)


def _listed(options: Mapping[str, Any], keys: list[str]) -> str:
    return ",".join(f"{key}={_plain(options[key])}" for key in keys if key in options)


def _plain(value: Any) -> str:
    text = getattr(value, "value", value)
    return str(text).lower() if isinstance(text, bool) else re.sub(r"[\s'\"]", "", str(text))


def _decisive(model: ModelOptions) -> dict[str, Any]:
    """Return the options that a model's function depends on, with the entries of `args` and `overlay`."""
    options: dict[str, Any] = {}
    for each in fields(model):
        value = getattr(model, each.name)
        if each.name in ("args", "overlay"):
            options |= value
        elif each.name == "seed" and not model.random:
            continue  # nothing is drawn
        elif each.name not in ("name", "dataset", "embedded") and value not in (None, "", []):
            options[each.name] = value
    return options
