"""What a network computes besides what its weights say: a digest of its modules and their settings."""

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
    "fused_attn",  # which of two equal formulas timm calls; the machine and the analysis decide
    "pretrained_cfg",  # where published weights lie and how images are prepared
    "default_cfg",
    "pretrained_cfg_overlay",
}
"""Attributes of modules that do not change what they compute in evaluation mode."""


def structure(net: nn.Module) -> str:
    """SHA-256, as hex, of the classes, settings and buffers of all modules, whatever the weights are.

    Two networks with equal weights differ here if they have other numbers of heads, windows, activations
    or epsilons. Settings are the public attributes of plain types; buffers that are not among the weights
    (position indices, masks, rotations) count by value.
    """
    total = hashlib.sha256()
    stored = net.state_dict().keys()
    for name, module in net.named_modules():
        kind = type(module)
        total.update(f"{name} {kind.__module__}.{kind.__qualname__}\n".encode())
        for key, value in sorted(vars(module).items()):
            if not key.startswith("_") and key not in _UNREAD:
                total.update(f" {key}={_told(value)}\n".encode())
    for name, buffer in net.named_buffers():
        if name not in stored:
            total.update(f"{name}={_told(buffer)}\n".encode())
    return total.hexdigest()


def _told(value: Any) -> str:
    """The value in words that are the same in every process; of other objects the class alone."""
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
        pairs = sorted((repr(key), _told(one)) for key, one in value.items())
        return "{{{}}}".format(", ".join(f"{key}: {one}" for key, one in pairs))
    if isinstance(value, (set, frozenset)):
        return "{{{}}}".format(", ".join(sorted(map(_told, value))))
    if isinstance(value, (list, tuple)):
        return "({})".format(", ".join(map(_told, value)))
    if isinstance(value, partial):
        return f"partial {_told(value.func)} {_told(value.args)} {_told(value.keywords)}"
    if isinstance(value, (type, FunctionType, BuiltinFunctionType)):
        return f"{value.__module__}.{value.__qualname__}"
    return f"{type(value).__module__}.{type(value).__qualname__}"
