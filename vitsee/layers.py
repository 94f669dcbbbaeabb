"""Which layers of a model are watched: what a dry run finds, presets by architecture, glob patterns."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from difflib import get_close_matches
from fnmatch import fnmatchcase

from torch import nn
from torch.utils.hooks import RemovableHandle

from vitsee.analysis import Layer
from vitsee.errors import UserError
from vitsee.layout import Attach, Output, Record, measure

Step = tuple[float, float]
"""Pixels of the input from one place to the next, (rows, columns)."""

_PATCHES = "."
"""What the output of the patch embedding is called among those of modules; no module can be called so."""


@dataclass(frozen=True)
class Patches:
    """The patches that a model makes tokens of.

    grid: rows and columns. step: the stride of what embeds them, be they apart or overlapping. more: by
    how many patches there are more in the taller and in the wider input of `layout.measure`.
    """

    grid: tuple[int, int]
    step: Step
    more: tuple[int, int]


PRESETS = {
    "paper": "all layers the paper's heatmaps show: ViT: embedding, and of each block norm1, attention, "
    "norm2, MLP hidden, MLP, block output, and the final norm; CNN: every convolution, norm and unit; "
    "Mixer: norm1, token MLP, norm2, channel MLP and block output",
    "four": "four per block (norm1, attention, MLP, block output); CNN: branch and unit output",
    "blocks": "the output of each block or unit",
    "last": "the output of the last block or unit",
    "penultimate": "the output of the block or unit before the last",
    "last_stage": "the outputs of all units of a CNN's last stage; of a ViT the last block",
    "logits": "the output of the classifier",
    "every": "all that the analysis can read",
    "low": "the outputs of the first five blocks or units; ResNet: block1unit1-3, block2unit1-2",
}

_UNITS = (
    r"blocks\.\d+\.\d+",  # EfficientNet, MobileNet
    r"blocks\.\d+",  # ViT, Mixer
    r"layer\d+\.\d+",  # ResNet
    r"(stages|layers|levels)\.\d+\.blocks\.\d+",  # BiT, ConvNeXt, Swin
    r"stages\.\d+\.\d+",
    r"features\.\d+",  # VGG, DenseNet
)
"""How timm names the repeated units of its families, most specific first."""


def survey(net: nn.Module, input_size: tuple[int, int, int]) -> list[Layer]:
    """Every module with a tensor output that runs exactly once a forward pass, in the order they end.

    net may be on any device, also torch's meta device. input_size: (3, H, W). Raises UserError if the
    model cannot take such images.
    """
    return found(net, input_size, record_modules)


def found(net: nn.Module, input_size: tuple[int, int, int], attach: Attach) -> list[Layer]:
    """Every output that the hooks of `attach` report, in the order they do, with what its axes are."""

    def both(net: nn.Module, seen: Record) -> list[RemovableHandle]:
        return attach(net, seen) + _record_embedding(net, seen)

    outputs = measure(net, input_size, both)
    patches = _patches(net, outputs.pop(_PATCHES, None))
    return [describe(net, name, output, input_size, patches) for name, output in outputs.items()]


def patches(net: nn.Module, input_size: tuple[int, int, int]) -> Patches | None:
    """The model's patches; None if it has none on a grid, or if their step is not known."""
    return _patches(net, measure(net, input_size, _record_embedding).get(_PATCHES))


def record_modules(net: nn.Module, seen: Record) -> list[RemovableHandle]:
    """Hooks that report the output of every module."""

    def hook(name: str) -> Callable[[nn.Module, object, object], None]:
        return lambda module, args, output: seen(name, output)

    return [m.register_forward_hook(hook(name)) for name, m in net.named_modules() if name]


