"""Predictions and representations when patches are dropped or shuffled (Naseer et al. 2021, sections 3.1 and 3.3)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pandas as pd

from vitsee import plotting
from vitsee.analysis import Analysis, Labels, Layer, View, register
from vitsee.errors import UserError, unknown
from vitsee.estimators.attention import Attention, reached, require_same_tokens
from vitsee.estimators.changed_images import drop, dropped_first, shuffle, shuffled
from vitsee.io.tidy import Error, Kind, Table
from vitsee.lazy import torch
from vitsee.names import common_data, of_lines

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor

    from vitsee.sums import Sums

CHANGES = ("drop_random", "drop_salient", "drop_other", "shuffle")
SALIENT = ("drop_salient", "drop_other")
_COLUMNS: dict[str, Kind] = {
    **{"change": CHANGES, "strength": float, "accuracy": float, "agreement": float},
    **{"cosine": float, "se": Error, "accuracy_se": float, "cosine_se": float},
}
_TITLES = {
    "drop_random": "Patches dropped at random",
    "drop_salient": "Most salient patches dropped first",
    "drop_other": "Least salient patches dropped first",
    "shuffle": "Tiles shuffled",
}


@register
@dataclass(kw_only=True)
class Robustness(Analysis):
    """Does a model still see the same when patches of the image are dropped or shuffled?

    Each image is changed in every way and at every strength, and run through the model again: accuracy, agreement
    with the prediction for the unchanged image, and the cosine between the two representations. Masks and
    shuffles depend only on the image's position in the plan and on `seed`, so they are the same for all models.
    The attention rollout of the second model decides which patches are salient.
    """

    models: ClassVar[tuple[int, ...]] = (1, 2)
    reads: ClassVar[tuple[str, str]] = ("outputs", "attention and pooling")
    default_images: ClassVar[int] = 512
    default_batch_size: ClassVar[int] = 64
    version: ClassVar[int] = 2
    standard_errors: ClassVar[bool] = True

    columns: ClassVar[dict[str, Table]] = {
        "robustness": Table(_COLUMNS, keys=("change", "strength"))
    }

    name: str = "robustness"
    layers: Any = field(default_factory=lambda: ["last", "logits"])
    other_layers: Any = field(default_factory=lambda: ["blocks.*.attn"])
    changes: Any = None
    """Any of drop_random, drop_salient, drop_other and shuffle; by default all that are possible."""
    drops: Any = field(default_factory=lambda: [0.1, 0.25, 0.5, 0.75, 0.9])
    """Fractions of the patches to drop."""
    shuffles: Any = field(default_factory=lambda: [2, 4, 7, 14])
    """Numbers of rows and columns of the shuffled tiles."""
    grid: int = 14
    """Number of rows and columns of droppable patches, which are the image's, not the model's."""
    seed: int = 0
    """Seed of random masks and shuffles."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.changes is not None:
            _require("changes", self.changes, "[drop_random,shuffle]", lambda c: isinstance(c, str))
            for change in self.changes:
                if change not in CHANGES:
                    raise unknown(f"analysis.changes: no {change}", change, CHANGES, "there are")
                if self.changes.count(change) > 1:
                    raise UserError(f"analysis.changes has {change} twice; name each change once")
        _require(
            "drops", self.drops, "[0.25,0.5] of fractions from 0 to 1",
            lambda s: isinstance(s, (int, float)) and not isinstance(s, bool) and 0 <= s <= 1,
        )  # fmt: skip
        _require(
            "shuffles", self.shuffles, "[2,4] of whole numbers from 1",
            lambda k: isinstance(k, int) and not isinstance(k, bool) and k >= 1,
        )  # fmt: skip
        if self.grid < 1:
            raise UserError(f"analysis.grid must be at least 1, got {self.grid}")
        if self.seed < 0:
            raise UserError(f"analysis.seed must be at least 0, got {self.seed}")

    def check(self, layers: dict[str, list[Layer]]) -> None:
        require_same_tokens(layers.get("other", []), self.name, "analysis.other_layers")
        asked = [change for change in self.changes or [] if change in SALIENT]
        if asked and "other" not in layers:
            raise UserError(
                f"analysis.changes: {asked[0]} needs a second model, whose attention decides which patches are "
                f"salient, the same for all models: add model@other=NAME, a ViT (it may be the model itself)"
            )
        if len(layers["model"]) != 2 or len(layers["model"][1].shape) != 1:
            names = ", ".join(layer.name for layer in layers["model"])
            raise UserError(
                f"analysis.layers must select a representation and, after it, the logits, such as "
                f"[last,logits]; it selects {names}"
            )
        if layers["model"][1].shape == (1,):
            raise UserError(
                f"analysis=robustness: {layers['model'][1].name} has one output, so every prediction is the same; "
                f"it needs a classifier with two or more"
            )

    def reduce(self, layer: Layer, output: Any) -> Tensor:
        """One vector per image: the class token, the mean over patches or locations, or the logits.

        For attention, its weights averaged over heads, (N, tokens, tokens).
        """
        if isinstance(output, Attention):
            return torch.cat([weights.mean(1) for _, weights in output.weights()])
        if len(layer.shape) == 1:
            return output.float()
        tokens = layer.sequence(output).float()
        if layer.class_token and layer.prefix:
            return tokens[:, 0]
        return tokens[:, layer.prefix or 0 :].mean(1)

    def observe(self, view: View) -> dict[str, Tensor]:
        """Sums over images, one per row of the table: correct and agreeing predictions, cosines, squares."""
        rows = []
        clean = _outcome(view.model)
        for change, strength in self._rows():
            predicted, features = clean
            if strength in self._strengths(change):
                changed = self._changed(view, change, strength)
                predicted, features = _outcome(view.again("model", changed))
            cosine = torch.nn.functional.cosine_similarity(features, clean[1], dim=1)
            right, agree = predicted == view.labels, (predicted == clean[0]) & (predicted >= 0)
            undefined = (predicted < 0) | ~cosine.isfinite()
            correct = right.double().masked_fill(view.labels < 0, torch.nan)  # without a label
            values = [correct, agree, cosine, cosine.square(), undefined]
            rows.append(torch.stack([value.double().sum() for value in values]))
        names = ("right", "agree", "cosine", "squares", "undefined")
        terms = dict(zip(names, torch.stack(rows).unbind(1), strict=True))
        return terms | {"images": rows[0].new_tensor(view.images)}

    def _rows(self) -> Iterator[tuple[str, float]]:
        """Change and strength of each row; every change begins with the unchanged image."""
        there = CHANGES if "other" in self.setting.layers else ("drop_random", "shuffle")
        for change in self.changes or there:
            unchanged = 1 if change == "shuffle" else 0
            for strength in sorted({unchanged, *self._strengths(change)}):
                yield change, strength

    def _strengths(self, change: str) -> list[float]:
        """The strengths at which images run through the model again."""
        return self.shuffles if change == "shuffle" else self.drops

    def _changed(self, view: View, change: str, strength: float) -> Tensor:
        """The model's pixels after this change."""
        pixels = view.pixels["model"]
        self._require_pixels(*pixels.shape[2:])
        if change == "shuffle":
            orders = shuffled(int(strength), view.positions, self.seed).to(pixels.device)
            return shuffle(pixels, int(strength), orders)
        saliency = None
        if change in SALIENT:
            weights = list(view.by_role["other"].values())
            saliency = reached(weights, self.setting.layers["other"])[:, None]
            saliency = torch.nn.functional.adaptive_avg_pool2d(saliency, self.grid).flatten(1)
            saliency = saliency if change == "drop_salient" else -saliency
        order = dropped_first(self.grid, view.positions, self.seed, saliency).to(pixels.device)
        mean, deviation = view.normalisation["model"]
        black = [-m / d for m, d in zip(mean, deviation, strict=True)]
        return drop(pixels, order, self.grid, float(strength), black)

    def _require_pixels(self, height: int, width: int) -> None:
        """Raise UserError if a patch or tile would be smaller than a pixel."""
        side = min(height, width)
        for option, asked in (("grid", self.grid), ("shuffles", max(self.shuffles))):
            if asked > side:
                raise UserError(
                    f"analysis.{option}: {asked} rows, but the images have {height} x {width} pixels; "
                    f"use {side} or fewer"
                )

    @property
    def _labelled(self) -> bool:
        """Whether the model's outputs are the classes of the images."""
        outputs = self.setting.layers["model"][1].shape[0]
        return outputs == len(self.setting.images[-1].classes)

    def tables(self, sums: Sums) -> dict[str, pd.DataFrame]:
        """One row per change and strength: change, strength, accuracy, agreement, cosine, se, accuracy_se, cosine_se.

        strength: fraction of dropped patches, or rows of tiles; 0 and 1 are the unchanged image. accuracy: NaN
        if the model's outputs are not the classes of the images. se: of the agreement.
        """
        terms = {name: term.cpu().numpy() for name, term in sums.terms.items()}
        images = float(terms["images"])
        broken = terms["undefined"] > 0
        accuracy, agreement, cosine = (
            np.where(broken, np.nan, terms[name] / images) for name in ("right", "agree", "cosine")
        )
        if not self._labelled:
            accuracy = np.full_like(accuracy, np.nan)
        variance = np.clip(terms["squares"] / images - cosine**2, 0, None)
        change, strength = zip(*self._rows(), strict=True)
        table = pd.DataFrame(
            {
                "change": change,
                "strength": np.array(strength, float),
                "accuracy": accuracy,
                "agreement": agreement,
                "cosine": cosine,
                "se": np.sqrt(agreement * (1 - agreement) / images),
                "accuracy_se": np.sqrt(accuracy * (1 - accuracy) / images),
                "cosine_se": np.sqrt(variance / (images - 1 if images > 1 else np.nan)),
            }
        )
        return {"robustness": table}

    def warnings(self, sums: Sums) -> list[str]:
        warnings = []
        if not self._labelled:
            warnings.append(
                f"{self.setting.names['model']} has {self.setting.layers['model'][1].shape[0]} outputs, the images "
                f"have {len(self.setting.images[-1].classes)} classes: accuracy is NaN, agreement is not"
            )
        elif sums.terms["right"].isnan().any():
            warnings.append("some images have no label: accuracy is NaN, agreement is not")
        broken = int(sums.terms["undefined"].max())
        if broken:
            warnings.append(f"the outputs for {broken} images are not finite; their rows are NaN")
        return warnings

    def caption(self, figure: str, tables: dict[str, pd.DataFrame]) -> str:
        return "Bars: one standard error over images to either side"

    def joined(
        self, results: Sequence[tuple[dict[str, pd.DataFrame], Labels]]
    ) -> dict[str, Figure]:
        """Accuracy (agreement, without labels) and cosine by strength: one plot per change, one line per model."""
        of_each = [labels for _, labels in results]
        named = zip(results, of_lines(of_each), strict=True)
        table = pd.concat([tables["robustness"].assign(model=name) for (tables, _), name in named])
        known = bool(table["accuracy"].notna().all())
        shares = ["accuracy", "accuracy_se", "agreement", "se"]
        table[shares] *= 100
        measures = {
            "": ("accuracy", "Accuracy (%)", 100)
            if known
            else ("agreement", "Agreement with unchanged image (%)", 100),
            "_cosine": ("cosine", "Cosine of the representations", 1),
        }
        tiles = table["change"] == "shuffle"
        some = {
            "robustness": (table, "Fraction, or rows of tiles"),
            "robustness_drops": (table[~tiles], "Fraction of patches"),
            "robustness_shuffle": (table[tiles], "Rows of tiles"),
        }
        return {
            f"{name}{suffix}": plotting.line_plots.points_with_errors(
                rows.assign(change=rows["change"].map(_TITLES)),
                panel="change",
                x="strength",
                y=y,
                line="model",
                error={"accuracy": "accuracy_se", "agreement": "se", "cosine": "cosine_se"}[y],
                xlabel=xlabel,
                ylabel=ylabel,
                title=common_data(of_each),
                highest=highest,
            )
            for name, (rows, xlabel) in some.items()
            if len(rows)
            for suffix, (y, ylabel, highest) in measures.items()
        }


def _require(option: str, value: Any, example: str, good: Callable[[Any], bool]) -> None:
    if not isinstance(value, list) or not value or not all(map(good, value)):
        raise UserError(f"analysis.{option} must be a list such as {example}; got {value!r}")


def _outcome(reduced: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Predicted class of each image, -1 where a logit is not finite, and its representation."""
    features, logits = reduced.values()
    return logits.argmax(1).masked_fill(~logits.isfinite().all(1), -1), features
