"""Detects weights that were resampled to a different resolution or patch size."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from vitsee.lazy import torch
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


def resampled(net: nn.Module, path: Path) -> list[str]:
    """Return the names of weights that timm resampled when it loaded this safetensors file."""
    from safetensors import safe_open

    if not is_safetensors(path):
        return []
    own = net.state_dict()
    with safe_open(path, "pt") as file:
        names = [n for n in file.keys() if n in own and POSITIONS.search(n)]  # noqa: SIM118  (no dict)
        return [n for n in names if is_resampled(n, file.get_tensor(n), own[n].cpu())]
