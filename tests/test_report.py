"""`vitsee report`: what the page holds, what it refuses, and how it behaves in a real browser."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from conftest import composed, end_left_behind, tiny_overrides
from PIL import Image

from vitsee.analysis import Labels
from vitsee.errors import UserError
from vitsee.report import assets, show_figures, show_results
from vitsee.report.collect import collect
from vitsee.report.write import parsed, report
from vitsee.runner import run

HOSTILE = '</script><img src=x onerror="window.hacked=1">\'\n{{ 7*7 }} & <b>bold</b>'
CLAIM = {
    "claim": "vit_uniform",
    "figure": "fig01",
    "statement": "The ViT is more uniform",
    "statistic": "difference of mean CKA",
    "value": 0.213,
    "low": 0.187,
    "high": 0.241,
    "threshold": 0.05,
    "holds": "yes",
    "untrained": 0.012,
    "why": "",
}


@pytest.fixture(scope="session")
def measured(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An outputs folder with one result: CKA of the tiny ViT."""
    outputs = tmp_path_factory.mktemp("measured") / "outputs"
    run(composed(*tiny_overrides(images, outputs)))
    return outputs


@pytest.fixture
def outputs(measured: Path, tmp_path: Path) -> Path:
    """A copy of it, with a composed figure of two panels, one of them measured, and four claims."""
    root = tmp_path / "outputs"
    shutil.copytree(measured, root)
    folder = root / "figures/fig01-mini"
    folder.mkdir(parents=True)
    result = result_of(root)
    shutil.copy(result / "cka.png", folder / "fig01.png")
    panel = {"title": "ViT", "analysis": "cka", "figure": "cka", "table": "cka.csv"}
    about = {
        "name": "fig01",
        "zoo": "mini",
        "source": "Raghu et al. 2021, Figure 1",
        "title": "Similarity within models",
        "shows": "CKA of all pairs of layers.",
        "caption": "Of the tiny ViT.",
        "panels": [
            panel | {"results": [str(result.relative_to(root))]},
            panel | {"title": "ResNet", "results": ["cka/resnet/scenes-00000000"]},
        ],
    }
    (folder / "figure.json").write_text(json.dumps(about))
    verdicts = [{}, {"holds": "undecided"}, {"holds": "no"}]
    missing = dict.fromkeys(("value", "low", "high"), np.nan) | {"holds": "not testable"}
    rows = [CLAIM | each | {"claim": f"c{i}"} for i, each in enumerate([*verdicts, missing])]
    pd.DataFrame(rows).to_csv(folder / "claims.csv", index=False)
    return root


def result_of(root: Path) -> Path:
    (found,) = root.glob("cka/*/*")
    return found


