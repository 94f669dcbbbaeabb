"""The patch-embedding filters and position embeddings in a model's weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vitsee.errors import UserError
from vitsee.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor, nn

_INSTEAD = {
    "rope": "rotates queries and keys by their position",
    "rel_pos": "adds a bias for the relative position of query and key to the attention",
    "relative_position": "adds a bias for the relative position of query and key to the attention",
    "attention_bias": "adds a bias for the relative position of query and key to the attention",
    "cpb_mlp": "adds a bias for the relative position of query and key to the attention",
    "pos_block": "computes position encodings with convolutions",
    ".cpe": "computes position encodings with convolutions",
    "crpe": "computes position encodings with convolutions",
    "mlp_tokens": "mixes tokens with layers that have weights for each position",
    "linear_tokens": "mixes tokens with layers that have weights for each position",
    "gate.proj": "mixes tokens with layers that have weights for each position",
}
"""What models without absolute position embeddings do instead, by part of a module's or parameter's name."""


def filters(net: nn.Module) -> Tensor:
    """Return the weights of the patch-embedding convolution, (filters, 3, rows, columns) float64.

    Raises UserError if the model does not have one that sees the image itself.
    """
    embedding = _embedding(net)
    convolution = (
        embedding if isinstance(embedding, torch.nn.Conv2d) else getattr(embedding, "proj", None)
    )
    backbone = getattr(embedding, "backbone", None)
    kind = type(net).__name__
    if backbone is not None:
        why = (
            f"the patch embedding of this {kind} follows a CNN (patch_embed.backbone), "
            f"so its filters see that network's features, not the image"
        )
    elif not isinstance(convolution, torch.nn.Conv2d):
        why = f"this {kind} does not embed patches with a single convolution"
    elif convolution.weight.shape[1] != 3:
        why = (
            f"the patch embedding of this {kind} sees {convolution.weight.shape[1]} channels "
            f"instead of an RGB image"
        )
    else:
        return _finite(convolution.weight, "the filters of the patch embedding")
    raise UserError(
        f"analysis=embedding_filters: {why}; models such as vit_mini, vit_b16, vit_l32, deit3_b16 "
        f"and mixer_b16 have such filters"
    )


def principal_components(filters: Tensor) -> tuple[Tensor, Tensor]:
    """Return the principal components of (D, ...) filters, (K, ...), and their shares of variance, (K,).

    K = min(D - 1, weights of a filter). Components have unit length, and their weight of largest magnitude
    is positive. Components whose variance is no larger than rounding are NaN.
    """
    points = filters.flatten(1)
    points = points - points.mean(0)
    _, deviations, directions = torch.linalg.svd(points, full_matrices=False)
    most = min(len(points) - 1, points.shape[1])
    deviations, directions = deviations[:most], directions[:most]
    largest = directions.gather(1, directions.abs().argmax(1, keepdim=True))
    scale = torch.linalg.vector_norm(filters)
    undefined = deviations <= max(points.shape) * torch.finfo(points.dtype).eps * scale
    directions = (directions * largest.sign()).masked_fill(undefined[:, None], torch.nan)
    share = deviations.square() / deviations.square().sum()
    return directions.unflatten(1, filters.shape[1:]), share


def position_embeddings(net: nn.Module) -> Tensor:
    """Return the absolute position embeddings of the patches, (rows, columns, features) float64.

    Prefix tokens (class, distillation, registers) are left out. Raises a UserError that says what the model does
    instead if it has none.
    """
    embeddings = getattr(net, "pos_embed", None)
    grid = getattr(_embedding(net), "grid_size", None)
    if isinstance(embeddings, torch.Tensor) and embeddings.ndim == 3 and grid:
        prefix = embeddings.shape[1] - grid[0] * grid[1]
        if prefix in (0, getattr(net, "num_prefix_tokens", 0)):
            return _finite(embeddings[0, prefix:], "the position embeddings").unflatten(0, grid)
    raise UserError(
        f"analysis=position_similarity needs one position embedding per patch, but this "
        f"{type(net).__name__} {_instead(net)}; models such as vit_mini, vit_b16, vit_l32, deit3_b16 "
        f"and r50_vit_b16 have them"
    )


def cosines(x: Tensor) -> Tensor:
    """Return the cosine of every pair of vectors, (rows, columns, features) -> (rows, columns, rows, columns).

    NaN for vectors of length zero.
    """
    vectors = x.flatten(0, 1)
    directions = vectors / torch.linalg.vector_norm(vectors, dim=1, keepdim=True)
    return (directions @ directions.mT).reshape(*x.shape[:2], *x.shape[:2])


def _embedding(net: nn.Module) -> nn.Module | None:
    """Return the module that outputs the patch tokens; MLP-Mixer calls it stem."""
    return getattr(net, "patch_embed", None) or getattr(net, "stem", None)


def _finite(weights: Tensor, what: str) -> Tensor:
    """Return the weights in float64 on the CPU. Raises UserError if they contain NaN or Inf."""
    if not weights.isfinite().all():
        raise UserError(
            f"{what} contain NaN or Inf; the checkpoint is damaged or its training diverged"
        )
    return weights.detach().cpu().double()


def _instead(net: nn.Module) -> str:
    """Return how a model without absolute position embeddings encodes positions, as a verb phrase."""
    embeddings = getattr(net, "pos_embed", None)
    if isinstance(embeddings, torch.Tensor):
        shape = " x ".join(map(str, embeddings.shape))
        return f"has a pos_embed of {shape}, which is not one vector per patch of a known grid"
    if isinstance(embeddings, torch.nn.Module):
        return f"computes its position encoding ({type(embeddings).__name__})"
    names = [name for name, _ in (*net.named_modules(), *net.named_parameters())]
    for part, what in _INSTEAD.items():
        for name in names:
            if part in name:
                return f"has none: it {what} ({name})"
    for name in names:
        if "pos_embed" in name:
            return f"has them in a form that vitsee does not read ({name})"
    kinds = [type(module).__name__.lower() for module in net.modules()]
    if not any("attn" in name or "attention" in name for name in (*names, *kinds)):
        return "has none: it is convolutional, so its filters act on neighbouring positions"
    return "has none that vitsee knows"
