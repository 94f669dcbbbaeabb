"""Runs one command on several devices: a process per device, one progress bar, one error, and no work lost."""

from __future__ import annotations

import logging
import os
import signal
import threading
import traceback
from contextlib import suppress
from dataclasses import dataclass, replace
from multiprocessing import connection, get_context, parent_process
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess

import torch
from tqdm import tqdm

from vitsee import mistakes, runner
from vitsee.data.minibatches import cores, workers_for
from vitsee.errors import Incomplete, UserError, show_traceback, speak_plainly
from vitsee.options import Experiment, RunOptions
from vitsee.parallel.interrupt import Interrupted, Interruptible
from vitsee.parallel.team import Member
from vitsee.results.reading import Written

log = logging.getLogger(__name__)
Outcome = Written | BaseException
"""What a process wrote, or the error that ended it."""
PATIENCE = 30
"""Seconds that a process has to end after its last message, or after it was asked to end."""


def run(experiment: Experiment) -> Written:
    """Run the experiment as `runner.run` does, with one process per device of run.device=all or run.gpus=N."""
    devices = choose(experiment.run)
    if len(devices) == 1 or experiment.analysis.weights_only:
        how = replace(experiment.run, device=devices[0], gpus=None)
        return runner.run(replace(experiment, run=how))
    return Team(experiment, devices).run()


def choose(how: RunOptions) -> list[str]:
    """Return the device of each process. Logs a warning if there are fewer GPUs than requested.

    Raises UserError if run.gpus does not fit run.device.
    """
    if how.device == "cpu":
        return ["cpu"] * (how.gpus or 1)
    if how.device != "all" and how.gpus is None:
        return [how.device]
    if how.device not in ("all", "auto", "cuda"):
        raise UserError(
            f"run.gpus={how.gpus} with run.device={how.device}, which is one device; "
            f"use run.device=all, or leave run.gpus out"
        )
    there = torch.cuda.device_count() if torch.cuda.is_available() else 0
    wanted = how.gpus or there
    asked = f"run.gpus={how.gpus}" if how.gpus else "run.device=all"
    if there == 0:
        log.warning(
            "warning: %s, but torch finds no usable GPU: one process does all the work",
            asked,
        )
        return ["auto" if how.device == "all" else how.device]
    if wanted > there:
        log.warning("warning: %s, but only %d available: using those", asked, there)
    return [f"cuda:{i}" for i in range(min(wanted, there))]


@dataclass
class Team:
    """The processes that share an experiment (its members), as seen by the process that starts them."""

    experiment: Experiment
    devices: list[str]

    def run(self) -> Written:
        """Run all members and return what the first one wrote. Raises the members' worst error.

        If one member fails, the others continue, and their work is kept.
        """
        context, size = get_context("spawn"), len(self.devices)
        members: dict[Connection, BaseProcess] = {}
        theirs = []
        for number in range(size):
            here, there = context.Pipe()
            given = (self.part(number), number, size, there)
            members[here] = context.Process(target=_member, args=given)
            theirs.append(there)
        with Interruptible() as signals:
            try:
                for member in members.values():
                    member.start()
                for there in theirs:
                    there.close()  # so that a connection closes when its member ends
                outcomes = self._follow(members, signals)
            finally:
                for member in members.values():
                    _end(member)
        return _verdict(outcomes)

    def part(self, number: int) -> Experiment:
        """Return the experiment for one member: its shard of this job's shard, on its device."""
        how, size = self.experiment.run, len(self.devices)
        device = torch.device(self.devices[number])
        mine = replace(
            how,
            device=self.devices[number],
            gpus=None,
            shard=how.shard + how.shards * number,
            shards=how.shards * size,
            workers=workers_for(device, size) if how.workers is None else how.workers,
        )
        return replace(self.experiment, run=mine)

    def _follow(
        self, members: dict[Connection, BaseProcess], signals: Interruptible
    ) -> dict[str, Outcome]:
        """Show the members' progress until all have ended. Return their outcomes by name."""
        size, there = len(members), dict(members)
        names = {
            line: f"process {number} of {size}, on {device}"
            for number, (line, device) in enumerate(zip(members, self.devices, strict=True))
        }
        outcomes: dict[str, Outcome] = {}
        waiting: list[Connection] = []
        stopping = False
        title = f"{self.experiment.analysis.name} on {size} devices"
        with tqdm(desc=title, total=0, disable=not self.experiment.run.progress) as bar:
            while there:
                if signals.asked and not stopping:  # the signal may have reached only this process
                    stopping = True
                    for member in there.values():
                        member.terminate()
                for line in connection.wait(list(there), timeout=0.2):
                    assert isinstance(line, Connection)
                    try:
                        what, value = line.recv()
                    except (EOFError, OSError):
                        member = there.pop(line)
                        member.join(PATIENCE)
                        outcomes.setdefault(names[line], _died(member))
                        continue
                    if what == "total":
                        bar.total += value
                        bar.refresh()
                    elif what == "done":
                        bar.update(value)
                    elif what == "measured":
                        waiting.append(line)
                    else:
                        outcomes[names[line]] = value
                failed = [name for name, one in outcomes.items() if isinstance(one, BaseException)]
                if failed:
                    bar.set_postfix_str(f"{failed[0]} failed, the others continue", refresh=False)
                # After a failure no member waits: the incomplete sums show which minibatches are missing.
                if failed or len(waiting) == len(there):
                    _release(waiting)
        return outcomes


