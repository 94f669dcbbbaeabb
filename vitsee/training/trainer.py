"""`vitsee train`: trains a timm classifier, resumable bit for bit, and writes weights, metrics and a model card."""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from tqdm import tqdm

from vitsee.data.minibatches import decoders_alive
from vitsee.errors import UserError
from vitsee.estimators.arithmetic import forward_in, tf32
from vitsee.models import attention_hooks, initial, loader, timm_architecture
from vitsee.options import Precision
from vitsee.parallel.interrupt import Interrupted, Interruptible
from vitsee.parallel.leases import Lease, lease
from vitsee.results.folder import Results
from vitsee.study import choose_device
from vitsee.training import captured, cost, examples, finetuning, outcome
from vitsee.training.attending import Gaze, near_minus_far
from vitsee.training.checkpoint import Checkpoints, Progress
from vitsee.training.examples import EVALUATION_BATCH, Mixup, Schedule, Splits
from vitsee.training.optimisers import Optimisers
from vitsee.training.ranks import Ranks, ranks
from vitsee.training.recipes import Training
from vitsee.training.resident import ROOM, Resident

log = logging.getLogger(__name__)

SETTLE = 20
"""Steps between two checks of losses and signals, which synchronise with the device and the other ranks."""
OBSERVED = 250
"""Number of held-out images on which attention distances are tracked."""


def train(training: Training) -> Path:
    """Train, or resume where the same call stopped. Return the folder of weights, metrics and card.

    Raises UserError if the loss is not finite (the last checkpoint is kept), Incomplete if another process
    is running the same training, and Interrupted on a signal.
    """
    recipe = training.recipe
    with ranks(recipe.batch_size) as team:
        trainer = Trainer(training, team)
        home = Path(training.run.outputs) / "train"
        with team.one_before_others():
            splits = Splits.of(training, trainer.resolution, home)
        _check_classes(splits, trainer)
        seen = (splits.train.fingerprint, splits.test.fingerprint, trainer.started_from)
        identity = training.identity(*seen)
        results = Results(home / f"{recipe.name}-{identity}")
        results.prepare()
        with alone(results) if team.first else nullcontext():
            learn(trainer, splits, Checkpoints(results, identity))
            outcome.write(trainer, splits, results)
        return results.path


def alone(results: Results) -> AbstractContextManager[Lease]:
    """Run the block as the only process that trains into this folder. Raises Incomplete if one already does."""
    return lease(results.path / "state" / "training.lease", "training.lease", lambda: [0])


def learn(trainer: Trainer, splits: Splits, checkpoints: Checkpoints) -> None:
    """Take all remaining steps."""
    recipe, team = trainer.training.recipe, trainer.team
    steps = recipe.steps(len(splits.train))
    if not trainer.resume(checkpoints) and team.first:
        log.info("%s", cost.expected(trainer.training, steps))
    schedule = Schedule(recipe, splits.chosen, trainer.step, steps, team)
    advance = advances(trainer, splits, schedule)

    def saved() -> None:
        trainer.settle()
        if team.first:
            checkpoints.save(trainer.net, trainer.optimisers, trainer.progress)

    with (
        Interruptible() as signals,
        decoders_alive(),
        tqdm(
            total=steps * recipe.batch_size,
            initial=trainer.step * recipe.batch_size,
            unit="image",
            unit_scale=True,
            desc=recipe.name,
            disable=not (trainer.training.run.progress and team.first),
        ) as bar,
    ):
        for _ in advance:
            bar.update(recipe.batch_size)
            if trainer.step % recipe.eval_every == 0 or trainer.step == steps:
                bar.set_postfix(trainer.record(splits))
            due = trainer.step % recipe.save_every == 0 or trainer.step == steps
            if due:
                saved()
            if trainer.stops(signals, last=trainer.step == steps):
                if not due:
                    saved()
                raise Interrupted


def advances(trainer: Trainer, splits: Splits, schedule: Schedule) -> Iterator[None]:
    """Take one step of the schedule at a time."""
    recipe, run, device = trainer.training.recipe, trainer.training.run, trainer.device
    if Resident.holds(splits, trainer.data, recipe):
        resident = trainer.resident = Resident(splits, trainer.data, recipe, device, trainer.team)
        step = captured.step(trainer, resident)
        for draws in resident.draws(schedule):
            step(*draws, recipe.rate(trainer.step, schedule.steps))
            yield
        return
    if recipe.shift:
        raise UserError(
            f"recipe.shift={recipe.shift} is for generated images at the model's size, up to {ROOM >> 30} GiB; for "
            f"others use recipe.shift=0 and recipe.augmentation"
        )
    transform = examples.augmentation(recipe, trainer.data)
    loader = examples.to_train(splits, transform, schedule, run, device)
    mixup = Mixup(recipe, len(splits.train.classes), trainer.team)
    for batch in loader:
        pixels, labels = (t.to(device, non_blocking=True) for t in batch)
        rate = recipe.rate(trainer.step, schedule.steps)
        trainer.advance(*mixup(trainer.step, pixels, labels), rate)
        yield


