"""Training resumes to the bit, stops at a loss that is not finite, and its weights are what their card says."""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import math
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import SMALL, write_images
from hydra import compose, initialize_config_dir
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load, load_file

from vitsee import config
from vitsee.choices import CONF
from vitsee.data import datasets
from vitsee.data.scenes import CLASSES, Scenes
from vitsee.errors import Incomplete, UserError
from vitsee.models import cards, loader, timm_architecture
from vitsee.models.sources.timm import EMBEDDED
from vitsee.options import DatasetOptions, ModelOptions, Pool, Precision, RunOptions
from vitsee.papers import atlas
from vitsee.parallel.interrupt import Interrupted
from vitsee.plotting.accuracy_plots import training_curve
from vitsee.results.folder import Results
from vitsee.training import (
    captured,
    checkpoint,
    cost,
    examples,
    image_cache,
    outcome,
    recipes,
    trainer,
)
from vitsee.training.attending import near_minus_far
from vitsee.training.checkpoint import BadCheckpoint, Checkpoints
from vitsee.training.examples import Augmented, Mixup, Schedule, Splits
from vitsee.training.ranks import Ranks
from vitsee.training.recipes import Decay, Optimiser, Positions, Recipe, Training
from vitsee.training.resident import Resident
from vitsee.training.trainer import Trainer, train

ROOT = Path(__file__).parents[1]
SHIPPED = sorted(path.stem for path in EMBEDDED.glob("*.safetensors"))
SEEN = 120
"""Images on which the shipped weights are tried: an accuracy of 80 % is known to 3.7 points then."""
WEE = {"img_size": 28, "patch_size": 7, "embed_dim": 16, "depth": 2, "num_heads": 2}


def wee(
    tmp_path: Path, *, model: dict | None = None, data: dict | None = None, **changes
) -> Training:
    """Six steps of a ViT of two blocks on 64 scenes."""
    own = dict(model or {})
    args = WEE | {"num_classes": len(CLASSES)} | own.pop("args", {})
    overlay = {"input_size": [3, 28, 28], "mean": [0.5] * 3, "std": [0.5] * 3, "crop_pct": 1.0}
    recipe = {"name": "wee", "images_seen": 96, "test_images": 32, "batch_size": 16}
    dataset = {"name": "scenes", "kind": "scenes", "size": 64}
    return Training(
        recipe=Recipe(**recipe | {"eval_every": 2, "save_every": 2} | changes),
        model=ModelOptions(
            **{"name": "wee", "timm": "vit_tiny_patch16_224", "args": args, "overlay": overlay}
            | own
        ),
        dataset=DatasetOptions(**dataset | (data or {})),
        run=RunOptions(outputs=str(tmp_path), device="cpu", workers=0, progress=False),
    )


ALONE = Ranks()


@pytest.fixture(autouse=True, scope="module")
def without_curves():
    """Trainings draw no curves here; one of test_faults.py draws its own, again and again to the byte."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(outcome, "training_curve", lambda *words, **tables: None)
        patch.setattr(Results, "save_figures", lambda self, figures: [])
        yield


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """The folder of a training as `wee` asks for it, which no test changes."""
    return train(wee(tmp_path_factory.mktemp("whole")))


def splits_of(asked: Training, tmp_path: Path) -> Splits:
    return Splits.of(asked, 28, tmp_path)


def stop_after(steps: int, monkeypatch) -> None:
    """As if Ctrl-C came during this step."""
    real = Trainer.advance

    def advance(self, *words):
        real(self, *words)
        if self.step == steps:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(Trainer, "advance", advance)


LOADED = {"augmentation": {"hflip": 0.5}}
"""With an augmentation of timm's, images are loaded one by one."""
AUGMENTED = {
    "augmentation": {"auto_augment": "rand-m5-n1", "re_prob": 0.5},
    "mixup": 0.3,
    "cutmix": 1.0,
}


@pytest.mark.parametrize(
    ("changes", "steps"),
    [
        ({}, 1),
        ({}, 4),
        ({"precision": Precision.bf16}, 3),
        ({"shift": 3, "mixup": 0.3, "cutmix": 1.0, "mixed": 0.5, "fraction": 0.5}, 3),
        ({"optimiser": Optimiser.sgd, "clip": None}, 3),
        ({"optimiser": Optimiser.muon}, 3),
        (AUGMENTED | {"model": {"args": {"proj_drop_rate": 0.2, "drop_path_rate": 0.2}}}, 3),
    ],
    ids=["at once", "late", "bf16", "shifted and mixed", "sgd", "muon", "augmented, with dropout"],
)
def test_an_interrupted_training_goes_on_and_gives_the_same_weights(
    changes, steps, trained, tmp_path, monkeypatch
):
    def asked(name: str) -> Training:
        return wee(
            tmp_path / name, **{k: dict(v) if k == "model" else v for k, v in changes.items()}
        )

    whole = train(asked("whole")) if changes else trained
    with monkeypatch.context() as during:
        stop_after(steps, during)
        with pytest.raises(Interrupted):
            train(asked("parts"))
    parts = train(asked("parts"))
    for name in ("wee.safetensors", "metrics.csv", "heads.csv", "wee.md"):
        assert (whole / name).read_bytes() == (parts / name).read_bytes()


def test_a_second_process_on_the_same_training_is_told(tmp_path, monkeypatch):
    def another(self, *words):
        train(wee(tmp_path))

    monkeypatch.setattr(Trainer, "advance", another)
    with pytest.raises(Incomplete, match="is being measured by process"):
        train(wee(tmp_path))


