"""Measures of similarity, each as vectors whose inner products are the measure, one function per equation.

Axes: L layers of a model; N images of a minibatch; M entries of a vector. The similarity of two layers is
sum_b <v_b, w_b> / sqrt(sum_b <v_b, v_b> sum_b <w_b, w_b>) over minibatches b, as for minibatch CKA (Nguyen et al.
2021, eq. 2), so that one estimator and one standard error (`estimators.minibatch_cka`) serve all.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np

from vitsee.io.kept import Kept


@dataclass(frozen=True)
class KeptModel:
    """A model's stored Gram matrices, and the layers to compare.

    name: in tables. layers: positions in the file. neighbours: k of `mutual_knn`.
    """

    name: str
    kept: Kept
    layers: tuple[int, ...]
    neighbours: int = 10

    @property
    def layer_names(self) -> list[str]:
        return [self.kept.index.layers[layer] for layer in self.layers]

    def images(self, minibatch: int) -> int:
        return len(self.kept.index.minibatches[minibatch])

    def triangles(self, minibatch: int) -> np.ndarray:
        """(L, N (N + 1) / 2): see `estimators.triangles.triangles`."""
        return self.kept.grams(minibatch, list(self.layers))

    def distances(self, minibatch: int) -> np.ndarray:
        """Squared distances of all pairs of images, (L, N (N - 1) / 2)."""
        return squared_distances(self.triangles(minibatch), self.images(minibatch))

    @cached_property
    def bandwidths(self) -> np.ndarray:
        """The median distance of two images of a minibatch, over all minibatches, (L,)."""
        count = len(self.kept.index.minibatches)
        every = np.concatenate([self.distances(b) for b in range(count)], axis=1)
        return np.sqrt(np.median(every, axis=1))


@lru_cache(maxsize=2)
def above(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of the N (N - 1) / 2 pairs, row by row."""
    return np.triu_indices(n, 1)


def squared_distances(triangles: np.ndarray, n: int) -> np.ndarray:
    """d_ij² = s_i + s_j - 2 u_ij, (L, N (N + 1) / 2) -> (L, N (N - 1) / 2); see `estimators.triangles`."""
    on_diagonal, off = _places(n)
    s = triangles[:, on_diagonal]
    rows, columns = above(n)
    return np.maximum(s[:, rows] + s[:, columns] - 2 * triangles[:, off], 0)


