"""`vitsee train`: a timm classifier trained on scenes, resumable to the bit; weights and a model card come out."""

from __future__ import annotations

import hashlib
import io
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, DictConfig, OmegaConf

from vitsee.config import Model, Precision, Run, refuse_undeclared
from vitsee.errors import UserError
from vitsee.interrupt import Interruptible
from vitsee.results import Results
from vitsee.scenes import CLASSES, VERSION, Scenes, to_array

if TYPE_CHECKING:
    from torch import Tensor

EVALUATION_BATCH = 250
PROBE_IMAGES = 20_000
"""Images of the linear probe on pixels that every model card is compared with."""


@dataclass(kw_only=True)
class Recipe:
    """How a model is trained."""

    name: str = MISSING
    model: Model = MISSING
    images_seen: int = 600_000
    """Length of the training, in images shown."""
    train_size: int = 100_000
    """Different images there are."""
    test_size: int = 4_000
    """Held-out images that accuracy is measured on."""
    batch_size: int = 128
    lr: float = 1e-3
    """Largest learning rate: reached by linear warm-up, left along a cosine down to 0."""
    warmup: float = 0.05
    """Share of the steps spent warming up."""
    weight_decay: float = 0.05
    """Decoupled (AdamW); not applied to biases, norms, position embeddings and class tokens."""
    label_smoothing: float = 0.05
    clip: float = 1.0
    """Largest norm of the gradient."""
    precision: Precision = Precision.fp32
    """Arithmetic of forward and backward pass; weights and optimiser are float32."""
    seed: int = 0
    """Seed of initial weights, order of images, and the scenes."""
    eval_every: int = 200
    """Steps between two lines of metrics.csv."""
    save_every: int = 200
    """Steps between two checkpoints."""
    pos_embed_std: float | None = None
    """Standard deviation of initial position embeddings; timm's is 0.02, which a small ViT needs ten
    times as many images to make use of as one that is as large as the patch embeddings."""
    half: bool = False
    """Round the final weights to float16; accuracies are those of the rounded weights."""

    @property
    def steps(self) -> int:
        return self.images_seen // self.batch_size

    @property
    def identity(self) -> str:
        """Eight hex digits of the recipe and of the formula of its images."""
        plain = OmegaConf.to_container(OmegaConf.structured(self), enum_to_str=True)
        what = json.dumps([plain, VERSION], sort_keys=True)
        return hashlib.sha256(what.encode()).hexdigest()[:8]


@dataclass(kw_only=True)
class Training:
    """What the command line composes."""

    recipe: Recipe = MISSING
    run: Run = field(default_factory=Run)


for _name, _kind in {"recipe": Recipe, "train": Training}.items():
    ConfigStore.instance().store(
        group="schema", name=_name, node=OmegaConf.structured(_kind), provider="vitsee"
    )


def build(cfg: DictConfig) -> tuple[Recipe, Run]:
    """The composed configuration as typed objects. Raises UserError for options that do not exist."""
    refuse_undeclared(cfg)
    training = OmegaConf.to_object(cfg)
    assert isinstance(training, Training)
    return training.recipe, training.run


def train(recipe: Recipe, run: Run) -> Path:
    """Train, or go on where the same call stopped; returns the folder of weights, metrics and card.

    Raises UserError if the loss is no longer finite; the last checkpoint is kept.
    """
    from tqdm import tqdm

    results = Results(Path(run.outputs) / "train" / f"{recipe.name}-{recipe.identity}")
    results.prepare()
    data = Data.of(recipe, Path(run.outputs) / "train", run)
    trainer = Trainer(recipe, run)
    trainer.resume(results)
    with (
        Interruptible() as signals,
        tqdm(
            total=recipe.steps * recipe.batch_size,
            initial=trainer.step * recipe.batch_size,
            unit="image",
            unit_scale=True,
            desc=recipe.name,
            disable=not run.progress,
        ) as bar,
    ):
        while trainer.step < recipe.steps:
            loss = trainer.advance(*data.batch(trainer.step))
            bar.update(recipe.batch_size)
            if trainer.step % recipe.eval_every == 0 or trainer.step == recipe.steps:
                accuracy = trainer.record(loss, data)
                bar.set_postfix(loss=f"{loss:.3f}", test=f"{accuracy:.1%}")
            if trainer.step % recipe.save_every == 0 or signals.asked:
                trainer.save(results)
            signals.check()
    trainer.save(results)
    finish(trainer, data, results)
    return results.path


