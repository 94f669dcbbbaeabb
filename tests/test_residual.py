"""What comes down the skip and what is added to it, against the blocks' own inputs and outputs."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import nn

from vitsee import layers, residual
from vitsee.analysis import Layer
from vitsee.errors import UserError

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
    "Mixer": ("mixer_s32_224", {"num_blocks": 2}),
    "ResMLP": ("resmlp_12_224", {"num_blocks": 2}),
    "gMLP": ("gmlp_ti16_224", {"num_blocks": 2}),
    "ResNet-18": ("resnet18", {"zero_init_last": False}),
    "ResNet-26, BN": ("resnet26", {"zero_init_last": False}),
    "ResNet with SE": ("seresnet18", {"zero_init_last": False}),
    "ResNet, stochastic depth": ("resnet18", {"zero_init_last": False, "drop_path_rate": 0.1}),
    "ResNet, GN": ("resnet50_gn", {"layers": (1, 2, 1, 1), "zero_init_last": False}),
    "BiT": ("resnetv2_50x1_bit", {"layers": (1, 2, 1, 1), "zero_init_last": False}),
    "BiT, basic": ("resnetv2_18", {"zero_init_last": False}),
    "hybrid ViT": ("vit_tiny_r_s16_p8_224", {"depth": 2}),
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
        module = timm.models.vision_transformer_relpos if "relpos" in timm_name else (
            timm.models.vision_transformer
        )
        arguments = arguments | {"block_fn": getattr(module, arguments["block_fn"])}
    torch.manual_seed(0)
    return timm.create_model(timm_name, **arguments).eval()


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


@pytest.mark.parametrize("name", MODELS)
def test_skips_and_branches_add_up_to_what_the_blocks_compute(name):
    net = build(name)
    side = net.pretrained_cfg["input_size"][1] if hasattr(net, "pos_embed") or name in (
        "Mixer", "ResMLP", "gMLP", "EVA", "EVA-02", "EVA with norms after"
    ) or "relative" in name or "BEiT" in name else 64  # fmt: skip
    pixels = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(1))
    seen = read(net, pixels)
    stream: dict[str, list] = {}
    for sublayer, (skip, branch) in seen["additions"].items():
        stream.setdefault(residual.split(sublayer)[0], []).append((skip, branch))
    assert stream
    for block, steps in stream.items():
        before, after = seen["blocks"][block]
        module = net.get_submodule(block)
        if getattr(module, "downsample", None) is None and before.shape == steps[0][0].shape:
            expected = before if not hasattr(module, "conv_cpe_dw") else steps[0][0]
            torch.testing.assert_close(steps[0][0], expected)
        for (skip, branch), following in zip(steps, steps[1:], strict=False):
            torch.testing.assert_close(skip + branch, following[0])
        total = steps[-1][0] + steps[-1][1]
        last = [getattr(module, act, None) for act in ("act3", "act2")]
        post = next((act for act in last if act is not None), None)
        if post is not None and isinstance(module, nn.Module) and type(module).__name__ in (
            "BasicBlock", "Bottleneck"
        ):  # fmt: skip
            total = total.relu()
        torch.testing.assert_close(total, after)
        assert all(branch.abs().max() > 0 for _, branch in steps)