def test_a_loss_that_is_not_finite_stops_with_the_step_and_keeps_the_last_checkpoint(
    tmp_path, monkeypatch
):
    real = Trainer.advance

    def poisoned(self, pixels, targets, rate):
        real(self, pixels * math.nan if self.step == 3 else pixels, targets, rate)

    monkeypatch.setattr(Trainer, "advance", poisoned)
    with pytest.raises(UserError, match=r"the loss is nan at step 3; the last checkpoint is kept"):
        train(wee(tmp_path))
    trainer = Trainer(wee(tmp_path))
    assert trainer.resume(checkpoints_in(tmp_path))
    assert trainer.step == 2
    assert all(tensor.isfinite().all() for tensor in trainer.net.state_dict().values())


@pytest.fixture(scope="module")
def stopped(tmp_path_factory) -> Path:
    """A training that was stopped after its third step, when it had two checkpoints."""
    home = tmp_path_factory.mktemp("stopped")
    with pytest.MonkeyPatch.context() as during:
        stop_after(3, during)
        with pytest.raises(Interrupted):
            train(wee(home))
    return home


@pytest.fixture(scope="module")
def whole(trained) -> dict[str, bytes]:
    """What the same training ends with when nothing happens to it."""
    return {name: (trained / name).read_bytes() for name in ("wee.safetensors", "metrics.csv")}


class TestCheckpoints:
    """Two are kept; each has a checksum and says of which training it is."""

    @pytest.fixture
    def home(self, stopped, tmp_path) -> Path:
        shutil.copytree(stopped, tmp_path / "home")
        return tmp_path / "home"

    def test_the_last_two_are_kept(self, home):
        newest, previous = checkpoints_in(home).paths
        assert [step_of(newest), step_of(previous)] == [3, 2]

    def test_a_damaged_newest_one_is_set_aside_and_the_training_ends_with_the_same_bytes(
        self, home, whole, caplog
    ):
        newest, _ = checkpoints_in(home).paths
        content = bytearray(newest.read_bytes())
        (length,) = struct.unpack_from("<Q", content)
        begin, _ = json.loads(content[8 : 8 + length])["net.head.weight"]["data_offsets"]
        content[8 + length + begin + 2] ^= 64  # of the first weight
        newest.write_bytes(content)
        folder = train(wee(home))
        assert {name: (folder / name).read_bytes() for name in whole} == whole
        assert f"{newest} is set aside as {newest.name}." in caplog.text
        said = "the training resumes from step 2 of training.previous.safetensors"
        assert said in caplog.text

    @pytest.mark.parametrize("damage", ["cut", "empty", "text", "gone", "a folder", "a pipe"])
    def test_however_the_newest_one_is_damaged_the_one_before_it_is_used(self, damage, home):
        newest, _ = checkpoints_in(home).paths
        cut = {"cut": newest.read_bytes()[:-100], "empty": b"", "text": b"hello" * 99}
        newest.unlink()
        if damage in cut:
            newest.write_bytes(cut[damage])
        elif damage != "gone":
            newest.mkdir() if damage == "a folder" else os.mkfifo(newest)
        trainer = Trainer(wee(home))
        assert trainer.resume(checkpoints_in(home))
        assert trainer.step == 2
        assert not newest.exists()

    def test_a_flip_of_any_bit_is_noticed(self, home):
        newest, _ = checkpoints_in(home).paths
        content, trainer = newest.read_bytes(), Trainer(wee(home))
        before = step_of(newest)
        for at in np.random.default_rng(0).integers(len(content), size=150).tolist():
            flipped = bytearray(content)
            flipped[at] ^= 1 << at % 8
            newest.write_bytes(flipped)
            # what is unnoticed was not read, as a space in the header
            with contextlib.suppress(BadCheckpoint):
                checkpoint.restore(newest, trainer.net, trainer.optimisers, identity_of(home))
                assert same_content(flipped, content), at
        assert before == 3

    def test_one_of_another_training_is_not_taken(self, home, whole, tmp_path, caplog):
        with pytest.MonkeyPatch.context() as during:
            stop_after(4, during)
            with pytest.raises(Interrupted):
                train(wee(tmp_path / "other", seed=1))
        newest, _ = checkpoints_in(home).paths
        shutil.copy(checkpoints_in(tmp_path / "other").paths[0], newest)
        folder = train(wee(home))
        assert {name: (folder / name).read_bytes() for name in whole} == whole
        assert (
            f"it belongs to the training {identity_of(tmp_path / 'other')}, not to" in caplog.text
        )

    @pytest.mark.parametrize("count", [1, 2])
    def test_only_damaged_ones_are_refused_and_removing_them_trains_from_the_beginning(
        self, count, home, whole
    ):
        paths = checkpoints_in(home).paths
        for path in paths:
            path.write_bytes(path.read_bytes()[:-100])
        for path in paths[count:]:
            path.unlink()
        advice = {
            1: "remove it to start the training again",
            2: "remove both to start the training again",
        }
        with pytest.raises(
            UserError, match=rf"^the checkpoint .* is damaged \(.*{advice[count]}"
        ) as e:
            train(wee(home))
        for path in paths[:count]:
            assert str(path) in str(e.value)
            path.unlink()
        folder = train(wee(home))
        assert {name: (folder / name).read_bytes() for name in whole} == whole

    def test_a_full_disk_leaves_both_as_they_were(self, home, monkeypatch):
        before = {path: path.read_bytes() for path in checkpoints_in(home).paths}
        trainer = Trainer(wee(home))
        monkeypatch.setattr(Path, "write_bytes", full_disk)
        with pytest.raises(UserError, match=r"cannot write .*training\.safetensors: No space left"):
            checkpoints_in(home).save(trainer.net, trainer.optimisers, trainer.progress)
        assert {path: path.read_bytes() for path in checkpoints_in(home).paths} == before

    def test_one_that_cannot_be_read_is_not_taken_for_damaged(self, home, monkeypatch):
        def gone(*words: object) -> bytes:
            raise OSError(errno.EIO, "Input/output error")

        monkeypatch.setattr(Path, "read_bytes", gone)
        with pytest.raises(UserError, match=r"^cannot read the checkpoint .*Input/output error"):
            Trainer(wee(home)).resume(checkpoints_in(home))

    def test_processes_that_find_different_ones_are_refused(self, home):
        class Two(Ranks):
            def added(self, numbers: torch.Tensor) -> torch.Tensor:
                return numbers + torch.tensor([2, 4])  # the other one's step, and its square

        trainer = Trainer(wee(home))
        trainer.team = Two(count=2)
        with pytest.raises(UserError, match=r"found different checkpoints, this one for step 3"):
            trainer.resume(checkpoints_in(home))


