"""Loads the weights of a checkpoint into a model if every one fits."""

from __future__ import annotations

import inspect
import logging
import re
import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitsee.errors import UserError
from vitsee.lazy import torch
from vitsee.models import state_dicts
from vitsee.models.npz import load_npz
from vitsee.models.resampling import is_resampled, positions_on_grid
from vitsee.models.weight_files import (
    few,
    is_npz,
    line,
    read_checked,
    refuse_larger,
    require_file,
)

if TYPE_CHECKING:
    from torch import Tensor, nn


log = logging.getLogger(__name__)

EXTRAS = re.compile(
    r"mask_token"  # DINOv2, iBOT, MAE: replaces patches that are masked in training
    r"|head\.(mlp|last_layer)\..+|(dino|ibot)_head\..+"  # projections of DINO, iBOT, DINOv2
    r"|decoder_(embed|pos_embed|blocks|norm|pred)(\..+)?"  # MAE
    r"|pre_logits\..+"  # a layer that timm has removed
    r"|n_averaged"  # torch.optim.swa_utils
    r"|(.+\.)?num_batches_tracked"  # BatchNorm; used in training only
)
"""Well-known names of entries that training adds to a checkpoint but that are not part of the model."""


@dataclass(frozen=True)
class Taken:
    """Which parts of a checkpoint were loaded.

    file: its name. key: key of the state dict in the file; None if the file is a state dict. also: keys of
    other state dicts with the same names. prefix: removed from all names. left_out: entries that the model
    does not have. resampled: entries that were interpolated to the model's resolution or patch size.
    """

    file: str = ""
    key: str | None = None
    also: list[str] = field(default_factory=list)
    prefix: str = ""
    left_out: list[str] = field(default_factory=list)
    resampled: list[str] = field(default_factory=list)

    def record(self) -> dict[str, Any]:
        """Return the fields that are not empty."""
        return {name: value for name, value in vars(self).items() if value}

    @property
    def warnings(self) -> list[str]:
        """Warnings about weights that differ from the trained ones."""
        names = ", ".join(self.resampled)
        return [f"{self.file} was resampled to a different shape: {names}"] if names else []

    def say(self) -> None:
        """Log what may surprise the user about the loaded weights."""
        if self.also:
            log.info(
                *("%s contains several sets of weights: using %s, not %s", self.file, self.key),
                *(f"{', '.join(self.also)} (model.checkpoint_key={self.also[0]})",),
            )
        if self.prefix:
            log.info("%s: removed the prefix %s from its names", self.file, self.prefix)
        if self.left_out:
            log.info("%s: ignored what the model does not have: %s", self.file, few(self.left_out))
        for warning in self.warnings:
            log.warning("warning: %s", warning)


def fill(net: nn.Module, path: Path, key: str | None = None, keep: Iterable[str] = ()) -> Taken:
    """Load every weight of the model from a file, and return and log which parts were used.

    key: which of the file's state dicts. keep: modules that keep their current weights. Raises UserError if the
    file cannot be read safely, or if its weights are incomplete or do not fit.
    """
    require_file(path)
    if is_npz(path):
        if key or keep:
            what = f"model.checkpoint_key={key}" if key else "a new classifier"
            raise UserError(f"{path}: {what} works for PyTorch files only, not for .npz")
        taken = Taken(path.name, resampled=load_npz(net, path))
    else:
        states = state_dicts.all_of(read_checked(path))
        fits = partial(_fits, net, keep=keep, path=path)
        chosen, state = state_dicts.choose(states, key, fits, path)
        _refuse_types(net, state, path)
        fit = _best_fit(net, state, keep, path)
        if fit.problems:
            raise UserError(
                f"checkpoint {path} does not fit the model: {'; '.join(fit.problems)}."
                f"{_remedy(net, fit, state, chosen)}"
            )
        _refuse_types(net, fit.weights, path)
        net.load_state_dict(fit.weights)
        taken = Taken(
            path.name,
            key=chosen or None,
            also=[] if key else state_dicts.same_names(states, chosen),
            prefix=fit.prefix,
            left_out=fit.left_out,
            resampled=fit.resampled,
        )
    taken.say()
    return taken


