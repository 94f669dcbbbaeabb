"""Ctrl-C and SIGTERM between two minibatches instead of in the middle of one."""

from __future__ import annotations

import signal
import threading
from types import FrameType


class Interrupted(Exception):
    """The user or the scheduler asked to stop; everything measured so far is saved. Exit code 130."""


class Interruptible:
    """Within the block the first signal only sets a flag, which `check` turns into Interrupted.

    A second signal stops at once. Elsewhere than in the main thread signals are left alone.
    """

    signals = (signal.SIGINT, signal.SIGTERM)

    def __enter__(self) -> Interruptible:
        self.asked = False
        self.previous = {}
        if threading.current_thread() is threading.main_thread():
            self.previous = {s: signal.signal(s, self._ask) for s in self.signals}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True

    def check(self) -> None:
        """Raise Interrupted if a signal came."""
        if self.asked:
            raise Interrupted
