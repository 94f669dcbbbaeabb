"""The typed options of `vitsee train`."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, DictConfig, OmegaConf

from vitsee.config import refuse_undeclared
from vitsee.errors import UserError
from vitsee.options import DatasetOptions, ModelOptions, Precision, RunOptions, Source


class Optimiser(Enum):
    """adamw: decoupled weight decay, with betas 0.9 and `beta2`. muon (Jordan et al. 2024): orthogonal updates of the
    matrices inside the model; AdamW for queries and keys, the first and last layer, and everything else. sgd: with
    momentum 0.9."""

    adamw = "adamw"
    muon = "muon"
    sgd = "sgd"


class Positions(Enum):
    """Initial position embeddings. noise: normal. sincos: sines and cosines of row and column (Vaswani et al. 2017),
    with wavelengths from 2 pi patches to three sides of the grid. Both are learned."""

    noise = "noise"
    sincos = "sincos"


class Decay(Enum):
    """How the learning rate decays after the warm-up: to 0 along a cosine or a line, or not at all."""

    cosine = "cosine"
    linear = "linear"
    none = "none"


@dataclass(kw_only=True)
class Recipe:
    """How a model is trained."""

    name: str = MISSING
    """Name of the trained model, its folder, its weights and its card."""
    images_seen: int | None = None
    """Length of the training in images. Give either this or `epochs`."""
    epochs: float | None = None
    """Length of the training in passes over the whole training set, regardless of `fraction`."""
    fraction: float = 1.0
    """Share of the training images in use: the first of a seeded shuffle, so small subsets are part of larger
    ones."""
    train_split: str | None = "train"
    test_images: int | None = None
    """Number of held-out images for measuring accuracy; by default all of dataset.split."""
    batch_size: int = 128
    """Images per step, over all GPUs."""
    optimiser: Optimiser = Optimiser.adamw
    lr: float = 1e-3
    """Peak learning rate, reached by linear warm-up."""
    warmup: float = 0.05
    """Share of the steps spent warming up."""
    decay: Decay = Decay.cosine
    beta2: float = 0.999
    weight_decay: float = 0.05
    """Not applied to biases, norms, position embeddings and class tokens."""
    label_smoothing: float = 0.0
    clip: float | None = 1.0
    """Gradient clipping: largest norm of the gradient."""
    augmentation: Any = None  # OmegaConf does not accept an optional dict from the command line
    """Options of timm's create_transform(is_training=True), e.g. {auto_augment: rand-m9-n2}; null: no augmentation,
    images as in evaluation."""
    shift: int = 0
    """Largest shift of a generated image along each axis, in pixels; its edge is repeated."""
    mixup: float = 0.0
    """Alpha of mixup (Zhang et al. 2018)."""
    cutmix: float = 0.0
    """Alpha of CutMix (Yun et al. 2019). With mixup, one of the two is drawn for each image."""
    mixed: float = 1.0
    """Share of the images that are mixed, if `mixup` or `cutmix` is given."""
    precision: Precision = Precision.fp32
    """Precision of forward and backward pass. Weights and optimiser state are float32."""
    compile: bool = False
    """torch.compile the model: steps are faster after about a minute of compilation, but not bit-identical."""
    start: str | None = None
    """Fine-tune from the weights in this file, of this model that ships with vitsee, or (`pretrained`) the model's
    published weights. Positions are resampled to the resolution; the classifier starts at zero."""
    seed: int = 0
    """Seed of the initial weights, the fraction, the order of images and their augmentation."""
    positions: Positions = Positions.noise
    pos_embed_std: float | None = None
    """Standard deviation of the initial position embeddings. With timm's 0.02, a small ViT needs ten times as many
    images to learn to use them as with a value as large as that of the patch embeddings."""
    half: bool = False
    """Round the final weights to float16. Accuracies are measured with the rounded weights."""
    eval_every: int = 200
    """Steps between two lines of metrics.csv."""
    save_every: int = 200
    """Steps between two checkpoints."""

    def __post_init__(self) -> None:
        if not 0 < self.fraction <= 1:
            raise UserError(f"recipe.fraction must be in (0, 1], got {self.fraction}")
        if not 0 <= self.warmup <= 1:
            raise UserError(
                f"recipe.warmup must be a share of the steps in [0, 1], got {self.warmup}"
            )
        if not isinstance(self.augmentation, dict | None):
            raise UserError(
                f"recipe.augmentation must be options by name, such as {{hflip: 0.5}}, got {self.augmentation!r}"
            )
        if self.images_seen is not None and self.epochs is not None:
            raise UserError(
                "the length of the training is given twice: use either recipe.images_seen or recipe.epochs"
            )
        least = {
            "images_seen": 1,
            "test_images": 1,
            "batch_size": 1,
            "seed": 0,
            "eval_every": 1,
            "save_every": 1,
        }
        for name, lowest in least.items():
            value = getattr(self, name)
            if value is not None and value < lowest:
                raise UserError(f"recipe.{name} must be at least {lowest}, got {value}")
        for name in ("shift", "mixup", "cutmix"):
            if not 0 <= getattr(self, name) < math.inf:
                raise UserError(f"recipe.{name} must not be negative, got {getattr(self, name)}")
        if not 0 <= self.mixed <= 1:
            raise UserError(f"recipe.mixed must be a share in [0, 1], got {self.mixed}")
        for name in ("epochs", "lr", "clip"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise UserError(f"recipe.{name} must be more than 0, got {value}")

    def steps(self, images: int) -> int:
        """Return the number of steps. images: size of the whole training set. Raises UserError if it is 0."""
        if self.images_seen is None and self.epochs is None:
            raise UserError(
                "the length of the training is missing: recipe.images_seen=N or recipe.epochs=N"
            )
        shown = self.images_seen or round((self.epochs or 0) * images)
        if shown < self.batch_size:
            raise UserError(
                f"{shown} images are not enough for a step of recipe.batch_size={self.batch_size}"
            )
        return shown // self.batch_size

    def rate(self, step: int, steps: int) -> float:
        """Return the learning rate of a step."""
        warmup = int(steps * self.warmup)
        if step < warmup:
            return self.lr * (step + 1) / warmup
        left = (step - warmup) / max(1, steps - warmup)
        if self.decay is Decay.none:
            return self.lr
        if self.decay is Decay.linear:
            return self.lr * (1 - left)
        return self.lr * 0.5 * (1 + math.cos(math.pi * left))


VERSION = 2
"""Raised when the same options begin to give other weights or accuracies: a training begun before is not resumed."""


@dataclass(kw_only=True)
class Training:
    """A training: this model on these images with this recipe."""

    recipe: Recipe = MISSING
    model: ModelOptions = MISSING
    dataset: DatasetOptions = MISSING
    """Its split is held out. The model trains on recipe.train_split."""
    run: RunOptions = field(default_factory=RunOptions)

    def identity(self, *seen: str) -> str:
        """Return eight hex digits that depend on all that the weights do. seen: fingerprints of images and weights."""
        plain = OmegaConf.to_container(OmegaConf.structured(self), enum_to_str=True)
        assert isinstance(plain, dict)
        what = {part: dict(plain[part]) for part in ("recipe", "model", "dataset")}
        for unread in ("eval_every", "save_every"):
            del what["recipe"][unread]
        del what["dataset"]["root"], what["model"]["drawn_as"]
        return hashlib.sha256(
            json.dumps([VERSION, what, seen], sort_keys=True).encode()
        ).hexdigest()[:8]


for _name, _kind in {"recipe": Recipe, "train": Training}.items():
    ConfigStore.instance().store(
        group="schema", name=_name, node=OmegaConf.structured(_kind), provider="vitsee"
    )


def build(cfg: DictConfig) -> Training:
    """Return the composed configuration as typed objects. Raises UserError for unknown options."""
    refuse_undeclared(cfg)
    training = OmegaConf.to_object(cfg)
    assert isinstance(training, Training)
    if training.model.source is not Source.timm:
        raise UserError(
            f"model={training.model.source.value}: vitsee trains only timm's architectures: model=timm model.timm=NAME"
        )
    model, start = training.model, training.recipe.start
    if model.checkpoint is not None:
        raise UserError(
            f"model.checkpoint={model.checkpoint} is not read by vitsee train; to begin with these weights: "
            f"recipe.start={model.checkpoint}"
        )
    if model.checkpoint_key is not None and start is None:
        raise UserError(f"model.checkpoint_key={model.checkpoint_key} needs recipe.start=PATH")
    if model.drawn_as is not None or model.seed:
        unread = f"seed={model.seed}" if model.seed else f"drawn_as={model.drawn_as}"
        raise UserError(
            f"model.{unread} is not read by vitsee train, which draws initial weights with recipe.seed"
        )
    return training
