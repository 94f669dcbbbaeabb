"""Data sets and their loading: order, ids, labels, odd images, bad images, downloads that cannot be."""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import shutil
import tarfile
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from conftest import composed, write_images
from PIL import Image

from vitsee import datasets
from vitsee.batches import Plan
from vitsee.config import Dataset, OnBadImage
from vitsee.errors import UserError
from vitsee.loading import Minibatches, _Decoded

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


def test_images_of_a_plan_are_fresh_when_they_are_drawn_for_the_first_time():
    all_again = Plan(size=48, images=48, batch_size=8, seed=1, repeats=3)
    assert [all_again.fresh(b) for b in range(18)] == [1.0] * 6 + [0.0] * 12
    some_new = Plan(size=100, images=50, batch_size=8, seed=1, repeats=3)
    fresh = sum(some_new.fresh(b) * 8 for b in range(len(some_new)))
    assert fresh == pytest.approx(len(some_new.used(18)))
    assert 50 < fresh < 100


def test_shards_of_a_plan_share_the_work_without_overlap():
    plan, none = Plan(100, 100, 8, 0), torch.zeros(12)
    shares = [plan.todo(none, shard, 5) for shard in range(5)]
    assert sorted(b for share in shares for b in share) == list(range(12))


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


def test_a_16_bit_grey_keeps_its_range(tmp_path):
    ramp = np.arange(256, dtype=np.uint16).reshape(16, 16) * 257
    Image.fromarray(ramp).save(tmp_path / "ramp.png")
    assert np.array_equal(np.asarray(folder(tmp_path).open(0))[..., 0], ramp >> 8)


@pytest.mark.parametrize("damage", ["at a header", "in a header", "in a file", "damaged header"])
def test_a_tar_that_is_cut_off_or_damaged_is_refused_wherever_that_is(damage, tmp_path):
    path = tar_of(write_images(tmp_path / "images", 8), tmp_path / "images.tar")
    with tarfile.open(path) as tar:
        fifth = [member for member in tar if member.isfile()][4]
    content = bytearray(path.read_bytes())
    if damage == "damaged header":
        content[fifth.offset : fifth.offset_data] = b"\xff" * 512
    else:
        ends = {"at a header": 0, "in a header": 100, "in a file": 520}
        del content[fifth.offset + ends[damage] :]
    path.write_bytes(content)
    refused(r"cannot read .*images\.tar as an uncompressed tar", root=str(path))


def test_the_split_of_a_tar_is_a_folder_in_it(tmp_path):
    write_images(tmp_path / "all" / "val", 4)
    write_images(tmp_path / "all" / "train", 6)
    path = tar_of(tmp_path / "all", tmp_path / "all.tar")
    packed, plain = folder(path, split="val"), folder(tmp_path / "all", split="val")
    assert packed.fingerprint == plain.fingerprint
    assert np.array_equal(packed.open(2), plain.open(2))
    refused(
        r"no folder 'vla' .*it has: train, val\. Did you mean val\?", root=str(path), split="vla"
    )


def test_a_split_that_is_not_there_is_never_all_of_the_root(tmp_path):
    write_images(tmp_path / "photos" / "validation", 4)
    there = tmp_path / "photos"
    refused(r"no folder 'val' .*it has: validation\.", root=str(there), split="val")


def test_imagenet_val_may_have_its_classes_in_the_root(images):
    asked = Dataset(name="imagenet_val", kind="folder", root=str(images), split="val")
    assert len(datasets.load(asked, 32)) == 40


def test_hidden_files_and_folders_are_no_images_in_a_folder_or_tar(tmp_path):
    root = write_images(tmp_path / "images", 4)
    write_images(root / ".checkpoints", 2)
    shutil.copy(root / "class0" / "000.png", root / "class0" / "._000.png")
    plain, packed = folder(root), folder(tar_of(root, tmp_path / "images.tar"))
    assert len(plain) == 4
    assert packed.fingerprint == plain.fingerprint


def test_links_are_followed_but_not_in_circles(tmp_path):
    root = write_images(tmp_path / "images", 4)
    os.symlink(write_images(tmp_path / "elsewhere", 2), root / "linked")
    os.symlink(root, root / "class0" / "back")
    os.link(root / "class0" / "000.png", root / "class0" / "twin.png")
    assert len(folder(root)) == 7
    assert len(folder(tar_of(root, tmp_path / "images.tar"))) == 5


def test_the_order_does_not_depend_on_how_the_folder_is_listed():
    entries = [datasets.Entry(n, 1) for n in ("A/1.png", "a/1.png", "a/01.png", "a/IMG1.png")]
    one, two = (datasets.Files(Path(), e, tar=False) for e in (entries, entries[::-1]))
    assert (one.fingerprint, one.classes) == (two.fingerprint, ["A", "a"])


class Dies(datasets.Images):
    """Images of which one ends the process that opens it."""

    classes: ClassVar = ["all"]
    fingerprint = "dies"

    def __len__(self) -> int:
        return 8

    def id(self, index: int) -> str:
        return str(index)

    def label(self, index: int) -> int:
        return 0

    def open(self, index: int) -> Image.Image:
        if index == 5:
            os._exit(1)
        return Image.new("RGB", (32, 32))


def test_a_worker_process_that_dies_is_explained():
    with pytest.raises(UserError, match=r"process that decodes images died .*run\.workers=0"):
        load_all(Dies(), workers=1)


