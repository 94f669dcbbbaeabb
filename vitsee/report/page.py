"""The page of a report, put together from its parts. Imports no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from vitsee import __version__
from vitsee.report.assets import Files, Names, integrity, palette
from vitsee.report.collect import Found
from vitsee.report.show_figures import scorecards, show_claim, show_composed
from vitsee.report.show_results import by_analysis, label, show_result
from vitsee.report.words import uncramped


def page(found: Found, home: Path) -> str:
    """The HTML of everything found; home: the folder that it will lie in, for what it must link."""
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
    files, names = Files(home, found.damaged), Names()
    anchors = {one.path.resolve(): names.anchor(one.path.parts[-3:]) for one in found.results}
    results = [show_result(one, files, anchors[one.path.resolve()]) for one in found.results]
    titles = {result["anchor"]: result["title"] for result in results}
    claims = [show_claim(claim) for claim in found.claims]
    figures = [
        show_composed(one, files, names.anchor(one.path.parts[-1:]), claims, anchors, titles)
        for one in found.figures
    ]
    at = {(figure["name"], figure["zoo"]): figure["anchor"] for figure in figures}
    for claim in claims:
        claim["anchor"] = at.get((claim["figure"], claim["zoo"]))
    return environment.get_template("report.html").render(
        style=Markup(style),
        script=Markup(script),
        style_hash=integrity(style),
        script_hash=integrity(script),
        palette=palette(),
        scorecards=scorecards(claims),
        figures=figures,
        analyses=by_analysis(results),
        overview=overview(found),
        unfinished=[str(path) for path in found.unfinished],
        damaged=found.damaged,
        version=__version__,
    )


def overview(found: Found) -> dict[str, Any]:
    """What the page is about in a few lists: models, data sets, when it was measured."""
    labels = [label(result) for result in found.results]
    named = [name for each in labels for name in (each.model, each.other) if name]
    began = [
        str(launch.get("began", ""))[:10]
        for result in found.results
        for launch in result.made_with.get("launches") or []
    ]
    return {
        "models": list(dict.fromkeys(named)),
        "datasets": list(dict.fromkeys(each.dataset for each in labels if each.images)),
        "results": len(found.results),
        "figures": len(found.figures),
        "claims": len(found.claims),
        "began": min(began, default=""),
        "ended": max(began, default=""),
    }
