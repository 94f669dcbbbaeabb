"""Permutation nulls: similarities after shuffling the images."""

from __future__ import annotations

import math

import numpy as np

LEVEL = 0.05
"""Fraction of the null above `null_high`."""
TIES = 1e-6
"""Differences below this are rounding: such permutations count as at least as similar."""


def orders(seed: int, minibatch: int, images: int, count: int) -> np.ndarray:
    """Return random orders of a minibatch's images, (count, images): the same for all pairs of models."""
    draw = np.random.default_rng([seed, minibatch])
    return draw.permuted(np.tile(np.arange(images), (count, 1)), axis=1)


def high(value: np.ndarray, null: np.ndarray) -> np.ndarray:
    """Return the order statistic ceil(0.95 (R + 1)) of the null with the value, (...) and (R, ...) -> (...).

    As in the package calibrated-similarity (arXiv 2602.14486, algorithm 1).
    """
    combined = np.concatenate([null, value[None].astype(null.dtype)])
    place = math.ceil((1 - LEVEL) * len(combined)) - 1
    combined.partition(place, axis=0)
    return combined[place].astype(np.float64)


def p_value(value: np.ndarray, null: np.ndarray) -> np.ndarray:
    """Return (1 + how often the null is at least the value) / (1 + R), (...) and (R, ...) -> (...); else NaN."""
    at_least = (null >= value - TIES).sum(0)
    return np.where(np.isnan(value), np.nan, (1 + at_least) / (1 + len(null)))


def calibrated(value: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Return the value's position between the null's 95 % and 1, (value - high) / (1 - high), clipped to [0, 1].

    The calibrated score of arXiv 2602.14486: 0 if the similarity is no larger than expected by chance.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.clip((value - high) / (1 - high), 0, 1)


def summary(value: np.ndarray, null: np.ndarray) -> dict[str, np.ndarray]:
    """Return the columns of tables for the similarities of two models, (A, B), and their null, (R, A, B).

    p_max: like p, against the largest of all pairs of layers in each permutation. max_high: the 95 % point of these.
    """
    largest = np.fmax.reduce(null, axis=(1, 2))  # undefined pairs of layers do not count
    best = np.fmax.reduce(value, axis=None)
    top = high(np.asarray(best), largest)
    return {
        "null_mean": null.mean(0, dtype=np.float64),
        "null_high": high(value, null),
        "p": p_value(value, null),
        "p_max": p_value(value, largest[:, None, None]),
        "max_high": np.full(value.shape, top),
    }
