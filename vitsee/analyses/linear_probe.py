"""Linear probes in closed form: how accurately a linear classifier predicts the class from each layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pandas as pd

from vitsee import plotting
from vitsee.analysis import Analysis, Labels, Layer, View, register
from vitsee.data.few_shot import Draw, draw
from vitsee.errors import UserError, unknown
from vitsee.estimators import ridge
from vitsee.estimators.kernels import float64_device
from vitsee.estimators.places import locations, patch_side
from vitsee.estimators.ridge import Ridge
from vitsee.io.tidy import Kind, Table, Whole
from vitsee.lazy import torch

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor

    from vitsee.data.images import Images
    from vitsee.sums import Sums

TRAIN, CHOOSE, TEST = range(3)
"""The three passes over the data."""


class Feature(Enum):
    """The part of a layer's output that a probe sees."""

    cls = "cls"
    gap = "gap"
    gap_patches = "gap_patches"
    first = "first"
    each_token = "each_token"


_PROBE: dict[str, Kind] = {
    "layer": str,
    "depth": float,
    "shots": Whole(),
    "seed": Whole(),
    "l2": float,
    "accuracy": float,
}


@register
@dataclass(kw_only=True)
class LinearProbe(Analysis):
    """How accurately does a linear classifier predict the class from each layer?

    Ridge regression from standardised features to targets of -1 and +1, with an unpenalised bias, in
    closed form for all layers, features, seeds and penalties (Raghu et al. 2021; few-shot: Dosovitskiy
    et al. 2021, section 4.1). The first pass, over training images, sums the moments; the second, over
    held-out training images, chooses the penalty; the third measures accuracy on the test set.
    """

    models: ClassVar[tuple[int, ...]] = (1,)
    default_images: ClassVar[int] = 50_000
    default_batch_size: ClassVar[int] = 128
    splits: ClassVar[tuple[str | None, ...]] = ("train", "train", None)
    version: ClassVar[int] = 2

    columns: ClassVar[dict[str, Table]] = {
        "linear_probe": Table(
            _PROBE | {"features": tuple(f.value for f in Feature), "classes": Whole(1)},
            keys=("layer", "features", "shots", "seed"),
        ),
        "linear_probe_tokens": Table(
            _PROBE | {"row": Whole(), "col": Whole()}, grid=("row", "col"), optional=True
        ),
    }

    name: str = "linear_probe"
    layers: Any = "blocks"
    features: Any = "gap"
    """One or more of: cls; gap (mean over all tokens, or over a CNN's locations); gap_patches (without
    class and register tokens); first (the first token); each_token (one probe per spatial token)."""
    shots: int = 10
    """Training images per class; 0: the whole training set."""
    held_out: int | None = None
    """Images per class for choosing the penalty; by default as many as shots, or the last tenth of the images."""
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    """Seeds of the few-shot draws, one result per seed; with shots=0 only the first is used."""
    l2: list[float] = field(default_factory=lambda: [2.0**e for e in range(-10, 21, 2)])
    """Penalties to choose from."""
    token_stride: int = 1
    """For each_token: stride between probed rows and columns of the token grid."""
    train_split: str | None = "train"
    """Split of the training images; null: draw them from the data set itself and test on the rest."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.features = _features(self.features)
        self._check_numbers()
        if not self.shots:
            self.seeds = self.seeds[:1]
        self.splits = (self.train_split, self.train_split, None)  # type: ignore[misc]  # of this instance

    def _check_numbers(self) -> None:
        least = {"shots": 0, "token_stride": 1} | ({} if self.held_out is None else {"held_out": 1})
        for option, bound in least.items():
            if getattr(self, option) < bound:
                raise UserError(
                    f"analysis.{option} must be at least {bound}, got {getattr(self, option)}"
                )
        if not self.seeds or min(self.seeds) < 0 or len(set(self.seeds)) < len(self.seeds):
            raise UserError(
                f"analysis.seeds must be distinct numbers of at least 0, got {self.seeds}"
            )
        if not self.l2 or not all(0 < value < np.inf for value in self.l2):
            raise UserError(f"analysis.l2 must be penalties above 0, got {self.l2}")

    # Layers and their features

    def check(self, layers: dict[str, list[Layer]]) -> None:
        for layer in layers["model"]:
            self._check_layer(layer)

    def _check_layer(self, layer: Layer) -> None:
        shape = " x ".join(map(str, layer.shape))
        if layer.prefix is None and not layer.is_map and len(layer.shape) > 1:
            raise UserError(
                f"{layer.name} is neither a sequence of tokens, nor a feature map, nor "
                f"a vector (its output is {shape}); choose other layers with analysis.layers"
            )
        if "cls" in self.features and not (layer.class_token and layer.prefix):
            raise UserError(
                f"analysis.features=cls: {layer.name} has no class token (its output is {shape}); "
                f"use gap, gap_patches, first or each_token"
            )
        if "each_token" in self.features and layer.grid is None:
            raise UserError(
                f"analysis.features=each_token: {layer.name} has no grid of tokens or locations (its output "
                f"is {shape}); use gap, or choose other layers with analysis.layers"
            )

    def _probes(self, layer: Layer) -> list[tuple[str, int, int]]:
        """All probes of a layer: feature, row and column on the grid (-1, -1 without a place)."""
        probes = [(name, -1, -1) for name in self.features if name != "each_token"]
        if "each_token" in self.features:
            rows, columns = (range(0, n, self.token_stride) for n in self._grid(layer))
            probes += [("each_token", row, column) for row in rows for column in columns]
        return probes

    @property
    def _layers(self) -> list[Layer]:
        return self.setting.layers["model"]

    @cached_property
    def _last_map(self) -> Layer:
        """The last feature map of a CNN; all its maps are probed at these locations."""
        return [layer for layer in self._layers if layer.is_map][-1]

    def _grid(self, layer: Layer) -> tuple[int, int]:
        """Rows and columns of the probed locations."""
        return self._last_map.places if layer.is_map else layer.places

    def _width(self, layer: Layer) -> int:
        """Number of features per probe of this layer."""
        if not layer.is_map:
            return layer.shape[-1]
        shape = (layer.channels, *layer.places)
        side = patch_side(shape, self._last_map.channels, self._last_map.places)
        return layer.channels * side * side

    def reduce(self, layer: Layer, output: Tensor) -> Tensor:
        """The features for each probe of the layer: (N, probes, features)."""
        tokens = self._tokens(layer, output)
        prefix = layer.prefix or 0
        seen = []
        for name in self.features:
            if name == "gap":
                seen.append(tokens.mean(1, keepdim=True))
            elif name == "gap_patches":
                seen.append(tokens[:, prefix:].mean(1, keepdim=True))
            elif name != "each_token":  # the class token comes first
                seen.append(tokens[:, :1])
        if "each_token" in self.features:
            grid = tokens[:, prefix:].unflatten(1, self._grid(layer))
            seen.append(grid[:, :: self.token_stride, :: self.token_stride].flatten(1, 2))
        return torch.cat(seen, 1)

    def _tokens(self, layer: Layer, output: Tensor) -> Tensor:
        """Tokens, locations of a feature map, or a single vector as (N, tokens, features) float32."""
        if layer.is_map:
            maps = layer.channels_first(output.float())
            return locations(maps, self._last_map.channels, self._grid(layer))
        return output.float() if layer.prefix is not None else output.float()[:, None]

    # Images

    @cached_property
    def _draw(self) -> Draw:
        """The images for training the probes and for choosing the penalty."""
        return draw(self.setting.images[TRAIN], self.shots, self.held_out, self.seeds)

    @cached_property
    def _to_train(self) -> np.ndarray:
        """The training label of each test label. Raises UserError for classes without training images."""
        classes = self.setting.images[TEST].classes
        trained = {name: i for i, name in enumerate(self._draw.classes)}
        unknown_classes = [name for name in classes if name not in trained]
        if unknown_classes:
            raise UserError(
                f"the test images have {len(unknown_classes)} classes that the training images lack "
                f"(first: {unknown_classes[0]!r}); the training images have {_few(self._draw.classes)}"
            )
        return np.array([trained[name] for name in classes])

    def select(self, stage: int) -> Sequence[int] | None:
        if stage == TRAIN:
            return self._draw.union.tolist()
        if stage == CHOOSE:
            return self._draw.held_out.tolist()
        images = self.setting.images[TEST]
        self._to_train  # noqa: B018  (fails before measuring if a class has no training images)
        if self.train_split is None:
            return self._the_rest(images)
        if images.fingerprint == self._draw.fingerprint:
            raise UserError(
                f"the test images are the training images (analysis.train_split={self.train_split}): choose "
                f"the test split with dataset.split, or test on the images that are not drawn for training "
                f"with analysis.train_split=null"
            )
        return None

    def _the_rest(self, images: Images) -> list[int]:
        """All images used neither for training nor for choosing the penalty."""
        used = np.union1d(self._draw.union, self._draw.held_out)
        rest = np.setdiff1d(np.arange(len(images)), used)
        if not len(rest):
            raise UserError(
                f"no images are left to test on: all {len(images)} are drawn; use fewer analysis.shots, "
                f"fewer analysis.seeds or a smaller analysis.held_out"
            )
        return rest.tolist()

    # Memory

    def fit(self, memory: float) -> None:
        """Raise UserError if three copies of the sums, or the solutions, do not fit in memory."""
        sizes = {
            layer.name: max(3 * self._bytes(layer), self._bytes(layer) + 2 * self._solution(layer))
            for layer in self._layers
        }
        need = sum(sizes.values())
        if need <= memory:
            return
        largest = max(self._layers, key=lambda layer: sizes[layer.name])
        width, probes = self._width(largest), len(self._probes(largest))
        remedies = ["fewer layers (analysis.layers)"]
        if "each_token" in self.features:
            remedies.append(f"fewer tokens (analysis.token_stride={2 * self.token_stride})")
        if len(self.seeds) > 1:
            remedies.append(f"fewer seeds (analysis.seeds=[{self.seeds[0]}])")
        kernel = (width - 1) // len(self._draw.classes)
        if kernel and not self._dual(largest):
            remedies.append(
                f"the kernel form, which is used if there are fewer images than features "
                f"(analysis.shots={kernel} or fewer)"
            )
        raise UserError(
            f"the sums of {len(self._layers)} layers x {probes} probes x {width:,} features x "
            f"{len(self.seeds)} seeds need {need / 2**30:.1f} GB, but {memory / 2**30:.1f} GB are available "
            f"(run.memory_gb); use {'; or '.join(remedies)}"
        )

    def _bytes(self, layer: Layer) -> int:
        """Size of one layer's sums over the training images."""
        probes, width = len(self._probes(layer)), self._width(layer)
        seeds, classes = len(self.seeds), len(self._draw.classes)
        if self._dual(layer):
            return 8 * probes * len(self._draw.union) * width
        return 8 * probes * seeds * width * (width + classes)

    def _solution(self, layer: Layer) -> int:
        """Size of one layer's eigenvectors and their products with the targets."""
        width, classes = self._width(layer), len(self._draw.classes)
        probes = len(self._probes(layer)) * len(self.seeds)
        return 8 * probes * min(self._draw.train.shape[1], width) * (width + classes)

    def _dual(self, layer: Layer) -> bool:
        """Whether to solve the dual (kernel) form: if there are fewer training images than features."""
        return self._draw.train.shape[1] < self._width(layer)

    # Measurement

    @cached_property
    def _solved(self) -> dict[str, Any]:
        """Solutions by layer, filled by `_probe`."""
        return {}

    def observe(self, view: View) -> dict[str, Tensor]:
        """In the training pass: moments or rows, and which images were present. Later: numbers of correct images."""
        seen = {
            name: x.to(float64_device(x)).double().transpose(0, 1).contiguous()
            for name, x in view.model.items()
        }
        device = next(iter(seen.values())).device
        if view.stage == TRAIN:
            return self._moments(view, seen, device)
        return self._counts(view, seen, device)

    def _moments(
        self, view: View, seen: dict[str, Tensor], device: torch.device
    ) -> dict[str, Tensor]:
        """seen: (probes, N, features) by layer."""
        positions = list(view.positions)
        drawn = np.stack([np.isin(positions, of_seed) for of_seed in self._draw.positions])
        weights = torch.from_numpy(drawn).to(device).double()[:, None, :]  # (seeds, 1, N)
        labels = torch.from_numpy(self._draw.labels[positions]).to(device)
        one_hot = torch.nn.functional.one_hot(labels, len(self._draw.classes)).double()
        terms = {"there": view.rows(torch.ones(len(positions), device=device))}
        for layer in self._layers:
            name, x = layer.name, seen[layer.name]
            if self._dual(layer):
                terms[f"rows {name}"] = view.rows(x.transpose(0, 1))
            else:
                terms[f"products {name}"] = (x * weights[..., None]).mT @ x
                terms[f"class_sums {name}"] = (one_hot.mT * weights[..., None, :]) @ x
        return terms

    def _counts(
        self, view: View, seen: dict[str, Tensor], device: torch.device
    ) -> dict[str, Tensor]:
        """Number of images each probe classifies correctly: per penalty, or in the test only for the chosen one."""
        labels = view.labels.to(device)
        terms = {"images": torch.tensor(float(view.images))}
        if view.stage == TEST:
            labels = torch.from_numpy(self._to_train).to(device)[labels]
        for name, x in seen.items():
            probe = self._probe(name, view.stage, device)
            if view.stage == CHOOSE:
                each = probe.scores_of_each(x, self.l2)
                right = [ridge.correct(scores, labels, probe.defined) for scores in each]
                terms[f"correct {name}"] = torch.stack(right, -1)
            else:
                weights, bias, defined = probe
                scores = x @ weights + bias[..., None, :]
                terms[f"correct {name}"] = ridge.correct(scores, labels, defined)
        return terms

    def _probe(self, name: str, stage: int, device: torch.device) -> Any:
        """The solutions of a layer; in the test, weights and bias for the chosen penalty only."""
        if name not in self._solved:
            solution = self._solve(name, device)
            if stage == TEST:
                chosen = self._chosen(name).to(device)
                self._solved[name] = (*solution.linear(chosen), solution.defined)
            else:
                self._solved[name] = solution
        return self._solved[name]

    def _solve(self, name: str, device: torch.device) -> Ridge:
        """The solutions of one layer, (seeds, probes)."""
        terms, classes = self.setting.earlier[TRAIN].terms, len(self._draw.classes)
        there = terms["there"].cpu() > 0
        labels = torch.from_numpy(self._draw.labels).where(there, -1)
        by_seed = [labels[torch.from_numpy(p)].to(device) for p in self._draw.positions]
        if f"rows {name}" in terms:
            rows = terms[f"rows {name}"].to(device).transpose(0, 1)  # (probes, N, features)
            chosen = [rows[:, torch.from_numpy(p).to(device)] for p in self._draw.positions]
            each = [ridge.from_rows(x, l, classes) for x, l in zip(chosen, by_seed, strict=True)]
            return ridge.stack(each)
        counts = torch.stack([(l[:, None] == torch.arange(classes).to(l)).sum(0) for l in by_seed])
        products, class_sums = (terms[f"{k} {name}"].to(device) for k in ("products", "class_sums"))
        counts = counts.double()[:, None].expand(*class_sums.shape[:-1])
        return ridge.from_sums(counts, class_sums, products)

    def _chosen(self, name: str) -> Tensor:
        """The penalty of each probe of a layer, (seeds, probes)."""
        return ridge.best(self.setting.earlier[CHOOSE].terms[f"correct {name}"], self.l2)

    # Results

    def tables(self, sums: Sums) -> dict[str, pd.DataFrame]:
        """One row per layer, feature and seed; for single tokens, also one per layer, token and seed.

        The accuracy of each_token is the mean over tokens. Their penalties differ, so its l2 is empty.
        """
        every = pd.concat([self._rows(layer, sums) for layer in self._layers])
        keys = ["layer", "depth", "features", "shots", "seed"]
        tokens = every[every["features"] == "each_token"]
        means = tokens.drop(columns=["row", "col"]).assign(l2=np.nan)
        means = means.groupby(keys, sort=False, dropna=False, as_index=False).agg(_mean_or_nan)
        single = every[every["features"] != "each_token"].drop(columns=["row", "col"])
        table = pd.concat([single, means]) if len(means) else single
        order = {layer.name: i for i, layer in enumerate(self._layers)}
        table = table.sort_values("layer", key=lambda names: names.map(order), kind="stable")
        tables = {"linear_probe": table.reset_index(drop=True)}
        if len(tokens):
            columns = ["layer", "depth", "row", "col", "shots", "seed", "l2", "accuracy"]
            tables["linear_probe_tokens"] = tokens[columns].reset_index(drop=True)
        return tables

    def _rows(self, layer: Layer, sums: Sums) -> pd.DataFrame:
        """One row per probe and seed of a layer."""
        held_out = self.setting.earlier[CHOOSE]
        chosen = self._chosen(layer.name).cpu().numpy()
        best = held_out.terms[f"correct {layer.name}"].amax(-1).cpu().numpy()
        right = sums.terms[f"correct {layer.name}"].cpu().numpy()
        images = float(sums.terms["images"])
        rows = [
            {
                "layer": layer.name,
                "depth": np.nan if layer.depth is None else layer.depth,
                "features": feature,
                "shots": self.shots,
                "seed": seed,
                "l2": chosen[s, p] if np.isfinite(right[s, p]) else np.nan,
                "accuracy": right[s, p] / images,
                "held_out_accuracy": best[s, p] / float(held_out.terms["images"]),
                "test_images": int(images),
                "classes": len(self._draw.classes),
                "row": row,
                "col": column,
            }
            for p, (feature, row, column) in enumerate(self._probes(layer))
            for s, seed in enumerate(self.seeds)
        ]
        return pd.DataFrame(rows)

    def warnings(self, sums: Sums) -> list[str]:
        """Which probes have no accuracy, and why; and whether all seeds draw the same images."""
        warnings = []
        for layer in self._layers:
            name = layer.name
            undefined = sums.terms[f"correct {name}"].isnan().cpu().numpy()
            for feature in self.features:
                mine = [i for i, (f, *_) in enumerate(self._probes(layer)) if f == feature]
                if undefined[:, mine].any():
                    count = f"{int(undefined[:, mine].sum())} of {undefined[:, mine].size} probes"
                    warnings.append(
                        f"{feature} of {name}: {count} have no accuracy, because "
                        f"{self._reason(name)}"
                    )
        if len(self.seeds) > 1 and len(self._draw.union) == self._draw.train.shape[1]:
            warnings.append(
                f"without held-out images, the classes have no more than analysis.shots={self.shots} images: "
                f"all seeds draw the same training images"
            )
        return warnings

    def _reason(self, name: str) -> str:
        train = self.setting.earlier[TRAIN].terms
        kinds = (f"{kind} {name}" for kind in ("rows", "products", "class_sums"))
        if not all(train[kind].isfinite().all() for kind in kinds if kind in train):
            return "features of training images are NaN or Inf"
        if self.setting.earlier[CHOOSE].terms[f"correct {name}"].isnan().all(-1).any():
            return (
                "its features are constant over the training images, or NaN or Inf in held-out ones"
            )
        return "features of test images are NaN or Inf"

    def caption(self, figure: str, tables: dict[str, pd.DataFrame]) -> str:
        said = f"Linear probes, {_protocol(tables['linear_probe'])}"
        if figure == "linear_probe_tokens":
            return said
        several = tables["linear_probe"]["seed"].nunique() > 1
        bands = "; bands: minimum to maximum over draws" if several else ""
        return f"{said}{bands}; dashed: chance"

    def figures(self, tables: dict[str, pd.DataFrame], labels: Labels) -> dict[str, Figure]:
        """Accuracy by depth, and accuracy maps of single tokens if they are probed."""
        drawn = {"linear_probe": _curves([(tables["linear_probe"], labels)])}
        if "linear_probe_tokens" in tables:
            tokens = tables["linear_probe_tokens"]
            percent = tokens.assign(accuracy=100 * tokens["accuracy"])
            places = percent.groupby(["layer", "row", "col"], sort=False)["accuracy"]
            drawn["linear_probe_tokens"] = plotting.map_plots.grids(
                places.mean().reset_index(),
                panel="layer",
                row="row",
                column="col",
                value="accuracy",
                colour_label="Test accuracy (%)",
                title=f"Probes of single tokens of {labels.model}, {_protocol(tokens)}, {labels.data}",
            )
        return drawn

    def joined(
        self, results: Sequence[tuple[dict[str, pd.DataFrame], Labels]]
    ) -> dict[str, Figure]:
        """Accuracy of several models by depth, and against the number of training images.

        The second shows the deepest layer. It needs every model's card, and the same protocol and data set.
        """
        probes = [(tables["linear_probe"], labels) for tables, labels in results]
        drawn = {"linear_probe": _curves(probes)}
        settings = {(_protocol(table), labels.data) for table, labels in probes}
        if len(settings) == 1 and all(labels.train_images for _, labels in results):
            drawn["linear_probe_by_training"] = _by_training(probes)
        return drawn


