"""Images from elsewhere: objects of Python, WebDataset shards, and Hugging Face data sets on disk."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import composed, write_images
from PIL import Image
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, TensorDataset
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

import vitsee
from vitsee.data.given import Given, as_image

pytestmark = pytest.mark.usefixtures("undrawn")

QUIET = ("run.device=cpu", "run.workers=0", "run.progress=false", "batch_size=8")
SMALL = ("model=vit_nano", "analysis.layers=[blocks.0,norm]")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 24 images in two classes."""
    return write_images(tmp_path_factory.mktemp("photos"), 24)


@pytest.fixture(scope="module")
def folder(photos: Path) -> ImageFolder:
    """The same as a torch Dataset."""
    return ImageFolder(str(photos))


@pytest.fixture
def measure(undrawn, tmp_path):
    """`vitsee.run_experiment` of CKA of a small model."""

    def call(*words: str, **options: Any) -> vitsee.Result:
        outputs = {"run.outputs": tmp_path / "outputs"}
        return vitsee.run_experiment("analysis=cka", *SMALL, *QUIET, *words, **outputs, **options)

    return call


def pixels(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


class Mapped(Dataset):
    """A data set whose items a function makes of an image and its label."""

    def __init__(self, source: ImageFolder, make: Callable[[Image.Image, int], Any]) -> None:
        self.source, self.make = source, make

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Any:
        return self.make(*self.source[index])


FORMS: dict[str, Callable[[ImageFolder], Any]] = {
    "images with labels": lambda folder: folder,
    "images alone": lambda folder: Mapped(folder, lambda image, label: image),
    "a list": lambda folder: [folder[i] for i in range(len(folder))],
    "a loader": lambda folder: DataLoader(folder, batch_size=7, shuffle=True),
    "bytes as a tensor": lambda folder: Mapped(folder, lambda image, label: (pixels(image), label)),
    "floats": lambda folder: Mapped(
        folder, lambda image, label: (v2.functional.to_dtype(pixels(image), scale=True), label)
    ),
    "all at once": lambda folder: TensorDataset(
        torch.stack([pixels(folder[i][0]) for i in range(len(folder))]), torch.arange(len(folder))
    ),
    "an array": lambda folder: Mapped(folder, lambda image, label: np.array(image)),
    "a mapping": lambda folder: Mapped(
        folder, lambda image, label: {"id": "a", "label": label, "image": image}
    ),
    "a part": lambda folder: Subset(folder, range(len(folder))),
}


def test_labels_are_those_of_the_items_whatever_the_data_set_lists(photos):
    plain, moved = (
        ImageFolder(str(photos), target_transform=one) for one in (None, lambda label: label + 7)
    )
    assert [Given(plain, "photos").label(i) for i in (0, 23)] == [0, 1]
    found = Given(moved, "photos")
    assert [found.label(i) for i in (0, 23)] == [7, 8]
    assert found.classes == [str(i) for i in range(9)]


@pytest.fixture(scope="module")
def expected(photos, tmp_path_factory) -> bytes:
    """The table of the folder itself."""
    result = vitsee.run_experiment(
        *("analysis=cka", *SMALL, *QUIET, "dataset=folder", f"dataset.root={photos}"),
        f"run.outputs={tmp_path_factory.mktemp('expected')}",
    )
    return (result.path / "cka.csv").read_bytes()


@pytest.mark.parametrize("form", FORMS)
def test_a_data_set_of_any_form_gives_what_its_files_give(form, folder, measure, expected):
    result = measure(dataset=FORMS[form](folder))
    assert (result.path / "cka.csv").read_bytes() == expected
    name = {"images with labels": "ImageFolder", "a list": "given"}.get(form, result.labels.dataset)
    assert result.labels.dataset == name
    assert result.made_with["passes"][0]["image_ids"][0].startswith(f"{name}/0000")


def test_a_data_set_may_be_named(folder, measure):
    named = {"dataset.name": "pets", "dataset": folder, "batch_size": 8}
    assert measure(**named).labels.dataset == "pets"


def test_a_hugging_face_data_set_is_read_in_place(folder, measure, expected, tmp_path):
    datasets = pytest.importorskip("datasets")
    columns = {"image": [folder[i][0] for i in range(24)], "label": folder.targets}
    made = datasets.Dataset.from_dict(columns).cast_column("image", datasets.Image())
    assert (measure(dataset=made).path / "cka.csv").read_bytes() == expected


def test_labels_and_classes_are_those_of_the_data_set(folder):
    of_folder = Given(folder, "given")
    assert of_folder.classes == ["class0", "class1"]
    assert [of_folder.label(i) for i in range(24)] == folder.targets
    numbered = Given(FORMS["a mapping"](folder), "given")
    assert numbered.classes == ["0", "1"]
    assert [numbered.label(i) for i in (0, 23)] == [0, 1]
    assert Given(FORMS["images alone"](folder), "given").classes == ["0"]


def test_the_image_and_its_label_are_read_together(folder):
    read = []
    source = Mapped(folder, lambda image, label: (read.append(label), (image, label))[1])
    given = Given(source, "given")
    read.clear()
    given.open(3)
    assert given.label(3) == 0
    assert len(read) == 1


def test_splits_are_given_as_a_mapping(folder, measure):
    halves = {"train": Subset(folder, range(0, 24, 2)), "test": Subset(folder, range(1, 24, 2))}
    result = measure("dataset.split=test", dataset=halves)
    assert result.made_with["passes"][0]["image_ids"][0].startswith("Subset/test/")
    with pytest.raises(vitsee.UserError, match=r"has no dataset.split=val; it has: test, train"):
        measure("dataset.split=val", dataset=halves)
    with pytest.raises(vitsee.UserError, match=r"only as a mapping, such as dataset=\{'train': …"):
        measure("dataset.split=test", dataset=folder)


class Stream(IterableDataset):
    def __iter__(self) -> Any:
        return iter([])


class Augmented(Dataset):
    def __len__(self) -> int:
        return 9

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.rand(3, 16, 16)


REFUSED: dict[str, tuple[Callable[[ImageFolder], Any], str]] = {
    "a stream": (
        lambda folder: Stream(),
        r"this Stream lacks them; turn a stream into a list with list",
    ),
    "a number": (lambda folder: 5, "like a torch Dataset or a list, but this int lacks them"),
    "nothing": (lambda folder: [], r"given from Python .list. is empty"),
    "augmentation": (
        lambda folder: Augmented(),
        "returns a different image each time: leave out its random",
    ),
    "an image in ten is blurred": (
        lambda folder: Mapped(
            folder, lambda image, label: (v2.RandomApply([v2.GaussianBlur(5)], 0.5)(image), label)
        ),
        "returns a different image each time: leave out its random",
    ),
    "normalised pixels": (
        lambda folder: TensorDataset(torch.linspace(-2, 2, 9 * 3 * 64).view(9, 3, 8, 8)),
        r"values range from -2 to -1.*already normalised.*vitsee.Model\(…, mean=…, std=…\)",
    ),
    "whole numbers": (
        lambda folder: TensorDataset(torch.zeros(9, 3, 8, 8, dtype=torch.int64)),
        "a tensor of torch.int64 is not an image: give uint8, or floats from 0 to 1",
    ),
    "features": (
        lambda folder: TensorDataset(torch.zeros(9, 7, 8, 8)),
        r"\(7, 8, 8\) is not an image",
    ),
    "words": (lambda folder: ["a", "b"], "a str is not a PIL image, a uint8 array"),
    "a mapping without an image": (lambda folder: [{"x": 1}], "none of x is an image"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_data_set_of_images_is_refused_with_the_reason(name, folder, measure):
    make, message = REFUSED[name]
    with pytest.raises(vitsee.UserError, match=message):
        measure(dataset=make(folder))


def test_a_bad_image_is_named_or_skipped(folder, measure):
    def make(image: Image.Image, label: int) -> Any:
        if image.getpixel((0, 0)) == folder[5][0].getpixel((0, 0)):
            raise RuntimeError("lost")
        return image

    source = Mapped(folder, make)
    with pytest.raises(
        vitsee.UserError, match=r"Mapped/000005 \(RuntimeError: lost\).*on_bad_image=skip"
    ):
        measure(dataset=source)
    result = measure("dataset.on_bad_image=skip", dataset=source)
    assert result.made_with["skipped_images"] == ["Mapped/000005"]


def test_greys_and_transparency_become_rgb_and_the_image_stays_as_it_was():
    grey = torch.full((1, 4, 4), 51, dtype=torch.uint8)
    assert (
        as_image(grey).getpixel((0, 0)) == (51, 51, 51) == as_image(grey[0] / 255).getpixel((0, 0))
    )
    clear = Image.new("P", (4, 4))
    clear.info["transparency"] = 0
    assert as_image(clear).mode == "RGB"
    assert clear.info["transparency"] == 0


def test_other_pixels_labels_or_lengths_are_another_data_set(folder):
    items = [folder[i] for i in range(24)]
    inverted = Image.eval(items[7][0], lambda value: 255 - value)
    others = {
        "the same": list(items),
        "fewer": items[:-1],
        "another order": items[::-1],
        "another image": [*items[:7], (inverted, items[7][1]), *items[8:]],
        "another label": [*items[:7], (items[7][0], 5), *items[8:]],
    }
    found = {name: Given(source, "given").fingerprint for name, source in others.items()}
    assert len(set(found.values())) == len(others)
    assert Given(folder, "another name").fingerprint == found["the same"]


# ---- WebDataset ----


def write_shards(
    to: Path,
    folder: ImageFolder,
    *,
    shards: int = 3,
    label: Callable[[int], bytes] | None = lambda label: str(label).encode(),
    ending: str = "cls",
) -> str:
    """Shards with these images, and the pattern that names them."""
    to.mkdir(parents=True, exist_ok=True)
    size = -(-len(folder) // shards)
    for number in range(shards):
        with tarfile.open(to / f"shard-{number:03d}.tar", "w") as tar:
            for i in range(number * size, min((number + 1) * size, len(folder))):
                path, kind = folder.samples[i]
                files = {"png": Path(path).read_bytes(), "txt": b"a caption"}
                files |= {ending: label(kind)} if label else {}
                for end, content in files.items():
                    member = tarfile.TarInfo(f"{i:06d}.{end}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
    return f"{to}/shard-{{000..{shards - 1:03d}}}.tar"


@pytest.fixture(scope="module")
def shards(folder, tmp_path_factory) -> str:
    return write_shards(tmp_path_factory.mktemp("shards"), folder)


def of_shards(root: object, *more: str) -> Any:
    from vitsee.data import datasets

    return datasets.load(composed("dataset=webdataset", f"dataset.root={root}", *more).dataset, 32)


def test_shards_give_what_their_files_give_with_labels_in_order(shards, measure, expected, folder):
    result = measure("dataset=webdataset", f"dataset.root={shards}")
    assert (result.path / "cka.csv").read_bytes() == expected
    images = of_shards(shards)
    assert [images.id(i) for i in (0, 8, 23)] == [
        *("shard-000.tar/000000", "shard-001.tar/000008", "shard-002.tar/000023")
    ]
    assert [images.label(i) for i in range(24)] == folder.targets
    assert images.classes == ["0", "1"]


def test_jobs_share_the_minibatches_of_shards_and_a_lost_one_is_filled_in(
    shards, measure, expected
):
    words = ["dataset=webdataset", f"dataset.root={shards}"]
    with pytest.raises(vitsee.Incomplete, match="shard 1 of 3 is done"):
        measure(*words, "run.shards=3", "run.shard=1")
    assert (measure(*words).path / "cka.csv").read_bytes() == expected


def test_shards_may_be_a_folder_with_one_for_each_split(folder, tmp_path):
    write_shards(tmp_path / "train", folder)
    assert len(of_shards(tmp_path / "train")) == 24
    assert len(of_shards(tmp_path, "dataset.split=train")) == 24
    with pytest.raises(vitsee.UserError, match=r"no .tar files in .*test .dataset.split=test"):
        of_shards(tmp_path, "dataset.split=test")


@pytest.mark.parametrize(
    ("label", "ending", "found"),
    [
        (None, "", 0),
        (lambda label: json.dumps({"label": label + 3}).encode(), "json", 4),
        (lambda label: b" 7\n", "cls", 7),
    ],
)
def test_labels_of_shards_are_numbers_or_in_json(label, ending, found, folder, tmp_path):
    root = write_shards(tmp_path, folder, label=label, ending=ending)
    assert of_shards(root).label(23) == found


def test_other_labels_or_images_are_another_data_set(folder, shards, tmp_path):
    other = write_shards(tmp_path / "labels", folder, label=lambda label: b"2")
    fewer = write_shards(tmp_path / "fewer", folder, shards=3).replace("002", "001")
    prints = {of_shards(root).fingerprint for root in (shards, other, fewer)}
    assert len(prints) == 3
    again = write_shards(tmp_path / "again", folder)
    assert of_shards(again).fingerprint == of_shards(shards).fingerprint


def test_shards_that_cannot_be_read_are_refused_with_the_reason(
    shards, folder, tmp_path, monkeypatch
):
    refusals = {
        "null": r"needs shards: dataset.root='shards-\{000..009\}.tar', or a folder of .tar files",
        shards.replace(
            "002", "003"
        ): r"shard-003.tar does not exist \(one of 4 shards\).*Did you mean",
        "https://a.b/{000..001}.tar": "which a stream does not allow; download them first",
        f"{tmp_path}": "there are no .tar files in",
    }
    for root, message in refusals.items():
        with pytest.raises(vitsee.UserError, match=message):
            of_shards(root)
    with pytest.raises(vitsee.UserError, match="a folder with one folder per split"):
        of_shards(shards, "dataset.split=val")
    with pytest.raises(vitsee.UserError, match=r"no sample of .* has one; it has: cls, png"):
        of_shards(shards, "dataset.column=pgn")
    assert len(of_shards(shards, "dataset.column=png")) == 24
    wrong = write_shards(tmp_path / "wrong", folder, label=lambda label: b"cat")
    with pytest.raises(vitsee.UserError, match="is not a class number: b'cat'"):
        of_shards(wrong).label(0)
    monkeypatch.setitem(__import__("sys").modules, "webdataset.shardlists", None)
    with pytest.raises(vitsee.UserError, match=r"pip install 'vitsee\[webdataset\]'"):
        of_shards(shards)


# ---- Hugging Face data sets on disk ----


@pytest.fixture(scope="module")
def on_disk(folder, tmp_path_factory) -> Path:
    """A folder of `save_to_disk`, of one data set with two splits."""
    datasets = pytest.importorskip("datasets")
    names = datasets.ClassLabel(names=["cat", "dog"])
    made = datasets.Dataset.from_dict(
        {"id": list(range(24)), "photo": [folder[i][0] for i in range(24)], "label": folder.targets}
    )
    made = made.cast_column("photo", datasets.Image()).cast_column("label", names)
    place = tmp_path_factory.mktemp("disk") / "pets"
    datasets.DatasetDict({"test": made, "few": made.select([0, 23])}).save_to_disk(str(place))
    return place


def of_disk(path: Path, *more: str) -> Any:
    from vitsee.data import datasets

    return datasets.load(composed("dataset=hf", f"dataset.path={path}", *more).dataset, 32)


def test_a_hugging_face_data_set_on_disk_is_read_without_a_copy(on_disk, measure, expected):
    result = measure("dataset=hf", f"dataset.path={on_disk}")
    assert (result.path / "cka.csv").read_bytes() == expected
    few = of_disk(on_disk, "dataset.split=few", "dataset.column=photo")
    assert few.classes == ["cat", "dog"]
    assert [few.label(i) for i in range(len(few))] == [0, 1]
    assert len(of_disk(on_disk / "few")) == 2


def test_images_on_disk_are_not_turned_by_what_their_camera_noted_as_those_of_a_folder(tmp_path):
    datasets = pytest.importorskip("datasets")
    noted = Image.Exif()
    noted[0x0112] = 6  # lay on its side
    image = Image.fromarray(np.arange(48, dtype=np.uint8).reshape(2, 8, 3))
    image.save(tmp_path / "a.png", exif=noted)
    made = datasets.Dataset.from_dict({"image": [str(tmp_path / "a.png")]})
    made = made.cast_column("image", datasets.Image())
    assert made[0]["image"].size == (2, 8)
    made.save_to_disk(str(tmp_path / "disk"))
    for found in (of_disk(tmp_path / "disk"), Given(made, "given")):
        assert found.open(0).tobytes() == image.tobytes()
    grey = Given(made.cast_column("image", datasets.Image(mode="L")), "grey")
    assert len({*grey.open(0).getpixel((0, 0))}) == 1


def test_what_a_data_set_on_disk_does_not_have_is_refused(on_disk):
    for change, message in {
        "dataset.split=val": "has no dataset.split=val; it has: few, test",
        "dataset.column=foto": "the columns are: id, photo, label; those with images are: photo",
        "dataset.take=5": r"is read in place, without dataset.take: leave it out \(images=N sets",
    }.items():
        with pytest.raises(vitsee.UserError, match=message):
            of_disk(on_disk, change)
    with pytest.raises(vitsee.UserError, match="has no splits; leave it out"):
        of_disk(on_disk / "few", "dataset.split=few")
