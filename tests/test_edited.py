"""Results that people edited, cut off or dropped files into: each is drawn right or refused in one line."""

from __future__ import annotations

import copy
import io
import itertools
import json
import os
import string
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from matplotlib.figure import Figure

import vitsee
from vitsee.analysis import REGISTERED
from vitsee.errors import UserError, printable
from vitsee.io.record import COMPOSED, FIGURE, MADE_WITH, misfit
from vitsee.io.tidy import Error, Table
from vitsee.models import cards
from vitsee.models.cards import Card
from vitsee.papers.composing import Drawn
from vitsee.papers.plot import plot
from vitsee.plotting.style import STYLE, PagePart
from vitsee.report import assets, page, show_results
from vitsee.report.collect import collect
from vitsee.report.write import report
from vitsee.results import replicates
from vitsee.results.drawing import draw_joined
from vitsee.results.folder import Results
from vitsee.results.reading import read

LABELS = {"model": "a", "other": "b", "dataset": "photos", "images": 8, "repeats": 1}
MADE = {
    "labels": LABELS | {"family": "f", "train_images": 9},
    "identity": "0123abcd",
    "models": {"model": {"timm": "vit", "layers": ["x"], "preprocessing": {"mean": "0"}}},
    "passes": [{"fingerprint": "f", "image_ids": ["1", "2"]}],
    "skipped_images": ["3"],
    "warnings": ["w"],
    "tolerance": {"asked": 0.1, "largest_se": 0.01, "minibatches": 3, "of": 4, "reached": True},
    "launches": [{"device": "cpu", "began": "2026-01-01", "seconds": 1.0}],
    "versions": {"torch": "2"},
    "git_commit": "c",
    "wall_seconds": 1.0,
    "images_per_second": 2.0,
    "peak_memory_mb": 3.0,
}
"""A made_with.json with all that is read of one."""
REAL = (float, Error)


def values_of(kind: Any) -> list[Any]:
    if kind is str:
        return ["x.0", "x.1"]
    return list(kind) if isinstance(kind, tuple) else [max(kind.least, 0), max(kind.least, 0) + 1]


def rows_of(table: Table) -> pd.DataFrame:
    """A small table that has what is declared, its grids three channels wide, as images are."""
    keys = {name: values_of(kind) for name, kind in table.columns.items() if kind not in REAL}
    if table.keys:
        keys |= {name: found[:1] for name, found in keys.items() if name not in table.keys}
    if "channel" in (table.keys or keys):
        keys["channel"] = [0, 1, 2]
    nested = [name for name in keys if name not in table.grid] + list(table.grid)
    rows = pd.DataFrame(list(itertools.product(*(keys[name] for name in nested))), columns=nested)
    draw = np.random.default_rng(0)
    for name, kind in table.columns.items():
        if kind in REAL:
            rows[name] = draw.random(len(rows)).round(6)
    return rows[list(table.columns)]


def result(folder: Path, analysis: str = "cka") -> Path:
    """A result folder of this analysis, with invented numbers."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "experiment.yaml").write_text(f"analysis: {{name: {analysis}}}\n")
    (folder / "made_with.json").write_text(json.dumps(MADE))
    for name, table in REGISTERED[analysis].columns.items():
        rows_of(table).to_csv(folder / f"{name}.csv", index=False)
    return folder


@pytest.fixture
def cka(tmp_path: Path) -> Path:
    return result(tmp_path / "outputs/cka/a-vs-b/photos-0123abcd")


def page_of(folder: Path) -> str:
    """The report of what is in a folder, without the places where its lines may break."""
    return report([folder]).read_text(encoding="utf-8").replace("<wbr>", "")


def refusal(folder: Path) -> str:
    """The one line in which it is not drawn."""
    with pytest.raises((UserError, OSError)) as caught:
        plot(folder)
    line = str(caught.value)
    assert len(printable(line).splitlines()) == 1
    return line


@pytest.fixture(params=sorted(REGISTERED))
def analysis(request: pytest.FixtureRequest) -> str:
    return request.param


# --- tables --------------------------------------------------------------------------------------


DRAWER = """
import sys
from pathlib import Path
from vitsee.results.drawing import draw
for line in sys.stdin:
    drawn = draw(Path(line[:-1]))
    assert "torch" not in sys.modules, line
    print(*(path.name for path in drawn), sep="/", flush=True)
