"""Makes an analysis and calls its methods, so that mistakes in a custom analysis are reported where they occur."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeVar, cast

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from vitsee.errors import UserError
from vitsee.lazy import torch
from vitsee.plugins import where

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor

    from vitsee.analysis import Analysis
    from vitsee.sums import Sums

T = TypeVar("T")


def of(analysis: Analysis, method: str, *given: Any) -> Any:
    """What this method returns. If it fails in a custom analysis, raises UserError with the file and line.

    Errors of vitsee's own analyses are bugs and are raised as they are, as are UserError and a lack of memory.
    """
    kind = type(analysis)
    try:
        return getattr(analysis, method)(*given)
    except Exception as error:
        if _ours(kind) or isinstance(error, (UserError, torch.OutOfMemoryError)):
            raise
        if _not_defined(kind, method):
            raise UserError(
                f"analysis={analysis.name}: {kind.__name__} has no method {method}; define it"
            ) from error
        raise _failed(kind, method, error) from error


def made(options: DictConfig) -> Analysis:
    """The analysis with these options. If its `__post_init__` fails, as `of`."""
    kind = OmegaConf.get_type(options)
    try:
        analysis = OmegaConf.to_object(options)
    except Exception as error:
        if kind is None or _ours(kind) or isinstance(error, (UserError, OmegaConfBaseException)):
            raise
        raise _failed(kind, "__post_init__", error) from error
    return cast("Analysis", analysis)


def _ours(kind: type) -> bool:
    return kind.__module__.split(".")[0] == "vitsee"


def _not_defined(kind: type, method: str) -> bool:
    """Whether the class leaves this method as `Analysis` has it."""
    return bool(getattr(kind, method).__module__ == "vitsee.analysis")


def _failed(kind: type, method: str, error: Exception) -> UserError:
    return UserError(
        f"analysis={getattr(kind, 'name', kind.__name__)}: its method {method} failed: {where(error)}; "
        f"VITSEE_TRACEBACK=1 prints the traceback"
    )


def reduced(analysis: Analysis, outputs: dict[str, Any]) -> dict[str, Tensor]:
    """What `reduce` returned for each layer. Raises UserError unless all are tensors."""
    for layer, made in outputs.items():
        if not isinstance(made, torch.Tensor):
            raise UserError(
                f"analysis={analysis.name}: {type(analysis).__name__}.reduce returned {_a(made)} for layer "
                f"{layer}; it must return a Tensor"
            )
    return outputs


def _a(value: object) -> str:
    return "None" if value is None else f"a {type(value).__name__}"


def named(analysis: Analysis, method: str, kind: type[T], *given: Any) -> dict[str, T]:
    """What this method returns. Raises UserError unless it is a dictionary from names to objects of this kind."""
    returned, what = of(analysis, method, *given), None
    if not isinstance(returned, Mapping):
        what = _a(returned)
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
    """The tables of these sums. Raises UserError unless all are tables, one of them named after the analysis."""
    import pandas as pd

    made = named(analysis, "tables", pd.DataFrame, sums)
    if analysis.name not in made:
        raise UserError(
            f"analysis={analysis.name}: {type(analysis).__name__}.tables returned no table "
            f"{analysis.name!r}, only {', '.join(map(repr, made)) or 'an empty dictionary'}; "
            f"the main table has the analysis's name"
        )
    return made


def warnings(analysis: Analysis, sums: Sums, tables: dict[str, pd.DataFrame]) -> list[str]:
    """What the analysis warns of; if it does not define `warnings`, the columns with values that are not finite."""
    if _not_defined(type(analysis), "warnings"):
        return not_finite(tables)
    said: list[str] = of(analysis, "warnings", sums)
    return said


def not_finite(tables: dict[str, pd.DataFrame]) -> list[str]:
    """A warning for each column with values that are not finite.

    Standard errors need not be: with a single minibatch they are NaN.
    """
    import numpy as np

    warnings = []
    for name, table in tables.items():
        for column, values in table.select_dtypes("number").items():
            count = int((values.isna() | values.isin([np.inf, -np.inf])).sum())
            if count and not f"_{column}".endswith("_se"):
                warnings.append(
                    f"{name}.csv: {count} of {len(table)} values of {column} are NaN or infinite"
                )
    return warnings
