"""Localization where the answer is known, on real models against the equation, and its edge cases."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import composed
from matplotlib.axes import Axes
from reference import place_cka
from torch import Tensor

from vitsee.analyses.localization import Localization, Scale
from vitsee.analysis import Labels, Layer, Setting, View
from vitsee.errors import UserError
from vitsee.estimators.kernels import gram, hsic, u_centre
from vitsee.estimators.places import (
    cut_into_patches,
    pair_grams,
    pair_hsic,
    representations,
    self_hsic,
)
from vitsee.results.folder import Results
from vitsee.runner import minibatches, observer, run
from vitsee.study import Study
from vitsee.sums import Sums

pytestmark = pytest.mark.usefixtures("undrawn")

ROWS, COLUMNS, SIDE = 3, 5, 4
"""A grid that is not square, of patches of 4 x 4 pixels."""
PLACES = ROWS * COLUMNS
GRID: dict = {"grid": (ROWS, COLUMNS), "pitch": (SIDE, SIDE)}
TOKENS = Layer("blocks.1", (2 + PLACES, 3 * SIDE**2), prefix=2, **GRID)
MAP = Layer("layer4.1", (3 * SIDE**2, ROWS, COLUMNS), prefix=None, **GRID)
LAST = Layer("norm", (ROWS, COLUMNS, 3 * SIDE**2), prefix=None, **GRID, channels_last=True)
EVERY = pytest.mark.parametrize(
    "layer", [TOKENS, MAP, LAST], ids=["tokens", "map", "channels last"]
)


def random_pixels(count: int, n: int = 16) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(n, 3, ROWS * SIDE, COLUMNS * SIDE, generator=generator) for _ in range(count)
    ]


def plain_patches(pixels: Tensor, side: int = SIDE) -> Tensor:
    """(N, 3, H, W) -> (patches, N, 3 side²) by slices."""
    rows, columns = (size // side for size in pixels.shape[2:])
    return torch.stack([
        pixels[:, :, r * side : (r + 1) * side, c * side : (c + 1) * side].flatten(1)
        for r in range(rows)
        for c in range(columns)
    ])  # fmt: skip


def as_output(layer: Layer, features: Tensor) -> Tensor:
    """What the layer would output with these features, (places, N, F), at its places."""
    if layer.channels_last:
        return features.transpose(0, 1).unflatten(1, layer.grid)
    if layer.prefix is None:
        return features.permute(1, 2, 0).unflatten(2, layer.grid)
    first = torch.randn(layer.prefix, *features.shape[1:])
    return torch.cat([first, features]).transpose(0, 1)


def summed(layer: Layer, *minibatches: tuple[Tensor, Tensor]) -> Sums:
    """Sums of (pixels, output of the layer), given minibatch by minibatch."""
    Localization().check({"model": [layer]})
    analysis = Localization().on(Setting(layers={"model": [layer]}))
    total = Sums.zero(len(minibatches))
    for i, (pixels, output) in enumerate(minibatches):
        reduced = {layer.name: analysis.reduce(layer, output)}
        view = View(len(pixels), torch.zeros(0), reduced, pixels={"model": pixels})
        axes = {"model": [layer.name]}
        total += Sums.of(i, len(minibatches), analysis.observe(view), axes)
    return total


def pairs_of(sums: Sums) -> np.ndarray:
    """CKA of every token with every patch, (tokens, patches)."""
    return Localization().tables(sums)["localization"]["cka"].to_numpy().reshape(PLACES, PLACES)


def scores_of(sums: Sums) -> pd.DataFrame:
    return Localization().tables(sums)["localization_score"]


@EVERY
def test_tokens_that_copy_their_patch_have_cka_one_with_it_and_rank_one(layer):
    batches = [(x, as_output(layer, plain_patches(x))) for x in random_pixels(3)]
    scores = scores_of(summed(layer, *batches))
    np.testing.assert_allclose(scores["own_cka"], 1, atol=1e-6)
    assert (scores["own_rank"] == 1).all()
    assert (scores["mean_cka"] < 0.2).all()


@EVERY
def test_shuffled_copies_have_cka_one_with_the_patch_they_come_from(layer):
    source = torch.randperm(PLACES, generator=torch.Generator().manual_seed(1))
    batches = [(x, as_output(layer, 3 * plain_patches(x)[source] + 5)) for x in random_pixels(3)]
    cka = pairs_of(summed(layer, *batches))
    np.testing.assert_allclose(cka[np.arange(PLACES), source], 1, atol=1e-6)
    assert (cka.argmax(1) == source.numpy()).all()
    assert (cka[np.arange(PLACES), source] > np.sort(cka, 1)[:, -2] + 0.5).all()


def test_noise_has_cka_zero_within_its_standard_error():
    generator = torch.Generator().manual_seed(1)
    batches = [
        (x, as_output(TOKENS, torch.randn(PLACES, 16, 20, generator=generator)))
        for x in random_pixels(40)
    ]
    table = Localization().tables(summed(TOKENS, *batches))["localization"]
    z = table["cka"] / table["se"]
    assert abs(table["cka"].mean()) < 0.003
    assert table["cka"].min() < 0 < table["cka"].max()
    assert 0.7 < np.mean(z**2) < 1.4
    assert z.abs().max() < 5


def on_images(*overrides: str, images, outputs) -> tuple[Study, dict[str, pd.DataFrame]]:
    experiment = composed(
        "analysis=localization",
        "dataset=folder",
        f"dataset.root={images}",
        "images=16",
        "batch_size=8",
        f"run.outputs={outputs}",
        "run.device=cpu",
        "run.workers=0",
        "run.progress=false",
        *overrides,
    )
    run(experiment)
    study = Study(experiment)
    return study, Results(outputs / study.folder).tables()


def plain_features(study: Study, layer: Layer) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Float32 tokens and patches of every minibatch, centred in float64, by a plain hook and slices."""
    kept: list[Tensor] = []
    net = study.models["model"].net
    handle = net.get_submodule(layer.name).register_forward_hook(lambda m, i, o: kept.append(o))
    x, y = [], []
    for batch in minibatches(study, 0, list(range(len(study.plan)))):
        pixels = batch.pixels["model"].contiguous()
        with torch.no_grad():
            net(pixels)
        output = kept.pop().double()
        if layer.prefix is not None:
            features = output[:, layer.prefix :].transpose(0, 1)
        elif layer.channels_last:
            features = torch.stack([output[:, r, c] for r, c in np.ndindex(*layer.grid)])
        else:
            features = torch.stack([output[:, :, r, c] for r, c in np.ndindex(*layer.grid)])
        cut = plain_patches(pixels.double(), side=int(layer.pitch[0]))
        for found, values in ((x, features), (y, cut)):
            found.append((values - values.mean(1, keepdim=True)).numpy())
    handle.remove()
    return x, y


