"""`contours`, a built-in data set: procedurally generated shapes, distinguished by their contours, at any resolution.

One closed contour per image, r(angle) = r0 (1 + sum over k of a_k cos(k angle + phase_k)), as in the radial
contours of Kataoka et al. (2022), carries the class: which of 16 shapes it is (global), and how its inside is
painted (local): plain, striped, spotted, or not at all. Place, scale, rotation, stretch, line, colour, polarity,
contrast, clutter and noise vary independently of the class. The background is a dead-leaves image, as in `scenes`,
and some leaves lie in front. `lines` has the same images with other labels: how the line of the contour is cut at
a fine scale, and how large the contour is.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import cache, partial

import numpy as np

from vitsee.data.scenes import SPLITS, Canvas, clutter, shaded

VERSION = 2
"""Increased when the generator changes."""
SHAPES = 16
LINES = ("smooth", "waves", "teeth", "notches")
SURFACES = ("plain", "striped", "spotted", "outlined")
SIZES = (0.46, 0.56, 0.67, 0.8, 0.95)
"""Limits of the four sizes: diameters of the contour before it is deformed, in images."""
CLASSES = tuple(
    f"{surface} shape {s:02d}" for s, surface in itertools.product(range(SHAPES), SURFACES)
)
LINE_CLASSES = tuple(
    f"{line}, {size}"
    for line, size in itertools.product(LINES, ("small", "medium", "large", "huge"))
)

HARMONICS = np.arange(2, 7)
ANGLES = 512
"""Angles at which a contour is tabulated."""
CANDIDATES = 200
"""The shapes are those of so many random contours that differ most."""
LINE_DEPTH = 0.16
"""Amplitude of waves, teeth and notches, relative to the radius."""
JITTER = 0.1
"""Standard deviation of an image's amplitudes, relative to those of its class."""
TURN = 0.15
"""Largest rotation, in radians."""
STRETCH = 0.15
"""Largest logarithm of the stretch of one axis relative to the other."""
CONTRASTS = (0.06, 0.6)
"""Distance of the colour of the shape from the mean colour of the background."""
NOISES = (0.005, 0.08)
"""Standard deviation of the noise of pixels, the same number of images in each octave."""
SHIFT = 0.12
"""Largest distance of the middle of a contour from that of the image, along each axis."""
HIDDEN = 2
"""Largest number of leaves in front of the contour."""


