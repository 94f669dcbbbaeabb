"""A run that is killed at random moments, again and again, loses nothing and ends with the right bytes.

The moments are drawn over the whole time of a run: while it loads weights, claims, measures, writes sums,
writes tables, draws. `make soak` does the same for longer.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import tiny_overrides

from vitsee.sums import Damaged, Sums

KILLS = int(os.environ.get("VITSEE_KILLS", "50"))
SEED = int(os.environ.get("VITSEE_KILLS_SEED", "0"))
OUTPUTS = "run.outputs="

SERVER = """
import json, os, resource, sys
import matplotlib.pyplot
import timm
from conftest import composed
from vitsee.errors import Incomplete, UserError
from vitsee.interrupt import Interrupted
from vitsee.runner import run

def measure(limit):
    if limit:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    try:
        run(experiment)
    except Interrupted:
        return 130
    except Incomplete:
        return 3
    except UserError as mistake:
        print(mistake, file=sys.stderr)
        return 2
    return 0

experiment = composed(*sys.argv[1:])
for line in iter(sys.stdin.readline, ""):
    child = os.fork()
    if child == 0:
        code = 1
        try:
            code = measure(json.loads(line))
        finally:
            os._exit(code)
    print(child, flush=True)
    sys.stdin.readline()  # until it is asked for, its number is no other process's
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""
"""Forks a run for each line, so that 50 runs do not import torch 50 times; the line limits its files' size."""


class Runs:
    """One experiment, run as often as wanted, each time in a process of its own."""

    def __init__(self, images: Path, outputs: Path, errors: Path) -> None:
        self.outputs = outputs
        words = [*tiny_overrides(images, outputs), "repeats=2", "run.save_every=1"]
        paths = [str(Path(__file__).parent), *filter(None, sys.path)]
        with errors.open("w") as complaints:
            self.server = subprocess.Popen(
                [sys.executable, "-c", SERVER, *words, "analysis.layers=blocks"],
                env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=complaints,
                text=True,
            )

    def start(self, limit: int | None = None) -> int:
        """Process number of a new run. limit: bytes that a file may have."""
        return self._ask(json.dumps(limit))

    def end(self) -> int:
        """How the run ended: its exit code, or minus the signal that killed it."""
        return self._ask("end")

    def _ask(self, line: str) -> int:
        self.server.stdin.write(f"{line}\n")
        self.server.stdin.flush()
        return int(self.server.stdout.readline())

    def whole(self) -> tuple[bytes, float]:
        """The table of a run that nothing disturbs, and how many seconds it takes."""
        began = time.monotonic()
        self.start()
        assert self.end() == 0
        took = time.monotonic() - began
        return self.take(), took

    def take(self) -> bytes:
        """The table; all that was written is removed, so that the next run begins anew."""
        (csv,) = self.outputs.rglob("cka.csv")
        content = csv.read_bytes()
        assert csv.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
        for path in self.outputs.rglob("*"):
            if path.is_file():
                path.unlink()
        return content

    def measured(self) -> int:
        """Minibatches in the state file. Raises Damaged if it is not whole."""
        states = list(self.outputs.rglob("000-of-001.pt"))
        return int(Sums.load(states[0]).seen.sum()) if states else 0


@pytest.fixture
def runs(images: Path, tmp_path: Path) -> Iterator[Runs]:
    made = Runs(images, tmp_path / "outputs", tmp_path / "errors.txt")
    with made.server:
        yield made
    complaints = (tmp_path / "errors.txt").read_text()
    assert "Traceback" not in complaints, complaints


def test_killed_at_random_moments_it_ends_with_the_right_bytes(runs):
    draw = random.Random(SEED)
    expected, took = runs.whole()
    kills, ends, midway = 0, 0, 0
    while kills < KILLS:
        before = runs.measured()
        process = runs.start()
        time.sleep(draw.uniform(0, took))
        os.kill(process, signal.SIGKILL)
        if runs.end() == -signal.SIGKILL:
            kills += 1
            assert runs.measured() >= before, "what was saved is lost"
            midway += 0 < runs.measured() < 10
        else:
            ends += 1
            assert runs.take() == expected
    while runs.start() and runs.end() != 0:
        pass
    assert runs.take() == expected
    assert midway > 0, "no kill met it while it measured"
    print(f"{kills} kills, {midway} midway, {ends + 1} results, nothing lost")


def test_faults_of_every_kind_in_any_order_end_with_the_right_bytes(runs):
    """Signals, a disk that takes only part of a file, state files cut off or changed."""
    draw = random.Random(SEED + 1)
    expected, took = runs.whole()
    done: Counter[str] = Counter()
    for _ in range(max(12, KILLS // 3)):
        fault = draw.choice(["SIGTERM", "SIGINT", "SIGKILL", "disk", "cut", "flip"])
        states = list(runs.outputs.rglob("000-of-001.pt"))
        if fault in ("cut", "flip") and states:
            content = bytearray(states[0].read_bytes())
            place = draw.randrange(len(content))
            if fault == "cut":
                del content[place:]
            else:
                content[place] ^= 1 << draw.randrange(8)
            states[0].write_bytes(content)
            with pytest.raises(Damaged):
                runs.measured()
            done[fault] += 1
        process = runs.start(draw.randrange(1, 20_000) if fault == "disk" else None)
        if fault.startswith("SIG"):
            time.sleep(draw.uniform(0, took))
            os.kill(process, getattr(signal, fault))
        code = runs.end()
        assert code != 1, "a traceback"
        if code == 0:
            assert runs.take() == expected
        else:
            done[fault] += 1
    for _ in range(2):
        runs.start()
        if runs.end() == 0:
            break
    assert runs.take() == expected
    print(", ".join(f"{count} {fault}" for fault, count in done.items()), "nothing wrong")