def checkpoints_in(home: Path) -> Checkpoints:
    """Those of the only training below this folder."""
    (state,) = home.rglob("state")
    return Checkpoints(Results(state.parent), identity_of(home))


def identity_of(home: Path) -> str:
    (state,) = home.rglob("state")
    return state.parent.name.rpartition("-")[2]


def step_of(path: Path) -> int:
    with safe_open(path, "pt") as file:
        return json.loads(file.metadata()["progress"])["step"]


def same_content(one: bytes, two: bytes) -> bool:
    """Do two safetensors files hold the same numbers?"""
    a, b = load(bytes(one)), load(bytes(two))
    return a.keys() == b.keys() and all(a[name].equal(b[name]) for name in a)


def full_disk(*words: object, **named: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_other_held_out_images_are_another_training(tmp_path):
    write_images(tmp_path / "photos/train", 16)
    write_images(tmp_path / "photos/val", 8, seed=1)
    data = {"name": "folder", "kind": "folder", "root": str(tmp_path / "photos"), "split": "val"}

    def trained() -> str:
        asked = wee(
            tmp_path, images_seen=16, model={"args": {"num_classes": 2}}, data=data | {"size": None}
        )
        return train(asked).name

    before = trained()
    write_images(tmp_path / "photos/val", 10, seed=1)
    assert trained() != before


class TestRate:
    def test_it_warms_up_and_then_falls_to_zero_along_a_cosine(self):
        rates = [Recipe(name="r", images_seen=1, warmup=0.1).rate(step, 100) for step in range(100)]
        assert rates[0] == pytest.approx(1e-4)
        assert max(rates) == rates[9] == rates[10] == pytest.approx(1e-3)
        assert all(b < a for a, b in itertools.pairwise(rates[10:]))
        assert rates[55] == pytest.approx(1e-3 * 0.5 * (1 + math.cos(math.pi * 0.5)))
        assert rates[-1] < 1e-5

    def test_it_falls_by_the_same_amount_each_step_when_linear(self):
        recipe = Recipe(name="r", images_seen=1, warmup=0.0, decay=Decay.linear, lr=2.0)
        assert [recipe.rate(step, 4) for step in range(4)] == pytest.approx([2.0, 1.5, 1.0, 0.5])

    def test_it_stays_where_nothing_decays(self):
        recipe = Recipe(name="r", images_seen=1, warmup=0.5, decay=Decay.none, lr=2.0)
        assert [recipe.rate(step, 4) for step in range(4)] == pytest.approx([1.0, 2.0, 2.0, 2.0])


class TestShown:
    def batches(self, asked: Training, tmp_path, ranks=ALONE, steps=4, begin=0):
        chosen = splits_of(asked, tmp_path).chosen
        return list(Schedule(asked.recipe, chosen, begin, steps, ranks))

    def test_every_image_is_shown_once_an_epoch_in_another_order(self, tmp_path):
        shown = self.batches(wee(tmp_path), tmp_path, steps=8)
        first, second = (list(itertools.chain(*epoch)) for epoch in (shown[:4], shown[4:]))
        assert sorted(index for _, index in first) == list(range(64))
        assert sorted(index for _, index in second) == list(range(64))
        assert [index for _, index in first] != [index for _, index in second]

    def test_beginning_later_shows_the_rest(self, tmp_path):
        whole = self.batches(wee(tmp_path), tmp_path, steps=7)
        assert self.batches(wee(tmp_path), tmp_path, steps=7, begin=3) == whole[3:]

    def test_ranks_share_each_step_s_images(self, tmp_path):
        whole = self.batches(wee(tmp_path), tmp_path)
        parts = [self.batches(wee(tmp_path), tmp_path, Ranks(rank, 2)) for rank in (0, 1)]
        for step, of_ranks in zip(whole, zip(*parts, strict=True), strict=True):
            assert sorted(step) == sorted(itertools.chain(*of_ranks))

    def test_a_smaller_fraction_lies_within_every_larger_one(self, tmp_path):
        few, half, all_ = (
            set(splits_of(wee(tmp_path, fraction=share), tmp_path).chosen.tolist())
            for share in (0.25, 0.5, 1.0)
        )
        assert few < half < all_
        assert (len(few), len(half), len(all_)) == (16, 32, 64)
        other = splits_of(wee(tmp_path, fraction=0.25, seed=1), tmp_path).chosen.tolist()
        assert set(other) != few

    def test_too_few_images_for_a_step_are_refused(self, tmp_path):
        with pytest.raises(
            UserError, match=r"there are 6 training images \(recipe.fraction=0.1\), fewer"
        ):
            train(wee(tmp_path, fraction=0.1))

    def test_augmentation_depends_on_seed_epoch_and_image_alone(self, tmp_path):
        asked = wee(tmp_path, **AUGMENTED)
        transform = examples.augmentation(asked.recipe, Trainer(asked).data)
        shown = Augmented(splits_of(asked, tmp_path).train, transform, 0)
        first, _ = shown[(0, 5)]
        torch.manual_seed(123)
        assert shown[(0, 5)][0].equal(first)
        assert not shown[(1, 5)][0].equal(first)
        assert not replace(shown, seed=1)[(0, 5)][0].equal(first)

    def test_images_on_the_device_are_those_of_the_schedule_shifted(self, tmp_path):
        asked = wee(tmp_path, shift=2, fraction=0.5, batch_size=8)
        splits, data = splits_of(asked, tmp_path), Trainer(asked).data
        assert Resident.holds(splits, data, asked.recipe)
        resident = Resident(splits, data, asked.recipe, torch.device("cpu"), ALONE)
        schedule = Schedule(asked.recipe, splits.chosen, 3, 6, ALONE)
        shifts = set()
        for shown, (places, drawn) in zip(schedule, resident.draws(schedule), strict=True):
            pixels, targets = resident.shown(places, drawn)
            indices = [index for _, index in shown]
            assert targets.argmax(1).tolist() == [index % 16 for index in indices]
            for image, index, (_, down, right) in zip(
                pixels, indices, places.tolist(), strict=True
            ):
                raw = np.pad(splits.train.open(index), ((2, 2), (2, 2), (0, 0)), "edge")
                part = raw[2 + down : 30 + down, 2 + right : 30 + right]
                expected = torch.from_numpy(part).permute(2, 0, 1) / 127.5 - 1
                torch.testing.assert_close(image, expected)
                shifts.add((down, right))
        assert max(map(max, shifts)) == 2
        assert min(map(min, shifts)) == -2

    def test_images_on_the_device_give_the_same_steps_as_images_loaded_one_by_one(
        self, tmp_path, monkeypatch
    ):
        plain = {"optimiser": Optimiser.sgd, "lr": 0.1, "clip": None}
        resident = train(wee(tmp_path / "resident", **plain))
        monkeypatch.setattr(Resident, "holds", lambda *words: False)
        loaded = train(wee(tmp_path / "loaded", **plain))
        one, two = (load_file(folder / "wee.safetensors") for folder in (resident, loaded))
        for name, tensor in one.items():
            torch.testing.assert_close(two[name], tensor, rtol=1e-4, atol=1e-5)
        accuracies = [pd.read_csv(folder / "metrics.csv") for folder in (resident, loaded)]
        assert accuracies[0]["test_accuracy"].tolist() == accuracies[1]["test_accuracy"].tolist()

    @pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
    @pytest.mark.parametrize("optimiser", [Optimiser.adamw, Optimiser.muon])
    def test_captured_steps_are_those_that_are_taken_kernel_by_kernel(
        self, optimiser, tmp_path, monkeypatch
    ):
        def trained(name: str) -> list[float]:
            asked = wee(
                tmp_path / name,
                images_seen=160,
                shift=2,
                cutmix=1.0,
                eval_every=1,
                optimiser=optimiser,
            )
            folder = train(replace(asked, run=replace(asked.run, device="cuda")))
            return pd.read_csv(folder / "metrics.csv")["loss"].tolist()

        replayed = trained("captured")
        monkeypatch.setattr(captured, "step", captured.eager)
        assert trained("eager") == pytest.approx(replayed, rel=1e-3)

    def test_augmentation_leaves_the_generators_as_they_were(self):
        torch.manual_seed(7)
        before = torch.get_rng_state()
        with examples.chance(1, 2, 3):
            torch.rand(4)
            np.random.rand()
        assert torch.get_rng_state().equal(before)

    def test_an_option_that_timm_does_not_have_is_refused(self, tmp_path):
        with pytest.raises(UserError, match=r"recipe.augmentation=\{'flip': 1\}: .*'flip'"):
            train(wee(tmp_path, augmentation={"flip": 1}))

    def test_smoothed_targets_are_those_of_the_equation(self):
        recipe = Recipe(name="r", images_seen=1, label_smoothing=0.1)
        _, targets = Mixup(recipe, 4)(0, torch.zeros(2, 3, 4, 4), torch.tensor([1, 3]))
        expected = [[0.025, 0.925, 0.025, 0.025], [0.025, 0.025, 0.025, 0.925]]
        torch.testing.assert_close(targets, torch.tensor(expected))

    def test_mixup_blends_images_and_targets_alike(self):
        recipe = Recipe(name="r", images_seen=1, mixup=1.0)
        pixels = torch.eye(4).reshape(4, 1, 2, 2)
        mixed, targets = Mixup(recipe, 4)(0, pixels.clone(), torch.arange(4))
        torch.testing.assert_close(mixed.reshape(4, 4), targets)
        assert 0 < targets[0, 0] < 1

    def test_cutmix_pastes_a_part_and_mixes_targets_by_its_area(self):
        recipe = Recipe(name="r", images_seen=1, cutmix=1.0)
        pixels = torch.arange(6.0)[:, None, None, None].expand(6, 3, 8, 8)
        mixed, targets = Mixup(recipe, 6)(3, pixels, torch.arange(6))
        for image, target, own, other in zip(
            mixed, targets, range(6), range(5, -1, -1), strict=True
        ):
            assert set(image.unique().tolist()) <= {own, other}
            pasted = (image[0] == other).nonzero()
            if len(pasted):
                high, low = pasted.max(0).values, pasted.min(0).values
                assert (high - low + 1).prod() == len(pasted)
            torch.testing.assert_close(target[own], torch.tensor(1 - len(pasted) / 64))
        assert len({len((image[0] == own).nonzero()) for own, image in enumerate(mixed)}) > 2

    def test_processes_mix_their_own_images_as_one_would_the_same_ones(self):
        recipe = Recipe(name="r", images_seen=1, cutmix=1.0, mixup=0.5)
        alone = Mixup(recipe, 2).drawn(3, 8, 32, 32)
        apart = [Mixup(recipe, 2, Ranks(k, 2, k)).drawn(3, 4, 32, 32) for k in range(2)]
        assert torch.stack(apart, 1).flatten(0, 1).equal(alone)

    def test_the_share_of_mixed_images_is_the_one_asked_for(self):
        recipe = Recipe(name="r", images_seen=1, cutmix=1.0, mixup=0.5, mixed=0.25)
        drawn = Mixup(recipe, 2).drawn(0, 10_000, 32, 32)
        blended = drawn[:, 0] < 1
        cut = drawn[:, 1:].any(1)
        assert not (blended & cut).any()
        assert [share.float().mean().item() for share in (blended, cut)] == pytest.approx(
            [0.125, 0.125], abs=0.02
        )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fraction": 0.0}, r"recipe.fraction must be in \(0, 1\], got 0.0"),
        ({"warmup": 2.0}, r"recipe.warmup must be a share of the steps in \[0, 1\], got 2.0"),
        ({"epochs": 1.0}, "the length of the training is given twice"),
        ({"images_seen": None}, "the length of the training is missing: recipe.images_seen=N or"),
        ({"images_seen": 8}, "8 images are not enough for a step of recipe.batch_size=16"),
        ({"batch_size": 0}, "recipe.batch_size must be at least 1, got 0"),
        ({"lr": -1.0}, "recipe.lr must be more than 0, got -1.0"),
        ({"shift": -1}, "recipe.shift must not be negative, got -1"),
        ({"mixed": 1.5}, r"recipe.mixed must be a share in \[0, 1\], got 1.5"),
        (
            {"shift": 2, "augmentation": {"hflip": 0.5}},
            "recipe.shift=2 is for generated images at the model's size, up to 4 GiB; for others use recipe.shift=0",
        ),
        (
            {"positions": Positions.sincos, "model": {"args": {"embed_dim": 18}}},
            "recipe.positions=sincos needs a width that is a multiple of 4, not 18",
        ),
        ({"augmentation": "flip"}, r"must be options by name, such as {hflip: 0.5}, got 'flip'"),
        ({"train_split": "test"}, "the held-out images are the training images"),
        (
            {"model": {"args": {"num_classes": 3}}},
            "the model has 3 outputs, but dataset=scenes has 16",
        ),
        ({"data": {"split": "train"}}, "the held-out images are the training images"),
        (
            {"precision": Precision.tf32},
            "recipe.precision=tf32 exists on CUDA devices only, not on cpu; use fp32 or bf16",
        ),
    ],
)
def test_what_cannot_be_trained_is_refused_before_it_starts(changes, message, tmp_path):
    with pytest.raises(UserError, match=message):
        train(wee(tmp_path, **changes))


