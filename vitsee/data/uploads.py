"""Copies minibatches to the device, overlapping the previous one on CUDA, and times the wait."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

import torch
from torch import Tensor

Tensors = dict[str, Tensor]


def look_up(values: Tensor, pixels: Tensor, into: Tensor) -> None:
    """Write values[channel, pixel] for each pixel and channel.

    values: (3, 256) float32. pixels: (N, H, W, 3) uint8. into: (N, 3, H, W) float32. A table gives the same
    bits on every device; arithmetic may not.
    """
    for channel, table in enumerate(values):
        plane = pixels[..., channel]
        into[:, channel] = table.index_select(0, plane.int().flatten()).view(plane.shape)


class Uploads:
    """On a CPU nothing is uploaded, and all time between two minibatches counts as waiting."""

    def __init__(self) -> None:
        self._since, self._waited = time.perf_counter(), 0.0

    @property
    def waited(self) -> float:
        """Seconds that measuring has waited for minibatches, including the first."""
        return self._waited

    def submitted(self) -> None:
        """Note that a minibatch has been submitted for measuring, so waiting for the next one begins."""
        self._since = time.perf_counter()

    def bring(self, made: Callable[[], Tensors]) -> Tensors:
        """Return the next minibatch's tensors on the device, which `made` creates."""
        tensors = made()
        self._waited += time.perf_counter() - self._since
        return tensors


class CudaUploads(Uploads):
    """Uploads on a separate stream while the device measures the previous minibatch.

    At most two minibatches are on the device: the one being measured, and the next. The device's own
    clock times the waiting, because this process only queues the work and runs ahead of it.
    """

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.device = device
        self.stream = torch.cuda.Stream(device)
        self._ends: deque[torch.cuda.Event] = deque(maxlen=2)
        self._gaps: deque[tuple[torch.cuda.Event, torch.cuda.Event]] = deque()

    @property
    def waited(self) -> float:
        torch.cuda.synchronize(self.device)
        self._add_up(but=0)
        return self._waited

    def submitted(self) -> None:
        self._ends.append(self._now())

    def bring(self, made: Callable[[], Tensors]) -> Tensors:
        if len(self._ends) == 2:
            self._ends[0].synchronize()
        measuring = torch.cuda.current_stream(self.device)
        with torch.cuda.stream(self.stream):
            tensors = made()
        measuring.wait_stream(self.stream)
        for tensor in tensors.values():
            tensor.record_stream(measuring)  # must not be overwritten before it is measured
        if self._ends:
            self._gaps.append((self._ends[-1], self._now()))
            self._add_up(but=2)
        else:
            self.stream.synchronize()
            self._waited = time.perf_counter() - self._since
        return tensors

    def _now(self) -> torch.cuda.Event:
        """Return an event that records the time when the device reaches this point."""
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self.device))
        return event

    def _add_up(self, but: int) -> None:
        """Add the gaps between minibatches, except the last `but`, which the device may not have reached."""
        while len(self._gaps) > but:
            end, start = self._gaps.popleft()
            self._waited += end.elapsed_time(start) / 1000
