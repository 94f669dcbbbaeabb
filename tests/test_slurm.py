"""A real SLURM on this machine: arrays with a job cancelled and one out of time, sweeps through submitit."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import tiny_overrides, wait_until

from vitsee.results.folder import Results
from vitsee.runner import run
from vitsee.sums import Sums
from vitsee.testing import assert_same

ROOT = Path(__file__).parents[1]
PROGRAMS = ("slurmctld", "slurmd", "munged", "sbatch")

SLOW = """#!/bin/sh
# As vitsee, but on its first start a job of the named shards takes three seconds a minibatch.
exec {python} -c '
import os, sys, time
import vitsee.cli, vitsee.runner
asked = [word.partition("=")[2] for word in sys.argv if word.startswith("run.shard=")]
if "SLURM_RESTART_COUNT" not in os.environ and set(asked) & set(os.environ["SLOW_SHARDS"].split()):
    real = vitsee.runner.Sums.of
    vitsee.runner.Sums.of = lambda *words: (time.sleep(3), real(*words))[1]
sys.argv[0] = "vitsee"
vitsee.cli.main()
' "$@"
"""


pytestmark = pytest.mark.xdist_group("slurm")  # one SLURM, so one worker


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment in which sbatch and squeue speak to a SLURM of this machine's own."""
    absent = [name for name in PROGRAMS if shutil.which(name) is None]
    if absent:
        pytest.skip(f"SLURM: {', '.join(absent)} not installed (Debian: slurm-wlm and munge)")
    if os.geteuid() != 0:
        pytest.skip("SLURM: its daemons need root")
    home = tmp_path_factory.mktemp("slurm")
    where = os.environ | {"TMPDIR": str(home), "PYTHONPATH": str(ROOT)}
    script = str(ROOT / "tests/local_slurm.sh")
    started = subprocess.run([script, "start"], env=where, capture_output=True, text=True)
    try:
        if "idle" not in started.stdout:
            pytest.skip(f"SLURM did not start here: {started.stdout} {started.stderr}")
        yield where | {"SLURM_CONF": f"{home}/vitsee-slurm/slurm.conf"}
    finally:
        subprocess.run([script, "stop"], env=where, check=False)


@pytest.fixture
def ask(slurm):
    """What a SLURM command answers."""

    def call(*words: str, **environment: str) -> str:
        done = subprocess.run(
            words, env=slurm | environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return call


def wait_for(condition, seconds: float, what: str) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds} s for {what}"
        time.sleep(0.5)


def start_now(ask, job: str) -> bool:
    """Whether all jobs of the array have ended; those that SLURM lets wait after a requeue are hurried."""
    waiting = ask("squeue", "-h", "-r", "-j", job, "-o", "%A %T %r").splitlines()
    for line in waiting:
        number, state, reason = line.split(maxsplit=2)
        if state == "PENDING" and reason == "BeginTime":
            subprocess.run(["scontrol", "update", f"JobId={number}", "StartTime=now"], check=False)
    return not waiting


