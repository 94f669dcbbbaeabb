"""Loads .npz checkpoints in the ViT authors' format."""

from __future__ import annotations

import re
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from vitsee.errors import UserError
from vitsee.lazy import torch
from vitsee.models.resampling import is_resampled
from vitsee.models.weight_files import few, line

if TYPE_CHECKING:
    from numpy.lib.npyio import NpzFile
    from torch import nn


# --- .npz ----------------------------------------------------------------------------------------


def load_npz(net: nn.Module, path: Path) -> list[str]:
    """Load a checkpoint of the ViT authors with timm, and return the names of resampled weights.

    Raises UserError if the file does not fit the model.
    """
    import numpy as np

    load_pretrained = getattr(net, "load_pretrained", None)
    if load_pretrained is None:
        raise UserError(
            f"{path}: timm reads .npz files for ViT, hybrids and BiT, not {type(net).__name__}"
        )
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.fill_(torch.nan)  # shows which parameters timm skips because they do not fit
    try:
        load_pretrained(str(path))
        with np.load(path) as archive:
            _refuse_partial_npz(net, archive, path)
            return list(_resampled_npz(net, archive))
    except UserError:
        raise
    except Exception as error:
        traceback.clear_frames(error.__traceback__)  # timm's would keep the file open
        raise UserError(
            f"{path} is not a checkpoint of {type(net).__name__}: {line(error)}"
        ) from error


def _refuse_partial_npz(net: nn.Module, archive: NpzFile, path: Path) -> None:
    """Raise UserError if a parameter of the model or a block of the file was skipped."""
    left = [name for name, value in net.named_parameters() if value.isnan().all()]
    if left:
        raise UserError(
            f"{path} does not fit the model: it does not contain {len(left)} of its parameters "
            f"({few(left)}).{_npz_remedy(net, archive)}"
        )
    stored, own = _blocks_stored(archive), _blocks_of(net)
    if stored != own:
        raise UserError(f"{path} does not fit the model: it has {stored} blocks instead of {own}")


def _resampled_npz(net: nn.Module, archive: NpzFile) -> Iterator[str]:
    """Yield the names of weights that timm resampled to the model's resolution or patch size."""
    positions = getattr(net, "pos_embed", None)
    projection = getattr(getattr(net, "patch_embed", None), "proj", None)
    for key in archive.files:
        if key.endswith("pos_embedding") and positions is not None:
            stored = archive[key]
            known = stored.dtype.kind == "f"  # NumPy has no bfloat16
            before = torch.from_numpy(stored).to(positions) if known else positions
            changed = is_resampled(key, before, positions.detach())
        elif key.endswith("embedding/kernel") and projection is not None:
            changed = archive[key].shape != projection.weight.permute(2, 3, 1, 0).shape
        else:
            continue
        if changed:
            yield key


def _blocks_stored(archive: NpzFile) -> int:
    """Return the number of blocks in the file, for a transformer, a ResNet, or both (hybrids)."""
    stacked = [k for k in archive.files if k.endswith("encoderblock/LayerNorm_0/scale")]
    if stacked:
        return len(archive[stacked[0]])
    matches = (re.search(r"encoderblock_\d+/|block\d+/unit\d+/", k) for k in archive)
    return len({match.group() for match in matches if match})


def _blocks_of(net: nn.Module) -> int:
    backbone = getattr(getattr(net, "patch_embed", None), "backbone", net)
    stages = getattr(backbone, "stages", ())
    return len(getattr(net, "blocks", ())) + sum(len(stage.blocks) for stage in stages)


def _npz_remedy(net: nn.Module, archive: NpzFile) -> str:
    biases = [k for k in archive.files if k.endswith(("head/bias", "head/conv2d/bias"))]
    if not biases:
        return " If it has no classifier: model.args={num_classes: 0}"
    classes = archive[biases[0]].shape[-1]
    if classes != getattr(net, "num_classes", classes):
        return f" If it has other classes: model.args={{num_classes: {classes}}}"
    return " Choose the architecture that it was made with: model.timm=NAME"
