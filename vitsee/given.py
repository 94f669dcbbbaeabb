"""Models and data sets given as Python objects, which no command line can name."""

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

    net: copied, so the original is unchanged (it stays in training mode, say). name: its name in results.
    transform: turns an RGB PIL image into the (C, H, W) float tensor that the network takes; it must not be random.
    Without one, images are resized to fit the shorter side, cropped at the centre to `input_size`, scaled to 0…1,
    and normalised with mean and std if these are given. With a transform, `input_size` is measured, and so are mean
    and std unless both are given.
    """

    net: nn.Module
    name: str = "model"
    transform: Callable[[Any], Any] | None = None
    input_size: tuple[int, int, int] = (3, 224, 224)
    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None

    def __post_init__(self) -> None:
        size = self.input_size
        if not isinstance(size, (tuple, list)) or len(size) != 3 or not all(n > 0 for n in size):
            raise UserError(
                f"input_size={size} of {self.name}: give channels, height and width, e.g. input_size=(3, 224, 224)"
            )


def is_object(key: str, value: Any) -> bool:
    """Return whether the value of this option is an object, not a name or a mapping of options."""
    if isinstance(value, Mapping):
        return key == "dataset" and bool(value) and all(is_object(key, x) for x in value.values())
    plain = value is None or isinstance(value, (str, PurePath))
    return key in ("model", "other", "dataset") and not plain


def options(key: str, value: Any) -> dict[str, str]:
    """Return the options that select an object and give its name in results."""
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
    """Run the block with these objects available in this thread, by role (`model`, `other`) and as `dataset`."""
    token = _HERE.set(objects)
    try:
        yield
    finally:
        _HERE.reset(token)


def what_is(role: str) -> Any:
    """Return the object given for this role. Raises UserError if there is none."""
    objects = _HERE.get()
    if role not in objects:
        instead = (
            "dataset=folder dataset.root=PATH"
            if role == "dataset"
            else "model=import model.import=package.module:function"
        )
        raise UserError(
            f"{role}=python means an object passed to vitsee.run_experiment({role}=…); on the command line use "
            f"{instead}"
        )
    return objects[role]
