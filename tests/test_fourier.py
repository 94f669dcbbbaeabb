"""Spectra against numpy's float64 transform, and known waves, whose peaks are where they must be."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from test_token_norm import experiment, outputs_of

from vitsee.analyses.fourier import Fourier, frequencies
from vitsee.analysis import Layer, Setting, View
from vitsee.errors import UserError
from vitsee.runner import run
from vitsee.study import Study
from vitsee.sums import Sums

pytestmark = pytest.mark.usefixtures("undrawn")

OWN = ("analysis=fourier", "images=6", "batch_size=4")


def spectrum(maps: np.ndarray) -> np.ndarray:
    """Log amplitude on the diagonal, below pi: (N, C, n, n) -> (N, frequencies), the mean over channels."""
    amplitude = np.abs(np.fft.fft2(maps.astype(np.float64)))
    n = maps.shape[-1]
    diagonal = amplitude[..., np.arange(n), np.arange(n)][..., : (n + 1) // 2]
    return np.log(diagonal + 1e-6).mean(1)


@pytest.mark.parametrize(
    ("overrides", "prefix"),
    [([], 1), (["model.timm=test_resnet", "analysis.layers=[layer*]"], 0)],
)
def test_spectra_are_those_of_numpy(overrides, prefix, images, tmp_path):
    asked = experiment(images, tmp_path, *OWN, *overrides)
    study = Study(asked)
    found = pd.read_csv(run(asked).files[0])
    for layer, (name, x) in zip(study.layers["model"], outputs_of(study).items(), strict=True):
        maps = x[:, prefix:].transpose(0, 2, 1).reshape(len(x), -1, *layer.places)
        logs, n = spectrum(maps), layer.places[0]
        rows = found[found["layer"] == name]
        np.testing.assert_allclose(rows["frequency"], 2 * np.arange((n + 1) // 2) / n)
        relative = logs - logs[:, :1]
        for column, values in (("log_amplitude", logs), ("relative", relative)):
            error = values.std(0, ddof=1) / np.sqrt(len(values))
            se = "se" if column == "log_amplitude" else "relative_se"
            np.testing.assert_allclose(rows[column], values.mean(0), atol=1e-3)
            np.testing.assert_allclose(rows[se], error, atol=1e-3)


def measured(output: torch.Tensor, layer: Layer) -> pd.DataFrame:
    analysis = Fourier().on(Setting(layers={"model": [layer]}))
    view = View(len(output), torch.zeros(len(output)), {"it": analysis.reduce(layer, output)})
    sums = Sums.of(0, 1, analysis.observe(view), {"model": ["it"]})
    return analysis.tables(sums)["fourier"]


@pytest.mark.parametrize("grid", [(14, 14), (7, 7), (8, 12), (9, 5)])
@pytest.mark.parametrize("k", [0, 1, 2])
def test_a_sine_has_its_peak_at_its_own_frequency(grid, k):
    """Its amplitude is half of the number of places (all of it at frequency 0), and 0 elsewhere."""
    n, (rows, columns) = min(grid), grid
    row, column = np.mgrid[:rows, :columns]
    along = [round(k * side / n) for side in grid]
    wave = np.cos(2 * np.pi * (along[0] * row / rows + along[1] * column / columns) + 0.3 * (k > 0))
    x = torch.tensor(wave, dtype=torch.float32).reshape(1, -1, 1).repeat(2, 1, 3)
    register = torch.full((2, 1, 3), 9.0)
    layer = Layer("it", (rows * columns + 1, 3), 1, grid=grid)
    found = measured(torch.cat([register, x], 1), layer)
    peak = found.loc[found["log_amplitude"].idxmax()]
    assert peak["frequency"] == pytest.approx(2 * k / n)
    assert peak["log_amplitude"] == pytest.approx(np.log(wave.size / (2 if k else 1)), abs=1e-4)
    others = found[found["frequency"] != peak["frequency"]]
    assert (others["log_amplitude"] < -8).all()


def test_maps_with_channels_last_have_the_same_spectrum():
    maps = torch.randn(3, 4, 6, 6)
    first = measured(maps, Layer("it", (4, 6, 6), None, grid=(6, 6)))
    last = measured(
        maps.permute(0, 2, 3, 1), Layer("it", (6, 6, 4), None, grid=(6, 6), channels_last=True)
    )
    pd.testing.assert_frame_equal(first, last)
    np.testing.assert_allclose(first["log_amplitude"], spectrum(maps.numpy()).mean(0), atol=1e-4)


def test_a_single_place_has_frequency_0_alone():
    assert frequencies((1, 1)).tolist() == [0]
    found = measured(torch.full((2, 3, 1, 1), 2.0), Layer("it", (3, 1, 1), None, grid=(1, 1)))
    assert found["log_amplitude"].tolist() == pytest.approx([np.log(2 + 1e-6)])


def test_a_layer_that_is_not_finite_is_undefined_and_named():
    x = torch.zeros(1, 4, 2)
    x[0, 1, 1] = torch.inf
    layer = Layer("it", (4, 2), 0, grid=(2, 2))
    analysis = Fourier().on(Setting(layers={"model": [layer]}))
    view = View(1, torch.zeros(1), {"it": analysis.reduce(layer, x)})
    sums = Sums.of(0, 1, analysis.observe(view), {"model": ["it"]})
    assert analysis.warnings(sums) == ["it has NaN or Inf in some image; its spectrum is undefined"]


def test_a_layer_without_a_grid_is_refused_by_name(images, tmp_path):
    with pytest.raises(UserError, match=r"fourier: head has no rows and columns .*such as blocks"):
        Study(experiment(images, tmp_path, *OWN, "analysis.layers=[head]")).layers  # noqa: B018
