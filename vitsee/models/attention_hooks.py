"""Reads attention while a model runs, computed by scaled_dot_product_attention or by the model's own softmax."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.functional import (
    linear,
    multi_head_attention_forward,
    scaled_dot_product_attention,
)
from torch.utils.hooks import RemovableHandle

from vitsee.errors import UserError
from vitsee.estimators.attention import Attention, Weights
from vitsee.models import layers, windows
from vitsee.models.calls import Calls
from vitsee.models.layout import IMAGES, Output, Record, dry_run
from vitsee.models.units import units_of
from vitsee.setting import Layer

_SOFTMAX = {torch.softmax, Tensor.softmax, functional.softmax}
_ELEMENTWISE = {
    *(torch.mul, Tensor.mul, Tensor.__mul__, Tensor.__rmul__, Tensor.mul_, Tensor.__imul__),
    *(torch.add, Tensor.add, Tensor.__add__, Tensor.__radd__, Tensor.add_, Tensor.__iadd__),
    *(torch.div, Tensor.div, Tensor.__truediv__, Tensor.div_, Tensor.__itruediv__),
    *(functional.dropout, Tensor.to, Tensor.type_as, Tensor.contiguous, Tensor.clone),
}
_PRODUCTS = {torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.bmm, Tensor.bmm}


class _Intercept(Calls):
    """Calls `seen` whenever attention is computed.

    Attention is a call of scaled_dot_product_attention, or a product of weights and values, where the weights come
    from a softmax over keys, perhaps weighted and added.
    """

    def __init__(self, seen: Callable[[Attention], None]) -> None:
        super().__init__()
        self.seen = seen
        self.weights: dict[int, Tensor] = {}

    def __exit__(self, *error: Any) -> None:
        self.weights.clear()
        super().__exit__(*error)

    def call(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        result = func(*args, **kwargs)
        if func is scaled_dot_product_attention:
            self.seen(_attention(result, *args, **kwargs))
        elif func is multi_head_attention_forward:
            if found := _multihead(*args, **kwargs):
                self.seen(found)
        elif func in _PRODUCTS and id(args[0]) in self.weights:
            self.seen(Weights(args[0], args[1], None, 1.0, result))
        elif func in _SOFTMAX and _over_keys(result, *args, **kwargs):
            self.weights[id(result)] = result
        elif func in _ELEMENTWISE:
            known = (x for x in args[:2] if id(x) in self.weights)
            if any(x.shape == result.shape for x in known):
                self.weights[id(result)] = result
        return result


def _over_keys(result: Tensor, x: Tensor, dim: int | None = None, *rest: Any, **more: Any) -> bool:
    """Return whether this softmax, called with these arguments, is over the last axis."""
    return dim in (-1, result.ndim - 1)


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

    That function projects (tokens, N, D) itself, without modules, and computes attention out of sight. None if
    tokens are masked, if keys have a different size, or if there are more keys than tokens.
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


def _by_head(attention: Attention, module: nn.Module) -> Attention:
    """Return the attention with an axis for heads, which some modules merge into the axis of images."""
    heads = getattr(module, "num_heads", None)
    if attention.output.ndim != 3 or not isinstance(heads, int) or len(attention.output) % heads:
        return attention

    def split(x: Tensor) -> Tensor:
        return x.unflatten(0, (-1, heads)) if x.ndim == 3 and len(x) > 1 else x

    bias = attention.bias if attention.bias is None else split(attention.bias)
    query, key, output = (split(x) for x in (attention.query, attention.key, attention.output))
    return replace(attention, query=query, key=key, bias=bias, output=output)


def attach(
    net: nn.Module, layer: Layer, deliver: Callable[[Attention], None]
) -> list[RemovableHandle]:
    """Add hooks that deliver the attention that this layer computes in each forward pass."""
    module = net.get_submodule(layer.name)
    intercept = _Intercept(lambda attention: deliver(_by_head(attention, module)))

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
    """Make timm call scaled_dot_product_attention, or not, regardless of TIMM_FUSED_ATTN."""
    for module in net.modules():
        if hasattr(module, "fused_attn"):
            setattr(module, "fused_attn", fused)  # noqa: B010


def survey(
    net: nn.Module, input_size: tuple[int, int, int], *, pooling: bool = False
) -> list[Layer]:
    """Return all modules in which every token of a grid attends to every token, in running order.

    For attention within windows, the grid is that of a window. pooling: add the attention with a single query
    through which the head reads the tokens (SigLIP), if there is one, at the end. net may be on any device,
    including torch's meta device. input_size: (3, H, W). Raises UserError with the reason if there are none: no
    attention, windows whose places are unknown, channels instead of tokens, or a different formula.
    """
    calls: dict[str, list[Attention]] = {}

    def record(net: nn.Module, seen: Record) -> list[RemovableHandle]:
        calls.clear()  # a previous dry run may have failed halfway
        return _record(net, lambda name, computed: calls.setdefault(name, []).append(computed))

    dry_run(net, (IMAGES, *input_size), record)
    patches = layers.patches(net, input_size)
    outputs: dict[str, Layer] = {}
    called: dict[str, windows.Arguments] = {}
    watched, refused = [], []
    for name, computed in calls.items():
        reason = _refusal(computed)
        layer = None if reason else _of_patches(net, name, computed[0], input_size, patches)
        if not reason and layer is None:
            if not outputs:
                outputs = {layer.name: layer for layer in layers.survey(net, input_size)}
                called = windows.arguments(net, input_size)
            layer, reason = _of_stage(net, name, computed[0], outputs, called)
        if layer is not None:
            watched.append(layer)
        else:
            refused.append(f"{name} ({type(net.get_submodule(name)).__name__}) {reason}")
    if not watched:
        raise UserError(_no_attention(net, refused))
    pool = _pooling(net, calls, watched[-1])
    if pool is None:
        return watched
    return [replace(layer, pooling=pool.name) for layer in watched] + [pool] * pooling


def _pooling(net: nn.Module, calls: dict[str, list[Attention]], block: Layer) -> Layer | None:
    """Return a model's last attention if it is outside the blocks and a single query reads all tokens.

    block: the last one in which every token attends to every token.
    """
    name, computed = list(calls.items())[-1]
    images, heads, queries, keys = (*computed[0].shape, 0, 0)[:4]
    tokens = block.shape[1]
    reads = (images, queries) == (IMAGES, 1) and keys in (tokens, tokens - (block.prefix or 0))
    units = units_of(net, [name for name, _ in net.named_modules()])
    if (
        not reads
        or block.windows > 1
        or len(computed) > 1
        or any(f"{name}.".startswith(f"{unit}.") for unit in units)
    ):
        return None
    shape = heads, 1, computed[0].output.shape[-1]
    return replace(block, name=name, shape=shape, reads_class=False, pooling=name)


def _refusal(computed: list[Attention]) -> str:
    """Return why not every token attends to every token here; empty if they may."""
    shape = computed[0].shape
    if len(computed) > 1:
        return f"computes {len(computed)} attentions and combines their weights in its own way"
    if len(shape) != 4 or shape[0] % IMAGES:
        return f"attends within windows of {shape[-2]} tokens"
    if shape[-2] != shape[-1]:
        return f"attends from {shape[-2]} to {shape[-1]} tokens"
    return ""


def _of_patches(
    net: nn.Module,
    name: str,
    attention: Attention,
    input_size: tuple[int, int, int],
    patches: layers.Patches | None,
) -> Layer | None:
    """Return the layer if its tokens are the patches of the model's embedding."""
    images, heads, tokens, _ = attention.shape
    features = attention.output.shape[-1]
    layer = layers.describe(net, name, Output((tokens, heads * features)), input_size, patches)
    if images != IMAGES or layer.prefix is None or layer.grid is None:
        return None
    return replace(layer, shape=(heads, tokens, features))