class Text(HTMLParser):
    """The text of a page, its tags, and its links by their text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.words, self.tags, self.links = "", [], {}
        self._href: str | None = None
        self.feed(page)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))
        if tag == "a":
            self._href = dict(attributes)["href"]

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1][0] not in ("script", "style"):
            self.words += data
        if self._href is not None:
            self.links[data] = self._href
            self._href = None


def read(page: Path) -> Text:
    return Text(page.read_text(encoding="utf-8"))


# ── what the page holds ───────────────────────────────────────────────────────────────────────────


def test_the_page_has_every_figure_table_and_claim(outputs):
    shown = read(report([outputs]))
    drawn = [a["src"] for tag, a in shown.tags if tag == "img"]
    files = [outputs / "figures/fig01-mini/fig01.png", result_of(outputs) / "cka.png"]
    for uri, path in zip(drawn, files, strict=True):
        kind, _, content = uri.partition(",")
        assert kind == "data:image/webp;base64"
        seen = Image.open(io.BytesIO(base64.b64decode(content))).convert("RGB")
        full = Image.open(path).convert("RGB")
        assert seen.size == full.size
        assert np.abs(np.asarray(seen, float) - np.asarray(full, float)).mean() < 3
        assert (outputs / shown.links[path.name]).samefile(path)
    csv = shown.links["cka.csv"].partition("base64,")[2]
    assert base64.b64decode(csv) == (result_of(outputs) / "cka.csv").read_bytes()
    words = " ".join(shown.words.split())
    for text in ("1 yes", "1 no", "1 undecided", "1 not testable", "0.187 to 0.241", "0.012"):
        assert text in words
    for text in ("Raghu et al. 2021, Figure 1; zoo mini", "40 images of images", "batch_size"):
        assert text in words
    assert re.search(r"from class\d/\d+.png to class\d/\d+.png; fingerprint", words)


def test_a_wide_figure_is_embedded_smaller_on_white_and_keeps_its_size_on_the_page(
    outputs, tmp_path
):
    path = outputs / "figures/fig01-mini/fig01.png"
    Image.new("RGBA", (4000, 1000), (0, 0, 0, 0)).save(path)
    files = assets.PageFiles(tmp_path, [])
    files.embed_figures([path])
    shown = files.image(path)
    content = base64.b64decode(shown["uri"].partition(",")[2])
    seen = Image.open(io.BytesIO(content))
    assert seen.size == (assets.WIDEST, assets.WIDEST // 4)
    assert np.asarray(seen.convert("L")).min() > 250
    assert (shown["width"], shown["height"]) == (1920, 480)


def test_a_tall_figure_is_embedded_with_fewer_pixels():
    seen = Image.open(io.BytesIO(assets.small(Image.new("RGB", (1200, 10000)))))
    assert seen.width * seen.height == pytest.approx(assets.LARGEST, rel=0.01)
    assert seen.height / seen.width == pytest.approx(10000 / 1200, rel=0.01)


def test_what_does_not_fit_into_the_page_is_linked_and_composed_figures_go_first(
    outputs, monkeypatch
):
    composed = outputs / "figures/fig01-mini/fig01.png"
    room = len(assets.as_uri(assets.small(Image.open(composed)), "image/webp"))
    monkeypatch.setattr(assets, "FIGURES", room)
    monkeypatch.setattr(assets, "MAPS", 0)
    shown = read(report([outputs]))
    (drawn,) = [a for tag, a in shown.tags if tag == "img"]
    assert drawn["alt"].startswith("fig01")
    assert "This figure is too large to embed: cka.png" in " ".join(shown.words.split())
    assert (outputs / shown.links["cka.png"]).samefile(result_of(outputs) / "cka.png")
    assert not [a for _, a in shown.tags if a.get("class") == "map"]


def test_the_smallest_tables_are_embedded_first(tmp_path):
    for name, size in (("a", 3000), ("b", 30), ("c", 300)):
        (tmp_path / name).write_text("x" * size)
    files = assets.PageFiles(tmp_path, [])
    files._room = 1000
    files.embed_tables([tmp_path / name for name in "abc"])
    assert {name: files.download(tmp_path / name)["embedded"] for name in "abc"} == {
        "a": False,
        "b": True,
        "c": True,
    }


def test_each_figure_says_what_the_paper_says_and_what_these_models_say(outputs):
    words = " ".join(read(report([outputs])).words.split())
    assert (
        "The paper says: CKA of all pairs of layers. Here: of 4 claims, 1 holds, 1 does not hold, "
        "1 is undecided, 1 is not testable."
    ) in words
    assert "✗ no: The ViT is more uniform (0.213, 0.187 to 0.241)" in words


@pytest.mark.parametrize(
    ("verdicts", "said"),
    [
        ([], "no claim is tested; look at the figure."),
        (["no"], "the tested claim does not hold."),
        (["yes", "yes", "odd"], "of 3 claims, 2 hold, 1 odd."),
        (["untrained too"] * 2, "of 2 claims, 2 hold for untrained networks too."),
    ],
)
def test_verdicts_are_told_as_the_end_of_a_sentence(verdicts, said):
    assert show_figures.of_these_models(verdicts) == said


def test_nothing_is_said_under_a_figure_without_a_measured_panel(outputs):
    path = outputs / "figures/fig01-mini/figure.json"
    about = json.loads(path.read_text())
    for panel in about["panels"]:
        panel |= {"results": [], "missing": ["not trained yet at this scale"]}
    path.write_text(json.dumps(about))
    words = " ".join(read(report([outputs])).words.split())
    assert "No panel of this figure has been measured yet." in words
    assert "The paper says" not in words
    assert "Here:" not in words


def test_warnings_that_are_nearly_equal_are_said_once(outputs):
    path = result_of(outputs) / "made_with.json"
    made = json.loads(path.read_text())
    made["warnings"] = [f"layer{i}.bn2 of the model is constant" for i in range(16)]
    path.write_text(json.dumps(made))
    words = read(report([outputs])).words
    assert words.count("is constant") == 1
    assert "(and 15 more like this: layer1.bn2, layer2.bn2, layer3.bn2 …)" in words


def test_a_panel_that_is_not_measured_says_so_and_a_measured_one_is_linked(outputs):
    shown = read(report([outputs]))
    words = " ".join(shown.words.split())
    assert (
        "1 of 2 panels is not measured yet. Continue with vitsee run figure=fig01 zoo=mini" in words
    )
    assert "ResNet cka not measured cka/resnet/scenes-00000000" in words
    ids = {a["id"] for tag, a in shown.tags if "id" in a}
    inner = {link[1:] for link in shown.links.values() if link.startswith("#")}
    assert inner
    assert inner <= ids


def test_a_panel_that_cannot_be_measured_says_why(outputs):
    path = outputs / "figures/fig01-mini/figure.json"
    about = json.loads(path.read_text())
    about["panels"][1] |= {"results": [], "missing": ["resnet: not trained yet at this scale"]}
    path.write_text(json.dumps(about))
    words = " ".join(read(report([outputs])).words.split())
    assert "ResNet cka resnet: not trained yet at this scale" in words
    assert "not measured yet. Continue with vitsee run figure=fig01" not in words


def test_figures_come_paper_by_paper_and_by_number(outputs):
    for name in ("extra_shuffle", "vit_fig03", "fig10", "figB1", "fig2", "claims"):
        folder = outputs / f"figures/{name}-mini"
        folder.mkdir()
        shutil.copy(outputs / "figures/fig01-mini/fig01.png", folder / f"{name}.png")
    names = [one.name for one in collect([outputs]).figures]
    assert names == ["fig01", "fig2", "fig10", "figB1", "vit_fig03", "claims", "extra_shuffle"]


def test_ids_are_given_once(outputs):
    ids = [a["id"] for _, a in read(report([outputs])).tags if "id" in a]
    assert len(ids) == len(set(ids))


def test_figures_alone_bring_the_results_behind_their_panels(outputs):
    found = collect([outputs / "figures"])
    assert [result.path.resolve() for result in found.results] == [result_of(outputs).resolve()]


def test_a_figure_that_is_not_drawn_says_so(outputs):
    (outputs / "figures/fig01-mini/fig01.png").unlink()
    assert "This figure has not been drawn yet." in read(report([outputs])).words


def test_panels_csv_stands_in_for_a_missing_figure_json(outputs):
    folder = outputs / "figures/fig01-mini"
    (folder / "figure.json").unlink()
    columns = "panel,title,analysis,model,other,dataset,images,result"
    row = f"a,My panel,cka,vit,,folder,40,{result_of(outputs).relative_to(outputs)}"
    (folder / "panels.csv").write_text(f"{columns}\n{row}\n")
    shown = read(report([outputs]))
    assert "My panel" in shown.words
    assert "1 of 1" not in shown.words


def test_the_same_files_give_the_same_page(outputs):
    assert report([outputs]).read_bytes() == report([outputs]).read_bytes()


def test_a_figure_of_models_that_were_chosen_names_them_and_no_zoo(outputs):
    figure = outputs / "figures/fig01-mini"
    record = json.loads((figure / "figure.json").read_text()) | {"zoo": None}
    (figure / "figure.json").write_text(json.dumps(record))
    figure.rename(figure.with_name("fig01-mine-vs-yours"))
    words = read(report([outputs])).words
    assert "Models: mine and yours" in words
    assert "not measured yet. Continue with the same command." in words
    assert "zoo" not in words


def test_two_runs_of_one_figure_name_their_folders_and_each_has_its_own_verdicts(outputs, tmp_path):
    other = tmp_path / "seed1"
    shutil.copytree(outputs, other)
    path = other / "figures/fig01-mini/claims.csv"
    table = pd.read_csv(path, dtype=str, keep_default_na=False)
    table.assign(holds="undecided").to_csv(path, index=False)
    contents = collect([outputs, other])
    twice = [one for one in contents.figures if one.name == "fig01"]
    assert {one.cast for one in twice} == {f"zoo mini, in {place}" for place in (outputs, other)}
    for one in twice:
        own = {claim["holds"] for claim in contents.claims if claim["cast"] == one.cast}
        assert (own == {"undecided"}) == (one.path == path.parent)


def test_equal_claims_are_counted_once_and_different_ones_are_both_shown(outputs):
    other = outputs / "figures/claims-mini"
    other.mkdir()
    table = pd.read_csv(outputs / "figures/fig01-mini/claims.csv", dtype=str, keep_default_na=False)
    table.loc[0, "value"] = "0.9"
    table.to_csv(other / "claims.csv", index=False)
    assert len(collect([outputs]).claims) == 5


def test_a_large_table_is_linked_beside_the_page_and_says_so(outputs, monkeypatch):
    monkeypatch.setattr(assets, "PAGE", assets.MAPS + 100)
    page = report([outputs], outputs.parent / "elsewhere" / "r.html")
    link = read(page).links["cka.csv"]
    assert (page.parent / link).resolve() == (result_of(outputs) / "cka.csv").resolve()
    assert "not in this page: ../outputs/cka/" in read(page).words


def test_the_map_has_the_table_s_values_bottom_row_first(tmp_path):
    pairs = [(a, b) for a in ("first", "NA", "last") for b in ("x", "y")]
    table = pd.DataFrame(pairs, columns=["model_layer", "other_layer"])
    table["cka"] = [0.1, 0.2, 0.3, np.nan, 0.5, 0.6]
    table["se"] = table["cka"] / 10
    table.to_csv(tmp_path / "cka.csv", index=False)
    labels = Labels(model="m", other="o", dataset="d", images=4)
    cells = show_results.heat_map(tmp_path / "cka.csv", show_results.MAPS["cka"], labels)
    assert cells["rows"] == ["first", "NA", "last"]
    assert cells["columns"] == ["x", "y"]
    values = np.frombuffer(base64.b64decode(cells["values"]), "<f4")
    np.testing.assert_array_equal(values, table["cka"].to_numpy("float32"))


def test_a_table_that_is_not_one_value_a_pair_is_no_map(tmp_path):
    table = pd.DataFrame(
        {"model_layer": list("aabb"), "other_layer": list("xyxx"), "cka": 1, "se": 0}
    )
    table.to_csv(tmp_path / "cka.csv", index=False)
    labels = Labels(model="m", other=None, dataset="d", images=4)
    assert show_results.heat_map(tmp_path / "cka.csv", show_results.MAPS["cka"], labels) is None


def test_a_map_of_146_layers_adds_less_than_300_kb(tmp_path):
    names = [f"blocks.{i}" for i in range(146)]
    rng = np.random.default_rng(0)
    pairs = [(a, b, *rng.random(2)) for a in names for b in names]
    pd.DataFrame(pairs, columns=["model_layer", "other_layer", "cka", "se"]).to_csv(
        tmp_path / "cka.csv", index=False
    )
    labels = Labels(model="m", other=None, dataset="d", images=4)
    cells = show_results.heat_map(tmp_path / "cka.csv", show_results.MAPS["cka"], labels)
    assert len(json.dumps(cells)) < 300_000


def test_damaged_files_and_unfinished_results_are_named_and_cost_no_other(outputs):
    begun = outputs / "cka/other/scenes-1"
    begun.mkdir(parents=True)
    (begun / "experiment.yaml").write_text("analysis: {name: cka}\n")
    broken = outputs / "cka/other/scenes-2"
    shutil.copytree(result_of_tiny(outputs), broken)
    (broken / "made_with.json").write_text('{"labels": ')
    (result_of_tiny(outputs) / "extra.png").write_bytes(b"no picture")
    (outputs / "figures/fig01-mini/figure.json").write_text('{"panels": [3]}')
    words = read(report([outputs])).words
    for name in (
        "scenes-1",
        "scenes-2/made_with.json is damaged: ",
        "extra.png: ",
        "figure.json is damaged: panels[0] is not a mapping",
    ):
        assert name in words.replace("\n", " ")
    assert "40 images of images" in words


def result_of_tiny(root: Path) -> Path:
    return next(path for path in root.glob("cka/test_vit/*") if (path / "cka.csv").exists())


def test_the_report_never_imports_torch(outputs):
    code = (
        "import sys; sys.modules['torch'] = sys.modules['timm'] = None;"
        f"sys.argv = ['vitsee', 'report', {str(outputs)!r}]; import vitsee.cli; vitsee.cli.main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(outputs / "report.html")


# ── what is asked wrongly ─────────────────────────────────────────────────────────────────────────


def test_a_folder_that_is_not_there_is_answered_with_the_nearest(outputs):
    with pytest.raises(
        UserError, match=r"no folder .*/ouputs; existing folders: .*Did you mean .*/outputs\?"
    ):
        report([outputs.parent / "ouputs"])


def test_without_results_it_says_what_there_is_and_what_makes_some(tmp_path):
    (tmp_path / "notes").mkdir()
    with pytest.raises(
        UserError, match=r"no results in .* \(it contains: notes\); `vitsee run` writes"
    ):
        report([tmp_path])


def test_unfinished_results_alone_are_said_to_be_unfinished(tmp_path):
    (tmp_path / "experiment.yaml").write_text("analysis: {name: cka}\n")
    with pytest.raises(UserError, match=r"no result in .* is finished .*--from .*experiment.yaml"):
        report([tmp_path])


def test_without_outputs_it_says_so(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        UserError, match="there is no folder outputs here; `vitsee run` creates one"
    ):
        report(*parsed([]))


def test_a_file_is_answered_with_its_folder(outputs):
    file = result_of(outputs) / "cka.csv"
    with pytest.raises(UserError, match=f"{file} is a file; vitsee report takes folders, such as"):
        report([file])


def test_an_unknown_option_is_answered_with_those_there_are():
    with pytest.raises(
        UserError, match=r"no option --ouput; it has: -o FILE.*Did you mean --output\?"
    ):
        parsed(["--ouput"])


def test_o_without_a_file_says_so():
    with pytest.raises(UserError, match="-o needs a file name"):
        parsed(["outputs", "-o"])


def test_a_page_that_cannot_be_written_says_what_to_do(outputs):
    (outputs.parent / "taken").write_text("")
    with pytest.raises(UserError, match=r"cannot write .*; choose another file with -o FILE"):
        report([outputs], outputs.parent / "taken" / "r.html")
    with pytest.raises(UserError, match=r"is a folder; give a file, such as .*report.html"):
        report([outputs], outputs)


def test_help_and_mistakes_on_the_command_line(tmp_path):
    def command(*words: str) -> subprocess.CompletedProcess[str]:
        called = [sys.executable, "-m", "vitsee", "report", *words]
        return subprocess.run(called, capture_output=True, text=True, cwd=tmp_path, check=False)

    assert command("--help").stdout.startswith("usage: vitsee report [PATH…] [-o FILE]")
    mistaken = command("nowhere")
    assert (mistaken.returncode, len(mistaken.stderr.splitlines())) == (2, 1)
    assert "there is no folder nowhere" in mistaken.stderr


# ── names ─────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def hostile(outputs: Path) -> Path:
    """The same with names of models, layers, classes, folders and claims that try to be HTML."""
    result = result_of(outputs)
    made = json.loads((result / "made_with.json").read_text())
    made["labels"]["model"] = f"model{HOSTILE}"
    made["passes"][0]["image_ids"] = [f"class{HOSTILE}/1.png", f"class{HOSTILE}/2.png"]
    made["warnings"] = [f"warning{HOSTILE}"]
    (result / "made_with.json").write_text(json.dumps(made))
    table = pd.read_csv(result / "cka.csv")
    for column in ("model_layer", "other_layer"):
        table[column] = f"layer{HOSTILE}" + table[column]
    table.to_csv(result / "cka.csv", index=False)
    folder = outputs / "figures/fig01-mini"
    about = json.loads((folder / "figure.json").read_text())
    for key in ("title", "shows", "caption", "source"):
        about[key] = key + HOSTILE
    renamed = result.with_name('"><img src=x onerror=alert(1)>')
    about["panels"][0]["results"] = [str(renamed.relative_to(outputs))]
    (folder / "figure.json").write_text(json.dumps(about))
    rows = pd.DataFrame(
        [CLAIM | dict.fromkeys(("claim", "statement", "statistic", "holds"), HOSTILE)]
    )
    rows.to_csv(folder / "claims.csv", index=False)
    result.rename(renamed)
    return outputs


def test_hostile_names_are_text(hostile):
    page = report([hostile])
    shown = read(page)
    assert not [
        a for tag, a in shown.tags if tag == "img" and not a["src"].startswith("data:image")
    ]
    assert not [a for _, a in shown.tags if any(name.startswith("on") for name in a)]
    assert "{{ 7*7 }} & <b>bold</b>" in shown.words
    for name in ("class", "warning", "title", "shows", "caption", "source"):
        assert name + HOSTILE.split("\n")[0] in shown.words


# ── in a browser ──────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Headless Chromium."""
    api = pytest.importorskip(
        "playwright.sync_api", reason="a browser's driver: pip install playwright"
    )
    names = ("chromium", "chromium-browser", "google-chrome")
    found = [path for path in map(shutil.which, names) if path]
    if not found:
        pytest.skip(f"a browser: none of {', '.join(names)} is installed")
    # Chromium has no sandbox where it runs as root, as it does in containers.
    arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
    with api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=found[0], args=arguments)
        yield started
        started.close()
        end_left_behind()


