"""Model cards of trained models: Markdown files with a YAML block at the top, as on model hubs."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import yaml

from vitsee.errors import UserError, remedy
from vitsee.io.files import content
from vitsee.io.record import Shape, misfit

FENCE = "---\n"


@dataclass(frozen=True)
class Card:
    """The facts about a trained model.

    accuracy: share of `test_images` held-out images classified correctly. pixel_probe: accuracy of ridge
    regression on pixels on the same images (scenes only). train_images: number of distinct training images.
    images_seen: images shown, counting repeats. flops_per_image: floating-point operations of a forward
    pass; a multiply-add counts as two. training_flops: for all forward and backward passes. started_from:
    name and digest of the initial weights, if the model was fine-tuned.
    """

    name: str
    architecture: str
    parameters: int
    dataset: str
    classes: int
    accuracy: float
    test_images: int
    pixel_probe: float | None
    train_images: int
    images_seen: int
    epochs: float
    flops_per_image: float
    training_flops: float
    started_from: str | None
    stored_as: str
    seed: int
    recipe: dict[str, Any]
    model: dict[str, Any]

    @property
    def family(self) -> str:
        """The architecture with its changes, independent of the training."""
        changed = {key: self.model.get(key) for key in ("pool", "remove_skip")}
        return ", ".join(
            [
                f"{self.architecture}, {self.parameters / 1e6:.2f} M",
                *(f"{key}={value}" for key, value in changed.items() if value),
            ]
        )

    @property
    def training(self) -> dict[str, Any]:
        """The cost of the training, as columns for tables of several models."""
        names = ("family", "train_images", "images_seen", "training_flops")
        return {name: getattr(self, name) for name in names}

    @property
    def markdown(self) -> str:
        """The text of the card, a file next to the weights."""
        facts = asdict(self)
        front = yaml.safe_dump(facts, sort_keys=False, allow_unicode=True)
        rows = "\n".join(f"| {what} | {value} |" for what, value in self._rows())
        origin = (
            f"It was trained on the data set `{self.dataset}` alone"
            if not self.started_from
            else f"It was fine-tuned on the data set `{self.dataset}` from {self.started_from}"
        )
        return (
            f"{FENCE}{front}{FENCE}\n# {self.name}\n\nA classifier of {self.classes} classes. {origin}, by "
            f"`vitsee train`; the recipe is in the block above.\n\n| what | value |\n|---|---|\n{rows}\n"
        )

    def _rows(self) -> list[tuple[str, str]]:
        rows = [
            (
                "architecture",
                f"timm `{self.architecture}`, {self.parameters / 1e6:.2f} million parameters",
            ),
            (
                f"accuracy on {self.test_images:,} held-out images",
                f"{self.accuracy:.1%} (chance {1 / self.classes:.2%})",
            ),
            ("images seen", f"{self.images_seen:,} ({self.train_images:,} distinct)"),
            ("FLOPs of a forward pass", f"{self.flops_per_image:.3g}"),
            ("FLOPs of the training", f"{self.training_flops:.3g}"),
            ("stored as", self.stored_as),
            ("licence", "Apache-2.0"),
        ]
        if self.pixel_probe is not None:
            probe = ("linear probe on pixels, the same images", f"{self.pixel_probe:.1%}")
            rows.insert(2, probe)
        return rows


SHAPE: Shape = {
    **dict.fromkeys(("name", "architecture", "dataset", "stored_as"), str),
    **dict.fromkeys(("parameters", "classes", "test_images", "train_images"), int),
    **dict.fromkeys(("images_seen", "seed"), int),
    **dict.fromkeys(("accuracy", "epochs", "flops_per_image", "training_flops"), float),
    "pixel_probe": (float, None),
    "started_from": (str, None),
    "recipe": {},
    "model": {},
}
"""The schema of a card's YAML block."""


def beside(weights: Path) -> Card | None:
    """Return the card next to a weight file; None if there is no readable card."""
    path = weights.with_suffix(".md")
    try:
        return read(path) if path.is_file() else None
    except UserError:
        return None


def read(path: Path) -> Card:
    """Return the card in a file. Raises UserError if the file is not a card."""
    none = f"{path} is not a model card of `vitsee train`"
    try:
        _, front, _ = content(path).decode().split(FENCE, 2)
        facts = yaml.safe_load(front)
    except OSError as error:
        raise UserError(
            f"cannot read the model card {path}: {error.strerror}; {remedy(error)}"
        ) from error
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{none}: {' '.join(str(error).split())}") from error
    if reason := misfit(facts, SHAPE):
        raise UserError(f"{none}: {reason}")
    if not 0 <= facts["accuracy"] <= 1 or facts["test_images"] < 1:
        raise UserError(f"{none}: its accuracy must be in [0, 1] and its test_images at least 1")
    return Card(**{field.name: facts[field.name] for field in fields(Card)})
