"""Signals within a block take effect between two steps or at its end, and none is lost."""

from __future__ import annotations

import signal
import weakref

import pytest
from conftest import tiny_overrides

from vitsee import plotting
from vitsee.interrupt import Interrupted, Interruptible


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_after_the_last_check_takes_effect_at_the_end(stop):
    reached = []
    with pytest.raises(Interrupted), Interruptible() as signals:
        signals.check()
        signal.raise_signal(stop)
        reached.append("the rest of the block")
    assert reached
    assert signal.getsignal(stop) in (signal.default_int_handler, signal.SIG_DFL)


def test_an_error_of_the_block_goes_before_a_signal():
    with pytest.raises(KeyError), Interruptible():
        signal.raise_signal(signal.SIGINT)
        raise KeyError


def test_a_second_ctrl_c_stops_at_once():
    with pytest.raises(KeyboardInterrupt), Interruptible():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        pytest.fail("it went on")


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
