"""Effective receptive fields: which pixels the central location of each layer depends on (Luo et al. 2016)."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pandas as pd

from vitsee import plotting
from vitsee.analysis import Analysis, Labels, Layer, View, register
from vitsee.errors import UserError
from vitsee.estimators.kernels import absolute_gradients
from vitsee.io.tidy import MODELS, Kind, Table, Whole, indices
from vitsee.lazy import torch

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor

    from vitsee.models.residual import Residual
    from vitsee.plotting.line_plots import Line
    from vitsee.sums import Sums

_SHOWN = 5
"""Number of layers shown per model, as in the paper."""
PAPER_UNITS = {16: [3, 7, 12, 16]}
"""Numbers of the CNN units shown in the paper (Figure 6)."""
_OF: dict[str, Kind] = {"layer": str, "point": ("post", "pre"), "model": MODELS}


class Point(Enum):
    """Where the gradient of a sublayer is taken."""

    post = "post"
    pre = "pre"
    both = "both"


@register
@dataclass(kw_only=True)
class ReceptiveField(Analysis):
    """Which pixels does the central location of each layer depend on?

    The absolute gradient of a channel at the central location with respect to the input, summed over RGB
    and averaged over channels and images (Raghu et al. 2021, Figs. 6 and C.1-C.4), for each sublayer of a
    transformer, and for the first convolution and each unit of a CNN.
    """

    models: ClassVar[tuple[int, ...]] = (1, 2)
    reads: ClassVar[tuple[str, str]] = ("stream", "stream")
    default_images: ClassVar[int] = 32
    default_batch_size: ClassVar[int] = 8
    gradients: ClassVar[bool] = True
    version: ClassVar[int] = 2

    columns: ClassVar[dict[str, Table]] = {
        "receptive_field": Table(
            _OF | {"row": Whole(), "col": Whole(), "value": float}, grid=("row", "col")
        ),
        "receptive_field_size": Table(
            _OF | dict.fromkeys(("radius50_px", "radius90_px", "own_share"), float)
        ),
    }

    name: str = "receptive_field"
    layers: Any = "every"
    point: Point = Point.post
    """post: the residual stream after the addition; pre: the branch before the addition; both."""
    channels: int | None = 64
    """Channels per layer, drawn at random; null: all of them, which is exact."""
    seed: int = 0
    """Seed of the drawn channels."""
    channels_at_once: int = 8
    """Channels per vectorised backward pass on a GPU; more need more memory. A CPU takes one at a time."""
    resolution: int | None = 56
    """Maximum number of rows and columns of the tabulated maps; null: one value per pixel."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for option in ("channels", "channels_at_once", "resolution"):
            value = getattr(self, option)
            if value is not None and value < 1:
                raise UserError(f"analysis.{option} must be 1 or more, got {value}")

    def check(self, layers: dict[str, list[Layer]]) -> None:
        for role, watched in layers.items():
            for layer in watched:
                if layer.grid is None:
                    raise UserError(
                        f"{layer.name} of the {role} has no spatial locations (its output is "
                        f"{' x '.join(map(str, layer.shape))}), so no centre; choose other layers "
                        f"with analysis.layers"
                    )

    @property
    def points(self) -> list[str]:
        """The measured points, by their names in the table."""
        return ["post", "pre"] if self.point is Point.both else [self.point.value]

    def reduce(self, layer: Layer, output: Residual) -> Tensor:
        """Values of the central location, (N, points, channels), with their autograd graph."""
        branch = _centre(layer, output.branch)
        skip = 0 if output.skip is None else _centre(layer, output.skip)
        at = {"post": branch + skip, "pre": branch}
        return torch.stack([at[point] for point in self.points], 1)

    def observe(self, view: View) -> dict[str, Tensor]:
        """By role: maps summed over images, (layers, points, H, W)."""
        terms = {}
        for role, reduced in view.by_role.items():
            maps = [self._maps(values, view.pixels[role]) for values in reduced.values()]
            terms[f"maps_{role}"] = torch.stack(maps)
        terms["images"] = terms["maps_model"].new_tensor(view.images)
        return terms

    def _maps(self, values: Tensor, pixels: Tensor) -> Tensor:
        """(N, points, channels) with their autograd graph -> (points, H, W) float64, summed over images."""
        drawn = self._channels(values.shape[-1])
        of_points = [
            absolute_gradients(part[:, drawn], pixels, self.channels_at_once) / len(drawn)
            for part in values.unbind(1)
        ]
        return torch.stack(of_points)

    def _channels(self, total: int) -> list[int]:
        """The channels to average; layers of the same width share them."""
        if self.channels is None or self.channels >= total:
            return list(range(total))
        return sorted(np.random.default_rng(self.seed).permutation(total)[: self.channels].tolist())

    def tables(self, sums: Sums) -> dict[str, pd.DataFrame]:
        """Maps: layer, point, row, col, value, model. Sizes: layer, point, radius50_px, radius90_px,
        own_share, model.
        """
        maps, sizes = [], []
        for role, layers in self.setting.layers.items():
            means = (sums.terms[f"maps_{role}"] / sums.terms["images"]).cpu().numpy()
            for layer, of_points in zip(layers, means, strict=True):
                for point, values in zip(self.points, of_points, strict=True):
                    binned = bin_means(values, self.resolution or max(values.shape))
                    value = indices(binned.shape, "row", "col") | {"value": binned.ravel()}
                    where = {"layer": layer.name, "point": point}
                    maps.append(pd.DataFrame(where | value | {"model": role}))
                    sizes.append(where | size(values, layer) | {"model": role})
        return {
            "receptive_field": pd.concat(maps, ignore_index=True),
            "receptive_field_size": pd.DataFrame(sizes),
        }

    def warnings(self, sums: Sums) -> list[str]:
        """Which layers do not depend on the input, or have NaN or Inf gradients."""
        warnings = []
        for role, layers in self.setting.layers.items():
            for layer, of_points in zip(layers, sums.terms[f"maps_{role}"], strict=True):
                for point, values in zip(self.points, of_points, strict=True):
                    if not values.isfinite().all():
                        why = "has NaN or Inf gradients"
                    elif not values.any():
                        why = "does not depend on the input (all gradients are 0)"
                    else:
                        continue
                    warnings.append(f"{layer.name} of the {role} ({point}) {why}; its size is NaN")
        return warnings

    def caption(self, figure: str, tables: dict[str, pd.DataFrame]) -> str:
        return "" if figure == "receptive_field_size" else "Each map over its own maximum"

    def figures(self, tables: dict[str, pd.DataFrame], labels: Labels) -> dict[str, Figure]:
        names = plotting.style.names_of_models(labels.model, labels.other)
        rows = _rows(tables["receptive_field"], names)
        few = {name: _spread(maps, _SHOWN) for name, maps in rows.items()}
        lines = _radii(tables["receptive_field_size"], names)
        return {
            "receptive_field": plotting.map_plots.fields(few, title=labels.data, columns=_SHOWN),
            "receptive_field_all": plotting.map_plots.fields(rows, title=labels.data, columns=12),
            "receptive_field_size": plotting.line_plots.depth_lines(
                [line for line, _ in lines],
                x=[x for _, x in lines],
                xlabel="Depth (fraction of layers)",
                ylabel="Radius with 50 % or 90 % of the mass (pixels)",
                title=labels.data,
            ),
        }


