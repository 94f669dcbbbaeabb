"""Which process is at work on which minibatches: a small file each, in a folder that machines may share."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from vitsee.errors import Busy, Incomplete, UserError, unwritable
from vitsee.io.files import content, opened

BEAT = 5.0
"""Seconds between two signs of life of a lease."""
PATIENCE = 30.0
"""Seconds without a sign after which a process of another machine is taken for dead."""


@dataclass(frozen=True)
class Lease:
    """What a live process is measuring; others leave these minibatches, and its state file, to it.

    path: of the lease's file, beside the state file. machine: host, its boot and its process namespace;
    pid and started tell a process of that machine from all others. token: differs between any two leases.
    """

    path: Path
    minibatches: list[int]
    machine: str = field(default_factory=lambda: this_machine())
    pid: int = field(default_factory=os.getpid)
    started: str = field(default_factory=lambda: start_of(os.getpid()) or "")
    since: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    token: str = field(default_factory=lambda: secrets.token_hex(8))

    @property
    def holder(self) -> str:
        """The process in words."""
        return f"process {self.pid} on {self.machine.split()[0]}, since {self.since}"

    def check(self) -> None:
        """Raise Incomplete if another process has taken over, believing this one dead."""
        now = _read(self.path)
        if now is None or now.token != self.token:
            raise Incomplete(
                f"the lease {self.path} is gone: this process was silent for so long that another took over"
                f"{f' ({now.holder})' if now else ''}, or the folder was removed; what was saved before is "
                f"kept, and the same command goes on"
            )


@contextmanager
def lease(path: Path, pattern: str, wanted: Callable[[], list[int]]) -> Iterator[Lease]:
    """Lease, within the block, those of the wanted minibatches that no live process has leased.

    path: of the lease's file. pattern: matches the leases beside it that may overlap with it. wanted:
    what is to be measured, from the state files as they are when it is called. Claims of dead
    processes are removed. Raises Incomplete if a live process uses the same state file or has all
    that is wanted, and UserError if the folder cannot be written.
    """
    mine = None
    with _alone(path.parent):
        while mine is None:
            leases = _leases(
                path, pattern
            )  # before `wanted`, which then sees what is released meanwhile
            todo = set(wanted())
            if not todo:
                break
            rivals = [
                c for c in leases if c.path == path or todo & set(c.minibatches) or not c.token
            ]
            if _without_dead(rivals) != rivals or not all(c.token for c in rivals):
                continue
            taken = {b for rival in rivals for b in rival.minibatches}
            if any(rival.path == path for rival in rivals) or todo <= taken:
                raise Busy(
                    f"{path.parent.parent} is being measured by {'; '.join(c.holder for c in rivals)}: "
                    f"wait for it, or stop it and give the same command again"
                )
            mine = _write(Lease(path, sorted(todo - taken)))
    if mine is None:
        yield Lease(path, [])
        return
    ended = threading.Event()
    beating = threading.Thread(target=_beat, args=(path, ended), daemon=True)
    beating.start()
    try:
        yield mine
    finally:
        ended.set()
        beating.join()
        with suppress(Incomplete, OSError):
            mine.check()
            path.unlink()


def this_machine() -> str:
    """The host, its boot and its process namespace: where process numbers mean the same."""
    parts = [socket.gethostname()]
    with suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        parts.append(os.readlink("/proc/self/ns/pid"))
    return " ".join(parts)


def start_of(pid: int) -> str | None:
    """When a process of this machine started, in the system's ticks; None if it does not run."""
    try:
        if not Path("/proc/self/stat").exists():  # macOS: the number alone must do
            os.kill(pid, 0)
            return ""
        words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except PermissionError:
        return ""
    except OSError:
        return None
    return None if words[0] in "ZX" else words[19]


def _without_dead(leases: list[Lease]) -> list[Lease]:
    """The leases that are alive; those of the dead are removed.

    A process of this machine is looked up. One elsewhere must be seen to touch its file, or to give
    its lease up; no clocks are compared.
    """
    here = this_machine()
    alive = {c.path for c in leases if c.machine == here and start_of(c.pid) == c.started}
    watched = {c.path: _touched(c.path) for c in leases if c.machine != here}
    deadline = time.monotonic() + PATIENCE
    while watched and time.monotonic() < deadline:
        time.sleep(0.2)
        alive |= {path for path, before in watched.items() if _touched(path) not in (before, None)}
        watched = {p: t for p, t in watched.items() if p not in alive and _touched(p) is not None}
    for one in leases:
        if one.path not in alive:
            one.path.unlink(missing_ok=True)
    return [one for one in leases if one.path in alive]


def _touched(path: Path) -> int | None:
    """When the file was last touched; None if it is gone. Opening it makes NFS ask the server."""
    try:
        with opened(path) as file:
            return os.fstat(file.fileno()).st_mtime_ns
    except (OSError, UserError):
        return None


def _beat(path: Path, ended: threading.Event) -> None:
    """Touch the file until the end, as a sign of life for other machines."""
    with suppress(OSError), open(path, "rb") as file:
        while not ended.wait(BEAT):
            with suppress(OSError):
                os.utime(file.fileno())


def _leases(path: Path, pattern: str) -> list[Lease]:
    """The leases beside this one. One that was cut off while written is held by nobody we know."""
    found = sorted({*path.parent.glob(pattern), *([path] if path.exists() else [])})
    for each in found:
        if each.is_dir():
            raise UserError(f"{each} is a folder, but leases are files; remove it")
    return [_read(p) or Lease(p, [], "another machine", 0, "", "?", token="") for p in found]


def _read(path: Path) -> Lease | None:
    try:
        return Lease(path, **json.loads(content(path)))
    except (OSError, ValueError, TypeError, RecursionError):
        return None


def _write(new: Lease) -> Lease | None:
    """Write a lease whose file does not exist; None if it does after all."""
    record = {key: value for key, value in asdict(new).items() if key != "path"}
    try:
        file = os.open(new.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    except FileExistsError:
        return None
    except OSError as error:
        raise unwritable(new.path, error) from error
    try:
        with open(file, "wb") as opened:
            opened.write(json.dumps(record).encode())
    except OSError as error:
        new.path.unlink(missing_ok=True)
        raise unwritable(new.path, error) from error
    return new


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Within the block no other process makes a lease, where the file system has locks.

    Where it has none, two leases made in the same instant may overlap; what is then counted twice is
    found and set aside when the sums are added.
    """
    try:
        # without waiting for a reader, should it be a pipe
        number = os.open(folder / ".leasing", os.O_WRONLY | os.O_CREAT | os.O_NONBLOCK, 0o666)
        file = open(number, "wb")  # noqa: SIM115
    except OSError as error:
        raise unwritable(folder, error) from error
    with file:
        deadline = time.monotonic() + 4 * PATIENCE
        while time.monotonic() < deadline:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError as error:
                if error.errno not in (errno.EAGAIN, errno.EACCES):
                    break
                time.sleep(0.05)
        yield
