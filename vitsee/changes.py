"""What has changed since a result was begun: weights, images or options under the same configuration."""

from __future__ import annotations

import json
import logging
from typing import Any

from vitsee.results import Results
from vitsee.study import Study

log = logging.getLogger(__name__)
RECORD = "state/made_of.json"


def tell(study: Study, results: Results) -> None:
    """Say if the same configuration meant something else before, and if images changed midway.

    Changed weights, options or lists of images make another identity, so another folder. Images that
    were edited in place and kept their size do not: the result would mix both, so there is a warning.
    """
    if not (results.path / RECORD).exists():
        results.save_json(RECORD, study.made_of)
        for earlier in _same_question(results):
            changed = _differences(earlier.load_json(RECORD), study.made_of)
            log.warning(
                "warning: %s was measured with other %s; this is a new result",
                *(earlier.path, " and ".join(changed)),
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
    asked = (results.path / "experiment.yaml").read_bytes()
    data = results.path.name.rpartition("-")[0]
    beside = sorted(path for path in results.path.parent.iterdir() if path != results.path)
    return [
        Results(path)
        for path in beside
        if path.name.rpartition("-")[0] == data
        and (path / RECORD).is_file()
        and (path / "experiment.yaml").is_file()
        and (path / "experiment.yaml").read_bytes() == asked
    ]


def _differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    plain = json.loads(json.dumps(now))  # tuples become lists, as in what was read
    return [key for key in plain if before.get(key) != plain[key]] or ["parts"]
