"""What has changed since a result was begun: weights, images or options under the same configuration."""

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


def refuse_foreign(study: Study, results: Results) -> None:
    """Raise UserError if the folder holds another experiment: somebody moved it there."""
    record = _record(results)
    changed = _differences(record, study.made_of) if record else []
    if changed:
        raise UserError(
            f"{results.path} holds another experiment, with other {' and '.join(changed)}; move it away and "
            f"give the same command again"
        )


def tell(study: Study, results: Results) -> None:
    """Say if the same configuration meant something else before, and if images changed midway.

    Changed weights, options or lists of images make another identity, so another folder. Images that
    were edited in place and kept their size may not: the result would mix both, so there is a warning.
    """
    if not _record(results):
        results.save_json(RECORD, study.made_of)
        for earlier in _same_question(results):
            changed = _differences(_record(earlier), study.made_of)
            log.warning(
                "warning: %s was measured with other %s; this is a new result",
                *(earlier.path, " and ".join(changed) or "parts"),
            )
        return
    begun = (results.path / RECORD).stat().st_mtime
    newer = {name for each in study.passes for name in each.images.changed_since(begun)}
    if newer:
        first = min(newer)
        found = f"{first} is newer than this result: if its"
        if len(newer) > 1:
            found = f"{len(newer)} images are newer than this result ({first} …): if their"
        log.warning(
            "warning: %s content changed, remove %s and measure anew, or the result mixes old and new",
            *(found, results.path),
        )


def _same_question(results: Results) -> list[Results]:
    """Results beside this one, of the same configuration and nevertheless of another identity."""
    asked = _told(results.path)
    data = results.path.name.rpartition("-")[0]
    beside = sorted(path for path in results.path.parent.iterdir() if path != results.path)
    return [
        Results(path)
        for path in beside
        if path.name.rpartition("-")[0] == data and _told(path) == asked and _record(Results(path))
    ]


def _told(folder: Path) -> bytes | None:
    """What its experiment.yaml says; None if that cannot be read."""
    try:
        return content(folder / "experiment.yaml")
    except (OSError, UserError):
        return None


def _differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    plain = json.loads(json.dumps(now))  # tuples become lists, as in what was read
    return [key for key in plain if before.get(key) != plain[key]]


def _record(results: Results) -> dict[str, Any]:
    """What a result is made of; empty if nothing, or nothing legible, says so."""
    try:
        return results.load_json(RECORD)
    except (OSError, UserError):
        return {}
