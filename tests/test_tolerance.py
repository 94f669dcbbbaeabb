"""`tolerance`: a run stops when its largest standard error is small enough, at the same place every time."""

from __future__ import annotations

import logging

import pandas as pd
import pytest

from vitsee.results.folder import Results
from vitsee.runner import run
from vitsee.study import LEAST, Study
from vitsee.sums import Sums

pytestmark = pytest.mark.usefixtures("undrawn")

TEN = ["batch_size=4", "analysis.layers=blocks"]
"""Ten minibatches of the 40 images."""


def largest_errors(tiny) -> list[float]:
    """Largest standard error in the table after 1, 2, … 10 minibatches."""
    from vitsee.runner import minibatches, observer

    experiment = tiny(*TEN)
    study, total, found = Study(experiment), Sums.zero(10), []
    with observer(study, []) as observe:
        for batch in minibatches(study, 0, list(range(10))):
            total += Sums.of(batch.index, 10, observe(batch), study.axes)
            found.append(float(experiment.analysis.tables(total)["cka"]["se"].max()))
    return found


@pytest.fixture
def between(tiny) -> tuple[float, int]:
    """A tolerance that is reached early, and after how many minibatches."""
    errors = largest_errors(tiny)
    tolerance = (max(errors[LEAST - 1 :]) + min(errors[LEAST - 1 :])) / 2
    first = next(k for k, e in enumerate(errors, 1) if k >= LEAST and e <= tolerance)
    return tolerance, first


def test_it_stops_after_the_first_minibatch_at_which_the_error_is_small_enough(tiny, between):
    tolerance, first = between
    path, *_ = run(tiny(*TEN, f"tolerance={tolerance}")).files
    record = Results(path.parent).load_json("made_with.json")
    assert record["tolerance"]["minibatches"] == first < 10
    assert record["tolerance"]["reached"]
    assert record["tolerance"]["largest_se"] == pd.read_csv(path)["se"].max() <= tolerance
    assert record["labels"]["images"] == len(record["passes"][0]["image_ids"]) == 4 * first


def test_after_an_interruption_it_stops_at_the_same_place(tiny, between, tmp_path, monkeypatch):
    tolerance, _ = between
    options = [*TEN, f"tolerance={tolerance}", "run.save_every=1"]
    whole = run(tiny(*options, f"run.outputs={tmp_path / 'whole'}")).files[0]
    signals = iter([None, None, KeyboardInterrupt])

    def check(self) -> None:
        if (signal := next(signals, None)) is not None:
            raise signal

    with monkeypatch.context() as patched:
        patched.setattr("vitsee.runner.Interruptible.check", check)
        with pytest.raises(KeyboardInterrupt):
            run(tiny(*options, f"run.outputs={tmp_path / 'cut'}"))
    cut = run(tiny(*options, f"run.outputs={tmp_path / 'cut'}")).files[0]
    assert cut.read_bytes() == whole.read_bytes()
    launches = Results(cut.parent).load_json("made_with.json")["launches"]
    assert launches[0]["minibatches"] == 3


def test_the_same_command_again_measures_nothing(tiny, between, monkeypatch):
    first = run(tiny(*TEN, f"tolerance={between[0]}"))
    monkeypatch.setattr("vitsee.runner.Minibatches", None)  # would fail if it were called
    assert run(tiny(*TEN, f"tolerance={between[0]}")) == first


def test_a_tolerance_that_is_not_reached_is_said(tiny, caplog):
    with caplog.at_level(logging.WARNING):
        path, *_ = run(tiny(*TEN, "tolerance=1e-6")).files
    record = Results(path.parent).load_json("made_with.json")
    assert not record["tolerance"]["reached"]
    assert (
        "tolerance=1e-06 was not reached: the largest standard error after all 10 minibatches is"
        in caplog.text
    )


def test_without_a_tolerance_all_images_are_measured(tiny):
    path, *_ = run(tiny(*TEN)).files
    record = Results(path.parent).load_json("made_with.json")
    assert record["tolerance"] is None
    assert record["passes"][0]["minibatches"] == 10
