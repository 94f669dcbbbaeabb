"""Finds where in the image the tokens of windowed attention are, by numbering the places of a stage."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.hooks import RemovableHandle

from vitsee.estimators.attention import Attention
from vitsee.models.calls import Calls
from vitsee.models.layout import IMAGES, Record, dry_run, on_meta
from vitsee.setting import Layer

Attach = Callable[[nn.Module, Callable[[str, Attention], None]], list[RemovableHandle]]
"""Adds hooks to a module that deliver each attention it computes, with the name of the part that computed it."""
Arguments = tuple[tuple[Any, ...], dict[str, Any]]

_FIRST = 10
"""The number of the first place: 0 is padding, and from here on activation functions preserve the order."""


@dataclass(frozen=True)
class Window:
    """The places of a window's tokens, in row-major order. step: rows and columns of the stage between tokens.

    places: for each window of an image, as in `Layer.window_places`.
    """

    grid: tuple[int, int]
    step: tuple[int, int]
    places: tuple[tuple[int, ...], ...]


def arguments(net: nn.Module, input_size: tuple[int, int, int]) -> dict[str, Arguments]:
    """Return each module's arguments for `IMAGES` images; tensors have no values. input_size: (3, H, W)."""
    found: dict[str, Arguments] = {}

    def hook(name: str) -> Callable[[nn.Module, Any, Any], None]:
        return lambda module, args, kwargs: found.update({name: (args, kwargs)})

    def attach(net: nn.Module, seen: Record) -> list[RemovableHandle]:
        return [
            module.register_forward_pre_hook(hook(name), with_kwargs=True)
            for name, module in net.named_modules()
        ]

    dry_run(net, (IMAGES, *input_size), attach)
    return found


def window(
    net: nn.Module, name: str, stage: Layer, called: Mapping[str, Arguments], attach: Attach
) -> Window | None:
    """Return the window within which a module attends, if it is inside the module `stage` and has windows.

    The places of `stage` are numbered, in several images. Linear layers and norms pass the numbers on, and the keys
    of the attention show each token's place. None if the input of `stage` is not a map like its output, if
    a token is not a single place, if the windows are not in the order of the images, or if their tokens are not a
    grid. Windows may be padded, and at the border contain places from opposite sides (Swin's shifted windows).
    """
    args, kwargs = called.get(stage.name, ((), {}))
    shape = (IMAGES, *stage.shape)
    if stage.grid is None or stage.prefix or not args or getattr(args[0], "shape", None) != shape:
        return None
    inner = name.removeprefix(stage.name).removeprefix(".")
    with suppress(Exception):  # a module that cannot run by itself
        numbers = _numbers(net.get_submodule(stage.name), inner, stage, args, kwargs, attach)
        return _window(numbers, stage.grid)
    return None


class _Seen(Exception):
    """The attention has been computed."""


def _numbers(
    module: nn.Module,
    inner: str,
    stage: Layer,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    attach: Attach,
) -> Tensor:
    """Return the place numbers of each window's tokens, (IMAGES * windows, tokens)."""
    kept: list[Tensor] = []

    def seen(name: str, computed: Attention) -> None:
        if name == inner:
            kept.append(computed.key[:, 0, :, 0])
            raise _Seen

    blank = on_meta(module).to_empty(device="cpu")
    rows, columns = stage.places
    places = torch.arange(IMAGES * rows * columns, dtype=torch.float32) + _FIRST
    places = places.view(IMAGES, rows, columns, 1) if stage.is_map else places.view(IMAGES, -1, 1)
    if stage.is_map and not stage.channels_last:
        places = places.movedim(-1, 1)
    numbered = places.expand(args[0].shape)
    with ExitStack() as stack, suppress(_Seen):
        stack.enter_context(torch.no_grad())
        for tensor in (*blank.parameters(), *blank.buffers()):
            tensor.zero_()
        for handle in attach(blank, seen):
            stack.callback(handle.remove)
        stack.enter_context(_HandOn())
        blank(numbered, *map(_zeros, args[1:]), **{k: _zeros(x) for k, x in kwargs.items()})
    return kept[0]


def _zeros(value: Any) -> Any:
    return torch.zeros_like(value, device="cpu") if isinstance(value, Tensor) else value


class _HandOn(Calls):
    """Makes linear layers, norms and convolutions that keep the size pass on the number of each place."""

    def call(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if func in _HANDED_ON:
            return _HANDED_ON[func](*args, **kwargs)
        result = func(*args, **kwargs)
        if func is torch.conv2d and result.shape[2:] == args[0].shape[2:]:
            return args[0][:, :1].expand_as(result).contiguous()
        return result


_HANDED_ON: dict[Any, Callable[..., Tensor]] = {
    functional.linear: lambda x, weight, bias=None: x[..., :1].repeat_interleave(len(weight), -1),
    functional.scaled_dot_product_attention: lambda query, *others, **options: query,
    **dict.fromkeys(
        (functional.layer_norm, functional.batch_norm, functional.group_norm, functional.normalize),
        lambda x, *others, **options: x,
    ),
}
"""What common functions do to the numbers. Only the keys of attention are read, so its output is not computed."""


def _window(numbers: Tensor, places: tuple[int, int]) -> Window | None:
    """Return the window whose tokens have these numbers, (IMAGES * windows, tokens), on a grid of `places`."""
    (height, width), (windows, tokens) = places, numbers.shape
    there = numbers != 0
    known, order = numbers.unique(return_inverse=True)
    order = order - int(known[0] == 0)
    total = IMAGES * height * width
    if int(order.max()) + 1 != total or int(there.sum()) != total or not there[:, 0].all():
        return None
    image = torch.arange(windows)[:, None] // (windows // IMAGES)
    row, column = order // width % height, order % width
    columns = int((row[0] == row[0, 0]).cumprod(0).sum())
    down, right = torch.arange(tokens) // columns, torch.arange(tokens) % columns
    step = (
        int(row[0, columns] - row[0, 0]) % height if columns < tokens else 1,
        int(column[0, 1] - column[0, 0]) % width if columns > 1 else 1,
    )
    fits = (
        (order // (height * width) == image)
        & (row == (row[:, :1] + down * step[0]) % height)
        & (column == (column[:, :1] + right * step[1]) % width)
    )
    if tokens % columns or not there[0].all() or not (fits | ~there).all():
        return None
    first = torch.where(there, order, -1)[: windows // IMAGES]
    return Window((tokens // columns, columns), step, tuple(map(tuple, first.tolist())))