"""
"""Draws the result folder that each line names."""


@pytest.fixture(scope="module")
def without_torch() -> Iterator[Callable[[Path], list[Path]]]:
    """Draws a result folder in a process that ends as soon as torch is imported."""
    paths = [str(Path(__file__).parents[1]), *filter(None, sys.path)]
    with subprocess.Popen(
        [sys.executable, "-c", DRAWER],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as drawer:

        def draw(folder: Path) -> list[Path]:
            drawer.stdin.write(f"{folder}\n")
            drawer.stdin.flush()
            names = drawer.stdout.readline().strip()
            assert names, "it is not drawn, or torch is imported"
            return [folder / name for name in names.split("/")]

        yield draw
        drawer.stdin.close()
        assert drawer.wait() == 0


def test_tables_are_drawn_without_torch_and_the_same_with_more_columns_and_in_another_order(
    analysis, without_torch, tmp_path
):
    assert REGISTERED[analysis].columns, "it does not say what its tables have"
    folder = result(tmp_path, analysis)
    before = {path.name: path.read_bytes() for path in without_torch(folder)}
    for name, table in tables(analysis):
        path = folder / f"{name}.csv"
        rows = pd.read_csv(path, dtype=str).assign(note="mine")
        if table.grid and not any(table.columns[key] is str for key in table.grid):
            apart = [n for n, k in table.columns.items() if k not in REAL and n not in table.grid]
            group = rows.groupby(apart, sort=False).ngroup() if apart else 0 * rows.index
            rows = rows[::-1].assign(group=group).sort_values("group", kind="stable")
        rows.to_csv(path, index=False)
    assert {path.name: path.read_bytes() for path in plot(folder)} == before


def tables(analysis: str) -> Iterator[tuple[str, Table]]:
    return iter(REGISTERED[analysis].columns.items())


def test_a_column_that_is_missing_is_named(analysis, tmp_path):
    folder = result(tmp_path, analysis)
    for name, table in tables(analysis):
        path = folder / f"{name}.csv"
        whole = pd.read_csv(path)
        for column in table.columns:
            whole.drop(columns=column).to_csv(path, index=False)
            assert f"{name}.csv is damaged: it has no column {column}; it has: " in refusal(folder)
        whole.to_csv(path, index=False)


def test_text_where_numbers_are_is_named_by_line_and_column(analysis, tmp_path):
    folder = result(tmp_path, analysis)
    for name, table in tables(analysis):
        path = folder / f"{name}.csv"
        whole = pd.read_csv(path, dtype=str)
        for column, kind in table.columns.items():
            if kind is not str:
                changed = whole.copy()
                changed.loc[1, column] = "n/a "
                changed.to_csv(path, index=False)
                assert f"line 3, column {column}: 'n/a " in refusal(folder)
        whole.to_csv(path, index=False)


def test_a_row_that_is_there_twice_is_named(analysis, tmp_path):
    folder = result(tmp_path, analysis)
    for name, _ in tables(analysis):
        path = folder / f"{name}.csv"
        whole = path.read_text()
        rows = whole.count("\n") - 1
        path.write_text(whole + whole.splitlines()[1] + "\n")
        assert f"{name}.csv is damaged: line {rows + 2} repeats an earlier line" in refusal(folder)
        path.write_text(whole)


def test_a_row_that_is_missing_of_a_grid_is_told(analysis, tmp_path):
    folder = result(tmp_path, analysis)
    for name, table in tables(analysis):
        if table.grid:
            path = folder / f"{name}.csv"
            whole = path.read_text()
            lines = whole.splitlines()
            path.write_text("\n".join([*lines[:2], *lines[3:]]))
            assert " are missing" in refusal(folder)
            path.write_text(whole)


@pytest.fixture
def laid_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures are laid out and their texts and images made, but no file is written of them."""

    def save(results: Results, figures: dict[str, Figure], **_: Any) -> list[Path]:
        for figure in figures.values():
            figure.draw_without_rendering()
        return [results.path / f"{name}.png" for name in figures]

    monkeypatch.setattr(Results, "save_figures", save)


