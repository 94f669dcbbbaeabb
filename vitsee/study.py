"""An experiment with its models, layers, images and plan at hand, and the identity that follows from them."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
from collections.abc import Collection
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch

from vitsee.analysis import Labels, Layer
from vitsee.data import datasets
from vitsee.data.images import Images
from vitsee.data.plan import Plan
from vitsee.errors import UserError
from vitsee.models import loader, presets
from vitsee.models.structure import structure
from vitsee.models.taps import SURVEY
from vitsee.options import Experiment, Precision
from vitsee.sums import Sums

log = logging.getLogger(__name__)

LEAST = 5
"""Minibatches before a standard error is trusted to stop at."""

UNREAD: dict[str, dict[str, str]] = {
    "model": {
        "name": "a label",
        "pretrained": "the weights count by value",
        "checkpoint": "the weights count by value",
        "checkpoint_key": "the weights count by value",
        "embedded": "the weights count by value",
        "seed": "random weights count by value",
        "dataset": "the images count by name, size and some of their bytes, or by their formula",
    },
    "analysis": {
        "layers": "the names that they select count",
        "other_layers": "the names that they select count",
    },
}
"""Options that the identity does not have, each with the reason why it needs none. All others count, new
ones too; images count by the fingerprint of the data set, and their draw by the plan."""


@dataclass(frozen=True)
class Pass:
    """One pass over data: the images there are, and which of them make up which minibatch."""

    images: Images
    plan: Plan


@dataclass(frozen=True)
class Study:
    """What an experiment needs to be measured; each part is made when first used, and checked then."""

    experiment: Experiment

    @cached_property
    def device(self) -> torch.device:
        device = choose_device(self.experiment.run.device)
        if self.experiment.precision is Precision.tf32 and device.type != "cuda":
            raise UserError(
                f"precision=tf32 exists on CUDA devices only, not on {device.type}; "
                f"use precision=fp32 or bf16"
            )
        return device

    @property
    def memory(self) -> float:
        """Bytes that the sums may take: run.memory_gb, else all of the device's."""
        asked = self.experiment.run.memory_gb
        return asked * 2**30 if asked else memory_of(self.device)

    @cached_property
    def models(self) -> dict[str, loader.Loaded]:
        """The models by role, with weights, on the device."""
        e = self.experiment
        found = {
            role: loader.load(model, self.device, e.names[role]) for role, model in e.models.items()
        }
        self.experiment.analysis.cards = {
            role: model.card for role, model in found.items() if model.card
        }
        return found

    @cached_property
    def layers(self) -> dict[str, list[Layer]]:
        """The watched layers by role, in the order they run."""
        analysis = self.experiment.analysis
        if analysis.weights_only:
            return {role: [] for role in self.models}
        found = {
            role: presets.choose(model.net, self._surveyed[role], analysis.patterns(role))
            for role, model in self.models.items()
        }
        analysis.check(found)
        return found

    @cached_property
    def _surveyed(self) -> dict[str, list[Layer]]:
        """Every layer that there is to read, by role, in the order they run."""
        return {
            role: SURVEY[self.experiment.analysis.reads(role)](
                model.net, tuple(model.data["input_size"])
            )
            for role, model in self.models.items()
        }

    def warnings(self) -> list[str]:
        """What the user must know about the choice of layers."""
        analysis = self.experiment.analysis
        if analysis.weights_only:
            return []
        out = {
            role: presets.left_out(model.net, self._surveyed[role], analysis.patterns(role))
            for role, model in self.models.items()
        }
        return [
            f"{len(names)} layers of the {role} are left out, as the first axis of their output is not the "
            f"images but, say, windows of them: {presets.alike(names)}"
            for role, names in out.items()
            if names
        ]

    @cached_property
    def axes(self) -> dict[str, list[str]]:
        """Names of the watched layers by role."""
        return {role: [layer.name for layer in found] for role, found in self.layers.items()}

    @cached_property
    def passes(self) -> list[Pass]:
        """What is read, pass by pass; nothing where weights alone are. Raises UserError."""
        analysis = self.experiment.analysis
        if analysis.weights_only:
            return []
        return [self._pass(stage, split) for stage, split in enumerate(analysis.splits)]

    def _pass(self, stage: int, split: str | None) -> Pass:
        dataset = self.experiment.dataset
        side = max(max(model.data["input_size"][1:]) for model in self.models.values())
        images = datasets.load(replace(dataset, split=split) if split else dataset, side)
        return Pass(images, self._plan(stage, images))

    @property
    def images(self) -> Images:
        """The images of the last pass."""
        return self.passes[-1].images

    @property
    def plan(self) -> Plan:
        """The plan of the last pass."""
        return self.passes[-1].plan

    def _plan(self, stage: int, images: Images) -> Plan:
        """Which images make up which minibatch. Raises UserError if there are not enough."""
        e = self.experiment
        equal = e.analysis.equal_minibatches
        chosen = e.analysis.select(stage, images)
        if chosen is not None:
            order = tuple(chosen)
            if e.images is not None and stage == len(e.analysis.splits) - 1:
                order = self._drawn(order, e.images)
            return Plan(len(images), len(order), e.batch_size, e.seed, 1, equal, order)
        there, default = len(images), e.analysis.default_images
        if e.images is not None and e.images > there:
            raise UserError(
                f"images={e.images} asked, but {e.dataset.name} has {there}; "
                f"ask for images={there} or fewer"
            )
        count = min(default, there) if e.images is None else e.images
        if equal and count < e.batch_size:
            raise UserError(
                f"{e.dataset.name} has {there} images, less than one minibatch "
                f"(batch_size={e.batch_size}); "
                + (f"use batch_size={there // 2}" if there >= 8 else "at least 8 are needed")
            )
        if count < default and e.images is None:
            log.info("%s has %d images: all of them are used", e.dataset.name, there)
        plan = Plan(there, count, e.batch_size, e.seed, e.repeats, equal)
        if plan.left_out:
            log.info(
                "%d of %d images are left out: the last minibatch would not be full (batch_size=%d)",
                *(plan.left_out, count, e.batch_size),
            )
        return plan

    def _drawn(self, chosen: tuple[int, ...], count: int) -> tuple[int, ...]:
        """So many of the images that the analysis chose. Raises UserError if it chose fewer."""
        if count > len(chosen):
            raise UserError(
                f"images={count} asked, but {len(chosen)} of {self.experiment.dataset.name} are left; "
                f"ask for images={len(chosen)} or fewer"
            )
        rng = np.random.default_rng(self.experiment.seed)
        return tuple(rng.permutation(np.array(chosen))[:count].tolist())

    @property
    def identity(self) -> str:
        """The first eight hex digits of the fingerprint, as folders are called."""
        return self.fingerprint[:8]

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256, as hex, of `made_of`: it changes when a number in the tables could."""
        return hashlib.sha256(json.dumps(self.made_of, sort_keys=True).encode()).hexdigest()

    @cached_property
    def made_of(self) -> dict[str, Any]:
        """Everything that decides the numbers in the tables."""
        e = self.experiment
        made_of: dict[str, Any] = {
            "analysis": [e.analysis.name, e.analysis.version, self._options()],
            "architecture": {role: self._architecture(role) for role in self.models},
            "weights": {role: model.digest for role, model in self.models.items()},
            "preprocessing": {role: str(model.data) for role, model in self.models.items()},
            "layers": self.axes,
            "images": [each.images.fingerprint for each in self.passes],
            "plan": [asdict(each.plan) for each in self.passes],
            "precision": e.precision.value,
        }
        if e.tolerance:
            made_of["tolerance"] = e.tolerance
        if e.analysis.reads_cards:
            made_of["cards"] = {role: asdict(card) for role, card in e.analysis.cards.items()}
        return made_of

    def _options(self) -> dict[str, Any]:
        """The analysis's options; layers count by the names they select."""
        return _without(UNREAD["analysis"], self.experiment.what()["analysis"])

    def _architecture(self, role: str) -> dict[str, Any]:
        """What the model of this role is besides its weights: all its options, and what they make."""
        options = _without(UNREAD["model"], self.experiment.what()[role])
        return options | {"structure": structure(self.models[role].net)}

    @property
    def folder(self) -> str:
        """Where the results go, below the folder of all outputs."""
        e = self.experiment
        names = "-vs-".join(folder_name(name) for name in e.names.values())
        return f"{e.analysis.name}/{names}/{folder_name(self._data)}-{self.identity}"

    @property
    def _data(self) -> str:
        """What was read besides the models, in a word."""
        return self.experiment.dataset.name if self.passes else "weights"

    def enough(self, sums: Sums) -> bool:
        """Whether these sums are of the first minibatches, and `tolerance` lets it stop after them."""
        tolerance, measured = self.experiment.tolerance, int(sums.seen.sum())
        if tolerance is None or measured < LEAST or not (sums.seen[:measured] == 1).all():
            return False
        return self.experiment.analysis.error(sums) <= tolerance

    def labels(self, sums: Sums) -> Labels:
        """How figures call what is measured. sums: of the last pass."""
        other, card = self.models.get("other"), self.models["model"].card
        measured, images = int(sums.seen.sum()), 0
        if self.passes:
            plan = self.plan
            bad = {plan.batch(minibatch)[position] for minibatch, position in sums.skipped}
            images = len(plan.used(min(measured, plan.per_repeat))) - len(bad)
        return Labels(
            model=self.models["model"].label,
            other=other.label if other else None,
            dataset=self._data,
            images=images,
            repeats=math.ceil(measured / self.plan.per_repeat) if self.passes else 1,
            family=card.family if card else None,
            train_images=card.train_images if card else None,
        )


