"""Composed figures fit a page of a journal, at both widths: every one is drawn here from made tables."""

from __future__ import annotations

from functools import cache, partial
from itertools import combinations, product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.text import Text

from vitsee.analysis import REGISTERED, Labels
from vitsee.papers import atlas, composing
from vitsee.papers.publish import Request, Shown, describe
from vitsee.results.reading import StoredResult

FOLDER = Path("/made/figures/figure")
BLOCKS = [f"blocks.{i}" for i in range(12)]
SUBLAYERS = [f"{block}.+{branch}" for block in BLOCKS for branch in ("attn", "mlp")]
UNITS = [f"layer{i}.{k}" for i, count in enumerate((3, 4, 6, 3), 1) for k in range(count)]


def made(analysis: str, table: str = "", **keys: Any) -> pd.DataFrame:
    """A table with each combination of the keys' values, and numbers between 0.1 and 1 in its other columns."""
    rows = pd.DataFrame(list(product(*keys.values())), columns=list(keys))
    others = [
        name for name in REGISTERED[analysis].columns[table or analysis].columns if name not in keys
    ]
    numbers = np.random.default_rng(0).uniform(0.1, 1, (len(rows), len(others)))
    rows = rows.join(pd.DataFrame(numbers, columns=others))
    if "layer" in keys and "depth" in others:
        rows["depth"] = (rows["layer"].map([*keys["layer"]].index) + 1) / len(keys["layer"])
    return rows


def grid(side: int, *names: str) -> dict[str, range]:
    return dict.fromkeys(names, range(side))


@cache
def tables(analysis: str, units: bool, other_units: bool | None) -> dict[str, pd.DataFrame]:
    """What a ViT of 12 blocks, or a CNN of 16 units, gives; other_units: None if it is alone."""
    layers = UNITS if units else BLOCKS
    table = partial(made, analysis)
    match analysis:
        case "cka":
            across = units if other_units is None else other_units
            size = {True: 122, False: 74}
            return {"cka": table(model_layer=range(size[units]), other_layer=range(size[across]))}
        case "attention_distance":
            return {analysis: table(block=range(12), head=range(6), uniform_px=[0.8])}
        case "head_similarity":
            return {analysis: table(other_layer=UNITS[:5], mean_distance_px=[20.0, 24.5, 28.25])}
        case "receptive_field":
            of = {"model": ["model"], "point": ["post"]}
            every = ["conv1", *UNITS] if units else SUBLAYERS
            return {
                analysis: table(**of, layer=every, **grid(4, "row", "col")),
                "receptive_field_size": table("receptive_field_size", **of, layer=layers),
            }
        case "skip_ratio":
            tokens = {"mean": [-1], "class": [0], "spatial": range(1, 50)}
            roles = {"model": units} | ({} if other_units is None else {"other": other_units})
            parts = [
                table(
                    model=[role], kind=[kind], token=places,
                    block=UNITS if cnn else BLOCKS, branch=["unit"] if cnn else ["attn", "mlp"],
                )
                for role, cnn in roles.items()
                for kind, places in tokens.items()
                if not cnn or kind == "mean"
            ]  # fmt: skip
            return {analysis: pd.concat(parts)}
        case "localization":
            token, patch = ("token_row", "token_col"), ("patch_row", "patch_col")
            return {
                analysis: table(layer=layers[-1:], **grid(7, *token, *patch)),
                "localization_score": table(
                    "localization_score", layer=layers[-1:], **grid(7, *token)
                ),
            }
        case "linear_probe":
            features = ["gap"] if units else ["cls", "gap"]
            of = {"layer": layers, "shots": [10]}
            return {
                analysis: table(**of, features=features, seed=range(3), classes=[16]),
                "linear_probe_tokens": table(
                    "linear_probe_tokens", **of, seed=[0], **grid(4, "row", "col")
                ),
            }
        case "block_similarity":
            return {analysis: table(block=range(12))}
        case "embedding_filters":
            places = grid(4, "row", "col")
            return {
                analysis: table(component=range(28), channel=range(3), **places),
                "embedding_variance": table("embedding_variance", component=range(28)),
            }
        case "position_similarity":
            return {analysis: table(**grid(5, "row", "col", "other_row", "other_col"))}
        case "attention_rollout":
            colours = table("attention_rollout_images", image=range(12), **grid(8, "row", "col"))
            return {
                analysis: table(image=range(12), **grid(4, "row", "col")),
                "attention_rollout_images": colours.assign(**{c: 255 * colours[c] for c in "rgb"}),
            }
        case "fourier":
            return {analysis: table(layer=layers, frequency=[0.0, 0.5, 0.9])}
        case "massive_activation":
            return {analysis: table(layer=layers, rank=[1, 2, 3])}
        case "robustness":
            changes = ["drop_random", "drop_salient", "drop_other", "shuffle"]
            return {analysis: table(change=changes, strength=[0.0, 0.1, 0.5, 0.9])}
        case "token_norm":
            patches = table(kind=["patch"], layer=layers, **grid(4, "row", "col"))
            first = table(kind=["class"], layer=layers, row=[-1], col=[0])
            bins = table(
                "token_norm_histogram", kind=["class", "patch"], layer=layers, low=[1.0, 4.0, 80.0]
            )
            return {
                analysis: patches if units else pd.concat([first, patches]),
                "token_norm_histogram": bins.assign(high=2 * bins["low"]),
            }
    raise NotImplementedError(analysis)


