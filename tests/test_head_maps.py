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
from vitsee.estimators.attention import Attention, offsets
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
        return Study(asked), {path.stem: pd.read_csv(path) for path in run(asked).files}


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


# ---- within windows ----

SWIN = (
    "model.timm=swin_tiny_patch4_window7_224",
    "model.args={img_size: 56, embed_dim: 24, depths: [2, 1], num_heads: [1, 2]}",
)
SAM = (
    "model.timm=samvit_base_patch16",
    "model.args={img_size: 128, embed_dim: 48, depth: 2, num_heads: 2, window_size: 3, global_attn_indexes: [1]}",
)


def swin_attention(block: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
    """softmax(QKᵀ/√d + B), masked as in Liu et al. 2021 (Fig. 4), among all places of the image: (N, heads, L, L).

    x: (N, rows, columns, features). 0 between windows. Places that the cyclic shift brought from the other side
    of the image only see each other: their scores with others are lower by 100, as in the authors' code.
    """
    (n, side, _, _), size, shift = x.shape, block.window_size[0], block.shift_size[0]
    q, k, _ = block.attn.qkv(x).reshape(n, side**2, 3, block.attn.num_heads, -1).unbind(2)
    scores = torch.einsum("nqhd,nkhd->nhqk", q, k) / math.sqrt(q.shape[-1])
    table = block.attn.relative_position_bias_table
    place = (
        torch.stack(torch.meshgrid(*[torch.arange(side)] * 2, indexing="ij"), -1) - shift
    ) % side
    place = place.view(-1, 2)
    step = place[:, None] - place[None, :]
    together = (place[:, None] // size == place[None, :] // size).all(-1)
    wrapped = place >= side - shift
    index = ((step + size - 1) * torch.tensor([2 * size - 1, 1])).sum(-1)
    scores = scores + table[index.clamp(0, len(table) - 1)].permute(2, 0, 1)
    scores = scores - 100 * (wrapped[:, None] != wrapped[None, :]).any(-1).double()
    return scores.masked_fill(~together, -math.inf).softmax(-1)


def sam_attention(block: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
    """softmax(QKᵀ/√d) within windows of the map padded with zeros, among all its places: (N, heads, L, L)."""
    size, attn = block.window_size, block.attn
    assert not attn.rel_pos_h.any() or not size, "positions, which this leaves out, are 0 at first"
    n, side = x.shape[:2]
    whole = side + -side % size if size else side
    padded = torch.zeros(n, whole, whole, x.shape[-1], dtype=x.dtype)
    padded[:, :side, :side] = x
    q, k, _ = attn.qkv(padded).reshape(n, whole**2, 3, attn.num_heads, -1).unbind(2)
    scores = torch.einsum("nqhd,nkhd->nhqk", q, k) / math.sqrt(q.shape[-1])
    row, column = torch.arange(whole**2) // whole, torch.arange(whole**2) % whole
    window = row // (size or whole) * whole + column // (size or whole)
    return scores.masked_fill(window[:, None] != window, -math.inf).softmax(-1)


def expected_of(weights: np.ndarray, side: int, query: int | None) -> tuple:
    """Map, entropy and best offset of one head on one image by loops; weights: among all places, perhaps padded."""
    whole = math.isqrt(len(weights))
    real = [r * whole + c for r in range(side) for c in range(side)]
    if query is None:
        seen = weights[real].mean(0)[real]
    else:
        seen = np.where(weights[real[query]] > 0, weights[real[query]], np.nan)[real]
    rows = weights[real]
    entropy = -np.sum(rows * np.log(np.where(rows > 0, rows, 1)), axis=1).mean()
    return seen, entropy


def offset_of(weights: np.ndarray, together: np.ndarray, side: int, most: int) -> tuple:
    """The step on the image at which mean attention of pairs in one window is largest; weights: (N, L, L)."""
    whole = math.isqrt(weights.shape[-1])
    best = (-1.0, 0, 0)
    for down in range(-most, most + 1):
        for right in range(-most, most + 1):
            pairs = [
                (r * whole + c, (r + down) * whole + c + right)
                for r in range(max(0, -down), min(side, side - down))
                for c in range(max(0, -right), min(side, side - right))
            ]
            inside = [pair for pair in pairs if together[pair]]
            looks = float(np.mean([weights[:, q, k].mean() for q, k in inside]))
            best = max(best, (looks, down, right))
    return best


@pytest.fixture(scope="module", params=["Swin", "SAM"])
def windowed(request, images, tmp_path_factory) -> tuple[Study, dict, dict]:
    """A study, its tables, also with a query, and the attention among all places of the image of each layer."""
    model, reference = {"Swin": (SWIN, swin_attention), "SAM": (SAM, sam_attention)}[request.param]
    out, tables = tmp_path_factory.mktemp("out"), {}
    own = (*model, "analysis=head_maps", "images=2", "batch_size=2")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vitsee.runner.draw", lambda *path, **options: [])
        for query in ("null", "[5,6]"):
            asked = experiment(images, out, *own, f"analysis.query={query}")
            tables[query] = {path.stem: pd.read_csv(path) for path in run(asked).files}
    study = Study(asked)
    layers = study.layers["model"]
    net, kept = study.models["model"].net.double(), {}

    def keep(name: str, block: torch.nn.Module):
        def hook(module, args, out):
            kept[name] = reference(block, out).numpy()

        return hook

    for layer in layers:
        block = net.get_submodule(layer.name.removesuffix(".attn"))
        block.norm1.register_forward_hook(keep(layer.name, block))
    with torch.no_grad():
        (batch,) = minibatches(study, 0, [0])
        net(batch.pixels["model"].double())
    return study, tables, kept


def test_maps_within_windows_lie_at_their_place_in_the_image(windowed):
    study, tables, attention = windowed
    first = study.layers["model"][0].image_grid
    for query, found in tables.items():
        for layer in study.layers["model"]:
            side, weights = (layer.image_grid or layer.places)[0], attention[layer.name]
            at = None
            if query != "null":
                at = 5 * side // first[0] * side + 6 * side // first[1]
            rows = found["head_maps"][found["head_maps"]["layer"] == layer.name]
            expected = [[expected_of(head, side, at)[0] for head in image] for image in weights]
            shape = (*weights.shape[:2], side**2)
            np.testing.assert_allclose(
                rows["weight"].to_numpy().reshape(shape), np.array(expected), atol=1e-6
            )


def test_entropies_and_offsets_within_windows_are_those_of_plain_loops(windowed):
    study, tables, attention = windowed
    for layer in study.layers["model"]:
        side, weights = (layer.image_grid or layer.places)[0], attention[layer.name]
        rows = tables["null"]["head_summary"]
        rows = rows[rows["layer"] == layer.name].reset_index()
        assert (rows["windows"] == layer.windows).all()
        assert (rows["uniform"] == math.log(layer.shape[1])).all()
        for head, row in rows.iterrows():
            entropy = np.mean([expected_of(image[head], side, None)[1] for image in weights])
            assert row["entropy"] == pytest.approx(entropy, abs=1e-5)
            best = offset_of(weights[:, head], weights[0, head] > 0, side, layer.places[0] // 2)
            assert (row["row_offset"], row["col_offset"]) == best[1:]
            assert row["offset_weight"] == pytest.approx(best[0], abs=1e-6)


def test_blocks_of_stages_are_numbered_through(windowed):
    study, tables, _ = windowed
    blocks = tables["null"]["head_summary"].drop_duplicates("layer")["block"]
    assert blocks.tolist() == list(range(len(study.layers["model"])))


def test_a_planted_offset_is_found_within_windows_that_are_shifted():
    """Windows of 3 x 3 on a 6 x 6 grid, shifted by 1: each patch looks at its right neighbour, if it may."""
    places = [
        [(r % 6) * 6 + c % 6 for r in range(top, top + 3) for c in range(left, left + 3)]
        for top in (1, 4) for left in (1, 4)
    ]  # fmt: skip
    layer = Layer(
        "blocks.0.attn", (1, 9, 1), 0, False, (3, 3), (1, 1), windows=4, image_grid=(6, 6),
        window_places=tuple(map(tuple, places)),
    )  # fmt: skip
    bias = torch.full((4, 1, 9, 9), -math.inf)
    for window, of in enumerate(places):
        for query, place in enumerate(of):
            right = place + 1 if place % 6 < 5 else -1
            bias[window, 0, query, of.index(right) if right in of else query] = 0
    nothing = torch.zeros(8, 1, 9, 1)
    analysis = HeadMaps(query=[0, 5]).on(Setting(layers={"model": [layer]}))
    attention = Attention(nothing, nothing, bias.repeat(2, 1, 1, 1), 1.0, nothing)
    found = analysis.reduce(layer, attention)
    seen, offset = found[..., :36].view(2, 6, 6), found[:, 0, 37:]
    assert offsets(layer)[int(offset[0].argmax())] == (0, 1)
    assert offset.max() == 1
    inside = ~seen[0].isnan()
    assert inside.nonzero()[:, 0].unique().tolist() == [0, 4, 5], "the window wraps around"
    assert inside.nonzero()[:, 1].unique().tolist() == [0, 4, 5]
    assert (seen[0][inside].sum(), seen[0, 0, 5]) == (1, 1)