@pytest.fixture
def opened(browser):
    """Opens a page from disk; whatever it logs, or asks a network for, fails the test."""
    complaints, contexts = [], []

    def open_(path: Path, *, width: int = 1280, scheme: str = "light", script: bool = True) -> Any:
        size = {"width": width, "height": 800}
        contexts.append(
            browser.new_context(viewport=size, color_scheme=scheme, java_script_enabled=script)
        )
        page = contexts[-1].new_page()
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on(
            "request",
            lambda asked: asked.url.startswith(("file:", "data:")) or complaints.append(asked.url),
        )
        page.goto(path.resolve().as_uri())
        return page

    yield open_
    for context in contexts:
        context.close()
    assert complaints == []


@pytest.fixture
def lopsided(outputs: Path) -> tuple[Path, pd.DataFrame]:
    """The same with another value in every cell, and fewer layers upwards than across; and its table."""
    path = result_of(outputs) / "cka.csv"
    table = pd.read_csv(path)
    table = table[table["model_layer"].isin(table["model_layer"].unique()[:15])]
    table = table.assign(cka=np.random.default_rng(0).random(len(table)))
    table.to_csv(path, index=False)
    return outputs, table


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_figure_shows_and_nothing_is_wider_than_the_window(opened, outputs, scheme):
    page = opened(report([outputs]), width=390, scheme=scheme)
    for width in (390, 840, 1100, 1280):
        page.set_viewport_size({"width": width, "height": 800})
        assert page.locator(".plot").count() == 2
        loaded = "images => images.every(image => image.naturalWidth > 0)"
        assert page.locator("img").evaluate_all(loaded)
        assert page.locator(".map canvas").first.is_visible()
        assert page.locator("#figures img").is_visible()
        overflow = "[document.documentElement.scrollWidth, document.documentElement.clientWidth]"
        wide, window = page.evaluate(overflow)
        assert wide <= window == width, width
    paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (paper == "rgb(255, 255, 255)") == (scheme == "light")


