"""Claims: every statistic on tables made to hold it and to break it, intervals, and what is missing."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest

from vitsee.errors import UserError
from vitsee.papers import atlas
from vitsee.papers.claims import CLAIMS
from vitsee.papers.claims.statistics import accuracy_by_depth, table_of
from vitsee.papers.verdicts import (
    NO,
    NOT_TESTABLE,
    UNDECIDED,
    UNTRAINED_TOO,
    YES,
    Claim,
    Estimate,
    Gathered,
    Missing,
    beyond,
    claim,
    estimated,
    judge,
    statistic,
    verdict,
)
from vitsee.results import replicates


def cka(values: np.ndarray, rows: list[str] | None = None) -> dict[str, pd.DataFrame]:
    """A table of CKA from (layers of the model, layers of the other)."""
    i, j = np.indices(values.shape)
    names = np.array(rows or [f"blocks.{k}" for k in range(len(values))])
    others = (
        names
        if values.shape[0] == values.shape[1]
        else np.array([f"u{k}" for k in range(values.shape[1])])
    )
    table = {
        "model_layer": names[i.ravel()],
        "other_layer": others[j.ravel()],
        "cka": values.ravel(),
    }
    return {"cka": pd.DataFrame(table)}


def near(n: int, m: int, width: float, top: float = 1.0) -> np.ndarray:
    """CKA that falls with the difference in depth, 1 where depths are equal."""
    i, j = np.arange(n)[:, None] / n, np.arange(m)[None, :] / m
    return top * np.exp(-(((i - j) / width) ** 2))


def matching(n: int, m: int, depth, top=lambda i: 1.0) -> np.ndarray:
    """(n, m) CKA whose column j is highest at row depth(j / m) of n."""
    i, j = np.arange(n) / n, np.arange(m) / m
    return np.array([[top(a) * math.exp(-((a - depth(b)) ** 2) * 20) for b in j] for a in i])


def heads(low: list[float], high: list[float]) -> dict[str, pd.DataFrame]:
    """Distances (of 100 px uniform) in two low and two high blocks."""
    rows = [(block, h, d, 100.0) for block in (0, 1) for h, d in enumerate(low)]
    rows += [(block, h, d, 100.0) for block in (2, 3) for h, d in enumerate(high)]
    columns = ["block", "head", "distance_px", "uniform_px"]
    return {"attention_distance": pd.DataFrame(rows, columns=columns)}


def head_lines(slope: float) -> dict[str, pd.DataFrame]:
    x = np.arange(8.0)
    lines = [
        pd.DataFrame({"other_layer": name, "mean_distance_px": x, "cka": slope * x})
        for name in ("a", "b")
    ]
    return {"head_similarity": pd.concat(lines)}


def positions(nearby: float) -> dict[str, pd.DataFrame]:
    r, c, s, d = (i.ravel() for i in np.indices((3, 3, 3, 3)))
    apart = np.abs(r - s) + np.abs(c - d)
    cosine = np.where(apart == 0, 1.0, np.where(apart == 1, nearby, 0.2))
    names = {"row": r, "col": c, "other_row": s, "other_col": d}
    return {"position_similarity": pd.DataFrame({**names, "cosine": cosine})}


def field(radii: list[float], share: float = 0.1, point: str = "post", spread: float = 0.0) -> dict:
    names = [f"blocks.{i // 2}.+{'attn' if i % 2 == 0 else 'mlp'}" for i in range(len(radii))]
    sizes = pd.DataFrame({"layer": names, "point": point, "radius50_px": radii, "own_share": share})
    row, col = (i.ravel() for i in np.indices((9, 9)))
    value = np.where((row == 4) & (col == 4), 1.0, spread)
    maps = [
        pd.DataFrame({"layer": n, "point": point, "row": row, "col": col, "value": value})
        for n in names
    ]
    return {"receptive_field_size": sizes, "receptive_field": pd.concat(maps)}


def skips(cls: list[float], spatial: list[float], unit: float = 1.0, cosine=(0.5, 0.9)) -> dict:
    rows = []
    for block, (c, s) in enumerate(zip(cls, spatial, strict=True)):
        late = block >= len(cls) / 2
        for branch in ("attn", "mlp"):
            rows += [(block, branch, "class", c, 0.5), (block, branch, "mean", s, cosine[late])]
    rows += [(block, "unit", "mean", unit, 0.5) for block in range(3)]
    return {"skip_ratio": by_kind(rows, "ratio", "cosine")}


def by_kind(rows: list[tuple[Any, ...]], *numbers: str) -> pd.DataFrame:
    """Rows of block, branch, kind and these numbers, as in the table of the ratios of norms."""
    table = pd.DataFrame(rows, columns=["block", "branch", "kind", *numbers])
    tokens = table["kind"].map({"class": 0, "spatial": 0, "mean": -1})
    return table.assign(token=tokens, model=np.where(table["branch"] == "unit", "other", "model"))


def by_branch(mlp: float, attn: float) -> dict[str, pd.DataFrame]:
    """Ratios of the class token in four blocks."""
    both = (("mlp", mlp), ("attn", attn))
    rows = [(block, name, "class", r) for block in range(4) for name, r in both]
    return {"skip_ratio": by_kind(rows, "ratio")}


OF_THE_CLASS_TOKEN = (
    *("class_token_first", "spatial_tokens_later"),
    *("phase_transition", "mlps_change_the_class_token"),
)
"""Claims about how the class token passes through the blocks."""


@pytest.mark.parametrize("name", OF_THE_CLASS_TOKEN)
def test_the_first_patch_of_a_vit_without_a_class_token_is_not_taken_for_one(name):
    table = skips([3, 3, 1, 1], [1, 1, 2, 2])["skip_ratio"]
    table["kind"] = table["kind"].replace("class", "spatial")
    with pytest.raises(Missing, match="a ViT with a class token"):
        CLAIMS[name].measure({"model": {"skip_ratio": table}})
    assert CLAIMS["ratios_above_the_resnet"].measure({"model": {"skip_ratio": table}}) == 1.5


@pytest.mark.parametrize("name", [*OF_THE_CLASS_TOKEN, "later_spatial_outputs_follow_the_skip"])
def test_of_a_pair_of_vits_a_claim_about_one_is_about_the_first(name):
    first = skips([9, 8, 1, 1], [2, 2, 5, 5])["skip_ratio"].query("branch != 'unit'")
    second = skips([1, 1, 9, 9, 9, 9], [7, 7, 1, 1, 1, 1], cosine=(0.9, 0.1))["skip_ratio"]
    second = second.query("branch != 'unit'").assign(model="other")
    alone, both = ({"role": {"skip_ratio": table}} for table in (first, pd.concat([first, second])))
    assert CLAIMS[name].measure(both) == CLAIMS[name].measure(alone)


def test_two_models_are_compared_at_a_share_of_the_data_that_both_have():
    base = {"b_3": blocks([0.9, 0.1]), "b_10": blocks([0.9, 0.7])}
    claim_ = CLAIMS["larger_models_need_more_data"]
    large = {"l_10": blocks([0.9, 0.4])}
    assert claim_.measure(large=large, base=base) == pytest.approx(-0.3)
    with pytest.raises(Missing, match="a share of the data that both models were trained on"):
        claim_.measure(large={"l_30": blocks([0.9, 0.4])}, base=base)


def test_a_step_to_half_the_grid_is_no_unit_although_the_highest_frequency_is_the_same():
    """That of 14 x 14 and of 7 x 7 is 6/7."""
    rows = [(f"u{i}", k / 7, float(i > 1)) for i in range(2) for k in range(7)]
    rows += [(f"u{i}", 2 * k / 7, 5.0) for i in (2, 3) for k in range(4)]
    table = pd.DataFrame(rows, columns=["layer", "frequency", "relative"])
    found = CLAIMS["units_raise_high_frequencies"].measure({"resnet": {"fourier": table}})
    assert found == 0


def test_of_several_probed_layers_of_a_block_the_last_counts():
    table = probes(gap=[0.2, 0.8])["linear_probe"]
    inside = table.assign(layer=table["layer"] + ".norm1", accuracy=0.0)
    both = pd.concat([inside, table]).sort_values("depth", kind="stable")
    found = accuracy_by_depth({"role": {"linear_probe": both}}, "role")
    assert found.tolist() == [0.2, 0.8]
    unknown = {"role": {"linear_probe": table.assign(depth=math.nan)}}
    with pytest.raises(Missing, match="probes of gap at known depths"):
        accuracy_by_depth(unknown, "role")


def test_tokens_of_undefined_similarity_are_left_out_and_none_at_all_is_undefined():
    at = np.indices((4, 4, 4, 4)).reshape(4, -1)
    table = pd.DataFrame(at.T, columns=["token_row", "token_col", "patch_row", "patch_col"])
    own = (at[0] == at[2]) & (at[1] == at[3])
    table = table.assign(layer="blocks.0", cka=np.where(own, 0.9, 0.1))
    table.loc[(table["token_row"] == 1) & (table["token_col"] == 1), "cka"] = math.nan
    tokens_stay = CLAIMS["tokens_stay_in_place"].measure
    assert tokens_stay({"role": {"localization": table}}) == 1
    assert math.isnan(tokens_stay({"role": {"localization": table.assign(cka=math.nan)}}))


def units(first: float, last: float) -> dict[str, pd.DataFrame]:
    """Scores of two units with these CKAs of tokens and their own patches."""
    both = [("a", first, 0.2), ("b", last, 0.2)]
    return {"localization_score": pd.DataFrame(both, columns=["layer", "own_cka", "mean_cka"])}


def places(own: float, rank: int, edge: float = 0.3) -> dict[str, pd.DataFrame]:
    r, c, s, d = (i.ravel() for i in np.indices((5, 5, 5, 5)))
    border = np.isin(s, (0, 4)) | np.isin(d, (0, 4))
    pairs = {"layer": "b", "token_row": r, "token_col": c, "patch_row": s, "patch_col": d}
    row, col = (i.ravel() for i in np.indices((5, 5)))
    scores = {"layer": "b", "token_row": row, "token_col": col, "own_cka": own, "mean_cka": 0.2}
    itself = (r == s) & (c == d)
    cka = np.where(itself, 0.9 if rank == 1 else 0.1, np.where(border, edge, 0.2))
    return {
        "localization": pd.DataFrame({**pairs, "cka": cka}),
        "localization_score": pd.DataFrame({**scores, "own_rank": rank}),
    }


def probes(**accuracy: list[float]) -> dict[str, pd.DataFrame]:
    """Accuracies of features at depths 0.5 and 1."""
    rows = [
        (d, f, a) for f, both in accuracy.items() for d, a in zip((0.5, 1.0), both, strict=True)
    ]
    table = pd.DataFrame(rows, columns=["depth", "features", "accuracy"])
    return {"linear_probe": table.assign(layer="blocks." + table["depth"].astype(str))}


def trained(accuracy: float, flops: float = 1e9) -> dict[str, pd.DataFrame]:
    return {"scaling": pd.DataFrame({"accuracy": [accuracy], "training_flops": [flops]})}


def shares(share: str, **accuracy: float) -> dict[str, dict[str, pd.DataFrame]]:
    """Probes of the models of these kinds that were trained with this share of the data."""
    return {f"{kind}_data_{share}": probes(gap=[0.0, a]) for kind, a in accuracy.items()}


def blocks(values: list[float]) -> dict[str, pd.DataFrame]:
    depth = (np.arange(len(values)) + 1) / len(values)
    return {"block_similarity": pd.DataFrame({"depth": depth, "cka": values})}


def outliers(*share: float) -> dict[str, pd.DataFrame]:
    rows = [(f"b{i}", kind, s) for i, s in enumerate(share) for kind in ("class", "patch")]
    table = pd.DataFrame(rows, columns=["layer", "kind", "outlier_share"])
    return {
        "token_norm": table.assign(
            outlier_share=table["outlier_share"] * (table["kind"] == "patch")
        )
    }


def massive(ratio: list[float], share: list[float]) -> dict[str, pd.DataFrame]:
    rows = [(r, s, rank) for r, s in zip(ratio, share, strict=True) for rank in (1, 2)]
    return {"massive_activation": pd.DataFrame(rows, columns=["ratio", "channel_share", "rank"])}


def robust(half: float, accuracy: float = math.nan, **changes: float) -> dict[str, pd.DataFrame]:
    """Agreement at strength 0.5 and 4: `half`, but for the changes that are named."""
    names = ("drop_random", "drop_salient", "drop_other", "shuffle")
    rows = [
        (name, strength, accuracy, 1.0 if strength in (0, 1) else changes.get(name, half))
        for name in names
        for strength in ((1, 4) if name == "shuffle" else (0, 0.5))
    ]
    columns = ["change", "strength", "accuracy", "agreement"]
    return {"robustness": pd.DataFrame(rows, columns=columns)}


def spectra(relative: list[float], frequency: list[float] | None = None) -> dict[str, pd.DataFrame]:
    """The highest frequency after each sublayer, attention first; frequency 0 before it."""
    rows = []
    for i, (value, f) in enumerate(zip(relative, frequency or [0.8] * len(relative), strict=True)):
        name = f"blocks.{i // 2}.+{'mlp' if i % 2 else 'attn'}"
        rows += [(name, 0.0, 0.0), (name, f, value)]
    return {"fourier": pd.DataFrame(rows, columns=["layer", "frequency", "relative"])}


def of(**tables: dict) -> dict[str, dict]:
    """Evidence in which the role is called as the panel."""
    return {name: {name: table} for name, table in tables.items()}


def split(at: int) -> np.ndarray:
    """CKA of 12 layers that fall into those before and after this one."""
    after = np.arange(12) >= at
    return np.where(np.not_equal.outer(after, after), 0.1, 0.9)


FLAT, STEEP = cka(near(12, 12, 2.0)), cka(near(12, 12, 0.2))
CASES = {
    "uniform": (of(vit=FLAT, resnet=STEEP), of(vit=STEEP, resnet=FLAT)),
    "low_to_high": (of(vit=FLAT, resnet=STEEP), of(vit=STEEP, resnet=FLAT)),
    "lower_half_is_lowest_quarter": (
        of(cross=cka(matching(24, 20, lambda d: d * 0.4))),
        of(cross=cka(matching(24, 20, lambda d: 0.4 + d * 0.5))),
    ),
    "lower_half_is_lowest_third": (
        of(cross=cka(matching(24, 20, lambda d: d * 0.6))),
        of(cross=cka(matching(24, 20, lambda d: 0.4 + d * 0.5))),
    ),
    "upper_half_is_the_next_third": (
        of(cross=cka(matching(24, 20, lambda d: d * 0.55))),
        of(cross=cka(matching(24, 20, lambda d: d))),
    ),
    "highest_third_is_unlike": (
        of(cross=cka(matching(24, 20, lambda d: d * 0.5, lambda i: 1 - 0.7 * (i > 0.66)))),
        of(cross=cka(matching(24, 20, lambda d: 0.5 + d * 0.5))),
    ),
    "no_skip_splits_the_network": (
        {"cut": {"vit_noskip_7": cka(split(7))}, "intact": {"vit": FLAT}},
        {"cut": {"vit_noskip_7": FLAT}, "intact": {"vit": FLAT}},
    ),
    "no_skip_costs_accuracy": (
        {"accuracy": {"vit_noskip_none": trained(0.9), "vit_noskip_7": trained(0.8)}},
        {"accuracy": {"vit_noskip_none": trained(0.8), "vit_noskip_7": trained(0.9)}},
    ),
    "mixer_has_a_small_first_group": (
        {"mixer": {"m": cka(split(3))}},
        {"mixer": {"m": cka(split(9))}},
    ),
    "mixer_is_closer_to_the_vit": (
        of(vit=cka(near(12, 10, 0.5)), resnet=cka(near(12, 10, 0.5, 0.4))),
        of(vit=cka(near(12, 10, 0.5, 0.4)), resnet=cka(near(12, 10, 0.5))),
    ),
    "low_blocks_have_local_heads": (of(vit=heads([20, 90], [90])), of(vit=heads([80, 90], [90]))),
    "low_blocks_have_global_heads": (of(vit=heads([20, 95], [90])), of(vit=heads([20, 50], [90]))),
    "high_blocks_are_global": (of(vit=heads([20], [85, 90])), of(vit=heads([20], [30, 90]))),
    "little_data_no_local_heads": (
        of(little=heads([70], [90]), much=heads([20], [90])),
        of(little=heads([20], [90]), much=heads([40], [90])),
    ),
    "small_models_keep_local_heads": (of(little=heads([20], [90])), of(little=heads([70], [90]))),
    "local_heads_are_like_low_layers": (of(heads=head_lines(-1)), of(heads=head_lines(1))),
    "distance_grows_with_depth": (
        of(distance=heads([20, 30], [85, 90])),
        of(distance=heads([85, 90], [20, 30])),
    ),
    "hybrid_heads_are_less_local": (
        of(vit=heads([20, 40], [90]), hybrid=heads([60, 80], [90])),
        of(vit=heads([60, 80], [90]), hybrid=heads([20, 40], [90])),
    ),
    "near_positions_are_similar": (of(positions=positions(0.6)), of(positions=positions(0.1))),
    "resnet_fields_grow": (of(resnet=field([1, 2, 3, 4])), of(resnet=field([4, 1, 3, 2]))),
    "vit_fields_start_larger": (
        of(vit=field([5, 6, 7, 8]), resnet=field([1, 2, 3, 4])),
        of(vit=field([1, 2, 3, 4]), resnet=field([5, 6, 7, 8])),
    ),
    "vit_is_global_by_the_middle": (
        of(vit=field([1, 2, 3, 4], spread=1.0)),
        of(vit=field([1, 2, 3, 4], spread=0.0)),
    ),
    "branches_depend_less_on_their_patch": (
        of(pre=field([1, 2], 0.1, "pre"), post=field([1, 2], 0.5)),
        of(pre=field([1, 2], 0.5, "pre"), post=field([1, 2], 0.1)),
    ),
    "class_token_first": (
        of(skip=skips([9, 8, 1, 1], [2, 2, 5, 5])),
        of(skip=skips([1, 1, 1, 1], [2, 2, 5, 5])),
    ),
    "spatial_tokens_later": (
        of(skip=skips([9, 8, 1, 1], [2, 2, 5, 5])),
        of(skip=skips([9, 8, 7, 7], [2, 2, 5, 5])),
    ),
    "phase_transition": (
        of(skip=skips([9, 8, 1, 1], [2, 2, 5, 5])),
        of(skip=skips([9, 8, 7, 7], [2, 2, 5, 5])),
    ),
    "mlps_change_the_class_token": (of(skip=by_branch(1, 5)), of(skip=by_branch(5, 1))),
    "ratios_above_the_resnet": (
        of(skip=skips([9, 8], [2, 3], unit=1)),
        of(skip=skips([9, 8], [2, 3], unit=8)),
    ),
    "later_spatial_outputs_follow_the_skip": (
        of(skip=skips([9, 8], [2, 3], cosine=(0.5, 0.9))),
        of(skip=skips([9, 8], [2, 3], cosine=(0.9, 0.5))),
    ),
    "tokens_stay_in_place": (of(vit=places(0.9, 1)), of(vit=places(0.9, 7))),
    "vit_localizes_better_than_the_resnet": (
        of(vit=places(0.9, 1), resnet=places(0.3, 1)),
        of(vit=places(0.3, 1), resnet=places(0.9, 1)),
    ),
    "lower_units_localize_better": (
        of(resnet=units(0.9, 0.3)),
        of(resnet=units(0.3, 0.9)),
    ),
    "edge_tokens_see_edges": (of(vit=places(0.9, 1, 0.6)), of(vit=places(0.9, 1, 0.1))),
    "gap_loses_localization": (
        of(gap=places(0.3, 1), cls=places(0.9, 1)),
        of(gap=places(0.9, 1), cls=places(0.3, 1)),
    ),
    "gap_tokens_classify": (
        {"tokens": {"vit_gap": probes(each_token=[0.1, 0.6]), "vit_base32": probes(each_token=[0.1, 0.1])}},
        {"tokens": {"vit_gap": probes(each_token=[0.1, 0.1]), "vit_base32": probes(each_token=[0.1, 0.6])}},
    ),
    "native_readouts_agree": (
        {"probes": {"vit_gap": probes(gap=[0.1, 0.61]), "vit_base32": probes(cls=[0.1, 0.6])}},
        {"probes": {"vit_gap": probes(gap=[0.1, 0.3]), "vit_base32": probes(cls=[0.1, 0.6])}},
    ),
    "first_gap_token_catches_up": (
        {"probes": {"vit_gap": probes(gap=[0.3, 0.6], first=[0.1, 0.59])}},
        {"probes": {"vit_gap": probes(gap=[0.3, 0.6], first=[0.1, 0.2])}},
    ),
    "much_data_helps_the_middle": (
        {"probes": {"vit_large": probes(gap=[0.7, 0.8]), "vit_large_small_data": probes(gap=[0.2, 0.5])}},
        {"probes": {"vit_large": probes(gap=[0.3, 0.8]), "vit_large_small_data": probes(gap=[0.2, 0.5])}},
    ),
    "much_data_helps_all_but_the_lowest": (
        {"probes": {"vit_large": probes(gap=[0.7, 0.8]), "vit_large_small_data": probes(gap=[0.2, 0.5])}},
        {"probes": {"vit_large": probes(gap=[0.7, 0.4]), "vit_large_small_data": probes(gap=[0.2, 0.5])}},
    ),
    "vit_middle_layers_are_stronger": (
        {"probes": {"vit_large": probes(gap=[0.7, 0.8]), "resnet50": probes(gap=[0.2, 0.5])}},
        {"probes": {"vit_large": probes(gap=[0.2, 0.8]), "resnet50": probes(gap=[0.7, 0.5])}},
    ),
    "higher_layers_need_more_data": (
        {"pairs": {"x_3": blocks([0.9, 0.8, 0.4, 0.2]), "x_30": blocks([1, 1, 1, 1])}},
        {"pairs": {"x_3": blocks([0.2, 0.4, 0.8, 0.9]), "x_30": blocks([0.9, 0.8, 0.4, 0.2])}},
    ),
    "larger_models_need_more_data": (
        {"large": {"l_3": blocks([0.9, 0.2])}, "base": {"b_3": blocks([0.9, 0.7])}},
        {"large": {"l_3": blocks([0.9, 0.7])}, "base": {"b_3": blocks([0.9, 0.2])}},
    ),
    "low_blocks_survive_fine_tuning": (
        of(pairs=blocks([0.99, 0.98, 0.5, 0.4, 0.3, 0.2])),
        of(pairs=blocks([0.99, 0.5, 0.5, 0.4, 0.3, 0.2])),
    ),
    "large_vits_need_much_data": (
        {"accuracy": {"vit_large_data_3": trained(0.2), "vit_base_data_3": trained(0.3)}},
        {"accuracy": {"vit_large_data_3": trained(0.3), "vit_base_data_3": trained(0.2)}},
    ),
    "large_vits_win_with_much_data": (
        {"accuracy": {"vit_large_data_100": trained(0.9), "vit_base_data_100": trained(0.8)}},
        {"accuracy": {"vit_large_data_100": trained(0.8), "vit_base_data_100": trained(0.9)}},
    ),
    "more_data_still_helps": (
        {"accuracy": {"vit_large_data_100": trained(0.9), "vit_large_data_30": trained(0.8)}},
        {"accuracy": {"vit_large_data_100": trained(0.8), "vit_large_data_30": trained(0.9)}},
    ),
    "resnets_win_with_little_data": (
        {"probes": shares("3", resnet50=0.5, vit_base=0.4, vit_large=0.3)},
        {"probes": shares("3", resnet50=0.5, vit_base=0.4, vit_large=0.6)},
    ),
    "vits_win_with_much_data": (
        {"probes": shares("100", resnet50=0.5, vit_base=0.4, vit_large=0.6)},
        {"probes": shares("100", resnet50=0.5, vit_base=0.4, vit_large=0.3)},
    ),
    "vits_take_less_compute": (
        {"compute": {"vit_a": trained(0.8, 1e9), "resnet50": trained(0.7, 2e9), "resnet152": trained(0.9, 3e9)}},
        {"compute": {"vit_a": trained(0.8, 1e9), "resnet50": trained(0.9, 2e9), "resnet152": trained(0.7, 3e9)}},
    ),
    "small_hybrids_win": (
        {"compute": {"hybrid": trained(0.8, 1e9), "vit_a": trained(0.7, 2e9), "vit_b": trained(0.9, 3e9)}},
        {"compute": {"hybrid": trained(0.8, 1e9), "vit_a": trained(0.9, 2e9), "vit_b": trained(0.7, 3e9)}},
    ),
    "vits_have_outlier_tokens": (
        of(norms=outliers(0, 0, 0, 0, 0, 0, 0.02, 0.02)),
        of(norms=outliers(0, 0.2, 0, 0, 0, 0, 0.002, 0.001)),
    ),
    "outlier_tokens_come_midway": (
        of(norms=outliers(0, 0, 0.02, 0.02)),
        of(norms=outliers(0.1, 0, 0.02, 0.02)),
    ),
    "activations_are_massive": (
        of(ranks=massive([20, 2000, 1500], [0.2, 1, 1])),
        of(ranks=massive([20, 40, 30], [0.2, 1, 1])),
    ),
    "massive_activations_keep_their_channel": (
        of(ranks=massive([20, 2000, 1500], [0.2, 1, 0.5])),
        of(ranks=massive([20, 2000, 1500], [1, 0.5, 1])),
    ),
    "vits_bear_occlusion": (
        {"drops": {"vit_large_ft": robust(0.7), "resnet50_v1": robust(0.1)}},
        {"drops": {"vit_large_ft": robust(0.1), "resnet50_v1": robust(0.7)}},
    ),
    "salient_patches_matter": (
        {"drops": {"vit_large_ft": robust(0.5, drop_salient=0.2)}},
        {"drops": {"vit_large_ft": robust(0.5, drop_other=0.2)}},
    ),
    "vits_bear_shuffling": (
        {"shuffle": {"vit_large_ft": robust(0.5), "resnet50_v1": robust(0.9, shuffle=0.1)}},
        {"shuffle": {"vit_large_ft": robust(0.5), "resnet50_v1": robust(0.1, shuffle=0.9)}},
    ),
    "attention_lowers_high_frequencies": (
        of(sublayers=spectra([-1, 0, -1, 0, -1, 0])),
        of(sublayers=spectra([0, -1, 0, -1, 0, -1])),
    ),
    "units_raise_high_frequencies": (
        of(resnet=spectra([-3, -2.5, -9, -8], [0.9, 0.9, 0.7, 0.7])),
        of(resnet=spectra([-3, -3.5, -1, -2], [0.9, 0.9, 0.7, 0.7])),
    ),
}  # fmt: skip


def panels(case: dict[str, dict]) -> dict[str, list[dict]]:
    """One panel for each piece of evidence."""
    return {name: [one] for name, one in case.items()}


def of_groups(values: np.ndarray, again: float = 1.0) -> Gathered:
    """Evidence `e` whose table has the mean over images of each column of values, one group per image."""

    def table(rows: np.ndarray) -> dict[str, list[dict]]:
        means = pd.DataFrame({"x": rows.mean(0)})
        return panels({"e": {"role": {"t": means}}})

    groups = len(values)
    return Gathered(table(values), [table(np.delete(values, i, 0)) for i in range(groups)], again)


def of_table(measure, *, above: bool = True, **more) -> Claim:
    """The claim that this statistic of the column x is above (or below) 0."""
    return Claim("a", "s", "t", 0.0, above, lambda e: measure(e["role"]["t"]["x"]), **more)


@pytest.mark.parametrize("name", sorted(CLAIMS))
def test_a_claim_holds_on_tables_made_to_hold_it_and_fails_on_the_contrary(name):
    for case, expected in zip(CASES[name], (YES, NO), strict=True):
        row = verdict(CLAIMS[name], "fig", Gathered(panels(case), [panels(case)] * 2))
        assert row["holds"] == expected, row
        assert row["low"] == row["value"] == row["high"]


@pytest.mark.parametrize("name", sorted(CLAIMS))
def test_a_claim_without_its_panels_is_not_testable_and_says_why(name):
    nothing: dict[str, list[dict]] = {key: [{}] for key in CLAIMS[name].evidence}
    row = verdict(CLAIMS[name], "fig", Gathered(nothing, []))
    assert row["holds"] == NOT_TESTABLE
    assert str(row["why"]).startswith("not measured: ")
    assert math.isnan(float(row["value"]))


@pytest.mark.parametrize("name", sorted(CLAIMS))
def test_every_claim_has_the_authors_words_and_says_where_threshold_null_and_premise_are_from(name):
    reasons = CLAIMS[name].reasons
    assert list(reasons) == ["Paper", "Threshold", "Null", "Premise"]
    assert all(reasons.values())
    assert (reasons["Premise"] == "none.") == (CLAIMS[name].premise is None)
    assert reasons["Null"].startswith("none: ") != CLAIMS[name].untrained


def test_every_claim_is_tested_by_a_figure_with_the_panels_it_needs():
    used = set()
    for figure in map(atlas.published, atlas.figures()):
        for name, evidence in figure.claims.items():
            assert sorted(evidence) == sorted(CLAIMS[name].evidence), (figure.name, name)
            assert {panel for one in evidence.values() for panel in one} <= set(figure.panels)
            used.add(name)
    assert used == set(CLAIMS)


@pytest.mark.parametrize(
    ("low", "high", "expected"), [(0.6, 0.8, YES), (0.2, 0.4, NO), (0.4, 0.6, UNDECIDED)]
)
def test_a_claim_holds_or_not_only_if_the_whole_interval_says_so(low, high, expected):
    above = Claim("a", "s", "t", 0.5, True, lambda: 0.0)
    below = Claim("b", "s", "t", -0.5, False, lambda: 0.0)
    assert judge(above, Estimate((low + high) / 2, low, high)) == expected
    assert judge(below, Estimate(-(low + high) / 2, -high, -low)) == expected


@pytest.mark.parametrize(
    ("untrained", "expected"),
    [(0.1, YES), (0.55, YES), (0.65, UNTRAINED_TOO), (0.9, UNTRAINED_TOO)],
)
def test_what_untrained_networks_do_as_well_is_not_what_training_does(untrained, expected):
    above = Claim("a", "s", "t", 0.5, True, lambda: 0.0)
    below = Claim("b", "s", "t", -0.5, False, lambda: 0.0)
    high, low = Estimate(0.7, 0.6, 0.8), Estimate(-0.7, -0.8, -0.6)
    assert judge(above, high, beyond(above, high, untrained)) == expected
    assert judge(below, low, beyond(below, low, -untrained)) == expected


def test_each_panel_is_compared_with_its_own_untrained_network():
    above = Claim("a", "s", "t", 0.5, True, lambda e: float(table_of(e, "t")["x"].mean()))
    made = lambda x: {"role": {"t": pd.DataFrame({"x": [x, x]})}}  # noqa: E731
    trained, random = ({"e": [made(x) for x in pair]} for pair in ((0.99, 0.9), (1.0, 0.85)))
    row = verdict(above, "fig", Gathered(trained, [trained] * 2), random)
    assert (row["value"], row["holds"], row["untrained"]) == (0.9, UNTRAINED_TOO, 1.0)
    alone = {"e": random["e"][1:]}
    second = {"e": trained["e"][1:]}
    assert verdict(above, "fig", Gathered(second, [second] * 2), alone)["holds"] == YES
    lacking = {"e": [random["e"][1], {}]}
    row = verdict(above, "fig", Gathered(trained, [trained] * 2), lacking)
    assert (row["untrained"], row["why"]) == (0.85, "no null: the panel")


def test_a_null_that_is_undefined_is_said_to_be_none():
    case = panels(CASES["class_token_first"][0])
    nothing = panels(of(skip=skips([math.nan] * 4, [math.nan] * 4)))
    row = verdict(CLAIMS["class_token_first"], "fig", Gathered(case, [case] * 2), nothing)
    assert (row["holds"], row["why"]) == (
        YES,
        "no null: the statistic of untrained networks is undefined",
    )


def test_a_claim_that_fails_fails_whatever_untrained_networks_do():
    one = Claim("a", "s", "t", 0.5, True, lambda: 0.0)
    assert judge(one, Estimate(0.3, 0.2, 0.4), -0.7) == NO


def test_the_statistic_of_untrained_networks_stands_beside_that_of_trained_ones():
    flat, steep = CASES["uniform"]
    row = verdict(CLAIMS["uniform"], "fig", Gathered(panels(flat), []), panels(steep))
    assert row["untrained"] == statistic(CLAIMS["uniform"], panels(steep)) < 0
    assert row["why"] == ""


def test_a_null_that_cannot_be_measured_leaves_the_verdict_and_is_named():
    case = panels(CASES["class_token_first"][0])
    row = verdict(CLAIMS["class_token_first"], "fig", Gathered(case, [case] * 2), {"skip": [{}]})
    assert (row["holds"], row["why"]) == (YES, "no null: the panel")


def test_without_an_interval_a_claim_is_undecided():
    one = Claim("a", "s", "t", 0.5, True, lambda: 0.0)
    assert judge(one, Estimate(0.9, math.nan, math.nan)) == UNDECIDED


def test_a_claim_has_one_threshold():
    for given in ({}, {"above": 1, "below": 2}):
        with pytest.raises(
            UserError, match=r"the claim uniform .*similarity\.py, line \d+\) .*one"
        ):
            claim("s", "t", **given)(CLAIMS["uniform"].measure)


def test_of_several_panels_the_worst_choice_counts():
    weak = cka(near(12, 12, 0.5))
    both = {"vit": [{"a": FLAT}, {"b": weak}], "resnet": [{"r": STEEP}]}
    alone = statistic(CLAIMS["uniform"], {"vit": [{"b": weak}], "resnet": [{"r": STEEP}]})
    assert statistic(CLAIMS["uniform"], both) == alone
    below = CLAIMS["low_blocks_have_local_heads"]
    assert statistic(below, {"vit": [{"a": heads([20], [90])}, {"b": heads([60], [90])}]}) == 0.6


def test_panels_that_lack_what_the_others_have_are_left_out():
    one = CLAIMS["low_blocks_have_local_heads"]
    assert statistic(one, {"vit": [{"a": heads([20], [90])}, {"b": {}}]}) == 0.2


PREMISES = {
    "little_data_no_local_heads": (
        of(little=heads([90], [90]), much=heads([70], [90])),
        "much data gives no local heads either (smallest 0.70)",
    ),
    "local_heads_are_like_low_layers": (
        of(heads={"head_similarity": head_lines(-1)["head_similarity"].assign(mean_distance_px=50.0)}),
        "all heads are about equally local (smallest to largest 1.00)",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(name for name in CLAIMS if CLAIMS[name].premise))
def test_a_claim_whose_premise_fails_is_not_testable_and_says_why(name):
    case, why = PREMISES[name]
    row = verdict(CLAIMS[name], "fig", Gathered(panels(case), [panels(case)] * 2))
    assert (row["holds"], row["why"]) == (NOT_TESTABLE, why)


def test_the_interval_of_a_mean_is_that_of_student_s_t():
    values = np.random.default_rng(0).standard_normal((10, 1))
    error = float(values.std(ddof=1)) / 10**0.5
    for again in (1.0, 4.0):
        found = estimated(of_table(pd.Series.mean), of_groups(values, again))
        margin = 2.262 * error * again**0.5
        assert found.value == pytest.approx(values.mean())
        assert found.high - found.value == pytest.approx(margin, rel=0.2)
        assert found.high - found.value == pytest.approx(found.value - found.low, rel=1e-6)


@pytest.mark.parametrize(
    ("measure", "least", "most"),
    [
        (lambda x: x.rank().corr(pd.Series(range(len(x)))), -1, 1),
        (lambda x: (x > 0).mean(), 0, 1),
        (lambda x: x.argmax() / len(x), 0, 1),
    ],
    ids=["rank correlation", "share", "place of the largest"],
)
def test_an_interval_never_leaves_the_range_of_the_statistic(measure, least, most):
    values = np.random.default_rng(0).standard_normal((10, 6)) + np.linspace(-0.3, 0.3, 6)
    found = estimated(of_table(measure), of_groups(values))
    assert least <= found.low <= found.value <= found.high <= most
    assert found.low < found.high


@pytest.mark.parametrize(
    "measure", [np.median, np.max, np.min], ids=["median", "largest", "smallest"]
)
def test_intervals_of_statistics_that_are_not_smooth_cover_the_truth(measure):
    """In 60 samples of 10 groups; the truth of these means is known, and they are well apart."""
    rng, truth = np.random.default_rng(0), np.array([0.0, 1.0, 2.0, 3.0, 4.0])
    covered = 0
    for _ in range(60):
        groups = truth + rng.standard_normal((10, 5))
        found = estimated(of_table(measure), of_groups(groups), draws=100)
        covered += found.low <= measure(truth) <= found.high
    assert 52 <= covered <= 60


@pytest.mark.parametrize("above", [True, False])
def test_the_best_of_many_equal_heads_is_not_taken_for_better_than_they_are(above):
    """The best of 24 means whose true value is 1, in 40 samples: 95 % of the intervals reach 1."""
    rng = np.random.default_rng(0)
    one = of_table(np.asarray, above=above, any_of=True)
    samples = 1 + 0.1 * rng.standard_normal((40, 10, 24))
    found = [estimated(one, of_groups(sample), draws=100) for sample in samples]
    assert all(each.low <= each.value <= each.high for each in found)
    assert sum(each.low <= 1 <= each.high for each in found) >= 36
    assert all(each.value > 1 if above else each.value < 1 for each in found)


def test_groups_that_make_the_statistic_undefined_leave_no_interval():
    values = np.random.default_rng(0).standard_normal((10, 3))
    found = estimated(of_table(lambda x: math.nan if x[0] < -0.5 else x[0]), of_groups(values))
    assert math.isnan(found.low)


def test_one_group_leaves_no_interval():
    whole = of_groups(np.ones((2, 1))).whole
    assert math.isnan(estimated(of_table(pd.Series.mean), Gathered(whole, [whole])).low)


def test_replicates_come_back_to_the_last_digit(tmp_path):
    rng = np.random.default_rng(0)
    table = pd.DataFrame(
        {"layer": ["a", "b"], "cka": rng.random(2), "same": [0.5, 0.5], "se": rng.random(2)}
    )
    without = [{"cka": table.assign(cka=rng.random(2), se=rng.random(2))} for _ in range(3)]
    (tmp_path / replicates.NAME).write_bytes(replicates.pack({"cka": table}, without, 2.0))
    back = replicates.read(tmp_path, {"cka": table})
    assert back.again == 2.0
    for one, before in zip(back.tables, without, strict=True):
        pd.testing.assert_series_equal(one["cka"]["cka"], before["cka"]["cka"], check_exact=True)
        assert one["cka"]["layer"].tolist() == ["a", "b"]


def test_a_result_without_groups_has_no_replicates(tmp_path):
    table = {"t": pd.DataFrame({"x": [0.5]})}
    (tmp_path / replicates.NAME).write_bytes(replicates.pack(table, [], 1.0))
    assert replicates.read(tmp_path, table).tables == []
    assert replicates.read(tmp_path / "nowhere", table).tables == []


def test_accuracy_is_compared_where_every_model_has_one():
    known = {"vit_large_ft": robust(0.9, accuracy=0.2), "resnet50_v1": robust(0.1, accuracy=0.6)}
    assert CLAIMS["vits_bear_occlusion"].measure(known) == pytest.approx(-0.4)
    half_known = known | {"resnet50_v1": robust(0.1)}
    assert CLAIMS["vits_bear_occlusion"].measure(half_known) == pytest.approx(0.8)


def test_missing_evidence_is_named():
    with pytest.raises(Missing, match="vit_gap"):
        CLAIMS["first_gap_token_catches_up"].measure({"vit_base32": probes(gap=[0, 0])})


def test_of_a_panel_with_several_roles_no_table_is_taken_at_random():
    both = {"vit_base32": trained(0.5), "vit_gap": trained(0.6)}
    assert table_of(both, "scaling", "vit_gap")["accuracy"].tolist() == [0.6]
    with pytest.raises(Missing, match="a panel with one role; this one has vit_base32, vit_gap"):
        table_of(both, "scaling")
