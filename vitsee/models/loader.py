"""Loads models from their sources, checks them, and prepares them for measuring."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from vitsee.errors import UserError
from vitsee.lazy import torch
from vitsee.models.cards import Card
from vitsee.models.fitting import Taken
from vitsee.models.outputs import tensor_of
from vitsee.models.preprocessing import described
from vitsee.models.sources import (
    function,
    open_clip,
    python,
    timm,
    torchvision,
    transformers,
)
from vitsee.models.sources.found import Found, Load, nonfinite
from vitsee.models.timm_architecture import refuse_unrunnable
from vitsee.models.weight_files import line
from vitsee.options import ModelOptions, Source
from vitsee.parallel.background import in_background

if TYPE_CHECKING:
    from torch import Tensor, nn

SOURCES: dict[Source, Load] = {
    Source.timm: timm.load,
    Source.torchvision: torchvision.load,
    Source.transformers: transformers.load,
    Source.open_clip: open_clip.load,
    Source.function: function.load,
    Source.python: python.load,
}
"""How models from each source are loaded."""


@dataclass(frozen=True)
class Loaded:
    """A model that is ready to be measured.

    label: its name in figures. net: in evaluation mode, without gradients, on the device; it takes
    normalised pixels. data: timm's data configuration (input_size, interpolation, mean, std, crop_pct,
    crop_mode), or input_size, mean, std and the model's own transform. weights: their source, for people to read.
    hashing: computes their digest. card: the model card next to the weights, if any. taken: which parts of
    the checkpoint were used. made_of: what else its numbers depend on.
    """

    name: str
    label: str
    net: nn.Module
    data: dict[str, Any]
    weights: str
    hashing: Future[str]
    card: Card | None
    taken: Taken = field(default_factory=Taken)
    made_of: list[str] = field(default_factory=list)

    @property
    def digest(self) -> str:
        """SHA-256 of names and values."""
        return self.hashing.result()

    @property
    def preprocessing(self) -> dict[str, Any]:
        """The data configuration, with a description of the transform that is the same in every process."""
        own = self.data.get("transform")
        return self.data | {"transform": described(own)} if own else self.data


def load(model: ModelOptions, device: str | torch.device, name: str | None = None) -> Loaded:
    """Return the model with its weights. Raises UserError if they are not available.

    name: replaces the model's own name if that is ambiguous.
    """
    name = name or model.name
    raw = SOURCES[model.source](model, True)
    _refuse_damaged(model, raw.net)
    tensors = {k: v for k, v in raw.net.state_dict().items() if isinstance(v, torch.Tensor)}
    hashing = in_background(digest, tensors)
    net = raw.net.eval().requires_grad_(False).to(device)
    check = refuse_unrunnable if model.source is Source.timm else _refuse_unrunnable
    check(model, net, raw.data["input_size"])
    return Loaded(
        name=name,
        label=f"{name} (random weights)" if model.random else name,
        # Convolutions are fastest with channels last, on CPUs and on GPUs.
        net=net.to(memory_format=torch.channels_last),
        data=raw.data,
        weights=raw.weights,
        hashing=hashing,
        card=raw.card,
        taken=raw.taken,
        made_of=raw.made_of,
    )


def frame(model: ModelOptions) -> Found:
    """Return the model for its structure only: its weights may be random, or have no values."""
    raw = SOURCES[model.source](model, False)
    raw.net.eval()
    return raw


def digest(state: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of the names, types, shapes and values of a state dict, as hex."""
    total = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        values = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        total.update(values.numpy().data)
    return total.hexdigest()


def _refuse_damaged(model: ModelOptions, net: nn.Module) -> None:
    name = nonfinite(net)
    if name:
        raise UserError(f"the weights of {model.name} are damaged: {name} contains NaN or Inf")


_SIZES = {
    Source.python: "; for a different size: vitsee.Model(net, input_size=(3, H, W))",
    Source.function: "; for a different size let the function return vitsee.Model(net, input_size=(3, H, W))",
    Source.torchvision: (
        "; images have the size of the weights' own transforms: for a different size, return "
        "vitsee.Model(net, input_size=(3, H, W)) from your own function (model=import)"
    ),
}
"""How to give a network images of a different size, by its source."""


def _refuse_unrunnable(model: ModelOptions, net: nn.Module, size: tuple[int, int, int]) -> None:
    """Raise UserError if the network does not run on images of its own size, or if two runs differ."""
    device = next((x.device for x in net.parameters()), torch.device("cpu"))
    image = torch.linspace(-1, 1, math.prod(size), device=device).view(1, *size)
    try:
        with torch.no_grad():
            one, again = (tensor_of(net(image)) for _ in range(2))
    except Exception as error:
        shape = " x ".join(map(str, size))
        raise UserError(
            f"{model.request} cannot run on images of {shape}: {type(error).__name__}: {line(error)}"
            f"{_SIZES.get(model.source, '')}"
        ) from error
    if (
        one is not None
        and again is not None
        and not torch.allclose(one, again, rtol=1e-3, atol=1e-3)
    ):
        raise UserError(
            f"{model.request} returns a different output each time it runs on the same image: something in "
            f"{type(net).__name__} is random even in evaluation mode"
        )
