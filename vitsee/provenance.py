"""What a result was made with: versions, device, weights, images, time and memory."""

from __future__ import annotations

import platform
import resource
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from vitsee.study import Pass, Study
from vitsee.sums import Sums

_PACKAGES = (
    "vitsee",
    "torch",
    "torchvision",
    "timm",
    "numpy",
    "pandas",
    "matplotlib",
    "hydra-core",
)


def made_with(study: Study, totals: list[Sums]) -> dict[str, Any]:
    """The record of a result, as written to made_with.json. totals: the sums of each pass."""
    return {
        "labels": asdict(study.labels(int(totals[-1].seen.sum()))),
        "identity": study.identity,
        "models": {
            role: {
                "timm": study.experiment.models[role].timm,
                "weights": model.weights,
                "taken": model.taken.record(),
                "digest": model.digest,
                "preprocessing": {key: str(value) for key, value in model.data.items()},
                "layers": study.axes[role],
            }
            for role, model in study.models.items()
        },
        "dataset": study.experiment.dataset.name if study.passes else None,
        "passes": [
            {
                "fingerprint": each.images.fingerprint,
                "plan": asdict(each.plan) | {"left_out": each.plan.left_out},
                "minibatches": int(total.seen.sum()),
                "image_ids": image_ids(each, int(total.seen.sum())),
            }
            for each, total in zip(study.passes, totals, strict=False)
        ],
        "precision": study.experiment.precision.value,
        "versions": versions(),
        "git_commit": git_commit(),
    }


def image_ids(one: Pass, minibatches: int) -> list[str]:
    """Ids of all images of the minibatches measured, each once, in the order they are first used."""
    return [one.images.id(i) for i in one.plan.used(minibatches)]


def versions() -> dict[str, str]:
    found = {"python": platform.python_version(), "platform": platform.platform()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found | {"torch": torch.__version__}  # says for which CUDA it was built


def git_commit() -> str | None:
    """Commit of vitsee's own checkout, with `-dirty` if it differs from it; None if it is not one."""
    home = Path(__file__).parents[1]
    if not (home / ".git").exists():
        return None
    asked = [
        "git",
        "-C",
        str(home),
        "describe",
        "--always",
        "--dirty",
        "--abbrev=40",
        "--exclude=*",
    ]
    answer = subprocess.run(asked, capture_output=True, text=True, check=False)
    return answer.stdout.strip() or None


@dataclass
class Launch:
    """One process's share of the work: when, where, how fast, how much memory."""

    device: str
    began: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    minibatches: int = 0
    images: int = 0
    seconds: float = 0.0
    images_per_second: float = 0.0
    waiting_share: float = 0.0
    """Share of the time spent waiting for images."""
    peak_memory_mb: float = 0.0
    """Largest resident memory of the process; on CUDA largest allocated memory of the device."""

    def __post_init__(self) -> None:
        self._start = time.perf_counter()

    @classmethod
    def on(cls, device: torch.device) -> Launch:
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            return cls(torch.cuda.get_device_name(device))
        return cls(f"{device.type} ({torch.get_num_threads()} threads)")

    def add(self, images: int) -> None:
        """Count a minibatch."""
        self.minibatches += 1
        self.images += images

    def end(self, device: torch.device, waited: float) -> dict[str, Any]:
        """The finished record. waited: seconds spent waiting for images."""
        if device.type == "cuda":
            torch.cuda.synchronize(device)
            self.peak_memory_mb = torch.cuda.max_memory_allocated(device) / 2**20
        else:
            unit = 2**20 if sys.platform == "darwin" else 2**10
            self.peak_memory_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
        self.seconds = time.perf_counter() - self._start
        self.images_per_second = self.images / self.seconds
        self.waiting_share = waited / self.seconds
        return asdict(self)
