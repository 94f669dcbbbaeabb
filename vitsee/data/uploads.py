"""Brings minibatches to the device, on CUDA beside the measuring of the one before, and times the waiting."""

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
    bits on every device, which arithmetic need not.
    """
    for channel, table in enumerate(values):
        plane = pixels[..., channel]
        into[:, channel] = table.index_select(0, plane.int().flatten()).view(plane.shape)


class Uploads:
    """Nothing is uploaded on a CPU; whatever passes between two minibatches is waiting."""

    def __init__(self) -> None:
        self._since, self._waited = time.perf_counter(), 0.0

    @property
    def waited(self) -> float:
        """Seconds that measuring has waited for minibatches, the first one included."""
        return self._waited

    def measured(self) -> None:
        """Note that the measuring of a minibatch has been asked for, so that waiting for the next one begins."""
        self._since = time.perf_counter()

    def bring(self, made: Callable[[], Tensors]) -> Tensors:
        """Return the tensors that this function makes of the next minibatch on the device."""
        tensors = made()
        self._waited += time.perf_counter() - self._since
        return tensors


class CudaUploads(Uploads):
    """Uploads on a stream of its own, while the device measures the minibatch before.

    At most two minibatches are on the device: the one that is measured, and the next. The device's own
    clock says how long it waited, because this process only asks for the work and runs ahead of it.
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

    def measured(self) -> None:
        self._ends.append(self._now())

    def bring(self, made: Callable[[], Tensors]) -> Tensors:
        if len(self._ends) == 2:
            self._ends[0].synchronize()
        measuring = torch.cuda.current_stream(self.device)
        with torch.cuda.stream(self.stream):
            tensors = made()
        measuring.wait_stream(self.stream)
        for tensor in tensors.values():
            tensor.record_stream(measuring)  # it is not to be overwritten before it was measured
        if self._ends:
            self._gaps.append((self._ends[-1], self._now()))
            self._add_up(but=2)
        else:
            self.stream.synchronize()
            self._waited = time.perf_counter() - self._since
        return tensors

    def _now(self) -> torch.cuda.Event:
        """Return an event that has the time when the device gets to here."""
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self.device))
        return event

    def _add_up(self, but: int) -> None:
        """Add the gaps between two minibatches, but for the last ones, which the device may not have reached."""
        while len(self._gaps) > but:
            end, start = self._gaps.popleft()
            self._waited += end.elapsed_time(start) / 1000
