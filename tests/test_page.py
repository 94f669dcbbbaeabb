"""Composed figures fit a page of a journal, at both widths: every one is drawn here from made tables."""

from __future__ import annotations

import json
import re
from dataclasses import replace
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
from matplotlib.lines import Line2D
from matplotlib.text import Text

from vitsee.analyses.block_similarity import BlockSimilarity
from vitsee.analyses.receptive_field import ReceptiveField
from vitsee.analyses.skip_ratio import SkipRatio
from vitsee.analysis import REGISTERED, Labels
from vitsee.errors import UserError
from vitsee.papers import atlas, composing
from vitsee.papers.description import Shown, describe
from vitsee.papers.plot import plot
from vitsee.papers.publish import publish
from vitsee.papers.request import Request
from vitsee.plotting import line_plots
from vitsee.results.folder import Results
from vitsee.results.reading import StoredResult, together

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
        self.results: dict[tuple[str, ...], StoredResult] = {}
        self.shown = {}
        for key, panel in self.figure.panels.items():
            there = (
                {} if panel.other in missing else {r: None for r in panel.roles if r not in missing}
            )
            folders = {role: FOLDER / key / role for role in there}
            for role, path in folders.items():
                self.results[path.parts[-2:]] = stored(key, panel.analysis, role, panel.other)
            self.shown[key] = Shown(folders, [])

    def read(self, path: Path) -> StoredResult:
        return self.results[path.parts[-2:]]

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


def assert_fits(name: str, width: str) -> None:
    page = Made(name).page(width=width)
    assert page is not None
    page.draw_without_rendering()
    assert page.get_figwidth() == {"text": 6.75, "column": 3.25}[width]
    assert not faults(page)


@pytest.mark.parametrize("name", atlas.figures())
def test_every_figure_fits_a_column(name):
    assert_fits(name, "column")


BROAD = ("fig01", "fig08", "vit_fig07")
"""Figures of lines, of maps and of pictures."""


@pytest.mark.parametrize(
    "name",
    [
        *BROAD,
        *(pytest.param(n, marks=pytest.mark.sweep) for n in atlas.figures() if n not in BROAD),
    ],
)
def test_a_figure_fits_a_page_of_text(name):
    assert_fits(name, "text")


def test_each_fault_of_a_page_is_found():
    figure = Figure((2, 2))
    figure.text(0.5, 0.5, "small", fontsize=6.9)
    figure.text(0.8, 0.1, "longer than the page", fontsize=9)
    figure.text(0.5, 0.9, "one", fontsize=9)
    figure.text(0.51, 0.9, "other", fontsize=9)
    figure.legend([Line2D([], [])], ["a" * 80], loc=(0.0, 0.2), fontsize=9)
    figure.draw_without_rendering()
    assert [fault.partition(":")[0] for fault in faults(figure)] == [
        "small", "cut off", "cut off", "overlap", "a legend is cut off",
    ]  # fmt: skip


def bars(page: Figure) -> list[Axes]:
    return [axes for axes in page.axes if axes.get_label() == "<colorbar>"]


def plots(page: Figure) -> list[Axes]:
    return [axes for axes in page.axes if axes not in bars(page)]


def test_panels_of_one_scale_share_one_colour_bar():
    page = Made("fig08").page(width="column")
    assert page is not None
    assert len(plots(page)) == 5
    (bar,) = bars(page)
    heatmaps, accuracies = plots(page)[:4], plots(page)[4]
    assert max(axes.get_window_extent().x1 for axes in heatmaps) > bar.get_window_extent().x1
    assert accuracies.get_window_extent().y1 < bar.get_window_extent().y0


def test_panels_of_one_row_share_their_y_axis_and_their_legend():
    page = Made("fig04").page()
    assert page is not None
    first, *others = plots(page)
    assert first.get_ylabel()
    assert {axes.get_ylim() for axes in others} == {first.get_ylim()}
    assert {axes.get_ylabel() for axes in others} == {""}
    boxes = [axes.get_window_extent().intervaly.round(6).tolist() for axes in plots(page)]
    assert boxes[1:] == boxes[:-1]
    (legend,) = page.findobj(Legend)
    assert "block 11" in [text.get_text() for text in legend.get_texts()]


def test_rows_of_the_same_lines_share_one_legend_below_the_last():
    page = Made("fig13").page(width="column")
    assert page is not None
    assert len(page.findobj(Legend)) == 2  # of other models
    page = Made("extra_occlusion").page(width="column")
    assert page is not None
    page.draw_without_rendering()
    (legend,) = page.findobj(Legend)
    assert legend.get_window_extent().y1 < min(a.get_window_extent().y0 for a in plots(page))


