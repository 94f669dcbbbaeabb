"""Data sets and their loading: order, ids, labels, odd images, bad images, downloads that cannot be."""

from __future__ import annotations

import builtins
import errno
import hashlib
import io
import os
import pickle
import shutil
import struct
import tarfile
import warnings
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import PIL
import pytest
import torch
from conftest import composed, write_images
from PIL import Image, ImageCms

from vitsee.data import datasets, downloads, hugging_face, image_files, images, minibatches
from vitsee.data.minibatches import Minibatches, _Framed
from vitsee.data.plan import Plan
from vitsee.data.rgb import rgb
from vitsee.errors import UserError, unknown
from vitsee.options import DatasetOptions, OnBadImage

DATA = {
    "input_size": (3, 32, 32),
    "interpolation": "bicubic",
    "mean": (0.5, 0.5, 0.5),
    "std": (0.5, 0.5, 0.5),
    "crop_pct": 1.0,
    "crop_mode": "center",
}


def folder(root: Path, **changes: object) -> images.Images:
    return datasets.load(
        DatasetOptions(name="folder", kind="folder", root=str(root), **changes), 32
    )


def refused(message: str, **values: object) -> None:
    with pytest.raises(UserError, match=message) as caught:
        datasets.load(DatasetOptions(**({"name": "folder", "kind": "folder"} | values)), 32)
    assert len(str(caught.value).splitlines()) == 1


def tar_of(root: Path, path: Path) -> Path:
    with tarfile.open(path, "w") as tar:
        tar.add(root, arcname=".")
    return path


def load_all(images: images.Images, **changes: object) -> list:
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
        r"has no folder 'vall'; it has: train, val\. Did you mean val\?",
        root=str(tmp_path),
        split="vall",
    )


def test_a_folder_without_splits_is_told_how_to_use_all_of_it(tmp_path):
    root = str(write_images(tmp_path / "pets", 4))
    refused(
        r"has no folder 'test'; it has: .*\. If its images are in no splits: dataset\.split=null$",
        root=root,
        split="test",
    )
    assert len(folder(Path(root), split=None)) == 4


def test_the_fingerprint_changes_with_the_set_of_images_not_with_its_place(tmp_path):
    one = folder(write_images(tmp_path / "one", 8))
    shutil.copytree(tmp_path / "one", tmp_path / "elsewhere")
    assert folder(tmp_path / "elsewhere").fingerprint == one.fingerprint
    os.rename(tmp_path / "elsewhere/class0/000.png", tmp_path / "elsewhere/class1/000.png")
    assert folder(tmp_path / "elsewhere").fingerprint != one.fingerprint


def test_another_set_of_the_same_names_and_sizes_has_another_fingerprint(tmp_path):
    for seed in (0, 1):
        for i in range(200):
            path = tmp_path / f"{seed}" / f"class{i % 2}" / f"{i}.bmp"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (4, 4), (i, seed, 0)).save(path)
    one, other = tmp_path / "0", tmp_path / "1"
    assert folder(one).fingerprint != folder(other).fingerprint
    packed = [folder(tar_of(root, tmp_path / f"{root.name}.tar")) for root in (one, other)]
    assert [folder(one).fingerprint, folder(other).fingerprint] == [p.fingerprint for p in packed]


RED = (200, 40, 90)
COLOURS = {
    "1": ("PNG", (255, 255, 255)),
    "L": ("PNG", (94, 94, 94)),
    "LA": ("PNG", (94, 94, 94)),
    "P": ("PNG", RED),
    "PA": ("TIFF", RED),
    "RGB": ("PNG", RED),
    "RGBA": ("PNG", RED),
    "CMYK": ("TIFF", RED),
    "YCbCr": ("TIFF", RED),
    "LAB": ("TIFF", RED),
}
"""A colour by mode, the format that can hold it, and what it is in RGB."""


@pytest.mark.parametrize("mode", COLOURS)
def test_images_of_every_mode_come_out_as_rgb_by_value(mode, tmp_path):
    kind, expected = COLOURS[mode]
    if mode == "YCbCr" and int(PIL.__version__.split(".")[0]) < 13:
        pytest.skip("Pillow before 13 cannot read uncompressed YCbCr TIFFs")
    image = Image.new("RGB", (9, 7), RED)
    if mode == "LAB":
        image = ImageCms.profileToProfile(
            image, ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), outputMode="LAB"
        )
    elif mode in ("P", "PA"):
        image = image.convert("P", palette=Image.Palette.ADAPTIVE)
        image = image.convert("PA") if mode == "PA" else image
    elif mode == "1":
        image = Image.new("1", (9, 7), 1)
    else:
        image = image.convert(mode)
    image.save(tmp_path / f"x.{kind.lower()}", kind)
    with Image.open(tmp_path / f"x.{kind.lower()}") as found:
        assert found.mode == mode
    opened = folder(tmp_path).open(0)
    assert (opened.mode, opened.size) == ("RGB", (9, 7))
    assert (
        np.abs(np.asarray(opened).astype(int) - expected).max() <= 2
    )  # rounded in the other space


