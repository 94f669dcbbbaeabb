"""A run that is killed at random moments, again and again, loses nothing and ends with the right bytes.

The moments are drawn over the whole time of a run: while it loads weights, claims, measures, writes sums,
writes tables, draws. `make soak` does the same for longer.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import tiny_overrides
from forks import Forks

from vitsee.sums import Damaged, Sums

KILLS = int(os.environ.get("VITSEE_KILLS", "50"))
SEED = int(os.environ.get("VITSEE_KILLS_SEED", "0"))


class Runs:
    """One experiment, run as often as wanted, each time in a process of its own."""

    def __init__(self, forks: Forks, images: Path, outputs: Path) -> None:
        self.forks, self.outputs = forks, outputs
        few = ["repeats=2", "run.save_every=1", "analysis.layers=blocks"]
        self.words = [*tiny_overrides(images, outputs), *few]

    def start(self, limit: int | None = None) -> int:
        """Process number of a new run. limit: bytes that a file may have."""
        return self.forks.start(self.words, limit)

    def end(self) -> int:
        """How the run ended: its exit code, or minus the signal that killed it."""
        return self.forks.end()

    def whole(self) -> tuple[bytes, float]:
        """The table of a run that nothing disturbs, and how many seconds it takes."""
        self.start()  # the first one waits until all is imported
        assert self.end() == 0
        self.take()
        began = time.monotonic()
        self.start()
        assert self.end() == 0
        return self.take(), time.monotonic() - began

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
def runs(forks: Forks, images: Path, tmp_path: Path) -> Iterator[Runs]:
    yield Runs(forks, images, tmp_path / "outputs")
    complaints = forks.errors.read_text()
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
        assert code != 1, runs.forks.errors.read_text()
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
