"""Loads models with their weights: from a local file, from vitsee itself, from the hub, or random."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitsee.errors import UserError, expanded
from vitsee.models import cards
from vitsee.models.cards import Card
from vitsee.models.fitting import Taken, classifiers, fill
from vitsee.models.hub import REMEDY, fetched, weights_in
from vitsee.models.resampling import resampled
from vitsee.models.timm_architecture import (
    build,
    data_config,
    pretrained_cfg,
    reason_of,
    refuse_unrunnable,
    skeleton,
    timm_model,
    undrawn,
)
from vitsee.models.weight_files import line
from vitsee.options import Model
from vitsee.parallel.background import in_background

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn


log = logging.getLogger(__name__)

EMBEDDED = Path(__file__).parents[1] / "weights"


@dataclass(frozen=True)
class Loaded:
    """A model that is ready to be measured.

    label: its name in figures. net: in evaluation mode, without gradients, on the device; it takes
    normalised pixels. data: timm's data configuration (input_size, interpolation, mean, std, crop_pct,
    crop_mode). weights: their source, for people. hashing: becomes their digest. card: the
    model card next to the weights, if there is one. taken: which parts of the checkpoint were used.
    """

    name: str
    label: str
    net: nn.Module
    data: dict[str, Any]
    weights: str
    hashing: Future[str]
    card: Card | None
    taken: Taken = field(default_factory=Taken)

    @property
    def digest(self) -> str:
        """SHA-256 of names and values."""
        return self.hashing.result()


def load(model: Model, device: str | torch.device, name: str | None = None) -> Loaded:
    """Return the model with its weights. Raises UserError if these weights are not available.

    name: replaces the model's own name if that is ambiguous.
    """
    import torch

    name, taken = name or model.name, Taken()
    random = not model.pretrained and model.checkpoint is None
    if model.checkpoint_key is not None and model.checkpoint is None:
        raise UserError(f"model.checkpoint_key={model.checkpoint_key} needs model.checkpoint=PATH")
    if model.checkpoint is not None:
        path = expanded(model.checkpoint)
        net, taken = _from_file(model, path)
        weights = f"checkpoint {path}"
    elif random:
        net, weights = build(model), f"random, seed {model.seed}"
    elif model.embedded:
        net, weights = _from_package(model), "ship with vitsee"
    else:
        net, weights, taken = _from_hub(model)
    _refuse_nonfinite(model, net)
    hashing = in_background(digest, net.state_dict())
    net = net.eval().requires_grad_(False).to(device)
    data = data_config(net)
    refuse_unrunnable(model, net, data["input_size"])
    return Loaded(
        name=name,
        label=f"{name} (random weights)" if random else name,
        # Channels last is how convolutions are computed fastest, on CPUs and on GPUs.
        net=net.to(memory_format=torch.channels_last),
        data=data,
        weights=weights,
        hashing=hashing,
        card=_card(model),
        taken=taken,
    )


def _card(model: Model) -> Card | None:
    if model.checkpoint is not None:
        return cards.beside(expanded(model.checkpoint))
    return cards.beside(shipped(model.name)) if model.embedded and model.pretrained else None


def shipped(name: str) -> Path:
    """Return the path where a model's weights ship with vitsee, whether or not they exist."""
    return EMBEDDED / f"{name}.safetensors"


def _from_package(model: Model) -> nn.Module:
    """Return the model with the weights that ship with vitsee. Raises UserError if there are none."""
    path = shipped(model.name)
    if not path.is_file():
        there = ", ".join(sorted(file.stem for file in EMBEDDED.glob("*.safetensors")))
        raise UserError(
            f"the weights of model={model.name} do not ship with vitsee yet (available: {there}); train them: "
            f"scripts/zoo.sh {model.name}"
        )
    return _from_file(model, path)[0]


def digest(state: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of the names, types, shapes and values of a state dict, as hex."""
    import torch

    total = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        values = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        total.update(values.numpy().data)
    return total.hexdigest()


def _refuse_nonfinite(model: Model, net: nn.Module) -> None:
    name = _nonfinite(net)
    if name:
        raise UserError(f"the weights of {model.name} are damaged: {name} contains NaN or Inf")


def _nonfinite(net: nn.Module) -> str | None:
    """Return the name of a weight with NaN or Inf, which its extremes show; None if there is none."""
    for name, tensor in net.state_dict().items():
        if tensor.is_floating_point() and tensor.numel():
            lowest, highest = tensor.aminmax()
            if not (lowest.isfinite() and highest.isfinite()):
                return name
    return None


def published(model: Model) -> nn.Module:
    """Return the model with its published weights, on the CPU. Raises UserError if they are not available."""
    return _from_hub(model)[0]


def classifier_names(net: nn.Module) -> list[str]:
    """Return the names of the modules that turn features into logits; empty if there is no classifier."""
    there = dict(net.named_modules())
    return [
        name
        for name in classifiers(net)
        if name in there and any(True for _ in there[name].parameters())
    ]


def without_classifier(model: Model, path: Path) -> nn.Module:
    """Return the architecture with all weights of a file except the classifier's, which are random.

    Raises UserError if the other weights do not fit.
    """
    net = build(model)
    fill(net, path, model.checkpoint_key, keep=classifier_names(net))
    return net


def _from_hub(model: Model) -> tuple[nn.Module, str, Taken]:
    """Return the model with published weights, from a local folder, from the cache, or downloaded."""
    from timm.models._builder import _resolve_pretrained_source

    frame = skeleton(model)
    try:
        source, place = _resolve_pretrained_source(pretrained_cfg(frame))
    except Exception as error:
        raise UserError(
            f"model.overlay={model.overlay} does not lead to any weights: {reason_of(error)}"
        ) from error
    if not source:
        raise UserError(
            f"there are no published weights for {model.timm}; name a local file with "
            f"model.checkpoint=PATH, or use random weights with model.pretrained=false"
        )
    if source == "local-dir":
        path = weights_in(Path(place))
        net, taken = _from_file(model, path)
        return net, f"{source} {path}", taken
    path = fetched(model, source, place)
    try:
        net = _with_weights(model, path)
        taken = Taken(model.timm, resampled=resampled(net, path))
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"loading the weights of {model.timm} failed ({line(error)}); {REMEDY}"
        ) from error
    if net.num_classes != pretrained_cfg(net)["num_classes"]:
        log.warning("warning: the classifier of %s is random: num_classes was changed", model.name)
    taken.say()
    return net, f"{source} {place}", taken


def _with_weights(model: Model, path: Path) -> nn.Module:
    """Return the model with timm's weights from a file, and random ones where timm leaves some out of it."""
    from vitsee.models.undrawn import Undrawn

    with Undrawn():
        net = timm_model(model, path)
    return net if _nonfinite(net) is None else timm_model(model, path)


def _from_file(model: Model, path: Path) -> tuple[nn.Module, Taken]:
    """Return the architecture with all its weights from a local file."""
    net = undrawn(model)
    return net, fill(net, path, model.checkpoint_key)
