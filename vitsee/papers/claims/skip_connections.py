"""Claims about skip connections (Figures 7, E.1, E.2)."""

from __future__ import annotations

import numpy as np
import pandas as pd

from vitsee.papers.claims.statistics import table_of
from vitsee.papers.verdicts import Evidence, Missing, claim


@claim(
    "in the first half, the class token mostly passes through the skip connection",
    "mean ratio of norms over the first half of blocks, class token relative to spatial tokens",
    above=1,
)
def class_token_first(skip: Evidence) -> float:
    """In the first half, the class token is 'primarily propagated by the skip connection branch' (section 6).

    Threshold: higher than that of spatial tokens by any margin, so 1.
    Null: untrained ViTs.
    Premise: none.
    """
    return _class_over_spatial(skip)[0]


@claim(
    "in the second half, the spatial tokens mostly pass through the skip connection",
    "mean ratio of norms over the second half of blocks, class token relative to spatial tokens",
    below=1,
)
def spatial_tokens_later(skip: Evidence) -> float:
    """'In the second half of the network, this is reversed' (section 6).

    Threshold: lower than that of spatial tokens by any margin, so 1.
    Null: untrained ViTs.
    Premise: none.
    """
    return _class_over_spatial(skip)[1]


@claim(
    "a phase transition: first the class token passes through the skip connections, then the spatial tokens do",
    "smaller ratio: class token to spatial tokens, first half; spatial tokens to class token, second half",
    above=1,
)
def phase_transition(skip: Evidence) -> float:
    """'A clear phase transition from preserving the CLS (class) token representation (in lower layers) to spatial
    token representations (in higher layers)' (section 6).

    Threshold: both halves on the claimed side by any margin, so 1 for the worse one.
    Null: untrained ViTs.
    Premise: none.
    """
    first, second = _class_over_spatial(skip)
    return min(first, 1 / second)


@claim(
    "in the second half, the class token is changed mostly by MLPs",
    "mean ratio of norms of the class token over the second half of blocks, MLP relative to attention",
    below=1,
)
def mlps_change_the_class_token(skip: Evidence) -> float:
    """'Later layers change it rapidly, mostly via MLP blocks' (Appendix E).

    Threshold: the MLP's branch is the larger one by any margin, so 1.
    Null: untrained ViTs.
    Premise: none.
    """
    table = _vit(skip)
    mlp, attn = (
        _by_block(table[table["branch"] == branch], "class", "ratio") for branch in ("mlp", "attn")
    )
    half = len(mlp) // 2
    return float(mlp[half:].mean() / attn[half:].mean())


@claim(
    "skip connections carry more in a ViT than in a ResNet",
    "mean ratio of norms, spatial tokens of the ViT relative to the ResNet",
    above=1,
)
def ratios_above_the_resnet(skip: Evidence) -> float:
    """'Much higher norm ratios for ViT throughout' (section 6).

    Threshold: higher by any margin, so 1.
    Null: untrained networks.
    Premise: none.
    """
    table = table_of(skip, "skip_ratio")
    units = table[(table["branch"] == "unit") & (table["token"] == -1)]["ratio"]
    if units.empty:
        raise Missing("units of a ResNet")
    spatial = _by_block(_vit(skip), "mean", "ratio")
    return float(spatial.mean() / units.mean())


@claim(
    "later spatial outputs are similar to the skip connection",
    "mean cosine similarity of skip connection and output over spatial tokens, second half of blocks minus first",
    above=0,
)
def later_spatial_outputs_follow_the_skip(skip: Evidence) -> float:
    """'The output of later blocks is very similar to the representation present on the skip connections' (Appendix E).

    Threshold: more similar than in the first half by any margin, so 0.
    Null: untrained ViTs; where every block adds about as much, each changes the sum less than the one before.
    Premise: none.
    """
    by_block = _by_block(_vit(skip), "mean", "cosine")
    half = len(by_block) // 2
    return float(by_block[half:].mean() - by_block[:half].mean())


def _class_over_spatial(skip: Evidence) -> tuple[float, float]:
    """Mean norm ratio of the class token relative to that of spatial tokens, in the first and second half."""
    table = _vit(skip)
    cls, spatial = (_by_block(table, kind, "ratio") for kind in ("class", "mean"))
    half = len(cls) // 2
    return (
        float(cls[:half].mean() / spatial[:half].mean()),
        float(cls[half:].mean() / spatial[half:].mean()),
    )


def _vit(skip: Evidence) -> pd.DataFrame:
    """The rows of attention and MLP of one model: the first of a pair that has them. Raises Missing without any."""
    table = table_of(skip, "skip_ratio")
    table = table[table["branch"].isin(["attn", "mlp"])]
    if table.empty:
        raise Missing("attention and MLP sublayers of a ViT")
    return table[table["model"] == table["model"].iloc[0]]


def _by_block(table: pd.DataFrame, kind: str, column: str) -> np.ndarray:
    """Mean over the branches, (blocks,), for this kind of token. Raises Missing without any."""
    chosen = table[table["kind"] == kind]
    if chosen.empty:
        raise Missing("attention and MLP sublayers of a ViT with a class token")
    return chosen.groupby("block", sort=False)[column].mean().to_numpy()
