"""Which layers the presets and patterns select, on the architectures of the paper and others."""

from __future__ import annotations

import re
from contextlib import suppress

import pytest
import timm
import torch

from vitsee.errors import UserError
from vitsee.models import layers, presets, timm_architecture
from vitsee.models.structure import structure
from vitsee.models.taps import SURVEY


def surveyed(name: str, **args: object):
    """The architecture on the meta device, where nothing is computed, and its layers."""
    with torch.device("meta"):
        net = timm.create_model(name, **args).eval()
    return net, layers.survey(net, net.pretrained_cfg["input_size"])


@pytest.mark.parametrize(
    ("name", "paper", "four", "blocks"),
    [
        ("vit_base_patch16_224", 74, 48, 12),
        ("vit_large_patch16_224", 146, 96, 24),
        ("vit_huge_patch14_224", 194, 128, 32),
        ("deit3_base_patch16_224", 74, 48, 12),
        ("beit_base_patch16_224", 74, 48, 12),
        ("eva02_tiny_patch14_224", 74, 48, 12),
        ("vit_base_r50_s16_224", 74, 48, 12),
        ("resnet50_gn", 53 + 53 + 16, 32, 16),
        ("resnet152", 155 + 155 + 50, 100, 50),
        ("resnetv2_50x1_bit", 53 + 49 + 16, 32, 16),
        ("mixer_b16_224", 60, 48, 12),
        ("mixer_l16_224", 120, 96, 24),
        ("mobilenetv2_100", 52 + 52 + 17, 34, 17),
    ],
)
def test_presets_select_the_layers_of_the_paper(name, paper, four, blocks):
    net, every = surveyed(name)
    counts = {preset: len(presets.preset(net, every, preset)) for preset in presets.PRESETS}
    assert counts == {
        "paper": paper,
        "four": four,
        "blocks": blocks,
        "last": 1,
        "logits": 1,
        "low": 5,
        "penultimate": 1,
        "last_stage": 3 if name.startswith("resnet") else 1,
        "every": len(every),
    }


def test_the_paper_preset_of_a_vit_begins_at_the_embedding_and_ends_at_the_final_norm():
    net, every = surveyed("vit_base_patch16_224")
    assert [layer.name for layer in presets.choose(net, every, ["paper"])][:8] == [
        "norm_pre",
        "blocks.0.norm1",
        "blocks.0.attn",
        "blocks.0.norm2",
        "blocks.0.mlp.act",
        "blocks.0.mlp",
        "blocks.0",
        "blocks.1.norm1",
    ]
    assert presets.preset(net, every, "paper")[-1] == "norm"


def test_layers_come_in_the_order_they_run_not_in_the_order_they_are_declared():
    net, every = surveyed("resnetv2_50x1_bit")
    names = [layer.name for layer in presets.choose(net, every, ["paper"])]
    first = [
        n.removeprefix("stages.0.blocks.0.") for n in names if n.startswith("stages.0.blocks.0.")
    ]
    assert first[:3] == ["norm1", "downsample.conv", "conv1"]


def test_a_pattern_matches_at_its_own_depth():
    net, every = surveyed("vit_tiny_patch16_224")
    chosen = presets.choose(net, every, ["blocks.*"])
    assert [layer.name for layer in chosen] == [f"blocks.{i}" for i in range(12)]


def test_presets_and_patterns_can_be_mixed():
    net, every = surveyed("vit_tiny_patch16_224")
    assert len(presets.choose(net, every, ["blocks", "norm", "blocks.1?"])) == 13


def test_a_pattern_that_selects_nothing_is_answered_with_what_exists_and_the_nearest():
    net, every = surveyed("vit_tiny_patch16_224")
    with pytest.raises(
        UserError, match=r"matches 'block\.\*'; it has: .*Did you mean blocks\.\*\?"
    ):
        presets.choose(net, every, ["block.*"])
    with pytest.raises(UserError, match=r"matches 'papr'.*Did you mean paper\?"):
        presets.choose(net, every, ["papr"])


def test_a_preset_that_does_not_know_the_architecture_says_so():
    net, every = surveyed("densenet121")
    with pytest.raises(UserError, match="preset 'paper' does not know the blocks of DenseNet"):
        presets.choose(net, every, ["paper"])


@pytest.mark.parametrize(
    ("name", "prefix", "class_token"),
    [
        ("vit_tiny_patch16_224", 1, True),
        ("deit_tiny_distilled_patch16_224", 2, True),
        ("vit_medium_patch16_gap_240", 0, False),
        ("vit_betwixt_patch16_reg4_gap_256", 4, False),
        ("mixer_b16_224", 0, False),
    ],
)
def test_prefix_tokens_are_known(name, prefix, class_token):
    _, every = surveyed(name)
    block = next(layer for layer in every if layer.name == "blocks.0")
    assert (block.prefix, block.class_token) == (prefix, class_token)


