"""How much of each sublayer's output comes from its skip connection (Raghu et al. 2021, Figs. 7, E.1, E.2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pandas as pd

from vitsee import plotting
from vitsee.analysis import Analysis, Labels, Layer, View, register
from vitsee.estimators.kernels import float64_device
from vitsee.io.tidy import MODELS, Table, Whole
from vitsee.lazy import torch
from vitsee.names import block_and_branch

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor

    from vitsee.models.residual import Residual
    from vitsee.plotting.line_plots import Line
    from vitsee.sums import Sums

LOWEST, OCTAVES, PER_OCTAVE = -16, 40, 16
"""Histogram of ratios: bins start at 2**LOWEST, each a factor of 2**(1/16) (4.4 %) wide."""
_CHUNK_BYTES = {"cpu": 2**20, "cuda": 2**28}
"""Bytes of intermediate values per chunk, small enough for a CPU's cache."""
_TITLES = {
    "attn": "self-attention",
    "mlp": "MLP",
    "mlp_tokens": "token MLP",
    "mlp_channels": "channel MLP",
}


@register
@dataclass(kw_only=True)
class SkipRatio(Analysis):
    """Does a representation come from the skip connection or from the branch added to it?

    ||z|| / ||f(z)|| and cos(z, z + f(z)) of each token, where z is the skip connection of a sublayer
    and f(z) is its branch (after LayerScale); in a CNN, over the channels of each location. Values are
    means over images; the median of the ratio is also given, as its distribution has a long tail. Spatial
    tokens are averaged within each image first.
    """

    models: ClassVar[tuple[int, ...]] = (1, 2)
    reads: ClassVar[tuple[str, str]] = ("residuals", "residuals")
    default_images: ClassVar[int] = 1024
    ungrouped: ClassVar[tuple[str, ...]] = ("histogram",)

    columns: ClassVar[dict[str, Table]] = {
        "skip_ratio": Table(
            {
                "block": str,
                "branch": str,
                "token": Whole(-1),
                "ratio": float,
                "median": float,
                "cosine": float,
                "model": MODELS,
                "kind": ("mean", "class", "prefix", "spatial"),
            },
            keys=("model", "block", "branch", "token"),
        )
    }

    name: str = "skip_ratio"
    layers: Any = "every"

    def reduce(self, layer: Layer, output: Residual) -> Tensor:
        """(N, entries, 2): ratio and cosine, first averaged over spatial tokens, then for each token.

        A feature map has one entry, the mean over its locations.
        """
        skip, branch = output.skip, output.branch
        assert skip is not None  # residuals always have one
        if skip.ndim == 4:  # channels last, as in memory
            maps = (layer.channels_first(x) for x in (skip, branch))
            skip, branch = (x.permute(0, 2, 3, 1).flatten(1, 2) for x in maps)
        values = ratio_and_cosine(skip, branch)
        spatial = values[:, layer.prefix or 0 :].mean(1, keepdim=True)
        return spatial if layer.prefix is None else torch.cat([spatial, values], 1)

    def observe(self, view: View) -> dict[str, Tensor]:
        """By role: sums over images of ratio and cosine, (layers, entries), and histograms of ratios.

        `images` is 0 where a layer has fewer entries than the longest.
        """
        terms: dict[str, Tensor] = {}
        for role, reduced in view.by_role.items():
            values = _padded(list(reduced.values()))
            ratio, cosine = values.unbind(-1)
            present = _padded([v.new_ones(1, v.shape[1], 1) for v in reduced.values()])[:, 0, :, 0]
            terms |= {
                f"ratio_{role}": ratio.sum(1),
                f"cosine_{role}": cosine.sum(1),
                f"images_{role}": present * view.images,
                f"undefined_{role}": ratio.isfinite().logical_not().sum(1),
                f"histogram_{role}": histogram(ratio),
            }
        return terms

    def tables(self, sums: Sums) -> dict[str, pd.DataFrame]:
        """One row per sublayer and token: block, branch, token, ratio, median, cosine, model, kind.

        token: -1 for the mean over spatial tokens. kind: mean, class, prefix (registers) or spatial.
        """
        rows = []
        for role, names in sums.axes.items():
            terms = {
                key.removesuffix(f"_{role}"): term.cpu().numpy() for key, term in sums.terms.items()
            }
            broken = terms["undefined"] > 0
            with np.errstate(invalid="ignore", divide="ignore"):
                ratio = np.where(broken, np.nan, terms["ratio"] / terms["images"])
                cosine = terms["cosine"] / terms["images"]
            middle = np.where(broken, np.nan, median(terms["histogram"]))
            for i, (name, layer) in enumerate(zip(names, self.setting.layers[role], strict=True)):
                for entry in range(int((terms["images"][i] > 0).sum())):
                    numbers = [float(part[i, entry]) for part in (ratio, middle, cosine)]
                    rows.append(
                        (
                            *block_and_branch(name),
                            entry - 1,
                            *numbers,
                            role,
                            _kind(layer, entry - 1),
                        )
                    )
        columns = ["block", "branch", "token", "ratio", "median", "cosine", "model", "kind"]
        return {"skip_ratio": pd.DataFrame(rows, columns=columns)}

    def warnings(self, sums: Sums) -> list[str]:
        """Which sublayers have undefined ratios, and why."""
        warnings = []
        for role, names in sums.axes.items():
            undefined = sums.terms[f"undefined_{role}"]
            outside = sums.terms[f"histogram_{role}"][..., [0, -1]].sum(-1)
            no_angle = sums.terms[f"cosine_{role}"].isfinite().logical_not()
            for i, name in enumerate(names):
                if undefined[i].sum():
                    warnings.append(
                        f"{name} of the {role}: in {int(undefined[i].max())} images the branch is 0, "
                        f"NaN or Inf; the ratio is undefined, so NaN"
                    )
                elif outside[i].sum():
                    warnings.append(
                        f"{name} of the {role} has ratios outside 2^{LOWEST} to 2^{LOWEST + OCTAVES}; "
                        f"medians outside this range are NaN"
                    )
                if no_angle[i].any() and not undefined[i].any():
                    warnings.append(
                        f"{name} of the {role}: the skip connection or the sum is 0 somewhere (after a ReLU, "
                        f"say); the cosine is undefined, so NaN"
                    )
        return warnings

    def caption(self, figure: str, tables: dict[str, pd.DataFrame]) -> str:
        return "Colours saturate at the 99th percentile" if figure == "skip_ratio_tokens" else ""

    def figures(self, tables: dict[str, pd.DataFrame], labels: Labels) -> dict[str, Figure]:
        table = tables["skip_ratio"]
        names = plotting.style.names_of_models(labels.model, labels.other)
        drawn = {}
        for column, name, ylabel in (
            ("ratio", "skip_ratio", "Mean ‖z‖ / ‖f(z)‖"),
            ("cosine", "skip_cosine", "Mean cos(z, z + f(z))"),
        ):
            drawn[name] = plotting.line_plots.depth_lines(
                _lines(table, column, names),
                xlabel="Block",
                ylabel=ylabel,
                title=f"{labels.models}, {labels.data}",
                from_zero=False,
                log=column == "ratio",
            )
        panels = _panels(table[table["model"] == "model"])
        if panels:
            drawn["skip_ratio_tokens"] = plotting.heatmaps.panels(
                panels,
                xlabel="Token (0: class token)"
                if _has_class(table[table["model"] == "model"])
                else "Token",
                ylabel="Block",
                title=f"{labels.model}, {labels.data}",
                colour_label="Mean ‖z‖ / ‖f(z)‖",
            )
        return drawn


