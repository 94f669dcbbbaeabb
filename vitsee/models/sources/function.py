"""Networks returned by a user's own function: `model.import=package.module:function`."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitsee.errors import UserError, nearest, unknown
from vitsee.lazy import torch
from vitsee.models.sources.found import Found
from vitsee.models.sources.python import found
from vitsee.plugins import make_findable, where

if TYPE_CHECKING:
    from vitsee.options import ModelOptions


def load(model: ModelOptions, weights: bool = True) -> Found:
    """Return the function's result for model.args. Raises UserError if it cannot be imported or called."""
    named = str(model.import_)
    function = _imported(named)
    torch.manual_seed(0)  # makes random weights the same every time
    try:
        made = function(**model.args)
    except Exception as error:
        options = f" with model.args={model.args}" if model.args else ""
        raise UserError(f"model.import={named}{options} failed: {where(error)}") from error
    try:
        return found(made, f"made by {named}")
    except UserError as mistake:
        raise UserError(f"model.import={named}: {mistake}") from mistake.__cause__


def _imported(named: str) -> Any:
    """Return the function with this name, package.module:function; the current folder is searched too."""
    place, colon, name = named.partition(":")
    if not (place and colon and name):
        raise UserError(
            f"model.import={named} must name a module and a function: model.import=package.module:function"
        )
    make_findable(Path.cwd())
    try:
        module = import_module(place)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{place}.".startswith(f"{error.name}."):
            raise UserError(f"model.import={named}: {where(error)}") from error
        here = [path.stem for path in Path.cwd().glob("*.py")]
        raise UserError(
            f"model.import={named}: there is no module {error.name} in the current folder or in "
            f"PYTHONPATH.{nearest(place, here)}"
        ) from error
    except Exception as error:
        raise UserError(f"model.import={named}: {where(error)}") from error
    function = getattr(module, name, None)
    if function is None:
        there = [key for key, value in vars(module).items() if callable(value) and key[0] != "_"]
        raise unknown(f"model.import={named}: {place} has no {name}", name, there, "it has")
    if not callable(function):
        raise UserError(f"model.import={named}: {name} is not a function")
    return function
