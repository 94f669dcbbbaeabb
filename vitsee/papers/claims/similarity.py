"""The papers' claims, each as a statistic with a threshold taken only from their text, a null and a premise.

Sections and figures are those of Raghu et al. 2021 unless another paper is named.
"""

from __future__ import annotations

import re

import numpy as np
import pandas as pd

from vitsee.papers.verdicts import CLAIMS, Evidence, Missing, Tables, claim

__all__ = ["CLAIMS"]

# ---- premises ----


def _much_data_gives_local_heads(little: Evidence, much: Evidence) -> str:
    least = _heads(much, lowest=True).min()
    return "" if least < 0.5 else f"much data gives no local heads either (smallest {least:.2f})"


def _heads_differ(heads: Evidence) -> str:
    distance = _table(_only(heads), "head_similarity")["mean_distance_px"]
    ratio = distance.min() / distance.max()
    return (
        ""
        if ratio < 0.8
        else f"all heads are about equally local (smallest to largest {ratio:.2f})"
    )


# ---- similarity of layers (Figures 1, 2, 8, B.1, H.1, H.2) ----


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
    return _off_diagonal(_square(vit)) - _off_diagonal(_square(resnet))


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
    return _ends(_square(vit)) - _ends(_square(resnet))


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
    return float(np.median(_matches(_square(cross))[0]))


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
    return float(np.median(_matches(_square(cross))[0]))


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
    return abs(float(np.median(_matches(_square(cross))[1])) - 5 / 12)


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
    best = _best(_square(cross))
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
    role, tables = next(iter(_present(cut).items()))
    number = int(role.rsplit("_", 1)[-1])
    return _contrast(tables, number) / _contrast(_only(intact), number)


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
    return _top1(accuracy, "vit_noskip_none") - _top1(accuracy, "vit_noskip_7")


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
    cka = _square(mixer)
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
    return float(_best(_square(vit)).mean() - _best(_square(resnet)).mean())


# ---- attention (Figures 3, 4, 5, C.5, C.6; ViT paper 7, 10, 11) ----


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
    return _heads(vit, lowest=True).to_numpy()


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
    return _heads(vit, lowest=True).to_numpy()


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
    return _heads(vit, lowest=False).min()


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
    return _heads(little, lowest=True).min() - _heads(much, lowest=True).min()


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
    return _heads(little, lowest=True).to_numpy()


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
    table = _table(_only(heads), "head_similarity")
    lines = table.groupby("other_layer")
    return float(np.mean([_spearman(one["mean_distance_px"], one["cka"]) for _, one in lines]))


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
    means = _table(_only(distance), "attention_distance").groupby("block")["distance_px"].mean()
    return _spearman(means.index.to_series(), means)


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
    return float(_heads(hybrid, lowest=True).mean() - _heads(vit, lowest=True).mean())


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
    t = _table(_only(positions), "position_similarity")
    steps = (t["row"] - t["other_row"]).abs() + (t["col"] - t["other_col"]).abs()
    pairs = t["cosine"][steps > 0]
    return float((pairs[steps == 1].mean() - pairs[steps > 1].mean()) / pairs.std())


# ---- receptive fields (Figures 6, C.1 to C.4) ----


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
    radii = _sizes(_only(resnet), "post")["radius50_px"]
    return _spearman(pd.Series(range(len(radii))), radii.reset_index(drop=True))


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
        radii = _sizes(_only(evidence), "post")["radius50_px"]
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
    maps = _table(_only(vit), "receptive_field")
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
    return _attention_share(_only(pre), "pre") - _attention_share(_only(post), "post")