def test_an_array_with_a_cancelled_job_and_one_out_of_time_gives_the_local_tables(
    ask, images, tiny, tmp_path, monkeypatch, slurm
):
    monkeypatch.setenv("SLURM_CONF", slurm["SLURM_CONF"])
    whole = run(tiny(f"run.outputs={tmp_path / 'whole'}", "repeats=18")).folder
    vitsee = tmp_path / "vitsee"
    vitsee.write_text(SLOW.format(python=sys.executable))
    vitsee.chmod(0o755)
    outputs, log = tmp_path / "array", tmp_path / "%a.log"
    words = [*tiny_overrides(images, outputs), "repeats=18", "run.save_every=1"]
    told, slow = {"VITSEE": str(vitsee)}, "0 1"
    script = str(ROOT / "scripts/slurm_array.sh")
    options = ["--parsable", "--time=1", "--signal=B:USR1@20", f"--output={log}"]
    submit = ["sbatch", *options, "--array=0-2", script, *words]
    job = ask(*submit, **told, SLOW_SHARDS=slow).strip()

    def saved(shard: int) -> bool:
        found = list(outputs.rglob(f"00{shard}-of-003.pt"))
        return bool(found) and Sums.load(found[0]).seen.sum() > 0

    wait_for(lambda: saved(0), 120, "the first minibatches of shard 0")
    ask("scancel", f"{job}_0")
    wait_for(lambda: start_now(ask, job), 400, "the array to end")
    cancelled, late = (tmp_path / f"{i}.log" for i in (0, 1))
    assert "interrupted, state saved" in cancelled.read_text()
    assert "interrupted, state saved" in late.read_text()
    states = {p.stem: Sums.load(p).seen.sum().item() for p in outputs.rglob("00*-of-003.pt")}
    assert (states["001-of-003"], states["002-of-003"]) == (30, 30)
    assert 0 < states["000-of-003"] < 30
    assert not list(outputs.rglob("cka.csv"))
    assert "incomplete" not in late.read_text() or "minibatches are missing" in late.read_text()

    refill = ["sbatch", "--wait", *options, "--array=0", script, *words]
    ask(*refill, **told, SLOW_SHARDS="")
    (csv,) = outputs.rglob("cka.csv")
    assert_same(Results(csv.parent).tables(), Results(whole).tables())
    filled = Sums.load(csv.parent / "state/000-of-001.pt").seen.sum()
    assert filled == 30 - states["000-of-003"]


def test_the_array_script_refuses_an_array_whose_jobs_would_not_know_their_shares(ask, tmp_path):
    script = str(ROOT / "scripts/slurm_array.sh")
    done = subprocess.run(
        [script],
        env=os.environ | {f"SLURM_ARRAY_TASK_{k}": v for k, v in RANGE.items()},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "the array must be 0-N" in done.stderr


def test_a_job_that_is_out_of_time_before_it_has_begun_is_requeued(tmp_path):
    programs = {"vitsee": "echo > began; exec sleep 600", "scontrol": 'echo "$@" > asked'}
    for name, does in programs.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{does}\n")
        (tmp_path / name).chmod(0o755)
    environment = {f"SLURM_ARRAY_TASK_{k}": v for k, v in RANGE.items()} | {
        "SLURM_ARRAY_TASK_MIN": "0",
        "SLURM_ARRAY_TASK_MAX": "1",
        "SLURM_JOB_ID": "7",
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
    }
    job = subprocess.Popen(
        [str(ROOT / "scripts/slurm_array.sh")], env=os.environ | environment, cwd=tmp_path
    )
    wait_until((tmp_path / "began").exists)
    job.send_signal(signal.SIGUSR1)
    assert job.wait() == 0
    assert (tmp_path / "asked").read_text() == "requeue 7\n"


RANGE = {"COUNT": "2", "MIN": "1", "MAX": "3", "ID": "1"}


def sweep(slurm, images: Path, outputs: Path, *words: str) -> subprocess.Popen:
    submitit = ["hydra/launcher=slurm", "hydra.launcher.gpus_per_node=null"]
    few = ["hydra.launcher.cpus_per_task=1", "hydra.launcher.timeout_min=10"]
    asked = ["-m", *submitit, *few, *tiny_overrides(images, outputs), *words]
    return subprocess.Popen(
        [sys.executable, "-m", "vitsee", "run", *asked],
        env=slurm,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=outputs.parent,
    )


def test_a_sweep_over_shards_through_submitit_gives_the_local_tables(slurm, images, tiny, tmp_path):
    whole = run(tiny(f"run.outputs={tmp_path / 'whole'}")).folder
    outputs = tmp_path / "swept"
    process = sweep(slurm, images, outputs, "run.shards=2", "run.shard=0,1")
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    (csv,) = outputs.rglob("cka.csv")
    assert_same(Results(csv.parent).tables(), Results(whole).tables())


def test_a_mistake_in_a_sweep_through_submitit_is_one_of_the_user_s(slurm, images, tmp_path):
    process = sweep(slurm, images, tmp_path / "o", "seed=0", "analysis.layers=[block.*]")
    _, err = process.communicate(timeout=300)
    assert process.returncode == 2, err
    assert re.search(
        r"^vitsee run: analysis.layers: nothing in VisionTransformer matches 'block", err, re.M
    )
