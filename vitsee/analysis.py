"""The interface of an analysis: layers to watch, terms to add up, tables, figures.

    reduce  : one layer's output -> the small tensor that is kept    (in the forward hook, on the device)
    observe : one minibatch      -> named terms                      (on the device)
    tables  : sums               -> tidy tables                      (written as CSV)
    figures : tables             -> figures                          (written as PNG; sees only the CSVs)

The runner does the rest: it adds the terms, saves them, resumes, and merges shards. An analysis is a
dataclass whose fields are its options: every key and value of the command line is checked against them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
from hydra.core.config_store import ConfigStore
from omegaconf import MISSING

from vitsee.errors import UserError, unknown
from vitsee.io.tidy import Table
from vitsee.setting import Labels, Layer, Setting, View

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure
    from torch import Tensor, nn

    from vitsee.proof import Impossibility
    from vitsee.sums import Sums

READABLE = ("outputs", "attention", "attention and pooling", "residuals", "stream")
"""What `Analysis.reads` can name."""

__all__ = ["REGISTERED", "Analysis", "Labels", "Layer", "Setting", "View", "register"]


@dataclass(kw_only=True)
class Analysis:
    """Subclass it, decorate the subclass with `@register`, and write reduce, observe, tables and figures.

    Everything else is declared in class variables, or has a default. The first line of the docstring is
    the question that the analysis answers; `vitsee list analyses` shows it.
    """

    models: ClassVar[tuple[int, ...]] = (1,)
    """How many models it can measure in one run: (1,), (2,) or (1, 2)."""
    reads: ClassVar[tuple[str, str]] = ("outputs", "outputs")
    """What `reduce` receives from the model and from the other model: "outputs" of layers, "attention" of
    attention modules, "attention and pooling" (also the attention by which the head pools the tokens),
    "residuals" where a branch is added to a skip connection, or "stream": residuals, the stem, and units
    without a skip connection. Except for outputs, it needs `layers` of its own, such as "every"."""
    default_images: ClassVar[int] = 2560
    """Default number of images."""
    default_batch_size: ClassVar[int] = 256
    """Default number of images per minibatch."""
    equal_minibatches: ClassVar[bool] = False
    """Whether every minibatch must be full, as unbiased HSIC needs; a partial last one is left out."""
    gradients: ClassVar[bool] = False
    """Whether the forward pass is recorded, so that `observe` can differentiate with respect to `pixels`."""
    weights_only: ClassVar[bool] = False
    """Whether it reads only weights (`of_weights`), no images."""
    reads_cards: ClassVar[bool] = False
    """Whether its tables contain facts from model cards."""
    standard_errors: ClassVar[bool] = False
    """Whether its main table has a column `se`, so that `tolerance` can be used."""
    splits: ClassVar[tuple[str | None, ...]] = (None,)
    """The split of the data set for each pass over data; None is the split that the user chose."""
    ungrouped: ClassVar[tuple[str, ...]] = ()
    """Prefixes of the names of terms that are too large to be summed per group of minibatches. Leave-one-out
    tables contain them in full; `("",)`: write no such tables."""
    keeps: ClassVar[tuple[str, ...]] = ()
    """Prefixes of the names of terms that are kept per minibatch, in their own types, instead of summed."""
    columns: ClassVar[dict[str, Table]] = {}
    """The columns of each table, by table name; reading a CSV that lacks them is an error. If empty, every CSV
    in the folder is read as it is."""
    unread: ClassVar[dict[str, str]] = {}
    """Options that cannot change any number, and why; they are not part of the identity."""
    later: ClassVar[dict[str, Any]] = {}
    """Options added after results had been measured, each with the value that changes nothing. At that value
    an option is not part of the identity, so earlier results are still found."""
    version: ClassVar[int] = 1
    """Raise it when the numbers of the analysis change, so that old and new results never mix."""
    revised: ClassVar[dict[str, tuple[str, int]]] = {}
    """The same for one value of an option alone: {option: (value, version)}."""

    name: str = MISSING
    """The name that selects it (`analysis=<name>`), also that of its main table and of its result folders."""
    layers: Any = field(default_factory=lambda: ["blocks"])
    """Layers to watch: a preset, or glob patterns over module names (`vitsee list layers`)."""
    other_layers: Any = None
    """Layers of the second model; by default the same patterns as `layers`."""

    def __post_init__(self) -> None:
        if self.name != type(self).name:
            raise UserError(
                f"analysis.name={self.name}: the name of {type(self).name} cannot be changed; choose another "
                f"analysis with analysis=NAME"
            )
        self.layers = _patterns("layers", self.layers)
        if self.other_layers is not None:
            self.other_layers = _patterns("other_layers", self.other_layers)

    # Every analysis defines these (with `weights_only`: `of_weights` in place of the first two)

    def reduce(self, layer: Layer, output: Any) -> Tensor:
        """(N, *layer.shape) output -> the small tensor that is kept. The output must not be changed.

        The output is a tensor, or whatever `reads` names.
        """
        raise NotImplementedError

    def observe(self, view: View) -> dict[str, Tensor]:
        """The contribution of this minibatch to each sum."""
        raise NotImplementedError

    def tables(self, sums: Sums) -> dict[str, pd.DataFrame]:
        """Tidy tables, one observation per row, by file name without extension, from the last pass's sums."""
        raise NotImplementedError

    def figures(self, tables: dict[str, pd.DataFrame], labels: Labels) -> dict[str, Figure]:
        """Figures by file name without extension, from the tables as read back from the CSVs.

        By default those that `joined` makes of this result alone.
        """
        if not self.draws_several:
            raise NotImplementedError
        return self.joined([(tables, labels)])

    # Some analyses define these

    def check(self, layers: dict[str, list[Layer]]) -> None:
        """Raise UserError if these layers (by role) cannot be analysed; runs before any image is read."""

    def check_memory(self, memory: float) -> None:
        """Raise UserError if the sums do not fit into this many bytes; runs before any image is read."""

    def check_kept(self, minibatches: int, images: int) -> None:
        """Log the size of the terms in `keeps`, given the number of minibatches and of images in each.

        Raise UserError if they are too large; runs before any image is read.
        """

    def files(self, sums: Sums) -> dict[str, bytes]:
        """Contents too large for tables, by file name, from the last pass's sums; written next to the tables."""
        return {}

    def select(self, stage: int) -> Sequence[int] | None:
        """The images of a pass, in order, if the analysis chooses them; None draws them with the seed."""
        return None

    def of_weights(self, nets: dict[str, nn.Module]) -> dict[str, Tensor]:
        """Terms from the weights alone, if `weights_only`. nets: the models by role."""
        raise NotImplementedError

    def impossible(self, terms: dict[str, Tensor]) -> list[Impossibility]:
        """Statements that no input can make true of one minibatch's terms: (statement, roles, where).

        where: a boolean tensor on the device, with one axis of layers per role. NaN is allowed: tables can
        hold it, and `warnings` reports it.
        """
        return []

    def warnings(self, sums: Sums) -> list[str]:
        """Warnings about these sums, e.g. layers whose values are undefined.

        By default, a run warns of each column in a table with values that are NaN or infinite.
        """
        return []

    def joined(
        self, results: Sequence[tuple[dict[str, pd.DataFrame], Labels]]
    ) -> dict[str, Figure]:
        """Figures that show several results together, by file name without extension; empty if it has none."""
        return {}

    @property
    def selects_other(self) -> bool:
        """Whether `other_layers` is not its default."""
        default = _default(type(self), "other_layers")
        by_default = None if default is None else _patterns("other_layers", default)
        return self.other_layers != by_default

    @property
    def draws_several(self) -> bool:
        """Whether it has a figure of several results."""
        return type(self).joined is not Analysis.joined

    def caption(self, figure: str, tables: dict[str, pd.DataFrame]) -> str:
        """The meaning of bands, error bars and marks in the named figure, for captions; empty if it has none."""
        return ""

    # The runner uses these

    def on(self, setting: Setting) -> Self:
        """A copy bound to this setting, on which parts of the analysis depend."""
        bound = replace(self)
        vars(bound)["_setting"] = setting
        return bound

    @property
    def setting(self) -> Setting:
        """The models, layers and images that it measures. Raises RuntimeError before `on`."""
        if "_setting" not in vars(self):
            raise RuntimeError(f"{self.name} has no setting yet: use analysis.on(setting)")
        return vars(self)["_setting"]

    def patterns(self, role: str) -> list[str]:
        """The patterns that select layers of the model in this role (`model` or `other`)."""
        return self.other_layers if role == "other" and self.other_layers else self.layers

    def reads_of(self, role: str) -> str:
        """What `reduce` receives from the model in this role."""
        return self.reads[role == "other"]

    def error(self, sums: Sums) -> float:
        """Largest standard error in the main table; undefined ones do not count, as more images cannot change them."""
        se = self.tables(sums)[self.name]["se"].to_numpy()
        return float(se[np.isfinite(se)].max(initial=0))


