"""Norms of tokens against plain float64 computation, and planted outliers, which are found where they were put."""

from __future__ import annotations

import copy

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import composed
from torch import nn

from vitsee.analysis import Layer, View
from vitsee.errors import UserError
from vitsee.runner import minibatches, observer, run
from vitsee.study import Study
from vitsee.sums import Sums

pytestmark = pytest.mark.usefixtures("undrawn")


def experiment(images, outputs, *overrides: str):
    return composed(
        *("analysis=token_norm", "model=timm", "model.timm=test_vit", "model.pretrained=false"),
        *("dataset=folder", f"dataset.root={images}", "images=6", "batch_size=4"),
        *(f"run.outputs={outputs}", "run.device=cpu", "run.workers=0", "run.progress=false"),
        *overrides,
    )


def outputs_of(study: Study) -> dict[str, np.ndarray]:
    """The outputs of the watched layers in float64, (N, tokens, features)."""
    net = copy.deepcopy(study.models["model"].net).double()
    kept: dict[str, list[np.ndarray]] = {}
    for layer in study.layers["model"]:
        net.get_submodule(layer.name).register_forward_hook(
            lambda m, args, out, name=layer.name: kept.setdefault(name, []).append(out.numpy())
        )
    with torch.no_grad():
        for batch in minibatches(study, 0, list(range(len(study.plan)))):
            net(batch.pixels["model"].double())
    whole = {name: np.concatenate(parts) for name, parts in kept.items()}
    return {
        name: x.transpose(0, 2, 3, 1).reshape(len(x), -1, x.shape[1]) if x.ndim == 4 else x
        for name, x in whole.items()
    }


def by_hand(outputs: dict[str, np.ndarray], prefix: int, multiple: float) -> pd.DataFrame:
    rows = []
    for layer, x in outputs.items():
        norms = np.sqrt((x**2).sum(-1))
        middles = [
            sorted(of_image[prefix:])[(len(of_image) - prefix - 1) // 2] for of_image in norms
        ]
        for token in range(norms.shape[1]):
            one = norms[:, token]
            share = np.mean([n > multiple * m for n, m in zip(one, middles, strict=True)])
            rows.append((layer, one.mean(), one.std(ddof=1), share))
    return pd.DataFrame(rows, columns=["layer", "norm", "sd", "outlier_share"])


@pytest.mark.parametrize(
    ("overrides", "prefix"),
    [
        (["analysis.multiple=1.02"], 1),
        (["model.args={reg_tokens: 3}", "analysis.multiple=1.02"], 4),
        (["model.timm=test_resnet", "analysis.layers=[layer*]", "analysis.multiple=1.5"], 0),
    ],
)
def test_norms_and_shares_of_outliers_are_those_computed_by_hand(
    overrides, prefix, images, tmp_path
):
    asked = experiment(images, tmp_path, *overrides)
    study = Study(asked)
    found = pd.read_csv(run(asked).files[0])
    expected = by_hand(outputs_of(study), prefix, asked.analysis.multiple)
    assert list(found["layer"]) == list(expected["layer"])
    for column, rtol in (("norm", 1e-5), ("sd", 1e-3)):
        np.testing.assert_allclose(found[column], expected[column], rtol=rtol, atol=1e-5)
    assert (found["outlier_share"] == expected["outlier_share"]).mean() > 0.99  # ties round
    assert expected["outlier_share"].max() > 0


class Planted(nn.Module):
    """Adds a long vector to one token of every image."""

    def __init__(self, block: nn.Module, token: int) -> None:
        super().__init__()
        self.block, self.token = block, token

    def forward(self, x, **options):
        x = self.block(x, **options).clone()
        x[:, self.token, 5] += 1000
        return x


def test_a_planted_outlier_is_found_where_it_was_put(images, tmp_path):
    """In the last block alone, in every image, and in no other token."""
    asked = experiment(images, tmp_path)
    study = Study(asked)
    columns = study.layers["model"][0].places[1]
    net = study.models["model"].net
    net.blocks[-1] = Planted(net.blocks[-1], 1 + 2 * columns + 3)
    with observer(study, []) as observe:
        parts = [
            Sums.of(b.index, len(study.plan), observe(b), study.axes)
            for b in minibatches(study, 0, list(range(len(study.plan))))
        ]
    table = study.analysis.tables(sum(parts[1:], parts[0]))["token_norm"]
    outliers = table[table["outlier_share"] > 0]
    assert outliers[["layer", "kind", "row", "col", "outlier_share"]].to_numpy().tolist() == [
        [study.layers["model"][-1].name, "patch", 2, 3, 1.0]
    ]
    assert outliers["norm"].iloc[0] == pytest.approx(1000, rel=0.01)


def test_the_histogram_holds_every_token_once(images, tmp_path):
    asked = experiment(images, tmp_path, "analysis.layers=[blocks.0]")
    found = pd.read_csv(run(asked).files[1])
    assert found.groupby("kind")["share"].sum().to_dict() == pytest.approx({"class": 1, "patch": 1})
    (norms,) = outputs_of(Study(asked)).values()
    norms = np.sqrt((norms**2).sum(-1))[:, 1:].ravel()
    for _, one in found[found["kind"] == "patch"].iterrows():
        inside = (norms >= one["low"] * (1 - 1e-6)) & (norms < one["high"] * (1 + 1e-6))
        assert one["share"] <= inside.mean() + 1e-12
        assert (
            one["share"]
            >= ((norms > one["low"] * (1 + 1e-6)) & (norms < one["high"] * (1 - 1e-6))).mean()
        )


def test_tokens_are_named_by_kind_and_place():
    layer = Layer("x", (7, 5), 3, class_token=True, grid=(2, 2))
    assert layer.tokens == [
        *(("class", -1, 0), ("register", -1, 1), ("register", -1, 2)),
        *(("patch", 0, 0), ("patch", 0, 1), ("patch", 1, 0), ("patch", 1, 1)),
    ]


def test_a_layer_without_a_grid_is_refused_and_the_advice_works(images, tmp_path):
    asked = experiment(images, tmp_path, "analysis.layers=[head]")
    with pytest.raises(
        UserError, match=r"token_norm: head has no rows and columns .*such as blocks"
    ):
        Study(asked).layers  # noqa: B018
    assert Study(experiment(images, tmp_path, "analysis.layers=blocks")).layers["model"]


def test_a_multiple_that_makes_half_of_the_tokens_outliers_is_refused():
    with pytest.raises(UserError, match=r"analysis.multiple must be above 1 .*got 1.0"):
        composed("analysis=token_norm", "analysis.multiple=1")
    assert composed("analysis=token_norm", "analysis.multiple=3").analysis.multiple == 3


def test_tokens_that_are_not_finite_are_undefined_and_named(images, tmp_path, caplog):
    asked = experiment(images, tmp_path, "images=4", "batch_size=4")
    study = Study(asked)
    layer = study.layers["model"][0]
    norms = torch.ones(2, len(layer.tokens))
    norms[0, 3] = torch.nan
    view = View(2, torch.zeros(2), {one.name: norms for one in study.layers["model"]})
    sums = Sums.of(0, 1, study.analysis.observe(view), study.axes)
    assert study.analysis.warnings(sums)[0].startswith(f"{layer.name}: 1 of its")
    table = study.analysis.tables(sums)["token_norm"]
    undefined = table[table["layer"] == layer.name]["outlier_share"].isna()
    assert undefined.to_numpy().nonzero()[0].tolist() == [3]