def name_of(role: str) -> str:
    """A long name, as models of timm have."""
    return f"{role}.augreg_in21k_ft"


@cache
def stored(panel: str, analysis: str, role: str, other: str | None) -> StoredResult:
    """The result of an analysis in the role of a panel."""
    labels = Labels(
        name_of(role), name_of(other) if other else None, "scenes", 2560,
        family=role.rpartition("_data")[0] or role, train_images=1000 + 7 * len(role),
    )  # fmt: skip
    if analysis == "scaling":
        row = {"model": labels.model, "family": labels.family, "accuracy": 0.5, "se": 0.05}
        row |= {"train_images": labels.train_images, "training_flops": 1e14 * len(role)}
        return StoredResult(REGISTERED[analysis](), {"scaling": pd.DataFrame([row])}, labels)
    cnn = role.startswith(("resnet", "other"))
    found = tables(analysis, cnn, None if other is None else other.startswith(("resnet", "other")))
    return StoredResult(REGISTERED[analysis](), found, labels)


class Made:
    """A published figure whose roles are played by made results; those in `missing` are not."""

    def __init__(self, name: str, missing: tuple[str, ...] = ()) -> None:
        self.figure = atlas.published(name)
        roles = {
            role: atlas.Role(missing="train it") if role in missing else atlas.Role(model=role)
            for role in atlas.zoo("mini").roles
        }
        self.zoo = atlas.Zoo(name="made", roles=roles)
        self.results: dict[Path, StoredResult] = {}
        self.shown = {}
        for key, panel in self.figure.panels.items():
            there = (
                {} if panel.other in missing else {r: None for r in panel.roles if r not in missing}
            )
            folders = {role: FOLDER / key / role for role in there}
            for role, path in folders.items():
                self.results[path] = stored(key, panel.analysis, role, panel.other)
            self.shown[key] = Shown(folders, [])

    def read(self, path: Path) -> StoredResult:
        return self.results[path]

    def record(self, **options: Any) -> dict[str, Any]:
        request = Request(self.figure.name, "made", **options)
        return describe(self.figure, self.zoo, request, self.shown, FOLDER, self.read)  # type: ignore[arg-type]

    def page(self, **options: Any) -> Figure | None:
        return composing.compose(self.record(**options), FOLDER, self.read)


def texts(figure: Figure) -> list[Text]:
    """The texts that are drawn: not the numbers outside of an axis."""
    hidden = set()
    for axes in figure.findobj(Axes):
        assert isinstance(axes, Axes)
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            for tick in [*axis.get_major_ticks(), *axis.get_minor_ticks()]:
                if not axes.axison or not low - 1e-9 <= tick.get_loc() <= high + 1e-9:
                    hidden |= {tick.label1, tick.label2}
    every = [text for text in figure.findobj(Text) if text.get_visible() and text not in hidden]
    return [text for text in every if isinstance(text, Text) and text.get_text().strip()]


def faults(figure: Figure) -> list[str]:
    """What a journal would send back: small text, text that is cut off, texts on top of each other, cut legends."""
    page, found = figure.bbox, []
    boxes = {text: text.get_window_extent() for text in texts(figure)}
    for text, box in boxes.items():
        if text.get_fontsize() < 7:
            found.append(f"small: {text.get_text()}")
        if box.x0 < -1 or box.y0 < -1 or box.x1 > page.x1 + 1 or box.y1 > page.y1 + 1:
            found.append(f"cut off: {text.get_text()}")
    for (one, a), (other, b) in combinations(boxes.items(), 2):
        if min(a.x1, b.x1) - max(a.x0, b.x0) > 1 and min(a.y1, b.y1) - max(a.y0, b.y0) > 1:
            found.append(f"overlap: {one.get_text()} and {other.get_text()}")
    for legend in figure.findobj(Legend):
        box = legend.get_window_extent()
        if box.x0 < -1 or box.x1 > page.x1 + 1 or box.y0 < -1:
            found.append("a legend is cut off")
    return found


@pytest.mark.parametrize("width", composing.WIDTHS)
@pytest.mark.parametrize("name", atlas.figures())
def test_every_figure_fits_its_page(name, width):
    page = Made(name).page(width=width)
    assert page is not None
    assert page.get_figwidth() == {"text": 6.75, "column": 3.25}[width]
    assert not faults(page)


def test_each_fault_of_a_page_is_found():
    figure = Figure((2, 2))
    figure.text(0.5, 0.5, "small", fontsize=6.9)
    figure.text(0.8, 0.1, "longer than the page", fontsize=9)
    figure.text(0.5, 0.9, "one", fontsize=9)
    figure.text(0.51, 0.9, "other", fontsize=9)
    figure.legend([figure.text(0, 0, "")], ["a" * 80], loc="lower left")
    assert [fault.partition(":")[0] for fault in faults(figure)] == [
        "small", "cut off", "cut off", "overlap", "a legend is cut off",
    ]  # fmt: skip
