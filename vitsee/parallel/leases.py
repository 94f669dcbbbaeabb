"""Leases: small files that say which process is measuring which minibatches, also across machines."""

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
"""Seconds between two heartbeats of a lease."""
PATIENCE = 30.0
"""Seconds without a heartbeat after which a process on another machine counts as dead."""


@dataclass(frozen=True)
class Lease:
    """A live process's claim to minibatches and a state file, which other processes must leave alone.

    path: the lease's file, next to the state file. machine: host, boot and process namespace. pid and
    started identify the process on that machine. token: unique to this lease.
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
        """The process, as messages refer to it."""
        return f"process {self.pid} on {self.machine.split()[0]}, since {self.since}"

    def check(self) -> None:
        """Raise Incomplete if another process has taken over the lease."""
        now = _read(self.path)
        if now is None or now.token != self.token:
            raise Incomplete(
                f"lost the lease {self.path}: this process did not respond for so long that another took over"
                f"{f' ({now.holder})' if now else ''}, or the folder was removed. Everything saved so far is "
                f"kept, and the same command resumes"
            )


@contextmanager
def lease(path: Path, pattern: str, wanted: Callable[[], list[int]]) -> Iterator[Lease]:
    """Run the block with a lease on those wanted minibatches that no live process has leased.

    path: the lease's file. pattern: matches the files of leases that may overlap with it. wanted: returns
    the minibatches to measure, according to the state files at the time of the call. Leases of dead
    processes are removed. Raises Busy if a live process uses the same state file or has leased all wanted
    minibatches, and UserError if the folder cannot be written.
    """
    mine = None
    with _alone(path.parent):
        while mine is None:
            # Read before `wanted` is called, so that it sees the work of leases released in between.
            leases = _leases(path, pattern)
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
                    f"wait for it, or stop it and repeat the same command"
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
    """Return the host, its boot and its process namespace, which together make process numbers unambiguous."""
    parts = [socket.gethostname()]
    with suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        parts.append(os.readlink("/proc/self/ns/pid"))
    return " ".join(parts)


def start_of(pid: int) -> str | None:
    """Return the start time of a process on this machine, in clock ticks; None if it is not running."""
    try:
        if not Path("/proc/self/stat").exists():  # macOS: the process number alone has to do
            os.kill(pid, 0)
            return ""
        words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except PermissionError:
        return ""
    except OSError:
        return None
    return None if words[0] in "ZX" else words[19]


def _without_dead(leases: list[Lease]) -> list[Lease]:
    """Return the leases of live processes, and remove those of dead ones.

    A process on this machine is looked up. A process elsewhere counts as alive if it touches its file while we
    watch. Clocks are never compared.
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
    """Return the file's modification time; None if it is gone. Opening the file makes NFS ask the server."""
    try:
        with opened(path) as file:
            return os.fstat(file.fileno()).st_mtime_ns
    except (OSError, UserError):
        return None


def _beat(path: Path, ended: threading.Event) -> None:
    """Touch the file regularly until `ended`, as a heartbeat for other machines."""
    with suppress(OSError), open(path, "rb") as file:
        while not ended.wait(BEAT):
            with suppress(OSError):
                os.utime(file.fileno())


def _leases(path: Path, pattern: str) -> list[Lease]:
    """Return this lease and all that may overlap with it. The holder of a truncated lease is unknown."""
    paths = sorted({*path.parent.glob(pattern), *([path] if path.exists() else [])})
    for each in paths:
        if each.is_dir():
            raise UserError(f"{each} is a folder, but leases are files; remove it")
    return [_read(p) or Lease(p, [], "another machine", 0, "", "?", token="") for p in paths]


def _read(path: Path) -> Lease | None:
    try:
        return Lease(path, **json.loads(content(path)))
    except (OSError, ValueError, TypeError, RecursionError):
        return None


def _write(new: Lease) -> Lease | None:
    """Write a new lease; return None if its file already exists."""
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
    """Run the block while no other process takes a lease, if the file system supports locks.

    Without locks, two leases taken at the same instant may overlap. Minibatches counted twice are
    detected and set aside when the sums are added.
    """
    try:
        # if this is a pipe, do not wait for a reader
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
