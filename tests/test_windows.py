"""Where the tokens of attention within windows are: each token's place, and distances against a plain reference."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn

from vitsee.analyses.attention_rollout import AttentionRollout
from vitsee.analyses.head_similarity import HeadSimilarity
from vitsee.errors import UserError
from vitsee.estimators.attention import token_distances
from vitsee.models import attention_hooks
from vitsee.runner import minibatches, run
from vitsee.setting import Layer
from vitsee.study import Study

pytestmark = pytest.mark.usefixtures("undrawn")

SWIN = {"img_size": 56, "embed_dim": 24, "depths": [2, 1], "num_heads": [1, 2]}


class Parted(nn.Module):
    """Attention within four windows of 4 x 4 places each, or of places in an order of their own."""

    def __init__(self, *, shuffled: bool = False, turned: bool = False) -> None:
        super().__init__()
        self.turned = turned
        self.qkv = nn.Linear(12, 36)
        order = torch.arange(64).view(2, 4, 2, 4).permute(0, 2, 1, 3).flatten()
        mixed = torch.randperm(64, generator=torch.Generator().manual_seed(0))
        self.order = (mixed if shuffled else order).tolist()

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(1, 2)[:, self.order].unflatten(1, (4, 16))
        tokens = tokens.transpose(0, 1) if self.turned else tokens
        q, k, v = self.qkv(tokens.flatten(0, 1)).unflatten(-1, (3, 1, 12)).permute(2, 0, 3, 1, 4)
        parts = nn.functional.scaled_dot_product_attention(q, k, v)[:, 0]
        parts = parts.unflatten(0, (4, -1) if self.turned else (-1, 4))
        back = (parts.transpose(0, 1) if self.turned else parts).flatten(1, 2)
        return x + back[:, np.argsort(self.order).tolist()].view(x.shape)


class Own(nn.Module):
    """A network of one's own with windows, under no name that a library uses."""

    def __init__(self, **options: bool) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 4, 4)
        self.part = Parted(**options)

    def forward(self, x: Tensor) -> Tensor:
        return self.part(self.stem(x).permute(0, 2, 3, 1))


def of_torchvision() -> nn.Module:
    return torchvision.models.SwinTransformer([4, 4], 24, [2, 1], [1, 2], [7, 7])


CASES = {
    "Swin": (lambda: timm.create_model("swin_tiny_patch4_window7_224", **SWIN), 56,
             "layers.0.blocks.0.norm1", "layers.0.blocks.0.attn"),
    "Swin, shifted": (lambda: timm.create_model("swin_tiny_patch4_window7_224", **SWIN), 56,
                      "layers.0.blocks.1.norm1", "layers.0.blocks.1.attn"),
    "MaxViT's blocks": (lambda: timm.create_model("test_maxvit"), 160,
                        "stages.1.blocks.0.attn_block.norm1", "stages.1.blocks.0.attn_block.attn"),
    "MaxViT's grids": (lambda: timm.create_model("test_maxvit"), 160,
                       "stages.1.blocks.0.attn_grid.norm1", "stages.1.blocks.0.attn_grid.attn"),
    "MobileViT": (lambda: timm.create_model("mobilevit_xxs"), 64,
                  "stages.2.1.conv_1x1", "stages.2.1.transformer.0.norm1"),
    "one's own": (Own, 32, "stem", "part.qkv"),
}  # fmt: skip
"""A network, its side, a module that gives the map, and one whose input is that map in windows."""


