"""Selects layers by presets, which depend on the architecture, or by glob patterns."""

from __future__ import annotations

import re
from dataclasses import replace
from difflib import get_close_matches
from fnmatch import fnmatchcase

from torch import nn

from vitsee.errors import UserError
from vitsee.models.layers import depths_of
from vitsee.models.units import Part, parts_of, units_of
from vitsee.setting import Layer

PRESETS = {
    "paper": "all layers the paper's heatmaps show: ViT: embedding, and of each block norm1, attention, "
    "norm2, MLP hidden, MLP, block output, and the final norm; CNN: every convolution, norm and unit; "
    "Mixer: norm1, token MLP, norm2, channel MLP and block output",
    "four": "four per block (norm1, attention, MLP, block output); CNN: branch and unit output",
    "blocks": "the output of each block or unit",
    "last": "the output of the last block or unit (with patches, if any has them)",
    "penultimate": "the output of the block or unit before the last",
    "last_stage": "the outputs of all units of a CNN's last stage; of a ViT the last block",
    "logits": "the output of the classifier",
    "every": "all that the analysis can read",
    "low": "the outputs of the first five blocks or units; ResNet: block1unit1-3, block2unit1-2",
}


def choose(net: nn.Module, layers: list[Layer], patterns: list[str]) -> list[Layer]:
    """Return the layers selected by any of these presets and patterns, in running order.

    A pattern is a glob over module names at its own depth: `blocks.*` selects `blocks.3`, not
    `blocks.3.attn`. Raises UserError for a pattern that selects nothing, or a layer whose first axis is not
    the images.
    """
    names = [layer.name for layer in layers]
    chosen: set[str] = set()
    for pattern in patterns:
        if pattern in PRESETS:
            selected = preset(net, layers, pattern)
        else:
            selected = _matching(names, pattern)
            _require_images([layer for layer in layers if layer.name in selected], pattern)
        if not selected:
            raise UserError(_nothing_matches(net, layers, pattern))
        chosen.update(selected)
    depths = depths_of(net, names)
    return [replace(layer, depth=depths[layer.name]) for layer in layers if layer.name in chosen]


def left_out(net: nn.Module, layers: list[Layer], patterns: list[str]) -> list[str]:
    """Return the names of layers that presets leave out because their first axis is not the images."""
    strange = {layer.name for layer in layers if not layer.images}
    asked = [pattern for pattern in patterns if pattern in PRESETS]
    wanted = {name for pattern in asked for name in _preset(net, layers, pattern)}
    return [layer.name for layer in layers if layer.name in strange & wanted]


def alike(names: list[str]) -> str:
    """Return the distinct names, with `*` for numbers."""
    return ", ".join(dict.fromkeys(re.sub(r"\b\d+\b", "*", name) for name in names))


def _require_images(layers: list[Layer], pattern: str) -> None:
    """Raise UserError if the pattern selects a layer whose first axis is not the images."""
    strange = [layer.name for layer in layers if not layer.images]
    if strange:
        raise UserError(
            f"analysis.layers: the first axis of the output of {strange[0]} is not the images but, for example, "
            f"windows of them ({len(strange)} of the {len(layers)} layers that {pattern!r} matches), so images "
            f"cannot be measured one by one; choose modules that contain these layers, such as blocks"
        )


def _matching(names: list[str], pattern: str) -> list[str]:
    depth = pattern.count(".")
    return [name for name in names if name.count(".") == depth and fnmatchcase(name, pattern)]


def _nothing_matches(net: nn.Module, layers: list[Layer], pattern: str) -> str:
    if pattern == "logits":
        return (
            f"analysis.layers: {type(net).__name__} does not have a classifier that is a single module; 'logits' "
            f"needs one (model.args.num_classes above 0)"
        )
    if pattern in PRESETS and left_out(net, layers, [pattern]):
        return (
            f"analysis.layers: for {type(net).__name__}, no layer of preset {pattern!r} has the images as the "
            f"first axis of its output; name other layers by patterns ('vitsee list layers model=…' lists them)"
        )
    read = [layer.name for layer in layers]
    if pattern in PRESETS:
        such = f" (such as {read[0]})" if read else ""
        return (
            f"analysis.layers: preset {pattern!r} selects none of the {len(read)} layers of {type(net).__name__} that "
            f"this analysis can read{such}; take analysis.layers=every or name layers by patterns ('vitsee list layers "
            f"model=… analysis=…' lists them)"
        )
    known = {name: None for name in PRESETS} | {
        re.sub(r"\b\d+\b", "*", name): None
        for name in read
        if name.count(".") <= max(1, pattern.count("."))
    }
    close = get_close_matches(re.sub(r"\b\d+\b", "*", pattern), list(known), 1)
    hint = f" Did you mean {close[0]}?" if close else ""
    return (
        f"analysis.layers: nothing in {type(net).__name__} matches {pattern!r}; "
        f"it has: {', '.join(known)}.{hint}"
    )