# ---- skip connections (Figures 7, E.1, E.2) ----


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
    table = _table(_only(skip), "skip_ratio")
    table = table[table["token"] == 0]
    by_branch = [
        table[table["branch"] == branch].groupby("block", sort=False)["ratio"].mean().to_numpy()
        for branch in ("mlp", "attn")
    ]
    if not all(map(len, by_branch)):
        raise Missing("attention and MLP sublayers of a ViT with a class token")
    mlp, attn = (ratios[len(ratios) // 2 :].mean() for ratios in by_branch)
    return float(mlp / attn)


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
    table = _table(_only(skip), "skip_ratio")
    units = table[(table["branch"] == "unit") & (table["token"] == -1)]["ratio"]
    if units.empty:
        raise Missing("units of a ResNet")
    return float(_ratios(_only(skip))[1].mean() / units.mean())


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
    table = _table(_only(skip), "skip_ratio")
    spatial = table[(table["token"] == -1) & table["branch"].isin(["attn", "mlp"])]
    by_block = spatial.groupby("block", sort=False)["cosine"].mean().to_numpy()
    half = len(by_block) // 2
    return float(by_block[half:].mean() - by_block[:half].mean())


# ---- localisation (Figures 9, 10, D.1 to D.3) ----


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
    table = _table(_only(vit), "localization")
    inside = table[~_on_edge(table, "token_row", "token_col")]
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
    layers = _table(_only(resnet), "localization_score")["layer"].unique()
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
    table = _table(_only(vit), "localization")
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


# ---- probes (Figures 11, 13, D.4, F.1 to F.3) ----


@claim(
    "single tokens of a GAP model classify better than spatial tokens of a class-token model",
    "mean accuracy of single tokens in the last block, GAP minus class token",
    above=0.1,
    untrained=False,
)
def gap_tokens_classify(tokens: Evidence) -> float:
    """'ViT with GAP model tokens perform well at higher layers', with a class token they 'do poorly' (section 7).

    Threshold: 6-10 % against 57-58 % in the paper; 10 points far exceed the variation over seeds and draws.
    Null: none: tokens of two random networks classify equally well.
    Premise: none.
    """
    gap, cls = (_accuracy(_role(tokens, role), "each_token") for role in ("vit_gap", "vit_base32"))
    return gap - cls


@claim(
    "class token and global average pooling are equally good in models trained with them",
    "difference of their accuracies in the last block",
    below=0.05,
    untrained=False,
)
def native_readouts_agree(probes: Evidence) -> float:
    """'CLS and GAP models evaluated with their "native" representation aggregation approach … perform very
    similarly' (Appendix F).

    Threshold: 'very similarly': within 5 points of accuracy.
    Null: none: readouts of random networks are equally bad.
    Premise: none.
    """
    gap = _accuracy(_role(probes, "vit_gap"), "gap")
    return abs(gap - _accuracy(_role(probes, "vit_base32"), "cls"))


@claim(
    "in the last block of a GAP model, one token is nearly as good as all tokens",
    "accuracy of the first token minus that of all tokens pooled",
    above=-0.05,
)
def first_gap_token_catches_up(probes: Evidence) -> float:
    """Probes of the first token 'almost match the performance of the standard GAP evaluation in the last
    layer' (Appendix F).

    Threshold: 'almost': within 5 points of accuracy.
    Null: untrained networks, whose readouts are equally bad.
    Premise: none.
    """
    tables = _role(probes, "vit_gap")
    return _accuracy(tables, "first") - _accuracy(tables, "gap")


@claim(
    "more training data improves representations already in the middle of the network",
    "mean accuracy of probes in the middle third of the network, much minus little training data",
    above=0.3,
    untrained=False,
)
def much_data_helps_the_middle(probes: Evidence) -> float:
    """'Much higher accuracies even with middle layer representations, with a 30% gap in absolute accuracy' (section 8).

    Threshold: that number.
    Null: none: untrained, both are the same network.
    Premise: none.
    """
    much, little = (_role(probes, role) for role in ("vit_large", "vit_large_small_data"))
    return _middle(much) - _middle(little)


@claim(
    "more training data improves representations at all depths but the lowest",
    "accuracy of probes with much minus with little training data, smallest over the upper two thirds of blocks",
    above=0,
    untrained=False,
)
def much_data_helps_all_but_the_lowest(probes: Evidence) -> float:
    """'The larger dataset is especially helpful in learning high quality intermediate representations'
    (section 8, for Figures 13 and F.1).

    Threshold: better by any margin, so 0.
    Null: none: untrained, both are the same network.
    Premise: none.
    """
    much, little = (
        _by_depth(_role(probes, role)) for role in ("vit_large", "vit_large_small_data")
    )
    return float((much - little)[much.index > 1 / 3].min())


@claim(
    "middle layers of large ViTs are better than those of ResNets",
    "mean accuracy of probes in the middle third of the network, ViT-L minus the best ResNet",
    above=0,
)
def vit_middle_layers_are_stronger(probes: Evidence) -> float:
    """'The larger ViT models learn much stronger intermediate representations than the ResNets' (section 8).

    Threshold: stronger than every ResNet by any margin, so 0.
    Null: untrained networks.
    Premise: none.
    """
    resnets = [tables for role, tables in _present(probes).items() if role.startswith("resnet")]
    if not resnets:
        raise Missing("a ResNet")
    return _middle(_role(probes, "vit_large")) - max(map(_middle, resnets))


# ---- training (Figures 12, G.1) ----


@claim(
    "with little training data, higher blocks differ most from those trained on all data",
    "Spearman correlation between depth and CKA at the smallest share of the data",
    below=-0.5,
    untrained=False,
)
def higher_layers_need_more_data(pairs: Evidence) -> float:
    """Lower layers are 'very similar', 'higher layers require larger amounts of pretraining data' (section 8).

    Threshold: a strong correlation: CKA falls with depth.
    Null: none: untrained, both are the same network.
    Premise: none.
    """
    table = _table(_least(pairs), "block_similarity")
    return _spearman(table["depth"], table["cka"])


@claim(
    "larger models need more data for their higher blocks",
    "mean CKA of the upper half of blocks at the smallest share of the data, large minus base",
    below=0,
    untrained=False,
)
def larger_models_need_more_data(large: Evidence, base: Evidence) -> float:
    """'Higher layers and larger models require significantly more data to learn similar representations' (Figure 12).

    Threshold: at the same share, the larger model is less similar by any margin, so 0.
    Null: none: untrained, both are the same network.
    Premise: none.
    """
    means = []
    for evidence in (large, base):
        table = _table(_least(evidence), "block_similarity")
        means.append(table["cka"][table["depth"] > 0.5].mean())
    return float(means[0] - means[1])


@claim(
    "the lowest blocks are preserved by fine-tuning",
    "smallest CKA of a block with itself before fine-tuning, lowest third of blocks",
    above=0.9,
    untrained=False,
)
def low_blocks_survive_fine_tuning(pairs: Evidence) -> float:
    """'The first four to five layers remain very well preserved' (Appendix G).

    Threshold: the axis of the paper's figure starts at 0.65; 0.9 is well above the middle of it.
    Null: none: untrained, both are the same network.
    Premise: none.
    """
    table = _table(_only(pairs), "block_similarity")
    return float(table["cka"][table["depth"] <= 1 / 3 + 1e-9].min())


# ---- data and compute (ViT paper, Figures 3, 4 and 5) ----


@claim(
    "with little training data, a larger ViT is worse than a smaller one",
    "accuracy at the smallest share of the data, ViT-L minus ViT-B",
    below=0,
    untrained=False,
)
def large_vits_need_much_data(accuracy: Evidence) -> float:
    """'Pre-trained on the smallest dataset, ViT-Large models underperform compared to ViT-Base
    models' (Dosovitskiy et al., section 4.3).

    Threshold: worse by any margin, so 0.
    Null: none: no untrained network classifies.
    Premise: none.
    """
    return _top1(accuracy, "vit_large_data_3") - _top1(accuracy, "vit_base_data_3")


@claim(
    "with much training data, a larger ViT is better than a smaller one",
    "accuracy with all data, ViT-L minus ViT-B",
    above=0,
    untrained=False,
)
def large_vits_win_with_much_data(accuracy: Evidence) -> float:
    """'Only with JFT-300M do we see the full benefit of larger models' (Dosovitskiy et al., section 4.3).

    Threshold: better by any margin, so 0.
    Null: none: no untrained network classifies.
    Premise: none.
    """
    return _top1(accuracy, "vit_large_data_100") - _top1(accuracy, "vit_base_data_100")


@claim(
    "more training data still helps the larger ViT",
    "accuracy of ViT-L, all data minus 30 %",
    above=0,
    untrained=False,
)
def more_data_still_helps(accuracy: Evidence) -> float:
    """Figure 3 of Dosovitskiy et al. rises from left to right for ViT-L, up to the largest data set.

    Threshold: better by any margin, so 0.
    Null: none: no untrained network classifies.
    Premise: none.
    """
    return _top1(accuracy, "vit_large_data_100") - _top1(accuracy, "vit_large_data_30")


@claim(
    "with little training data, a ResNet is better than a ViT",
    "few-shot accuracy at the smallest share of the data, ResNet minus the better ViT",
    above=0,
    untrained=False,
)
def resnets_win_with_little_data(probes: Evidence) -> float:
    """'ResNets perform better with smaller pre-training datasets' (Dosovitskiy et al., Figure 4).

    Threshold: better by any margin, so 0.
    Null: none: it is about networks trained on little data.
    Premise: none.
    """
    return _ahead(probes, "3")


@claim(
    "with much training data, a ViT is better than a ResNet",
    "few-shot accuracy with all data, ResNet minus the better ViT",
    below=0,
    untrained=False,
)
def vits_win_with_much_data(probes: Evidence) -> float:
    """ResNets 'plateau sooner than ViT, which performs better with larger pre-training' (Dosovitskiy et al., Figure 4).

    Threshold: better by any margin, so 0.
    Null: none: it is about networks trained on much data.
    Premise: none.
    """
    return _ahead(probes, "100")


@claim(
    "a ViT reaches the accuracy of ResNets with half the compute",
    "accuracy of each ViT minus that of the best ResNet with up to twice its training FLOPs, mean over ViTs",
    above=0,
    untrained=False,
)
def vits_take_less_compute(compute: Evidence) -> float:
    """'ViT uses approximately 2-4x less compute to attain the same performance' (Dosovitskiy et al., section 4.4).

    Threshold: at least as good, so 0; the ResNet may use twice as much compute.
    Null: none: no untrained network classifies.
    Premise: none.
    """
    vits, resnets = (_trained(compute, kind) for kind in ("vit_", "resnet"))
    ahead = [
        accuracy - max(rivals)
        for flops, accuracy in vits
        if (rivals := [other for spent, other in resnets if spent <= 2 * flops])
    ]
    if not ahead:
        raise Missing("a ResNet with at most twice the compute")
    return float(np.mean(ahead))


@claim(
    "a small hybrid is better than a ViT with the same compute",
    "accuracy of the hybrid minus that of the ViT with the nearest training FLOPs",
    above=0,
    untrained=False,
)
def small_hybrids_win(compute: Evidence) -> float:
    """'Hybrids slightly outperform ViT at small computational budgets' (Dosovitskiy et al., section 4.4).

    Threshold: better by any margin, so 0.
    Null: none: no untrained network classifies.
    Premise: none.
    """
    (flops, accuracy), *_ = _trained(compute, "hybrid")
    nearest = min(_trained(compute, "vit_"), key=lambda vit: abs(np.log(vit[0] / flops)))
    return accuracy - nearest[1]


# ---- later papers (extra figures) ----


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
    same = highest["frequency"].diff() == 0
    if not same.any():
        raise Missing("several units with the same grid")
    return float(highest["relative"].diff()[same].mean())


# ---- building blocks of the statistics ----


def _present(evidence: Evidence) -> Evidence:
    if not evidence:
        raise Missing("the panel")
    return evidence


def _only(evidence: Evidence) -> Tables:
    return next(iter(_present(evidence).values()))


def _role(evidence: Evidence, role: str) -> Tables:
    if role not in evidence:
        raise Missing(role)
    return evidence[role]


def _least(evidence: Evidence) -> Tables:
    """Tables of the role with the smallest fraction of the data, which is the last part of the role's name."""
    least = min(_present(evidence), key=lambda role: int(role.rsplit("_", 1)[-1]))
    return evidence[least]


def _table(tables: Tables, name: str) -> pd.DataFrame:
    if name not in tables:
        raise Missing(name)
    return tables[name]


def _square(evidence: Evidence) -> np.ndarray:
    """CKA as (layers of the model, layers of the other)."""
    return _grid(_table(_only(evidence), "cka"))[0]


def _grid(table: pd.DataFrame) -> tuple[np.ndarray, pd.Index]:
    """CKA as (layers of the model, layers of the other), and the names of the model's layers."""
    (rows, names), (columns, others) = (
        pd.factorize(table[name]) for name in ("model_layer", "other_layer")
    )
    grid = np.full((len(names), len(others)), np.nan)
    grid[rows, columns] = table["cka"]
    return grid, pd.Index(names)


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


def _contrast(tables: Tables, block: int) -> float:
    """The contrast of the layers before and after a block."""
    cka, names = _grid(_table(tables, "cka"))
    after = [False]
    for name in names:  # layers between blocks belong to the block before them
        number = re.search(r"blocks\.(\d+)", str(name))
        after.append(int(number.group(1)) >= block if number else after[-1])
    if len(set(after[1:])) < 2:
        raise Missing(f"layers before and after block {block}")
    return _contrast_of(cka, np.array(after[1:]))


def _contrast_of(cka: np.ndarray, side: np.ndarray) -> float:
    """Mean CKA between layers on different sides, relative to different layers on the same side."""
    across = side[:, None] != side[None, :]
    within = ~across & ~np.eye(len(side), dtype=bool)
    return float(np.nanmean(cka[across]) / np.nanmean(cka[within]))


def _heads(evidence: Evidence, *, lowest: bool) -> pd.Series:
    """Distances of the heads in the two lowest or highest blocks, relative to uniform attention."""
    table = _table(_only(evidence), "attention_distance")
    blocks = sorted(table["block"].unique())
    some = table[table["block"].isin(blocks[:2] if lowest else blocks[-2:])]
    return some["distance_px"] / some["uniform_px"]


def _sizes(tables: Tables, point: str) -> pd.DataFrame:
    table = _table(tables, "receptive_field_size")
    sizes = table[table["point"] == point]
    if sizes.empty:
        raise Missing(f"receptive fields at point {point}")
    return sizes


def _attention_share(tables: Tables, point: str) -> float:
    sizes = _sizes(tables, point)
    attention = sizes[sizes["layer"].str.contains("attn")]
    if attention.empty:
        raise Missing("attention sublayers")
    return float(attention["own_share"].mean())


def _class_over_spatial(skip: Evidence) -> tuple[float, float]:
    """Mean norm ratio of the class token relative to that of spatial tokens, in the first and second half."""
    cls, spatial = _ratios(_only(skip))
    half = len(cls) // 2
    return (
        float(cls[:half].mean() / spatial[:half].mean()),
        float(cls[half:].mean() / spatial[half:].mean()),
    )


def _radius(field: np.ndarray, share: float) -> float:
    """Radius, in steps of the grid, that contains this fraction of the mass around the centre."""
    rows, columns = (np.arange(n) - n // 2 for n in field.shape)
    distance = np.hypot(rows[:, None], columns[None, :]).ravel()
    order = np.argsort(distance, kind="stable")
    held = np.cumsum(field.ravel()[order])
    return float(distance[order][np.searchsorted(held, share * held[-1])])


def _ratios(tables: Tables) -> tuple[np.ndarray, np.ndarray]:
    """Mean ratio per block over both branches, (blocks,), for the class token and for spatial tokens."""
    table = _table(tables, "skip_ratio")
    table = table[table["branch"].isin(["attn", "mlp"])]
    cls, spatial = (
        table[table["token"] == token].groupby("block", sort=False)["ratio"].mean().to_numpy()
        for token in (0, -1)
    )
    if not len(cls) or not len(spatial):
        raise Missing("attention and MLP sublayers of a ViT with a class token")
    return cls, spatial


def _own(table: pd.DataFrame) -> pd.Series:
    """Whether the patch is at the token's own location."""
    return (table["token_row"] == table["patch_row"]) & (table["token_col"] == table["patch_col"])


def _excess(evidence: Evidence, place: int = -1) -> float:
    """Median over tokens of own CKA minus mean CKA, in the layer at this place (by default the last)."""
    table = _table(_only(evidence), "localization_score")
    scores = table[table["layer"] == table["layer"].unique()[place]]
    return float((scores["own_cka"] - scores["mean_cka"]).median())


def _on_edge(table: pd.DataFrame, row: str, column: str) -> pd.Series:
    last_row, last_column = table[row].max(), table[column].max()
    return table[row].isin([0, last_row]) | table[column].isin([0, last_column])


def _accuracy(tables: Tables, features: str) -> float:
    """Mean accuracy over seeds (and tokens) in the last measured block."""
    return float(_by_depth(tables, features).iloc[-1])


def _middle(tables: Tables) -> float:
    """Mean accuracy of pooled tokens over the measured depths in the middle third, or at the depth nearest to 1/2."""
    by_depth = _by_depth(tables)
    apart = np.abs(by_depth.index - 0.5)
    return float(by_depth[apart <= max(1 / 6, apart.min())].mean())


def _by_depth(tables: Tables, features: str = "gap") -> pd.Series:
    """Mean accuracy over seeds (and tokens) by depth."""
    table = _table(tables, "linear_probe")
    some = table[table["features"] == features]
    if some.empty:
        raise Missing(f"probes of {features}")
    return some.groupby("depth")["accuracy"].mean()


def _top1(evidence: Evidence, role: str) -> float:
    return float(_table(_role(evidence, role), "scaling")["accuracy"].iloc[0])


def _trained(evidence: Evidence, kind: str) -> list[tuple[float, float]]:
    """Training FLOPs and accuracy of the models whose role starts with `kind` and whose FLOPs are known."""
    tables = [
        _table(tables, "scaling") for role, tables in evidence.items() if role.startswith(kind)
    ]
    rows = [(float(t["training_flops"].iloc[0]), float(t["accuracy"].iloc[0])) for t in tables]
    known = [row for row in rows if np.isfinite(row[0])]
    if not known:
        raise Missing(f"training FLOPs of {kind}")
    return known


def _ahead(probes: Evidence, share: str) -> float:
    """Few-shot accuracy of the ResNet minus that of the better ViT at this share of the data."""
    resnet, *vits = (
        _accuracy(_role(probes, f"{kind}_data_{share}"), "gap")
        for kind in ("resnet50", "vit_base", "vit_large")
    )
    return resnet - max(vits)


def _outliers(norms: Evidence) -> np.ndarray:
    """Share of outliers among the patch tokens of each layer."""
    table = _table(_only(norms), "token_norm")
    patches = table[table["kind"] == "patch"]
    return patches.groupby("layer", sort=False)["outlier_share"].mean().to_numpy()


def _largest(ranks: Evidence) -> pd.DataFrame:
    table = _table(_only(ranks), "massive_activation")
    return table[table["rank"] == 1]


def _changed(evidence: Evidence, role: str, change: str) -> pd.Series:
    """Accuracy by strength of a change; agreement if any model's accuracy is unknown."""
    tables = [_table(_role(evidence, one), "robustness") for one in _present(evidence)]
    known = all(table["accuracy"].notna().all() for table in tables)
    table = _table(_role(evidence, role), "robustness")
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
    """The highest frequency of each layer."""
    table = _table(_only(evidence), "fourier")
    highest = table[table["frequency"] > 0].groupby("layer", sort=False).tail(1)
    return highest.reset_index(drop=True)


def _spearman(x: pd.Series, y: pd.Series) -> float:
    return float(x.rank().corr(y.rank()))