VIT = ["model=timm", "model.timm=vit_tiny_patch16_224", "model.pretrained=false"]
RESNET = [
    "model=timm",
    "model.timm=resnet18",
    "model.args={layers: [1, 1, 1, 1], zero_init_last: false}",
    "model.overlay.input_size=[3,128,128]",
    "model.pretrained=false",
]
WIDE = [
    "model=timm",
    "model.timm=test_vit",
    "model.pretrained=false",
    "model.args={img_size: [96, 160]}",
    "model.overlay={input_size: [3, 96, 160]}",
]


UNFILLED = [
    "model=timm",
    "model.timm=vit_tiny_patch16_224",
    "model.pretrained=false",
    "model.args={img_size: 30, patch_size: 8, embed_dim: 32, depth: 1, num_heads: 2}",
]
NORM = [
    "model=timm",
    "model.timm=convnext_tiny",
    "model.pretrained=false",
    "model.args={dims: [16, 32, 64, 96], depths: [1, 1, 1, 1]}",
    "analysis.layers=[stages.3.blocks.0.norm]",
]
SWIN = [
    "model=timm",
    "model.timm=swin_tiny_patch4_window7_224",
    "model.pretrained=false",
    "model.args={embed_dim: 24, depths: [1, 1, 1, 1], num_heads: [1, 1, 1, 1]}",
]
MODELS = {
    "ViT-Ti": [*VIT, "model.args.img_size=96"],
    "ResNet-18": RESNET,
    "ViT of 6 x 10 tokens": WIDE,
    "ViT of 24 of 30 pixels": UNFILLED,
    "ConvNeXt's norm": NORM,
    "Swin": SWIN,
}


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_every_pair_equals_the_equation_in_a_plain_float64_loop(model, images, tmp_path):
    study, tables = on_images(*model, images=images, outputs=tmp_path)
    (layer,) = study.layers["model"]
    expected = place_cka(*plain_features(study, layer))
    error = np.abs(tables["localization"]["cka"].to_numpy().reshape(expected.shape) - expected)
    assert error.max() < 1e-5
    first, last = tables["localization"].iloc[[0, -1]].to_dict("records")
    assert [first[c] for c in ("token_row", "token_col", "patch_row", "patch_col")] == [0] * 4
    assert (last["token_row"], last["patch_col"]) == (layer.grid[0] - 1, layer.grid[1] - 1)


