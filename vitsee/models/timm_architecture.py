"""Builds timm's architectures, after checking their options."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitsee.errors import UserError, nearest, unknown
from vitsee.lazy import timm, torch
from vitsee.models.hub import check_source
from vitsee.models.weight_files import line
from vitsee.options import ModelOptions, Pool

if TYPE_CHECKING:
    from torch import nn


POOLING: dict[Pool, dict[str, Any]] = {
    Pool.cls: {"class_token": True, "global_pool": "token"},
    Pool.gap: {"class_token": False, "global_pool": "avg", "fc_norm": False},
}
"""Arguments for timm's ViTs. As in the authors' code, the mean over patches is taken after the last norm."""

RESERVED = {
    "args.checkpoint_path": "model.checkpoint=PATH",
    "args.device": "run.device",
    "args.dtype": "precision",
    "args.pretrained": "model.pretrained",
    "args.pretrained_cfg": "model.overlay",
    "args.pretrained_cfg_overlay": "model.overlay",
    "overlay.file": "model.checkpoint=PATH",
    "overlay.state_dict": "model.checkpoint=PATH",
}
"""Options that timm accepts but that would bypass vitsee's checks, and what to use instead."""


def build(model: ModelOptions, *, seed: int | None = None) -> nn.Module:
    """Build the architecture on the CPU, with random weights from `seed` (default: the model's own)."""
    _refuse_huge(model)
    torch.manual_seed(model.seed if seed is None else seed)
    return _create(model)


def undrawn(model: ModelOptions) -> nn.Module:
    """Build the architecture on the CPU to be filled with weights: random ones are NaN until then."""
    from vitsee.models.undrawn import Undrawn

    _refuse_huge(model)
    with Undrawn():
        return _create(model)


def skeleton(model: ModelOptions) -> nn.Module:
    """Build the architecture on torch's meta device: shapes and names at no cost."""
    from vitsee.models.undrawn import Undrawn

    with torch.device("meta"), Undrawn():
        return _create(model)


def _create(model: ModelOptions) -> nn.Module:
    """Call `timm.create_model` without weights. Turns timm's errors into UserErrors with the user's options."""
    _check_name(model)
    _check_options(model)
    try:
        net = timm_model(model)
        data = data_config(net)
        _check_data(data, f"{model.timm}: its ")
        for key in ("mean", "std"):
            if len(data[key]) not in (1, 3, data["input_size"][0]):
                raise UserError(
                    f"model.overlay.{key} must have one number per channel, got {data[key]}"
                )
    except UserError:
        raise
    except Exception as error:
        if not _changed(model):
            raise
        raise UserError(
            f"{model.timm} cannot be built with {_changed(model)}: {reason_of(error)}"
        ) from error
    _require_size(model, net)
    return net


def _changed(model: ModelOptions) -> str:
    """Return the user's changes to the architecture as command-line options; empty if there are none."""
    options = {
        "args": model.args,
        "pool": model.pool and model.pool.value,
        "remove_skip": model.remove_skip,
        "overlay": model.overlay,
    }
    changed = [f"model.{name}={value}" for name, value in options.items() if value]
    return " and ".join(changed or ["its config.json"] * (":" in model.timm))


def reason_of(error: Exception) -> str:
    """Return a library's error message, with the error's class if the message alone is unclear."""
    kind = "" if isinstance(error, (AssertionError, RuntimeError)) else f"{type(error).__name__}: "
    return f"{kind}{line(error)}"


def _refuse_huge(model: ModelOptions) -> None:
    """Raise UserError if the requested weights do not fit into this machine's memory."""
    if not model.args:
        return
    try:
        net = skeleton(model)
    except UserError:
        return  # if the real model cannot be built either, building it raises the error
    size = sum(tensor.nbytes for tensor in (*net.parameters(), *net.buffers()))
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if size > memory:
        raise UserError(
            f"{model.timm} with {_changed(model)} has {size / 2**30:,.0f} GiB of weights, but this machine has "
            f"{memory / 2**30:,.0f} GiB of memory"
        )


def refuse_unrunnable(model: ModelOptions, net: nn.Module, size: tuple[int, int, int]) -> None:
    """Raise UserError if the user's changes lead to a model that cannot run on its images."""
    if not _changed(model):
        return
    try:
        with torch.no_grad():
            net(torch.zeros(1, *size, device=next(net.parameters()).device))
    except Exception as error:
        shape = " x ".join(map(str, size))
        raise UserError(
            f"{model.timm} with {_changed(model)} cannot run on images of {shape}: {reason_of(error)}"
        ) from error


def timm_model(model: ModelOptions, file: Path | None = None) -> nn.Module:
    """Call `timm.create_model` with the weights in `file`, or with random ones."""
    place = {} if file is None else {"file": str(file), "source": ""}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Initializing zero-element")  # reported as an error later
        net = timm.create_model(
            model.timm,
            pretrained=file is not None,
            pretrained_cfg_overlay=model.overlay | place,
            **(POOLING[model.pool] if model.pool else {}),
            **model.args,
        )
    if model.remove_skip:
        from vitsee.models.skipless import remove_skips

        remove_skips(net, model.remove_skip)
    return net


