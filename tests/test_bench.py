"""`make bench` measures what it says: its table has every number, and its errors are those of float64."""

from __future__ import annotations

import importlib
import subprocess
import sys
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture) -> Callable[..., list]:
    """The last lines that `bench.py …` prints: one process per case, as always, but forked from this one."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "scripts"))
    monkeypatch.setenv("THP_MEM_ALLOC_ENABLE", "1")  # as the script sets it
    import bench

    def forked(words: list[str], check: bool) -> subprocess.CompletedProcess[bytes]:
        process = get_context("fork").Process(target=case, args=(words[1:],))
        process.start()
        process.join()
        return subprocess.CompletedProcess(words, process.exitcode)

    def case(words: list[str]) -> None:
        sys.argv = words
        bench.main()

    def call(*words: str) -> list[str]:
        monkeypatch.setattr(sys, "argv", ["bench.py", "--rounds", "1", *words])
        monkeypatch.setattr(bench, "subprocess", SimpleNamespace(run=forked))
        bench.main()
        return capfd.readouterr().out.strip().splitlines()[-3:]

    return call


def test_the_bench_prints_a_row_with_every_number(bench):
    models = ["--models", "test_vit,test_resnet"]
    head, _, row = bench(*models, "--batch-size", "8", "--minibatches", "1")
    cells = dict(zip(head.split("|"), row.split("|"), strict=True))
    found = {title.strip(): cell.strip() for title, cell in cells.items()}
    assert float(found["largest error"]) < 1e-5
    assert float(found["floor"]) > 1
    assert float(found["ratio to bare forward"]) > 0
    assert float(found["images/s"]) > 0


def test_a_case_that_fails_is_said_and_the_others_go_on(bench):
    *_, row = bench("--models", "no_such_model")
    assert "no_such_model" in row
    assert "failed with exit code" in row


@pytest.fixture
def gpu_check(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "scripts"))
    return importlib.import_module("gpu_check")


def test_the_comparison_of_devices_has_a_row_for_every_column(gpu_check, capsys):
    options = {"model": "vit_nano", "images": 8, "batch_size": 4, "analysis.layers": "[last]"}
    gpu_check.compare([("cka", options)], ("cpu", "cpu"))
    rows = [row.split(" | ") for row in capsys.readouterr().out.splitlines()[2:]]
    assert [row[3] for row in rows] == ["cka", "se"]
    assert {row[5] for row in rows} == {"0.0e+00"}


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_the_comparison_of_devices_says_that_it_needs_a_gpu(gpu_check, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["gpu_check.py"])
    with pytest.raises(SystemExit, match="there is no GPU here"):
        gpu_check.main()
