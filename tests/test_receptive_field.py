"""Receptive fields against convolutions by hand and autograd in a loop, and what is refused."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import composed
from torch import Tensor, nn

from vitsee.analyses.receptive_field import ReceptiveField, bin_means, size
from vitsee.analysis import Labels, Layer, Setting, View
from vitsee.errors import UserError
from vitsee.models import residual
from vitsee.models.residual import Residual
from vitsee.results.folder import Results
from vitsee.runner import minibatches, run
from vitsee.study import Study
from vitsee.sums import Sums

pytestmark = pytest.mark.usefixtures("undrawn")

PIXELS = (4, 3, 32, 32)


def experiment(images: Path, outputs: Path, *overrides: str):
    return composed(
        "analysis=receptive_field",
        "model=timm",
        "model.pretrained=false",
        "dataset=folder",
        f"dataset.root={images}",
        "images=3",
        "batch_size=2",
        f"run.outputs={outputs}",
        "run.device=cpu",
        "run.workers=0",
        "run.progress=false",
        *overrides,
    )


def measured(net: nn.Module, layer: Layer, analysis: ReceptiveField) -> dict[str, pd.DataFrame]:
    """Tables of a network's output on random images, as if it were a layer of a model."""
    analysis.check({"model": [layer]})
    analysis = analysis.on(Setting(layers={"model": [layer]}))
    pixels = torch.randn(PIXELS, generator=torch.Generator().manual_seed(0)).requires_grad_()
    kept = {layer.name: analysis.reduce(layer, Residual(None, net(pixels)))}
    view = View(len(pixels), torch.zeros(len(pixels)), kept, pixels={"model": pixels})
    return analysis.tables(Sums.of(0, 1, analysis.observe(view), {"model": [layer.name]}))


def as_map(table: pd.DataFrame) -> np.ndarray:
    return table.pivot(index="row", columns="col", values="value").to_numpy()


def composed_kernel(one: np.ndarray, two: np.ndarray) -> np.ndarray:
    """Kernel (out, in, 5, 5) of two convolutions of kernels (c, in, 3, 3) and (out, c, 3, 3)."""
    whole = np.zeros((two.shape[0], one.shape[1], 5, 5))
    for i in range(3):
        for j in range(3):
            whole[:, :, i : i + 3, j : j + 3] += np.einsum("oc,cnhw->onhw", two[:, :, i, j], one)
    return whole


def test_the_field_of_two_convolutions_is_the_one_computed_by_hand():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 5, 3, padding=1), nn.Conv2d(5, 7, 3, padding=1))
    layer = Layer("stem", (7, 32, 32), None, grid=(32, 32), pitch=(1, 1))
    tables = measured(net, layer, ReceptiveField(channels=None, resolution=None))
    one, two = (conv.weight.detach().double().numpy() for conv in net)
    expected = np.zeros((32, 32))
    expected[14:19, 14:19] = abs(composed_kernel(one, two)).mean(0).sum(0)  # around (16, 16)
    np.testing.assert_allclose(as_map(tables["receptive_field"]), expected, rtol=1e-5, atol=1e-9)


def test_the_field_of_one_linear_layer_over_all_tokens_is_uniform():
    class Mean(nn.Module):
        def forward(self, x: Tensor) -> Tensor:  # 4 x 4 tokens of patches of 8 x 8 pixels
            return x.mean((1, 2, 3)).view(-1, 1, 1).expand(-1, 16, 6)

    layer = Layer("blocks.0.+attn", (16, 6), 0, grid=(4, 4), pitch=(8, 8))
    tables = measured(Mean(), layer, ReceptiveField(channels=None, resolution=None))
    field = as_map(tables["receptive_field"])
    np.testing.assert_allclose(field, np.full((32, 32), 3 / (3 * 32 * 32)), rtol=1e-6)
    assert tables["receptive_field_size"]["own_share"].tolist() == pytest.approx([1 / 16])


def test_the_field_of_a_map_with_its_channels_last_is_that_of_the_map():
    class Turned(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).permute(0, 2, 3, 1)

    torch.manual_seed(0)
    net = nn.Conv2d(3, 8, 8, 4, padding=2)
    turned = Turned(3, 8, 8, 4, padding=2)
    turned.load_state_dict(net.state_dict())
    place = {"grid": (8, 8), "pitch": (4, 4)}
    first = measured(net, Layer("stem", (8, 8, 8), None, **place), ReceptiveField())
    last = Layer("stem", (8, 8, 8), None, **place, channels_last=True)
    for name, table in measured(turned, last, ReceptiveField()).items():
        pd.testing.assert_frame_equal(table, first[name])