def ratio_and_cosine(z: Tensor, f: Tensor) -> Tensor:
    """||z|| / ||f|| and cos(z, z + f) over the last axis: (N, T, D) twice -> (N, T, 2) float64.

    On a CPU, a few images at a time keep z + f in the cache.
    """
    size = max(1, _CHUNK_BYTES.get(z.device.type, 2**28) // (z[0].numel() * 4))
    parts = []
    for some_z, some_f in zip(z.split(size), f.split(size), strict=True):
        x, y = some_z.float(), some_f.float()
        total = x + y
        norms = [torch.linalg.vector_norm(part, dim=-1) for part in (x, y, total)]
        parts.append(torch.stack([*norms, total.mul_(x).sum(-1)], -1))
    norm_z, norm_f, norm, product = torch.cat(parts).to(float64_device(z), torch.float64).unbind(-1)
    return torch.stack([norm_z / norm_f, product / (norm_z * norm)], -1)


def histogram(ratio: Tensor) -> Tensor:
    """Number of images per bin, (layers, N, entries) -> (layers, entries, bins) float64.

    The first and last bins count the ratios outside the range.
    """
    bins = OCTAVES * PER_OCTAVE + 2
    place = ((ratio.log2() - LOWEST) * PER_OCTAVE).floor() + 1
    place = place.nan_to_num(0).clamp(0, bins - 1).long().transpose(1, 2)
    cells = torch.arange(place[..., 0].numel(), device=place.device).view(*place.shape[:2], 1)
    counts = ratio.new_zeros(cells.numel() * bins)
    counts.index_add_(0, (cells * bins + place).flatten(), ratio.new_ones(place.numel()))
    return counts.view(*place.shape[:2], bins)


def median(counts: np.ndarray) -> np.ndarray:
    """Lower median of histograms of ratios, (..., bins) -> (...); NaN outside their range.

    Interpolation within the bin keeps the error below the bin width of 4.4 %.
    """
    total = counts.cumsum(-1)
    half = (total[..., -1:] + 1) // 2
    place = (total < half).sum(-1, keepdims=True).clip(max=counts.shape[-1] - 1)
    here = np.take_along_axis(counts, place, -1)
    before = np.take_along_axis(total, place, -1) - here
    with np.errstate(invalid="ignore", divide="ignore"):
        within = (half - 0.5 - before) / here
    inside = (place > 0) & (place < counts.shape[-1] - 1)
    value = np.where(inside, 2.0 ** (LOWEST + (place - 1 + within) / PER_OCTAVE), np.nan)
    return value[..., 0]


def _padded(values: list[Tensor]) -> Tensor:
    """Stack as (layers, N, entries, ...), padded with zeros where a layer has fewer entries."""
    most = max(v.shape[1] for v in values)
    return torch.stack([torch.nn.functional.pad(v, (0, 0, 0, most - v.shape[1])) for v in values])


def _kind(layer: Layer, token: int) -> str:
    """The kind of a token of this layer."""
    if token < 0:
        return "mean"
    if token < (layer.prefix or 0):
        return "class" if token == 0 and layer.class_token else "prefix"
    return "spatial"


def _has_class(table: pd.DataFrame) -> bool:
    return bool((table["kind"] == "class").any())


def _lines(table: pd.DataFrame, column: str, names: dict[str, str]) -> list[Line]:
    """One line per model, branch and kind of token, as in the paper."""
    branches = {role: {*rows["branch"]} for role, rows in table.groupby("model")}
    told_apart = not set.intersection(*branches.values()) or len(branches) == 1
    lines = []
    for keys, rows in table.groupby(["model", "kind", "branch"], sort=False):
        role, kind, branch = map(str, keys)
        if kind not in ("mean", "class"):
            continue
        words = _words(branch) + ["(class token)"] * (kind == "class")
        if not (told_apart and _words(branch)):
            words = [names[role], *words]
        colour = f"{role} {branch}"
        lines.append(
            plotting.line_plots.Line(
                rows[column].to_numpy(), " ".join(words), colour, dashed=kind == "class"
            )
        )
    return lines


def _words(branch: str) -> list[str]:
    """A branch's name in figures; a unit's only branch needs none."""
    return [] if branch == "unit" else [_TITLES.get(branch, branch)]


def _panels(table: pd.DataFrame) -> dict[str, np.ndarray]:
    """Ratios by branch, (blocks, tokens), of blocks with tokens."""
    tokens = table[table["token"] >= 0]
    panels = {}
    for branch, rows in tokens.groupby("branch", sort=False):
        cells = rows.pivot(index="block", columns="token", values="ratio")
        what = " ".join(_words(str(branch))) or "f(z)"
        panels[f"‖z‖ / ‖{what}‖"] = cells.loc[rows["block"].unique()].to_numpy()
    return panels
