"""Which layers the presets and patterns select, on the architectures of the paper and others."""

from __future__ import annotations

import importlib.util
import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision

from vitsee.errors import UserError
from vitsee.estimators import places
from vitsee.models import layers, presets, residual, timm_architecture
from vitsee.models.structure import structure
from vitsee.models.taps import SURVEY
from vitsee.setting import Layer

spec = importlib.util.spec_from_file_location(
    "families", Path(__file__).parents[1] / "scripts" / "families.py"
)
assert spec
assert spec.loader
families = importlib.util.module_from_spec(spec)
spec.loader.exec_module(families)

MODULES = [module for module in timm.list_modules() if module != "more_architectures"]
"""Those of timm alone."""


@cache
def surveyed(name: str, **args: object):
    """The architecture on the meta device, where nothing is computed, and its layers."""
    with torch.device("meta"):
        net = timm.create_model(name, **args).eval()
    return net, layers.survey(net, net.pretrained_cfg["input_size"])


def of_model(name: str, *values: object) -> Any:
    """These parameters of a test, which runs in the worker that surveys this model."""
    return pytest.param(name, *values, marks=pytest.mark.xdist_group(f"survey of {name}"))


@pytest.mark.parametrize(
    ("name", "paper", "four", "blocks"),
    [
        of_model("vit_base_patch16_224", 74, 48, 12),
        of_model("vit_large_patch16_224", 146, 96, 24),
        of_model("vit_huge_patch14_224", 194, 128, 32),
        of_model("deit3_base_patch16_224", 74, 48, 12),
        of_model("beit_base_patch16_224", 74, 48, 12),
        of_model("eva02_tiny_patch14_224", 74, 48, 12),
        of_model("vit_base_r50_s16_224", 74, 48, 12),
        of_model("resnet50_gn", 53 + 53 + 16, 32, 16),
        of_model("resnet152", 155 + 155 + 50, 100, 50),
        of_model("resnetv2_50x1_bit", 53 + 49 + 16, 32, 16),
        of_model("mixer_b16_224", 60, 48, 12),
        of_model("mixer_l16_224", 120, 96, 24),
        of_model("mobilenetv2_100", 52 + 52 + 17, 34, 17),
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
        "logits": int(net.num_classes > 0),
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
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 4)).eval()
    every = layers.survey(net, (3, 8, 8))
    with pytest.raises(UserError, match="'last_stage' selects none of the 1 layers of Seq"):
        presets.choose(net, every[:1], ["last_stage"])
    assert [layer.name for layer in presets.choose(net, every, ["1"])] == ["1"]


def test_a_preset_of_outputs_says_what_else_an_analysis_of_attention_can_take():
    net, _ = surveyed("vit_tiny_patch16_224")
    attention = SURVEY["attention"](net, (3, 224, 224))
    message = r"'blocks' selects none of the 12 layers .*such as blocks\.0\.attn\); take analysis\.layers=every"
    with pytest.raises(UserError, match=message):
        presets.choose(net, attention, ["blocks"])
    assert len(presets.choose(net, attention, ["every"])) == 12


@pytest.mark.parametrize(
    ("name", "prefix", "class_token"),
    [
        of_model("vit_tiny_patch16_224", 1, True),
        of_model("deit_tiny_distilled_patch16_224", 2, True),
        of_model("vit_medium_patch16_gap_240", 0, False),
        of_model("vit_betwixt_patch16_reg4_gap_256", 4, False),
        of_model("mixer_b16_224", 0, False),
    ],
)
def test_prefix_tokens_are_known(name, prefix, class_token):
    _, every = surveyed(name)
    block = next(layer for layer in every if layer.name == "blocks.0")
    assert (block.prefix, block.class_token) == (prefix, class_token)


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("vit_tiny_patch16_224", {}),
        ("beit_base_patch16_224", {"embed_dim": 48, "num_heads": 3}),
        ("eva02_tiny_patch14_224", {}),
        ("vit_relpos_base_patch16_clsgap_224", {"embed_dim": 48, "num_heads": 3}),
    ],
)
def test_whether_the_head_reads_the_class_token_is_known(name, args):
    """Another class token changes the logits if it is read."""
    torch.manual_seed(0)
    net = timm.create_model(name, depth=1, **args).eval()
    block = next(x for x in layers.survey(net, (3, 224, 224)) if x.name == "blocks.0")
    assert block.class_token
    tokens = torch.randn(1, *block.shape)
    other = tokens.clone()
    other[:, 0] = torch.randn(block.shape[1])
    with torch.no_grad():
        same = torch.equal(net.forward_head(net.norm(tokens)), net.forward_head(net.norm(other)))
    assert block.reads_class is not same


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


