"""What tests share: composed experiments, small folders of images, real photographs if there are any."""

from __future__ import annotations

import gc
import itertools
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

# ruff: noqa: E402
gc.disable()  # nothing that is imported is garbage
if not Path("/dev/nvidia0").exists():  # read when Triton is imported, which torch may do
    os.environ["TRITON_INTERPRET"] = "1"

import numpy as np
import pytest
import torch
from forks import Fork, Forks
from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from PIL import Image

import vitsee.cli
from vitsee import choices, config
from vitsee.analysis import Layer
from vitsee.data.minibatches import cores
from vitsee.errors import UserError
from vitsee.models.structure import structure
from vitsee.models.taps import SURVEY
from vitsee.options import Experiment
from vitsee.parallel.leases import start_of
from vitsee.testing import Measured, measure

TINY = ("model=timm", "model.timm=test_vit", "model.pretrained=false")
"""A ViT of a few thousand parameters with random weights."""

SMALL = ("model.args.img_size=28", "model.args.patch_size=7", "model.overlay.input_size=[3,28,28]")
"""Of vit_mini: half as many pixels a side, so that its probe on pixels takes no time."""

NEEDED: dict[str, list[str]] = {
    "attention_rollout": ["images=12", "batch_size=4"],
    "block_similarity": [
        "model@other=timm",
        "other.timm=test_vit2",
        "other.pretrained=false",
    ],
    "head_maps": ["analysis.layers=[blocks.0.attn,blocks.5.attn]", "images=12", "batch_size=4"],
    "head_similarity": [
        "model@other=timm",
        "other.timm=test_resnet",
        "other.pretrained=false",
        "analysis.subset=1",
    ],
    "linear_probe": [
        "analysis.train_split=null",
        "analysis.shots=3",
        "analysis.held_out=5",
        "analysis.features=[gap,each_token]",
        "analysis.seeds=[0,1]",
        "images=12",
        "batch_size=4",
    ],
    "receptive_field": [
        "analysis.channels=1",
        "analysis.layers=[blocks.0.*,blocks.5.*]",
        "images=12",
        "batch_size=4",
    ],
    "robustness": ["analysis.drops=[0.5]", "analysis.shuffles=[2]"],
    "scaling": ["model.args={num_classes: 2}"],
    "skip_ratio": ["analysis.layers=[blocks.0.*,blocks.5.*]"],
    "token_norm": ["analysis.layers=[blocks.0,blocks.5]"],
}
"""What an analysis cannot do without, or not fast enough, by name, as overrides."""


def pytest_xdist_auto_num_workers() -> int:
    """One more than there are cores: some tests mostly wait, for SLURM or for other processes."""
    return cores() + 1


def pytest_configure() -> None:
    """A suite that a script starts in the background ignores these two keys; what is tested does not."""
    for key, usual in (signal.SIGINT, signal.default_int_handler), (signal.SIGQUIT, signal.SIG_DFL):
        if signal.getsignal(key) is signal.SIG_IGN:
            signal.signal(key, usual)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What mostly waits, and what one worker does alone, begins first."""
    early = ("slurm", "types", "laws", "elsewhere", "scenes", "published")

    def turn(item: pytest.Item) -> int:
        mark = item.get_closest_marker("xdist_group")
        kind = mark.args[0].split()[0] if mark else ""
        return early.index(kind) if kind in early else len(early)

    items.sort(key=turn)


def pytest_collection_finish() -> None:
    """What is imported by now stays: no collection of garbage need look through it again."""
    gc.freeze()


_ended = itertools.count(1)


def pytest_runtest_teardown() -> None:
    """Garbage is collected after every tenth test, not within tests, and what is left not looked through again."""
    if next(_ended) % 10 == 0:
        gc.collect()
        gc.freeze()


def pytest_unconfigure() -> None:
    """At the end it goes as usual: libraries complain about what is left."""
    gc.unfreeze()
    gc.enable()


@pytest.fixture(scope="session", autouse=True)
def surveyed_once() -> Iterator[None]:
    """A model is surveyed once a worker: that takes longer than to measure a tiny one.

    What is found depends on its structure alone, for which test_layers.py has a test.
    """
    with pytest.MonkeyPatch.context() as patch:
        for kind, survey in SURVEY.items():
            patch.setitem(SURVEY, kind, once(survey))
        yield


def once(
    survey: Callable[[torch.nn.Module, tuple[int, int, int]], list[Layer]],
) -> Callable[[torch.nn.Module, tuple[int, int, int]], list[Layer]]:
    """The survey, which is not made again for a model of the same structure."""
    known: dict[tuple[str, tuple[int, int, int]], list[Layer]] = {}

    def look(net: torch.nn.Module, size: tuple[int, int, int]) -> list[Layer]:
        key = structure(net), tuple(size)
        if key not in known:
            known[key] = survey(net, size)
        return list(known[key])

    return look


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs in this process write tables and draw no figures."""
    monkeypatch.setattr("vitsee.runner.draw", lambda *path, **options: [])


