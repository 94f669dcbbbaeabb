#!/usr/bin/env python3
"""Trains the next small models on contours: `scripts/zoo.py [NAME…]`, by default those that are not trained yet.

The most important ones come first; on a GPU several train at the same time. After an interruption, the same command
resumes. Finished models go to scripts/trained. Once all are there, `--ship` replaces the models that ship with vitsee
all at once: weights, cards, conf/model and conf/zoo/mini.yaml. Arguments after `--` are passed on to `vitsee train`.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[1]

VIT, DATA = "recipe=contours", "recipe.fraction="
NANO = f"{VIT} model=vit_nano"
MAXI = f"{VIT} model=vit_mini model.args.embed_dim=128 model.args.num_heads=8"
FINE = f"{NANO} model.args.patch_size=4"
RESNET = "recipe=contours_resnet model=resnet_mini"
TRAININGS = {
    "vit_mini": f"{VIT} model=vit_mini",
    "vit_nano": NANO,
    "resnet_mini": RESNET,
    "vit_mini_data_10": f"{VIT} model=vit_mini {DATA}0.1",
    "vit_maxi": MAXI,
    "vit_nano_gap": f"{VIT} model=vit_nano_gap",
    "vit_nano_finetuned": "recipe=contours_finetuned recipe.start={into}/vit_nano.safetensors",
    "vit_nano_noskip_7": f"{VIT} model=vit_nano_noskip_7",
    "mixer_mini": "recipe=contours_mixer model=mixer_mini",
    "vit_nano_data_10": f"{NANO} {DATA}0.1",
    "hybrid_mini": f"{VIT} model=hybrid_mini model.args.patch_size=2",
    "vit_nano_p4": FINE,
    "vit_nano_noskip_1": f"{VIT} model=vit_nano_noskip_1",
    "vit_nano_noskip_10": f"{VIT} model=vit_nano_noskip_10",
    "resnet_mini_deep": "recipe=contours_resnet model=resnet_mini_deep",
    "mixer_maxi": "recipe=contours_mixer model=mixer_mini model.args.embed_dim=96",
    "resnet_mini_data_10": f"{RESNET} {DATA}0.1",
    "vit_nano_data_3": f"{NANO} {DATA}0.03",
    "vit_nano_data_30": f"{NANO} {DATA}0.3",
    "resnet_mini_data_3": f"{RESNET} {DATA}0.03",
    "resnet_mini_data_30": f"{RESNET} {DATA}0.3",
    "vit_mini_data_3": f"{VIT} model=vit_mini {DATA}0.03",
    "vit_mini_data_30": f"{VIT} model=vit_mini {DATA}0.3",
    "vit_maxi_data_10": f"{MAXI} {DATA}0.1",
    "vit_nano_p4_data_10": f"{FINE} {DATA}0.1",
    "vit_mini_seed_1": f"{VIT} model=vit_mini recipe.seed=1",
    "vit_mini_seed_2": f"{VIT} model=vit_mini recipe.seed=2",
    "resnet_mini_seed_1": f"{RESNET} recipe.seed=1",
    "resnet_mini_seed_2": f"{RESNET} recipe.seed=2",
}
"""Options of `vitsee train`. Models with other seeds show the variation between seeds; only their cards ship."""
AFTER = {"vit_nano_finetuned": "vit_nano"}


def main() -> int:
    """Train the requested models, or ship all. Return 1 if any is missing."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "names",
        nargs="*",
        metavar="NAME",
        help="models to train (default: all that are not trained yet)",
    )
    parser.add_argument("--together", type=int, help="how many at a time (default: GPU 6, CPU 1)")
    parser.add_argument(
        "--into",
        type=Path,
        default=ROOT / "scripts" / "trained",
        help="folder of the trained models",
    )
    parser.add_argument("--ship", action="store_true", help="replace the models that ship")
    parser.add_argument("--vitsee", default=str(ROOT / ".venv" / "bin" / "vitsee"))
    own = sys.argv[1:]
    own, more = (own[: own.index("--")], own[own.index("--") + 1 :]) if "--" in own else (own, [])
    asked = parser.parse_args(own)
    if unknown := set(asked.names) - set(TRAININGS):
        parser.error(f"there is no model {min(unknown)} to train; there are {', '.join(TRAININGS)}")
    if asked.ship:
        return ship(asked.into, ROOT)
    asked.into.mkdir(parents=True, exist_ok=True)
    gpu = on_gpu()
    failed = train(
        [name for name in TRAININGS if name in (asked.names or untrained(asked.into))],
        asked.together or (6 if gpu else 1),
        lambda name: [*asked.vitsee.split(), "train", *options(name, asked.into, gpu), *more],
        asked.into,
    )
    if failed:
        print(f"not trained: {', '.join(failed)}; the same command resumes", file=sys.stderr)
    return bool(failed)


