"""The option `analysis.tokens`: which tokens of a transformer represent a layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import Enum
from typing import TYPE_CHECKING

from vitsee.errors import UserError
from vitsee.setting import Layer

if TYPE_CHECKING:
    from torch import Tensor


class Tokens(Enum):
    """Which tokens represent a transformer layer."""

    all = "all"
    cls = "cls"
    patches = "patches"

    def require(self, layers: Mapping[str, Sequence[Layer]]) -> None:
        """Raise UserError if one of these layers (by role) does not have these tokens."""
        if self is Tokens.all:
            return
        for role, watched in layers.items():
            for layer in watched:
                if layer.prefix is None:
                    raise UserError(
                        f"analysis.tokens={self.value}: {layer.name} of the {role} has no token "
                        f"axis (its output is {' x '.join(map(str, layer.shape))}); "
                        f"use analysis.tokens=all, or choose other layers with analysis.layers"
                    )
                if self is Tokens.cls and not (layer.class_token and layer.prefix):
                    where = f"{layer.name} of the {role}" if layer.class_token else f"the {role}"
                    raise UserError(
                        f"analysis.tokens=cls: {where} has no class token; use analysis.tokens=all or "
                        f"patches, or choose other layers with analysis.layers"
                    )
                if self is Tokens.patches and layer.shape[0] == layer.prefix:
                    raise UserError(
                        f"analysis.tokens=patches: {layer.name} of the {role} has no patches; "
                        f"use analysis.tokens=all, or choose other layers with analysis.layers"
                    )

    def of(self, layer: Layer, output: Tensor) -> Tensor:
        """Return the part of an output, (N, *layer.shape), that belongs to these tokens."""
        if self is Tokens.cls:
            return output[:, :1]
        return output[:, layer.prefix :] if self is Tokens.patches else output
