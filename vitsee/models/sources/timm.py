"""timm's models with their weights: from a local file, from vitsee itself, from the hub, or random."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitsee.errors import UserError, expanded
from vitsee.models import cards
from vitsee.models.cards import Card
from vitsee.models.fitting import Taken, classifiers, fill
from vitsee.models.hub import REMEDY, fetched, weights_in
from vitsee.models.resampling import place_positions, resampled
from vitsee.models.sources.found import Found, nonfinite
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

if TYPE_CHECKING:
    from torch import nn

    from vitsee.options import ModelOptions

log = logging.getLogger(__name__)

EMBEDDED = Path(__file__).parents[2] / "weights"


def load(model: ModelOptions, weights: bool = True) -> Found:
    """Return the model. Raises UserError if its weights are not available.

    weights=False: on torch's meta device, with shapes but no values.
    """
    if not weights:
        net = skeleton(model)
        refuse_unrunnable(model, net.eval(), data_config(net)["input_size"])
        return Found(net, data_config(net), "none")
    if model.checkpoint_key is not None and model.checkpoint is None:
        raise UserError(f"model.checkpoint_key={model.checkpoint_key} needs model.checkpoint=PATH")
    taken = Taken()
    if model.checkpoint is not None:
        path = expanded(model.checkpoint)
        net, taken = _from_file(model, path)
        source = f"checkpoint {path}"
        if not {"mean", "std"} <= model.overlay.keys() and cards.beside(path) is None:
            _tell_preparation(path, model, data_config(net))
    elif model.random:
        net, source = _random(model)
    elif model.embedded:
        net, source = _from_package(model), "ship with vitsee"
    else:
        net, source, taken = _from_hub(model)
    return Found(net, data_config(net), source, _card(model), taken)


def _random(model: ModelOptions) -> tuple[nn.Module, str]:
    """Return the model with random weights: those that its training began with, if there is a card."""
    from vitsee.models.initial import initialise  # imports torch

    net, source = build(model), f"random, seed {model.seed}"
    card = cards.beside(shipped(model.name)) if model.embedded else None
    if model.drawn_as is not None:
        card = cards.beside(expanded(model.drawn_as))
        if card is None:
            log.info("%s has no card of `vitsee train`: random weights are timm's", model.drawn_as)
    if card is None:
        return net, source
    recipe = card.recipe
    initialise(net, recipe.get("positions", "noise"), recipe.get("pos_embed_std"))
    return net, f"{source}, drawn as those that the training of {card.name} began with"


def _tell_preparation(path: Path, model: ModelOptions, data: dict[str, Any]) -> None:
    """Log how images are prepared for weights from elsewhere, which a file of weights does not say."""
    mean, std = (f"[{', '.join(f'{x:g}' for x in data[name])}]" for name in ("mean", "std"))
    log.info(
        "%s: images are prepared as for timm's %s: mean %s, std %s, crop %g; if these weights were trained with "
        "others, set model.overlay.mean, model.overlay.std and model.overlay.crop_pct",
        *(path.name, model.timm, mean, std, data["crop_pct"]),
    )


def _card(model: ModelOptions) -> Card | None:
    if model.checkpoint is not None:
        return cards.beside(expanded(model.checkpoint))
    return cards.beside(shipped(model.name)) if model.embedded and model.pretrained else None


def shipped(name: str) -> Path:
    """Return the path for a model's weights among those that ship with vitsee, whether or not they exist."""
    return EMBEDDED / f"{name}.safetensors"


def _from_package(model: ModelOptions) -> nn.Module:
    """Return the model with the weights that ship with vitsee. Raises UserError if there are none."""
    path = shipped(model.name)
    if not path.is_file():
        there = ", ".join(sorted(file.stem for file in EMBEDDED.glob("*.safetensors")))
        raise UserError(
            f"no weights called {model.name} ship with vitsee (available: {there}). They are found by the model's "
            f"name: leave model.name out, or give a file of weights with model.checkpoint=PATH (vitsee train makes "
            f"one); a YAML file that extends one of these models also needs checkpoint: PATH or pretrained: false"
        )
    return _from_file(model, path)[0]


def with_published_weights(model: ModelOptions) -> nn.Module:
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


def without_classifier(model: ModelOptions, path: Path) -> nn.Module:
    """Return the architecture with all weights of a file except the classifier's, which are random.

    Raises UserError if the other weights do not fit.
    """
    net = build(model)
    fill(net, path, model.checkpoint_key, keep=classifier_names(net))
    return net


def _from_hub(model: ModelOptions) -> tuple[nn.Module, str, Taken]:
    """Return the model with published weights, from a local folder, from the cache, or downloaded."""
    # create_model calls this to choose among a file, an address and the hub; there is no public counterpart.
    from timm.models._builder import _resolve_pretrained_source

    frame = skeleton(model)
    try:
        source, place = _resolve_pretrained_source(pretrained_cfg(frame))
    except Exception as error:
        raise UserError(
            f"model.overlay={model.overlay} matches no weights: {reason_of(error)}"
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
        place_positions(net, path)
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


def _with_weights(model: ModelOptions, path: Path) -> nn.Module:
    """Return the model with timm's weights from a file, and random weights where timm leaves some out."""
    from vitsee.models.undrawn import Undrawn

    with Undrawn():
        net = timm_model(model, path)
    return net if nonfinite(net) is None else timm_model(model, path)


def _from_file(model: ModelOptions, path: Path) -> tuple[nn.Module, Taken]:
    """Return the architecture with all its weights from a local file."""
    net = undrawn(model)
    return net, fill(net, path, model.checkpoint_key)
