"""Similarities between all layers of some models and all layers of others, with standard errors and nulls."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate, pairwise

import numpy as np

from vitsee.comparing import nulls
from vitsee.comparing.measures import KeptModel, Measure, own, reordered
from vitsee.estimators.minibatch_cka import cka_and_error

Cells = dict[str, np.ndarray]
"""Columns of a table of two models' layers, (A, B) each."""


def blocks(
    measure: Measure,
    ones: Sequence[KeptModel],
    others: Sequence[KeptModel],
    null: int,
    seed: int,
    step: Callable[[], None],
) -> dict[tuple[int, int], Cells]:
    """Compare each model in one list with each in another; return the cells by their positions.

    null: number of permutations of the second models' images. step: called often, may raise.
    """
    compute = _aligned if measure.vectors is None else _products
    value, se, permuted = compute(measure, ones, others, null, seed, step)
    found = {}
    for i, rows in enumerate(_spans(ones)):
        for j, columns in enumerate(_spans(others)):
            cells = {"value": value[rows, columns], "se": se[rows, columns]}
            if null:
                cells |= nulls.summary(cells["value"], permuted[:, rows, columns])
            found[i, j] = cells
    return found


def _spans(models: Sequence[KeptModel]) -> list[slice]:
    """The slice of each model's layers among the layers of all models."""
    ends = accumulate((len(model.layers) for model in models), initial=0)
    return [slice(start, end) for start, end in pairwise(ends)]


class _Sums:
    """The sums over minibatches from which CKA and its standard error are computed."""

    def __init__(self) -> None:
        self.terms: dict[str, np.ndarray] = {}
        self.count = 0

    def add(self, ab: np.ndarray, aa: np.ndarray, bb: np.ndarray, fresh: float) -> None:
        """Add a minibatch: (A, B), (A,) and (B,)."""
        more = {
            **{"ab": ab, "aa": aa, "bb": bb, "fresh": np.float64(fresh)},
            **{"ab_ab": ab * ab, "ab_aa": ab * aa[:, None], "ab_bb": ab * bb[None, :]},
            **{"aa_bb": np.outer(aa, bb), "aa_aa": aa * aa, "bb_bb": bb * bb},
        }
        self.terms = {name: self.terms.get(name, 0) + term for name, term in more.items()}
        self.count += 1

    def estimate(self) -> tuple[np.ndarray, np.ndarray]:
        return cka_and_error(self.terms, self.count)

    @property
    def lengths(self) -> np.ndarray:
        """sqrt(aa bb), (A, B); NaN where it is 0."""
        product = np.outer(self.terms["aa"], self.terms["bb"])
        return np.sqrt(np.where(product > 0, product, np.nan))


