"""Similarity of blocks at the same depth: CKA of those pairs, and how depths are paired."""

from __future__ import annotations

import pandas as pd
import pytest

from vitsee.analyses.block_similarity import paired
from vitsee.runner import run

pytestmark = pytest.mark.usefixtures("undrawn")

PAIR = ["model@other=timm", "other.timm=test_vit2", "other.pretrained=false"]


def test_it_is_the_cka_of_the_blocks_at_the_same_depth(tiny):
    table = pd.read_csv(run(tiny("analysis=block_similarity", *PAIR)).files[0])
    whole = pd.read_csv(run(tiny("analysis=cka", "analysis.layers=blocks", *PAIR)).files[0])
    whole = whole.set_index(["model_layer", "other_layer"])
    for row in table.itertuples():
        pair = (f"blocks.{row.block}", f"blocks.{row.other_block}")
        assert row.cka == pytest.approx(whole.loc[pair, "cka"], abs=1e-9)
        assert row.se == pytest.approx(whole.loc[pair, "se"], rel=1e-6, abs=1e-9)
    assert table["depth"].iloc[-1] == 1
    assert set(table["model"]) == {"test_vit"}


def test_a_model_is_1_to_itself(tiny):
    same = ["model@other=timm", "other.timm=test_vit", "other.pretrained=false"]
    table = pd.read_csv(run(tiny("analysis=block_similarity", *same)).files[0])
    assert table["cka"].to_numpy() == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize(
    ("blocks", "others", "expected"),
    [(3, 3, [0, 1, 2]), (2, 4, [1, 3]), (4, 2, [0, 0, 0, 1]), (1, 5, [4])],
)
def test_blocks_are_paired_by_relative_depth(blocks, others, expected):
    assert paired(blocks, others) == expected
