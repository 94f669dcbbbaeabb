"""Checks what the methods of an analysis return, so that a slip in one's own analysis is named where it is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from vitsee.errors import UserError

if TYPE_CHECKING:
    import pandas as pd

    from vitsee.analysis import Analysis
    from vitsee.sums import Sums

T = TypeVar("T")


def named(analysis: Analysis, method: str, returned: Any, kind: type[T]) -> dict[str, T]:
    """What this method returned. Raises UserError unless it is a dictionary from names to this kind."""
    what = None
    if not isinstance(returned, Mapping):
        what = "None" if returned is None else f"a {type(returned).__name__}"
    else:
        for name, value in returned.items():
            if not isinstance(name, str) or not isinstance(value, kind):
                what = f"{{{name!r}: {type(value).__name__}}}"
                break
    if what:
        raise UserError(
            f"analysis={analysis.name}: {type(analysis).__name__}.{method} returned {what}; "
            f"it must return a dictionary {{name: {kind.__name__}}}"
        )
    return returned


def tables(analysis: Analysis, sums: Sums) -> dict[str, pd.DataFrame]:
    """The tables of these sums. Raises UserError unless they are tables, one of them of the analysis's name."""
    import pandas as pd

    made = named(analysis, "tables", analysis.tables(sums), pd.DataFrame)
    if analysis.name not in made:
        raise UserError(
            f"analysis={analysis.name}: {type(analysis).__name__}.tables returned no table "
            f"{analysis.name!r}, only {', '.join(map(repr, made)) or 'an empty dictionary'}; "
            f"the main table has the analysis's name"
        )
    return made
