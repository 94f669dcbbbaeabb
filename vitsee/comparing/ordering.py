"""Orders models in a tree and places them in the plane, from the similarities of all pairs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.cluster import hierarchy
from scipy.spatial.distance import squareform


@dataclass(frozen=True)
class Arranged:
    """Models by similarity.

    names: in the order of the tree's leaves. similarity: (models, models) in that order, 1 on the diagonal, NaN where
    undefined. tree: SciPy's linkage of the models, with `leaves`, their order before. places: (models, 2) in the
    plane. stress: how badly the plane distorts the distances; 0 means not at all.
    """

    names: list[str]
    similarity: np.ndarray
    tree: np.ndarray
    leaves: list[int]
    places: np.ndarray
    stress: float


def arranged(atlas: pd.DataFrame, column: str) -> Arranged:
    """Arrange the models of an atlas table by this column. The distance between two models is 1 minus it, at least 0.

    The tree uses average linkage, with the leaves ordered so that neighbours are similar (Bar-Joseph et al. 2001).
    Undefined similarities count as 0.
    """
    names = sorted({*atlas["model"], *atlas["other"]})
    at = {name: i for i, name in enumerate(names)}
    similarity = np.eye(len(names))
    i, j = (atlas[role].map(at).to_numpy() for role in ("model", "other"))
    similarity[i, j] = similarity[j, i] = atlas[column].to_numpy(float)
    distance = np.maximum(1 - np.nan_to_num(similarity), 0)
    np.fill_diagonal(distance, 0)
    tree = hierarchy.linkage(squareform(distance), "average", optimal_ordering=True)
    leaves = [int(leaf) for leaf in hierarchy.leaves_list(tree)]
    places, stress = multidimensional_scaling(distance[np.ix_(leaves, leaves)])
    return Arranged(
        [names[leaf] for leaf in leaves],
        similarity[np.ix_(leaves, leaves)],
        tree,
        leaves,
        places,
        stress,
    )


def multidimensional_scaling(distance: np.ndarray) -> tuple[np.ndarray, float]:
    """Classical multidimensional scaling, (models, models) -> (models, 2), and its stress (Torgerson 1952).

    The stress is Kruskal's (1964): sqrt(sum (d - D)² / sum D²) over pairs, d the distances in the plane.
    """
    n = len(distance)
    centring = np.eye(n) - 1 / n
    products = -centring @ distance**2 @ centring / 2
    values, vectors = np.linalg.eigh(products)
    places = np.zeros((n, 2))
    for axis, k in enumerate(np.argsort(values)[::-1][:2]):
        vector = vectors[:, k] * np.sign(vectors[np.abs(vectors[:, k]).argmax(), k])
        places[:, axis] = vector * np.sqrt(max(values[k], 0))
    shown = np.linalg.norm(places[:, None] - places[None], axis=2)
    whole = np.square(distance).sum()
    stress = float(np.sqrt(np.square(shown - distance).sum() / whole)) if whole else 0.0
    return places, stress
