"""Attention during training: how far each head of a ViT looks, and how similar nearby positions are."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from vitsee.errors import UserError
from vitsee.estimators.attention import Attention, attention_distance, uniform_distance
from vitsee.models import attention_hooks, embedding, timm_architecture
from vitsee.options import ModelOptions
from vitsee.setting import Layer


@dataclass(frozen=True)
class Gaze:
    """The attention layers of a model; empty if the model has no attention across the whole image."""

    layers: list[Layer]

    @classmethod
    def of(cls, model: ModelOptions) -> Gaze:
        net = timm_architecture.skeleton(model).eval()
        size = timm_architecture.data_config(net)["input_size"]
        try:
            return cls(attention_hooks.survey(net, size))
        except UserError:
            return cls([])

    def distances(self, net: nn.Module, pixels: Tensor) -> list[dict[str, float]]:
        """Return one row per head: block, head, and its mean attention distance relative to uniform attention."""
        found: dict[str, Tensor] = {}

        def keep(layer: Layer, attention: Attention) -> None:
            distance = attention_distance(attention, layer).mean(0)
            found[layer.name] = distance / uniform_distance(layer)

        handles = [
            handle
            for layer in self.layers
            for handle in attention_hooks.attach(net, layer, partial(keep, layer))
        ]
        try:
            with torch.inference_mode():
                net(pixels)
        finally:
            for handle in handles:
                handle.remove()
        return [
            {"block": block, "head": head, "distance": distance}
            for block, layer in enumerate(self.layers)
            for head, distance in enumerate(found[layer.name].tolist())
        ]


def near_minus_far(net: nn.Module) -> float:
    """Return the mean cosine of the embeddings of neighbouring positions minus the mean over all other pairs.

    NaN for a model without position embeddings.
    """
    try:
        cosines = embedding.cosines(embedding.position_embeddings(net))
    except UserError:
        return float("nan")
    rows, columns = (torch.arange(n) for n in cosines.shape[:2])
    steps = (rows[:, None, None, None] - rows[:, None]).abs() + (
        columns[:, None, None] - columns
    ).abs()
    return float(cosines[steps == 1].mean() - cosines[steps > 1].mean())
