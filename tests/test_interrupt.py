"""Signals within a block take effect between two steps or at its end, and none is lost."""

from __future__ import annotations

import signal
import subprocess
import time
import weakref
from dataclasses import replace
from multiprocessing import active_children
from typing import NoReturn

import pytest
from conftest import tiny_overrides

from vitsee.cli import answer_for
from vitsee.errors import UserError
from vitsee.parallel.interrupt import OF_SCHEDULERS, OF_TERMINALS, Interrupted, Interruptible
from vitsee.results.folder import Results
from vitsee.sums import Sums


def block(*signals: int, then: BaseException | None = None) -> None:
    """A block that is sent these signals after its last check."""
    with Interruptible() as interruptible:
        interruptible.check()
        for number in signals:
            signal.raise_signal(number)
        if then:
            raise then


@pytest.mark.parametrize("stop", Interruptible.stops)
def test_a_signal_after_the_last_check_takes_effect_at_the_end(stop):
    before = signal.getsignal(stop)
    with pytest.raises(Interrupted):
        block(stop)
    assert signal.getsignal(stop) is before


def test_an_error_of_the_block_goes_before_a_signal():
    with pytest.raises(KeyError):
        block(signal.SIGINT, then=KeyError())


@pytest.mark.parametrize("key", [signal.SIGINT, signal.SIGQUIT])
def test_a_second_ctrl_c_stops_at_once(key):
    with pytest.raises(KeyboardInterrupt):
        block(key, key, then=AssertionError("it went on"))


def test_a_terminal_that_is_lost_twice_still_saves():
    with pytest.raises(Interrupted):
        block(signal.SIGHUP, signal.SIGHUP, signal.SIGTERM)


@pytest.mark.parametrize("stop", Interruptible.stops)
def test_what_was_ignored_before_stays_ignored_as_under_nohup(stop):
    before = signal.signal(stop, signal.SIG_IGN)
    try:
        block(stop, stop)
    finally:
        signal.signal(stop, before)


def test_processes_that_decode_images_leave_signals_to_the_main_process(monkeypatch):
    from vitsee.data.minibatches import prepare_worker

    ignored = {}
    monkeypatch.setattr(signal, "signal", lambda number, how: ignored.update({number: how}))
    monkeypatch.setattr("torch.set_num_threads", lambda count: None)
    prepare_worker(0)
    assert ignored == dict.fromkeys((*OF_TERMINALS, *OF_SCHEDULERS), signal.SIG_IGN)


@pytest.mark.parametrize("stop", [signal.SIGHUP, signal.SIGQUIT])
def test_a_measurement_that_loses_its_terminal_is_saved_and_goes_on(
    stop, run_tiny, monkeypatch, tmp_path
):
    real, seen = Sums.of, []

    def of(*words, **more):
        seen.append(words[0])
        if len(seen) == 2:
            signal.raise_signal(stop)
        return real(*words, **more)

    with monkeypatch.context() as patch:
        patch.setattr(Sums, "of", of)
        code, out, err = run_tiny()
    assert (code, out) == (130, "")
    assert err.endswith("interrupted, state saved; repeat the command to continue\n")
    (state,) = tmp_path.rglob("000-of-001.pt")
    assert Sums.load(state).seen.sum() == 2
    assert run_tiny()[0] == 0


def sigterm_for_all() -> NoReturn:
    """Send SIGTERM to this process and to those that decode its images, and wait for torch to raise their death."""
    signal.raise_signal(signal.SIGTERM)
    decoders = [str(process.pid) for process in active_children()]
    assert decoders
    subprocess.run(["kill", *decoders], check=True)  # from this process, torch ignores it
    while True:
        time.sleep(0.01)


def test_sigterm_for_all_processes_of_a_measurement_saves_what_was_measured(
    run_tiny, monkeypatch, tmp_path
):
    real, seen = Sums.of, []

    def of(*words, **more):
        seen.append(words[0])
        return sigterm_for_all() if len(seen) == 2 else real(*words, **more)

    with monkeypatch.context() as patch:
        patch.setattr(Sums, "of", of)
        code, out, err = run_tiny("run.workers=1")
    assert (code, out) == (130, "")
    assert err.endswith("interrupted, state saved; repeat the command to continue\n")
    (state,) = tmp_path.rglob("000-of-001.pt")
    assert Sums.load(state).seen.sum() == 1
    assert run_tiny()[0] == 0


def test_sigterm_for_all_processes_of_a_training_is_no_error(tmp_path, monkeypatch):
    from test_training import LOADED, wee

    from vitsee.training.trainer import Trainer, train

    asked = wee(tmp_path, **LOADED)
    asked = replace(asked, run=replace(asked.run, workers=1))
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "advance", lambda *_: sigterm_for_all())
        with pytest.raises(Interrupted):
            train(asked)
    assert (train(asked) / "wee.safetensors").is_file()


def test_a_process_of_several_that_dies_of_a_stop_was_interrupted():
    from vitsee.gpus import _died

    class Member:
        exitcode = -signal.SIGHUP

    assert isinstance(_died(Member()), Interrupted)
    Member.exitcode = -signal.SIGKILL
    assert "killed by SIGKILL" in str(_died(Member()))


def test_ctrl_c_that_a_library_hides_behind_an_error_of_its_own_is_one(capsys):
    def tidies_up_and_fails() -> None:
        try:
            raise KeyboardInterrupt
        finally:
            {}["what was not yet made"]

    with pytest.raises(SystemExit) as stop:
        answer_for("run", tidies_up_and_fails)
    assert stop.value.code == 130
    assert capsys.readouterr().err == "vitsee run: interrupted\n"


def test_what_cannot_be_saved_after_ctrl_c_is_told(capsys):
    def saves_and_fails() -> None:
        try:
            raise KeyboardInterrupt
        finally:
            raise UserError("No space left")

    with pytest.raises(SystemExit) as stop:
        answer_for("run", saves_and_fails)
    assert stop.value.code == 2
    assert capsys.readouterr().err == "vitsee run: No space left\n"


def test_ctrl_c_in_a_callback_that_swallows_exceptions_while_a_figure_is_drawn_is_not_lost(
    command, images, tmp_path, monkeypatch
):
    real = Results.save_figures

    class Garbage:
        pass

    def save(*given, **formats):
        garbage = Garbage()
        weakref.finalize(garbage, signal.raise_signal, signal.SIGINT)
        del garbage
        return real(*given, **formats)

    with monkeypatch.context() as patch:
        patch.setattr(Results, "save_figures", save)
        code, out, err = command("run", *tiny_overrides(images, tmp_path))
    assert (code, out) == (130, "")
    assert err.endswith("interrupted, state saved; repeat the command to continue\n")
    assert "Traceback" not in err
    assert command("run", *tiny_overrides(images, tmp_path))[0] == 0