def describe(
    net: nn.Module,
    name: str,
    output: Output,
    input_size: tuple[int, int, int],
    patches: Patches | None,
) -> Layer:
    """The layer with what its axes are, in a model with these patches."""
    layer = Layer(name, output.shape, None, _has_class_token(net), images=output.images)
    if not output.images:
        return layer
    prefix = _prefix(net, output, patches)
    if prefix is not None:
        layer = replace(layer, prefix=prefix)
        return replace(layer, grid=patches.grid, pitch=patches.step) if patches else layer
    places = _places(output, input_size)
    if places is None:
        return layer
    grid, pitch, channels_last = places
    return replace(layer, grid=grid, pitch=pitch, channels_last=channels_last)


def _has_class_token(net: nn.Module) -> bool:
    """timm's ViT says so; of BEiT, EVA and the relative-position ViT only the parameter shows it."""
    return bool(getattr(net, "has_class_token", getattr(net, "cls_token", None) is not None))


def _embedding_module(net: nn.Module) -> nn.Module | None:
    """What makes the patch tokens; Mixer calls it stem."""
    return getattr(net, "patch_embed", None) or getattr(net, "stem", None)


def _record_embedding(net: nn.Module, seen: Record) -> list[RemovableHandle]:
    """A hook that reports the patch tokens as they are made, if the model makes any."""
    embedding = _embedding_module(net)
    if embedding is None or not getattr(embedding, "num_patches", None):
        return []
    return [embedding.register_forward_hook(lambda m, args, output: seen(_PATCHES, output))]


def _patches(net: nn.Module, embedded: Output | None) -> Patches | None:
    """The patches, of which this is the output of the embedding: tokens, or a map."""
    grid = getattr(_embedding_module(net), "grid_size", None)
    if embedded is None or embedded.taller is None or embedded.wider is None or not grid:
        return None
    rows, columns = int(grid[0]), int(grid[1])
    down, right = (sum(growth.axes) for growth in (embedded.taller, embedded.wider))
    if len(embedded.shape) == 2:  # a row more is `columns` tokens more
        (down, odd), (right, strange) = divmod(down, columns), divmod(right, rows)
        if odd or strange:
            return None
    step = embedded.taller.step(down), embedded.wider.step(right)
    return Patches((rows, columns), step, (down * columns, right * rows)) if all(step) else None


def _prefix(net: nn.Module, output: Output, patches: Patches | None) -> int | None:
    """Number of prefix tokens if the output is a sequence of tokens, (tokens, features), else None."""
    there = getattr(_embedding_module(net), "num_patches", None)
    if there is None or len(output.shape) != 2:
        return None
    if patches and output.taller and output.wider:
        grown = (*output.taller.axes, *output.wider.axes)
        if grown != (patches.more[0], 0, patches.more[1], 0):
            return None
    prefix = getattr(net, "num_prefix_tokens", 0)
    return {there: 0, there + prefix: prefix}.get(output.shape[0])


