"""Resamples position embeddings of grids that are no squares, and detects what timm resampled."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitsee.lazy import timm, torch
from vitsee.models.cards import beside
from vitsee.models.weight_files import is_safetensors

if TYPE_CHECKING:
    from torch import Tensor, nn


POSITIONS = re.compile(r"pos_embed|rel_pos|relative_position|patch_embed\.proj\.weight")
"""Names of weights that timm's conversions resample to a different resolution, window or patch size."""


def is_resampled(name: str, before: Tensor | None, after: Tensor) -> bool:
    """Return whether the values were resampled, and did not merely lose the class token's position."""
    if before is None or not POSITIONS.search(name):
        return False
    if before.numel() == after.numel():
        return not torch.equal(before.flatten(), after.flatten())
    slots = before.shape[1] - after.shape[1] if before.ndim == after.ndim == 3 else -1
    return not (slots > 0 and torch.equal(before[:, slots:], after))


Grid = tuple[int, int]


def positions_on_grid(net: nn.Module, state: Mapping[str, Tensor], path: Path) -> Tensor | None:
    """Return a file's position embeddings on the model's grid; None if both grids are squares, for timm to handle.

    timm takes every file's grid for a square, or for the model's if the numbers of patches are equal. path: of the
    file, whose card may tell its grid.
    """
    stored, own = state.get("pos_embed"), getattr(net, "pos_embed", None)
    grid = getattr(getattr(net, "patch_embed", None), "grid_size", None)
    if stored is None or own is None or not grid or not stored.ndim == own.ndim == 3:
        return None
    prefix = own.shape[1] - grid[0] * grid[1]
    before = _trained_grid(net, path, stored.shape[1] - prefix)
    if before is None or (_is_square(before) and _is_square(grid)):
        return None
    if before == tuple(grid):
        return stored
    from timm.layers import resample_abs_pos_embed

    return resample_abs_pos_embed(stored, list(grid), list(before), num_prefix_tokens=prefix)


def place_positions(net: nn.Module, path: Path) -> None:
    """Replace position embeddings that timm loaded from this safetensors file as if their grid were a square."""
    from safetensors import safe_open

    if not is_safetensors(path):
        return
    with safe_open(path, "pt") as file:
        if "pos_embed" not in file.keys():  # noqa: SIM118  (no dict)
            return
        placed = positions_on_grid(net, {"pos_embed": file.get_tensor("pos_embed")}, path)
    if placed is not None:
        with torch.no_grad():
            net.get_parameter("pos_embed").copy_(placed)


def _is_square(grid: Sequence[int]) -> bool:
    return grid[0] == grid[1]


def _trained_grid(net: Any, path: Path, patches: int) -> Grid | None:
    """Return the grid of the file's patches: that of its card, of the architecture, the model's own, or a square."""
    patch = _pair(net.patch_embed.patch_size)
    grids = []
    if (card := beside(path)) is not None:
        args, overlay = (card.model.get(name) or {} for name in ("args", "overlay"))
        if size := args.get("img_size") or overlay.get("input_size", [])[1:]:
            grids.append(_grid(_pair(size), _pair(args.get("patch_size") or patch)))
    if usual := timm.models.get_pretrained_cfg(net.pretrained_cfg.get("architecture", "")):
        grids.append(_grid(_pair(usual.input_size[1:]), patch))
    side = math.isqrt(max(0, patches))
    grids += [_pair(net.patch_embed.grid_size), (side, side)]
    return next((grid for grid in grids if grid[0] * grid[1] == patches), None)


def _grid(size: Grid, patch: Grid) -> Grid:
    return size[0] // patch[0], size[1] // patch[1]


def _pair(size: int | Sequence[int]) -> Grid:
    return (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))


def resampled(net: nn.Module, path: Path) -> list[str]:
    """Return the names of weights that timm resampled when it loaded this safetensors file."""
    from safetensors import safe_open

    if not is_safetensors(path):
        return []
    own = net.state_dict()
    with safe_open(path, "pt") as file:
        names = [n for n in file.keys() if n in own and POSITIONS.search(n)]  # noqa: SIM118  (no dict)
        return [n for n in names if is_resampled(n, file.get_tensor(n), own[n].cpu())]
