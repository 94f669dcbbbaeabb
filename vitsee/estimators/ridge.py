"""Ridge regression in closed form, from sums or from rows, for all penalties at once.

Axes: ... independent probes; N examples; D features; K classes; R components.
The regression is in float64, to allow small penalties and features with means far above their deviations.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

from vitsee.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

EPSILON = 1e-5
"""Added to the standard deviations that features are divided by, as in big_vision's few-shot probe."""
ROUNDING = 2e-6
"""A feature counts as constant if its standard deviation divided by its mean is smaller than this."""


@dataclass(frozen=True)
class Ridge:
    """Solutions W of (ZᵀZ + l2 I) W = ZᵀY for every l2, kept as an eigendecomposition.

    Z are the standardised training features. Y are the targets, +1 for the example's class and -1 for the
    others. The bias is not penalised. For n < D examples, the n x n matrix ZZᵀ is decomposed instead.

    mean, scale: (..., D), z = (x - mean) scale, with scale 0 for constant features. basis: (..., D, R)
    and projections: (..., R, K), W = basis (eigenvalues + l2)^-1 projections. bias: (..., K).
    defined: (...), whether the training features are finite, some of them vary, and two classes are present.
    """

    mean: Tensor
    scale: Tensor
    basis: Tensor
    eigenvalues: Tensor
    projections: Tensor
    bias: Tensor
    defined: Tensor

    def standardised(self, x: Tensor) -> Tensor:
        """Standardise features, (..., N, D) -> (..., N, D) float64."""
        return (x.double() - self.mean[..., None, :]) * self.scale[..., None, :]

    def weights(self, l2: Tensor) -> Tensor:
        """Return W for one penalty per probe: (...) -> (..., D, K)."""
        return self.basis @ (self.projections / (self.eigenvalues + l2[..., None])[..., None])

    def classifier(self, l2: Tensor) -> Classifier:
        """Return the classifier of raw features, for one penalty per probe."""
        weights = self.scale[..., :, None] * self.weights(l2)
        intercept = self.bias - (self.mean[..., None, :] @ weights)[..., 0, :]
        return Classifier(weights, intercept, self.defined)

    def scores_of_each(self, x: Tensor, grid: list[float]) -> list[Tensor]:
        """Return the scores, (..., N, K), for each penalty of the grid. The features are projected once."""
        components = self.standardised(x) @ self.basis
        return [
            (components / (self.eigenvalues + l2)[..., None, :]) @ self.projections
            + self.bias[..., None, :]
            for l2 in grid
        ]

    def correct_of_each(self, x: Tensor, labels: Tensor, grid: list[float]) -> Tensor:
        """Return the number of correctly classified examples for each penalty of the grid: (..., G)."""
        every = self.scores_of_each(x, grid)
        return torch.stack([_correct(scores, labels, self.defined) for scores in every], -1)


@dataclass(frozen=True)
class Classifier:
    """Scores of raw features: weights (..., D, K), intercepts (..., K), and whether they are defined (...)."""

    weights: Tensor
    intercept: Tensor
    defined: Tensor

    def scores(self, x: Tensor) -> Tensor:
        """Return the scores of (..., N, D) features: (..., N, K)."""
        return x @ self.weights + self.intercept[..., None, :]

    def correct(self, x: Tensor, labels: Tensor) -> Tensor:
        """Return the number of correctly classified examples: (...)."""
        return _correct(self.scores(x), labels, self.defined)


