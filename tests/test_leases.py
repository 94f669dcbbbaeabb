"""Claims: one process a state file, no minibatch twice, the dead recognised, on one machine and on several."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from dataclasses import asdict

import pytest
from conftest import tiny_overrides
from forks import Moment

from vitsee.errors import Incomplete, UserError
from vitsee.parallel import leases
from vitsee.parallel.leases import Lease, lease

PATTERN = "[0-9]*-of-*.lease"


def write(path, minibatches, **who) -> Lease:
    """The lease of some other process."""
    there = Lease(path, minibatches, **who)
    record = {key: value for key, value in asdict(there).items() if key != "path"}
    path.write_text(json.dumps(record))
    return there


@pytest.fixture
def quick(monkeypatch):
    """Patience of a moment."""
    monkeypatch.setattr(leases, "BEAT", 0.05)
    monkeypatch.setattr(leases, "PATIENCE", 0.3)


def of_dead_process() -> dict:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    return {"pid": ended.pid, "started": "1"}


def test_a_lease_lasts_as_long_as_its_block(tmp_path):
    path = tmp_path / "000-of-001.lease"
    with lease(path, PATTERN, lambda: [3, 1]) as mine:
        assert mine.minibatches == [1, 3]
        assert path.exists()
        mine.check()
    assert not path.exists()


def test_nothing_to_measure_needs_no_lease(tmp_path):
    write(tmp_path / "000-of-001.lease", [0, 1])
    with lease(tmp_path / "000-of-001.lease", PATTERN, list) as mine:
        assert mine.minibatches == []


def test_the_second_process_on_a_shard_is_told_who_holds_it(tmp_path):
    path = tmp_path / "000-of-001.lease"
    with (
        lease(path, PATTERN, lambda: [0]),
        pytest.raises(Incomplete, match=rf"is being measured by process {os.getpid()} on .*since"),
        lease(path, PATTERN, lambda: [0]),
    ):
        pass


def test_what_others_have_leased_is_left_to_them(tmp_path):
    write(tmp_path / "001-of-002.lease", [1, 3])
    with lease(tmp_path / "000-of-001.lease", PATTERN, lambda: [0, 1, 2, 3]) as mine:
        assert mine.minibatches == [0, 2]


def test_all_leased_by_others_is_told(tmp_path):
    write(tmp_path / "000-of-001.lease", [0, 1, 2, 3])
    with (
        pytest.raises(Incomplete, match="is being measured by"),
        lease(tmp_path / "001-of-002.lease", PATTERN, lambda: [1, 3]),
    ):
        pass


def test_the_lease_of_a_dead_process_of_this_machine_is_removed_at_once(tmp_path, monkeypatch):
    path = tmp_path / "000-of-001.lease"
    write(path, [0], **of_dead_process())
    monkeypatch.setattr(leases, "_touched", None)  # would fail if its file were watched
    with lease(path, PATTERN, lambda: [0]) as mine:
        assert mine.minibatches == [0]


def test_a_number_that_the_system_gave_to_another_process_is_no_sign_of_life(tmp_path):
    path = tmp_path / "000-of-001.lease"
    write(path, [0], pid=os.getpid(), started="1")
    with lease(path, PATTERN, lambda: [0]) as mine:
        assert mine.minibatches == [0]


def test_a_zombie_is_dead(tmp_path):
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    assert leases.start_of(child.pid)
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert leases.start_of(child.pid) is None
    child.communicate()


def test_a_process_of_another_machine_is_alive_while_it_touches_its_lease(
    tmp_path, quick, monkeypatch
):
    path = tmp_path / "000-of-001.lease"
    write(path, [0], machine="elsewhere")
    monkeypatch.setattr(leases, "PATIENCE", 600.0)  # until it is touched, however busy the machine
    ended = threading.Event()
    beating = threading.Thread(target=leases._beat, args=(path, ended))
    beating.start()
    try:
        with (
            pytest.raises(Incomplete, match="on elsewhere"),
            lease(path, PATTERN, lambda: [0]),
        ):
            pass
    finally:
        ended.set()
        beating.join()
    monkeypatch.setattr(leases, "PATIENCE", 0.3)
    with lease(path, PATTERN, lambda: [0]) as mine:  # silent for longer than our patience
        assert mine.machine == leases.this_machine()


def test_a_lease_that_was_cut_off_holds_nothing(tmp_path, quick):
    path = tmp_path / "000-of-001.lease"
    path.write_text("{")
    with lease(path, PATTERN, lambda: [0]) as mine:
        assert mine.minibatches == [0]


def test_a_process_that_was_taken_for_dead_notices_and_writes_nothing(tmp_path):
    path = tmp_path / "000-of-001.lease"
    with lease(path, PATTERN, lambda: [0]) as mine:
        path.unlink()
        write(path, [0], machine="elsewhere")
        with pytest.raises(Incomplete, match=r"another took over \(process .* on elsewhere"):
            mine.check()
    assert path.exists(), "the lease is somebody else's now"


def test_leases_on_a_file_system_without_locks(tmp_path, monkeypatch):
    def unsupported(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(leases.fcntl, "flock", unsupported)
    with lease(tmp_path / "000-of-001.lease", PATTERN, lambda: [0]) as mine:
        assert mine.minibatches == [0]


def test_a_lease_that_cannot_be_written_is_the_user_s_to_mend(tmp_path, monkeypatch):
    monkeypatch.setattr(
        leases.json, "dumps", lambda record: (_ for _ in ()).throw(OSError(28, "No space left"))
    )
    with (
        pytest.raises(UserError, match="No space left; free some space"),
        lease(tmp_path / "000-of-001.lease", PATTERN, lambda: [0]),
    ):
        pass
    assert not list(tmp_path.glob("*.lease"))


@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGKILL])
def test_two_commands_at_once_lose_and_repeat_nothing(stop, forks, images, tmp_path):
    def words(outputs: str) -> list[str]:
        return ["run", *tiny_overrides(images, tmp_path / outputs), "run.save_every=1"]

    forks.run(words("whole"))
    state = Moment(
        "000-of-001.pt", 3, signal.SIGSTOP
    )  # it is not done before the second has started
    first = forks.start(words("two"), moment=state)
    first.wait_until_stopped()
    second = forks.start(words("two"))
    assert second.end() == 3
    assert f"is being measured by process {first.pid} on" in second.err
    first.send(stop)
    first.send(signal.SIGCONT)
    assert first.end() == (130 if stop is signal.SIGTERM else -signal.SIGKILL)
    forks.run(words("two"))
    (whole,), (two,) = (list((tmp_path / name).rglob("cka.csv")) for name in ("whole", "two"))
    assert two.read_bytes() == whole.read_bytes()
