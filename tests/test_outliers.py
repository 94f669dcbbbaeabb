"""CKA without outlier channels and tokens: what is removed is what was planted, and nothing else changes."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from reference import minibatch_cka
from test_compare import compared
from test_token_norm import Planted, experiment

from vitsee.analyses.cka import CKA
from vitsee.analysis import Layer, Setting, View
from vitsee.errors import UserError
from vitsee.estimators.outliers import Without, without_outliers
from vitsee.runner import minibatches, observer, run
from vitsee.study import Study
from vitsee.sums import Sums

pytestmark = pytest.mark.usefixtures("undrawn")

OWN = ("analysis=cka", "analysis.layers=blocks", "images=8", "batch_size=4")


def by_hand(x: np.ndarray, prefix: int) -> np.ndarray:
    """(N, tokens, channels) without outliers, by the words of the page, in float64."""
    spread = np.sqrt(((x - x.mean(0)) ** 2).mean((0, 1)))
    x = x[..., spread <= 8 * np.median(spread)].copy()
    norms = np.sqrt((x**2).sum(-1))
    middle = [sorted(row[prefix:])[(len(row) - prefix - 1) // 2] for row in norms]
    out = norms > 3 * np.array(middle)[:, None]
    for token in range(x.shape[1]):
        others = x[~out[:, token], token]
        x[out[:, token], token] = others.mean(0) if len(others) else 0
    return x


def planted(seed: int = 0) -> np.ndarray:
    """Noise with one loud channel (2), one long token in image 1 (token 4), and one in every image (token 6)."""
    x = np.random.default_rng(seed).normal(size=(6, 8, 11))
    x[..., 2] *= 40
    x[1, 4, 5:] += 30
    x[:, 6, 7:] += 25
    return x


def test_a_planted_channel_and_planted_tokens_are_removed_and_nothing_else():
    x = planted()
    rest, removed = without_outliers(torch.tensor(x), prefix=1)
    expected = by_hand(x, 1)
    assert rest.shape == (6, 8, 10)
    np.testing.assert_allclose(rest.numpy(), expected, atol=1e-5)
    assert removed[:2].tolist() == [1, pytest.approx(7 / 6)]
    variance = [
        ((part - part.mean(0)) ** 2).mean(0).sum() / part.shape[1] for part in (x, expected)
    ]
    assert float(removed[2]) == pytest.approx(1 - variance[1] / variance[0], rel=1e-5)


def test_features_without_outliers_stay_as_they_are():
    x = torch.randn(6, 8, 11, generator=torch.Generator().manual_seed(0))
    rest, removed = without_outliers(x)
    assert rest is x
    assert removed.tolist() == [0, 0, pytest.approx(0, abs=1e-12)]


def test_channels_that_are_mostly_dead_do_not_make_the_others_stand_out():
    x = torch.randn(32, 5, 64, generator=torch.Generator().manual_seed(0))
    x[..., :40] = 0
    rest, removed = without_outliers(x, prefix=1)
    assert rest.equal(x)
    assert removed.tolist() == [0, 0, 0]
    assert without_outliers(torch.zeros(4, 5, 8))[0].equal(torch.zeros(4, 5, 8))


def test_a_class_token_alone_has_no_outlier_tokens():
    x = torch.randn(32, 1, 16, generator=torch.Generator().manual_seed(0))
    rest, removed = without_outliers(x, prefix=1)
    assert rest.equal(x)
    assert removed[1] == 0


def test_what_is_not_finite_is_not_hidden():
    x = torch.randn(4, 3, 5)
    x[0, 1, 2] = torch.nan
    assert without_outliers(x)[0].isnan().any()


def test_cka_without_outliers_is_that_of_the_features_that_are_left():
    layers = [Layer(name, (8, 11), 1, grid=(1, 7)) for name in "ab"]
    xs = {name: [planted(seed + 10 * i) for i in range(3)] for seed, name in enumerate("ab")}
    analysis = CKA(without=Without.outliers).on(Setting(layers={"model": layers}))
    parts = []
    for i in range(3):
        kept = {one.name: analysis.reduce(one, torch.tensor(xs[one.name][i])) for one in layers}
        terms = analysis.observe(View(6, torch.zeros(6), kept))
        parts.append(Sums.of(i, 3, terms, {"model": ["a", "b"]}))
    tables = analysis.tables(sum(parts[1:], parts[0]))
    rest = {name: [by_hand(x, 1) for x in some] for name, some in xs.items()}
    expected = [[minibatch_cka(rest[a], rest[b]) for b in "ab"] for a in "ab"]
    np.testing.assert_allclose(tables["cka"]["cka"], np.ravel(expected), atol=2e-6)
    assert tables["cka_outliers"]["channels"].tolist() == [1, 1]
    assert (tables["cka_outliers"]["variance"] > 0.9).all()


def test_a_loud_channel_hides_the_other_layers_until_it_is_removed(images, tmp_path):
    """The same channel, added to two blocks, makes them alike; without it they are as before."""
    found = {}
    for without in ("nothing", "outliers"):
        for loud in (False, True):
            study = Study(experiment(images, tmp_path, *OWN, f"analysis.without={without}"))
            if loud:
                net = study.models["model"].net
                net.blocks[-1] = Loud(net.blocks[-1])
            with observer(study, []) as observe:
                parts = [
                    Sums.of(b.index, len(study.plan), observe(b), study.axes)
                    for b in minibatches(study, 0, list(range(len(study.plan))))
                ]
            table = study.analysis.tables(sum(parts[1:], parts[0]))["cka"]
            found[without, loud] = float(table["cka"].iloc[len(study.axes["model"]) - 1])
    assert abs(found["nothing", True] - found["nothing", False]) > 0.1
    assert found["outliers", True] == pytest.approx(found["outliers", False], abs=0.02)


class Loud(Planted):
    """Adds noise to one channel of one token, another one for each image."""

    def __init__(self, block: torch.nn.Module) -> None:
        super().__init__(block, 3)

    def forward(self, x, **options):
        x = self.block(x, **options).clone()
        noise = torch.randn(len(x), generator=torch.Generator().manual_seed(len(x)))
        x[:, self.token, 5] += 3000 * noise
        return x


def test_nothing_removed_is_the_identity_of_results_from_before_there_was_the_option(
    images, tmp_path
):
    given = experiment(images, tmp_path, *OWN)
    assert Study(given).made_of["analysis"] == [
        *("cka", 1),
        {"name": "cka", "tokens": "all", "products": "auto"},
    ]
    other = Study(experiment(images, tmp_path, *OWN, "analysis.without=outliers"))
    assert other.made_of["analysis"][2]["without"] == "outliers"


def test_both_models_have_their_removed_outliers_in_the_table(images, tmp_path):
    other = ["model@other=timm", "other.timm=test_vit2", "other.pretrained=false"]
    asked = experiment(images, tmp_path, *OWN, *other, "analysis.without=outliers")
    cka, outliers = (pd.read_csv(path) for path in run(asked).files[:2])
    assert list(outliers["model"].unique()) == ["model", "other"]
    assert list(cka["model_layer"].unique()) == list(
        outliers["layer"][outliers["model"] == "model"]
    )


def test_layers_whose_channels_are_unknown_are_refused_and_the_advice_works(images, tmp_path):
    asked = CKA(without=Without.outliers)
    with pytest.raises(
        UserError, match=r"the channel axis of mlp_tokens of the model is unknown .*such as blocks"
    ):
        asked.check({"model": [Layer("mlp_tokens", (11, 8), None)]})
    asked.check({"model": [Layer("head", (11,), None)]})
    assert Study(experiment(images, tmp_path, *OWN, "analysis.without=outliers")).layers["model"]


def test_grams_without_outliers_give_the_cka_without_outliers(images, tmp_path, monkeypatch):
    """And so every other measure of `vitsee compare` is of the same features."""
    monkeypatch.setattr("vitsee.estimators.outliers.CHANNEL", 1.2)  # so that something stands out
    monkeypatch.setattr("vitsee.estimators.outliers.TOKEN", 1.05)
    other = ["model@other=timm", "other.timm=test_vit2", "other.pretrained=false"]
    without = "analysis.without=outliers"
    direct = run(experiment(images, tmp_path, *OWN, *other, without)).files
    blocks = ("analysis=grams", *OWN[1:])
    (kept, removed), *_ = (
        [
            pd.read_csv(path)
            for path in run(experiment(images, tmp_path, *blocks, without, model)).files[:2]
        ]
        for model in ("model.timm=test_vit", "model.timm=test_vit2")
    )
    cka, outliers = (pd.read_csv(path) for path in direct[:2])
    assert np.abs(compared(tmp_path).table["value"] - cka["cka"]).max() < 1e-6
    assert len(kept) == 2 * len(removed)
    own = outliers[outliers["model"] == "model"].drop(columns="model").reset_index(drop=True)
    pd.testing.assert_frame_equal(removed, own)
    assert (removed[["channels", "tokens"]] > 0).all(axis=None)


def test_pooled_features_cannot_be_without_outliers(images, tmp_path):
    both = ("analysis=grams", "analysis.features=pooled", "analysis.without=outliers")
    with pytest.raises(UserError, match=r"features=pooled keeps every channel, .* use one of them"):
        experiment(images, tmp_path, *both)


def test_grams_without_outliers_have_an_identity_of_their_own(images, tmp_path):
    grams = ("analysis=grams", *OWN[1:])
    asked = [
        Study(experiment(images, tmp_path, *grams, *words))
        for words in ((), ("analysis.without=outliers",))
    ]
    assert "without" not in asked[0].made_of["analysis"][2]
    assert asked[1].made_of["analysis"][2]["without"] == "outliers"
