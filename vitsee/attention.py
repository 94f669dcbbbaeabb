"""Attention weights of timm's transformers, from one place: what goes into scaled_dot_product_attention."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

from vitsee import layers
from vitsee.analysis import Layer
from vitsee.errors import UserError
from vitsee.kernels import float64_device
from vitsee.layout import IMAGES, Output, Record, dry_run

_CHUNK_BYTES = {"cpu": 2**20, "cuda": 2**28}
"""Size of the attention weights that are made at a time: the cache of a CPU, little of a GPU's memory."""


@dataclass(frozen=True)
class Attention:
    """What an attention module computed for a minibatch: output = softmax(scale query keyᵀ + bias) value.

    query, key: (N, heads, tokens, features), after q/k norm and rotation. bias: broadcasts to
    (N, heads, tokens, tokens), or None. output: (N, heads, tokens, features), before the projection.
    """

    query: Tensor
    key: Tensor
    bias: Tensor | None
    scale: float
    output: Tensor

    def weights(self) -> Iterator[tuple[slice, Tensor]]:
        """Slices of the images and their weights, (images, heads, tokens, tokens) float32.

        Each is made when asked for and few images wide, so that all of them are never in memory.
        """
        n, heads, tokens, _ = self.query.shape
        limit = _CHUNK_BYTES.get(self.query.device.type, 2**28)
        size = max(1, limit // (4 * heads * tokens * tokens))
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


def token_distances(layer: Layer) -> Tensor:
    """Distance in pixels between the patches of every two tokens, (tokens, tokens) float32.

    From and to tokens before the first patch (class, registers) it is 0, so that they drop out of sums.
    """
    assert layer.grid is not None
    assert layer.pitch is not None
    assert layer.prefix is not None
    rows, columns = (
        torch.arange(steps) * float(pitch)
        for steps, pitch in zip(layer.grid, layer.pitch, strict=True)
    )
    row, column = (place.flatten() for place in torch.meshgrid(rows, columns, indexing="ij"))
    between = torch.hypot(row[:, None] - row, column[:, None] - column)
    return nn.functional.pad(between, (layer.prefix, 0, layer.prefix, 0))


def attention_distance(attention: Attention, layer: Layer, *, renormalize: bool = False) -> Tensor:
    """Mean attention distance in pixels of every head, (N, heads) float64.

    The mean over patches q of sum_k A[q, k] |position(q) - position(k)|, with k over patches only:
    what a patch attends to class token and registers counts as distance 0, as in the authors' code;
    renormalize: divided by what it attends to patches (Dosovitskiy et al. 2021, Fig. 7; Raghu et al.
    2021, Fig. 3). Never more than one chunk of the weights is in memory.
    """
    prefix = layer.prefix or 0
    between = token_distances(layer).to(attention.query.device)
    found = []
    for _, weights in attention.weights():
        mass = weights[..., prefix:, prefix:].sum(-1) if renormalize else 1.0
        of_query = weights.mul_(between).sum(-1)[..., prefix:] / mass
        found.append(of_query.to(float64_device(of_query), torch.float64).mean(-1))
    return torch.cat(found)


def uniform_distance(layer: Layer, *, renormalize: bool = False) -> float:
    """The `attention_distance` in pixels of a head that attends to all tokens alike."""
    assert layer.grid is not None
    patches = layer.grid[0] * layer.grid[1]
    attended = patches if renormalize else patches + (layer.prefix or 0)
    return float(token_distances(layer).double().sum() / (patches * attended))


def rollout(weights: Sequence[Tensor], start: Tensor) -> Tensor:
    """How the tokens of the output mix those of the input, by attention and residual connections.

    weights: of every block in running order, (N, tokens, tokens), rows that sum to 1. start: (Q, tokens)
    weights over the output's tokens. Returns start Â_L … Â_2 Â_1, (N, Q, tokens), where Â = (A + I) / 2
    (Abnar and Zuidema 2020, eq. 1 and 2).
    """
    mixed = start
    for a in reversed(weights):
        mixed = (mixed @ a + mixed) / 2
    return mixed


class _Intercept(TorchFunctionMode):
    """Passes every call of scaled_dot_product_attention, with its result, to `seen`."""

    def __init__(self, seen: Callable[[Attention], None]) -> None:
        super().__init__()
        self.seen = seen

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if func is scaled_dot_product_attention:
            self.seen(_attention(result, *args, **kwargs))
        return result


def _attention(
    output: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Attention:
    """The arguments of scaled_dot_product_attention by its own signature."""
    bias = attn_mask
    if bias is not None and bias.dtype == torch.bool:
        bias = torch.zeros(bias.shape, device=bias.device).masked_fill_(~bias, -math.inf)
    if is_causal:
        tokens = query.shape[-2]
        bias = torch.full((tokens, tokens), -math.inf, device=query.device).triu_(1)
    return Attention(query, key, bias, query.shape[-1] ** -0.5 if scale is None else scale, output)


def attach(
    net: nn.Module, layer: Layer, deliver: Callable[[Attention], None]
) -> list[RemovableHandle]:
    """Hooks that hand over what the attention module of this name computes in each forward pass."""
    module = net.get_submodule(layer.name)
    intercept = _Intercept(deliver)

    def enter(module: nn.Module, args: object) -> None:
        fuse(module, True)
        intercept.__enter__()

    def leave(module: nn.Module, args: object, output: object) -> None:
        intercept.__exit__(None, None, None)

    return [
        module.register_forward_pre_hook(enter),
        module.register_forward_hook(leave, always_call=True),
    ]


def fuse(net: nn.Module, fused: bool) -> None:
    """Let timm call scaled_dot_product_attention or not, whatever its setting TIMM_FUSED_ATTN says."""
    for module in net.modules():
        if hasattr(module, "fused_attn"):
            setattr(module, "fused_attn", fused)  # noqa: B010


def survey(net: nn.Module, input_size: tuple[int, int, int]) -> list[Layer]:
    """Every module that attends from all tokens to all tokens, in the order they run.

    net may be on any device, also torch's meta device. input_size: (3, H, W). Raises UserError that
    says why if there is none: no attention, windows, channels instead of tokens, or another formula.
    """
    calls: dict[str, list[Attention]] = {}

    def record(net: nn.Module, seen: Record) -> list[RemovableHandle]:
        calls.clear()  # of a dry run that failed, if there was one
        return _record(net, lambda name, found: calls.setdefault(name, []).append(found))

    dry_run(net, (IMAGES, *input_size), record)
    patches = layers.patches(net, input_size)
    found, refused = [], []
    for name, computed in calls.items():
        heads, tokens, features = _sizes(computed[0])
        output = Output((tokens, heads * features))
        layer = layers.describe(net, name, output, input_size, patches)
        reason = _refusal(layer, computed)
        if reason:
            refused.append(f"{name} ({type(net.get_submodule(name)).__name__}) {reason}")
        else:
            found.append(replace(layer, shape=(heads, tokens, features)))
    if not found:
        raise UserError(_no_attention(net, refused))
    return found


def _sizes(found: Attention) -> tuple[int, int, int]:
    """Heads, tokens and features of a head."""
    *_, heads, tokens, features = (1, *found.query.shape)
    return heads, tokens, features


def _refusal(layer: Layer, found: list[Attention]) -> str:
    """Why this attention is not from every token to every token of the image, empty if it is."""
    query, key = found[0].query.shape, found[0].key.shape
    if len(found) > 1:
        return f"computes {len(found)} attentions, whose weights are combined in its own way"
    if len(query) != 4 or query[0] != IMAGES:
        return f"attends within windows of {query[-2]} tokens"
    if query[-2] != key[-2]:
        return f"attends from {query[-2]} to {key[-2]} tokens"
    if layer.prefix is None or layer.grid is None or query[-2] != _tokens(layer):
        return f"attends among {query[-2]} entries, which are not the model's tokens"
    return ""


def _tokens(layer: Layer) -> int:
    assert layer.grid is not None
    return layer.grid[0] * layer.grid[1] + (layer.prefix or 0)


def _no_attention(net: nn.Module, refused: list[str]) -> str:
    kind = type(net).__name__
    classes = {type(module).__name__ for module in net.modules()}
    own = sorted(name for name in classes if "attn" in name.lower() or "attention" in name.lower())
    if refused:
        why = f"its {refused[0]}"
    elif own:
        why = f"its {', '.join(own)} compute attention by a formula of their own"
    else:
        why = "no module of it computes any"
    return (
        f"{kind} has no softmax attention from every token to every token: {why}; analyses of attention "
        f"need a ViT, DeiT, BEiT, EVA, a ViT with relative positions or a hybrid"
    )


def _record(net: nn.Module, seen: Callable[[str, Attention], None]) -> list[RemovableHandle]:
    """Hooks that hand over every attention that is computed, by the name of the innermost module."""
    running: list[str] = []
    intercept = _Intercept(lambda found: seen(running[-1], found))

    def enter(name: str) -> Callable[[nn.Module, object], None]:
        def hook(module: nn.Module, args: object) -> None:
            running.append(name)
            if not name:  # the model itself
                intercept.__enter__()

        return hook

    def leave(module: nn.Module, args: object, output: object) -> None:
        if not running.pop():
            intercept.__exit__(None, None, None)

    handles = []
    for name, module in net.named_modules():
        fuse(module, True)
        handles.append(module.register_forward_pre_hook(enter(name)))
        handles.append(module.register_forward_hook(leave, always_call=True))
    return handles
