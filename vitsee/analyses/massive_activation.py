"""The largest activations of each layer, their channel and their token (Sun et al. 2024, "massive activations")."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import pandas as pd

from vitsee import plotting
from vitsee.analysis import Analysis, Labels, Layer, View, register
from vitsee.errors import UserError
from vitsee.estimators.kernels import float64_device
from vitsee.io.tidy import Kind, Table, Whole
from vitsee.lazy import torch
from vitsee.names import common_data, of_lines

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor

    from vitsee.sums import Sums

KINDS = ("class", "register", "patch")
_CHUNK = {"cpu": 2**18, "cuda": 2**26}
"""Number of activations whose magnitudes are copied at a time, few enough for a CPU's cache."""
_SAMPLE, _NEAR = 1024, 16
"""Size of the sample that locates the median roughly, and how far the median may be from there."""
_COLUMNS: dict[str, Kind] = {
    **{"layer": str, "depth": float, "kind": KINDS, "row": Whole(-1), "col": Whole()},
    **{"channel": Whole(), "value": float, "median": float, "ratio": float, "rank": Whole(1)},
    **{"sd": float, "token_share": float, "channel_share": float},
}


@register
@dataclass(kw_only=True)
class MassiveActivation(Analysis):
    """How large are the largest activations of each layer, and in which channels and tokens are they?

    In each image, the `top` largest magnitudes among all tokens and channels of a layer, and the median
    magnitude. Magnitudes are averaged over images rank by rank; a rank's token and channel are the most
    frequent ones over images.
    """

    models: ClassVar[tuple[int, ...]] = (1,)
    default_images: ClassVar[int] = 512
    default_batch_size: ClassVar[int] = 64

    columns: ClassVar[dict[str, Table]] = {
        "massive_activation": Table(_COLUMNS, keys=("layer", "rank"))
    }

    name: str = "massive_activation"
    top: int = 3
    """Number of largest activations to measure per layer and image."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.top < 1:
            raise UserError(f"analysis.top must be at least 1, got {self.top}")

    def check(self, layers: dict[str, list[Layer]]) -> None:
        for layer in layers["model"]:
            if layer.grid is None:
                raise UserError(
                    f"analysis=massive_activation: {layer.name} has no rows and columns (its output of "
                    f"{' x '.join(map(str, layer.shape))} is neither tokens on a grid nor a feature map); "
                    f"choose other layers with analysis.layers, such as blocks"
                )
            there = int(np.prod(layer.shape))
            if self.top > there:
                raise UserError(
                    f"analysis.top={self.top}, but {layer.name} has {there} activations; "
                    f"use analysis.top={there} or fewer"
                )

    def reduce(self, layer: Layer, output: Tensor) -> Tensor:
        """Median magnitude, then magnitude, token and channel of each rank: (N, 1 + 3 top) float64."""
        x, parts = layer.sequence(output), []
        few = max(1, _CHUNK.get(x.device.type, 2**22) // x[0].numel())
        space = x.new_empty(few, *x.shape[1:])
        for some in x.split(few):
            magnitudes = torch.abs(some, out=space[: len(some)]).float()
            value, *where = largest(magnitudes, self.top)
            median = torch.where(value[:, 0].isnan(), torch.nan, middle(magnitudes))
            found = [median[:, None], value, *where]
            parts.append(torch.cat([y.to(float64_device(x), torch.float64) for y in found], 1))
        return torch.cat(parts)

    def observe(self, view: View) -> dict[str, Tensor]:
        """Per layer: sums over images of the median, of the magnitudes and of their squares.

        tokens: (top, tokens), channels: (top, channels): number of images with a rank at that place.
        """
        terms: dict[str, Tensor] = {}
        for layer in self.setting.layers["model"]:
            median, value, token, channel = view.model[layer.name].split([1] + [self.top] * 3, 1)
            tokens = len(layer.tokens)
            terms |= {
                f"{layer.name} median": median.sum(),
                f"{layer.name} value": value.sum(0),
                f"{layer.name} squares": value.square().sum(0),
                f"{layer.name} tokens": _counts(token, tokens),
                f"{layer.name} channels": _counts(channel, int(np.prod(layer.shape)) // tokens),
            }
        return terms | {"images": median.new_tensor(view.images)}

    def tables(self, sums: Sums) -> dict[str, pd.DataFrame]:
        """One row per layer and rank, from 1.

        value, sd: mean and standard deviation of the magnitude over images. ratio: value over median.
        token_share, channel_share: fraction of images in which the rank is in this token, in this channel.
        """
        terms = {name: term.cpu().numpy() for name, term in sums.terms.items()}
        images = float(terms["images"])
        rows = []
        for layer in self.setting.layers["model"]:
            median, value, squares, tokens, channels = (
                terms[f"{layer.name} {name}"]
                for name in ("median", "value", "squares", "tokens", "channels")
            )
            median, value = median / images, value / images
            with np.errstate(invalid="ignore", divide="ignore"):
                spread = (squares - images * value**2) / (images - 1 if images > 1 else np.nan)
                ratio = value / median
            for rank in range(self.top):
                token, channel = int(tokens[rank].argmax()), int(channels[rank].argmax())
                rows.append(
                    (
                        *(layer.name, np.nan if layer.depth is None else layer.depth),
                        *layer.tokens[token],
                        *(channel, value[rank], median, ratio[rank], rank + 1),
                        *(np.sqrt(spread[rank].clip(0)), tokens[rank, token] / images),
                        channels[rank, channel] / images,
                    )
                )
        table = pd.DataFrame(rows, columns=list(_COLUMNS))
        return {"massive_activation": table.astype({"median": float, "depth": float})}

    def warnings(self, sums: Sums) -> list[str]:
        """Which layers have activations that are not finite, or are mostly 0."""
        warnings = []
        for layer in self.setting.layers["model"]:
            if not sums.terms[f"{layer.name} value"].isfinite().all():
                warnings.append(
                    f"{layer.name} has NaN or Inf in some image; its values are undefined"
                )
            elif sums.terms[f"{layer.name} median"] == 0:
                warnings.append(
                    f"most activations of {layer.name} are 0, and so is their median; ratios are infinite"
                )
        return warnings

    def figures(self, tables: dict[str, pd.DataFrame], labels: Labels) -> dict[str, Figure]:
        """Magnitude of each rank, and the median, by layer; ratio of the largest to the median."""
        table = tables["massive_activation"]
        ranks = [(rank, rows) for rank, rows in table.groupby("rank")]
        lines = [
            plotting.line_plots.Line(rows["value"].to_numpy(), f"largest {rank}", f"{rank}")
            for rank, rows in ranks
        ]
        median = plotting.line_plots.Line(
            ranks[0][1]["median"].to_numpy(), "median", "median", dashed=True
        )
        drawn = plotting.line_plots.depth_lines(
            [*lines, median],
            xlabel="Layer",
            ylabel="Mean magnitude",
            title=f"{labels.model}, {labels.data}",
            log=True,
        )
        return {"massive_activation": drawn} | self.joined([(tables, labels)])

    def joined(
        self, results: Sequence[tuple[dict[str, pd.DataFrame], Labels]]
    ) -> dict[str, Figure]:
        """The largest activation over the median, by depth, one line per model."""
        of_each = [labels for _, labels in results]
        lines, x = [], []
        for (tables, _), name in zip(results, of_lines(of_each), strict=True):
            table = tables["massive_activation"]
            first = table[table["rank"] == 1]
            lines.append(plotting.line_plots.Line(first["ratio"].to_numpy(), name, name))
            x.append(first["depth"].to_numpy())
        drawn = plotting.line_plots.depth_lines(
            lines,
            xlabel="Depth (fraction of blocks)",
            ylabel="Largest magnitude / median",
            title=common_data(of_each),
            x=x,
            log=True,
        )
        return {"massive_activation_ratio": drawn}


def largest(magnitudes: Tensor, top: int) -> tuple[Tensor, Tensor, Tensor]:
    """The largest magnitudes in descending order, their tokens and channels, each (N, top).

    magnitudes: (N, tokens, channels). The largest are in the channels with the largest maxima, so only those channels
    are sorted.
    """
    channels = magnitudes.amax(1).topk(min(top, magnitudes.shape[2]), dim=1).indices
    few = magnitudes.gather(2, channels[:, None].expand(-1, magnitudes.shape[1], -1))
    value, place = few.flatten(1).topk(top, dim=1)
    return value, place // few.shape[2], channels.gather(1, place % few.shape[2])


def middle(magnitudes: Tensor) -> Tensor:
    """Lower median of each image, (N, …) float32 -> (N,) float32."""
    rows = magnitudes.flatten(1)
    if rows.device.type != "cpu":
        return rows.median(1).values
    return torch.tensor([lower_median(row) for row in rows.detach().numpy()])


def lower_median(values: np.ndarray) -> float:
    """The lower median of (n,) numbers, none of them NaN.

    Counting finds the two neighbours in a sorted sample that enclose it, so that only the few values between them
    are sorted. NumPy's median takes five times as long, and far longer if many numbers are equal, such as the zeros
    after a ReLU.
    """
    rank = (len(values) - 1) // 2
    sample = np.sort(values[_spread(len(values))])

    def below(bound: float) -> int:
        return int(np.count_nonzero(values < bound))

    count = len(sample)
    guess = count // 2 + (rank - below(sample[count // 2])) * count // len(values)
    for first, last in ((guess - _NEAR, guess + _NEAR), (0, count)):
        place = bisect_right(sample, rank, *np.clip([first, last], 0, count).tolist(), key=below)
        low, high = sample[max(0, place - 1)], sample[min(place, count - 1)]
        up_to_low = values <= low
        there = rank - np.count_nonzero(up_to_low)
        if there < 0 and below(low) <= rank:
            return float(low)
        between = values[(values < high) > up_to_low]
        if 0 <= there < len(between):
            return float(np.partition(between, there)[there])
    return float(np.partition(values, rank)[rank])


@cache
def _spread(count: int) -> np.ndarray:
    """Positions of a sample among this many values, in golden-ratio steps: equal steps would miss most channels."""
    golden = (5**0.5 - 1) / 2
    return (np.arange(min(count, _SAMPLE)) * golden % 1 * count).astype(int)


def _counts(index: Tensor, length: int) -> Tensor:
    """How often each index occurs in each column, (N, top) -> (top, length) float64."""
    ranks = torch.arange(index.shape[1], device=index.device)
    flat = (index.long() + ranks * length).flatten()
    return torch.bincount(flat, minlength=len(ranks) * length).double().view(len(ranks), length)
