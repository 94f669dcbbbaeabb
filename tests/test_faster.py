"""What a long run says of its time: how long it will take, and what another precision would have saved."""

from __future__ import annotations

import logging

import pytest
import torch

from vitsee import faster
from vitsee.options import Precision
from vitsee.results import provenance
from vitsee.results.provenance import Launch
from vitsee.runner import run
from vitsee.study import Study

LINE = (
    "precision=tf32 runs these models 4.1 times as fast on this GPU; it moved CKA by less than 0.0002 in tests "
    "with trained models; the median standard error above is 0.02"
)


@pytest.fixture
def on_a_gpu(monkeypatch):
    """The experiment's device passes for a GPU on which TF32 is 4.1 times as fast."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.setattr(Study, "device", torch.device("cuda"))
    speeds = {Precision.fp32: 4.1, Precision.tf32: 1.0}
    monkeypatch.setattr(faster, "seconds_of", lambda study, precision: speeds[precision])


def test_a_long_run_on_a_gpu_says_what_tf32_would_save_and_cost(tiny, on_a_gpu):
    assert faster.advice(Study(tiny()), 60, 0.02) == LINE


@pytest.mark.parametrize("precision", ["tf32", "bf16"])
def test_nothing_is_said_where_a_precision_was_chosen(tiny, on_a_gpu, precision):
    assert faster.advice(Study(tiny(f"precision={precision}")), 60, 0.02) is None


def test_nothing_is_said_of_a_short_run(tiny, on_a_gpu):
    assert faster.advice(Study(tiny()), 5, 0.02) is None


def test_nothing_is_said_where_tf32_gains_little():
    assert faster.said(1.1, 0.02) is None


def test_nothing_is_said_on_a_cpu(tiny):
    assert faster.advice(Study(tiny()), 60, 0.02) is None


def test_the_time_of_a_minibatch_is_measured_with_the_models_of_the_run(tiny):
    assert faster.seconds_of(Study(tiny()), Precision.fp32) > 0


def test_the_run_says_it_at_its_end(tiny, monkeypatch, caplog):
    monkeypatch.setattr(faster, "advice", lambda study, seconds, error: f"faster by {error:.3g}")
    with caplog.at_level(logging.INFO):
        run(tiny())
    assert "faster by" in caplog.text


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (30.0, "200 minibatches of 1,024 images will take about 33 minutes"),
        (300.0, "200 minibatches of 1,024 images will take about 5.5 hours"),
        (3.0, None),
    ],
)
def test_a_long_run_says_how_long_it_will_take_after_its_first_minibatches(
    monkeypatch, seconds, said
):
    clock = iter([0.0, *(seconds * i / 3 for i in range(1, 5))])
    monkeypatch.setattr(provenance.time, "perf_counter", lambda: next(clock))
    launch, heard = Launch("cpu"), []
    for _ in range(4):
        launch.add(1024)
        heard.append(launch.expected(200))
    assert heard == [None, None, said, None]