def test_convolutional_maps_have_no_token_axis():
    _, every = surveyed("resnet50_gn")
    assert all(layer.prefix is None for layer in every)


UNSHARED = dict(SURVEY)
"""Surveys as they are, made for each model anew."""

USUAL = [
    "beit_base_patch16_224",
    "eca_botnext26ts_256",
    "test_byobnet",
    "test_convnext",
    "csatv2",
    "cs3darknet_focus_s",
    "davit_tiny",
    "densenet121",
    "vit_tiny_patch16_dinov3_qkvb",
    "test_efficientnet",
    "gcvit_xxtiny",
    "hiera_tiny_224",
    "sam2_hiera_tiny",
    "levit_128s",
    "test_coatnet",
    "resmlp_12_224",
    "mobilevit_xxs",
    "naflexvit_base_patch16_parfac_gap",
    "test_nfnet",
    "pvt_v2_b0",
    "regnetx_002",
    "test_resnet",
    "resnetv2_18",
    "swin_tiny_patch4_window7_224",
    "swinv2_cr_tiny_224",
    "tiny_vit_5m_224",
    "twins_svt_small",
    "vgg11",
    "test_vit",
    "samvit_base_patch16_224",
    "ese_vovnet19b_slim_dw",
    "repvgg_a0",
    "mobileone_s1",
    "resnet50_clip",
]
"""One small model of each of many families, whose blocks are as different as timm has them."""


def refused_or_listed(name: str, kinds: list[str]) -> None:
    """Choose every preset of every survey, and the layers that a run of it would watch."""
    with torch.device("meta"):
        net = timm.create_model(name).eval()
    size = tuple(timm_architecture.data_config(net)["input_size"])
    for kind in kinds:
        try:
            every = SURVEY[kind](net, size)
        except UserError:
            assert kind != "outputs"
            continue
        names = {layer.name for layer in every}
        for preset in presets.PRESETS:
            assert set(presets.preset(net, every, preset)) <= names
            with suppress(UserError):
                assert all(layer.images for layer in presets.choose(net, every, [preset]))


@pytest.mark.parametrize("kind", SURVEY)
def test_what_a_survey_finds_depends_on_the_structure_alone(kind):
    """Of models with other weights, and once of one on the meta device."""
    nets = [timm.create_model("test_vit").eval() for _ in range(2)]
    with torch.device("meta"):
        nets.append(timm.create_model("test_vit").eval())
    assert len({structure(net) for net in nets}) == 1
    first, *others = (UNSHARED[kind](net, (3, 160, 160)) for net in nets)
    assert first
    assert all(other == first for other in others)


@pytest.mark.parametrize("name", USUAL)
def test_presets_select_what_is_there_or_are_refused(name):
    refused_or_listed(name, ["outputs"])


@pytest.mark.sweep
@pytest.mark.timeout(300)
@pytest.mark.parametrize("module", timm.list_modules())
def test_presets_select_what_is_there_or_are_refused_in_every_module_of_timm(module):
    names = timm.list_models(module=module)
    small = re.compile(r"^test_|nano|atto|femto|pico|tiny|_xxs|_xs|_s0|_b0|_t0|_m0|18|26|050")
    refused_or_listed(next((name for name in names if small.search(name)), names[0]), [*SURVEY])


@pytest.mark.parametrize("name", ["test_byobnet", "ese_vovnet19b_slim_dw", "test_nfnet"])
def test_blocks_that_attend_to_channels_are_those_of_a_cnn(name):
    net, every = surveyed(name)
    chosen = presets.preset(net, every, "paper")
    convolutions = {n for n, m in net.named_modules() if isinstance(m, torch.nn.Conv2d)}
    assert {*presets.preset(net, every, "blocks"), *(convolutions & {x.name for x in every})} <= {
        *chosen
    } | {n for n in convolutions if n.split(".")[0] == "head"}


@pytest.mark.parametrize(
    ("name", "first", "last"),
    [
        ("hiera_tiny_224", "patch_embed", "blocks.11"),
        ("levit_128s", "stages.0.blocks.0.attn", "stages.2.blocks.3"),
        ("gcvit_xxtiny", "stages.0.blocks.0.norm1", "stages.3.blocks.1"),
    ],
)
def test_the_paper_preset_of_a_transformer_without_a_known_embedding_or_final_norm_has_its_blocks(
    name, first, last
):
    chosen = presets.choose(*surveyed(name), ["paper"])
    assert (chosen[0].name, chosen[-1].name) == (first, last)


def test_blocks_that_return_several_tensors_are_listed(command):
    words = ["model=timm", "model.timm=crossvit_tiny_240", "model.pretrained=false"]
    code, out, _ = command("list", "layers", *words)
    assert code == 0
    assert "blocks 3" in out
