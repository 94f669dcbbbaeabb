"""`contours` and `lines` have the same images, which are a function of seed, split and index, and two labels."""

from __future__ import annotations

import numpy as np
import pytest

from vitsee.config import composed
from vitsee.data import contours, datasets
from vitsee.data.contours import CLASSES, LINE_CLASSES, Contours


def test_lines_are_the_same_images_with_other_labels():
    shapes, lines = Contours(size=2048), Contours(size=2048, lines=True)
    assert np.array_equal(shapes.image(77), lines.image(77))
    pairs = {(shapes.label(i), lines.label(i)) for i in range(1024)}
    assert len(pairs) == len(CLASSES) * len(LINE_CLASSES)
    assert shapes.fingerprint != lines.fingerprint


@pytest.mark.parametrize("name", ["contours", "lines"])
def test_an_experiment_names_its_images_and_classes(name):
    images = datasets.load(composed([f"dataset={name}", "dataset.size=100"]).dataset, 32)
    assert images.id(5) == f"{name}/test/000005"
    assert images.open(5).size == (32, 32)
    assert images.classes[images.label(70)] == {
        "contours": "spotted shape 01",
        "lines": "smooth, medium",
    }.get(name)


def test_an_image_is_the_same_at_every_resolution():
    differences = []
    for index in range(9):
        small, large = (
            Contours(resolution=side).image(index).reshape(12, side // 12, 12, side // 12, 3)
            for side in (48, 192)
        )
        differences.append(np.abs(small.mean((1, 3)) - large.mean((1, 3))).mean())
    assert np.median(differences) < 4  # of 255


def test_no_two_shapes_are_the_same_contour_turned():
    amplitudes, phases = contours.shapes()
    waves = amplitudes * np.exp(1j * phases)
    turns = np.exp(1j * np.outer(np.linspace(-0.4, 0.4, 41), contours.HARMONICS))
    apart = np.abs(waves[:, None, None] - waves[:, None] * turns).max(-1).min(-1)
    assert apart[~np.eye(16, dtype=bool)].min() > 0.08


@pytest.mark.parametrize(
    ("line", "wavenumber"), [("waves", 9), ("teeth", 14), ("notches", 5), ("smooth", None)]
)
def test_the_line_of_a_class_shows_in_the_spectrum_of_its_contour(line, wavenumber):
    rng = np.random.default_rng(0)
    number = contours.LINES.index(line)
    profiles = [contours.profile(rng, shape, number) for shape in range(16)]
    power = np.abs(np.fft.rfft(profiles, axis=1))[:, 7:20].mean(0)
    if wavenumber is None:
        assert power.max() < 0.1 * contours.ANGLES * contours.LINE_DEPTH / 2
    else:
        strongest = 7 + int(power.argmax())
        assert strongest % wavenumber == 0


def test_a_point_is_inside_a_contour_where_its_radius_says_so():
    circle = np.ones(contours.ANGLES, np.float32)
    x, y = np.meshgrid(np.linspace(-1, 1, 21, dtype=np.float32), np.float32([0.0, 0.3]))
    away = contours.beyond(x, y, np.float32(0.5), circle)
    np.testing.assert_allclose(away, np.hypot(x, y) - 0.5, atol=1e-5)


def test_the_contour_is_lighter_or_darker_than_what_surrounds_it():
    """Of plain huge ones: the middle differs from the border of the image, in both directions."""
    differences = []
    for index in range(3 * 64, 19 * 64, 4):  # plain
        image = Contours().image(index).astype(float)
        border = np.concatenate([image[:2].reshape(-1, 3), image[-2:].reshape(-1, 3)])
        differences.append((image[20:28, 20:28].mean((0, 1)) - border.mean(0)).mean())
    assert np.mean(np.array(differences) > 5) > 0.2
    assert np.mean(np.array(differences) < -5) > 0.2
