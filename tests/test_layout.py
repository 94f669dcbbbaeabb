"""What the axes of layers are: images, rows, columns, channels, and the pixels from one place to the next."""

from __future__ import annotations

import json
from functools import cache

import numpy as np
import pytest
import timm
import torch
from conftest import composed
from reference import minibatch_cka
from torch import Tensor, nn
from torch.nn import functional

from vitsee.analysis import Layer
from vitsee.errors import UserError
from vitsee.estimators import attention
from vitsee.models import (
    attention_hooks,
    layers,
    layout,
    loader,
    presets,
    residual,
    timm_architecture,
)
from vitsee.models.layout import Growth, survey
from vitsee.results.folder import Results
from vitsee.runner import minibatches, run
from vitsee.study import Study

pytestmark = pytest.mark.usefixtures("undrawn")

SMALL_SWIN = (
    "model=timm", "model.timm=swin_tiny_patch4_window7_224", "model.pretrained=false",
    "model.args={embed_dim:24,depths:[2,1,1,1],num_heads:[1,2,2,2],img_size:56,window_size:7}",
)  # fmt: skip


@cache
def of(name: str, size: tuple[int, int] | None = None, **args: object) -> dict[str, Layer]:
    """The layers of an architecture on the meta device."""
    with torch.device("meta"):
        net = timm.create_model(name, **args).eval()
    asked = (3, *size) if size else tuple(timm_architecture.data_config(net)["input_size"])
    return {layer.name: layer for layer in layers.survey(net, asked)}


# ---- steps ----


@pytest.mark.parametrize(
    ("name", "args", "size", "steps"),
    [
        ("vit_tiny_patch16_224", {"depth": 1}, None, {"patch_embed.proj": 16, "blocks.0": 16}),
        ("vit_tiny_patch16_224", {"depth": 1, "img_size": 30, "patch_size": 8}, None, {"blocks.0": 8}),
        ("vit_tiny_patch16_224", {"depth": 1, "img_size": 70, "patch_size": 11}, None, {"blocks.0": 11}),
        ("vit_tiny_patch16_224", {"depth": 1, "img_size": 64, "dynamic_img_size": True}, None, {"norm": 16}),
        ("vit_tiny_patch16_224", {"depth": 1, "img_size": 64, "patch_size": (8, 16)}, None, {"norm": (8, 16)}),
        ("vit_tiny_patch16_224", {"img_size": (64, 96)}, None, {"blocks.1": 16}),
        ("vit_small_r26_s32_224", {"depth": 1}, None, {"blocks.0": 32}),
        ("vit_tiny_r_s16_p8_224", {"depth": 1}, None, {"patch_embed.backbone.pool": 4, "blocks.0": 32}),
        ("deit_tiny_distilled_patch16_224", {"depth": 1}, None, {"blocks.0": 16}),
        ("beit_base_patch16_224", {"depth": 1}, None, {"blocks.0": 16}),
        ("eva02_tiny_patch14_224", {"depth": 1}, None, {"blocks.0": 14}),
        ("mixer_s32_224", {}, None, {"stem": 32, "blocks.0": 32}),
        ("resnet18", {}, None, {"conv1": 2, "layer1.0": 4, "layer2.0": 8, "layer4.1": 32}),
        ("resnet18", {}, (30, 30), {"conv1": 2, "layer3.0": 16, "layer4.1": 32}),
        ("resnet18", {}, (100, 68), {"layer2.0": 8, "layer4.1": 32}),
        ("efficientnet_b0", {}, (100, 100), {"conv_stem": 2, "conv_head": 32}),
        ("mobilenetv2_100", {}, (50, 50), {"blocks.5.2": 32}),
        ("vgg11", {}, (100, 100), {"features.0": 1, "features.20": 32}),
        ("inception_v3", {}, None, {"Conv2d_1a_3x3.conv": 2, "Mixed_7c": 32}),
        ("convnext_atto", {}, None, {"stem": 4, "stages.3.blocks.1": 32}),
        ("swin_tiny_patch4_window7_224", {}, None, {"layers.0": 4, "layers.3.blocks.1": 32}),
        ("pit_ti_224", {}, None, {"patch_embed": 8}),
        ("coatnet_0_rw_224", {}, None, {"stages.0.blocks.0": 4, "stages.3.blocks.1": 32}),
        ("convmixer_1024_20_ks9_p14", {}, None, {"blocks.3": 14}),
    ],
)  # fmt: skip
def test_the_step_of_a_grid_is_the_stride_of_what_comes_before_it(name, args, size, steps):
    found = of(name, size, **args)
    expected = {n: step if isinstance(step, tuple) else (step, step) for n, step in steps.items()}
    assert {name: found[name].pitch for name in expected} == expected