@pytest.mark.parametrize("mode", ["La", "RGBa", "RGBX", "HSV"])
def test_modes_that_a_decoder_may_give_come_out_as_rgb_by_value(mode):
    image = Image.new("RGBA", (4, 4), (*RED, 128))
    made = image.convert("LA").convert("La") if mode == "La" else image.convert(mode)
    expected = (94,) * 3 if mode == "La" else RED
    assert np.abs(np.asarray(rgb(made)).astype(int) - expected).max() <= 4


GREYS = np.arange(256, dtype=np.uint16).reshape(16, 16) * 257
"""Every grey, in 16 bits."""


def tiff(greys: np.ndarray, bits: int, *, white: int = 1, kind: int = 1) -> bytes:
    """A TIFF of greys. white: PhotometricInterpretation, 0 if 0 is white. kind: SampleFormat."""
    order, content = (">" if greys.dtype.byteorder == ">" else "<"), greys.tobytes()
    if bits == 12:
        pairs = greys.reshape(-1, 2).astype(int)
        packed = (pairs[:, 0] >> 4, (pairs[:, 0] & 15) << 4 | pairs[:, 1] >> 8, pairs[:, 1] & 255)
        content = np.stack(packed, 1).astype(np.uint8).tobytes()
    height, width = greys.shape
    tags = {256: width, 257: height, 258: bits, 259: 1, 262: white, 273: 8, 277: 1, 278: height}
    tags |= {279: len(content), 339: kind}
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", 8 + len(content))
    listed = [struct.pack(f"{order}HHII", tag, 4, 1, value) for tag, value in tags.items()]
    return head + content + struct.pack(f"{order}H", len(tags)) + b"".join(listed) + bytes(4)


def pgm(greys: np.ndarray, most: int) -> bytes:
    height, width = greys.shape
    return f"P5 {width} {height} {most}\n".encode() + greys.astype(">u2").tobytes()


SIXTEEN_BITS = {
    "TIFF": tiff(GREYS, 16),
    "big-endian TIFF": tiff(GREYS.astype(">u2"), 16),
    "TIFF whose 0 is white": tiff(65535 - GREYS, 16, white=0),
    "TIFF of 12 bits": tiff(GREYS >> 4, 12),
    "PGM": pgm(GREYS, 65535),
    "PGM of 10 bits": pgm(GREYS >> 6, 1023),
}


@pytest.mark.parametrize("content", SIXTEEN_BITS.values(), ids=SIXTEEN_BITS.keys())
def test_greys_of_more_than_8_bits_keep_their_range_in_every_format(content, tmp_path):
    (tmp_path / "x.tif").write_bytes(content)
    opened = np.asarray(folder(tmp_path).open(0)).astype(int)
    assert np.abs(opened - (GREYS >> 8)[..., None]).max() <= 1
    assert (opened.min(), opened.max()) == (0, 255)


def test_a_16_bit_png_that_is_read_as_mode_I_is_the_same_image():
    older = Image.fromarray(GREYS.astype(np.int32))
    older.format = "PNG"
    assert np.array_equal(np.asarray(rgb(older))[..., 0], GREYS >> 8)


WITHOUT_WHITE = {
    "32-bit integers between 0 and 65535": tiff(GREYS.astype(np.int32), 32, kind=2),
    "32-bit integers between -1 and 254": tiff((GREYS >> 8).astype(np.int16) - 1, 16, kind=2),
    "floats between 0 and 1": tiff((GREYS / 65535).astype(np.float32), 32, kind=3),
    "signed integers do not define": tiff((GREYS >> 9).astype(np.int8), 8, kind=2),
}


@pytest.mark.parametrize("said", WITHOUT_WHITE)
def test_numbers_that_do_not_say_what_is_white_are_refused_by_name(said, tmp_path):
    root = write_images(tmp_path / "images", 16)
    (root / "class0" / "002.png").write_bytes(WITHOUT_WHITE[said])
    with pytest.raises(UserError, match=rf"cannot decode image class0/002\.png .*{said}"):
        load_all(folder(root))
    assert left_out(folder(root)) == ["class0/002.png"]


