"""The layers of a model and the meaning of their axes, found by dry runs."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from torch import nn
from torch.utils.hooks import RemovableHandle

from vitsee.models import layout
from vitsee.models.layout import Attach, Output, Record
from vitsee.models.outputs import tensor_of
from vitsee.models.units import units_of
from vitsee.setting import Layer

Step = tuple[float, float]
"""Input pixels from one location to the next, (rows, columns)."""

_PATCHES = "."
"""Key of the patch embedding's output among the modules' outputs; no module can have this name."""


@dataclass(frozen=True)
class Patches:
    """The patches that a model turns into tokens.

    grid: rows and columns. step: stride of the patch embedding, whether or not the patches overlap. more:
    how many more patches the taller and the wider input of `layout.survey` have.
    """

    grid: tuple[int, int]
    step: Step
    more: tuple[int, int]


def survey(net: nn.Module, input_size: tuple[int, int, int]) -> list[Layer]:
    """Return all modules with a tensor output that run exactly once per forward pass, in the order they end.

    net may be on any device, including torch's meta device. input_size: (3, H, W). Raises UserError if the
    model does not accept such images.
    """
    return layers_of(net, input_size, record_modules)


def layers_of(net: nn.Module, input_size: tuple[int, int, int], attach: Attach) -> list[Layer]:
    """Return a layer for each output that the hooks of `attach` report, in the same order."""

    def both(net: nn.Module, seen: Record) -> list[RemovableHandle]:
        return attach(net, seen) + _record_embedding(net, seen)

    outputs = layout.survey(net, input_size, both)
    patches = _patches(net, outputs.pop(_PATCHES, None))
    found = [describe(net, name, output, input_size, patches) for name, output in outputs.items()]
    steps = _steps(found)
    return [
        _of_fixed_size(net, layer, outputs[layer.name], input_size, steps)
        if layer.grid is None
        else layer
        for layer in found
    ]


def patches(net: nn.Module, input_size: tuple[int, int, int]) -> Patches | None:
    """Return the model's patches; None if they are not on a grid, or if their step is unknown."""
    return _patches(net, layout.survey(net, input_size, _record_embedding).get(_PATCHES))


def record_modules(net: nn.Module, seen: Record) -> list[RemovableHandle]:
    """Add hooks that report the output of every module."""

    def hook(name: str) -> Callable[[nn.Module, object, object], None]:
        return lambda module, args, output: seen(name, tensor_of(output, args))

    return [m.register_forward_hook(hook(name)) for name, m in net.named_modules() if name]


def describe(
    net: nn.Module,
    name: str,
    output: Output,
    input_size: tuple[int, int, int],
    patches: Patches | None,
) -> Layer:
    """Return the layer with the meaning of its axes, in a model with these patches."""
    layer = Layer(name, output.shape, None, _has_class_token(net), images=output.images)
    layer = replace(layer, reads_class=layer.class_token and _pools_class_token(net))
    if not output.images or output.windows > 1:
        return replace(layer, windows=output.windows)
    tokens = _tokens(net, output, input_size, patches)
    if tokens is not None:
        prefix, grid, pitch = tokens
        return replace(layer, prefix=prefix, grid=grid, pitch=pitch)
    places = _places(output, input_size)
    if places is None:
        return layer
    grid, pitch, channels_last = places
    return replace(layer, grid=grid, pitch=pitch, channels_last=channels_last)


def _has_class_token(net: nn.Module) -> bool:
    """Return whether there is a class token: BEiT, EVA and the relative-position ViT only have the parameter."""
    return bool(getattr(net, "has_class_token", getattr(net, "cls_token", None) is not None))


def _pools_class_token(net: nn.Module) -> bool:
    """Return whether timm's head reads the class token: BEiT, EVA-02 and DINOv3 take the mean of the patches."""
    return getattr(net, "global_pool", None) in (None, "", "token")


def _embedding_module(net: nn.Module) -> nn.Module | None:
    """Return the module that outputs the patch tokens; MLP-Mixer calls it stem."""
    return getattr(net, "patch_embed", None) or getattr(net, "stem", None)


def _record_embedding(net: nn.Module, seen: Record) -> list[RemovableHandle]:
    """Add a hook that reports the patch embedding's output, if the model has a patch embedding."""
    embedding = _embedding_module(net)
    if embedding is None or not getattr(embedding, "num_patches", None):
        return []
    return [embedding.register_forward_hook(lambda m, args, output: seen(_PATCHES, output))]


def _patches(net: nn.Module, embedded: Output | None) -> Patches | None:
    """Return the patches, inferred from the patch embedding's output: tokens, or a feature map."""
    embedding = _embedding_module(net)
    grid = getattr(embedding, "grid_size", None)
    if embedded is None or not grid:
        return None
    rows, columns = int(grid[0]), int(grid[1])
    if embedded.taller is None or embedded.wider is None:
        if not isinstance(embedding, nn.Conv2d):  # a convolution knows its own step
            return None
        return Patches((rows, columns), (embedding.stride[0], embedding.stride[1]), (0, 0))
    down, right = (sum(growth.axes) for growth in (embedded.taller, embedded.wider))
    if len(embedded.shape) == 2:  # one more row means `columns` more tokens
        (down, odd), (right, strange) = divmod(down, columns), divmod(right, rows)
        if odd or strange:
            return None
    step = embedded.taller.step(down), embedded.wider.step(right)
    return Patches((rows, columns), step, (down * columns, right * rows)) if all(step) else None