def test_a_long_message_leaves_the_other_columns_their_width(opened, outputs):
    path = outputs / "figures/fig01-mini/figure.json"
    about = json.loads(path.read_text())
    about["panels"][1] |= {
        "results": [],
        "missing": ["no such model: " + "a_very_long_name/" * 40],
        "analysis": "attention_distance",
    }
    path.write_text(json.dumps(about))
    page = opened(report([outputs]))
    lines = """cells => cells.map(cell =>
        new Set([...cell.firstElementChild.getClientRects()].map(box => box.top)).size)"""
    heads = "heads => heads.every(head => head.scrollWidth <= head.clientWidth)"
    for width, medium in ((1000, "screen"), (1400, "screen"), (700, "print")):
        page.set_viewport_size({"width": width, "height": 800})
        page.emulate_media(media=medium)
        for row in page.locator(".panels tbody tr").all():
            assert row.locator("td").evaluate_all(lines)[:2] == [1, 1], width
        assert page.locator(".claims th").evaluate_all(heads), width


def test_on_paper_no_heading_is_the_last_line_of_a_page_or_broken(opened, outputs):
    page = opened(report([outputs]))
    page.emulate_media(media="print")
    for heading in page.locator("main h2, main h3, .sub, .question, .panels caption").all():
        style = heading.evaluate(
            "at => [getComputedStyle(at).breakAfter, getComputedStyle(at).breakInside]"
        )
        assert style == ["avoid", "avoid"]