@pytest.mark.parametrize("name", [of_model(name) for name in USUAL])
def test_presets_select_layers_of_images_of_every_family(name):
    net, every = surveyed(name)
    names = {layer.name for layer in every}
    for preset in presets.PRESETS:
        selected = presets.preset(net, every, preset)
        assert set(selected) <= names
        assert selected or preset in ("logits", "penultimate")
        if selected:
            chosen = presets.choose(net, every, [preset])
            assert all(layer.images for layer in chosen)
            assert all(layer.depth is not None for layer in chosen)


@pytest.mark.parametrize("name", ["test_vit", "swin_tiny_patch4_window7_224", "vgg11"])
def test_every_analysis_goes_on_or_gives_a_known_reason(name):
    said = families.verdicts(name)
    refused = {analysis: families.reason(why) for analysis, why in said.items() if why}
    assert (
        refused
        == {
            "test_vit": {},
            "swin_tiny_patch4_window7_224": {"attention_rollout": "windows or blocks of tokens"},
            "vgg11": dict.fromkeys(("attention_distance", "attention_rollout"), "no attention")
            | {"skip_ratio": "no skip connections (nothing is added to its own input)"},
        }[name]
    )


def test_the_table_of_families_has_every_module_of_timm_and_models_that_exist():
    assert list(families.representatives()) == MODULES
    for module, names in families.representatives().items():
        assert set(names) <= set(timm.list_models(module=module))
    page = families.PAGE.read_text(encoding="utf-8")
    written = page.partition(families.BEGIN)[2].partition(families.END)[0]
    rows = re.findall(r"^\| (\w+) \|", written, flags=re.MULTILINE)
    assert rows == MODULES


@pytest.mark.sweep
@pytest.mark.timeout(300)
@pytest.mark.parametrize("module", MODULES)
def test_every_analysis_goes_on_or_gives_a_known_reason_in_every_module_of_timm(module):
    for name in families.representatives()[module]:
        said = families.verdicts(name)
        assert not said["cka"]
        assert all(families.reason(why) for why in said.values() if why)


