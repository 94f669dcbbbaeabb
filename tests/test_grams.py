"""Gram matrices that are kept: what the file holds, how it is made, and how damage is told."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import composed
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from vitsee.analyses.grams import Grams
from vitsee.errors import UserError
from vitsee.estimators.triangles import pooled, to_scale, triangles
from vitsee.io import kept
from vitsee.results.folder import Results
from vitsee.runner import run
from vitsee.sums import Sums

pytestmark = [pytest.mark.usefixtures("undrawn"), pytest.mark.xdist_group("laws of grams")]


def features(seed: int = 0, n: int = 9, f: int = 5) -> np.ndarray:
    return np.random.default_rng(seed).normal(3, 1, (n, f))


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("grams")


@pytest.fixture(scope="module")
def measured_grams(images, outputs) -> Path:
    """The tiny ViT's result on 16 images, with pooled features."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vitsee.runner.draw", lambda *path, **options: [])
        return run(tiny_grams(images, outputs, "analysis.features=pooled")).folder


def tiny_grams(images: Path, outputs: Path, *words: str):
    return composed(
        *("analysis=grams", "model=timm", "model.timm=test_vit", "model.pretrained=false"),
        *("dataset=folder", f"dataset.root={images}", "images=16", "batch_size=8"),
        *(f"run.outputs={outputs}", "run.device=cpu", "run.workers=0", "run.progress=false"),
        *words,
    )


# --- formulas ------------------------------------------------------------------------------------


def test_inner_products_of_triangles_are_hsic():
    from reference import hsic1

    x, y = features(0), features(1, f=3)
    k, l = x @ x.T, y @ y.T
    n = len(k)
    rows, columns = np.triu_indices(n)
    u, v = triangles(torch.from_numpy(np.stack([k, l]))).numpy()[:, rows != columns]
    assert 2 * u @ v / (n * (n - 3)) == pytest.approx(hsic1(k, l), rel=1e-12)


def test_the_diagonal_of_triangles_gives_every_distance():
    x = features()
    rows, columns = np.triu_indices(len(x))
    square = np.zeros((len(x), len(x)))
    square[rows, columns] = triangles(torch.from_numpy(x @ x.T)[None]).numpy()[0]
    s = square.diagonal()
    for i in range(len(x)):
        for j in range(i + 1, len(x)):
            assert s[i] + s[j] - 2 * square[i, j] == pytest.approx(((x[i] - x[j]) ** 2).sum())


def test_entries_are_scaled_by_a_power_of_two_so_that_nothing_is_rounded():
    values = torch.tensor([[3.0e20, -7.0e20], [0.0, 0.0], [1e-30, 2e-31]], dtype=torch.float64)
    scaled, scale = to_scale(values)
    assert (scaled * scale[:, None]).equal(values)
    assert scaled.abs().max() <= 1
    assert scale.log2().equal(scale.log2().round())
    broken, scale = to_scale(torch.tensor([[1.0, float("nan")], [float("inf"), 1.0]]))
    assert scale.tolist() == [1, 1]
    assert not broken.isfinite().all(1).any()


def test_pooled_features_are_the_mean_of_the_patches_and_the_class_token():
    tokens = torch.arange(24.0).reshape(2, 4, 3)
    both = pooled(tokens, prefix=1, class_token=True, channels_last=False)
    assert both[1].tolist() == [*tokens[1, 1:].mean(0), *tokens[1, 0]]
    assert pooled(tokens, 0, True, False).equal(tokens.mean(1))  # before the class token is added
    assert pooled(tokens[:, :1], 1, True, False).equal(tokens[:, 0])  # the class token alone
    assert pooled(tokens, 0, False, False)[0].equal(tokens[0].mean(0))
    maps = torch.arange(48.0).reshape(2, 3, 2, 4)
    assert pooled(maps, None, False, False)[1].equal(maps[1].mean((1, 2)))
    assert pooled(maps.permute(0, 2, 3, 1), None, False, True)[1].equal(maps[1].mean((1, 2)))
    assert pooled(maps[:, :, 0, 0], None, False, False).equal(maps[:, :, 0, 0])


# --- the state -----------------------------------------------------------------------------------


def test_what_is_kept_is_put_together_and_not_added(tmp_path):
    axes = {"model": ["a"]}
    parts = [
        Sums.of(b, 3, {"gram": torch.full((1, 2), float(b)).half(), "sum": torch.ones(1)}, axes, kept=("gram",))
        for b in range(3)
    ]  # fmt: skip
    total = parts[2] + parts[0] + parts[1]
    assert sorted(total.complete().kept) == [0, 1, 2]
    assert total.kept[2]["gram"].tolist() == [[2, 2]]
    assert total.kept[2]["gram"].dtype == torch.float16
    assert total.terms["sum"] == 3
    assert "gram" not in total.terms
    (tmp_path / "state.pt").write_bytes(total.packed("mine"))
    back = Sums.load(tmp_path / "state.pt", "mine")
    assert back.kept[1]["gram"].equal(total.kept[1]["gram"])


# --- the file ------------------------------------------------------------------------------------


