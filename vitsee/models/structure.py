"""Digests of a network's modules and their settings, independent of its weights."""

from __future__ import annotations

import hashlib

from torch import nn

from vitsee.models.values import UNREAD, as_text


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
            if not key.startswith("_") and key not in UNREAD:
                total.update(f" {key}={as_text(value)}\n".encode())
    for name, buffer in net.named_buffers():
        if name not in stored:
            total.update(f"{name}={as_text(buffer)}\n".encode())
    return total.hexdigest()
