"""Hugging Face data sets: from the hub, streamed once into a tar, or on disk, read in place."""

from __future__ import annotations

import hashlib
import io
import json
import re
import tarfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from vitsee.data.downloads import cache_of
from vitsee.data.given import LABELS, Given
from vitsee.data.image_files import Files, natural, refuse_pipes, tar_entries
from vitsee.data.images import Images
from vitsee.errors import UserError, unknown
from vitsee.io import writing
from vitsee.io.reachable import require
from vitsee.options import DatasetOptions

BUFFER = 1000
"""Size of the shuffle buffer while streaming. Images farther apart are not mixed, e.g. if sorted by class."""


def streamed(dataset: DatasetOptions, resolution: int) -> Images:
    if not dataset.path:
        raise UserError("dataset=hf needs the name of a data set: dataset.path=OWNER/NAME")
    if dataset.take < 1:
        raise UserError(f"dataset.take must be at least 1, got {dataset.take}")
    refuse_pipes("dataset.path", Path(dataset.path))
    if any((Path(dataset.path) / name).is_file() for name in SAVED):
        return _in_place(dataset)
    tar = cache_of(dataset) / f"hf-{_cache_name(dataset)}.tar"
    if not tar.exists():
        _stream_to(tar, dataset)
    return Files(tar, tar_entries(tar), tar=True, known=_order(tar))


ORDER = "classes.json"
"""The file in the tar with all classes in the order of their labels, which is that of a model's outputs."""
UNLABELLED = "all"
"""The class of images without a label, or with -1 as in hidden test sets."""

SAVED = ("state.json", "dataset_dict.json")
"""The files that `Dataset.save_to_disk` and `DatasetDict.save_to_disk` write into a folder."""


def _in_place(dataset: DatasetOptions) -> Images:
    """Return the images of a `save_to_disk` folder without copying them: they can be read in any order."""
    datasets = _library()
    for name in ("take", "seed", "config"):
        if getattr(dataset, name) != getattr(DatasetOptions, name):
            raise UserError(
                f"dataset.path={dataset.path} is read in place, without dataset.{name}: leave it out (images=N sets "
                f"how many images are drawn, and seed=N which)"
            )
    there = datasets.load_from_disk(str(dataset.path))
    if isinstance(there, datasets.DatasetDict):
        split = dataset.split or ("train" if "train" in there else next(iter(there)))
        if split not in there:
            raise unknown(f"{dataset.path} has no dataset.split={split}", split, there, "it has")
        there = there[split]
    elif dataset.split is not None:
        raise UserError(
            f"dataset.split={dataset.split}: {dataset.path} has no splits; leave it out "
            f"(linear_probe: analysis.train_split=null)"
        )
    try:
        column = _column(there.features, datasets.Image, dataset.column)
    except ValueError as error:
        raise UserError(f"dataset.path={dataset.path}: {error}") from error
    labels = [name for name in LABELS if name in there.features]
    return Given(there.select_columns([column, *labels]), Path(str(dataset.path)).name)


def _library() -> Any:
    try:
        import datasets
    except ImportError:
        raise UserError("dataset=hf needs the datasets library: pip install 'vitsee[hf]'") from None
    return datasets


def _cache_name(dataset: DatasetOptions) -> str:
    """Return a file name for the requested images that is unique to the options that select them."""
    keys = ("path", "config", "split", "column", "take", "seed")
    asked = {key: value for key, value in asdict(dataset).items() if key in keys}
    asked["with"] = (
        f"{ORDER}, labelled classes"  # earlier versions left it out, or listed others too
    )
    if Path(str(dataset.path)).exists():
        asked["path"] = str(Path(str(dataset.path)).resolve())
    digest = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:12]
    return f"{re.sub(r'[^A-Za-z0-9.]+', '_', Path(str(dataset.path)).name)}-{digest}"


def _stream_to(path: Path, dataset: DatasetOptions) -> None:
    """Write `take` images of a shuffled Hugging Face stream to a tar, unchanged and atomically."""
    datasets = _library()
    if not Path(str(dataset.path)).exists():
        remedy = "use dataset=scenes, or dataset=folder dataset.root=PATH"
        require("https://huggingface.co", f"dataset.path={dataset.path}", remedy)
    path.parent.mkdir(parents=True, exist_ok=True)
    writing.clear(path.parent)
    try:
        stream = datasets.load_dataset(
            str(dataset.path), dataset.config, split=dataset.split or "train", streaming=True
        )
        features = stream.features or {}
        column = _column(features, datasets.Image, dataset.column)
        stream = stream.cast_column(column, datasets.Image(decode=False))
        stream = stream.shuffle(seed=dataset.seed, buffer_size=BUFFER).take(dataset.take)
        labels, names = _labels(features)
        with writing.whole(path) as partial, tarfile.open(partial, "w") as tar:
            found: dict[str, None] = {}
            for i, example in enumerate(stream):
                of = _class_of(example.get(labels), names)
                found[of] = None
                _append_image(tar, of, i, example[column])
            others = sorted(found.keys() - {*names, UNLABELLED}, key=natural)
            _append(tar, ORDER, json.dumps([*names, *others]).encode())
    except Exception as error:  # each library raises its own errors for an interrupted stream
        reason = next(iter(str(error).splitlines()), "")
        raise UserError(
            f"cannot stream dataset.path={dataset.path} (config={dataset.config}, "
            f"split={dataset.split}, column={dataset.column}): {reason or type(error).__name__}"
        ) from error


def _column(features: Any, kind: type, asked: str | None) -> str:
    """Return the column of images: the requested one, else the first of that type."""
    there = [name for name, feature in features.items() if isinstance(feature, kind)]
    if not there or (asked and asked not in there):
        usable = f"those with images are: {', '.join(there)}" if there else "none contains images"
        raise ValueError(f"the columns are: {', '.join(features)}; {usable}")
    return asked or there[0]


def _labels(features: Any) -> tuple[str, list[str]]:
    """Return the column of labels, and the names of all classes as folder names; no names if labels have none."""
    named = [name for name, feature in features.items() if hasattr(feature, "names")]
    column = "label" if "label" in features else next(iter(named), "")
    names = [_folder(name) for name in getattr(features.get(column), "names", None) or ()]
    return column, [
        name if names.count(name) == 1 else f"{name} {i}" for i, name in enumerate(names)
    ]


def _class_of(label: Any, names: list[str]) -> str:
    """Return the class of a label as a folder name."""
    if label is None or label == -1:
        return UNLABELLED
    return names[label] if names else _folder(str(label))


def _folder(name: str) -> str:
    return re.sub(r"[^\w -]+", "_", name)


def _order(tar: Path) -> list[str]:
    """Return the classes in the order of their labels."""
    with tarfile.open(tar, "r:") as opened:
        content = opened.extractfile(ORDER)
        return json.load(content) if content else []


def _append_image(
    tar: tarfile.TarFile, folder: str, index: int, image: dict[str, Any] | None
) -> None:
    """Add an image under a name with a hash of its content, so that the fingerprint depends on the content.

    A missing or damaged image is stored unchanged. `on_bad_image` decides what happens when it is used.
    """
    content = _content(image or {"bytes": b""})
    digest = hashlib.sha256(content).hexdigest()[:8]
    # Pillow identifies formats by content, not by name
    _append(tar, f"{folder}/{index:06d}-{digest}.jpg", content)


def _append(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def _content(image: dict[str, Any]) -> bytes:
    if image["bytes"] is not None:
        return image["bytes"]
    from datasets.utils.file_utils import xopen  # a path in a stream may be a URL

    with xopen(image["path"], "rb") as file:
        return file.read()
