"""Runs in processes of their own that need not import torch each: forked from one that has."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

SERVER = """
import json, os, resource, signal, sys, traceback
import matplotlib.pyplot
import timm
from conftest import composed
from vitsee.errors import Incomplete, UserError
from vitsee.interrupt import Interrupted
from vitsee.runner import run

def measure(words, limit):
    if limit:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    try:
        run(composed(*words))
    except (Interrupted, KeyboardInterrupt):  # as the command does, before and after it measures too
        return 130
    except Incomplete:
        return 3
    except UserError as mistake:
        print(mistake, file=sys.stderr)
        return 2
    except Exception:
        traceback.print_exc()
        return 1
    return 0

signal.signal(signal.SIGINT, signal.SIG_IGN)
for line in iter(sys.stdin.readline, ""):
    child = os.fork()
    if child == 0:
        code = 130
        try:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            code = measure(*json.loads(line))
        finally:
            os._exit(code)
    print(child, flush=True)
    sys.stdin.readline()  # until it is asked for, its number is no other process's
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""
"""Forks a run for each line: its overrides, and how large its files may become."""


class Forks:
    """Runs of experiments, one after the other, each in a process of its own."""

    def __init__(self, errors: Path) -> None:
        self.errors = errors
        paths = [str(Path(__file__).parent), *filter(None, sys.path)]
        with errors.open("w") as complaints:
            self.server = subprocess.Popen(
                [sys.executable, "-c", SERVER],
                env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=complaints,
                text=True,
            )

    def start(self, words: list[str], limit: int | None = None) -> int:
        """Process number of a new run. limit: bytes that a file may have."""
        return self._ask(json.dumps([words, limit]))

    def end(self) -> int:
        """How the run ended: its exit code, or minus the signal that killed it."""
        return self._ask("end")

    def run(self, words: list[str]) -> None:
        """A run that ends well."""
        self.start(words)
        assert self.end() == 0, self.errors.read_text()

    def _ask(self, line: str) -> int:
        self.server.stdin.write(f"{line}\n")
        self.server.stdin.flush()
        return int(self.server.stdout.readline())
