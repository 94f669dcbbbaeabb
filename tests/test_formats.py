"""Figures as files: fonts and cells of PDFs, text of SVGs, and how they are asked for."""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd
import pytest

from vitsee.io.tidy import indices
from vitsee.plotting import heatmaps
from vitsee.results.folder import Results
from vitsee.runner import run


def save(folder: Path) -> None:
    """Write a heatmap of 7 rows and 5 columns in every format."""
    table = pd.DataFrame(indices((7, 5), "y", "x")).assign(value=lambda t: (t["x"] + t["y"]) / 10)
    words = dict.fromkeys(("xlabel", "ylabel", "colour_label"), "layer")
    figure = heatmaps.heatmap(
        table, x="x", y="y", value="value", limits=(0.0, 1.0), title="Seven by five", **words
    )
    Results(folder).save_figures({"map": figure}, formats=("png", "pdf", "svg"))


@pytest.fixture(scope="module")
def heatmap(tmp_path_factory) -> Path:
    """A folder with the heatmap."""
    folder = tmp_path_factory.mktemp("formats")
    save(folder)
    return folder


def test_fonts_of_a_pdf_are_truetype(heatmap):
    pdf = (heatmap / "map.pdf").read_bytes()
    assert b"/Type3" not in pdf
    assert b"/FontFile2" in pdf


def test_the_cells_of_a_heatmap_in_a_pdf_are_its_own(heatmap):
    pdf = (heatmap / "map.pdf").read_bytes()
    sizes = {
        tuple(int(n) for n in re.findall(rb"/(?:Height|Width) (\d+)", image))
        for image in re.findall(rb"<<[^>]*/Subtype /Image[^>]*>>", pdf)
    }
    assert (5, 7) in sizes  # width and height


def test_text_in_an_svg_is_text(heatmap):
    svg = (heatmap / "map.svg").read_text()
    assert re.search(r"<text[^>]*>\s*Seven by five\s*</text>", svg)


def test_a_figure_is_the_same_to_the_byte_when_it_is_written_again(heatmap, tmp_path):
    save(tmp_path)
    for path in heatmap.glob("map.*"):
        assert (tmp_path / path.name).read_bytes() == path.read_bytes()


def test_a_run_and_a_redraw_write_the_formats_that_are_asked_for(tiny, images, command):
    written = run(tiny("analysis=position_similarity", "run.pdf=true"))
    endings = sorted(path.suffix for path in written.files)
    assert endings == [".csv", ".pdf", ".png"]
    code, out, _ = command("plot", "--svg", str(written.folder))
    assert code == 0
    assert [Path(line).suffix for line in out.split()] == [".png", ".svg"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--svgs", "x"], "vitsee plot has no option --svgs; it has: --pdf, --svg. Did you mean svg?"),
        (["--pdf"], "vitsee plot --pdf needs a result folder: outputs/cka/vit_mini/*"),
    ],
)  # fmt: skip
def test_what_cannot_be_drawn_in_a_format_is_said(words, message, command):
    code, _, err = command("plot", *words)
    assert code == 2
    assert message in err


def test_a_misspelt_path_among_several_is_refused_before_anything_is_drawn(tiny, command):
    written = run(tiny("analysis=position_similarity"))
    folder, picture = written.folder, written.files[-1]
    picture.unlink()
    code, out, err = command("plot", str(folder), f"{folder}9")
    assert (code, out) == (2, "")
    assert f"{folder}9 does not exist. Did you mean {folder.name}?" in err
    assert not picture.exists()
    assert command("plot", str(folder))[0] == 0
    assert picture.exists()
