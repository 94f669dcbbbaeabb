"""The embedded data set is a function of seed, split and index, and nothing else."""

from __future__ import annotations

import errno
import io
import os
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import numpy as np
import pytest

from vitsee.data.contours import Contours
from vitsee.data.images import Generated
from vitsee.data.scenes import CLASSES, Scenes
from vitsee.errors import UserError
from vitsee.options import RunOptions
from vitsee.training import image_cache
from vitsee.training.image_cache import CachedImages, in_cache


@pytest.mark.parametrize("made", [Scenes, Contours])
def test_an_image_depends_on_seed_split_and_index_alone(made):
    again = made("train", seed=3, size=10).image(7)
    assert np.array_equal(made("train", seed=3, size=9999).image(7), again)
    for other in (made("test", seed=3), made("train", seed=4)):
        assert not np.array_equal(other.image(7), again)
    assert not np.array_equal(made("train", seed=3).image(8), again)


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


@pytest.mark.parametrize("made", [Scenes, Contours])
def test_the_fingerprint_names_what_the_pixels_depend_on(made):
    prints = {
        images.fingerprint for images in (made(), made("train"), made(seed=1), made(resolution=64))
    }
    assert len(prints) == 4
    assert made(size=5).fingerprint == made(size=6).fingerprint


def test_images_to_train_on_are_made_once(tmp_path, monkeypatch):
    scenes, run = Scenes("train", size=40), RunOptions(progress=False)
    images = in_cache(Generated(scenes, CLASSES, "scenes/train"), tmp_path, run)
    assert len(images) == 40
    assert all(np.array_equal(images.open(i), scenes.image(i)) for i in (0, 17, 39))
    monkeypatch.setattr(Scenes, "image", None)
    again = in_cache(Generated(scenes, CLASSES, "scenes/train"), tmp_path, run)
    assert np.array_equal(again.open(5), images.open(5))
    assert len(list(tmp_path.iterdir())) == 1


def kept_in(cache: Path) -> CachedImages:
    """40 scenes to train on; none is made if they lie in this folder already."""
    images = in_cache(
        Generated(Scenes("train", size=40), CLASSES, "scenes/train"),
        cache,
        RunOptions(progress=False),
    )
    assert isinstance(images, CachedImages)
    return images


@pytest.mark.parametrize(
    "damage", ["a bit", "a bit of the checksum", "cut", "longer", "empty", "a pipe"]
)
def test_images_to_train_on_that_are_not_as_they_were_written_are_made_again(
    damage, tmp_path, caplog
):
    path = kept_in(tmp_path).path
    content = path.read_bytes()
    at = {"a bit": 5000, "a bit of the checksum": len(content) - 1}.get(damage, 0)
    flipped = content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]
    path.unlink()
    if damage == "a pipe":
        os.mkfifo(path)
    else:
        changed = {"cut": content[:-100], "longer": content + b"x", "empty": b""}
        path.write_bytes(changed.get(damage, flipped))
    assert np.array_equal(kept_in(tmp_path).open(7), Scenes("train").image(7))
    assert path.read_bytes() == content
    assert f"{path} is damaged; generating it again" in caplog.text


def test_images_to_train_on_are_an_npy_file_that_numpy_reads(tmp_path):
    images = kept_in(tmp_path)
    array = np.load(images.path)
    assert (array.shape, array.dtype) == ((40, 56, 56, 3), np.uint8)
    assert np.array_equal(array[7], images.open(7))


@pytest.mark.parametrize("room", [0, 100_000])
def test_a_full_disk_while_images_are_made_is_told_in_one_line_and_leaves_nothing(
    room, tmp_path, monkeypatch
):
    """As on a disk with room for so many bytes."""

    class Full(io.FileIO):
        def write(self, content) -> int:
            if self.tell() + len(content) > room:
                raise OSError(errno.ENOSPC, "No space left on device")
            return super().write(content)

    with monkeypatch.context() as during:
        during.setattr(image_cache, "open", lambda path, mode: Full(path, "w"), raising=False)
        with pytest.raises(
            UserError, match=r"cannot write .*40\.npy: No space left on device; free"
        ):
            kept_in(tmp_path)
    assert list(tmp_path.iterdir()) == []
    kept_in(tmp_path)  # as the line says, with more room


def test_a_process_that_dies_while_images_are_made_is_explained(tmp_path, monkeypatch):
    def killed(images: CachedImages, run: RunOptions) -> None:
        raise BrokenProcessPool

    monkeypatch.setattr(image_cache, "_generate", killed)
    with pytest.raises(UserError, match=r"images died, usually out of memory; .* run\.workers=1"):
        kept_in(tmp_path)


def test_what_a_killed_process_left_of_images_to_train_on_is_removed_later(tmp_path):
    now, before = (tmp_path / f".x.npy.{token}.partial" for token in ("01234567", "89abcdef"))
    for path in (now, before):
        path.write_bytes(b"half")
    os.utime(before, (1e9, 1e9))
    path = kept_in(tmp_path).path
    assert sorted(tmp_path.iterdir()) == sorted([now, path])  # somebody may be writing that one


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