def sums_of(x: Tensor, labels: Tensor, classes: int, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Return the class sums and products of `from_sums` for some examples.

    x: (..., N, D). labels: (N,). weights: (..., N), 1 for an example that counts and 0 for another.
    """
    one_hot = torch.nn.functional.one_hot(labels, classes).to(x)
    return (one_hot.mT * weights[..., None, :]) @ x, (x * weights[..., None]).mT @ x


def from_sums(counts: Tensor, class_sums: Tensor, products: Tensor) -> Ridge:
    """Solve the primal form, from terms that add up over examples.

    counts: (..., K) examples per class. class_sums: (..., K, D) sums of their features, which give the
    total sum and XᵀY. products: (..., D, D), XᵀX. The sums are not centred, because shards do not know the
    mean. The resulting error in float64 is far below the rounding of float32 features.
    """
    finite = products.isfinite().all(-1).all(-1) & class_sums.isfinite().all(-1).all(-1)
    products, class_sums = products.nan_to_num(0, 0, 0), class_sums.nan_to_num(0, 0, 0)
    n = counts.sum(-1, keepdim=True)
    total = class_sums.sum(-2)
    mean = total / n
    covariance = products - mean[..., :, None] * total[..., None, :]
    scale = _scale(mean, covariance.diagonal(dim1=-2, dim2=-1) / n)
    signs = 2 * counts - n  # column sums of the targets
    zy = 2 * class_sums - total[..., None, :] - signs[..., :, None] * mean[..., None, :]
    eigenvalues, basis = torch.linalg.eigh(scale[..., :, None] * covariance * scale[..., None, :])
    return Ridge(
        mean,
        scale,
        basis,
        eigenvalues.clamp(min=0),
        basis.mT @ (zy * scale[..., None, :]).mT,
        signs / n,
        finite & _solvable(scale, counts),
    )


def from_rows(rows: Tensor, labels: Tensor, classes: int) -> Ridge:
    """Solve the dual form, from the examples themselves: (..., N, D) features and (N,) labels.

    A label of -1 marks a missing example, whose row is ignored.
    """
    present = (labels >= 0).to(rows.dtype)
    one_hot = torch.nn.functional.one_hot(labels.clamp(min=0), classes) * present[:, None]
    counts, n = one_hot.sum(0), present.sum()
    finite = rows.isfinite().all(-1).all(-1)
    rows = rows.nan_to_num(0, 0, 0)
    mean = (rows * present[:, None]).sum(-2) / n
    centred = (rows - mean[..., None, :]) * present[:, None]
    scale = _scale(mean, centred.square().sum(-2) / n)
    z = centred * scale[..., None, :]
    eigenvalues, u = torch.linalg.eigh(z @ z.mT)
    bias = (2 * counts - n) / n
    targets = (2 * one_hot - 1 - bias) * present[:, None]
    return Ridge(
        mean,
        scale,
        z.mT @ u,
        eigenvalues.clamp(min=0),
        u.mT @ targets,
        bias.expand(*mean.shape[:-1], classes),
        finite & _solvable(scale, counts),
    )


def _scale(mean: Tensor, variance: Tensor) -> Tensor:
    """Return the factors that standardise features; 0 for those that vary only by rounding."""
    deviation = variance.clamp(min=0).sqrt()
    return torch.where(deviation > ROUNDING * mean.abs(), 1 / (deviation + EPSILON), 0.0)


def _solvable(scale: Tensor, counts: Tensor) -> Tensor:
    """Return whether any feature varies and at least two classes have examples."""
    return (scale > 0).any(-1) & ((counts > 0).sum(-1) >= 2)


def _correct(scores: Tensor, labels: Tensor, defined: Tensor) -> Tensor:
    """Return how many of (..., N, K) scores are largest for the (N,) labels: (...).

    NaN where the probe is not defined or a score is not finite.
    """
    usable = defined & scores.isfinite().all(-1).all(-1)
    right = (scores.argmax(-1) == labels).sum(-1).to(scores.dtype)
    return torch.where(usable, right, torch.nan)


def best(held_out: Tensor, grid: list[float]) -> Tensor:
    """Return the penalty with the most correct held-out examples, the largest on ties: (..., G) -> (...).

    NaN where any count is NaN.
    """
    order = torch.tensor(grid, dtype=torch.float64, device=held_out.device).sort(descending=True)
    chosen = order.values[held_out[..., order.indices].nan_to_num(-1).argmax(-1)]
    return torch.where(held_out.isnan().any(-1), torch.nan, chosen)


def stack(each: list[Ridge]) -> Ridge:
    """Stack solutions of the same shapes along a new first axis."""
    names = [f.name for f in fields(Ridge)]
    return Ridge(**{name: torch.stack([getattr(one, name) for one in each]) for name in names})