def _centre(layer: Layer, x: Tensor) -> Tensor:
    """(N, *layer.shape) -> (N, channels) at the location (rows // 2, columns // 2)."""
    rows, columns = layer.grid  # type: ignore[misc]
    row, column = rows // 2, columns // 2
    if layer.prefix is None:
        return layer.channels_first(x)[:, :, row, column]
    return x[:, layer.prefix + row * columns + column]


def bin_means(values: np.ndarray, most: int) -> np.ndarray:
    """Average (H, W) over nearly equal bins, down to at most `most` rows and columns."""
    for axis in (0, 1):
        length = values.shape[axis]
        starts = np.arange(min(most, length)) * length // min(most, length)
        shape = [-1 if a == axis else 1 for a in (0, 1)]
        counts = np.diff([*starts, length]).reshape(shape)
        values = np.add.reduceat(values, starts, axis=axis) / counts
    return values


def size(values: np.ndarray, layer: Layer) -> dict[str, float]:
    """Radii in pixels that contain 50 % and 90 % of an (H, W) map, and the fraction within the own patch.

    For tokens, the centre is the centre of their own patch. In a CNN the centre of a location depends on the
    padding, so the map's centre of mass is used instead, and the own patch is one step of the grid around it.
    NaN if the map has no mass.
    """
    total = values.sum()
    if not np.isfinite(total) or total <= 0:
        return dict.fromkeys(("radius50_px", "radius90_px", "own_share"), np.nan)
    (rows, columns), pitch = layer.grid, layer.pitch  # type: ignore[misc]
    y, x = np.indices(values.shape) + 0.5
    if layer.prefix is None:
        centre = [float((axis * values).sum() / total) for axis in (y, x)]
    else:
        centre = [(rows // 2 + 0.5) * pitch[0], (columns // 2 + 0.5) * pitch[1]]  # type: ignore[index]
    dy, dx = y - centre[0], x - centre[1]
    distance = np.hypot(dy, dx).ravel()
    order = distance.argsort(kind="stable")
    held = values.ravel()[order].cumsum()
    radius50, radius90 = (
        float(distance[order][np.searchsorted(held, share * held[-1])]) for share in (0.5, 0.9)
    )
    own = (abs(dy) <= pitch[0] / 2) & (abs(dx) <= pitch[1] / 2)  # type: ignore[index]
    share = float(values[own].sum() / total)
    return {"radius50_px": radius50, "radius90_px": radius90, "own_share": share}


def _rows(table: pd.DataFrame, names: dict[str, str]) -> dict[str, dict[str, np.ndarray]]:
    """Maps by layer, by model and point."""
    labelled: dict[str, dict[str, np.ndarray]] = {}
    several = table["point"].nunique() > 1
    keys = ["model", "point", "layer"]
    for key, rows in table.groupby(keys, sort=False):
        role, point, layer = map(str, key)
        word = {"post": "after the addition", "pre": "branch only"}[point]
        label = f"{names[role]}, {word}" if several or point == "pre" else names[role]
        values = rows["value"].to_numpy(float).reshape(rows["row"].max() + 1, -1)
        labelled.setdefault(label, {})[layer] = values
    return {label: _numbered(maps) for label, maps in labelled.items()}


_SUBLAYERS = {
    "attn": "attention",
    "mlp": "MLP",
    "mlp_tokens": "token MLP",
    "mlp_channels": "channel MLP",
}


def _numbered(maps: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The maps, named as in the paper: attention 1, MLP 1, …; for a CNN the stem, then unit 1, unit 2, …"""
    counts: dict[str, int] = {}
    named = {}
    for i, (layer, values) in enumerate(maps.items()):
        _, within, sublayer = layer.partition(".+")
        if not i and not within:  # the stem of a CNN
            named["stem"] = values
            continue
        kind = _SUBLAYERS.get(sublayer, sublayer) or "unit"
        counts[kind] = counts.get(kind, 0) + 1
        named[f"{kind} {counts[kind]}"] = values
    return named


def _spread(maps: dict[str, np.ndarray], count: int) -> dict[str, np.ndarray]:
    """Maps of the first layer and at the end of each quarter of the network; all if there are at most `count`.

    For a transformer, only attention sublayers, as in the paper: blocks 1, 3, 6, 9 and 12 of 12. For a CNN with 16
    units, the paper shows units 3, 7, 12 and 16.
    """
    names = [name for name in maps if name.startswith("attention")] or list(maps)
    if len(names) <= count:
        return {name: maps[name] for name in names}
    rest = len(names) - (names[0] == "stem")
    chosen = [round(rest * k / (count - 1)) for k in range(1, count)]
    if rest == len(names) - 1:
        chosen = PAPER_UNITS.get(rest, chosen)
    shown = [names[0]] + [names[len(names) - rest + i - 1] for i in chosen]
    return {name: maps[name] for name in shown}


def _radii(table: pd.DataFrame, names: dict[str, str]) -> list[tuple[Line, np.ndarray]]:
    """Lines for both radii of each model and point, with their positions on the depth axis."""
    lines = []
    several = table["point"].nunique() > 1
    for key, rows in table.groupby(["model", "point"], sort=False):
        role, point = map(str, key)
        group = f"{names[role]}, {point}" if several else names[role]
        x = np.arange(len(rows)) / max(1, len(rows) - 1)
        for share, dashed in ((50, False), (90, True)):
            values = rows[f"radius{share}_px"].to_numpy()
            lines.append(
                (plotting.line_plots.Line(values, f"{group}: {share} %", group, dashed), x)
            )
    return lines