def test_a_figure_that_is_not_drawn_on_a_canvas_cannot_be_a_panel(monkeypatch):
    monkeypatch.setattr(
        BlockSimilarity, "figures", lambda self, tables, labels: {"block_similarity": Figure()}
    )
    message = r"cannot be a panel because it is not drawn on vitsee\.plotting\.style\.canvas"
    with pytest.raises(UserError, match=message):
        Made("figG1").page()


def test_a_row_is_broken_where_the_page_is_too_narrow():
    places = {}
    for width in composing.WIDTHS:
        page = Made("fig01").page(width=width)
        assert page is not None
        tops = [round(axes.get_window_extent().y1) for axes in plots(page)]
        places[width] = [tops.count(top) for top in dict.fromkeys(tops)]
    assert places == {"text": [4], "column": [2, 2]}


def test_a_missing_panel_leaves_no_hole_and_the_caption_names_its_role():
    figure = Made("fig01", missing=("vit_huge",))
    page = figure.page()
    assert page is not None
    edges = [axes.get_window_extent().x1 for axes in plots(page)]
    assert len(edges) == 3
    assert max(edges) > 0.95 * page.bbox.x1
    assert figure.record()["caption"].endswith("Not shown: vit_huge (train it).")


def test_the_caption_names_models_roles_images_and_what_bands_are():
    caption = Made("fig12").record()["caption"]
    assert caption.startswith(
        "Raghu et al. 2021, Figure 12, with zoo=made. 2,560 images of scenes: "
    )
    assert f"{name_of('vit_large_data_3')} for vit_large_data_3, " in caption
    assert caption.endswith(" Bands: one standard error over minibatches to either side.")


def test_a_note_about_a_model_that_is_not_shown_is_not_in_the_caption():
    figure = Made("figB1", missing=("vit_huge",))
    for role in ("resnet50", "resnet152"):
        figure.zoo.roles[role].note = f"a note on {role}"
    assert "resnet50 (a note on resnet50)" in figure.record()["caption"]
    assert "resnet152" not in figure.record()["caption"]


def test_titles_say_what_was_run_and_for_which_model_of_the_paper():
    page = Made("fig02").page()
    assert page is not None
    titles = [" ".join(part.get_suptitle().split()) for part in page.subfigs]
    assert f"{name_of('vit_large')} vs {name_of('resnet50')}, for ViT-L/16 vs R50" in [
        title.replace("_ ", "_").replace(". ", ".") for title in titles
    ]


def test_a_picture_is_shown_once_with_the_titles_of_all_that_it_stands_for():
    figure = Made("figH1")
    one = figure.shown["base16"].folders["mixer_base16"]
    figure.shown["large"].folders["mixer_large"] = one
    rows = composing.rows_of(figure.record(), FOLDER)
    assert [panel["title"] for panel in rows[0].panels] == [
        "Mixer-B/32", "Mixer-B/16 and Mixer-L/16", "Mixer-H/14",
    ]  # fmt: skip


def test_a_caption_can_be_left_to_the_journal():
    with_caption, without = (Made("figG1").page(captioned=said) for said in (True, False))
    assert with_caption is not None
    assert without is not None
    assert any("Raghu" in text.get_text() for text in texts(with_caption))
    assert not any("Raghu" in text.get_text() for text in texts(without))
    assert without.get_figheight() < with_caption.get_figheight()


def saved(tmp_path: Path, figure: Made, **options: Any) -> Path:
    """The folder of a composed figure."""
    Results(tmp_path).save_json("figure.json", figure.record(**options))
    return tmp_path


def test_without_any_panel_there_is_no_picture_and_no_old_one_stays(tmp_path, caplog):
    nobody = Made("figC6", missing=("vit_huge",))
    for ending in ("png", "pdf", "svg"):
        (tmp_path / f"figC6.{ending}").write_bytes(b"old")
    assert plot(saved(tmp_path, nobody)) == []
    assert [path.name for path in tmp_path.iterdir()] == ["figure.json"]
    assert "figC6 has no panel that could be drawn" in caplog.text


@pytest.mark.parametrize("width", composing.WIDTHS)
def test_a_page_has_truetype_fonts_and_is_drawn_again_to_the_byte(width, tmp_path):
    figure = Made("vit_fig07")
    folder = saved(tmp_path, figure, width=width)
    drawn = []
    for _ in range(2):
        paths = composing.draw(folder, formats=("png", "pdf", "svg"), read=figure.read)
        drawn.append([path.read_bytes() for path in paths])
    assert drawn[0] == drawn[1]
    _, pdf, svg = drawn[0]
    assert b"/FontFile2" in pdf  # TrueType
    assert b"/Type3" not in pdf
    assert f'width="{72 * composing.WIDTHS[width]:g}pt"'.encode() in svg
    assert b"RGB embedding filters" in svg


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("figure.width=colum", "there is no figure.width=colum; it can be: column, text. Did you mean column?"),
        ("figure.caption=no", "there is no figure.caption=no; it can be: false, true."),
        (
            "figure.widht=text",
            "figure.widht=text: a figure has no such option; it has: figure.caption, figure.width. "
            "Did you mean figure.width?",
        ),
    ],
)  # fmt: skip
def test_an_option_of_a_figure_that_does_not_exist_is_refused(word, message):
    with pytest.raises(UserError) as refused:
        list(publish(["figure=fig01", word]))
    assert str(refused.value) == message


