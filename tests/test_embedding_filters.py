"""Principal components of embedding filters against scikit-learn's, their sign, and who has none."""

from __future__ import annotations

import re

import numpy as np
import pandas as pd
import pytest
import timm
import torch
from conftest import composed
from sklearn.decomposition import PCA
from torch import Tensor, nn

from vitsee.analyses.embedding_filters import EmbeddingFilters
from vitsee.errors import UserError
from vitsee.models.embedding import principal_components
from vitsee.runner import run
from vitsee.sums import Sums


def with_filters(weights: Tensor) -> nn.Module:
    """A ViT whose patch embedding has these filters, (D, 3, p, p)."""
    net = timm.create_model("test_vit")
    net.patch_embed.proj.weight = nn.Parameter(weights)
    return net


def measured(net: nn.Module, **options: int) -> tuple[dict[str, pd.DataFrame], list[str]]:
    analysis = EmbeddingFilters(**options)
    sums = Sums.of(0, 1, analysis.of_weights({"model": net}), {"model": []})
    return analysis.tables(sums), analysis.warnings(sums)


def components_of(tables: dict[str, pd.DataFrame], *shape: int) -> np.ndarray:
    return tables["embedding_filters"]["value"].to_numpy().reshape(-1, *shape)


def test_components_and_variances_are_those_of_scikit_learn():
    torch.manual_seed(0)
    net = timm.create_model("vit_tiny_patch16_224", depth=1)
    tables, warnings = measured(net)
    weights = net.patch_embed.proj.weight.detach().double().flatten(1).numpy()
    expected = PCA(28, svd_solver="full").fit(weights)
    found = components_of(tables, 768)
    cosine = np.abs(np.sum(found * expected.components_, 1))
    np.testing.assert_allclose(cosine, 1, atol=1e-9)
    share = tables["embedding_variance"]["share"]
    np.testing.assert_allclose(share, expected.explained_variance_ratio_, rtol=1e-9)
    assert list(tables["embedding_filters"].columns) == [
        "component", "channel", "row", "col", "value",
    ]  # fmt: skip
    last = tables["embedding_filters"].iloc[-1]
    assert [last[name] for name in ("component", "channel", "row", "col")] == [27, 2, 15, 15]
    assert warnings == []


def test_the_weight_of_largest_magnitude_is_positive_whatever_sign_the_filters_have():
    weights = torch.randn(40, 3, 4, 4, generator=torch.Generator().manual_seed(0)).double()
    components, _ = principal_components(weights)
    opposite, _ = principal_components(-weights)
    flat = components.flatten(1)
    assert (flat.gather(1, flat.abs().argmax(1, keepdim=True)) > 0).all()
    torch.testing.assert_close(opposite, components, rtol=0, atol=1e-9)


def test_filters_that_mix_two_patterns_have_these_as_components_and_no_others():
    generator = torch.Generator().manual_seed(0)
    patterns, _ = torch.linalg.qr(torch.randn(48, 2, generator=generator))
    amounts = torch.randn(64, 2, generator=generator) * torch.tensor([3.0, 1.0])
    amounts, _ = torch.linalg.qr(amounts - amounts.mean(0))  # uncorrelated, so that both are axes
    mean = torch.randn(48, generator=generator)
    weights = (amounts * torch.tensor([3.0, 1.0])) @ patterns.mT + mean
    components, share = principal_components(weights.double().unflatten(1, (3, 4, 4)))
    cosine = components[:2].flatten(1) @ patterns.double()
    torch.testing.assert_close(cosine.abs(), torch.eye(2).double(), rtol=0, atol=1e-6)
    torch.testing.assert_close(share[:2], torch.tensor([0.9, 0.1]).double(), rtol=0, atol=1e-6)
    assert share[2:].max() < 1e-10


