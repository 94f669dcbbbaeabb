"""The inputs of an analysis: its layers, its setting, minibatches, and the labels of its figures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from vitsee.errors import printable
from vitsee.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

    from vitsee.data.images import Images
    from vitsee.models.cards import Card
    from vitsee.sums import Sums


@dataclass(frozen=True)
class Layer:
    """One watched layer, as measured by dry runs of the model.

    shape: of its output for one image, e.g. (197, 768) or (64, 112, 112); for an attention module
        (heads, tokens, features per head).
    prefix: number of leading class, distillation and register tokens; None if the output is not a sequence of
        the model's tokens.
    grid: rows and columns of its spatial positions (the tokens after the prefix in row-major order, or two
        axes of a map); None if there is no grid, or if its axes are unknown.
    pitch: (rows, columns), pixels of the model's input per step on the grid; None without a grid.
    reads_class: whether the model's head reads the class token, and not the patches.
    pooling: for an attention module, the name of the module whose attention pools the tokens for the model's head;
        empty if the head reads the class token or the mean.
    depth: fraction of the model's blocks that have run once the layer has, its own included; None if the blocks
        are unknown.
    channels_last: whether a map is rows x columns x channels, not channels x rows x columns.
    images: whether the first axis of the output is the images, or windows of them; if not, images cannot be told
        apart.
    windows: number of windows per image on the first axis, one image after another; `by_image` separates the
        images, and `shape` begins with this number. 1 if the first axis is the images. For attention within
        windows, grid and shape describe one window.
    image_grid: for attention within windows, rows and columns of the grid of the whole image.
    window_places: the row-major position on `image_grid` of each token of each window; -1 for padding.
        Empty if attention spans the whole image.
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
    windows: int = 1
    reads_class: bool = False
    pooling: str = ""
    image_grid: tuple[int, int] | None = None
    window_places: tuple[tuple[int, ...], ...] = field(default=(), repr=False)

    def by_image(self, output: Tensor) -> Tensor:
        """The layer's output as (N, *shape), without a copy."""
        return output.unflatten(0, (-1, self.windows)) if self.windows > 1 else output

    @property
    def is_map(self) -> bool:
        """Whether the output is a map, with channels at each place of the grid."""
        return self.prefix is None and self.grid is not None

    @property
    def places(self) -> tuple[int, int]:
        """Rows and columns of the grid. Raises ValueError if the layer has none."""
        if self.grid is None:
            raise ValueError(f"{self.name} has no grid")
        return self.grid

    @property
    def channels(self) -> int:
        """The number of channels of a map."""
        return self.shape[-1] if self.channels_last else self.shape[0]

    def channels_first(self, output: Tensor) -> Tensor:
        """The layer's maps as (N, channels, rows, columns), without a copy."""
        return output.permute(0, 3, 1, 2) if self.channels_last else output

    def sequence(self, output: Tensor) -> Tensor:
        """The output as (N, tokens, features): as it is, or the locations of maps in row-major order.

        Maps that are stored channels-last are not copied.
        """
        if not self.is_map:
            return output
        return self.channels_first(output).permute(0, 2, 3, 1).flatten(1, 2)

    @property
    def tokens(self) -> list[tuple[str, int, int]]:
        """Kind (class, register or patch), row and column of each token of `sequence`.

        Prefix tokens have no place: their row is -1 and their column counts from 0; all but a class token count as
        registers. Raises ValueError if there is no grid.
        """
        rows, columns = self.places
        prefix = [
            ("class" if i == 0 and self.class_token else "register", -1, i)
            for i in range(self.prefix or 0)
        ]
        return prefix + [("patch", row, column) for row in range(rows) for column in range(columns)]


