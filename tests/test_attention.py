"""Attention weights from one place: those that timm's own extraction gives, and clear refusals."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import timm
import torch
from timm.utils import AttentionExtract
from torch import nn

from vitsee.analysis import REGISTERED, Layer
from vitsee.errors import UserError
from vitsee.estimators import attention
from vitsee.models import attention_hooks, presets

SMALL = {"img_size": 64, "depth": 2}
FAMILIES = {
    "ViT": ("vit_tiny_patch16_224", SMALL),
    "DeiT with distillation": ("deit_tiny_distilled_patch16_224", SMALL),
    "DeiT-III": ("deit3_small_patch16_224", SMALL),
    "q/k norm": ("vit_tiny_patch16_224", SMALL | {"qk_norm": True}),
    "registers": ("vit_small_patch14_reg4_dinov2", {"img_size": 56, "depth": 2}),
    "pooled": ("vit_tiny_patch16_224", SMALL | {"class_token": False, "global_pool": "avg"}),
    "not square": ("vit_tiny_patch16_224", {"img_size": (64, 96), "depth": 2}),
    "relative positions": ("vit_relpos_small_patch16_224", SMALL),
    "BEiT": ("beit_base_patch16_224", SMALL),
    "EVA with rotation": ("eva02_tiny_patch14_224", {"img_size": 56, "depth": 2}),
    "hybrid": ("vit_tiny_r_s16_p8_224", SMALL),
    "PiT, with stages": ("pit_ti_224", {"img_size": 96}),
    "ConViT, gated": ("convit_tiny", {"img_size": 64, "depth": 3, "local_up_to_layer": 1}),
    "Visformer": ("visformer_tiny", {"img_size": 64, "depth": [0, 1, 1]}),
    "CoAtNet": ("coatnet_nano_rw_224", {"img_size": 64}),
    "Swin": ("swin_tiny_patch4_window7_224", {
        "img_size": 56, "embed_dim": 24, "depths": [2, 1], "num_heads": [1, 2]}),
    "Swin, second version": ("swinv2_tiny_window8_256", {
        "img_size": 64, "embed_dim": 24, "depths": [2, 1], "num_heads": [1, 2]}),
    "SAM": ("samvit_base_patch16", {
        "img_size": 128, "embed_dim": 48, "depth": 2, "num_heads": 2, "window_size": 4,
        "global_attn_indexes": (1,)}),
}  # fmt: skip


def made(name: str, args: dict) -> tuple[nn.Module, tuple[int, int, int]]:
    torch.manual_seed(0)
    net = timm.create_model(name, **args).eval().requires_grad_(False)
    for parameter in net.parameters():  # timm's zeros (relative bias, LayerScale) hide mistakes
        if parameter.ndim < 4:
            parameter += 0.1 * torch.randn_like(parameter)
    side = args["img_size"]
    height, width = side if isinstance(side, tuple) else (side, side)
    return net, (3, height, width)


def ours(net: nn.Module, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
    """All weights of every attention module, (N, heads, tokens, tokens)."""
    found: dict[str, torch.Tensor] = {}

    def keep(name: str):
        def deliver(seen: attention.Attention) -> None:
            found[name] = torch.cat([weights for _, weights in seen.weights()])

        return deliver

    watched = attention_hooks.survey(net, tuple(pixels.shape[1:]))
    handles = [h for layer in watched for h in attention_hooks.attach(net, layer, keep(layer.name))]
    net(pixels)
    for handle in handles:
        handle.remove()
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_the_weights_are_those_that_timm_extracts_without_fused_attention(family):
    net, size = made(*FAMILIES[family])
    pixels = torch.randn(2, *size, generator=torch.Generator().manual_seed(1))
    found = ours(net, pixels)
    for module in net.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = False
    names = [f"{name}.attn_drop" for name in found]
    theirs = AttentionExtract(net, names=names, mode="eval", method="hook", hook_type="forward")(
        pixels
    )
    assert len(found) > 1
    for name, expected in zip(found, theirs.values(), strict=True):
        if family == "SAM":  # whose heads are on the axis of windows
            expected = expected.unflatten(0, (-1, 2))
        assert found[name].shape == expected.shape
        torch.testing.assert_close(found[name], expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found[name].sum(-1), torch.ones(expected.shape[:-1]))


def test_watching_attention_changes_no_output():
    net, size = made(*FAMILIES["ViT"])
    pixels = torch.randn(2, *size)
    before = net(pixels)
    ours(net, pixels)
    assert net(pixels).equal(before)


def test_weights_come_in_chunks_of_images_that_add_up_to_all(monkeypatch):
    net, size = made(*FAMILIES["ViT"])
    pixels = torch.randn(5, *size)
    whole = ours(net, pixels)
    sizes = []

    def keep(seen: attention.Attention) -> None:
        sizes.extend(len(weights) for _, weights in seen.weights())

    monkeypatch.setattr("vitsee.estimators.attention._CHUNK_BYTES", {"cpu": 2 * 4 * 3 * 17 * 17})
    assert all(w.equal(whole[name]) for name, w in ours(net, pixels).items())
    layer = attention_hooks.survey(net, size)[0]
    handles = attention_hooks.attach(net, layer, keep)
    net(pixels)
    for handle in handles:
        handle.remove()
    assert sizes == [2, 2, 1]


REFUSED = {
    "blocks of tokens": ("nest_tiny", {}, r"Attention\) attends within windows of 196 tokens"),
    "another formula": (
        "coat_lite_tiny",
        {},
        "its FactorAttnConvRelPosEnc compute attention by their own formula",
    ),
    "channels": (
        "xcit_nano_12_p16_224",
        {"depth": 2},
        r"XCA\) attends among 32 entries, which are not the model's",
    ),
    "the class token only": (
        "cait_xxs24_224",
        {"depth": 2},
        r"ClassAttn\) attends from 1 to 197 tokens",
    ),
    "no attention": (
        "resnet18",
        {},
        "ResNet has no softmax attention .*: none of its modules computes attention",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_attention_that_is_not_from_every_token_to_every_token_is_refused_with_the_reason(kind):
    name, args, message = REFUSED[kind]
    with torch.device("meta"):
        net = timm.create_model(name, **args).eval()
    with pytest.raises(UserError, match=message):
        attention_hooks.survey(net, (3, 224, 224))


# ---- windows ----


@pytest.mark.parametrize(
    ("name", "args"),
    [
        FAMILIES["Swin"],
        FAMILIES["Swin, second version"],
        FAMILIES["SAM"],
        ("swinv2_cr_tiny_224", {"embed_dim": 24, "depths": [1, 1], "num_heads": [1, 2]}),
        ("tiny_vit_5m_224", {"embed_dims": [16, 24, 32, 32], "depths": [1] * 4, "num_heads": [1, 2, 2, 2]}),
        ("gcvit_xxtiny", {}),
        ("davit_tiny", {"embed_dims": [16, 32, 32, 32], "depths": [1] * 4, "num_heads": [1, 2, 2, 2]}),
    ],
)  # fmt: skip
def test_places_of_a_window_are_in_rows_and_windows_follow_each_other_in_rows(name, args):
    """One patch of the input changes: the entry that changes most in the first windowed attention is its own.

    Where the stem's patches overlap, it may be the neighbour.
    """
    torch.manual_seed(0)
    net = timm.create_model(name, **args).eval().requires_grad_(False)
    side = args.get("img_size", 224)
    layer = next(x for x in attention_hooks.survey(net, (3, side, side)) if x.windows > 1)
    inputs: list[torch.Tensor] = []
    attends = net.get_submodule(layer.name)
    attends.register_forward_pre_hook(lambda m, args: inputs.append(args[0].clone()))
    pixels = torch.randn(1, 3, side, side)
    (down, right), (rows, columns) = layer.pitch, layer.grid
    across = side // int(right) // columns  # windows in a row
    row, column = rows + 2, columns - 3  # in the second row of windows, and in the first of these
    changed = pixels.clone()
    y, x = int(row * down), int(column * right)
    changed[:, :, y : y + int(down), x : x + int(right)] += 5
    net(pixels)
    net(changed)
    moved = (inputs[1] - inputs[0]).norm(dim=-1)
    assert moved[0].numel() == rows * columns
    window, entry = divmod(int(moved.argmax()), rows * columns)
    assert window == across
    assert abs(entry // columns - 2) <= 1
    assert abs(entry % columns - (columns - 3)) <= 1
    found = divmod(layer.window_places[window][entry], layer.image_grid[1])
    assert np.abs(np.subtract(found, (row, column))).max() <= 1


@pytest.mark.parametrize(
    ("name", "args"),
    [
        FAMILIES["Swin"],
        FAMILIES["Swin, second version"],
        ("swinv2_cr_tiny_224", {"embed_dim": 24, "depths": [2, 1], "num_heads": [1, 2]}),
        (
            "swin_tiny_patch4_window7_224",  # padded, too
            {"img_size": 40, "embed_dim": 24, "depths": [2, 1], "num_heads": [1, 2]},
        ),
    ],
)
@pytest.mark.parametrize(("row", "column"), [(0, 0), (9, 2)])
def test_places_of_shifted_windows_are_those_of_the_image(name, args, row, column):
    """One patch of the input changes: the entry that changes most in the second, shifted attention is its own."""
    torch.manual_seed(0)
    net = timm.create_model(name, **args).eval().requires_grad_(False)
    side = args.get("img_size", 224)
    layer = attention_hooks.survey(net, (3, side, side))[1]
    assert layer.window_places[0][0] != 0, "they are shifted"
    inputs: list[torch.Tensor] = []
    attends = net.get_submodule(layer.name)
    attends.register_forward_pre_hook(lambda m, args: inputs.append(args[0].clone()))
    pixels = torch.randn(1, 3, side, side)
    changed = pixels.clone()
    y, x = (int(i * step) for i, step in zip((row, column), layer.pitch, strict=True))
    changed[:, :, y : y + int(layer.pitch[0]), x : x + int(layer.pitch[1])] += 5
    net(pixels)
    net(changed)
    moved = (inputs[1] - inputs[0]).norm(dim=-1)
    window, entry = divmod(int(moved.argmax()), layer.shape[1])
    assert divmod(layer.window_places[window][entry], layer.image_grid[1]) == (row, column)


def test_distances_within_windows_are_means_over_the_windows_of_each_image():
    net, size = made(*FAMILIES["Swin"])
    layer = attention_hooks.survey(net, size)[0]
    assert (layer.windows, layer.grid, layer.pitch) == (4, (7, 7), (4, 4))
    found: list[torch.Tensor] = []
    weights: list[torch.Tensor] = []

    def keep(seen: attention.Attention) -> None:
        found.append(attention.attention_distance(seen, layer))
        weights.extend(of for _, of in seen.weights())

    attention_hooks.attach(net, layer, keep)
    net(torch.randn(3, *size))
    place = torch.tensor([[4.0 * (i // 7), 4.0 * (i % 7)] for i in range(49)]).double()
    of_windows = (torch.cat(weights).double() * torch.cdist(place, place)).sum(-1).mean(-1)
    expected = torch.stack([of_windows[4 * i : 4 * i + 4].mean(0) for i in range(3)])
    torch.testing.assert_close(found[0], expected, rtol=1e-6, atol=1e-6)


# ---- distances ----


def of_one_head(weights: torch.Tensor) -> attention.Attention:
    """Attention whose weights are these, (tokens, tokens), for one image and one head."""
    tokens = len(weights)
    zeros = torch.zeros(1, 1, tokens, 4)
    return attention.Attention(zeros, zeros, weights.log(), 1.0, zeros)


def a_layer(grid: tuple[int, int], pitch: float, prefix: int = 0) -> Layer:
    tokens = grid[0] * grid[1] + prefix
    return Layer("blocks.0.attn", (1, tokens, 4), prefix, bool(prefix), grid, (pitch, pitch))


def test_the_weights_are_what_the_test_asks_for():
    weights = torch.rand(6, 6).softmax(-1)
    ((_, found),) = of_one_head(weights).weights()
    torch.testing.assert_close(found[0, 0], weights)


@pytest.mark.parametrize(
    ("side", "patch", "pixels"), [(7, 32, 115.5), (14, 16, 116.5), (16, 14, 116.6)]
)
def test_uniform_attention_has_the_distance_of_uniform_attention(side, patch, pixels):
    tokens = side * side
    layer = a_layer((side, side), patch)
    found = attention.attention_distance(of_one_head(torch.full((tokens,) * 2, 1 / tokens)), layer)
    assert found.item() == pytest.approx(pixels, abs=0.05)
    assert attention.uniform_distance(layer) == pytest.approx(found.item(), abs=1e-4)


def test_what_goes_to_the_class_token_counts_as_distance_0_unless_renormalised():
    layer, tokens = a_layer((14, 14), 16, prefix=1), 197
    uniform = of_one_head(torch.full((tokens,) * 2, 1 / tokens))
    patches = attention.attention_distance(
        of_one_head(torch.full((196, 196), 1 / 196)), a_layer((14, 14), 16)
    )
    share = attention.attention_distance(uniform, layer).item()
    assert share == pytest.approx(patches.item() * 196 / 197, rel=1e-6)
    whole = attention.attention_distance(uniform, layer, renormalize=True).item()
    assert whole == pytest.approx(patches.item(), rel=1e-6)


def test_a_head_that_attends_to_itself_has_distance_0_and_to_its_neighbour_the_patch_size():
    rows, columns, patch = 3, 5, 16
    layer = a_layer((rows, columns), patch)
    itself = attention.attention_distance(of_one_head(torch.eye(15)), layer)
    assert itself.item() == 0
    to_the_right = torch.zeros(15, 15)
    for q in range(15):
        last = q % columns == columns - 1
        to_the_right[q, q - 1 if last else q + 1] = 1  # the last column attends to its left
    found = attention.attention_distance(of_one_head(to_the_right), layer)
    assert found.item() == pytest.approx(patch, rel=1e-6)


def test_patches_that_are_not_square_count_in_pixels():
    layer = Layer("a", (1, 6, 4), 0, False, (2, 3), (10.0, 20.0))
    down = torch.zeros(6, 6)
    down[range(6), [3, 4, 5, 0, 1, 2]] = 1
    right = torch.zeros(6, 6)
    right[range(6), [1, 2, 1, 4, 5, 4]] = 1
    assert attention.attention_distance(of_one_head(down), layer).item() == pytest.approx(10)
    assert attention.attention_distance(of_one_head(right), layer).item() == pytest.approx(20)


# ---- rollout ----


def test_rollout_of_blocks_that_attend_to_themselves_is_the_identity():
    eye = torch.eye(5)[None]
    assert attention.rollout([eye, eye, eye], torch.eye(5)).equal(eye)


def test_rollout_is_the_product_of_the_blocks_written_out():
    generator = torch.Generator().manual_seed(0)
    blocks = [torch.rand(2, 4, 4, generator=generator).softmax(-1) for _ in range(3)]
    expected = torch.eye(4).double().expand(2, 4, 4)
    for a in blocks:
        with_skip = a.double() + torch.eye(4).double()
        expected = (with_skip / with_skip.sum(-1, keepdim=True)) @ expected
    found = attention.rollout(blocks, torch.eye(4))
    torch.testing.assert_close(found, expected.float(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found.sum(-1), torch.ones(2, 4))


def test_layers_are_surveyed_in_the_order_they_run():
    net, size = made(*FAMILIES["ViT"])
    watched = presets.choose(net, attention_hooks.survey(net, size), ["blocks.*.attn"])
    assert [layer.name for layer in watched] == ["blocks.0.attn", "blocks.1.attn"]
    assert {layer.grid for layer in watched} == {(4, 4)}
    assert {layer.shape for layer in watched} == {(3, 17, 64)}


WHOLE = Layer("blocks.0.attn", (3, 17, 16), 1, True, (4, 4), (8.0, 8.0))


def test_rollout_refuses_attention_within_windows():
    windowed = replace(WHOLE, name="blocks.1.attn", windows=4)
    message = r"blocks\.1\.attn attends within windows.*use analysis=attention_distance"
    with pytest.raises(UserError, match=message):
        REGISTERED["attention_rollout"]().check({"model": [WHOLE, windowed]})


def test_rollout_refuses_layers_of_several_stages():
    small = replace(WHOLE, name="blocks.1.attn", shape=(3, 5, 16), grid=(2, 2))
    with pytest.raises(UserError, match=r"among different tokens \(17 and 5\); .*one stage"):
        REGISTERED["attention_rollout"]().check({"model": [WHOLE, small]})