@pytest.mark.parametrize("offset", [0, 5])
def test_every_whole_step_up_to_58_pixels_is_found_from_growth_alone(offset):
    for pixels in (30, 224, 299):
        for step in range(1, 59):
            growth = (pixels + offset + 6720) // step - (pixels + offset) // step
            assert Growth(6720, (growth,)).step(growth) == step


def test_an_axis_that_does_not_grow_in_equal_steps_has_none():
    assert Growth(6720, (0,)).step(0) == 0
    assert Growth(6720, (13440,)).step(13440) == 0.5  # a map of twice the resolution
    assert Growth(6720, (100 * 66,)).step(6600) == 0
    assert Growth(6720, (-1,)).step(-1) == 0


def test_attention_that_is_uniform_is_as_far_in_an_input_that_patches_do_not_fill():
    for side in (24, 30):
        with torch.device("meta"):
            net = timm.create_model("vit_tiny_patch16_224", depth=1, img_size=side, patch_size=8)
        (layer,) = attention_hooks.survey(net.eval(), (3, side, side))
        assert (layer.grid, layer.pitch) == ((3, 3), (8, 8))
        assert attention.uniform_distance(layer) == pytest.approx(10.464, abs=5e-4)


def test_the_residual_stream_has_the_same_grid_as_the_blocks():
    with torch.device("meta"):
        net = timm.create_model("vit_tiny_patch16_224", depth=1, img_size=30, patch_size=8)
    for layer in residual.survey(net.eval(), (3, 30, 30)):
        assert (layer.prefix, layer.grid, layer.pitch) == (1, (3, 3), (8, 8))


# ---- which axes are rows and columns ----


@pytest.mark.parametrize(
    ("name", "layer", "shape", "last"),
    [
        ("convnext_tiny", "stages.3.blocks.0.norm", (7, 7, 768), True),
        ("convnext_tiny", "stages.3.blocks.0", (768, 7, 7), False),
        ("edgenext_xx_small", "stages.0.blocks.0.norm", (64, 64, 24), True),
        ("test_maxvit", "stages.0.blocks.0.attn_block.norm1", (40, 40, 32), True),
        ("test_vit3", "patch_embed.proj", (96, 10, 10), False),
        ("vit_tiny_patch16_dinov3_qkvb", "patch_embed", (16, 16, 192), True),
        ("samvit_base_patch16_224", "blocks.2", (14, 14, 768), True),
        ("tiny_vit_5m_224", "stages.1.blocks.0.drop_path1", (28, 28, 128), True),
        ("volo_d1_224", "network.0.0.norm1", (28, 28, 192), True),
        ("test_mambaout", "stages.1.blocks.0", (20, 20, 32), True),
        ("gcvit_xxtiny", "stages.3.blocks.0", (7, 7, 512), True),  # takes one size only
        ("botnet26t_256", "stages.3.0", (2048, 8, 8), False),  # and so does this
    ],
)
def test_maps_are_read_by_the_axes_that_follow_height_and_width(name, layer, shape, last):
    found = of(name)[layer]
    rows_and_columns = shape[:2] if last else shape[1:]
    assert (found.shape, found.grid) == (shape, rows_and_columns)
    assert (found.channels_last, found.prefix, found.images) == (last, None, True)
    assert found.channels == shape[2 if last else 0]


