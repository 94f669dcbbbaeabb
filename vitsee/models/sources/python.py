"""Networks passed from Python, alone or as a `vitsee.Model`."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

from vitsee import given
from vitsee.errors import UserError
from vitsee.lazy import torch
from vitsee.models import preprocessing
from vitsee.models.code import own_code
from vitsee.models.sources.found import Found
from vitsee.models.sources.tokens import say_tokens
from vitsee.models.weight_files import line

if TYPE_CHECKING:
    from torch import nn

    from vitsee.options import ModelOptions


def load(model: ModelOptions, weights: bool = True) -> Found:
    """Return the model that was passed to `vitsee.run_experiment`. Raises UserError if there is none."""
    return found(given.what_is(model.id or "model"), "given from Python")


def found(thing: Any, weights: str) -> Found:
    """Return a network, or a vitsee.Model, like any source. Raises UserError for anything else.

    The network is copied, so that its owner can continue to train it.
    """
    asked = given.Model(thing) if isinstance(thing, torch.nn.Module) else thing
    if not isinstance(asked, given.Model) or not isinstance(asked.net, torch.nn.Module):
        raise UserError(
            f"a model is an nn.Module or vitsee.Model(net, name=…), not {type(getattr(asked, 'net', asked)).__name__}"
        )
    net = _copy(_unwrapped(asked.net))
    if asked.transform is None:
        data = preprocessing.data_config(asked.input_size, asked.mean, asked.std)
    else:
        data = preprocessing.measured(
            asked.transform, f"vitsee.Model {asked.name}", asked.mean, asked.std
        )
    code = own_code(net)
    say_tokens(net, data["input_size"])
    return Found(net, data, weights, made_of=code)


def _unwrapped(net: nn.Module) -> nn.Module:
    """Return the network inside a wrapper: compiled and parallel wrappers hide its modules from hooks."""
    from torch.nn.parallel import DataParallel, DistributedDataParallel

    inner = getattr(net, _COMPILED, None)
    if isinstance(net, (DataParallel, DistributedDataParallel)):
        inner = net.module
    return net if inner is None else _unwrapped(inner)


_COMPILED = "_orig_mod"
"""Where torch.compile keeps the module that it compiled."""


def _copy(net: nn.Module) -> nn.Module:
    """Return an uncompiled copy in float32. Raises UserError for a network whose modules cannot be read."""
    from torch.nn.parameter import is_lazy

    kind = type(net).__name__
    for name, module in net.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            what = f"its {name} is" if name else "it is"
            raise UserError(
                f"{kind}: {what} TorchScript, which runs without hooks, so its layers cannot be read; give the module "
                f"that it was made from"
            )
    for name, tensor in (*net.named_parameters(), *net.named_buffers()):
        if is_lazy(tensor):
            raise UserError(
                f"{kind}: {name} has no shape yet; run the network once on an image, then give it to vitsee"
            )
    try:
        twin = copy.deepcopy(net).float()
    except Exception as error:
        raise UserError(
            f"{kind} cannot be copied ({type(error).__name__}: {line(error)}); vitsee measures a copy, so that the "
            f"network stays unchanged. Outputs that it keeps in attributes prevent this: detach or delete them"
        ) from error
    for module in list(twin.modules()):
        for name, child in list(module.named_children()):
            if hasattr(child, _COMPILED):
                setattr(module, name, getattr(child, _COMPILED))
    return twin
