"""Reads the residual stream: the skip and the branch of each addition.

Additions are not modules, so they are named after their block: `blocks.3.+attn` and `blocks.3.+mlp` are the
stream after that branch is added. Blocks with one branch (convolutional units, parallel blocks) keep their own
name: `layer1.0`. Where timm's and vitsee's block classes add is known (`KNOWN`); in other units, additions to the
unit's own input are found while it runs (`additions.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from vitsee.errors import UserError
from vitsee.models import layers, presets
from vitsee.models.additions import meet_addition, record_additions
from vitsee.models.layout import Record
from vitsee.models.outputs import tensor_of
from vitsee.names import block_and_branch
from vitsee.setting import Layer


@dataclass(frozen=True)
class Residual:
    """One addition to the residual stream of a minibatch, each (N, tokens, D) or (N, C, H, W).

    skip: the value of the skip connection (after its downsampling, if any); None where nothing is added: the stem,
    and units without a skip. branch: the value that is added, hence after LayerScale. An activation after the
    addition (post-activation ResNets) is in neither.
    """

    skip: Tensor | None
    branch: Tensor

    @property
    def total(self) -> Tensor:
        """The residual stream after the addition."""
        return self.branch if self.skip is None else self.skip + self.branch


@dataclass(frozen=True)
class Addition:
    """One line `x = skip + branch` of a block's forward pass, in terms of the block's modules.

    name: name of the sublayer within its block ("" if it is the only one). entry: the module whose input is
    the skip ("" is the block itself). exits: of these modules, the last one present outputs the branch.
    shortcut: if the block has this module, its output is the skip. skips: the attribute that says whether
    there is a skip at all.
    """

    name: str
    entry: str
    exits: tuple[str, ...]
    shortcut: str = ""
    skips: str = ""


_PRE_NORM = (
    Addition("+attn", "norm1", ("drop_path1",)),
    Addition("+mlp", "norm2", ("drop_path2",)),
)
_POST_NORM = (
    Addition("+attn", "attn", ("drop_path1",)),
    Addition("+mlp", "mlp", ("drop_path2",)),
)
_SHARED_DROP_PATH = (
    Addition("+attn", "norm1", ("drop_path",)),
    Addition("+mlp", "norm2", ("drop_path",)),
)
_TOKEN_MLP = (
    Addition("+mlp_tokens", "norm1", ("drop_path",)),
    Addition("+mlp_channels", "norm2", ("drop_path",)),
)
_SKIPLESS = tuple(replace(addition, skips="has_skip") for addition in _PRE_NORM)
_SKIPLESS_MIXER = tuple(replace(addition, skips="has_skip") for addition in _TOKEN_MLP)
_TOKEN_LINEAR = (Addition("+linear_tokens", "norm1", ("drop_path",)), _TOKEN_MLP[1])
_PARALLEL = (Addition("", "in_norm", ("drop_path",)),)
_INVERTED = (Addition("", "", ("drop_path",), skips="has_skip"),)

KNOWN: dict[str, tuple[Addition, ...]] = {
    "vision_transformer.Block": _PRE_NORM,
    "vision_transformer.ResPostBlock": _POST_NORM,
    "vision_transformer.ParallelScalingBlock": _PARALLEL,
    "vision_transformer.DiffParallelScalingBlock": _PARALLEL,
    "vision_transformer_relpos.RelPosBlock": _PRE_NORM,
    "vision_transformer_relpos.ResPostRelPosBlock": _POST_NORM,
    "beit.Block": _PRE_NORM,
    "eva.EvaBlock": _PRE_NORM,
    "eva.EvaBlockPostNorm": _POST_NORM,
    "cait.LayerScaleBlock": _SHARED_DROP_PATH,
    "mlp_mixer.MixerBlock": _TOKEN_MLP,
    "mlp_mixer.ResBlock": _TOKEN_LINEAR,
    "mlp_mixer.SpatialGatingBlock": (Addition("", "norm", ("drop_path",)),),
    "resnet.BasicBlock": (Addition("", "", ("bn2", "se", "drop_path"), "downsample"),),
    "resnet.Bottleneck": (Addition("", "", ("bn3", "se", "drop_path"), "downsample"),),
    "resnetv2.PreActBasic": (Addition("", "", ("drop_path",), "downsample"),),
    "resnetv2.PreActBottleneck": (Addition("", "", ("drop_path",), "downsample"),),
    "resnetv2.Bottleneck": (Addition("", "", ("drop_path",), "downsample"),),
    "convnext.ConvNeXtBlock": (Addition("", "", ("drop_path",), "shortcut"),),
    "skipless.SkiplessBlock": _SKIPLESS,
    "skipless.SkiplessMixerBlock": _SKIPLESS_MIXER,
    "_efficientnet_blocks.ConvBnAct": _INVERTED,
    "_efficientnet_blocks.DepthwiseSeparableConv": _INVERTED,
    "_efficientnet_blocks.InvertedResidual": _INVERTED,
    "_efficientnet_blocks.UniversalInvertedResidual": _INVERTED,
    "_efficientnet_blocks.EdgeResidual": _INVERTED,
    "_efficientnet_blocks.CondConvResidual": _INVERTED,
    "_efficientnet_blocks.MobileAttention": (
        Addition("", "norm", ("drop_path",), skips="has_skip"),
    ),
}
"""The additions of each block class in timm and in vitsee.models.skipless, by module and class name.

