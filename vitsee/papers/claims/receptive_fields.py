"""Claims about receptive fields (Figures 6, C.1 to C.4)."""

from __future__ import annotations

import numpy as np
import pandas as pd

from vitsee.papers.claims.statistics import spearman, table_of
from vitsee.papers.verdicts import Evidence, Missing, claim


@claim(
    "receptive fields of a ResNet grow with depth",
    "Spearman correlation between depth and the radius that holds half of the field",
    above=0.9,
)
def resnet_fields_grow(resnet: Evidence) -> float:
    """'ResNet effective receptive fields are highly local and grow gradually' (Figure 6).

    Threshold: the field of nearly every unit is larger than the one before.
    Null: untrained ResNets; every convolution adds to the field, whatever its weights.
    Premise: none.
    """
    radii = _sizes(resnet, "post")["radius50_px"]
    return spearman(pd.Series(range(len(radii))), radii.reset_index(drop=True))


@claim(
    "receptive fields of low ViT layers are larger than those of low ResNet layers",
    "mean radius (px) that holds half of the field, lowest quarter of layers, ViT minus ResNet",
    above=0,
)
def vit_fields_start_larger(vit: Evidence, resnet: Evidence) -> float:
    """'Lower layer effective receptive fields for ViT are indeed larger than in ResNets' (section 5).

    Threshold: larger by any margin, so 0.
    Null: untrained networks; a patch is larger than a small convolution.
    Premise: none.
    """
    means = []
    for evidence in (vit, resnet):
        radii = _sizes(evidence, "post")["radius50_px"]
        means.append(radii.iloc[: max(1, len(radii) // 4)].mean())
    return float(means[0] - means[1])


@claim(
    "receptive fields of a ViT are global by the middle of the network",
    "radius that holds half of the middle layer's field, relative to a uniform field",
    above=0.8,
)
def vit_is_global_by_the_middle(vit: Evidence) -> float:
    """'ViT receptive fields become much more global midway through the network' (section 5).

    Threshold: close to uniform, as for attention. Half of the field, because a faint haze around the own patch
        is enough for larger fractions.
    Null: untrained ViTs.
    Premise: none.
    """
    maps = table_of(vit, "receptive_field")
    maps = maps[maps["point"] == "post"]
    layers = maps["layer"].unique()
    middle = maps[maps["layer"] == layers[len(layers) // 2]]
    field = middle.pivot(index="row", columns="col", values="value").to_numpy()
    return _radius(field, 0.5) / _radius(np.ones_like(field), 0.5)


@claim(
    "before the addition, attention depends less on its own patch",
    "mean share of the field within the own patch over attention sublayers, before minus after the addition",
    below=0,
)
def branches_depend_less_on_their_patch(pre: Evidence, post: Evidence) -> float:
    """Before the addition they 'have a smaller relative contribution from the corresponding input patch' (Appendix C).

    Threshold: smaller by any margin, so 0.
    Null: untrained ViTs; without the skip connection nothing carries the own patch alone.
    Premise: none.
    """
    return _attention_share(pre, "pre") - _attention_share(post, "post")


def _sizes(evidence: Evidence, point: str) -> pd.DataFrame:
    table = table_of(evidence, "receptive_field_size")
    sizes = table[table["point"] == point]
    if sizes.empty:
        raise Missing(f"receptive fields at point {point}")
    return sizes


def _attention_share(evidence: Evidence, point: str) -> float:
    sizes = _sizes(evidence, point)
    attention = sizes[sizes["layer"].str.contains("attn")]
    if attention.empty:
        raise Missing("attention sublayers")
    return float(attention["own_share"].mean())


def _radius(field: np.ndarray, share: float) -> float:
    """Radius, in steps of the grid, that contains this fraction of the mass around the centre."""
    rows, columns = (np.arange(n) - n // 2 for n in field.shape)
    distance = np.hypot(rows[:, None], columns[None, :]).ravel()
    order = np.argsort(distance, kind="stable")
    held = np.cumsum(field.ravel()[order])
    return float(distance[order][np.searchsorted(held, share * held[-1])])
