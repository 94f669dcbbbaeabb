"""Functions that draw a table as a matplotlib figure; matplotlib is imported when one is first used."""

from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vitsee.plotting import (
        accuracy_plots,
        heatmaps,
        line_plots,
        map_plots,
        model_maps,
        scorecard,
        style,
    )

__all__ = [
    "accuracy_plots",
    "heatmaps",
    "line_plots",
    "map_plots",
    "model_maps",
    "scorecard",
    "style",
]


def __getattr__(name: str) -> ModuleType:
    """Import a module of this package. Raises AttributeError if there is none of this name."""
    if name not in __all__:
        raise AttributeError(f"module {__name__} has no attribute {name}")
    return import_module(f"{__name__}.{name}")
