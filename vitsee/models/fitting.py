"""Chooses a state dict in a checkpoint and loads it into a model if every weight fits."""

from __future__ import annotations

import inspect
import logging
import re
import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitsee.errors import UserError, unknown
from vitsee.lazy import torch
from vitsee.models.npz import load_npz
from vitsee.models.resampling import is_resampled
from vitsee.models.weight_files import (
    ALONE,
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

KEYS = (
    "state_dict_ema",
    "model_ema",
    "state_dict",
    "model",
    "model_state_dict",
    "model_state",
    "module",
    "net",
    "network",
    "teacher",
)
"""Keys under which training code stores the weights, in order of preference; the first four as in timm."""

WRAPPERS = (
    "module",
    "_orig_mod",
    "model",
    "net",
    "network",
    "backbone",
    "encoder",
    "trunk",
    "student",
    "teacher",
)
"""Attributes in which wrappers and training code keep a model. They become prefixes of all its names."""

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
        states = _state_dicts(read_checked(path))
        chosen, state = _choose(net, states, key, keep, path)
        _refuse_types(net, state, path)
        fit = _best_fit(net, state, keep)
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
            also=[] if key else _same_names(states, chosen),
            prefix=fit.prefix,
            left_out=fit.left_out,
            resampled=fit.resampled,
        )
    taken.say()
    return taken


# --- which state dict ----------------------------------------------------------------------------


def _state_dicts(loaded: Mapping[Any, Any]) -> dict[str, dict[str, Tensor]]:
    """Return every dictionary of named tensors in a file, by its dotted key; the key of the file itself is ''."""
    states: dict[str, dict[str, Tensor]] = {}
    looks = iter(range(1000))  # dictionaries may contain each other

    def look(value: Mapping[Any, Any], key: str, depth: int) -> None:
        if depth > 3 or next(looks, None) is None:
            return
        named = {name: one for name, one in value.items() if isinstance(name, str)}
        tensors = {
            name: one.detach() for name, one in named.items() if isinstance(one, torch.Tensor)
        }
        if tensors:
            states[key] = tensors
        for name, one in named.items():
            if isinstance(one, Mapping):
                look(one, f"{key}.{name}" if key else name, depth + 1)

    look(loaded, "", 0)
    return states


def _choose(
    net: nn.Module,
    states: dict[str, dict[str, Tensor]],
    key: str | None,
    keep: Iterable[str],
    path: Path,
) -> tuple[str, dict[str, Tensor]]:
    """Return the requested state dict with its key, else one with a usual key, else the only one that fits.

    Raises UserError if none or several fit.
    """
    if not states:
        raise UserError(f"checkpoint {path} does not contain named tensors; {ALONE}")
    if key:
        return key, _requested(states, key, path)
    for usual in KEYS:
        if usual in states:
            return usual, states[usual]
    below = next((b for b in ([k for k in states if k.startswith(f"{u}.")] for u in KEYS) if b), [])
    rivals = below or list(states)
    if len(rivals) > 1:
        fitting = [k for k in rivals if _fits(net, states[k], keep, path)]
        if len(fitting) != 1:
            which = fitting or rivals
            why = (
                "more than one of which fits"
                if fitting
                else "none of which fits the model as it is"
            )
            choices = ", ".join(k or "(the file itself)" for k in which)
            named = next(k for k in which if k)
            raise UserError(
                f"checkpoint {path} contains several state dicts, {why}: {choices}; choose one: "
                f"model.checkpoint_key={named}"
            )
        rivals = fitting
    return rivals[0], states[rivals[0]]


def _fits(net: nn.Module, state: dict[str, Tensor], keep: Iterable[str], path: Path) -> bool:
    try:
        _refuse_types(net, state, path)
        return not _best_fit(net, state, keep).problems
    except UserError:
        return False


def _requested(states: dict[str, dict[str, Tensor]], key: str, path: Path) -> dict[str, Tensor]:
    """Return the state dict at this key, or the entries whose names begin with it.

    Raises UserError with the keys that exist.
    """
    if key in states:
        return states[key]
    for name, state in states.items():
        within = f"{name}." if name else ""
        if f"{key}.".startswith(within):
            start = f"{key}."[len(within) :]
            part = {n[len(start) :]: t for n, t in state.items() if start and n.startswith(start)}
            if part:
                return part
    deeper = [name for name in states if name.startswith(f"{key}.")]
    if len(deeper) == 1:
        return states[deeper[0]]
    choices = deeper or [name for name in states if name]
    if not choices:
        raise UserError(
            f"checkpoint {path} has no {key}: it is a single state dict, whose names begin with: "
            f"{few(sorted({name.partition('.')[0] for name in states['']}), 8)}"
        )
    raise unknown(
        f"model.checkpoint_key={key}: checkpoint {path} does not contain such a state dict",
        key,
        choices,
        "it contains",
    )


def _same_names(states: dict[str, dict[str, Tensor]], chosen: str) -> list[str]:
    """Return the keys of other state dicts of the same model, e.g. raw weights next to averaged ones."""
    names = {key: {_wrapped(name)[1] for name in state} for key, state in states.items()}
    return [key for key in states if key not in ("", chosen) and names[key] == names.get(chosen)]


# --- fitting it to the model ---------------------------------------------------------------------


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


def _best_fit(net: nn.Module, state: dict[str, Tensor], keep: Iterable[str]) -> _Fit:
    """Return the fit with the shortest prefix that works, else the best fit."""
    state = _uncompiled(state)
    starts = {start for name in state for start in _starts(name)}
    best = None
    for prefix in sorted({"", *starts}, key=lambda start: (len(start), start)):
        fit = _fit(net, state, prefix, keep)
        if not fit.problems:
            return fit
        if best is None or fit.matching > best.matching:
            best = fit
    assert best is not None
    return best


def _uncompiled(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the state dict without the names that torch.compile adds to parts of a model."""
    plain = {name.replace("._orig_mod.", "."): tensor for name, tensor in state.items()}
    return plain if len(plain) == len(state) else state


def _starts(name: str) -> list[str]:
    """Return the prefixes that could be removed from a name: `module.`, `module.backbone.`, …"""
    words = name.split(".")[:-1]
    count = next((i for i, word in enumerate(words[:4]) if word not in WRAPPERS), len(words[:4]))
    return [".".join(words[: i + 1]) + "." for i in range(count)]


def _wrapped(name: str) -> tuple[str, str]:
    """Return the wrappers that a name begins with, and the rest of the name."""
    start = next(reversed(_starts(name)), "")
    return start, name.removeprefix(start)


def _fit(net: nn.Module, state: dict[str, Tensor], prefix: str, keep: Iterable[str]) -> _Fit:
    own = net.state_dict()
    kept = tuple(f"{name}." for name in keep)
    inside = {n[len(prefix) :]: t for n, t in state.items() if n.startswith(prefix)}
    outside = [name for name in state if not name.startswith(prefix)]
    try:
        converted, failed = _converted(net, inside), []
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
    foreign = [name for name in outside if not EXTRAS.fullmatch(_wrapped(name)[1])]
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
        twin = own.get(name, own.get(_wrapped(name)[1]))
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