@pytest.mark.parametrize(
    ("run", "asked"), [({"device": "all"}, "run.device=all"), ({"gpus": 8}, "run.gpus=8")]
)
def test_several_gpus_are_for_torchrun(run, asked, tmp_path):
    training = wee(tmp_path)
    message = f"{asked}: vitsee train uses one GPU per process; for several: torchrun --nproc"
    with pytest.raises(UserError, match=message):
        train(replace(training, run=replace(training.run, **run)))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["model.checkpoint=mine.safetensors"],
            r"model\.checkpoint=mine\.safetensors is not read by vitsee train; to begin with these "
            r"weights: recipe\.start=mine\.safetensors",
        ),
        (["model.checkpoint_key=teacher"], r"checkpoint_key=teacher needs recipe\.start=PATH"),
        (["model.seed=3"], r"model\.seed=3 is not read by vitsee train, .* with recipe\.seed"),
        (["model.drawn_as=a.safetensors"], r"model\.drawn_as=a\.safetensors is not read by"),
    ],
)
def test_options_of_a_model_that_training_does_not_read_are_refused(words, message):
    with pytest.raises(UserError, match=message):
        recipes.build(config.configuration("train", ["recipe=contours", *words]))
    advised = ["recipe=contours", "recipe.start=mine.safetensors", "recipe.seed=3"]
    assert recipes.build(config.configuration("train", advised)).recipe.seed == 3


