"""Runs every analysis on the CPU and on the GPU, and prints the largest difference in any cell of its tables."""

from __future__ import annotations

import argparse
import contextlib
import io
import sys
import tempfile
import time

import numpy as np
import torch

import vitsee
import vitsee.analyses
from vitsee.analysis import REGISTERED
from vitsee.errors import UserError

SMALL = {"run.progress": False, "dataset": "scenes", "batch_size": 32}
CASES = [
    *((name, {"model": "vit_mini", "images": 128}) for name in sorted(REGISTERED)),
    ("cka", {"model": "vit_mini", "model@other": "resnet_mini", "images": 128}),
    ("cka", {"model": "vit_mini", "precision": "bf16", "images": 128}),
    ("receptive_field", {"model": "resnet_mini"}),
]
NEEDS = {
    "block_similarity": {"model@other": "vit_mini_data_10"},
    "head_similarity": {"model@other": "resnet_mini"},
    "linear_probe": {"images": 500, "analysis.layers": "[last]"},
    "receptive_field": {"images": 8, "batch_size": 4},
}
"""Options without which an analysis does not run or takes too long."""


def tables(name: str, options: dict, device: str, folder: str) -> dict:
    words = {"analysis": name, **SMALL, **options, **NEEDS.get(name, {})}
    words |= {"run.device": device, "run.outputs": f"{folder}/{device}"}
    given = [f"{key}={value}" for key, value in words.items()]
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        return vitsee.run_experiment(*given).tables


def compare(cases: list[tuple[str, dict]], devices: tuple[str, str]) -> None:
    """Print one row per column of each table."""
    print("| analysis | options | table | column | largest value | largest difference | seconds |")
    print("|" + "---|" * 7, flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for name, options in cases:
            began = time.perf_counter()
            try:
                one, other = (tables(name, options, device, folder) for device in devices)
            except UserError as error:
                print(f"| {name} | {options} | {error} |" + " |" * 4, flush=True)
                continue
            took = time.perf_counter() - began
            for table, numbers in one.items():
                for column in numbers.select_dtypes("float"):
                    a, b = numbers[column].to_numpy(), other[table][column].to_numpy()
                    defined = np.isfinite(a)
                    if (defined != np.isfinite(b)).any():
                        print(
                            f"| {name} | {options} | {table} | {column} | undefined elsewhere | | |"
                        )
                        continue
                    largest, off = (np.abs(x[defined]).max(initial=0) for x in (a, a - b))
                    print(
                        f"| {name} | {options} | {table} | {column} | {largest:.3g} | {off:.1e} | {took:.1f} |",
                        flush=True,
                    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("analyses", nargs="*", help="only these")
    asked = parser.parse_args().analyses
    if not torch.cuda.is_available():
        sys.exit("there is no GPU here")
    compare([case for case in CASES if not asked or case[0] in asked], ("cpu", "cuda"))


if __name__ == "__main__":
    main()
