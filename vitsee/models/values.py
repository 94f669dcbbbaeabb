"""Any Python value as text that is the same in every process, and whatever of the user's own code it depends on."""

from __future__ import annotations

import hashlib
import re
import sys
from argparse import Namespace
from collections import deque
from collections.abc import Mapping
from datetime import date, timedelta
from decimal import Decimal
from enum import Enum
from fractions import Fraction
from functools import partial
from pathlib import Path, PurePath
from types import (
    BuiltinFunctionType,
    CodeType,
    FunctionType,
    MethodType,
    ModuleType,
    SimpleNamespace,
)
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

LIBRARIES = (
    "builtins",
    "functools",
    "torch",
    "torchvision",
    "timm",
    "transformers",
    "open_clip",
    "PIL",
    "vitsee",
)
"""Packages whose versions identify their code."""
INSTALLED = {"site-packages", "dist-packages"}
"""Folders of installed packages, wherever they are: of an environment, of the system, of the user."""

UNREAD = {
    "training",
    "fused_attn",  # which of two equivalent formulas timm calls; depends on machine and analysis
    "pretrained_cfg",  # where to find published weights, and how images are preprocessed
    "default_cfg",
    "pretrained_cfg_overlay",
}
"""Attributes of modules that do not change what they compute in evaluation mode."""

HOOKS = ("_forward_pre_hooks", "_forward_hooks")
"""Attributes of modules with what runs before and after their forward pass."""
OF_TORCH = vars(nn.Module()).keys() | {"_is_torch_compile"}
"""Attributes that torch gives to every module."""

_VALUES = (range, slice, PurePath, re.Pattern, Decimal, Fraction, date, timedelta, np.generic)
"""Kinds of values that are described by their repr."""
_SHOWN = {"torchvision", "PIL"}
"""Libraries whose objects are described by their repr: transforms. A model's objects may show paths or devices."""
_CHANGING = {
    *("_io", "_random", "_thread", "asyncio", "concurrent", "contextvars", "io", "logging"),
    *("multiprocessing", "queue", "random", "socket", "subprocess", "tempfile", "threading"),
    "weakref",
}
"""Modules whose objects show what changes between processes, and nothing that a number depends on."""
_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")


def is_own(thing: Any) -> bool:
    """Return whether a class or function is of the user's project, not of an installed package."""
    module = getattr(thing, "__module__", None) or "builtins"
    top = module.split(".")[0]
    if top in LIBRARIES or top in sys.stdlib_module_names:
        return False
    file = getattr(sys.modules.get(module), "__file__", None)
    return file is None or INSTALLED.isdisjoint(Path(file).parts)


def as_text(value: Any) -> str:
    """Return the value as text that is the same in every process.

    Arrays count by content, and the user's own functions by their code, with what they enclose and the globals that
    they name. Objects of the user's own classes and networks count by their attributes, others by what they show of
    themselves, those of model libraries by their class. An object that comes again is shown by its number.
    """
    return _text(value, {}, ())


