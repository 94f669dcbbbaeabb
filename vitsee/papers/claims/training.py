"""Claims about training, data and compute (Figures 12, G.1; ViT paper 3, 4, 5)."""

from __future__ import annotations

import numpy as np

from vitsee.papers.claims.statistics import (
    last_accuracy,
    number_in,
    roles_in,
    spearman,
    table_of,
    top1_accuracy,
)
from vitsee.papers.verdicts import Evidence, Missing, claim


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
    table = table_of(pairs, "block_similarity", min(roles_in(pairs), key=number_in))
    return spearman(table["depth"], table["cka"])


@claim(
    "larger models need more data for their higher blocks",
    "mean CKA of the upper half of blocks at the smallest share of the data that both have, large minus base",
    below=0,
    untrained=False,
)
def larger_models_need_more_data(large: Evidence, base: Evidence) -> float:
    """'Higher layers and larger models require significantly more data to learn similar representations' (Figure 12).

    Threshold: at the same share, the larger model is less similar by any margin, so 0.
    Null: none: untrained, both are the same network.
    Premise: none.
    """
    by_share = [{number_in(role): role for role in roles_in(both)} for both in (large, base)]
    common = by_share[0].keys() & by_share[1].keys()
    if not common:
        raise Missing("a share of the data that both models were trained on")
    means = []
    for evidence, roles in zip((large, base), by_share, strict=True):
        table = table_of(evidence, "block_similarity", roles[min(common)])
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
    table = table_of(pairs, "block_similarity")
    return float(table["cka"][table["depth"] <= 1 / 3 + 1e-9].min())


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
    return top1_accuracy(accuracy, "vit_large_data_3") - top1_accuracy(accuracy, "vit_base_data_3")


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
    return top1_accuracy(accuracy, "vit_large_data_100") - top1_accuracy(
        accuracy, "vit_base_data_100"
    )


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
    return top1_accuracy(accuracy, "vit_large_data_100") - top1_accuracy(
        accuracy, "vit_large_data_30"
    )


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


def _trained(evidence: Evidence, kind: str) -> list[tuple[float, float]]:
    """Training FLOPs and accuracy of the models whose role starts with `kind` and whose FLOPs are known."""
    tables = [table_of(evidence, "scaling", role) for role in evidence if role.startswith(kind)]
    rows = [(float(t["training_flops"].iloc[0]), float(t["accuracy"].iloc[0])) for t in tables]
    known = [row for row in rows if np.isfinite(row[0])]
    if not known:
        raise Missing(f"training FLOPs of {kind}")
    return known


def _ahead(probes: Evidence, share: str) -> float:
    """Few-shot accuracy of the ResNet minus that of the better ViT at this share of the data."""
    resnet, *vits = (
        last_accuracy(probes, f"{kind}_data_{share}", "gap")
        for kind in ("resnet50", "vit_base", "vit_large")
    )
    return resnet - max(vits)