def _release(waiting: list[Connection]) -> None:
    """Let the members continue that are waiting for the others."""
    for line in waiting:
        with suppress(OSError):
            line.send(None)
    waiting.clear()


def _died(member: BaseProcess) -> BaseException:
    code = member.exitcode or 0
    if -code in Interruptible.stops:  # the signal came before the member could handle it
        return Interrupted()
    how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
    return UserError(
        f"a process died without a message ({how}), usually out of memory; "
        f"try a smaller batch_size or fewer run.gpus"
    )


def _verdict(outcomes: dict[str, Outcome]) -> Written:
    """Return what the member wrote that writes the tables. Raises the worst failure and names its process."""
    failed = {n: one for n, one in outcomes.items() if isinstance(one, BaseException)}
    if not failed:
        return next(one for one in outcomes.values() if isinstance(one, Written) and one.stored)
    name, worst = max(failed.items(), key=lambda item: _gravity(item[1]))
    same_for_all = len(failed) == len(outcomes) and len({str(one) for one in failed.values()}) == 1
    if _gravity(worst) == 0 or same_for_all or isinstance(worst, Interrupted):
        raise worst
    kept = f"({name}; the work of the other processes is kept, and the same command resumes)"
    if isinstance(worst, UserError):
        raise type(worst)(f"{worst} {kept}")
    raise RuntimeError(f"{worst} {kept}")


def _gravity(failure: BaseException) -> int:
    """Return 2 for a bug, 1 for a mistake or an interruption, 0 for a consequence of another's failure."""
    if isinstance(failure, Incomplete):
        return 0
    return 1 if isinstance(failure, (UserError, Interrupted)) else 2


def _end(member: BaseProcess) -> None:
    """Ask a running member to save and end, and kill it if it does not."""
    if member.pid is None:
        return
    if member.is_alive():
        member.terminate()
        member.join(PATIENCE)
    if member.is_alive():
        member.kill()
    member.join()


def _member(experiment: Experiment, number: int, size: int, line: Connection) -> None:
    """Run one member's part of the experiment and send its outcome to the process that started the team."""
    speak_plainly(logging.INFO if number == 0 else logging.ERROR)
    # A scheduler sends these to all processes of a job; with a handler, the member saves before it ends.
    for announced in Interruptible.announcements:
        signal.signal(announced, lambda *_: None)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if experiment.run.device == "cpu":
        torch.set_num_threads(max(1, cores() // size))
    outcome: Outcome
    try:
        outcome = runner.run(experiment, Member(line, writes=number == 0))
    except (UserError, Interrupted) as failure:
        show_traceback(failure)  # the other process gets the message alone
        outcome = failure
    except (KeyboardInterrupt, EOFError, BrokenPipeError):  # the latter two: the parent has ended
        outcome = Interrupted()
    except Exception as bug:
        mistake = mistakes.mistake(bug)
        trace = "".join(traceback.format_exception(bug))
        outcome = UserError(mistake) if mistake else RuntimeError(f"a process failed:\n{trace}")
    with suppress(OSError):
        line.send(("ended", outcome))


def _end_with_parent() -> None:
    """Make this process save and end when the process that started it has ended."""
    parent = parent_process()
    if parent is not None:
        parent.join()
        with suppress(OSError):
            os.kill(os.getpid(), signal.SIGTERM)
