"""Finds the repeated blocks (units) of a network, and the parts of each, from its structure.

Units are similar siblings in a list (Sequential, ModuleList, ModuleDict). Lists of lists and of stages are opened;
a stage is a module that holds lists of units. Names matter only for parts known to be outside the units
(`_BESIDE`), which make tokens or logits or change the resolution.
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterator
from dataclasses import dataclass
from itertools import pairwise

from torch import nn

Child = tuple[str, nn.Module]

_BESIDE = {"stem", "patch_embed", "embeddings", "downsample", "shortcut", "head", "classifier"}
"""Names of modules that may contain lists, but no units."""
_LISTS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
_NORMS = (nn.modules.batchnorm._BatchNorm, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)
_LAYERS = (nn.modules.conv._ConvNd, nn.Linear, nn.RNNBase)


def units_of(net: nn.Module, names: list[str]) -> list[str]:
    """Return the names of the units in running order. names: of all modules that run, in this order."""
    units = _trunk("", net) or _siblings(net) or _chain(net)
    ran = {name: i for i, name in enumerate(names)}
    return sorted((name for name in units if name in ran), key=ran.__getitem__)


def _trunk(name: str, module: nn.Module) -> list[str]:
    """Return the units in the lists of a network, or of the part of it that has most of the weights."""
    units = _in_lists(name, module)
    inside = _children(name, module)
    if units:
        kinds = {type(module.get_submodule(_within(name, unit))) for unit in units} - {*_LISTS}
        return units + [kid for kid, child in inside if type(child) in kinds]
    parts = [(_size(child), _trunk(kid, child)) for kid, child in inside]
    return max((part for part in parts if part[1]), key=lambda part: part[0], default=(0, []))[1]


def _in_lists(name: str, module: nn.Module) -> list[str]:
    """Return the units in the lists that a module holds."""
    lists = [child for child in _children(name, module) if isinstance(child[1], _LISTS)]
    return [unit for child in lists for unit in _in_list(*child)]


def _in_list(name: str, module: nn.Module) -> list[str]:
    """Return the units of a list; empty if it is not a list of units."""
    items = [(kid, child) for kid, child in _children(name, module) if _composite(child)]
    if items and all(_is_pair(child) for _, child in items):
        return [kid for kid, _ in items]
    lists = {kid for kid, child in items if isinstance(child, _LISTS)}
    opened = {kid: (_in_list if kid in lists else _in_lists)(kid, child) for kid, child in items}
    if not any(opened.values()) and not any(_is_block(child) for _, child in items):
        return []
    closed = [child for kid, child in items if not opened[kid]]
    stages = any(opened[kid] for kid, _ in items if kid not in lists)
    if any(map(_is_block, closed)) or (stages and closed):
        # siblings of a block are blocks, whatever they contain
        return [n for kid, _ in items for n in (opened[kid] if kid in lists else []) or [kid]]
    return [
        n
        for kid, child in items
        for n in opened[kid] or (_composites(kid, child) if kid in lists else [])
    ]


def _siblings(net: nn.Module) -> list[str]:
    """Return the units that are attributes of the network, or of its stages of equal units."""
    units = []
    for name, stage in _children("", net):
        if _is_block(stage) and not isinstance(stage, _LISTS):
            inside = [(kid, child) for kid, child in _children(name, stage) if _size(child)]
            blocks = all(_is_block(child) for _, child in inside)
            kinds = {type(child) for _, child in inside}
            equal = blocks and len(kinds) == 1 and not kinds & {*_LISTS}
            units += [kid for kid, _ in inside] if equal else [name]
    return units if len(units) > 1 else []


def _chain(net: nn.Module) -> list[str]:
    """Return the end of each step (convolution, norm, activation) of the longest plain chain of layers."""
    chains = [_children(name, module) for name, module in net.named_modules()]
    ends: list[str] = []
    for name, child in max(chains, key=lambda chain: sum(_mixes(child) for _, child in chain)):
        if _mixes(child):
            ends.append(name)
        elif ends and not _composite(child) and "Pool" not in type(child).__name__:
            ends[-1] = name
    return ends


def _children(name: str, module: nn.Module) -> list[Child]:
    """Return the children that compute something and may be units, with their full names."""
    start = f"{name}." if name else ""
    return [
        (f"{start}{kid}", child)
        for kid, child in module.named_children()
        if kid not in _BESIDE and not isinstance(child, nn.Identity)
    ]


def _within(name: str, unit: str) -> str:
    return unit.removeprefix(f"{name}.") if name else unit


def _composite(module: nn.Module) -> bool:
    """Return whether the module is made of layers, depthwise ones included."""
    return layers_in(module) and not isinstance(module, _LAYERS)


def layers_in(module: nn.Module) -> bool:
    """Return whether the module is or has a convolution, a linear or a recurrent layer."""
    return any(isinstance(layer, _LAYERS) for layer in module.modules())


def _composites(name: str, module: nn.Module) -> list[str]:
    return [kid for kid, child in _children(name, module) if _composite(child)]


def _size(module: nn.Module) -> int:
    """Return the number of weights."""
    return sum(weight.numel() for weight in module.parameters())


def _mixes(module: nn.Module) -> bool:
    """Return whether the module is a single layer that mixes channels, and so not a depthwise convolution."""
    if isinstance(module, nn.modules.conv._ConvNd):
        return module.groups == 1 or module.groups < module.in_channels
    return isinstance(module, _LAYERS)


def _is_block(module: nn.Module) -> bool:
    """Return whether the module is as complex as a unit; for a list, its own layers decide."""
    if not isinstance(module, _LISTS):
        return sum(map(_mixes, module.modules())) > 1
    own = sum(map(_mixes, module.children()))
    return own > 1 or (own > 0 and any(map(_composite, module.children())))


def _is_pair(module: nn.Module) -> bool:
    """Return whether this is a list of different blocks, each once: the parts of one unit."""
    parts = [child for child in module.children() if _composite(child)]
    return (
        isinstance(module, _LISTS)
        and len(parts) == len({type(part) for part in parts}) > 1
        and not any(isinstance(part, _LISTS) for part in parts)
        and all(map(_is_block, parts))
    )


# ---- parts of a unit ----


_ATTENDS = re.compile("(?<!conv)(attn|attention)|mhsa", re.IGNORECASE)
_GATES = re.compile("squeeze|^se|eca", re.IGNORECASE)
"""Names of classes that weight channels by the whole image but mix no tokens."""


@dataclass(frozen=True)
class Part:
    """A part of a unit. name: its full name.

    role: norm, attention, mixer (of tokens, without attention), mlp, or hidden (the input of an MLP's last layer).
    direct: whether it is a child of the unit.
    """

    name: str
    role: str
    direct: bool


def parts_of(name: str, unit: nn.Module, ran: Container[str]) -> list[Part]:
    """Return the parts of a unit that is made of mixers and MLPs, in their declared order; empty for others.

    ran: names of all modules that run. Insides of attention and MLPs are not parts.
    """
    parts = [part for part in _parts(name, unit, ran, True) if part.name in ran]
    if not any(part.role == "mlp" for part in parts):
        return []
    attends = any(part.role == "attention" for part in parts)
    return [part for part in parts if part.role != "mixer" or not attends]


def _parts(name: str, module: nn.Module, ran: Container[str], direct: bool) -> Iterator[Part]:
    children = _children(name, module)
    split = _split_mlp(children)
    for kid, child in children:
        if is_norm(child):
            yield Part(kid, "norm", direct)
        elif kid in split:
            yield Part(kid, split[kid], direct)
        elif _is_mlp(child):
            hidden = _hidden(kid, child, ran)
            if hidden:
                yield Part(hidden, "hidden", direct)
            yield Part(kid, "mlp", direct)
        elif _is_attention(kid, child):
            yield Part(kid, "attention", direct)
        elif isinstance(child, nn.Linear) and direct:
            yield Part(kid, "mixer", direct)
        elif _composite(child) and not _GATES.search(type(child).__name__):
            inside = [*_parts(kid, child, ran, False)]
            whole = not any(part.role in ("attention", "mlp") for part in inside)
            yield from [Part(kid, "mixer", direct)] if whole and direct else inside


def is_norm(module: nn.Module) -> bool:
    """Return whether the module normalises, or only scales and shifts in a norm's place."""
    kind = type(module).__name__
    named = "Norm" in kind or kind == "Affine"
    return isinstance(module, _NORMS) or (named and not layers_in(module))


def _is_attention(name: str, module: nn.Module) -> bool:
    """Return whether the module is attention, and not a block that contains attention and an MLP."""
    words = f"{name.rpartition('.')[2]} {type(module).__name__}"
    if not _ATTENDS.search(words) or not _composite(module):
        return False
    children = [*module.named_children()]
    inside = any(_ATTENDS.search(kid) and _composite(child) for kid, child in children)
    return not (inside and any(_is_mlp(child) for _, child in children))


def _is_mlp(module: nn.Module) -> bool:
    """Return whether the module is an MLP, by the name of its class or by layers that widen and narrow."""
    if re.search("mlp|feedforward|ffn|swiglu", type(module).__name__, re.IGNORECASE):
        return _composite(module) and "RelPos" not in type(module).__name__
    layers = [child for child in module.children() if isinstance(child, _LAYERS)]
    return (
        all(isinstance(layer, nn.Linear) for layer in layers)
        and not any(map(_composite, module.children()))
        and 1 < len(layers) < 4
        and _widens(layers[0], layers[-1])
    )


def _widens(first: nn.Module, last: nn.Module) -> bool:
    """Return whether the layers expand the features and reduce them again; half of the features may be a gate."""
    if not (isinstance(first, nn.Linear) and isinstance(last, nn.Linear)):
        return False
    wide = first.out_features in (last.in_features, 2 * last.in_features)
    return wide and first.in_features == last.out_features < last.in_features


def _hidden(name: str, mlp: nn.Module, ran: Container[str]) -> str | None:
    """Return the name of the module whose output enters the last layer of an MLP.

    In a gated MLP, no module outputs the product of gate and values, unless a module without effect follows.
    """
    children = [(f"{name}.{kid}", child) for kid, child in mlp.named_children()]
    layers = [i for i, (_, child) in enumerate(children) if layers_in(child)]
    if len(layers) < 2:
        return None
    between = [child for child in children[layers[0] : layers[-1]] if child[0] in ran]
    between = [(kid, child) for kid, child in between if not layers_in(child)]
    if _is_gated([children[i][1] for i in layers]):
        return between[-1][0] if between and _passes(between[-1][1]) else None
    return next((kid for kid, child in reversed(between) if not _passes(child)), None)


def _is_gated(layers: list[nn.Module]) -> bool:
    widths = [
        (layer.in_features, layer.out_features) for layer in layers if isinstance(layer, nn.Linear)
    ]
    if len(widths) < 2:
        return False
    return widths[0][1] == 2 * widths[-1][0] or (len(widths) > 2 and widths[0] == widths[1])


def _passes(module: nn.Module) -> bool:
    """Return whether the module changes nothing in evaluation mode, or is a norm."""
    return isinstance(module, (nn.Identity, nn.Dropout)) or is_norm(module)


def _split_mlp(children: list[Child]) -> dict[str, str]:
    """Return the roles of two neighbours that form an MLP: one widens and the other narrows."""
    for (first, one), (second, other) in pairwise(children):
        layers = [[m for m in part.modules() if isinstance(m, _LAYERS)] for part in (one, other)]
        if [len(x) for x in layers] == [1, 1] and _widens(layers[0][0], layers[1][0]):
            return {first: "hidden", second: "mlp"}
    return {}