def in_a_loop(study: Study) -> dict[tuple[str, str], np.ndarray]:
    """Every map of both points: one image, one channel, one backward pass at a time, in float64."""
    net = copy.deepcopy(study.models["model"].net).double()
    batches = list(minibatches(study, 0, list(range(len(study.plan)))))
    images = torch.cat([b.pixels["model"] for b in batches]).double()
    total: dict[tuple[str, str], Tensor] = {}
    for layer in study.layers["model"]:
        for image in images:
            x = image[None].clone().requires_grad_()
            seen: dict[str, Tensor] = {}

            def keep(r: Residual, seen: dict[str, Tensor] = seen) -> None:
                seen.update(post=r.total.clone(), pre=r.branch.clone())

            handles = residual.attach(net, layer, keep)
            net(x)
            for handle in handles:
                handle.remove()
            for point, value in seen.items():
                rows, columns = layer.grid
                tokens = value[0] if value.ndim == 3 else value[0].flatten(1).mT
                centre = tokens[(layer.prefix or 0) + rows // 2 * columns + columns // 2]
                grads = [torch.autograd.grad(v, x, retain_graph=True)[0].abs() for v in centre]
                here = torch.stack(grads).mean(0).sum((0, 1)) / len(images)
                total[layer.name, point] = total.get((layer.name, point), 0) + here
    return {key: value.numpy() for key, value in total.items()}


@pytest.mark.parametrize(
    "model",
    [
        ["model.timm=test_vit", "model.args={depth: 2, embed_dim: 32, num_heads: 2}"],
        ["model.timm=test_resnet", "model.args={channels: [8,8,16,16], zero_init_last: false}"],
        ["model.timm=test_efficientnet"],
    ],
)
def test_with_all_channels_every_layer_equals_autograd_in_a_loop(model, images, tmp_path):
    asked = experiment(
        images,
        tmp_path,
        *model,
        "model.overlay.input_size=[3,32,32]",
        "analysis.channels=null",
        "analysis.point=both",
        "analysis.resolution=null",
        "images=3",
        "batch_size=2",
    )
    table = Results(run(asked).folder).tables()["receptive_field"]
    expected = in_a_loop(Study(asked))
    found = {key: as_map(rows) for key, rows in table.groupby(["layer", "point"])}
    assert found.keys() == expected.keys()
    for key, values in expected.items():
        assert values.max() > 0
        np.testing.assert_allclose(found[key], values, atol=1e-5 * values.max(), err_msg=str(key))


def test_how_many_channels_go_at_once_changes_nothing(images, tmp_path):
    def table(at_once: int) -> pd.DataFrame:
        asked = experiment(
            images, tmp_path / str(at_once), "model.timm=test_vit", "analysis.channels=8",
            "model.overlay.input_size=[3,32,32]",
            f"analysis.channels_at_once={at_once}",
        )  # fmt: skip
        return Results(run(asked).folder).tables()["receptive_field"]

    pd.testing.assert_frame_equal(table(3), table(64), rtol=1e-5)


def linear_map() -> tuple[nn.Module, Layer]:
    torch.manual_seed(0)
    net = nn.Conv2d(3, 40, 5, padding=2)
    return net, Layer("stem", (40, 32, 32), None, grid=(32, 32), pitch=(1, 1))


def test_a_draw_of_channels_is_decided_by_the_seed_and_all_of_them_are_exact():
    def field(**options: object) -> np.ndarray:
        return as_map(measured(*linear_map(), ReceptiveField(**options))["receptive_field"])

    few = field(channels=8)
    np.testing.assert_array_equal(few, field(channels=8))
    assert not np.allclose(few, field(channels=8, seed=1))
    np.testing.assert_array_equal(field(channels=40), field(channels=None))
    net, _ = linear_map()
    each = net.weight.detach().abs().sum(1).numpy()  # (40, 5, 5)
    drawn = np.random.default_rng(0).permutation(40)[:8]
    np.testing.assert_allclose(few[14:19, 14:19], each[drawn].mean(0), rtol=1e-5)


def test_the_average_over_draws_of_channels_is_that_of_all():
    def field(**options: object) -> np.ndarray:
        return as_map(measured(*linear_map(), ReceptiveField(**options))["receptive_field"])

    draws = np.mean([field(channels=8, seed=seed) for seed in range(40)], axis=0)
    inside = slice(14, 19)
    np.testing.assert_allclose(
        draws[inside, inside], field(channels=None)[inside, inside], rtol=0.1
    )


def test_gradients_that_are_zero_or_nan_are_said_and_their_sizes_are_nan():
    class Constant(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.detach() if self.training else x * float("nan")

    layer = Layer("stem", (3, 32, 32), None, grid=(32, 32), pitch=(1, 1))
    for net, why in (
        (Constant(), "does not depend on the input (all gradients are 0)"),
        (Constant().eval(), "has NaN or Inf gradients"),
    ):
        analysis = ReceptiveField().on(Setting(layers={"model": [layer]}))
        pixels = torch.randn(PIXELS).requires_grad_()
        kept = {"stem": analysis.reduce(layer, Residual(None, net(pixels)))}
        view = View(4, torch.zeros(4), kept, pixels={"model": pixels})
        sums = Sums.of(0, 1, analysis.observe(view), {"model": ["stem"]})
        assert analysis.warnings(sums) == [f"stem of the model (post) {why}; its size is NaN"]
        sizes = analysis.tables(sums)["receptive_field_size"]
        assert sizes[["radius50_px", "radius90_px", "own_share"]].isna().all(axis=None)


def test_sizes_are_radii_around_the_own_patch_and_its_share():
    layer = Layer("blocks.0.+mlp", (17, 6), 1, grid=(4, 4), pitch=(8, 8))
    field = np.zeros((32, 32))
    field[16:24, 16:24] = 1  # the centre token (2, 2), whose centre is (20, 20)
    found = size(field, layer)
    assert found["own_share"] == 1
    assert found["radius90_px"] < np.hypot(4, 4)
    assert found["radius50_px"] < found["radius90_px"]
    field[0, 0] = 64  # as much again, in the corner
    found = size(field, layer)
    assert found["own_share"] == 0.5
    assert found["radius90_px"] == pytest.approx(np.hypot(19.5, 19.5))


def test_the_radius_of_a_uniform_disk_is_that_of_its_area():
    y, x = np.indices((101, 101)) - 50
    disk = (np.hypot(y, x) <= 40).astype(float)
    layer = Layer("layer1.0", (8, 50, 50), None, grid=(50, 50), pitch=(2.02, 2.02))
    found = size(np.roll(disk, 5, 0), layer)  # wherever it lies
    assert found["radius50_px"] == pytest.approx(40 * np.sqrt(0.5), rel=0.02)
    assert found["radius90_px"] == pytest.approx(40 * np.sqrt(0.9), rel=0.02)


@pytest.mark.parametrize("shape", [(224, 224), (100, 60), (56, 30)])
def test_binned_maps_are_means_of_nearly_equal_bins(shape):
    values = np.random.default_rng(0).random(shape)
    found = bin_means(values, 56)
    assert found.shape == tuple(min(56, side) for side in shape)
    rows, columns = (np.array_split(range(side), min(56, side)) for side in shape)
    lengths = {len(part) for part in rows}
    assert max(lengths) - min(lengths) <= 1
    if shape == (224, 224):
        expected = [[values[np.ix_(r, c)].mean() for c in columns] for r in rows]
        np.testing.assert_allclose(found, expected)
    edges = np.arange(found.shape[0]) * shape[0] // found.shape[0]
    np.testing.assert_allclose(
        found[0, 0], values[: edges[1], : (shape[1] // found.shape[1])].mean()
    )


@pytest.mark.parametrize("option", ["channels", "channels_at_once", "resolution"])
def test_options_below_one_are_refused(option):
    with pytest.raises(UserError, match=rf"analysis\.{option} must be 1 or more, got 0"):
        ReceptiveField(**{option: 0})


def test_a_layer_without_positions_is_refused():
    layer = Layer("head", (10,), None)
    with pytest.raises(
        UserError, match=r"head of the other has no spatial locations .* 10\), so no"
    ):
        ReceptiveField().check({"model": [], "other": [layer]})


def test_a_convolutional_network_beside_a_vit_is_drawn_in_the_same_axes(images, tmp_path):
    beside = ["model@other=timm", "other.timm=test_resnet", "other.pretrained=false"]
    small = [f"{role}.overlay.input_size=[3,32,32]" for role in ("model", "other")]
    asked = experiment(
        images, tmp_path, "model.timm=test_vit", "analysis.channels=4", *beside, *small
    )
    folder = run(asked).folder
    assert json.loads((folder / "made_with.json").read_text())["warnings"] == []
    tables = Results(folder).tables()
    assert tables["receptive_field"]["value"].notna().all()
    drawn = asked.analysis.figures(tables, Labels("ViT", "ResNet", "folder", 5))
    (axes,) = drawn["receptive_field_size"].axes
    assert [text.get_text() for text in axes.figure.legends[0].get_texts()] == [
        "ViT: 50 %",
        "ViT: 90 %",
        "ResNet: 50 %",
        "ResNet: 90 %",
    ]
    fields = tables["receptive_field"]
    assert fields[fields["model"] == "other"]["layer"].iloc[0] == "conv1.0"  # the stem


def test_two_models_of_one_name_are_told_apart():
    analysis = ReceptiveField(channels=1)
    net, layer = linear_map()
    tables = measured(net, layer, analysis)
    both = {name: pd.concat([table, table.assign(model="other")]) for name, table in tables.items()}
    (axes,) = analysis.figures(both, Labels("ViT", "ViT", "folder", 4))["receptive_field_size"].axes
    words = [text.get_text() for text in axes.figure.legends[0].get_texts()]
    assert words == ["ViT: 50 %", "ViT: 90 %", "ViT (other): 50 %", "ViT (other): 90 %"]
