"""The state of a training as a safetensors file: weights, optimiser, random numbers, metrics, a checksum."""

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


@dataclass
class Progress:
    """How far a training is: steps taken, and the lines of metrics.csv."""

    step: int = 0
    metrics: list[dict[str, float]] = field(default_factory=list)


class Damaged(Exception):
    """A checkpoint is not as it was written, or not one of this training."""


def pack(
    net: nn.Module, optimiser: torch.optim.Optimizer, progress: Progress, identity: str
) -> bytes:
    """Everything that the next step depends on, whose it is, and a checksum. identity: of the training."""
    tensors = {f"net.{name}": tensor for name, tensor in net.state_dict().items()}
    for number, state in optimiser.state_dict()["state"].items():
        tensors |= {f"optimiser.{number}.{key}": value for key, value in _kept(state)}
    tensors["random.cpu"] = torch.get_rng_state()
    if torch.cuda.is_available():
        tensors["random.cuda"] = torch.cuda.get_rng_state()
    whole = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    about = {"progress": json.dumps(vars(progress)), "identity": identity}
    return save(whole, about | {"sha256": _checksum(whole, about)})


def _checksum(tensors: Mapping[str, Tensor], about: Mapping[str, str]) -> str:
    """SHA-256 over all that the file says; how its header is laid out is not in it."""
    said = json.dumps([digest(tensors), dict(about)], sort_keys=True)
    return hashlib.sha256(said.encode()).hexdigest()


def _kept(state: Mapping[str, Any]) -> list[tuple[str, Tensor]]:
    """SGD without momentum keeps None."""
    return [(key, value) for key, value in state.items() if isinstance(value, Tensor)]


def restore(
    path: Path, net: nn.Module, optimiser: torch.optim.Optimizer, identity: str
) -> Progress:
    """Put all back as it was when packed.

    Raises Damaged if a bit of it has changed, it is of another training or does not fit, and OSError if
    the file cannot be read.
    """
    try:
        tensors, progress = _read(path, identity)
        net.load_state_dict(_below("net.", tensors))
        optimiser.load_state_dict(optimiser.state_dict() | {"state": _states(tensors)})
        torch.set_rng_state(tensors["random.cpu"])
        if "random.cuda" in tensors and torch.cuda.is_available():
            torch.cuda.set_rng_state(tensors["random.cuda"])
    except (SafetensorError, KeyError, ValueError, TypeError, RuntimeError) as error:
        raise Damaged(f"it cannot be read: {' '.join(str(error).split())[:100]}") from error
    return progress


def _read(path: Path, identity: str) -> tuple[dict[str, Tensor], Progress]:
    """The tensors and how far they are, if they are as they were packed in this training."""
    if not path.is_file():
        raise Damaged("it is no file")
    content = path.read_bytes()  # to map it would kill the process where it cannot be read
    tensors = load(content)
    about = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])["__metadata__"]
    if about.pop("sha256", None) != _checksum(tensors, about):
        raise Damaged("it is cut off or changed: its checksum is wrong")
    if about["identity"] != identity:
        raise Damaged(f"it is of the training {about['identity']}, not of {identity}")
    return tensors, Progress(**json.loads(about["progress"]))


@dataclass(frozen=True)
class Checkpoints:
    """The last two checkpoints of a training, in its folder. identity: of the training."""

    results: Results
    identity: str

    @property
    def paths(self) -> tuple[Path, Path]:
        """The newest, and the one before it."""
        state = self.results.path / "state"
        return state / "training.safetensors", state / "training.previous.safetensors"

    def save(self, net: nn.Module, optimiser: torch.optim.Optimizer, progress: Progress) -> None:
        """Write the newest, whole or not at all. Raises UserError if that cannot be; what was saved is kept."""
        newest, previous = self.paths
        try:
            with writing.whole(newest) as partial:
                partial.write_bytes(pack(net, optimiser, progress, self.identity))
                if newest.exists():
                    os.replace(newest, previous)
        except OSError as error:
            raise unwritable(newest, error) from error

    def restore(
        self, net: nn.Module, optimiser: torch.optim.Optimizer, mend: bool
    ) -> Progress | None:
        """Go on from the newest that is good; None if there is none. mend: set aside those that are not.

        Raises UserError if there are only damaged ones.
        """
        damaged: dict[Path, str] = {}
        for path in filter(Path.exists, self.paths):
            try:
                progress = restore(path, net, optimiser, self.identity)
            except FileNotFoundError:
                continue  # the first rank has set it aside
            except OSError as error:
                raise UserError(f"cannot read the checkpoint {path} ({error})") from error
            except Damaged as reason:
                damaged[path] = str(reason)
                continue
            for bad, why in damaged.items() if mend else ():
                then = f"the training goes on from step {progress.step} of {path.name}"
                self.results.set_aside(bad, why, then)
            return progress
        if damaged:
            found = " and ".join(f"{path} is damaged ({why})" for path, why in damaged.items())
            raise UserError(
                f"the checkpoint {found}; remove {'it' if len(damaged) == 1 else 'both'} to train from "
                f"the beginning"
            )
        return None


def _below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}


def _states(tensors: Mapping[str, Tensor]) -> dict[int, dict[str, Tensor]]:
    """The optimiser's tensors by number of the parameter."""
    states: dict[int, dict[str, Tensor]] = {}
    for name, tensor in _below("optimiser.", tensors).items():
        number, _, key = name.partition(".")
        states.setdefault(int(number), {})[key] = tensor
    return states
