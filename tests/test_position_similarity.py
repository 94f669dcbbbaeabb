"""Cosines of position embeddings against a plain loop, which tokens count, and who has none."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import timm
import torch
from torch import nn

from vitsee.analyses.position_similarity import PositionSimilarity
from vitsee.errors import UserError
from vitsee.models.embedding import position_embeddings
from vitsee.sums import Sums


def measured(net: nn.Module) -> tuple[pd.DataFrame, list[str]]:
    analysis = PositionSimilarity()
    sums = Sums.of(0, 1, analysis.of_weights({"model": net}), {"model": []})
    return analysis.tables(sums)["position_similarity"], analysis.warnings(sums)


def model(name: str, **options: object) -> nn.Module:
    torch.manual_seed(0)
    net = timm.create_model(name, **options)
    nn.init.normal_(net.pos_embed)
    return net


@pytest.mark.parametrize(
    ("name", "options", "first"),
    [
        ("test_vit", {}, 1),
        ("test_vit", {"img_size": (96, 160)}, 1),
        ("deit_tiny_distilled_patch16_224", {"depth": 1}, 2),
        ("deit3_small_patch16_224", {"depth": 1}, 0),  # its class token has no position
        ("vit_tiny_patch16_224", {"depth": 1, "class_token": False, "global_pool": "avg"}, 0),
        ("vit_tiny_patch16_224", {"depth": 1, "reg_tokens": 4}, 5),
        ("cait_xxs24_224", {"depth": 1}, 0),
    ],
)
def test_every_pair_of_patches_equals_a_plain_loop_and_other_tokens_are_left_out(
    name, options, first
):
    net = model(name, **options)
    table, warnings = measured(net)
    rows, columns = net.patch_embed.grid_size
    vectors = net.pos_embed[0].detach().double().numpy()[first:]
    assert len(vectors) == rows * columns
    assert len(table) == (rows * columns) ** 2
    assert list(table.columns) == ["row", "col", "other_row", "other_col", "cosine"]
    for pair in table.sample(300, random_state=0).to_dict("records"):
        a = vectors[pair["row"] * columns + pair["col"]]
        b = vectors[pair["other_row"] * columns + pair["other_col"]]
        expected = np.sum(a * b) / np.sqrt(np.sum(a * a) * np.sum(b * b))
        assert pair["cosine"] == pytest.approx(expected, abs=1e-12)
    assert warnings == []


def test_a_position_has_cosine_one_with_itself_and_minus_one_with_its_opposite():
    net = model("test_vit")
    with torch.no_grad():
        net.pos_embed[0, 1 + 5] = -3 * net.pos_embed[0, 1]
    table, _ = measured(net)
    cosine = table["cosine"].to_numpy().reshape(100, 100)
    np.testing.assert_allclose(cosine.diagonal(), 1, atol=1e-12)
    np.testing.assert_allclose(cosine, cosine.T, atol=1e-15)
    assert cosine[0, 5] == pytest.approx(-1)


def test_an_embedding_of_zeros_is_nan_and_named():
    net = model("test_vit")
    with torch.no_grad():
        net.pos_embed[0, 1 + 13] = 0
    table, warnings = measured(net)
    undefined = np.isnan(table["cosine"].to_numpy().reshape(100, 100))
    assert undefined[13].all()
    assert undefined[:, 13].all()
    assert undefined.sum() == 199
    assert warnings == [
        "the position embeddings of 1 of 100 patches, the first [1, 3], are zero; "
        "their cosine is NaN"
    ]


@pytest.mark.parametrize(
    ("name", "instead"),
    [
        ("vit_relpos_small_patch16_224", "has none: it adds a bias for the relative position"),
        ("swin_tiny_patch4_window7_224", "has none: it adds a bias for the relative position"),
        ("swinv2_tiny_window8_256", "has none: it adds a bias for the relative position"),
        ("beit_base_patch16_224", "has none: it adds a bias for the relative position"),
        ("levit_128", "has none: it adds a bias for the relative position"),
        ("vit_base_patch16_rope_224", "has none: it rotates queries and keys by their position"),
        (
            "mixer_s16_224",
            "has none: it mixes tokens with layers that have weights for each position",
        ),
        (
            "resmlp_12_224",
            "has none: it mixes tokens with layers that have weights for each position",
        ),
        (
            "gmlp_ti16_224",
            "has none: it mixes tokens with layers that have weights for each position",
        ),
        ("resnet18", "has none: it is convolutional"),
        ("convnext_atto", "has none: it is convolutional"),
        ("twins_svt_small", "computes position encodings with convolutions"),
        ("davit_tiny", "computes position encodings with convolutions"),
        ("crossvit_9_240", r"has them in a form that vitsee does not read \(pos_embed_0\)"),
        ("volo_d1_224", "has a pos_embed of 1 x 14 x 14 x 384, which is not one vector per patch"),
        ("xcit_nano_12_p16_224", "computes its position encoding"),
    ],
)
def test_models_without_position_embeddings_are_refused_with_what_they_have_instead(name, instead):
    with torch.device("meta"):
        net = timm.create_model(name)
    with pytest.raises(UserError, match=f"{instead}.*models such as vit_mini.* have them"):
        position_embeddings(net)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_embeddings_with_nan_or_inf_are_refused(value):
    net = model("test_vit")
    with torch.no_grad():
        net.pos_embed[0, 4, 2] = value
    with pytest.raises(
        UserError, match=r"the position embeddings contain NaN or Inf; the checkpoint"
    ):
        measured(net)


@pytest.mark.parametrize(("grid", "tiles"), [((7, 7), 49), ((14, 14), 49), ((24, 16), 64)])
def test_a_large_grid_is_drawn_as_at_most_eight_by_eight_whole_maps(grid, tiles):
    from vitsee.plotting.map_plots import grid_of_grids

    figure = grid_of_grids(
        np.zeros(grid * 2), limits=(-1, 1), xlabel="x", ylabel="y", title="t", colour_label="c"
    )
    maps = [image for image in figure.axes[0].images if image.get_array().shape == grid]
    assert len(maps) == tiles
