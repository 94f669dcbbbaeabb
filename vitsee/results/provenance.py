"""Records the provenance of a result: versions, device, weights, images, time and memory."""

from __future__ import annotations

import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from vitsee.options import ModelOptions, Source
from vitsee.study import Pass, Study
from vitsee.sums import Sums

_GIT = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_OBJECT_DIRECTORY", "GIT_COMMON_DIR")
FIRST, LONG = 3, 300
"""Number of minibatches after which a run reports its expected duration, if that is above this many seconds."""
_PACKAGES = (
    "vitsee",
    "torch",
    "torchvision",
    "timm",
    "transformers",
    "open_clip_torch",
    "numpy",
    "pandas",
    "matplotlib",
    "hydra-core",
)


def made_with(study: Study, totals: list[Sums]) -> dict[str, Any]:
    """Return the content of made_with.json. totals: the sums of each pass."""
    return {
        "labels": asdict(study.labels(totals[-1])),
        "identity": study.identity,
        "models": {
            role: {
                **_named(study.experiment.models[role]),
                "weights": model.weights,
                "taken": model.taken.record(),
                "digest": model.digest,
                "preprocessing": {key: str(value) for key, value in model.preprocessing.items()},
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


def _named(model: ModelOptions) -> dict[str, str]:
    """Return the model's name in its source."""
    if model.source is Source.timm:
        return {"timm": model.timm}
    return {"source": model.source.value, "id": model.id or model.import_ or model.name}


def image_ids(one: Pass, minibatches: int) -> list[str]:
    """Return the ids of all measured images, each once, in order of first use."""
    return [one.images.id(i) for i in one.plan.used(minibatches)]


def versions() -> dict[str, str]:
    """Return the versions of Python, the platform and packages. An unknown version never fails a run."""
    numbers = {"python": platform.python_version(), "platform": _try(platform.platform)}
    numbers |= {package: _try(version, package) for package in _PACKAGES}
    return numbers | {"torch": torch.__version__}  # includes the CUDA version of the build


def _try(ask: Callable[..., str], *of: str) -> str:
    try:
        return ask(*of)
    except PackageNotFoundError:
        return "not installed"
    except Exception as error:  # system files and programs may fail in many ways
        return f"unknown ({type(error).__name__})"


def git_commit() -> str | None:
    """Return the commit of vitsee's own checkout, with `-dirty` if it has changes; None if it is unknown.

    git's environment variables are removed: in a git hook they refer to another repository.
    """
    home = Path(__file__).parents[2]
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
    environment = {name: value for name, value in os.environ.items() if name not in _GIT}
    try:
        if not (home / ".git").exists():
            return None
        answer = subprocess.run(
            asked, capture_output=True, text=True, check=False, timeout=30, env=environment
        )
    except (OSError, ValueError, subprocess.SubprocessError):  # git is missing or does not respond
        return None
    return answer.stdout.strip() or None


@dataclass
class Launch:
    """One process's share of the work: start, device, speed and memory."""

    device: str
    began: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    minibatches: int = 0
    images: int = 0
    seconds: float = 0.0
    images_per_second: float = 0.0
    waiting_share: float = 0.0
    """Fraction of the time spent waiting for images."""
    peak_memory_mb: float = 0.0
    """Peak resident memory of the process; on CUDA, peak allocated memory of the device."""

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

    def expected(self, minibatches: int) -> str | None:
        """Return the expected duration of a long run, once a few minibatches are done; None otherwise.

        minibatches: the number that this process will measure.
        """
        taken = time.perf_counter() - self._start
        left = taken / max(1, self.minibatches) * (minibatches - self.minibatches)
        if self.minibatches != FIRST or left < LONG:
            return None
        span = f"{left / 3600:.1f} hours" if left >= 5400 else f"{left / 60:.0f} minutes"
        images = round(self.images / self.minibatches)
        return f"{minibatches:,} minibatches of {images:,} images will take about {span}"

    def end(self, device: torch.device, waited: float) -> dict[str, Any]:
        """Return the finished record. waited: seconds spent waiting for images."""
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
