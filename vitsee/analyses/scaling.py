"""Accuracy against training images and training compute (Dosovitskiy et al. 2021, Figs. 3 and 5)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import pandas as pd

from vitsee import plotting
from vitsee.analysis import Analysis, Labels, Layer, View, register
from vitsee.errors import UserError
from vitsee.io.tidy import Error, Table
from vitsee.lazy import torch
from vitsee.names import common_data, of_lines

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor

    from vitsee.sums import Sums


@register
@dataclass(kw_only=True)
class Scaling(Analysis):
    """How accurate is the model, given its training images and training compute?

    Top-1 accuracy of the model's own classifier. The training images and compute come from the model card
    that `vitsee train` writes next to the weights; without one they are NaN.
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
                f"analysis.layers={self.layers} selects {len(layers['model'])} layers; use logits"
            )

    def select(self, stage: int) -> None:
        """Draw the images as usual. Raises UserError if the model has a different number of classes."""
        outputs = math.prod(self.setting.layers["model"][0].shape)
        classes = len(self.setting.images[stage].classes)
        if outputs != classes:
            raise UserError(
                f"{self.setting.names['model']} has {outputs} outputs, but the images have {classes} "
                f"classes, so its accuracy cannot be measured; choose the data set it was trained on"
            )

    def reduce(self, layer: Layer, output: Tensor) -> Tensor:
        """(N, classes, ...) logits -> (N,) predicted classes; -1 where a logit is not finite."""
        logits = output.flatten(1)
        return logits.argmax(1).masked_fill(~logits.isfinite().all(1), -1)

    def observe(self, view: View) -> dict[str, Tensor]:
        """Numbers of images, of correct predictions, and of undefined predictions."""
        (predicted,) = view.model.values()
        correct = (predicted == view.labels).double().masked_fill(view.labels < 0, torch.nan)
        counts = (predicted == predicted, correct, predicted < 0)
        images, right, undefined = (count.double().sum() for count in counts)
        return {"images": images, "right": right, "undefined": undefined}

    def tables(self, sums: Sums) -> dict[str, pd.DataFrame]:
        """One row: model, family, train_images, images_seen, training_flops, accuracy, se.

        family: the same for models that differ only in their training. se: binomial, over the images.
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
        warnings = []
        if "model" not in self.setting.cards:
            warnings.append(
                f"{self.setting.names['model']} has no model card next to its weights: train_images, images_seen and "
                f"training_flops are NaN, and figures show only its accuracy"
            )
        if sums.terms["right"].isnan():
            warnings.append("some images have no label; the accuracy is NaN")
        if sums.terms["undefined"]:
            warnings.append(
                f"the logits of {int(sums.terms['undefined'])} images are not finite; the accuracy is NaN"
            )
        return warnings

    def caption(self, figure: str, tables: dict[str, pd.DataFrame]) -> str:
        return "Bars: one standard error over images to either side"

    def joined(
        self, results: Sequence[tuple[dict[str, pd.DataFrame], Labels]]
    ) -> dict[str, Figure]:
        """Accuracy by model, and, on the same images, by training images and FLOPs, one line per model family."""
        each = [labels for _, labels in results]
        named = zip(results, of_lines(each), strict=True)
        table = pd.concat([tables["scaling"].assign(model=name) for (tables, _), name in named])
        if not common_data(each):
            return {"scaling_accuracy": plotting.accuracy_plots.accuracies(table, "images")}
        data = each[0].dataset
        return {
            "scaling_accuracy": plotting.accuracy_plots.accuracies(table, data),
            "scaling_images": plotting.accuracy_plots.scaling(table, data, "train_images"),
            "scaling_compute": plotting.accuracy_plots.scaling(table, data, "training_flops"),
        }