class Cube(nn.Module):
    """Maps whose channels are as many as their rows and columns, in every order of the axes."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 4, 4)
        self.first, self.last, self.turned, self.mixed = (nn.Identity() for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(self.stem(x))
        self.last(x.permute(0, 2, 3, 1))
        self.turned(x.mT)
        self.mixed(x.transpose(1, 2))
        return x


def test_the_order_of_axes_is_measured_where_all_have_the_same_length():
    found = {layer.name: layer for layer in layers.survey(Cube().eval(), (3, 32, 32))}
    assert {layer.shape for layer in found.values()} == {(8, 8, 8)}
    assert {name: (x.grid, x.channels_last) for name, x in found.items()} == {
        "stem": ((8, 8), False),
        "first": ((8, 8), False),
        "last": ((8, 8), True),
        "turned": (None, False),
        "mixed": (None, False),
    }


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("vit_tiny_patch16_224", "blocks.0.attn.q_norm"),
        ("eva02_tiny_patch14_224", "blocks.0.attn.k_norm"),
        ("xcit_nano_12_p16_224", "blocks.0.attn.attn_drop"),
        ("mobilevitv2_050", "stages.2.1.transformer.0.norm1"),
    ],
)
def test_three_axes_that_are_not_known_to_be_a_map_are_none(name, layer):
    found = of(name)[layer]
    assert len(found.shape) == 3
    assert (found.grid, found.pitch, found.prefix) == (None, None, None)


def test_one_place_of_the_whole_input_is_a_map_at_every_size():
    found = of("seresnet18", (64, 96))["layer1.0.se.fc1"]
    assert (found.shape, found.grid, found.pitch) == ((8, 1, 1), (1, 1), (64, 96))


def test_tokens_turned_about_are_no_tokens_even_where_there_are_as_many_as_features():
    found = of("vit_tiny_patch16_224", depth=1, img_size=48, embed_dim=9, num_heads=1)
    assert found["patch_embed"].prefix == 0

    class Turned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.patch_embed = timm.layers.PatchEmbed(48, 16, 3, 9)
            self.turned = nn.Identity()

        def forward(self, x: Tensor) -> Tensor:
            return self.turned(self.patch_embed(x).mT)

    turned = layers.survey(Turned().eval(), (3, 48, 48))[-1]
    assert (turned.name, turned.shape, turned.prefix) == ("turned", (9, 9), None)


# ---- which axis is the images ----


@pytest.mark.parametrize(
    ("name", "layer", "windows", "good"),
    [
        ("swin_tiny_patch4_window7_224", "layers.0.blocks.0.attn", 64, "layers.0.blocks.0.mlp"),
        ("swin_tiny_patch4_window7_224", "layers.1.blocks.0.attn.qkv", 16, "layers.3.blocks.0.attn"),
        ("tiny_vit_5m_224", "stages.1.blocks.0.attn.norm", 16, "stages.1.blocks.0"),
        ("samvit_base_patch16", "blocks.0.attn.qkv", 25, "blocks.0"),
        ("mobilevit_xxs", "stages.2.1.transformer.0.norm1", 4, "stages.2.1"),
        ("levit_128s", "stages.0.blocks.0.attn.qkv.bn", 196, "stages.0.blocks.0"),
    ],
)  # fmt: skip
def test_windows_of_images_are_known_and_counted(name, layer, windows, good):
    found = of(name)
    assert found[layer].images
    assert (found[layer].windows, found[layer].shape[0]) == (windows, windows)
    assert (found[layer].grid, found[layer].prefix) == (None, None)
    assert (found[good].images, found[good].windows) == (True, 1)


def test_a_layer_that_depends_on_no_image_is_known():
    found = of("test_vit_relpos")
    assert not found["blocks.0.attn.rel_pos.mlp.fc1"].images
    assert found["blocks.0.attn"].images


class Windows(nn.Module):
    """Four windows of each image in its blocks: those of one image after another, or first windows first."""

    def __init__(self, *, turned: bool) -> None:
        super().__init__()
        self.turned = turned
        self.blocks = nn.Sequential(
            *(nn.Sequential(nn.Linear(48, 96), nn.GELU(), nn.Linear(96, 48)) for _ in range(2))
        )

    def forward(self, x: Tensor) -> Tensor:
        windows = (
            x.unfold(2, 4, 4).unfold(3, 4, 4).permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)
        )
        return self.blocks((windows.transpose(0, 1) if self.turned else windows).flatten(0, 1))


def test_windows_are_put_back_image_by_image():
    net = Windows(turned=False).eval()
    found = {layer.name: layer for layer in layers.survey(net, (3, 8, 8))}
    assert (found["blocks.0"].shape, found["blocks.0"].windows) == ((4, 48), 4)
    kept: list[Tensor] = []
    residual.attach_outputs(net, found["blocks.0"], kept.append)
    pixels = torch.randn(3, 3, 8, 8)
    with torch.no_grad():
        net(pixels)
        for image in pixels:
            net(image[None])
    torch.testing.assert_close(kept[0], torch.cat(kept[1:]))


def windows_out_of_order() -> tuple[nn.Module, list[Layer]]:
    net = Windows(turned=True).eval()
    return net, layers.survey(net, (3, 8, 8))


def test_windows_that_are_not_in_the_order_of_images_are_left_out_by_name():
    net, every = windows_out_of_order()
    assert not any(layer.images for layer in every)
    assert presets.left_out(net, every, ["blocks"]) == ["blocks.0", "blocks.1"]
    message = (
        "for Windows, no layer of preset 'blocks' has the images as the first axis of its output"
    )
    with pytest.raises(UserError, match=message):
        presets.choose(net, every, ["blocks"])


def test_a_pattern_for_layers_that_are_not_of_images_is_refused_with_the_reason():
    message = (
        r"the first axis of the output of blocks\.0 is not the images but, for example, windows of them "
        r"\(2 of the 2 layers that 'blocks\.\*' matches\).*; choose .* such as blocks"
    )
    with pytest.raises(UserError, match=message):
        presets.choose(*windows_out_of_order(), ["blocks.*"])


def test_a_run_with_windows_measures_them_by_image(command, tmp_path):
    where = ["dataset=scenes", "images=8", "batch_size=4", f"run.outputs={tmp_path}"]
    quiet = ["run.device=cpu", "run.workers=0", "run.progress=false"]
    code, _, _ = command("run", *SMALL_SWIN, *where, *quiet)
    assert code == 0
    (record,) = tmp_path.rglob("made_with.json")
    assert json.loads(record.read_text())["warnings"] == []
    found = Results(record.parent).tables()["cka"]
    assert "layers.0.blocks.1.attn" in set(found["model_layer"])


def test_windows_are_listed_with_how_many_there_are(command):
    code, out, _ = command("list", "layers", *SMALL_SWIN)
    assert code == 0
    rows = {line.split()[0]: line for line in out.splitlines() if line.startswith("layers.")}
    assert "4 windows x 49 x 24 " in rows["layers.0.blocks.0.attn"]
    assert "windows" not in rows["layers.0.blocks.0"]


SMALL_TINY_VIT = (
    "model=timm", "model.timm=tiny_vit_5m_224", "model.pretrained=false",
    "model.args={embed_dims:[16,24,32,32],depths:[1,2,1,1],num_heads:[1,2,2,2]}",
)  # fmt: skip

MAXVIT = ("model=timm", "model.timm=test_maxvit", "model.pretrained=false")


@pytest.mark.parametrize(
    ("model", "pattern", "windows"),
    [
        (SMALL_SWIN, "layers.*.blocks.*", {1}),
        (SMALL_SWIN, "layers.*.blocks.*.attn", {1, 4}),
        (SMALL_TINY_VIT, "stages.*.blocks.*.attn", {1, 16}),
        (MAXVIT, "stages.*.blocks.*.*.attn", {1, 4, 16, 64}),
    ],
)
def test_cka_of_layers_with_windows_is_that_of_the_images(model, pattern, windows, tmp_path):
    experiment = composed(
        *model, "dataset=scenes", "images=8", "batch_size=8", f"run.outputs={tmp_path}",
        f"analysis.layers=[{pattern}]", "run.device=cpu", "run.workers=0", "run.progress=false",
    )  # fmt: skip
    found = Results(run(experiment).folder).tables()["cka"]["cka"].to_numpy()
    study = Study(experiment)
    (batch,) = minibatches(study, 0, [0])
    kept: list[np.ndarray] = []
    net = study.models["model"].net.double()
    for layer in study.layers["model"]:
        net.get_submodule(layer.name).register_forward_hook(
            lambda m, i, o: kept.append(o.reshape(8, -1).numpy())
        )
    with torch.no_grad():
        net(batch.pixels["model"].double())
    assert {layer.windows for layer in study.layers["model"]} == windows
    expected = [minibatch_cka([x], [y]) for x in kept for y in kept]
    np.testing.assert_allclose(found, expected, atol=1e-6)


# ---- dry runs ----


def test_a_model_is_not_changed_by_being_measured():
    net = timm.create_model("vit_tiny_patch16_224", depth=1).eval()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    flags = {n: dict(m.__dict__, _modules=None) for n, m in net.named_modules()}
    found = survey(net, (3, 224, 224), layers.record_modules)
    assert found["blocks.0"].shape == (197, 192)
    assert all(net.state_dict()[name].equal(value) for name, value in before.items())
    after = {n: dict(m.__dict__, _modules=None) for n, m in net.named_modules()}
    assert str(after) == str(flags)
    assert not any(module._forward_hooks for module in net.modules())


class Halting(nn.Module):
    """Looks at its numbers, which there are none of on the meta device."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 2, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return x if float(x.sum()) < 1e9 else -x


