"""Weights: random, embedded, from files of every kind, from the hub's cache; and what is refused."""

from __future__ import annotations

import os
import pickle
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from omegaconf import OmegaConf
from safetensors.torch import save_file

from vitsee import models
from vitsee.config import CONF, Model
from vitsee.errors import UserError
from vitsee.listing import model_options

CONFIGURED = sorted(path.stem for path in (CONF / "model").glob("*.yaml") if path.stem != "timm")


def configured(name: str) -> Model:
    return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Model), model_options(name)))


def tiny(**changes: object) -> Model:
    return Model(**({"name": "tiny", "timm": "test_vit", "pretrained": False} | changes))


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """Weights of a tiny ViT, drawn with seed 5."""
    path = tmp_path / "tiny.safetensors"
    save_file(models.build(tiny(), seed=5).state_dict(), path)
    return path


@pytest.mark.parametrize("name", CONFIGURED)
def test_every_configured_model_exists_under_its_name_and_tag(name):
    model = configured(name)
    assert model.name == name
    trained_here = name in ("mixer_b32", "mixer_h14")  # nobody publishes them
    assert model.embedded or trained_here or model.timm in timm.list_pretrained()
    net = models.skeleton(model)
    assert sum(p.numel() for p in net.parameters()) > 1e5
    size = models.data_config(net)["input_size"]
    assert net.eval()(torch.zeros(1, *size, device="meta")).ndim == 2


@pytest.mark.parametrize("name", CONFIGURED)
def test_every_configured_model_has_a_comment_that_says_what_it_is(name):
    assert re.match(r"# .{10,}\.\n", (CONF / "model" / f"{name}.yaml").read_text())


def test_a_small_model_that_does_not_ship_yet_says_how_to_train_it():
    missing = Model(name="vit_huge_mini", timm="test_vit", embedded=True)
    message = (
        r"do not ship with vitsee yet \(there are: .*vit_mini.*\); train them: scripts/zoo.sh vit_h"
    )
    with pytest.raises(UserError, match=message):
        models.load(missing, "cpu")


@pytest.mark.parametrize("name", ["mixer_b32", "mixer_h14"])
def test_a_model_that_nobody_publishes_is_not_replaced_by_another(name):
    with pytest.raises(
        UserError, match=r"there are no published weights of mixer_.*checkpoint=PATH"
    ):
        models.load(configured(name), "cpu")


def test_any_timm_model_can_be_named():
    from conftest import composed

    experiment = composed(
        "model=timm", "model.timm=resnet18.a1_in1k", "model@other=timm", "other.timm=test_vit"
    )
    assert (experiment.model.name, experiment.other.name) == ("resnet18.a1_in1k", "test_vit")


def test_random_weights_depend_on_the_seed_and_are_labelled():
    one, same, other = (models.load(tiny(seed=s), "cpu") for s in (0, 0, 1))
    assert one.digest == same.digest != other.digest
    assert one.label == "tiny (random weights)"
    assert one.weights == "random, seed 0"
    assert not one.net.training
    assert not any(p.requires_grad for p in one.net.parameters())


def test_the_digest_sees_a_single_changed_value():
    net = models.build(tiny())
    before = models.digest(net.state_dict())
    with torch.no_grad():
        net.head.bias[3] += 1e-6
    assert models.digest(net.state_dict()) != before


@pytest.mark.parametrize("wrapped", ["plain", "state_dict", "model", "module."])
@pytest.mark.parametrize("ending", [".pt", ".pth"])
def test_checkpoints_of_pytorch_load_whatever_they_are_wrapped_in(wrapped, ending, tmp_path):
    weights = models.build(tiny(), seed=5).state_dict()
    path = tmp_path / f"tiny{ending}"
    prefixed = {f"module.{name}": value for name, value in weights.items()}
    torch.save(
        {"plain": weights, "module.": prefixed}.get(wrapped, {wrapped: weights, "epoch": 3}), path
    )
    loaded = models.load(tiny(checkpoint=str(path)), "cpu")
    assert loaded.digest == models.digest(weights)
    assert loaded.label == "tiny"
    assert loaded.weights == f"checkpoint {path}"


def test_safetensors_load(saved):
    loaded = models.load(tiny(checkpoint=str(saved)), "cpu")
    assert loaded.digest == models.digest(models.build(tiny(), seed=5).state_dict())


