"""Claims about the similarity of layers (Figures 1, 2, 8, B.1, H.1, H.2)."""

from __future__ import annotations

import re

import numpy as np

from vitsee.papers.claims.statistics import cka_matrix, number_in, roles_in, table_of, top1_accuracy
from vitsee.papers.verdicts import Evidence, Missing, claim


@claim(
    "layers of a ViT are more uniformly similar than those of a ResNet",
    "mean CKA of pairs of different layers, ViT minus ResNet",
    above=0,
)
def uniform(vit: Evidence, resnet: Evidence) -> float:
    """'ViTs show a much more uniform similarity structure' (section 4).

    Threshold: more similar by any margin, so 0.
    Null: untrained networks; residual streams of random blocks are similar already.
    Premise: none.
    """
    return _off_diagonal(cka_matrix(vit)) - _off_diagonal(cka_matrix(resnet))


@claim(
    "lower and higher layers of a ViT are more similar to each other than those of a ResNet",
    "mean CKA of the lowest and the highest quarter of layers, ViT minus ResNet",
    above=0,
)
def low_to_high(vit: Evidence, resnet: Evidence) -> float:
    """'Lower and higher layers in ViT show much greater similarity than in the ResNet' (section 4).

    Threshold: greater by any margin, so 0.
    Null: untrained networks.
    Premise: none.
    """
    return _ends(cka_matrix(vit)) - _ends(cka_matrix(resnet))


@claim(
    "the lower half of ResNet layers is similar to the lowest quarter of ViT layers",
    "median depth (fraction of layers) of the ViT layer most similar to each ResNet layer of the lower half",
    below=0.25,
)
def lower_half_is_lowest_quarter(cross: Evidence) -> float:
    """'The lower half of 60 ResNet layers are similar to approximately the lowest quarter of ViT layers' (section 4).

    Threshold: the typical match is within that quarter.
    Null: untrained networks.
    Premise: none.
    """
    return float(np.median(_matches(cka_matrix(cross))[0]))


@claim(
    "the lower half of ResNet layers is similar to the lowest third of ViT layers",
    "median depth (fraction of layers) of the ViT layer most similar to each ResNet layer of the lower half",
    below=1 / 3,
)
def lower_half_is_lowest_third(cross: Evidence) -> float:
    """'60 of the lowest R50 layers are similar to about 25 of the lowest ViT-B/32 layers' (Figure B.1).

    Threshold: 25 of the 75 layers of ViT-B/32, a third.
    Null: untrained networks.
    Premise: none.
    """
    return float(np.median(_matches(cka_matrix(cross))[0]))


@claim(
    "the upper half of ResNet layers is similar to the next third of ViT layers",
    "distance of the median matching depth from the middle of the range 0.25 to 0.58",
    below=1 / 6,
)
def upper_half_is_the_next_third(cross: Evidence) -> float:
    """'The top half of the ResNet is approximately similar to the next third of the ViT layers' (section 4).

    Threshold: the half-width of the range from 1/4 to 7/12.
    Null: untrained networks.
    Premise: none.
    """
    return abs(float(np.median(_matches(cka_matrix(cross))[1])) - 5 / 12)


@claim(
    "the highest third of ViT layers is less similar to all ResNet layers",
    "mean over layers of the highest CKA with any ResNet layer, highest third minus the rest",
    below=0,
)
def highest_third_is_unlike(cross: Evidence) -> float:
    """'The final third of ViT layers is less similar to all ResNet layers' (section 4).

    Threshold: less similar than the layers below them by any margin, so 0.
    Null: untrained networks.
    Premise: none.
    """
    best = _best(cka_matrix(cross))
    cut = len(best) * 2 // 3
    return float(best[cut:].mean() - best[:cut].mean())