@dataclass(frozen=True)
class Setting:
    """The models, layers and images of an analysis, complete before the first image is read.

    names: the models' names in tables. layers: the watched layers in the order they run. cards: the model
    cards that exist. images: the data set of each pass. earlier: the complete sums of the passes
    before the current one. precision: arithmetic of the forward pass (`options.Precision`). The first three are by
    role (`model`, and `other` if there is a second model).
    """

    names: Mapping[str, str] = field(default_factory=dict)
    layers: Mapping[str, list[Layer]] = field(default_factory=dict)
    cards: Mapping[str, Card] = field(default_factory=dict)
    images: Sequence[Images] = ()
    earlier: Sequence[Sums] = ()
    precision: str = "fp32"


def _no_models(role: str, pixels: Tensor) -> dict[str, Tensor]:
    raise RuntimeError("this view was made without models to run again")


@dataclass(frozen=True)
class View:
    """One minibatch as an analysis sees it: what `reduce` kept of each layer, in the order the layers ran.

    images: number of images. labels: (N,) int64. pixels: the (N, 3, H, W) input of each model, by role.
    normalisation: the mean and standard deviation per channel with which it was normalised. positions: of the
    images in the plan. indices: of the images in the data set. planned: number of images in the whole plan.
    stage: number of the pass over the data. fresh: fraction of the images that no earlier minibatch contains; below 1
    only with `repeats`. again: runs the model of a role on different pixels, (N, 3, H, W) normalised as `pixels`,
    and returns what `reduce` kept of its layers; each call is one more forward pass.
    """

    images: int
    labels: Tensor
    model: dict[str, Tensor]
    other: dict[str, Tensor] | None = None
    pixels: dict[str, Tensor] = field(default_factory=dict)
    normalisation: dict[str, tuple[Sequence[float], Sequence[float]]] = field(default_factory=dict)
    positions: Sequence[int] = ()
    planned: int = 0
    stage: int = 0
    fresh: float = 1.0
    again: Callable[[str, Tensor], dict[str, Tensor]] = _no_models
    indices: Sequence[int] = ()

    @property
    def by_role(self) -> dict[str, dict[str, Tensor]]:
        """What `reduce` kept of each model: `model`, and `other` if there is a second one."""
        return {"model": self.model} | ({} if self.other is None else {"other": self.other})

    def colours(self, role: str = "model") -> Tensor:
        """The images as the model of this role saw them, (N, 3, H, W) from 0 to 1."""
        pixels = self.pixels[role]
        mean, deviation = (
            pixels.new_tensor(list(of)).view(-1, 1, 1) for of in self.normalisation[role]
        )
        return pixels * deviation + mean

    def pictures(self, longest: int) -> Tensor:
        """The images for figures, (N, 3, rows, columns), integers from 0 to 255, at most `longest` wide and high."""
        colours = self.colours().clamp(0, 1)
        scale = min(1.0, longest / max(colours.shape[-2:]))
        size = [round(n * scale) for n in colours.shape[-2:]]
        return (255 * torch.nn.functional.interpolate(colours, size=size, mode="area")).round()

    def rows(self, values: Tensor) -> Tensor:
        """Per-image values, (N, ...), placed in their rows of an array of zeros for all images of the plan."""
        every = torch.zeros(
            self.planned, *values.shape[1:], dtype=values.dtype, device=values.device
        )
        every[torch.tensor(self.positions, device=values.device)] = values
        return every


@dataclass(frozen=True)
class Labels:
    """The names of the models and the data in figures.

    family, train_images: from the model card, if there is one. Models that differ only in their training form
    one family.
    """

    model: str
    other: str | None
    dataset: str
    images: int
    repeats: int = 1
    family: str | None = None
    train_images: int | None = None

    def __post_init__(self) -> None:
        for name in ("model", "other", "dataset"):  # fonts lack unprintable characters
            if value := getattr(self, name):
                object.__setattr__(self, name, printable(value))

    @property
    def models(self) -> str:
        """The models, for titles and captions."""
        return f"{self.model} vs {self.other}" if self.other else self.model

    @property
    def data(self) -> str:
        """The images, for titles."""
        if not self.images:
            return "weights alone"
        times = f", drawn {self.repeats} times" if self.repeats > 1 else ""
        return f"{self.images:,} images of {self.dataset}{times}"