def _text(value: Any, shown: dict[int, tuple[int, Any]], within: tuple[int, ...]) -> str:
    """shown: the numbers of the objects so far, by id. within: the ids of the containers of this value."""

    def inner(part: Any) -> str:
        return _text(part, shown, (*within, id(value)))

    kind = type(value)
    name = f"{kind.__module__}.{kind.__qualname__}"
    if value is None or isinstance(value, (bool, int, float, complex, str, bytes, torch.dtype)):
        return repr(value)
    if isinstance(value, Enum):
        return str(value)
    if isinstance(value, _VALUES):
        return f"{name} {value!r}"
    if isinstance(value, Tensor):
        return _tensor(value)
    if isinstance(value, np.ndarray) and not value.dtype.hasobject:
        digest = hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest()
        return f"{value.dtype} {value.shape} {digest}"
    if id(value) in shown:
        return f"#{shown[id(value)][0]}"
    if id(value) in within:
        return "…"
    if isinstance(value, np.ndarray):
        return inner(value.tolist())
    if isinstance(value, Mapping):
        pairs = sorted((inner(key), inner(one)) for key, one in value.items())
        return "{{{}}}".format(", ".join(f"{key}: {one}" for key, one in pairs))
    if isinstance(value, (set, frozenset)):
        # each without numbers, which would depend on the order
        texts = sorted(_text(one, {}, (*within, id(value))) for one in value)
        return "{{{}}}".format(", ".join(texts))
    if isinstance(value, (list, tuple, deque)):
        return "({})".format(", ".join(map(inner, value)))
    if isinstance(value, partial):
        return f"partial {inner(value.func)} {inner(value.args)} {inner(value.keywords)}"
    if isinstance(value, MethodType):
        of = value.__self__  # a network that has the method counts by itself
        owner = type(of).__qualname__ if isinstance(of, nn.Module) else inner(of)
        return f"{inner(value.__func__)} of {owner}"
    if isinstance(value, CodeType):
        digest = hashlib.sha256(value.co_code).hexdigest()
        return f"{digest} {inner(value.co_consts)} {inner(value.co_names)}"
    if isinstance(value, (type, FunctionType, BuiltinFunctionType)):
        name = f"{value.__module__}.{value.__qualname__}"
        if not (isinstance(value, FunctionType) and is_own(value)):
            return name
        shown[id(value)] = len(shown), value  # kept, so that no other object gets its id
        return f"{name} {inner(value.__code__)} {inner(parts_of(value))}"
    if isinstance(value, (nn.Module, SimpleNamespace, Namespace)) or is_own(kind):
        shown[id(value)] = len(shown), value
        return f"{name} {inner(_attributes(value))}"
    top = kind.__module__.split(".")[0]
    unshown = top in ({*LIBRARIES} - _SHOWN) | _CHANGING
    if unshown or kind.__repr__ is object.__repr__:
        return name
    return f"{name} {shown_without_address(value)}"


def shown_without_address(value: Any) -> str:
    """Return the repr of an object without its address, which differs between processes."""
    return _ADDRESS.sub("", repr(value))


def _tensor(value: Tensor) -> str:
    if value.is_meta:
        return f"{value.dtype} {tuple(value.shape)}"
    content = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    digest = hashlib.sha256(content.numpy().data).hexdigest()
    return f"{value.dtype} {tuple(value.shape)} {digest}"


def parts_of(thing: Any) -> list[Any]:
    """Return what a function or an object of the user's own depends on.

    Of a function that is its defaults, what it encloses, and the globals that it names, apart from modules; of an
    object its attributes.
    """
    if not isinstance(thing, FunctionType):
        return list(_attributes(thing).values())
    enclosed = [cell.cell_contents for cell in thing.__closure__ or () if _is_filled(cell)]
    there = thing.__globals__
    named = [there[name] for name in sorted(names_in(thing.__code__) & there.keys())]
    named = [value for value in named if not isinstance(value, ModuleType)]
    return [thing.__defaults__, thing.__kwdefaults__, *enclosed, *named]


def _is_filled(cell: Any) -> bool:
    try:
        return cell.cell_contents is not cell
    except ValueError:  # a name that is not defined yet
        return False


def names_in(code: CodeType) -> set[str]:
    """Return the names that a function's code uses, and those of the functions in it."""
    within = (one for one in code.co_consts if isinstance(one, CodeType))
    return {*code.co_names}.union(*map(names_in, within))


def _attributes(thing: Any) -> dict[str, Any]:
    """The attributes that decide what an object does."""
    slots = [name for kind in type(thing).__mro__ for name in getattr(kind, "__slots__", ())]
    there = {name: getattr(thing, name) for name in slots if hasattr(thing, name)}
    there |= getattr(thing, "__dict__", {})
    if not isinstance(thing, nn.Module):
        return there
    hooks = {name: list(there[name].values()) for name in HOOKS}
    unread = UNREAD | (OF_TORCH - {"_parameters", "_buffers", "_modules"})
    return {name: value for name, value in there.items() if name not in unread} | hooks
