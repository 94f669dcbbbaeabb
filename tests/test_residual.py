"""What comes down the skip and what is added to it, against the blocks' own inputs and outputs."""

from __future__ import annotations

from itertools import pairwise

import pytest
import timm
import torch
from torch import nn

from vitsee.analysis import Layer
from vitsee.errors import UserError
from vitsee.models import presets, residual
from vitsee.models.skipless import OF

MODELS = {
    "ViT": ("vit_tiny_patch16_224", {"depth": 2}),
    "ViT with LayerScale": ("deit3_small_patch16_224", {"depth": 2, "init_values": 0.3}),
    "ViT with registers": ("vit_betwixt_patch16_reg4_gap_256", {"depth": 2}),
    "ViT with norms after": ("vit_base_patch16_rpn_224", {"depth": 2}),
    "ViT-22B": ("vit_tiny_patch16_224", {"depth": 2, "block_fn": "ParallelScalingBlock"}),
    "differential ViT": ("vit_tiny_patch16_224", {"depth": 2, "block_fn": "DiffParallelScalingBlock"}),
    "relative positions": ("vit_relpos_medium_patch16_224", {"depth": 2}),
    "relative positions, norms after": ("vit_relpos_base_patch16_224", {
        "depth": 2, "block_fn": "ResPostRelPosBlock"}),
    "BEiT": ("beit_base_patch16_224", {"depth": 2, "init_values": 0.3}),
    "EVA": ("eva_large_patch14_196", {"depth": 2, "init_values": 0.3}),
    "EVA-02": ("eva02_tiny_patch14_224", {"depth": 2}),
    "EVA with norms after": ("eva02_tiny_patch14_224", {"depth": 2, "use_post_norm": True}),
    "CaiT": ("cait_xxs24_224", {"depth": 2, "init_values": 0.3}),
    "Mixer": ("mixer_s32_224", {}),
    "ResMLP": ("resmlp_12_224", {}),
    "gMLP": ("gmlp_ti16_224", {}),
    "ResNet-18": ("resnet18", {"zero_init_last": False}),
    "ResNet-26, BN": ("resnet26", {"zero_init_last": False}),
    "ResNet with SE": ("seresnet18", {"zero_init_last": False}),
    "ResNet, stochastic depth": ("resnet18", {"zero_init_last": False, "drop_path_rate": 0.1}),
    "ResNet, GN": ("resnet50_gn", {"layers": (1, 2, 1, 1), "zero_init_last": False}),
    "BiT": ("resnetv2_50x1_bit", {"zero_init_last": False}),
    "BiT, basic": ("resnetv2_18", {"zero_init_last": False}),
    "hybrid ViT": ("vit_small_r26_s32_224", {"depth": 2}),
    "ConvNeXt": ("convnext_atto", {"ls_init_value": 0.3}),
    "MobileNetV2": ("mobilenetv2_050", {}),
    "MobileNetV3": ("mobilenetv3_small_050", {}),
    "MobileNetV4": ("mobilenetv4_conv_small_050", {}),
    "MobileNetV4, hybrid": ("mobilenetv4_hybrid_medium", {}),
    "EfficientNet": ("efficientnet_b0", {}),
    "EfficientNet, edge": ("efficientnet_es", {}),
    "EfficientNet, CondConv": ("efficientnet_cc_b0_4e", {}),
}  # fmt: skip


def build(name: str) -> nn.Module:
    timm_name, arguments = MODELS[name]
    if "block_fn" in arguments:
        module = (
            timm.models.vision_transformer_relpos
            if "relpos" in timm_name
            else (timm.models.vision_transformer)
        )
        arguments = arguments | {"block_fn": getattr(module, arguments["block_fn"])}
    torch.manual_seed(0)
    net = timm.create_model(timm_name, **arguments).eval()
    for (
        parameter
    ) in net.parameters():  # branches that timm starts at zero add nothing to be told apart
        if not parameter.any():
            nn.init.normal_(parameter, std=0.1)
    return net


def read(net: nn.Module, pixels: torch.Tensor, *, everything: bool = False) -> dict:
    """{name: (skip, branch)} of one forward pass, and {block: (input, output)} of their blocks."""
    additions, blocks, handles = {}, {}, []

    def keep(name):
        def deliver(r):
            assert name not in additions
            additions[name] = (None if r.skip is None else r.skip.clone(), r.branch.clone())

        return deliver

    def enter(name):
        def hook(module, args):
            blocks[name] = args[0].clone()

        return hook

    def leave(name):
        def hook(module, args, output):
            blocks[name] = (blocks[name], output.clone())

        return hook

    found = residual.survey(net, tuple(pixels.shape[1:]), everything=everything)
    for layer in found:
        handles += residual.attach(net, layer, keep(layer.name))
    for name in dict.fromkeys(residual.split(layer.name)[0] for layer in found):
        block = net.get_submodule(name)
        handles += [block.register_forward_pre_hook(enter(name))]
        handles += [block.register_forward_hook(leave(name))]
    with torch.no_grad():
        net(pixels)
    for handle in handles:
        handle.remove()
    assert list(additions) == [layer.name for layer in found]
    for layer in found:
        assert additions[layer.name][1].shape[1:] == layer.shape
    return {"additions": additions, "blocks": blocks}


def post_activation(block: nn.Module) -> bool:
    return isinstance(block, (timm.models.resnet.BasicBlock, timm.models.resnet.Bottleneck)) or (
        type(block) is timm.models.resnetv2.Bottleneck
    )


