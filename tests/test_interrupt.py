"""Signals within a block take effect between two steps or at its end, and none is lost."""

from __future__ import annotations

import signal
import weakref

import pytest
from conftest import tiny_overrides

from vitsee import plotting
from vitsee.cli import answer_for
from vitsee.errors import UserError
from vitsee.interrupt import Interrupted, Interruptible


def block(*signals: int, then: BaseException | None = None) -> None:
    """A block that is sent these signals after its last check."""
    with Interruptible() as interruptible:
        interruptible.check()
        for number in signals:
            signal.raise_signal(number)
        if then:
            raise then


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_after_the_last_check_takes_effect_at_the_end(stop):
    before = signal.getsignal(stop)
    with pytest.raises(Interrupted):
        block(stop)
    assert signal.getsignal(stop) is before


def test_an_error_of_the_block_goes_before_a_signal():
    with pytest.raises(KeyError):
        block(signal.SIGINT, then=KeyError())


def test_a_second_ctrl_c_stops_at_once():
    with pytest.raises(KeyboardInterrupt):
        block(signal.SIGINT, signal.SIGINT, then=AssertionError("it went on"))


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
    real = plotting.read

    class Garbage:
        pass

    def read(path):
        garbage = Garbage()
        weakref.finalize(garbage, signal.raise_signal, signal.SIGINT)
        del garbage
        return real(path)

    with monkeypatch.context() as patch:
        patch.setattr(plotting, "read", read)
        code, out, err = command("run", *tiny_overrides(images, tmp_path))
    assert (code, out) == (130, "")
    assert err.endswith("interrupted, state saved; the same command goes on\n")
    assert "Traceback" not in err
    assert command("run", *tiny_overrides(images, tmp_path))[0] == 0