def test_a_trained_vit_on_photographs_equals_the_equation_in_a_plain_float64_loop(
    test_data, tmp_path
):
    study, tables = on_images(
        *VIT,
        f"model.checkpoint={test_data / 'weights/vit_tiny_patch16_224.safetensors'}",
        "model.overlay={mean: [0.5, 0.5, 0.5], std: [0.5, 0.5, 0.5]}",
        images=test_data / "imagenet_sample.tar",
        outputs=tmp_path,
    )
    (layer,) = study.layers["model"]
    expected = place_cka(*plain_features(study, layer))
    error = np.abs(tables["localization"]["cka"].to_numpy().reshape(expected.shape) - expected)
    assert error.max() < 1e-5
    assert list(tables["localization"].columns[:6]) == [
        "layer", "token_row", "token_col", "patch_row", "patch_col", "cka",
    ]  # fmt: skip
    assert list(tables["localization_score"].columns[:6]) == [
        "layer", "token_row", "token_col", "own_cka", "mean_cka", "own_rank",
    ]  # fmt: skip


def test_scores_are_those_counted_in_the_table_of_pairs():
    generator = torch.Generator().manual_seed(1)
    batches = [
        (
            x,
            as_output(
                TOKENS, plain_patches(x) + 3 * torch.randn(PLACES, 16, 48, generator=generator)
            ),
        )
        for x in random_pixels(2)
    ]
    tables = Localization().tables(summed(TOKENS, *batches))
    pairs = tables["localization"]
    for score in tables["localization_score"].itertuples():
        every = pairs[
            (pairs["token_row"] == score.token_row) & (pairs["token_col"] == score.token_col)
        ]
        own = every.query(f"patch_row == {score.token_row} and patch_col == {score.token_col}")
        inner = every.query("patch_row == 1 and 0 < patch_col < 4")["cka"]
        assert score.own_cka == own["cka"].item()
        assert score.own_rank == 1 + sum(cka > score.own_cka for cka in every["cka"])
        assert score.mean_cka == pytest.approx(every["cka"].mean())
        assert score.inner_cka == pytest.approx(inner.mean())
        assert score.border_cka == pytest.approx(every["cka"].drop(inner.index).mean())
    assert not (tables["localization_score"]["own_rank"] == 1).all()


def test_a_constant_token_is_nan_and_named():
    batches = []
    for x in random_pixels(2):
        output = as_output(TOKENS, plain_patches(x))
        output[:, 2 + 7] = 0.3
        batches.append((x, output))
    sums = summed(TOKENS, *batches)
    undefined = np.isnan(pairs_of(sums))
    assert undefined[7].all()
    assert undefined.sum() == PLACES
    scores = scores_of(sums)
    assert scores.loc[7, ["own_cka", "mean_cka", "own_rank"]].isna().all()
    assert (scores["own_rank"].drop(7) == 1).all()
    assert Localization().warnings(sums) == [
        "blocks.1: 1 of 15 tokens (first: [1, 2]) are constant over the images; "
        "their CKA is 0/0, so NaN"
    ]


