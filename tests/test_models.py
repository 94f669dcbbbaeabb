"""Weights: random, embedded, from files of every kind, from the hub's cache; and what is refused."""

from __future__ import annotations

import argparse
import datetime
import hashlib
import json
import os
import pickle
import re
import subprocess
import sys
import tarfile
from collections import defaultdict
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file

from vitsee import choices, names
from vitsee.choices import CONF
from vitsee.errors import UserError
from vitsee.models import cards, hub, layout, loader, state_dicts, timm_architecture, weight_files
from vitsee.models.fitting import fill
from vitsee.models.sources.found import nonfinite
from vitsee.models.sources.timm import EMBEDDED, _with_weights, shipped, without_classifier
from vitsee.options import ModelOptions

pytestmark = pytest.mark.usefixtures("undrawn")

CONFIGURED = sorted(
    path.stem
    for path in (CONF / "model").glob("*.yaml")
    if path.stem not in ("import", "open_clip", "python", "timm", "torchvision", "transformers")
)
"""All but those that stand for any model of a source (tests/test_sources.py)."""


@cache
def pretrained() -> list[str]:
    """What timm has weights for."""
    return timm.list_pretrained()


def configured(name: str) -> ModelOptions:
    return OmegaConf.to_object(
        OmegaConf.merge(OmegaConf.structured(ModelOptions), choices.options("model", name))
    )


def tiny(**changes: object) -> ModelOptions:
    return ModelOptions(**({"name": "tiny", "timm": "test_vit", "pretrained": False} | changes))


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """Weights of a tiny ViT, drawn with seed 5."""
    path = tmp_path / "tiny.safetensors"
    save_file(timm_architecture.build(tiny(), seed=5).state_dict(), path)
    return path


def test_weights_from_elsewhere_say_how_images_are_prepared_unless_that_is_chosen(saved, caplog):
    caplog.set_level("INFO", logger="vitsee")
    loader.load(tiny(checkpoint=str(saved)), "cpu")
    assert (
        "tiny.safetensors: images are prepared as for timm's test_vit: mean [0.5, 0.5, 0.5], std [0.5, 0.5, 0.5], "
        "crop 0.95; if these weights were trained with others, set model.overlay.mean, model.overlay.std"
    ) in caplog.text
    caplog.clear()
    chosen = {"mean": [0.4, 0.4, 0.4], "std": [0.2, 0.2, 0.2]}
    other = loader.load(tiny(checkpoint=str(saved), overlay=chosen), "cpu")
    assert "are prepared" not in caplog.text
    assert list(other.data["mean"]) == chosen["mean"]


@pytest.mark.parametrize("name", CONFIGURED)
def test_every_configured_model_exists_under_its_name_and_tag(name):
    model = configured(name)
    assert model.name == name
    trained_here = name in ("mixer_b32", "mixer_h14")  # nobody publishes them
    assert model.embedded or trained_here or model.timm in pretrained()
    net = timm_architecture.skeleton(model)
    assert sum(p.numel() for p in net.parameters()) > 1e5
    size = timm_architecture.data_config(net)["input_size"]
    with layout._OnMeta():
        assert net.eval()(torch.zeros(1, *size, device="meta")).ndim == 2


def test_every_configured_model_has_a_comment_that_says_what_it_is():
    for name in CONFIGURED:
        assert re.match(r"# .{10,}\.\n", (CONF / "model" / f"{name}.yaml").read_text()), name


def test_a_shipped_model_of_another_name_is_told_how_to_keep_its_weights():
    renamed = replace(configured("vit_nano"), name="mine")
    message = (
        r"no weights called mine ship with vitsee \(available: .*vit_nano.*\)\. They are found by the model's "
        r"name: leave model\.name out, or give a file of weights with model\.checkpoint=PATH .*; "
        r"a YAML file that extends one of these models also needs checkpoint: PATH or pretrained: false"
    )
    with pytest.raises(UserError, match=message):
        loader.load(renamed, "cpu")
    file = shipped("vit_nano")
    mine = loader.load(replace(renamed, checkpoint=str(file)), "cpu")
    assert mine.name == "mine"
    assert mine.digest == loader.load(configured("vit_nano"), "cpu").digest
    assert loader.load(replace(renamed, pretrained=False), "cpu").digest != mine.digest


@pytest.mark.parametrize("name", ["mixer_b32", "mixer_h14"])
def test_a_model_that_nobody_publishes_is_not_replaced_by_another(name):
    with pytest.raises(
        UserError, match=r"there are no published weights for mixer_.*checkpoint=PATH"
    ):
        loader.load(configured(name), "cpu")


def test_any_timm_model_can_be_named():
    from conftest import composed

    experiment = composed(
        "model=timm", "model.timm=resnet18.a1_in1k", "model@other=timm", "other.timm=test_vit"
    )
    assert (experiment.model.name, experiment.other.name) == ("resnet18.a1_in1k", "test_vit")


def test_random_weights_depend_on_the_seed_and_are_labelled():
    one, same, other = (loader.load(tiny(seed=s), "cpu") for s in (0, 0, 1))
    assert one.digest == same.digest != other.digest
    assert one.label == "tiny (random weights)"
    assert one.weights == "random, seed 0"
    assert not one.net.training
    assert not any(p.requires_grad for p in one.net.parameters())


def test_the_digest_sees_a_single_changed_value():
    net = timm_architecture.build(tiny())
    before = loader.digest(net.state_dict())
    with torch.no_grad():
        net.head.bias[3] += 1e-6
    assert loader.digest(net.state_dict()) != before


def test_random_weights_of_a_model_that_ships_are_those_that_its_training_began_with():
    random = replace(configured("vit_nano"), pretrained=False)
    loaded = loader.load(random, "cpu")
    assert (
        loaded.weights == "random, seed 0, drawn as those that the training of vit_nano began with"
    )
    recipe = cards.read(EMBEDDED / "vit_nano.md").recipe
    spread = loaded.net.pos_embed[:, 1:].square().mean().sqrt().item()
    assert spread == pytest.approx(recipe["pos_embed_std"], rel=0.1)


def test_no_random_weights_are_drawn_for_a_model_that_gets_them_from_a_file(saved):
    before = torch.get_rng_state()
    loader.load(tiny(checkpoint=str(saved)), "cpu")
    _with_weights(tiny(), saved)
    assert torch.equal(torch.get_rng_state(), before)


def test_what_published_weights_leave_out_is_drawn(saved):
    net = _with_weights(tiny(args={"num_classes": 10}), saved)
    assert net.head.weight.shape[0] == 10
    assert net.head.weight.std() > 0
    stored = load_file(saved)
    assert torch.equal(net.blocks[0].attn.qkv.weight, stored["blocks.0.attn.qkv.weight"])


@pytest.mark.parametrize("wrapped", ["plain", "state_dict", "model", "module."])
@pytest.mark.parametrize("ending", [".pt", ".pth"])
def test_checkpoints_of_pytorch_load_whatever_they_are_wrapped_in(wrapped, ending, tmp_path):
    weights = timm_architecture.build(tiny(), seed=5).state_dict()
    path = tmp_path / f"tiny{ending}"
    prefixed = {f"module.{name}": value for name, value in weights.items()}
    torch.save(
        {"plain": weights, "module.": prefixed}.get(wrapped, {wrapped: weights, "epoch": 3}), path
    )
    loaded = loader.load(tiny(checkpoint=str(path)), "cpu")
    assert loaded.digest == loader.digest(weights)
    assert loaded.label == "tiny"
    assert loaded.weights == f"checkpoint {path}"


def test_safetensors_load(saved):
    loaded = loader.load(tiny(checkpoint=str(saved)), "cpu")
    assert loaded.digest == loader.digest(timm_architecture.build(tiny(), seed=5).state_dict())


