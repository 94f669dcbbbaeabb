"""Preprocessing of images by any function, and its measured size, mean, standard deviation and description."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from types import FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor, nn

from vitsee.errors import UserError
from vitsee.models.code import source_of
from vitsee.models.values import as_text, is_own, parts_of, shown_without_address
from vitsee.models.weight_files import line

_TRIED = ((96, 64), (64, 96))
"""Sizes of the images on which a transform is tried, in pixels."""
_AGAIN = 20
"""How often it is tried again, as augmentation may be random in a few cases only."""
_ALIKE = 1e-3
"""Largest difference, on the scale 0…1, between a measured colour and one computed with mean and deviation."""


def data_config(
    input_size: tuple[int, int, int], mean: Sequence[float] | None, std: Sequence[float] | None
) -> dict[str, Any]:
    """Return timm's data configuration for a model that specifies only this: see `vitsee.Model`."""
    channels = input_size[0]
    return {
        "input_size": tuple(input_size),
        "interpolation": "bicubic",
        "mean": tuple(mean or (0.0,) * channels),
        "std": tuple(std or (1.0,) * channels),
        "crop_pct": 1.0,
        "crop_mode": "center",
    }


def measured(
    transform: Callable[[Any], Any],
    what: str,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> dict[str, Any]:
    """Return the transform with its input size, mean and standard deviation, measured on images of one colour.

    what: the model's name in messages. Raises UserError for a transform that fails, is random, returns images of
    several sizes, or does not normalise each channel.
    """
    noise = [
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8))
        for size in _TRIED
    ]
    wide, tall = (_applied(transform, image, what) for image in noise)
    if not all(_applied(transform, noise[0], what).equal(wide) for _ in range(_AGAIN)):
        raise UserError(
            f"{what}: its transform returns a different result each time; use the transform for evaluation, without "
            f"augmentation"
        )
    if wide.shape != tall.shape:
        sizes = " and ".join(" x ".join(map(str, each.shape)) for each in (wide, tall))
        raise UserError(
            f"{what}: its transform returns images of different sizes ({sizes}), so they cannot be stacked; let it "
            f"resize and crop all images to one size"
        )
    if mean is None or std is None:
        mean, std = _normalisation(transform, what)
    return {
        "input_size": tuple(wide.shape),
        "mean": tuple(mean),
        "std": tuple(std),
        "transform": transform,
    }


def _applied(transform: Callable[[Any], Any], image: Image.Image, what: str) -> Tensor:
    try:
        pixels = transform(image)
    except Exception as error:
        raise UserError(
            f"{what}: its transform fails on an RGB PIL image ({type(error).__name__}: {line(error)})"
        ) from error
    if not (isinstance(pixels, Tensor) and pixels.ndim == 3 and pixels.is_floating_point()):
        got = (
            f"{tuple(pixels.shape)} {pixels.dtype}"
            if isinstance(pixels, Tensor)
            else type(pixels).__name__
        )
        raise UserError(
            f"{what}: its transform must turn an RGB PIL image into a float tensor (C, H, W), but returns {got}"
        )
    return pixels


def _normalisation(
    transform: Callable[[Any], Any], what: str
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return each channel's mean and standard deviation, measured on uniform black, white and grey images."""
    black, white, grey = (
        _applied(transform, Image.new("RGB", _TRIED[0], (shade,) * 3), what).double()
        for shade in (0, 255, 51)
    )
    centre = black.shape[1] // 2, black.shape[2] // 2
    low, high = black[:, *centre], white[:, *centre]
    std = 1 / (high - low)
    mean = -low * std
    colour = grey * std[:, None, None] + mean[:, None, None]
    if not ((colour - 0.2).abs() < _ALIKE).all():
        raise UserError(
            f"{what}: its transform does more than resize, crop and normalise, so vitsee cannot tell its mean and "
            f"standard deviation; give them: vitsee.Model(…, mean=…, std=…)"
        )
    return tuple(round(x, 6) for x in mean.tolist()), tuple(round(x, 6) for x in std.tolist())


def described(transform: Callable[[Any], Any]) -> str:
    """Return a description that is the same in every process: the transform's repr, and a digest of the user's own.

    The digest covers the code of functions and classes and the settings of objects, wherever they are inside.
    """
    shown = shown_without_address(transform)
    parts = [
        part for part in _inside(transform, {}) if isinstance(part, nn.Module) or _is_own(part)
    ]
    code = source_of(*(part if isinstance(part, FunctionType) else type(part) for part in parts))
    digest = hashlib.sha256("\n".join([*map(as_text, parts), *code]).encode())
    return f"{shown} {digest.hexdigest()}" if any(map(_is_own, parts)) else shown


_CALLED = (FunctionType, MethodType, partial)


def _is_own(part: Any) -> bool:
    return is_own(part if isinstance(part, FunctionType) else type(part))


def _inside(thing: Any, seen: dict[int, Any]) -> Iterator[Any]:
    """Yield the transform and whatever it is composed of. seen: what was yielded, by id."""
    if id(thing) in seen or isinstance(thing, ModuleType):
        return
    seen[id(thing)] = thing
    yield thing
    parts = getattr(thing, "transforms", None)
    within = list(parts) if isinstance(parts, (list, tuple, nn.ModuleList)) else []
    within += [one for one in getattr(thing, "__dict__", {}).values() if isinstance(one, _CALLED)]
    if isinstance(thing, partial):
        within += [thing.func, *thing.args, *thing.keywords.values()]
    if isinstance(thing, nn.Module):
        within += thing.children()
    if isinstance(thing, MethodType):
        within += [thing.__func__, thing.__self__]
    if isinstance(thing, (list, tuple)):
        within += thing
    if isinstance(thing, Mapping):
        within += thing.values()
    if _is_own(thing):
        within += parts_of(thing)
    for each in within:
        yield from _inside(each, seen)