def test_the_pointer_shows_the_layers_and_the_value_of_the_table(opened, lopsided):
    outputs, table = lopsided
    page = opened(report([outputs]))
    rows, columns = (list(table[name].unique()) for name in ("model_layer", "other_layer"))
    canvas = page.locator(".field canvas")
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    for row, column in ((12, 1), (0, 0), (3, len(columns) - 1)):
        page.mouse.move(
            box["x"] + box["width"] * (column + 0.5) / len(columns),
            box["y"] + box["height"] * (1 - (row + 0.5) / len(rows)),
        )
        at = (table["model_layer"] == rows[row]) & (table["other_layer"] == columns[column])
        told = page.locator("output").inner_text()
        assert f"CKA {table.loc[at, 'cka'].item():.4f} ±" in told
        assert f"↑ test_vit (random weights): {rows[row]} ({row})" in told
        assert f"→ test_vit (random weights): {columns[column]} ({column})" in told
    page.mouse.move(0, 0)
    assert page.locator("output").is_hidden()


def test_the_pointer_on_two_models_shows_all_their_layers(opened, tmp_path):
    from test_compare import compared, keep, related

    for i, name in enumerate("ab"):
        keep(tmp_path, name, related(i, layers=2 + i))
    found = compared(tmp_path)
    page = opened(report([found.path]))
    canvas = page.locator(".field canvas")
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    page.mouse.move(box["x"] + 0.75 * box["width"], box["y"] + 0.75 * box["height"])
    names = json.loads(page.locator(".map script").inner_text())["rows"]
    said = page.locator(".pair p").inner_text()
    assert said == f"CKA of layers: ↑ {names[0]}, → {names[1]}"
    assert f"CKA {found.atlas['value'][0]:.4f}" in page.locator("output").inner_text()
    drawn = page.locator(".pair canvas")
    sides = {"a": 2, "b": 3}
    size = drawn.evaluate("canvas => [canvas.width, canvas.height]")
    assert size == [sides[names[1]], sides[names[0]]]
    page.mouse.move(box["x"] + 0.25 * box["width"], box["y"] + 0.75 * box["height"])
    assert page.locator(".pair p").inner_text() == names[0]
    assert drawn.is_hidden()


