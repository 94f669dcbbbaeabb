"""Data sets and their loading: order, ids, labels, odd images, bad images, downloads that cannot be."""

from __future__ import annotations

import hashlib
import os
import pickle
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import composed, write_images
from PIL import Image

from vitsee import datasets
from vitsee.batches import Plan
from vitsee.config import Dataset, OnBadImage
from vitsee.errors import UserError
from vitsee.loading import Minibatches

DATA = {
    "input_size": (3, 32, 32),
    "interpolation": "bicubic",
    "mean": (0.5, 0.5, 0.5),
    "std": (0.5, 0.5, 0.5),
    "crop_pct": 1.0,
    "crop_mode": "center",
}


def folder(root: Path, **changes: object) -> datasets.Images:
    return datasets.load(Dataset(name="folder", kind="folder", root=str(root), **changes), 32)


def refused(message: str, **values: object) -> None:
    with pytest.raises(UserError, match=message) as caught:
        datasets.load(Dataset(**({"name": "folder", "kind": "folder"} | values)), 32)
    assert len(str(caught.value).splitlines()) == 1


def tar_of(root: Path, path: Path) -> Path:
    with tarfile.open(path, "w") as tar:
        tar.add(root, arcname=".")
    return path


def load_all(images: datasets.Images, **changes: object) -> list:
    plan = Plan(len(images), len(images) // 4 * 4, 4, seed=0)
    options = {"device": torch.device("cpu"), "workers": 0, "on_bad_image": OnBadImage.error}
    roles = changes.pop("data", {"model": DATA})
    return list(Minibatches(images, roles, plan, list(range(len(plan))), **(options | changes)))


def test_folders_are_classes_and_files_come_in_natural_order(tmp_path):
    for name in ("b/img10.png", "b/img2.png", "a/x.JPG", ".hidden/y.png/z.txt"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix != ".txt":
            Image.new("RGB", (8, 8)).save(path, format="png")
    images = folder(tmp_path)
    assert [images.id(i) for i in range(len(images))] == ["a/x.JPG", "b/img2.png", "b/img10.png"]
    assert [images.label(i) for i in range(len(images))] == [0, 1, 1]
    assert images.classes == ["a", "b"]


def test_a_flat_folder_is_one_class(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    images = folder(tmp_path)
    assert (len(images), images.label(0), images.classes) == (1, 0, [""])


def test_a_tar_is_the_folder_it_was_made_of(tmp_path):
    root = write_images(tmp_path / "images", 12)
    plain, packed = folder(root), folder(tar_of(root, tmp_path / "images.tar"))
    assert [plain.id(i) for i in range(12)] == [packed.id(i) for i in range(12)]
    assert plain.fingerprint == packed.fingerprint
    for i in range(12):
        assert np.array_equal(plain.open(i), packed.open(i))


def test_reading_a_tar_unpacks_nothing(tmp_path):
    path = tar_of(write_images(tmp_path / "images", 8), tmp_path / "images.tar")
    shutil.rmtree(tmp_path / "images")
    load_all(folder(path), workers=2)
    assert list(tmp_path.iterdir()) == [path]


def test_a_split_is_looked_for_below_the_root(tmp_path):
    write_images(tmp_path / "val", 4)
    write_images(tmp_path / "train", 6)
    assert len(folder(tmp_path, split="val")) == 4
    assert len(folder(tmp_path / "val", split="val")) == 4
    refused(
        r"has no folder 'vall' .*it has: train, val\. Did you mean val\?",
        root=str(tmp_path),
        split="vall",
    )


def test_the_fingerprint_changes_with_the_set_of_images_not_with_its_place(tmp_path):
    one = folder(write_images(tmp_path / "one", 8))
    shutil.copytree(tmp_path / "one", tmp_path / "elsewhere")
    assert folder(tmp_path / "elsewhere").fingerprint == one.fingerprint
    os.rename(tmp_path / "elsewhere/class0/000.png", tmp_path / "elsewhere/class1/000.png")
    assert folder(tmp_path / "elsewhere").fingerprint != one.fingerprint


@pytest.mark.parametrize("mode", ["L", "P", "CMYK", "RGBA", "I;16", "1", "LA"])
def test_images_of_every_mode_come_out_as_rgb(mode, tmp_path):
    ending = "tif" if mode == "CMYK" else "png"
    image = (
        Image.new("I;16", (9, 7))
        if mode == "I;16"
        else Image.new("RGB", (9, 7), "red").convert(mode)
    )
    image.save(tmp_path / f"x.{ending}")
    opened = folder(tmp_path).open(0)
    assert (opened.mode, opened.size) == ("RGB", (9, 7))


@pytest.mark.parametrize("damage", ["truncated", "empty", "text", "huge"])
def test_an_image_that_cannot_be_decoded_is_named(damage, tmp_path, monkeypatch):
    root = write_images(tmp_path / "images", 8)
    bad = root / "class0" / "002.png"
    if damage == "huge":
        Image.new("RGB", (200, 200)).save(bad)
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100 * 100)
    else:
        content = {"truncated": bad.read_bytes()[:300], "empty": b"", "text": b"hello"}
        bad.write_bytes(content[damage])
    with pytest.raises(UserError, match=r"cannot decode image class0/002\.png .*on_bad_image=skip"):
        load_all(folder(root))


def test_the_error_of_a_worker_process_reaches_the_user(tmp_path):
    root = write_images(tmp_path / "images", 8)
    (root / "class0" / "002.png").write_bytes(b"x")
    with pytest.raises(UserError, match=r"cannot decode image class0/002\.png"):
        load_all(folder(root), workers=2)


def test_a_minibatch_with_too_few_decodable_images_is_an_error(tmp_path):
    root = write_images(tmp_path / "images", 4)
    (root / "class0" / "002.png").write_bytes(b"x")
    with pytest.raises(
        UserError, match="minibatch 0 has 3 images that can be decoded, but at least 4"
    ):
        load_all(folder(root), on_bad_image=OnBadImage.skip)


def test_the_number_of_workers_changes_nothing(images):
    none, two = (load_all(folder(images), workers=w) for w in (0, 2))
    assert [b.ids for b in none] == [b.ids for b in two]
    assert all(
        torch.equal(a.pixels["model"], b.pixels["model"]) for a, b in zip(none, two, strict=True)
    )


def test_both_models_see_the_same_images_each_through_its_own_preprocessing(images):
    other = DATA | {"input_size": (3, 48, 48), "mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
    batch = load_all(folder(images), data={"model": DATA, "other": other})[0]
    assert batch.pixels["model"].shape == (4, 3, 32, 32)
    assert batch.pixels["other"].shape == (4, 3, 48, 48)
    assert batch.pixels["other"].min() >= 0 > batch.pixels["model"].min()


def test_the_same_preprocessing_is_done_once(images):
    batch = load_all(folder(images), data={"model": DATA, "other": dict(DATA)})[0]
    assert batch.pixels["model"] is batch.pixels["other"]


def test_data_sets_can_be_sent_to_worker_processes(images, tmp_path):
    for source in (folder(images), datasets.load(composed("model=vit_mini").dataset, 56)):
        copy = pickle.loads(pickle.dumps(source))
        assert np.array_equal(copy.open(3), source.open(3))


def test_a_plan_draws_without_replacement_and_anew_in_each_repeat():
    plan = Plan(size=100, images=50, batch_size=8, seed=1, repeats=3)
    assert (len(plan), plan.left_out) == (18, 2)
    repeats = [[i for b in range(6 * r, 6 * r + 6) for i in plan.batch(b)] for r in range(3)]
    assert all(len(set(drawn)) == 48 for drawn in repeats)
    assert len({tuple(drawn) for drawn in repeats}) == 3
    assert plan == Plan(100, 50, 8, 1, 3)
    assert Plan(100, 50, 8, 2).batch(0) != plan.batch(0)


def test_shards_of_a_plan_share_the_work_without_overlap():
    plan, none = Plan(100, 100, 8, 0), torch.zeros(12)
    shares = [plan.todo(none, shard, 5) for shard in range(5)]
    assert sorted(sum(shares, [])) == list(range(12))


def test_missing_roots_are_refused(tmp_path):
    (tmp_path / "photos").mkdir()
    refused("dataset=folder needs the folder or .tar of the images: dataset.root=PATH")
    refused(r"photoss does not exist\. Did you mean photos\?", root=str(tmp_path / "photoss"))
    refused("environment variable IMAGENET", name="imagenet_val")


def test_an_empty_folder_or_tar_is_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    refused(r"there are no images in .*empty; looked for \.jpg", root=str(tmp_path / "empty"))
    path = tar_of(tmp_path / "empty", tmp_path / "empty.tar")
    refused(r"there are no images in .*empty\.tar", root=str(path))


@pytest.mark.parametrize("damage", ["text", "truncated", "compressed"])
def test_a_file_that_is_no_whole_tar_is_refused(damage, tmp_path):
    path = tar_of(write_images(tmp_path / "images", 8), tmp_path / "images.tar")
    if damage == "compressed":
        with tarfile.open(path, "w:gz") as tar:
            tar.add(tmp_path / "images")
    else:
        path.write_bytes({"text": b"hello" * 300, "truncated": path.read_bytes()[:9000]}[damage])
    refused(r"cannot read .*images\.tar as an uncompressed tar", root=str(path))


def test_an_unknown_kind_or_split_is_refused(tmp_path):
    refused(r"no dataset\.kind=foldr; dataset\.kind can be: .*Did you mean folder\?", kind="foldr")
    refused(r"dataset=scenes has no dataset\.split=val", name="scenes", kind="scenes", split="val")


@pytest.mark.parametrize("name", ["imagenette", "cifar10", "cifar100"])
def test_no_network_for_a_download_says_what_to_do(name, tmp_path, monkeypatch):
    monkeypatch.setattr("vitsee.network._ask", lambda url, seconds: "no route to host")
    refused(
        rf"dataset={name} must be downloaded, but \S+ cannot be reached \(no route to host\); fetch .* or use "
        r"dataset=scenes, or dataset=folder dataset\.root=PATH",
        name=name,
        kind=name,
        root=str(tmp_path),
    )


def test_a_download_that_fails_says_why(tmp_path, monkeypatch):
    monkeypatch.setattr("vitsee.network._ask", lambda url, seconds: "")
    monkeypatch.setattr(
        "torchvision.datasets.utils.urllib.request.urlopen",
        lambda *_, **__: (_ for _ in ()).throw(OSError("connection reset")),
    )
    refused(
        "download of dataset=cifar10 failed .*connection reset",
        name="cifar10",
        kind="cifar10",
        root=str(tmp_path),
    )


def test_imagenette_that_is_there_needs_no_network(tmp_path):
    write_images(tmp_path / "imagenette2-320" / "val", 6)
    found = datasets.load(Dataset(name="imagenette", kind="imagenette", root=str(tmp_path)), 32)
    assert len(found) == 6


def test_cifar_that_is_there_needs_no_network(tmp_path, monkeypatch):
    from torchvision.datasets import CIFAR10

    base = tmp_path / CIFAR10.base_folder
    base.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (5, 3072), dtype=np.uint8)
    written = {}
    for name, record in {
        "test_batch": {"data": pixels, "labels": [3, 1, 4, 1, 5]},
        "batches.meta": {"label_names": [f"class{i}" for i in range(10)]},
    }.items():
        (base / name).write_bytes(pickle.dumps(record))
        written[name] = hashlib.md5((base / name).read_bytes()).hexdigest()
    monkeypatch.setattr(CIFAR10, "train_list", [])
    monkeypatch.setattr(CIFAR10, "test_list", [["test_batch", written["test_batch"]]])
    monkeypatch.setattr(CIFAR10, "meta", CIFAR10.meta | {"md5": written["batches.meta"]})
    found = datasets.load(Dataset(name="cifar10", kind="cifar10", root=str(tmp_path)), 32)
    assert [found.label(i) for i in range(5)] == [3, 1, 4, 1, 5]
    assert np.array_equal(found.open(2), pixels[2].reshape(3, 32, 32).transpose(1, 2, 0))
    assert found.id(2) == "cifar10/test/00002"


@pytest.fixture
def parquet(tmp_path: Path) -> Path:
    """A local data set of the Hugging Face kind: 6 images with labels in a parquet file."""
    hf = pytest.importorskip("datasets", reason="the extra hf is not installed")
    root = write_images(tmp_path / "images", 6)
    paths = sorted(map(str, root.rglob("*.png")))
    features = hf.Features({"image": hf.Image(), "label": hf.ClassLabel(names=["cat", "dog/wolf"])})
    table = hf.Dataset.from_dict({"image": paths, "label": [0, 0, 0, 1, 1, 1]}, features=features)
    (tmp_path / "hf").mkdir()
    table.to_parquet(tmp_path / "hf" / "train.parquet")
    return tmp_path / "hf"


@pytest.mark.filterwarnings("ignore")
def test_a_hugging_face_data_set_is_streamed_once_and_read_offline(parquet, tmp_path):
    asked = Dataset(name="hf", kind="hf", path=str(parquet), root=str(tmp_path / "cache"), take=5)
    first = datasets.load(asked, 32)
    shutil.rmtree(parquet)
    again = datasets.load(asked, 32)
    assert (len(again), again.fingerprint) == (5, first.fingerprint)
    assert again.classes == ["cat", "dog_wolf"]
    assert again.open(4).size == (48, 48)


@pytest.mark.filterwarnings("ignore")
def test_a_hugging_face_data_set_without_that_split_is_refused(parquet, tmp_path):
    values = {"name": "hf", "kind": "hf", "path": str(parquet), "root": str(tmp_path / "cache")}
    refused(r"cannot stream dataset\.path=.*split=val", **values, split="val")
    assert not list((tmp_path / "cache").glob("*")) if (tmp_path / "cache").exists() else True


def test_a_hugging_face_data_set_needs_a_name():
    refused(
        r"dataset=hf needs the name of a data set: dataset\.path=OWNER/NAME", name="hf", kind="hf"
    )


def test_the_hugging_face_extra_is_asked_for_when_it_is_missing(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    values = {"name": "hf", "kind": "hf", "path": "a/b", "root": str(tmp_path)}
    refused(r"dataset=hf needs the datasets library: pip install 'vitsee\[hf\]'", **values)


def test_real_photographs_load_from_their_tar(test_data):
    images = folder(test_data / "imagenet_sample.tar")
    assert len(images) == 500
    assert len(images.classes) == 500
    assert min(images.open(0).size) == 256
