"""`make bench`: what CKA costs relative to bare forward passes over the same images in memory, one process per case."""

from __future__ import annotations

import argparse
import copy
import json
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import cache
from itertools import groupby

# As the command does; bare forward passes gain just as much.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

import numpy as np
import peers
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from vitsee.analyses.cka import CKA, Products
from vitsee.analysis import Layer, Setting, View
from vitsee.estimators.arithmetic import forward_in, tf32
from vitsee.estimators.kernels import u_centre
from vitsee.models import layers, loader, presets
from vitsee.models.taps import watch
from vitsee.options import ModelOptions, Precision
from vitsee.sums import Sums

SIXTY = ["blocks.*.norm1", "blocks.*.attn", "blocks.*.norm2", "blocks.*.mlp", "blocks"]
SETS = {"12 layers": ["blocks"], "60 layers": SIXTY, "paper layers": ["paper"]}
ARGS = {"resnet50": {"zero_init_last": False}}
"""timm initialises the last norm of each ResNet unit to zero, which makes layers constant with random weights."""


@dataclass(frozen=True)
class Case:
    """One row of the table: models (one, or two to compare), layers, minibatch, tool and arithmetic."""

    models: list[str]
    layers: str
    batch_size: int
    tool: str = "vitsee"
    precision: str = "fp32"
    products: str = "auto"


def cases(on_gpu: bool, tools: list[str]) -> list[Case]:
    """The cases of the tables in docs/benchmarks.md, for a GPU or a CPU."""
    if on_gpu:
        large, resnet = ["vit_large_patch16_224"], ["resnetv2_50x1_bit"]
        rows = [
            *((large, 256, precision, "auto") for precision in ("bf16", "tf32", "fp32")),
            *((large, 256, precision, "exact") for precision in ("bf16", "tf32")),
            (large, 256, "fp32", "tf32"),
            (large, 1024, "bf16", "auto"),
            *((resnet, 256, precision, "auto") for precision in ("bf16", "tf32", "fp32")),
            (large + resnet, 256, "bf16", "auto"),
        ]
        return [Case(m, "paper layers", n, "vitsee", p, products) for m, n, p, products in rows]
    vit, resnet = ["vit_tiny_patch16_224"], ["resnet50"]
    found = [Case(vit, which, 64) for which in SETS]
    found += [Case(resnet, "paper layers", 64), Case(vit + resnet, "paper layers", 64)]
    few = [c for c in found if c.models == vit and c.layers != "paper layers"]
    return found + [Case(c.models, c.layers, c.batch_size, tool) for tool in tools for c in few]


@cache
def load(name: str, device: torch.device) -> loader.Loaded:
    """This timm model with random weights, as `vitsee run` loads it."""
    model = ModelOptions(name=name, timm=name, pretrained=False, args=ARGS.get(name, {}))
    return loader.load(model, device)


@cache
def as_timm_lays_it_out(net: nn.Module) -> nn.Module:
    """The same weights in timm's own memory layout."""
    return copy.deepcopy(net).to(memory_format=torch.contiguous_format)


