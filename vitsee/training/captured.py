"""A training step as one CUDA graph: kernel launches otherwise limit small models."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vitsee.training.recipes import Optimiser
from vitsee.training.resident import Resident

if TYPE_CHECKING:
    from vitsee.training.trainer import Trainer

EAGER = 3
"""Number of steps before the capture, in which libraries choose kernels and the optimiser allocates its state."""
Step = Callable[[Tensor, Tensor, float], None]


def possible(trainer: Trainer) -> bool:
    """Return whether the steps of this training can be captured: on one GPU, with AdamW or Muon."""
    tensors = (
        trainer.training.recipe.optimiser is not Optimiser.sgd
    )  # its learning rate is a number
    return trainer.device.type == "cuda" and trainer.team.count == 1 and tensors


def step(trainer: Trainer, resident: Resident) -> Step:
    """Return the function that takes a step, given its draws and learning rate."""
    return Captured(trainer, resident) if possible(trainer) else eager(trainer, resident)


def eager(trainer: Trainer, resident: Resident) -> Step:
    """Return the function that takes a step, kernel by kernel."""

    def take(places: Tensor, drawn: Tensor, rate: float) -> None:
        where = (t.to(trainer.device) for t in (places, drawn))
        trainer.advance(*resident.shown(*where), rate)

    return take


class Captured:
    """Takes the first steps kernel by kernel, then captures one and replays it."""

    def __init__(self, trainer: Trainer, resident: Resident) -> None:
        self.trainer, self.resident = trainer, resident
        self.taken = 0
        self.stream = torch.cuda.Stream()
        self.graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, places: Tensor, drawn: Tensor, rate: float) -> None:
        given = [t.pin_memory().to(self.trainer.device, non_blocking=True) for t in (places, drawn)]
        self.trainer.net.train()
        self.trainer.optimisers.set_rate(rate)
        if self.taken < EAGER:
            self.stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self.stream):
                loss = self.trainer.update(*self.resident.shown(*given))
            torch.cuda.current_stream().wait_stream(self.stream)
            loss.record_stream(torch.cuda.current_stream())
        else:
            if self.graph is None:
                self._capture(given)
                assert self.graph is not None
            for place, new in zip(self.given, given, strict=True):
                place.copy_(new)
            self.graph.replay()
            loss = self.loss.clone()
        self.taken += 1
        self.trainer.count(loss)

    def _capture(self, given: list[Tensor]) -> None:
        self.given = [t.clone() for t in given]
        self.trainer.net.zero_grad()
        graph = torch.cuda.CUDAGraph()
        torch.cuda.synchronize()
        with torch.cuda.graph(graph):
            self.loss = self.trainer.update(*self.resident.shown(*self.given))
        self.graph = graph
