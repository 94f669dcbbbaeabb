"""A real SLURM on this machine: arrays with a job cancelled and one out of time, sweeps through submitit."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
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


def ended(ask, job: str, hurried: set[str]) -> bool:
    """Whether all jobs of the array have ended; one that SLURM lets wait after a requeue begins in 3 seconds.

    Not at once: a node refuses a job that begins in the second in which it ended.
    """
    waiting = ask("squeue", "-h", "-r", "-j", job, "-o", "%F_%K %T %r").splitlines()
    for line in waiting:
        number, state, reason = line.split(maxsplit=2)
        if state == "PENDING" and reason == "BeginTime" and number not in hurried:
            ask("scontrol", "update", f"JobId={number}", "StartTime=now+3")
            hurried.add(number)
    return not waiting


def test_an_array_with_a_cancelled_job_and_one_out_of_time_gives_the_local_tables(
    ask, images, tiny, tmp_path, monkeypatch, slurm
):
    monkeypatch.setenv("SLURM_CONF", slurm["SLURM_CONF"])
    whole = run(tiny(f"run.outputs={tmp_path / 'whole'}", "repeats=12")).folder
    vitsee = tmp_path / "vitsee"
    vitsee.write_text(SLOW.format(python=sys.executable))
    vitsee.chmod(0o755)
    outputs, log = tmp_path / "array", tmp_path / "%a.log"
    words = [*tiny_overrides(images, outputs), "repeats=12", "run.save_every=1"]
    told = {"VITSEE": str(vitsee)}
    script = str(ROOT / "scripts/slurm_array.sh")
    options = ["--parsable", "--time=10", "--signal=B:USR1@60", f"--output={log}"]
    submit = ["sbatch", *options, "--array=0-1", script, *words]
    job = ask(*submit, **told, SLOW_SHARDS="0 1").strip()

    def saved(shard: int) -> bool:
        found = list(outputs.rglob(f"00{shard}-of-002.pt"))
        return bool(found) and Sums.load(found[0]).seen.sum() > 0

    wait_until(lambda: saved(0), every=0.5)
    ask("scancel", f"{job}_0")
    wait_until(lambda: saved(1), every=0.5)
    ask("scancel", "--signal=USR1", "--batch", f"{job}_1")  # as SLURM does before time is up
    hurried: set[str] = set()
    wait_until(lambda: ended(ask, job, hurried), every=0.5)
    assert hurried == {f"{job}_1"}
    cancelled, late = (tmp_path / f"{i}.log" for i in (0, 1))
    assert "interrupted, state saved" in cancelled.read_text()
    assert "interrupted, state saved" in late.read_text()
    states = {p.stem: Sums.load(p).seen.sum().item() for p in outputs.rglob("00*-of-002.pt")}
    assert states["001-of-002"] == 30
    assert 0 < states["000-of-002"] < 30
    assert not list(outputs.rglob("cka.csv"))
    assert "minibatches are missing" in late.read_text()

    refill = ask("sbatch", *options, "--array=0", script, *words, **told, SLOW_SHARDS="").strip()
    wait_until(lambda: ended(ask, refill, hurried), every=0.5)
    (csv,) = outputs.rglob("cka.csv")
    assert_same(Results(csv.parent).tables(), Results(whole).tables())
    filled = Sums.load(csv.parent / "state/000-of-001.pt").seen.sum()
    assert filled == 30 - states["000-of-002"]


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
        "SLURM_ARRAY_JOB_ID": "7",
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
    }
    job = subprocess.Popen(
        [str(ROOT / "scripts/slurm_array.sh")], env=os.environ | environment, cwd=tmp_path
    )
    wait_until((tmp_path / "began").exists)
    job.send_signal(signal.SIGUSR1)
    assert job.wait() == 0
    assert (tmp_path / "asked").read_text() == "requeue 7_1\n"


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
