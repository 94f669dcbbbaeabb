"""`scenes`, a built-in data set: procedurally generated images, any number, at any resolution.

The background is a dead-leaves image (occluding disks with scale-free radii: Matheron 1968), whose
statistics are those of natural images (Lee, Mumford and Huang 2001). Two textured disks on it carry the
class: which of four textures both have (local), and the direction of the line between them (global). A
quarter of the images contains a third disk with a different texture as a distractor. Position, distance,
size, colour, contrast, phase and clutter vary independently of the class. Some images are faint, with low
contrast and strong noise: the clear images are learned early, the faint ones only with much data.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

VERSION = 2
"""Increased when the generator changes."""
TEXTURES = ("vertical stripes", "horizontal stripes", "checks", "rings")
ARRANGEMENTS = ("side by side", "rising", "one above the other", "falling")
CLASSES = tuple(f"{t}, {a}" for t, a in itertools.product(TEXTURES, ARRANGEMENTS))
SPLITS = ("train", "test")

CLUTTER = 30
CLUTTER_RADII = (0.04, 0.35)
PART_RADII = (0.15, 0.2)
WAVELENGTHS = (0.075, 0.11)
"""4 to 6 pixels at a resolution of 56: more than one period in a patch of 8."""
CONTRASTS = (0.15, 0.5)
DISTANCES = (0.36, 0.6)
SHIFT = 0.12
"""Largest distance of the centre of the two disks from the centre of the image."""
TURN = 0.36
"""Largest deviation of the line between the disks from its direction, in radians."""
NOISE = 0.02
FAINT = 0.4
"""Share of faint images."""
FAINT_CONTRASTS = (0.01, 0.1)
FAINT_NOISE = 0.06
DISTRACTED = 0.25
"""Share of images with a third disk."""
APART = 0.28
"""Smallest distance of the third disk from the other two."""


@dataclass(frozen=True)
class Scenes:
    """Images of one split. Image i depends only on (seed, split, i) and has label i modulo 16.

    resolution: side in pixels. size: number of images.
    """

    split: str = "test"
    seed: int = 0
    resolution: int = 56
    size: int = 10_240

    @property
    def fingerprint(self) -> str:
        """Everything that the pixels depend on."""
        return f"scenes-{VERSION}/{self.split}/seed{self.seed}/{self.resolution}px"

    def __len__(self) -> int:
        return self.size

    def label(self, index: int) -> int:
        """Return an index into CLASSES. All classes are equally frequent."""
        return index % len(CLASSES)

    def image(self, index: int) -> np.ndarray:
        """Return image `index`, (resolution, resolution, 3) uint8."""
        rng = np.random.default_rng([VERSION, self.seed, SPLITS.index(self.split), index])
        texture, arrangement = divmod(self.label(index), len(ARRANGEMENTS))
        base = rng.uniform(0.3, 0.7, 3)
        faint = rng.random() < FAINT
        contrasts, noise = (FAINT_CONTRASTS, FAINT_NOISE) if faint else (CONTRASTS, NOISE)
        canvas = Canvas.plain(self.resolution, base)
        for paint in [*clutter(rng, base), *disks(rng, texture, arrangement, contrasts)]:
            paint(canvas)
        noisy = canvas.pixels + noise * rng.standard_normal(canvas.pixels.shape, dtype=np.float32)
        return (np.clip(noisy, 0, 1) * 255).astype(np.uint8)


@dataclass(frozen=True)
class Canvas:
    """An image being painted. pixels: (H, W, 3) float32, about 0 to 1. centres: (H,) coordinates in [0, 1]."""

    pixels: np.ndarray
    centres: np.ndarray

    @classmethod
    def plain(cls, side: int, colour: np.ndarray) -> Canvas:
        pixels = np.empty((side, side, 3), np.float32)
        pixels[:] = colour
        return cls(pixels, (np.arange(side, dtype=np.float32) + 0.5) / side)

    def disk(
        self,
        middle: np.ndarray,
        radius: float,
        colour: Callable[[np.ndarray, np.ndarray], np.ndarray],
    ) -> None:
        """Paint an opaque disk; colour maps offsets from the middle, (1, w) and (h, 1), to (h, w, 3)."""
        side = len(self.centres)
        (left, right), (top, bottom) = (
            (max(0, int((at - radius) * side) - 1), min(side, int((at + radius) * side) + 2))
            for at in middle.tolist()
        )
        if left >= right or top >= bottom:
            return
        x = (self.centres[left:right] - np.float32(middle[0]))[None, :]
        y = (self.centres[top:bottom] - np.float32(middle[1]))[:, None]
        # Edges are antialiased over one pixel, so that a scene looks the same at every resolution.
        cover = (radius - np.sqrt(x * x + y * y)) * side + 0.5
        cover = np.minimum(np.maximum(cover, 0), 1)[..., None]  # np.clip takes five times as long
        region = self.pixels[top:bottom, left:right]
        region += cover * (colour(x, y) - region)


def clutter(rng: np.random.Generator, base: np.ndarray) -> list[Callable[[Canvas], None]]:
    """Return dead leaves: shaded disks with radii distributed as r^-3, in colours around the base."""
    low, high = CLUTTER_RADII
    u = rng.random(CLUTTER)
    radii = 1 / np.sqrt(u / high**2 + (1 - u) / low**2)
    middles = rng.random((CLUTTER, 2))
    colours = base + rng.normal(0, 0.12, (CLUTTER, 3)) + rng.normal(0, 0.12, (CLUTTER, 1))
    slopes = rng.normal(0, 0.3, (CLUTTER, 2)).astype(np.float32)
    return [
        partial(Canvas.disk, middle=middle, radius=radius, colour=partial(shaded, colour, slope))
        for middle, radius, colour, slope in zip(
            middles, radii, colours.astype(np.float32), slopes, strict=True
        )
    ]


def disks(
    rng: np.random.Generator, texture: int, arrangement: int, contrasts: tuple[float, float]
) -> list[Callable[[Canvas], None]]:
    """Return the textured disks: sometimes a distractor with a different texture, then the two that carry the class."""
    angle = np.pi / 4 * arrangement + rng.uniform(-TURN, TURN)
    half = rng.uniform(*DISTANCES) / 2 * np.array([np.cos(angle), -np.sin(angle)])
    radius = rng.uniform(*PART_RADII)
    margin = np.abs(half) + 0.6 * radius
    middle = np.clip(0.5 + rng.uniform(-SHIFT, SHIFT, 2), margin, 1 - margin)
    pair = [middle + half, middle - half]
    disks = [textured_disk(rng, place, radius, texture, contrasts) for place in pair]
    if rng.random() < DISTRACTED:
        other = (texture + rng.integers(1, len(TEXTURES))) % len(TEXTURES)
        disks.insert(0, textured_disk(rng, free_place(rng, pair), radius, int(other), contrasts))
    return disks


def free_place(rng: np.random.Generator, taken: list[np.ndarray]) -> np.ndarray:
    """Return the first of ten random places that is far enough from those taken, else the farthest."""
    places = rng.uniform(0.1, 0.9, (10, 2))
    distances = np.min([np.linalg.norm(places - place, axis=1) for place in taken], axis=0)
    apart = np.flatnonzero(distances > APART)
    return places[apart[0] if len(apart) else distances.argmax()]


def textured_disk(
    rng: np.random.Generator,
    place: np.ndarray,
    radius: float,
    texture: int,
    contrasts: tuple[float, float],
) -> Callable[[Canvas], None]:
    """Return a disk of about this radius, with this texture and random colours, contrast, wavelength and phase."""
    pattern = partial(
        TEXTURE_OF[texture], 2 * np.pi / rng.uniform(*WAVELENGTHS), rng.uniform(0, 2 * np.pi, 2)
    )
    tint = 1 + rng.normal(0, 0.2, 3)
    colour = partial(
        textured,
        rng.uniform(0.3, 0.7, 3).astype(np.float32),
        (rng.uniform(*contrasts) * tint).astype(np.float32),
        pattern,
    )
    size = radius * rng.uniform(0.9, 1.1)
    return partial(Canvas.disk, middle=place, radius=size, colour=colour)


def shaded(colour: np.ndarray, slope: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return a colour that gets lighter along a slope."""
    return colour + (slope[0] * x + slope[1] * y)[..., None]


def textured(
    mean: np.ndarray,
    contrast: np.ndarray,
    pattern: Callable[[np.ndarray, np.ndarray], np.ndarray],
    x: np.ndarray,
    y: np.ndarray,
) -> np.ndarray:
    """Return a colour modulated by a pattern between -1 and 1."""
    return mean + contrast * pattern(x, y)[..., None]


def vertical_stripes(k: float, phase: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.sin(np.float32(k) * x + np.float32(phase[0])) + 0 * y


def horizontal_stripes(k: float, phase: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.sin(np.float32(k) * y + np.float32(phase[0])) + 0 * x


def checks(k: float, phase: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    columns, rows = (
        np.sin(np.float32(k) * z + np.float32(p)) for z, p in zip((x, y), phase, strict=True)
    )
    return np.clip(1.3 * columns * rows, -1, 1)


def rings(k: float, phase: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.sin(np.float32(k) * np.sqrt(x * x + y * y) + np.float32(phase[0]))


TEXTURE_OF = (vertical_stripes, horizontal_stripes, checks, rings)
