"""Claims about linear probes (Figures 11, 13, D.4, F.1 to F.3)."""

from __future__ import annotations

import numpy as np

from vitsee.papers.claims.statistics import accuracy_by_depth, last_accuracy, roles_in
from vitsee.papers.verdicts import Evidence, Missing, claim


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
    gap, cls = (last_accuracy(tokens, role, "each_token") for role in ("vit_gap", "vit_base32"))
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
    gap = last_accuracy(probes, "vit_gap", "gap")
    return abs(gap - last_accuracy(probes, "vit_base32", "cls"))


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
    first, pooled = (last_accuracy(probes, "vit_gap", features) for features in ("first", "gap"))
    return first - pooled


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
    return _middle(probes, "vit_large") - _middle(probes, "vit_large_small_data")


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
        accuracy_by_depth(probes, role) for role in ("vit_large", "vit_large_small_data")
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
    resnets = roles_in(probes, "resnet")
    if not resnets:
        raise Missing("a ResNet")
    return _middle(probes, "vit_large") - max(_middle(probes, role) for role in resnets)


def _middle(probes: Evidence, role: str) -> float:
    """Mean accuracy of pooled tokens over the measured depths in the middle third, or at the depth nearest to 1/2."""
    by_depth = accuracy_by_depth(probes, role)
    apart = np.abs(by_depth.index - 0.5)
    return float(by_depth[apart <= max(1 / 6, apart.min())].mean())
