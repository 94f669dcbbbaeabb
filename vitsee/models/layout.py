"""What the axes of a layer's output are, measured: dry runs of the model with more images, and with larger ones."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Any

import torch
from timm.layers import PatchEmbed
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

from vitsee.errors import UserError

Record = Callable[[str, object], None]
"""Told the name of what has just been computed, and the output."""
Attach = Callable[[nn.Module, Record], list[RemovableHandle]]
"""Puts hooks into a model, which tell a `Record` what they see, in the order it runs."""
Shapes = dict[str, tuple[int, ...] | None]
"""Of what hooks reported, by name; None for what came more than once, or is no tensor with features."""

IMAGES = 3
"""How many images a dry run has to tell the images from other axes."""
_PIXELS = 6720
"""A multiple of this many pixels is added to the height or the width: 2^6 x 3 x 5 x 7, so of nearly every step."""


@dataclass(frozen=True)
class Growth:
    """By how much each axis of an output for one image grows when the input grows by `more` pixels."""

    more: int
    axes: tuple[int, ...]

    def step(self, growth: int) -> float:
        """Pixels of the input of one step along an axis that grows by so much, 0 if it has none.

        Steps that divide `more` show as they are. For others the growth is rounded, up or down, so that
        the step lies between more / (growth + 1) and more / (growth - 1): it is the whole number there, if
        there is one alone. An axis that grows in any other way does not have equal steps.
        """
        if growth <= 0:
            return 0
        if self.more % growth == 0 or growth % self.more == 0:
            return self.more / growth
        whole = range(self.more // (growth + 1) + 1, math.ceil(self.more / (growth - 1)))
        return whole[0] if len(whole) == 1 else 0


@dataclass(frozen=True)
class Output:
    """What dry runs say of one output.

    shape: for one image. images: whether its first axis is the images; if not, it is windows of them,
    say, or none of them is in it. taller, wider: how it grows with the height and the width of the
    input; None if the model cannot be run so far with others than its own.
    """

    shape: tuple[int, ...]
    images: bool = True
    taller: Growth | None = None
    wider: Growth | None = None


def measure(net: nn.Module, input_size: tuple[int, int, int], attach: Attach) -> dict[str, Output]:
    """What the hooks of `attach` report, in the order they do, with what each axis depends on.

    input_size: (3, H, W). Raises UserError if the model cannot take it.
    """
    channels, height, width = input_size
    one = dry_run(net, (1, *input_size), attach)
    several = dry_run(net, (IMAGES, *input_size), attach)
    down, right = _more(height), _more(width)
    taller = _enlarged(net, (1, channels, height + down, width), attach)
    wider = _enlarged(net, (1, channels, height, width + right), attach)
    return {
        name: Output(
            shape[1:],
            shape[0] == 1 and several.get(name) == (IMAGES, *shape[1:]),
            _growth(shape, taller.get(name), down),
            _growth(shape, wider.get(name), right),
        )
        for name, shape in one.items()
        if shape
    }


def dry_run(net: nn.Module, size: tuple[int, ...], attach: Attach) -> Shapes:
    """Shapes of what the hooks of `attach` report for (N, 3, H, W) zeros, in the order they do.

    On torch's meta device, where nothing is computed, or where the model is if it cannot be run there.
    Raises UserError if the model cannot take such an input.
    """
    with suppress(Exception):  # whatever it is, it comes again if it is the model's own
        return _run(_twin(net), size, attach, {}, _OnMeta())
    try:
        return _run(net, size, attach, {})
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        shape = " x ".join(map(str, size[1:]))
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(
            f"{type(net).__name__} cannot take images of {shape} ({lines[0]}); model.args.img_size says for "
            f"which size a model is built, model.overlay.input_size which size its images have"
        ) from error


def _enlarged(net: nn.Module, size: tuple[int, ...], attach: Attach) -> Shapes:
    """As `dry_run` with another size than the model's, as far as the model can be run with it."""
    ran: Shapes = {}
    with suppress(Exception):  # what ran before a model of one size failed has been reported
        twin = _twin(net)
        for module in twin.modules():
            if hasattr(module, "strict_img_size"):
                setattr(module, "strict_img_size", False)  # noqa: B010
            if isinstance(module, PatchEmbed):
                module.img_size = None  # it would want multiples of the patch
        _run(twin, size, attach, ran, _OnMeta(lenient=True))
    return ran


def _twin(net: nn.Module) -> nn.Module:
    """A copy of the model on the meta device: its modules, and of its numbers the shapes alone."""
    numbers: dict[int, Any] = {id(x): x.to("meta") for x in net.buffers()}
    for x in net.parameters():
        numbers[id(x)] = nn.Parameter(x.detach().to("meta"), requires_grad=False)
    return copy.deepcopy(net, numbers)


def _run(
    net: nn.Module,
    size: tuple[int, ...],
    attach: Attach,
    ran: Shapes,
    on_meta: _OnMeta | None = None,
) -> Shapes:
    """`ran` with what the hooks report in one forward pass of zeros, put there as they do."""

    def seen(name: str, output: object) -> None:
        once = name not in ran and isinstance(output, Tensor) and output.ndim >= 2
        ran[name] = tuple(output.shape) if once else None  # type: ignore[attr-defined]

    device = next((x.device for x in net.parameters()), torch.device("cpu"))
    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        if on_meta is not None:
            device = torch.device("meta")
            stack.enter_context(device)  # of tensors that are made on the way too
            stack.enter_context(on_meta)
        for handle in attach(net, seen):
            stack.callback(handle.remove)
        net(torch.zeros(*size, device=device))
    return ran


class _OnMeta(TorchFunctionMode):
    """Shapes at no cost, also of recurrent layers, which torch would run step by step.

    lenient: embeddings and biases of positions that were made for another size are added to nothing.
    """

    def __init__(self, *, lenient: bool = False) -> None:
        super().__init__()
        self.lenient = lenient

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.lstm and kwargs == {}:
            return _lstm(*args)
        try:
            return func(*args, **kwargs)
        except RuntimeError:
            if self.lenient and func is scaled_dot_product_attention:
                return func(*args[:3], **{k: v for k, v in kwargs.items() if k != "attn_mask"})
            if self.lenient and func in _SUMS:
                return max(args[:2], key=torch.numel).clone()
            raise


_SUMS = {
    torch.add,
    Tensor.add,
    Tensor.add_,
    Tensor.__add__,
    Tensor.__iadd__,
    Tensor.__radd__,
}


def _lstm(x: Tensor, hidden: tuple[Tensor, Tensor], *options: Any) -> tuple[Tensor, ...]:
    """Outputs as of `torch.lstm`, without their values."""
    directions = 2 if options[5] else 1
    return x.new_empty(*x.shape[:-1], directions * hidden[0].shape[-1]), *hidden


def _more(pixels: int) -> int:
    """How many pixels are added to this many: a multiple of all usual steps, and of itself where that is not far.

    A model whose windows must divide its input is divided by them again then.
    """
    both = math.lcm(pixels, _PIXELS)
    return both if both <= 10 * _PIXELS else _PIXELS


def _growth(before: tuple[int, ...], after: tuple[int, ...] | None, more: int) -> Growth | None:
    """How the axes but the images' grow, if it is known."""
    if after is None or len(after) != len(before):
        return None
    return Growth(more, tuple(b - a for a, b in zip(before[1:], after[1:], strict=True)))
