"""Attention rollout: which patches reach the output through attention (Abnar and Zuidema 2020; ViT paper, Fig. 6)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pandas as pd

from vitsee import plotting
from vitsee.analysis import Analysis, Labels, Layer, View, register
from vitsee.data.images import listed, require_listed
from vitsee.estimators.attention import Attention, reached, require_same_tokens
from vitsee.io.tidy import Table, Whole, indices
from vitsee.lazy import torch

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor

    from vitsee.sums import Sums

SIDE = 112
"""Longer side, in pixels, of the images stored in the table for the figure."""
_PLACES = ("image", "row", "col")


@register
@dataclass(kw_only=True)
class AttentionRollout(Analysis):
    """Which patches of each image does the output attend to, through all blocks?

    A is a block's attention, averaged over heads. The matrices (A + I) / 2, whose rows sum to 1, are
    multiplied over the blocks. The weights of the patches in the output depend on what the model's head reads:
    the row of the class token, the mean row of all patches, or the rows weighted by the head's own attention.
    """

    models: ClassVar[tuple[int, ...]] = (1,)
    reads: ClassVar[tuple[str, str]] = ("attention and pooling", "attention and pooling")
    default_images: ClassVar[int] = 8
    default_batch_size: ClassVar[int] = 8
    version: ClassVar[int] = 3
    ungrouped: ClassVar[tuple[str, ...]] = ("",)

    columns: ClassVar[dict[str, Table]] = {
        "attention_rollout": Table(
            dict.fromkeys(_PLACES, Whole()) | {"weight": float}, grid=_PLACES[1:]
        ),
        "attention_rollout_images": Table(
            dict.fromkeys(_PLACES, Whole()) | dict.fromkeys("rgb", float), grid=_PLACES[1:]
        ),
    }

    name: str = "attention_rollout"
    layers: Any = "every"
    images_list: Any = None
    """List of image numbers or ids; by default images are drawn with `seed`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_listed(self.images_list)

    def check(self, layers: dict[str, list[Layer]]) -> None:
        require_same_tokens(layers["model"], self.name)

    def select(self, stage: int) -> Sequence[int] | None:
        """The images of `images_list`. Raises UserError for one that does not exist."""
        return listed(self.setting.images[stage], self.images_list)

    def reduce(self, layer: Layer, output: Attention) -> Tensor:
        """Attention weights averaged over heads, (N, tokens, tokens); for the head's own attention (N, 1, tokens)."""
        return torch.cat([weights.mean(1) for _, weights in output.weights()])

    def observe(self, view: View) -> dict[str, Tensor]:
        """Rollout and pixels of each image, in its row among all planned images."""
        weights = reached(list(view.model.values()), self.setting.layers["model"])
        return {
            "there": view.rows(weights.new_ones(len(weights))),
            "weight": view.rows(weights),
            "colours": view.rows(view.pictures(SIDE)),
        }

    def tables(self, sums: Sums) -> dict[str, pd.DataFrame]:
        """attention_rollout: image, row, col, weight. attention_rollout_images: image, row, col, r, g, b.

        image: the index in image_ids of made_with.json. Images that could not be decoded have no rows.
        """
        there, weight, colours = (
            sums.terms[name].cpu().numpy() for name in ("there", "weight", "colours")
        )
        shown = np.flatnonzero(there)
        weight, channels = weight[shown], colours[shown].astype(int)
        table = pd.DataFrame(indices(weight.shape, *_PLACES) | {"weight": weight.ravel()})
        pixels = {name: channels[:, i].ravel() for i, name in enumerate("rgb")}
        pictures = pd.DataFrame(indices(channels[:, 0].shape, *_PLACES) | pixels)
        for rows in (table, pictures):
            rows["image"] = shown[rows["image"]]
        return {"attention_rollout": table, "attention_rollout_images": pictures}

    def warnings(self, sums: Sums) -> list[str]:
        broken = (~sums.terms["weight"].isfinite()).flatten(1).any(1).nonzero().flatten().tolist()
        return [f"the attention of images {broken} is NaN or Inf"] if broken else []

    def caption(self, figure: str, tables: dict[str, pd.DataFrame]) -> str:
        return "Below each image: the weight of a fully lit patch over that of a black one"

    def figures(self, tables: dict[str, pd.DataFrame], labels: Labels) -> dict[str, Figure]:
        """Each image next to a copy that is lit where the output attends to it."""
        weights = _arrays(tables["attention_rollout"], ["weight"])[..., 0]
        colours = _arrays(tables["attention_rollout_images"], list("rgb"))
        pairs = plotting.map_plots.image_pairs(
            [(image / 255, weight) for image, weight in zip(colours, weights, strict=False)],
            title=f"{labels.model}, {labels.data}\n"
            "Below: the weights of black and of fully lit patches, and their ratio",
            names=("Input", "Attention"),
        )
        return {"attention_rollout": pairs}


def _arrays(table: pd.DataFrame, columns: list[str]) -> np.ndarray:
    """A tidy table in row-major order as (images, rows, columns, values)."""
    shape = [table[name].nunique() for name in _PLACES]
    return table[columns].to_numpy(float).reshape(*shape, len(columns))
