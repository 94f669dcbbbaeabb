"""Training checkpoints as safetensors files: weights, state of the optimisers, random state, metrics and a checksum."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from vitsee.errors import UserError, unwritable
from vitsee.io import writing
from vitsee.models.loader import digest
from vitsee.results.folder import Results
from vitsee.training.optimisers import Optimisers


@dataclass
class Progress:
    """The progress of a training: steps taken, and the lines of metrics.csv and heads.csv."""

    step: int = 0
    metrics: list[dict[str, float]] = field(default_factory=list)
    heads: list[dict[str, float]] = field(default_factory=list)


class BadCheckpoint(Exception):
    """A checkpoint is damaged or belongs to a different training."""


def pack(net: nn.Module, optimisers: Optimisers, progress: Progress, identity: str) -> bytes:
    """Return everything that the next step depends on as bytes with a checksum. identity: of the training."""
    tensors = {f"net.{name}": tensor for name, tensor in net.state_dict().items()}
    for number, state in optimisers.states().items():
        tensors |= {f"optimiser.{number}.{key}": value for key, value in _kept(state)}
    tensors["random.cpu"] = torch.get_rng_state()
    if torch.cuda.is_available():
        tensors["random.cuda"] = torch.cuda.get_rng_state()
    whole = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    about = {"progress": json.dumps(vars(progress)), "identity": identity}
    return save(whole, about | {"sha256": _checksum(whole, about)})


def _checksum(tensors: Mapping[str, Tensor], about: Mapping[str, str]) -> str:
    """Return the SHA-256 of the file's content, independent of the layout of its header."""
    content = json.dumps([digest(tensors), dict(about)], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()


def _kept(state: Mapping[str, Any]) -> list[tuple[str, Tensor]]:
    """Return the tensors of a parameter's optimiser state. SGD without momentum stores None."""
    return [(key, value) for key, value in state.items() if isinstance(value, Tensor)]


def restore(path: Path, net: nn.Module, optimisers: Optimisers, identity: str) -> Progress:
    """Restore the state that `pack` stored.

    Raises BadCheckpoint if a bit has changed, or if the file belongs to a different training or does not fit.
    Raises OSError if the file cannot be read.
    """
    try:
        tensors, progress = _read(path, identity)
        net.load_state_dict(_below("net.", tensors))
        optimisers.restore(_states(tensors))
        torch.set_rng_state(tensors["random.cpu"])
        if "random.cuda" in tensors and torch.cuda.is_available():
            torch.cuda.set_rng_state(tensors["random.cuda"])
    except (SafetensorError, KeyError, ValueError, TypeError, RuntimeError) as error:
        raise BadCheckpoint(f"it cannot be read: {' '.join(str(error).split())[:100]}") from error
    return progress


def _read(path: Path, identity: str) -> tuple[dict[str, Tensor], Progress]:
    """Return the tensors and the progress of an intact checkpoint of this training. Raises BadCheckpoint."""
    if not path.is_file():
        raise BadCheckpoint("it is not a file")
    content = path.read_bytes()  # a read error in a memory-mapped file would kill the process
    tensors = load(content)
    about = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])["__metadata__"]
    if about.pop("sha256", None) != _checksum(tensors, about):
        raise BadCheckpoint("it is truncated or corrupt: its checksum is wrong")
    if about["identity"] != identity:
        raise BadCheckpoint(f"it belongs to the training {about['identity']}, not to {identity}")
    return tensors, Progress(**json.loads(about["progress"]))


@dataclass(frozen=True)
class Checkpoints:
    """The last two checkpoints of a training, in its folder. identity: of the training."""

    results: Results
    identity: str

    @property
    def paths(self) -> tuple[Path, Path]:
        """The newest checkpoint, and the one before it."""
        state = self.results.path / "state"
        return state / "training.safetensors", state / "training.previous.safetensors"

    def save(self, net: nn.Module, optimisers: Optimisers, progress: Progress) -> None:
        """Write a new checkpoint atomically. Raises UserError if this fails; earlier checkpoints are kept."""
        newest, previous = self.paths
        try:
            with writing.whole(newest) as partial:
                partial.write_bytes(pack(net, optimisers, progress, self.identity))
                if newest.exists():
                    os.replace(newest, previous)
        except OSError as error:
            raise unwritable(newest, error) from error

    def restore(self, net: nn.Module, optimisers: Optimisers, repair: bool) -> Progress | None:
        """Restore the newest good checkpoint; return None if there are no checkpoints. repair: set aside bad ones.

        Raises UserError if all checkpoints are bad.
        """
        damaged: dict[Path, str] = {}
        for path in filter(Path.exists, self.paths):
            try:
                progress = restore(path, net, optimisers, self.identity)
            except FileNotFoundError:
                continue  # the first rank has set it aside
            except OSError as error:
                raise UserError(f"cannot read the checkpoint {path} ({error})") from error
            except BadCheckpoint as reason:
                damaged[path] = str(reason)
                continue
            for bad, why in damaged.items() if repair else ():
                then = f"the training resumes from step {progress.step} of {path.name}"
                self.results.set_aside(bad, why, then)
            return progress
        if damaged:
            bad_ones = " and ".join(f"{path} is damaged ({why})" for path, why in damaged.items())
            raise UserError(
                f"the checkpoint {bad_ones}; remove {'it' if len(damaged) == 1 else 'both'} to start the "
                f"training again"
            )
        return None


def _below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}


def _states(tensors: Mapping[str, Tensor]) -> dict[int, dict[str, Tensor]]:
    """Return the optimisers' tensors by parameter number."""
    states: dict[int, dict[str, Tensor]] = {}
    for name, tensor in _below("optimiser.", tensors).items():
        number, _, key = name.partition(".")
        states.setdefault(int(number), {})[key] = tensor
    return states