@pytest.mark.parametrize("case", CASES)
def test_two_tokens_of_a_window_are_as_far_apart_as_their_places_in_the_map(case):
    """Each token's place is where the map before the windows has the same features."""
    torch.manual_seed(0)
    make, side, before, parted = CASES[case]
    net = make().eval().requires_grad_(False)
    attends = parted.removesuffix(".qkv").replace(".norm1", ".attn")
    layer = next(x for x in attention_hooks.survey(net, (3, side, side)) if x.name == attends)
    assert layer.windows > 1
    kept: dict[str, Tensor] = {}
    net.get_submodule(before).register_forward_hook(lambda m, a, o: kept.update(map=o))
    net.get_submodule(parted).register_forward_pre_hook(lambda m, a: kept.update(tokens=a[0]))
    net(torch.randn(1, 3, side, side))
    last = kept["map"].shape[1] == kept["map"].shape[2]
    whole = kept["map"][0] if last else kept["map"][0].permute(1, 2, 0)
    tokens = kept["tokens"].reshape(-1, 1, whole.shape[-1])
    same = (tokens == whole.flatten(0, 1)).all(-1)
    assert (same.sum(0) == 1).all()
    assert (same.sum(1) == 1).all()
    places = same.int().argmax(1).view(layer.windows, -1)
    row, column = (x * side / len(whole) for x in (places // len(whole), places % len(whole)))
    apart = torch.hypot(row[:, :, None] - row[:, None], column[:, :, None] - column[:, None])
    whole_windows = 1 if "shifted" in case else layer.windows  # the others hold opposite sides
    for window in range(whole_windows):
        torch.testing.assert_close(apart[window], token_distances(layer))


def test_a_network_of_torchvision_s_windows_is_measured_in_all_its_blocks():
    net = of_torchvision().eval()
    found = attention_hooks.survey(net, (3, 56, 56))
    assert [(x.name, x.windows, x.grid, x.pitch) for x in found] == [
        ("features.1.0.attn", 4, (7, 7), (4, 4)),
        ("features.1.1.attn", 4, (7, 7), (4, 4)),
        ("features.3.0.attn", 1, (7, 7), (8, 8)),
    ]


@pytest.mark.parametrize("option", ["shuffled", "turned"])
def test_windows_whose_tokens_are_no_grid_or_whose_images_are_out_of_order_are_refused(option):
    message = r"its part \(Parted\) attends within 4 windows of 16 tokens, whose places are unknown"
    with pytest.raises(UserError, match=message):
        attention_hooks.survey(Own(**{option: True}).eval(), (3, 32, 32))


def test_a_padded_window_is_placed_by_its_other_tokens():
    net = timm.create_model("swin_tiny_patch4_window7_224", **SWIN | {"img_size": 72}).eval()
    layer = attention_hooks.survey(net, (3, 72, 72))[0]  # 18 x 18 places in 9 windows
    assert (layer.windows, layer.grid, layer.pitch) == (9, (7, 7), (4, 4))


@pytest.mark.parametrize("analysis", [HeadSimilarity, AttentionRollout])
def test_an_analysis_that_cannot_measure_windows_refuses_them_and_names_one_that_can(analysis):
    net = timm.create_model("swin_tiny_patch4_window7_224", **SWIN).eval()
    layers = attention_hooks.survey(net, (3, 56, 56))[:1]
    with pytest.raises(
        UserError, match=r"attends within windows, .* use analysis=attention_distan"
    ):
        analysis().check({"model": layers, "other": []})


# ---- MaxViT against a float64 reference ----


def plain_maxvit(part: nn.Module, x: np.ndarray, stage: Layer, *, grid: bool) -> np.ndarray:
    """Mean distance of each head, (N, heads), of a PartitionAttentionCl in float64, by loops over pairs of places.

    Places attend to each other in a block (Tu et al. 2022: P x P neighbours), or on a grid (G x G places, equally
    far apart over the whole map). x: (N, rows, columns, features) after the first norm.
    """
    attn, (size, _) = part.attn, part.partition_size
    heads, rows = attn.num_heads, x.shape[1]
    stride = rows // size
    qkv = x @ attn.qkv.weight.double().numpy().T + attn.qkv.bias.double().numpy()
    q, k, _ = np.split(qkv.reshape(*x.shape[:3], heads, -1), 3, -1)
    bias = attn.rel_pos.get_bias().double().numpy()[0]
    places = [(r, c) for r in range(rows) for c in range(rows)]
    group = {p: tuple((i % stride if grid else i // size) for i in p) for p in places}
    inside = {p: tuple((i // stride if grid else i % size) for i in p) for p in places}
    total = np.zeros((len(x), heads))
    for p in places:
        others = [o for o in places if group[o] == group[p]]
        scores = np.stack(
            [
                (q[:, *p] * k[:, *o]).sum(-1) * attn.scale
                + bias[:, inside[p][0] * size + inside[p][1], inside[o][0] * size + inside[o][1]]
                for o in others
            ],
            -1,
        )
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        apart = [np.hypot(p[0] - o[0], p[1] - o[1]) * stage.pitch[0] for o in others]
        total += weights @ np.array(apart)
    return total / len(places)


def test_distances_of_maxvit_s_blocks_and_grids_are_those_of_plain_loops_in_float64(tiny):
    experiment = tiny(
        "analysis=attention_distance", "model.timm=test_maxvit", "images=4", "batch_size=4",
        "analysis.layers=[stages.1.blocks.0.*.attn,stages.2.blocks.0.*.attn]",
    )  # fmt: skip
    study = Study(experiment)
    table = pd.read_csv(run(experiment).files[0])
    net = study.models["model"].net
    (batch,) = minibatches(study, 0, [0])
    kept: dict[str, np.ndarray] = {}
    names = [x.name.removesuffix(".attn") for x in study.layers["model"]]
    net.double()
    for name in names:
        norm = net.get_submodule(f"{name}.norm1")
        norm.register_forward_hook(lambda m, a, o, name=name: kept.update({name: o.numpy()}))
    with torch.no_grad():
        net(batch.pixels["model"].double())
    assert set(table["windows"]) == {16, 4}
    for name in names:
        side = batch.pixels["model"].shape[-1]
        stage = Layer(name, (), None, pitch=(side / kept[name].shape[1],) * 2)
        part = net.get_submodule(name)
        expected = plain_maxvit(part, kept[name], stage, grid=name.endswith("grid"))
        found = table[table["layer"] == f"{name}.attn"]["distance_px"]
        np.testing.assert_allclose(found, expected.mean(0), rtol=1e-6)