def test_some_of_the_images_of_a_folder_are_held_out_from_every_class(tmp_path):
    for split, seed in (("train", 0), ("val", 1)):
        write_images(tmp_path / "photos" / split, 40, seed=seed)
    data = {"name": "folder", "kind": "folder", "root": str(tmp_path / "photos"), "split": "val"}
    asked = wee(tmp_path, data=data | {"size": None}, model={"args": {"num_classes": 2}})
    splits = splits_of(asked, tmp_path)
    few = splits.held_out(10)
    assert len({*few}) == 10
    assert {splits.test.label(i) for i in few} == {0, 1}  # the folder is sorted by class
    assert few == splits.held_out(None)[:10]
    assert splits_of(wee(tmp_path), tmp_path).held_out(10) == [*range(10)]  # of generated images


def test_position_embeddings_of_noise_have_the_standard_deviation_that_is_asked_for(tmp_path):
    net = Trainer(wee(tmp_path, pos_embed_std=3.0, model={"args": {"embed_dim": 256}})).net
    assert net.get_parameter("pos_embed").std().item() == pytest.approx(3, rel=0.05)


@pytest.mark.parametrize("share", ["0.03", "0.1", "0.3"])
def test_the_resnets_of_figure_12_can_be_trained_as_the_zoo_says(share):
    role = atlas.zoo("paper").roles[f"resnet50_data_{round(100 * float(share))}"]
    assert role.missing
    words = role.missing.partition("vitsee train ")[2].split()
    training = recipes.build(config.configuration("train", words))
    assert training.recipe.fraction == float(share)
    assert timm_architecture.skeleton(training.model).num_classes == 1000


def test_epochs_are_of_the_whole_set_whatever_the_fraction(tmp_path):
    card = cards.read(train(wee(tmp_path, images_seen=None, epochs=2, fraction=0.5)) / "wee.md")
    assert (card.images_seen, card.train_images, card.epochs) == (128, 32, 4.0)


