"""WebDataset shards, read in place: tars in which files that share a name apart from the extension form a sample."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from vitsee.data.image_files import ENDINGS, SAMPLE, Entry, Files, tar_entries
from vitsee.data.images import Images
from vitsee.errors import UserError, expanded, nearest, unknown
from vitsee.options import DatasetOptions

LABELS = (".cls", ".json")
"""Extensions of files with labels: a number, or a mapping with a number under `label`."""
EXAMPLE = "dataset.root='shards-{000..009}.tar'"


@dataclass(frozen=True)
class Sample(Entry):
    """The image of a sample, named after its shard and key, and its label, if any."""

    shard: Path = Path()
    labelled: Entry | None = None


class Shards(Files):
    """The samples of several shards, in the order of the shards and of the files in each shard.

    Any image can be read at any time, so images are drawn from all shards, minibatches can be distributed and
    resumed, and only the headers and the images in use are read.
    """

    def __init__(self, samples: Iterable[Sample]) -> None:
        self.root, self.tar = Path(), True
        self.samples = list(samples)
        self.entries = [*self.samples]

    @cached_property
    def fingerprint(self) -> str:  # type: ignore[override]
        """SHA-256 of the names and sizes of all images and labels, and of the bytes of some."""
        digest = hashlib.sha256(super().fingerprint.encode())
        for sample in self.samples[:: -(-len(self.samples) // SAMPLE)]:
            if sample.labelled:
                digest.update(self._label(sample).to_bytes(8, "big", signed=True))
        return f"webdataset/{digest.hexdigest()}"

    @cached_property
    def classes(self) -> list[str]:  # type: ignore[override]  # read on demand
        return [str(i) for i in range(max(map(self._label, self.samples)) + 1)]

    def label(self, index: int) -> int:
        return self._label(self.samples[index])

    def _label(self, sample: Sample) -> int:
        """Return the label of a sample, 0 if it has none. Raises UserError if it is not a number."""
        if sample.labelled is None:
            return 0
        with open(sample.shard, "rb") as file:
            file.seek(sample.labelled.offset)
            text = file.read(sample.labelled.size)
        try:
            value = json.loads(text)
            return int(value.get("label", 0) if isinstance(value, dict) else value)
        except (ValueError, TypeError, RecursionError) as error:
            raise UserError(
                f"{sample.shard}: {sample.labelled.name} is not a class number: {text[:40]!r}"
            ) from error

    def _path(self, entry: Entry) -> Path:
        assert isinstance(entry, Sample)
        return entry.shard


def shards(dataset: DatasetOptions, resolution: int) -> Images:
    """Return the images of local shards. Raises UserError if there are none."""
    if not dataset.root:
        raise UserError(f"dataset=webdataset needs shards: {EXAMPLE}, or a folder of .tar files")
    return Shards(
        sample
        for path in _paths(dataset.root, dataset.split)
        for sample in _samples(path, dataset.column)
    )


def _paths(root: str, split: str | None) -> list[Path]:
    """Return the paths of all shards: those in a folder (the split's, if any), or those that braces expand to.

    Raises UserError if one is missing.
    """
    try:
        from webdataset.shardlists import expand_urls
    except ImportError:
        raise UserError(
            "dataset=webdataset needs the webdataset library: pip install 'vitsee[webdataset]'"
        ) from None
    if "://" in root or root.startswith("pipe:"):
        raise UserError(
            f"dataset.root={root}: shards are read in place, and images are drawn from all of them, which a stream "
            f"does not allow; download them first: {EXAMPLE}"
        )
    folder = expanded(root)
    if folder.is_dir():
        found = sorted((folder / (split or "")).glob("*.tar"))
        if not found:
            there = f"{folder / split} (dataset.split={split})" if split else f"{folder}"
            raise UserError(f"dataset=webdataset: there are no .tar files in {there}")
        return found
    if split:
        raise UserError(
            f"dataset.split={split}: shards have splits only where dataset.root is a folder with one folder per split; "
            f"leave it out (linear_probe: analysis.train_split=null), or use such a folder"
        )
    paths = [Path(path) for path in expand_urls(str(folder))]
    for path in paths:
        if not path.exists():
            beside = [one.name for one in path.parent.iterdir()] if path.parent.is_dir() else []
            of = f" (one of {len(paths)} shards)" if len(paths) > 1 else ""
            raise UserError(
                f"dataset.root={root}: {path} does not exist{of}.{nearest(path.name, beside)}"
            )
    return paths


def _samples(shard: Path, column: str | None) -> list[Sample]:
    """Return the samples of a shard that have an image, in order. column: the image's extension, e.g. jpg.

    Raises UserError if the shard cannot be read, or if no sample has the image.
    """
    from webdataset.tariterators import base_plus_ext

    wanted = (f".{column.lower().lstrip('.')}",) if column else ENDINGS
    images: dict[str, Entry] = {}
    labels: dict[str, Entry] = {}
    endings: set[str] = set()
    for entry in tar_entries(shard, (*ENDINGS, *LABELS)):
        key, ending = base_plus_ext(entry.name)
        if key is None:
            continue
        ending = f".{ending.lower()}"
        endings.add(ending)
        if ending in LABELS:
            labels.setdefault(key, entry)
        elif ending in wanted:
            images.setdefault(key, entry)
    if not images:
        if column:
            problem = f"dataset.column={column}: no sample of {shard} has one"
            raise unknown(problem, column, {e.lstrip(".") for e in endings}, "it has")
        raise UserError(f"there are no images in {shard}; looked for {', '.join(ENDINGS)}")
    return [
        Sample(f"{shard.name}/{key}", image.size, image.offset, shard, labels.get(key))
        for key, image in images.items()
    ]