def _features(asked: Any) -> list[str]:
    """Names of features, each once. Raises UserError for one that does not exist."""
    names = [asked] if isinstance(asked, str) else list(asked or [])
    known = [feature.value for feature in Feature]
    if not names:
        raise UserError(f"analysis.features must name at least one of: {', '.join(known)}")
    for name in names:
        if name not in known:
            problem = f"there is no analysis.features={name}"
            raise unknown(problem, str(name), known, "they can be")
    return list(dict.fromkeys(names))


def _few(names: list[str]) -> str:
    return f"{', '.join(map(repr, names[:5]))}{', …' if len(names) > 5 else ''}"


def _mean_or_nan(column: pd.Series) -> Any:
    """Mean of a column, NaN if any value is; integers, which are all equal, stay as they are."""
    return column.iloc[0] if column.dtype.kind == "i" else column.mean(skipna=False)


def _protocol(table: pd.DataFrame) -> str:
    """How the probes were trained, for a title or legend."""
    shots, seeds = int(table["shots"].iloc[0]), table["seed"].nunique()
    times = f", {seeds} draws" if seeds > 1 else ""
    return f"{shots}-shot{times}" if shots else "all training images"


WORDS = {
    "cls": "class token",
    "gap": "mean of all tokens",
    "gap_patches": "mean of patch tokens",
    "first": "first token",
    "each_token": "single tokens (mean)",
}


