"""The arithmetic of the Triton kernels, which Triton's interpreter runs on a CPU."""

from __future__ import annotations

import os

import pytest
import torch

from vitsee.estimators import kernels
from vitsee.estimators.kernels import u_centre

pytest.importorskip("triton", reason="Triton, which comes with torch on Linux, is not installed")
fused = pytest.importorskip("vitsee.estimators.fused_gram")
pytestmark = pytest.mark.skipif(
    not os.environ.get("TRITON_INTERPRET"),
    reason="on a machine with a GPU, scripts/gpu_check.py runs the kernels",
)

NOISE = 2e-6
EXACT = 1e-6
TF32 = 2**-9


def features(n: int, count: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, count, generator=torch.Generator().manual_seed(seed))


def error(k: torch.Tensor, x: torch.Tensor) -> float:
    """Largest error of the U-centred Gram matrix, as a share of its largest entry in float64."""
    x = x.double() - x.double().mean(0)
    expected = u_centre(x @ x.T)
    return float((u_centre(k) - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize(("n", "count"), [(4, 5), (5, 64), (63, 33), (64, 100), (65, 7), (260, 16)])
def test_the_gram_matrix_is_exact_for_any_number_of_examples_and_features(n, count):
    x = features(n, count) + 1
    k = fused.gram(x, "exact", NOISE)
    assert error(k, x) < EXACT
    assert torch.equal(k, k.T)


def test_it_is_exact_where_means_are_a_thousand_times_the_deviations():
    x = features(66, 96) + 1000
    assert error(fused.gram(x, "exact", NOISE), x) < EXACT


def test_features_of_more_than_one_part_add_up(monkeypatch):
    monkeypatch.setattr(fused, "LONGEST", 64)
    x = features(20, 1000)
    assert error(fused.gram(x, "exact", NOISE), x) < EXACT


@pytest.mark.parametrize("shift", [0, 1, 4])
def test_examples_may_lie_any_distance_apart_in_memory(shift):
    x = features(12, 200)[:, shift : shift + 97]
    assert error(fused.gram(x, "exact", NOISE), x) < EXACT


def test_tf32_is_off_by_its_rounding_and_no_more():
    x = features(32, 400) + 3
    assert 0 < error(fused.gram(x, "tf32", NOISE), x) < TF32


def test_half_precision_features_are_multiplied_as_they_are():
    x = (features(32, 400) + 1).half()
    assert error(fused.gram(x, "native", 1e-3), x) < EXACT


@pytest.mark.parametrize("rounding", ["exact", "native"])
def test_features_that_do_not_vary_have_a_gram_matrix_of_exact_zeros(rounding):
    constant = (features(1, 300) + 5).repeat(70, 1).half()
    assert torch.equal(fused.gram(constant, rounding, 1e-3), torch.zeros(70, 70).double())


def test_features_that_vary_by_rounding_alone_have_a_gram_matrix_of_exact_zeros():
    x = (features(1, 300) + 5).repeat(16, 1) * (1 + 1e-7 * features(16, 300, seed=1))
    assert not fused.gram(x, "exact", NOISE).any()


@pytest.mark.filterwarnings("ignore:invalid value")
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_value_that_is_not_finite_reaches_its_row(value):
    x = features(70, 50)
    x[68, 7] = value
    k = fused.gram(x, "exact", NOISE)
    assert not k[68].isfinite().any()


def test_arithmetic_follows_the_type_of_the_features_and_the_rounding():
    half, bfloat, single = torch.float16, torch.bfloat16, torch.float32
    assert fused._arithmetic(single, "exact") == ("tf32x3", True)
    assert fused._arithmetic(bfloat, "exact") == ("tf32x3", True)
    assert fused._arithmetic(single, "native") == ("tf32", True)
    assert fused._arithmetic(bfloat, "native") == ("none", False)
    assert fused._arithmetic(half, "native") == ("none", False)
    assert fused._arithmetic(bfloat, "bf16") == ("none", False)
    assert fused._arithmetic(half, "bf16") == ("bf16", True)


@pytest.mark.parametrize("shape", [(6, 4, 5), (6, 3, 4, 5)], ids=["tokens", "map"])
@pytest.mark.parametrize("laid_out", ["contiguous", "last first", "sliced"])
def test_tokens_and_maps_are_read_without_a_copy(shape, laid_out):
    x = features(shape[0], 2 * 3 * 4 * 5)[:, : int(torch.tensor(shape[1:]).prod())].reshape(shape)
    if laid_out == "last first":
        x = x.transpose(1, -1).contiguous().transpose(1, -1)
    if laid_out == "sliced":
        x = torch.cat([x, x], 1)[:, : shape[1]]
    rows = kernels._rows(x)
    assert rows.data_ptr() == x.data_ptr()
    assert rows.stride(1) == 1
    assert sorted(rows[2].tolist()) == sorted(x[2].flatten().tolist())