def test_a_model_that_cannot_be_run_on_the_meta_device_is_run_where_it_is():
    (layer,) = layers.survey(Halting().eval(), (3, 8, 8))
    assert (layer.name, layer.shape, layer.images) == ("conv", (4, 4, 4), True)


def test_a_model_without_parameters_is_surveyed():
    net = nn.Sequential(nn.AvgPool2d(2), nn.ReLU())
    assert [(layer.shape, layer.pitch) for layer in layers.survey(net, (3, 8, 8))] == [
        ((3, 4, 4), (2, 2)),
        ((3, 4, 4), (2, 2)),
    ]


def test_a_size_that_a_model_cannot_take_is_refused_with_its_own_reason():
    net = timm.create_model("levit_128s", img_size=128).eval()
    message = (
        r"LevitDistilled does not accept images of 3 x 224 x 224 \(.+\); model\.args\.img_size"
    )
    with pytest.raises(UserError, match=message) as error:
        layers.survey(net, (3, 224, 224))
    assert "\n" not in str(error.value)
    assert layers.survey(net, (3, 128, 128))


# ---- sizes and channels that are asked for ----

TINY_VIT = (
    "analysis=attention_distance", "model=timm", "model.timm=vit_tiny_patch16_224",
    "model.pretrained=false", "model.args.depth=1", "model.args.patch_size=8",
)  # fmt: skip