def _tokens(
    net: nn.Module, output: Output, input_size: tuple[int, int, int], patches: Patches | None
) -> tuple[int, tuple[int, int] | None, Step | None] | None:
    """Return the number of prefix tokens, and the grid and step of the others; None if these are not tokens."""
    if len(output.shape) != 2 or getattr(net, "patches_first", False):
        return None
    prefix = _prefix(net, output, patches)
    if prefix is not None and patches:
        return prefix, patches.grid, patches.step
    grown = _grown_tokens(output, input_size)
    return grown if grown or prefix is None else (prefix, None, None)


def _prefix(net: nn.Module, output: Output, patches: Patches | None) -> int | None:
    """Return the number of prefix tokens if the output is a sequence of the model's patches, else None."""
    there = getattr(_embedding_module(net), "num_patches", None)
    if there is None:
        return None
    if patches and output.taller and output.wider:
        grown = (*output.taller.axes, *output.wider.axes)
        if grown != (patches.more[0], 0, patches.more[1], 0):
            return None
    prefix = getattr(net, "num_prefix_tokens", 0)
    return {there: 0, there + prefix: prefix}.get(output.shape[0])


def _grown_tokens(
    output: Output, input_size: tuple[int, int, int]
) -> tuple[int, tuple[int, int], Step] | None:
    """Infer the number of prefix tokens, and the grid and step of the others, from how the tokens grow.

    A taller input adds rows, each with as many tokens as there are columns. Among the grids that explain both
    growths, the one whose vertical and horizontal steps are the same whole number of pixels is returned.
    """
    if output.taller is None or output.wider is None:
        return None
    (down, odd), (right, strange) = output.taller.axes, output.wider.axes
    if down <= 0 or right <= 0 or odd or strange:
        return None
    for rows in range(1, output.shape[0] + 1):
        step, rest = divmod(output.wider.more * rows, right)
        columns, odd = divmod(step * down, output.taller.more)
        prefix = output.shape[0] - rows * columns
        if rest or odd or not step or not columns or prefix < 0:
            continue
        if all(
            n - 2 * step < k * step < n + step
            for k, n in zip((rows, columns), input_size[1:], strict=True)
        ):
            return prefix, (rows, columns), (step, step)
    return None


def _steps(layers: list[Layer]) -> list[float]:
    """Return the steps of all grids and their repeated doubles, shortest first."""
    known = {layer.pitch[0] for layer in layers if layer.pitch and layer.pitch[0] == layer.pitch[1]}
    return sorted({step * 2**i for step in known if step >= 1 for i in range(6)})


def _of_fixed_size(
    net: nn.Module,
    layer: Layer,
    output: Output,
    input_size: tuple[int, int, int],
    steps: list[float],
) -> Layer:
    """Return the layer with its grid, if it is a map or tokens of a model that takes only one image size.

    The grid has the step of an earlier layer, perhaps doubled; without such layers, the input's proportions.
    """
    grown = [growth.axes for growth in (output.taller, output.wider) if growth]
    if not output.images or output.windows > 1 or any(any(axes) for axes in grown):
        return layer
    if getattr(net, "patches_first", False):
        return layer
    shape, (height, width) = layer.shape, input_size[1:]
    if len(shape) == 2 and shape[0] == 1:
        return replace(layer, prefix=1)  # a class token that attends to patches
    grids = {
        (around(height / step), around(width / step)): (step, step)
        for step in steps
        for around in (math.floor, math.ceil)
    }
    if len(shape) == 3:
        first, last = grids.get(shape[1:]), grids.get(shape[:2])
        if bool(first) is bool(last):
            return layer
        grid = shape[:2] if last else shape[1:]
        return replace(layer, grid=grid, pitch=first or last, channels_last=bool(last))
    if len(shape) != 2:
        return layer
    unrolled = any(type(part).__name__ == "Unroll" for part in net.modules())  # Hiera's order
    for prefix in range(min(shape[0] - 3, 1 + getattr(net, "num_prefix_tokens", 1))):
        patches = shape[0] - prefix
        rows = max(1, math.isqrt(patches * height // width))
        grid = rows, patches // rows
        pitch = grids.get(grid) if steps else (height / rows, width / grid[1])
        if rows > 1 and rows * grid[1] == patches and rows * width == grid[1] * height and pitch:
            placed = replace(layer, prefix=prefix)
            return placed if unrolled else replace(placed, grid=grid, pitch=pitch)
    return layer


def _places(
    output: Output, input_size: tuple[int, int, int]
) -> tuple[tuple[int, int], Step, bool] | None:
    """Return a feature map's grid, step and whether channels are last; None if the output is not clearly a map.

    Rows are the axis that grows with the input's height, columns the one that grows with its width.
    """
    shape = output.shape
    if len(shape) != 3:
        return None
    if output.taller is not None and output.wider is not None:
        steps = [[growth.step(a) for a in growth.axes] for growth in (output.taller, output.wider)]
        grown = output.taller.axes, output.wider.axes
        for rows, columns, channels in ((1, 2, 0), (0, 1, 2)):
            down, right = steps[0][rows], steps[1][columns]
            others = grown[0][columns], grown[1][rows], grown[0][channels], grown[1][channels]
            if down and right and not any(others):
                return (shape[rows], shape[columns]), (down, right), channels == 2
    if shape[1:] == (1, 1):  # a single location, which covers the whole input
        return (1, 1), (input_size[1], input_size[2]), False
    return None


def depths_of(net: nn.Module, names: list[str]) -> dict[str, float | None]:
    """Return each layer's depth: the fraction of blocks that have run, including its own. names: in running order."""
    units = units_of(net, [name for name, _ in net.named_modules()])
    depths: dict[str, float | None] = {}
    done = 0
    for name in names:
        inside = [i for i, unit in enumerate(units) if f"{name}.".startswith(f"{unit}.")]
        done = max([done, *(i + 1 for i in inside)])
        depths[name] = done / len(units) if units else None
    return depths
