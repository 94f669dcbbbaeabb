"""`vitsee …` in processes of their own that need not import torch each: forked from one that has."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

SERVER = """
import fcntl, json, multiprocessing, os, resource, signal, sys, traceback
from fnmatch import fnmatch
import matplotlib.pyplot
import timm
from vitsee import cli, gpus, runner
from vitsee.papers import publish
from vitsee.report import write
from vitsee.training import image_cache, recipes, trainer

by_fork = multiprocessing.get_context("fork")


def strike(pattern, nth, number):
    real, left = os.replace, [nth]

    def replace(partial, path):
        left[0] -= fnmatch(os.path.basename(path), pattern)
        if left[0] == 0:
            left[0] = -1
            os.kill(os.getpid(), number)
        real(partial, path)

    os.replace = replace


def command(words, limit, moment, environment, drawn):
    os.environ.update(environment)
    if not drawn:
        runner.draw = lambda *path, **options: []
    gpus.get_context = image_cache.get_context = lambda kind: by_fork
    if limit:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    if moment:
        strike(*moment)
    sys.argv = ["vitsee", *words]
    try:
        cli.main()
        sys.stdout.flush()
    except SystemExit as stop:
        return stop.code or 0
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def child(out, err, *words):
    os.setsid()
    code = 130
    try:
        os.dup2(out, 1)
        os.dup2(err, 2)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        code = command(*words)
    finally:
        os._exit(code)


def pipe():
    read, write = os.pipe()
    os.set_blocking(read, False)
    fcntl.fcntl(write, fcntl.F_SETPIPE_SZ, 2**20)  # it is read when the process has ended
    return read, write


def heard(read):
    try:
        return os.read(read, 2**20).decode()
    except BlockingIOError:
        return ""
    finally:
        os.close(read)


signal.signal(signal.SIGINT, signal.SIG_IGN)
living = {}
for line in iter(sys.stdin.readline, ""):
    asked, *words = json.loads(line)
    if asked == "start":
        (out, their_out), (err, their_err) = pipe(), pipe()
        answer = os.fork()
        if answer == 0:
            child(their_out, their_err, *words)
        os.close(their_out)
        os.close(their_err)
        living[answer] = out, err
    elif asked == "stopped":
        answer = os.WIFSTOPPED(os.waitpid(*words, os.WUNTRACED)[1])
    else:  # until it is asked for, its number is no other process's
        status = os.waitpid(*words, 0)[1]
        answer = [os.waitstatus_to_exitcode(status), *map(heard, living.pop(*words))]
    print(json.dumps(answer), flush=True)
for pid in living:
    os.killpg(pid, signal.SIGKILL)
os._exit(0)
"""
"""Forks a command for each line that asks for one, and answers what became of it."""


class Moment(NamedTuple):
    """When a process sends itself a signal: just before the nth file like `pattern` gets its name."""

    pattern: str
    nth: int = 1
    signal: int = signal.SIGKILL


@dataclass
class Fork:
    """A command in a process and a session of its own. out, err: what it said, once it has ended."""

    forks: Forks
    pid: int
    out: str = ""
    err: str = ""

    def send(self, number: int) -> None:
        os.kill(self.pid, number)

    def wait_until_stopped(self) -> None:
        """Until it has sent itself SIGSTOP."""
        assert self.forks.ask("stopped", self.pid), "it ended before"

    def end(self) -> int:
        """How it ended: its exit code, or minus the signal that killed it."""
        code, self.out, self.err = self.forks.ask("end", self.pid)
        assert "Traceback" not in self.err, self.err
        return code


class Forks:
    """Commands in processes of their own; what still runs at the end is killed."""

    def __init__(self, errors: Path) -> None:
        self.errors = errors
        paths = [str(Path(__file__).parents[1]), *filter(None, sys.path)]
        with errors.open("w") as complaints:
            self.server = subprocess.Popen(
                [sys.executable, "-c", SERVER],
                env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=complaints,
                text=True,
            )

    def start(
        self,
        words: list[str],
        *,
        limit: int | None = None,
        moment: Moment | None = None,
        environment: Mapping[str, str] | None = None,
        drawn: bool = True,
    ) -> Fork:
        """A new `vitsee …`. limit: bytes that a file may have. moment: when it sends itself a signal.
        drawn: else it writes the tables of a run, but no figures.
        """
        asked = words, limit, moment, dict(environment or {}), drawn
        return Fork(self, self.ask("start", *asked))

    def run(self, words: list[str]) -> Fork:
        """A new `vitsee …` that ends well."""
        fork = self.start(words)
        assert fork.end() == 0, fork.err
        return fork

    def ask(self, *words: object) -> Any:
        self.server.stdin.write(f"{json.dumps(words)}\n")
        self.server.stdin.flush()
        answer = self.server.stdout.readline()
        assert answer, self.errors.read_text()
        return json.loads(answer)