def test_npz_of_the_vit_authors_loads(tmp_path):
    net = models.build(
        tiny(timm="vit_tiny_patch16_224", args={"depth": 2, "num_classes": 10}), seed=5
    )
    path = tmp_path / "vit.npz"
    np.savez(path, **jax_layout(net))
    loaded = models.load(
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


def npz(path: Path, *, without: str = " ", **args: object) -> str:
    """An .npz of a tiny ViT, less the entries whose name has `without` in it."""
    net = models.build(tiny(timm="vit_tiny_patch16_224", args=args), seed=5)
    np.savez(path, **{k: v for k, v in jax_layout(net).items() if without not in k})
    return str(path)


@pytest.mark.parametrize(
    ("stored", "asked", "message"),
    [
        ({"num_classes": 21}, {}, r"2 parameters \(head\.weight, .*args=\{num_classes: 21\}"),
        ({"without": "head"}, {}, r"2 parameters \(head\.weight, .*args=\{num_classes: 0\}"),
        ({"depth": 2}, {}, "it has 2 blocks instead of 1"),
        ({}, {"depth": 2}, "is not a checkpoint of VisionTransformer: .*encoderblock_1"),
        ({}, {"init_values": 0.1}, r"nothing for 2 parameters \(blocks\.0\.ls1\.gamma"),
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
    models.load(tiny(timm="vit_tiny_patch16_224", args=args, checkpoint=path), "cpu")
    assert re.search(r"small\.npz was resampled to another shape: .*pos_embedding", caplog.text)


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
        UserError, match=r"bad\.pt was refused: it holds objects that could run code"
    ):
        models.load(tiny(checkpoint=str(path)), "cpu")
    assert not trace.exists()


def refused(message: str, **changes: object) -> UserError:
    with pytest.raises(UserError, match=message) as caught:
        models.load(tiny(**changes), "cpu")
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


def test_a_checkpoint_of_an_unknown_kind_is_refused(tmp_path):
    (tmp_path / "x.h5").write_bytes(b"")
    refused(
        r"of an unknown kind; these are read: \.safetensors, \.pt",
        checkpoint=str(tmp_path / "x.h5"),
    )


@pytest.mark.parametrize("ending", [".safetensors", ".pt", ".npz"])
def test_a_truncated_checkpoint_is_refused(ending, saved, tmp_path):
    path = tmp_path / f"cut{ending}"
    if ending == ".pt":
        torch.save(models.build(tiny()).state_dict(), path)
    elif ending == ".npz":
        np.savez(
            path, **jax_layout(models.build(tiny(timm="vit_tiny_patch16_224", args={"depth": 1})))
        )
    else:
        path.write_bytes(saved.read_bytes())
    path.write_bytes(path.read_bytes()[:-2000])
    refused(
        r"cut.* is (damaged|not a checkpoint)", checkpoint=str(path), timm="vit_tiny_patch16_224"
    )


def test_a_checkpoint_that_does_not_fit_names_the_keys(saved, tmp_path):
    from safetensors.torch import load_file

    weights = load_file(saved)
    weights["stranger.weight"] = weights.pop("norm.weight")
    weights["blocks.0.mlp.fc1.bias"] = torch.zeros(3)
    save_file(weights, tmp_path / "odd.safetensors")
    refused(
        r"does not fit the model: 1 missing \(norm\.weight\); 1 unexpected \(stranger\.weight\); "
        r"1 of another shape \(blocks\.0\.mlp\.fc1\.bias \(3,\) instead of",
        checkpoint=str(tmp_path / "odd.safetensors"),
    )


def test_a_checkpoint_of_other_classes_says_what_to_set(tmp_path):
    save_file(
        models.build(tiny(args={"num_classes": 10})).state_dict(), tmp_path / "ten.safetensors"
    )
    path = str(tmp_path / "ten.safetensors")
    refused(r"If it is of other classes: model\.args=\{num_classes: 10\}", checkpoint=path)
    assert models.load(tiny(checkpoint=path, args={"num_classes": 10}), "cpu").net.num_classes == 10


def test_position_embeddings_of_another_resolution_are_resampled_and_the_log_says_so(
    tmp_path, caplog
):
    small = tiny(timm="vit_tiny_patch16_224", args={"depth": 1, "img_size": 96})
    save_file(models.build(small).state_dict(), tmp_path / "small.safetensors")
    path = str(tmp_path / "small.safetensors")
    models.load(tiny(timm="vit_tiny_patch16_224", args={"depth": 1}, checkpoint=path), "cpu")
    assert "small.safetensors was resampled to another shape: pos_embed" in caplog.text


def test_damaged_weights_are_refused(saved, tmp_path):
    from safetensors.torch import load_file

    weights = load_file(saved)
    weights["blocks.1.norm1.weight"][0] = torch.nan
    save_file(weights, tmp_path / "nan.safetensors")
    path = str(tmp_path / "nan.safetensors")
    refused(
        r"the weights of tiny are damaged: blocks\.1\.norm1\.weight has NaN or Inf", checkpoint=path
    )


def test_an_unknown_architecture_is_refused_with_the_nearest():
    refused(
        r"timm has no model 'vit_bse_patch16_224'.* Did you mean vit_\w+_patch16_224\?",
        timm="vit_bse_patch16_224",
    )


def test_an_unknown_tag_is_refused_with_those_that_exist():
    refused(
        r"timm has no weights 'augreg_in22k' of vit_tiny_patch16_224; there are: .*augreg_in21k.*"
        r"Did you mean augreg_in21k\?",
        timm="vit_tiny_patch16_224.augreg_in22k",
    )


@pytest.mark.parametrize(
    ("args", "message"),
    [({"dept": 1}, "unexpected keyword argument 'dept'"), ({"num_heads": 7}, "divisible")],
)
def test_wrong_arguments_are_refused_with_timm_s_reason(args, message):
    refused(rf"test_vit cannot be made with model\.args=.*{message}", args=args)


def test_an_unknown_key_of_the_overlay_is_refused_with_the_nearest():
    refused(
        r"no option model\.overlay\.meen; timm has: .*Did you mean mean\?",
        overlay={"meen": [0.5] * 3},
    )


def test_an_unknown_source_of_a_model_is_refused_with_those_that_exist():
    refused(r"unknown source 'hf-hubb'; there are: hf-hub, local-dir", timm="hf-hubb:a/b")


def test_a_folder_without_a_model_is_refused(tmp_path):
    refused(r"there is no .*/config\.json", timm=f"local-dir:{tmp_path}")


def test_a_checkpoint_of_another_architecture_says_so(tmp_path):
    save_file(models.build(tiny(timm="test_resnet")).state_dict(), tmp_path / "r.safetensors")
    refused(
        r"\d+ missing \(.*\d+ unexpected \(.* Choose the architecture that it was made with",
        checkpoint=str(tmp_path / "r.safetensors"),
    )


def test_a_model_without_published_weights_is_refused():
    published = {name.partition(".")[0] for name in timm.list_pretrained()}
    name = next(name for name in timm.list_models("vit_*") if name not in published)
    refused(
        f"there are no published weights of {name}; name a local file", timm=name, pretrained=True
    )


def test_the_size_a_model_was_built_for_is_the_size_it_is_given():
    net = models.build(tiny(timm="vit_tiny_patch16_224", args={"img_size": 96, "depth": 1}))
    assert models.data_config(net)["input_size"] == (3, 96, 96)


def hub_cache(folder: Path, name: str) -> None:
    """A Hugging Face cache that holds weights of a tiny model, as the library lays it out."""
    repository = folder / f"models--timm--{name}"
    snapshot = repository / "snapshots" / "0123456789abcdef0123456789abcdef01234567"
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(snapshot.name)
    save_file(models.build(tiny(), seed=9).state_dict(), snapshot / "model.safetensors")


def load_in_a_new_process(name: str, **environment: str) -> subprocess.CompletedProcess[str]:
    code = (
        "from vitsee import models; from vitsee.config import Model; from vitsee.errors import UserError\n"
        f"try: print(models.load(Model(name='tiny', timm={name!r}), 'cpu'))\n"
        "except UserError as error: print('UserError', error)"
    )
    words = [sys.executable, "-c", code]
    return subprocess.run(
        words, capture_output=True, text=True, env=os.environ | environment, check=True
    )


def test_weights_in_the_hub_s_cache_load_offline(tmp_path):
    hub_cache(tmp_path, "test_vit.r160_in1k")
    answer = load_in_a_new_process(
        "test_vit.r160_in1k", HF_HUB_CACHE=str(tmp_path), HF_HUB_OFFLINE="1"
    )
    assert models.digest(models.build(tiny(), seed=9).state_dict()) in answer.stdout
    assert "weights='hf-hub timm/test_vit.r160_in1k'" in answer.stdout


def test_weights_not_in_the_cache_are_refused_offline_with_what_to_do(tmp_path):
    answer = load_in_a_new_process(
        "test_vit.r160_in1k", HF_HUB_CACHE=str(tmp_path), HF_HUB_OFFLINE="1"
    )
    assert (
        "UserError model=tiny (timm/test_vit.r160_in1k of the Hugging Face hub) is not in"
        in answer.stdout
    )
    assert "model.checkpoint=PATH" in answer.stdout


def test_no_network_is_an_error_within_seconds_that_says_what_to_do(tmp_path):
    answer = load_in_a_new_process(
        "test_vit.r160_in1k", HF_HUB_CACHE=str(tmp_path), HF_ENDPOINT="http://127.0.0.1:9"
    )
    assert "must be downloaded, but 127.0.0.1 cannot be reached" in answer.stdout
    assert "HF_HUB_CACHE" in answer.stdout
    assert "model.pretrained=false" in answer.stdout
    assert "Retrying" not in answer.stderr


@pytest.fixture
def reachable_hub(monkeypatch, tmp_path):
    """Sets what a reachable hub answers to a download: raises the error given to it."""
    import huggingface_hub

    monkeypatch.setattr(models, "require", lambda *args: None)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *args, **more: None)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)

    def answers(error: Exception) -> None:
        def download(*args, **more):
            raise error

        monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)

    return answers


