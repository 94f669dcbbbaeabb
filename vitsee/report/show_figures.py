"""Composed figures and claims as a report's page shows them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vitsee.report.assets import Files
from vitsee.report.collect import Composed
from vitsee.report.words import number, short

VERDICTS = {"holds": "✓", "does not hold": "✗", "undecided": "?", "not measured": "–"}


# ── figures and claims ────────────────────────────────────────────────────────────────────────────


def show_composed(
    one: Composed,
    files: Files,
    anchor: str,
    claims: list[dict[str, Any]],
    anchors: Mapping[Path, str],
    titles: Mapping[str, str],
) -> dict[str, Any]:
    """What the template needs of a composed figure; a panel without a result says so."""
    panels = []
    for panel in one.panels:
        at = anchors.get(panel.result.resolve()) if panel.result else None
        shown = titles[at] if at else None
        panels.append(
            {
                "title": panel.title,
                "analysis": panel.analysis,
                "anchor": at,
                "shown": shown,
                "named": panel.named,
                "begun": panel.result is not None,
                "missing": panel.missing,
            }
        )
    told = {key: str(one.about.get(key) or "") for key in ("title", "source", "shows", "caption")}
    tables = [one.path / name for name in ("panels.csv", "claims.csv")]
    return told | {
        "anchor": anchor,
        "name": one.name,
        "zoo": one.zoo,
        "image": files.image(one.image) if one.image else None,
        "path": str(one.path),
        "panels": panels,
        "waiting": sum(not (panel["anchor"] or panel["missing"]) for panel in panels),
        "tables": [files.table(path) for path in tables if path.is_file()],
        "claims": [c for c in claims if (c["figure"], c["zoo"]) == (one.name, one.zoo)],
    }


def show_claim(claim: Mapping[str, str]) -> dict[str, Any]:
    """One row of the scorecard: words, numbers, and the interval as a drawing."""
    told = {key: claim.get(key, "") for key in ("claim", "zoo", "figure", "statement", "statistic")}
    value, low, high, threshold = (
        number(claim.get(key, "")) for key in ("value", "low", "high", "threshold")
    )
    interval = f"{short(low)} to {short(high)}" if low is not None and high is not None else ""
    verdict = claim.get("holds", "") or "not measured"
    return told | {
        "verdict": verdict,
        "mark": VERDICTS.get(verdict, "·"),
        "kind": verdict.replace(" ", "-") if verdict in VERDICTS else "other",
        "value": short(value),
        "interval": interval,
        "threshold": claim.get("threshold", "") if threshold is None else short(threshold),
        "strip": strip(value, low, high, threshold),
    }


def strip(*numbers: float | None) -> dict[str, float] | None:
    """Where (0 to 100) value, low, high and threshold lie on a line that holds all of them."""
    known = [each for each in numbers if each is not None]
    if len(known) < len(numbers) or min(known) == max(known):
        return None
    least, span = min(known), max(known) - min(known)
    places = (4 + 92 * (each - least) / span for each in known)
    return dict(zip(("value", "low", "high", "threshold"), places, strict=True))


def scorecards(claims: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The claims of each zoo, with how many of each verdict there are."""
    cards = []
    for zoo in dict.fromkeys(claim["zoo"] for claim in claims):
        own = [claim for claim in claims if claim["zoo"] == zoo]
        count = Counter((claim["verdict"], claim["kind"], claim["mark"]) for claim in own)
        order = sorted(count, key=lambda each: [*VERDICTS, each[0]].index(each[0]))
        tally = [{"verdict": v, "kind": k, "mark": m, "count": count[v, k, m]} for v, k, m in order]
        cards.append({"zoo": zoo, "claims": own, "tally": tally})
    return cards
