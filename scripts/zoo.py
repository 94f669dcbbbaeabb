#!/usr/bin/env python3
"""Retrains the small models that ship with vitsee: `scripts/zoo.py [NAME…]`, by default all of them.

The most important ones come first; on a GPU several train side by side. The same command resumes where it was
stopped. Whatever follows `--` is passed on to `vitsee train`.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
WEIGHTS = ROOT / "vitsee" / "weights"

TRAININGS = {
    "vit_mini": "recipe=vit_mini",
    "vit_nano": "recipe=vit_nano",
    "resnet_mini": "recipe=resnet_mini",
    "vit_mini_data_10": "recipe=vit_mini recipe.fraction=0.1",
    "vit_maxi": "recipe=vit_maxi",
    "vit_nano_gap": "recipe=vit_nano recipe.lr=0.00056",
    "vit_nano_finetuned": "recipe=vit_nano_finetuned",
    "vit_nano_noskip_7": "recipe=vit_nano",
    "mixer_mini": "recipe=mixer_mini",
    "vit_nano_data_10": "recipe=vit_nano recipe.fraction=0.1",
    "hybrid_mini": "recipe=hybrid_mini",
    "vit_nano_p4": "recipe=vit_nano",
    "vit_nano_noskip_1": "recipe=vit_nano",
    "vit_nano_noskip_10": "recipe=vit_nano",
    "resnet_mini_deep": "recipe=resnet_mini",
    "mixer_maxi": "recipe=mixer_mini",
    "resnet_mini_data_10": "recipe=resnet_mini recipe.fraction=0.1",
    "vit_nano_data_3": "recipe=vit_nano recipe.fraction=0.03",
    "vit_nano_data_30": "recipe=vit_nano recipe.fraction=0.3",
    "resnet_mini_data_3": "recipe=resnet_mini recipe.fraction=0.03",
    "resnet_mini_data_30": "recipe=resnet_mini recipe.fraction=0.3",
    "vit_mini_data_3": "recipe=vit_mini recipe.fraction=0.03",
    "vit_mini_data_30": "recipe=vit_mini recipe.fraction=0.3",
    "vit_maxi_data_10": "recipe=vit_maxi recipe.fraction=0.1",
    "vit_nano_p4_data_10": "recipe=vit_nano recipe.fraction=0.1",
    "vit_mini_seed_1": "model=vit_mini recipe=vit_mini recipe.seed=1",
    "vit_mini_seed_2": "model=vit_mini recipe=vit_mini recipe.seed=2",
    "resnet_mini_seed_1": "model=resnet_mini recipe=resnet_mini recipe.seed=1",
    "resnet_mini_seed_2": "model=resnet_mini recipe=resnet_mini recipe.seed=2",
}
"""Options of `vitsee train`, by name. Models of other seeds show the scatter between trainings: only cards ship."""
AFTER = {"vit_nano_finetuned": "vit_nano"}


def main() -> int:
    """Train all that are asked for. Return 1 if any did not end."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="by default all")
    parser.add_argument("--together", type=int, help="how many at a time (default: GPU 6, CPU 1)")
    parser.add_argument("--into", type=Path, default=WEIGHTS, help="folder of weights and cards")
    parser.add_argument("--vitsee", default=str(ROOT / ".venv" / "bin" / "vitsee"))
    own = sys.argv[1:]
    own, more = (own[: own.index("--")], own[own.index("--") + 1 :]) if "--" in own else (own, [])
    asked = parser.parse_args(own)
    if unknown := set(asked.names) - set(TRAININGS):
        parser.error(f"there is no model {min(unknown)} to train; there are {', '.join(TRAININGS)}")
    waiting = [name for name in TRAININGS if name in asked.names or not asked.names]
    together = asked.together or default_together()
    running: dict[str, subprocess.Popen[str]] = {}
    failed = []
    while waiting or running:
        for name in waiting[:]:
            before = AFTER.get(name)
            if len(running) < together and before not in {*waiting, *running}:
                waiting.remove(name)
                running[name] = start(name, asked.vitsee.split(), more)
        time.sleep(0.2)
        for name, process in list(running.items()):
            if process.poll() is None:
                continue
            del running[name]
            if process.returncode:
                failed.append(name)
            else:
                keep(name, Path(process.communicate()[0].strip()), asked.into)
    if failed:
        print(f"not trained: {', '.join(failed)}; the same command resumes", file=sys.stderr)
    return bool(failed)


def start(name: str, vitsee: list[str], more: list[str]) -> subprocess.Popen[str]:
    """Start a training, which prints its folder at the end."""
    options = TRAININGS[name].split()
    model = [] if options[0].startswith("model=") else [f"model={name}"]
    words = [*vitsee, "train", *model, *options, f"recipe.name={name}", *more]
    return subprocess.Popen(words, stdout=subprocess.PIPE, text=True)


def keep(name: str, folder: Path, into: Path) -> None:
    """Copy what ships with vitsee."""
    shutil.copy(folder / f"{name}.md", into)
    if "_seed_" not in name:
        shutil.copy(folder / f"{name}.safetensors", into)
    print(f"{name}: {folder}", flush=True)


def default_together() -> int:
    import torch

    return 6 if torch.cuda.is_available() else 1


if __name__ == "__main__":
    sys.exit(main())
