"""Initialises a model for fine-tuning: pretrained weights with a new classifier and resampled positions."""

from __future__ import annotations

from dataclasses import replace

from torch import nn

from vitsee.errors import UserError, expanded
from vitsee.models.sources import timm
from vitsee.options import ModelOptions

PRETRAINED = "pretrained"


def begin(model: ModelOptions, start: str) -> nn.Module:
    """Return the architecture with initial weights and a zero classifier (Dosovitskiy et al. 2021, 3.2).

    start: path of a checkpoint, name of a model that ships with vitsee, or `pretrained` for this model's
    published weights. timm interpolates position embeddings of a different resolution. Raises UserError if the
    weights are not available or do not fit the rest of the model.
    """
    shipped = timm.shipped(start)
    if start == PRETRAINED:
        net = timm.with_published_weights(replace(model, pretrained=True))
    else:
        net = timm.without_classifier(model, shipped if shipped.is_file() else expanded(start))
    _zero(net)
    return net


def _zero(net: nn.Module) -> None:
    classifiers = [net.get_submodule(name) for name in timm.classifier_names(net)]
    if not classifiers:
        raise UserError(f"{type(net).__name__} does not have a classifier to fine-tune")
    for classifier in classifiers:
        for parameter in classifier.parameters():
            nn.init.zeros_(parameter)
