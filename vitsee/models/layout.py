"""Finds the meaning of the axes of a layer's output by dry runs with more images and with larger images."""

from __future__ import annotations

import copy
import math
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from typing import Any

import torch
from timm.layers import PatchEmbed
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.hooks import RemovableHandle

from vitsee.errors import UserError
from vitsee.models.calls import Calls

Record = Callable[[str, object], None]
"""Called with the name of a module that has just run, and its output."""
Attach = Callable[[nn.Module, Record], list[RemovableHandle]]
"""Adds hooks to a model that call a `Record` for each output, in running order."""
Shapes = dict[str, tuple[int, ...] | None]
"""The shapes of the reported outputs by name; None for repeated outputs and those that are not tensors with
features."""

IMAGES = 3
"""Number of images in the dry run that identifies the axis of images."""
_PIXELS = 6720
"""A multiple of this is added to the height or width. It is 2^6 x 3 x 5 x 7, so divisible by nearly every step."""


@dataclass(frozen=True)
class Growth:
    """How much each axis of an output for one image grows when the input grows by `more` pixels."""

    more: int
    axes: tuple[int, ...]

    def step(self, growth: int) -> float:
        """Return the input pixels per step along an axis with this growth; 0 if there is no constant step.

        A step that divides `more` is exact. For other steps the growth was rounded up or down, so the step
        is between more / (growth + 1) and more / (growth - 1): the whole number in this range, if there is
        exactly one. Otherwise the steps are not equal.
        """
        if growth <= 0:
            return 0
        if self.more % growth == 0 or growth % self.more == 0:
            return self.more / growth
        whole = range(self.more // (growth + 1) + 1, math.ceil(self.more / (growth - 1)))
        return whole[0] if len(whole) == 1 else 0


@dataclass(frozen=True)
class Output:
    """One output, as dry runs reveal it.

    shape: for one image. images: whether its first axis is the images, or their windows. windows: the number of
    windows per image if the first axis is the windows of one image after another (`shape` then begins with this
    number), else 1. taller, wider: how the shape grows with the input's height and width; None if the model cannot
    run up to this output at a different size.
    """

    shape: tuple[int, ...]
    images: bool = True
    windows: int = 1
    taller: Growth | None = None
    wider: Growth | None = None


def survey(net: nn.Module, input_size: tuple[int, int, int], attach: Attach) -> dict[str, Output]:
    """Return the outputs that the hooks of `attach` report, in running order, with the meaning of their axes.

    input_size: (3, H, W). Raises UserError if the model does not accept it.
    """
    channels, height, width = input_size
    one = dry_run(net, (1, *input_size), attach)
    several = dry_run(net, (IMAGES, *input_size), attach)
    down, right = _more(height), _more(width)
    taller = _enlarged(net, (1, channels, height + down, width), attach)
    wider = _enlarged(net, (1, channels, height, width + right), attach)
    outputs = {}
    for name, shape in one.items():
        if shape:
            images = several.get(name) == (IMAGES * shape[0], *shape[1:])
            grown = _growth(shape, taller.get(name), down), _growth(shape, wider.get(name), right)
            if images and shape[0] > 1:
                outputs[name] = Output(shape, True, shape[0])
            else:
                outputs[name] = Output(shape[1:], images, 1, *grown)
    windows = {name: output.windows for name, output in outputs.items() if output.windows > 1}
    for name in _disordered(net, input_size, attach, windows):
        outputs[name] = replace(
            outputs[name], shape=outputs[name].shape[1:], images=False, windows=1
        )
    return outputs


def _disordered(
    net: nn.Module, input_size: tuple[int, int, int], attach: Attach, windows: dict[str, int]
) -> list[str]:
    """Return the outputs whose first axis is not all windows of the first image, then all of the second.

    The second of two images is NaN, as is everything that depends on it. On the meta device, which has no
    numbers, none is found.
    """
    if not windows or any(x.is_meta for x in net.parameters()):
        return []
    ordered = set()

    def seen(name: str, output: object) -> None:
        if name in windows and isinstance(output, Tensor):
            good = output.isfinite().flatten(1).all(1)
            expected = torch.arange(len(good), device=good.device) < windows[name]
            if good.equal(expected):
                ordered.add(name)

    pixels = torch.zeros(2, *input_size)
    pixels[1] = torch.nan
    with ExitStack() as stack, suppress(Exception):
        stack.enter_context(torch.no_grad())
        for handle in attach(net, seen):
            stack.callback(handle.remove)
        net(pixels.to(next(net.parameters()).device))
    return [name for name in windows if name not in ordered]


def dry_run(net: nn.Module, size: tuple[int, ...], attach: Attach) -> Shapes:
    """Return the shapes of the outputs that the hooks of `attach` report for (N, 3, H, W) zeros.

    The model runs on torch's meta device, where nothing is computed, or on its own device if that fails.
    Raises UserError if the model does not accept such an input.
    """
    with suppress(Exception):  # the model's own errors will occur again below
        return _run(on_meta(net), size, attach, {}, _OnMeta())
    try:
        return _run(net, size, attach, {})
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        shape = " x ".join(map(str, size[1:]))
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(
            f"{type(net).__name__} does not accept images of {shape} ({lines[0]}); model.args.img_size sets the "
            f"size that a model is built for, model.overlay.input_size the size of its images"
        ) from error


def _enlarged(net: nn.Module, size: tuple[int, ...], attach: Attach) -> Shapes:
    """Return the shapes for a different input size than the model's, as far as the model runs with it."""
    ran: Shapes = {}
    with suppress(Exception):  # outputs before the failure have already been reported
        twin = on_meta(net)
        for module in twin.modules():
            if hasattr(module, "strict_img_size"):
                setattr(module, "strict_img_size", False)  # noqa: B010
            if isinstance(module, PatchEmbed):
                module.img_size = None  # otherwise it demands multiples of the patch size
        _run(twin, size, attach, ran, _OnMeta(lenient=True))
    return ran


def on_meta(net: nn.Module) -> nn.Module:
    """Return a copy of the model on the meta device, whose tensors have shapes but no values."""
    copies: dict[int, Any] = {id(x): x.to("meta") for x in net.buffers()}
    for x in net.parameters():
        copies[id(x)] = nn.Parameter(x.detach().to("meta"), requires_grad=False)
    # Each module has a dozen dictionaries for hooks, on which deepcopy spends half its time.
    for module in net.modules():
        empty = [x for x in vars(module).values() if type(x) is OrderedDict and not x]
        copies |= {id(x): OrderedDict() for x in empty}
    return copy.deepcopy(net, copies)


def _run(
    net: nn.Module,
    size: tuple[int, ...],
    attach: Attach,
    ran: Shapes,
    on_meta: _OnMeta | None = None,
) -> Shapes:
    """Run one forward pass on zeros. Return `ran`, which collects the shapes that the hooks report."""

    def seen(name: str, output: object) -> None:
        once = name not in ran and isinstance(output, Tensor) and output.ndim >= 2
        ran[name] = tuple(output.shape) if once else None  # type: ignore[attr-defined]

    device = next((x.device for x in net.parameters()), torch.device("cpu"))
    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        if on_meta is not None:
            device = torch.device("meta")
            stack.enter_context(device)  # also for tensors created on the way
            stack.enter_context(on_meta)
        for handle in attach(net, seen):
            stack.callback(handle.remove)
        net(torch.zeros(*size, device=device))
    return ran


class _OnMeta(Calls):
    """Computes shapes at no cost, also for recurrent layers, which torch would run step by step.

    lenient: skip position embeddings and biases that do not fit the size.
    """

    def __init__(self, *, lenient: bool = False) -> None:
        super().__init__()
        self.lenient = lenient

    def call(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if func is torch.lstm and kwargs == {}:
            return _lstm(*args)
        if func in _KNOWN and (found := _KNOWN[func](*args, **kwargs)) is not None:
            return found
        try:
            return func(*args, **kwargs)
        except RuntimeError:
            if self.lenient and func is functional.scaled_dot_product_attention:
                return func(*args[:3], **{k: v for k, v in kwargs.items() if k != "attn_mask"})
            if self.lenient and func in SUMS:
                return max(args[:2], key=torch.numel).clone()
            raise


SUMS = {
    torch.add,
    Tensor.add,
    Tensor.add_,
    Tensor.__add__,
    Tensor.__iadd__,
    Tensor.__radd__,
}


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor | None:
    fits = x.shape[-1] == weight.shape[1]
    return x.new_empty(*x.shape[:-1], weight.shape[0]) if fits else None


def _layer_norm(x: Tensor, shape: Sequence[int], *rest: Any, **options: Any) -> Tensor | None:
    return x.new_empty(x.shape) if x.shape[-len(shape) :] == tuple(shape) else None


def _batch_norm(
    x: Tensor, *statistics: Tensor | None, weight: Tensor | None = None, **options: Any
) -> Tensor | None:
    of_channels = [values for values in (*statistics, weight) if values is not None]
    fits = all(values.shape[0] == x.shape[1] for values in of_channels)
    return torch.empty_like(x) if fits and x.numel() > x.shape[1] else None


def _group_norm(
    x: Tensor, groups: int, *, weight: Tensor | None = None, **options: Any
) -> Tensor | None:
    fits = x.shape[1] % groups == 0 and (weight is None or weight.shape[0] == x.shape[1])
    return torch.empty_like(x) if fits and x.numel() > x.shape[1] else None


def _attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, **options: Any
) -> Tensor | None:
    fits = query.shape[:-2] == key.shape[:-2] and query.shape[-1] == key.shape[-1]
    return (
        torch.empty_like(query) if fits and key.shape == value.shape and attn_mask is None else None
    )


def _elementwise(*args: Any, **options: Any) -> Tensor | None:
    if len(args) != 2 or options or not all(isinstance(x, Tensor) for x in args):
        return None
    x, y = args
    fits = x.shape == y.shape and x.stride() == y.stride() and x.dtype == y.dtype
    return torch.empty_like(x) if fits else None


def _activation(x: Tensor, *, inplace: bool = False, **options: Any) -> Tensor:
    return x if inplace else torch.empty_like(x)


ELEMENTWISE = (torch.add, Tensor.add, Tensor.__add__, torch.mul, Tensor.mul, Tensor.__mul__)
ACTIVATIONS = (
    *(functional.gelu, functional.relu, functional.relu6, functional.hardtanh),
    *(functional.silu, functional.hardswish, functional.hardsigmoid),
)

_KNOWN: dict[Any, Callable[..., Tensor | None]] = {
    functional.linear: _linear,
    functional.layer_norm: _layer_norm,
    functional.batch_norm: _batch_norm,
    functional.group_norm: _group_norm,
    functional.scaled_dot_product_attention: _attention,
    **dict.fromkeys(ELEMENTWISE, _elementwise),
    **dict.fromkeys(ACTIVATIONS, _activation),
}
"""Outputs of common functions without values; None where torch might refuse the input. On the meta device torch
itself computes their shapes in Python, which takes most of the time. Functions that torch implements in Python arrive
here with all arguments but the input by keyword."""


def _lstm(x: Tensor, hidden: tuple[Tensor, Tensor], *options: Any) -> tuple[Tensor, ...]:
    """Return outputs with the shapes of `torch.lstm`, without values."""
    directions = 2 if options[5] else 1
    return x.new_empty(*x.shape[:-1], directions * hidden[0].shape[-1]), *hidden


def _more(pixels: int) -> int:
    """Return how many pixels to add: a multiple of all common steps, and of `pixels` too if that is not too many.

    Windows that must divide the input's size then also divide the larger size.
    """
    both = math.lcm(pixels, _PIXELS)
    return both if both <= 10 * _PIXELS else _PIXELS


def _growth(before: tuple[int, ...], after: tuple[int, ...] | None, more: int) -> Growth | None:
    """Return how all axes except the images' grow; None if unknown."""
    if after is None or len(after) != len(before):
        return None
    return Growth(more, tuple(b - a for a, b in zip(before[1:], after[1:], strict=True)))