def test_greys_saved_as_the_refusal_says_are_read(tmp_path):
    root = tmp_path / "x.tif"
    root.write_bytes(WITHOUT_WHITE["floats between 0 and 1"])
    with pytest.raises(ValueError, match="save greys as unsigned 8-bit or 16-bit integers"):
        folder(tmp_path).open(0)
    with Image.open(root) as image:
        greys = np.asarray(image)
    Image.fromarray((greys * 65535).astype(np.uint16)).save(root)
    assert np.array_equal(np.asarray(folder(tmp_path).open(0))[..., 0], GREYS >> 8)


def test_a_line_of_pixels_and_a_program_are_no_images(tmp_path):
    Image.new("L", (1, 2000)).save(tmp_path / "a.png")
    Image.new("RGB", (8, 8)).save(tmp_path / "b.png", "EPS")
    images = folder(tmp_path)
    with pytest.raises(ValueError, match="an image of 1 x 2000 pixels cannot be resized"):
        images.open(0)
    with pytest.raises(ValueError, match="EPS is a program, not an image"):
        images.open(1)


def test_transparency_of_any_kind_is_dropped_without_a_warning(tmp_path):
    image = Image.new("RGB", (8, 8), RED).convert("P", palette=Image.Palette.ADAPTIVE)
    image.save(tmp_path / "a.png", transparency=bytes([7, 9]))
    Image.new("L", (8, 8), 9).save(tmp_path / "b.png", transparency=9)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        images = [folder(tmp_path).open(i) for i in range(2)]
    assert [image.getpixel((0, 0)) for image in images] == [RED, (9, 9, 9)]


# --- what is a bad image and what is not -----------------------------------------------------------


def left_out(images: images.Images, workers: int = 0) -> list[str]:
    """Ids of the images that are passed over in one minibatch of all, with on_bad_image=skip."""
    plan = Plan(len(images), len(images), len(images), seed=0)
    how = {"device": torch.device("cpu"), "workers": workers, "on_bad_image": OnBadImage.skip}
    (batch,) = Minibatches(images, {"model": DATA}, plan, [0], **how)
    return sorted(images.id(i) for i in batch.skipped)


def failing(error: BaseException, monkeypatch) -> None:
    """Of the images, 002.png's decoder raises this."""
    real = image_files.Files.open

    def opened(self, index: int) -> Image.Image:
        if self.id(index).endswith("002.png"):
            raise error
        return real(self, index)

    monkeypatch.setattr(image_files.Files, "open", opened)


DECODERS_RAISE = [
    NotImplementedError("DDS"),
    RuntimeError("AVIF"),
    AttributeError("SPIDER"),
    SyntaxError("PNG"),
    struct.error("BLP"),
    EOFError(),
    KeyError("x"),
    RecursionError("x"),
    zlib.error("x"),
    OSError("broken data stream"),
    DeprecationWarning("a warning as an error"),
    type("BLPFormatError", (NotImplementedError,), {})("x"),
]


@pytest.mark.parametrize("error", DECODERS_RAISE, ids=lambda error: type(error).__name__)
def test_whatever_a_decoder_raises_is_the_fault_of_that_file(error, images, monkeypatch):
    failing(error, monkeypatch)
    with pytest.raises(UserError, match=r"cannot decode image class0/002\.png"):
        load_all(folder(images))
    assert left_out(folder(images)) == ["class0/002.png"]


def closed(number: int, monkeypatch) -> None:
    """The system does not open 002.png and says why by this number."""
    real = builtins.open

    def opened(path, *words, **named):
        if str(path).endswith("002.png"):
            raise OSError(number, os.strerror(number), path)
        return real(path, *words, **named)

    monkeypatch.setattr(builtins, "open", opened)


SYSTEM = [errno.EMFILE, errno.EIO, errno.ESTALE, errno.ENOENT, errno.ENOTCONN, errno.EISDIR]


@pytest.mark.parametrize("number", SYSTEM, ids=errno.errorcode.get)
def test_a_file_system_that_fails_stops_the_run_and_skips_nothing(number, images, monkeypatch):
    closed(number, monkeypatch)
    said = rf"cannot read image class0/002\.png \({os.strerror(number)}\): the system failed"
    with pytest.raises(UserError, match=said):
        left_out(folder(images))


def test_a_file_system_that_fails_in_a_worker_process_stops_the_run(images, monkeypatch):
    closed(errno.EIO, monkeypatch)
    with pytest.raises(UserError, match=r"^cannot read image class0/002\.png \(Input/output error"):
        left_out(folder(images), workers=1)