Subclasses are not included: they may compute something else.
"""


def additions(block: nn.Module) -> tuple[Addition, ...]:
    """Return the additions of a block in running order; empty if its class is unknown."""
    ours = type(block).__module__.startswith(("timm.models.", "vitsee.models.skipless"))
    return KNOWN.get(_class_name(block), ()) if ours else ()


def _class_name(block: nn.Module) -> str:
    return f"{type(block).__module__.split('.')[-1]}.{type(block).__qualname__}"


def sublayers(net: nn.Module) -> list[str]:
    """Return the names of all additions of all known blocks."""
    return [
        _join(name, addition.name)
        for name, block in net.named_modules()
        for addition in additions(block)
    ]


def _join(block: str, part: str) -> str:
    return f"{block}.{part}" if part else block


def skips(net: nn.Module, name: str) -> bool:
    """Return whether a known block has a skip connection here; units that change the size have none."""
    addition = _addition(net, name)
    block = net.get_submodule(block_and_branch(name)[0])
    return addition is not None and (not addition.skips or bool(getattr(block, addition.skips)))


def _addition(net: nn.Module, name: str) -> Addition | None:
    block, branch = block_and_branch(name)
    part = "" if branch == "unit" else f"+{branch}"
    known = additions(net.get_submodule(block))
    return next((addition for addition in known if addition.name == part), None)


def attach(
    net: nn.Module, layer: Layer, deliver: Callable[[Residual], None]
) -> list[RemovableHandle]:
    """Add hooks that deliver the skip and branch of this addition in each forward pass, without a copy.

    The tensors are valid only while `deliver` runs: a block may change its branch in place afterwards.
    """
    block, addition = net.get_submodule(block_and_branch(layer.name)[0]), _addition(net, layer.name)
    if addition is not None and skips(net, layer.name):
        return _meet(block, addition, deliver)
    if addition is not None and addition.name:  # one sublayer of several, without its skip
        return _meet(block, addition, lambda both: deliver(Residual(None, both.branch)))
    if addition is not None or isinstance(block, (nn.Conv2d, nn.Linear)):
        return [block.register_forward_hook(lambda m, args, out: deliver(Residual(None, out)))]
    name, branch = block_and_branch(layer.name)
    return meet_addition(
        name,
        block,
        None if branch == "unit" else branch,
        lambda skip, branch: deliver(Residual(skip, branch)),
    )


def _meet(
    block: nn.Module, addition: Addition, deliver: Callable[[Residual], None]
) -> list[RemovableHandle]:
    """Add hooks that deliver skip and branch as soon as both are known."""
    there: dict[str, Tensor] = {}
    shortcut = getattr(block, addition.shortcut, None) if addition.shortcut else None

    def note(which: str, value: Tensor) -> None:
        there[which] = value
        if len(there) == 2:
            both = Residual(**there)
            there.clear()
            deliver(both)

    def skip(module: nn.Module, args: tuple[Tensor, ...], output: Tensor | None = None) -> None:
        note("skip", args[0] if output is None else output)

    def branch(module: nn.Module, args: object, output: Tensor) -> None:
        # a drop_path shared by two sublayers belongs to this one only once its skip has been seen
        if shortcut is not None or "skip" in there:
            note("branch", output)

    exits = [getattr(block, name, None) for name in addition.exits]
    last = [module for module in exits if module is not None][-1]
    source = shortcut.register_forward_hook(skip) if shortcut is not None else None
    entry = block.get_submodule(addition.entry)
    return [source or entry.register_forward_pre_hook(skip), last.register_forward_hook(branch)]


def survey(
    net: nn.Module, input_size: tuple[int, int, int], *, everything: bool = False
) -> list[Layer]:
    """Return the residual stream after each addition, in running order.

    everything: also include the first convolution of a CNN and units without a skip, but only layers with a grid.
    Raises UserError if there are none.
    """
    modules = layers.survey(net, input_size)
    units = presets.preset(net, modules, "blocks")
    unknown = [unit for unit in units if not additions(net.get_submodule(unit))]
    names = sublayers(net)
    if not everything:
        names = [name for name in names if skips(net, name)]
    elif all(layer.prefix is None for layer in modules):
        convolutions = (m.name for m in modules if isinstance(net.get_submodule(m.name), nn.Conv2d))
        names = [*convolutions][:1] + names

    def record(net: nn.Module, seen: Record) -> list[RemovableHandle]:
        handles = _record(net, names, seen)
        for unit in unknown:
            block = net.get_submodule(unit)
            handles += record_additions(unit, block, seen, everything=everything)
        return handles

    watched = layers.layers_of(net, input_size, record)
    watched = [layer for layer in watched if layer.windows == 1 and (layer.grid or not everything)]
    if not watched:
        raise UserError(_nothing(net, units, everything))
    return watched


def _nothing(net: nn.Module, units: list[str], everything: bool) -> str:
    """Return why there is no residual stream."""
    kind = type(net).__name__
    if not units:
        return f"{kind} has no repeated blocks that vitsee could read; name layers for analysis=cka instead"
    of = f"{len(units)} units ({units[0]} … {units[-1]})"
    if everything:
        return f"{kind}: the outputs of its {of} have no rows and columns that vitsee knows, so no centre"
    return f"{kind} has no skip connections: none of its {of} adds anything to its own input"


def survey_outputs(net: nn.Module, input_size: tuple[int, int, int]) -> list[Layer]:
    """Return all modules with an output and, for blocks with several sublayers, the stream after each."""
    within = [name for name in sublayers(net) if block_and_branch(name)[1] != "unit"]

    def record(net: nn.Module, seen: Record) -> list[RemovableHandle]:
        return layers.record_modules(net, seen) + _record(net, within, seen)

    return layers.layers_of(net, input_size, record)


def attach_outputs(
    net: nn.Module, layer: Layer, deliver: Callable[[Tensor], None]
) -> list[RemovableHandle]:
    """Add hooks that deliver the residual stream after an addition, or the output of a module."""
    if ".+" in layer.name:
        return attach(net, layer, lambda residual: deliver(residual.total))

    def leave(module: nn.Module, args: object, output: object) -> None:
        tensor = tensor_of(output, args)
        assert tensor is not None  # else this would be no layer
        deliver(layer.by_image(tensor))

    return [net.get_submodule(layer.name).register_forward_hook(leave)]


def _record(net: nn.Module, names: list[str], seen: Record) -> list[RemovableHandle]:
    """Add hooks that report the residual stream at each of these names."""

    def report(name: str) -> Callable[[Residual], None]:
        return lambda residual: seen(name, residual.branch)

    return [h for name in names for h in attach(net, Layer(name, (), None), report(name))]
