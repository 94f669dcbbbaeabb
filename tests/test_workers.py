"""Several processes for one command, here on the CPU: same tables, one display, one error, nothing lost."""

from __future__ import annotations

import os
import re
import signal
import threading
from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
import torch
from conftest import asked_by_laws, composed, of_analysis, tiny_overrides, wait_until, write_images
from forks import Fork, Forks

from vitsee import gpus
from vitsee.analysis import REGISTERED
from vitsee.errors import UserError
from vitsee.options import RunOptions
from vitsee.results.folder import Results
from vitsee.runner import run
from vitsee.study import Study
from vitsee.sums import Sums
from vitsee.testing import assert_same

SHARED = [
    name
    for name in sorted(REGISTERED)
    if not REGISTERED[name].weights_only and (name == "cka" or len(REGISTERED[name].splits) > 1)
]
"""CKA for all analyses of one pass, and each of several passes."""


@pytest.fixture
def start(forks: Forks, images: Path) -> Callable[..., Fork]:
    """Starts `vitsee run` with two processes."""

    def start(outputs: Path, *overrides: str) -> Fork:
        words = [*tiny_overrides(images, outputs), "run.gpus=2", "run.save_every=1", *overrides]
        return forks.start(["run", *words], drawn=False)

    return start


def children_of(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def spawned_by(pid: int) -> list[int]:
    """Processes that this one started to measure, each with an interpreter of its own, in that order."""
    return [
        child
        for child in children_of(pid)
        if "spawn_main" in Path(f"/proc/{child}/cmdline").read_text()
    ]


@pytest.mark.parametrize("name", [of_analysis(name) for name in SHARED])
def test_two_processes_give_the_tables_of_one_with_one_display(name, start, measured, tmp_path):
    asked = asked_by_laws(name)
    process = start(tmp_path / "two", *asked, "run.progress=true")
    assert process.end() == 0
    shared = Path(process.out.split()[0]).parent
    assert_same(Results(measured(name).folder).tables(), Results(shared).tables())
    assert len(list(shared.glob("state/*-of-002.pt"))) == 2 * len(REGISTERED[name].splits)
    assert set(re.findall(r"(\S+ on \d devices):", process.err)) == {f"{name} on 2 devices"}
    assert re.search(r"100%.* 3/3 ", process.err) or len(REGISTERED[name].splits) > 1


def test_the_error_of_one_is_told_once_and_the_work_of_the_other_kept(start, images, tmp_path):
    folder = write_images(tmp_path / "photos", 40)
    overrides = [f"dataset.root={folder}", f"run.outputs={tmp_path / 'o'}"]
    study = Study(composed(*tiny_overrides(images, tmp_path), *overrides))
    # in the order of the plan, an image of the second process's first minibatch
    bad = folder / study.images.id(study.plan.batch(1)[0])
    content = bad.read_bytes()
    bad.write_bytes(b"\0" * len(content))
    process = start(tmp_path, *overrides)
    assert (process.end(), process.out) == (2, "")
    (line,) = [line for line in process.err.splitlines() if "cannot decode image" in line]
    assert bad.name in line
    assert (
        "(process 1 of 2, on cpu; the work of the other processes is kept, and the same command resumes)"
        in line
    )
    (kept,) = [p for p in tmp_path.rglob("000-of-002.pt") if Sums.load(p).seen.sum() == 3]
    before = kept.read_bytes()
    bad.write_bytes(content)
    process = start(tmp_path, *overrides)
    assert process.end() == 0
    assert process.out.split()[0].endswith("cka.csv")
    assert kept.read_bytes() == before


def test_a_mistake_of_all_is_told_once(start, tmp_path):
    process = start(tmp_path, "analysis.layers=[block.*]")
    assert (process.end(), process.out) == (2, "")
    assert process.err.count("nothing in VisionTransformer matches") == 1
    assert process.err.splitlines()[-1].startswith("vitsee run: analysis.layers: nothing in")
    assert "process" not in process.err


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds processes by /proc")
def test_a_killed_process_is_told_and_the_same_command_goes_on(tiny, tmp_path, monkeypatch):
    whole = run(tiny(f"run.outputs={tmp_path / 'whole'}")).folder
    killed, go_on = threading.Event(), gpus._release

    def kill() -> None:
        wait_until(lambda: list(tmp_path.rglob("o/**/001-of-002.pt")))
        os.kill(spawned_by(os.getpid())[1], signal.SIGKILL)
        killed.set()

    def once_killed(meeting: list[Connection]) -> None:
        if killed.is_set():  # it waits for the others until then
            go_on(meeting)

    asked = [f"run.outputs={tmp_path / 'o'}", "run.gpus=2", "run.save_every=1"]
    with monkeypatch.context() as patch:
        patch.setattr(gpus, "_release", once_killed)
        threading.Thread(target=kill, daemon=True).start()
        with pytest.raises(
            UserError, match=r"a process died without a message \(killed by SIGKILL\)"
        ):
            gpus.run(tiny(*asked))
    monkeypatch.setattr(gpus, "get_context", lambda kind: get_context("fork"))
    shared = gpus.run(tiny(*asked)).folder
    assert_same(Results(whole).tables(), Results(shared).tables())


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds processes by /proc")
@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGKILL])
def test_when_the_command_is_stopped_its_processes_save_and_end(stop, start, tmp_path):
    process = start(tmp_path, "repeats=4000")
    wait_until(lambda: list(tmp_path.rglob("001-of-002.pt")), process)
    members = children_of(process.pid)
    assert len(members) == 2
    process.send(stop)
    if stop is signal.SIGKILL:
        assert process.end() == -signal.SIGKILL
    else:
        assert process.end() == 130
        assert process.err.count("interrupted, state saved; repeat the command to continue") == 1
    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in members))
    assert not list(tmp_path.rglob("*.lease"))