def test_the_map_is_coloured_as_the_drawn_figure(opened, lopsided):
    import matplotlib

    outputs, table = lopsided
    page = opened(report([outputs]))
    read_pixel = "canvas => [...canvas.getContext('2d').getImageData(1, 0, 1, 1).data]"
    value = table["cka"].to_numpy().reshape(15, -1)[-1, 1]  # the top row is the last layer
    expected = matplotlib.colormaps["magma"](round(255 * value), bytes=True)
    assert page.locator(".field canvas").evaluate(read_pixel) == [int(part) for part in expected]


def test_the_keyboard_reaches_the_map_and_walks_on_it(opened, outputs):
    page = opened(report([outputs]))
    layers = list(pd.read_csv(result_of(outputs) / "cka.csv")["model_layer"].unique())
    on_map = "document.activeElement.matches('.field canvas')"
    for _ in range(100):
        page.keyboard.press("Tab")
        if page.evaluate(on_map):
            break
    assert page.evaluate(on_map)
    output = page.locator("output")
    assert f"{layers[0]} (0)" in output.inner_text()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowUp")
    page.keyboard.press("ArrowUp")
    assert f"↑ test_vit (random weights): {layers[2]} (2)" in output.inner_text()
    assert f"→ test_vit (random weights): {layers[1]} (1)" in output.inner_text()
    page.keyboard.press("End")
    page.keyboard.press("Shift+ArrowLeft")
    assert f"({len(layers) - 1})" in output.inner_text()
    assert f"→ test_vit (random weights): {layers[-11]}" in output.inner_text()
    page.keyboard.press("Escape")
    assert output.is_hidden()
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    assert page.locator("figure[data-figure=cka] img").is_visible()
    assert page.locator(".map").is_hidden()