def test_other_data_and_other_starting_weights_are_another_training(tmp_path):
    def folder(**changes) -> str:
        return train(wee(tmp_path, images_seen=16, **changes)).name

    names = {folder(), folder(data={"seed": 1}), folder(seed=1), folder(fraction=0.5)}
    assert len(names) == 4
    assert folder(eval_every=1, save_every=5) in names


def test_a_folder_of_images_is_trained_on_and_a_broken_one_named(tmp_path):
    write_images(tmp_path / "photos/train", 32)
    write_images(tmp_path / "photos/val", 16, seed=1)
    data = {"name": "folder", "kind": "folder", "root": str(tmp_path / "photos"), "split": "val"}
    asked = wee(tmp_path, model={"args": {"num_classes": 2}}, data=data | {"size": None})
    card = cards.read(train(asked) / "wee.md")
    assert (card.classes, card.test_images, card.train_images) == (2, 16, 32)
    (tmp_path / "photos/val/class9").mkdir()
    (tmp_path / "photos/val/class1/001.png").rename(tmp_path / "photos/val/class9/001.png")
    with pytest.raises(
        UserError, match=r"different classes .*: 1 are in only one of them, e.g. class9"
    ):
        train(asked)
    (tmp_path / "photos/val/class9/001.png").rename(tmp_path / "photos/val/class1/001.png")
    (tmp_path / "photos/train/class0/000.png").write_bytes(b"no image")
    for workers in (0, 1):
        broken = replace(asked, run=replace(asked.run, workers=workers))
        with pytest.raises(
            UserError, match=r"^cannot decode image class0/000.png .*fix or remove it$"
        ):
            train(broken)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            NotImplementedError("DDS"),
            "cannot decode image scenes/train/000000 \\(NotImplementedError",
        ),
        (
            OSError(errno.EIO, "Input/output error"),
            "cannot read image scenes/train/000000 \\(Input/out",
        ),
        (MemoryError(), "not enough memory to decode image scenes/train/000000"),
    ],
)
@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_a_training_cannot_have_is_named_in_one_line(
    error, said, workers, tmp_path, monkeypatch
):
    asked = wee(tmp_path, **LOADED)
    asked = replace(asked, run=replace(asked.run, workers=workers))

    def fails(self, index: int) -> Image.Image:
        raise error

    monkeypatch.setattr(image_cache.CachedImages, "open", fails)
    monkeypatch.setattr(image_cache.CachedImages, "id", lambda self, index: "scenes/train/000000")
    with pytest.raises(UserError, match=f"^{said}") as caught:
        train(asked)
    assert len(str(caught.value).splitlines()) == 1


def test_a_decoding_process_that_dies_in_a_training_is_explained(tmp_path, monkeypatch):
    asked = wee(tmp_path, **LOADED)

    def dies(self, index: int) -> Image.Image:
        os._exit(1)

    monkeypatch.setattr(image_cache.CachedImages, "open", dies)
    with pytest.raises(UserError, match=r"process that decodes images died .*run\.workers=0"):
        train(replace(asked, run=replace(asked.run, workers=1)))


class TestFineTuning:
    def test_it_begins_with_the_weights_and_a_classifier_of_zeros(self, trained, tmp_path):
        start = trained / "wee.safetensors"
        trainer = Trainer(wee(tmp_path, start=str(start)))
        before, after = load_file(start), trainer.net.state_dict()
        same = {name for name in before if before[name].equal(after[name])}
        assert set(before) - same == {"head.weight", "head.bias"}
        assert not after["head.weight"].any()
        assert not after["head.bias"].any()

    def test_other_classes_and_a_higher_resolution_are_what_it_is_for(self, trained, tmp_path):
        start = trained / "wee.safetensors"
        larger = {
            "args": {"img_size": 42, "num_classes": 16},
            "overlay": {"input_size": [3, 42, 42], "mean": [0.5] * 3, "std": [0.5] * 3},
        }
        trainer = Trainer(wee(tmp_path, start=str(start), model=larger))
        positions = load_file(start)["pos_embed"]
        found = trainer.net.get_parameter("pos_embed")
        assert (positions.shape, found.shape) == ((1, 17, 16), (1, 37, 16))
        assert found[:, :1].equal(positions[:, :1])
        expected = torch.nn.functional.interpolate(
            positions[:, 1:].reshape(1, 4, 4, 16).permute(0, 3, 1, 2),
            size=(6, 6), mode="bicubic", antialias=True, align_corners=False,
        )  # fmt: skip
        torch.testing.assert_close(found[0, 1:], expected.permute(0, 2, 3, 1).reshape(36, 16))
        folder = train(wee(tmp_path, start=str(start), model=larger))
        assert "fine-tuned on the data set" in (folder / "wee.md").read_text()
        card = cards.read(folder / "wee.md")
        assert card.started_from.startswith("wee.safetensors (SHA-256 ")
        assert card.recipe["start"] == "wee.safetensors"

    def test_weights_that_do_not_fit_are_refused(self, trained, tmp_path):
        start = trained / "wee.safetensors"
        with pytest.raises(UserError, match="does not fit the model: 12 missing"):
            Trainer(wee(tmp_path, start=str(start), model={"args": {"depth": 3}}))
        with pytest.raises(UserError, match="there is no checkpoint"):
            Trainer(wee(tmp_path, start="nowhere.safetensors"))


class TestPool:
    def test_gap_is_the_mean_of_all_tokens_after_the_last_norm_without_a_class_token(
        self, tmp_path
    ):
        asked = wee(tmp_path, model={"pool": Pool.gap})
        net = Trainer(asked).net.eval()
        kept = []
        net.norm.register_forward_hook(lambda module, args, output: kept.append(output))
        logits = net(torch.randn(2, 3, 28, 28))
        assert kept[0].shape == (2, 16, 16)
        torch.testing.assert_close(logits, net.head(kept[0].mean(1)))

    def test_a_model_that_has_no_such_choice_says_so(self):
        with pytest.raises(UserError, match=r"resnet18 cannot be built with .*model.pool=gap: "):
            timm_architecture.build(ModelOptions(name="r", timm="resnet18", pool=Pool.gap))


