"""CKA in plain float64 loops, written from the equations as printed, for tests to compare with."""

from __future__ import annotations

import numpy as np


def hsic1(k: np.ndarray, l: np.ndarray) -> float:
    """Song et al. 2012, eq. 5: unbiased HSIC of two (N, N) Gram matrices."""
    n = len(k)
    k, l = k.astype(np.float64), l.astype(np.float64)
    np.fill_diagonal(k := k.copy(), 0)
    np.fill_diagonal(l := l.copy(), 0)
    one = np.ones(n)
    trace = np.trace(k @ l)
    totals = (one @ k @ one) * (one @ l @ one) / ((n - 1) * (n - 2))
    cross = 2 / (n - 2) * (one @ k @ l @ one)
    return (trace + totals - cross) / (n * (n - 3))


def minibatch_cka(xs: list[np.ndarray], ys: list[np.ndarray]) -> float:
    """Nguyen et al. 2021, eq. 2: features (N, F) of each minibatch -> ratio of averages."""
    kl = kk = ll = 0.0
    for x, y in zip(xs, ys, strict=True):
        x, y = (z.reshape(len(z), -1).astype(np.float64) for z in (x, y))
        x, y = x - x.mean(0), y - y.mean(0)  # exact in float64, and HSIC_1 does not depend on it
        k, l = x @ x.T, y @ y.T
        kl, kk, ll = kl + hsic1(k, l), kk + hsic1(k, k), ll + hsic1(l, l)
    return kl / np.sqrt(kk * ll)


def place_cka(xs: list[np.ndarray], ys: list[np.ndarray]) -> np.ndarray:
    """CKA of every token with every patch: (T, N, F) and (P, N, G) of each minibatch -> (T, P)."""
    ab = np.zeros((len(xs[0]), len(ys[0])))
    aa, bb = np.zeros(ab.shape[0]), np.zeros(ab.shape[1])
    for x, y in zip(xs, ys, strict=True):
        k, l = ([z @ z.T for z in features.astype(np.float64)] for features in (x, y))
        for i in range(len(k)):
            aa[i] += hsic1(k[i], k[i])
            for j in range(len(l)):
                ab[i, j] += hsic1(k[i], l[j])
        bb += [hsic1(one, one) for one in l]
    return ab / np.sqrt(np.outer(aa, bb))
