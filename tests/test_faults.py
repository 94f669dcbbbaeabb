"""Commands that are killed at random moments, again and again, lose nothing and end with the right bytes.

The moments are drawn over the whole time of a command: while it composes, loads weights, takes leases, measures,
writes sums, writes tables, draws. `make soak` does the same for longer.
"""

from __future__ import annotations

import math
import os
import random
import shutil
import signal
import time
from collections import Counter
from pathlib import Path

import pytest
from conftest import SMALL, asked_by_laws, of_analysis, tiny_overrides
from forks import Fork, Forks, Moment

from vitsee.analysis import REGISTERED
from vitsee.sums import Damaged, Sums
from vitsee.testing import Measured

KILLS = int(os.environ.get("VITSEE_KILLS", "6"))
SEED = int(os.environ.get("VITSEE_KILLS_SEED", "0"))

QUIET = ["run.device=cpu", "run.workers=0", "run.progress=false"]
ONE_OF_EACH_KIND = ("block_similarity", "cka", "grams", "linear_probe", "position_similarity")
"""Two models; one; matrices in files of their own; two passes; weights alone. The others go the way of cka."""
COMMANDS = (
    *(sorted(REGISTERED) if "VITSEE_KILLS" in os.environ else ONE_OF_EACH_KIND),
    *("figure", "report", "train"),
)


def kills_of(name: str) -> int:
    """At random moments; every command is killed once more when it has saved something."""
    return KILLS if name == "cka" else KILLS // 20


class Command:
    """One command, given as often as wanted, each time in a process of its own."""

    def __init__(
        self, forks: Forks, words: list[str], outputs: Path, *, drawn: bool = True
    ) -> None:
        self.forks, self.words, self.outputs, self.drawn = forks, words, outputs, drawn
        self.former: dict[str, bytes] = {}
        """What lies there before the command is first given."""

    def start(self, limit: int | None = None, moment: Moment | None = None) -> Fork:
        return self.forks.start(self.words, limit=limit, moment=moment, drawn=self.drawn)

    def whole(self) -> tuple[dict[str, bytes], float]:
        """The products of a command that nothing disturbs, and how many seconds it takes."""
        fork = self.start()
        began = time.monotonic()
        assert fork.end() == 0, fork.err
        return self.take(), time.monotonic() - began

    def products(self) -> dict[str, bytes]:
        """What has been written for the user, by path."""
        return {
            str(path.relative_to(self.outputs)): path.read_bytes()
            for path in self.outputs.rglob("*")
            if path.suffix in (".csv", ".png", ".html", ".md", ".safetensors")
            and path.parent.name != "state"
        }

    def take(self) -> dict[str, bytes]:
        """The products; all is then as it was before the command was first given."""
        found = self.products()
        shutil.rmtree(self.outputs)
        for name, content in self.former.items():
            self.outputs.mkdir()
            (self.outputs / name).write_bytes(content)
        return found

    def measured(self) -> int:
        """Minibatches in the state files. Raises Damaged if one is not whole."""
        return sum(int(Sums.load(path).seen.sum()) for path in self.states())

    def states(self) -> list[Path]:
        return list(self.outputs.rglob("*000-of-001.pt"))


@pytest.fixture
def command_of(forks: Forks, images: Path, tmp_path: Path):
    """Each of COMMANDS by its name."""
    outputs = tmp_path / "outputs"

    def of_analysis(name: str) -> Command:
        words = [*tiny_overrides(images, outputs), "run.save_every=1"]
        few = ["repeats=2", "analysis.layers=blocks"] if name == "cka" else []
        asked = ["run", *words, *asked_by_laws(name), *few]
        return Command(forks, asked, outputs, drawn=kills_of(name) > 0)

    def figure() -> Command:
        few = ["images=12", "batch_size=4", "run.save_every=1"]
        words = ["run", "figure=fig04", f"run.outputs={outputs}", *few, *QUIET]
        return Command(forks, words, outputs)

    def report() -> Command:
        results, page = tmp_path / "results", outputs / "report.html"
        command = Command(forks, ["report", str(results), "-o", str(page)], outputs)
        for seed in (0, 1):
            words = [*tiny_overrides(images, results), "analysis=position_similarity"]
            forks.run(["run", *words, f"model.seed={seed}"])
            if seed == 0:
                forks.run(command.words)
                command.former = {page.name: page.read_bytes()}
        return command

    def train() -> Command:
        few = ["dataset.size=64", "recipe.images_seen=96", "recipe.batch_size=16"]
        few += ["recipe.test_images=16", "recipe.save_every=1", "recipe.eval_every=2"]
        few += ["recipe.precision=fp32", "model.args.depth=1", *SMALL]
        words = ["train", "recipe=vit_mini", f"run.outputs={outputs}", *few, *QUIET]
        words += ["run.workers=1"]  # which may outlive it
        return Command(forks, words, outputs)

    named = {"figure": figure, "report": report, "train": train}
    return lambda name: named[name]() if name in named else of_analysis(name)


