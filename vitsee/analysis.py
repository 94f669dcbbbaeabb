"""What every analysis is: layers to watch, terms to add up, tables, figures.

    reduce  : one layer's output -> the small tensor that is kept    (in the forward hook, on the device)
    observe : one minibatch      -> named terms                      (on the device)
    tables  : sums               -> tidy tables                      (written as CSV)
    figures : tables             -> figures                          (written as PNG; sees only the CSVs)

The runner does the rest: it adds the terms, saves them, resumes, and merges shards. An analysis is a
dataclass, and its fields are its options: every key and value of conf/analysis/<name>.yaml and of
the command line is checked against them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING

from vitsee.errors import UserError, printable
from vitsee.io.tidy import Table

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure
    from torch import Tensor, nn

    from vitsee.data.images import Images
    from vitsee.models.cards import Card
    from vitsee.proof import Impossibility
    from vitsee.sums import Sums


@dataclass(frozen=True)
class Layer:
    """One watched layer, as a dry run of the model found it.

    shape: of its output for one image, e.g. (197, 768) or (64, 112, 112); of an attention module
        (heads, tokens, features of a head).
    prefix: how many leading tokens are class, distillation or register tokens; None if the output is
        not a sequence of the model's tokens.
    grid: rows and columns of its spatial positions (the tokens after the prefix in row-major order, or
        two axes of a map); None if it has none, or if it is not known which axes they are.
    pitch: (rows, columns), how many pixels of the model's input one step on the grid is; None without one.
    depth: share of the model's blocks that have run, its own included, when it has; None if the model's
        blocks are not known.
    channels_last: whether a map is rows x columns x channels; else it is channels x rows x columns.
    images: whether the first axis of the whole output is the images; else it is windows of images, say.
    """

    name: str
    shape: tuple[int, ...]
    prefix: int | None
    class_token: bool = False
    grid: tuple[int, int] | None = None
    pitch: tuple[float, float] | None = None
    depth: float | None = None
    channels_last: bool = False
    images: bool = True

    @property
    def is_map(self) -> bool:
        """Is the output a map, so channels at each place of the grid?"""
        return self.prefix is None and self.grid is not None

    @property
    def channels(self) -> int:
        """How many channels a map has."""
        return self.shape[-1] if self.channels_last else self.shape[0]

    def channels_first(self, output: Tensor) -> Tensor:
        """The layer's maps as (N, channels, rows, columns), not copied."""
        return output.permute(0, 3, 1, 2) if self.channels_last else output


@dataclass(frozen=True)
class View:
    """One minibatch as an analysis sees it: what `reduce` kept of each layer, in the order the layers ran.

    images: how many images the minibatch has. labels: (N,) int64. pixels: by role of the model, the
    (N, 3, H, W) input that it saw, and scaling: the mean and standard deviation of each channel that made
    it of colours. positions: where the images stand in the plan, and planned: how many there are in all.
    stage: the number of the pass over the data. fresh: the share of the images that no earlier minibatch
    of the plan has; it is below 1 only where images are drawn again (`repeats`).
    """

    images: int
    labels: Tensor
    model: dict[str, Tensor]
    other: dict[str, Tensor] | None = None
    pixels: dict[str, Tensor] = field(default_factory=dict)
    scaling: dict[str, tuple[Sequence[float], Sequence[float]]] = field(default_factory=dict)
    positions: Sequence[int] = ()
    planned: int = 0
    stage: int = 0
    fresh: float = 1.0

    def colours(self, role: str = "model") -> Tensor:
        """The images as the model of this role saw them, (N, 3, H, W) colours from 0 to 1."""
        pixels = self.pixels[role]
        mean, deviation = (pixels.new_tensor(list(of)).view(-1, 1, 1) for of in self.scaling[role])
        return pixels * deviation + mean

    def rows(self, values: Tensor) -> Tensor:
        """Per-image values, (N, ...), as their rows of an array of zeros over all images of the plan."""
        import torch

        every = torch.zeros(
            self.planned, *values.shape[1:], dtype=values.dtype, device=values.device
        )
        every[torch.tensor(self.positions, device=values.device)] = values
        return every


@dataclass(frozen=True)
class Labels:
    """How a figure calls what was measured.

    family, train_images: of the model's card, if it has one; models that differ in their training alone
    are of one family.
    """

    model: str
    other: str | None
    dataset: str
    images: int
    repeats: int = 1
    family: str | None = None
    train_images: int | None = None

    def __post_init__(self) -> None:
        for name in ("model", "other", "dataset"):  # no font has what cannot be printed
            if value := getattr(self, name):
                object.__setattr__(self, name, printable(value))

    @property
    def data(self) -> str:
        """The images in words."""
        if not self.images:
            return "weights alone"
        times = f", drawn {self.repeats} times" if self.repeats > 1 else ""
        return f"{self.images:,} images of {self.dataset}{times}"