@dataclass(frozen=True)
class Data:
    """Scenes as arrays: (N, H, W, 3) uint8 images and (N,) int64 labels, for training and held out."""

    recipe: Recipe
    train_images: np.ndarray
    test_images: np.ndarray

    @classmethod
    def of(cls, recipe: Recipe, cache: Path, run: Run) -> Data:
        """The recipe's images at its model's resolution, made once and kept in the cache folder."""
        side = int(recipe.model.overlay.get("input_size", [3, 56, 56])[1])
        sizes = {"train": recipe.train_size, "test": recipe.test_size}
        arrays = [
            to_array(Scenes(split, recipe.seed, side, size), cache, run.progress)
            for split, size in sizes.items()
        ]
        return cls(recipe, *arrays)

    def batch(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """Images and labels of a step: a pure function of seed and step."""
        size = self.recipe.batch_size
        per_epoch = len(self.train_images) // size
        epoch, within = divmod(step, per_epoch)
        order = np.random.default_rng([self.recipe.seed, epoch]).permutation(len(self.train_images))
        chosen = order[within * size : (within + 1) * size]
        return self.train_images[chosen], self.labels(chosen)

    @staticmethod
    def labels(indices: np.ndarray) -> np.ndarray:
        return indices % len(CLASSES)

    def test_batches(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for start in range(0, len(self.test_images), EVALUATION_BATCH):
            images = self.test_images[start : start + EVALUATION_BATCH].copy()
            yield images, self.labels(np.arange(start, start + len(images)))


class Trainer:
    """A model, its optimiser, and how far they are."""

    def __init__(self, recipe: Recipe, run: Run) -> None:
        import torch

        from vitsee import models
        from vitsee.study import choose_device

        torch.set_flush_denormal(True)  # vanishing gradients would make a CPU three times slower
        self.recipe = recipe
        self.device = choose_device(run.device)
        self.net = models.build(recipe.model, seed=recipe.seed).to(self.device)
        if recipe.pos_embed_std:
            torch.nn.init.trunc_normal_(
                self.net.get_parameter("pos_embed"), std=recipe.pos_embed_std
            )
        for module in self.net.modules():  # fused attention is slow to differentiate on a CPU
            if hasattr(module, "fused_attn"):
                setattr(module, "fused_attn", self.device.type != "cpu")  # noqa: B010
        self.optimiser = torch.optim.AdamW(self._groups(), lr=recipe.lr, betas=(0.9, 0.95))
        self.step = 0
        self.metrics: list[dict[str, float]] = []

    @cached_property
    def scale(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation that images are normalised with, on the scale of 0 to 255."""
        import torch

        from vitsee.models import data_config

        data = data_config(self.net)
        mean, std = (torch.tensor(data[k], device=self.device) * 255 for k in ("mean", "std"))
        return mean[:, None, None], std[:, None, None]

    def _groups(self) -> list[dict[str, Any]]:
        spared = ("pos_embed", "cls_token")
        decayed: list[Tensor] = []
        others: list[Tensor] = []
        for name, weight in self.net.named_parameters():
            (others if weight.ndim <= 1 or name.endswith(spared) else decayed).append(weight)
        return [
            {"params": decayed, "weight_decay": self.recipe.weight_decay},
            {"params": others, "weight_decay": 0.0},
        ]

    def rate(self) -> float:
        """Learning rate of this step."""
        steps, warmup = self.recipe.steps, max(1, int(self.recipe.steps * self.recipe.warmup))
        if self.step < warmup:
            return self.recipe.lr * (self.step + 1) / warmup
        return (
            self.recipe.lr * 0.5 * (1 + math.cos(math.pi * (self.step - warmup) / (steps - warmup)))
        )

    def advance(self, images: np.ndarray, labels: np.ndarray) -> float:
        """One optimiser step; the loss. Raises UserError if it is not finite."""
        import torch
        from torch.nn.functional import cross_entropy

        self.net.train()
        for group in self.optimiser.param_groups:
            group["lr"] = self.rate()
        bf16 = self.recipe.precision is Precision.bf16
        with torch.autocast(self.device.type, torch.bfloat16, enabled=bf16):
            logits = self.net(self._pixels(images))
        target = torch.from_numpy(labels).to(self.device)
        loss = cross_entropy(logits.float(), target, label_smoothing=self.recipe.label_smoothing)
        if not math.isfinite(loss.item()):
            raise UserError(
                f"the loss is {loss.item()} at step {self.step}; the last checkpoint is kept: "
                f"try a smaller recipe.lr (it is {self.recipe.lr:g}) or recipe.precision=fp32"
            )
        self.optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.net.parameters(), self.recipe.clip)
        self.optimiser.step()
        self.step += 1
        return loss.item()

    def _pixels(self, images: np.ndarray) -> Tensor:
        """(N, H, W, 3) uint8 -> (N, 3, H, W) float32, normalised for the model."""
        import torch

        mean, std = self.scale
        return (torch.from_numpy(images).to(self.device).permute(0, 3, 1, 2).float() - mean) / std

    def accuracy(self, data: Data) -> float:
        """Share of the held-out images that are classified right."""
        import torch

        self.net.eval()
        right = 0
        with torch.inference_mode():
            for images, labels in data.test_batches():
                found = self.net(self._pixels(images)).argmax(1).cpu().numpy()
                right += int((found == labels).sum())
        return right / len(data.test_images)

    def record(self, loss: float, data: Data) -> float:
        """Add a line of metrics; the accuracy on held-out images."""
        accuracy = self.accuracy(data)
        images = self.step * self.recipe.batch_size
        self.metrics.append(
            {"step": self.step, "images": images, "loss": loss, "test_accuracy": accuracy}
        )
        return accuracy

    def save(self, results: Results) -> None:
        """Everything that the next step depends on, written whole or not at all."""
        import torch

        buffer = io.BytesIO()
        state = {
            "step": self.step,
            "net": self.net.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "rng": torch.get_rng_state(),
            "metrics": self.metrics,
        }
        torch.save(state, buffer)
        results.write("state/training.pt", buffer.getvalue())

    def resume(self, results: Results) -> None:
        """Go on from the checkpoint, if there is one."""
        import torch

        path = results.path / "state" / "training.pt"
        if not path.exists():
            return
        state = torch.load(path, weights_only=True, map_location=self.device)
        self.net.load_state_dict(state["net"])
        self.optimiser.load_state_dict(state["optimiser"])
        torch.set_rng_state(state["rng"].cpu())
        self.step, self.metrics = state["step"], state["metrics"]


def finish(trainer: Trainer, data: Data, results: Results) -> None:
    """Write the weights, the metrics and the model card."""
    import pandas as pd
    from safetensors.torch import save

    recipe = trainer.recipe
    weights = {name: tensor.cpu().contiguous() for name, tensor in trainer.net.state_dict().items()}
    if recipe.half:
        weights = {name: tensor.half() for name, tensor in weights.items()}
        trainer.net.load_state_dict(weights)
    results.write(f"{recipe.name}.safetensors", save(weights))
    results.save_tables({"metrics": pd.DataFrame(trainer.metrics)})
    card = model_card(trainer, trainer.accuracy(data), pixel_probe(data))
    results.write(f"{recipe.name}.md", card.encode())


def pixel_probe(data: Data) -> float:
    """Held-out accuracy of ridge regression on pixels averaged over 2 x 2; its l2 is the best of a grid."""
    count = min(PROBE_IMAGES, len(data.train_images))
    x, t = _probe_features(data.train_images[:count]), _probe_features(data.test_images)
    mean = x.mean(0)
    x, t = x - mean, t - mean
    y = 2.0 * np.eye(len(CLASSES), dtype=np.float32)[data.labels(np.arange(count))] - 1
    values, vectors = np.linalg.eigh((x.T @ x).astype(np.float64))
    projected, rotated = vectors.T @ (x.T @ y), t @ vectors
    truth = data.labels(np.arange(len(t)))
    found = (
        (rotated @ (projected / (values + l2)[:, None])).argmax(1)
        for l2 in values.max() * 10.0 ** np.arange(-6, 1)
    )
    return float(max((answer == truth).mean() for answer in found))


def _probe_features(images: np.ndarray) -> np.ndarray:
    n, h, w, c = images.shape
    pooled = images.reshape(n, h // 2, 2, w // 2, 2, c).mean((2, 4), dtype=np.float32)
    return pooled.reshape(n, -1) / 255


def model_card(trainer: Trainer, accuracy: float, probe: float) -> str:
    """What the weights are, how they were made and how good they are, as Markdown."""
    recipe = trainer.recipe
    parameters = sum(p.numel() for p in trainer.net.parameters())
    plain = OmegaConf.to_yaml(OmegaConf.structured(recipe))
    return f"""# {recipe.name}

A small classifier of the data set `scenes` ({len(CLASSES)} classes, chance {1 / len(CLASSES):.2%}), for trying
vitsee out and for figures at a small scale. It knows nothing of photographs.

| what | value |
|---|---|
| architecture | timm `{recipe.model.timm}` with the arguments below, {parameters / 1e6:.2f} million parameters |
| accuracy on {recipe.test_size:,} held-out images | {accuracy:.1%} |
| linear probe on pixels, the same images | {probe:.1%} |
| images seen | {trainer.step * recipe.batch_size:,} of {recipe.train_size:,} different ones |
| stored as | {"float16 (the accuracy is that of the rounded weights)" if recipe.half else "float32"} |
| made by | `vitsee train`, with the recipe below |
| licence | Apache-2.0 |

```yaml
{plain.strip()}
```
"""