def chosen(training: Training) -> torch.device:
    """Return the device to train on. Raises UserError if one process cannot use it, or not in this precision."""
    run, device = training.run, choose_device(training.run.device)
    if run.device == "all" or run.gpus is not None:
        asked = f"run.gpus={run.gpus}" if run.gpus is not None else "run.device=all"
        raise UserError(
            f"{asked}: vitsee train uses one GPU per process; for several: "
            f"torchrun --nproc-per-node=N -m vitsee train recipe={training.recipe.name} …"
        )
    if training.recipe.precision is Precision.tf32 and device.type != "cuda":
        raise UserError(
            f"recipe.precision=tf32 exists on CUDA devices only, not on {device.type}; use fp32 or bf16"
        )
    return device


class Trainer:
    """A model, its optimisers and their progress."""

    def __init__(self, training: Training, team: Ranks | None = None) -> None:
        torch.set_flush_denormal(True)  # denormal gradients make a CPU three times slower
        self.training, self.team = training, team or Ranks()
        self.device = self.team.device(chosen(training))
        self.net = self._new().to(self.device)
        if self.team.count > 1 and self.device.type == "cuda":
            self.net = nn.SyncBatchNorm.convert_sync_batchnorm(self.net)
        attention_hooks.fuse(self.net, self.device.type != "cpu")  # slow to differentiate on a CPU
        shared = self.team.share(self.net, self.device)
        self.forward = compiled(shared) if training.recipe.compile else shared
        self.optimisers = Optimisers(self.net, training.recipe, captured.possible(self))
        self.progress = Progress()
        self.gaze = Gaze.of(training.model)
        self.resident: Resident | None = None
        """The images, once they are on the device."""
        self.losses: list[Tensor] = []
        """The losses since the last check."""
        self.loss = math.nan

    def _new(self) -> nn.Module:
        """Return the model before the first step."""
        recipe, model = self.training.recipe, self.training.model
        self.started_from = ""
        if recipe.start:
            net = finetuning.begin(model, recipe.start)
            digest = loader.digest(net.state_dict())[:16]
            self.started_from = f"{Path(recipe.start).name} (SHA-256 {digest}…)"
            torch.manual_seed(recipe.seed)
            return net
        with norms_as_fast_as(recipe.precision):
            net = timm_architecture.build(model, seed=recipe.seed)
        initial.initialise(net, recipe.positions.value, recipe.pos_embed_std)
        return net

    def _draw_apart(self) -> None:
        """Seed each step of the other ranks, so that their dropout is their own, and the same after an interruption."""
        if not self.team.first:
            torch.manual_seed(hash((self.training.recipe.seed, self.team.rank, self.step)))

    def resume(self, checkpoints: Checkpoints) -> bool:
        """Resume from a checkpoint. Return whether one exists.

        Raises UserError if all checkpoints are damaged, or if the ranks found different ones.
        """
        restored = checkpoints.restore(self.net, self.optimisers, repair=self.team.first)
        self.progress = restored or self.progress
        steps = self.team.added(torch.tensor([self.step, self.step**2], device=self.device))
        if steps[0] ** 2 != steps[1] * self.team.count:
            raise UserError(
                f"the processes of this training found different checkpoints, this one for step {self.step}: "
                f"run.outputs must be a folder that all machines share"
            )
        return restored is not None

    @property
    def step(self) -> int:
        """Number of steps taken."""
        return self.progress.step

    @cached_property
    def data(self) -> dict[str, Any]:
        """timm's data configuration of the model."""
        return timm_architecture.data_config(self.net)

    @property
    def resolution(self) -> int:
        """Side of the model's input, in pixels."""
        return int(self.data["input_size"][1])

    def advance(self, pixels: Tensor, targets: Tensor, rate: float) -> None:
        """Take one step. targets: (N, classes). rate: learning rate. Raises UserError as `settle` does."""
        self.net.train()
        self.optimisers.set_rate(rate)
        self.count(self.update(pixels, targets))

    def update(self, pixels: Tensor, targets: Tensor) -> Tensor:
        """Update the weights. Return the loss before the update."""
        recipe = self.training.recipe
        self._draw_apart()
        with tf32(recipe.precision is Precision.tf32):
            with forward_in(recipe.precision, self.device.type):
                logits = self.forward(pixels)
            loss = nn.functional.cross_entropy(logits.float(), targets)
            self.net.zero_grad()
            loss.backward()
        if recipe.clip is not None:
            nn.utils.clip_grad_norm_(self.net.parameters(), recipe.clip)
        self.optimisers.step()
        return loss.detach()

    def count(self, loss: Tensor) -> None:
        """Count a step that has been taken. Raises UserError as `settle` does."""
        self.progress.step += 1
        self.losses.append(loss)
        if len(self.losses) == SETTLE:
            self.settle()

    def settle(self) -> None:
        """Check the losses since the last check. Raises UserError for the first that is not finite."""
        if not self.losses:
            return
        losses = (self.team.added(torch.stack(self.losses)) / self.team.count).tolist()
        first, self.losses = self.step - len(self.losses), []
        for number, self.loss in enumerate(losses, first):
            if not math.isfinite(self.loss):
                lr = self.training.recipe.lr
                raise UserError(
                    f"the loss is {self.loss} at step {number}; the last checkpoint is kept: "
                    f"try a smaller recipe.lr (it is {lr:g}) or recipe.precision=fp32"
                )

    def stops(self, signals: Interruptible, last: bool) -> bool:
        """Return whether to stop after this step. Ranks must agree, which they check every `SETTLE` steps."""
        if self.team.count == 1:
            return signals.asked is not None
        if self.step % SETTLE and not last:
            return False
        asked = torch.tensor(float(signals.asked is not None), device=self.device)
        return self.team.added(asked).item() > 0

    def accuracy(self, splits: Splits) -> float:
        """Return the share of held-out images that are classified correctly."""
        recipe, run = self.training.recipe, self.training.run
        self.net.eval()
        right = torch.zeros((), dtype=torch.float64, device=self.device)
        shown = (
            self.resident.held_out(self.team, EVALUATION_BATCH)
            if self.resident
            else examples.to_test(splits, self.data, recipe, run, self.device, self.team)
        )
        with torch.inference_mode(), tf32(False):
            for pixels, labels in shown:
                predicted = self.net(pixels.to(self.device)).argmax(1)
                right += (predicted == labels.to(self.device)).sum()
        return float(self.team.added(right)) / len(splits.held_out(recipe.test_images))

    def observed(self, splits: Splits) -> Tensor:
        """Return the first held-out images, on which attention distances are measured."""
        recipe, run = self.training.recipe, self.training.run
        shown = (
            self.resident.held_out(Ranks(), OBSERVED)
            if self.resident
            else examples.to_test(splits, self.data, recipe, run, self.device, Ranks())
        )
        pixels, _ = next(iter(shown))
        return pixels[:OBSERVED].to(self.device)

    def record(self, splits: Splits) -> dict[str, str]:
        """Add a line of metrics. Return what the progress bar shows."""
        self.settle()
        accuracy = self.accuracy(splits)
        images = self.step * self.training.recipe.batch_size
        line = {"step": self.step, "images": images, "loss": self.loss, "test_accuracy": accuracy}
        if self.gaze.layers:
            line["near_minus_far"] = near_minus_far(self.net)
            self.progress.heads += [
                {"step": self.step, "images": images, **head}
                for head in self.gaze.distances(self.net, self.observed(splits))
            ]
            attention_hooks.fuse(self.net, self.device.type != "cpu")
        self.progress.metrics.append(line)
        return {"loss": f"{self.loss:.3f}", "test": f"{accuracy:.1%}"}


