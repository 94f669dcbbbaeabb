"""Claims about localisation (Figures 9, 10, D.1 to D.3)."""

from __future__ import annotations

import math

import pandas as pd

from vitsee.papers.claims.statistics import table_of
from vitsee.papers.verdicts import Evidence, Missing, claim


@claim(
    "interior tokens of the highest blocks are most similar to their own patch",
    "share of interior tokens whose own patch has the highest CKA, smallest over the measured blocks",
    above=0.5,
)
def tokens_stay_in_place(vit: Evidence) -> float:
    """Interior tokens are 'most similar to the corresponding image patch' (section 7).

    Threshold: most of them.
    Null: untrained ViTs, where the skip connections carry each patch to the end.
    Premise: none.
    """
    table = table_of(vit, "localization")
    inside = table[~_on_edge(table, "token_row", "token_col")].dropna(subset="cka")
    if inside.empty:
        return math.nan
    best = inside.loc[inside.groupby(["layer", "token_row", "token_col"])["cka"].idxmax()]
    return float(_own(best).groupby(best["layer"]).mean().min())


@claim(
    "spatial information is better preserved in a ViT than in a ResNet",
    "median over tokens of own CKA minus mean CKA, ViT minus ResNet",
    above=0,
)
def vit_localizes_better_than_the_resnet(vit: Evidence, resnet: Evidence) -> float:
    """'For ResNet, we see significantly weaker localization' (section 7).

    Threshold: weaker by any margin, so 0.
    Null: untrained networks, where the skip connections of the ViT carry each patch to the end.
    Premise: none.
    """
    return _excess(vit) - _excess(resnet)


@claim(
    "lower units of a ResNet localise better than its last",
    "median over tokens of own CKA minus mean CKA, first measured unit minus last",
    above=0,
)
def lower_units_localize_better(resnet: Evidence) -> float:
    """'Layers in the ResNet lower than the final layer display better localization' (Figure D.3).

    Threshold: better by any margin, so 0.
    Null: untrained ResNets.
    Premise: none.
    """
    layers = table_of(resnet, "localization_score")["layer"].unique()
    if len(layers) < 2:
        raise Missing("a second unit")
    return _excess(resnet, 0) - _excess(resnet)


@claim(
    "tokens at the edge are similar to patches along the edge",
    "mean CKA of edge tokens with edge patches that are not next to them, minus that with interior patches",
    above=0,
)
def edge_tokens_see_edges(vit: Evidence) -> float:
    """'Tokens on the edge are similar to many edge positions' (Figure D.1).

    Threshold: more similar than to the interior by any margin, so 0.
    Null: untrained ViTs.
    Premise: none.
    """
    table = table_of(vit, "localization")
    table = table[table["layer"] == table["layer"].iloc[-1]]
    apart = [(table[f"token_{axis}"] - table[f"patch_{axis}"]).abs() > 1 for axis in ("row", "col")]
    edge = table[_on_edge(table, "token_row", "token_col") & (apart[0] | apart[1])]
    border = _on_edge(table, "patch_row", "patch_col")[edge.index]
    return float(edge["cka"][border].mean() - edge["cka"][~border].mean())


@claim(
    "a ViT with global average pooling localises less than one with a class token",
    "median over tokens of own CKA minus mean CKA, GAP minus class token",
    below=0,
)
def gap_loses_localization(gap: Evidence, cls: Evidence) -> float:
    """'We observe significantly less localization' (Figure 10).

    Threshold: less by any margin, so 0.
    Null: untrained networks.
    Premise: none.
    """
    return _excess(gap) - _excess(cls)


def _own(table: pd.DataFrame) -> pd.Series:
    """Whether the patch is at the token's own location."""
    return (table["token_row"] == table["patch_row"]) & (table["token_col"] == table["patch_col"])


def _excess(evidence: Evidence, place: int = -1) -> float:
    """Median over tokens of own CKA minus mean CKA, in the layer at this place (by default the last)."""
    table = table_of(evidence, "localization_score")
    scores = table[table["layer"] == table["layer"].unique()[place]]
    return float((scores["own_cka"] - scores["mean_cka"]).median())


def _on_edge(table: pd.DataFrame, row: str, column: str) -> pd.Series:
    last_row, last_column = table[row].max(), table[column].max()
    return table[row].isin([0, last_row]) | table[column].isin([0, last_column])