def test_npz_of_the_vit_authors_loads(tmp_path):
    net = timm_architecture.build(
        tiny(timm="vit_tiny_patch16_224", args={"depth": 2, "num_classes": 10}), seed=5
    )
    path = tmp_path / "vit.npz"
    np.savez(path, **jax_layout(net))
    loaded = loader.load(
        tiny(
            timm=net.default_cfg["architecture"],
            args={"depth": 2, "num_classes": 10},
            checkpoint=str(path),
        ),
        "cpu",
    )
    x = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(loaded.net(x), net.eval()(x))


def big_vision_layout(net: torch.nn.Module) -> dict[str, np.ndarray]:
    """The same in the names of big_vision, all blocks stacked."""
    new = {"MultiHeadDotProductAttention_1": "MultiHeadDotProductAttention_0"}
    new |= {"MlpBlock_3": "MlpBlock_0", "LayerNorm_2": "LayerNorm_1"}
    new |= {"Transformer/posembed_input/pos_embedding": "pos_embedding"}
    stacks: dict[str, list[np.ndarray]] = defaultdict(list)
    found = {}
    for name, value in jax_layout(net).items():
        for old in new:
            name = name.replace(old, new[old])
        if "encoderblock_" in name:
            stacks[re.sub(r"encoderblock_\d+", "encoderblock", name)].append(value)
        else:
            found[name] = value
    found |= {name: np.stack(values) for name, values in stacks.items()}
    return {f"params/{name}": value for name, value in found.items()}


def test_an_npz_of_big_vision_loads_without_a_warning_where_nothing_is_resampled(tmp_path, caplog):
    args = {"depth": 2, "num_classes": 10, "img_size": 64}
    net = timm_architecture.build(tiny(timm="vit_tiny_patch16_224", args=args), seed=5)
    np.savez(tmp_path / "x.npz", **big_vision_layout(net))
    found = loaded(tmp_path / "x.npz", timm="vit_tiny_patch16_224", args=args)
    assert found.digest == loader.digest(net.state_dict())
    assert not [record for record in caplog.records if record.levelname == "WARNING"]


def npz(path: Path, *, without: str = " ", **args: object) -> str:
    """An .npz of a tiny ViT, less the entries whose name has `without` in it."""
    net = timm_architecture.build(tiny(timm="vit_tiny_patch16_224", args=args), seed=5)
    np.savez(path, **{k: v for k, v in jax_layout(net).items() if without not in k})
    return str(path)


@pytest.mark.parametrize(
    ("stored", "asked", "message"),
    [
        (
            {"num_classes": 21},
            {},
            r"2 of its parameters \(head\.weight, .*args=\{num_classes: 21\}",
        ),
        ({"without": "head"}, {}, r"2 of its parameters \(head\.weight, .*args=\{num_classes: 0\}"),
        ({"depth": 2}, {}, "it has 2 blocks instead of 1"),
        ({}, {"depth": 2}, "is not a checkpoint of VisionTransformer: .*encoderblock_1"),
        ({}, {"init_values": 0.1}, r"does not contain 2 of its parameters \(blocks\.0\.ls1\.gamma"),
    ],
    ids=["other classes", "no classifier", "more blocks", "fewer blocks", "LayerScale"],
)
def test_an_npz_that_does_not_fit_is_refused_and_nothing_stays_random(
    stored, asked, message, tmp_path
):
    usual = {"depth": 1, "num_classes": 10}
    path = npz(tmp_path / "vit.npz", **(usual | stored))
    refusal = refused(message, timm="vit_tiny_patch16_224", args=usual | asked, checkpoint=path)
    assert path not in open_files(), f"it is kept open by {refusal!r}"


def test_an_npz_of_something_else_is_refused(tmp_path):
    np.savez(tmp_path / "other.npz", a=np.zeros(3))
    refused(
        r"other\.npz is not a checkpoint of VisionTransformer: .*did not find a supported",
        checkpoint=str(tmp_path / "other.npz"),
    )


def test_an_npz_of_another_resolution_is_resampled_and_the_log_says_so(tmp_path, caplog):
    args = {"depth": 1, "num_classes": 10}
    path = npz(tmp_path / "small.npz", **args, img_size=96)
    loader.load(tiny(timm="vit_tiny_patch16_224", args=args, checkpoint=path), "cpu")
    assert re.search(r"small\.npz was resampled to a different shape: .*pos_embedding", caplog.text)