def asked(*overrides: str) -> loader.ModelOptions:
    return composed(*overrides).model


def test_a_size_that_a_vit_is_not_built_for_is_refused_and_the_advice_works():
    words = [*TINY_VIT, "model.overlay.input_size=[3,64,64]"]
    message = r"input_size=\[3, 64, 64\], but this VisionTransformer is built for images of 32 x 32 pixels: "
    with pytest.raises(
        UserError, match=message + r"build it with model\.args\.img_size=64 instead"
    ):
        timm_architecture.skeleton(asked(*words, "model.args.img_size=32"))
    net = timm_architecture.skeleton(asked(*words, "model.args.img_size=64"))
    assert net.patch_embed.img_size == (64, 64)


def test_a_size_that_is_not_square_is_advised_as_it_is():
    words = [*TINY_VIT, "model.overlay.input_size=[3,64,96]"]
    with pytest.raises(UserError, match=r"model\.args\.img_size=\[64, 96\] instead of 32"):
        timm_architecture.skeleton(asked(*words, "model.args.img_size=32"))
    assert (
        timm_architecture.skeleton(asked(*words, "model.args.img_size=[64,96]")).pos_embed.shape[1]
        == 97
    )


@pytest.mark.parametrize(
    "name",
    ["vit_tiny_patch16_224", "eva02_tiny_patch14_224", "mixer_s32_224", "vit_tiny_r_s16_p8_224",
     "swin_tiny_patch4_window7_224", "samvit_base_patch16_224", "resnet18", "test_vit"],
)  # fmt: skip
def test_the_size_that_is_asked_for_is_obeyed_or_refused(name):
    words = ["model=timm", f"model.timm={name}", "model.overlay.input_size=[3,448,448]"]
    try:
        net = timm_architecture.skeleton(asked(*words))
    except UserError:
        net = timm_architecture.skeleton(asked(*words, "model.args.img_size=448"))
    assert tuple(timm_architecture.data_config(net)["input_size"]) == (3, 448, 448)