@pytest.mark.parametrize(
    "rows",
    [
        pytest.param(slice(0, 0), id="in one row", marks=pytest.mark.sweep),
        pytest.param(slice(None), id="in all"),
    ],
)
def test_undefined_values_are_drawn_and_names_as_they_are_whatever_dollars_they_have(
    rows, analysis, laid_out, tmp_path
):
    assert STYLE["text.parse_math"] is False
    folder = result(tmp_path, analysis)
    for name, table in tables(analysis):
        changed = pd.read_csv(folder / f"{name}.csv")
        changed.loc[rows, [n for n, kind in table.columns.items() if kind in REAL]] = np.nan
        texts = [column for column, kind in table.columns.items() if kind is str]
        changed[texts] = changed[texts].replace({"x.0": NAMES[0], "x.1": NAMES[2]})
        changed.to_csv(folder / f"{name}.csv", index=False)
    labels = dict(zip(("model", "other", "dataset"), NAMES, strict=False))
    record = MADE | {"labels": LABELS | labels}
    (folder / "made_with.json").write_text(json.dumps(record))
    assert plot(folder)


def test_results_that_have_no_common_figure_say_so(tmp_path, caplog):
    caplog.set_level("INFO")
    names = ("attention_distance", "attention_distance", "fourier")
    folders = [result(tmp_path / str(i), name) for i, name in enumerate(names)]
    assert draw_joined(folders[:2]) == []
    assert "attention_distance has no figure of several results" in caplog.text
    assert draw_joined(folders[1:]) == []
    assert "there is no figure of attention_distance and fourier together" in caplog.text


HEAD = "model_layer,other_layer,cka,se\n"
EDITS = {
    "empty": (b"", "No columns to parse"),
    "its head alone": (HEAD.encode(), "it has no rows"),
    "semicolons": (HEAD.replace(",", ";").encode() + b"a;a;0,5;0\n", "semicolons or tabs, not by"),
    "UTF-16": (HEAD.encode("utf-16"), "it is not UTF-8 text"),
    "Latin-1": ((HEAD + "größe,b,1,0\n").encode("latin-1"), "it is not UTF-8 text"),
    "binary": (bytes(range(256)), "cka.csv is damaged: "),
    "zeros": (bytes(100), "cka.csv is damaged: "),
    "a cell too many": ((HEAD + "a,a,1,0,7\n").encode(), "cka.csv is damaged: "),
    "a cell too many further down": ((HEAD + "a,a,1,0\na,b,1,0,7\n").encode(), "line 3"),
    "an open quote": ((HEAD + '"a,a,1,0\n').encode(), "cka.csv is damaged: "),
    "a comma for the point": ((HEAD + 'a,a,"0,5",0\n').encode(), "column cka: '0,5' is not a numb"),
    "no head": (b"a,a,1,0\na,b,1,0\n", "it has no column model_layer; it has: a"),
    "a merge": (b"<<<<<<< HEAD\n" + HEAD.encode(), "more cells than its header"),
    "a web page": (b"<!DOCTYPE html>\n<html><p>a, b, c</p></html>", "cka.csv is damaged: "),
    "a standard error below 0": ((HEAD + "a,a,1,-1\n").encode(), "'-1' is not a standard error"),
    "an endless name": (
        (HEAD + "a" * 10**6 + ",a,1,0\n").encode(),
        "a name of at most 4096 characters",
    ),
    "truth values": ((HEAD + "a,a,True,0\n").encode(), "column cka: 'True' is not a number"),
    "a head of other case": (HEAD.upper().encode() + b"a,a,1,0\n", "no column model_layer"),
}