class TestDevices:
    @pytest.fixture
    def with_gpus(self, monkeypatch):
        def pretend(count: int) -> None:
            monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
            monkeypatch.setattr(torch.cuda, "device_count", lambda: count)

        return pretend

    def test_all_is_a_process_on_every_gpu(self, with_gpus):
        with_gpus(4)
        assert gpus.choose(RunOptions(device="all")) == ["cuda:0", "cuda:1", "cuda:2", "cuda:3"]
        assert gpus.choose(RunOptions(gpus=2)) == ["cuda:0", "cuda:1"]

    def test_without_a_gpu_one_process_does_it_all_and_says_so(self, with_gpus, caplog):
        with_gpus(0)
        assert gpus.choose(RunOptions(device="all")) == ["auto"]
        assert "run.device=all, but torch finds no usable GPU:" in caplog.text
        assert gpus.choose(RunOptions(gpus=3)) == ["auto"]
        assert "run.gpus=3, but torch finds no usable GPU:" in caplog.text

    def test_more_than_there_are_is_as_many_as_there_are(self, with_gpus, caplog):
        with_gpus(2)
        assert gpus.choose(RunOptions(gpus=3)) == ["cuda:0", "cuda:1"]
        assert "run.gpus=3, but only 2 available: using those" in caplog.text

    def test_one_named_gpu_is_one(self, with_gpus):
        with_gpus(2)
        assert gpus.choose(RunOptions(device="cuda:1")) == ["cuda:1"]
        with pytest.raises(UserError, match=r"run.device=cuda:1, which is one device"):
            gpus.choose(RunOptions(device="cuda:1", gpus=2))
        with pytest.raises(UserError, match=r"run.gpus must be at least 1, got 0"):
            RunOptions(gpus=0)

    def test_jobs_of_several_gpus_share_one_experiment(self, tiny):
        jobs = [tiny("run.shards=3", f"run.shard={shard}") for shard in range(3)]
        parts = [gpus.Team(job, ["cpu", "cpu"]).part(k).run for job in jobs for k in (0, 1)]
        assert sorted(part.shard for part in parts) == list(range(6))
        assert {part.shards for part in parts} == {6}
