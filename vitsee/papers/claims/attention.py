"""Claims about attention (Figures 3, 4, 5, C.5, C.6; ViT paper 7, 10, 11)."""

from __future__ import annotations

import numpy as np

from vitsee.papers.claims.statistics import head_distances, spearman, table_of
from vitsee.papers.verdicts import Evidence, claim


def _much_data_gives_local_heads(little: Evidence, much: Evidence) -> str:
    least = head_distances(much, lowest=True).min()
    return "" if least < 0.5 else f"much data gives no local heads either (smallest {least:.2f})"


def _heads_differ(heads: Evidence) -> str:
    distance = table_of(heads, "head_similarity")["mean_distance_px"]
    ratio = distance.min() / distance.max()
    return (
        ""
        if ratio < 0.8
        else f"all heads are about equally local (smallest to largest {ratio:.2f})"
    )


@claim(
    "the lowest blocks have local heads",
    "smallest distance of a head in the two lowest blocks, relative to uniform attention",
    below=0.5,
    any_of=True,
)
def low_blocks_have_local_heads(vit: Evidence) -> np.ndarray:
    """In the lowest layers 'a mix of local heads (small distances) and global heads (large distances)' (section 5).

    Threshold: less than half the distance of uniform attention.
    Null: untrained ViTs.
    Premise: none.
    """
    return head_distances(vit, lowest=True).to_numpy()


@claim(
    "the lowest blocks also have global heads",
    "largest distance of a head in the two lowest blocks, relative to uniform attention",
    above=0.8,
    any_of=True,
)
def low_blocks_have_global_heads(vit: Evidence) -> np.ndarray:
    """In the lowest layers 'a mix of local heads (small distances) and global heads (large distances)' (section 5).

    Threshold: close to uniform attention; 0.8 leaves room for attention to the class token.
    Null: untrained ViTs, all of whose heads attend almost uniformly.
    Premise: none.
    """
    return head_distances(vit, lowest=True).to_numpy()


@claim(
    "all heads of the highest blocks are global",
    "smallest distance of a head in the two highest blocks, relative to uniform attention",
    above=0.8,
)
def high_blocks_are_global(vit: Evidence) -> float:
    """'At higher layers, all self-attention heads are global' (section 5).

    Threshold: close to uniform attention; 0.8 leaves room for attention to the class token.
    Null: untrained ViTs, all of whose heads attend almost uniformly.
    Premise: none.
    """
    return head_distances(vit, lowest=False).min()


@claim(
    "with little training data, the lowest blocks do not learn local heads",
    "smallest relative distance in the two lowest blocks, little minus much data",
    above=0,
    untrained=False,
    premise=_much_data_gives_local_heads,
)
def little_data_no_local_heads(little: Evidence, much: Evidence) -> float:
    """'With less training data, lower attention layers do not learn to attend locally' (Figure 4).

    Threshold: less local than with much data by any margin, so 0.
    Null: none: untrained, both are the same network.
    Premise: with much data the lowest blocks have a local head, as claimed for Figure 3.
    """
    return head_distances(little, lowest=True).min() - head_distances(much, lowest=True).min()


@claim(
    "a small ViT learns local heads even with little data",
    "smallest distance of a head in the two lowest blocks, relative to uniform attention",
    below=0.5,
    any_of=True,
)
def small_models_keep_local_heads(little: Evidence) -> np.ndarray:
    """'ViT-B/32 learns to attend locally even on a smaller dataset' (Figure C.5).

    Threshold: less than half the distance of uniform attention, as with much data.
    Null: untrained ViTs.
    Premise: none.
    """
    return head_distances(little, lowest=True).to_numpy()


@claim(
    "the more local the heads, the more similar they are to low ResNet layers",
    "Spearman correlation between mean distance and CKA, mean over ResNet layers",
    below=-0.5,
    premise=_heads_differ,
)
def local_heads_are_like_low_layers(heads: Evidence) -> float:
    """'A monotonic decrease in similarity as mean attention distance grows' (section 5).

    Threshold: a strong correlation.
    Null: untrained networks.
    Premise: the most local heads have less than 0.8 of the distance of the most global ones.
    """
    table = table_of(heads, "head_similarity")
    lines = table.groupby("other_layer")
    return float(np.mean([spearman(one["mean_distance_px"], one["cka"]) for _, one in lines]))


@claim(
    "mean attention distance grows with depth",
    "Spearman correlation between block index and mean distance of its heads",
    above=0.5,
)
def distance_grows_with_depth(distance: Evidence) -> float:
    """'The attention distance increases with network depth' (Dosovitskiy et al., section 4.5).

    Threshold: a strong correlation.
    Null: untrained ViTs.
    Premise: none.
    """
    means = table_of(distance, "attention_distance").groupby("block")["distance_px"].mean()
    return spearman(means.index.to_series(), means)


@claim(
    "local heads are less pronounced in hybrids",
    "mean relative distance of the heads in the two lowest blocks, hybrid minus ViT",
    above=0,
)
def hybrid_heads_are_less_local(vit: Evidence, hybrid: Evidence) -> float:
    """'This highly localized attention is less pronounced in hybrid models' (Dosovitskiy et al., section 4.5).

    Threshold: less by any margin, so 0.
    Null: untrained networks.
    Premise: none.
    """
    return float(
        head_distances(hybrid, lowest=True).mean() - head_distances(vit, lowest=True).mean()
    )


@claim(
    "nearby positions have more similar embeddings",
    "mean cosine similarity of neighbouring positions minus that of all other pairs, in standard deviations of pairs",
    above=0.8,
)
def near_positions_are_similar(positions: Evidence) -> float:
    """'Closer patches tend to have more similar position embeddings' (Dosovitskiy et al., section 4.5).

    Threshold: a large effect (Cohen 1988); positions permuted at random give about 0, with a standard
        deviation of 1 / sqrt(pairs of neighbours), below 0.11 for a grid of 7 x 7.
    Null: untrained ViTs; embeddings that begin as sines and cosines are similar before training.
    Premise: none.
    """
    t = table_of(positions, "position_similarity")
    steps = (t["row"] - t["other_row"]).abs() + (t["col"] - t["other_col"]).abs()
    pairs = t["cosine"][steps > 0]
    return float((pairs[steps == 1].mean() - pairs[steps > 1].mean()) / pairs.std())