def _without(names: Collection[str], options: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in options.items() if key not in names}


def folder_name(name: str) -> str:
    """The name as that of one folder: it leads nowhere else, and every file system can write it."""
    plain = "".join(c if c.isprintable() and c not in '/\\:*?"<>|' else "_" for c in name)
    return plain if plain.strip(". ") else "_" * max(1, len(plain))


def choose_device(asked: str) -> torch.device:
    """The device called so; `auto` is cuda, else mps, else cpu. Raises UserError if it is not there."""
    there = {
        "cpu": True,
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
    }
    if asked in ("auto", "all"):  # of all, each process has its own
        return torch.device(next(name for name in ("cuda", "mps", "cpu") if there[name]))
    kind, _, number = asked.partition(":")
    have = [name for name, found in there.items() if found]
    if kind not in there or (number and not number.isdigit()):
        raise UserError(
            f"there is no run.device={asked}; it can be: auto, all, {', '.join(have)}, cuda:N"
        )
    if not there[kind]:
        why = " (this torch is built without it)" if not _built(kind) else ""
        raise UserError(
            f"run.device={asked}, but no {kind} device is available{why}; "
            f"available: {', '.join(have)} (run.device=auto chooses)"
        )
    if kind == "cuda" and number and int(number) >= torch.cuda.device_count():
        last = torch.cuda.device_count() - 1
        raise UserError(f"run.device={asked}, but the last GPU is cuda:{last}")
    return torch.device(asked)


def memory_of(device: torch.device) -> float:
    """Bytes of memory that the device has in all."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[1]
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _built(kind: str) -> bool:
    return torch.backends.cuda.is_built() if kind == "cuda" else torch.backends.mps.is_built()