def test_want_of_memory_stops_the_run_and_skips_nothing(images, monkeypatch):
    failing(MemoryError(), monkeypatch)
    with pytest.raises(UserError, match=r"not enough memory to decode image class0/002\.png"):
        left_out(folder(images))


def test_ctrl_c_in_a_decoder_is_no_bad_image(images, monkeypatch):
    failing(KeyboardInterrupt(), monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        left_out(folder(images))


def test_a_file_that_is_removed_while_it_is_used_stops_the_run(tmp_path):
    images = folder(write_images(tmp_path / "images", 8))
    (tmp_path / "images/class0/002.png").unlink()
    with pytest.raises(UserError, match=r"cannot read image class0/002\.png \(No such file"):
        left_out(images)


def test_links_that_led_nowhere_from_the_first_are_bad_images(tmp_path):
    root = write_images(tmp_path / "images", 16)
    os.symlink("nowhere", root / "class0" / "a.png")
    os.symlink("b.png", root / "class0" / "b.png")
    assert left_out(folder(root)) == ["class0/a.png", "class0/b.png"]


@pytest.mark.parametrize("readable", [True, False])
def test_a_closed_file_is_a_bad_image_but_a_closed_folder_is_none(readable, tmp_path, monkeypatch):
    images = folder(write_images(tmp_path / "images", 8))
    closed(errno.EACCES, monkeypatch)
    monkeypatch.setattr(os, "access", lambda path, how: readable)
    if readable:
        assert left_out(images) == ["class0/002.png"]
    else:
        with pytest.raises(UserError, match=r"cannot read image class0/002\.png \(Permission den"):
            left_out(images)


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
        UserError, match="minibatch 0 has only 3 images that can be decoded, but needs at least 4"
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
    refused("dataset=folder needs a folder or .tar of images: dataset.root=PATH")
    refused(r"photoss does not exist\. Did you mean photos\?", root=str(tmp_path / "photoss"))
    refused(
        r"dataset=imagenet_val needs .* \(or an environment variable, if `vitsee list datasets` shows one",
        name="imagenet_val",
    )


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


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            {"resolution": 64},
            "dataset.resolution=64, which is for dataset=contours or lines or scenes:",
        ),
        ({"size": 10}, "dataset.size=10, which is for dataset=contours or lines or scenes:"),
        ({"seed": 3}, "dataset.seed=3, which is for dataset=contours or lines or scenes or hf:"),
        ({"take": 5}, "dataset.take=5, which is for dataset=hf:"),
        ({"path": "a/b"}, "dataset.path=a/b, which is for dataset=hf:"),
        ({"name": "scenes", "kind": "scenes", "root": "photos"}, "dataset.root=photos, .*folder"),
    ],
)
def test_an_option_that_the_data_set_would_not_read_is_refused(given, said, images):
    refused(said, **({"root": str(images)} | given))


@pytest.mark.parametrize("name", ["imagenette", "cifar10", "cifar100"])
def test_no_network_for_a_download_says_what_to_do(name, tmp_path, monkeypatch):
    monkeypatch.setattr("vitsee.io.reachable._ask", lambda url, seconds: "no route to host")
    refused(
        rf"dataset={name} must be downloaded, but \S+ cannot be reached \(no route to host\); download .* or use "
        r"dataset=scenes, or dataset=folder dataset\.root=PATH",
        name=name,
        kind=name,
        root=str(tmp_path),
    )


def test_a_download_that_fails_says_why(tmp_path, monkeypatch):
    monkeypatch.setattr("vitsee.io.reachable._ask", lambda url, seconds: "")
    monkeypatch.setattr(
        "torchvision.datasets.utils.urllib.request.urlopen",
        lambda *_, **__: (_ for _ in ()).throw(OSError("connection reset")),
    )
    refused(
        "downloading dataset=cifar10 failed .*connection reset",
        name="cifar10",
        kind="cifar10",
        root=str(tmp_path),
    )


def test_imagenette_that_is_there_needs_no_network(tmp_path):
    write_images(tmp_path / "imagenette2-320" / "val", 6)
    found = datasets.load(
        DatasetOptions(name="imagenette", kind="imagenette", root=str(tmp_path)), 32
    )
    assert len(found) == 6


