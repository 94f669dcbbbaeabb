"""`make bench`: the cost of the other analyses relative to bare forward passes over the same images in memory."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from bench import Bench, Case
from PIL import Image
from torch import Tensor

from vitsee.analysis import REGISTERED, Analysis, Layer, Setting, View
from vitsee.data.images import Images
from vitsee.models import presets
from vitsee.models.taps import SURVEY, watch
from vitsee.options import Precision
from vitsee.sums import Sums

MODEL = "vit_tiny_patch16_224"
ANALYSES = [
    *("attention_distance", "skip_ratio", "localization", "linear_probe", "receptive_field"),
    *("token_norm", "massive_activation", "fourier", "robustness"),
]


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


@dataclass
class Passes:
    """The images of each pass of an analysis, by index, in minibatches. analysis: with its layers."""

    data: list[Images]
    orders: list[list[int]]
    batch_size: int

    @classmethod
    def of(cls, analysis: Analysis, minibatches: int, batch_size: int) -> Passes:
        count = minibatches * batch_size
        data: list[Images] = [Noise(2000) for _ in analysis.splits[:-1]]
        data.append(Noise(1000 if data else count))
        analysis = analysis.on(replace(analysis.setting, images=data))
        chosen = [analysis.select(i) for i in range(len(data))]
        orders = [
            list(range(len(images)) if some is None else some)
            for images, some in zip(data, chosen, strict=True)
        ]
        return cls(data, orders, batch_size)

    def cuts(self, stage: int) -> list[list[int]]:
        order = self.orders[stage]
        return [order[i : i + self.batch_size] for i in range(0, len(order), self.batch_size)]


def whole(bench: Bench, analysis: Analysis, watched: list[Layer], passes: Passes) -> None:
    """Run all passes of an analysis and make its tables, as `vitsee run` does."""
    totals: list[Sums] = []
    axes = {"model": [layer.name for layer in watched]}
    pixels = bench.batches[0]
    for stage in range(len(passes.data)):
        bound = analysis.on(replace(analysis.setting, earlier=tuple(totals)))
        cuts = passes.cuts(stage)
        total = Sums.zero(len(cuts))
        with watch(bench.nets[0], watched, bound, Precision.fp32) as through:
            for b, ids in enumerate(cuts):
                some = pixels[: len(ids)].requires_grad_(bound.gradients)
                view = seen(through, some, ids, b, stage, passes)
                total += Sums.of(b, len(cuts), bound.observe(view), axes)
        totals.append(total)
    analysis.on(replace(analysis.setting, earlier=tuple(totals[:-1]))).tables(totals[-1])


def seen(
    through: Callable[[Tensor], dict[str, Tensor]],
    pixels: Tensor,
    ids: list[int],
    b: int,
    stage: int,
    passes: Passes,
) -> View:
    labels = torch.tensor([passes.data[stage].label(i) for i in ids], device=pixels.device)
    return View(
        len(ids),
        labels,
        through(pixels),
        pixels={"model": pixels},
        positions=range(b * passes.batch_size, b * passes.batch_size + len(ids)),
        planned=len(passes.orders[stage]),
        stage=stage,
        normalisation={"model": ((0.5,) * 3, (0.5,) * 3)},
        again=lambda role, changed: through(changed),
    )


def measure(name: str, model: str, minibatches: int, batch_size: int, rounds: int) -> dict:
    """Ratio to bare forward passes over the same number of images, from the fastest of several rounds."""
    bench = Bench(Case([model], "12 layers", batch_size), 1)
    net, analysis = bench.nets[0], REGISTERED[name]()
    size = tuple(bench.batches[0].shape[1:])
    found = SURVEY[analysis.reads_of("model")](net, size)
    watched = presets.choose(net, found, analysis.patterns("model"))
    analysis.check({"model": watched})
    analysis = analysis.on(Setting({"model": model}, {"model": watched}))
    passes = Passes.of(analysis, minibatches, batch_size)
    analysis = analysis.on(replace(analysis.setting, images=passes.data))
    pixels = bench.batches[0]

    def bare() -> None:
        with torch.inference_mode():
            for stage in range(len(passes.data)):
                for ids in passes.cuts(stage):
                    net(pixels[: len(ids)])

    def unfused() -> None:
        fused = [m for m in net.modules() if getattr(m, "fused_attn", False)]
        for module in fused:
            module.fused_attn = False
        bare()
        for module in fused:
            module.fused_attn = True

    bare()
    before = bench.peak_mb()
    whole(bench, analysis, watched, passes)
    added = bench.peak_mb() - before
    took: dict[str, list[float]] = {"bare": [], "unfused": [], "whole": []}
    for _ in range(rounds):  # interleaved, so that all see the same machine
        took["bare"].append(bench.seconds(bare))
        took["unfused"].append(bench.seconds(unfused))
        took["whole"].append(bench.seconds(lambda: whole(bench, analysis, watched, passes)))
    fastest = {key: min(values) for key, values in took.items()}
    return {
        "layers": len(watched),
        "ratio": fastest["whole"] / fastest["bare"],
        "unfused": fastest["whole"] / fastest["unfused"],
        "images": sum(map(len, passes.orders)),
        "images_per_second": sum(map(len, passes.orders)) / fastest["whole"],
        "added_mb": added,
    }


HEAD = (
    "| analysis | model | layers | images | ratio to bare forward | with unfused attention "
    "| images/s | added peak memory |\n|" + "---|" * 8
)


def line(name: str, model: str, row: dict) -> str:
    return (
        f"| {name} | {model} | {row['layers']} | {row['images']} | {row['ratio']:.2f} "
        f"| {row['unfused']:.2f} | {row['images_per_second']:.0f} | {row['added_mb']:.0f} MB |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--analysis", choices=ANALYSES, help="measure one, in this process, and print JSON"
    )
    parser.add_argument("--model", default=MODEL)
    parser.add_argument("--minibatches", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args()
    options = asdict_of(asked)
    if asked.analysis:
        return print(json.dumps(measure(asked.analysis, **options)))
    print(f"\n{HEAD}")
    for name in ANALYSES:
        words = [sys.executable, __file__, "--analysis", name]
        words += [f"--{key.replace('_', '-')}={value}" for key, value in options.items()]
        done = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=False)
        if done.returncode:
            print(f"| {name} | failed with exit code {done.returncode} |", flush=True)
        else:
            print(line(name, asked.model, json.loads(done.stdout)), flush=True)


def asdict_of(asked: argparse.Namespace) -> dict:
    return {key: value for key, value in vars(asked).items() if key != "analysis"}


if __name__ == "__main__":
    main()
