"""Writes the cost of each figure, with the paper's models, into its YAML file: `python scripts/costs.py [FIGURE…]`.

Images are counted for the last pass, once per model with public weights; the data set may have fewer. GPU minutes
are the time of this pass's floating-point operations at 40 % of an A100's peak in the precision of the run. They
do not include passes that train probes, the analysis's own work, decoding, or downloads.
"""

from __future__ import annotations

import math
import re
import sys
from functools import cache

from omegaconf import OmegaConf

from vitsee.choices import CONF
from vitsee.models import timm_architecture
from vitsee.models.presets import choose
from vitsee.models.taps import SURVEY
from vitsee.options import Experiment, ModelOptions
from vitsee.papers import atlas
from vitsee.papers.atlas import ASKED, Cost
from vitsee.papers.request import Request, overrides
from vitsee.training.cost import PEAK, REACHED, flops_of


def main(names: list[str]) -> None:
    for name in names or atlas.figures():
        path = CONF / "figure" / f"{name}.yaml"
        cost = cost_of(name)
        if cost is None:
            continue
        line = f"cost: {{images: {cost.images}, gpu_minutes: {cost.gpu_minutes:g}}}\n"
        text = re.sub(r"^cost: .*\n", "", path.read_text(), flags=re.MULTILINE)
        path.write_text(text.replace("panels:\n", f"{line}panels:\n", 1))
        print(f"{name}: {line}", end="")


def cost_of(name: str) -> Cost | None:
    """The cost of a figure with zoo=paper; None if its models come from the command line."""
    figure, zoo, request = atlas.published(name), atlas.zoo("paper"), Request(name, "paper")
    images, seconds = 0, 0.0
    for panel in figure.panels.values():
        for role in panel.roles:
            cast = [role, panel.other] if panel.other else [role]
            if set(cast) & set(ASKED):
                return None
            if any(zoo.role(one).model is None for one in cast):
                continue
            asked = request.experiment(overrides(panel, role, zoo, request))
            count = passed(asked)
            images += count * len(cast)
            seconds += (
                count
                * sum(flops(one, asked) for one in asked.models.values())
                / (PEAK[asked.precision] * REACHED)
            )
    return Cost(images=images, gpu_minutes=float(f"{seconds / 60:.2g}"))


def passed(asked: Experiment) -> int:
    """Number of images in the last pass."""
    analysis = asked.analysis
    if analysis.weights_only:
        return 0
    return (asked.images or analysis.default_images) * asked.repeats


def flops(model: ModelOptions, asked: Experiment) -> float:
    """Floating-point operations per image, including backward passes if the analysis needs gradients."""
    forward = _forward(OmegaConf.to_yaml(OmegaConf.structured(model)))
    if not asked.analysis.gradients:
        return forward
    # A backward pass costs two forward passes, but on average starts halfway up: one forward pass per channel.
    net = timm_architecture.skeleton(model).eval()
    data = timm_architecture.data_config(net)
    survey = SURVEY[asked.analysis.reads_of("model")](net, tuple(data["input_size"]))
    layers = choose(net, survey, asked.analysis.patterns("model"))
    channels = sum(min(asked.analysis.channels or math.inf, layer.shape[-1]) for layer in layers)
    return forward * (1 + channels)


@cache
def _forward(model: str) -> float:
    structured = OmegaConf.merge(OmegaConf.structured(ModelOptions), OmegaConf.create(model))
    return flops_of(OmegaConf.to_object(structured))


if __name__ == "__main__":
    main(sys.argv[1:])