@pytest.mark.parametrize("name", ["test_vit.r160_in1k", "hf-hub:someone/model"])
def test_a_download_that_fails_is_refused_with_the_reason(name, reachable_hub):
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    for error in (OSError("403:\n\nthe repository is gated"), LocalEntryNotFoundError("no answer")):
        reachable_hub(error)
        reason = " ".join(str(error).split())
        refused(rf"could not be downloaded \({reason}\); ", timm=name, pretrained=True)
    reachable_hub(EntryNotFoundError("404"))
    refused(r"has none of (model\.safetensors|config\.json)", timm=name, pretrained=True)


def test_a_model_described_on_the_hub_is_refused_within_seconds_without_a_network(tmp_path):
    answer = load_in_a_new_process(
        "hf-hub:someone/model", HF_HUB_CACHE=str(tmp_path), HF_ENDPOINT="http://127.0.0.1:9"
    )
    assert "must be downloaded, but 127.0.0.1 cannot be reached" in answer.stdout
    assert "Retrying" not in answer.stderr


def test_damaged_weights_in_the_hub_s_cache_are_refused(monkeypatch, tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"cut")
    monkeypatch.setattr(models, "_fetch", lambda *place: tmp_path / "model.safetensors")
    refused(
        r"loading the weights of test_vit\.r160_in1k failed",
        timm="test_vit.r160_in1k",
        pretrained=True,
    )


