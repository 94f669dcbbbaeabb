"""Detects changes to weights, images or options since a result was started."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from vitsee.errors import UserError
from vitsee.io.files import content
from vitsee.results.folder import Results
from vitsee.study import Study

log = logging.getLogger(__name__)
RECORD = "state/made_of.json"
WORDS = {
    "analysis": "the analysis (its code or options)",
    "architecture": "the architecture",
    "cards": "the model cards",
    "images": "the images",
    "layers": "the layers",
    "plan": "the minibatches",
    "precision": "the precision",
    "preprocessing": "the preprocessing",
    "tolerance": "the tolerance",
    "weights": "the weights",
}
"""What a part of the record is called in messages."""


def refuse_foreign(study: Study, results: Results) -> None:
    """Raise UserError if the folder contains a different experiment, e.g. because it was moved."""
    record = _record(results)
    changed = _differences(record, study.made_of) if record else []
    if changed:
        raise UserError(
            f"{results.path} contains a different experiment, which differs in {_and(changed)}; move it away and "
            f"repeat the same command"
        )


def tell(study: Study, results: Results) -> None:
    """Warn if the same configuration gave a different result before, or if images changed during this one.

    Changed weights, options or image lists give a new identity, and so a new folder. Images that were edited
    in place without changing size may not, and the result would mix old and new.
    """
    if not _record(results):
        results.save_json(RECORD, study.made_of)
        for earlier in _same_question(results)[-1:]:
            changed = _differences(_record(earlier), study.made_of)
            log.warning(
                "warning: since %s was measured, there was a change in %s; this is a new result",
                *(earlier.path, _and(changed)),
            )
        return
    started = (results.path / RECORD).stat().st_mtime
    newer = {name for each in study.passes for name in each.images.changed_since(started)}
    if newer:
        first = min(newer)
        which = f"{first} is newer than this result: if its"
        if len(newer) > 1:
            which = f"{len(newer)} images are newer than this result ({first} …): if their"
        log.warning(
            "warning: %s content has changed, the result mixes old and new images: remove %s and measure again",
            *(which, results.path),
        )


def tell_if_not_repeated(repeated: Path, result: Path) -> None:
    """Warn if repeating the experiment of a result gave a different result, and say what has changed since."""
    before, now = (_record(Results(path)) for path in (repeated, result))
    if before and (changed := _differences(before, now)):
        log.warning(
            "warning: this is not the result in %s: since then, there was a change in %s; the new one is in %s",
            *(repeated, _and(changed), result),
        )


def _and(changed: list[str]) -> str:
    return " and ".join(WORDS[key] for key in changed) or "what it depends on"


def _same_question(results: Results) -> list[Results]:
    """Return neighbouring results with the same configuration but a different identity, the latest last."""
    asked = _configuration(results.path)
    data = results.path.name.rpartition("-")[0]
    same = [
        path
        for path in results.path.parent.iterdir()
        if path != results.path
        and path.name.rpartition("-")[0] == data
        and _configuration(path) == asked
        and _record(Results(path))
    ]
    return [
        Results(path) for path in sorted(same, key=lambda path: (path / RECORD).stat().st_mtime)
    ]


def _configuration(folder: Path) -> bytes | None:
    """Return the content of the folder's experiment.yaml; None if it cannot be read."""
    try:
        return content(folder / "experiment.yaml")
    except (OSError, UserError):
        return None


def _differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    plain = json.loads(json.dumps(now))  # tuples become lists, as in the stored record
    return [key for key in plain if before.get(key) != plain[key]]


def _record(results: Results) -> dict[str, Any]:
    """Return the record of what a result depends on; empty if it is missing or unreadable."""
    try:
        return results.load_json(RECORD)
    except (OSError, UserError):
        return {}