def _patterns(option: str, value: Any) -> list[str]:
    patterns = [value] if isinstance(value, str) else value
    if (
        not isinstance(patterns, list)
        or not patterns
        or not all(isinstance(p, str) for p in patterns)
    ):
        raise UserError(
            f"analysis.{option} must be a preset or a list of patterns such as ['blocks.*'], "
            f"got {value!r}"
        )
    return patterns


def _check_declared(analysis: type[Analysis]) -> None:
    """Raise UserError if its class variables `models` or `reads` are not valid, or its layers have no such thing."""
    models, reads, called = analysis.models, analysis.reads, analysis.__qualname__
    if models not in ((1,), (2,), (1, 2)):
        raise UserError(f"{called}.models must be (1,), (2,) or (1, 2), got {models!r}")
    if not isinstance(reads, tuple) or len(reads) != 2:
        same = reads if isinstance(reads, str) else "outputs"
        raise UserError(
            f"{called}.reads must be a pair, for the model and the other model, such as ({same!r}, {same!r}), got "
            f"{reads!r}"
        )
    for each in reads:
        if each not in READABLE:
            raise unknown(f"{called}.reads has {each!r}", str(each), READABLE, "it can have")
    layers, other = (_default(analysis, name) for name in ("layers", "other_layers"))
    for option, read, default in (
        ("layers", reads[0], layers),
        ("other_layers", reads[1], other or layers),
    ):
        used = not analysis.weights_only and (option == "layers" or 2 in models)
        if used and read != "outputs" and default in ("blocks", ["blocks"]):
            raise UserError(
                f"{called} reads {read}, which its default layers, 'blocks', do not have: write {option}: Any = "
                f'"every" in the class'
            )