def test_an_error_of_the_preprocessing_is_not_taken_for_a_bad_image(images):
    def wrong(image: Image.Image) -> torch.Tensor:
        raise ValueError("a bug")

    with pytest.raises(ValueError, match="a bug"):
        _Decoded(folder(images), {"model": wrong})[0]


def test_values_that_make_no_sense_are_refused():
    for option, value in (("size", 0), ("resolution", -5), ("seed", -1)):
        values = {"name": "scenes", "kind": "scenes", option: value}
        refused(rf"dataset\.{option} must be at least \d, got {value}", **values)
    refused(r"dataset\.take must be at least 1", name="hf", kind="hf", path="a/b", take=0)
    with pytest.raises(UserError, match="seed must be at least 0, got -1"):
        Plan(8, 8, 4, -1)


@pytest.fixture
def archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small stand-in for Imagenette's archive, in the cache folder; and no network."""
    from torchvision.datasets import Imagenette

    content = write_images(tmp_path / "content" / "val", 6).parent
    (tmp_path / "cache").mkdir()
    path = tmp_path / "cache" / "imagenette2-320.tgz"
    with tarfile.open(path, "w:gz") as tar:
        tar.add(content, arcname="imagenette2-320")
    url = Imagenette._ARCHIVES["320px"][0]
    md5 = hashlib.md5(path.read_bytes()).hexdigest()
    monkeypatch.setitem(Imagenette._ARCHIVES, "320px", (url, md5))
    monkeypatch.setattr("vitsee.network._ask", lambda url, seconds: "no route to host")
    return path


def test_an_archive_that_was_copied_into_the_cache_needs_no_network(archive):
    asked = Dataset(name="imagenette", kind="imagenette", root=str(archive.parent))
    assert len(datasets.load(asked, 32)) == 6
    left = sorted(path.name for path in archive.parent.iterdir())
    assert left == ["imagenette2-320", "imagenette2-320.tgz"]


def test_unpacking_that_was_interrupted_is_done_again(archive, monkeypatch):
    asked = Dataset(name="imagenette", kind="imagenette", root=str(archive.parent))
    with monkeypatch.context() as patched:
        patched.setattr("vitsee.datasets.os.replace", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            datasets.load(asked, 32)
    assert [path.name for path in archive.parent.iterdir()] == ["imagenette2-320.tgz"]
    assert len(datasets.load(asked, 32)) == 6


def test_a_damaged_archive_is_not_unpacked(archive):
    archive.write_bytes(archive.read_bytes()[:-20])
    values = {"name": "imagenette", "kind": "imagenette", "root": str(archive.parent)}
    refused("dataset=imagenette must be downloaded", **values)


def encoded(kind: str) -> dict[str, object]:
    content = io.BytesIO()
    Image.new("RGB", (8, 8)).save(content, kind)
    return {"bytes": content.getvalue(), "path": None}


def hugging_face(path: Path, images: list, labels: list[int]) -> Path:
    hf = pytest.importorskip("datasets", reason="the extra hf is not installed")
    features = hf.Features({"image": hf.Image(), "label": hf.ClassLabel(names=["cat", "dog"])})
    path.mkdir(parents=True)
    table = hf.Dataset.from_dict({"image": images, "label": labels}, features=features)
    table.to_parquet(path / "train.parquet")
    return path


@pytest.mark.filterwarnings("ignore")
def test_a_hugging_face_stream_keeps_every_image_and_guesses_no_label(tmp_path):
    odd = [encoded("PNG"), encoded("MPO"), encoded("JPEG2000"), {"bytes": b"x", "path": None}, None]
    path = hugging_face(tmp_path / "hf", odd, [0, 1, -1, -1, 1])
    cache = tmp_path / "cache"
    found = datasets.load(Dataset(name="hf", kind="hf", path=str(path), root=str(cache)), 32)
    assert found.classes == ["all", "cat", "dog"]
    assert sorted(found.labels) == [0, 0, 1, 2, 2]
    bad = 0
    for i in range(5):
        try:
            found.open(i)
        except OSError:
            bad += 1
    assert bad == 2
    assert [p.suffix for p in cache.iterdir()] == [".tar"]


@pytest.mark.filterwarnings("ignore")
def test_hugging_face_data_sets_do_not_share_a_cache_by_their_names(tmp_path):
    sizes = {"x/y_z": 2, "x_y/z": 3}
    for name, count in sizes.items():
        path = hugging_face(tmp_path / name, [encoded("PNG")] * count, [0] * count)
        asked = Dataset(name="hf", kind="hf", path=str(path), root=str(tmp_path / "cache"))
        assert len(datasets.load(asked, 32)) == count
        refused("the columns are: image, label", **vars(asked) | {"column": "img"})
    asked_split = Dataset(kind="hf", name="hf", path="a/b", split="val")
    asked_config = Dataset(kind="hf", name="hf", path="a/b", config="val")
    assert datasets._asked(asked_split) != datasets._asked(asked_config)


@pytest.mark.filterwarnings("ignore")
def test_a_hugging_face_data_set_sorted_by_class_is_mixed(tmp_path):
    path = hugging_face(tmp_path / "hf", [encoded("PNG")] * 40, [0] * 20 + [1] * 20)
    values = {"name": "hf", "kind": "hf", "path": str(path), "root": str(tmp_path / "cache")}
    assert datasets.load(Dataset(**values, take=10), 32).classes == ["cat", "dog"]


def test_a_folder_at_home_is_named_with_a_tilde(tmp_path):
    assert datasets.at_home(Path.home() / ".cache" / "vitsee") == "~/.cache/vitsee"
    assert datasets.at_home(tmp_path) == str(tmp_path)