def test_a_mixer_is_given_images_of_the_size_it_is_built_for():
    model = asked("model=timm", "model.timm=mixer_s32_224", "model.args.img_size=64")
    assert timm_architecture.data_config(timm_architecture.skeleton(model))["input_size"] == (
        3,
        64,
        64,
    )


@pytest.mark.parametrize(
    ("option", "name"),
    [(f"model.args.in_chans={n}", "model.args.in_chans") for n in (1, 2, 4, 12)]
    + [("model.overlay.input_size=[1,64,64]", r"model\.overlay\.input_size\[0\]")],
)
@pytest.mark.parametrize("model", ["vit_tiny_patch16_224", "resnet18"])
def test_a_model_of_other_than_three_channels_is_refused(option, name, model):
    with pytest.raises(
        UserError, match=rf"{name}=\d+: .* RGB images to a model, so it must take 3 channels"
    ):
        timm_architecture.skeleton(asked("model=timm", f"model.timm={model}", option))
    timm_architecture.skeleton(asked("model=timm", f"model.timm={model}", "model.args.in_chans=3"))


@pytest.mark.parametrize("size", ["64", "[3,64]", "[3,64,0]", "[3,64.5,64]", "[a,b,c]", "null"])
def test_a_size_of_images_that_is_none_is_refused(size):
    with pytest.raises(UserError, match=r"input_size must be three whole numbers, e\.g\. \[3,"):
        timm_architecture.skeleton(asked(*TINY_VIT, f"model.overlay.input_size={size}"))


WIDE = (2, 3, 5, 4)
ANSWERED = {
    functional.linear: ([(2, 5, 4), (3, 4), (3,)], [(2, 5), (3, 4)]),
    functional.layer_norm: ([(2, 5, 4), [5, 4]], [(2, 5, 4), [5]]),
    functional.batch_norm: ([WIDE, (3,), (3,)], [WIDE, (4,), (4,)]),
    functional.group_norm: ([WIDE, 3], [WIDE, 2]),
    **dict.fromkeys(layout.ACTIVATIONS, ([WIDE], [])),
    **dict.fromkeys(layout.ELEMENTWISE, ([WIDE, WIDE], [WIDE, (2, 3, 5, 5)])),
    functional.scaled_dot_product_attention: ([WIDE] * 3, [WIDE, (2, 3, 5, 6), (2, 3, 5, 6)]),
}
"""What dry runs answer themselves, with shapes of tensors (tuples) that fit, and that torch refuses."""


@pytest.mark.parametrize("function", layout._KNOWN)
def test_a_dry_run_answers_usual_functions_as_torch_does_and_leaves_misfits_to_torch(function):
    fitting, refused = (
        [torch.empty(s, device="meta") if isinstance(s, tuple) else s for s in shapes]
        for shapes in ANSWERED[function]
    )
    found, expected = layout._KNOWN[function](*fitting), function(*fitting)
    assert (found.shape, found.stride()) == (expected.shape, expected.stride())
    if refused:
        assert layout._KNOWN[function](*refused) is None
        with pytest.raises(RuntimeError):
            function(*refused)


@pytest.mark.parametrize("activation", layout.ACTIVATIONS[1:])
def test_a_dry_run_answers_an_activation_in_place_with_its_input(activation):
    x = torch.empty(WIDE, device="meta")
    with layout._OnMeta():
        assert activation(x, inplace=True) is x
        assert activation(x) is not x


def test_a_dry_run_leaves_sums_of_different_shapes_to_torch():
    x = torch.empty(WIDE, device="meta")
    with layout._OnMeta():
        assert (x[:, :1] + x).shape == torch.add(x[:1], other=x).shape == (2 * x).shape == WIDE