def _default(analysis: type[Analysis], option: str) -> Any:
    (one,) = (each for each in fields(analysis) if each.name == option)
    return one.default_factory() if callable(one.default_factory) else one.default


def _place(analysis: type) -> tuple[str, str]:
    return analysis.__module__, analysis.__qualname__


def _name(analysis: type[Analysis]) -> str:
    """The name that the class declares. Raises TypeError if it is not declared as an analysis."""
    if "__dataclass_fields__" not in vars(analysis):
        raise TypeError(
            f"{analysis.__qualname__} is not a dataclass: write @dataclass(kw_only=True) below @register"
        )
    name = getattr(analysis, "name", MISSING)
    if name == MISSING or not re.fullmatch(r"[A-Za-z][\w-]*", name):
        raise TypeError(
            f'{analysis.__qualname__} has no name of letters, digits, _ and -: name: str = "my_analysis"'
        )
    return name


REGISTERED: dict[str, type[Analysis]] = {}


def registered(name: str, path: Path) -> type[Analysis]:
    """The analysis with the name that a file gives. Raises UserError that names the file if there is none."""
    if name not in REGISTERED:
        raise unknown(
            f"{path}: there is no analysis {name} (if it is your own: --import its file)",
            *(name, REGISTERED, "available"),
        )
    return REGISTERED[name]


def register(analysis: type[Analysis]) -> type[Analysis]:
    """Make `analysis=<name>` selectable, with the class's fields as its options.

    A class that is defined again (a notebook cell that is run twice) replaces the earlier one. Raises TypeError
    if the class is not declared as an analysis, UserError if what it declares is not valid, and ValueError if two
    analyses share a name.
    """
    name, there = _name(analysis), REGISTERED.get(_name(analysis))
    _check_declared(analysis)
    if there is not None and _place(there) != _place(analysis):
        raise ValueError(
            f"two analyses are called {name!r}: {'.'.join(_place(there))} and {'.'.join(_place(analysis))}"
        )
    REGISTERED[name] = analysis
    ConfigStore.instance().store(group="analysis", name=name, node=analysis, provider="vitsee")
    return analysis