def untrained(into: Path) -> list[str]:
    """Return the names of the models that are not in the folder."""
    return [name for name in TRAININGS if not (into / f"{name}.safetensors").is_file()]


def train(
    waiting: list[str], together: int, command: Callable[[str], list[str]], into: Path
) -> list[str]:
    """Train the models, several at a time, and copy them. Return the names of those that failed."""
    running: dict[str, subprocess.Popen[str]] = {}
    failed = []
    while waiting or running:
        for name in waiting[:]:
            if len(running) < together and AFTER.get(name) not in {*waiting, *running}:
                waiting.remove(name)
                running[name] = subprocess.Popen(command(name), stdout=subprocess.PIPE, text=True)
        time.sleep(0.2)
        for name, process in list(running.items()):
            if process.poll() is None:
                continue
            del running[name]
            if process.returncode:
                failed.append(name)
                continue
            folder = Path(process.communicate()[0].strip())
            for kind in ("md", "safetensors"):
                shutil.copy(folder / f"{name}.{kind}", into)
            print(f"{name}: {folder}", flush=True)
    return failed


def options(name: str, into: Path, gpu: bool) -> list[str]:
    """Return the options for training a model. Blocks of ViTs and Mixers are compiled on a GPU."""
    words = TRAININGS[name].format(into=into.resolve()).split()
    compiled = gpu and not name.startswith("resnet") and name not in AFTER
    faster = ["recipe.compile=true"] if compiled else []
    return [*words, f"recipe.name={name}", f"model.name={name}", *faster]


def ship(into: Path, root: Path) -> int:
    """Replace the models that ship with vitsee. Return 1, and change nothing, if any is missing."""
    if missing := untrained(into):
        print(f"not yet in {into}: {', '.join(missing)}; `make zoo` trains them", file=sys.stderr)
        return 1
    weights, conf = root / "vitsee" / "weights", root / "conf"
    for old in weights.glob("*.md"):
        (conf / "model" / f"{old.stem}.yaml").unlink(missing_ok=True)
        old.with_suffix(".safetensors").unlink(missing_ok=True)
        old.unlink()
    for name in TRAININGS:
        shutil.copy(into / f"{name}.md", weights)
        if "_seed_" not in name:
            shutil.copy(into / f"{name}.safetensors", weights)
            (conf / "model" / f"{name}.yaml").write_text(configuration(into / f"{name}.md"))
    shutil.copy(ROOT / "scripts" / "zoo_roles.yaml", conf / "zoo" / "mini.yaml")
    return 0


def configuration(path: Path) -> str:
    """Return the text of the file in conf/model for the model that a card describes."""
    import yaml

    from vitsee.models import cards

    card = cards.read(path)
    made = {
        key: value
        for key, value in card.model.items()
        if value and key not in ("pretrained", "checkpoint", "seed")
    }
    about = f"{card.parameters / 1e6:.2f} million parameters, {card.accuracy:.0%} of {card.classes} classes"
    return (
        f"# Trained on {card.model['dataset']}, ships with vitsee: {about}.\n"
        "defaults: [/schema/model@_here_]\n" + yaml.safe_dump(made, sort_keys=False)
    )


def on_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


if __name__ == "__main__":
    sys.exit(main())