class Bench:
    """The models of a case, their measured layers, and minibatches of noise, all in memory."""

    def __init__(self, case: Case, minibatches: int) -> None:
        self.case, self.precision = case, Precision(case.precision)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        loaded = [load(name, self.device) for name in case.models]
        self.nets = [each.net for each in loaded]
        self.usual = [as_timm_lays_it_out(net) for net in self.nets]
        size = max(each.data["input_size"][-1] for each in loaded)
        self.watched = [
            presets.choose(net, layers.survey(net, (3, size, size)), SETS[case.layers])
            for net in self.nets
        ]
        generator = torch.Generator().manual_seed(0)
        shape = (case.batch_size, 3, size, size)
        self.batches = [
            torch.randn(*shape, generator=generator).to(self.device) for _ in range(minibatches)
        ]

    def bare(self, nets: list[nn.Module]) -> None:
        with torch.inference_mode(), forward_in(self.precision, self.device.type):
            for pixels in self.batches:
                for net in nets:
                    net(pixels)

    @property
    def analysis(self) -> CKA:
        setting = Setting(precision=self.case.precision)
        return CKA(products=Products(self.case.products)).on(setting)

    @property
    def rounding(self) -> str:
        return self.analysis.rounding(self.device.type)

    def vitsee(self) -> np.ndarray:
        """CKA of all pairs of layers, as `vitsee run` measures it, with the table."""
        analysis, total = self.analysis, Sums.zero(len(self.batches))
        axes = dict(zip(("model", "other"), map(names, self.watched), strict=False))
        with ExitStack() as stack:
            run = [
                stack.enter_context(watch(net, watched, analysis, self.precision))
                for net, watched in zip(self.nets, self.watched, strict=True)
            ]
            for i, pixels in enumerate(self.batches):
                view = View(len(pixels), pixels[:, 0, 0, 0], *(through(pixels) for through in run))
                total += Sums.of(i, len(self.batches), analysis.observe(view), axes)
        table = analysis.tables(total)["cka"]
        return table["cka"].to_numpy().reshape(len(self.watched[0]), -1)

    def tool(self) -> np.ndarray:
        if self.case.tool == "vitsee":
            return self.vitsee()
        return peers.TOOLS[self.case.tool](self.usual[0], names(self.watched[0]), self.batches)

    def reference(self) -> np.ndarray:
        """(layers, layers) CKA of the same outputs, in float64 from the Gram matrices on."""
        sums = [0, 0, 0]
        for pixels in self.batches:
            u, v = (self._centred(i, pixels) for i in (0, len(self.nets) - 1))
            sums[0] += u @ v.mT
            sums[1] += u.square().sum(1)
            sums[2] += v.square().sum(1)
        return (sums[0] / (sums[1][:, None] * sums[2][None, :]).sqrt()).numpy()

    def _centred(self, i: int, pixels: Tensor) -> Tensor:
        """(layers, N²) U-centred Gram matrices in float64 on the CPU."""
        net, kept = self.nets[i], {}

        def keep(layer: Layer) -> Callable[[nn.Module, object, Tensor], None]:
            def hook(module: nn.Module, args: object, output: Tensor) -> None:
                x = output.flatten(1).double()
                x = x - x.mean(0)
                kept[layer.name] = u_centre(x @ x.mT).flatten().cpu()

            return hook

        handles = [
            net.get_submodule(l.name).register_forward_hook(keep(l)) for l in self.watched[i]
        ]
        with torch.inference_mode(), forward_in(self.precision, self.device.type):
            net(pixels)
        for handle in handles:
            handle.remove()
        return torch.stack([kept[name] for name in names(self.watched[i])])

    def seconds(self, work: Callable[[], object]) -> float:
        """Seconds that the work takes; on a GPU by CUDA events."""
        if self.device.type != "cuda":
            began = time.perf_counter()
            work()
            return time.perf_counter() - began
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        work()
        end.record()
        torch.cuda.synchronize()
        return start.elapsed_time(end) / 1000

    def peak_mb(self) -> float:
        """Peak memory so far, of the GPU if there is one, else of the process."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated() / 2**20
        unit = 2**20 if sys.platform == "darwin" else 2**10
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit

    def floor_seconds(self) -> float:
        """The lowest possible cost of the Gram matrices: their products, and reading the outputs once.

        At the speed of a large product and of a large copy, measured on the spot. Products are float32 on a CPU
        and TF32 on a GPU, where an exact product takes three.
        """
        flops = outputs = 0
        for layer in (l for watched in self.watched for l in watched):
            features, n = float(np.prod(layer.shape)), self.case.batch_size
            flops += n * (n + 1) * features
            outputs += 4 * n * features
        side, length = (8192, 2**28) if self.device.type == "cuda" else (2048, 2**25)
        a, b = torch.randn(side, side, device=self.device), torch.empty(length, device=self.device)
        c = torch.empty_like(b)
        with tf32(self.device.type == "cuda"):
            per_flop = self.best(lambda: a @ a, 3) / (2 * side**3)
        if self.rounding == "exact" and self.device.type == "cuda":
            per_flop *= 3
        per_byte = self.best(lambda: c.copy_(b), 3) / (8 * length)
        return len(self.batches) * (flops * per_flop + outputs * per_byte)

    def best(self, work: Callable[[], object], rounds: int) -> float:
        work()
        return min(self.seconds(work) for _ in range(rounds))

    def forward_flops(self) -> int:
        """Floating-point operations of the models' forward passes over all minibatches."""
        with FlopCounterMode(display=False) as counter, torch.inference_mode():
            for net in self.nets:
                net(self.batches[0][:1])
        return counter.get_total_flops() * self.case.batch_size * len(self.batches)


