"""Reads and writes the files of a result folder. Reading tables does not import torch."""

from __future__ import annotations

import io
import json
import logging
import os
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf

from vitsee.errors import UserError, unwritable
from vitsee.io import tidy, writing
from vitsee.io.files import content, visible
from vitsee.io.record import LAUNCH, Shape, misfit
from vitsee.sums import Damaged, Sums

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


log = logging.getLogger(__name__)

MAPPING: Shape = {}
"""A mapping with any content."""
Formats = Sequence[str]
"""Formats of figures: png, pdf, svg."""
PNG: Formats = ("png",)
VECTOR: Formats = ("pdf", "svg")
DATELESS = {"png": {"Software": None}, "pdf": {"CreationDate": None}, "svg": {"Date": None}}
"""The metadata of each format, without dates."""
EMBEDDED: Any = {
    "pdf.fonttype": 42,  # TrueType: journals reject Type 3
    "svg.fonttype": "none",
    "svg.hashsalt": "vitsee",
    "image.composite_image": False,
}
"""How matplotlib writes text and images."""


def formats_of(*, pdf: bool, svg: bool) -> Formats:
    """The formats that these options select."""
    return (*PNG, *(["pdf"] if pdf else []), *(["svg"] if svg else []))


@dataclass(frozen=True)
class Results:
    """A result folder, outputs/<analysis>/<models>/<dataset>-<identity>/.

    owner: the experiment's fingerprint. Saved sums carry it, and only sums that carry it are read.
    """

    path: Path
    owner: str = ""

    def prepare(self) -> None:
        """Create the folder. Raises UserError now, rather than after hours, if it cannot be written."""
        try:
            (self.path / "state").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise unwritable(self.path, error) from error
        for folder in (self.path, self.path / "state"):
            writing.clear(folder)
        self.write("state/writable", b"").unlink(missing_ok=True)

    def write(self, name: str, content: bytes) -> Path:
        """Write a file atomically. Raises UserError if that fails; the previous file then stays."""
        path = self.path / name
        try:
            with writing.whole(path) as partial:
                partial.write_bytes(content)
        except OSError as error:
            raise unwritable(path, error) from error
        return path

    def save_json(self, name: str, record: Mapping[str, Any]) -> None:
        self.write(name, (json.dumps(record, indent=1) + "\n").encode())

    def load_json(self, name: str, shape: Shape = MAPPING) -> dict[str, Any]:
        """Return the named JSON record; empty if it does not exist. Raises UserError if it does not fit `shape`."""
        path = self.path / name
        if not path.exists():
            return {}
        packed = content(path)
        try:
            record = json.loads(packed)
        except (ValueError, RecursionError) as error:
            raise tidy.wrong(path, str(error)) from error
        if reason := misfit(record, shape):
            raise tidy.wrong(path, reason)
        return record

    def save_experiment(self, what: Mapping[str, Any]) -> None:
        self.write("experiment.yaml", OmegaConf.to_yaml(OmegaConf.create(dict(what))).encode())

    def state(self, shard: int, shards: int, stage: int = 0) -> Path:
        """Return the path of a shard's sums for one pass over the data."""
        return self.path / "state" / f"{_stage(stage)}{shard:03d}-of-{shards:03d}.pt"

    def states(self, stage: int = 0) -> list[Path]:
        """Return the paths of all shards' sums for a pass. Anything that is not a file is set aside."""
        paths = sorted(self.path.glob(f"state/{_names(stage)}.pt"))
        for path in paths:
            if path.exists() and not path.is_file():
                self.set_aside(path, "it is a folder, a pipe or a device")
        return [path for path in paths if path.is_file()]

    def save_state(self, path: Path, sums: Sums) -> None:
        self.write(f"state/{path.name}", sums.packed(self._owner(path)))

    def _owner(self, path: Path) -> str:
        """Return the owner of a state file: the experiment's fingerprint and the pass."""
        stage = path.name.partition("-")[0] if path.name.startswith("pass") else "pass1"
        return f"{self.owner} {stage}"

    def load_states(self, minibatches: int, stage: int = 0) -> dict[Path, Sums]:
        """Return the sums of a pass by file, with each minibatch counted at most once.

        A file that is damaged, belongs to a different experiment or repeats minibatches of another file is set
        aside with a warning. Minibatches that only it contained are measured again.
        """
        loaded, seen = {}, Sums.zero(minibatches).seen
        for path in self.states(stage):
            try:
                sums = Sums.load(path, self._owner(path))
                if sums.seen.shape != seen.shape:
                    raise Damaged(
                        f"it is for {len(sums.seen)} minibatches instead of {minibatches}"
                    )
                if (seen + sums.seen > 1).any():
                    raise Damaged("it contains minibatches that another file contains too")
            except FileNotFoundError:
                continue  # another process has set it aside
            except Damaged as reason:
                self.set_aside(path, str(reason))
                continue
            loaded[path] = sums
            seen = seen + sums.seen
        return loaded

    def set_aside(
        self, path: Path, reason: str, then: str = "its content is measured again"
    ) -> None:
        """Rename a file so that it is no longer used, and log the reason and the consequence."""
        aside = path.with_name(f"{path.name}.{secrets.token_hex(4)}.aside")
        with suppress(FileNotFoundError):
            os.replace(path, aside)
            log.warning("warning: %s is set aside as %s: %s; %s", *(path, aside.name, reason, then))

    def leasing(self, path: Path, stage: int = 0) -> tuple[Path, str]:
        """Return the path of this state file's lease, and the pattern of all leases of the pass."""
        return path.with_suffix(".lease"), f"{_names(stage)}.lease"

    def save_launch(self, state: Path, launch: Mapping[str, Any]) -> None:
        """Append the record of one process's work, next to the sums that it contributed to."""
        name = f"state/{state.stem}.json"
        self.save_json(name, {"launches": [*self._launches(name), launch]})

    def launches(self) -> list[dict[str, Any]]:
        """Return the records of all processes that contributed to the result."""
        files = sorted(self.path.glob(f"state/*{_SHARD}.json"))
        return [launch for file in files for launch in self._launches(f"state/{file.name}")]

    def _launches(self, name: str) -> list[dict[str, Any]]:
        try:
            return self.load_json(name, {"launches?": [LAUNCH]}).get("launches", [])
        except (UserError, IsADirectoryError) as damaged:
            self.set_aside(self.path / name, str(damaged))
            return []

    def save_tables(self, tables: Mapping[str, pd.DataFrame]) -> list[Path]:
        return [
            self.write(f"{name}.csv", table.to_csv(index=False, lineterminator="\n").encode())
            for name, table in tables.items()
        ]

    def tables(self, columns: Mapping[str, tidy.Table] | None = None) -> dict[str, pd.DataFrame]:
        """Return the tables with all digits. columns: the tables to read, with their schemas; by default all.

        Raises UserError if a table is missing or does not fit its schema.
        """
        if not columns:
            return {path.stem: tidy.read(path) for path in visible(self.path, ".csv")}
        paths = {name: self.path / f"{name}.csv" for name in columns}
        there = {name for name, path in paths.items() if path.exists() or path.is_symlink()}
        if not there:
            return {}
        return {
            name: columns[name].read(path)
            for name, path in paths.items()
            if name in there or not columns[name].optional
        }

    def save_figures(self, figures: Mapping[str, Figure], *, formats: Formats = PNG) -> list[Path]:
        """Write each figure in these formats, without dates, so that redraws are identical.

        In PDF and SVG, text remains text, in TrueType fonts, and the cells of heatmaps remain cells.
        """
        import matplotlib
        from matplotlib.backends.backend_agg import FigureCanvasAgg

        written = []
        for name, figure in figures.items():
            figure.set_dpi(200)
            for ending in formats:
                buffer = io.BytesIO()
                with matplotlib.rc_context(EMBEDDED), cells(figure, ending):
                    if ending == "png":  # savefig draws everything twice
                        FigureCanvasAgg(figure).print_png(buffer, metadata=DATELESS[ending])
                    else:
                        figure.savefig(buffer, format=ending, dpi=200, metadata=DATELESS[ending])
                written.append(self.write(f"{name}.{ending}", buffer.getvalue()))
        return written


@contextmanager
def cells(figure: Figure, ending: str) -> Iterator[None]:
    """Run the block so that vector formats store an image's own pixels instead of resampling it."""
    from matplotlib.image import AxesImage

    every = figure.findobj(AxesImage) if ending in VECTOR else []
    images = [
        image
        for image in every
        if isinstance(image, AxesImage) and image.get_interpolation() == "nearest"
    ]
    for image in images:
        image.set_interpolation("none")
    try:
        yield
    finally:
        for image in images:
            image.set_interpolation("nearest")


_SHARD = "[0-9]*-of-*"


def _stage(stage: int) -> str:
    return f"pass{stage + 1}-" if stage else ""


def _names(stage: int) -> str:
    return f"{_stage(stage)}{_SHARD}"
