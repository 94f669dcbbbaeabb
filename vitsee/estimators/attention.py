"""Attention weights, mean attention distance, attention rollout and attention by offset."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from vitsee.errors import UserError
from vitsee.estimators.kernels import float64_device
from vitsee.lazy import torch
from vitsee.setting import Layer

if TYPE_CHECKING:
    from torch import Tensor

_CHUNK_BYTES = {"cpu": 2**20, "cuda": 2**28}
"""Size of the attention weights computed at a time: they fit into a CPU's cache and take little GPU memory."""


@dataclass(frozen=True)
class Attention:
    """What an attention module computed for a minibatch: output = softmax(scale query keyᵀ + bias) value.

    query, key: (N, heads, tokens, features), after q/k norm and rotation. bias: broadcasts to
    (N, heads, tokens, tokens), or None. output: (N, heads, tokens, features), before the projection. For
    attention within windows, N counts the windows of all images, one image after another.
    """

    query: Tensor
    key: Tensor
    bias: Tensor | None
    scale: float
    output: Tensor

    @property
    def device(self) -> torch.device:
        return self.output.device

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, heads, queries, keys)."""
        return (*self.query.shape[:-1], self.key.shape[-2])

    def weights(self, windows: int = 1) -> Iterator[tuple[slice, Tensor]]:
        """Yield slices of the minibatch and their weights, (images, heads, tokens, tokens) float32.

        Each slice covers few images and is computed on demand, so that the weights are never all in memory.
        windows: number of windows per image; each slice then has all windows of its images.
        """
        n, heads, queries, keys = self.shape
        limit = _CHUNK_BYTES.get(self.device.type, 2**28)
        size = max(1, limit // (4 * heads * queries * keys * windows)) * windows
        for start in range(0, n, size):
            some = slice(start, min(start + size, n))
            yield some, self._softmax(some)

    def _softmax(self, some: slice) -> Tensor:
        query = self.query[some].float() * self.scale
        scores = query @ self.key[some].float().mT
        if self.bias is not None:
            shared = self.bias.ndim < 4 or len(self.bias) == 1
            scores += (self.bias if shared else self.bias[some]).float()
        return scores.softmax(-1)


@dataclass(frozen=True)
class Weights(Attention):
    """Attention whose weights a module computed itself, by any formula: output = computed value.

    query: the weights, (N, heads, tokens, tokens). key: the values, (N, heads, tokens, features).
    """

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.query.shape)

    def _softmax(self, some: slice) -> Tensor:
        return self.query[some].float().clone()


def require_no_windows(
    layers: Sequence[Layer], analysis: str, option: str = "analysis.layers"
) -> None:
    """Raise UserError if one of these modules attends within windows: its weights do not cover all tokens.

    option: the option that chooses them.
    """
    for layer in layers:
        if layer.windows > 1:
            raise UserError(
                f"analysis={analysis}: {layer.name} attends within windows, not across the whole "
                f"image; use analysis=attention_distance, or choose other layers with {option}"
            )


def require_same_tokens(
    layers: Sequence[Layer], analysis: str, option: str = "analysis.layers"
) -> None:
    """Raise UserError if these modules do not all attend among the same tokens, as rollout needs.

    If the head reads the tokens by attention pooling, the pooling must be chosen too. option: the option that
    chooses the modules.
    """
    require_no_windows(layers, analysis, option)
    for layer in layers:
        if (layer.prefix, layer.grid) != (layers[0].prefix, layers[0].grid):
            raise UserError(
                f"analysis={analysis}: {layers[0].name} and {layer.name} attend among different tokens "
                f"({layers[0].shape[1]} and {layer.shape[1]}); choose the layers of one stage with {option}"
            )
    if layers and layers[0].pooling not in ("", layers[-1].name):
        pool = layers[0].pooling
        raise UserError(
            f"analysis={analysis}: the model's head reads the tokens by the attention of {pool}, where the rollout "
            f"starts; add it to {option}, e.g. {option}=[{layers[0].name},…,{pool}]"
        )


def token_distances(layer: Layer) -> Tensor:
    """Return the distance in pixels between the patches of every pair of tokens, (tokens, tokens) float32.

    It is 0 from and to prefix tokens (class, registers), so they drop out of sums.
    """
    prefix = layer.prefix or 0
    rows, columns = (
        torch.arange(steps) * float(pitch)
        for steps, pitch in zip(layer.places, layer.pitch or (), strict=True)
    )
    row, column = (place.flatten() for place in torch.meshgrid(rows, columns, indexing="ij"))
    between = torch.hypot(row[:, None] - row, column[:, None] - column)
    return torch.nn.functional.pad(between, (prefix, 0, prefix, 0))


def attention_distance(attention: Attention, layer: Layer, *, renormalize: bool = False) -> Tensor:
    """Return the mean attention distance in pixels per head, (N, heads) float64.

    This is the mean over patches q of sum_k A[q, k] |position(q) - position(k)|, with k over patches only
    (Dosovitskiy et al. 2021, Fig. 7; Raghu et al. 2021, Fig. 3). Attention to prefix tokens counts as
    distance 0, as in the authors' code. renormalize: divide by the attention to patches instead. At most
    one chunk of the weights is in memory. In layers with windows, k runs over the patches of q's window, and the
    mean is over all windows of an image.
    """
    prefix = layer.prefix or 0
    between = token_distances(layer).to(attention.device)
    distances = []
    for _, weights in attention.weights():
        mass = weights[..., prefix:, prefix:].sum(-1) if renormalize else 1.0
        of_query = weights.mul_(between).sum(-1)[..., prefix:] / mass
        distances.append(of_query.to(float64_device(of_query), torch.float64).mean(-1))
    return torch.cat(distances).unflatten(0, (-1, layer.windows)).mean(1)


def uniform_distance(layer: Layer, *, renormalize: bool = False) -> float:
    """Return the `attention_distance` in pixels of a head that attends uniformly to all tokens."""
    patches = math.prod(layer.places)
    attended = patches if renormalize else patches + (layer.prefix or 0)
    return float(token_distances(layer).double().sum() / (patches * attended))


def rollout(weights: Sequence[Tensor], start: Tensor) -> Tensor:
    """Return how input tokens contribute to output tokens through attention and residual connections.

    weights: one per block in running order, (N, tokens, tokens), with rows that sum to 1. start: (Q, tokens) or
    (N, Q, tokens) weights over the output tokens. Returns start Â_L … Â_2 Â_1, (N, Q, tokens), where Â = (A + I) / 2
    (Abnar and Zuidema 2020, eq. 1 and 2).
    """
    mixed = start
    for a in reversed(weights):
        mixed = (mixed @ a + mixed) / 2
    return mixed


def reached(weights: Sequence[Tensor], layers: Sequence[Layer]) -> Tensor:
    """Return the weight of each patch in the output by `rollout`, (N, rows, columns).

    weights: one per attention module, averaged over heads, (N, tokens, tokens). The output is what the model's
    head reads: the class token, the mean of all patches, or the tokens weighted by the head's own attention,
    which comes last: (N, 1, tokens), perhaps without prefix tokens.
    """
    layer = layers[-1]
    prefix = layer.prefix or 0
    tokens = prefix + math.prod(layer.places)
    start = weights[0].new_zeros(1, tokens)
    if layer.pooling:
        *weights, pooled = weights
        start = torch.nn.functional.pad(pooled, (tokens - pooled.shape[-1], 0))
    elif layer.reads_class:
        start[0, 0] = 1
    else:
        start[0, prefix:] = 1 / (tokens - prefix)
    return rollout(weights, start)[:, 0, prefix:].unflatten(1, layer.places)


def offsets(layer: Layer) -> list[tuple[int, int]]:
    """Return the steps (rows, columns) on the layer's grid that at least a quarter of its patches can make."""
    rows, columns = (side // 2 for side in layer.places)
    return [(r, c) for r in range(-rows, rows + 1) for c in range(-columns, columns + 1)]


def offset_means(weights: Tensor, layer: Layer) -> Tensor:
    """Return the mean attention from a patch to the patch at each of `offsets`, over patches that have one there.

    weights: (N, windows, heads, patches, patches). Returns (N, heads, offsets). It is 1 for a head that always looks
    there (Walmer et al. 2023, "offset local attention heads"). Padding does not count as a patch, and neighbours
    within a window that are on opposite sides of the image (Swin's shifted windows) are not at the offset.
    """
    (height, width), places = layer.places, window_places(layer).to(weights.device)
    columns = (layer.image_grid or layer.places)[1]
    image_row, image_column = places // columns, places % columns
    place = torch.arange(height * width, device=weights.device)
    row, column = place // width, place % width
    of_heads, means = weights.movedim(2, 1), []
    for down, right in offsets(layer):
        to_row, to_column = row + down, column + right
        there = (to_row >= 0) & (to_row < height) & (to_column >= 0) & (to_column < width)
        query, key = place[there], (to_row * width + to_column)[there]
        real = (places[:, query] >= 0) & (places[:, key] >= 0)
        for step, image in ((down, image_row), (right, image_column)):
            real &= (image[:, key] - image[:, query]).sign() == np.sign(step)
        window, pair = real.nonzero(as_tuple=True)
        means.append(of_heads[:, :, window, query[pair], key[pair]].mean(-1))
    return torch.stack(means, -1)


def window_places(layer: Layer) -> Tensor:
    """Return where in the image each patch is, in row-major order, (windows, patches); -1 for padding.

    Attention in the whole image is one window.
    """
    rows, columns = layer.places
    return torch.tensor(layer.window_places or [range(rows * columns)])
