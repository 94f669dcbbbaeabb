"""Which layers of a model are watched: what a dry run finds, presets by architecture, glob patterns."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from difflib import get_close_matches
from fnmatch import fnmatchcase
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from vitsee.analysis import Layer
from vitsee.errors import UserError

Record = Callable[[str, object], None]
"""Told the name of what has just been computed, and the output."""

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

    net may be on any device, also torch's meta device, where nothing is computed. input_size: (3, H, W).
    """
    ran = dry_run(net, input_size, partial(record_modules, net))
    return [describe(net, name, shape, input_size) for name, shape in ran.items() if shape]


def dry_run(
    net: nn.Module,
    input_size: tuple[int, int, int],
    attach: Callable[[Record], list[RemovableHandle]],
) -> dict[str, tuple[int, ...] | None]:
    """Shapes, for one image, of what the hooks of `attach` report, in the order they report it.

    None for what is reported more than once, or is no tensor with features.
    """
    ran: dict[str, tuple[int, ...] | None] = {}

    def seen(name: str, output: object) -> None:
        once = name not in ran and isinstance(output, Tensor) and output.ndim >= 2
        ran[name] = tuple(output.shape[1:]) if once else None  # type: ignore[attr-defined]

    handles = attach(seen)
    device = next(net.parameters()).device
    try:
        with torch.no_grad():
            net(torch.zeros(1, *input_size, device=device))
    finally:
        for handle in handles:
            handle.remove()
    return ran


def record_modules(net: nn.Module, seen: Record) -> list[RemovableHandle]:
    """Hooks that report the output of every module."""

    def hook(name: str) -> Callable[[nn.Module, object, object], None]:
        return lambda module, args, output: seen(name, output)

    return [m.register_forward_hook(hook(name)) for name, m in net.named_modules() if name]


def describe(
    net: nn.Module, name: str, shape: tuple[int, ...], input_size: tuple[int, int, int]
) -> Layer:
    """The layer with what its shape means: tokens or positions on a grid, and the pixels of a step."""
    prefix = _prefix(net, shape)
    grid = _token_grid(net) if prefix is not None else _map_grid(net, shape)
    pitch = (input_size[1] / grid[0], input_size[2] / grid[1]) if grid else None
    return Layer(name, shape, prefix, _has_class_token(net), grid, pitch)


def _has_class_token(net: nn.Module) -> bool:
    """timm's ViT says so; of BEiT, EVA and the relative-position ViT only the parameter shows it."""
    return bool(getattr(net, "has_class_token", getattr(net, "cls_token", None) is not None))


def _embedding_module(net: nn.Module) -> nn.Module | None:
    """What makes the patch tokens; Mixer calls it stem."""
    return getattr(net, "patch_embed", None) or getattr(net, "stem", None)


def _prefix(net: nn.Module, shape: tuple[int, ...]) -> int | None:
    """Number of prefix tokens if the output is a sequence of tokens, (tokens, features), else None."""
    patches = getattr(_embedding_module(net), "num_patches", None)
    if patches is None or len(shape) != 2:
        return None
    prefix = getattr(net, "num_prefix_tokens", 0)
    return {patches: 0, patches + prefix: prefix}.get(shape[0])


def _token_grid(net: nn.Module) -> tuple[int, int] | None:
    """Rows and columns of the patch tokens."""
    embedding = _embedding_module(net)
    grid = getattr(embedding, "grid_size", None)
    return (int(grid[0]), int(grid[1])) if grid else None


def _map_grid(net: nn.Module, shape: tuple[int, ...]) -> tuple[int, int] | None:
    """Rows and columns of a (channels, rows, columns) map; timm says where channels come last."""
    if len(shape) != 3 or getattr(net, "output_fmt", "NCHW") != "NCHW":
        return None
    return shape[1], shape[2]


def choose(net: nn.Module, layers: list[Layer], patterns: list[str]) -> list[Layer]:
    """The layers that any preset or pattern selects, in the order they run.

    A pattern is a glob over module names at its own depth: `blocks.*` selects `blocks.3`, not
    `blocks.3.attn`. Raises UserError for one that selects nothing.
    """
    names = [layer.name for layer in layers]
    chosen: set[str] = set()
    for pattern in patterns:
        found = preset(net, layers, pattern) if pattern in PRESETS else _matching(names, pattern)
        if not found:
            raise UserError(_nothing_matches(net, names, pattern))
        chosen.update(found)
    depths = _depths(net, names)
    return [replace(layer, depth=depths[layer.name]) for layer in layers if layer.name in chosen]


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


def _nothing_matches(net: nn.Module, names: list[str], pattern: str) -> str:
    if pattern == "logits":
        return (
            f"analysis.layers: the classifier of {type(net).__name__} is not one module; a model with one "
            f"(model.args.num_classes above 0) is needed"
        )
    if pattern in PRESETS:
        return (
            f"analysis.layers: preset {pattern!r} does not know the blocks of {type(net).__name__}; "
            f"name layers by patterns instead ('vitsee list layers model=…' shows them)"
        )
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
    if _has(net, units, "attn"):
        per_block = ["norm1", "attn", "norm2", _hidden(names, units), "mlp", ""]
        ends = ([_embedding(names)], [_final_norm(net, names)])
        if name == "four":
            return _of_each(names, units, ["norm1", "attn", "mlp", ""])
        return [*ends[0], *_of_each(names, units, per_block), *ends[1]]
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


def _embedding(names: list[str]) -> str:
    """The module that outputs the tokens as the first block sees them."""
    return next(name for name in ("norm_pre", "pos_drop", "patch_embed") if name in names)


def _final_norm(net: nn.Module, names: list[str]) -> str:
    norms = [name for name in ("norm", "fc_norm") if name in names]
    real = [name for name in norms if not isinstance(net.get_submodule(name), nn.Identity)]
    return (real or norms)[0]


def _convolutional(net: nn.Module, names: list[str], units: list[str], name: str) -> list[str]:
    if not units:
        return []
    convolutions = [
        n for n in names if isinstance(net.get_submodule(n), nn.Conv2d) and not _head(n)
    ]
    if name == "four":
        branch = [
            [n for n in convolutions if n.startswith(f"{u}.") and "downsample" not in n]
            for u in units
        ]
        last = {within[-1] for within in branch if within}
        return [n for n in names if n in last or n in units]
    wanted = {*units, *convolutions}
    return [n for n in names if n in wanted or (_is_norm(net.get_submodule(n)) and not _head(n))]


def _head(name: str) -> bool:
    return name.split(".")[0] in ("head", "fc", "classifier")


def _is_norm(module: nn.Module) -> bool:
    kinds = (nn.modules.batchnorm._BatchNorm, nn.GroupNorm, nn.LayerNorm)
    return isinstance(module, kinds)
