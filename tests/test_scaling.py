"""Accuracy against data and compute comes from model cards, and only of the same images."""

from __future__ import annotations

from dataclasses import replace

import pandas as pd
import pytest

from vitsee.cards import Card
from vitsee.errors import UserError
from vitsee.scaling import plot_cards

CARD = Card(
    name="a", architecture="vit", parameters=1_000_000, dataset="scenes (x)", classes=16, accuracy=0.5,
    test_images=400, pixel_probe=0.1, train_images=1000, images_seen=4000, epochs=4.0, flops_per_image=2e6,
    training_flops=2.4e10, started_from=None, stored_as="float32", seed=0, recipe={}, model={},
)  # fmt: skip


def written(folder, *cards: Card):
    paths = [folder / f"{card.name}.md" for card in cards]
    for path, card in zip(paths, cards, strict=True):
        path.write_text(card.markdown)
    return plot_cards(paths)


def test_a_row_and_a_point_for_each_card(tmp_path):
    more = replace(CARD, name="b", train_images=4000, accuracy=0.75)
    other = replace(CARD, name="c", architecture="resnet")
    csv, png = written(tmp_path, more, CARD, other)
    table = pd.read_csv(csv)
    assert list(table["model"]) == ["c", "a", "b"]
    assert list(table["family"]) == ["resnet, 1.00 M", "vit, 1.00 M", "vit, 1.00 M"]
    assert table["se"][1] == pytest.approx((0.25 / 400) ** 0.5)
    assert png.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("change", [{"dataset": "cifar10 (y)"}, {"test_images": 5}])
def test_accuracies_on_other_images_are_not_compared(change, tmp_path):
    with pytest.raises(UserError, match=r"cannot be compared, they are of different images: .*;"):
        written(tmp_path, CARD, replace(CARD, name="b", **change))