def test_components_without_variance_are_nan_and_named():
    generator = torch.Generator().manual_seed(0)
    amounts, patterns = torch.randn(2, 64, 3, generator=generator)
    weights = (amounts.double() @ patterns[:48].double().mT).unflatten(1, (3, 4, 4))
    components, _ = principal_components(weights)
    assert components[:3].isfinite().all()
    assert components[3:].isnan().all()
    tables, warnings = measured(_Embeds(weights), components=5)
    assert np.isnan(components_of(tables, 48)).all(1).tolist() == [False] * 3 + [True] * 2
    assert warnings == [
        "2 components, from component 3 on, have no variance above rounding, "
        "because the filters span fewer dimensions; they are NaN"
    ]


class _Embeds(nn.Module):
    """A model that is nothing but its patch embedding."""

    def __init__(self, weights: Tensor) -> None:
        super().__init__()
        self.patch_embed = nn.Module()
        self.patch_embed.proj = nn.Conv2d(3, len(weights), weights.shape[-1])
        self.patch_embed.proj.weight = nn.Parameter(weights)


@pytest.mark.parametrize(
    "name", ["mixer_s16_224", "swin_tiny_patch4_window7_224", "cait_xxs24_224"]
)
def test_other_models_that_embed_patches_by_a_convolution_have_filters(name):
    with torch.device("meta"):
        net = timm.create_model(name)
    shape = net.get_submodule("stem.proj" if "mixer" in name else "patch_embed.proj").weight.shape
    net = _Embeds(torch.randn(shape, generator=torch.Generator().manual_seed(0)))
    assert components_of(measured(net)[0], *shape[1:]).shape == (28, *shape[1:])


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("resnet18", "this ResNet does not embed patches with a single convolution"),
        ("convnext_atto", "this ConvNeXt does not embed patches with a single convolution"),
        ("levit_128", "does not embed patches with a single convolution"),
        ("vit_tiny_r_s16_p8_224", r"follows a CNN \(patch_embed.backbone\), so its filters see"),
    ],
)
def test_models_without_such_filters_are_refused_with_the_reason(name, why):
    with torch.device("meta"):
        net = timm.create_model(name)
    with pytest.raises(UserError, match=f"{why}.*models such as vit_mini, vit_b16, .* have such"):
        EmbeddingFilters().of_weights({"model": net})


def test_filters_of_an_image_without_three_channels_are_refused():
    net = timm.create_model("test_vit", in_chans=1)
    with pytest.raises(UserError, match="sees 1 channels instead of an RGB image"):
        EmbeddingFilters().of_weights({"model": net})


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_filters_with_nan_or_inf_are_refused(value):
    weights = torch.randn(64, 3, 16, 16)
    weights[3, 1, 2, 2] = value
    with pytest.raises(
        UserError, match=r"filters of the patch embedding contain NaN or Inf; the che"
    ):
        EmbeddingFilters().of_weights({"model": with_filters(weights)})


def test_more_components_than_there_are_is_refused_with_how_many_there_are():
    net = timm.create_model("test_vit")
    with pytest.raises(
        UserError, match=r"components=64: 64 filters of 768 .*use analysis\.components=63"
    ):
        EmbeddingFilters(components=64).of_weights({"model": net})


def test_less_than_one_component_is_refused():
    with pytest.raises(UserError, match=r"analysis\.components must be at least 1, got 0"):
        EmbeddingFilters(components=0)


def test_it_needs_no_data_set_and_its_folder_says_so(tmp_path):
    words = ["model=timm", "model.timm=test_vit", "model.pretrained=false", "run.device=cpu"]
    nowhere = ["dataset=folder", "dataset.root=/does/not/exist", f"run.outputs={tmp_path}"]
    written = run(composed("analysis=embedding_filters", *words, *nowhere))
    assert re.fullmatch(r"weights-[0-9a-f]{8}", written.folder.name)
    assert {path.name for path in written.files} >= {
        "embedding_filters.csv",
        "embedding_filters.png",
    }