def midway(name: str) -> Moment:
    """When the command has saved something, and is about to give its next file its name."""
    if name == "report":
        return Moment("report.html")
    if name == "train":
        return Moment("training.safetensors", 3)
    if name in REGISTERED and REGISTERED[name].weights_only:
        return Moment("*.csv")
    return Moment("*000-of-001.pt", 3)


def measured_afresh(name: str) -> bool:
    """Whether a command is compared with itself undisturbed; else with what the laws measured."""
    # safetensors puts metadata in another order in each process, but for forks of one.
    return kills_of(name) > 0 or name not in REGISTERED or name == "grams"


def tables_of(measured: Measured) -> dict[str, bytes]:
    """What `measure` wrote, by path below the folder of all results."""
    return {"/".join(path.parts[-4:]): path.read_bytes() for path in measured.folder.glob("*.csv")}


@pytest.mark.parametrize(
    "name", [name if measured_afresh(name) else of_analysis(name) for name in COMMANDS]
)
def test_killed_midway_and_at_random_moments_a_command_ends_with_the_right_bytes(
    name, command_of, measured
):
    draw = random.Random(f"{SEED} {name}")
    command = command_of(name)
    expected, took = (
        command.whole() if measured_afresh(name) else (tables_of(measured(name)), math.inf)
    )
    assert command.start(moment=midway(name)).end() == -signal.SIGKILL
    saved = command.measured()
    assert saved == (2 if command.states() else 0)
    kills, ends = 1, 0
    while kills <= kills_of(name):
        fork = command.start()
        time.sleep(draw.uniform(0, took))
        fork.send(signal.SIGKILL)
        if fork.end() == -signal.SIGKILL:
            kills += 1
            assert command.measured() >= saved, "what was saved is lost"
            for path, content in command.products().items():
                assert content in (expected[path], command.former.get(path))
        else:
            ends += 1
            assert command.take() == expected
        saved = command.measured()
    fork = command.start()
    assert fork.end() == 0, fork.err
    assert command.take() == expected
    print(f"{kills} kills, {ends + 1} results, nothing lost")


def test_faults_of_every_kind_in_any_order_end_with_the_right_bytes(command_of):
    """Signals, a disk that takes only part of a file, state files cut off or changed."""
    draw = random.Random(SEED + 1)
    command = command_of("cka")
    expected, took = command.whole()
    done: Counter[str] = Counter()
    for _ in range(max(12, KILLS // 3)):
        fault = draw.choice(["SIGTERM", "SIGINT", "SIGKILL", "disk", "cut", "flip"])
        states = command.states()
        if fault in ("cut", "flip") and states:
            content = bytearray(states[0].read_bytes())
            place = draw.randrange(len(content))
            if fault == "cut":
                del content[place:]
            else:
                content[place] ^= 1 << draw.randrange(8)
            states[0].write_bytes(content)
            with pytest.raises(Damaged):
                command.measured()
            done[fault] += 1
        fork = command.start(limit=draw.randrange(1, 20_000) if fault == "disk" else None)
        if fault.startswith("SIG"):
            time.sleep(draw.uniform(0, took))
            fork.send(getattr(signal, fault))
        if fork.end() == 0:
            assert command.take() == expected
        else:
            done[fault] += 1
    fork = command.start()
    assert fork.end() == 0, fork.err
    assert command.take() == expected
    print(", ".join(f"{count} {fault}" for fault, count in done.items()), "nothing wrong")