def _fits(net: nn.Module, state: dict[str, Tensor], keep: Iterable[str], path: Path) -> bool:
    try:
        _refuse_types(net, state, path)
        return not _best_fit(net, state, keep, path).problems
    except UserError:
        return False


@dataclass(frozen=True)
class _Fit:
    """How a state dict fits the model after this prefix is removed; it fits if there are no problems."""

    prefix: str
    weights: Mapping[str, Tensor]
    problems: list[str]
    matching: int
    strangers: list[str]
    left_out: list[str]
    resampled: list[str]


def _best_fit(net: nn.Module, state: dict[str, Tensor], keep: Iterable[str], path: Path) -> _Fit:
    """Return the fit with the shortest prefix that works, else the best fit."""
    state = _uncompiled(state)
    starts = {start for name in state for start in state_dicts.wrappers(name)}
    fits = []
    for prefix in sorted({"", *starts}, key=lambda start: (len(start), start)):
        fits.append(_fit(net, state, prefix, keep, path))
        if not fits[-1].problems:
            return fits[-1]
    return max(fits, key=lambda fit: fit.matching)


def _uncompiled(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the state dict without the names that torch.compile adds to parts of a model."""
    plain = {name.replace("._orig_mod.", "."): tensor for name, tensor in state.items()}
    return plain if len(plain) == len(state) else state


def _fit(
    net: nn.Module, state: dict[str, Tensor], prefix: str, keep: Iterable[str], path: Path
) -> _Fit:
    own = net.state_dict()
    kept = tuple(f"{name}." for name in keep)
    inside = {n[len(prefix) :]: t for n, t in state.items() if n.startswith(prefix)}
    outside = [name for name in state if not name.startswith(prefix)]
    try:
        placed = positions_on_grid(net, inside, path)
        positions = {} if placed is None else {"pos_embed": placed}
        converted, failed = {**_converted(net, inside | positions), **positions}, []
    except Exception as error:  # timm's conversion only handles certain files
        converted, failed = inside, [f"timm cannot convert it ({line(error)})"]
    unused = _classifier_entries(net) if getattr(net, "num_classes", None) == 0 else set()

    def extra(name: str) -> bool:
        return name not in own and bool(name in unused or EXTRAS.fullmatch(name))

    weights = {n: t for n, t in converted.items() if not extra(n) and not n.startswith(kept)}
    for name, tensor in own.items():
        if name.startswith(kept) or name.endswith("num_batches_tracked"):
            weights.setdefault(name, tensor)
    shapes = {n: (tuple(weights[n].shape), tuple(own[n].shape)) for n in own if n in weights}
    other = [
        f"{n} {there} instead of {here}" for n, (there, here) in shapes.items() if there != here
    ]
    foreign = [name for name in outside if not EXTRAS.fullmatch(state_dicts.unwrapped(name)[1])]
    strangers = [name for name in weights if name not in own] + foreign
    problems = {
        "missing": [name for name in own if name not in weights],
        "unexpected": strangers,
        "with a different shape": other,
    }
    return _Fit(
        prefix=prefix,
        weights=weights,
        problems=[f"{len(k)} {kind} ({few(k)})" for kind, k in problems.items() if k] + failed,
        matching=len(shapes) - len(other),
        strangers=strangers,
        left_out=[n for n in outside if n not in foreign] + [n for n in inside if extra(n)],
        resampled=[n for n, t in converted.items() if is_resampled(n, inside.get(n), t)],
    )


def _classifier_entries(net: nn.Module) -> set[str]:
    return {f"{name}.{kind}" for name in classifiers(net) for kind in ("weight", "bias")}


def classifiers(net: nn.Module) -> list[str]:
    """Return the names of the model's classifier in timm, whether or not the model has one."""
    named = getattr(net, "pretrained_cfg", {}).get("classifier") or ()
    return [named] if isinstance(named, str) else list(named)


def _converted(net: nn.Module, state: dict[str, Tensor]) -> Mapping[str, Tensor]:
    """Return the state dict after timm's conversion for the architecture (other layouts and resolutions)."""
    convert = getattr(sys.modules[type(net).__module__], "checkpoint_filter_fn", None)
    if convert is None:
        return state
    few = len(inspect.signature(convert).parameters) == 1
    return convert(dict(state)) if few else convert(dict(state), net)


def _refuse_types(net: nn.Module, state: Mapping[str, Tensor], path: Path) -> None:
    """Raise UserError for tensors of unusable types, e.g. integers where the model has floats."""
    own = net.state_dict()
    for name, tensor in state.items():
        twin = own.get(name, own.get(state_dicts.unwrapped(name)[1]))
        kind = _unusable(tensor)
        if kind is None and twin is not None and tensor.ndim:
            floats = twin.is_floating_point()
            kind = None if floats == tensor.is_floating_point() else f"of {_short(tensor.dtype)}"
        if kind:
            raise UserError(
                f"checkpoint {path} was refused: {name} is {kind}, but weights must be float32, float16, "
                f"bfloat16 or float64; save the weights before quantising or casting them"
            )
    refuse_larger(path, sum(tensor.numel() * tensor.element_size() for tensor in state.values()))


def _unusable(tensor: Tensor) -> str | None:
    """Return the tensor's kind if it cannot be a model's weight; None if it can."""
    usual = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
    if tensor.is_meta:
        return "on the meta device (without values)"
    if tensor.is_quantized:
        return f"quantised ({_short(tensor.dtype)})"
    if tensor.is_nested or tensor.layout != torch.strided:
        return f"stored {_short(tensor.layout).removesuffix('_coo').replace('strided', 'nested')}"
    if tensor.is_complex() or (tensor.is_floating_point() and tensor.dtype not in usual):
        return f"of {_short(tensor.dtype)}"
    return None


def _short(what: object) -> str:
    return str(what).removeprefix("torch.")


def _remedy(net: nn.Module, fit: _Fit, state: dict[str, Tensor], key: str) -> str:
    """Return a sentence on how to make this checkpoint fit."""
    own = net.state_dict()
    heads = _classifier_entries(net) & set(own)
    missing = {name for name in own if name not in fit.weights}
    other = {n for n in own if n not in missing and fit.weights[n].shape != own[n].shape}
    if not fit.strangers and missing and not other and missing <= heads:
        return " If it has no classifier: model.args={num_classes: 0}"
    if not fit.strangers and other and not missing and other <= heads:
        classes = len(fit.weights[min(other)])
        return f" If it has other classes: model.args={{num_classes: {classes}}}"
    names = set(own) - heads
    share, starts = _starts_of_most(state, names)
    if starts and all(starts) and fit.prefix not in starts:
        within = [start.rstrip(".") for start in starts]
        keys = [f"{key}.{start}" if key else start for start in within]
        return (
            f" {'All' if share == 1 else 'Most'} weights of the model are there, under names that begin with "
            f"{_or(within)}: model.checkpoint_key={_or(keys)}"
        )
    if share == 1 and not other:
        return " All weights of the model are there, among others: save them without the others"
    if not fit.matching:
        return (
            " None of the model's names match: the checkpoint is for a different architecture, or not from timm. "
            "Choose the architecture that it was made with: model.timm=NAME"
        )
    return (
        " Choose the architecture that it was made with: model.timm=NAME, and its arguments: "
        "model.args={…}"
    )


def _starts_of_most(state: Mapping[str, Tensor], names: set[str]) -> tuple[float, list[str]]:
    """Return the prefixes of most of these names in a state dict, if they cover at least half, and the share."""
    counts: Counter[str] = Counter()
    for name in state:
        cuts = [0] + [i + 1 for i, letter in enumerate(name) if letter == "."]
        counts.update(name[:cut] for cut in cuts if name[cut:] in names)
    most = max(counts.values(), default=0)
    if not names or most < len(names) / 2:
        return 0.0, []
    return most / len(names), [start for start, count in counts.items() if count == most]


def _or(choices: list[str]) -> str:
    return " or ".join(choices[:3])
