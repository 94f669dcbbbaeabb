"""Training resumes to the bit, stops at a loss that is not finite, and its weights are what their card says."""

from __future__ import annotations

import itertools
import math
import re

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from vitsee import models, training
from vitsee.config import Model, Precision, Run
from vitsee.errors import UserError
from vitsee.interrupt import Interrupted, Interruptible
from vitsee.scenes import CLASSES, Scenes
from vitsee.training import Recipe, train

SHIPPED = ("vit_mini", "resnet_mini")


def recipe(**changes: object) -> Recipe:
    """Six steps of a ViT of two blocks."""
    model = Model(
        name="wee",
        timm="vit_tiny_patch16_224",
        args={"img_size": 28, "patch_size": 7, "embed_dim": 16, "depth": 2, "num_heads": 2}
        | {"num_classes": len(CLASSES)},
        overlay={"input_size": [3, 28, 28], "mean": [0.5] * 3, "std": [0.5] * 3},
    )
    values = {
        "name": "wee",
        "model": model,
        "images_seen": 6 * 16,
        "train_size": 64,
        "test_size": 32,
        "batch_size": 16,
        "eval_every": 2,
        "save_every": 2,
    }
    return Recipe(**(values | changes))


def quiet(tmp_path) -> Run:
    return Run(outputs=str(tmp_path), device="cpu", progress=False)


def stop_after(steps: int, monkeypatch) -> None:
    """As if Ctrl-C came during this step."""
    real, calls = Interruptible.check, []

    def check(self):
        calls.append(1)
        self.asked = len(calls) == steps
        real(self)

    monkeypatch.setattr(Interruptible, "check", check)


@pytest.mark.parametrize("precision", [Precision.fp32, Precision.bf16])
@pytest.mark.parametrize("steps", [1, 3, 4])
def test_an_interrupted_training_goes_on_and_gives_the_same_weights(
    steps, precision, tmp_path, monkeypatch
):
    wanted = recipe(precision=precision)
    whole = train(wanted, quiet(tmp_path / "whole"))
    with monkeypatch.context() as during:
        stop_after(steps, during)
        with pytest.raises(Interrupted):
            train(wanted, quiet(tmp_path / "parts"))
    parts = train(wanted, quiet(tmp_path / "parts"))
    for name in ("wee.safetensors", "metrics.csv", "wee.md"):
        assert (whole / name).read_bytes() == (parts / name).read_bytes()


def test_a_loss_that_is_not_finite_stops_with_the_step_and_keeps_the_last_checkpoint(
    tmp_path, monkeypatch
):
    real = training.Data.batch

    def poisoned(self, step):
        images, labels = real(self, step)
        if step == 5:
            monkeypatch.setattr(
                torch.Tensor, "float", lambda self: self.to(torch.float32) * math.nan
            )
        return images, labels

    monkeypatch.setattr(training.Data, "batch", poisoned)
    with pytest.raises(UserError, match=r"the loss is nan at step 5; the last checkpoint is kept"):
        train(recipe(), quiet(tmp_path))
    (state,) = tmp_path.rglob("training.pt")
    assert torch.load(state, weights_only=True)["step"] == 4


def test_the_learning_rate_warms_up_and_then_falls_to_zero():
    trainer = training.Trainer(recipe(images_seen=1600, warmup=0.1), Run(device="cpu"))
    rates = []
    for trainer.step in range(100):
        rates.append(trainer.rate())
    assert rates[0] == pytest.approx(1e-4)
    assert max(rates) == pytest.approx(1e-3)
    assert np.argmax(rates) in (9, 10)
    assert all(b < a for a, b in itertools.pairwise(rates[10:]))
    assert rates[-1] < 1e-5


def test_every_image_is_shown_once_an_epoch(tmp_path):
    data = training.Data.of(recipe(), tmp_path, quiet(tmp_path))
    shown = np.concatenate([data.batch(step)[0] for step in range(4)])
    assert len({image.tobytes() for image in shown}) == 64
    first, second = (data.batch(step)[1] for step in (0, 4))
    assert not np.array_equal(first, second)


def test_half_rounds_the_weights_before_they_are_judged(tmp_path):
    folder = train(recipe(half=True), quiet(tmp_path))
    assert {tensor.dtype for tensor in load_file(folder / "wee.safetensors").values()} == {
        torch.float16
    }
    assert (
        "float16 (the accuracy is that of the rounded weights)" in (folder / "wee.md").read_text()
    )


def test_the_linear_probe_on_pixels_is_a_ridge_regression(tmp_path):
    """Checked where it must be right: on images whose mean colour is the class."""
    images = np.repeat(np.arange(16, dtype=np.uint8) * 16, 8)[
        np.argsort(np.arange(128) % 8, kind="stable")
    ]
    images = np.broadcast_to(images[:, None, None, None], (128, 8, 8, 3)).copy()
    images[..., 0] = np.where(np.arange(128)[:, None, None] % 16 > 7, 255, 0)
    probe = training.pixel_probe(training.Data(recipe(), images, images[:32]))
    assert probe > 2 / 16


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_weights_are_as_accurate_as_their_card_says(name):
    from test_models import configured

    card = (models.EMBEDDED / f"{name}.md").read_text()
    stated = float(re.search(r"accuracy on [\d,]+ held-out images \| ([\d.]+)%", card)[1]) / 100
    loaded = models.load(configured(name), "cpu")
    scenes = Scenes("test", resolution=56)
    images = np.stack([scenes.image(i) for i in range(480)])
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2) / 127.5 - 1
    with torch.inference_mode():
        found = loaded.net(pixels).argmax(1).numpy()
    measured = (found == np.arange(480) % len(CLASSES)).mean()
    assert abs(measured - stated) < 4 * math.sqrt(stated * (1 - stated) / 480)


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_weights_are_small_and_far_above_a_linear_probe(name):
    assert (models.EMBEDDED / f"{name}.safetensors").stat().st_size <= 4 * 2**20
    card = (models.EMBEDDED / f"{name}.md").read_text()
    accuracy, probe = (float(found) for found in re.findall(r"\| ([\d.]+)% \|", card)[:2])
    assert accuracy > 2 * probe
