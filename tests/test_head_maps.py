"""Attention of single heads against plain float64 computation, and a planted head that looks at a fixed offset."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import composed
from test_token_norm import experiment

from vitsee.analyses.head_maps import HeadMaps
from vitsee.analysis import Layer, Setting, View
from vitsee.errors import UserError
from vitsee.estimators.attention import Attention
from vitsee.runner import minibatches, run
from vitsee.study import Study
from vitsee.sums import Sums

pytestmark = pytest.mark.usefixtures("undrawn")

OWN = ("analysis=head_maps", "images=3", "batch_size=2", "model.args={reg_tokens: 2}")


@pytest.fixture(scope="module")
def measured(images, tmp_path_factory) -> tuple[Study, dict[str, pd.DataFrame]]:
    asked = experiment(images, tmp_path_factory.mktemp("out"), *OWN)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vitsee.runner.draw", lambda *path, **options: [])
        return Study(asked), {path.stem: pd.read_csv(path) for path in run(asked)}


@pytest.fixture(scope="module")
def attention(measured) -> dict[str, np.ndarray]:
    """Weights of each layer in float64, (N, heads, tokens, tokens), from the inputs of its module."""
    study = measured[0]
    net, kept = study.models["model"].net.double(), {}

    def keep(name: str):
        def hook(module, args, out):
            x = args[0]
            n, tokens, _ = x.shape
            qkv = module.qkv(x).reshape(n, tokens, 3, module.num_heads, -1).permute(2, 0, 3, 1, 4)
            q, k = module.q_norm(qkv[0]), module.k_norm(qkv[1])
            scores = q @ k.mT / math.sqrt(q.shape[-1])
            kept.setdefault(name, []).append(scores.softmax(-1).numpy())

        return hook

    hooks = [
        net.get_submodule(layer.name).register_forward_hook(keep(layer.name))
        for layer in study.layers["model"]
    ]
    with torch.no_grad():
        for batch in minibatches(study, 0, [0, 1]):
            net(batch.pixels["model"].double())
    for hook in hooks:
        hook.remove()
    net.float()
    return {name: np.concatenate(parts) for name, parts in kept.items()}


def test_maps_are_the_attention_from_the_class_token_to_the_patches(measured, attention):
    study, tables = measured
    for layer in study.layers["model"]:
        rows = tables["head_maps"][tables["head_maps"]["layer"] == layer.name]
        expected = attention[layer.name][:, :, 0, 3:]
        np.testing.assert_allclose(
            rows["weight"].to_numpy().reshape(expected.shape), expected, atol=1e-6
        )


def test_entropies_and_offsets_are_those_of_plain_loops(measured, attention):
    study, tables = measured
    layer = study.layers["model"][0]
    weights, (height, width) = attention[layer.name][:, :, 3:], layer.places
    rows = tables["head_summary"][tables["head_summary"]["layer"] == layer.name]
    entropy = -(weights * np.log(weights)).sum(-1).mean((0, 2))
    np.testing.assert_allclose(rows["entropy"], entropy, atol=1e-5)
    assert (rows["uniform"] == math.log(weights.shape[-1])).all()
    for head, row in rows.reset_index().iterrows():
        best = (-1.0, 0, 0)
        for down in range(-(height // 2), height // 2 + 1):
            for right in range(-(width // 2), width // 2 + 1):
                looks = [
                    weights[:, head, r * width + c, 3 + (r + down) * width + c + right].mean()
                    for r in range(height)
                    for c in range(width)
                    if 0 <= r + down < height and 0 <= c + right < width
                ]
                best = max(best, (float(np.mean(looks)), down, right))
        assert (row["row_offset"], row["col_offset"]) == best[1:]
        assert row["offset_weight"] == pytest.approx(best[0], abs=1e-6)


def test_images_are_named(measured):
    study, tables = measured
    ids = [study.images.id(i) for batch in range(2) for i in study.plan.batch(batch)]
    assert tables["head_maps_names"]["id"].tolist() == ids
    assert tables["head_maps_images"].groupby("image")["row"].max().tolist() == [111] * 3


def seen(bias: torch.Tensor, layer: Layer, **options) -> dict[str, pd.DataFrame]:
    """Tables of two images with softmax(bias) as attention."""
    heads, tokens = bias.shape[0], bias.shape[-1]
    nothing = torch.zeros(2, heads, tokens, 1)

    class Named:
        def id(self, index: int) -> str:
            return f"image {index}"

    analysis = HeadMaps(**options).on(Setting(layers={"model": [layer]}, images=[Named()]))
    reduced = analysis.reduce(layer, Attention(nothing, nothing, bias, 1.0, nothing))
    pixels = {"model": torch.zeros(2, 3, 8, 8)}
    view = View(
        2, torch.zeros(2), {layer.name: reduced}, pixels=pixels, planned=2, positions=[0, 1],
        indices=[4, 2], normalisation={"model": ((0.5,) * 3, (0.5,) * 3)},
    )  # fmt: skip
    return analysis.tables(Sums.of(0, 1, analysis.observe(view), {"model": [layer.name]}))


def planted() -> tuple[torch.Tensor, Layer]:
    """Head 0 looks one row down and two columns to the left (where it can), head 1 everywhere, head 2 at itself."""
    layer = Layer("blocks.4.attn", (3, 31, 1), 1, class_token=True, grid=(5, 6), pitch=(1, 1))
    bias = torch.zeros(3, 31, 31)
    for query in range(30):
        r, c = divmod(query, 6)
        to = (r + 1) * 6 + c - 2 if r + 1 < 5 and c >= 2 else query
        for head, at in ((0, to), (2, query)):
            bias[head, 1 + query] = -math.inf
            bias[head, 1 + query, 1 + at] = 0
    return bias, layer


def test_a_planted_head_that_looks_at_a_fixed_offset_is_found():
    tables = seen(*planted())
    rows = tables["head_summary"]
    found = rows[["row_offset", "col_offset", "offset_weight"]].to_numpy()
    assert found[0].tolist() == [1, -2, 1]
    assert found[2].tolist() == [0, 0, 1]
    assert found[1, 2] == pytest.approx(1 / 31)
    np.testing.assert_allclose(rows["entropy"], [0, math.log(31), 0], atol=1e-6)
    shares = tables["head_offset_share"].iloc[0].tolist()
    assert shares == ["blocks.4.attn", 4, pytest.approx(1 / 3)], "not the head that looks at itself"
    assert tables["head_maps_names"]["id"].tolist() == ["image 4", "image 2"]


def test_the_query_can_be_any_patch():
    maps = seen(*planted(), query=[2, 3])["head_maps"]
    first = maps[(maps["head"] == 0) & (maps["image"] == 0)].set_index(["row", "col"])["weight"]
    assert first[3, 1] == 1
    assert first.sum() == 1


def test_without_a_class_token_the_mean_of_all_patches_is_shown():
    bias, layer = planted()
    layer = Layer(layer.name, (3, 30, 1), 0, grid=layer.grid, pitch=layer.pitch)
    maps = seen(bias[:, 1:, 1:], layer)["head_maps"]
    itself = maps[(maps["head"] == 2) & (maps["image"] == 1)]["weight"]
    np.testing.assert_allclose(itself, 1 / 30, rtol=1e-6)


@pytest.mark.parametrize(
    ("option", "says"),
    [
        ("analysis.query=3", r"query must be the \[row, column\] of a patch, .*\[3,7\]; got 3"),
        ("analysis.fixed=1.0", r"analysis.fixed must be between 0 and 1, got 1.0"),
        ("analysis.images_list=3", r"images_list must be a list of image numbers or ids"),
    ],
)
def test_options_that_cannot_be_are_refused(option, says):
    with pytest.raises(UserError, match=says):
        composed("analysis=head_maps", option)


def test_a_query_beyond_the_grid_is_refused_and_the_advice_works():
    layers = {"model": [planted()[1]]}
    with pytest.raises(UserError, match=r"the 5 x 6 grid of blocks.4.attn goes .* to \[4, 5\]"):
        HeadMaps(query=[5, 0]).check(layers)
    HeadMaps(query=[4, 5]).check(layers)