def test_a_click_saves_the_table(opened, outputs):
    page = opened(report([outputs]))
    with page.expect_download() as saved:
        page.locator("a[download='cka.csv']").click()
    assert saved.value.suggested_filename == "cka.csv"
    assert Path(saved.value.path()).read_bytes() == (result_of(outputs) / "cka.csv").read_bytes()


def test_paper_and_a_browser_without_script_have_the_drawn_figure(opened, outputs):
    path = report([outputs])
    page = opened(path)
    page.emulate_media(media="print", color_scheme="dark")
    plain = opened(path, script=False)
    for each in (page, plain):
        assert each.locator("figure[data-figure=cka] img").is_visible()
        assert each.locator(".map").is_hidden()
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"


def test_hostile_names_are_shown_and_do_nothing(opened, hostile):
    page = opened(report([hostile]), width=390)
    assert page.evaluate("window.hacked") is None
    page.locator(".field canvas").focus()
    page.keyboard.press("ArrowUp")
    assert '<img src=x onerror="window.hacked=1">' in page.locator("output").inner_text()
    assert page.locator("output img").count() == 0
    assert page.evaluate("window.hacked") is None
    wide, window = page.evaluate(
        "[document.documentElement.scrollWidth, document.documentElement.clientWidth]"
    )
    assert wide <= window
