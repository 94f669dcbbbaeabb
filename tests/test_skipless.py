"""Blocks whose skip connections are removed compute their branches alone, and keep their parameters."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from conftest import composed

from vitsee.errors import UserError
from vitsee.models import residual, timm_architecture
from vitsee.options import ModelOptions

MODELS = {
    "ViT": ("vit_tiny_patch16_224", {"depth": 3, "init_values": 0.3}),
    "Mixer": ("mixer_custom", {"num_blocks": 3, "embed_dim": 32}),
}


def build(name: str, *without: int) -> torch.nn.Module:
    timm_name, args = MODELS[name]
    return timm_architecture.build(
        ModelOptions(name="m", timm=timm_name, args=args, remove_skip=list(without))
    ).eval()


def plain_vit(block, x):
    x = block.ls1(block.attn(block.norm1(x)))
    return block.ls2(block.mlp(block.norm2(x)))


def plain_mixer(block, x):
    x = block.mlp_tokens(block.norm1(x).transpose(1, 2)).transpose(1, 2)
    return block.mlp_channels(block.norm2(x))


@pytest.mark.parametrize(("name", "plain"), [("ViT", plain_vit), ("Mixer", plain_mixer)])
def test_a_block_without_skips_hands_on_its_branches_alone(name, plain):
    net, whole = build(name, 1), build(name)
    x = torch.randn(
        2,
        net.blocks[0](torch.zeros(1, 196, (plain is plain_vit and 192) or 32)).shape[1],
        192 if name == "ViT" else 32,
    )
    torch.testing.assert_close(net.blocks[1](x), plain(whole.blocks[1], x))
    torch.testing.assert_close(net.blocks[0](x), whole.blocks[0](x))
    assert net.state_dict().keys() == whole.state_dict().keys()


@pytest.mark.parametrize("name", MODELS)
def test_its_residual_stream_is_what_its_sublayers_hand_on(name):
    net = build(name, 1)
    found, kept = {}, {}
    layers = residual.survey_outputs(net, (3, 224, 224))
    wanted = [layer for layer in layers if ".+" in layer.name]
    assert len(wanted) == 6
    for layer in wanted:
        residual.attach(
            net, layer, lambda r, at=layer.name: found.update({at: (r.skip, r.branch.clone())})
        )
    for number, block in enumerate(net.blocks):
        block.register_forward_hook(lambda m, args, out, at=number: kept.update({at: out}))
    with torch.no_grad():
        net(torch.randn(2, 3, 224, 224))
    first, last = (layer.name for layer in wanted[2:4])
    assert found[first][0] is found[last][0] is None
    assert found[last][1].equal(kept[1])
    assert all(found[layer.name][0] is not None for layer in wanted if "blocks.1" not in layer.name)


def test_only_sublayers_with_a_skip_have_a_ratio():
    names = [layer.name for layer in residual.survey(build("ViT", 1), (3, 224, 224))]
    assert names == [f"blocks.{block}.+{branch}" for block in (0, 2) for branch in ("attn", "mlp")]


@pytest.mark.parametrize(
    ("timm_name", "without", "message"),
    [
        ("vit_tiny_patch16_224", [12], r"remove_skip: there is no block 12; the blocks are 0 … 11"),
        ("vit_tiny_patch16_224", [3, -9], "remove_skip lists block -9 twice"),
        (
            "resnet18",
            [0],
            "remove_skip: there is no block 0; ResNet does not have a list of blocks",
        ),
        (
            "cait_xxs24_224",
            [0],
            r"blocks of Cait are cait.LayerScaleBlock, but skips can be removed only from: vision",
        ),
    ],
)
def test_what_has_no_such_skip_is_refused(timm_name, without, message):
    with pytest.raises(UserError, match=message):
        timm_architecture.build(ModelOptions(name="m", timm=timm_name, remove_skip=without))


def test_it_is_part_of_what_a_result_depends_on():
    asked = composed("model=vit_mini", "model.remove_skip=[1]")
    assert asked.what()["model"]["remove_skip"] == [1]


def test_a_training_begins_with_larger_weights_where_nothing_is_added_to_a_skip(tmp_path):
    from test_training import wee

    from vitsee.training.trainer import Trainer

    asked = wee(tmp_path)
    cut = Trainer(replace(asked, model=replace(asked.model, remove_skip=[1]))).net
    first, second = (block.mlp.fc1.weight for block in cut.blocks)
    fan = sum(second.shape)
    assert first.std().item() == pytest.approx(0.02, rel=0.1)
    assert second.std().item() == pytest.approx((2 / fan) ** 0.5, rel=0.1)
