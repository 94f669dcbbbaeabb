"""Largest activations against plain float64 computation, and a planted one, which is found where it was put."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pandas as pd
import pytest
import torch
from test_token_norm import Planted, experiment, outputs_of

from vitsee.analyses.massive_activation import lower_median
from vitsee.analysis import Layer, Setting, View
from vitsee.errors import UserError
from vitsee.runner import minibatches, observer, run
from vitsee.study import Study
from vitsee.sums import Sums

pytestmark = pytest.mark.usefixtures("undrawn")

OWN = ("analysis=massive_activation", "images=6", "batch_size=4")


def by_hand(outputs: dict[str, np.ndarray], top: int) -> list[tuple]:
    """(layer, rank, mean magnitude, its standard deviation, mean median), and where each rank lies by image."""
    rows = []
    for layer, x in outputs.items():
        magnitudes = np.abs(x).reshape(len(x), -1)
        order = np.argsort(-magnitudes, axis=1, kind="stable")[:, :top]
        middle = np.sort(magnitudes, axis=1)[:, (magnitudes.shape[1] - 1) // 2].mean()
        for rank in range(top):
            value = magnitudes[np.arange(len(x)), order[:, rank]]
            where = [divmod(int(place), x.shape[2]) for place in order[:, rank]]
            rows.append((layer, rank + 1, value.mean(), value.std(ddof=1), middle, where))
    return rows


@pytest.mark.parametrize(
    "overrides", [[], ["model.timm=test_resnet", "analysis.layers=[layer1]", "analysis.top=5"]]
)
def test_values_medians_and_places_are_those_computed_by_hand(overrides, images, tmp_path):
    asked = experiment(images, tmp_path, *OWN, *overrides)
    study = Study(asked)
    found = pd.read_csv(run(asked).files[0])
    expected = by_hand(outputs_of(study), asked.analysis.top)
    tokens = {layer.name: layer.tokens for layer in study.layers["model"]}
    for row, (layer, rank, value, sd, middle, where) in zip(
        found.to_dict("records"), expected, strict=True
    ):
        assert (row["layer"], row["rank"]) == (layer, rank)
        numbers = [row[name] for name in ("value", "sd", "median", "ratio")]
        np.testing.assert_allclose(numbers, [value, sd, middle, value / middle], rtol=1e-4)
        for at, name in ((0, "token"), (1, "channel")):
            counts = Counter(place[at] for place in where)
            most = max(counts.values())
            if most == 1:  # any of them; neighbours differ by less than float32 resolves
                continue
            there = (
                row["channel"] if at else tokens[layer].index((row["kind"], row["row"], row["col"]))
            )
            assert counts[there] == most, "the place is one of the most frequent"
            assert row[f"{name}_share"] == pytest.approx(most / len(where))


def test_a_planted_activation_is_found_in_its_channel_and_token(images, tmp_path):
    study = Study(experiment(images, tmp_path, *OWN))
    columns = study.layers["model"][0].places[1]
    net = study.models["model"].net
    net.blocks[-1] = Planted(net.blocks[-1], 1 + 2 * columns + 3)  # adds 1000 to channel 5
    with observer(study, []) as observe:
        parts = [
            Sums.of(b.index, len(study.plan), observe(b), study.axes)
            for b in minibatches(study, 0, list(range(len(study.plan))))
        ]
    table = study.analysis.tables(sum(parts[1:], parts[0]))["massive_activation"]
    massive = table[table["ratio"] > 100]
    named = ["layer", "kind", "row", "col", "channel", "rank", "token_share", "channel_share"]
    assert massive[named].to_numpy().tolist() == [
        [study.layers["model"][-1].name, "patch", 2, 3, 5, 1, 1.0, 1.0]
    ]
    assert massive["value"].iloc[0] == pytest.approx(1000, rel=0.01)


def seen(x: torch.Tensor, top: int = 1) -> tuple[list[str], pd.DataFrame]:
    """Warnings and table of one minibatch of a single layer."""
    kind = type(experiment("unread", "unwritten", *OWN).analysis)
    layer = Layer("it", tuple(x.shape[1:]), 0, grid=(1, x.shape[1]))
    analysis = kind(top=top).on(Setting(layers={"model": [layer]}))
    view = View(len(x), torch.zeros(len(x)), {"it": analysis.reduce(layer, x)})
    sums = Sums.of(0, 1, analysis.observe(view), {"model": ["it"]})
    return analysis.warnings(sums), analysis.tables(sums)["massive_activation"]


@pytest.mark.parametrize("count", [1, 2, 3, 40, 1000, 5001])
def test_the_median_is_that_of_all_values_wherever_the_sample_leads(count):
    draw = np.random.default_rng(count)
    few = draw.integers(0, 3, count).astype(np.float32)
    edge = np.maximum(draw.standard_normal(count), 0).astype(np.float32)  # about half of them 0
    misleading = np.ones(count, np.float32)
    misleading[::37] = 100  # all that the sample sees
    for values in (
        draw.random(count).astype(np.float32),
        few,
        few * 0,
        edge,
        misleading,
        -misleading,
    ):
        assert lower_median(values) == np.sort(values)[(count - 1) // 2]


def test_layers_that_are_not_finite_or_mostly_zero_are_named():
    x = torch.zeros(2, 3, 4)
    x[:, 1, 2] = 7
    warnings, table = seen(x)
    assert warnings == ["most activations of it are 0, and so is their median; ratios are infinite"]
    assert table["ratio"].iloc[0] == np.inf
    assert (table["col"].iloc[0], table["channel"].iloc[0]) == (1, 2)
    x[0, 0, 0] = torch.nan
    warnings, table = seen(x)
    assert warnings == ["it has NaN or Inf in some image; its values are undefined"]
    assert table[["value", "median", "ratio"]].isna().all(axis=None)


def test_more_activations_than_there_are_are_refused_and_the_advice_works(images, tmp_path):
    kind = type(experiment(images, tmp_path, *OWN).analysis)
    layers = {"model": [Layer("it", (2, 3), 0, grid=(1, 2))]}
    with pytest.raises(UserError, match=r"top=7, but it has 6 activations; use analysis.top=6"):
        kind(top=7).check(layers)
    kind(top=6).check(layers)
    assert len(seen(torch.randn(2, 2, 3), top=6)[1]) == 6
    with pytest.raises(UserError, match=r"analysis.top must be at least 1, got 0"):
        kind(top=0)


def test_a_layer_without_a_grid_is_refused_by_name(images, tmp_path):
    with pytest.raises(
        UserError, match=r"massive_activation: head has no rows and .*such as blocks"
    ):
        Study(experiment(images, tmp_path, *OWN, "analysis.layers=[head]")).layers  # noqa: B018
