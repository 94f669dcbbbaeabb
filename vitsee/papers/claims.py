"""The papers' claims, each as a statistic with a threshold taken only from their text."""

from __future__ import annotations

import re

import numpy as np
import pandas as pd

from vitsee.papers.verdicts import CLAIMS, Evidence, Missing, Tables, claim

__all__ = ["CLAIMS"]

# ---- similarity of layers (Figures 1, 2, 8, B.1, H.2) ----


@claim(
    "layers of a ViT are more uniformly similar than those of a ResNet",
    "mean CKA of pairs of different layers, ViT minus ResNet",
    above=0,
)
def uniform(vit: Evidence, resnet: Evidence) -> float:
    """'ViTs have a much more uniform similarity structure': more similar at all, so above 0."""
    return _off_diagonal(_square(vit)) - _off_diagonal(_square(resnet))


@claim(
    "lower and higher layers of a ViT are more similar to each other than those of a ResNet",
    "mean CKA of the lowest and the highest quarter of layers, ViT minus ResNet",
    above=0,
)
def low_to_high(vit: Evidence, resnet: Evidence) -> float:
    """'Lower and higher layers in ViT show much greater similarity than in the ResNet': above 0."""
    return _ends(_square(vit)) - _ends(_square(resnet))


@claim(
    "the lower half of ResNet layers is similar to the lowest quarter of ViT layers",
    "median depth (fraction of layers) of the ViT layer most similar to each ResNet layer of the lower half",
    below=0.25,
)
def lower_half_is_lowest_quarter(cross: Evidence) -> float:
    """'Approximately a quarter of the lower layers': the typical match lies within that quarter."""
    return float(np.median(_matches(_square(cross))[0]))


@claim(
    "the lower half of ResNet layers is similar to the lowest third of ViT layers",
    "median depth (fraction of layers) of the ViT layer most similar to each ResNet layer of the lower half",
    below=1 / 3,
)
def lower_half_is_lowest_third(cross: Evidence) -> float:
    """Appendix B: 60 ResNet layers match the lowest 25 of about 75 layers of ViT-B/32, a third."""
    return float(np.median(_matches(_square(cross))[0]))


@claim(
    "the upper half of ResNet layers is similar to the next third of ViT layers",
    "distance of the median matching depth from the middle of the range 0.25 to 0.58",
    below=1 / 6,
)
def upper_half_is_the_next_third(cross: Evidence) -> float:
    """'The remaining half is similar to approximately the next third': from 1/4 to 7/12, with a half-width of 1/6."""
    return abs(float(np.median(_matches(_square(cross))[1])) - 5 / 12)


@claim(
    "the highest third of ViT layers is less similar to all ResNet layers",
    "mean over layers of the highest CKA with any ResNet layer, highest third minus the rest",
    below=0,
)
def highest_third_is_unlike(cross: Evidence) -> float:
    """'The final third is less similar to all ResNet layers': less than the layers below it."""
    best = _best(_square(cross))
    cut = len(best) * 2 // 3
    return float(best[cut:].mean() - best[:cut].mean())


@claim(
    "without the skip connections of a block, the layers before and after it are dissimilar",
    "CKA between the two sides over CKA within them, relative to the intact model",
    below=0.5,
)
def no_skip_splits_the_network(cut: Evidence, intact: Evidence) -> float:
    """'Partitions the representations into dissimilar parts': at most half of the intact model's ratio."""
    role, tables = next(iter(_present(cut).items()))
    number = int(role.rsplit("_", 1)[-1])
    return _contrast(tables, number) / _contrast(_only(intact), number)


@claim(
    "a Mixer is more similar to a ViT than to a ResNet",
    "mean over Mixer layers of the highest CKA, with any ViT layer minus with any ResNet layer",
    above=0,
)
def mixer_is_closer_to_the_vit(vit: Evidence, resnet: Evidence) -> float:
    """Appendix H: 'more similar to ViT than to ResNet': above 0."""
    return float(_best(_square(vit)).mean() - _best(_square(resnet)).mean())