def jax_layout(net: torch.nn.Module) -> dict[str, np.ndarray]:
    """A ViT's weights under the names and axes of the ViT authors' checkpoints."""
    heads, width = net.blocks[0].attn.num_heads, net.embed_dim
    w = {name: value.numpy() for name, value in net.state_dict().items()}
    found = {
        "embedding/kernel": w["patch_embed.proj.weight"].transpose(2, 3, 1, 0),
        "embedding/bias": w["patch_embed.proj.bias"],
        "cls": w["cls_token"],
        "Transformer/posembed_input/pos_embedding": w["pos_embed"],
        "Transformer/encoder_norm/scale": w["norm.weight"],
        "Transformer/encoder_norm/bias": w["norm.bias"],
        "head/kernel": w["head.weight"].T,
        "head/bias": w["head.bias"],
    }
    for i in range(len(net.blocks)):
        here, there = f"blocks.{i}.", f"Transformer/encoderblock_{i}/"
        attention = f"{there}MultiHeadDotProductAttention_1/"
        qkv = w[f"{here}attn.qkv.weight"].reshape(3, heads, width // heads, width)
        bias = w[f"{here}attn.qkv.bias"].reshape(3, heads, width // heads)
        for j, part in enumerate(("query", "key", "value")):
            found[f"{attention}{part}/kernel"] = qkv[j].transpose(2, 0, 1)
            found[f"{attention}{part}/bias"] = bias[j]
        out = w[f"{here}attn.proj.weight"].reshape(width, heads, width // heads)
        found[f"{attention}out/kernel"] = out.transpose(1, 2, 0)
        found[f"{attention}out/bias"] = w[f"{here}attn.proj.bias"]
        for norm, theirs in (("norm1", "LayerNorm_0"), ("norm2", "LayerNorm_2")):
            found[f"{there}{theirs}/scale"] = w[f"{here}{norm}.weight"]
            found[f"{there}{theirs}/bias"] = w[f"{here}{norm}.bias"]
        for layer, theirs in (("fc1", "Dense_0"), ("fc2", "Dense_1")):
            found[f"{there}MlpBlock_3/{theirs}/kernel"] = w[f"{here}mlp.{layer}.weight"].T
            found[f"{there}MlpBlock_3/{theirs}/bias"] = w[f"{here}mlp.{layer}.bias"]
    return found


class Harmful:
    """Unpickling it makes a file."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self):
        return os.system, (f"touch {self.trace}",)


@pytest.mark.parametrize("how", ["torch.save", "pickle"])
def test_a_pickle_that_wants_to_run_code_is_refused(how, tmp_path):
    path, trace = tmp_path / "bad.pt", tmp_path / "it-ran"
    if how == "pickle":
        path.write_bytes(pickle.dumps({"state_dict": Harmful(trace)}, protocol=2))
    else:
        torch.save({"state_dict": Harmful(trace)}, path)
    with pytest.raises(
        UserError, match=r"bad\.pt was refused: it contains objects that could run code"
    ):
        loader.load(tiny(checkpoint=str(path)), "cpu")
    assert not trace.exists()


def refused(message: str, **changes: object) -> UserError:
    with pytest.raises(UserError, match=message) as caught:
        loader.load(tiny(**changes), "cpu")
    assert len(str(caught.value).splitlines()) == 1
    return caught.value


def open_files() -> set[str]:
    """Paths of the files that this process has open, where a system says so."""
    descriptors = Path("/proc/self/fd")
    listed = list(descriptors.iterdir()) if descriptors.exists() else []
    return {os.path.realpath(one) for one in listed}


def test_a_checkpoint_that_is_not_there_is_refused_with_the_nearest(saved):
    wrong = saved.with_name("tinny.safetensors")
    refused(
        r"no checkpoint .*tinny\.safetensors\. Did you mean tiny\.safetensors\?",
        checkpoint=str(wrong),
    )


FOREIGN = {
    "empty": b"",
    "all zeros": bytes(100),
    "a Git LFS pointer, not the weights: run `git lfs pull`": b"version https://git-lfs.github",
    r"HDF5 \(Keras\?\), which vitsee does not read; convert it": b"\x89HDF\r\n\x1a\n",
    "compressed with gzip: unpack it first": b"\x1f\x8b\x08",
    "a web page or XML, not a checkpoint": b"<!DOCTYPE html>",
    "damaged or was not written by torch.save; save only its state dict": b"hello",
}


@pytest.mark.parametrize("what", FOREIGN)
def test_a_file_that_is_no_checkpoint_is_refused_by_what_it_is(what, tmp_path):
    (tmp_path / "x.pth").write_bytes(FOREIGN[what])
    refused(rf"checkpoint .*x\.pth is {what}", checkpoint=str(tmp_path / "x.pth"))


def test_another_protocol_of_pickles_is_told(tmp_path):
    torch.save({"w": torch.zeros(1)}, tmp_path / "x.pt", pickle_protocol=4)
    said = "was pickled with a protocol other than torch.save's own, 2; save it without pickle_protocol"
    refused(said, checkpoint=str(tmp_path / "x.pt"))


def test_a_folder_or_a_pipe_as_checkpoint_is_refused(saved, tmp_path):
    refused(r"is a folder; name a file in it: tiny\.safetensors", checkpoint=str(tmp_path))
    os.symlink("gone.pt", tmp_path / "last.pt")
    refused(
        r"last\.pt is a link that leads to no file: gone\.pt", checkpoint=str(tmp_path / "last.pt")
    )
    os.mkfifo(tmp_path / "pipe")
    refused("is a pipe or a device, not a file", checkpoint=str(tmp_path / "pipe"))
    refused("cannot read checkpoint .*: File name too long", checkpoint="x" * 300)
    refused("~nosuchuser/x: there is no user nosuchuser; write", checkpoint="~nosuchuser/x")


# --- checkpoints that people have ----------------------------------------------------------------

WEIGHTS = timm_architecture.build(tiny(), seed=5).state_dict()
BACKBONE = {name: value for name, value in WEIGHTS.items() if not name.startswith("head.")}
HEADLESS = {"num_classes": 0}
ODD_ONE = WEIGHTS | {"pos_embed": WEIGHTS["pos_embed"].to(torch.int8)}


def under(prefix: str, weights: dict[str, torch.Tensor] = WEIGHTS) -> dict[str, torch.Tensor]:
    return {prefix + name: value for name, value in weights.items()}


def loaded(path: Path, content: object = None, **changes: object) -> loader.Loaded:
    if content is not None:
        torch.save(content, path)
    return loader.load(tiny(checkpoint=str(path), **changes), "cpu")


@pytest.mark.parametrize("name", ["model_best.pth.tar", "last.ckpt", "checkpoint", "BEST.PTH"])
def test_a_checkpoint_is_read_whatever_it_is_called(name, tmp_path):
    assert loaded(tmp_path / name, {"state_dict": WEIGHTS}).digest == loader.digest(WEIGHTS)


def test_the_kind_of_a_checkpoint_is_known_by_its_content_not_by_its_name(tmp_path):
    save_file(WEIGHTS, tmp_path / "pytorch_model.bin")
    torch.save(WEIGHTS, tmp_path / "model.safetensors")
    torch.save(WEIGHTS, tmp_path / "old.npz", _use_new_zipfile_serialization=False)
    for name in ("pytorch_model.bin", "model.safetensors", "old.npz"):
        assert loaded(tmp_path / name).digest == loader.digest(WEIGHTS)
    path = npz(tmp_path / "vit.npz", depth=1, num_classes=10)
    os.rename(path, tmp_path / "vit.pth")
    args = {"depth": 1, "num_classes": 10}
    assert loaded(tmp_path / "vit.pth", timm="vit_tiny_patch16_224", args=args)


BESIDE = {
    "options of argparse": argparse.Namespace(lr=0.1),
    "a NumPy scalar": np.float64(0.7),
    "a NumPy array": np.arange(3),
    "a path": Path("runs/1"),
    "a date": datetime.datetime(2020, 1, 1),
    "a dictionary with a default": defaultdict(list, loss=[1.0]),
    "a configuration of OmegaConf": OmegaConf.create({"lr": 0.1, "name": "x", "more": [1, 2]}),
}


@pytest.mark.parametrize("beside", BESIDE.values(), ids=BESIDE.keys())
def test_harmless_objects_beside_the_weights_are_passed_over(beside, tmp_path):
    content = {"state_dict": WEIGHTS, "beside": beside}
    assert loaded(tmp_path / "x.ckpt", content).digest == loader.digest(WEIGHTS)


def test_a_harmless_object_is_not_made_but_replaced(tmp_path):
    torch.save({"state_dict": WEIGHTS, "args": argparse.Namespace(lr=0.1)}, tmp_path / "x.pt")
    read = weight_files.read_checked(tmp_path / "x.pt")
    assert type(read["args"]) is weight_files._Inert
    assert vars(read["args"]) == {}


class Unknown:
    """Of no library."""


def test_another_object_is_refused_by_the_name_of_its_class_without_torch_s_advice(tmp_path):
    torch.save({"state_dict": WEIGHTS, "beside": Unknown()}, tmp_path / "x.pt")
    with pytest.raises(UserError) as caught:
        loaded(tmp_path / "x.pt")
    message = str(caught.value)
    assert "objects that could run code (test_models.Unknown); save only its state dict" in message
    assert "weights_only" not in message
    assert message.isprintable()
    assert loaded(tmp_path / "x.pt", WEIGHTS)  # as advised


@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_a_whole_model_and_a_torchscript_program_are_refused_with_what_to_save(tmp_path):
    net = timm_architecture.build(tiny())
    torch.save(net, tmp_path / "whole.pt")
    refused(
        r"vision_transformer\.VisionTransformer\); save only its state dict \(torch\.save",
        checkpoint=str(tmp_path / "whole.pt"),
    )
    torch.jit.save(torch.jit.script(torch.nn.Linear(1, 1)), tmp_path / "script.pt")
    refused("is a TorchScript program", checkpoint=str(tmp_path / "script.pt"))


@pytest.mark.parametrize(
    "prefix",
    [
        *("module.", "_orig_mod.", "model.", "net.", "backbone.", "encoder.", "student."),
        *("module.backbone.", "_orig_mod.module.", "model.model."),
    ],
)
def test_what_a_wrapper_puts_before_all_names_is_cut_off_and_this_is_said(prefix, tmp_path, caplog):
    caplog.set_level("INFO")
    found = loaded(tmp_path / "x.pth", under(prefix))
    assert found.digest == loader.digest(WEIGHTS)
    assert found.taken.record() == {"file": "x.pth", "prefix": prefix}
    assert f"x.pth: removed the prefix {prefix} from its names" in caplog.text


def test_names_inside_a_compiled_model_are_read_without_its_wrapper(tmp_path):
    compiled = {name.replace("attn.", "attn._orig_mod."): value for name, value in WEIGHTS.items()}
    assert loaded(tmp_path / "x.pth", compiled).digest == loader.digest(WEIGHTS)


def test_other_classes_behind_a_prefix_are_told_as_such(tmp_path):
    ten = timm_architecture.build(tiny(args={"num_classes": 10}), seed=5).state_dict()
    torch.save(under("module.backbone.", ten), tmp_path / "x.pth")
    refused(
        r"2 with a different shape \(head\.weight .* If it has other classes: model\.args=\{num_classes: 10\}",
        checkpoint=str(tmp_path / "x.pth"),
    )
    assert loaded(tmp_path / "x.pth", args={"num_classes": 10})


@pytest.mark.parametrize("prefix", ["", "module.model."])
def test_a_checkpoint_that_timm_cannot_convert_names_what_differs(prefix, tmp_path):
    positions = WEIGHTS["pos_embed"][
        :, 1:17
    ]  # no square and a class token: timm cannot resample it
    torch.save(under(prefix, WEIGHTS | {"pos_embed": positions}), tmp_path / "x.pth")
    refused(
        r"1 with a different shape \(pos_embed \(1, 16, .*timm cannot convert it \(.* model\.args=",
        checkpoint=str(tmp_path / "x.pth"),
    )


def test_a_prefix_that_no_wrapper_is_known_for_is_advised_and_the_advice_works(tmp_path):
    torch.save(under("tower.", BACKBONE) | {"tower.pool": torch.zeros(2)}, tmp_path / "x.pth")
    told = dict(checkpoint=str(tmp_path / "x.pth"), args=HEADLESS)
    refused(
        r"All weights of the model are there, under names that begin with tower: .*_key=tower$",
        **told,
    )
    torch.save(
        {"state_dict": under("tower.") | {"loss.weight": torch.zeros(2)}}, tmp_path / "x.pth"
    )
    refused(r"model\.checkpoint_key=state_dict\.tower$", checkpoint=str(tmp_path / "x.pth"))
    found = loaded(tmp_path / "x.pth", checkpoint_key="state_dict.tower")
    assert found.digest == loader.digest(WEIGHTS)


def test_an_unknown_prefix_before_another_layout_is_advised_too(tmp_path):
    path = tmp_path / "x.pth"
    args = {"depth": 1, "embed_dim": 32, "num_heads": 2, "img_size": 56, "num_classes": 0}
    asked = {"timm": "vit_small_patch14_reg4_dinov2", "args": args}
    torch.save(under("tower.", dinov2(56)), path)
    refused(r"Most weights of the model .* begin with tower: .*", checkpoint=str(path), **asked)
    assert loaded(path, checkpoint_key="tower", **asked).taken.left_out == ["mask_token"]


def test_two_models_in_one_state_dict_are_both_named(tmp_path):
    both = under("module.encoder_q.") | under("module.encoder_k.") | {"module.queue": torch.ones(2)}
    torch.save({"state_dict": both}, tmp_path / "moco.pth")
    refused(
        r"_key=state_dict\.module\.encoder_q or state_dict\.module\.encoder_k$",
        checkpoint=str(tmp_path / "moco.pth"),
    )
    assert loaded(tmp_path / "moco.pth", checkpoint_key="state_dict.module.encoder_q")


def test_of_averaged_and_raw_weights_the_averaged_are_taken_and_both_can_be_chosen(
    tmp_path, caplog
):
    caplog.set_level("INFO")
    averaged = {name: value + 0.5 for name, value in WEIGHTS.items()}
    content = {"state_dict": WEIGHTS, "state_dict_ema": averaged, "epoch": 3}
    found = loaded(tmp_path / "x.pth", content)
    assert found.digest == loader.digest(averaged)
    assert found.taken.record() == {
        "file": "x.pth",
        "key": "state_dict_ema",
        "also": ["state_dict"],
    }
    assert (
        "x.pth contains several sets of weights: using state_dict_ema, not state_dict "
        "(model.checkpoint_key=state_dict)" in caplog.text
    )
    raw = loaded(tmp_path / "x.pth", checkpoint_key="state_dict")
    assert raw.digest == loader.digest(WEIGHTS)
    assert raw.taken.record() == {"file": "x.pth", "key": "state_dict"}


@pytest.mark.parametrize("key", state_dicts.KEYS)
def test_the_usual_places_of_weights_are_known(key, tmp_path):
    content = {key: WEIGHTS, "optimizer": {"state": {0: {"exp_avg": torch.zeros(3)}}}, "acc": 0.7}
    found = loaded(tmp_path / "x.pth", content)
    assert (found.digest, found.taken.key) == (loader.digest(WEIGHTS), key)


def test_the_only_state_dict_that_fits_is_taken_wherever_it_is(tmp_path):
    content = {
        "best": {"weights": WEIGHTS},
        "loss": {"centre": torch.ones(2)},
        "acc": torch.ones(()),
    }
    assert loaded(tmp_path / "x.pth", content).taken.key == "best.weights"


def test_among_several_state_dicts_the_user_chooses(tmp_path):
    path = tmp_path / "x.pth"
    torch.save({"online": under("module."), "target": under("module.")}, path)
    message = r"several state dicts, more than one of which fits: online, target; choose one: .*_key=online$"
    refused(message, checkpoint=str(path))
    assert loaded(path, checkpoint_key="online").digest == loader.digest(WEIGHTS)
    refused(
        r"_key=onlin: checkpoint .* such a state dict; it contains: online, target\. Did you mean online\?",
        checkpoint=str(path),
        checkpoint_key="onlin",
    )
    torch.save({"online": WEIGHTS, "target": ODD_ONE}, path)
    assert loaded(path).taken.key == "online"
    torch.save({"a": {"x": torch.ones(2)}, "b": {"y": torch.ones(2)}}, path)
    refused("none of which fits the model as it is: a, b; choose one", checkpoint=str(path))
    refused(r"1 unexpected \(x\)\. None of the model", checkpoint=str(path), checkpoint_key="a")
    torch.save(WEIGHTS, path)
    refused(
        "has no teacher: it is a single state dict, whose names begin with: blocks, ",
        checkpoint=str(path),
        checkpoint_key="teacher",
    )
    refused("model.checkpoint_key=teacher needs model.checkpoint=PATH", checkpoint_key="teacher")


def test_dino_s_checkpoint_gives_the_teacher_s_backbone_or_the_student_s(tmp_path):
    heads = {"head.mlp.0.weight": torch.ones(2), "head.last_layer.weight_g": torch.ones(2)}
    student = {name: value + 1 for name, value in BACKBONE.items()}
    content = {
        "student": under("module.backbone.", student) | under("module.", heads),
        "teacher": under("backbone.", BACKBONE) | heads,
        "dino_loss": {"center": torch.ones(1, 2)},
        "args": argparse.Namespace(arch="vit"),
    }
    found = loaded(tmp_path / "dino.pth", content, args=HEADLESS)
    assert found.digest == loader.digest(BACKBONE)
    assert found.taken.record() == {
        "file": "dino.pth",
        "key": "teacher",
        "also": ["student"],
        "prefix": "backbone.",
        "left_out": list(heads),
    }
    other = loaded(tmp_path / "dino.pth", args=HEADLESS, checkpoint_key="student")
    assert other.digest == loader.digest(student)
    refused(r"model\.args=\{num_classes: 0\}", checkpoint=str(tmp_path / "dino.pth"))


def test_mae_s_decoder_and_mask_token_are_left_out_and_this_is_said(tmp_path, caplog):
    caplog.set_level("INFO")
    extra = dict.fromkeys(["mask_token", "decoder_embed.bias", "decoder_blocks.0.norm1.weight"])
    content = {"model": BACKBONE | {name: torch.ones(2) for name in extra}}
    found = loaded(tmp_path / "mae.pth", content, args=HEADLESS)
    assert found.digest == loader.digest(BACKBONE)
    assert found.taken.left_out == list(extra)
    assert "mae.pth: ignored what the model does not have: mask_token, decoder_e" in caplog.text


def test_lightning_s_checkpoint_loads(tmp_path):
    content = {
        "state_dict": under("model."),
        "callbacks": {"ModelCheckpoint": {"best_model_score": torch.tensor(0.5)}},
        "hyper_parameters": {"path": Path("x"), "config": OmegaConf.create({"a": 1})},
    }
    assert loaded(tmp_path / "last.ckpt", content).digest == loader.digest(WEIGHTS)


def test_a_classifier_is_left_out_only_if_none_is_asked_for(tmp_path):
    found = loaded(tmp_path / "x.pth", WEIGHTS, args=HEADLESS)
    assert found.taken.left_out == ["head.weight", "head.bias"]
    torch.save(WEIGHTS | {"aux.weight": torch.ones(2)}, tmp_path / "x.pth")
    refused(
        r"1 unexpected \(aux\.weight\)\. All weights of the model are there, among others: save them",
        checkpoint=str(tmp_path / "x.pth"),
    )


def test_a_training_may_begin_with_any_such_checkpoint_whatever_its_classes(tmp_path):
    torch.save({"student": under("module."), "teacher": under("backbone.")}, tmp_path / "x.ckpt")
    asked = tiny(args={"num_classes": 10}, checkpoint_key="student")
    begun = without_classifier(asked, tmp_path / "x.ckpt").state_dict()
    assert loader.digest(BACKBONE) == loader.digest({name: begun[name] for name in BACKBONE})
    assert begun["head.weight"].shape == (10, 64)


def test_counters_of_batchnorm_may_be_missing(tmp_path):
    weights = timm_architecture.build(tiny(timm="test_resnet"), seed=5).state_dict()
    less = {name: value for name, value in weights.items() if "num_batches" not in name}
    assert loaded(tmp_path / "x.pth", less, timm="test_resnet").digest == loader.digest(weights)


def dinov2(side: int) -> dict[str, torch.Tensor]:
    """Weights in DINOv2's own layout, whose position embeddings have a slot for the class token."""
    args = {"depth": 1, "embed_dim": 32, "num_heads": 2, "img_size": side, "num_classes": 0}
    net = timm_architecture.build(tiny(timm="vit_small_patch14_reg4_dinov2", args=args), seed=5)
    weights = {n.replace("reg_token", "register_tokens"): v for n, v in net.state_dict().items()}
    weights["pos_embed"] = torch.cat([torch.zeros(1, 1, 32), weights["pos_embed"]], 1)
    return weights | {"mask_token": torch.zeros(1, 32)}


@pytest.mark.parametrize(("side", "resampled"), [(56, []), (42, ["pos_embed"])])
def test_dinov2_s_own_layout_is_resampled_only_where_the_resolution_differs(
    side, resampled, tmp_path, caplog
):
    found = loaded(
        tmp_path / "dinov2.pth",
        dinov2(side),
        timm="vit_small_patch14_reg4_dinov2",
        args={"depth": 1, "embed_dim": 32, "num_heads": 2, "img_size": 56, "num_classes": 0},
    )
    assert found.taken.resampled == resampled
    assert found.taken.left_out == ["mask_token"]
    assert ("was resampled" in caplog.text) == bool(resampled)


def test_what_was_taken_and_resampled_is_in_the_record(run_tiny, tmp_path, caplog):
    torch.save({"state_dict": under("module."), "model": under("module.")}, tmp_path / "x.pth")
    asked = (f"model.checkpoint={tmp_path}/x.pth", "model.args.img_size=96", "images=8")
    code, out, err = run_tiny(*asked)
    assert code == 0, err
    record = json.loads((Path(out.splitlines()[0]).parent / "made_with.json").read_text())
    assert record["models"]["model"]["taken"] == {
        "file": "x.pth",
        "key": "state_dict",
        "also": ["model"],
        "prefix": "module.",
        "resampled": ["pos_embed"],
    }
    said = "x.pth was resampled to a different shape: pos_embed"
    assert record["warnings"] == [said]
    assert caplog.text.count(said) == 1


ODD = {
    "int8": lambda x: x.to(torch.int8),
    "bool": lambda x: x.bool(),
    "complex64": lambda x: x.to(torch.complex64),
    "float8_e4m3fn": lambda x: x.to(torch.float8_e4m3fn),
    "stored sparse": lambda x: x.to_sparse(),
    r"quantised \(qint8\)": lambda x: torch.quantize_per_tensor(x, 0.1, 0, torch.qint8),
    "on the meta device": lambda x: x.to("meta"),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ODD)
@pytest.mark.parametrize("name", ["blocks.0.attn.qkv.weight", "pos_embed"])
def test_tensors_that_are_no_floating_point_numbers_are_refused_by_name(kind, name, tmp_path):
    odd = under("module.", WEIGHTS | {name: ODD[kind](WEIGHTS[name])})
    torch.save({"state_dict": odd}, tmp_path / "x.pth")
    refused(
        rf"x\.pth was refused: module\.{name} is .*{kind}.*, but weights must be float32, .*; save the weights "
        "before quantising",
        checkpoint=str(tmp_path / "x.pth"),
    )


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
def test_half_and_double_precision_load(kind, tmp_path):
    weights = {name: value.to(kind) for name, value in WEIGHTS.items()}
    expected = loader.digest({name: value.float() for name, value in weights.items()})
    assert loaded(tmp_path / "x.pth", weights).digest == expected


def test_a_tensor_that_would_fill_the_memory_is_refused(tmp_path):
    torch.save(WEIGHTS | {"pos_embed": torch.zeros(1).expand(1, 10**9, 64)}, tmp_path / "x.pth")
    refused("would unpack to 256,", checkpoint=str(tmp_path / "x.pth"))


@pytest.mark.parametrize("ending", [".safetensors", ".pt", ".npz"])
def test_a_truncated_checkpoint_is_refused(ending, saved, tmp_path):
    path = tmp_path / f"cut{ending}"
    if ending == ".pt":
        torch.save(timm_architecture.build(tiny()).state_dict(), path)
    elif ending == ".npz":
        np.savez(
            path,
            **jax_layout(
                timm_architecture.build(tiny(timm="vit_tiny_patch16_224", args={"depth": 1}))
            ),
        )
    else:
        path.write_bytes(saved.read_bytes())
    path.write_bytes(path.read_bytes()[:-2000])
    refused(
        r"cut.* is (damaged|not a checkpoint)", checkpoint=str(path), timm="vit_tiny_patch16_224"
    )


def test_a_checkpoint_that_does_not_fit_names_the_keys(saved, tmp_path):
    weights = load_file(saved)
    weights["stranger.weight"] = weights.pop("norm.weight")
    weights["blocks.0.mlp.fc1.bias"] = torch.zeros(3)
    save_file(weights, tmp_path / "odd.safetensors")
    refused(
        r"does not fit the model: 1 missing \(norm\.weight\); 1 unexpected \(stranger\.weight\); "
        r"1 with a different shape \(blocks\.0\.mlp\.fc1\.bias \(3,\) instead of",
        checkpoint=str(tmp_path / "odd.safetensors"),
    )


def test_a_checkpoint_of_other_classes_says_what_to_set(tmp_path):
    save_file(
        timm_architecture.build(tiny(args={"num_classes": 10})).state_dict(),
        tmp_path / "ten.safetensors",
    )
    path = str(tmp_path / "ten.safetensors")
    refused(r"If it has other classes: model\.args=\{num_classes: 10\}", checkpoint=path)
    assert loader.load(tiny(checkpoint=path, args={"num_classes": 10}), "cpu").net.num_classes == 10


def test_position_embeddings_of_another_resolution_are_resampled_and_the_log_says_so(
    tmp_path, caplog
):
    small = tiny(timm="vit_tiny_patch16_224", args={"depth": 1, "img_size": 96})
    save_file(timm_architecture.build(small).state_dict(), tmp_path / "small.safetensors")
    path = str(tmp_path / "small.safetensors")
    loader.load(tiny(timm="vit_tiny_patch16_224", args={"depth": 1}, checkpoint=path), "cpu")
    assert "small.safetensors was resampled to a different shape: pos_embed" in caplog.text


def smooth(rows: int, columns: int) -> torch.Tensor:
    """Position embeddings that are the places of the patches, from 0 to 1, after a class token's: (1, N + 1, 192)."""
    down = torch.linspace(0, 1, rows)[:, None, None].expand(rows, columns, 96)
    right = torch.linspace(0, 1, columns)[None, :, None].expand(rows, columns, 96)
    table = torch.cat([down, right], 2).reshape(1, rows * columns, 192)
    return torch.cat([torch.full((1, 1, 192), 9.0), table], 1)


@pytest.mark.parametrize(
    ("trained", "asked", "card"),
    [
        ((224, 224), (112, 448), False),  # as many patches
        ((224, 224), (96, 160), False),
        ((112, 448), (112, 448), True),
        ((112, 448), (224, 224), True),
        ((64, 144), (96, 96), True),
        ((64, 144), (128, 288), True),
        ((64, 144), (64, 144), False),
    ],
)
@pytest.mark.parametrize("told", [True, False], ids=["overlay", "no overlay"])
def test_positions_stay_in_their_places_whatever_the_shape_of_the_images(
    told, trained, asked, card, tmp_path, caplog
):
    path = tmp_path / "mine.safetensors"

    def model(size: tuple[int, int], **more) -> ModelOptions:
        args = {"depth": 1, "img_size": list(size)}
        overlay = {"input_size": [3, *size]} if told else {}
        return tiny(timm="vit_tiny_patch16_224", args=args, overlay=overlay, **more)

    net = timm_architecture.build(model(trained))
    with torch.no_grad():
        net.pos_embed.copy_(smooth(*(n // 16 for n in trained)))
    save_file(net.state_dict(), path)
    if card:
        about = cards.read(EMBEDDED / "vit_nano.md")
        options = {"args": {"img_size": list(trained)}, "overlay": {}}
        path.with_suffix(".md").write_text(replace(about, model=options).markdown)
    net = timm_architecture.undrawn(model(asked))
    fill(net, path)
    found = net.pos_embed
    expected = smooth(*(n // 16 for n in asked))
    assert (found - expected).abs().max() < 0.12  # an edge of the interpolation
    assert ("was resampled" in caplog.text) == (trained != asked)


def test_an_infinite_buffer_is_no_damage_unless_it_is_a_running_statistic():
    net = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))
    net.register_buffer("highest", torch.tensor(torch.inf))
    assert nonfinite(net) is None
    net.register_buffer("highest", torch.tensor(torch.nan))
    assert nonfinite(net) == "highest"
    net.register_buffer("highest", torch.tensor(torch.inf))
    net[1].running_var[0] = torch.inf
    assert nonfinite(net) == "1.running_var"


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_damaged_weights_are_refused(value, saved, tmp_path):
    weights = load_file(saved)
    weights["blocks.1.norm1.weight"][0] = value
    save_file(weights, tmp_path / "nan.safetensors")
    path = str(tmp_path / "nan.safetensors")
    refused(
        r"the weights of tiny are damaged: blocks\.1\.norm1\.weight contains NaN or Inf",
        checkpoint=path,
    )


def test_an_unknown_architecture_is_refused_with_the_nearest():
    refused(
        r"timm has no model 'vit_bse_patch16_224'.* Did you mean vit_\w+_patch16_224\?",
        timm="vit_bse_patch16_224",
    )


def test_an_unknown_tag_is_refused_with_those_that_exist():
    refused(
        r"timm has no weights 'augreg_in22k' for vit_tiny_patch16_224; available: .*augreg_in21k.*"
        r"Did you mean augreg_in21k\?",
        timm="vit_tiny_patch16_224.augreg_in22k",
    )


@pytest.mark.parametrize(
    ("args", "message"),
    [({"dept": 1}, "unexpected keyword argument 'dept'"), ({"num_heads": 7}, "divisible")],
)
def test_wrong_arguments_are_refused_with_timm_s_reason(args, message):
    refused(rf"test_vit cannot be built with model\.args=.*{message}", args=args)


def test_an_unknown_key_of_the_overlay_is_refused_with_the_nearest():
    refused(
        r"no option model\.overlay\.meen; timm has: .*Did you mean mean\?",
        overlay={"meen": [0.5] * 3},
    )


DATA = {
    "mean": ["abc", 5, [], ["a", "b", "c"], [0.5, 0.5, float("nan")], [True, 0.5, 0.5], [1, 2]],
    "std": ["x", [0, 0, 0], [0.5, -1, 0.5], [1, 1]],
    "interpolation": ["foo", 3, "random"],
    "crop_pct": [0, -1, 90, "x"],
    "crop_mode": ["foo"],
    "input_size": [224, "abc", [3, 224], [3, 0, 0], [3, 64.5, 64]],
    "num_classes": ["x", -1],
}


@pytest.mark.parametrize("key", DATA)
def test_a_wrong_value_in_the_overlay_is_refused_with_what_it_may_be(key):
    for value in DATA[key]:
        refused(rf"^model\.overlay\.{key} must (be|have) .*, got ", overlay={key: value})


@pytest.mark.parametrize(
    "args",
    [
        {"patch_size": 0},
        {"patch_size": "x"},
        {"norm_layer": "foo"},
        {"act_layer": "foo"},
        {"depth": -1},
        {"embed_dim": 0},
        {"global_pool": "foo"},
        {"img_size": [160]},
    ],
    ids=str,
)
def test_arguments_that_make_no_model_are_refused_in_one_line(args):
    refused(re.escape(f"test_vit cannot be built with model.args={args}: "), args=args)


@pytest.mark.parametrize(
    ("timm_name", "args"),
    [
        ("test_vit", {"img_size": 100}),
        ("test_vit", {"num_heads": -2}),
        ("test_resnet", {"global_pool": ""}),
    ],
)
def test_a_model_that_cannot_be_run_is_refused_with_the_reason(timm_name, args, command):
    said = re.escape(f"{timm_name} with model.args={args} cannot run on images of 3 x ")
    refused(said, timm=timm_name, args=args)
    options = (f"model.args.{key}={value!r}" for key, value in args.items())
    code, _, err = command("list", "layers", "model=timm", f"model.timm={timm_name}", *options)
    assert (code, bool(re.search(said, err))) == (2, True)


def test_a_vit_without_pooling_runs():
    assert loader.load(tiny(args={"global_pool": ""}), "cpu")


@pytest.mark.parametrize(
    "args", [{"img_size": 10**6}, {"embed_dim": 10**7}, {"num_classes": 10**12}], ids=str
)
def test_a_model_larger_than_the_memory_is_refused_before_it_is_made(args):
    refused(r"GiB of weights, but this machine has \d+ GiB of memory", args=args)


def test_what_would_pass_by_the_checks_is_refused_with_the_option_to_use(saved):
    refused(
        r"model\.args\.checkpoint_path is not passed on to timm: use model\.checkpoint=PATH",
        args={"checkpoint_path": str(saved)},
    )
    refused(r"model\.args\.device .*: use run\.device", args={"device": "meta"})
    refused(r"model\.overlay\.file .*: use model\.checkpoint", overlay={"file": str(saved)})
    refused("model.seed must be a whole number of 64 bits", seed=2**70)


def test_an_unknown_source_of_a_model_is_refused_with_those_that_exist():
    refused(r"unknown source 'hf-hubb'; available: hf-hub, local-dir", timm="hf-hubb:a/b")


def test_a_folder_without_a_model_is_refused(tmp_path):
    refused(r"there is no .*/config\.json", timm=f"local-dir:{tmp_path}")


DESCRIBED = {
    "architecture": "test_vit",
    "pretrained_cfg": {
        **{"input_size": [3, 160, 160], "fixed_input_size": True},
        **{"num_classes": 1000, "classifier": "head"},
    },
}
MISDESCRIBED = {
    "{": "is not JSON: Expecting",
    "\\x00": "is not JSON",
    "[1]": 'does not name an architecture of timm, e.g. "architecture": "resnet50"',
    "{}": "does not name an architecture",
    '{"architecture": 5}': "does not name an architecture",
    '{"architecture": "resnt50"}': "'resnt50', which timm does not have. Did you mean resnet50",
    '{"architecture": "test_vit", "pretrained_cfg": "x"}': "its pretrained_cfg must be a mapping, got 'x'",
    '{"architecture": "test_vit", "pretrained_cfg": {"x": 1}}': "cannot be built with its config.json: ",
    '{"architecture": "test_vit", "num_classes": "x"}': "cannot be built with its config.json: TypeError",
    '{"architecture": "test_vit", "pretrained_cfg": {"mean": "x"}}': ": its mean must be one number per ",
}


@pytest.mark.parametrize("config", MISDESCRIBED)
def test_a_folder_that_describes_no_model_is_refused_with_the_reason(config, tmp_path):
    (tmp_path / "config.json").write_text(config)
    refused(re.escape(MISDESCRIBED[config]), timm=f"local-dir:{tmp_path}")


def test_a_folder_with_weights_loads(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(DESCRIBED))
    asked = {"timm": f"local-dir:{tmp_path}", "pretrained": True}
    refused(r"has a config\.json but no weights \(model\.safetensors, ", **asked)
    assert loader.load(tiny(**asked | {"pretrained": False}), "cpu")  # as advised
    save_file(WEIGHTS, tmp_path / "a.safetensors")
    found = loader.load(tiny(**asked), "cpu")
    assert found.digest == loader.digest(WEIGHTS)
    assert found.weights == f"local-dir {tmp_path}/a.safetensors"
    save_file(WEIGHTS, tmp_path / "b.safetensors")
    refused(
        r"several weight files \(a\.safetensors, b\.safetensors\); choose one: model\.checkpoint=.*a\.",
        **asked,
    )
    assert loader.load(tiny(**asked, checkpoint=f"{tmp_path}/a.safetensors"), "cpu")


def test_weights_at_an_address_are_kept_where_torch_keeps_them_and_damaged_ones_refused(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "hub"))
    plain = tmp_path / "plain.safetensors"
    save_file(WEIGHTS, plain)
    digest = hashlib.sha256(plain.read_bytes()).hexdigest()[:8]
    for name in (f"good-{digest}.safetensors", "bad-00000000.safetensors"):
        (tmp_path / name).write_bytes(plain.read_bytes())

    def at(name: str) -> dict:
        return {
            "pretrained": True,
            "overlay": {"hf_hub_id": None, "url": f"file://{tmp_path}/{name}"},
        }

    loaded = loader.load(tiny(**at(f"good-{digest}.safetensors")), "cpu")
    assert loaded.digest == loader.digest(WEIGHTS)
    assert (tmp_path / "hub" / "checkpoints" / f"good-{digest}.safetensors").is_file()
    refused(
        r"could not be downloaded \(invalid hash value.*\); download it on a machine with",
        **at("bad-00000000.safetensors"),
    )


@pytest.mark.parametrize("name", ["../../etc", "a/b/c", "", "a b"])
def test_a_name_of_no_repository_is_refused_without_asking_the_hub(name):
    refused("is not a valid repository name of the Hugging Face hub; write", timm=f"hf-hub:{name}")
    overlay = {"hf_hub_id": name or "../"}
    refused("is not a valid repository name", timm="test_vit", pretrained=True, overlay=overlay)


@pytest.mark.parametrize("revision", ["../y", "b@c", ""])
def test_a_revision_that_leads_elsewhere_is_refused(revision):
    refused(r"is not a valid revision; e\.g\. x/y@main", timm=f"hf-hub:x/y@{revision}")


NAMES = {
    "checkpoints": ({"checkpoint": "x/a.pth.tar"}, {"checkpoint": "x/b.safetensors"}, "a", "b"),
    "folders": ({"checkpoint": "r/1/last.ckpt"}, {"checkpoint": "r/2/last.ckpt"}, "1", "2"),
    "endings": ({"checkpoint": "a.pt"}, {"checkpoint": "a.pth"}, "a.pt", "a.pth"),
    "one checkpoint": ({"checkpoint": "a.pt"}, {}, "a", ""),
    "seeds": ({"seed": 0}, {"seed": 1}, "seed=0", "seed=1"),
    "weights": ({"pretrained": True}, {}, "pretrained=true", "pretrained=false"),
    "arguments": ({"args": {"a": 1, "b": 2}}, {"args": {"a": 1, "b": 3}}, "b=2", "b=3"),
    "skips": ({"remove_skip": [1, 2]}, {}, "remove_skip=[1,2]", ""),
    "keys": (
        {"checkpoint": "a", "checkpoint_key": "teacher"},
        {"checkpoint": "a"},
        "checkpoint_key=teacher",
        "",
    ),
    "long values": ({"args": {"a": "x" * 70 + "1"}}, {"args": {"a": "x" * 70}}, "model", "other"),
    "nothing": ({"checkpoint": "a"}, {"checkpoint": "a", "seed": 1}, "", ""),
}


@pytest.mark.parametrize("differs", NAMES)
def test_two_models_of_one_name_are_told_apart_by_what_differs(differs):
    one, other, *marks = NAMES[differs]
    found = names.told_apart({"model": tiny(**one), "other": tiny(**other)})
    assert list(found.values()) == [f"tiny-{mark}" if mark else "tiny" for mark in marks]


def test_models_of_other_names_keep_them():
    assert names.told_apart({"model": tiny(checkpoint="a")}) == {"model": "tiny"}
    pair = {"model": tiny(checkpoint="a"), "other": tiny(name="b", checkpoint="c")}
    assert names.told_apart(pair) == {"model": "tiny", "other": "b"}


def test_two_checkpoints_of_one_architecture_have_names_in_folders_and_on_axes(run_tiny, tmp_path):
    save_file(WEIGHTS, tmp_path / "first.safetensors")
    save_file({n: v + 0.1 for n, v in WEIGHTS.items()}, tmp_path / "second.safetensors")
    code, out, err = run_tiny(
        f"model.checkpoint={tmp_path}/first.safetensors",
        *("model@other=timm", "other.timm=test_vit", "images=8", "analysis.layers=blocks"),
        f"other.checkpoint={tmp_path}/second.safetensors",
    )
    assert code == 0, err
    folder = Path(out.splitlines()[0]).parent
    assert folder.parent.name == "test_vit-first-vs-test_vit-second"
    labels = json.loads((folder / "made_with.json").read_text())["labels"]
    assert (labels["model"], labels["other"]) == ("test_vit-first", "test_vit-second")


def test_models_that_ship_keep_their_weights_when_told_apart(tmp_path):
    from conftest import composed

    from vitsee.study import Study

    study = Study(composed("model=vit_nano", "model@other=vit_nano", "other.remove_skip=[1]"))
    assert [m.label for m in study.models.values()] == ["vit_nano", "vit_nano-remove_skip=[1]"]
    assert len({m.digest for m in study.models.values()}) == 1


def test_a_checkpoint_of_another_architecture_says_so(tmp_path):
    save_file(
        timm_architecture.build(tiny(timm="test_resnet")).state_dict(), tmp_path / "r.safetensors"
    )
    refused(
        r"\d+ missing \(.*\d+ unexpected \(.* Choose the architecture that it was made with",
        checkpoint=str(tmp_path / "r.safetensors"),
    )


def test_a_model_without_published_weights_is_refused():
    published = {name.partition(".")[0] for name in timm.list_pretrained()}
    name = next(name for name in timm.list_models("vit_*") if name not in published)
    refused(
        f"there are no published weights for {name}; name a local file", timm=name, pretrained=True
    )


def test_the_size_a_model_was_built_for_is_the_size_it_is_given():
    net = timm_architecture.build(
        tiny(timm="vit_tiny_patch16_224", args={"img_size": 96, "depth": 1})
    )
    assert timm_architecture.data_config(net)["input_size"] == (3, 96, 96)


def hub_cache(folder: Path, name: str, net: torch.nn.Module) -> None:
    """A Hugging Face cache that holds these weights, as the library lays it out."""
    repository = folder / f"models--timm--{name}"
    snapshot = repository / "snapshots" / "0123456789abcdef0123456789abcdef01234567"
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(snapshot.name)
    save_file(net.state_dict(), snapshot / "model.safetensors")


CACHED, ABSENT, ON_HUB = "test_vit.r160_in1k", "test_vit2.r160_in1k", "hf-hub:someone/model"
LOADING = """
import json, os, sys
import torch, torchvision  # once: the hub's library is imported below, and reads its settings then
for environment, names in json.loads(sys.argv[1]):
    if child := os.fork():
        assert os.waitpid(child, 0)[1] == 0
        continue
    os.environ.update(environment)
    from vitsee.errors import UserError
    from vitsee.models import loader
    from vitsee.models.sources.timm import _with_weights, without_classifier
    from vitsee.options import ModelOptions
    for name in names:
        try:
            loaded = loader.load(ModelOptions(name="tiny", timm=name), "cpu")
            print(loaded, loaded.digest, end="\\0")
        except UserError as error:
            print("UserError", error, end="\\0")
    sys.stdout.flush()
    os._exit(0)
"""

of_the_hub = pytest.mark.xdist_group("settings of the hub")


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, str]]:
    """What becomes of models in new processes: where the hub must not be asked, and where it cannot be reached."""
    full, empty = tmp_path_factory.mktemp("cache"), tmp_path_factory.mktemp("empty")
    hub_cache(full, CACHED, timm_architecture.build(tiny(), seed=9))
    asked = [
        ({"HF_HUB_CACHE": str(full), "HF_HUB_OFFLINE": "1"}, [CACHED, ABSENT]),
        ({"HF_HUB_CACHE": str(empty), "HF_ENDPOINT": "http://127.0.0.1:9"}, [CACHED, ON_HUB]),
    ]
    done = subprocess.run(
        [sys.executable, "-c", LOADING, json.dumps(asked)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "Retrying" not in done.stderr
    said = iter(done.stdout.split("\0")[:-1])
    return [{name: next(said) for name in names} for _, names in asked]


@of_the_hub
def test_offline_weights_in_the_hub_s_cache_are_loaded_and_others_refused_with_what_to_do(answers):
    offline, _ = answers
    assert loader.digest(timm_architecture.build(tiny(), seed=9).state_dict()) in offline[CACHED]
    assert f"weights='hf-hub timm/{CACHED}'" in offline[CACHED]
    refused = f"UserError model=tiny (timm/{ABSENT} of the Hugging Face hub) is not in"
    assert refused in offline[ABSENT]
    assert "model.checkpoint=PATH" in offline[ABSENT]


@of_the_hub
def test_no_network_is_an_error_within_seconds_that_says_what_to_do(answers):
    """For weights that timm names, and for a model that is described on the hub."""
    _, nowhere = answers
    for answer in nowhere.values():
        assert "must be downloaded, but 127.0.0.1 cannot be reached" in answer
    assert "HF_HUB_CACHE" in nowhere[CACHED]
    assert "model.pretrained=false" in nowhere[CACHED]


@pytest.fixture
def reachable_hub(monkeypatch, tmp_path):
    """Sets what a reachable hub answers to a download: raises the error given to it."""
    import huggingface_hub

    monkeypatch.setattr(hub, "require", lambda *args: None)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *args, **more: None)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)

    def answers(error: Exception) -> None:
        def download(*args, **more):
            raise error

        for name in ("get_hf_file_metadata", "hf_hub_download"):
            monkeypatch.setattr(huggingface_hub, name, download)

    return answers


@pytest.mark.parametrize("name", ["test_vit.r160_in1k", "hf-hub:someone/model"])
def test_a_download_that_fails_is_refused_with_the_reason(name, reachable_hub):
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    for error in (OSError("403:\n\nthe repository is gated"), LocalEntryNotFoundError("no answer")):
        reachable_hub(error)
        reason = " ".join(str(error).split())
        refused(rf"could not be downloaded \({reason}\); ", timm=name, pretrained=True)
    reachable_hub(EntryNotFoundError("404"))
    refused(r"does not contain (model\.safetensors|config\.json)", timm=name, pretrained=True)


def test_damaged_weights_in_the_hub_s_cache_are_refused(monkeypatch, tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"cut")
    monkeypatch.setattr(
        "vitsee.models.sources.timm.fetched", lambda *place: tmp_path / "model.safetensors"
    )
    refused(
        r"loading the weights of test_vit\.r160_in1k failed",
        timm="test_vit.r160_in1k",
        pretrained=True,
    )


def test_a_host_that_never_answers_is_given_up(monkeypatch):
    import threading

    from vitsee.io import reachable

    monkeypatch.setattr(reachable, "_ask", lambda url, seconds: threading.Event().wait(60))
    with pytest.raises(
        UserError, match=r"x must be downloaded, but a\.b cannot be reached \(no answer"
    ):
        reachable.require("https://a.b/c", "x", "do y", seconds=0.1)


REAL = {
    "vit_tiny_patch16_224": ({}, 0.9, "bicubic", 20, 0.65),
    "mobilenetv2_100": ({"pad_type": "same"}, 0.875, "bicubic", 10, 0.7),
}


@pytest.mark.parametrize("name", REAL)
def test_real_weights_recognise_photographs(name, test_data):
    """A wrong mean, crop or padding costs over ten points."""
    from PIL import Image
    from timm.data import ImageNetInfo

    from vitsee.data.minibatches import transform_of

    args, crop, interpolation, every, least = REAL[name]
    half = [0.5, 0.5, 0.5]
    loaded = loader.load(
        ModelOptions(
            name=name,
            timm=name,
            checkpoint=str(test_data / "weights" / f"{name}.safetensors"),
            args=args,
            overlay={"mean": half, "std": half, "crop_pct": crop, "interpolation": interpolation},
        ),
        "cpu",
    )
    transform, index = transform_of(loaded.data), ImageNetInfo().label_names()
    pixels, truth = [], []
    with tarfile.open(test_data / "imagen_200x5.tar") as tar:
        members = [m for m in tar if m.isfile() and m.name.split("/")[-2] in index][:600:every]
        for member in members:
            pixels.append(transform(Image.open(tar.extractfile(member)).convert("RGB")))
            truth.append(index.index(member.name.split("/")[-2]))
    with torch.inference_mode():  # few at a time are faster
        found = torch.cat([loaded.net(few) for few in torch.stack(pixels).split(5)]).argmax(1)
    assert (found == torch.tensor(truth)).float().mean() > least
