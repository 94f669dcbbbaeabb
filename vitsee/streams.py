"""Standard streams that are closed, full, or read by nobody: words may be lost there, measurements not."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO

from vitsee.errors import remedy

UNPRINTED, CLOSED_PIPE = 2, 141
"""Exit codes where standard output took not all words: it failed, or its reader has gone (128 + SIGPIPE)."""


class Steady:
    """A text stream on which writing never fails.

    failure: why the last words that were lost could not be written.
    """

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self.failure: OSError | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        try:
            return self.stream.write(text)
        except (
            UnicodeEncodeError
        ):  # the name of a file may hold what the terminal's encoding has not
            code = self.stream.encoding
            return self.stream.write(text.encode(code, "backslashreplace").decode(code))
        except OSError as error:
            self.failure = error
        return len(text)

    def flush(self) -> None:
        try:
            self.stream.flush()
        except OSError as error:
            self.failure = error

    def end(self) -> None:
        """Write what is left, or drop it if that fails: the interpreter would complain of it when it ends."""
        self.flush()
        if self.failure:
            with suppress(OSError):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, self.stream.fileno())
                os.close(nowhere)


@contextmanager
def steady() -> Iterator[None]:
    """Within the block writing to standard output and standard error never fails.

    A block that ends well exits all the same with a code of its own if standard output took not all.
    """
    _open_closed()
    before = sys.stdout, sys.stderr
    out, err = Steady(sys.stdout), Steady(sys.stderr)
    sys.stdout, sys.stderr = out, err
    try:
        try:
            yield
        except SystemExit as stop:
            if stop.code:
                raise
        out.end()
        if isinstance(out.failure, BrokenPipeError):
            sys.exit(CLOSED_PIPE)
        if out.failure:
            words = f"{out.failure.strerror}; {remedy(out.failure)}"
            print(
                f"vitsee: not all could be printed to standard output: {words} (what was measured and "
                f"drawn is kept)",
                file=sys.stderr,
            )
            sys.exit(UNPRINTED)
    finally:
        out.end()
        err.end()
        sys.stdout, sys.stderr = before


def _open_closed() -> None:
    """Give closed standard streams the null device: else the next file that is opened takes their place."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w" if number else "r"))  # noqa: SIM115
