"""Expands patterns of timm's model names in sweeps: `-m model=timm 'model.timm=glob:vit_*augreg*'`."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from vitsee.errors import UserError, nearest
from vitsee.lazy import timm

log = logging.getLogger(__name__)
KEY = "model.timm=glob:"


def expanded(words: Sequence[str], *, sweep: bool) -> list[str]:
    """Return the words of a command line with `model.timm=glob:PATTERN` replaced by the names that match.

    Only models with published weights match, or with `model.pretrained=false` all of timm's. sweep: whether -m is
    given. Raises UserError without -m, and if nothing matches.
    """
    asked = [word for word in words if word.startswith(KEY)]
    if not asked:
        return list(words)
    random = "model.pretrained=false" in [word.lower() for word in words]
    found = []
    for word in words:
        if not word.startswith(KEY):
            found.append(word)
            continue
        pattern = word.removeprefix(KEY)
        if not sweep:
            raise UserError(f"{word} stands for several models; add -m: vitsee run -m '{word}' …")
        names = timm.list_models(pattern) if random else timm.list_pretrained(pattern)
        if not names:
            every = timm.list_models() if random else timm.list_pretrained()
            kind = "model" if random else "model with published weights"
            raise UserError(
                f"{word}: timm has no {kind} of that name{'' if '*' in pattern else ' (use *)'}."
                f"{nearest(pattern.replace('*', ''), every)}"
            )
        log.info("%s", f"{pattern} matches {len(names)} models")
        found.append(f"model.timm={','.join(names)}")
    return found