def test_a_constant_patch_is_nan_and_named_and_not_counted_in_the_means():
    batches = []
    for x in random_pixels(2):
        x[:, :, :SIDE, :SIDE] = 1.0
        batches.append((x, as_output(TOKENS, torch.randn(PLACES, 16, 20))))
    sums = summed(TOKENS, *batches)
    cka = pairs_of(sums)
    assert np.isnan(cka[:, 0]).all()
    assert np.isnan(cka).sum() == PLACES
    np.testing.assert_allclose(scores_of(sums)["mean_cka"], cka[:, 1:].mean(1))
    assert Localization().warnings(sums) == [
        "the input: 1 of 15 patches (first: [0, 0]) are constant over the images; "
        "their CKA is 0/0, so NaN"
    ]


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_token_with_nan_or_inf_is_nan_and_named(value):
    batches = [(x, as_output(TOKENS, plain_patches(x))) for x in random_pixels(3)]
    batches[1][1][3, 2 + 14, 0] = value
    sums = summed(TOKENS, *batches)
    undefined = np.isnan(pairs_of(sums))
    assert undefined[14].all()
    assert undefined.sum() == PLACES
    assert Localization().warnings(sums) == [
        "blocks.1: 1 of 15 tokens (first: [2, 4]) have NaN or Inf; their CKA is NaN"
    ]


def test_the_largest_standard_error_is_that_of_the_table_and_can_stop_a_run(tiny):
    words = ["analysis=localization", "batch_size=4"]
    experiment = tiny(*words)
    run(experiment)
    study = Study(experiment)
    with observer(study, []) as observe:
        parts = [
            Sums.of(b.index, 10, observe(b), study.axes)
            for b in minibatches(study, 0, list(range(10)))
        ]
    total = sum(parts[1:], parts[0])
    largest = experiment.analysis.tables(total)["localization"]["se"].max()
    assert experiment.analysis.error(total) == largest
    early = run(tiny(*words, "tolerance=10")).files[0]
    assert Results(early.parent).load_json("made_with.json")["tolerance"]["minibatches"] == 5


def test_a_patch_has_the_pixels_of_its_place_where_the_grid_divides_the_input():
    (x,) = random_pixels(1)
    assert cut_into_patches(x, (ROWS, COLUMNS)).equal(plain_patches(x))


@pytest.mark.parametrize(("size", "grid"), [((10, 9), (3, 4)), ((7, 7), (7, 2)), ((5, 8), (2, 3))])
def test_every_pixel_is_in_one_patch_where_the_grid_does_not_divide_the_input(size, grid):
    x = torch.arange(1.0, 1 + size[0] * size[1]).view(1, 1, *size)
    cut = cut_into_patches(x, grid)
    expected: dict[int, list[float]] = {i: [] for i in range(grid[0] * grid[1])}
    for r, c in np.ndindex(*size):
        place = (r * grid[0] // size[0]) * grid[1] + c * grid[1] // size[1]
        expected[place].append(float(x[0, 0, r, c]))
    found = {i: [v for v in one.flatten().tolist() if v] for i, one in enumerate(cut)}
    assert found == expected


def test_patches_of_tokens_are_those_that_the_model_sees_where_they_do_not_fill_the_input():
    x = torch.arange(1.0, 1 + 30 * 30).view(1, 1, 30, 30)
    cut = cut_into_patches(x, (3, 3), (8, 8))
    assert cut.shape == (9, 1, 64)
    assert cut[4].flatten().equal(x[0, 0, 8:16, 8:16].flatten())
    assert cut.equal(cut_into_patches(x[:, :, :24, :24], (3, 3)))
    padded = cut_into_patches(x, (4, 4), (8, 8))[15, 0].view(8, 8)  # of a model that pads its input
    assert padded[:6, :6].equal(x[0, 0, 24:, 24:])
    assert not padded[6:].any()
    assert not padded[:, 6:].any()


@pytest.mark.parametrize("mean", [0, 1000])
@pytest.mark.parametrize("shape", [(15, 16, 20), (700, 80, 3), (2, 16, 10000)])
def test_hsic_of_places_is_that_of_their_whole_gram_matrices(mean, shape):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator) + mean
    y = x[:3].flip(0) + torch.randn(min(3, shape[0]), *shape[1:], generator=generator)
    u, v = (torch.stack([u_centre(gram(place)) for place in z]) for z in (x, y))
    a, b = pair_grams(x), pair_grams(y)
    scale = hsic(u, u).diagonal().mean()
    torch.testing.assert_close(pair_hsic(a, b, shape[1]), hsic(u, v), rtol=0, atol=1e-6 * scale)
    torch.testing.assert_close(self_hsic(a, shape[1]), hsic(u, u).diagonal(), rtol=1e-6, atol=0)


