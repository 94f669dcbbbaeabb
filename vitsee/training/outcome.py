"""Writes the results of a training run: weights, metrics with their curve, and the card with its baseline on pixels."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from omegaconf import OmegaConf
from safetensors.torch import save

from vitsee.data import datasets
from vitsee.models.cards import Card
from vitsee.plotting.accuracy_plots import training_curve
from vitsee.results.folder import Results
from vitsee.training.cost import flops_of
from vitsee.training.examples import Splits

if TYPE_CHECKING:
    from vitsee.training.trainer import Trainer

PROBE_IMAGES = 20_000
"""Number of training images for the linear probe on pixels, the baseline for models trained on scenes."""


def write(trainer: Trainer, splits: Splits, results: Results) -> None:
    """Write the weights, the metrics with their curve, and the model card."""
    recipe = trainer.training.recipe
    weights = {name: tensor.cpu().contiguous() for name, tensor in trainer.net.state_dict().items()}
    if recipe.half:
        weights = {n: t.half() if t.is_floating_point() else t for n, t in weights.items()}
        trainer.net.load_state_dict(weights)
    accuracy = trainer.accuracy(splits)
    if not trainer.team.first:
        return
    results.write(f"{recipe.name}.safetensors", save(weights))
    tables = {"metrics": pd.DataFrame(trainer.progress.metrics)}
    if trainer.progress.heads:
        tables["heads"] = pd.DataFrame(trainer.progress.heads)
    results.save_tables(tables)
    results.save_figures({"metrics": training_curve(recipe.name, **tables)})
    results.write(f"{recipe.name}.md", card_of(trainer, splits, accuracy).markdown.encode())


def card_of(trainer: Trainer, splits: Splits, accuracy: float) -> Card:
    """Return the model card of the trained model."""
    training, recipe = trainer.training, trainer.training.recipe
    flops, images = flops_of(training.model), trainer.step * recipe.batch_size
    plain = OmegaConf.to_container(OmegaConf.structured(training), enum_to_str=True)
    assert isinstance(plain, dict)
    if recipe.start:
        plain["recipe"]["start"] = Path(recipe.start).name  # the card goes elsewhere
    made = training.dataset.kind in datasets.GENERATED
    return Card(
        name=recipe.name,
        architecture=training.model.timm,
        parameters=sum(p.numel() for p in trainer.net.parameters()),
        dataset=f"{training.dataset.name} ({splits.train.fingerprint})",
        classes=len(splits.train.classes),
        accuracy=accuracy,
        test_images=len(splits.held_out(recipe.test_images)),
        pixel_probe=pixel_probe(splits, recipe.test_images) if made else None,
        train_images=len(splits.chosen),
        images_seen=images,
        epochs=images / len(splits.chosen),
        flops_per_image=flops,
        training_flops=3 * flops * images,
        started_from=trainer.started_from or None,
        stored_as="float16 (the accuracy is that of the rounded weights)"
        if recipe.half
        else "float32",
        seed=recipe.seed,
        recipe=plain["recipe"],
        model=plain["model"],
    )


def pixel_probe(splits: Splits, test_images: int | None) -> float:
    """Return the held-out accuracy of ridge regression on pixels averaged over 2 x 2, with the best l2 of a grid."""
    shown = range(min(PROBE_IMAGES, len(splits.train)))
    x, y = _pooled(splits.train, shown)
    t, truth = _pooled(splits.test, splits.held_out(test_images))
    mean = x.mean(0)
    x, t = x - mean, t - mean
    targets = 2.0 * np.eye(len(splits.train.classes), dtype=np.float32)[y] - 1
    values, vectors = np.linalg.eigh((x.T @ x).astype(np.float64))
    projected, rotated = vectors.T @ (x.T @ targets), t @ vectors
    predictions = (
        (rotated @ (projected / (values + l2)[:, None])).argmax(1)
        for l2 in values.max() * 10.0 ** np.arange(-6, 1)
    )
    return float(max((predicted == truth).mean() for predicted in predictions))


def _pooled(images: Any, indices: Iterable[int]) -> tuple[np.ndarray, np.ndarray]:
    """Return (N, D) pixels averaged over 2 x 2, from 0 to 1, and (N,) labels."""
    pixels = np.stack([np.asarray(images.open(index)) for index in indices])
    n, h, w, c = pixels.shape
    pooled = pixels.reshape(n, h // 2, 2, w // 2, 2, c).mean((2, 4), dtype=np.float32)
    return pooled.reshape(n, -1) / 255, np.array([images.label(index) for index in indices])
