"""`make bench`: time and memory of analyses against bare forward passes over the same images, a process a case."""

from __future__ import annotations

import argparse
import json
import platform
import resource
import subprocess
import sys
import time
from contextlib import ExitStack
from functools import partial

import torch
from PIL import Image

from vitsee import layers, models
from vitsee.analyses.cka import CKA
from vitsee.analyses.linear_probe import LinearProbe
from vitsee.analysis import View
from vitsee.config import Model, Precision
from vitsee.datasets import Images
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
PROBE = "ViT-Ti/16, linear probes of 12 blocks"


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


class Noise(Images):
    """Ten classes of images that are never decoded."""

    def __init__(self, count: int) -> None:
        self.count, self.fingerprint = count, f"noise/{count}"
        self.classes = [f"class {i}" for i in range(10)]

    def __len__(self) -> int:
        return self.count

    def id(self, index: int) -> str:
        return str(index)

    def label(self, index: int) -> int:
        return index % 10

    def open(self, index: int) -> Image.Image:
        raise NotImplementedError


def measure_probe(batch_size: int) -> dict[str, float]:
    """As `measure`, of 10-shot probes of ten classes, three draws, tested on 1,000 images."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    name = "vit_tiny_patch16_224"
    net = models.load(Model(name=name, timm=name, pretrained=False), device).net
    watched = layers.choose(net, layers.survey(net, (3, 224, 224)), ["blocks"])
    probe, train, test = LinearProbe(), Noise(2000), Noise(1000)
    probe.check({"model": watched})
    data = [train, train, test]
    orders = [list(probe.select(i, images) or range(len(images))) for i, images in enumerate(data)]
    pixels = torch.randn(batch_size, 3, 224, 224).to(device)
    seconds, before = {"bare": 0.0, "probe": 0.0}, peak(device)

    def bare(count: int) -> None:
        with torch.inference_mode():
            net(pixels[:count])

    def seen(ids: list[int], b: int, stage: int) -> View:
        labels = torch.tensor([data[stage].label(i) for i in ids], device=device)
        places = range(b * batch_size, b * batch_size + len(ids))
        return View(
            len(ids),
            labels,
            run(pixels[: len(ids)]),
            positions=places,
            planned=len(orders[stage]),
            stage=stage,
        )

    bare(batch_size)
    totals: list[Sums] = []
    with watch(net, watched, probe, Precision.fp32) as run:
        for stage, order in enumerate(orders):
            cuts = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
            sums = Sums.zero(len(cuts))
            probe.begin(totals)
            for b, ids in enumerate(cuts):  # taken in turn, so that both see the same machine
                seconds["bare"] += timed(partial(bare, len(ids)), device)
                began = now(device)
                sums += Sums.of(b, len(cuts), probe.observe(seen(ids, b, stage)), {})
                seconds["probe"] += now(device) - began
            totals.append(sums)
    seconds["probe"] += timed(lambda: probe.tables(totals[-1]), device)
    return {
        "ratio": seconds["probe"] / seconds["bare"],
        "bare_images_per_second": sum(map(len, orders)) / seconds["bare"],
        "added_mb": peak(device) - before,
    }


def timed(work: object, device: torch.device) -> float:
    began = now(device)
    work()  # type: ignore[operator]
    return now(device) - began


def now(device: torch.device) -> float:
    """Seconds, when the device has done its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


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
        if asked.case == PROBE:
            return print(json.dumps(measure_probe(asked.batch_size)))
        return print(json.dumps(measure(asked.case, asked.minibatches, asked.batch_size)))
    where = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor()
    print(
        f"{where or platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    )
    print(f"{asked.minibatches} minibatches of {asked.batch_size} images, random weights")
    print("probes: 10 classes x 10 images, drawn three times, 100 held out, 1,000 of the test\n")
    print("| case | ratio to bare forward | bare images/s | added peak memory |\n|---|---|---|---|")
    for case in [*CASES, PROBE]:
        words = [sys.executable, __file__, "--case", case]
        sizes = ["--minibatches", str(asked.minibatches), "--batch-size", str(asked.batch_size)]
        done = subprocess.run([*words, *sizes], capture_output=True, text=True, check=True)
        row = json.loads(done.stdout)
        speed, added = row["bare_images_per_second"], row["added_mb"]
        print(f"| {case} | {row['ratio']:.2f} | {speed:.0f} | {added:.0f} MB |", flush=True)


if __name__ == "__main__":
    main()