def preset(net: nn.Module, layers: list[Layer], name: str) -> list[str]:
    """Return the names of a preset's layers whose first axis is the images; empty for an unknown architecture."""
    of_images = {layer.name for layer in layers if layer.images}
    return [n for n in _preset(net, layers, name) if n in of_images]


def _preset(net: nn.Module, layers: list[Layer], name: str) -> list[str]:
    """Return the names of all layers of a preset; empty for an unknown architecture."""
    names = [layer.name for layer in layers]
    if name == "every":
        return names
    if name == "logits":
        classifier = getattr(net, "pretrained_cfg", {}).get("classifier")
        found = [n for n in names if n == classifier]
        return [n for n in found if not isinstance(net.get_submodule(n), nn.Identity)]
    units = units_of(net, names)
    if name == "blocks":
        return units
    if name in ("last", "penultimate", "last_stage"):
        places = {layer.name for layer in layers if layer.grid}
        units = [unit for unit in units if unit in places] or units
        stage = [unit for unit in units if _stage(unit) == _stage(units[-1])]
        return {"last": units[-1:], "penultimate": units[-2:-1], "last_stage": stage}[name]
    if name == "low":
        return units[:5]
    if not units:
        return []
    ran = set(names)
    parts = {unit: parts_of(unit, net.get_submodule(unit), ran) for unit in units}
    direct = [part.role for part in parts[units[0]] if part.direct]
    if "attention" in direct and "mlp" in direct:
        ends = [*_embedding(names), *_final_norm(net, names)] if name == "paper" else []
        chosen = {*_of_units(parts, name, hidden=name == "paper"), *ends}
    elif direct.count("mlp") + direct.count("mixer") > 1 and _is_mixer(net.get_submodule(units[0])):
        chosen = _of_units(parts, name)
    else:
        chosen = _convolutional(net, names, parts, name)
    return [n for n in names if n in chosen]


def _of_units(parts: dict[str, list[Part]], name: str, *, hidden: bool = False) -> set[str]:
    """Return the units and their parts; `four` includes only the first norm of each unit."""
    chosen = set(parts)
    for of_unit in parts.values():
        norms = [part.name for part in of_unit if part.role == "norm" and part.direct]
        chosen.update(norms if name == "paper" else norms[:1])
        chosen.update(part.name for part in of_unit if part.role in ("attention", "mixer", "mlp"))
        if hidden:
            chosen.update(part.name for part in of_unit if part.role == "hidden")
    return chosen


def _stage(unit: str) -> str:
    """Return the stage of a unit: its name without the last part, if the name contains several numbers."""
    return unit.rpartition(".")[0] if len(re.findall(r"\d+", unit)) > 1 else unit


def _embedding(names: list[str]) -> list[str]:
    """Return the module that outputs the first block's input tokens, if known."""
    there = [name for name in ["norm_pre", "pos_drop", "patch_embed"] if name in names]
    return there[:1]


def _final_norm(net: nn.Module, names: list[str]) -> list[str]:
    """Return the norm after the last block, if any."""
    norms = [name for name in ["norm", "fc_norm"] if name in names]
    real = [name for name in norms if not isinstance(net.get_submodule(name), nn.Identity)]
    return (real or norms)[:1]


def _convolutional(
    net: nn.Module, names: list[str], parts: dict[str, list[Part]], name: str
) -> set[str]:
    """Return the units of a CNN with all convolutions and norms, or the last convolution of each unit.

    For units with MLPs, their parts are included too.
    """
    modules = dict(net.named_modules())  # sublayers of the residual stream are not modules
    body = {n: modules[n] for n in names if n in modules and not _head(n)}
    convolutions = [n for n, module in body.items() if isinstance(module, nn.Conv2d)]
    roles = {"attention", "mixer", "mlp"}
    if name == "four":
        branch = [
            [n for n in convolutions if n.startswith(f"{unit}.") and "downsample" not in n]
            for unit in parts
        ]
        chosen = {*parts, *(within[-1] for within in branch if within)}
    else:
        chosen = {*parts, *convolutions, *(n for n, module in body.items() if _is_norm(module))}
        roles |= {"norm", "hidden"}
    return chosen | {part.name for of in parts.values() for part in of if part.role in roles}


def _is_mixer(unit: nn.Module) -> bool:
    """Return whether a unit has no convolutions or recurrent layers, and so mixes tokens with linear layers."""
    return not any(isinstance(layer, (nn.Conv2d, nn.RNNBase)) for layer in unit.modules())


def _head(name: str) -> bool:
    return name.split(".")[0] in ("head", "fc", "classifier")


def _is_norm(module: nn.Module) -> bool:
    kinds = (nn.modules.batchnorm._BatchNorm, nn.GroupNorm, nn.LayerNorm)
    return isinstance(module, kinds)