@pytest.mark.parametrize("name", MODELS)
def test_skips_and_branches_add_up_to_what_the_blocks_compute(name):
    net = build(name)
    cfg = net.pretrained_cfg
    side = cfg["input_size"][1] if cfg.get("fixed_input_size") else 64
    pixels = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(1))
    seen = read(net, pixels)
    steps: dict[str, list] = {}
    for sublayer, addition in seen["additions"].items():
        steps.setdefault(residual.split(sublayer)[0], []).append(addition)
    assert steps
    for block, pairs in steps.items():
        before, after = seen["blocks"][block]
        module = net.get_submodule(block)
        moved = any(
            getattr(module, part, None) is not None for part in ("downsample", "conv_cpe_dw")
        )
        if not moved and not isinstance(getattr(module, "shortcut", None), nn.Module):
            torch.testing.assert_close(pairs[0][0], before)
        for (skip, branch), (following, _) in pairwise(pairs):
            torch.testing.assert_close(skip + branch, following)
        total = pairs[-1][0] + pairs[-1][1]
        torch.testing.assert_close(total.relu() if post_activation(module) else total, after)
        assert all(branch.abs().max() > 0 for _, branch in pairs)


def test_every_block_class_that_is_known_is_tested():
    tested = {
        residual._class_name(module)
        for name in MODELS
        for module in build(name).modules()
        if residual.additions(module)
    }
    skipless = {f"skipless.{kind.__name__}" for kind in OF.values()}  # in test_skipless.py
    assert tested | skipless == set(residual.KNOWN)


def test_sublayers_are_named_after_their_block_in_running_order():
    names = [layer.name for layer in residual.survey(build("ViT"), (3, 224, 224))]
    assert names == ["blocks.0.+attn", "blocks.0.+mlp", "blocks.1.+attn", "blocks.1.+mlp"]
    names = [layer.name for layer in residual.survey(build("ViT-22B"), (3, 224, 224))]
    assert names == ["blocks.0", "blocks.1"]
    names = [layer.name for layer in residual.survey(build("ResNet-18"), (3, 64, 64))]
    assert names[:3] == ["layer1.0", "layer1.1", "layer2.0"]


def test_units_without_a_skip_and_the_stem_are_listed_only_with_everything():
    net = build("MobileNetV2")
    additions = [layer.name for layer in residual.survey(net, (3, 64, 64))]
    stream = [layer.name for layer in residual.survey(net, (3, 64, 64), everything=True)]
    assert stream[:3] == ["conv_stem", "blocks.0.0", "blocks.1.0"]
    assert "blocks.1.0" not in additions
    assert "blocks.1.1" in additions
    seen = read(net, torch.randn(1, 3, 64, 64), everything=True)
    assert seen["additions"]["conv_stem"][0] is None
    assert seen["additions"]["blocks.1.0"][0] is None
    torch.testing.assert_close(seen["additions"]["blocks.1.0"][1], seen["blocks"]["blocks.1.0"][1])


def test_the_stream_after_a_sublayer_is_among_the_outputs_of_layers():
    net = build("ViT")
    names = [layer.name for layer in residual.survey_outputs(net, (3, 224, 224))]
    chosen = presets.choose(net, residual.survey_outputs(net, (3, 224, 224)), ["blocks.*.+attn"])
    assert [layer.name for layer in chosen] == ["blocks.0.+attn", "blocks.1.+attn"]
    assert chosen[0].shape == (197, 192)
    assert chosen[0].prefix == 1
    assert (
        names.index("blocks.0.attn") < names.index("blocks.0.+attn") < names.index("blocks.0.norm2")
    )
    seen = {}
    for name in ("blocks.0.+mlp", "blocks.0"):
        layer = Layer(name, (), None)
        residual.attach_outputs(net, layer, lambda x, name=name: seen.update({name: x.clone()}))
    with torch.no_grad():
        net(torch.randn(1, 3, 224, 224))
    torch.testing.assert_close(seen["blocks.0.+mlp"], seen["blocks.0"])


@pytest.mark.parametrize(
    ("name", "block"),
    [
        ("swin_tiny_patch4_window7_224", r"layers\.0\.blocks\.0 of SwinTransformer is a "
         r"swin_transformer\.SwinTransformerBlock"),
        ("vgg11", r"features\.0 of VGG is a conv\.Conv2d"),
        ("regnety_002", r"the model is a regnet\.RegNet"),
        ("densenet121", r"features\.norm0|the model is a densenet\.DenseNet"),
    ],
)  # fmt: skip
def test_a_block_that_is_not_known_is_named_with_what_is(name, block):
    net = timm.create_model(name).eval()
    with pytest.raises(UserError, match=block) as error:
        residual.survey(net, (3, 224, 224))
    assert "vitsee does not know where this class adds to the residual stream" in str(error.value)
    assert "choose a model made of known timm blocks: _eff" in str(error.value)
    assert "vision_transformer.Block" in str(error.value)


def test_a_subclass_of_a_known_block_is_not_taken_for_it():
    class Odd(timm.models.vision_transformer.Block):
        def forward(self, x):
            return 2 * super().forward(x)

    net = timm.create_model("vit_tiny_patch16_224", depth=2, block_fn=Odd).eval()
    with pytest.raises(
        UserError, match=r"blocks\.0 of VisionTransformer is a test_residual\..*Odd"
    ):
        residual.survey(net, (3, 224, 224))