def composed(*overrides: str) -> Experiment:
    """What the command line with these overrides asks for.

    Hydra composes each choice of model, analysis and data set once, which takes it most of its time.
    """
    groups = tuple(word for word in overrides if word.partition("=")[0] in GROUPS)
    options = [word for word in overrides if word not in groups]
    if any(word[:1] in "+~" or "${" in word for word in options):
        return config.composed(list(overrides))
    try:
        asked = deepcopy(_chosen(groups))
        for word in options:
            OmegaConf.update(asked, *_change(word))
    except (UserError, HydraException, OmegaConfBaseException):  # in the words of the command line
        return config.composed(list(overrides))
    return config.build(asked)


GROUPS = ("analysis", "model", "model@other", "dataset", "protocol")


_change = cache(config._change)


@cache
def _chosen(groups: tuple[str, ...]) -> DictConfig:
    with config._hydra_apart(), initialize_config_dir(str(choices.CONF), version_base="1.3"):
        return compose("run", list(groups))


def write_images(folder: Path, count: int, *, side: int = 48, seed: int = 0) -> Path:
    """A folder with two class folders of smooth random images."""
    rng = np.random.default_rng(seed)
    for i in range(count):
        coarse = rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)
        path = folder / f"class{i % 2}" / f"{i:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC).save(path)
    return folder


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 40 images."""
    return write_images(tmp_path_factory.mktemp("images"), 40)


@pytest.fixture(scope="session")
def measured(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Measured]:
    """Each analysis by its name, measured once a worker: see `of_analysis`."""

    @cache
    def measured(name: str) -> Measured:
        outputs = tmp_path_factory.mktemp("laws")
        overrides = tiny_overrides(images, outputs)
        asked = [word for word in overrides if not word.startswith("run.outputs=")]
        return measure([*asked, *asked_by_laws(name)], outputs)

    return measured


def asked_by_laws(name: str) -> list[str]:
    """What `measured` asks of an analysis beside `tiny_overrides`, as overrides."""
    return ["images=24", f"analysis={name}", *NEEDED.get(name, [])]


def of_analysis(name: str) -> Any:
    """The name as a parameter of a test, which runs in the worker that measures this analysis."""
    return pytest.param(name, marks=pytest.mark.xdist_group(f"laws of {name}"))


@pytest.fixture
def tiny(images: Path, tmp_path: Path) -> Callable[..., Experiment]:
    """Experiments of the tiny ViT on the folder of 40 images, in minibatches of 8."""

    def make(*overrides: str) -> Experiment:
        return composed(*tiny_overrides(images, tmp_path), *overrides)

    return make


@pytest.fixture
def command(images, tmp_path, capsys, monkeypatch):
    """`vitsee …` in this process: (exit code, standard output, standard error)."""

    def call(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["vitsee", *words])
        try:
            vitsee.cli.main()
            code = 0
        except SystemExit as stop:
            code = stop.code
        out, err = capsys.readouterr()
        return code, out, err

    return call


def end_left_behind() -> None:
    """End processes that tests left behind: they keep pipes open whose end somebody waits for."""
    for process in multiprocessing.active_children():
        process.terminate()
        process.join()


@pytest.fixture(scope="session")
def forks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forks]:
    """Commands in processes of their own."""
    made = Forks(tmp_path_factory.mktemp("forks") / "errors.txt")
    with made.server:
        yield made
        end_left_behind()
        made.server.kill()


@pytest.fixture
def run_tiny(command, images, tmp_path):
    """`vitsee run` of the tiny experiment with more overrides."""
    return lambda *words: command("run", *tiny_overrides(images, tmp_path), *words)


def tiny_overrides(images: Path, outputs: Path) -> list[str]:
    return [
        *TINY,
        "dataset=folder",
        f"dataset.root={images}",
        "batch_size=8",
        f"run.outputs={outputs}",
        "run.device=cpu",
        "run.workers=0",
        "run.progress=false",
    ]


def wait_until(
    condition: Callable[[], object], fork: Fork | None = None, *, every: float = 0.005
) -> None:
    """Ask `every` so many seconds, as long as the test may take, or until the command has ended without it."""
    while not condition():
        assert fork is None or start_of(fork.pid) or condition(), "it ended before"
        time.sleep(every)


@pytest.fixture(scope="session")
def test_data() -> Path:
    """The folder of real photographs and trained weights; tests that need it are skipped without it."""
    folder = os.environ.get("VITSEE_TEST_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("real photographs: set VITSEE_TEST_DATA to the folder that holds them")
    return Path(folder)
