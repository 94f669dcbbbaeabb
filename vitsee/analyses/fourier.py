"""Spatial Fourier spectra of each layer's maps (Park and Kim 2022, Figures 2a and 8)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import pandas as pd

from vitsee import plotting
from vitsee.analysis import Analysis, Labels, Layer, View, register
from vitsee.errors import UserError
from vitsee.estimators.kernels import float64_device
from vitsee.io.tidy import Error, Kind, Table
from vitsee.lazy import torch
from vitsee.names import common_data, of_lines

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor

    from vitsee.sums import Sums

FLOOR = 1e-6
"""Added to amplitudes before the logarithm, as in the authors' code."""
_COLUMNS: dict[str, Kind] = {
    **{"layer": str, "depth": float, "frequency": float, "log_amplitude": float, "se": Error},
    **{"relative": float, "relative_se": Error},
}


@register
@dataclass(kw_only=True)
class Fourier(Analysis):
    """Which spatial frequencies do the maps of each layer contain?

    In each channel, the patch tokens (or the locations of a CNN) form a map of rows and columns. F is its
    discrete Fourier transform, and log(|F| + 1e-6) is averaged over channels and images, at the frequencies
    on the diagonal (equal along rows and columns), in units of pi: 1 alternates from place to place.
    """

    models: ClassVar[tuple[int, ...]] = (1,)
    default_images: ClassVar[int] = 512
    default_batch_size: ClassVar[int] = 64
    standard_errors: ClassVar[bool] = True

    columns: ClassVar[dict[str, Table]] = {"fourier": Table(_COLUMNS, keys=("layer", "frequency"))}

    name: str = "fourier"

    def check(self, layers: dict[str, list[Layer]]) -> None:
        for layer in layers["model"]:
            if layer.grid is None:
                raise UserError(
                    f"analysis=fourier: {layer.name} has no rows and columns (its output of "
                    f"{' x '.join(map(str, layer.shape))} is neither tokens on a grid nor a feature map); "
                    f"choose other layers with analysis.layers, such as blocks"
                )

    def reduce(self, layer: Layer, output: Tensor) -> Tensor:
        """Mean over channels of the log amplitude at each frequency, (N, frequencies) float64."""
        x = layer.sequence(output)[:, layer.prefix or 0 :].float()
        real, imaginary = (basis(layer.places, x.device) @ x).chunk(2, dim=1)
        logs = torch.hypot(real, imaginary).add_(FLOOR).log_().mean(2)
        return logs.to(float64_device(logs), torch.float64)

    def observe(self, view: View) -> dict[str, Tensor]:
        """Per layer: sums over images of the log amplitudes, also relative to frequency 0, and of their squares."""
        terms: dict[str, Tensor] = {}
        for name, logs in view.model.items():
            relative = logs - logs[:, :1]
            for which, values in (("", logs), (" relative", relative)):
                terms |= {
                    f"{name}{which}": values.sum(0),
                    f"{name}{which} squares": values.square().sum(0),
                }
        return terms | {"images": logs.new_tensor(view.images)}

    def tables(self, sums: Sums) -> dict[str, pd.DataFrame]:
        """One row per layer and frequency; standard errors are over images.

        relative: the log amplitude minus that of frequency 0, image by image.
        """
        terms = {name: term.cpu().numpy() for name, term in sums.terms.items()}
        images, parts = float(terms["images"]), []
        for layer in self.setting.layers["model"]:
            (mean, se), (relative, relative_se) = (
                _mean(terms[layer.name + which], terms[f"{layer.name}{which} squares"], images)
                for which in ("", " relative")
            )
            parts.append(
                pd.DataFrame(
                    {
                        "layer": layer.name,
                        "depth": np.nan if layer.depth is None else layer.depth,
                        "frequency": frequencies(layer.places),
                        "log_amplitude": mean,
                        "se": se,
                        "relative": relative,
                        "relative_se": relative_se,
                    }
                )
            )
        return {"fourier": pd.concat(parts, ignore_index=True)}

    def warnings(self, sums: Sums) -> list[str]:
        """Which layers have undefined spectra."""
        return [
            f"{name} has NaN or Inf in some image; its spectrum is undefined"
            for name in sums.axes["model"]
            if not sums.terms[name].isfinite().all()
        ]

    def figures(self, tables: dict[str, pd.DataFrame], labels: Labels) -> dict[str, Figure]:
        """Relative log amplitude by frequency, one line per layer; at the highest frequency, by depth."""
        drawn = plotting.line_plots.shaded_lines(
            tables["fourier"],
            x="frequency",
            y="relative",
            line="layer",
            xlabel="Frequency (π)",
            ylabel="Log amplitude, relative to frequency 0",
            title=f"{labels.model}, {labels.data}",
        )
        return {"fourier": drawn} | self.joined([(tables, labels)])

    def joined(
        self, results: Sequence[tuple[dict[str, pd.DataFrame], Labels]]
    ) -> dict[str, Figure]:
        """The highest frequency relative to frequency 0, a line per model, by depth; for a single model, by layer."""
        of_each = [labels for _, labels in results]
        lines, x = [], []
        for (tables, _), name in zip(results, of_lines(of_each), strict=True):
            table = tables["fourier"]
            highest = table[table["frequency"] > 0].groupby("layer", sort=False).tail(1)
            lines.append(plotting.line_plots.Line(highest["relative"].to_numpy(), name, name))
            x.append(highest["depth"].to_numpy())
        several = len(results) > 1
        drawn = plotting.line_plots.depth_lines(
            lines,
            xlabel="Depth (fraction of blocks)" if several else "Layer",
            ylabel="Δ log amplitude, highest frequency − 0",
            title=common_data(of_each),
            x=x if several else None,
        )
        return {"fourier_high": drawn}


def frequencies(grid: tuple[int, int]) -> np.ndarray:
    """Frequencies below pi on a grid's diagonal, in units of pi: ((min(rows, columns) + 1) // 2,)."""
    n = min(grid)
    return 2 * np.arange((n + 1) // 2) / n


def basis(grid: tuple[int, int], device: torch.device) -> Tensor:
    """Cosines, then negative sines, of each frequency at each place, (2 frequencies, rows x columns) float32.

    exp(-2 pi i (k r / rows + k' c / columns)), with k' = k on a square grid; otherwise the longer side uses
    the nearest frequency in its own transform.
    """
    k = np.arange((min(grid) + 1) // 2)
    phase = np.zeros((len(k), 1, 1))
    for axis, n in enumerate(grid):
        place = np.arange(n).reshape((-1, 1) if axis == 0 else (1, -1))
        phase = phase + np.round(k * n / min(grid))[:, None, None] * place / n
    angle = 2 * np.pi * phase.reshape(len(k), -1)
    waves = np.concatenate([np.cos(angle), -np.sin(angle)])
    return torch.from_numpy(waves).float().to(device)


def _mean(total: np.ndarray, squares: np.ndarray, images: float) -> tuple[np.ndarray, np.ndarray]:
    """Mean over images and its standard error, which is NaN for one image."""
    mean = total / images
    if images < 2:
        return mean, np.full_like(mean, np.nan)
    variance = np.clip(squares / images - mean**2, 0, None) / (images - 1)
    return mean, np.sqrt(variance)
