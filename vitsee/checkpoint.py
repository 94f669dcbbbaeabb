"""The state of a training as one safetensors file: weights, optimiser, random numbers, metrics so far."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from vitsee.errors import UserError


@dataclass
class Progress:
    """How far a training is: steps taken, and the lines of metrics.csv."""

    step: int = 0
    metrics: list[dict[str, float]] = field(default_factory=list)


def pack(net: nn.Module, optimiser: torch.optim.Optimizer, progress: Progress) -> bytes:
    """Everything that the next step depends on."""
    tensors = {f"net.{name}": tensor for name, tensor in net.state_dict().items()}
    for number, state in optimiser.state_dict()["state"].items():
        tensors |= {f"optimiser.{number}.{key}": value for key, value in _kept(state)}
    tensors["random.cpu"] = torch.get_rng_state()
    if torch.cuda.is_available():
        tensors["random.cuda"] = torch.cuda.get_rng_state()
    whole = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    return save(whole, {"progress": json.dumps(vars(progress))})


def _kept(state: Mapping[str, Any]) -> list[tuple[str, Tensor]]:
    """SGD without momentum keeps None."""
    return [(key, value) for key, value in state.items() if isinstance(value, Tensor)]


def restore(path: Path, net: nn.Module, optimiser: torch.optim.Optimizer) -> Progress:
    """Put all back as it was when packed. Raises UserError if the file is damaged or does not fit."""
    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (it is no dict)
            progress = Progress(**json.loads(file.metadata()["progress"]))
        net.load_state_dict(_below("net.", tensors))
        optimiser.load_state_dict(optimiser.state_dict() | {"state": _states(tensors)})
        torch.set_rng_state(tensors["random.cpu"])
    except (SafetensorError, OSError, KeyError, ValueError, TypeError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"the checkpoint {path} is damaged ({reason}); remove it to train from the beginning"
        ) from error
    if "random.cuda" in tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(tensors["random.cuda"])
    return progress


def _below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}


def _states(tensors: Mapping[str, Tensor]) -> dict[int, dict[str, Tensor]]:
    """The optimiser's tensors by number of the parameter."""
    states: dict[int, dict[str, Tensor]] = {}
    for name, tensor in _below("optimiser.", tensors).items():
        number, _, key = name.partition(".")
        states.setdefault(int(number), {})[key] = tensor
    return states
