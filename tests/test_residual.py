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
from vitsee.models.timm_architecture import data_config
from vitsee.names import block_and_branch

NARROW = {"embed_dim": 48, "num_heads": 3}

MODELS = {
    "ViT": ("vit_tiny_patch16_224", {"depth": 2}),
    "ViT with LayerScale": ("deit3_small_patch16_224", NARROW | {"depth": 2, "init_values": 0.3}),
    "ViT with registers": ("vit_betwixt_patch16_reg4_gap_256", NARROW | {
        "depth": 2, "init_values": 0.3}),
    "ViT with norms after": ("vit_base_patch16_rpn_224", NARROW | {"depth": 2}),
    "ViT-22B": ("vit_tiny_patch16_224", {"depth": 2, "block_fn": "ParallelScalingBlock"}),
    "differential ViT": ("vit_tiny_patch16_224", {"depth": 2, "block_fn": "DiffParallelScalingBlock"}),
    "relative positions": ("vit_relpos_medium_patch16_224", NARROW | {"depth": 2, "init_values": 0.3}),
    "relative positions, norms after": ("vit_relpos_base_patch16_224", NARROW | {
        "depth": 2, "block_fn": "ResPostRelPosBlock"}),
    "BEiT": ("beit_base_patch16_224", NARROW | {"depth": 2, "init_values": 0.3}),
    "EVA": ("eva_large_patch14_196", NARROW | {"depth": 2, "init_values": 0.3}),
    "EVA-02": ("eva02_tiny_patch14_224", {"depth": 2}),
    "EVA with norms after": ("eva02_tiny_patch14_224", {"depth": 2, "use_post_norm": True}),
    "CaiT": ("cait_xxs24_224", {"depth": 2, "init_values": 0.3}),
    "Mixer": ("mixer_s32_224", {"blocks": 2}),
    "ResMLP": ("resmlp_12_224", {"blocks": 2}),
    "gMLP": ("gmlp_ti16_224", {"blocks": 2}),
    "ResNet-18": ("resnet18", {"zero_init_last": False}),
    "ResNet-26, BN": ("resnet26", {"layers": (1, 2, 1, 1), "zero_init_last": False}),
    "ResNet with SE": ("seresnet18", {"zero_init_last": False}),
    "ResNet, stochastic depth": ("resnet18", {
        "layers": (2, 1, 1, 1), "zero_init_last": False, "drop_path_rate": 0.1}),
    "ResNet, GN": ("resnet50_gn", {"layers": (1, 2, 1, 1), "zero_init_last": False}),
    "BiT": ("resnetv2_50x1_bit", {"zero_init_last": False}),
    "BiT, basic": ("resnetv2_18", {"zero_init_last": False}),
    "hybrid ViT": ("vit_small_r26_s32_224", {"depth": 2}),
    "ConvNeXt": ("convnext_atto", {"ls_init_value": 0.3}),
    "MobileNetV2": ("mobilenetv2_050", {}),
    "MobileNetV3": ("mobilenetv3_small_050", {}),
    "MobileNetV4": ("mobilenetv4_conv_small_050", {}),
    "MobileNetV4, hybrid": ("mobilenetv4_hybrid_medium", {}),
    "EfficientNet, edge": ("efficientnet_es", {}),
    "EfficientNet, CondConv": ("efficientnet_cc_b0_4e", {}),
    "Swin": ("swin_tiny_patch4_window7_224", {
        "img_size": 56, "embed_dim": 24, "depths": [2, 1, 1, 1], "num_heads": [1, 2, 2, 2]}),
    "RegNet": ("regnety_002", {"zero_init_last": False}),
    "MaxViT": ("test_maxvit", {}),
    "PVT": ("pvt_v2_b0", {}),
    "PoolFormer": ("poolformer_s12", {}),
    "FasterNet": ("fasternet_t0", {}),
}  # fmt: skip


def created(name: str) -> nn.Module:
    timm_name, arguments = MODELS[name]
    if "block_fn" in arguments:
        models = timm.models
        module = (
            models.vision_transformer_relpos if "relpos" in timm_name else models.vision_transformer
        )
        arguments = arguments | {"block_fn": getattr(module, arguments["block_fn"])}
    blocks = arguments.get("blocks")  # of a mixer, which cannot be built with fewer
    arguments = {name: value for name, value in arguments.items() if name != "blocks"}
    net = timm.create_model(timm_name, **arguments).eval()
    if blocks:
        net.blocks = net.blocks[:blocks]
    return net


def on_meta(name: str) -> nn.Module:
    with torch.device("meta"):
        return created(name)


def build(name: str) -> nn.Module:
    torch.manual_seed(0)
    net = created(name)
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
            last = "token_only" in name  # of CaiT, which add to the class token
            blocks[name] = args[-last].clone()

        return hook

    def leave(name):
        def hook(module, args, output):
            blocks[name] = (blocks[name], output.clone())

        return hook

    found = residual.survey(net, tuple(pixels.shape[1:]), everything=everything)
    for layer in found:
        handles += residual.attach(net, layer, keep(layer.name))
    for name in dict.fromkeys(block_and_branch(layer.name)[0] for layer in found):
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
    kinds = (timm.models.resnet.BasicBlock, timm.models.resnet.Bottleneck)
    others = (timm.models.resnetv2.Bottleneck, timm.models.regnet.Bottleneck)
    return isinstance(block, kinds) or type(block) in others


