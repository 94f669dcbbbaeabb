"""Reads the attention of timm's transformers by intercepting scaled_dot_product_attention."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import (
    linear,
    multi_head_attention_forward,
    scaled_dot_product_attention,
)
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

from vitsee.errors import UserError
from vitsee.estimators.attention import Attention
from vitsee.models import layers
from vitsee.models.layout import IMAGES, Output, Record, dry_run
from vitsee.setting import Layer


class _Intercept(TorchFunctionMode):
    """Calls `seen` for each call of scaled_dot_product_attention, with its arguments and result."""

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
        elif func is multi_head_attention_forward and (found := _multihead(*args, **kwargs)):
            self.seen(found)
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
    """Return the attention of a call; the parameters are those of scaled_dot_product_attention."""
    bias = attn_mask
    if bias is not None and bias.dtype == torch.bool:
        bias = torch.zeros(bias.shape, device=bias.device).masked_fill_(~bias, -math.inf)
    if is_causal:
        tokens = query.shape[-2]
        bias = torch.full((tokens, tokens), -math.inf, device=query.device).triu_(1)
    return Attention(query, key, bias, query.shape[-1] ** -0.5 if scale is None else scale, output)


def _multihead(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    embed_dim: int,
    heads: int,
    weight: Tensor | None,
    bias: Tensor | None,
    bias_k: Tensor | None,
    bias_v: Tensor | None,
    add_zero_attn: bool,
    *rest: Any,
    key_padding_mask: Tensor | None = None,
    attn_mask: Tensor | None = None,
    use_separate_proj_weight: bool = False,
    is_causal: bool = False,
    **options: Any,
) -> Attention | None:
    """Return the attention of nn.MultiheadAttention; the parameters are those of multi_head_attention_forward.

    That function projects (tokens, N, D) itself, without modules, and computes attention out of sight. None where
    tokens are masked, keys have another size, or there are keys beyond those of the tokens.
    """
    more_keys = bias_k is not None or bias_v is not None or add_zero_attn
    if weight is None or use_separate_proj_weight or key_padding_mask is not None or more_keys:
        return None
    biases = (None,) * 3 if bias is None else bias.chunk(3)
    q, k, v = (
        linear(x, w, b).unflatten(-1, (heads, -1)).permute(1, 2, 0, 3)
        for x, w, b in zip((query, key, value), weight.chunk(3), biases, strict=True)
    )
    output = scaled_dot_product_attention(q, k, v, attn_mask, is_causal=is_causal)
    return _attention(output, q, k, v, attn_mask, is_causal=is_causal)


def attach(
    net: nn.Module, layer: Layer, deliver: Callable[[Attention], None]
) -> list[RemovableHandle]:
    """Add hooks that deliver the attention that this layer computes in each forward pass."""
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
    """Make timm call scaled_dot_product_attention, or not, whatever TIMM_FUSED_ATTN says."""
    for module in net.modules():
        if hasattr(module, "fused_attn"):
            setattr(module, "fused_attn", fused)  # noqa: B010


def survey(net: nn.Module, input_size: tuple[int, int, int]) -> list[Layer]:
    """Return all modules that attend from every token to every token, in running order.

    net may be on any device, including torch's meta device. input_size: (3, H, W). Raises UserError with
    the reason if there are none: no attention, windows, channels instead of tokens, or another formula.
    """
    calls: dict[str, list[Attention]] = {}

    def record(net: nn.Module, seen: Record) -> list[RemovableHandle]:
        calls.clear()  # a previous dry run may have failed halfway
        return _record(net, lambda name, computed: calls.setdefault(name, []).append(computed))

    dry_run(net, (IMAGES, *input_size), record)
    patches = layers.patches(net, input_size)
    usable, refused = [], []
    for name, computed in calls.items():
        heads, tokens, features = _sizes(computed[0])
        output = Output((tokens, heads * features))
        layer = layers.describe(net, name, output, input_size, patches)
        reason = _refusal(layer, computed)
        if reason:
            refused.append(f"{name} ({type(net.get_submodule(name)).__name__}) {reason}")
        else:
            usable.append(replace(layer, shape=(heads, tokens, features)))
    if not usable:
        raise UserError(_no_attention(net, refused))
    return usable


def _sizes(attention: Attention) -> tuple[int, int, int]:
    """Return the numbers of heads, of tokens, and of features per head."""
    *_, heads, tokens, features = (1, *attention.query.shape)
    return heads, tokens, features


def _refusal(layer: Layer, computed: list[Attention]) -> str:
    """Return why this attention is not from every token to every token; empty if it is."""
    query, key = computed[0].query.shape, computed[0].key.shape
    if len(computed) > 1:
        return f"computes {len(computed)} attentions and combines their weights in its own way"
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
        why = "none of its modules computes attention"
    return (
        f"{kind} has no softmax attention from every token to every token: {why}; analyses of attention "
        f"need a ViT, DeiT, BEiT, EVA, ViT with relative positions, or hybrid"
    )


def _record(net: nn.Module, seen: Callable[[str, Attention], None]) -> list[RemovableHandle]:
    """Add hooks that deliver every attention computed, with the name of the innermost module."""
    running: list[str] = []
    intercept = _Intercept(lambda attention: seen(running[-1], attention))

    def enter(name: str) -> Callable[[nn.Module, object], None]:
        def hook(module: nn.Module, args: object) -> None:
            running.append(name)
            if not name:  # this is the model itself
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