@pytest.mark.parametrize(("content", "words"), EDITS.values(), ids=EDITS)
def test_a_table_that_is_none_is_refused_in_one_line(content, words, cka):
    (cka / "cka.csv").write_bytes(content)
    line = refusal(cka)
    assert words in line
    assert line.endswith("repeat the same `vitsee run` to write it again")


@pytest.mark.parametrize("change", ["UTF-8 with a mark", "lines of Windows", "NaN", "a lost end"])
def test_what_spreadsheets_write_is_read(change, cka):
    path = cka / "cka.csv"
    text = path.read_text()
    content = {
        "UTF-8 with a mark": text.encode("utf-8-sig"),
        "lines of Windows": text.replace("\n", "\r\n").encode(),
        "NaN": text.replace("x.1,x.1,", "x.1,x.1,NaN ,NaN\n#").partition("#")[0].encode(),
        "a lost end": text.rstrip("\n").encode(),
    }[change]
    path.write_bytes(content)
    assert plot(cka)
    assert len(read(cka).tables["cka"]) == 4


STRAY = {
    "._cka.csv": b"\0\5\x16\7",
    ".DS_Store": b"\0\0\0\1Bud1",
    "cka.csv~": b"",
    ".~lock.cka.csv#": b"me",
    "notes.csv": b"",
    "cka (1).csv": b"a;b",
    ".cka.csv.swp": b"b0VIM",
}


def test_files_that_systems_and_people_leave_in_a_folder_change_nothing(cka):
    expected = read(cka).tables
    for name, content in STRAY.items():
        (cka / name).write_bytes(content)
    (cka / "folder.csv").mkdir()
    os.mkfifo(cka / "pipe.csv")
    os.mkfifo(cka / "pipe.png")
    assert list(read(cka).tables) == list(expected)
    pd.testing.assert_frame_equal(read(cka).tables["cka"], expected["cka"])
    assert plot(cka)
    page = page_of(cka.parents[2])
    assert "pipe" not in page
    assert "._cka.csv" not in page


@pytest.mark.parametrize("name", ["cka.csv", "made_with.json", "experiment.yaml"])
@pytest.mark.parametrize("kind", ["a pipe", "a folder", "a device", "a link to itself"])
def test_a_pipe_or_a_folder_in_place_of_a_file_is_refused_at_once(kind, name, cka):
    path = cka / name
    path.unlink()
    if kind == "a pipe":
        os.mkfifo(path)
    elif kind == "a folder":
        path.mkdir()
    else:
        path.symlink_to("/dev/zero" if kind == "a device" else path)
    assert str(cka) in refusal(cka)
    with pytest.raises(UserError, match=str(cka)):
        vitsee.load(cka)


def test_a_table_that_the_others_need_is_missed_by_name(tmp_path):
    folder = result(tmp_path, "attention_rollout")
    (folder / "attention_rollout_images.csv").unlink()
    assert "attention_rollout_images.csv" in refusal(folder)


# --- records -------------------------------------------------------------------------------------

RECORDS = {
    "empty": (b"", "Expecting value"),
    "cut off": (b'{"labels": ', "Expecting value"),
    "a list": (b"[1, 2]", "it is not a mapping of names to values"),
    "a number": (b"7", "it is not a mapping"),
    "null": (b"null", "it is not a mapping"),
    "binary": (bytes(range(256)), "damaged"),
    "deep": (b"[" * 100_000, "damaged"),
    "no labels": (b"{}", "labels is missing"),
    "labels of nothing": (b'{"labels": {}}', "labels.model is missing"),
    "labels in a list": (b'{"labels": ["a"]}', "labels is not a mapping"),
    "a text for a number": (
        b'{"labels": {"model": "a", "dataset": "d", "images": "8"}}',
        "labels.images is not a whole number",
    ),
    "a number without end": (
        b'{"labels": {"model": "a", "dataset": "d", "images": 1' + b"0" * 400 + b"}}",
        "labels.images is not a whole number",
    ),
}