def test_cifar_that_is_there_needs_no_network(tmp_path, monkeypatch):
    cifar(tmp_path, monkeypatch)
    found = datasets.load(DatasetOptions(name="cifar10", kind="cifar10", root=str(tmp_path)), 32)
    assert [found.label(i) for i in range(5)] == [3, 1, 4, 1, 5]
    assert np.array_equal(found.open(2), PIXELS[2].reshape(3, 32, 32).transpose(1, 2, 0))
    assert found.id(2) == "cifar10/test/00002"


PIXELS = np.random.default_rng(0).integers(0, 256, (5, 3072), dtype=np.uint8)


def cifar(root: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A small stand-in for CIFAR-10 in this folder; the names of its files."""
    from torchvision.datasets import CIFAR10

    base = root / CIFAR10.base_folder
    base.mkdir()
    written = {}
    for name, record in {
        "test_batch": {"data": PIXELS, "labels": [3, 1, 4, 1, 5]},
        "batches.meta": {"label_names": [f"class{i}" for i in range(10)]},
    }.items():
        (base / name).write_bytes(pickle.dumps(record))
        written[name] = hashlib.md5((base / name).read_bytes()).hexdigest()
    monkeypatch.setattr(CIFAR10, "train_list", [])
    monkeypatch.setattr(CIFAR10, "test_list", [["test_batch", written["test_batch"]]])
    monkeypatch.setattr(CIFAR10, "meta", CIFAR10.meta | {"md5": written["batches.meta"]})
    return list(written)


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
    asked = DatasetOptions(
        name="hf", kind="hf", path=str(parquet), root=str(tmp_path / "cache"), take=5
    )
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
    Image.fromarray(GREYS).save(tmp_path / "ramp.png")
    assert np.array_equal(np.asarray(folder(tmp_path).open(0))[..., 0], GREYS >> 8)


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


def packed_as(path: Path, names: list[tuple[str, Path]]) -> Path:
    """A tar of these files under these names."""
    with tarfile.open(path, "w") as tar:
        for name, file in names:
            tar.add(file, name)
    return path


def test_of_members_of_one_name_the_last_counts_as_when_a_tar_is_unpacked(tmp_path):
    root = write_images(tmp_path / "images", 8)
    before = write_images(tmp_path / "before", 2, seed=1) / "class0" / "000.png"
    now = [(str(path.relative_to(root)), path) for path in sorted(root.glob("*/*"))]
    packed = folder(packed_as(tmp_path / "updated.tar", [("./class0/000.png", before), *now]))
    assert packed.fingerprint == folder(root).fingerprint
    assert np.array_equal(packed.open(0), folder(root).open(0))


@pytest.mark.parametrize("way", ["/{}/{}", "././{}/{}", "{}//{}", "{}/./{}", "x/../{}/{}"])
def test_names_in_a_tar_are_those_that_unpacking_would_give(way, tmp_path):
    root = write_images(tmp_path / "images", 8)
    names = [(way.format(p.parent.name, p.name), p) for p in root.glob("*/*")]
    packed = folder(packed_as(tmp_path / "images.tar", names))
    assert packed.fingerprint == folder(root).fingerprint


def test_tars_joined_by_cat_are_refused_as_the_second_would_be_left_out(tmp_path):
    path = tar_of(write_images(tmp_path / "images", 8), tmp_path / "images.tar")
    path.write_bytes(path.read_bytes() * 2)
    refused(
        r"cannot read .*images\.tar .*more data follows its end .*joined with cat", root=str(path)
    )


def test_the_split_of_a_tar_is_a_folder_in_it(tmp_path):
    write_images(tmp_path / "all" / "val", 4)
    write_images(tmp_path / "all" / "train", 6)
    path = tar_of(tmp_path / "all", tmp_path / "all.tar")
    packed, plain = folder(path, split="val"), folder(tmp_path / "all", split="val")
    assert packed.fingerprint == plain.fingerprint
    assert np.array_equal(packed.open(2), plain.open(2))
    refused(
        r"no folder 'vla'; it has: train, val\. Did you mean val\?", root=str(path), split="vla"
    )


def test_a_split_that_is_not_there_is_never_all_of_the_root(tmp_path):
    write_images(tmp_path / "photos" / "validation", 4)
    there = tmp_path / "photos"
    refused(r"no folder 'val'; it has: validation\.", root=str(there), split="val")


def test_imagenet_val_may_have_its_classes_in_the_root(images):
    words = ["dataset=imagenet_val", f"dataset.root={images}"]
    asked = composed(*words).dataset
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


def test_folders_that_link_to_each_other_are_read_once_along_each_way(tmp_path):
    for name, other in {"a": "b", "b": "a"}.items():
        write_images(tmp_path / name, 1, seed=ord(name))
        os.symlink(tmp_path / other, tmp_path / name / "to")
    images = folder(tmp_path)
    found = [images.id(i) for i in range(len(images))]
    assert found == [f"{way}/class0/000.png" for way in ("a", "a/to", "b", "b/to")]


def test_a_link_to_what_is_above_the_folder_that_a_link_led_to_is_not_followed(tmp_path):
    write_images(tmp_path / "outside/deep", 2)
    os.symlink(tmp_path / "outside", tmp_path / "outside/deep/up")
    (tmp_path / "root").mkdir()
    os.symlink(tmp_path / "outside/deep", tmp_path / "root/in")
    assert len(folder(tmp_path / "root")) == 2


def test_several_links_to_one_folder_are_classes_of_their_own(tmp_path):
    write_images(tmp_path / "outside", 2)
    (tmp_path / "root").mkdir()
    for name in ("cat", "dog"):
        os.symlink(tmp_path / "outside/class0", tmp_path / "root" / name)
    assert folder(tmp_path / "root").classes == ["cat", "dog"]


@pytest.mark.parametrize("shape", ["a ladder", "all to all"])
def test_links_that_make_billions_of_a_few_images_are_refused(shape, tmp_path):
    count = 40 if shape == "a ladder" else 12
    for i in range(count):
        write_images(tmp_path / f"{i}", 1)
    for i in range(count):
        to = [i + 1, i + 1] if shape == "a ladder" else [*range(i), *range(i + 1, count)]
        for number, j in enumerate(to):
            os.symlink(tmp_path / f"{j}", tmp_path / f"{i}" / f"to{number}")
    with pytest.raises(UserError, match=r"nested links lead to .* along more than 1000 paths") as e:
        folder(tmp_path)
    assert len(str(e.value).splitlines()) == 1
    for link in [path for path in tmp_path.glob("*/*") if path.is_symlink()]:
        link.unlink()
    assert len(folder(tmp_path)) == count


@pytest.mark.parametrize("kind", ["pipe", "device", "link to a pipe"])
def test_what_opening_would_wait_for_is_refused_as_a_data_set(kind, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    os.symlink(tmp_path / "pipe", tmp_path / "link")
    path = {"pipe": tmp_path / "pipe", "device": "/dev/zero", "link to a pipe": tmp_path / "link"}
    said = "is neither a folder nor a file: it is a pipe"
    refused(rf"dataset\.root=.* {said}", root=str(path[kind]))
    refused(rf"dataset\.path=.* {said}", name="hf", kind="hf", path=str(path[kind]))


def test_the_order_does_not_depend_on_how_the_folder_is_listed():
    entries = [image_files.Entry(n, 1) for n in ("A/1.png", "a/1.png", "a/01.png", "a/IMG1.png")]
    one, two = (image_files.Files(Path(), e, tar=False) for e in (entries, entries[::-1]))
    assert (one.entries, one.classes) == (two.entries, ["A", "a"])


class Dies(images.Images):
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
        _Framed(folder(images), {"model": wrong})[0]


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"cpu.max": "150000 100000"}, 1),
        ({"cpu.max": "max 100000"}, None),
        ({"cpu/cpu.cfs_quota_us": "100000", "cpu/cpu.cfs_period_us": "100000"}, 1),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, None),
        ({"cpu.max": "50000 100000"}, 1),
        ({}, None),
    ],
)
def test_a_container_s_quota_limits_the_number_of_cores(files, expected, tmp_path, monkeypatch):
    (tmp_path / "cpu").mkdir()
    for name, text in files.items():
        (tmp_path / name).write_text(text + "\n")
    monkeypatch.setattr(minibatches, "CGROUP", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)), raising=False)
    assert minibatches.cores() == (expected or 8)


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
    monkeypatch.setattr("vitsee.io.reachable._ask", lambda url, seconds: "no route to host")
    return path


def test_an_archive_that_was_copied_into_the_cache_needs_no_network(archive):
    asked = DatasetOptions(name="imagenette", kind="imagenette", root=str(archive.parent))
    assert len(datasets.load(asked, 32)) == 6
    left = sorted(path.name for path in archive.parent.iterdir())
    assert left == ["imagenette2-320", "imagenette2-320.tgz"]


def test_unpacking_that_was_interrupted_is_done_again(archive, monkeypatch):
    asked = DatasetOptions(name="imagenette", kind="imagenette", root=str(archive.parent))
    with monkeypatch.context() as patched:
        patched.setattr("vitsee.data.downloads.os.replace", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            datasets.load(asked, 32)
    assert [path.name for path in archive.parent.iterdir()] == ["imagenette2-320.tgz"]
    assert len(datasets.load(asked, 32)) == 6


def test_two_processes_that_unpack_at_once_both_have_the_images(archive, monkeypatch):
    asked = DatasetOptions(name="imagenette", kind="imagenette", root=str(archive.parent))
    real = downloads._unpack

    def second(archive: Path, folder: Path) -> None:
        real(archive, folder)  # the other process is a little faster
        real(archive, folder)

    monkeypatch.setattr(downloads, "_unpack", second)
    assert len(datasets.load(asked, 32)) == 6
    left = sorted(path.name for path in archive.parent.iterdir())
    assert left == ["imagenette2-320", "imagenette2-320.tgz"]


def test_a_folder_that_lacks_the_split_is_told_to_be_removed_before_anything_is_fetched(archive):
    there = archive.parent / "imagenette2-320"
    there.mkdir()
    asked = {"name": "imagenette", "kind": "imagenette", "root": str(archive.parent)}
    refused(
        r"imagenette2-320 has no folder 'val': remove it, and it will be unpacked again", **asked
    )
    there.rmdir()
    assert len(datasets.load(DatasetOptions(**asked), 32)) == 6


def test_cifar_is_unpacked_whole_or_not_at_all(tmp_path, monkeypatch):
    from torchvision.datasets import CIFAR10

    (tmp_path / "content").mkdir()
    lists = cifar(tmp_path / "content", monkeypatch)
    archive = tmp_path / "cache" / CIFAR10.filename
    archive.parent.mkdir()
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(tmp_path / "content" / CIFAR10.base_folder, arcname=CIFAR10.base_folder)
    monkeypatch.setattr(CIFAR10, "tgz_md5", hashlib.md5(archive.read_bytes()).hexdigest())
    asked = DatasetOptions(name="cifar10", kind="cifar10", root=str(archive.parent))
    with monkeypatch.context() as patched:
        patched.setattr("vitsee.data.downloads.os.replace", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            datasets.load(asked, 32)
    assert [path.name for path in archive.parent.iterdir()] == [CIFAR10.filename]
    assert len(datasets.load(asked, 32)) == 5
    damaged = archive.parent / CIFAR10.base_folder / lists[0]
    damaged.write_bytes(b"damaged")
    assert len(datasets.load(asked, 32)) == 5


def test_a_damaged_archive_is_not_unpacked(archive):
    archive.write_bytes(archive.read_bytes()[:-20])
    values = {"name": "imagenette", "kind": "imagenette", "root": str(archive.parent)}
    refused("dataset=imagenette must be downloaded", **values)


def encoded(kind: str) -> dict[str, object]:
    content = io.BytesIO()
    Image.new("RGB", (8, 8)).save(content, kind)
    return {"bytes": content.getvalue(), "path": None}


def saved_for_hub(
    path: Path, images: list, labels: list[int], names: Sequence[str] | None = ("cat", "dog")
) -> Path:
    hf = pytest.importorskip("datasets", reason="the extra hf is not installed")
    label = hf.ClassLabel(names=list(names)) if names else hf.Value("int64")
    features = hf.Features({"image": hf.Image(), "label": label})
    path.mkdir(parents=True)
    table = hf.Dataset.from_dict({"image": images, "label": labels}, features=features)
    table.to_parquet(path / "train.parquet")
    return path


@pytest.mark.filterwarnings("ignore")
def test_a_hugging_face_stream_keeps_every_image_and_guesses_no_label(tmp_path):
    odd = [encoded("PNG"), encoded("MPO"), encoded("JPEG2000"), {"bytes": b"x", "path": None}, None]
    path = saved_for_hub(tmp_path / "hf", odd, [0, 1, -1, -1, 1])
    cache = tmp_path / "cache"
    found = datasets.load(DatasetOptions(name="hf", kind="hf", path=str(path), root=str(cache)), 32)
    assert found.classes == ["cat", "dog"]
    assert sorted(found.labels) == [-1, -1, 0, 1, 1]
    bad = 0
    for i in range(5):
        try:
            found.open(i)
        except OSError:
            bad += 1
    assert bad == 2
    assert [p.suffix for p in cache.iterdir()] == [".tar"]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("names", "classes"),
    [
        (["tench, fish", "goldfish", "shark"], ["tench_ fish", "goldfish", "shark"]),
        (["a/b", "a_b", "c"], ["a_b 0", "a_b 1", "c"]),
        (None, ["0", "1", "2"]),
    ],
    ids=["names that are not in the order of the alphabet", "names that collide", "numbers"],
)
def test_labels_of_a_hugging_face_stream_are_those_of_the_data_set(names, classes, tmp_path):
    colours = [
        {"bytes": content(Image.new("RGB", (8, 8), (40 * k, 0, 0))), "path": None} for k in range(3)
    ]
    path = saved_for_hub(tmp_path / "hf", colours * 2, [0, 1, 2] * 2, names)
    asked = DatasetOptions(name="hf", kind="hf", path=str(path), root=str(tmp_path / "cache"))
    found = datasets.load(asked, 32)
    assert found.classes == classes
    assert sorted(found.labels) == [0, 0, 1, 1, 2, 2]
    assert [found.open(i).getpixel((0, 0))[0] // 40 for i in range(6)] == found.labels


def test_folders_are_classes_in_the_order_of_other_libraries_and_images_in_natural_order(tmp_path):
    from torchvision.datasets import ImageFolder

    found = {}
    for names in (("1", "2", "10", "Banana", "apple"), ("n01", "n02")):
        root = tmp_path / names[0]
        for name in names:
            (root / name).mkdir(parents=True)
            Image.new("RGB", (8, 8)).save(root / name / "a.png")
        asked = DatasetOptions(name="folder", kind="folder", root=str(root))
        found[names[0]] = datasets.load(asked, 32)
        assert found[names[0]].classes == ImageFolder(str(root)).classes
    entries = [entry.name for entry in found["1"].entries]
    assert entries == ["1/a.png", "2/a.png", "10/a.png", "apple/a.png", "Banana/a.png"]
    assert [found["1"].label(i) for i in range(5)] == [0, 2, 1, 4, 3]
    (tmp_path / "1" / "caf\udce9").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "1" / "caf\udce9" / "a.png")
    odd = datasets.load(DatasetOptions(name="f", kind="folder", root=str(tmp_path / "1")), 32)
    assert odd.fingerprint != found["1"].fingerprint
    assert found["1"].order  # so its identity is not that of labels in natural order
    assert not found["n01"].order


def content(image: Image.Image, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG", **options)
    return file.getvalue()


@pytest.mark.filterwarnings("ignore")
def test_hugging_face_data_sets_do_not_share_a_cache_by_their_names(tmp_path):
    sizes = {"x/y_z": 2, "x_y/z": 3}
    for name, count in sizes.items():
        path = saved_for_hub(tmp_path / name, [encoded("PNG")] * count, [0] * count)
        asked = DatasetOptions(name="hf", kind="hf", path=str(path), root=str(tmp_path / "cache"))
        assert len(datasets.load(asked, 32)) == count
        refused("the columns are: image, label", **vars(asked) | {"column": "img"})
    asked_split = DatasetOptions(kind="hf", name="hf", path="a/b", split="val")
    asked_config = DatasetOptions(kind="hf", name="hf", path="a/b", config="val")
    assert hugging_face._cache_name(asked_split) != hugging_face._cache_name(asked_config)


@pytest.mark.filterwarnings("ignore")
def test_a_hugging_face_data_set_sorted_by_class_is_mixed(tmp_path):
    path = saved_for_hub(tmp_path / "hf", [encoded("PNG")] * 40, [0] * 20 + [1] * 20)
    values = {"name": "hf", "kind": "hf", "path": str(path), "root": str(tmp_path / "cache")}
    assert datasets.load(DatasetOptions(**values, take=10), 32).classes == ["cat", "dog"]


def test_a_folder_at_home_is_named_with_a_tilde(tmp_path):
    assert downloads.at_home(Path.home() / ".cache" / "vitsee") == "~/.cache/vitsee"
    assert downloads.at_home(tmp_path) == str(tmp_path)


def test_a_split_that_is_not_there_names_a_few_of_very_many_folders(tmp_path):
    for name in ("val", *(f"n{i:04d}" for i in range(499))):
        (tmp_path / name).mkdir()
    with pytest.raises(UserError) as caught:
        folder(tmp_path, split="vall")
    said = str(caught.value).partition("it has: ")[2]
    assert said.startswith("val, n0000, n0001, ")  # the nearest first
    assert "n0008 … and 490 more. Did you mean val? If" in said


def test_a_short_list_of_what_exists_is_told_in_full():
    names = [f"name{i}" for i in range(100)]
    said = str(unknown("there is no x", "name7x", names, "there are"))
    assert said == f"there is no x; there are: {', '.join(sorted(names))}. Did you mean name7?"
