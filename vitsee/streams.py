"""Standard streams that may be closed, full or unread: output may be lost, but measurements must not."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO

from vitsee.errors import remedy

UNPRINTED, CLOSED_PIPE = 2, 141
"""Exit codes for incomplete standard output: writing failed, or the reader is gone (128 + SIGPIPE)."""


class Steady:
    """A text stream whose `write` never raises OSError.

    failure: the last error that lost output, or None.
    """

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self.failure: OSError | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        try:
            return self.stream.write(text)
        except UnicodeEncodeError:  # a file name may not fit the terminal's encoding
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
        """Flush, or drop the rest if that fails; otherwise the interpreter would print an error at exit."""
        self.flush()
        if self.failure:
            with suppress(OSError):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, self.stream.fileno())
                os.close(nowhere)


@contextmanager
def steady() -> Iterator[None]:
    """Run the block with standard streams to which writing never fails.

    Raises SystemExit (`UNPRINTED` or `CLOSED_PIPE`) at the end of a successful block if standard output
    is incomplete.
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
            reason = f"{out.failure.strerror}; {remedy(out.failure)}"
            print(
                f"vitsee: could not print everything to standard output: {reason} (all measurements and figures "
                f"are kept)",
                file=sys.stderr,
            )
            sys.exit(UNPRINTED)
    finally:
        out.end()
        err.end()
        sys.stdout, sys.stderr = before


def _open_closed() -> None:
    """Open the null device for closed standard streams; otherwise the next file opened would take their descriptors."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free descriptor
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w" if number else "r"))  # noqa: SIM115
