"""Generated images that stay on the training device, where they are selected, shifted and mixed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vitsee.training.examples import SHIFTED, Mixup, Schedule, Splits
from vitsee.training.image_cache import CachedImages
from vitsee.training.ranks import Ranks
from vitsee.training.recipes import Recipe

ROOM = 4 * 2**30
"""Images with more bytes than this are loaded one by one."""

Draws = tuple[Tensor, Tensor]
"""What a step draws, on the host: (N, 3) places in `Resident.pixels` and shifts, and `Mixup.drawn`."""


class Resident:
    """The training images in use and the held-out images, on the device.

    pixels: (images, H, W, 3) uint8.
    """

    def __init__(
        self,
        splits: Splits,
        data: dict[str, Any],
        recipe: Recipe,
        device: torch.device,
        ranks: Ranks,
    ) -> None:
        assert isinstance(splits.train, CachedImages)
        assert isinstance(splits.test, CachedImages)
        self.recipe, self.device = recipe, device
        held_out = np.asarray(splits.held_out(recipe.test_images))
        self.indices = np.sort(splits.chosen)
        self.pixels, self.labels = self._loaded(splits.train, self.indices)
        self.test = self._loaded(splits.test, held_out)
        self.mean, self.std = (
            torch.tensor(data[name], dtype=torch.float32, device=device).view(1, -1, 1, 1)
            for name in ("mean", "std")
        )
        self.side = torch.arange(splits.train.shape[0], device=device)
        self.mixup = Mixup(recipe, len(splits.train.classes), ranks)

    @staticmethod
    def holds(splits: Splits, data: dict[str, Any], recipe: Recipe) -> bool:
        """Return whether the images can stay on a device: generated as the model sees them, and not too many."""
        train, test = splits.train, splits.test
        return (
            isinstance(train, CachedImages)
            and isinstance(test, CachedImages)
            and recipe.augmentation is None
            and (3, *train.shape[:2]) == tuple(data["input_size"])
            and data["crop_pct"] == 1
            and len(splits.chosen) * int(np.prod(train.shape)) <= ROOM
        )

    def _loaded(self, images: CachedImages, indices: np.ndarray) -> tuple[Tensor, Tensor]:
        pixels = torch.from_numpy(images.pixels(indices))
        labels = torch.tensor([images.label(index) for index in indices.tolist()])
        return pixels.to(self.device), labels.to(self.device)

    def draws(self, schedule: Schedule) -> Iterator[Draws]:
        """Yield the draws of each step of the schedule."""
        recipe, ranks = self.recipe, schedule.ranks
        for step, shown in enumerate(schedule, schedule.begin):
            places = np.zeros((len(shown), 3), np.int64)
            places[:, 0] = np.searchsorted(self.indices, [index for _, index in shown])
            if recipe.shift:
                rng = np.random.default_rng([recipe.seed, step, SHIFTED])
                shifts = rng.integers(-recipe.shift, recipe.shift + 1, (recipe.batch_size, 2))
                places[:, 1:] = shifts[ranks.rank :: ranks.count]
            side = len(self.side)
            yield torch.from_numpy(places), self.mixup.drawn(step, len(shown), side, side)

    def shown(self, places: Tensor, drawn: Tensor) -> tuple[Tensor, Tensor]:
        """Return the pixels and targets of a step, given its draws on the device."""
        image, down, right = places.T[:, :, None]
        last = len(self.side) - 1
        rows, columns = ((self.side + by).clamp_(0, last) for by in (down, right))
        pixels = self.pixels[image[:, :, None], rows[:, :, None], columns[:, None, :]]
        return self.mixup.mixed(self._normalised(pixels), self.labels[places[:, 0]], drawn)

    def held_out(self, ranks: Ranks, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield pixels and labels of this rank's share of the held-out images, at most `size` at a time."""
        mine = (part[ranks.rank :: ranks.count].split(size) for part in self.test)
        for pixels, labels in zip(*mine, strict=True):
            yield self._normalised(pixels), labels

    def _normalised(self, pixels: Tensor) -> Tensor:
        return (pixels.permute(0, 3, 1, 2).float() / 255 - self.mean) / self.std