@pytest.mark.parametrize(("content", "words"), RECORDS.values(), ids=RECORDS)
def test_a_made_with_that_is_none_is_refused_in_one_line(content, words, cka):
    (cka / "made_with.json").write_bytes(content)
    line = refusal(cka)
    assert "made_with.json is damaged: " in line
    assert words in line


def test_what_a_later_version_adds_is_passed_over(cka):
    more = MADE | {"news": 1, "labels": MADE["labels"] | {"colour": "red"}}
    (cka / "made_with.json").write_text(json.dumps(more))
    assert plot(cka)


WRONG = [None, True, 10**400, "text", [[]], {"a": {}}]


def changed(record: Any, by: Any) -> Iterator[Any]:
    """The record with each of its parts in turn replaced, and without it."""
    for key in record if isinstance(record, dict) else range(len(record)):
        other = copy.deepcopy(record)
        other[key] = by
        yield other
        if isinstance(record, dict):
            yield {k: v for k, v in record.items() if k != key}
        if isinstance(record[key], (dict, list)):
            for part in changed(record[key], by):
                other = copy.deepcopy(record)
                other[key] = part
                yield other


@pytest.mark.parametrize("wrong", WRONG, ids=lambda value: str(value)[:9])
def test_a_record_that_was_changed_is_shown_or_left_out_of_a_report(wrong, cka):
    """Whatever part of it, and whatever it was changed to; another result is shown all the same."""
    good = result(cka.parent / "photos-good")
    for record in changed(MADE, wrong):
        (cka / "made_with.json").write_text(json.dumps(record))
        found = collect([cka.parents[2]])
        damaged = [words for words in found.damaged if str(cka) in words]
        assert bool(damaged) == bool(misfit(record, MADE_WITH)) == (len(found.results) == 1)
        assert good in [each.path for each in found.results]
        for each in found.results:
            if each.path == cka:
                show_results.show_result(each, assets.PageFiles(cka, []), "here")
        page.overview(found)


def test_a_report_says_what_it_leaves_out_on_the_page_and_to_the_user(cka, caplog):
    good = result(cka.parent / "photos-good")
    (cka / "made_with.json").write_text("[]")
    (good / "cka.csv").write_text("")
    (good / "cka.png").write_bytes(b"\x89PNG\r\n\x1a\nand no more")
    page = page_of(cka.parents[2])
    assert str(good) in page
    for name in (cka / "made_with.json", good / "cka.csv", good / "cka.png"):
        assert str(name) in page
        assert f"left out: {name}" in caplog.text


EXPERIMENTS = {
    "empty": "",
    "a list": "[1]",
    "no analysis": "model: {name: a}",
    "an analysis of one word": "analysis: cka",
    "a number for a name": "analysis: {name: 3}",
    "an unknown one": "analysis: {name: ckaa}",
    "an option there is not": "analysis: {name: cka, colour: red}",
    "a value that cannot be": "analysis: {name: cka, tokens: 7}",
    "layers that are a number": "analysis: {name: cka, layers: 7}",
    "depth": "analysis: {name: cka, layers: " + "[" * 300 + "]" * 300 + "}",
    "tabs": "analysis:\n\t{name: cka}",
    "a merge": "<<<<<<< HEAD\nanalysis: {name: cka}",
}


@pytest.mark.parametrize("text", EXPERIMENTS.values(), ids=EXPERIMENTS)
def test_an_experiment_that_was_changed_is_refused_by_its_name(text, cka):
    (cka / "experiment.yaml").write_text(text)
    assert f"{cka}/experiment.yaml" in refusal(cka)


@pytest.mark.parametrize("text", EXPERIMENTS.values(), ids=EXPERIMENTS)
def test_a_report_shows_or_leaves_out_an_experiment_that_was_changed(text, cka):
    good = result(cka.parent / "photos-good")
    (cka / "experiment.yaml").write_text(text)
    found = collect([cka.parents[2]])
    assert good in [each.path for each in found.results]
    assert len(found.results) + len(found.damaged) == 2
    assert all(each.analysis for each in found.results)


def one_array() -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.zeros(3))
    return buffer.getvalue()