class TestWatching:
    """heads.csv and metrics.csv say where a ViT looks while it is trained."""

    def test_the_distances_of_heads_are_those_of_the_analysis(self, trained, tmp_path):
        asked = wee(tmp_path)
        heads = pd.read_csv(trained / "heads.csv")
        assert heads["step"].unique().tolist() == [2, 4, 6]
        assert len(heads) == 3 * 2 * 2
        net = timm_architecture.build(asked.model).eval()
        net.load_state_dict(load_file(trained / "wee.safetensors"))
        images = np.stack([Scenes("test", 0, 28).image(i) for i in range(32)])
        pixels = torch.from_numpy(images).permute(0, 3, 1, 2) / 127.5 - 1
        last = heads[heads["step"] == 6]["distance"].to_numpy()
        np.testing.assert_allclose(last, distances_by_hand(net, pixels), rtol=1e-5)

    def test_sines_and_cosines_make_near_positions_similar_and_noise_does_not(self, tmp_path):
        alike = {
            kind: near_minus_far(Trainer(wee(tmp_path, positions=kind)).net) for kind in Positions
        }
        assert alike[Positions.sincos] > 0.2
        assert abs(alike[Positions.noise]) < 0.15

    @pytest.mark.parametrize("skips", [[], [1]])
    def test_random_weights_can_be_those_that_a_training_began_with(self, skips, tmp_path):
        more = {
            "positions": Positions.sincos,
            "pos_embed_std": 0.5,
            "model": {"remove_skip": skips},
        }
        asked = wee(tmp_path, images_seen=16, **more)
        weights = train(asked) / "wee.safetensors"
        random = replace(asked.model, pretrained=False, drawn_as=str(weights))
        loaded = loader.load(random, "cpu")
        assert (
            loaded.weights == "random, seed 0, drawn as those that the training of wee began with"
        )
        before, plain = Trainer(asked).net, loader.load(replace(random, drawn_as=None), "cpu").net
        assert loaded.digest == loader.digest(before.state_dict())
        assert loaded.digest != loader.digest(plain.state_dict())

    def test_a_model_without_attention_has_no_heads(self, tmp_path):
        asked = wee(tmp_path, images_seen=32)
        small = {"num_classes": 16, "channels": [4, 8, 8, 8]}
        folder = train(replace(asked, model=replace(asked.model, timm="resnet18", args=small)))
        assert not (folder / "heads.csv").exists()
        assert list(pd.read_csv(folder / "metrics.csv")) == [
            "step",
            "images",
            "loss",
            "test_accuracy",
        ]


def distances_by_hand(net: torch.nn.Module, pixels: torch.Tensor) -> list[float]:
    """Of each head of each block: mean distance between patches by attention, over that of uniform attention."""
    found: list[float] = []

    def hook(module, args, output) -> None:
        query, key, _ = output.reshape(len(pixels), 17, 3, 2, 8).permute(2, 0, 3, 1, 4)
        weights = (query @ key.mT * 8**-0.5).softmax(-1)[:, :, 1:, 1:]
        places = torch.cartesian_prod(torch.arange(4.0), torch.arange(4.0))
        between = torch.cdist(places, places)
        uniform = between.sum() / (16 * 17)
        found.extend(((weights * between).sum(-1).mean((0, 2)) / uniform).tolist())

    for block in net.blocks:
        block.attn.qkv.register_forward_hook(hook)
    with torch.inference_mode():
        net(pixels)
    return found


def test_half_rounds_the_weights_before_they_are_judged(tmp_path):
    folder = train(wee(tmp_path, half=True))
    kinds = {tensor.dtype for tensor in load_file(folder / "wee.safetensors").values()}
    assert kinds == {torch.float16}
    assert "float16 (the accuracy is that of the rounded" in (folder / "wee.md").read_text()


class TestCard:
    def test_flops_are_those_counted_by_hand(self, tmp_path):
        counted = cost.flops_of(wee(tmp_path).model)
        tokens, width, patch = 17, 16, 3 * 7 * 7
        block = tokens * width * (3 * width + width + 8 * width) + 2 * tokens * tokens * width
        expected = 2 * (16 * patch * width + 2 * block + width * 16)
        assert counted == expected

    def test_it_says_again_what_was_trained(self, trained):
        card = cards.read(trained / "wee.md")
        assert (card.name, card.images_seen, card.train_images) == ("wee", 96, 64)
        assert card.training_flops == 3 * card.flops_per_image * 96
        assert card.recipe["lr"] == 1e-3
        assert card.model["args"]["depth"] == 2

    def test_what_is_no_card_is_refused(self, tmp_path):
        (tmp_path / "a.md").write_text("# nothing")
        with pytest.raises(UserError, match=r"a.md is not a model card of `vitsee train`"):
            cards.read(tmp_path / "a.md")
        with pytest.raises(UserError, match=r"cannot read the model card .*b.md: No such file"):
            cards.read(tmp_path / "b.md")

    def test_the_linear_probe_on_pixels_is_a_ridge_regression(self, tmp_path, monkeypatch):
        """Checked where it must be right: on images whose mean colour is the class."""
        splits = splits_of(wee(tmp_path), tmp_path)

        def flat(self, index: int) -> Image.Image:
            colour = (255 if index % 16 > 7 else 0, 16 * (index % 16), 16 * (index % 16))
            return Image.new("RGB", (28, 28), colour)

        monkeypatch.setattr(image_cache.CachedImages, "open", flat)
        assert outcome.pixel_probe(splits, 32) > 2 / 16