def test_a_host_that_never_answers_is_given_up(monkeypatch):
    import threading

    from vitsee import network

    monkeypatch.setattr(network, "_ask", lambda url, seconds: threading.Event().wait(60))
    with pytest.raises(
        UserError, match=r"x must be downloaded, but a\.b cannot be reached \(no answer"
    ):
        network.require("https://a.b/c", "x", "do y", seconds=0.1)


REAL = {
    "vit_tiny_patch16_224": ({}, 0.9, "bicubic", 0.65),
    "mobilenetv2_100": ({"pad_type": "same"}, 0.875, "bicubic", 0.7),
}


@pytest.mark.parametrize("name", REAL)
def test_real_weights_recognise_photographs(name, test_data):
    """A wrong mean, crop or padding costs over ten points."""
    from PIL import Image
    from timm.data import ImageNetInfo

    from vitsee.loading import transform_of

    args, crop, interpolation, least = REAL[name]
    half = [0.5, 0.5, 0.5]
    loaded = models.load(
        Model(
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
        members = [m for m in tar if m.isfile() and m.name.split("/")[-2] in index][:600:6]
        for member in members:
            pixels.append(transform(Image.open(tar.extractfile(member)).convert("RGB")))
            truth.append(index.index(member.name.split("/")[-2]))
    with torch.inference_mode():
        found = loaded.net(torch.stack(pixels)).argmax(1)
    assert (found == torch.tensor(truth)).float().mean() > least
