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
from vitsee.options import ModelOptions, Precision
from vitsee.sums import Sums

net = loader.load(ModelOptions(name="m", timm="vit_tiny_patch16_224", pretrained=False), "cpu").net
pixels = torch.randn(16, 3, 224, 224)
peaks = []
peak = lambda: peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
with torch.inference_mode():
    net(pixels)
peak()
watched = presets.choose(net, layers.survey(net, (3, 224, 224)), sys.argv[1].split())
cka, sums = CKA(), Sums.zero(4)
names = {"model": [layer.name for layer in watched]}
with watch(net, watched, cka, Precision.fp32) as measure:
    for i in range(4):
        view = View(16, torch.zeros(16), measure(pixels + i))
        sums += Sums.of(i, 4, cka.observe(view), names)
        if i in (0, 3):
            peak()
print(*peaks, len(names["model"]))
"""
SIXTY = "blocks.*.norm1 blocks.*.attn blocks.*.norm2 blocks.*.mlp blocks"


def test_sixty_layers_need_the_same_memory_for_four_times_the_images_and_little_more_than_bare():
    """Largest resident memory in MB: bare, and when 1 and 4 minibatches are measured. Kept, the outputs of one
    would take 145 MB."""
    # Freed tensors go back to the system at once: the peak is then that of live tensors.
    steady = os.environ | {"MALLOC_MMAP_THRESHOLD_": "1048576"}
    words = [sys.executable, "-c", CODE, SIXTY]
    done = subprocess.run(words, capture_output=True, text=True, check=True, env=steady)
    bare, few, many, count = map(float, done.stdout.split())
    assert count == 60
    assert few <= many <= 1.05 * few
    assert many - bare <= 60, done.stdout
