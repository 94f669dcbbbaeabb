"""Mean attention distance of each head (Raghu et al. 2021, Fig. 3; Dosovitskiy et al. 2021, Fig. 7)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pandas as pd

from vitsee import plotting
from vitsee.analysis import Analysis, Labels, Layer, View, register
from vitsee.estimators.attention import Attention, attention_distance, uniform_distance
from vitsee.io.tidy import Error, Table, Whole
from vitsee.lazy import torch
from vitsee.names import block_numbers

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor

    from vitsee.sums import Sums


@register
@dataclass(kw_only=True)
class AttentionDistance(Analysis):
    """How far does each head of each block attend, in pixels of the model's input?

    The distance from a patch to the patches it attends to, weighted by attention and averaged over
    images and patches. Class, distillation and register tokens are left out; see `renormalize`. If
    attention is restricted to windows, so are the distances.
    """

    models: ClassVar[tuple[int, ...]] = (1,)
    reads: ClassVar[tuple[str, str]] = ("attention", "attention")
    default_images: ClassVar[int] = 5000
    default_batch_size: ClassVar[int] = 64
    standard_errors: ClassVar[bool] = True
    version: ClassVar[int] = 2

    columns: ClassVar[dict[str, Table]] = {
        "attention_distance": Table(
            {
                "block": Whole(),
                "head": Whole(),
                "distance_px": float,
                "se": Error,
                "uniform_px": float,
                "layer": str,
            },
            keys=("layer", "head"),
        )
    }

    name: str = "attention_distance"
    layers: Any = "every"
    renormalize: bool = False
    """Divide by the attention paid to patches. If false, as in the papers, the rest counts as distance 0."""

    def reduce(self, layer: Layer, output: Attention) -> Tensor:
        """Mean distance per image: one column per head, the last for uniform attention; (N, heads + 1)."""
        distance = attention_distance(output, layer, renormalize=self.renormalize)
        uniform = uniform_distance(layer, renormalize=self.renormalize)
        return torch.cat([distance, distance.new_full((len(distance), 1), uniform)], 1)

    def observe(self, view: View) -> dict[str, Tensor]:
        """Sums over images of the distance minus the uniform distance, and of its square: (layers, heads).

        Squaring this difference loses less precision if all images have nearly the same distance.
        """
        uniform = torch.stack([distance[:, -1:].sum() for distance in view.model.values()])
        each = [distance[:, :-1] - distance[:, -1:] for distance in view.model.values()]
        most = max(x.shape[1] for x in each)
        excess = torch.stack([torch.nn.functional.pad(x, (0, most - x.shape[1])) for x in each])
        return {
            "images": excess.new_tensor(view.images),
            "uniform": uniform,
            "excess": excess.sum(1),
            "excess_squared": excess.square().sum(1),
            "broken": excess.isfinite().logical_not().sum(1),
        }

    def tables(self, sums: Sums) -> dict[str, pd.DataFrame]:
        """One row per head: block, head, distance_px, se (over images), uniform_px, layer.

        If layers attend within windows, also windows: the number of windows per image.
        """
        terms = {name: term.cpu().numpy() for name, term in sums.terms.items()}
        images, names = terms["images"], sums.axes["model"]
        excess = terms["excess"] / images
        uniform = np.broadcast_to((terms["uniform"] / images)[:, None], excess.shape)
        layer, head = (x.ravel() for x in np.indices(excess.shape))
        table = pd.DataFrame(
            {
                "block": np.array(block_numbers(names))[layer],
                "head": head,
                "distance_px": (uniform + excess).ravel(),
                "se": _standard_error(excess, terms["excess_squared"], images).ravel(),
                "uniform_px": uniform.ravel(),
                "layer": np.array(names)[layer],
            }
        )
        measured = self.setting.layers["model"]
        windows = np.array([one.windows for one in measured])
        if (windows > 1).any():
            table["windows"] = windows[layer]
        there = head < np.array([one.shape[0] for one in measured])[layer]
        return {"attention_distance": table[there].reset_index(drop=True)}

    def warnings(self, sums: Sums) -> list[str]:
        warnings = []
        for layer, broken in zip(sums.axes["model"], sums.terms["broken"], strict=True):
            heads = broken.nonzero().flatten().tolist()
            if heads:
                warnings.append(
                    f"the attention of {layer} is NaN or Inf in {int(broken.max())} of "
                    f"{int(sums.terms['images'])} images (heads {heads}); its distance is NaN"
                )
        return warnings

    def caption(self, figure: str, tables: dict[str, pd.DataFrame]) -> str:
        return "Dashed: uniform attention"

    def figures(self, tables: dict[str, pd.DataFrame], labels: Labels) -> dict[str, Figure]:
        """Sorted heads of the two lowest and two highest blocks; all heads by depth."""
        table = tables["attention_distance"]
        within = "\nwithin windows" if table.get("windows", pd.Series([1])).gt(1).any() else ""
        return {
            "attention_distance": plotting.line_plots.sorted_lines(
                _lowest_and_highest(table),
                line="block",
                y="distance_px",
                reference="uniform_px",
                xlabel="Sorted attention head",
                ylabel=f"Mean attention distance{within} (pixels)",
                title=f"{labels.model}, {labels.data}",
                names="block {}",
            ),
            "attention_distance_by_depth": plotting.line_plots.dots(
                table,
                x="block",
                y="distance_px",
                reference="uniform_px",
                xlabel="Block",
                ylabel=f"Mean attention distance{within} (pixels)",
                title=f"{labels.model}, {labels.data}",
            ),
        }


def _standard_error(mean: np.ndarray, squares: np.ndarray, images: np.ndarray) -> np.ndarray:
    """Standard error of the mean over `images` (a scalar) images; NaN for one image, 0 if below rounding."""
    if images < 2:
        return np.full_like(mean, np.nan)
    variance = (squares / images - mean**2) / (images - 1)
    return np.sqrt(np.clip(variance, 0, None))


def _lowest_and_highest(table: pd.DataFrame) -> pd.DataFrame:
    blocks = np.unique(table["block"])
    return table[table["block"].isin([*blocks[:2], *blocks[-2:]])]