def test_two_ranks_take_the_steps_of_one(forks, tmp_path):
    words = [
        "recipe=contours",
        "dataset.size=128",
        "recipe.images_seen=192",
        "recipe.batch_size=64",
    ]
    words += ["recipe.test_images=16", "run.device=cpu", "run.progress=false", "run.workers=0"]
    words += ["recipe.precision=fp32", "model.args.depth=1", "recipe.half=false", *SMALL]

    def weights(name: str, count: int) -> dict[str, torch.Tensor]:
        asked = ["train", *words, f"run.outputs={tmp_path / name}"]
        ranks = [forks.start(asked, environment=env) for env in rank_environments(count)]
        assert [rank.end() for rank in ranks] == [0] * count, [rank.err for rank in ranks]
        (path,) = (tmp_path / name).rglob("vit_mini.safetensors")
        return load_file(path)

    one, two = weights("one", 1), weights("two", 2)
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=1e-3, atol=2e-4)


def rank_environments(count: int) -> list[dict[str, str]]:
    """What torchrun tells each rank; over the loopback address, for which no name must be looked up."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    loopback = "lo" if sys.platform == "linux" else "lo0"
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": f"{port}", "GLOO_SOCKET_IFNAME": loopback}
    return [
        {**shared, "WORLD_SIZE": f"{count}", "RANK": f"{rank}", "LOCAL_RANK": f"{rank}"}
        for rank in range(count)
    ]


RANKS = """
import torch
from vitsee.training.ranks import ranks
with ranks(4) as team:
    added = team.added(torch.ones(1)).item()
    print(f"rank {team.rank} {team.local} of {team.count} {added}\\n", end="", flush=True)
"""
TORCH_ALONE = """
import torch
from torch import distributed
distributed.init_process_group("gloo")
distributed.all_reduce(torch.ones(1))
print("connected\\n", end="", flush=True)
distributed.destroy_process_group()
"""


def said_under_torchrun(script: str, folder: Path) -> str:
    (folder / "script.py").write_text(script)
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--local-addr=127.0.0.1"]
    words = [sys.executable, *torchrun, "--nproc-per-node=2", "script.py"]
    home = {"PYTHONPATH": str(Path(trainer.__file__).parents[2])}
    env = os.environ | rank_environments(1)[0] | home
    with (folder / "said").open("w") as said:
        started = subprocess.Popen(
            words, stdout=said, stderr=said, cwd=folder, env=env, start_new_session=True
        )
        try:
            started.wait(120)
        except subprocess.TimeoutExpired:
            os.killpg(started.pid, signal.SIGKILL)
            started.wait()
    return (folder / "said").read_text()


def test_ranks_are_those_that_torchrun_starts(tmp_path):
    said = said_under_torchrun(RANKS, tmp_path)
    if sorted(re.findall(r"rank \d .*", said)) != ["rank 0 0 of 2 2.0", "rank 1 1 of 2 2.0"]:
        alone = said_under_torchrun(TORCH_ALONE, tmp_path)
        assert alone.count("connected") < 2, f"torch alone connects, vitsee said: {said}"
        pytest.skip(f"torchrun does not connect two processes here: {alone[-500:]}")


def test_augmentation_can_be_given_on_the_command_line():
    with initialize_config_dir(str(CONF), version_base="1.3"):
        asked = ["recipe=vit_nano", "recipe.augmentation={hflip: 0.5, scale: [0.5, 1.0]}"]
        recipe = recipes.build(compose("train", asked)).recipe
    assert recipe.augmentation == {"hflip": 0.5, "scale": [0.5, 1.0]}


def test_a_batch_that_ranks_cannot_share_evenly_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(
        UserError, match=r"batch_size=16 cannot be divided evenly among 3 processes; try 15"
    ):
        train(wee(tmp_path))


@cache
def images_to_test(kind: str, seed: int, side: int) -> tuple[torch.Tensor, np.ndarray]:
    """SEEN images of the test split, (SEEN, 3, side, side) in [-1, 1], and their labels."""
    made = datasets.load(DatasetOptions(name=kind, kind=kind, seed=seed, size=4096), side)
    indices = np.random.default_rng(0).permutation(4096)[:SEEN].tolist()
    images = np.stack([np.asarray(made.open(i)) for i in indices])
    labels = np.array([made.label(i) for i in indices])
    return torch.from_numpy(images).permute(0, 3, 1, 2) / 127.5 - 1, labels


@pytest.mark.xdist_group("scenes")  # one worker, so that they are drawn once
@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_weights_are_as_accurate_as_their_card_says(name):
    from test_models import configured

    card = cards.read(EMBEDDED / f"{name}.md")
    ((kind, seed, side),) = re.findall(r"^(\w+) .*seed(\d+)/(\d+)px", card.dataset)
    pixels, labels = images_to_test(kind, int(seed), int(side))
    loaded = loader.load(configured(name), "cpu")
    with torch.inference_mode():
        measured = (loaded.net(pixels).argmax(1).numpy() == labels).mean()
    stated = card.accuracy
    assert abs(measured - stated) < 4 * math.sqrt(stated * (1 - stated) / SEEN)


def test_all_shipped_weights_together_are_small():
    assert sum((EMBEDDED / f"{name}.safetensors").stat().st_size for name in SHIPPED) <= 60e6


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_weights_are_small_and_far_above_a_linear_probe(name):
    assert (EMBEDDED / f"{name}.safetensors").stat().st_size <= 5 * 2**20
    card = cards.read(EMBEDDED / f"{name}.md")
    assert card.accuracy > 2 * card.pixel_probe


def test_a_training_with_one_evaluation_is_drawn_as_a_dot():
    one = pd.DataFrame({"images": [64], "loss": [2.0], "test_accuracy": [0.5]})
    for metrics, marker in ((one, "o"), (pd.concat([one, one + 64]), "None")):
        loss, accuracy = training_curve("mine", metrics).axes
        assert {line.get_marker() for axes in (loss, accuracy) for line in axes.lines} == {marker}