# ---- attention (Figures 3, 4, 5, C.5; ViT paper 7) ----


@claim(
    "the lowest blocks have local heads",
    "smallest distance of a head in the two lowest blocks, relative to uniform attention",
    below=0.5,
)
def low_blocks_have_local_heads(vit: Evidence) -> float:
    """'Both local heads (small distances) …': less than half the distance of uniform attention."""
    return _heads(vit, lowest=True).min()


@claim(
    "the lowest blocks also have global heads",
    "largest distance of a head in the two lowest blocks, relative to uniform attention",
    above=0.8,
)
def low_blocks_have_global_heads(vit: Evidence) -> float:
    """'… and global heads (large distances)': close to uniform attention."""
    return _heads(vit, lowest=True).max()


@claim(
    "all heads of the highest blocks are global",
    "smallest distance of a head in the two highest blocks, relative to uniform attention",
    above=0.8,
)
def high_blocks_are_global(vit: Evidence) -> float:
    """'In higher layers all heads are global'; 0.8 leaves room for attention to the class token."""
    return _heads(vit, lowest=False).min()


@claim(
    "with little training data, the lowest blocks do not learn local heads",
    "smallest relative distance in the two lowest blocks, little minus much data",
    above=0,
)
def little_data_no_local_heads(little: Evidence, much: Evidence) -> float:
    """'Does not learn to attend locally in earlier layers': less locally than with much data."""
    return _heads(little, lowest=True).min() - _heads(much, lowest=True).min()


@claim(
    "a small ViT learns local heads even with little data",
    "smallest distance of a head in the two lowest blocks, relative to uniform attention",
    below=0.5,
)
def small_models_keep_local_heads(little: Evidence) -> float:
    """Appendix C: 'ViT-B/32 still learns to attend locally'; the same threshold as with much data."""
    return _heads(little, lowest=True).min()


@claim(
    "the more local the heads, the more similar they are to low ResNet layers",
    "largest Spearman correlation over ResNet layers between mean distance and CKA",
    below=-0.5,
)
def local_heads_are_like_low_layers(heads: Evidence) -> float:
    """'Decreases monotonically with mean distance': all lines fall; -0.5 is a strong correlation."""
    table = _table(_only(heads), "head_similarity")
    lines = table.groupby("other_layer")
    return max(_spearman(line["mean_distance_px"], line["cka"]) for _, line in lines)


@claim(
    "mean attention distance grows with depth",
    "Spearman correlation between block index and mean distance of its heads",
    above=0.5,
)
def distance_grows_with_depth(distance: Evidence) -> float:
    """ViT paper, section 4.5: 'attention distance increases with network depth'; a strong correlation."""
    means = _table(_only(distance), "attention_distance").groupby("block")["distance_px"].mean()
    return _spearman(means.index.to_series(), means)


@claim(
    "nearby positions have more similar embeddings",
    "mean cosine similarity of neighbouring positions minus that of all other pairs",
    above=0,
)
def near_positions_are_similar(positions: Evidence) -> float:
    """ViT paper, section 4.5: 'closer patches tend to have more similar position embeddings'."""
    t = _table(_only(positions), "position_similarity")
    steps = (t["row"] - t["other_row"]).abs() + (t["col"] - t["other_col"]).abs()
    return float(t["cosine"][steps == 1].mean() - t["cosine"][steps > 1].mean())


# ---- receptive fields (Figures 6, C.4) ----


@claim(
    "receptive fields of a ResNet grow with depth",
    "Spearman correlation between depth and the radius that holds half of the field",
    above=0.9,
)
def resnet_fields_grow(resnet: Evidence) -> float:
    """'Grow gradually': the field of nearly every unit is larger than the one before."""
    radii = _sizes(_only(resnet), "post")["radius50_px"]
    return _spearman(pd.Series(range(len(radii))), radii.reset_index(drop=True))