def turned(x: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Tokens as a map or the reverse, or channels last and first, if a block goes on with these."""
    orders = [x, x.permute(0, 2, 3, 1), x.permute(0, 3, 1, 2)] if x.ndim == like.ndim == 4 else []
    return next((x for x in orders if x.shape == like.shape), x).reshape(like.shape)


@pytest.mark.parametrize("name", MODELS)
def test_skips_and_branches_add_up_to_what_the_blocks_compute(name):
    net = build(name)
    fixed = net.pretrained_cfg.get("fixed_input_size")
    side = data_config(net)["input_size"][1] if fixed else 64
    pixels = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(1))
    seen = read(net, pixels)
    steps: dict[str, list] = {}
    for sublayer, addition in seen["additions"].items():
        steps.setdefault(block_and_branch(sublayer)[0], []).append(addition)
    assert steps
    for block, pairs in steps.items():
        before, after = seen["blocks"][block]
        module = net.get_submodule(block)
        moved = any(
            getattr(module, part, None) is not None for part in ("downsample", "conv_cpe_dw")
        )
        moved = moved or pairs[0][0].shape != before.shape
        if not moved and not isinstance(getattr(module, "shortcut", None), nn.Module):
            torch.testing.assert_close(pairs[0][0], before)
        for (skip, branch), (following, _) in pairwise(pairs):
            torch.testing.assert_close(turned(skip + branch, following), following)
        total = turned(pairs[-1][0] + pairs[-1][1], after)
        torch.testing.assert_close(total.relu() if post_activation(module) else total, after)
        assert all(branch.abs().max() > 0 for _, branch in pairs)


def test_every_block_class_that_is_known_is_tested():
    tested = {
        residual._class_name(module)
        for name in MODELS
        for module in on_meta(name).modules()
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
    seen = read(net, torch.randn(1, 3, 64, 64), everything=True)
    assert [*seen["additions"]][:3] == ["conv_stem", "blocks.0.0", "blocks.1.0"]
    assert "blocks.1.0" not in additions
    assert "blocks.1.1" in additions
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
    ("name", "names"),
    [
        ("Swin", ["layers.0.blocks.0.+attn", "layers.0.blocks.0.+mlp", "layers.0.blocks.1.+attn"]),
        ("RegNet", ["s1.b1", "s2.b1", "s3.b1"]),
        ("MaxViT", ["stages.0.blocks.0.+conv", "stages.0.blocks.0.+attn_block.attn",
                    "stages.0.blocks.0.+attn_block.mlp"]),
        ("PoolFormer", ["stages.0.blocks.0.+token_mixer", "stages.0.blocks.0.+mlp"]),
    ],
)  # fmt: skip
def test_additions_of_other_blocks_are_named_after_the_part_that_computes_the_branch(name, names):
    net = on_meta(name)
    side = data_config(net)["input_size"][1]
    found = residual.survey(net, (3, side, side))
    assert [layer.name for layer in found][: len(names)] == names


@pytest.mark.parametrize("name", ["vgg11", "densenet121", "inception_v3"])
def test_a_model_that_adds_nothing_to_its_input_has_no_skips_but_a_stream(name):
    with torch.device("meta"):
        net = timm.create_model(name).eval()
    size = tuple(net.pretrained_cfg["input_size"])
    with pytest.raises(UserError, match=r"has no skip connections: none of its \d+ units \(.+\)"):
        residual.survey(net, size)
    units = set(presets.preset(net, residual.survey_outputs(net, size), "blocks"))
    stream = {layer.name for layer in residual.survey(net, size, everything=True)}
    assert units
    assert units <= stream


def test_a_sum_of_two_branches_is_no_skip():
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(4, 4, 3, padding=1)
            self.other = nn.Conv2d(4, 4, 3, padding=1)

        def forward(self, x):
            inner = self.conv(x) + self.other(x)  # two branches
            return x + inner.relu()

    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Sequential(Block(), Block())).eval()
    found = residual.survey(net, (3, 8, 8))
    assert [layer.name for layer in found] == ["1.0", "1.1"]
    kept = []
    residual.attach(net, found[0], kept.append)
    with torch.no_grad():
        pixels = torch.randn(1, 3, 8, 8)
        net(pixels)
        assert len(kept) == 1
        torch.testing.assert_close(kept[0].skip, net[0](pixels))
        torch.testing.assert_close(kept[0].total, net[1][0](net[0](pixels)))


def test_a_subclass_of_a_known_block_is_read_as_it_computes():
    class Odd(timm.models.vision_transformer.Block):
        def forward(self, x):
            return 2 * super().forward(x)

    net = timm.create_model("vit_tiny_patch16_224", depth=2, block_fn=Odd).eval()
    names = [layer.name for layer in residual.survey(net, (3, 224, 224))]
    assert names == ["blocks.0.+attn", "blocks.0.+mlp", "blocks.1.+attn", "blocks.1.+mlp"]
    seen = read(net, torch.randn(1, 3, 224, 224))
    skip, branch = seen["additions"]["blocks.0.+mlp"]
    torch.testing.assert_close(2 * (skip + branch), seen["blocks"]["blocks.0"][1])