def _check_options(model: ModelOptions) -> None:
    """Raise UserError for an option that timm does not have, or a value that it does not accept."""
    from timm.models import PretrainedCfg

    given = [f"args.{key}" for key in model.args] + [f"overlay.{key}" for key in model.overlay]
    for option in given:
        if option in RESERVED:
            raise UserError(f"model.{option} is not passed on to timm: use {RESERVED[option]}")
    valid = [f.name for f in fields(PretrainedCfg)]
    for key in model.overlay:
        if key not in valid:
            raise unknown(f"there is no option model.overlay.{key}", key, valid, "timm has")
    _check_data(model.overlay, "model.overlay.")
    for option, channels in {
        "model.args.in_chans": model.args.get("in_chans", 3),
        "model.overlay.input_size[0]": model.overlay.get("input_size", [3])[0],
    }.items():
        if channels != 3:
            raise UserError(
                f"{option}={channels}: vitsee feeds RGB images to a model, so it must take 3 channels; leave the "
                f"option out, or set it to 3"
            )


def _require_size(model: ModelOptions, net: nn.Module) -> None:
    """Raise UserError if the requested image size is not the one that the model is built for."""
    asked = model.overlay.get("input_size")
    (_, *size) = data_config(net)["input_size"]
    if asked is not None and list(asked[1:]) != size:
        wanted, built = (n[0] if n[0] == n[1] else n for n in (list(asked[1:]), size))
        raise UserError(
            f"model.overlay.input_size={list(asked)}, but this {type(net).__name__} is built for images of "
            f"{size[0]} x {size[1]} pixels: build it with model.args.img_size={wanted} instead of {built}"
        )


def _check_data(data: Mapping[str, Any], lead: str) -> None:
    """Raise UserError for an invalid value in a data configuration."""
    for key, (fits, wanted) in DATA.items():
        if key in data and not fits(data[key]):
            raise UserError(f"{lead}{key} must be {wanted}, got {data[key]!r}")


def _numbers(value: object, fits: Callable[[float], bool], count: int | None = None) -> bool:
    """Return whether the value is a list of `count` valid numbers (of any length if None)."""
    return (
        isinstance(value, (list, tuple))
        and (len(value) == count or (count is None and len(value) > 0))
        and all(_number(one) and fits(one) for one in value)
    )


def _number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _one_of(*choices: str) -> tuple[Callable[[Any], bool], str]:
    return lambda value: value in choices, f"one of {', '.join(choices)}"


DATA: dict[str, tuple[Callable[[Any], bool], str]] = {
    "input_size": (
        lambda value: _numbers(value, lambda side: side == int(side) and side > 0, 3),
        "three whole numbers, e.g. [3,224,224]",
    ),
    "mean": (
        lambda value: _numbers(value, lambda x: True),
        "one number per channel, e.g. [0.5,0.5,0.5]",
    ),
    "std": (
        lambda value: _numbers(value, lambda x: x > 0),
        "one number above 0 per channel, e.g. [0.5,0.5,0.5]",
    ),
    "crop_pct": (
        lambda value: _number(value) and 0 < value <= 2,
        "a number above 0 and at most 2, e.g. 0.9 (1.0: no cropping)",
    ),
    "crop_mode": _one_of("center", "squash", "border"),
    "interpolation": _one_of("nearest", "bilinear", "bicubic", "box", "hamming", "lanczos"),
    "num_classes": (
        lambda value: isinstance(value, int) and value >= 0,
        "a whole number, at least 0",
    ),
}
"""The valid values of timm's data configuration, as a test and as text."""


def _check_name(model: ModelOptions) -> None:
    """Raise UserError unless timm knows this architecture and this tag of weights."""
    import vitsee.models.more_architectures  # noqa: F401  (registers more architectures)

    name = model.timm
    if ":" in name:
        check_source(model, *name.split(":", 1))
        return
    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture):
        hint = nearest(architecture, timm.list_models())
        raise UserError(
            f"timm has no model {architecture!r} (model.timm={name}).{hint} "
            "`vitsee list models model=timm 'model.timm=*vit*'` lists names"
        )
    tags = [full.partition(".")[2] for full in timm.list_pretrained(f"{architecture}.*")]
    if tag and tag not in tags:
        raise unknown(f"timm has no weights {tag!r} for {architecture}", tag, tags, "available")


def data_config(net: nn.Module) -> dict[str, Any]:
    """Return timm's data configuration of the model, with the image size that the model was built for."""
    from timm.data import resolve_model_data_config

    data = resolve_model_data_config(net)
    embedding = getattr(net, "patch_embed", None) or getattr(net, "stem", None)
    built_for = getattr(embedding, "img_size", None)
    if built_for:
        data["input_size"] = (data["input_size"][0], *built_for)
    return data


def pretrained_cfg(net: nn.Module) -> dict[str, Any]:
    """Return timm's record of the model's published weights."""
    return vars(net)["pretrained_cfg"]
