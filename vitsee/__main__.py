"""The `vitsee` command, also as `python -m vitsee`."""

from __future__ import annotations

import atexit
import os
import sys
import threading
from contextlib import suppress
from typing import NoReturn

from vitsee import cli


def main() -> NoReturn:
    """Run the command and end the process with a code of the contract."""
    code: object = 0
    try:
        cli.main()
    except SystemExit as stop:
        code = stop.code or 0
    if not isinstance(code, int) or sys.getprofile() or sys.gettrace():
        sys.exit(code)  # type: ignore[arg-type]
    leave(code)


def leave(code: int) -> NoReturn:
    """End the process without freeing its objects, which takes Python over a second once torch is imported.

    Clean-up still happens: threads are joined and `atexit` functions are called.
    """
    for thread in threading.enumerate():
        if thread is not threading.current_thread() and not thread.daemon:
            thread.join()
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # vitsee.streams has reported lost output
            stream.flush()
    os._exit(code)


if __name__ == "__main__":
    main()