@claim(
    "receptive fields of low ViT layers are larger than those of low ResNet layers",
    "mean radius (px) that holds half of the field, lowest quarter of layers, ViT minus ResNet",
    above=0,
)
def vit_fields_start_larger(vit: Evidence, resnet: Evidence) -> float:
    """'Lower layer receptive fields of ViT are indeed larger than in ResNets': above 0."""
    means = []
    for evidence in (vit, resnet):
        radii = _sizes(_only(evidence), "post")["radius50_px"]
        means.append(radii.iloc[: max(1, len(radii) // 4)].mean())
    return float(means[0] - means[1])


@claim(
    "receptive fields of a ViT are global by the middle of the network",
    "radius that holds 90 % of the middle layer's field, relative to a uniform field",
    above=0.8,
)
def vit_is_global_by_the_middle(vit: Evidence) -> float:
    """'Becoming much more global midway through the network': most of the radius of a uniform field."""
    maps = _table(_only(vit), "receptive_field")
    maps = maps[maps["point"] == "post"]
    layers = maps["layer"].unique()
    middle = maps[maps["layer"] == layers[len(layers) // 2]]
    field = middle.pivot(index="row", columns="col", values="value").to_numpy()
    return _radius(field, 0.9) / _radius(np.ones_like(field), 0.9)


@claim(
    "before the addition, attention depends less on its own patch",
    "mean share of the field within the own patch over attention sublayers, before minus after the addition",
    below=0,
)
def branches_depend_less_on_their_patch(pre: Evidence, post: Evidence) -> float:
    """Appendix C: 'show a weaker dependence on the centre patch': below 0."""
    return _attention_share(_only(pre), "pre") - _attention_share(_only(post), "post")


# ---- skip connections (Figures 7, E.2) ----


@claim(
    "in the first half, the class token mostly passes through the skip connection",
    "mean ratio of norms over the first half of blocks, class token relative to spatial tokens",
    above=1,
)
def class_token_first(skip: Evidence) -> float:
    """'The class token ratio is high in the first half …': higher than that of spatial tokens."""
    cls, spatial = _ratios(_only(skip))
    return float(cls[: len(cls) // 2].mean() / spatial[: len(spatial) // 2].mean())


@claim(
    "in the second half, the spatial tokens mostly pass through the skip connection",
    "mean ratio of norms over the second half of blocks, class token relative to spatial tokens",
    below=1,
)
def spatial_tokens_later(skip: Evidence) -> float:
    """'… with a phase transition, after which the reverse is true': lower than that of spatial tokens."""
    cls, spatial = _ratios(_only(skip))
    return float(cls[len(cls) // 2 :].mean() / spatial[len(spatial) // 2 :].mean())


@claim(
    "skip connections carry more in a ViT than in a ResNet",
    "mean ratio of norms, spatial tokens of the ViT relative to the ResNet",
    above=1,
)
def ratios_above_the_resnet(skip: Evidence) -> float:
    """'ViT norm ratios are higher than ResNet's throughout': above 1."""
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
    """Appendix E: spatial tokens 'change less in later layers': above 0."""
    table = _table(_only(skip), "skip_ratio")
    spatial = table[(table["token"] == -1) & table["branch"].isin(["attn", "mlp"])]
    by_block = spatial.groupby("block", sort=False)["cosine"].mean().to_numpy()
    half = len(by_block) // 2
    return float(by_block[half:].mean() - by_block[:half].mean())


# ---- localisation (Figures 9, 10) ----


@claim(
    "interior tokens of the last block are most similar to their own patch",
    "share of interior tokens whose own patch has the highest CKA",
    above=0.5,
)
def tokens_stay_in_place(vit: Evidence) -> float:
    """'Tokens corresponding to interior locations are most similar to their own patch': most of them."""
    scores = _scores(vit)
    inside = ~_on_edge(scores, "token_row", "token_col")
    return float((scores["own_rank"][inside] == 1).mean())


@claim(
    "spatial information is better preserved in a ViT than in a ResNet",
    "median over tokens of own CKA minus mean CKA, ViT minus ResNet",
    above=0,
)
def vit_localizes_better_than_the_resnet(vit: Evidence, resnet: Evidence) -> float:
    """'ResNet50 has much weaker localisation': above 0."""
    return _excess(vit) - _excess(resnet)


@claim(
    "tokens at the edge are similar to patches along the edge",
    "mean CKA of edge tokens with other edge patches minus that with interior patches",
    above=0,
)
def edge_tokens_see_edges(vit: Evidence) -> float:
    """'Tokens along the edge are similar to many edge positions': more than to the interior."""
    table = _table(_only(vit), "localization")
    own = (table["token_row"] == table["patch_row"]) & (table["token_col"] == table["patch_col"])
    edge = table[_on_edge(table, "token_row", "token_col") & ~own]
    border = _on_edge(edge, "patch_row", "patch_col")
    return float(edge["cka"][border].mean() - edge["cka"][~border].mean())


@claim(
    "a ViT with global average pooling localises less than one with a class token",
    "median over tokens of own CKA minus mean CKA, GAP minus class token",
    below=0,
)
def gap_loses_localization(gap: Evidence, cls: Evidence) -> float:
    """'Significantly less localised': below 0."""
    return _excess(gap) - _excess(cls)


# ---- probes (Figures 11, 13) ----


@claim(
    "single tokens of a GAP model classify better than spatial tokens of a class-token model",
    "mean accuracy of single tokens in the last block, GAP minus class token",
    above=0.1,
)
def gap_tokens_classify(tokens: Evidence) -> float:
    """6-10 % against 57-58 % in the paper; 10 points are far beyond the variation over seeds and draws."""
    gap, cls = (_accuracy(_role(tokens, role), "each_token") for role in ("vit_gap", "vit_base32"))
    return gap - cls


@claim(
    "class token and global average pooling are equally good in models trained with them",
    "difference of their accuracies in the last block",
    below=0.05,
)
def native_readouts_agree(probes: Evidence) -> float:
    """'Similar performance': within 5 points of accuracy."""
    gap = _accuracy(_role(probes, "vit_gap"), "gap")
    return abs(gap - _accuracy(_role(probes, "vit_base32"), "cls"))


@claim(
    "in the last block of a GAP model, one token is nearly as good as all tokens",
    "accuracy of the first token minus that of all tokens pooled",
    above=-0.05,
)
def first_gap_token_catches_up(probes: Evidence) -> float:
    """'Nearly matches' in the last layer: within 5 points of accuracy."""
    tables = _role(probes, "vit_gap")
    return _accuracy(tables, "first") - _accuracy(tables, "gap")


@claim(
    "more training data improves representations already in the middle of the network",
    "accuracy of probes half-way through the network, much minus little training data",
    above=0.3,
)
def much_data_helps_the_middle(probes: Evidence) -> float:
    """'A 30 % absolute gap' of accuracies."""
    much, little = (_role(probes, role) for role in ("vit_large", "vit_large_small_data"))
    return _accuracy(much, "gap", 0.5) - _accuracy(little, "gap", 0.5)


@claim(
    "middle layers of large ViTs are better than those of ResNets",
    "accuracy of probes half-way through the network, ViT-L minus the best ResNet",
    above=0,
)
def vit_middle_layers_are_stronger(probes: Evidence) -> float:
    """'Larger ViT models learn much stronger intermediate representations': above 0."""
    resnets = [tables for role, tables in _present(probes).items() if role.startswith("resnet")]
    if not resnets:
        raise Missing("a ResNet")
    best = max(_accuracy(tables, "gap", 0.5) for tables in resnets)
    return _accuracy(_role(probes, "vit_large"), "gap", 0.5) - best


# ---- training (Figures 12, G.1) ----


@claim(
    "with little training data, higher blocks differ most from those trained on all data",
    "Spearman correlation between depth and CKA at the smallest share of the data",
    below=-0.5,
)
def higher_layers_need_more_data(pairs: Evidence) -> float:
    """'Higher layer representations … are much less similar': CKA falls with depth, a strong correlation."""
    table = _table(_least(pairs), "block_similarity")
    return _spearman(table["depth"], table["cka"])


@claim(
    "larger models need more data for their higher blocks",
    "mean CKA of the upper half of blocks at the smallest share of the data, large minus base",
    below=0,
)
def larger_models_need_more_data(large: Evidence, base: Evidence) -> float:
    """'Larger models … need significantly more data': at the same share, the larger model is less similar."""
    means = []
    for evidence in (large, base):
        table = _table(_least(evidence), "block_similarity")
        means.append(table["cka"][table["depth"] > 0.5].mean())
    return float(means[0] - means[1])


@claim(
    "the lowest blocks are preserved by fine-tuning",
    "smallest CKA of a block with itself before fine-tuning, lowest third of blocks",
    above=0.9,
)
def low_blocks_survive_fine_tuning(pairs: Evidence) -> float:
    """Appendix G: 'the first 4-5 layers are well preserved'; the axis of its figure starts at 0.65."""
    table = _table(_only(pairs), "block_similarity")
    return float(table["cka"][table["depth"] <= 1 / 3 + 1e-9].min())


# ---- data and compute (ViT paper, Figures 3, 4 and 5) ----


@claim(
    "with little training data, a larger ViT is worse than a smaller one",
    "accuracy at the smallest share of the data, ViT-L minus ViT-B",
    below=0,
)
def large_vits_need_much_data(accuracy: Evidence) -> float:
    """'Pre-trained on the smallest dataset, ViT-Large models underperform compared to ViT-Base models': below 0."""
    return _top1(accuracy, "vit_large_data_3") - _top1(accuracy, "vit_base_data_3")


@claim(
    "with much training data, a larger ViT is better than a smaller one",
    "accuracy with all data, ViT-L minus ViT-B",
    above=0,
)
def large_vits_win_with_much_data(accuracy: Evidence) -> float:
    """'Only with JFT-300M do we see the full benefit of larger models': above 0."""
    return _top1(accuracy, "vit_large_data_100") - _top1(accuracy, "vit_base_data_100")


@claim(
    "more training data still helps the larger ViT",
    "accuracy of ViT-L, all data minus 30 %",
    above=0,
)
def more_data_still_helps(accuracy: Evidence) -> float:
    """Figure 3 rises from left to right for ViT-L up to the largest data set: above 0."""
    return _top1(accuracy, "vit_large_data_100") - _top1(accuracy, "vit_large_data_30")


@claim(
    "with little training data, a ResNet is better than a ViT",
    "few-shot accuracy at the smallest share of the data, ResNet minus the better ViT",
    above=0,
)
def resnets_win_with_little_data(probes: Evidence) -> float:
    """'ResNets perform better with smaller pre-training datasets': above 0."""
    return _ahead(probes, "3")


@claim(
    "with much training data, a ViT is better than a ResNet",
    "few-shot accuracy with all data, ResNet minus the better ViT",
    below=0,
)
def vits_win_with_much_data(probes: Evidence) -> float:
    """'… but plateau sooner than ViT, which performs better with larger pre-training': below 0."""
    return _ahead(probes, "100")


@claim(
    "a ViT reaches the accuracy of ResNets with half the compute",
    "accuracy of each ViT minus that of the best ResNet with up to twice its training FLOPs, mean over ViTs",
    above=0,
)
def vits_take_less_compute(compute: Evidence) -> float:
    """'ViT uses approximately 2-4x less compute to attain the same performance': the ResNet may use twice as much."""
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
)
def small_hybrids_win(compute: Evidence) -> float:
    """'Hybrids slightly outperform ViT at small computational budgets': above 0."""
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
    """Darcet et al. 2024: 'a small fraction of the total sequence (around 2%)': half of that. With random weights
    all norms are alike, and it is 0."""
    share = _outliers(norms)
    return float(share[-max(1, len(share) // 4) :].mean())


@claim(
    "outlier tokens come midway through the network",
    "share of outliers among patch tokens, last quarter of layers minus first",
    above=0,
)
def outlier_tokens_come_midway(norms: Evidence) -> float:
    """Darcet et al. 2024: they differentiate 'around layer 15 of 40': more at the end than at the beginning.
    With random weights there are none at either end, and it is 0."""
    share = _outliers(norms)
    quarter = max(1, len(share) // 4)
    return float(share[-quarter:].mean() - share[:quarter].mean())


@claim(
    "the largest activations of a ViT are massive",
    "largest over median magnitude, highest of all layers",
    above=1000,
)
def activations_are_massive(ranks: Evidence) -> float:
    """Sun et al. 2024 call an activation massive if its magnitude is 'at least or around 1,000 times larger than the
    median'. That of a normal distribution with as many values is about 8."""
    return float(_largest(ranks)["ratio"].max())


@claim(
    "massive activations keep their channel, whatever the image",
    "share of images with the same channel, in the layer with the largest ratio",
    above=0.9,
)
def massive_activations_keep_their_channel(ranks: Evidence) -> float:
    """Sun et al. 2024: in 'a small, fixed set' of feature dimensions: nearly all images. By chance it is one over
    the number of channels."""
    first = _largest(ranks)
    return float(first["channel_share"].iloc[int(first["ratio"].argmax())])


@claim(
    "a ViT bears the loss of patches better than a ResNet",
    "accuracy (or agreement) when half of the patches are dropped at random, ViT minus ResNet",
    above=0,
)
def vits_bear_occlusion(drops: Evidence) -> float:
    """Naseer et al. 2021: with half of the image gone 'DeiT-S obtains 70%' where 'ResNet50 obtains 0.1%': above 0.
    Two models that do not look at the image differ by 0."""
    vit, resnet = (_changed(drops, role, "drop_random") for role in ("vit_large_ft", "resnet50_v1"))
    return float(_half(vit) - _half(resnet))


@claim(
    "the patches that a ViT attends to matter more to its predictions than the others",
    "accuracy (or agreement) with the least minus with the most salient half of the patches dropped",
    above=0,
)
def salient_patches_matter(drops: Evidence) -> float:
    """Naseer et al. 2021, Figure 3: accuracy falls faster when the salient patches are dropped. If saliency said
    nothing, it would be 0."""
    other, salient = (
        _changed(drops, "vit_large_ft", change) for change in ("drop_other", "drop_salient")
    )
    return float(_half(other) - _half(salient))


@claim(
    "a ViT bears shuffled patches better than a ResNet",
    "accuracy (or agreement), mean over the shuffles, ViT minus ResNet",
    above=0,
)
def vits_bear_shuffling(shuffle: Evidence) -> float:
    """Naseer et al. 2021: ViTs are 'more robust' to shuffled patches: above 0. Two models that do not look at the
    image differ by 0."""
    vit, resnet = (_changed(shuffle, role, "shuffle") for role in ("vit_large_ft", "resnet50_v1"))
    return float(vit[vit.index > 1].mean() - resnet[resnet.index > 1].mean())


@claim(
    "attention lowers high frequencies more than MLPs do",
    "mean change of the highest frequency's log amplitude, attention sublayers minus MLP sublayers",
    below=0,
)
def attention_lowers_high_frequencies(sublayers: Evidence) -> float:
    """Park and Kim 2022: 'MSAs are low-pass filters, but Convs are high-pass filters', MLPs with the latter: below 0.
    If both did the same, it would be 0. The first sublayer, which has none before it, does not count."""
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
    """Park and Kim 2022: 'Convs are high-pass filters': they raise them at all, so above 0. Where units change
    nothing, it is 0."""
    highest = _highest(resnet)
    same = highest["frequency"].diff() == 0
    if not same.any():
        raise Missing("several units with the same grid")
    return float(highest["relative"].diff()[same].mean())


# ---- parts of the statistics ----


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
    """Tables of the role with the smallest share of the data, which ends its name."""
    least = min(_present(evidence), key=lambda role: int(role.rsplit("_", 1)[-1]))
    return evidence[least]


def _table(tables: Tables, name: str) -> pd.DataFrame:
    if name not in tables:
        raise Missing(name)
    return tables[name]


def _square(evidence: Evidence) -> np.ndarray:
    """CKA as (layers of the model, layers of the other)."""
    return _grid(_table(_only(evidence), "cka")).to_numpy(float)


def _grid(table: pd.DataFrame) -> pd.DataFrame:
    rows, columns = table["model_layer"].unique(), table["other_layer"].unique()
    wide = table.pivot(index="model_layer", columns="other_layer", values="cka")
    return wide.loc[rows, columns]


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
    """Mean CKA between the layers before and after a block, relative to that within each side."""
    grid = _grid(_table(tables, "cka"))
    after = [False]
    for name in grid.index:  # other layers go with the block before them
        number = re.search(r"blocks\.(\d+)", str(name))
        after.append(int(number.group(1)) >= block if number else after[-1])
    side = np.array(after[1:])
    cka, off = grid.to_numpy(float), ~np.eye(len(side), dtype=bool)
    across = side[:, None] != side[None, :]
    if not across.any():
        raise Missing(f"layers before and after block {block}")
    return float(np.nanmean(cka[across]) / np.nanmean(cka[~across & off]))


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


def _radius(field: np.ndarray, share: float) -> float:
    """Radius, in steps of the grid, that holds this share of the mass around the centre."""
    rows, columns = (np.arange(n) - n // 2 for n in field.shape)
    distance = np.hypot(rows[:, None], columns[None, :]).ravel()
    order = np.argsort(distance, kind="stable")
    held = np.cumsum(field.ravel()[order])
    return float(distance[order][np.searchsorted(held, share * held[-1])])


def _ratios(tables: Tables) -> tuple[np.ndarray, np.ndarray]:
    """Mean ratio per block over both branches, (blocks,), of the class token and of spatial tokens."""
    table = _table(tables, "skip_ratio")
    table = table[table["branch"].isin(["attn", "mlp"])]
    cls, spatial = (
        table[table["token"] == token].groupby("block", sort=False)["ratio"].mean().to_numpy()
        for token in (0, -1)
    )
    if not len(cls) or not len(spatial):
        raise Missing("attention and MLP sublayers of a ViT with a class token")
    return cls, spatial


def _scores(evidence: Evidence) -> pd.DataFrame:
    """Scores of the last measured layer."""
    table = _table(_only(evidence), "localization_score")
    return table[table["layer"] == table["layer"].iloc[-1]]


def _excess(evidence: Evidence) -> float:
    scores = _scores(evidence)
    return float((scores["own_cka"] - scores["mean_cka"]).median())


def _on_edge(table: pd.DataFrame, row: str, column: str) -> pd.Series:
    last_row, last_column = table[row].max(), table[column].max()
    return table[row].isin([0, last_row]) | table[column].isin([0, last_column])


def _accuracy(tables: Tables, features: str, depth: float = 1.0) -> float:
    """Mean accuracy over seeds (and tokens) at the measured depth nearest to this one."""
    table = _table(tables, "linear_probe")
    some = table[table["features"] == features]
    if some.empty:
        raise Missing(f"probes of {features}")
    nearest = some["depth"].iloc[(some["depth"] - depth).abs().argmin()]
    return float(some[some["depth"] == nearest]["accuracy"].mean())


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
    """Accuracy by strength of a change; agreement where the accuracy of some model is unknown."""
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