def place_that_changes(net: torch.nn.Module, layer: Layer, pixels: torch.Tensor) -> torch.Tensor:
    """How much each place of a layer changes with the input's patch at a quarter of the rows and three of columns."""
    outputs: list[torch.Tensor] = []
    handles = residual.attach_outputs(net, layer, lambda x: outputs.append(x.detach().clone()))
    (down, right), (rows, columns) = layer.pitch, layer.grid
    y, x = int(rows // 4 * down), int(3 * columns // 4 * right)
    changed = pixels.clone()
    changed[:, :, y : y + int(down) + 1, x : x + int(right) + 1] += 3
    with torch.no_grad():
        net(pixels)
        net(changed)
    for handle in handles:
        handle.remove()
    return (
        places.representations(layer, outputs[1] - outputs[0])[:, 0].norm(dim=-1).view(layer.grid)
    )


def near_its_place(name: str, **args: object) -> None:
    """In the first unit of each resolution, what changes most is where the input changes, or right beside it.

    A place of an odd kernel is centred at the corner of its step and not in the middle, so the changed patch lies
    between two places.
    """
    torch.manual_seed(0)
    net, every = surveyed(name, **args)
    built = timm.create_model(name, **args).eval()
    units = set(presets.preset(net, every, "blocks"))
    found = [x for x in every if x.name in units and x.grid and min(x.grid) > 6]
    pixels = torch.randn(1, *timm_architecture.data_config(net)["input_size"])
    for layer in {x.grid: x for x in reversed(found)}.values():
        moved = place_that_changes(built, layer, pixels)
        rows, columns = layer.grid
        row, column = divmod(int(moved.argmax()), columns)
        far = max(abs(row - rows // 4), abs(column - 3 * columns // 4))
        assert far <= 1, (name, layer.name, layer.grid, (row, column))


@pytest.mark.parametrize("name", ["gcvit_xxtiny", "pit_ti_224"])
def test_a_place_changes_most_where_the_input_does(name):
    near_its_place(name)


@pytest.mark.sweep
@pytest.mark.timeout(300)
@pytest.mark.parametrize("module", MODULES)
def test_a_place_changes_most_where_the_input_does_in_every_module_of_timm(module):
    near_its_place(families.representatives()[module][0])


class Own(torch.nn.Module):
    """A transformer of one's own, with other names than timm's."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = torch.nn.Conv2d(3, 8, 4, 4)
        layer = torch.nn.TransformerEncoderLayer
        self.stack = torch.nn.ModuleList(layer(8, 2, 16, batch_first=True) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embed(x).flatten(2).mT
        for layer in self.stack:
            x = layer(x)
        return x.mean(1)


def test_presets_know_the_blocks_of_networks_from_elsewhere():
    own = Own().eval()
    every = layers.survey(own, (3, 16, 16))
    assert presets.preset(own, every, "blocks") == ["stack.0", "stack.1", "stack.2"]
    assert {x.grid for x in every if x.name.startswith("stack.")} >= {(4, 4)}
    with torch.device("meta"):
        swin = torchvision.models.swin_t().eval()
        resnet = torchvision.models.resnet18().eval()
    every = layers.survey(swin, (3, 224, 224))
    assert len(presets.preset(swin, every, "blocks")) == 12
    assert {name.rpartition(".")[2] for name in presets.preset(swin, every, "four")} >= {
        "attn",
        "mlp",
    }
    every = layers.survey(resnet, (3, 224, 224))
    assert presets.preset(resnet, every, "blocks")[0] == "layer1.0"
    assert len(presets.preset(resnet, every, "paper")) == 20 + 20 + 8


@pytest.mark.parametrize(
    ("name", "hidden"),
    [
        of_model("vit_tiny_patch16_224", "blocks.0.mlp.act"),
        of_model("eva02_tiny_patch14_224", "blocks.0.mlp.norm"),  # after the product with the gate
        of_model("convnext_tiny", "stages.0.blocks.0.mlp.act"),
        of_model("resmlp_12_224", None),
    ],
)
def test_the_hidden_layer_of_an_mlp_is_what_enters_its_last_layer(name, hidden):
    net, every = surveyed(name)
    chosen = presets.preset(net, every, "paper")
    between = [n for n in chosen if ".mlp." in n]
    assert (between[0] if between else None) == hidden


@pytest.mark.parametrize(
    ("name", "features"),
    [
        of_model("samvit_base_patch16_224", {768}),
        of_model("tiny_vit_5m_224", {64, 128, 160, 320}),
        of_model("gcvit_xxtiny", {64, 128, 256, 512}),
        of_model("swinv2_cr_tiny_224", {96, 192, 384, 768}),
        of_model("pvt_v2_b0", {32, 64, 160, 256}),
    ],
)
def test_layers_with_channels_last_have_their_features_probed(name, features):
    net, every = surveyed(name)
    chosen = presets.choose(net, every, ["blocks"])
    assert {x.channels if x.is_map else x.shape[-1] for x in chosen} == features


@pytest.mark.parametrize(
    "name", [of_model(name) for name in ("test_byobnet", "ese_vovnet19b_slim_dw", "test_nfnet")]
)
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
        of_model("hiera_tiny_224", "patch_embed", "blocks.11"),
        of_model("levit_128s", "stages.0.blocks.0.attn", "stages.2.blocks.3"),
        of_model("gcvit_xxtiny", "stages.0.blocks.0.norm1", "stages.3.blocks.1"),
    ],
)
def test_the_paper_preset_of_a_transformer_without_a_known_embedding_or_final_norm_has_its_blocks(
    name, first, last
):
    chosen = presets.choose(*surveyed(name), ["paper"])
    assert (chosen[0].name, chosen[-1].name) == (first, last)


def test_layers_of_a_model_with_two_branches_are_listed(command):
    words = ["model=timm", "model.timm=crossvit_tiny_240", "model.pretrained=false"]
    code, out, _ = command("list", "layers", *words)
    assert code == 0
    assert "paper 96, four 66, blocks 21" in out
