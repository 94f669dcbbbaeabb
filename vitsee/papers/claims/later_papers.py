"""Claims of later papers (extra figures)."""

from __future__ import annotations

import numpy as np
import pandas as pd

from vitsee.papers.claims.statistics import roles_in, table_of
from vitsee.papers.verdicts import Evidence, Missing, claim


@claim(
    "a few patch tokens of a large ViT have outlier norms",
    "share of outliers among the patch tokens of the last quarter of layers",
    above=0.01,
)
def vits_have_outlier_tokens(norms: Evidence) -> float:
    """'A small fraction of the total sequence (around 2%)' (Darcet et al. 2024).

    Threshold: half of that.
    Null: untrained ViTs, whose norms are all alike.
    Premise: none.
    """
    share = _outliers(norms)
    return float(share[-max(1, len(share) // 4) :].mean())


@claim(
    "outlier tokens come midway through the network",
    "share of outliers among patch tokens, last quarter of layers minus first",
    above=0,
)
def outlier_tokens_come_midway(norms: Evidence) -> float:
    """They differentiate 'around layer 15 of 40' (Darcet et al. 2024).

    Threshold: more at the end than at the beginning by any margin, so 0.
    Null: untrained ViTs, which have none at either end.
    Premise: none.
    """
    share = _outliers(norms)
    quarter = max(1, len(share) // 4)
    return float(share[-quarter:].mean() - share[:quarter].mean())


@claim(
    "the largest activations of a ViT are massive",
    "largest over median magnitude, highest of all layers",
    above=1000,
)
def activations_are_massive(ranks: Evidence) -> float:
    """Magnitudes are 'at least or around 1,000 times larger than the median' (Sun et al. 2024).

    Threshold: that number; for as many values from a normal distribution, the ratio is about 8.
    Null: untrained ViTs.
    Premise: none.
    """
    return float(_largest(ranks)["ratio"].max())


@claim(
    "massive activations keep their channel, whatever the image",
    "share of images with the same channel, in the layer with the largest ratio",
    above=0.9,
)
def massive_activations_keep_their_channel(ranks: Evidence) -> float:
    """They appear in 'a small, fixed set' of feature dimensions (Sun et al. 2024).

    Threshold: the same channel in nearly all images; by chance it would be one over the number of channels.
    Null: untrained ViTs.
    Premise: none.
    """
    first = _largest(ranks)
    return float(first["channel_share"].iloc[int(first["ratio"].argmax())])


@claim(
    "a ViT bears the loss of patches better than a ResNet",
    "accuracy (or agreement) when half of the patches are dropped at random, ViT minus ResNet",
    above=0,
    untrained=False,
)
def vits_bear_occlusion(drops: Evidence) -> float:
    """With half of the image gone 'DeiT-S obtains 70%' where 'ResNet50 obtains 0.1%' (Naseer et al. 2021).

    Threshold: better by any margin, so 0; two models that do not look at the image differ by 0.
    Null: none: no untrained network classifies, and one that predicts the same class for all agrees with itself.
    Premise: none.
    """
    vit, resnet = (_changed(drops, role, "drop_random") for role in ("vit_large_ft", "resnet50_v1"))
    return float(_half(vit) - _half(resnet))


@claim(
    "the patches that a ViT attends to matter more to its predictions than the others",
    "accuracy (or agreement) with the least minus with the most salient half of the patches dropped",
    above=0,
    untrained=False,
)
def salient_patches_matter(drops: Evidence) -> float:
    """Accuracy falls faster when the salient patches are dropped (Naseer et al. 2021, Figure 3).

    Threshold: faster by any margin, so 0, the value if saliency is uninformative.
    Null: none: no untrained network classifies.
    Premise: none.
    """
    other, salient = (
        _changed(drops, "vit_large_ft", change) for change in ("drop_other", "drop_salient")
    )
    return float(_half(other) - _half(salient))


@claim(
    "a ViT bears shuffled patches better than a ResNet",
    "accuracy (or agreement), mean over the shuffles, ViT minus ResNet",
    above=0,
    untrained=False,
)
def vits_bear_shuffling(shuffle: Evidence) -> float:
    """ViTs are 'more robust' to shuffled patches (Naseer et al. 2021).

    Threshold: better by any margin, so 0; two models that do not look at the image differ by 0.
    Null: none: no untrained network classifies.
    Premise: none.
    """
    vit, resnet = (_changed(shuffle, role, "shuffle") for role in ("vit_large_ft", "resnet50_v1"))
    return float(vit[vit.index > 1].mean() - resnet[resnet.index > 1].mean())


@claim(
    "attention lowers high frequencies more than MLPs do",
    "mean change of the highest frequency's log amplitude, attention sublayers minus MLP sublayers",
    below=0,
)
def attention_lowers_high_frequencies(sublayers: Evidence) -> float:
    """'MSAs are low-pass filters, but Convs are high-pass filters', and MLPs with the latter (Park and Kim 2022).

    The first sublayer does not count, as none precedes it.

    Threshold: lower by any margin, so 0, the value if both have the same effect.
    Null: untrained ViTs; nearly uniform attention is an average over all places.
    Premise: none.
    """
    highest = _highest(sublayers)
    change = highest["relative"].diff()[1:]
    attention = highest["layer"].str.endswith("+attn")[1:]
    if not attention.any() or attention.all():
        raise Missing("attention and MLP sublayers")
    return float(change[attention].mean() - change[~attention].mean())


@claim(
    "units of a ResNet raise high frequencies",
    "mean change of the highest frequency's log amplitude between units with the same grid",
    above=0,
)
def units_raise_high_frequencies(resnet: Evidence) -> float:
    """'Convs are high-pass filters' (Park and Kim 2022).

    Threshold: raised by any margin, so 0, the value if units change nothing.
    Null: untrained ResNets.
    Premise: none.
    """
    highest = _highest(resnet)
    grid = highest[["frequency", "frequencies"]]  # 7 x 7 and 14 x 14 share their highest frequency
    same = (grid.diff() == 0).all(axis=1)
    if not same.any():
        raise Missing("several units with the same grid")
    return float(highest["relative"].diff()[same].mean())


def _outliers(norms: Evidence) -> np.ndarray:
    """Share of outliers among the patch tokens of each layer."""
    table = table_of(norms, "token_norm")
    patches = table[table["kind"] == "patch"]
    return patches.groupby("layer", sort=False)["outlier_share"].mean().to_numpy()


def _largest(ranks: Evidence) -> pd.DataFrame:
    table = table_of(ranks, "massive_activation")
    return table[table["rank"] == 1]


def _changed(evidence: Evidence, role: str, change: str) -> pd.Series:
    """Accuracy by strength of a change; agreement if any model's accuracy is unknown."""
    tables = [table_of(evidence, "robustness", one) for one in roles_in(evidence)]
    known = all(table["accuracy"].notna().all() for table in tables)
    table = table_of(evidence, "robustness", role)
    rows = table[table["change"] == change].set_index("strength")
    if rows.empty:
        raise Missing(change)
    return rows["accuracy" if known else "agreement"]


def _half(by_strength: pd.Series) -> float:
    """The value at strength 0.5."""
    if 0.5 not in by_strength.index:
        raise Missing("drops of 0.5")
    return float(by_strength[0.5])


def _highest(evidence: Evidence) -> pd.DataFrame:
    """The highest frequency of each layer, and the number of its frequencies."""
    table = table_of(evidence, "fourier")
    table = table.assign(frequencies=table.groupby("layer")["frequency"].transform("size"))
    highest = table[table["frequency"] > 0].groupby("layer", sort=False).tail(1)
    return highest.reset_index(drop=True)
