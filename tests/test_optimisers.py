"""Tests of the optimisers against their equations, and of which weights each of them updates."""

from __future__ import annotations

import re

import numpy as np
import pytest
import timm
import torch
from torch import nn

from vitsee.training.optimisers import Muon, Optimisers
from vitsee.training.recipes import Optimiser, Recipe

LR, DECAY = 0.02, 0.1
VIT = {"img_size": 28, "patch_size": 7, "embed_dim": 16, "depth": 2, "num_heads": 2}


def vit() -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model("vit_tiny_patch16_224", num_classes=5, **VIT)


def of(net: nn.Module, optimiser: Optimiser = Optimiser.muon) -> Optimisers:
    recipe = Recipe(name="wee", optimiser=optimiser, lr=LR, weight_decay=DECAY)
    return Optimisers(net, recipe, capturable=False)


def orthogonal(matrix: np.ndarray) -> np.ndarray:
    """Five steps of x <- a x + b (x x') x + c (x x')^2 x, from a norm of 1."""
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    x = wide / np.sqrt((wide**2).sum())
    for _ in range(5):
        gram = x @ x.T
        x = 3.4445 * x - 4.7750 * gram @ x + 2.0315 * gram @ gram @ x
    return x if wide is matrix else x.T


@pytest.mark.parametrize("shape", [(6, 6), (4, 9), (9, 4), (5, 2, 3, 3)])
def test_steps_of_muon_are_those_of_its_equations(shape):
    rng = np.random.default_rng(0)
    expected = rng.standard_normal((2, *shape))
    matrices = [torch.tensor(each, dtype=torch.float32) for each in expected]
    muon, mean = Muon(matrices, lr=LR, weight_decay=DECAY), np.zeros_like(expected)
    for _ in range(3):
        gradients = rng.standard_normal((2, *shape))
        mean = 0.95 * mean + 0.05 * gradients
        ahead = 0.05 * gradients + 0.95 * mean
        flat = ahead.reshape(2, shape[0], -1)
        steps = np.stack([orthogonal(each) for each in flat]).reshape(expected.shape)
        expected = (1 - LR * DECAY) * expected - LR * 0.2 * max(flat.shape[1:]) ** 0.5 * steps
        for matrix, gradient in zip(matrices, gradients, strict=True):
            matrix.grad = torch.tensor(gradient, dtype=torch.float32)
        muon.step()
    for matrix, values in zip(matrices, expected, strict=True):
        np.testing.assert_allclose(matrix.numpy(), values, atol=2e-6)


class TestOfAViT:
    """AdamW changes each weight by about the learning rate in its first step, Muon by what its equations give."""

    @pytest.fixture
    def changes(self) -> dict[str, torch.Tensor]:
        net = vit()
        for number, weight in enumerate(net.parameters()):
            weight.grad = torch.randn(weight.shape, generator=torch.Generator().manual_seed(number))
        before = {name: weight.detach().clone() for name, weight in net.named_parameters()}
        of(net).step()
        return {name: weight.detach() - before[name] for name, weight in net.named_parameters()}

    def test_muon_updates_values_projections_and_mlps(self, changes):
        for name in ("attn.proj", "mlp.fc1", "mlp.fc2"):
            self.changed_orthogonally(changes[f"blocks.1.{name}.weight"])
        self.changed_orthogonally(changes["blocks.1.attn.qkv.weight"][32:])

    def changed_orthogonally(self, change: torch.Tensor) -> None:
        values = torch.linalg.svdvals(change) / (LR * 0.2 * max(change.shape) ** 0.5)
        assert values.min() > 0.5
        assert values.max() < 1.4

    def test_adamw_updates_queries_keys_the_first_and_the_last_layer_and_vectors(self, changes):
        adamw = {name: changes[name] for name in ("patch_embed.proj.weight", "head.weight")}
        adamw |= {"queries and keys": changes["blocks.1.attn.qkv.weight"][:32]}
        adamw |= {name: change for name, change in changes.items() if change.ndim == 1}
        adamw |= {name: changes[name] for name in ("pos_embed", "cls_token")}
        for name, change in adamw.items():
            np.testing.assert_allclose(change.abs().mean(), LR, rtol=0.02, err_msg=name)


@pytest.mark.parametrize("kind", list(Optimiser))
def test_every_weight_is_updated(kind):
    net = vit()
    for weight in net.parameters():
        weight.grad = torch.ones_like(weight)
    before = {name: weight.detach().clone() for name, weight in net.named_parameters()}
    optimisers = of(net, kind)
    optimisers.set_rate(0.3)
    optimisers.step()
    for name, weight in net.named_parameters():
        assert (weight != before[name]).all(), name


def test_queries_and_keys_are_apart_from_values_whatever_layer_computes_them():
    layers = {"q": 4, "kv": 8, "qkv": 12, "v": 4}
    net = nn.ModuleDict({name: nn.Linear(4, rows) for name, rows in layers.items()})
    matrices = [m for group in of(net).all[1].param_groups for m in group["params"]]
    values = [net["kv"].weight[4:], net["qkv"].weight[8:], net["v"].weight]
    assert [m.data_ptr() for m in matrices] == [value.data_ptr() for value in values]


def test_weights_without_a_gradient_stay_as_they_are():
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    net[0].weight.grad = torch.ones(4, 4)
    before = net[1].weight.detach().clone()
    of(net).step()
    assert net[1].weight.equal(before)


@pytest.mark.parametrize(
    ("name", "exempt"),
    [
        ("swin_tiny_patch4_window7_224", r".*relative_position_bias_table"),
        ("swinv2_tiny_window8_256", r".*(logit_scale|cpb_mlp.*)"),
        ("resmlp_12_224", r".*\.(alpha|beta)"),
    ],
)
def test_weights_that_timm_exempts_and_vectors_of_any_shape_do_not_decay(name, exempt):
    with torch.device("meta"):
        net = timm.create_model(name)
    decays, spared = (group["params"] for group in of(net, Optimiser.adamw).all[0].param_groups)
    named = {name: weight for name, weight in net.named_parameters() if re.fullmatch(exempt, name)}
    assert named
    assert all(any(weight is one for one in spared) for weight in named.values())
    matrices = [weight for name, weight in net.named_parameters() if name.endswith("fc1.weight")]
    assert any(weight is matrices[0] for weight in decays)


def test_depthwise_convolutions_are_not_matrices():
    net = nn.Sequential(nn.Conv2d(4, 4, 3, groups=4), nn.Conv2d(4, 8, 3))
    updated = [group["params"] for group in of(net).all[1].param_groups]
    assert updated == [[net[1].weight]]
