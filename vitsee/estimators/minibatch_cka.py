"""CKA as a ratio of sums over minibatches: the summed terms, the estimate and its standard error."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

Array = TypeVar("Array", "Tensor", np.ndarray)


def cka_terms(ab: Tensor, aa: Tensor, bb: Tensor, fresh: float) -> dict[str, Tensor]:
    """Return what one minibatch adds to the sums that `cka_and_error` takes.

    ab: HSIC_1 of every layer a with every layer b, (A, B), or of pairs, (P,). aa, (A,) or (P,), and bb, (B,) or
    (P,): HSIC_1 of each layer with itself. fresh: share of the images that no earlier minibatch contains
    (`View.fresh`).
    """
    a, b = _along(ab, aa, bb)
    return {
        "fresh": ab.new_tensor(fresh),
        "ab": ab,
        "aa": aa,
        "bb": bb,
        "ab_ab": ab * ab,
        "ab_aa": ab * a,
        "ab_bb": ab * b,
        "aa_bb": a * b,
        "aa_aa": aa * aa,
        "bb_bb": bb * bb,
    }


def cka_and_error(terms: dict[str, np.ndarray], minibatches: int) -> tuple[np.ndarray, np.ndarray]:
    """Return CKA and its standard error from sums over minibatches, each (A, B), or (P,) for pairs.

    The standard error of this ratio of sums is by the delta method: minibatch i moves the ratio by
    ab_i / sqrt(aa bb) - cka / 2 (aa_i / aa + bb_i / bb), and the squares of these add up. Images that
    are drawn again count once: all minibatches contribute to the variance of one minibatch, but only fresh
    images reduce the error. It is NaN for one minibatch, and not resolved below about 1e-8. Undefined
    entries are NaN.
    """
    ab = terms["ab"]
    aa, bb = _along(ab, terms["aa"], terms["bb"])
    with np.errstate(divide="ignore", invalid="ignore"):
        scale = np.sqrt(aa * bb)
        cka = ab / np.where(scale > 0, scale, np.nan)
        of_aa, of_bb = _along(
            ab, terms["aa_aa"] / terms["aa"] ** 2, terms["bb_bb"] / terms["bb"] ** 2
        )
        squares = (
            terms["ab_ab"] / (aa * bb)
            - cka / scale * (terms["ab_aa"] / aa + terms["ab_bb"] / bb)
            + cka**2 / 4 * (of_aa + of_bb + 2 * terms["aa_bb"] / (aa * bb))
        )
        of_one = np.clip(squares, 0, None) * np.float64(minibatches) ** 2 / (minibatches - 1)
        variance = of_one / terms["fresh"]
    se = np.sqrt(variance) if minibatches > 1 else np.full_like(cka, np.nan)
    return cka, se


def _along(ab: Array, aa: Array, bb: Array) -> tuple[Array, Array]:
    """Return aa along the rows and bb along the columns of ab; unchanged for pairs."""
    return (aa, bb) if ab.ndim == 1 else (aa[:, None], bb[None, :])
