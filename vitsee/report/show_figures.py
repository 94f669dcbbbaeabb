"""Prepares composed figures and claims for a report's template."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vitsee.report.assets import PageFiles
from vitsee.report.collect import Composed
from vitsee.report.words import number, short

VERDICTS = {"yes": "✓", "no": "✗", "undecided": "?", "untrained too": "≈", "not testable": "–"}
IN_WORDS = {
    "yes": ("holds", "hold"),
    "no": ("does not hold", "do not hold"),
    "undecided": ("is undecided", "are undecided"),
    "untrained too": ("holds for untrained networks too", "hold for untrained networks too"),
    "not testable": ("is not testable", "are not testable"),
}
"""The words for one claim with this verdict, and for several."""


# ── figures and claims ────────────────────────────────────────────────────────────────────────────


def show_composed(
    one: Composed,
    files: PageFiles,
    anchor: str,
    claims: list[dict[str, Any]],
    anchors: Mapping[Path, str],
    titles: Mapping[str, str],
) -> dict[str, Any]:
    """Return the template's data for a composed figure, including panels without a result."""
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
    texts = {key: str(one.about.get(key) or "") for key in ("title", "source", "shows", "caption")}
    own = [c for c in claims if (c["figure"], c["cast"]) == (one.name, one.cast)]
    return texts | {
        "anchor": anchor,
        "name": one.name,
        "cast": one.cast,
        "again": f"vitsee run figure={one.name} zoo={one.zoo}" if one.zoo else "",
        "image": files.image(one.image) if one.image else None,
        "path": str(one.path),
        "panels": panels,
        "empty": bool(panels) and not any(panel["anchor"] for panel in panels),
        "waiting": sum(not (panel["anchor"] or panel["missing"]) for panel in panels),
        "tables": [files.table(path) for path in one.tables],
        "claims": own,
        "here": of_these_models([claim["verdict"] for claim in own]),
    }


def of_these_models(verdicts: list[str]) -> str:
    """Return the verdicts of these models on the figure's claims, as the end of a sentence."""
    if not verdicts:
        return "no claim is tested; look at the figure."
    count = Counter(verdicts)
    known = [*VERDICTS, *sorted(set(count) - {*VERDICTS})]
    told = [
        (count[each], IN_WORDS.get(each, (each, each))[count[each] > 1])
        for each in known
        if count[each]
    ]
    if len(verdicts) == 1:
        return f"the tested claim {told[0][1]}."
    return f"of {len(verdicts)} claims, {', '.join(f'{n} {words}' for n, words in told)}."


def show_claim(claim: Mapping[str, str]) -> dict[str, Any]:
    """Return one row of the scorecard: texts, numbers, and the positions for drawing the interval."""
    texts = {
        key: claim.get(key, "")
        for key in ("claim", "cast", "figure", "statement", "statistic", "why")
    }
    value, low, high, threshold = (
        number(claim.get(key, "")) for key in ("value", "low", "high", "threshold")
    )
    interval = f"{short(low)} to {short(high)}" if low is not None and high is not None else ""
    side = next((s for s in ("above", "below") if f"({s} is claimed)" in texts["statistic"]), "")
    verdict = claim.get("holds", "") or "not testable"
    return texts | {
        "verdict": verdict,
        "mark": VERDICTS.get(verdict, "·"),
        "kind": verdict.replace(" ", "-") if verdict in VERDICTS else "other",
        "value": short(value),
        "interval": interval,
        "threshold": claim.get("threshold", "") if threshold is None else short(threshold),
        "numbers": in_words(short(value), interval, f"{side} {short(threshold)}" if side else ""),
        "untrained": short(number(claim.get("untrained", ""))),
        "strip": strip(value, low, high, threshold),
    }


def in_words(value: str, interval: str, claimed: str) -> str:
    """Return a statistic with its interval and threshold; nothing if it is unknown."""
    if value == short(None):
        return ""
    return ", ".join(filter(None, (value, interval, claimed and f"{claimed} is claimed")))


def strip(*numbers: float | None) -> dict[str, float] | None:
    """Return the positions (0 to 100) of value, low, high and threshold on a line; None if any is unknown."""
    known = [each for each in numbers if each is not None]
    if len(known) < len(numbers) or min(known) == max(known):
        return None
    least, span = min(known), max(known) - min(known)
    places = (4 + 92 * (each - least) / span for each in known)
    return dict(zip(("value", "low", "high", "threshold"), places, strict=True))


def scorecards(claims: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the claims of each zoo or pair of models, with the count of each verdict."""
    cards = []
    for cast in dict.fromkeys(claim["cast"] for claim in claims):
        own = [claim for claim in claims if claim["cast"] == cast]
        count = Counter((claim["verdict"], claim["kind"], claim["mark"]) for claim in own)
        order = sorted(count, key=lambda each: [*VERDICTS, each[0]].index(each[0]))
        tally = [{"verdict": v, "kind": k, "mark": m, "count": count[v, k, m]} for v, k, m in order]
        cards.append({"cast": cast, "claims": own, "tally": tally})
    return cards
