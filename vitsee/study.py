"""An experiment with its models, layers, images and plan, and the identity that follows from them."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch

from vitsee import returned
from vitsee.analysis import Analysis, Labels, Layer, Setting
from vitsee.data import datasets
from vitsee.data.images import Images
from vitsee.data.plan import Plan
from vitsee.errors import UserError, expanded, printable
from vitsee.models import loader, presets
from vitsee.models.code import source_of
from vitsee.models.structure import structure
from vitsee.models.taps import SURVEY
from vitsee.names import folder_name
from vitsee.options import Experiment, Precision, readers
from vitsee.parallel.background import in_background
from vitsee.sums import Sums

log = logging.getLogger(__name__)

LEAST = 5
"""Number of minibatches before `tolerance` trusts a standard error."""

UNREAD: dict[str, dict[str, str]] = {
    "model": {
        "name": "a label",
        "source": "the modules, weights and preprocessing that it loads count instead",
        "weights": "they count by value",
        "pretrained": "the weights count by value",
        "checkpoint": "the weights count by value",
        "checkpoint_key": "the weights count by value",
        "embedded": "the weights count by value",
        "seed": "random weights count by value",
        "drawn_as": "random weights count by value",
        "dataset": "the images count by name, size and some of their bytes, or by their formula",
    },
    "analysis": {
        "layers": "the names of the selected layers count",
        "other_layers": "the names of the selected layers count",
    },
}
"""Options that are not part of the identity, and why. All others are, including new ones, except those that an
analysis declares (`Analysis.unread`, `Analysis.later`). Images count by the fingerprint of the data set, and the way
they are drawn by the plan."""


@dataclass(frozen=True)
class Pass:
    """One pass over data: its images, and how they are divided into minibatches."""

    images: Images
    plan: Plan


@dataclass(frozen=True)
class Study:
    """Everything needed to measure an experiment; each part is made and checked on first use."""

    experiment: Experiment

    @cached_property
    def what(self) -> dict[str, Any]:
        """The experiment without its `run` options, as plain values."""
        return self.experiment.what()

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
        """Bytes that the sums may use: run.memory_gb, or all of the device's memory."""
        asked = self.experiment.run.memory_gb
        return asked * 2**30 if asked else memory_of(self.device)

    @cached_property
    def models(self) -> dict[str, loader.Loaded]:
        """The models by role, with weights, on the device."""
        e = self.experiment
        if self.device.type != "cpu":
            # a GPU takes seconds to start, during which the CPU builds models
            in_background(lambda: torch.ones(1, device=self.device))
        return {
            role: loader.load(model, self.device, e.names[role]) for role, model in e.models.items()
        }

    @cached_property
    def layers(self) -> dict[str, list[Layer]]:
        """The watched layers by role, in the order they run."""
        analysis = self.experiment.analysis
        if analysis.weights_only:
            return {role: [] for role in self.models}
        layers = {
            role: presets.choose(model.net, self._surveyed[role], analysis.patterns(role))
            for role, model in self.models.items()
        }
        returned.of(analysis, "check", layers)
        return layers

    @cached_property
    def _surveyed(self) -> dict[str, list[Layer]]:
        """Every layer that can be read, by role, in the order they run."""
        return {
            role: SURVEY[self.experiment.analysis.reads_of(role)](
                model.net, tuple(model.data["input_size"])
            )
            for role, model in self.models.items()
        }

    def warnings(self) -> list[str]:
        """Warnings about the choice of layers."""
        analysis = self.experiment.analysis
        if analysis.weights_only:
            return []
        out = {
            role: presets.left_out(model.net, self._surveyed[role], analysis.patterns(role))
            for role, model in self.models.items()
        }
        return [
            f"{len(names)} layers of the {role} are left out because the first axis of their output is not "
            f"the images (it may be windows): {presets.alike(names)}"
            for role, names in out.items()
            if names
        ]

    @cached_property
    def axes(self) -> dict[str, list[str]]:
        """Names of the watched layers by role."""
        return {role: [layer.name for layer in layers] for role, layers in self.layers.items()}

    @cached_property
    def data(self) -> list[Images]:
        """The images of each pass; none if only weights are read. Raises UserError."""
        analysis, dataset = self.experiment.analysis, self.experiment.dataset
        if analysis.weights_only:
            return []
        side = max(max(model.data["input_size"][1:]) for model in self.models.values())
        unsplit = "analysis.train_split=null" if hasattr(analysis, "train_split") else ""
        return [
            datasets.load(replace(dataset, split=split), side, unsplit)
            if split
            else datasets.load(dataset, side)
            for split in analysis.splits
        ]

    @cached_property
    def setting(self) -> Setting:
        """The models, layers and images of the analysis, before its first pass."""
        return Setting(
            # tables cannot hold names that are not valid Unicode
            names={role: printable(name) for role, name in self.experiment.names.items()},
            layers=self.layers,
            cards={role: model.card for role, model in self.models.items() if model.card},
            images=self.data,
            precision=self.experiment.precision.value,
        )

    @cached_property
    def analysis(self) -> Analysis:
        """The analysis before its first pass."""
        return self.analysis_after([])

    def analysis_after(self, earlier: Sequence[Sums]) -> Analysis:
        """The analysis for the next pass, given the complete sums of the earlier ones."""
        return self.experiment.analysis.on(replace(self.setting, earlier=tuple(earlier)))

    @cached_property
    def passes(self) -> list[Pass]:
        """The passes over data, in order. Raises UserError."""
        return [Pass(images, self._plan(stage, images)) for stage, images in enumerate(self.data)]

    @property
    def images(self) -> Images:
        """The images of the last pass."""
        return self.passes[-1].images

    @property
    def plan(self) -> Plan:
        """The plan of the last pass."""
        return self.passes[-1].plan

    def _plan(self, stage: int, images: Images) -> Plan:
        """Which images form each minibatch. Raises UserError if there are too few."""
        e = self.experiment
        equal = e.analysis.equal_minibatches
        chosen = returned.of(self.analysis, "select", stage)
        if chosen is not None:
            order = tuple(chosen)
            if e.images is not None and stage == len(e.analysis.splits) - 1:
                order = self._drawn(order, e.images)
            return Plan(len(images), len(order), e.batch_size, e.seed, 1, equal, order)
        there, default = len(images), e.analysis.default_images
        if e.images is not None and e.images > there:
            raise UserError(
                f"images={e.images}, but {self._shown} has {there}; use images={there} or fewer"
            )
        count = min(default, there) if e.images is None else e.images
        if equal and count < e.batch_size:
            fitting = max(there // 2, e.least)
            raise UserError(
                f"{self._shown} has {there} images, fewer than one minibatch "
                f"(batch_size={e.batch_size}); "
                + (
                    f"use batch_size={fitting}"
                    if fitting <= there
                    else f"at least {e.least} are needed"
                )
            )
        if count < default and e.images is None:
            log.info("%s has %d images, fewer than the default of %d", self._shown, there, default)
        plan = Plan(there, count, e.batch_size, e.seed, e.repeats, equal)
        if plan.left_out:
            log.info(
                "%d of %d images are left out because they do not fill a last minibatch (batch_size=%d)",
                *(plan.left_out, count, e.batch_size),
            )
        return plan

    def _drawn(self, chosen: tuple[int, ...], count: int) -> tuple[int, ...]:
        """The first `count` images that the analysis chose. Raises UserError if it chose fewer."""
        if count > len(chosen):
            raise UserError(
                f"images={count}, but only {len(chosen)} of {self._shown} are left; "
                f"use images={len(chosen)} or fewer"
            )
        rng = np.random.default_rng(self.experiment.seed)
        return tuple(rng.permutation(np.array(chosen))[:count].tolist())

    @property
    def identity(self) -> str:
        """The first eight hex digits of the fingerprint, used as the suffix of the folder's name."""
        return self.fingerprint[:8]

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of `made_of` in hex, which changes whenever a number in the tables could."""
        return hashlib.sha256(json.dumps(self.made_of, sort_keys=True).encode()).hexdigest()

    @cached_property
    def made_of(self) -> dict[str, Any]:
        """Everything that determines the numbers in the tables."""
        e = self.experiment
        made_of: dict[str, Any] = {
            "analysis": [
                e.analysis.name,
                e.analysis.version,
                self._options(),
                *self._revised(),
                *source_of(type(e.analysis)),
            ],
            "architecture": {role: self._architecture(role) for role in self.models},
            "weights": {role: model.digest for role, model in self.models.items()},
            "preprocessing": {
                role: str(model.preprocessing) for role, model in self.models.items()
            },
            "layers": self.axes,
            "images": [each.images.fingerprint for each in self.passes],
            "plan": [asdict(each.plan) for each in self.passes],
            "precision": e.precision.value,
        }
        if e.tolerance:
            made_of["tolerance"] = e.tolerance
        if e.analysis.reads_cards:
            made_of["cards"] = {role: asdict(card) for role, card in self.setting.cards.items()}
        return made_of

    def _options(self) -> dict[str, Any]:
        """The analysis's options. Layers count by the selected names, and later options only if they are used."""
        analysis = self.experiment.analysis
        unread = UNREAD["analysis"] | analysis.unread
        options, later = _without(unread, self.what["analysis"]), analysis.later
        return {key: value for key, value in options.items() if (key, value) not in later.items()}

    def _revised(self) -> list[str]:
        """The versions of values of options whose numbers have changed, as far as they are used."""
        options = self.what["analysis"]
        return [
            f"{option}={value}, version {version}"
            for option, (value, version) in self.experiment.analysis.revised.items()
            if options[option] == value
        ]

    def _architecture(self, role: str) -> dict[str, Any]:
        """Everything that defines the model in this role except its weights."""
        options = _without(UNREAD["model"], self.what[role])
        source = self.experiment.models[role].source
        read = {key: value for key, value in options.items() if source in readers(key)}
        more = {"made_of": found} if (found := self.models[role].made_of) else {}
        return read | more | {"structure": structure(self.models[role].net)}

    @property
    def folder(self) -> str:
        """The result folder, relative to run.outputs."""
        e = self.experiment
        names = "-vs-".join(folder_name(name) for name in e.names.values())
        return f"{e.analysis.name}/{names}/{folder_name(self._data)}-{self.identity}"

    @property
    def _data(self) -> str:
        """The folder name for the data that was read."""
        return self.experiment.dataset.name if self.passes else "weights"

    @property
    def _shown(self) -> str:
        """The name of the data in figures: for a folder or tar that was given none, its own.

        Their fonts have Latin, Greek and Cyrillic letters.
        """
        dataset = self.experiment.dataset
        if dataset.name != "folder" or not dataset.root:
            return dataset.name
        root = expanded(dataset.root).resolve()
        own = root.name if root.is_dir() else root.stem
        return own if own and max(own) < "\u0500" else dataset.name

    def enough(self, sums: Sums) -> bool:
        """Whether these are the sums of the first minibatches, and `tolerance` is reached."""
        tolerance, measured = self.experiment.tolerance, int(sums.seen.sum())
        if tolerance is None or measured < LEAST or not (sums.seen[:measured] == 1).all():
            return False
        return returned.of(self.analysis, "error", sums) <= tolerance

    def labels(self, sums: Sums) -> Labels:
        """The labels of the figures. sums: those of the last pass."""
        other, card = self.models.get("other"), self.models["model"].card
        measured, images = int(sums.seen.sum()), 0
        if self.passes:
            plan = self.plan
            first = [(k, position) for k, position in sums.skipped if k < plan.per_repeat]
            bad = {plan.batch(k)[position] for k, position in first}
            images = len(plan.used(min(measured, plan.per_repeat))) - len(bad)
        return Labels(
            model=self.models["model"].label,
            other=other.label if other else None,
            dataset=self._shown if self.passes else self._data,
            images=images,
            repeats=math.ceil(measured / self.plan.per_repeat) if self.passes else 1,
            family=card.family if card else None,
            train_images=card.train_images if card else None,
        )


def _without(names: Collection[str], options: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in options.items() if key not in names}


def choose_device(name: str) -> torch.device:
    """The device of this name; `auto` is cuda, else mps, else cpu. Raises UserError if it is not available."""
    available = {
        "cpu": True,
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
    }
    if name in ("auto", "all"):  # of all, each process has its own
        return torch.device(next(kind for kind in ("cuda", "mps", "cpu") if available[kind]))
    kind, _, number = name.partition(":")
    have = [kind for kind, usable in available.items() if usable]
    if kind not in available or (number and not number.isdigit()):
        raise UserError(
            f"there is no run.device={name}; it can be: auto, all, {', '.join(have)}, cuda:N"
        )
    if not available[kind]:
        why = " (this torch is built without it)" if not _built(kind) else ""
        raise UserError(
            f"run.device={name}, but no {kind} device is available{why}; "
            f"available: {', '.join(have)} (run.device=auto chooses)"
        )
    if kind == "cuda" and number and int(number) >= torch.cuda.device_count():
        last = torch.cuda.device_count() - 1
        raise UserError(f"run.device={name}, but the last GPU is cuda:{last}")
    return torch.device(name)


def memory_of(device: torch.device) -> float:
    """Total memory of the device in bytes."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[1]
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _built(kind: str) -> bool:
    return torch.backends.cuda.is_built() if kind == "cuda" else torch.backends.mps.is_built()
