"""A model as its source returns it, and the checks and errors that all sources share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from vitsee.errors import UserError
from vitsee.models.cards import Card
from vitsee.models.fitting import Taken
from vitsee.models.weight_files import line

if TYPE_CHECKING:
    from torch import nn

    from vitsee.options import ModelOptions

T = TypeVar("T")


@dataclass(frozen=True)
class Found:
    """A model as its source returns it: on the CPU, in any mode.

    data: timm's data configuration, or what `preprocessing.measured` returns. weights: their source, for people to
    read. card: the model card next to the weights, if any. taken: which parts of a checkpoint were used.
    made_of: what the network's numbers depend on apart from its structure and tensors.
    """

    net: nn.Module
    data: dict[str, Any]
    weights: str
    card: Card | None = None
    taken: Taken = field(default_factory=Taken)
    made_of: list[str] = field(default_factory=list)


Load = Callable[["ModelOptions", bool], Found]
"""Loads a model with its weights, or for its structure only: with random weights, downloading nothing."""


def built(model: ModelOptions, build: Callable[[], T]) -> T:
    """Return what a library builds. Raises UserError with the library's reason if it cannot."""
    try:
        return build()
    except UserError:
        raise
    except Exception as error:
        options = f" with model.args={model.args}" if model.args else ""
        raise UserError(
            f"{model.request}{options} cannot be built: {type(error).__name__}: {line(error)}"
        ) from error


def missing(extra: str, package: str) -> UserError:
    """Return the error for a library that is not installed."""
    named = extra.replace("_", "-")  # the only spelling that older versions of pip accept
    return UserError(f"model={extra} needs the {package} library: pip install 'vitsee[{named}]'")


def nonfinite(net: nn.Module) -> str | None:
    """Return the name of a weight with NaN or Inf, as shown by its extremes; None if there is none.

    Buffers may be infinite, like masks and the limits of a clamp, but running statistics may not.
    """
    weights = {name for name, _ in net.named_parameters(remove_duplicate=False)}
    for name, tensor in net.state_dict().items():
        if tensor.is_floating_point() and tensor.numel():
            lowest, highest = tensor.aminmax()
            limits = name not in weights and "running_" not in name
            if lowest.isnan() or (not limits and (lowest.isinf() or highest.isinf())):
                return name
    return None
