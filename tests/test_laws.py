"""Laws every analysis obeys, whatever it measures. A new analysis is tested by existing."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from conftest import NEEDED

from vitsee.analysis import REGISTERED
from vitsee.errors import Incomplete, UserError
from vitsee.sums import Sums
from vitsee.testing import LAWS, Law, Measured, drawn_without_torch


@pytest.mark.parametrize(
    ("name", "law"),
    [
        pytest.param(
            name, law, marks=pytest.mark.xdist_group(f"laws of {name}"), id=f"{name}-{law.__name__}"
        )
        for name in sorted(REGISTERED)
        for law in LAWS
        if law is not drawn_without_torch or name == "cka"  # of all: test_edited.py
    ],
)
def test_every_analysis_obeys_every_law(
    name: str, law: Law, measured: Callable[[str], Measured], request, tmp_path
):
    found = measured(name)
    request.getfixturevalue("undrawn")  # but for what a law draws itself
    law(found, tmp_path / "law")


def test_every_law_says_what_it_demands():
    assert all(law.__doc__ and law.__doc__.endswith(".") for law in LAWS)
    assert len({law.__name__ for law in LAWS}) == len(LAWS)


class TestSums:
    """What sums promise, with those of CKA."""

    pytestmark = pytest.mark.xdist_group("laws of cka")

    @pytest.fixture
    def parts(self, measured: Callable[[str], Measured]) -> list[Sums]:
        return measured("cka").parts

    def test_zero_changes_nothing(self, parts):
        one, zero = parts[0], Sums.zero(len(parts))
        for sums in (zero + one, one + zero):
            assert sums.terms.keys() == one.terms.keys()
            assert all(sums.terms[k].equal(one.terms[k]) for k in one.terms)

    def test_a_missing_or_repeated_minibatch_is_named(self, parts):
        twice, missing = parts[1], len(parts) - 2
        with pytest.raises(
            Incomplete,
            match=rf"{missing} of {len(parts)} minibatches are missing .* and 1 are counted",
        ):
            (parts[0] + twice + twice).complete()

    def test_sums_of_different_layers_are_not_added(self, parts):
        one = parts[0]
        axes = {role: [*names, "more"] for role, names in one.axes.items()}
        with pytest.raises(ValueError, match="these sums measure different things"):
            one + Sums(one.seen, one.parts, axes)


def test_a_minibatch_needs_four_images_only_where_hsic_is_computed(tiny):
    for name, kind in sorted(REGISTERED.items()):
        words = [f"analysis={name}", *NEEDED.get(name, [])]
        if not kind.equal_minibatches:
            assert tiny(*words, "batch_size=1").batch_size == 1
            continue
        with pytest.raises(
            UserError, match=r"batch_size must be at least 4 \(unbiased HSIC divides"
        ):
            tiny(*words, "batch_size=3")


def test_a_number_of_models_that_is_refused_says_what_to_do(tiny):
    other = ["model@other=timm", "other.timm=test_vit2", "other.pretrained=false"]
    with pytest.raises(
        UserError, match=r"compares two models; choose the second one: model@other="
    ):
        tiny("analysis=block_similarity")
    with pytest.raises(
        UserError, match=r"linear_probe measures one model, .*vitsee run -m analysis=linear_probe"
    ):
        tiny("analysis=linear_probe", *other)


def test_without_a_setting_what_needs_one_says_so():
    for kind in REGISTERED.values():
        with pytest.raises(RuntimeError, match=r"has no setting yet: use analysis\.on\(setting\)"):
            kind().setting  # noqa: B018
