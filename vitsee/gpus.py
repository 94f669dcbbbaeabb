"""One command on several devices: a process a device, one display, one error, and nobody's work lost."""

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
from pathlib import Path

import torch
from tqdm import tqdm

from vitsee import mistakes, runner
from vitsee.data.minibatches import cores, workers_for
from vitsee.errors import Incomplete, UserError, speak_plainly
from vitsee.options import Experiment, Run
from vitsee.parallel.interrupt import Interrupted, Interruptible
from vitsee.parallel.team import Member

log = logging.getLogger(__name__)
Outcome = list[Path] | BaseException
"""What a member wrote, or why it did not."""
PATIENCE = 30
"""Seconds for a member to end once it has said its last word, or was asked to end."""


def run(experiment: Experiment) -> list[Path]:
    """`runner.run` with a process on each device that is asked for by run.device=all or run.gpus=N."""
    devices = choose(experiment.run)
    if len(devices) == 1 or experiment.analysis.weights_only:
        how = replace(experiment.run, device=devices[0], gpus=None)
        return runner.run(replace(experiment, run=how))
    return Team(experiment, devices).run()


def choose(how: Run) -> list[str]:
    """The devices of the processes that share the work; fewer than asked, with a warning, if need be."""
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
            "warning: %s, but there is no GPU here that torch can use: one process does it all",
            asked,
        )
        return ["auto" if how.device == "all" else how.device]
    if wanted > there:
        log.warning("warning: %s, but there are only %d here: these are used", asked, there)
    return [f"cuda:{i}" for i in range(min(wanted, there))]


@dataclass
class Team:
    """The processes that share an experiment, seen from the one that starts them."""

    experiment: Experiment
    devices: list[str]

    def run(self) -> list[Path]:
        """What the first member wrote. Raises the worst that happened to a member, once.

        The others measure on meanwhile, and what they measured is kept.
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
                    there.close()  # so that the end of a member is the end of its line
                outcomes = self._follow(members, signals)
            finally:
                for member in members.values():
                    _end(member)
        return _verdict(outcomes)

    def part(self, number: int) -> Experiment:
        """The experiment as one member runs it: its shard of this job's shard, on its device."""
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
        """Show the members' progress until all have ended; what became of them, by name."""
        size, there = len(members), dict(members)
        names = {
            line: f"process {number} of {size}, on {device}"
            for number, (line, device) in enumerate(zip(members, self.devices, strict=True))
        }
        outcomes: dict[str, Outcome] = {}
        meeting: list[Connection] = []
        told = False
        title = f"{self.experiment.analysis.name} on {size} devices"
        with tqdm(desc=title, total=0, disable=not self.experiment.run.progress) as bar:
            while there:
                if signals.asked and not told:  # it may have come to this process alone
                    told = True
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
                        meeting.append(line)
                    else:
                        outcomes[names[line]] = value
                failed = [name for name, one in outcomes.items() if isinstance(one, BaseException)]
                if failed:
                    bar.set_postfix_str(f"{failed[0]} failed, the others go on", refresh=False)
                if failed or len(meeting) == len(
                    there
                ):  # without all, the sums say what is missing
                    _go_on(meeting)
        return outcomes


def _go_on(meeting: list[Connection]) -> None:
    """Tell the members that wait for the others to go on."""
    for line in meeting:
        with suppress(OSError):
            line.send(None)
    meeting.clear()


def _died(member: BaseProcess) -> BaseException:
    code = member.exitcode or 0
    if -code in Interruptible.stops:  # it came before the member could listen
        return Interrupted()
    how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
    return UserError(
        f"a process ended without a word ({how}), most often for want of memory; "
        f"try a smaller batch_size or fewer run.gpus"
    )


def _verdict(outcomes: dict[str, Outcome]) -> list[Path]:
    """The paths that were written. Raises the worst failure otherwise, and says whose it was."""
    failed = {n: one for n, one in outcomes.items() if isinstance(one, BaseException)}
    if not failed:
        return [path for paths in outcomes.values() if isinstance(paths, list) for path in paths]
    name, worst = max(failed.items(), key=lambda item: _gravity(item[1]))
    same_for_all = len(failed) == len(outcomes) and len({str(one) for one in failed.values()}) == 1
    if _gravity(worst) == 0 or same_for_all or isinstance(worst, Interrupted):
        raise worst
    kept = f"({name}; the work of the others is kept, and the same command goes on)"
    if isinstance(worst, UserError):
        raise type(worst)(f"{worst} {kept}")
    raise RuntimeError(f"{worst} {kept}")


def _gravity(failure: BaseException) -> int:
    """A bug before a mistake before what merely follows from another's failure."""
    if isinstance(failure, Incomplete):
        return 0
    return 1 if isinstance(failure, (UserError, Interrupted)) else 2


def _end(member: BaseProcess) -> None:
    """End a member that still runs: it is asked to save, and killed if it does not."""
    if member.pid is None:
        return
    if member.is_alive():
        member.terminate()
        member.join(PATIENCE)
    if member.is_alive():
        member.kill()
    member.join()


def _member(experiment: Experiment, number: int, size: int, line: Connection) -> None:
    """What a process of the team does: its part, told to who started it."""
    speak_plainly(logging.INFO if number == 0 else logging.ERROR)
    for announced in Interruptible.announcements:  # to all processes of a job: save and end then
        signal.signal(announced, lambda *_: None)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if experiment.run.device == "cpu":
        torch.set_num_threads(max(1, cores() // size))
    outcome: Outcome
    try:
        outcome = runner.run(experiment, Member(line, writes=number == 0))
    except (UserError, Interrupted) as failure:
        outcome = failure
    except (KeyboardInterrupt, EOFError, BrokenPipeError):  # the latter: who started it is no more
        outcome = Interrupted()
    except Exception as bug:
        mistake = mistakes.mistake(bug)
        trace = "".join(traceback.format_exception(bug))
        outcome = UserError(mistake) if mistake else RuntimeError(f"a process failed:\n{trace}")
    with suppress(OSError):
        line.send(("ended", outcome))


def _end_with_parent() -> None:
    """Ask this process to save and end when the one that started it is no more."""
    parent = parent_process()
    if parent is not None:
        parent.join()
        with suppress(OSError):
            os.kill(os.getpid(), signal.SIGTERM)
