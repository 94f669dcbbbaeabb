"""Loading of minibatches: how workers share them, how far ahead they are, and the pixels' exact values."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import wait_until
from PIL import Image
from test_datasets import DATA, folder

from vitsee.data.images import Images
from vitsee.data.minibatches import PIECE, Minibatches, transform_of
from vitsee.data.plan import Plan
from vitsee.errors import UserError
from vitsee.options import OnBadImage


class Grey(Images):
    """Images of one grey each, labelled with the process that decodes them, which leave a file in `opened`."""

    classes: tuple[str, ...] = ("all",)
    fingerprint = "grey"

    def __init__(self, count: int, opened: Path, bad: range = range(0)) -> None:
        self.count, self.opened, self.bad = count, opened, bad

    def __len__(self) -> int:
        return self.count

    def id(self, index: int) -> str:
        return str(index)

    def label(self, index: int) -> int:
        return os.getpid()

    def open(self, index: int) -> Image.Image:
        (self.opened / str(index)).touch()
        if index in self.bad:
            raise ValueError("bad")
        return Image.new("RGB", (32, 32), (index % 256,) * 3)


def minibatches(images: Images, batch_size: int, **changes: Any) -> Minibatches:
    """All minibatches of the images in their order."""
    count = len(images)
    plan = Plan(count, count, batch_size, 0, chosen=tuple(range(count)))
    how = {"device": torch.device("cpu"), "workers": 0, "on_bad_image": OnBadImage.skip} | changes
    roles = how.pop("roles", {"model": DATA})
    return Minibatches(images, roles, plan, list(range(len(plan))), **how)


def test_the_workers_share_a_minibatch(tmp_path):
    (batch,) = minibatches(Grey(4 * PIECE, tmp_path), 4 * PIECE, workers=2)
    decoders = batch.labels.view(4, PIECE)
    assert (decoders == decoders[:, :1]).all()
    assert len(decoders.unique()) == 2


@pytest.mark.parametrize("size", [PIECE // 2, 4 * PIECE])
def test_workers_are_at_most_two_minibatches_or_two_pieces_each_ahead(size, tmp_path):
    ahead = max(2 * size, 2 * 2 * min(size, PIECE))
    loading: Iterator = iter(minibatches(Grey(ahead + 4 * size, tmp_path), size, workers=2))
    next(loading)
    wait_until(lambda: len(list(tmp_path.iterdir())) >= size + ahead)
    loading.close()
    assert len(list(tmp_path.iterdir())) == size + ahead


@pytest.mark.parametrize("workers", [0, 2])
def test_a_minibatch_of_many_pieces_keeps_the_order_and_leaves_out_what_is_bad(workers, tmp_path):
    bad = range(PIECE - 1, 2 * PIECE + 1)  # ends one piece, is one, begins one
    size = 3 * PIECE + 5
    (batch,) = minibatches(Grey(size, tmp_path, bad), size, workers=workers)
    assert batch.ids == [i for i in range(size) if i not in bad]
    assert batch.skipped == list(bad)
    assert len(batch.labels) == len(batch.ids)
    greys = (batch.pixels["model"][:, 0, 0, 0] * 0.5 + 0.5) * 255
    assert greys.round().int().tolist() == batch.ids


def test_a_minibatch_without_any_image_is_told(tmp_path):
    with pytest.raises(
        UserError, match="has only 0 images that can be decoded, but needs at least"
    ):
        list(minibatches(Grey(8, tmp_path, range(8)), 8))


CROPS = {
    "center": {"crop_pct": 0.9, "interpolation": "bicubic"},
    "squash": {"crop_pct": 1.0, "input_size": (3, 32, 24)},
    "border": {"crop_pct": 0.8, "mean": (0.5,), "std": (0.25,)},
}


@pytest.mark.parametrize("crop", CROPS)
def test_pixels_are_those_of_timms_transform_to_the_last_bit(crop, images):
    data = DATA | {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225), "crop_mode": crop}
    data |= CROPS[crop]
    photos, transform = folder(images), transform_of(data)
    (batch,) = minibatches(photos, len(photos), roles={"model": data})
    expected = torch.stack([transform(photos.open(i)) for i in batch.ids])
    assert torch.equal(batch.pixels["model"], expected)


def test_the_wait_for_the_first_minibatch_counts(tmp_path):
    loading = minibatches(Grey(8, tmp_path), 8)
    assert loading.waited == 0
    list(loading)
    assert loading.waited > 0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_gets_the_same_bits_beside_its_work(images):
    photos = folder(images)
    there = minibatches(photos, 8, device=torch.device("cuda"), workers=2)
    for here, batch in zip(minibatches(photos, 8), there, strict=True):
        busy = batch.pixels["model"].new_ones(4096, 4096)
        for _ in range(8):
            busy = busy @ busy  # the next upload must wait for what is still to be read
        kept = batch.pixels["model"] + 0 * busy[0, 0].nan_to_num(0, 0, 0)
        assert torch.equal(kept.cpu(), here.pixels["model"])
        assert torch.equal(batch.labels.cpu(), here.labels)
    assert there.waited > 0