def _places(
    output: Output, input_size: tuple[int, int, int]
) -> tuple[tuple[int, int], Step, bool] | None:
    """Grid and step of a map, and whether its channels are the last axis; None if it is not known to be one.

    Rows are the axis that grows with the height of the input, columns the one that grows with its width.
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
    if shape[1:] == (1, 1):  # one place, that of the whole input
        return (1, 1), (input_size[1], input_size[2]), False
    return None


def choose(net: nn.Module, layers: list[Layer], patterns: list[str]) -> list[Layer]:
    """The layers that any preset or pattern selects, in the order they run.

    A pattern is a glob over module names at its own depth: `blocks.*` selects `blocks.3`, not
    `blocks.3.attn`. Raises UserError for one that selects nothing, or layers that are not of images.
    """
    names = [layer.name for layer in layers]
    chosen: set[str] = set()
    for pattern in patterns:
        if pattern in PRESETS:
            found = preset(net, layers, pattern)
        else:
            found = _matching(names, pattern)
            _require_images([layer for layer in layers if layer.name in found], pattern)
        if not found:
            raise UserError(_nothing_matches(net, layers, pattern))
        chosen.update(found)
    depths = _depths(net, names)
    return [replace(layer, depth=depths[layer.name]) for layer in layers if layer.name in chosen]


def left_out(net: nn.Module, layers: list[Layer], patterns: list[str]) -> list[str]:
    """Names of the layers that presets among the patterns would select if their first axis was the images."""
    strange = {layer.name for layer in layers if not layer.images}
    asked = [pattern for pattern in patterns if pattern in PRESETS]
    wanted = {name for pattern in asked for name in _preset(net, layers, pattern)}
    return [layer.name for layer in layers if layer.name in strange & wanted]


def alike(names: list[str]) -> str:
    """The names with `*` for numbers, each once."""
    return ", ".join(dict.fromkeys(re.sub(r"\b\d+\b", "*", name) for name in names))


def _require_images(layers: list[Layer], pattern: str) -> None:
    """Raise UserError if the first axis of one of these layers, which the pattern selects, is not the images."""
    strange = [layer.name for layer in layers if not layer.images]
    if strange:
        raise UserError(
            f"analysis.layers: the output of {strange[0]} ({len(strange)} of the {len(layers)} layers that "
            f"{pattern!r} matches) does not have the images as its first axis but, say, windows of them, so "
            f"nothing can be measured of each image; choose what such layers are part of, such as blocks"
        )


def _depths(net: nn.Module, names: list[str]) -> dict[str, float | None]:
    """Share of the blocks that have run when each layer has, its own included, for names in running order."""
    units = _units([name for name, _ in net.named_modules()])
    depths: dict[str, float | None] = {}
    done = 0
    for name in names:
        inside = [i for i, unit in enumerate(units) if f"{name}.".startswith(f"{unit}.")]
        done = max([done, *(i + 1 for i in inside)])
        depths[name] = done / len(units) if units else None
    return depths


def _matching(names: list[str], pattern: str) -> list[str]:
    depth = pattern.count(".")
    return [name for name in names if name.count(".") == depth and fnmatchcase(name, pattern)]


def _nothing_matches(net: nn.Module, layers: list[Layer], pattern: str) -> str:
    if pattern == "logits":
        return (
            f"analysis.layers: the classifier of {type(net).__name__} is not one module; a model with one "
            f"(model.args.num_classes above 0) is needed"
        )
    if pattern in PRESETS and left_out(net, layers, [pattern]):
        return (
            f"analysis.layers: no layer of preset {pattern!r} of {type(net).__name__} has the images as the "
            f"first axis of its output; name other layers by patterns ('vitsee list layers model=…' shows them)"
        )
    if pattern in PRESETS:
        return (
            f"analysis.layers: preset {pattern!r} does not know the blocks of {type(net).__name__}; "
            f"name layers by patterns instead ('vitsee list layers model=…' shows them)"
        )
    names = [layer.name for layer in layers]
    known = {name: None for name in PRESETS} | {
        re.sub(r"\b\d+\b", "*", name): None
        for name in names
        if name.count(".") <= max(1, pattern.count("."))
    }
    close = get_close_matches(re.sub(r"\b\d+\b", "*", pattern), list(known), 1)
    hint = f" Did you mean {close[0]}?" if close else ""
    return (
        f"analysis.layers: nothing in {type(net).__name__} matches {pattern!r}; "
        f"it has: {', '.join(known)}.{hint}"
    )


def preset(net: nn.Module, layers: list[Layer], name: str) -> list[str]:
    """Names of the layers of a preset whose first axis is the images, none if it does not know the model."""
    of_images = {layer.name for layer in layers if layer.images}
    return [found for found in _preset(net, layers, name) if found in of_images]


def _preset(net: nn.Module, layers: list[Layer], name: str) -> list[str]:
    """Names of the layers of a preset (spec of the paper's figures: section 0), empty if unknown."""
    names = [layer.name for layer in layers]
    if name == "every":
        return names
    if name == "logits":
        return [n for n in names if n == getattr(net, "pretrained_cfg", {}).get("classifier")]
    units = _units(names)
    if name == "blocks":
        return units
    if name == "last":
        return units[-1:]
    if name == "penultimate":
        return units[-2:-1]
    if name == "last_stage":
        return [unit for unit in units if _stage(unit) == _stage(units[-1])]
    if name == "low":
        return units[:5]
    if _has(net, units, "attn") and _has(net, units, "mlp"):  # attention of CNNs gates channels
        if name == "four":
            return _of_each(names, units, ["norm1", "attn", "mlp", ""])
        per_block = ["norm1", "attn", "norm2", _hidden(names, units), "mlp", ""]
        within = _of_each(names, units, per_block)
        return [*_embedding(names), *within, *_final_norm(net, names)]
    if _has(net, units, "mlp_tokens"):
        mixer = ["norm1", "mlp_tokens", "norm2", "mlp_channels", ""]
        return _of_each(
            names, units, [part for part in mixer if name == "paper" or part != "norm2"]
        )
    return _convolutional(net, names, units, name)


def _units(names: list[str]) -> list[str]:
    """Names of the repeated units (blocks), in the order they run."""
    for kind in _UNITS:
        found = [name for name in names if re.fullmatch(kind, name)]
        if found:
            return found
    return []


def _stage(unit: str) -> str:
    """The stage that a unit belongs to: all but the last of the numbers in its name, if it has several."""
    return unit.rpartition(".")[0] if len(re.findall(r"\d+", unit)) > 1 else unit


def _has(net: nn.Module, units: list[str], child: str) -> bool:
    return bool(units) and hasattr(net.get_submodule(units[0]), child)


def _of_each(names: list[str], units: list[str], parts: list[str]) -> list[str]:
    """The parts of every unit that ran; the part '' is the unit itself."""
    ran = set(names)
    wanted = (f"{unit}.{part}" if part else unit for unit in units for part in parts)
    return [name for name in wanted if name in ran]


def _hidden(names: list[str], units: list[str]) -> str:
    """The part of a block that outputs the MLP's hidden layer after its non-linearity."""
    gated = f"{units[0]}.mlp.norm" in names and (
        f"{units[0]}.mlp.fc1_g" in names or f"{units[0]}.mlp.act" not in names
    )
    return "mlp.norm" if gated else "mlp.act"


def _embedding(names: list[str]) -> list[str]:
    """The module that outputs the tokens as the first block sees them, if it is known."""
    there = [name for name in ["norm_pre", "pos_drop", "patch_embed"] if name in names]
    return there[:1]


def _final_norm(net: nn.Module, names: list[str]) -> list[str]:
    """The norm after the last block, if there is one."""
    norms = [name for name in ["norm", "fc_norm"] if name in names]
    real = [name for name in norms if not isinstance(net.get_submodule(name), nn.Identity)]
    return (real or norms)[:1]


def _convolutional(net: nn.Module, names: list[str], units: list[str], name: str) -> list[str]:
    if not units:
        return []
    modules = dict(net.named_modules())  # sublayers of the residual stream are none
    body = {n: modules[n] for n in names if n in modules and not _head(n)}
    convolutions = [n for n, module in body.items() if isinstance(module, nn.Conv2d)]
    if name == "four":
        branch = [
            [n for n in convolutions if n.startswith(f"{u}.") and "downsample" not in n]
            for u in units
        ]
        last = {within[-1] for within in branch if within}
        return [n for n in names if n in last or n in units]
    wanted = {*units, *convolutions, *(n for n, module in body.items() if _is_norm(module))}
    return [n for n in names if n in wanted]


def _head(name: str) -> bool:
    return name.split(".")[0] in ("head", "fc", "classifier")


def _is_norm(module: nn.Module) -> bool:
    kinds = (nn.modules.batchnorm._BatchNorm, nn.GroupNorm, nn.LayerNorm)
    return isinstance(module, kinds)
