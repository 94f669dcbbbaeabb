"""A result folder: what was run, the sums so far, the tables, the figures. Needs no torch to read."""

from __future__ import annotations

import io
import json
import logging
import os
import secrets
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf

from vitsee.errors import UserError, unwritable
from vitsee.io import tidy, writing
from vitsee.io.files import content, visible
from vitsee.io.record import LAUNCH, Shape, misfit

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from vitsee.sums import Sums

log = logging.getLogger(__name__)

MAPPING: Shape = {}
"""The shape of a record of which nothing more is known."""


@dataclass(frozen=True)
class Results:
    """outputs/<analysis>/<models>/<dataset>-<identity>/

    owner: the fingerprint of the experiment; only sums that carry it are read, and all that are saved do.
    """

    path: Path
    owner: str = ""

    def prepare(self) -> None:
        """Make the folder, and find out now rather than after hours that it cannot be written."""
        try:
            (self.path / "state").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise unwritable(self.path, error) from error
        for folder in (self.path, self.path / "state"):
            writing.clear(folder)
        self.write("state/writable", b"").unlink(missing_ok=True)

    def write(self, name: str, content: bytes) -> Path:
        """Write a file whole or not at all: a temporary name first, then rename.

        Raises UserError if the folder cannot be written or the disk is full; the previous file stays.
        """
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
        """The record of this name, empty if there is none yet. Raises UserError if it has not this shape."""
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
        """The file of one shard's sums of one pass over data."""
        return self.path / "state" / f"{_stage(stage)}{shard:03d}-of-{shards:03d}.pt"

    def states(self, stage: int = 0) -> list[Path]:
        """The files of all shards' sums of one pass; what is no file is set aside."""
        found = sorted(self.path.glob(f"state/{_names(stage)}.pt"))
        for path in found:
            if path.exists() and not path.is_file():
                self.set_aside(path, "it is a folder, a pipe or a device")
        return [path for path in found if path.is_file()]

    def save_state(self, path: Path, sums: Sums) -> None:
        self.write(f"state/{path.name}", sums.packed(self._owner(path)))

    def _owner(self, path: Path) -> str:
        """Whose sums this state file has: the experiment's, of one pass."""
        stage = path.name.partition("-")[0] if path.name.startswith("pass") else "pass1"
        return f"{self.owner} {stage}"

    def load_states(self, minibatches: int, stage: int = 0) -> dict[Path, Sums]:
        """The sums of a pass by file, each minibatch counted at most once.

        A file that is damaged, of another experiment, or counts again what another one counts, is set aside
        with a warning; what it alone counted is then measured again.
        """
        from vitsee.sums import Damaged, Sums

        found, seen = {}, Sums.zero(minibatches).seen
        for path in self.states(stage):
            try:
                sums = Sums.load(path, self._owner(path))
                if sums.seen.shape != seen.shape:
                    raise Damaged(f"it is of {len(sums.seen)} minibatches instead of {minibatches}")
                if (seen + sums.seen > 1).any():
                    raise Damaged("it counts minibatches that another file counts too")
            except FileNotFoundError:
                continue  # another process has set it aside
            except Damaged as reason:
                self.set_aside(path, str(reason))
                continue
            found[path] = sums
            seen = seen + sums.seen
        return found

    def set_aside(
        self, path: Path, reason: str, then: str = "what it held is measured again"
    ) -> None:
        """Rename a file so that it counts no more, and say so, and what happens then."""
        aside = path.with_name(f"{path.name}.{secrets.token_hex(4)}.aside")
        with suppress(FileNotFoundError):
            os.replace(path, aside)
            log.warning("warning: %s is set aside as %s: %s; %s", *(path, aside.name, reason, then))

    def leasing(self, path: Path, stage: int = 0) -> tuple[Path, str]:
        """Where the lease of a process that writes this state file is, and what others are called."""
        return path.with_suffix(".lease"), f"{_names(stage)}.lease"

    def save_launch(self, state: Path, launch: Mapping[str, Any]) -> None:
        """Add the record of one process's work beside the sums it added to."""
        name = f"state/{state.stem}.json"
        self.save_json(name, {"launches": [*self._launches(name), launch]})

    def launches(self) -> list[dict[str, Any]]:
        """Records of all processes that added to the result."""
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
        """Tables as their CSVs say, to the last digit: those that have these columns, or all that there are.

        Raises UserError if one has not, or is no table.
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

    def save_figures(self, figures: Mapping[str, Figure], *, pdf: bool = False) -> list[Path]:
        """Write each figure as PNG, and as PDF on request; without dates, so redraws are identical."""
        without = {"png": {"Software": None}, "pdf": {"CreationDate": None}}
        written = []
        for name, figure in figures.items():
            for ending in ("png", "pdf") if pdf else ("png",):
                buffer = io.BytesIO()
                figure.savefig(buffer, format=ending, dpi=200, metadata=without[ending])
                written.append(self.write(f"{name}.{ending}", buffer.getvalue()))
        return written


_SHARD = "[0-9]*-of-*"


def _stage(stage: int) -> str:
    return f"pass{stage + 1}-" if stage else ""


def _names(stage: int) -> str:
    return f"{_stage(stage)}{_SHARD}"