@dataclass(frozen=True)
class Contours:
    """Images of one split. Image i depends only on (seed, split, i) and has label i modulo 64.

    resolution: side in pixels. size: number of images. lines: labels give the line and the size, not the shape
    and the surface.
    """

    split: str = "test"
    seed: int = 0
    resolution: int = 48
    size: int = 10_240
    lines: bool = False

    @property
    def fingerprint(self) -> str:
        """Everything that the pixels and labels depend on."""
        name = "lines" if self.lines else "contours"
        return f"{name}-{VERSION}/{self.split}/seed{self.seed}/{self.resolution}px"

    def __len__(self) -> int:
        return self.size

    def label(self, index: int) -> int:
        """Return an index into CLASSES, or LINE_CLASSES. All classes are equally frequent."""
        if self.lines:
            return index // len(CLASSES) % len(LINE_CLASSES)
        return index % len(CLASSES)

    def image(self, index: int) -> np.ndarray:
        """Return image `index`, (resolution, resolution, 3) uint8."""
        rng = np.random.default_rng([VERSION, self.seed, SPLITS.index(self.split), index])
        shape, surface = divmod(index % len(CLASSES), len(SURFACES))
        line, size = divmod(index // len(CLASSES) % len(LINE_CLASSES), len(SIZES) - 1)
        base = rng.uniform(0.3, 0.7, 3)
        canvas = Canvas.plain(self.resolution, base)
        leaves = clutter(rng, base)
        for paint in leaves[: rng.integers(len(leaves) + 1)]:
            paint(canvas)
        diameter = rng.uniform(SIZES[size], SIZES[size + 1])
        middle = placed(rng, diameter)
        contour = profile(rng, shape, line)
        paint_contour(canvas, rng, middle, diameter / 2, contour, SURFACES[surface], base)
        for paint in hidden(rng, middle, diameter / 2, base):
            paint(canvas)
        noise = NOISES[0] * (NOISES[1] / NOISES[0]) ** rng.random()
        noisy = canvas.pixels + noise * rng.standard_normal(canvas.pixels.shape, dtype=np.float32)
        return (np.clip(noisy, 0, 1) * 255).astype(np.uint8)


@cache
def shapes() -> tuple[np.ndarray, np.ndarray]:
    """Return amplitudes and phases of the 16 shapes, (16, 5) each.

    They are chosen from random contours one by one: each is the one that differs most from those already chosen,
    at the closest rotation within twice the largest.
    """
    rng = np.random.default_rng(0)
    amplitudes: np.ndarray = rng.exponential(1, (CANDIDATES, len(HARMONICS))) / HARMONICS**0.5
    totals = rng.uniform(0.5, 0.65, (CANDIDATES, 1))
    amplitudes *= totals / amplitudes.sum(1, keepdims=True)
    phases = rng.uniform(0, 2 * np.pi, amplitudes.shape)
    waves = amplitudes * np.exp(1j * phases)
    turns = np.exp(1j * np.outer(np.linspace(-2 * TURN, 2 * TURN, 13), HARMONICS))
    chosen = [0]
    while len(chosen) < SHAPES:
        turned = waves[chosen][:, None] * turns
        apart = np.abs(waves[:, None, None] - turned).max(-1).min(-1).min(-1)
        chosen.append(int(apart.argmax()))
    return amplitudes[chosen], phases[chosen]


def profile(rng: np.random.Generator, shape: int, line: int) -> np.ndarray:
    """Return the radius of an image's contour at equal steps of the angle, relative to r0: (ANGLES,) float32."""
    amplitudes, phases = shapes()[0][shape], shapes()[1][shape]
    amplitudes = amplitudes * (1 + JITTER * rng.standard_normal(len(HARMONICS)))
    angles = np.arange(ANGLES) * (2 * np.pi / ANGLES)
    turned = angles + rng.uniform(-TURN, TURN)
    coarse = amplitudes @ np.cos(HARMONICS[:, None] * turned + phases[:, None])
    phase = rng.uniform(0, 2 * np.pi)
    depth = LINE_DEPTH * rng.uniform(0.7, 1.3)
    return np.maximum(1 + coarse + depth * LINE_OF[line](angles + phase), 0.12).astype(np.float32)


def smooth(angle: np.ndarray) -> np.ndarray:
    return np.zeros_like(angle)


def waves(angle: np.ndarray) -> np.ndarray:
    return np.sin(9 * angle)


def teeth(angle: np.ndarray) -> np.ndarray:
    return 2 * (14 * angle / (2 * np.pi) % 1) - 1


def notches(angle: np.ndarray) -> np.ndarray:
    return -2.5 * np.clip(1 - 8 * np.abs(5 * angle / (2 * np.pi) % 1 - 0.5), 0, 1)


LINE_OF = (smooth, waves, teeth, notches)


def placed(rng: np.random.Generator, diameter: float) -> np.ndarray:
    """Return a place for the middle of a contour, (x, y): nearly all of the contour is within the image."""
    shift = min(SHIFT, 0.5 - 0.42 * diameter)
    return 0.5 + rng.uniform(-shift, shift, 2)


def hidden(
    rng: np.random.Generator, middle: np.ndarray, radius: float, base: np.ndarray
) -> list[partial[None]]:
    """Return the leaves in front of the contour: shaded disks on its line."""
    count = rng.integers(HIDDEN + 1)
    angles, sizes = rng.uniform(0, 2 * np.pi, count), rng.uniform(0.12, 0.35, count) * radius
    directions = np.stack([np.cos(angles), np.sin(angles)], 1)
    colours = (base + rng.normal(0, 0.17, (count, 3))).astype(np.float32)
    slopes = rng.normal(0, 0.3, (count, 2)).astype(np.float32)
    return [
        partial(
            Canvas.disk,
            middle=middle + radius * direction,
            radius=size,
            colour=partial(shaded, colour, slope),
        )
        for direction, size, colour, slope in zip(directions, sizes, colours, slopes, strict=True)
    ]


def paint_contour(
    canvas: Canvas,
    rng: np.random.Generator,
    middle: np.ndarray,
    radius: float,
    contour: np.ndarray,
    surface: str,
    base: np.ndarray,
) -> None:
    """Paint a contour with this surface onto the canvas."""
    stretch = np.float32(np.exp(rng.uniform(-STRETCH, STRETCH) / 2))
    x = ((canvas.centres - np.float32(middle[0])) * stretch)[None, :]
    y = ((canvas.centres - np.float32(middle[1])) / stretch)[:, None]
    outside = beyond(x, y, np.float32(radius), contour) * len(canvas.centres)
    direction = rng.standard_normal(3)
    away = direction / np.linalg.norm(direction) + rng.choice([-1, 1])  # mostly lighter or darker
    away *= rng.uniform(*CONTRASTS) / np.linalg.norm(away) * 3**0.5
    slope = rng.normal(0, 0.3, 2).astype(np.float32)
    colour = shaded((base + away).astype(np.float32), slope, x, y)
    cover = np.clip(0.5 - outside, 0, 1)
    if surface == "outlined":
        width = rng.uniform(0.025, 0.06) * len(canvas.centres)
        cover = np.clip(0.5 + width / 2 - np.abs(outside), 0, 1)
    elif surface != "plain":
        colour = colour + pattern(rng, x, y, spotted=surface == "spotted")
    canvas.pixels[:] += cover[..., None] * (colour - canvas.pixels)


def beyond(x: np.ndarray, y: np.ndarray, radius: np.float32, contour: np.ndarray) -> np.ndarray:
    """Return roughly how far each place is outside the contour, negative inside: (h, w).

    x, y: offsets from the middle, (1, w) and (h, 1).
    """
    steps = np.arctan2(y, x) * np.float32(ANGLES / (2 * np.pi))
    whole = np.floor(steps)
    low = whole.astype(np.int32) % ANGLES
    part = steps - whole
    after = np.roll(contour, -1)
    edge = contour[low] * (1 - part) + after[low] * part
    slope = (after - contour)[low] * np.float32(ANGLES / (2 * np.pi)) / edge
    distance = np.sqrt(x * x + y * y) - radius * edge
    return distance / np.sqrt(1 + np.minimum(slope * slope, 9))


def pattern(rng: np.random.Generator, x: np.ndarray, y: np.ndarray, *, spotted: bool) -> np.ndarray:
    """Return stripes or spots of random colour, direction, wavelength and phase: (h, w, 3)."""
    angle, k = rng.uniform(0, np.pi), 2 * np.pi / rng.uniform(0.08, 0.16)
    along = np.float32(k * np.cos(angle)) * x + np.float32(k * np.sin(angle)) * y
    wave = np.sin(along + np.float32(rng.uniform(0, 2 * np.pi)))
    if spotted:
        across = np.float32(-k * np.sin(angle)) * x + np.float32(k * np.cos(angle)) * y
        wave = wave * np.sin(across + np.float32(rng.uniform(0, 2 * np.pi)))
    tint = rng.uniform(0.06, 0.35) * (1 + rng.normal(0, 0.3, 3))
    return wave[..., None] * tint.astype(np.float32)