def archive(**arrays: Any) -> Any:
    return lambda path: np.savez(path, **arrays)


REPLICATES = {
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("hello"),
    "cut off": lambda path: path.write_bytes(path.read_bytes()[:-40]),
    "an array": lambda path: path.write_bytes(one_array()),
    "without groups": archive(again=1.0),
    "of too many groups": archive(groups=10**9, again=1.0),
    "of another table": archive(**{"groups": 2, "again": 1.0, "x/cka": np.zeros((2, 4))}),
    "of another length": archive(**{"groups": 2, "again": 1.0, "cka/cka": np.zeros((2, 5))}),
    "a pipe": lambda path: (path.unlink(), os.mkfifo(path)),
}


@pytest.mark.parametrize("change", REPLICATES.values(), ids=REPLICATES)
def test_replicates_that_were_changed_are_refused_in_one_line(change, cka):
    tables = read(cka).tables
    path = cka / replicates.NAME
    path.write_bytes(replicates.pack(tables, [tables, tables], 1.0))
    assert len(replicates.read(cka, tables).tables) == 2
    change(path)
    with pytest.raises(UserError, match=f"{path} is ") as caught:
        replicates.read(cka, tables)
    assert "allow_pickle" not in str(caught.value)


# --- composed figures ----------------------------------------------------------------------------


@pytest.fixture
def composed_figure(cka: Path) -> Path:
    folder = cka.parents[2] / "figures/fig01-mini"
    folder.mkdir(parents=True)
    panel = {"name": "p", "title": "T", "analysis": "cka", "figure": "cka", "missing": []}
    panel["results"] = [os.path.relpath(cka, folder)]
    record = {"name": "fig01", "zoo": "mini", "caption": "C. d", "rows": [["p"]], "panels": [panel]}
    record |= {"width": "column", "captioned": True, "abreast": 2}
    (folder / "figure.json").write_text(json.dumps(record))
    row = {"claim": "c", "figure": "fig01", "statement": "s", "statistic": "x (above is claimed)"}
    row |= {"value": 0.1, "low": 0.0, "high": 0.2, "threshold": 0.05, "holds": "undecided"}
    row |= {"untrained": 0.01, "why": ""}
    pd.DataFrame([row]).to_csv(folder / "claims.csv", index=False)
    return folder


def test_a_composed_figure_is_drawn(composed_figure):
    assert [path.name for path in plot(composed_figure)] == ["fig01.png", "claims.png"]


def empty(panel, folder, figure, place, read) -> Drawn:
    """A panel without axes."""
    return Drawn(figure.add_subfigure(place), slice(0, 1), 3.0, 2.0, PagePart(2.0))


@pytest.mark.parametrize("wrong", [7, "text", [[]], {}], ids=str)
def test_a_figure_json_that_was_changed_is_drawn_or_refused(wrong, composed_figure, monkeypatch):
    """By `plot`, and by `report`, whatever part of it was changed to whatever."""
    monkeypatch.setattr("vitsee.papers.composing.draw_panel", empty)
    monkeypatch.setattr("vitsee.results.folder.Results.save_figures", lambda *_, **__: [])
    path = composed_figure / "figure.json"
    for other in changed(json.loads(path.read_text()), wrong):
        path.write_text(json.dumps(other))
        if misfit(other, COMPOSED):
            assert "figure.json is damaged: " in refusal(composed_figure)
        else:
            with suppress(UserError):  # it may name a panel, a result or a figure that there is not
                plot(composed_figure)
        found = collect([composed_figure.parents[1]])
        assert bool(misfit(other, FIGURE)) == bool(found.damaged)


@pytest.mark.parametrize("name", ["../../up", "/tmp/up", "a/b", ".."])
def test_a_figure_of_a_stranger_is_written_nowhere_else(name, composed_figure):
    path = composed_figure / "figure.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"name": name}))
    before = sorted(composed_figure.parents[2].rglob("*"))
    assert "is not a file name" in refusal(composed_figure)
    assert sorted(composed_figure.parents[2].rglob("*")) == before