def _of_stage(
    net: nn.Module,
    name: str,
    attention: Attention,
    outputs: dict[str, Layer],
    called: Mapping[str, windows.Arguments],
) -> tuple[Layer | None, str]:
    """Return the layer on the grid of the module's output, or of a module that contains it; or why there is none.

    outputs: of all modules. called: the arguments of all modules.
    """
    n, heads, tokens, _ = attention.shape
    parts = name.split(".")
    around = [".".join(parts[:i]) for i in range(len(parts), 0, -1)]
    near = [outputs[place] for place in around if place in outputs and outputs[place].grid]
    shape = heads, tokens, attention.output.shape[-1]
    if n == IMAGES:
        for place in near:
            if place.places[0] * place.places[1] + (place.prefix or 0) == tokens:
                prefix = place.prefix or 0
                return replace(
                    place, name=name, shape=shape, prefix=prefix, channels_last=False
                ), ""
        return None, f"attends among {tokens} entries, which are not the model's tokens"
    for stage in near:
        window = windows.window(net, name, stage, called, _record)
        if window and stage.pitch:
            pitch = stage.pitch[0] * window.step[0], stage.pitch[1] * window.step[1]
            layer = Layer(name, shape, 0, False, window.grid, pitch, windows=n // IMAGES)
            return replace(layer, image_grid=stage.grid, window_places=window.places), ""
    return None, (
        f"attends within {n // IMAGES} windows of {tokens} tokens, whose places are unknown"
    )


def _no_attention(net: nn.Module, refused: list[str]) -> str:
    kind = type(net).__name__
    classes = {type(module).__name__ for module in net.modules()}
    own = sorted(name for name in classes if "attn" in name.lower() or "attention" in name.lower())
    if refused:
        why = f"its {refused[0]}"
    elif own:
        why = f"its {', '.join(own)} compute attention by their own formula, or by functions that are not followed"
    else:
        why = "none of its modules computes attention"
    return (
        f"{kind} has no softmax attention from every token to every token: {why}; analyses of attention "
        f"need it in some blocks, as in ViTs, BEiT, EVA, hybrids, PiT and (within windows) Swin"
    )


def _record(net: nn.Module, seen: Callable[[str, Attention], None]) -> list[RemovableHandle]:
    """Add hooks that deliver every attention computed, with the name of the innermost module."""
    running: list[str] = []

    def one(attention: Attention) -> None:
        seen(running[-1], _by_head(attention, net.get_submodule(running[-1])))

    intercept = _Intercept(one)

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
