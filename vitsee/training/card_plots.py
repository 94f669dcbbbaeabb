"""Plots accuracy against data and compute, from model cards (Dosovitskiy et al. 2021, Figs. 3 to 5)."""

from __future__ import annotations

import os
from pathlib import Path

import pandas as pd

from vitsee.errors import UserError
from vitsee.models import cards
from vitsee.plotting import line_plots
from vitsee.results.folder import PNG, Formats, Results


def plot_cards(paths: list[Path], *, formats: Formats = PNG) -> list[Path]:
    """Write scaling.csv and scaling.png into the cards' common parent folder; return their paths.

    Raises UserError for a file that is not a card, and for cards with different data sets or held-out images.
    """
    read = [cards.read(path) for path in paths]
    asked = {(card.dataset.split(" ")[0], card.classes, card.test_images) for card in read}
    if len(asked) > 1:
        raise UserError(
            f"the accuracies of these cards cannot be compared, because they are for different images: "
            f"{'; '.join(sorted(f'{n} images of {name}, {k} classes' for name, k, n in asked))}"
        )
    together = Results(Path(os.path.commonpath([path.resolve().parent for path in paths])))
    table = tabulate(read)
    written = together.save_tables({"scaling": table})
    figure = line_plots.scaling(
        table, read[0].dataset.split(" ")[0], ["train_images", "training_flops"]
    )
    return written + together.save_figures({"scaling": figure}, formats=formats)


def tabulate(read: list[cards.Card]) -> pd.DataFrame:
    """Return one row per model: model, family, train_images, images_seen, training_flops, accuracy, se.

    family: the same for models that differ only in their training. se: binomial, over held-out images.
    """
    rows = [
        {
            "model": card.name,
            **card.training,
            "accuracy": card.accuracy,
            "se": (card.accuracy * (1 - card.accuracy) / card.test_images) ** 0.5,
        }
        for card in read
    ]
    table = pd.DataFrame(rows)
    return table.sort_values(["family", "train_images", "images_seen"], ignore_index=True)