def _products(
    measure: Measure,
    ones: Sequence[KeptModel],
    others: Sequence[KeptModel],
    null: int,
    seed: int,
    step: Callable[[], None],
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Similarities by inner products: value and se, (A, B) float64, and the null, (R, A, B) float32."""
    sums, index = _Sums(), ones[0].kept.index
    layers = [sum(len(model.layers) for model in models) for models in (ones, others)]
    permuted = np.zeros((null, *layers), np.float32)
    for minibatch, fresh in enumerate(index.fresh):
        v, aa = _vectors(measure, ones, minibatch)
        w, bb = (v, aa) if others is ones else _vectors(measure, others, minibatch)
        sums.add(v @ w.T, aa, bb, fresh)
        step()
        if null:
            n = len(index.minibatches[minibatch])
            left, right = v.astype(np.float32), np.ascontiguousarray(w.T, dtype=np.float32)
            del v, w
            room, product = np.empty_like(right), np.empty(layers, np.float32)
            for r, order in enumerate(nulls.orders(seed, minibatch, n, null)):
                np.take(right, reordered(measure, n, order), axis=0, out=room, mode="clip")
                permuted[r] += np.matmul(left, room, out=product)
                step()
    permuted /= sums.lengths.astype(np.float32)
    return *sums.estimate(), permuted


def _vectors(
    measure: Measure, models: Sequence[KeptModel], minibatch: int
) -> tuple[np.ndarray, np.ndarray]:
    """The vectors of all layers of these models, (A, M), and their products with themselves, (A,)."""
    assert measure.vectors is not None
    vectors, products = [], []
    for model in models:
        vectors.append(measure.vectors(model, minibatch))
        products.append(own(measure, model, minibatch, vectors[-1]))
    return np.concatenate(vectors), np.concatenate(products)


def _aligned(
    measure: Measure,
    ones: Sequence[KeptModel],
    others: Sequence[KeptModel],
    null: int,
    seed: int,
    step: Callable[[], None],
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Procrustes similarity of pooled features: see `procrustes`. Shapes as in `_products`."""
    xs = [_pooled(model, layer) for model in ones for layer in model.layers]
    ys = [_pooled(model, layer) for model in others for layer in model.layers]
    index = ones[0].kept.index
    ends = np.cumsum([len(ids) for ids in index.minibatches])[:-1]
    drawn = [nulls.orders(seed, b, len(ids), null) for b, ids in enumerate(index.minibatches)]
    starts = [0, *ends.tolist()]
    orders = np.concatenate([of + at for of, at in zip(drawn, starts, strict=True)], axis=1)
    value, se = np.empty((len(xs), len(ys))), np.empty((len(xs), len(ys)))
    permuted = np.empty((null, len(xs), len(ys)), np.float32)
    for i, x in enumerate(xs):
        for j, y in enumerate(ys):
            value[i, j], se[i, j] = procrustes(x, y, ends, index.fresh)
            step()
            for r, order in enumerate(orders):
                permuted[r, i, j] = _nuclear(x, y[order])
                step()
    return value, se, permuted


def _pooled(model: KeptModel, layer: int) -> np.ndarray:
    """A layer's pooled features of all images, centred and of Frobenius norm 1, (images, F)."""
    count = len(model.kept.index.minibatches)
    x = np.concatenate([model.kept.pooled(b, layer) for b in range(count)]).astype(np.float64)
    x -= x.mean(0)
    norm = np.linalg.norm(x)
    return x / norm if norm > 0 else np.full_like(x, np.nan)


def procrustes(
    x: np.ndarray, y: np.ndarray, ends: np.ndarray, fresh: Sequence[float]
) -> tuple[float, float]:
    """Return |XᵀY|_* and its standard error, for centred features of norm 1, (images, F) and (images, G).

    The nuclear norm is the largest <X R, Y> over rotations R, so that 2 - 2 |XᵀY|_* is the squared Procrustes
    distance (Ding et al. 2021; Williams et al. 2021). With the best R = U Vᵀ it is a sum over images, and its
    error is the error of the ratio sum_b <X_b R, Y_b> / sqrt(sum_b |X_b|² sum_b |Y_b|²) with R held fixed: to first
    order R does not matter, because it maximises <X R, Y>. ends: where each minibatch but the last ends.
    """
    if np.isnan(x).any() or np.isnan(y).any():
        return np.nan, np.nan
    left, _, right = np.linalg.svd(x.T @ y, full_matrices=False)
    rotated = x @ left @ right
    sums = _Sums()
    for a, r, b, new in zip(
        *(np.split(each, ends) for each in (x, rotated, y)), fresh, strict=True
    ):
        sums.add(np.array([[np.vdot(r, b)]]), _square(a), _square(b), new)
    value, se = sums.estimate()
    return float(value[0, 0]), float(se[0, 0])


def _square(x: np.ndarray) -> np.ndarray:
    return np.array([np.vdot(x, x)])


def _nuclear(x: np.ndarray, y: np.ndarray) -> float:
    product = x.T @ y
    return np.nan if np.isnan(product).any() else np.linalg.svd(product, compute_uv=False).sum()