@claim(
    "without the skip connections of a block, the layers before and after it are dissimilar",
    "CKA between the two sides over CKA within them, relative to the intact model",
    below=0.5,
)
def no_skip_splits_the_network(cut: Evidence, intact: Evidence) -> float:
    """Without them, 'very little representation similarity between layers before/after block i' (Figure 8).

    Threshold: 'very little': at most half of the intact model's ratio.
    Null: untrained networks, with and without the skip connections.
    Premise: none.
    """
    block = number_in(roles_in(cut)[0])
    return _contrast(cut, block) / _contrast(intact, block)


@claim(
    "without the skip connections of a block, accuracy is lower",
    "accuracy of the intact model minus that of the model without them",
    above=0,
    untrained=False,
)
def no_skip_costs_accuracy(accuracy: Evidence) -> float:
    """'A performance drop of 4% when removing skip connections from middle blocks' (section 6).

    Threshold: lower by any margin, so 0.
    Null: none: no untrained network classifies.
    Premise: none.
    """
    return top1_accuracy(accuracy, "vit_noskip_none") - top1_accuracy(accuracy, "vit_noskip_7")


@claim(
    "layers of a Mixer fall into a small first group and a large later one",
    "share of layers before the split into two groups with the highest contrast of CKA",
    below=0.5,
)
def mixer_has_a_small_first_group(mixer: Evidence) -> float:
    """'Distinct, uncorrelated blocks, with a smaller block in the beginning and a larger block
    afterwards' (Appendix H).

    Threshold: the first group is the smaller one.
    Null: untrained Mixers.
    Premise: none.
    """
    cka = cka_matrix(mixer)
    splits = range(2, len(cka) - 1)
    contrast = [_contrast_of(cka, np.arange(len(cka)) >= at) for at in splits]
    return splits[int(np.argmin(contrast))] / len(cka)


@claim(
    "a Mixer is more similar to a ViT than to a ResNet",
    "mean over Mixer layers of the highest CKA, with any ViT layer minus with any ResNet layer",
    above=0,
)
def mixer_is_closer_to_the_vit(vit: Evidence, resnet: Evidence) -> float:
    """'Overall, the models behave more similar to ViT than ResNets' (Appendix H).

    Threshold: more similar by any margin, so 0.
    Null: untrained networks.
    Premise: none.
    """
    return float(_best(cka_matrix(vit)).mean() - _best(cka_matrix(resnet)).mean())


def _off_diagonal(cka: np.ndarray) -> float:
    return float(np.nanmean(cka[~np.eye(len(cka), dtype=bool)]))


def _ends(cka: np.ndarray) -> float:
    quarter = max(1, len(cka) // 4)
    return float(np.nanmean(cka[:quarter, -quarter:]))


def _matches(cka: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Depth of the row most similar to each column, for the lower and upper half of the columns."""
    defined = cka[:, np.isfinite(cka).any(0)]
    depth = (np.nanargmax(defined, axis=0) + 0.5) / len(cka)
    return depth[: len(depth) // 2], depth[len(depth) // 2 :]


def _best(cka: np.ndarray) -> np.ndarray:
    """The highest CKA of each row with any defined value."""
    return np.nanmax(cka[np.isfinite(cka).any(1)], axis=1)


def _contrast(evidence: Evidence, block: int) -> float:
    """The contrast of the layers before and after a block."""
    after = [False]  # layers between blocks belong to the block before them
    for name in table_of(evidence, "cka")["model_layer"].unique():
        number = re.search(r"blocks\.(\d+)", str(name))
        after.append(int(number.group(1)) >= block if number else after[-1])
    if len(set(after[1:])) < 2:
        raise Missing(f"layers before and after block {block}")
    return _contrast_of(cka_matrix(evidence), np.array(after[1:]))


def _contrast_of(cka: np.ndarray, side: np.ndarray) -> float:
    """Mean CKA between layers on different sides, relative to different layers on the same side."""
    across = side[:, None] != side[None, :]
    within = ~across & ~np.eye(len(side), dtype=bool)
    return float(np.nanmean(cka[across]) / np.nanmean(cka[within]))