@lru_cache(maxsize=2)
def _places(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Positions of the diagonal entries, and of those above it, among N (N + 1) / 2."""
    rows, columns = np.triu_indices(n)
    return np.flatnonzero(rows == columns), np.flatnonzero(rows != columns)


def u_centred(k: np.ndarray) -> np.ndarray:
    """U-centre kernel matrices given by their pairs, (L, M) -> (L, M) (Szekely and Rizzo 2014, eq. 2.6)."""
    n = round((1 + np.sqrt(1 + 8 * k.shape[1])) / 2)
    rows, columns = above(n)
    sums = np.zeros((len(k), n))
    for i, row in enumerate(k):
        sums[i] = np.bincount(rows, row, n) + np.bincount(columns, row, n)
    means = sums / (n - 2)
    means -= means.sum(1, keepdims=True) / (2 * (n - 1))
    return k - means[:, rows] - means[:, columns]


def linear_cka(model: KeptModel, minibatch: int) -> np.ndarray:
    """CKA with linear kernels: U-centred Gram matrices, whose inner product over n (n - 3) is HSIC_1.

    Song et al. 2012, eq. 5; Nguyen et al. 2021, eq. 3. Each pair counts twice.
    """
    n = model.images(minibatch)
    return model.triangles(minibatch)[:, _places(n)[1]] * np.sqrt(2 / (n * (n - 3)))


def rbf_cka(model: KeptModel, minibatch: int) -> np.ndarray:
    """CKA with K_ij = exp(-d_ij² / (2 σ²)), σ the median distance between images (Kornblith et al. 2019, section 3)."""
    n, sigma = model.images(minibatch), model.bandwidths[:, None]
    with np.errstate(divide="ignore", invalid="ignore"):
        k = np.exp(-model.distances(minibatch) / (2 * sigma**2))
    return u_centred(k) * np.sqrt(2 / (n * (n - 3)))


def rsa(model: KeptModel, minibatch: int) -> np.ndarray:
    """Representational similarity analysis: Spearman's correlation of the distances (Kriegeskorte et al. 2008).

    Ranks of the distances (ties: their mean rank), centred and scaled to length 1: in each minibatch the inner
    product is the correlation, and the similarity is its mean over minibatches.
    """
    from scipy.stats import rankdata  # takes a second to import

    ranked = rankdata(model.distances(minibatch), axis=1, nan_policy="propagate")
    ranked -= ranked.mean(1, keepdims=True)
    return _of_length_one(ranked)


def neighbours(model: KeptModel, minibatch: int) -> np.ndarray:
    """Mutual nearest neighbours (Huh et al. 2024, eq. 11): 1 / sqrt(N k) where j is one of the k nearest of i.

    The inner product is the mean fraction of an image's k nearest neighbours that both layers share.
    (L, N²), with row i for image i.
    """
    n, k = model.images(minibatch), model.neighbours
    rows, columns = above(n)
    distances = model.distances(minibatch)
    chosen = np.zeros((len(distances), n, n))
    for one, vector in zip(chosen, distances, strict=True):
        square = np.full((n, n), np.inf)
        square[rows, columns] = square[columns, rows] = vector
        nearest = np.argsort(square, axis=1, kind="stable")[:, :k]
        one[np.arange(n)[:, None], nearest] = 1 / np.sqrt(n * k)
        if not vector.any() or np.isnan(vector).any():  # all distances are equal, or undefined
            one[:] = np.nan
    return chosen.reshape(len(distances), n * n)


def _of_length_one(vectors: np.ndarray) -> np.ndarray:
    """Vectors scaled to length 1; zero vectors become NaN."""
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.where(length > 0, length, np.nan)


def own(measure: Measure, model: KeptModel, minibatch: int, vectors: np.ndarray) -> np.ndarray:
    """<v, v> of each layer, (L,); for CKA, its value before entries were rounded."""
    if measure.vectors is linear_cka:
        return model.kept.hsic(minibatch, list(model.layers))
    return np.einsum("lm,lm->l", vectors, vectors)


def reordered(measure: Measure, n: int, order: np.ndarray) -> np.ndarray:
    """Indices that reorder a vector's entries when the images are in this order, (M,)."""
    if measure.directed:
        return (order[:, None] * n + order[None, :]).ravel()
    rows, columns = above(n)
    return _of_pairs(n)[order[rows], order[columns]]


@lru_cache(maxsize=2)
def _of_pairs(n: int) -> np.ndarray:
    """Position of the pair (i, j) or (j, i) among N (N - 1) / 2, (N, N)."""
    rows, columns = above(n)
    place = np.zeros((n, n), np.int64)
    place[rows, columns] = place[columns, rows] = np.arange(len(rows))
    return place


@dataclass(frozen=True)
class Measure:
    """A measure of similarity.

    label: in figures. vectors: returns those of a model's layers in a minibatch; None for `procrustes`, which aligns
    pooled features. directed: whether vectors have separate entries for (i, j) and (j, i).
    """

    label: str
    vectors: Callable[[KeptModel, int], np.ndarray] | None
    directed: bool = False


MEASURES = {
    "cka": Measure("CKA", linear_cka),
    "rbf_cka": Measure("CKA, RBF kernels", rbf_cka),
    "rsa": Measure("RSA, Spearman", rsa),
    "procrustes": Measure("Procrustes similarity", None),
    "mutual_knn": Measure("mutual nearest neighbours", neighbours, directed=True),
}
