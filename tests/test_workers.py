"""Several processes for one command, here on the CPU: same tables, one display, one error, nothing lost."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from conftest import composed, tiny_overrides, wait_until, write_images
from test_laws import NEEDED, assert_same_tables

from vitsee import workers
from vitsee.analysis import REGISTERED
from vitsee.config import Run
from vitsee.errors import UserError
from vitsee.results import Results
from vitsee.runner import run
from vitsee.study import Study
from vitsee.sums import Sums

SHARED = [
    name
    for name in sorted(REGISTERED)
    if not REGISTERED[name].weights_only and (name == "cka" or len(REGISTERED[name].splits) > 1)
]
"""CKA for all analyses of one pass, and each of several passes."""


@pytest.fixture
def start(images: Path) -> Iterator[Callable[..., subprocess.Popen]]:
    """Starts `vitsee run` with two processes; whatever a failed test leaves of it is killed."""
    started = []

    def start(outputs: Path, *overrides: str) -> subprocess.Popen:
        words = [*tiny_overrides(images, outputs), "run.gpus=2", "run.save_every=1", *overrides]
        process = subprocess.Popen(
            [sys.executable, "-m", "vitsee", "run", *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def members_of(process: subprocess.Popen) -> list[int]:
    """Processes that it started to measure, in that order."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    words = {int(pid): Path(f"/proc/{pid}/cmdline").read_text() for pid in children}
    return [pid for pid, command in words.items() if "spawn_main" in command]


@pytest.mark.parametrize("name", SHARED)
def test_two_processes_give_the_tables_of_one_with_one_display(name, start, tiny, tmp_path):
    asked = [f"analysis={name}", *NEEDED.get(name, [])]
    whole = run(tiny(*asked, f"run.outputs={tmp_path / 'whole'}"))[0].parent
    out, err = start(tmp_path / "two", *asked, "run.progress=true").communicate()
    shared = Path(out.split()[0]).parent
    assert_same_tables(Results(whole).tables(), Results(shared).tables())
    assert len(list(shared.glob("state/*-of-002.pt"))) == 2 * len(REGISTERED[name].splits)
    assert set(re.findall(r"(\S+ on \d devices):", err)) == {f"{name} on 2 devices"}
    assert re.search(r"100%.* 5/5 ", err) or len(REGISTERED[name].splits) > 1


def test_the_error_of_one_is_told_once_and_the_work_of_the_other_kept(start, images, tmp_path):
    folder = write_images(tmp_path / "photos", 40)
    overrides = [f"dataset.root={folder}", f"run.outputs={tmp_path / 'o'}"]
    study = Study(composed(*tiny_overrides(images, tmp_path), *overrides))
    # in the order of the plan, an image of the second process's first minibatch
    bad = folder / study.images.id(study.plan.batch(1)[0])
    content = bad.read_bytes()
    bad.write_bytes(b"\0" * len(content))
    process = start(tmp_path, *overrides)
    out, err = process.communicate()
    assert (process.returncode, out) == (2, "")
    (line,) = [line for line in err.splitlines() if "cannot decode image" in line]
    assert bad.name in line
    assert (
        "(process 1 of 2, on cpu; the work of the others is kept, and the same command goes on)"
        in line
    )
    assert "Traceback" not in err
    (kept,) = [p for p in tmp_path.rglob("000-of-002.pt") if Sums.load(p).seen.sum() == 3]
    before = kept.read_bytes()
    bad.write_bytes(content)
    process = start(tmp_path, *overrides)
    assert process.communicate()[0].split()[0].endswith("cka.csv")
    assert kept.read_bytes() == before


def test_a_mistake_of_all_is_told_once(start, tmp_path):
    process = start(tmp_path, "analysis.layers=[block.*]")
    out, err = process.communicate()
    assert (process.returncode, out) == (2, "")
    assert err.count("nothing in VisionTransformer matches") == 1
    assert err.splitlines()[-1].startswith("vitsee run: analysis.layers: nothing in")
    assert "process" not in err


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds processes by /proc")
def test_a_killed_process_is_told_and_the_same_command_goes_on(start, tiny, tmp_path):
    whole = run(tiny(f"run.outputs={tmp_path / 'whole'}", "repeats=10"))[0].parent
    process = start(tmp_path / "o", "repeats=10")
    wait_until(lambda: list(tmp_path.rglob("o/**/001-of-002.pt")), process)
    os.kill(members_of(process)[1], signal.SIGKILL)
    _, err = process.communicate()
    assert process.returncode == 2
    assert err.count("a process ended without a word (killed by SIGKILL)") == 1
    shared = Path(start(tmp_path / "o", "repeats=10").communicate()[0].split()[0]).parent
    assert_same_tables(Results(whole).tables(), Results(shared).tables())


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds processes by /proc")
@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGKILL])
def test_when_the_command_is_stopped_its_processes_save_and_end(stop, start, tmp_path):
    process = start(tmp_path, "repeats=4000")
    wait_until(lambda: list(tmp_path.rglob("001-of-002.pt")), process)
    members = members_of(process)
    assert len(members) == 2
    process.send_signal(stop)
    _, err = process.communicate()
    if stop is signal.SIGTERM:
        assert process.returncode == 130
        assert err.count("interrupted, state saved; the same command goes on") == 1
    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in members))
    assert not list(tmp_path.rglob("*.claim"))


class TestDevices:
    @pytest.fixture
    def gpus(self, monkeypatch):
        def pretend(count: int) -> None:
            monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
            monkeypatch.setattr(torch.cuda, "device_count", lambda: count)

        return pretend

    def test_all_is_a_process_on_every_gpu(self, gpus):
        gpus(4)
        assert workers.choose(Run(device="all")) == ["cuda:0", "cuda:1", "cuda:2", "cuda:3"]
        assert workers.choose(Run(gpus=2)) == ["cuda:0", "cuda:1"]

    def test_without_a_gpu_one_process_does_it_all_and_says_so(self, gpus, caplog):
        gpus(0)
        assert workers.choose(Run(device="all")) == ["auto"]
        assert "run.device=all, but there is no GPU here that torch can use" in caplog.text
        assert workers.choose(Run(gpus=3)) == ["auto"]
        assert "run.gpus=3, but there is no GPU here" in caplog.text

    def test_more_than_there_are_is_as_many_as_there_are(self, gpus, caplog):
        gpus(2)
        assert workers.choose(Run(gpus=3)) == ["cuda:0", "cuda:1"]
        assert "run.gpus=3, but there are only 2 here: these are used" in caplog.text

    def test_one_named_gpu_is_one(self, gpus):
        gpus(2)
        assert workers.choose(Run(device="cuda:1")) == ["cuda:1"]
        with pytest.raises(UserError, match=r"run.device=cuda:1, which is one device"):
            workers.choose(Run(device="cuda:1", gpus=2))
        with pytest.raises(UserError, match=r"run.gpus must be at least 1, got 0"):
            Run(gpus=0)

    def test_jobs_of_several_gpus_share_one_experiment(self, tiny):
        jobs = [tiny("run.shards=3", f"run.shard={shard}") for shard in range(3)]
        parts = [workers.Team(job, ["cpu", "cpu"]).part(k).run for job in jobs for k in (0, 1)]
        assert sorted(part.shard for part in parts) == list(range(6))
        assert {part.shards for part in parts} == {6}
