"""Memory does not grow with the number of images, and barely with that of layers."""

from __future__ import annotations

import os
import subprocess
import sys

CODE = """
import resource, sys, torch
from vitsee.analyses.cka import CKA
from vitsee.analysis import View
from vitsee.models import layers, loader, presets
from vitsee.models.taps import watch
from vitsee.options import Model, Precision
from vitsee.sums import Sums

minibatches, patterns = int(sys.argv[1]), sys.argv[2].split()
net = loader.load(Model(name="m", timm="vit_tiny_patch16_224", pretrained=False), "cpu").net
pixels = torch.randn(64, 3, 224, 224)
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
with torch.inference_mode():
    net(pixels)
before = peak()
if patterns:
    watched = presets.choose(net, layers.survey(net, (3, 224, 224)), patterns)
    cka, sums = CKA(), Sums.zero(minibatches)
    names = {"model": [layer.name for layer in watched]}
    with watch(net, watched, cka, Precision.fp32) as measure:
        for i in range(minibatches):
            view = View(64, torch.zeros(64), measure(pixels + i))
            sums += Sums.of(i, minibatches, cka.observe(view), names)
print(before, peak(), len(names["model"]))
"""
SIXTY = "blocks.*.norm1 blocks.*.attn blocks.*.norm2 blocks.*.mlp blocks"


def peaks(images: int, patterns: str) -> tuple[float, float]:
    """Largest resident memory in MB of a bare forward pass, and after CKA of so many images."""
    words = [sys.executable, "-c", CODE, str(images // 64), patterns]
    # Freed tensors go back to the system at once: the peak is then that of live tensors.
    steady = os.environ | {"MALLOC_MMAP_THRESHOLD_": "1048576"}
    done = subprocess.run(words, capture_output=True, text=True, check=True, env=steady)
    before, after, count = map(float, done.stdout.split())
    assert count == 60
    return before, after


def test_sixty_layers_need_the_same_memory_for_four_times_the_images_and_little_more_than_bare():
    few, many = peaks(128, SIXTY), peaks(512, SIXTY)
    assert abs(many[1] - few[1]) <= 0.05 * few[1]
    assert max(few[1] - few[0], many[1] - many[0]) <= 100
