"""The state dicts in a checkpoint: which are in it, which one is used, and the wrappers that its names begin with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitsee.errors import UserError, unknown
from vitsee.lazy import torch
from vitsee.models.weight_files import ALONE, few

if TYPE_CHECKING:
    from torch import Tensor

StateDict = dict[str, "Tensor"]

KEYS = (
    "state_dict_ema",
    "model_ema",
    "state_dict",
    "model",
    "model_state_dict",
    "model_state",
    "module",
    "net",
    "network",
    "teacher",
)
"""Keys under which training code stores the weights, in order of preference; the first four as in timm."""

WRAPPERS = (
    "module",
    "_orig_mod",
    "model",
    "net",
    "network",
    "backbone",
    "encoder",
    "trunk",
    "student",
    "teacher",
)
"""Attributes in which wrappers and training code keep a model. They become prefixes of all its names."""


def all_of(loaded: Mapping[Any, Any]) -> dict[str, StateDict]:
    """Return every dictionary of named tensors in a file, by its dotted key; the key of the file itself is ''."""
    states: dict[str, StateDict] = {}
    looks = iter(range(1000))  # dictionaries may contain each other

    def look(value: Mapping[Any, Any], key: str, depth: int) -> None:
        if depth > 3 or next(looks, None) is None:
            return
        named = {name: one for name, one in value.items() if isinstance(name, str)}
        tensors = {
            name: one.detach() for name, one in named.items() if isinstance(one, torch.Tensor)
        }
        if tensors:
            states[key] = tensors
        for name, one in named.items():
            if isinstance(one, Mapping):
                look(one, f"{key}.{name}" if key else name, depth + 1)

    look(loaded, "", 0)
    return states


def choose(
    states: dict[str, StateDict], key: str | None, fits: Callable[[StateDict], bool], path: Path
) -> tuple[str, StateDict]:
    """Return the requested state dict with its key, else one with a usual key, else the only one that fits.

    fits: whether one fits the model. Raises UserError if none or several fit.
    """
    if not states:
        raise UserError(f"checkpoint {path} does not contain named tensors; {ALONE}")
    if key:
        return key, _requested(states, key, path)
    for usual in KEYS:
        if usual in states:
            return usual, states[usual]
    below = next((b for b in ([k for k in states if k.startswith(f"{u}.")] for u in KEYS) if b), [])
    rivals = below or list(states)
    if len(rivals) > 1:
        fitting = [k for k in rivals if fits(states[k])]
        if len(fitting) != 1:
            which = fitting or rivals
            why = (
                "more than one of which fits"
                if fitting
                else "none of which fits the model as it is"
            )
            choices = ", ".join(k or "(the file itself)" for k in which)
            named = next(k for k in which if k)
            raise UserError(
                f"checkpoint {path} contains several state dicts, {why}: {choices}; choose one: "
                f"model.checkpoint_key={named}"
            )
        rivals = fitting
    return rivals[0], states[rivals[0]]


def _requested(states: dict[str, StateDict], key: str, path: Path) -> StateDict:
    """Return the state dict at this key, or the entries whose names begin with it.

    Raises UserError with the keys that exist.
    """
    if key in states:
        return states[key]
    for name, state in states.items():
        within = f"{name}." if name else ""
        if f"{key}.".startswith(within):
            start = f"{key}."[len(within) :]
            part = {n[len(start) :]: t for n, t in state.items() if start and n.startswith(start)}
            if part:
                return part
    deeper = [name for name in states if name.startswith(f"{key}.")]
    if len(deeper) == 1:
        return states[deeper[0]]
    choices = deeper or [name for name in states if name]
    if not choices:
        raise UserError(
            f"checkpoint {path} has no {key}: it is a single state dict, whose names begin with: "
            f"{few(sorted({name.partition('.')[0] for name in states['']}), 8)}"
        )
    raise unknown(
        f"model.checkpoint_key={key}: checkpoint {path} does not contain such a state dict",
        key,
        choices,
        "it contains",
    )


def same_names(states: dict[str, StateDict], chosen: str) -> list[str]:
    """Return the keys of other state dicts of the same model, e.g. raw weights next to averaged ones."""
    names = {key: {unwrapped(name)[1] for name in state} for key, state in states.items()}
    return [key for key in states if key not in ("", chosen) and names[key] == names.get(chosen)]


def wrappers(name: str) -> list[str]:
    """Return the prefixes that could be removed from a name: `module.`, `module.backbone.`, …"""
    words = name.split(".")[:-1]
    count = next((i for i, word in enumerate(words[:4]) if word not in WRAPPERS), len(words[:4]))
    return [".".join(words[: i + 1]) + "." for i in range(count)]


def unwrapped(name: str) -> tuple[str, str]:
    """Return the wrappers that a name begins with, and the rest of the name."""
    start = next(reversed(wrappers(name)), "")
    return start, name.removeprefix(start)
