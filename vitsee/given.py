"""Models and data sets that Python gives as objects, which no command line can name."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from vitsee.errors import UserError

if TYPE_CHECKING:
    from torch import nn

_HERE: ContextVar[Mapping[str, Any]] = ContextVar("given", default={})  # noqa: B039  (never changed)


@dataclass(frozen=True)
class Model:
    """Any network whose forward pass takes (N, C, H, W) images, with its preprocessing.

    net: is copied, so it stays as it is, in training mode, say. name: names it in results. transform: turns an RGB
    PIL image into the (C, H, W) float tensor that the network takes; it must not be random. Without one, images are
    resized so that the shorter side fits, cropped at the centre to `input_size`, scaled to 0…1, and normalised with
    mean and std if these are given. With a transform, `input_size`, mean and std are measured.
    """

    net: nn.Module
    name: str = "model"
    transform: Callable[[Any], Any] | None = None
    input_size: tuple[int, int, int] = (3, 224, 224)
    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None


def is_object(key: str, value: Any) -> bool:
    """Return whether the value of this option is an object, and neither a name nor a mapping of options."""
    if isinstance(value, Mapping):
        return key == "dataset" and bool(value) and all(is_object(key, x) for x in value.values())
    plain = value is None or isinstance(value, (str, PurePath))
    return key in ("model", "other", "dataset") and not plain


def options(key: str, value: Any) -> dict[str, str]:
    """Return the options that ask for an object, and say what it is called in results."""
    if key == "dataset":
        first = next(iter(value.values())) if isinstance(value, Mapping) else value
        kind = type(first)
        name = "given" if kind.__module__ == "builtins" else kind.__name__
        return {"dataset": "python", "dataset.name": name}
    group = "model" if key == "model" else "model@other"
    name = value.name if isinstance(value, Model) else type(value).__name__
    return {group: "python", f"{key}.id": key, f"{key}.name": name}


@contextmanager
def here(objects: Mapping[str, Any]) -> Iterator[None]:
    """Within the block, in this thread, these are what was given: by role (`model`, `other`), and `dataset`."""
    token = _HERE.set(objects)
    try:
        yield
    finally:
        _HERE.reset(token)


def what_is(role: str) -> Any:
    """Return the object that was given for this role. Raises UserError if none was."""
    objects = _HERE.get()
    if role not in objects:
        instead = (
            "dataset=folder dataset.root=PATH"
            if role == "dataset"
            else "model=import model.import=package.module:function"
        )
        raise UserError(
            f"{role}=python stands for an object that vitsee.run_experiment({role}=…) is given; on the command line "
            f"use {instead}"
        )
    return objects[role]
