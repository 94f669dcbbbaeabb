"""The option `analysis.features`: which features of a layer's output linear probes see."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from typing import TYPE_CHECKING, Any

from vitsee.errors import UserError, unknown
from vitsee.estimators.places import locations, patch_side
from vitsee.lazy import torch
from vitsee.setting import Layer

if TYPE_CHECKING:
    from torch import Tensor


class Feature(Enum):
    """The part of a layer's output that a probe sees."""

    cls = "cls"
    gap = "gap"
    gap_patches = "gap_patches"
    first = "first"
    each_token = "each_token"


NAMES = tuple(feature.value for feature in Feature)
"""The names of all features."""


def chosen(option: Any) -> list[str]:
    """Return the names of features, each once. Raises UserError for one that does not exist."""
    names = [option] if isinstance(option, str) else list(option or [])
    if not names:
        raise UserError(f"analysis.features must name at least one of: {', '.join(NAMES)}")
    for name in names:
        if name not in NAMES:
            problem = f"there is no analysis.features={name}"
            raise unknown(problem, str(name), NAMES, "they can be")
    return list(dict.fromkeys(names))


@dataclass(frozen=True)
class ProbeFeatures:
    """The features of these layers, in the order they run.

    names: of features, each once. stride: between probed rows and columns of a grid, for each_token.
    """

    names: Sequence[str]
    stride: int
    layers: Sequence[Layer]

    def require(self) -> None:
        """Raise UserError if a layer does not have one of the features."""
        for layer in self.layers:
            self._require_of(layer)

    def _require_of(self, layer: Layer) -> None:
        shape = " x ".join(map(str, layer.shape))
        if layer.prefix is None and not layer.is_map and len(layer.shape) > 1:
            raise UserError(
                f"{layer.name} is neither a sequence of tokens, nor a feature map, nor "
                f"a vector (its output is {shape}); choose other layers with analysis.layers"
            )
        if "cls" in self.names and not (layer.class_token and layer.prefix):
            raise UserError(
                f"analysis.features=cls: {layer.name} has no class token (its output is {shape}); "
                f"use gap, gap_patches, first or each_token"
            )
        if "each_token" in self.names and layer.grid is None:
            raise UserError(
                f"analysis.features=each_token: {layer.name} has no grid of tokens or locations (its output "
                f"is {shape}); use gap, or choose other layers with analysis.layers"
            )

    @cached_property
    def _last_map(self) -> Layer:
        """The last feature map of a CNN; all its maps are probed at these locations."""
        return [layer for layer in self.layers if layer.is_map][-1]

    def _grid(self, layer: Layer) -> tuple[int, int]:
        """Rows and columns of the probed locations."""
        return self._last_map.places if layer.is_map else layer.places

    def probes(self, layer: Layer) -> list[tuple[str, int, int]]:
        """Return all probes of a layer: feature, row and column on the grid (-1, -1 without a place)."""
        probes = [(name, -1, -1) for name in self.names if name != "each_token"]
        if "each_token" in self.names:
            rows, columns = (range(0, n, self.stride) for n in self._grid(layer))
            probes += [("each_token", row, column) for row in rows for column in columns]
        return probes

    def width(self, layer: Layer) -> int:
        """Return the number of features per probe of this layer."""
        if not layer.is_map:
            return layer.shape[-1]
        shape = (layer.channels, *layer.places)
        side = patch_side(shape, self._last_map.channels, self._last_map.places)
        return layer.channels * side * side

    def of(self, layer: Layer, output: Tensor) -> Tensor:
        """Return the features of an output, (N, *layer.shape), for each probe: (N, probes, features) float32."""
        tokens = self._sequence(layer, output.float())
        prefix = layer.prefix or 0
        parts = []
        for name in self.names:
            if name == "gap":
                parts.append(tokens.mean(1, keepdim=True))
            elif name == "gap_patches":
                parts.append(tokens[:, prefix:].mean(1, keepdim=True))
            elif name != "each_token":  # the class token comes first
                parts.append(tokens[:, :1])
        if "each_token" in self.names:
            grid = tokens[:, prefix:].unflatten(1, self._grid(layer))
            parts.append(grid[:, :: self.stride, :: self.stride].flatten(1, 2))
        return torch.cat(parts, 1)

    def _sequence(self, layer: Layer, output: Tensor) -> Tensor:
        """Return tokens, locations of a feature map, or a single vector as (N, tokens, features)."""
        if layer.is_map:
            maps = layer.channels_first(output)
            return locations(maps, self._last_map.channels, self._grid(layer))
        return output if layer.prefix is not None else output[:, None]
