"""Formulas against their definitions and their invariances."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from reference import hsic1
from torch import nn

from vitsee.errors import UserError
from vitsee.estimators import kernels
from vitsee.estimators.kernels import absolute_gradients, gram, hsic, u_centre


def features(n: int, *shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, *shape, generator=torch.Generator().manual_seed(seed))


def exact(x: torch.Tensor) -> torch.Tensor:
    """U-centred Gram matrix of (N, ...) features, in float64."""
    x = x.double().flatten(1)
    x = x - x.mean(0)
    return u_centre(x @ x.T)


def test_hsic_is_its_definition_for_every_pair():
    x = [features(7, 5, seed=i) for i in range(3)]
    y = [features(7, 9, seed=9 + i) for i in range(2)]
    u, v = (torch.stack([u_centre(gram(z)) for z in zs]) for zs in (x, y))
    expected = [[hsic1((a @ a.T).numpy(), (b @ b.T).numpy()) for b in y] for a in x]
    np.testing.assert_allclose(hsic(u, v), expected, rtol=1e-5, atol=1e-5)


def test_hsic_ignores_rotation_and_translation_of_the_features():
    x = features(16, 6).double()
    rotation, _ = torch.linalg.qr(features(6, 6, seed=1).double())
    u, v = (u_centre(gram(z.float()))[None] for z in (x, x @ rotation + 3))
    torch.testing.assert_close(hsic(u, u), hsic(u, v), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("ratio", [0, 100, 1000])
def test_the_gram_matrix_is_exact_where_means_are_much_larger_than_deviations(ratio):
    x = features(32, 50, 16) + ratio
    error = (u_centre(gram(x)) - exact(x)).abs().max() / exact(x).abs().max()
    assert error < 1e-6


@pytest.mark.parametrize("count", [1, 15, 16, 17, 997, 1000])
def test_pieces_of_the_features_add_up_to_the_whole(count, monkeypatch):
    x = features(8, count)
    whole = gram(x)
    monkeypatch.setattr("vitsee.estimators.kernels._AT_ONCE", {"cpu": 560})
    monkeypatch.setattr("vitsee.estimators.kernels._PIECE", {"cpu": 16})
    monkeypatch.setattr("vitsee.estimators.kernels._ROWS", {"cpu": 3})
    torch.testing.assert_close(gram(x), whole, rtol=1e-6, atol=1e-4)


@pytest.mark.parametrize("mean", [0, 0.5, 0.9, 1.1, 3])
def test_cka_is_exact_to_a_millionth_whether_means_are_small_enough_to_be_left_or_not(mean):
    shared = features(64, 20)
    x, y = (shared @ features(20, 5000, seed=s) * 0.1 + features(64, 5000, seed=s) for s in (1, 2))
    u, v = (u_centre(gram(z + mean)).flatten() for z in (x, y))
    a, b = (exact(z + mean).flatten() for z in (x, y))
    cka, expected = (p @ q / (p @ p * (q @ q)).sqrt() for p, q in ((u, v), (a, b)))
    assert abs(cka - expected) < 1e-6


def test_factors_that_are_rounded_are_centred_however_small_the_means():
    x = features(64, 5000)
    without, with_mean = ((u_centre(gram(z, "bf16")) - exact(x)).abs().max() for z in (x, x + 0.9))
    assert with_mean < 1.5 * without


def test_an_example_unlike_those_that_give_the_centre_is_exact_too():
    x = features(64, 500) + 100
    x[1] += 50
    assert (u_centre(gram(x)) - exact(x)).abs().max() / exact(x).abs().max() < 1e-6


def test_products_of_factors_rounded_to_bfloat16_are_off_by_their_rounding_and_no_more():
    x = features(32, 5000)
    error = (u_centre(gram(x, "bf16")) - exact(x)).abs().max() / exact(x).abs().max()
    assert 1e-6 < error < 2**-8


def test_tf32_products_are_refused_where_there_is_no_cuda():
    with pytest.raises(
        UserError, match=r"analysis\.products=tf32 works on CUDA devices only, not on cpu"
    ):
        gram(features(8, 5), "tf32")


def test_features_that_do_not_vary_have_a_gram_matrix_of_exact_zeros():
    row = features(1, 300)
    constant = row.repeat(16, 1)
    rounded = constant * (1 + 1e-7 * features(16, 300, seed=1))
    assert gram(constant).abs().max() == 0
    assert gram(rounded).abs().max() == 0


def test_features_that_vary_by_a_thousandth_are_not_called_constant():
    x = 1 + 1e-3 * features(16, 300)
    assert gram(x).diagonal().sum() > 0


def test_a_nan_anywhere_reaches_the_gram_matrix():
    x = features(8, 10)
    x[3, 4] = torch.nan
    assert gram(x).isnan().any()


def test_gram_does_not_change_its_input():
    x = features(8, 3, 4)
    before = x.clone()
    gram(x)
    assert torch.equal(x, before)


def test_three_examples_are_too_few():
    with pytest.raises(ValueError, match="at least 4 examples in a minibatch, got 3"):
        u_centre(torch.eye(3))


def of_a_group_norm() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Values of a network in channels-last memory, its pixels, and their gradients by the chain rule of autograd."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.GroupNorm(4, 8), nn.ReLU())
    net = net.requires_grad_(False).to(memory_format=torch.channels_last)
    pixels = features(2, 3, 8, 8).requires_grad_()
    values = net(pixels)[:, :, 4, 4]
    each = [torch.autograd.grad(v, pixels, retain_graph=True)[0].abs() for v in values.flatten()]
    return values, pixels, torch.stack(each).double().sum((0, 1, 2))


def test_absolute_gradients_are_those_of_every_channel_of_every_image():
    values, pixels, expected = of_a_group_norm()
    for at_once in (1, 3, 8):
        found = absolute_gradients(values, pixels, at_once)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)


def test_gradients_come_one_by_one_where_torch_cannot_vectorise_an_operation(monkeypatch):
    values, pixels, expected = of_a_group_norm()
    seeds = torch.eye(8)[:, None].expand(8, *values.shape)
    plain = torch.autograd.grad

    def grad(*args, is_grads_batched: bool = False, **options):
        if is_grads_batched:
            raise RuntimeError("NYI: querying is_contiguous inside of vmap for memory_format other")
        return plain(*args, **options)

    monkeypatch.setattr(torch.autograd, "grad", grad)
    found = torch.cat(list(kernels._gradients(values, pixels, seeds, vectorised=True)))
    torch.testing.assert_close(found.abs().double().sum((0, 1, 2)), expected, rtol=1e-5, atol=1e-7)


def test_another_error_of_a_backward_pass_is_not_passed_over(monkeypatch):
    values, pixels, _ = of_a_group_norm()

    def grad(*args, **options):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(torch.autograd, "grad", grad)
    with pytest.raises(RuntimeError, match="out of memory"):
        absolute_gradients(values, pixels, 8)
    with pytest.raises(RuntimeError, match="out of memory"):
        list(kernels._gradients(values, pixels, values.new_zeros(8, 2, 8), vectorised=True))
