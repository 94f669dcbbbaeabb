"""A result folder: what was run, the sums so far, the tables, the figures. Needs no torch to read."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
from omegaconf import OmegaConf

from vitsee.errors import UserError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from vitsee.sums import Sums


@dataclass(frozen=True)
class Results:
    """outputs/<analysis>/<models>/<dataset>-<identity>/"""

    path: Path

    def prepare(self) -> None:
        """Make the folder, and find out now rather than after hours that it cannot be written."""
        try:
            (self.path / "state").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise _unwritable(self.path, error) from error
        self.write("state/writable", b"").unlink()

    def write(self, name: str, content: bytes) -> Path:
        """Write a file whole or not at all: a temporary name first, then rename.

        Raises UserError if the folder cannot be written or the disk is full; the previous file stays.
        """
        path = self.path / name
        partial = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            with open(partial, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, path)
        except OSError as error:
            partial.unlink(missing_ok=True)
            raise _unwritable(path, error) from error
        return path

    def save_json(self, name: str, record: Mapping[str, Any]) -> None:
        self.write(name, (json.dumps(record, indent=1) + "\n").encode())

    def load_json(self, name: str) -> dict[str, Any]:
        """The record of this name, empty if there is none yet."""
        path = self.path / name
        return json.loads(path.read_text()) if path.exists() else {}

    def save_experiment(self, what: Mapping[str, Any]) -> None:
        self.write("experiment.yaml", OmegaConf.to_yaml(OmegaConf.create(dict(what))).encode())

    def state(self, shard: int, shards: int, stage: int = 0) -> Path:
        """The file of one shard's sums of one pass over data."""
        return self.path / "state" / f"{_stage(stage)}{shard:03d}-of-{shards:03d}.pt"

    def states(self, stage: int = 0) -> list[Path]:
        """The files of all shards' sums of one pass."""
        return sorted(self.path.glob(f"state/{_stage(stage)}[0-9]*-of-*.pt"))

    def save_state(self, path: Path, sums: Sums) -> None:
        import torch

        buffer = io.BytesIO()
        torch.save(sums.state(), buffer)
        self.write(f"state/{path.name}", buffer.getvalue())

    def save_launch(self, state: Path, launch: Mapping[str, Any]) -> None:
        """Add the record of one process's work beside the sums it added to."""
        name = f"state/{state.stem}.json"
        record = self.load_json(name) or {"launches": []}
        record["launches"].append(launch)
        self.save_json(name, record)

    def launches(self) -> list[dict[str, Any]]:
        """Records of all processes that added to the result."""
        files = sorted(self.path.glob("state/*.json"))
        records = (self.load_json(f"state/{file.name}") for file in files)
        return [launch for record in records for launch in record["launches"]]

    def save_tables(self, tables: Mapping[str, pd.DataFrame]) -> list[Path]:
        return [
            self.write(f"{name}.csv", table.to_csv(index=False, lineterminator="\n").encode())
            for name, table in tables.items()
        ]

    def tables(self) -> dict[str, pd.DataFrame]:
        """Every table as its CSV says, to the last digit."""
        return {path.stem: pd.read_csv(path) for path in sorted(self.path.glob("*.csv"))}

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


def _stage(stage: int) -> str:
    return f"pass{stage + 1}-" if stage else ""


def _unwritable(path: Path, error: OSError) -> UserError:
    return UserError(
        f"cannot write {path}: {error.strerror or error}; free some space or choose another folder "
        f"with run.outputs=PATH (what was saved before is kept)"
    )