def _by_training(results: list[tuple[pd.DataFrame, Labels]]) -> Figure:
    """Accuracy of the deepest layer against the number of training images, one line per model family.

    A family is named after its model with the shortest name (Dosovitskiy et al. 2021, Fig. 4).
    """
    families: dict[str | None, str] = {}
    for _, labels in results:
        families[labels.family] = min(
            families.get(labels.family, labels.model), labels.model, key=len
        )
    features: dict[str | None, set[str]] = {}
    for table, labels in results:
        features.setdefault(labels.family, set()).update(table["features"])
    several = any(len(names) > 1 for names in features.values())
    parts = []
    for table, labels in results:
        deepest = table[table["depth"] == table["depth"].max()]
        names = deepest["features"].map(
            lambda name, l=labels: families[l.family] + (f", {WORDS[name]}" if several else "")
        )
        percent = 100 * deepest["accuracy"]
        parts.append(deepest.assign(line=names, percent=percent, images=labels.train_images))
    table, labels = results[0]
    title = f"{_protocol(table)}, {labels.data}"
    return _accuracies(parts, title, x="images", xlabel="Number of training images", log=True)


def _curves(results: list[tuple[pd.DataFrame, Labels]]) -> Figure:
    """Accuracy by depth, one line per feature and result, labelled by what differs between them."""
    models = {labels.model for _, labels in results}
    data = {labels.data for _, labels in results}
    protocols = {_protocol(table) for table, _ in results}
    features = {name for table, _ in results for name in table["features"]}
    parts = []
    for table, labels in results:
        for feature, part in table.groupby("features", sort=False):
            words = [labels.model] if len(models) > 1 else []
            words += [WORDS[str(feature)]] if len(features) > 1 or not words else []
            words += [_protocol(table)] if len(protocols) > 1 else []
            words += [labels.dataset] if len(data) > 1 else []
            parts.append(part.assign(line=", ".join(words), percent=100 * part["accuracy"]))
    common = [next(iter(values)) for values in (models, protocols, data) if len(values) == 1]
    return _accuracies(parts, ", ".join(common), x="depth", xlabel="Depth (fraction of blocks)")


def _accuracies(parts: list[pd.DataFrame], title: str, **axis: Any) -> Figure:
    """Column percent against `x`, one line per value of line, with the chance level if all share it."""
    table = pd.concat(parts)
    classes = table["classes"].unique()
    return plotting.line_plots.curves(
        table,
        y="percent",
        line="line",
        ylabel="Test accuracy (%)",
        title=f"Linear probes: {title}",
        level=100 / int(classes[0]) if len(classes) == 1 else None,
        level_label="chance",
        **axis,
    )
