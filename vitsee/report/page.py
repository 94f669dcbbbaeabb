"""Renders the page of a report. Does not import torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from vitsee.errors import UserError
from vitsee.io.files import visible
from vitsee.report.assets import Names, PageFiles, integrity, palette
from vitsee.report.collect import Contents
from vitsee.report.show_comparisons import show_comparison
from vitsee.report.show_figures import scorecards, show_claim, show_composed
from vitsee.report.show_results import by_analysis, label, show_result
from vitsee.report.words import first_line, uncramped
from vitsee.version import __version__


def page(contents: Contents, home: Path) -> str:
    """Return the HTML page. home: the page's folder; links are relative to it."""
    environment = Environment(
        loader=PackageLoader("vitsee.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["uncramped"] = uncramped
    assert environment.loader is not None
    style, script = (
        environment.loader.get_source(environment, f"report.{kind}")[0] for kind in ("css", "js")
    )
    files, names = embedded(contents, home), Names()
    anchors = {one.path.resolve(): names.anchor(one.path.parts[-3:]) for one in contents.results}
    results = [show_result(one, files, anchors[one.path.resolve()]) for one in contents.results]
    titles = {result["anchor"]: result["title"] for result in results}
    claims = [show_claim(claim) for claim in contents.claims]
    figures = [
        show_composed(one, files, names.anchor(one.path.parts[-1:]), claims, anchors, titles)
        for one in contents.figures
    ]
    comparisons = []
    for folder in contents.comparisons:
        try:
            comparisons.append(show_comparison(folder, files, names.anchor(folder.parts[-3:])))
        except (UserError, KeyError, ValueError) as error:
            contents.damaged.append(f"{folder}: {first_line(error)}")
    at = {(figure["name"], figure["cast"]): figure["anchor"] for figure in figures}
    for claim in claims:
        claim["anchor"] = at.get((claim["figure"], claim["cast"]))
    return environment.get_template("report.html").render(
        style=Markup(style),
        script=Markup(script),
        style_hash=integrity(style),
        script_hash=integrity(script),
        palette=palette(),
        scorecards=scorecards(claims),
        figures=figures,
        comparisons=comparisons,
        analyses=by_analysis(results),
        overview=overview(contents),
        unfinished=[str(path) for path in contents.unfinished],
        damaged=contents.damaged,
        version=__version__,
    )


def embedded(contents: Contents, home: Path) -> PageFiles:
    """Embed composed figures and comparisons, then the results' figures and then tables, each smallest first."""
    files = PageFiles(home, contents.damaged)
    files.embed_figures(one.image for one in contents.figures if one.image)
    files.embed_figures(path for each in contents.comparisons for path in visible(each, ".png"))
    drawn = [path for result in contents.results for path in result.images]
    files.embed_figures(sorted(drawn, key=lambda path: (path.stat().st_size, path)))
    tables = [path for each in contents.comparisons for path in visible(each, ".csv")]
    for one in contents.figures:
        tables += one.tables
    for result in contents.results:
        tables += [*result.tables, *result.records]
    files.embed_tables(tables)
    return files


def overview(contents: Contents) -> dict[str, Any]:
    """Return the page's summary: models, data sets, counts and dates."""
    labels = [label(result) for result in contents.results]
    named = [name for each in labels for name in (each.model, each.other) if name]
    began = [
        str(launch.get("began", ""))[:10]
        for result in contents.results
        for launch in result.made_with.get("launches") or []
    ]
    return {
        "models": list(dict.fromkeys(named)),
        "datasets": list(dict.fromkeys(each.dataset for each in labels if each.images)),
        "results": len(contents.results),
        "figures": len(contents.figures),
        "comparisons": len(contents.comparisons),
        "claims": len(contents.claims),
        "began": min(began, default=""),
        "ended": max(began, default=""),
    }
