"""`make bench`: time and memory of CKA against bare forward passes over the same images, a process a case."""

from __future__ import annotations

import argparse
import json
import platform
import resource
import subprocess
import sys
import time
from contextlib import ExitStack

import torch

from vitsee import layers, models
from vitsee.analyses.cka import CKA
from vitsee.analysis import View
from vitsee.config import Model, Precision
from vitsee.sums import Sums
from vitsee.taps import watch

SIXTY = ["blocks.*.norm1", "blocks.*.attn", "blocks.*.norm2", "blocks.*.mlp", "blocks"]
CASES = {
    "ViT-Ti/16, 12 layers": (["vit_tiny_patch16_224"], ["blocks"]),
    "ViT-Ti/16, 60 layers": (["vit_tiny_patch16_224"], SIXTY),
    "ViT-Ti/16, 74 layers (paper)": (["vit_tiny_patch16_224"], ["paper"]),
    "ResNet-50, 122 layers (paper)": (["resnet50"], ["paper"]),
    "ViT-Ti/16 x ResNet-50, 74 x 122": (["vit_tiny_patch16_224", "resnet50"], ["paper"]),
}


def measure(case: str, minibatches: int, batch_size: int) -> dict[str, float]:
    """Ratio of CKA to bare forward passes, and what it adds to the peak memory in MB."""
    names, patterns = CASES[case]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    nets = [models.load(Model(name=n, timm=n, pretrained=False), device).net for n in names]
    watched = [layers.choose(n, layers.survey(n, (3, 224, 224)), patterns) for n in nets]
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(batch_size, 3, 224, 224, generator=generator).to(device)
    analysis, seconds = CKA(), {"bare": 0.0, "cka": 0.0}

    def bare() -> None:
        with torch.inference_mode():
            for net in nets:
                net(pixels)

    bare()
    before = peak(device)
    axes = dict(zip(("model", "other"), ([l.name for l in w] for w in watched), strict=False))
    for i in range(minibatches):  # taken in turn, so that both see the same machine
        seconds["bare"] += timed(bare, device)
        with ExitStack() as stack:
            run = [
                stack.enter_context(watch(n, w, analysis, Precision.fp32))
                for n, w in zip(nets, watched, strict=True)
            ]
            sums = Sums.zero(minibatches)

            def cka(i: int = i, run: list = run, sums: Sums = sums) -> Sums:
                view = View(batch_size, pixels[:, 0, 0, 0], *(forward(pixels) for forward in run))
                return sums + Sums.of(i, minibatches, analysis.observe(view), axes)

            seconds["cka"] += timed(cka, device)
    return {
        "ratio": seconds["cka"] / seconds["bare"],
        "bare_images_per_second": minibatches * batch_size / seconds["bare"],
        "added_mb": peak(device) - before,
    }


def timed(work: object, device: torch.device) -> float:
    began = time.perf_counter()
    work()  # type: ignore[operator]
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began


def peak(device: torch.device) -> float:
    """Largest memory so far, in MB: of the GPU if there is one, else of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--case", help="measure one case in this process and print JSON")
    parser.add_argument("--minibatches", type=int, default=4)
    parser.add_argument("--batch-size", type=int, default=64)
    asked = parser.parse_args()
    if asked.case:
        return print(json.dumps(measure(asked.case, asked.minibatches, asked.batch_size)))
    where = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor()
    print(
        f"{where or platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    )
    print(f"{asked.minibatches} minibatches of {asked.batch_size} images, random weights\n")
    print("| case | ratio to bare forward | bare images/s | added peak memory |\n|---|---|---|---|")
    for case in CASES:
        words = [sys.executable, __file__, "--case", case]
        sizes = ["--minibatches", str(asked.minibatches), "--batch-size", str(asked.batch_size)]
        done = subprocess.run([*words, *sizes], capture_output=True, text=True, check=True)
        row = json.loads(done.stdout)
        speed, added = row["bare_images_per_second"], row["added_mb"]
        print(f"| {case} | {row['ratio']:.2f} | {speed:.0f} | {added:.0f} MB |", flush=True)


if __name__ == "__main__":
    main()
