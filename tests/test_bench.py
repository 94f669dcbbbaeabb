"""`make bench` measures what it says: its table has every number, and its errors are those of float64."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest
import torch

BENCH = Path(__file__).parents[1] / "scripts" / "bench.py"


def test_the_bench_prints_a_row_with_every_number():
    size = ["--batch-size", "8", "--minibatches", "1", "--rounds", "1"]
    words = [sys.executable, str(BENCH), "--models", "test_vit,test_resnet", *size]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    head, _, row = done.stdout.strip().splitlines()[-3:]
    cells = dict(zip(head.split("|"), row.split("|"), strict=True))
    found = {title.strip(): cell.strip() for title, cell in cells.items()}
    assert float(found["largest error"]) < 1e-5
    assert float(found["floor"]) > 1
    assert float(found["ratio to bare forward"]) > 0
    assert float(found["images/s"]) > 0


def test_a_case_that_fails_is_said_and_the_others_go_on(tmp_path):
    words = [sys.executable, str(BENCH), "--models", "no_such_model", "--rounds", "1"]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert "no_such_model" in done.stdout.splitlines()[-1]
    assert "failed with exit code" in done.stdout


def test_the_comparison_of_devices_has_a_row_for_every_column(monkeypatch, capsys):
    monkeypatch.syspath_prepend(BENCH.parent)
    gpu_check = importlib.import_module("gpu_check")
    options = {"model": "vit_nano", "images": 8, "batch_size": 4, "analysis.layers": "[last]"}
    gpu_check.compare([("cka", options)], ("cpu", "cpu"))
    rows = [row.split(" | ") for row in capsys.readouterr().out.splitlines()[2:]]
    assert [row[3] for row in rows] == ["cka", "se"]
    assert {row[5] for row in rows} == {"0.0e+00"}


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_the_comparison_of_devices_says_that_it_needs_a_gpu():
    words = [sys.executable, str(BENCH.parent / "gpu_check.py")]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.strip()) == (1, "there is no GPU here")
