"""Linear probes in closed form: how accurately a linear classifier predicts the class from each layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pandas as pd

from vitsee import plotting
from vitsee.analysis import Analysis, Labels, Layer, View, register
from vitsee.data import few_shot
from vitsee.errors import UserError
from vitsee.estimators import probe_features, ridge
from vitsee.estimators.kernels import float64_device
from vitsee.estimators.probe_features import ProbeFeatures
from vitsee.estimators.ridge import Classifier, Ridge
from vitsee.io.tidy import Kind, Table, Whole
from vitsee.lazy import torch
from vitsee.names import common_data, data_apart

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor

    from vitsee.sums import Sums

TRAIN, CHOOSE, TEST = range(3)
"""The three passes over the data."""


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
            _PROBE | {"features": probe_features.NAMES, "classes": Whole(1)},
            keys=("layer", "features", "shots", "seed"),
        ),
        "linear_probe_tokens": Table(
            _PROBE | {"row": Whole(), "col": Whole()},
            grid=("row", "col"),
            strided=True,
            optional=True,
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
        self.features = probe_features.chosen(self.features)
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
        ProbeFeatures(self.features, self.token_stride, layers["model"]).require()

    @property
    def _layers(self) -> list[Layer]:
        return self.setting.layers["model"]

    @cached_property
    def _seen(self) -> ProbeFeatures:
        """What the probes see of each layer."""
        return ProbeFeatures(self.features, self.token_stride, self._layers)

    def reduce(self, layer: Layer, output: Tensor) -> Tensor:
        """The features for each probe of the layer: (N, probes, features)."""
        return self._seen.of(layer, output)

    # Images

    @cached_property
    def _sample(self) -> few_shot.ProbeImages:
        """The images for training the probes and for choosing the penalty."""
        return few_shot.sample(self.setting.images[TRAIN], self.shots, self.held_out, self.seeds)

    @cached_property
    def _to_train(self) -> np.ndarray:
        """The training label of each test label. Raises UserError for classes without training images."""
        return self._sample.labels_of(self.setting.images[TEST].classes)

    def select(self, stage: int) -> Sequence[int] | None:
        if stage == TRAIN:
            return self._sample.union.tolist()
        if stage == CHOOSE:
            return self._sample.held_out.tolist()
        images = self.setting.images[TEST]
        self._to_train  # noqa: B018  (fails before measuring if a class has no training images)
        if self.train_split is None:
            return self._sample.rest(len(images)).tolist()
        if images.fingerprint == self._sample.fingerprint:
            raise UserError(
                f"the test images are the training images (analysis.train_split={self.train_split}): choose "
                f"the test split with dataset.split, or test on the images that are not drawn for training "
                f"with analysis.train_split=null"
            )
        return None

    # Memory

    def check_memory(self, memory: float) -> None:
        """Raise UserError if three copies of the sums, or the solutions, do not fit in memory."""
        sizes = {
            layer.name: max(
                3 * self._bytes(layer), self._bytes(layer) + 2 * self._bytes_to_solve(layer)
            )
            for layer in self._layers
        }
        need = sum(sizes.values())
        if need <= memory:
            return
        largest = max(self._layers, key=lambda layer: sizes[layer.name])
        width, probes = self._seen.width(largest), len(self._seen.probes(largest))
        remedies = ["fewer layers (analysis.layers)"]
        if "each_token" in self.features:
            remedies.append(f"fewer tokens (analysis.token_stride={2 * self.token_stride})")
        if len(self.seeds) > 1:
            remedies.append(f"fewer seeds (analysis.seeds=[{self.seeds[0]}])")
        kernel = (width - 1) // len(self._sample.classes)
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
        probes, width = len(self._seen.probes(layer)), self._seen.width(layer)
        seeds, classes = len(self.seeds), len(self._sample.classes)
        if self._dual(layer):
            return 8 * probes * len(self._sample.union) * width
        return 8 * probes * seeds * width * (width + classes)

    def _bytes_to_solve(self, layer: Layer) -> int:
        """Size of one layer's eigenvectors and their products with the targets."""
        width, classes = self._seen.width(layer), len(self._sample.classes)
        probes = len(self._seen.probes(layer)) * len(self.seeds)
        return 8 * probes * min(self._sample.train.shape[1], width) * (width + classes)

    def _dual(self, layer: Layer) -> bool:
        """Whether to solve the dual (kernel) form: if there are fewer training images than features."""
        return self._sample.train.shape[1] < self._seen.width(layer)

    # Measurement

    def observe(self, view: View) -> dict[str, Tensor]:
        """In the training pass: moments or rows, and which images were present. Later: numbers of correct images."""
        features = {
            name: x.to(float64_device(x)).double().transpose(0, 1).contiguous()
            for name, x in view.model.items()
        }
        if view.stage == TRAIN:
            return self._moments(view, features)
        return self._counts(view, features)

    def _moments(self, view: View, features: dict[str, Tensor]) -> dict[str, Tensor]:
        """features: (probes, N, features) by layer."""
        positions, device = list(view.positions), next(iter(features.values())).device
        counts = np.stack([np.isin(positions, of_seed) for of_seed in self._sample.positions])
        weights = torch.from_numpy(counts).to(device).double()[:, None, :]  # (seeds, 1, N)
        labels = torch.from_numpy(self._sample.labels[positions]).to(device)
        classes = len(self._sample.classes)
        terms = {"there": view.rows(torch.ones(len(positions), device=device))}
        for layer in self._layers:
            name, x = layer.name, features[layer.name]
            if self._dual(layer):
                terms[f"rows {name}"] = view.rows(x.transpose(0, 1))
            else:
                class_sums, products = ridge.sums_of(x, labels, classes, weights)
                terms |= {f"products {name}": products, f"class_sums {name}": class_sums}
        return terms

    def _counts(self, view: View, features: dict[str, Tensor]) -> dict[str, Tensor]:
        """Number of images each probe classifies correctly: per penalty, or in the test only for the chosen one."""
        terms = {"images": torch.tensor(float(view.images))}
        for name, x in features.items():
            labels = view.labels.to(x.device)
            if (labels < 0).any():
                raise UserError(
                    "some of these images have no label (-1), so probes cannot be tested on them"
                )
            if view.stage == CHOOSE:
                right = self._solution(name, x.device).correct_of_each(x, labels, self.l2)
            else:
                to_train = torch.from_numpy(self._to_train).to(x.device)
                right = self._classifier(name, x.device).correct(x, to_train[labels])
            terms[f"correct {name}"] = right
        return terms

    @cached_property
    def _solutions(self) -> dict[str, Ridge]:
        """Filled by `_solution`."""
        return {}

    def _solution(self, name: str, device: torch.device) -> Ridge:
        """The solutions of a layer for all penalties, kept for the next minibatches."""
        if name not in self._solutions:
            self._solutions[name] = self._solve(name, device)
        return self._solutions[name]

    @cached_property
    def _classifiers(self) -> dict[str, Classifier]:
        """Filled by `_classifier`."""
        return {}

    def _classifier(self, name: str, device: torch.device) -> Classifier:
        """The classifiers of a layer for the chosen penalties, kept for the next minibatches."""
        if name not in self._classifiers:
            chosen = self._chosen(name).to(device)
            self._classifiers[name] = self._solve(name, device).classifier(chosen)
        return self._classifiers[name]

    def _solve(self, name: str, device: torch.device) -> Ridge:
        """The solutions of one layer, (seeds, probes)."""
        terms, classes = self.setting.earlier[TRAIN].terms, len(self._sample.classes)
        there = terms["there"].cpu() > 0
        labels = torch.from_numpy(self._sample.labels).where(there, -1)
        by_seed = [labels[torch.from_numpy(p)].to(device) for p in self._sample.positions]
        if f"rows {name}" in terms:
            rows = terms[f"rows {name}"].to(device).transpose(0, 1)  # (probes, N, features)
            chosen = [rows[:, torch.from_numpy(p).to(device)] for p in self._sample.positions]
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
                "classes": len(self._sample.classes),
                "row": row,
                "col": column,
            }
            for p, (feature, row, column) in enumerate(self._seen.probes(layer))
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
                mine = [i for i, (f, *_) in enumerate(self._seen.probes(layer)) if f == feature]
                if undefined[:, mine].any():
                    count = f"{int(undefined[:, mine].sum())} of {undefined[:, mine].size} probes"
                    warnings.append(
                        f"{feature} of {name}: {count} have no accuracy, because "
                        f"{self._reason(name)}"
                    )
        if len(self.seeds) > 1 and len(self._sample.union) == self._sample.train.shape[1]:
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
        said = f"Linear probes, {plotting.accuracy_plots.protocol(tables['linear_probe'])}"
        if figure == "linear_probe_tokens":
            return said
        several = tables["linear_probe"]["seed"].nunique() > 1
        bands = "; bands: minimum to maximum over draws" if several else ""
        return f"{said}{bands}; dashed: chance"

    def figures(self, tables: dict[str, pd.DataFrame], labels: Labels) -> dict[str, Figure]:
        """Accuracy by depth, and accuracy maps of single tokens if they are probed."""
        plots = plotting.accuracy_plots
        drawn = {
            "linear_probe": plots.probes_by_depth(
                [(tables["linear_probe"], labels)], [""], labels.data
            )
        }
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
                title=f"Probes of single tokens of {labels.model}, {plots.protocol(tokens)}, {labels.data}",
            )
        return drawn

    def joined(
        self, results: Sequence[tuple[dict[str, pd.DataFrame], Labels]]
    ) -> dict[str, Figure]:
        """Accuracy of several models by depth, and against the number of training images.

        The second shows the deepest layer. It needs every model's card, and the same protocol and data set.
        """
        probes = [(tables["linear_probe"], labels) for tables, labels in results]
        plots = plotting.accuracy_plots
        each = [labels for _, labels in results]
        by_depth = plots.probes_by_depth(probes, data_apart(each), common_data(each))
        drawn = {"linear_probe": by_depth}
        settings = {(plots.protocol(table), labels.data) for table, labels in probes}
        if len(settings) == 1 and all(labels.train_images for _, labels in results):
            drawn["linear_probe_by_training"] = plots.probes_by_training(probes)
        return drawn


def _mean_or_nan(column: pd.Series) -> Any:
    """Mean of a column, NaN if any value is; integers, which are all equal, stay as they are."""
    return column.iloc[0] if column.dtype.kind == "i" else column.mean(skipna=False)