@contextmanager
def norms_as_fast_as(precision: Precision) -> Iterator[None]:
    """Run the block so that models built in it have norms that read and write the training's precision."""
    from timm.layers import is_fast_norm, set_fast_norm

    before = is_fast_norm()
    set_fast_norm(precision is Precision.bf16)
    try:
        yield
    finally:
        set_fast_norm(before)


def compiled(net: nn.Module) -> nn.Module:
    """Return the model compiled; for a ViT, block by block, which takes a tenth of the time."""
    blocks = getattr(net, "blocks", None)
    if not isinstance(blocks, nn.Sequential):
        return cast("nn.Module", torch.compile(net))
    faster = nn.Sequential(*(cast("nn.Module", torch.compile(block)) for block in blocks))
    shell = copy.copy(net)  # so that the model itself, with its hooks, stays unchanged
    shell._modules = {**net._modules, "blocks": faster}
    return shell


def _check_classes(splits: Splits, trainer: Trainer) -> None:
    """Raise UserError unless the model has one output per class."""
    outputs, classes = getattr(trainer.net, "num_classes", 0), len(splits.train.classes)
    if outputs != classes:
        raise UserError(
            f"the model has {outputs} outputs, but dataset={trainer.training.dataset.name} has {classes} "
            f"classes: use model.args.num_classes={classes}"
        )
