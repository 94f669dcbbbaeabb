"""The embedded data set is a function of seed, split and index, and nothing else."""

from __future__ import annotations

import numpy as np
import pytest

from vitsee.config import Run
from vitsee.datasets import Made
from vitsee.examples import kept
from vitsee.scenes import CLASSES, Scenes


def test_an_image_depends_on_seed_split_and_index_alone():
    again = Scenes("train", seed=3, size=10).image(7)
    assert np.array_equal(Scenes("train", seed=3, size=9999).image(7), again)
    for other in (Scenes("test", seed=3), Scenes("train", seed=4)):
        assert not np.array_equal(other.image(7), again)
    assert not np.array_equal(Scenes("train", seed=3).image(8), again)


def test_a_scene_is_the_same_at_every_resolution():
    small, large = Scenes(resolution=56).image(4), Scenes(resolution=224).image(4)
    pooled = large.reshape(56, 4, 56, 4, 3).mean((1, 3))
    assert np.abs(pooled - small).mean() < 6  # of 255; the noise of single pixels is part of it


def test_a_share_of_the_images_is_faint():
    noise = [np.median(np.abs(np.diff(Scenes().image(i).astype(int), axis=1))) for i in range(99)]
    assert 0.25 < np.mean(np.array(noise) > 9) < 0.55


def test_classes_are_equally_frequent():
    scenes = Scenes(size=160)
    counts = np.bincount([scenes.label(i) for i in range(160)])
    assert counts.tolist() == [10] * len(CLASSES)


def test_no_image_is_in_both_splits():
    train = {Scenes("train").image(i).tobytes() for i in range(100)}
    assert not train & {Scenes("test").image(i).tobytes() for i in range(100)}


def test_the_fingerprint_names_what_the_pixels_depend_on():
    prints = {
        scenes.fingerprint
        for scenes in (Scenes(), Scenes("train"), Scenes(seed=1), Scenes(resolution=64))
    }
    assert len(prints) == 4
    assert Scenes(size=5).fingerprint == Scenes(size=6).fingerprint


def test_images_to_train_on_are_made_once(tmp_path, monkeypatch):
    scenes, run = Scenes("train", size=40), Run(progress=False)
    images = kept(Made(scenes, CLASSES, "scenes/train"), tmp_path, run)
    assert len(images) == 40
    assert all(np.array_equal(images.open(i), scenes.image(i)) for i in (0, 17, 39))
    monkeypatch.setattr(Scenes, "image", None)
    again = kept(Made(scenes, CLASSES, "scenes/train"), tmp_path, run)
    assert np.array_equal(again.open(5), images.open(5))
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("index", range(16))
def test_the_texture_of_a_class_shows_in_its_spectrum(index):
    """Stripes: power along one axis at the wavelength of the parts; checks and rings: along both."""
    ratios = []
    for i in range(index, index + 16 * 12, 16):
        grey = Scenes("train").image(i).mean(2)
        power = np.abs(np.fft.fft2(grey - grey.mean())) ** 2
        ratios.append(power[9:14, 0:2].sum() / power[0:2, 9:14].sum())
    ratio = np.median(ratios)  # a sum over images would be that of the few with most contrast
    if index < 4:
        assert ratio < 1 / 3
    elif index < 8:
        assert ratio > 3
    else:
        assert 1 / 3 < ratio < 3
