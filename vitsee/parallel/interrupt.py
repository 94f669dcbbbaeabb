"""Defers Ctrl-C, SIGTERM, a lost terminal and a scheduler's warning to the end of the current minibatch."""

from __future__ import annotations

import signal
import threading
import time
from types import FrameType
from typing import Any

from vitsee.errors import Died

OF_TERMINALS = (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP)
"""The signals a terminal sends to all processes of a command: for Ctrl-C, for Ctrl-\\, and when it closes."""
OF_SCHEDULERS = (signal.SIGUSR1, signal.SIGUSR2)
"""The signals with which a scheduler announces the end of a job."""


class Interrupted(Exception):
    """The user or the scheduler asked to stop. Everything measured so far is saved. Exit code 130."""


def led_to(error: BaseException) -> bool:
    """Return whether this error was raised while a KeyboardInterrupt was being handled, hiding it."""
    before = error.__context__
    return before is not None and (isinstance(before, KeyboardInterrupt) or led_to(before))


class Interruptible:
    """Runs the block so that the first signal only sets a flag; `check` or the block's end raises Interrupted.

    A scheduler's announcements are deferred too if a handler (submitit's) is installed. It is called after the
    block has ended and the state is saved. A second Ctrl-C or Ctrl-\\ stops at once. Signals that were ignored
    before, such as SIGHUP under nohup, stay ignored. Outside the main thread, signals are left alone.

    An error of the block goes before a signal, but not Died, which the signal may have caused.
    """

    stops = (*OF_TERMINALS, signal.SIGTERM)
    announcements = OF_SCHEDULERS

    def __enter__(self) -> Interruptible:
        self.asked: signal.Signals | None = None
        self.previous: dict[int, Any] = {}
        if threading.current_thread() is threading.main_thread():
            handled = [s for s in self.announcements if callable(signal.getsignal(s))]
            heard = [s for s in self.stops if signal.getsignal(s) is not signal.SIG_IGN]
            self.previous = {s: signal.signal(s, self._ask) for s in (*heard, *handled)}
        return self

    def __exit__(self, failure: type[BaseException] | None, *_: object) -> None:
        died = failure is not None and issubclass(failure, Died)
        if died:
            self._wait()
        for number, handler in self.previous.items():
            signal.signal(number, handler)
        announced = self.previous.get(self.asked) if self.asked else None
        if self.asked in self.announcements and callable(announced):
            announced(self.asked, None)
        elif failure is None or died:
            self.check()

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.asked == number and number in (signal.SIGINT, signal.SIGQUIT):
            raise KeyboardInterrupt
        self.asked = self.asked or signal.Signals(number)

    def check(self) -> None:
        """Raise Interrupted if a signal has arrived."""
        if self.asked:
            raise Interrupted

    def _wait(self) -> None:
        """Wait up to half a second for a signal that other processes of the command have already received."""
        for _ in range(10):
            if self.asked:
                return
            time.sleep(0.05)