def test_a_gram_matrix_is_kept_as_half_of_its_entries_in_float32():
    kept = pair_grams(torch.randn(196, 64, 8))
    assert kept.shape == (196, 64 * 63 // 2)
    assert kept.dtype == torch.float32


def test_fewer_than_four_images_in_a_minibatch_are_refused():
    with pytest.raises(ValueError, match="at least 4 examples in a minibatch, got 3"):
        pair_grams(torch.randn(2, 3, 5))


def test_a_map_stored_with_channels_last_has_the_same_places():
    x = torch.randn(4, 6, ROWS, COLUMNS)
    assert representations(MAP, x.contiguous(memory_format=torch.channels_last)).equal(
        representations(MAP, x)
    )
    assert representations(LAST, x.permute(0, 2, 3, 1)).equal(representations(MAP, x))


def test_a_layer_without_rows_and_columns_is_refused_with_what_to_do(tiny):
    message = (
        r"fc_norm has no rows and columns \(its output of 64 is neither tokens on a grid nor a feature map.*"
        r"choose other layers with analysis\.layers, such as last.*'vitsee list layers'"
    )
    with pytest.raises(UserError, match=message):
        run(tiny("analysis=localization", "analysis.layers=[fc_norm]"))


def test_a_layer_of_too_many_places_is_refused():
    layer = Layer("conv1", (64, 112, 112), prefix=None, grid=(112, 112), pitch=(2, 2))
    with pytest.raises(
        UserError,
        match=r"conv1 has 112 x 112 locations, so 157,351,936 pairs.*choose deeper layers",
    ):
        Localization().check({"model": [layer]})


def test_sums_that_do_not_fit_are_refused_before_any_image(tiny, tmp_path):
    with pytest.raises(
        UserError,
        match=r"1 layers, the largest with \d+ locations, need 0\.0 GB.*use fewer or deeper",
    ):
        run(tiny("analysis=localization", "run.memory_gb=0.000001"))
    assert not list(tmp_path.rglob("*.pt"))


def test_the_size_that_is_foretold_is_that_of_the_sums():
    batches = [(x, as_output(TOKENS, plain_patches(x))) for x in random_pixels(1)]
    size = sum(8 * term.numel() for term in summed(TOKENS, *batches).terms.values())
    analysis = Localization().on(Setting(layers={"model": [TOKENS]}))
    analysis.check_memory(12 * size)
    with pytest.raises(UserError, match="need"):
        analysis.check_memory(12 * size - 1)


def test_a_token_outside_of_the_grid_is_refused_with_the_grid():
    analysis = Localization(tokens=[[0, 0], [3, 0]])
    with pytest.raises(UserError, match=r"no token \[3, 0\]; its 3 x 5 grid.*to \[2, 4\]"):
        analysis.check({"model": [TOKENS]})


@pytest.mark.parametrize("value", [[], 3, [1, 2], [[0]], [[0, -1]], [[0.5, 1]], ["0,1"]])
def test_tokens_that_are_no_list_of_places_are_refused(value):
    with pytest.raises(UserError, match=r"analysis\.tokens must be a list of \[row, column\]"):
        Localization(tokens=value)


def drawn(
    grid: tuple[int, int], cka: np.ndarray | float = 0.1, se: float | None = 0.001, **options: Any
) -> tuple[list[Axes], str]:
    """The heatmaps of a layer with this grid, and the title above them. cka: (tokens x patches)."""
    places = dict(
        zip(
            ("token_row", "token_col", "patch_row", "patch_col"),
            np.indices(grid * 2).reshape(4, -1),
            strict=True,
        )
    )
    row, column = np.indices(grid).reshape(2, -1)
    score = {"layer": "a", "token_row": row, "token_col": column, "own_cka": 0.5}
    errors = {} if se is None else {"se": se}
    tables = {
        "localization": pd.DataFrame({"layer": "a", **places, "cka": cka} | errors),
        "localization_score": pd.DataFrame(score | {"mean_cka": 0.1, "own_rank": 1.0}),
    }
    labels = Labels("m", None, "d", 8)
    figure = Localization(**options).figures(tables, labels)["localization"]
    assert figure.get_suptitle()
    return [axes for axes in figure.axes if axes.get_title()], figure.get_suptitle()


def titles(grid: tuple[int, int], **options: Any) -> list[str]:
    """Titles of the heatmaps of a layer with this grid."""
    return [axes.get_title() for axes in drawn(grid, **options)[0]]


def test_all_maps_have_one_scale_and_one_bar_unless_each_is_to_have_its_own():
    cka = np.linspace(0, 0.8, 9 * 9)
    together, _ = drawn((3, 3), cka)
    highest = max(axes.images[0].get_array().max() for axes in together)
    assert [axes.images[0].norm.vmax for axes in together] == [highest] * 3
    assert [len(axes.child_axes) for axes in together] == [0, 0, 1]
    apart, title = drawn((3, 3), cka, scale=Scale.map)
    for axes in apart:
        assert axes.images[0].norm.vmax == axes.images[0].get_array().max()
        assert len(axes.child_axes) == 1
    assert "one scale per map" in title


@pytest.mark.parametrize("scale", list(Scale))
def test_maps_of_noise_stay_dark(scale):
    noise = np.random.default_rng(0).normal(0, 0.004, 49 * 49)
    for axes in drawn((7, 7), noise, 0.004, scale=scale)[0]:
        image = axes.images[0]
        assert image.get_array().max() < 0.5 * image.norm.vmax


def test_the_figure_says_how_large_the_standard_error_is():
    assert "(median standard error 0.004)" in drawn((3, 3), se=0.004)[1]
    assert "(standard error unknown)" in drawn((3, 3), se=None)[1]
    assert "(standard error unknown)" in drawn((3, 3), se=np.nan)[1]


def test_patches_within_some_standard_errors_of_0_are_masked():
    cka = np.tile([0.1, 0.019, -0.019, -0.3, np.nan, 0.02, 0.021, 0, 0.1], 9)
    maps, title = drawn((3, 3), cka, 0.01, mask=2)
    expected = [[False, True, True], [False, False, True], [False, True, False]]
    for axes in maps:
        np.testing.assert_array_equal(~np.ma.getmaskarray(axes.images[1].get_array()), expected)
    assert "(median standard error 0.01; green: within 2 standard errors of 0)" in title


@pytest.mark.parametrize("se", [None, np.nan])
def test_without_standard_errors_nothing_is_masked_and_the_figure_says_so(se):
    maps, title = drawn((3, 3), 0.1, se, mask=2)
    for axes in maps:
        assert np.ma.getmaskarray(axes.images[1].get_array()).all()
    assert "(standard error unknown, so none are masked)" in title


def test_a_mask_of_no_width_is_refused_and_advice_is_followed():
    with pytest.raises(UserError, match=r"analysis\.mask must be above 0 .* such as 2; got -1"):
        Localization(mask=-1)
    assert Localization(mask=2).mask == 2


def test_another_scale_or_mask_is_drawn_from_what_is_measured(tiny):
    asked = ["analysis=localization", "images=8"]
    other = [*asked, "analysis.scale=map", "analysis.mask=2"]
    assert Study(tiny(*asked)).fingerprint == Study(tiny(*other)).fingerprint


@pytest.mark.parametrize(
    ("grid", "shown"),
    [
        ((7, 7), [(0, 0), (2, 1), (4, 2), (4, 4)]),
        ((14, 14), [(0, 0), (2, 3), (2, 7), (4, 5)]),
        ((16, 16), [(0, 0), (2, 5), (5, 10), (5, 11)]),
        ((3, 5), [(0, 0), (1, 1), (1, 2)]),
    ],
)
def test_the_figure_shows_the_tokens_of_the_paper_where_it_has_this_grid(grid, shown):
    assert titles(grid) == [f"Token {place}" for place in shown]


def test_the_figure_shows_the_tokens_that_are_asked_for():
    assert titles((7, 7), tokens=[[6, 6], [2, 5]]) == ["Token (6, 6)", "Token (2, 5)"]
