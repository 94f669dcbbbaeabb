"""Skip ratios against a plain float64 computation by hand, and what is said where they are undefined."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import composed
from torch import Tensor, nn

from vitsee.analyses.skip_ratio import SkipRatio, median
from vitsee.analysis import Labels, Layer, Setting, View
from vitsee.models.residual import Residual
from vitsee.results.folder import Results
from vitsee.runner import minibatches, run
from vitsee.study import Study
from vitsee.sums import Sums

pytestmark = pytest.mark.usefixtures("undrawn")

BIN = 2 ** (1 / 16)
"""Width of a bin of the histogram, as a factor."""


def experiment(images: Path, outputs: Path, model: str, *overrides: str):
    return composed(
        "analysis=skip_ratio",
        "model=timm",
        f"model.timm={model}",
        "model.pretrained=false",
        "dataset=folder",
        f"dataset.root={images}",
        "images=12",
        "batch_size=5",
        f"run.outputs={outputs}",
        "run.device=cpu",
        "run.workers=0",
        "run.progress=false",
        *overrides,
    )


def vit(net: nn.Module, x: Tensor) -> Iterator[tuple[str, str, Tensor, Tensor]]:
    """(block, branch, z, f) of a pre-norm transformer, with or without LayerScale."""
    x = net.norm_pre(net._pos_embed(net.patch_embed(x)))
    for i, b in enumerate(net.blocks):
        for branch in ("attn", "mlp"):
            inner = b.ls1(b.attn(b.norm1(x))) if branch == "attn" else b.ls2(b.mlp(b.norm2(x)))
            yield f"blocks.{i}", branch, x, inner
            x = x + inner


def resnet(net: nn.Module, x: Tensor) -> Iterator[tuple[str, str, Tensor, Tensor]]:
    """(block, branch, z, f) of a post-activation ResNet of bottlenecks."""
    x = net.maxpool(net.act1(net.bn1(net.conv1(x))))
    for s in (1, 2, 3, 4):
        for u, b in enumerate(net.get_submodule(f"layer{s}")):
            z = x if b.downsample is None else b.downsample(x)
            f = b.bn1(b.conv1(x)).relu()
            f = b.bn3(b.conv3(b.bn2(b.conv2(f)).relu()))
            yield f"layer{s}.{u}", "unit", z, f
            x = (z + f).relu()


def bit(net: nn.Module, x: Tensor) -> Iterator[tuple[str, str, Tensor, Tensor]]:
    """(block, branch, z, f) of a pre-activation ResNet; its norms have their activation within."""
    x = net.stem(x)
    for s, stage in enumerate(net.stages):
        for u, b in enumerate(stage.blocks):
            ready = b.norm1(x)
            z = x if b.downsample is None else b.downsample(ready)
            f = b.conv3(b.norm3(b.conv2(b.norm2(b.conv1(ready)))))
            yield f"stages.{s}.blocks.{u}", "unit", z, f
            x = z + f


def cosine(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(-1) / (a.norm(dim=-1) * b.norm(dim=-1))


def by_hand(study: Study, walk) -> pd.DataFrame:
    """Mean ratio, lower median and mean cosine, from float64 copies of the model and the images."""
    net = copy.deepcopy(study.models["model"].net).double()
    pixels = [b.pixels["model"] for b in minibatches(study, 0, list(range(len(study.plan))))]
    rows = []
    with torch.no_grad():
        for block, branch, z, f in walk(net, torch.cat(pixels).double()):
            spatial = slice(getattr(net, "num_prefix_tokens", 0), None)
            if z.ndim == 4:
                z, f = (x.flatten(2).mT for x in (z, f))
            ratio, angle = z.norm(dim=-1) / f.norm(dim=-1), cosine(z, z + f)
            tokens = range(-1, z.shape[1] if walk is vit else 0)
            for token in tokens:
                values = [
                    x[:, spatial].mean(1) if token < 0 else x[:, token] for x in (ratio, angle)
                ]
                middle = values[0].sort().values[(len(z) - 1) // 2]
                rows.append((block, branch, token, values[0].mean(), middle, values[1].mean()))
    table = pd.DataFrame(rows, columns=["block", "branch", "token", "ratio", "median", "cosine"])
    return table.astype({"ratio": float, "median": float, "cosine": float})


@pytest.mark.parametrize(
    ("model", "arguments", "walk"),
    [
        ("vit_tiny_patch16_224", ["depth:3", "img_size:64"], vit),
        ("deit3_small_patch16_224", ["depth:3", "img_size:64", "init_values:0.3"], vit),
        ("resnet50_gn", ["layers:[1,2,1,1]", "zero_init_last:false"], resnet),
        ("resnetv2_50x1_bit", ["zero_init_last:false"], bit),
    ],
)
def test_ratios_and_cosines_are_those_computed_by_hand(model, arguments, walk, images, tmp_path):
    overrides = [] if walk is vit else ["model.overlay.input_size=[3,64,64]"]
    asked = experiment(images, tmp_path, model, f"model.args={{{','.join(arguments)}}}", *overrides)
    table = Results(run(asked).folder).tables()["skip_ratio"]
    expected = by_hand(Study(asked), walk)
    keys = ["block", "branch", "token"]
    pd.testing.assert_frame_equal(table[keys], expected[keys])
    np.testing.assert_allclose(table["ratio"], expected["ratio"], rtol=1e-5)
    np.testing.assert_allclose(table["cosine"], expected["cosine"], rtol=1e-5, atol=1e-6)
    assert (np.log2(table["median"] / expected["median"]).abs() <= 1 / 16).all()


ONE_TOKEN = Layer("blocks.0.+attn", (1, 2), 0, grid=(1, 1))


def of_one_token() -> SkipRatio:
    """The analysis of a layer of one token."""
    return SkipRatio().on(Setting(layers={"model": [ONE_TOKEN]}))


def one_token(ratios: list[float]) -> Sums:
    """Sums of images of one token, in minibatches of 4, whose ratios are given."""
    layer, analysis = ONE_TOKEN, of_one_token()
    batches = [ratios[i : i + 4] for i in range(0, len(ratios), 4)]
    total = Sums.zero(len(batches))
    for index, batch in enumerate(batches):
        z = torch.tensor(batch).view(-1, 1, 1) * torch.tensor([1.0, 0.0])
        f = torch.tensor([0.0, 1.0]).expand_as(z)
        kept = {layer.name: analysis.reduce(layer, Residual(z, f))}
        terms = analysis.observe(View(len(batch), torch.zeros(len(batch)), kept))
        total += Sums.of(index, len(batches), terms, {"model": [layer.name]})
    return total


@pytest.mark.parametrize("count", [1, 2, 9, 40, 401])
def test_the_median_of_a_stream_is_exact_to_the_width_of_a_bin(count):
    ratios = np.random.default_rng(count).lognormal(1, 2, count)
    found = of_one_token().tables(one_token(ratios.tolist()))
    exact = np.sort(ratios)[(count - 1) // 2]
    assert found["skip_ratio"]["median"].to_numpy() == pytest.approx(exact, rel=BIN - 1)
    assert found["skip_ratio"]["ratio"].to_numpy() == pytest.approx(ratios.mean(), rel=1e-5)


def test_ratios_beyond_the_histogram_count_and_a_median_there_is_nan_with_a_warning():
    analysis = of_one_token()
    sums = one_token([1.0, 1.0, 1e9])
    assert analysis.tables(sums)["skip_ratio"]["median"][0] == pytest.approx(1, rel=BIN - 1)
    sums = one_token([1.0, 1e9, 1e9])
    table = analysis.tables(sums)["skip_ratio"]
    assert table["median"].isna().all()
    assert table["ratio"][0] == pytest.approx(2e9 / 3)
    assert analysis.warnings(sums) == [
        "blocks.0.+attn of the model has ratios outside 2^-16 to 2^24; medians outside this range are NaN"
    ]


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_undefined_ratios_are_nan_with_a_warning(broken):
    analysis = of_one_token()
    sums = one_token([1.0, 2.0, broken, 3.0, 1.0])
    assert analysis.tables(sums)["skip_ratio"][["ratio", "median"]].isna().all(axis=None)
    assert analysis.warnings(sums) == [
        "blocks.0.+attn of the model: in 1 images the branch is 0, NaN or Inf; "
        "the ratio is undefined, so NaN"
    ]


def test_a_branch_that_adds_nothing_has_no_ratio_and_a_cosine_of_one(images, tmp_path):
    asked = experiment(images, tmp_path, "resnet18", "model.overlay.input_size=[3,64,64]")
    folder = run(asked).folder  # timm starts the last norm of every unit at 0
    table = Results(folder).tables()["skip_ratio"]
    assert table[["ratio", "median"]].isna().all(axis=None)
    np.testing.assert_allclose(table["cosine"], 1, rtol=1e-6)
    warnings = json.loads((folder / "made_with.json").read_text())["warnings"]
    assert "layer1.0 of the model: in 12 images the branch is 0" in warnings[0]
    assert len(warnings) == 8


def test_a_stream_that_is_0_at_a_place_has_a_ratio_but_no_cosine_and_a_warning():
    layer = Layer("layer1.0", (2, 1, 2), None, grid=(1, 2))
    analysis = SkipRatio().on(Setting(layers={"model": [layer]}))
    z, f = torch.tensor([[[[0.0, 3.0]], [[0.0, 4.0]]]]), torch.ones(1, 2, 1, 2)
    reduced = analysis.reduce(layer, Residual(z, f))
    terms = analysis.observe(View(1, torch.zeros(1), {"layer1.0": reduced}))
    sums = Sums.of(0, 1, terms, {"model": ["layer1.0"]})
    table = analysis.tables(sums)["skip_ratio"]
    assert table["ratio"][0] == pytest.approx(5 / 2**0.5 / 2)
    assert table["cosine"].isna().all()
    assert analysis.warnings(sums) == [
        "layer1.0 of the model: the skip connection or the sum is 0 somewhere (after a ReLU, say); "
        "the cosine is undefined, so NaN"
    ]


def test_half_precision_ratios_neither_overflow_nor_vanish():
    layer = Layer("layer1.0", (1024, 1, 1), None, grid=(1, 1))
    z = torch.full((2, 1024, 1, 1), 60000.0, dtype=torch.float16)
    f = torch.full((2, 1024, 1, 1), 1e-3, dtype=torch.float16)
    found = SkipRatio().reduce(layer, Residual(z, f))
    assert found[..., 0].flatten().tolist() == pytest.approx([60000 / f[0, 0].item()] * 2, rel=1e-5)
    assert found[..., 1].flatten().tolist() == pytest.approx([1, 1])


def test_prefix_tokens_are_told_apart_and_are_not_in_the_mean():
    layer = Layer("blocks.0.+mlp", (4, 1), 2, class_token=True, grid=(1, 2))
    analysis = SkipRatio().on(Setting(layers={"model": [layer]}))
    z = torch.tensor([100.0, 50.0, 1.0, 3.0]).view(1, 4, 1)
    kept = {layer.name: analysis.reduce(layer, Residual(z, torch.ones_like(z)))}
    terms = analysis.observe(View(1, torch.zeros(1), kept))
    table = analysis.tables(Sums.of(0, 1, terms, {"model": [layer.name]}))["skip_ratio"]
    assert table["token"].tolist() == [-1, 0, 1, 2, 3]
    assert table["kind"].tolist() == ["mean", "class", "prefix", "spatial", "spatial"]
    assert table["ratio"].tolist() == pytest.approx([2, 100, 50, 1, 3])


def test_a_resnet_beside_a_vit_is_drawn_in_the_same_axes(images, tmp_path):
    beside = ["model@other=timm", "other.timm=resnet18", "other.pretrained=false"]
    asked = experiment(images, tmp_path, "test_vit", *beside, "other.args.zero_init_last=false")
    results = Results(run(asked).folder)
    tables = results.tables()
    table = tables["skip_ratio"]
    assert table.groupby("model")["branch"].unique().map(list).to_dict() == {
        "model": ["attn", "mlp"],
        "other": ["unit"],
    }
    drawn = asked.analysis.figures(tables, Labels("ViT", "ResNet", "folder", 12))
    for name in ("skip_ratio", "skip_cosine"):
        (axes,) = drawn[name].axes
        assert [text.get_text() for text in axes.figure.legends[0].get_texts()] == [
            "self-attention",
            "self-attention (class token)",
            "MLP",
            "MLP (class token)",
            "ResNet",
        ]
        resnet18 = axes.get_lines()[-1].get_ydata()
        column = "ratio" if name == "skip_ratio" else "cosine"
        np.testing.assert_array_equal(resnet18, table[table["model"] == "other"][column])
    panels = [axes for axes in drawn["skip_ratio_tokens"].axes if axes.get_title()]
    assert [axes.get_title() for axes in panels] == ["‖z‖ / ‖self-attention‖", "‖z‖ / ‖MLP‖"]


def test_a_histogram_of_nothing_has_no_median():
    assert np.isnan(median(np.zeros((2, 642)))).all()
