"""Accuracy against the images and the compute of the training (Dosovitskiy et al. 2021, Figs. 3 and 5)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import pandas as pd

from vitsee.analysis import Analysis, Labels, Layer, View, register
from vitsee.errors import UserError
from vitsee.io.tidy import Error, Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor

    from vitsee.sums import Sums


@register
@dataclass(kw_only=True)
class Scaling(Analysis):
    """How accurate is the model, for the images and the compute that it was trained with?

    Top-1 accuracy of the model's own classifier. What the training cost is read from the model card that
    `vitsee train` writes beside the weights; without one it is NaN.
    """

    models: ClassVar[tuple[int, ...]] = (1,)
    default_images: ClassVar[int] = 4000
    standard_errors: ClassVar[bool] = True
    reads_cards: ClassVar[bool] = True

    columns: ClassVar[dict[str, Table]] = {
        "scaling": Table(
            {"model": str, "family": str}
            | dict.fromkeys(("train_images", "images_seen", "training_flops", "accuracy"), float)
            | {"se": Error}
        )
    }

    name: str = "scaling"
    layers: Any = "logits"

    def check(self, layers: dict[str, list[Layer]]) -> None:
        if len(layers["model"]) > 1:
            raise UserError(
                f"analysis.layers={self.layers} are {len(layers['model'])} layers; use logits"
            )

    def select(self, stage: int) -> None:
        """The images are drawn as usual. Raises UserError if their classes are not those of the model."""
        outputs = math.prod(self.setting.layers["model"][0].shape)
        classes = len(self.setting.images[stage].classes)
        if outputs != classes:
            raise UserError(
                f"{self.setting.names['model']} has {outputs} outputs, but the images are of {classes} "
                f"classes: its accuracy cannot be measured on them; choose the data set it was trained for"
            )

    def reduce(self, layer: Layer, output: Tensor) -> Tensor:
        """(N, classes, ...) logits -> (N,) class with the largest; -1 where one is not finite."""
        logits = output.flatten(1)
        return logits.argmax(1).masked_fill(~logits.isfinite().all(1), -1)

    def observe(self, view: View) -> dict[str, Tensor]:
        """How many images there are, how many are classified right, and how many not at all."""
        import torch

        (found,) = view.model.values()
        counts = (found == found, found == view.labels, found < 0)
        images, right, undefined = (count.sum().to(torch.float64) for count in counts)
        return {"images": images, "right": right, "undefined": undefined}

    def tables(self, sums: Sums) -> dict[str, pd.DataFrame]:
        """scaling: one row: model, family, train_images, images_seen, training_flops, accuracy, se.

        family: models that differ in their training alone have the same. se: binomial, over the images.
        """
        images, right = float(sums.terms["images"]), float(sums.terms["right"])
        accuracy = math.nan if sums.terms["undefined"] else right / images
        model, card = self.setting.names["model"], self.setting.cards.get("model")
        unknown = dict.fromkeys(("train_images", "images_seen", "training_flops"), math.nan)
        row = {
            "model": model,
            **(card.training if card else {"family": model, **unknown}),
            "accuracy": accuracy,
            "se": math.sqrt(accuracy * (1 - accuracy) / images),
        }
        return {"scaling": pd.DataFrame([row])}

    def warnings(self, sums: Sums) -> list[str]:
        found = []
        if "model" not in self.setting.cards:
            found.append(
                f"{self.setting.names['model']} has no model card beside its weights: train_images, images_seen and "
                f"training_flops are NaN, and figures show its accuracy alone"
            )
        if sums.terms["undefined"]:
            found.append(
                f"the logits of {int(sums.terms['undefined'])} images are not finite; the accuracy is NaN"
            )
        return found

    def figures(self, tables: dict[str, pd.DataFrame], labels: Labels) -> dict[str, Figure]:
        return self.joined([(tables, labels)])

    def joined(
        self, results: Sequence[tuple[dict[str, pd.DataFrame], Labels]]
    ) -> dict[str, Figure]:
        """Accuracy against training images, and against training FLOPs, a line a family of models."""
        from vitsee.plotting import line_plots

        table = pd.concat([tables["scaling"] for tables, _ in results])
        data = results[0][1].dataset
        return {
            "scaling_images": line_plots.scaling(table, data, ["train_images"]),
            "scaling_compute": line_plots.scaling(table, data, ["training_flops"]),
        }
