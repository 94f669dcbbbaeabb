"""Accuracy is measured; data and compute of the training come from model cards."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import composed
from test_models import configured

from vitsee.analyses.scaling import Scaling
from vitsee.analysis import Layer, Setting, View
from vitsee.data.scenes import Scenes
from vitsee.errors import UserError
from vitsee.models import loader
from vitsee.models.cards import Card
from vitsee.models.sources.timm import shipped
from vitsee.papers.plot import plot_joined
from vitsee.results.reading import read
from vitsee.runner import run
from vitsee.sums import Sums

CARD = Card(
    name="a", architecture="vit", parameters=1_000_000, dataset="scenes (x)", classes=16, accuracy=0.5,
    test_images=400, pixel_probe=0.1, train_images=1000, images_seen=4000, epochs=4.0, flops_per_image=2e6,
    training_flops=2.4e10, started_from=None, stored_as="float32", seed=0, recipe={}, model={},
)  # fmt: skip


def measured(folder, *overrides: str):
    """`vitsee run analysis=scaling` on the first 48 scenes: the result's folder."""
    words = ["analysis=scaling", "dataset.size=48", "images=48", "batch_size=16", "run.device=cpu"]
    quiet = ["run.workers=0", "run.progress=false", f"run.outputs={folder}"]
    return run(composed(*words, *quiet, *overrides)).folder


def test_accuracy_is_the_share_of_images_that_are_classified_right(tmp_path, undrawn):
    (row,) = pd.read_csv(measured(tmp_path) / "scaling.csv").to_dict("records")
    scenes, net = Scenes("test", resolution=56), loader.load(configured("vit_mini"), "cpu").net
    images = np.stack([scenes.image(i) for i in range(48)])
    with torch.inference_mode():
        logits = net(torch.from_numpy(images).permute(0, 3, 1, 2) / 127.5 - 1)
    right = (logits.argmax(1).numpy() == np.arange(48) % 16).mean()
    assert row["accuracy"] == right
    assert row["se"] == pytest.approx(math.sqrt(right * (1 - right) / 48))


def test_what_the_training_took_is_read_from_the_card_beside_the_weights(tmp_path, undrawn):
    weights = tmp_path / "mine.safetensors"
    shutil.copy(shipped("vit_mini"), weights)
    card = replace(CARD, name="mine", train_images=7, images_seen=70, training_flops=7e9)
    weights.with_suffix(".md").write_text(card.markdown)
    folder = measured(tmp_path, f"model.checkpoint={weights}")
    (row,) = pd.read_csv(folder / "scaling.csv").to_dict("records")
    assert row["family"] == "vit, 1.00 M"
    assert (row["train_images"], row["images_seen"], row["training_flops"]) == (7, 70, 7e9)
    labels = json.loads((folder / "made_with.json").read_text())["labels"]
    assert (labels["family"], labels["train_images"]) == ("vit, 1.00 M", 7)
    other = replace(card, train_images=8)
    weights.with_suffix(".md").write_text(other.markdown)
    assert measured(tmp_path, f"model.checkpoint={weights}") != folder


@pytest.mark.parametrize("beside", [None, "# Notes of mine"])
def test_without_a_card_the_accuracy_stands_alone_and_a_warning_says_so(
    beside, tmp_path, caplog, undrawn
):
    weights = tmp_path / "mine.safetensors"
    shutil.copy(shipped("vit_mini"), weights)
    if beside:
        weights.with_suffix(".md").write_text(beside)
    folder = measured(tmp_path, f"model.checkpoint={weights}")
    (row,) = pd.read_csv(folder / "scaling.csv").to_dict("records")
    assert row["accuracy"] > 0.5
    assert math.isnan(row["train_images"])
    assert "vit_mini has no model card next to its weights" in caplog.text


def test_images_of_other_classes_than_the_models_are_refused(tmp_path, images):
    words = ["dataset=folder", f"dataset.root={images}", "dataset.size=null", "images=40"]
    with pytest.raises(UserError, match=r"has 16 outputs, but the images have 2 classes, so its"):
        measured(tmp_path, *words)


def test_a_model_of_two_classifiers_is_refused(tmp_path):
    words = ["model=timm", "model.timm=deit_tiny_distilled_patch16_224", "model.pretrained=false"]
    with pytest.raises(
        UserError,
        match=r"VisionTransformerDist\w* does not have a classifier that is a single module",
    ):
        measured(tmp_path, *words, "dataset=scenes", "model.args={depth: 1, num_classes: 16}")


def test_a_second_model_is_refused(tmp_path):
    with pytest.raises(
        UserError, match=r"scaling measures one model, .* `vitsee plot FOLDER FOLDER"
    ):
        measured(tmp_path, "model@other=resnet_mini")


def test_images_without_a_label_make_the_accuracy_undefined():
    scaling, layer = Scaling().on(Setting(names={"model": "mine"})), Layer("head", (3,), None)
    found = scaling.reduce(layer, torch.tensor([[0.0, 1, 0], [1, 0, 0]]))
    for labels, accuracy in (([1, 0], 1.0), ([1, -1], math.nan)):
        terms = scaling.observe(View(2, torch.tensor(labels), {"head": found}))
        sums = Sums(torch.ones(1, dtype=torch.int64), {0: terms})
        got = scaling.tables(sums)["scaling"]["accuracy"].iloc[0]
        assert got == pytest.approx(accuracy, nan_ok=True)
        assert ("some images have no label" in scaling.warnings(sums)[-1]) == math.isnan(accuracy)


def test_logits_that_are_not_finite_make_the_accuracy_undefined():
    scaling, layer = Scaling().on(Setting(names={"model": "mine"})), Layer("head", (3,), None)
    logits = torch.tensor([[0.0, 1, 0], [math.inf, 0, 0], [math.nan, 0, 0]])
    found = scaling.reduce(layer, logits)
    assert found.tolist() == [1, -1, -1]
    terms = scaling.observe(View(3, torch.tensor([1, 0, 0]), {"head": found}))
    sums = Sums(torch.ones(1, dtype=torch.int64), {0: terms})
    assert math.isnan(scaling.tables(sums)["scaling"]["accuracy"].iloc[0])
    assert "the logits of 2 images are not finite" in scaling.warnings(sums)[-1]


def test_models_of_one_family_are_one_line_against_images_and_against_compute(tmp_path):
    folders = []
    for name, images in (("few", 100), ("many", 1000)):
        weights = tmp_path / f"{name}.safetensors"
        shutil.copy(shipped("vit_mini"), weights)
        card = replace(CARD, name=name, train_images=images, training_flops=1e9 * images)
        weights.with_suffix(".md").write_text(card.markdown)
        words = [f"model.checkpoint={weights}", f"model.name={name}"]
        folders.append(measured(tmp_path, *words))
    drawn = plot_joined(folders)
    names = ["scaling_accuracy", "scaling_images", "scaling_compute"]
    assert [path.name.rpartition("-")[0] for path in drawn] == names
    found = [read(folder) for folder in folders]
    joined = found[0].analysis.joined([(one.tables, one.labels) for one in found])
    for figure, x in (
        (joined["scaling_images"], [100, 1000]),
        (joined["scaling_compute"], [1e11, 1e12]),
    ):
        (line,) = figure.axes[0].containers
        assert line.get_label() == "few"
        assert line.lines[0].get_xdata().tolist() == x