def test_the_options_that_a_message_names_are_taken():
    request = Request.read(["figure=fig01", "figure.width=column", "figure.caption=false"])
    assert (request.width, request.captioned) == ("column", False)
    record = Made("figG1").record(width="column", captioned=False)
    assert (record["width"], record["captioned"]) == ("column", False)


def test_a_width_that_does_not_exist_in_a_figure_json_is_refused(tmp_path):
    record = Made("figG1").record() | {"width": "page"}
    (tmp_path / "figure.json").write_text(json.dumps(record))
    with pytest.raises(
        UserError, match=r"figure\.json: there is no width page; it can be: column, text"
    ):
        plot(tmp_path)


def test_layers_of_receptive_fields_are_numbered_as_in_the_paper():
    def named(units: bool) -> list[str]:
        found = tables("receptive_field", units, None)
        drawn = ReceptiveField().figures(found, Labels("m", None, "d", 4))["receptive_field"]
        return [text.get_text() for text in drawn.axes[0].texts]

    assert named(units=False) == [f"attention {i}" for i in (1, 3, 6, 9, 12)]
    assert named(units=True) == ["stem", "unit 3", "unit 7", "unit 12", "unit 16"]


def test_one_large_ratio_of_norms_does_not_squeeze_the_others():
    found = tables("skip_ratio", False, True)["skip_ratio"]
    drawn = SkipRatio().figures({"skip_ratio": found}, Labels("v", "r", "d", 4))
    assert drawn["skip_ratio"].axes[0].get_yscale() == "log"
    assert drawn["skip_cosine"].axes[0].get_yscale() == "linear"


def test_long_names_of_models_do_not_clip_a_legend_of_a_figure_that_stands_alone():
    lines = [
        line_plots.Line(np.arange(1, 4), f"{'a_long_name_' * 6}{branch}", branch)
        for branch in ("self-attention", "MLP")
    ]
    figure = line_plots.depth_lines(lines, xlabel="x", ylabel="y", title="t")
    figure.draw_without_rendering()
    legend = figure.legends[0].get_window_extent()
    assert legend.x0 >= 0
    assert legend.x1 <= figure.bbox.x1


def test_a_figure_json_that_asks_for_no_panels_side_by_side_gets_one():
    rows = composing.rows_of(Made("fig01").record() | {"abreast": 0}, FOLDER, 3.25)
    assert [len(row.panels) for row in rows] == [1, 1, 1, 1]


SEVERAL = sorted(
    name for name, kind in REGISTERED.items() if kind().draws_several and name != "scaling"
)
"""The analyses that draw a line per result; `scaling` draws a point."""


def words(figure: Figure) -> str:
    return "\n".join(text.get_text() for text in texts(figure))


@pytest.mark.parametrize("analysis", SEVERAL)
def test_one_model_on_other_images_is_a_line_of_its_own_that_says_which(analysis):
    found = tables(analysis, False, None)
    results = [(found, Labels("v", "r", data, 4)) for data in ("cats", "dogs")]
    more = [(found, Labels("v", "r", "cats", images)) for images in (4, 8)]
    for figure in REGISTERED[analysis]().joined(more).values():
        figure.draw_without_rendering()
        assert {"4", "8"} <= {*re.findall(r"(\d) images of cats", words(figure))}
    for figure in REGISTERED[analysis]().joined(results).values():
        figure.draw_without_rendering()
        assert {"cats", "dogs"} <= {*re.findall("cats|dogs", words(figure))}
        assert "images of" not in words(figure)  # a title for both would be wrong for one


@pytest.mark.parametrize("analysis", SEVERAL)
def test_two_results_that_share_their_names_are_told_apart_by_their_identities(analysis):
    one = StoredResult(
        REGISTERED[analysis](), tables(analysis, False, None), Labels("v", "r", "d", 4)
    )
    results = {Path("v/d-1a2b3c4d"): one, Path("v/d-5e6f7a8b"): one, Path("w/d-0c0c0c0c"): one}
    results[Path("w/d-0c0c0c0c")] = replace(one, labels=replace(one.labels, model="w"))
    for figure in one.analysis.joined(together(results)).values():
        figure.draw_without_rendering()
        marks = re.findall(r"v \((\w+)\)|^(w\b)", words(figure), re.M)
        assert {a or b for a, b in marks} == {"1a2b3c4d", "5e6f7a8b", "w"}
