"""What loading brought to another resolution or patch size."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from vitsee.models.weight_files import is_safetensors

if TYPE_CHECKING:
    from torch import Tensor, nn


POSITIONS = re.compile(r"pos_embed|rel_pos|relative_position|patch_embed\.proj\.weight")
"""What timm's conversions bring to another resolution, window or patch size."""


def is_resampled(name: str, before: Tensor | None, after: Tensor) -> bool:
    """Whether these are values for other positions, not the same ones without a class token's slot."""
    import torch

    if before is None or not POSITIONS.search(name):
        return False
    if before.numel() == after.numel():
        return not torch.equal(before.flatten(), after.flatten())
    slots = before.shape[1] - after.shape[1] if before.ndim == after.ndim == 3 else -1
    return not (slots > 0 and torch.equal(before[:, slots:], after))


def resampled(net: nn.Module, path: Path) -> list[str]:
    """What somebody else's loading brought from this safetensors file to the model's resolution."""
    from safetensors import safe_open

    if not is_safetensors(path):
        return []
    own = net.state_dict()
    with safe_open(path, "pt") as file:
        names = [n for n in file.keys() if n in own and POSITIONS.search(n)]  # noqa: SIM118  (no dict)
        return [n for n in names if is_resampled(n, file.get_tensor(n), own[n].cpu())]
