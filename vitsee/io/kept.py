"""Gram matrices that outlive a run: one file with its index and a checksum (safetensors)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from vitsee.errors import UserError
from vitsee.io.files import opened
from vitsee.io.record import misfit
from vitsee.io.tidy import wrong

NAME = "grams.safetensors"
FORMAT = 1
"""Increased when the meaning of such a file's content changes."""


@dataclass(frozen=True)
class Index:
    """Describes the content of a file of Gram matrices.

    model: its name. data: the fingerprint of the images' data set. layers: their names, in running order.
    minibatches: the ids of the images in each, in order. fresh: the share of each minibatch's images that no
    earlier one contains. tokens, precision: how the features were taken. pooled: whether pooled
    features are stored too.
    """

    model: str
    data: str
    layers: list[str]
    minibatches: list[list[str]]
    fresh: list[float]
    tokens: str
    precision: str
    pooled: bool = False
    format: int = FORMAT


_SHAPE = {
    **{"model": str, "data": str, "layers": [str], "minibatches": [[str]], "fresh": [float]},
    **{"tokens": str, "precision": str, "pooled": bool, "format": int},
}


def packed(tensors: Mapping[str, np.ndarray], index: Index) -> bytes:
    """Return the bytes of a file with these tensors."""
    text = json.dumps(asdict(index))
    return save(dict(tensors), {"index": text, "sha256": _digest(text, tensors)})


@dataclass(frozen=True)
class Kept:
    """A file of Gram matrices. Tensors are read on demand.

    digest: SHA-256 of the file's whole content, which has been checked.
    """

    path: Path
    index: Index
    digest: str

    def _tensor(self, name: str) -> np.ndarray:
        with safe_open(self.path, framework="numpy") as file:  # mapped only this long
            return file.get_tensor(name)

    def grams(self, minibatch: int, layers: list[int]) -> np.ndarray:
        """Return `estimators.triangles.triangles` of these layers, (layers, N (N + 1) / 2) float64."""
        triangles = self._tensor(f"gram {minibatch}")[layers].astype(np.float64)
        return triangles * self._tensor(f"scale {minibatch}")[layers, None]

    def hsic(self, minibatch: int, layers: list[int]) -> np.ndarray:
        """Return HSIC_1 of each of these layers with itself, (layers,) float64."""
        return self._tensor(f"hsic {minibatch}")[layers]

    def pooled(self, minibatch: int, layer: int) -> np.ndarray:
        """Return the pooled features of a layer, (N, features) float32."""
        return self._tensor(f"pooled {minibatch} {self.index.layers[layer]}")


def read(path: Path) -> Kept:
    """Open a file of Gram matrices. Raises UserError if it is damaged, edited, or from a different version."""
    opened(path).close()
    try:
        with safe_open(path, framework="numpy") as file:
            about = file.metadata() or {}
            digest = _digest(about.get("index", ""), _Lazily(file, sorted(file.keys())))
    except (SafetensorError, ValueError, TypeError) as error:
        raise wrong(path, " ".join(str(error).split())) from error
    if digest != about.get("sha256"):
        raise wrong(path, "it was edited, or is corrupt: its checksum is wrong")
    stored = json.loads(about["index"])
    if stored.get("format") != FORMAT:
        raise UserError(
            f"{path} was written by a different version of vitsee; move its folder away and repeat the same "
            f"`vitsee run`"
        )
    if reason := misfit(stored, _SHAPE):
        raise wrong(path, reason)
    index = Index(**{each.name: stored[each.name] for each in fields(Index)})
    return Kept(path, index, digest)


class _Lazily(Mapping[str, np.ndarray]):
    """The tensors of an open file, one in memory at a time."""

    def __init__(self, file: Any, names: list[str]) -> None:
        self.file, self.names = file, names

    def __getitem__(self, name: str) -> np.ndarray:
        return self.file.get_tensor(name)

    def __iter__(self) -> Any:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


def _digest(index: str, tensors: Mapping[str, np.ndarray]) -> str:
    """Return the SHA-256 of the index and of the names, types, shapes and values of the tensors, as hex."""
    total = hashlib.sha256(index.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        total.update(f"\n{name} {tensor.dtype} {tensor.shape}\n".encode())
        total.update(np.ascontiguousarray(tensor).view(np.uint8).data)
    return total.hexdigest()
