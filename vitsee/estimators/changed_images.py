"""Images whose patches are dropped, or whose tiles are shuffled (Naseer et al. 2021)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from vitsee.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor


def dropped_first(
    grid: int, images: Sequence[int], seed: int, saliency: Tensor | None = None
) -> Tensor:
    """Return the patches of each image in the order in which they are dropped, (N, grid * grid) int64.

    images: numbers of the images, which determine a random order together with the seed. saliency: (N, grid * grid),
    largest first; ties are in that random order.
    """
    drawn = [np.random.default_rng([seed, 0, i]).permutation(grid * grid) for i in images]
    order = torch.from_numpy(np.stack(drawn))
    if saliency is None:
        return order
    order = order.to(saliency.device)
    ranked = saliency.gather(1, order).sort(dim=1, descending=True, stable=True).indices
    return order.gather(1, ranked)


def drop(pixels: Tensor, order: Tensor, grid: int, share: float, colour: Sequence[float]) -> Tensor:
    """Return (N, 3, H, W) pixels in which the first `share` of the patches in `order` have this colour.

    The image is cut into grid x grid patches: pixel (y, x) is in patch (y * grid // H, x * grid // W).
    """
    patches = order.shape[1]
    gone = torch.zeros(order.shape, dtype=torch.bool, device=pixels.device)
    gone.scatter_(1, order[:, : round(share * patches)], True)
    height, width = pixels.shape[2:]
    row = torch.arange(height, device=pixels.device) * grid // height
    column = torch.arange(width, device=pixels.device) * grid // width
    mask = gone[:, row[:, None] * grid + column[None, :]]
    return torch.where(mask[:, None], pixels.new_tensor(list(colour)).view(3, 1, 1), pixels)


def shuffled(grid: int, images: Sequence[int], seed: int) -> Tensor:
    """Return which tile goes to each place, (N, grid * grid) int64, drawn from the image number and the seed."""
    drawn = [np.random.default_rng([seed, grid, i]).permutation(grid * grid) for i in images]
    return torch.from_numpy(np.stack(drawn))


def shuffle(pixels: Tensor, grid: int, order: Tensor) -> Tensor:
    """Return (N, 3, H, W) pixels whose grid x grid tiles are rearranged by `order`.

    Tiles have H // grid rows and W // grid columns; pixels beyond the last whole tile stay where they are.
    """
    height, width = (side // grid for side in pixels.shape[2:])
    inside = pixels[:, :, : grid * height, : grid * width]
    tiles = inside.unflatten(3, (grid, width)).unflatten(2, (grid, height))
    tiles = tiles.permute(0, 2, 4, 1, 3, 5).flatten(1, 2)
    tiles = tiles[torch.arange(len(tiles), device=pixels.device)[:, None], order]
    tiles = tiles.unflatten(1, (grid, grid)).permute(0, 3, 1, 4, 2, 5)
    changed = pixels.clone()
    changed[:, :, : grid * height, : grid * width] = tiles.flatten(4, 5).flatten(2, 3)
    return changed
