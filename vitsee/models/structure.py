"""Digests of a network's modules and their settings, independent of its weights."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from enum import Enum
from functools import partial
from types import BuiltinFunctionType, FunctionType
from typing import Any

import torch
from torch import Tensor, nn

_UNREAD = {
    "training",
    "fused_attn",  # which of two equivalent formulas timm calls; depends on machine and analysis
    "pretrained_cfg",  # where to find published weights, and how images are preprocessed
    "default_cfg",
    "pretrained_cfg_overlay",
}
"""Attributes of modules that do not change what they compute in evaluation mode."""


def structure(net: nn.Module) -> str:
    """Return the SHA-256, as hex, of the classes, settings and buffers of all modules, but not of the weights.

    Two networks with equal weights get different digests if their numbers of heads, windows, activations or
    epsilons differ. Settings are public attributes of plain types. Buffers outside the state dict (position indices,
    masks, rotations) count by value.
    """
    total = hashlib.sha256()
    stored = net.state_dict().keys()
    for name, module in net.named_modules():
        kind = type(module)
        total.update(f"{name} {kind.__module__}.{kind.__qualname__}\n".encode())
        for key, value in sorted(vars(module).items()):
            if not key.startswith("_") and key not in _UNREAD:
                total.update(f" {key}={as_text(value)}\n".encode())
    for name, buffer in net.named_buffers():
        if name not in stored:
            total.update(f"{name}={as_text(buffer)}\n".encode())
    return total.hexdigest()


def as_text(value: Any) -> str:
    """Return the value as text that is the same in every process; for other objects, only the class."""
    if isinstance(value, Tensor):
        if value.is_meta:
            return f"{value.dtype} {tuple(value.shape)}"
        content = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        digest = hashlib.sha256(content.numpy().data).hexdigest()
        return f"{value.dtype} {tuple(value.shape)} {digest}"
    if value is None or isinstance(value, (bool, int, float, complex, str, bytes, torch.dtype)):
        return repr(value)
    if isinstance(value, Enum):
        return str(value)
    if isinstance(value, Mapping):
        pairs = sorted((repr(key), as_text(one)) for key, one in value.items())
        return "{{{}}}".format(", ".join(f"{key}: {one}" for key, one in pairs))
    if isinstance(value, (set, frozenset)):
        return "{{{}}}".format(", ".join(sorted(map(as_text, value))))
    if isinstance(value, (list, tuple)):
        return "({})".format(", ".join(map(as_text, value)))
    if isinstance(value, partial):
        return f"partial {as_text(value.func)} {as_text(value.args)} {as_text(value.keywords)}"
    if isinstance(value, (type, FunctionType, BuiltinFunctionType)):
        return f"{value.__module__}.{value.__qualname__}"
    return f"{type(value).__module__}.{type(value).__qualname__}"
