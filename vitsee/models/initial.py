"""Initial weights of training runs where they are not timm's: position embeddings, and blocks without skips."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from vitsee.errors import UserError
from vitsee.models import embedding, skipless

GRIDS = 3
"""The longest wavelength, in sides of the grid of patches: longer ones would hardly vary between positions."""


def initialise(net: nn.Module, positions: str, std: float | None) -> None:
    """Change timm's random weights to those that a training run begins with.

    positions: sincos or noise. std: standard deviation of the position embeddings; None: timm's. Raises UserError for
    sincos if the model has no position embeddings, or if its width is not a multiple of 4.
    """
    skipless.initialise(net)
    if positions == "sincos":
        sines_and_cosines(net, std or 0.02)
    elif std:
        nn.init.normal_(net.get_parameter("pos_embed"), std=std)


def sines_and_cosines(net: nn.Module, std: float) -> None:
    """Initialise the position embeddings with sines and cosines of row and column; those of prefix tokens are 0.

    std: their root mean square. Raises UserError if the model has none, or if its width is not a multiple of 4.
    """
    rows, columns, width = embedding.position_embeddings(net).shape
    if width % 4:
        raise UserError(
            f"recipe.positions=sincos needs a width that is a multiple of 4, not {width}"
        )
    down, right = (_waves(n, width // 4) for n in (rows, columns))
    table = torch.cat(
        [down[:, None].expand(rows, columns, -1), right.expand(rows, columns, -1)], -1
    ).reshape(rows * columns, width)
    parameter = net.get_parameter("pos_embed")
    with torch.no_grad():
        parameter.zero_()
        parameter[0, -len(table) :] = table * (std * 2**0.5)


def _waves(steps: int, count: int) -> Tensor:
    """Return sines and cosines of the first steps at `count` wavelengths, from 2 pi steps up: (steps, 2 count)."""
    longest = max(1.0, GRIDS * steps / (2 * math.pi))
    angles = torch.arange(steps)[:, None] * longest ** -(torch.arange(count) / max(1, count - 1))
    return torch.cat([angles.sin(), angles.cos()], 1)