def test_the_file_says_what_it_is_of(measured_grams):
    found = kept.read(measured_grams / kept.NAME)
    table = Results(measured_grams).tables(Grams.columns)["grams"]
    assert found.index.model == "test_vit"
    assert found.index.layers == table["layer"].unique().tolist()
    assert [len(ids) for ids in found.index.minibatches] == [8, 8]
    assert len({name for ids in found.index.minibatches for name in ids}) == 16
    assert found.index.fresh == [1, 1]
    count = len(found.index.layers)
    assert found.grams(1, list(range(count))).shape == (count, 36)
    assert found.pooled(0, 0).shape == (8, 2 * 64)


def test_the_table_has_the_variance_and_hsic_of_the_features(measured_grams):
    found = kept.read(measured_grams / kept.NAME)
    table = pd.read_csv(measured_grams / "grams.csv").set_index(["layer", "minibatch"])
    for at, layer in enumerate(found.index.layers):
        triangle = found.grams(1, [at])[0]
        rows, columns = np.triu_indices(8)
        distances = (
            triangle[rows == columns][rows] + triangle[rows == columns][columns] - 2 * triangle
        )[rows != columns]
        row = table.loc[(layer, 1)]
        assert row["variance"] == pytest.approx(distances.mean() / 2, rel=1e-5)
        assert row["hsic"] == pytest.approx(
            2 * np.square(triangle[rows != columns]).sum() / (8 * 5), rel=1e-5
        )


def test_half_the_bytes_are_within_half_a_thousandth(images, outputs, measured_grams):
    half = run(tiny_grams(images, outputs / "half", "analysis.stored=float16")).folder
    whole, rounded = (kept.read(folder / kept.NAME) for folder in (measured_grams, half))
    every = list(range(len(whole.index.layers)))
    for minibatch in (0, 1):
        exact = whole.grams(minibatch, every)
        error = np.abs(rounded.grams(minibatch, every) - exact) / np.abs(exact).max(
            1, keepdims=True
        )
        assert 0 < error.max() < 2**-11


def test_the_size_is_said_before_it_starts(images, tmp_path, caplog):
    with caplog.at_level(logging.INFO, "vitsee"):
        run(tiny_grams(images, tmp_path))
    assert caplog.messages[0] == (
        "6 layers of 2 minibatches of 8 images: 0.0 MB are kept in grams.safetensors"
    )


def test_what_is_too_large_is_refused_with_advice_that_works(images, tmp_path):
    with pytest.raises(UserError) as caught:
        run(tiny_grams(images, tmp_path, "analysis.limit_gb=1e-7"))
    line = str(caught.value)
    assert line.startswith(
        "analysis=grams: 6 layers of 2 minibatches of 8 images: 0.0 MB are kept, more than"
    )
    assert not list(tmp_path.rglob("*.pt"))
    advice = line.rpartition(" ")[2]
    assert advice == "analysis.limit_gb=0.1"
    assert run(tiny_grams(images, tmp_path, advice)).files
    with pytest.raises(UserError, match=r"limit_gb must be more than 0, got -1"):
        Grams(limit_gb=-1)


@pytest.mark.parametrize("place", [40, -40])
def test_a_changed_byte_is_told(measured_grams, tmp_path, place):
    content = bytearray((measured_grams / kept.NAME).read_bytes())
    content[place] ^= 1
    (tmp_path / kept.NAME).write_bytes(content)
    with pytest.raises(UserError, match=r"grams.safetensors is damaged: .*; repeat the same"):
        kept.read(tmp_path / kept.NAME)


@pytest.mark.parametrize("length", [0, 4, 300, -1])
def test_a_file_that_is_cut_off_is_told(measured_grams, tmp_path, length):
    (tmp_path / kept.NAME).write_bytes((measured_grams / kept.NAME).read_bytes()[:length])
    with pytest.raises(UserError, match=r"grams.safetensors is damaged: .*; repeat the same"):
        kept.read(tmp_path / kept.NAME)


def test_edited_matrices_and_files_of_others_are_told(measured_grams, tmp_path):
    path = tmp_path / kept.NAME
    tensors = load_file(measured_grams / kept.NAME)
    tensors["gram 0"][0, 0] += 1
    with safe_open(measured_grams / kept.NAME, framework="numpy") as file:
        about = file.metadata()
    save_file(tensors, path, about)
    with pytest.raises(UserError, match=r"edited, or is corrupt: its checksum is wrong"):
        kept.read(path)
    save_file(tensors, path)
    with pytest.raises(UserError, match=r"its checksum is wrong"):
        kept.read(path)


def test_layers_that_cannot_be_pooled_or_have_no_tokens_are_refused(images, tmp_path):
    resnet = ["model.timm=test_resnet", "analysis.tokens=cls"]
    with pytest.raises(
        UserError, match=r"analysis.tokens=cls: .* has no token axis .*use analysis.tokens=all"
    ):
        run(tiny_grams(images, tmp_path, *resnet))
    assert run(tiny_grams(images, tmp_path, resnet[0], "analysis.features=pooled")).files


def test_constant_layers_are_named():
    n = 4
    terms = {
        "hsic": torch.tensor([0.0, 1.0, float("nan")], dtype=torch.float64),
        "indices": torch.arange(n),
    }
    sums = Sums.of(0, 1, terms, {"model": ["a", "b", "c"]}, kept=Grams.keeps)
    assert Grams().warnings(sums) == [
        "a is constant over the images; its similarities are NaN",
        "c has NaN or Inf in 1 of 1 minibatches; its similarities are NaN",
    ]