def names(watched: list[Layer]) -> list[str]:
    return [layer.name for layer in watched]


def measure(bench: Bench, rounds: int) -> dict[str, float]:
    """Ratios from the fastest of several rounds, interleaved so that all see the same machine."""
    bench.bare(bench.nets)
    bench.bare(bench.usual)
    bench.tool()
    if bench.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        bench.bare(bench.nets)
    before, took = bench.peak_mb(), {"bare": [], "usual": [], "tool": []}
    for _ in range(rounds):
        took["bare"].append(bench.seconds(lambda: bench.bare(bench.nets)))
        took["usual"].append(bench.seconds(lambda: bench.bare(bench.usual)))
        took["tool"].append(bench.seconds(bench.tool))
    added = bench.peak_mb() - before
    bare, usual, tool = (min(took[key]) for key in ("bare", "usual", "tool"))
    images = len(bench.batches) * bench.case.batch_size
    same = usual if bench.case.tool != "vitsee" else bare
    return {
        "layers": " x ".join(str(len(watched)) for watched in bench.watched),
        "ratio": tool / same,
        "usual": tool / usual,
        "floor": 1 + bench.floor_seconds() / same,
        "images_per_second": images / tool,
        "tflops": bench.forward_flops() / same / 1e12,
        "added_mb": added,
        "error": float(np.nanmax(np.abs(bench.tool() - bench.reference()))),
    }


HEAD = (
    "| case | forward | products | tool | layers | ratio to bare forward | to timm's layout | floor | images/s "
    "| forward TFLOP/s | added peak memory | largest error |\n|" + "---|" * 12
)


def line(case: Case, row: dict[str, float]) -> str:
    title = f"{' x '.join(case.models)}, minibatch {case.batch_size}"
    return (
        f"| {title} | {case.precision} | {case.products} | {case.tool} | {row['layers']} "
        f"| {row['ratio']:.2f} | {row['usual']:.2f} | {row['floor']:.2f} | {row['images_per_second']:.0f} "
        f"| {row['tflops']:.2f} | {row['added_mb']:.0f} MB | {row['error']:.0e} |"
    )


def together(todo: list[Case], on_gpu: bool) -> list[list[Case]]:
    """Groups of cases, one per process: by models on a GPU; single cases on a CPU, where peak memory never falls."""
    if on_gpu:
        return [list(group) for _, group in groupby(todo, key=lambda case: case.models)]
    return [[case] for case in todo]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", help="cases as JSON: measure them in this process")
    parser.add_argument(
        "--models", help="one or two timm models, comma-separated, instead of the table's"
    )
    parser.add_argument("--layers", choices=SETS, default="paper layers", help="with --models")
    parser.add_argument("--batch-size", type=int, default=64, help="with --models")
    parser.add_argument("--precision", choices=[p.value for p in Precision], help="with --models")
    parser.add_argument("--products", choices=[p.value for p in Products], help="with --models")
    parser.add_argument("--minibatches", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args()
    if asked.cases:
        for case in (Case(**each) for each in json.loads(asked.cases)):
            row = measure(Bench(case, asked.minibatches), asked.rounds)
            print(line(case, row), flush=True)
        return
    on_gpu = torch.cuda.is_available()
    todo = cases(on_gpu, peers.installed())
    if asked.models:
        how = {"precision": asked.precision or "fp32", "products": asked.products or "auto"}
        todo = [Case(asked.models.split(","), asked.layers, asked.batch_size, **how)]
    where = torch.cuda.get_device_name() if on_gpu else f"{platform.machine()} CPU"
    print(f"{where}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    print(
        f"{asked.minibatches} minibatches, random weights, fastest of {asked.rounds} rounds\n\n{HEAD}",
        flush=True,
    )
    for group in together(todo, on_gpu):
        words = [sys.executable, __file__, "--cases", json.dumps([asdict(case) for case in group])]
        options = [f"--minibatches={asked.minibatches}", f"--rounds={asked.rounds}"]
        done = subprocess.run([*words, *options], check=False)
        if done.returncode:
            print(f"| {group} | failed with exit code {done.returncode} |", flush=True)


if __name__ == "__main__":
    main()
