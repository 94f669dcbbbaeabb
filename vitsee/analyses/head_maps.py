"""Attention maps of single heads, their entropy, and heads that attend to a fixed offset (Walmer et al. 2023)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pandas as pd

from vitsee import plotting
from vitsee.analysis import Analysis, Labels, Layer, View, register
from vitsee.data.images import listed, require_listed
from vitsee.errors import UserError
from vitsee.estimators.attention import Attention, offset_means, offsets, window_places
from vitsee.estimators.kernels import float64_device
from vitsee.io.tidy import Kind, Table, Whole, indices
from vitsee.lazy import torch
from vitsee.names import block_numbers

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor

    from vitsee.sums import Sums

SIDE = 112
"""Longer side, in pixels, of the images stored in the table for the figures."""
_PIXEL = ("image", "row", "col")
_MAPS: dict[str, Kind] = {
    **{"image": Whole(), "block": Whole(), "head": Whole(), "row": Whole(), "col": Whole()},
    **{"weight": float, "layer": str},
}
_HEADS: dict[str, Kind] = {
    **{"layer": str, "block": Whole(), "head": Whole(), "entropy": float, "uniform": float},
    **{"row_offset": float, "col_offset": float, "offset_weight": float},
}


@register
@dataclass(kw_only=True)
class HeadMaps(Analysis):
    """Where does each head attend in an image, how widely, and does it attend to a fixed offset?

    The attention from one query, by default the class token, to all patches. The entropy of attention is
    averaged over the patches as queries and over images. The offset of a head is the step on the grid at
    which attention, averaged over queries and images, is largest. If attention is restricted to windows, so are all
    three; the map of a query then covers its own window, and is undefined elsewhere.
    """

    models: ClassVar[tuple[int, ...]] = (1,)
    reads: ClassVar[tuple[str, str]] = ("attention", "attention")
    default_images: ClassVar[int] = 8
    default_batch_size: ClassVar[int] = 8
    ungrouped: ClassVar[tuple[str, ...]] = ("",)
    version: ClassVar[int] = 2

    columns: ClassVar[dict[str, Table]] = {
        "head_maps": Table(
            _MAPS, keys=("image", "layer", "head", "row", "col"), grid=("row", "col")
        ),
        "head_summary": Table(_HEADS, keys=("layer", "head")),
        "head_offset_share": Table(
            {"layer": str, "block": Whole(), "share": float}, keys=("layer",)
        ),
        "head_maps_images": Table(
            dict.fromkeys(_PIXEL, Whole()) | dict.fromkeys("rgb", float), grid=_PIXEL[1:]
        ),
        "head_maps_names": Table({"image": Whole(), "id": str}, keys=("image",)),
    }

    name: str = "head_maps"
    layers: Any = "every"
    images_list: Any = None
    """List of image numbers or ids; by default images are drawn with `seed`."""
    query: Any = None
    """Query whose attention is shown: [row, column] of a patch in the first layer, and the patch at the same place in
    layers with a coarser grid; by default the class token or, without one, the mean over all patches."""
    fixed: float = 0.5
    """A head attends to a fixed offset if its mean attention there is above this."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_listed(self.images_list)
        place = self.query
        if place is not None and not (
            isinstance(place, list)
            and len(place) == 2
            and all(type(i) is int and i >= 0 for i in place)
        ):
            raise UserError(
                f"analysis.query must be the [row, column] of a patch, counted from 0, e.g. [3,7]; got {place!r}"
            )
        if not 0 < self.fixed < 1:
            raise UserError(f"analysis.fixed must be between 0 and 1, got {self.fixed}")

    def check(self, layers: dict[str, list[Layer]]) -> None:
        rows, columns = _grid(layers["model"][0])
        if self.query and (self.query[0] >= rows or self.query[1] >= columns):
            raise UserError(
                f"analysis.query={self.query}: the {rows} x {columns} grid of {layers['model'][0].name} goes from "
                f"[0, 0] to [{rows - 1}, {columns - 1}]"
            )

    def select(self, stage: int) -> Sequence[int] | None:
        """The images of `images_list`. Raises UserError for one that does not exist."""
        return listed(self.setting.images[stage], self.images_list)

    def reduce(self, layer: Layer, output: Attention) -> Tensor:
        """Map, entropy, and mean attention at each offset: (N, heads, patches + 1 + offsets) float64.

        The map covers the patches of the whole image.
        """
        prefix, parts = layer.prefix or 0, []
        places = window_places(layer).to(output.device)
        for _, weights in output.weights(layer.windows):
            weights = weights.to(float64_device(weights), torch.float64)
            weights = weights.unflatten(0, (-1, layer.windows))
            queries = weights[..., prefix:, :]
            entropy = torch.special.entr(queries).sum(-1).movedim(2, 1)[..., places >= 0]
            offset = offset_means(queries[..., prefix:], layer)
            seen = self._map(layer, weights[..., prefix:], places)
            parts.append(torch.cat([seen, entropy.mean(-1, keepdim=True), offset], -1))
        return torch.cat(parts)

    def _map(self, layer: Layer, weights: Tensor, places: Tensor) -> Tensor:
        """Attention of the query to each patch, (images, heads, patches); NaN outside the query's window.

        weights: (images, windows, heads, tokens, patches). places: of each window's patches; -1 for padding.
        """
        images, _, heads, _, _ = weights.shape
        rows, columns = _grid(layer)
        prefix, real = layer.prefix or 0, places >= 0
        seen = weights.new_full((images, heads, rows * columns), torch.nan)
        if self.query:
            row, column = self._patch(layer)
            window, patch = (places == row * columns + column).nonzero()[0].tolist()
            there = real[window]
            seen[..., places[window, there]] = weights[:, window, :, prefix + patch, there]
        elif layer.class_token and prefix:
            seen[:] = weights[:, 0, :, 0]
        else:
            of_patches = weights[..., prefix:, :].masked_fill(~real[:, None, :, None], 0)
            mean = of_patches.sum(-2).movedim(2, 1) / (rows * columns)
            seen[..., places[real]] = mean[..., real]
        return seen

    def _patch(self, layer: Layer) -> tuple[int, int]:
        """Row and column of the query in this layer."""
        first, grid = _grid(self.setting.layers["model"][0]), _grid(layer)
        row, column = (i * n // m for i, n, m in zip(self.query, grid, first, strict=True))
        return row, column

    def observe(self, view: View) -> dict[str, Tensor]:
        """Per layer: the maps, each image in its own row, and sums over images of entropies and offsets."""
        terms: dict[str, Tensor] = {}
        for layer in self.setting.layers["model"]:
            found = view.model[layer.name]
            patches = int(np.prod(_grid(layer)))
            maps, entropy, offset = found.split([patches, 1, found.shape[-1] - patches - 1], -1)
            terms |= {
                f"{layer.name} maps": view.rows(maps),
                f"{layer.name} entropy": entropy[..., 0].sum(0),
                f"{layer.name} offsets": offset.sum(0),
            }
        numbers = found.new_tensor(list(view.indices))
        return terms | {
            "there": view.rows(torch.ones_like(numbers)),
            "numbers": view.rows(numbers),
            "colours": view.rows(view.pictures(SIDE)),
        }

    def tables(self, sums: Sums) -> dict[str, pd.DataFrame]:
        """head_maps and head_maps_images: one row per image and place. head_summary: one row per head.

        head_offset_share: the fraction of a layer's heads that attend to a fixed offset other than [0, 0].
        head_maps_names: the id of each image. Images that could not be decoded have no rows. If layers attend within
        windows, head_summary has a last column windows: the number of windows per image.
        """
        terms = {name: term.cpu().numpy() for name, term in sums.terms.items()}
        shown = np.flatnonzero(terms["there"])
        maps, heads, shares = [], [], []
        layers = self.setting.layers["model"]
        for block, layer in zip(block_numbers([one.name for one in layers]), layers, strict=True):
            grid = _grid(layer)
            weights = terms[f"{layer.name} maps"][shown]
            weights = weights.reshape(*weights.shape[:2], *grid)
            where = indices(weights.shape, "image", "head", "row", "col")
            one = pd.DataFrame(where | {"weight": weights.ravel()})
            one["image"] = shown[one["image"]]
            one["block"], one["layer"] = block, layer.name
            maps.append(one[list(_MAPS)])
            offset = terms[f"{layer.name} offsets"] / len(shown)
            steps = np.array(offsets(layer))[offset.argmax(1)]
            tokens = layer.shape[1]
            head = pd.DataFrame(
                {
                    "layer": layer.name,
                    "block": block,
                    "head": np.arange(len(offset)),
                    "entropy": terms[f"{layer.name} entropy"] / len(shown),
                    "uniform": np.log(tokens),
                    "row_offset": steps[:, 0],
                    "col_offset": steps[:, 1],
                    "offset_weight": offset.max(1),
                }
            )
            if any(one.windows > 1 for one in layers):
                head["windows"] = layer.windows
            heads.append(head)
            fixed = (head["offset_weight"] > self.fixed) & steps.any(1)
            shares.append((layer.name, block, float(fixed.mean())))
        colours = terms["colours"][shown].astype(int)
        pixels = {name: colours[:, i].ravel() for i, name in enumerate("rgb")}
        pictures = pd.DataFrame(indices(colours[:, 0].shape, *_PIXEL) | pixels)
        pictures["image"] = shown[pictures["image"]]
        names = [self.setting.images[-1].id(int(i)) for i in terms["numbers"][shown]]
        return {
            "head_maps": pd.concat(maps, ignore_index=True),
            "head_summary": pd.concat(heads, ignore_index=True),
            "head_offset_share": pd.DataFrame(shares, columns=["layer", "block", "share"]),
            "head_maps_images": pictures,
            "head_maps_names": pd.DataFrame({"image": shown, "id": names}),
        }

    def warnings(self, sums: Sums) -> list[str]:
        return [
            f"the attention of {layer.name} is NaN or Inf in some image; its heads are undefined"
            for layer in self.setting.layers["model"]
            if not sums.terms[f"{layer.name} entropy"].isfinite().all()
        ]

    def figures(self, tables: dict[str, pd.DataFrame], labels: Labels) -> dict[str, Figure]:
        """All heads of some blocks on the first image; heads of the last block on more images; entropy and offsets."""
        table, summary = tables["head_maps"], tables["head_summary"]
        title = f"{labels.model}, {labels.data}"
        if summary.get("windows", pd.Series([1])).gt(1).any():
            title += ", within windows"
        beyond = "; grey: outside the query's window" if self.query and "windows" in summary else ""
        names = dict(zip(*(tables["head_maps_names"][key] for key in ("image", "id")), strict=True))
        pictures = {
            image: _picture(rows) for image, rows in tables["head_maps_images"].groupby("image")
        }
        layers = table["layer"].unique()
        first = table["image"].iloc[0]
        blocks = layers[plotting.style.evenly_spaced(len(layers), 6)]
        images = list(names)[:4]
        return {
            "head_maps": plotting.map_plots.heads(
                [
                    plotting.map_plots.Heads(str(name), pictures[first], _maps(table, first, name))
                    for name in blocks
                ],
                title=f"{title}: {names[first]}{beyond}",
                overlay=False,
            ),
            "head_maps_overlay": plotting.map_plots.heads(
                [
                    plotting.map_plots.Heads(
                        names[image], pictures[image], _maps(table, image, layers[-1])
                    )
                    for image in images
                ],
                title=f"{title}: {layers[-1]}",
                overlay=True,
            ),
            "head_entropy": plotting.line_plots.dots(
                summary,
                x="block",
                y="entropy",
                reference="uniform",
                xlabel="Block",
                ylabel="Attention entropy (nats)",
                title=title,
            ),
            "head_offsets": plotting.line_plots.dots(
                summary.assign(level=self.fixed),
                x="block",
                y="offset_weight",
                reference="level",
                label="threshold for a fixed offset",
                corner="upper right",
                xlabel="Block",
                ylabel="Mean attention at the head's own offset",
                title=title,
            ),
        }


def _grid(layer: Layer) -> tuple[int, int]:
    """Rows and columns of the patches of the whole image."""
    return layer.image_grid or layer.places


def _picture(rows: pd.DataFrame) -> np.ndarray:
    """The pixels of one image, (rows, columns, 3) from 0 to 1."""
    shape = [int(rows[name].max()) + 1 for name in ("row", "col")]
    return rows[list("rgb")].to_numpy(float).reshape(*shape, 3) / 255


def _maps(table: pd.DataFrame, image: int, layer: str) -> np.ndarray:
    """The maps of one layer on one image, (heads, rows, columns)."""
    rows = table[(table["image"] == image) & (table["layer"] == layer)]
    shape = [int(rows[name].max()) + 1 for name in ("head", "row", "col")]
    return rows["weight"].to_numpy().reshape(shape)