@dataclass(kw_only=True)
class Analysis:
    """Subclass, decorate with `@register`, add conf/analysis/<name>.yaml."""

    default_images: ClassVar[int] = 2560
    """How many images are used when the user does not say."""
    default_batch_size: ClassVar[int] = 256
    """Images in a minibatch when the user does not say."""
    equal_minibatches: ClassVar[bool] = False
    """Whether every minibatch must be full, as unbiased HSIC wants it; a last partial one is left out."""
    gradients: ClassVar[bool] = False
    """Whether the forward pass is recorded, so that `observe` can differentiate with respect to `pixels`."""
    weights_only: ClassVar[bool] = False
    """Whether it reads weights (`read`) and no images."""
    reads_cards: ClassVar[bool] = False
    """Whether tables have facts of model cards (`cards`)."""
    splits: ClassVar[tuple[str | None, ...]] = (None,)
    """For each pass over data the split of the data set; None is the one that was asked for."""
    ungrouped: ClassVar[tuple[str, ...]] = ()
    """Terms that are too large to be summed for each group of minibatches: how their names begin. Tables
    without a group then still have them whole; `("",)`: there are no such tables."""
    columns: ClassVar[dict[str, Table]] = {}
    """What its tables have, by name; a CSV that has not is refused when it is read. Where nothing is said, every
    CSV of the folder is read as it is."""
    version: ClassVar[int] = 1
    """Raised when the numbers of the analysis change, so that old and new results never mix."""

    name: str = MISSING
    """How it is selected (`analysis=<name>`) and what its result folders are called."""
    layers: Any = field(default_factory=lambda: ["blocks"])
    """Layers to watch: a preset, or glob patterns over module names (`vitsee list layers`)."""
    other_layers: Any = None
    """Layers of the second model; by default as `layers`."""

    def __post_init__(self) -> None:
        if self.name != type(self).name:
            raise UserError(
                f"analysis.name={self.name}: the name of {type(self).name} cannot be changed; another "
                f"analysis is chosen with analysis=NAME"
            )
        self.cast: dict[str, str] = {}  # names of the models by role; the experiment fills it in
        self.cards: dict[str, Card] = {}  # and the study those model cards that there are
        self.layers = _patterns("layers", self.layers)
        if self.other_layers is not None:
            self.other_layers = _patterns("other_layers", self.other_layers)

    def patterns(self, role: str) -> list[str]:
        """The patterns that choose the layers of the model in this role (`model` or `other`)."""
        return self.other_layers if role == "other" and self.other_layers else self.layers

    def reads(self, role: str) -> str:
        """What `reduce` is given of this model.

        "outputs" of layers, "attention" of attention modules, "residuals" where a branch is added to a
        skip, or "stream", which has the stem and units without a skip too.
        """
        return "outputs"

    def select(self, stage: int, images: Images) -> Sequence[int] | None:
        """The images of a pass, in order, where the analysis chooses them; None draws them with the seed."""
        return None

    def begin(self, before: Sequence[Sums]) -> None:
        """Called before each pass with the complete sums of the passes before it."""

    def read(self, nets: dict[str, nn.Module]) -> dict[str, Tensor]:
        """Terms of the weights alone, by role of the model, where `weights_only`."""
        raise NotImplementedError

    def check(self, layers: dict[str, list[Layer]]) -> None:
        """Raise UserError if these layers (by role) cannot be analysed; runs before any image."""

    def fit(self, memory: float) -> None:
        """Raise UserError if the sums do not fit into so many bytes; runs before any image."""

    def reduce(self, layer: Layer, output: Any) -> Tensor:
        """(N, *layer.shape) output -> the small tensor that is kept. The output must not be changed.

        The output is a tensor, or what else `reads` asks for.
        """
        raise NotImplementedError

    def observe(self, view: View) -> dict[str, Tensor]:
        """What this minibatch adds to each sum."""
        raise NotImplementedError

    def impossible(self, terms: dict[str, Tensor]) -> list[Impossibility]:
        """What cannot be true of one minibatch's terms, whatever the input: (statement, roles, where).

        where: a tensor of truth values on the device, an axis of layers for each role. NaN is no
        impossibility: it has a place in tables and `warnings`.
        """
        return []

    def tables(self, sums: Sums) -> dict[str, pd.DataFrame]:
        """Tidy tables, one observation a row, by file name without ending, from the last pass's sums."""
        raise NotImplementedError

    def warnings(self, sums: Sums) -> list[str]:
        """What the user must know about these sums, e.g. layers whose values are undefined."""
        return []

    def error(self, sums: Sums) -> float:
        """Largest standard error in the table that these sums give, where `tolerance` may ask for it."""
        raise NotImplementedError

    def figures(self, tables: dict[str, pd.DataFrame], labels: Labels) -> dict[str, Figure]:
        """Figures by file name without ending, from the tables as read back from the CSVs."""
        raise NotImplementedError

    def joined(
        self, results: Sequence[tuple[dict[str, pd.DataFrame], Labels]]
    ) -> dict[str, Figure]:
        """Figures of several results in one, by file name without ending; none if it has no such figure."""
        return {}


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


REGISTERED: dict[str, type[Analysis]] = {}


def register(analysis: type[Analysis]) -> type[Analysis]:
    """Make `analysis=<name>` selectable, with the class's fields as its schema."""
    name = analysis.name
    if name in REGISTERED:
        raise ValueError(
            f"two analyses are called {name!r}: "
            f"{REGISTERED[name].__module__} and {analysis.__module__}"
        )
    REGISTERED[name] = analysis
    ConfigStore.instance().store(
        group="schema/analysis", name=name, node=analysis, provider="vitsee"
    )
    return analysis