CLAIMS = {
    "no column": ("holds", "verdict", "it has no column holds"),
    "another verdict": ("undecided", "perhaps", "column holds: 'perhaps' is not one of: yes"),
    "text": ("0.05", "much", "column threshold: 'much' is not a number"),
}


@pytest.mark.parametrize(("this", "that", "words"), CLAIMS.values(), ids=CLAIMS)
def test_claims_that_were_changed_are_refused_in_one_line(this, that, words, composed_figure):
    path = composed_figure / "claims.csv"
    path.write_text(path.read_text().replace(this, that))
    assert words in refusal(composed_figure)
    assert report([composed_figure.parents[1]])


# --- names ---------------------------------------------------------------------------------------

NAMES = [
    r"$\frac{$",
    "$x$",
    r"a\$b$",
    "$",
    "a_b^c",
    r"$\alpha$",
    "{",
    "%",
    "&#38;",
    "50 $ and 60 $",
]


@pytest.mark.filterwarnings("ignore:Glyph")
def test_any_name_can_be_drawn(cka, laid_out):
    for name in (*NAMES, string.printable, "größe ﷽ 日本", "\ud800", "\x1b[31m", "a\nb", ""):
        (cka / "made_with.json").write_text(json.dumps({"labels": LABELS | {"model": name}}))
        assert plot(cka)


# --- model cards ---------------------------------------------------------------------------------

CARD = Card(
    **dict.fromkeys(("name", "architecture", "dataset", "stored_as"), "a"),
    **dict.fromkeys(("parameters", "classes", "test_images", "train_images", "images_seen"), 9),
    **dict.fromkeys(("flops_per_image", "training_flops", "epochs"), 1.5),
    **{"accuracy": 0.5, "pixel_probe": None, "started_from": None, "seed": 0},
    **{"recipe": {}, "model": {}},
)


def test_a_card_comes_back_as_it_was_written(tmp_path):
    (tmp_path / "a.md").write_text(CARD.markdown)
    assert cards.read(tmp_path / "a.md") == CARD


@pytest.mark.parametrize("wrong", [None, True, 10**400, [], "text"], ids=lambda x: str(x)[:9])
def test_a_card_that_was_changed_is_read_or_refused_in_one_line(wrong, tmp_path):
    """Whatever fact of it, and whatever it was changed to."""
    path = tmp_path / "a.md"
    for facts in changed(asdict(CARD), wrong):
        path.write_text(f"---\n{yaml.safe_dump(facts)}---\n")
        if reason := misfit(facts, cards.SHAPE):
            with pytest.raises(UserError, match=r"a\.md is not a model card") as caught:
                cards.read(path)
            assert str(caught.value).endswith(reason)
        else:
            assert cards.read(path)


def test_a_card_whose_accuracy_is_no_share_is_refused(tmp_path):
    for change in ({"accuracy": 1.5}, {"accuracy": -1.0}, {"test_images": 0}):
        (tmp_path / "a.md").write_text(replace(CARD, **change).markdown)
        with pytest.raises(UserError, match="its accuracy must be in"):
            cards.read(tmp_path / "a.md")


def test_a_card_that_is_a_pipe_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "a.md")
    with pytest.raises(UserError, match=r"a\.md is a pipe or a device"):
        cards.read(tmp_path / "a.md")


# --- pages ---------------------------------------------------------------------------------------


def test_a_page_takes_the_place_of_no_device(cka, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(
        UserError, match="pipe is a pipe or a device; give a file, such as -o report"
    ):
        report([cka], tmp_path / "pipe")
    assert not (tmp_path / "pipe").is_file()
    assert report([cka], tmp_path / "report.html").is_file()


def test_filters_that_are_no_colours_are_refused(tmp_path):
    folder = result(tmp_path, "embedding_filters")
    table = pd.read_csv(folder / "embedding_filters.csv")
    table[table["channel"] < 2].to_csv(folder / "embedding_filters.csv", index=False)
    assert "filters with 2 channels cannot be drawn" in refusal(folder)
