"""The main path: experiment -> models and layers -> minibatches -> sums -> tables (CSV) -> figures (PNG)."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import reduce
from operator import add
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from vitsee import faster, returned
from vitsee.analysis import View
from vitsee.data.minibatches import Minibatch, Minibatches, decoders_alive
from vitsee.data.plan import Plan
from vitsee.errors import Incomplete, UserError
from vitsee.estimators.arithmetic import exact
from vitsee.models.taps import watch
from vitsee.options import Experiment
from vitsee.parallel.interrupt import Interruptible
from vitsee.parallel.leases import Lease, lease
from vitsee.parallel.team import Alone
from vitsee.proof import Doubts
from vitsee.results import changes, provenance, replicates
from vitsee.results.drawing import draw
from vitsee.results.folder import Results, formats_of
from vitsee.results.reading import Written, read
from vitsee.results.repeated import said_once
from vitsee.study import Study
from vitsee.sums import SKIPPED, Sums

log = logging.getLogger(__name__)


def run(experiment: Experiment, team: Alone | None = None) -> Written:
    """Measure what is missing, then write the tables and draw the figures.

    team: the processes that share the work; by default only this one.

    Raises UserError for the user's mistakes, Incomplete if other shards are missing, and Interrupted on a
    signal. In all cases, everything measured so far is saved, and the same call resumes.
    """
    study, team = Study(experiment), team or Alone()
    if team.writes:
        import vitsee.plotting.style  # noqa: F401  (if drawing is broken, fail now and not after hours)
    results = Results(Path(experiment.run.outputs) / study.folder, study.fingerprint)
    returned.of(study.analysis, "check_memory", study.memory)
    if study.passes:
        returned.of(study.analysis, "check_kept", len(study.plan), study.plan.batch_size)
    results.prepare()
    changes.refuse_foreign(study, results)
    results.save_experiment(study.what)
    changes.tell(study, results)
    totals = [of_weights(study)] if experiment.analysis.weights_only else []
    for stage in range(len(study.passes)):
        measure(study, results, totals, team)
        team.meet()
        totals.append(gather(study, results, stage))
    if not team.writes:
        return Written(results.path, [])
    *earlier, total = totals
    analysis = study.analysis_after(earlier)
    tables = returned.tables(analysis, total)
    files = results.save_tables(tables)
    without = [returned.tables(analysis, part) for part in groups_left_out(total)]
    for name, content in returned.of(analysis, "files", total).items():
        results.write(name, content)
    results.write(replicates.NAME, replicates.pack(tables, without, times_sampled(study, total)))
    document(study, results, totals, returned.warnings(analysis, total, tables))
    advise(study, results, tables)
    stored = read(results.path)
    formats = formats_of(pdf=experiment.run.pdf, svg=experiment.run.svg)
    return Written(results.path, files + draw(results.path, stored, formats=formats), stored)


def of_weights(study: Study) -> Sums:
    """The terms of an analysis that reads only weights."""
    nets = {role: model.net for role, model in study.models.items()}
    terms = returned.named(study.analysis, "of_weights", torch.Tensor, nets)
    return Sums.of(0, 1, terms, study.axes)


def measure(study: Study, results: Results, earlier: list[Sums], team: Alone) -> None:
    """Lease this shard's unmeasured minibatches, and add them to its sums.

    earlier: the sums of the passes before this one. Raises Incomplete if another process has leased them.
    """
    how, stage = study.experiment.run, len(earlier)
    plan = study.passes[stage].plan
    path = results.state(how.shard, how.shards, stage)

    def wanted() -> list[int]:
        total = reduce(add, results.load_states(len(plan), stage).values(), Sums.zero(len(plan)))
        return [] if study.enough(total) else plan.todo(total.seen, how.shard, how.shards)

    with lease(*results.leasing(path, stage), wanted) as mine:
        if mine.minibatches:
            add_up(study, results, earlier, mine, path, team)
        else:
            log.info("everything is already measured")


def add_up(
    study: Study, results: Results, earlier: list[Sums], mine: Lease, path: Path, team: Alone
) -> None:
    """Add the leased minibatches to the sums in this state file."""
    e, device, stage = study.experiment, study.device, len(earlier)
    minibatch_count = len(study.passes[stage].plan)
    measured = results.load_states(minibatch_count, stage).get(path, Sums.zero(minibatch_count))
    sums = measured.to(device)
    doubts = Doubts(study.axes)

    def grouped(name: str) -> bool:
        """Only tables need groups, and they come from the last pass."""
        return stage == len(study.passes) - 1 and not name.startswith(e.analysis.ungrouped)

    def save() -> None:
        mine.check()
        doubts.settle()
        results.save_state(path, sums)

    with Interruptible() as signals, decoders_alive(), observer(study, earlier) as observe:
        launch = provenance.Launch.on(device)
        todo = mine.minibatches
        batches = minibatches(study, stage, todo)
        try:
            for batch in team.follow(batches, study.folder, len(todo), e.run.progress):
                terms = observe(batch)
                doubts.add(batch.index, returned.of(e.analysis, "impossible", terms))
                sums += Sums.of(
                    batch.index, minibatch_count, terms, study.axes, grouped, e.analysis.keeps
                )
                launch.add(len(batch.ids))
                if expected := launch.expected(len(todo)):
                    log.info("%s", expected)
                if launch.minibatches % e.run.save_every == 0:
                    save()
                signals.check()
                if study.enough(sums):
                    break
        finally:  # whatever happened, the sums are correct so far
            save()
            results.save_launch(path, launch.end(device, batches.waited))


def minibatches(study: Study, stage: int, todo: list[int]) -> Minibatches:
    """The given minibatches of the plan, decoded for every model."""
    images, plan = study.passes[stage].images, study.passes[stage].plan
    return Minibatches(
        images,
        {role: model.data for role, model in study.models.items()},
        plan,
        todo,
        device=study.device,
        workers=study.experiment.run.workers,
        on_bad_image=study.experiment.dataset.on_bad_image,
    )


@contextmanager
def observer(
    study: Study, earlier: list[Sums]
) -> Iterator[Callable[[Minibatch], dict[str, Tensor]]]:
    """Yield a function that runs the models on a minibatch and returns its terms."""
    e, analysis, stage = study.experiment, study.analysis_after(earlier), len(earlier)
    plan = study.passes[stage].plan
    normalisation = {role: (m.data["mean"], m.data["std"]) for role, m in study.models.items()}
    with ExitStack() as stack:
        through = {
            role: stack.enter_context(
                watch(model.net, study.layers[role], analysis, e.precision, role=role)
            )
            for role, model in study.models.items()
        }

        def forward(role: str, pixels: Tensor) -> dict[str, Tensor]:
            return returned.reduced(analysis, through[role](pixels))

        def observe(batch: Minibatch) -> dict[str, Tensor]:
            try:
                for pixels in batch.pixels.values():
                    pixels.requires_grad_(analysis.gradients)
                reduced = {role: forward(role, batch.pixels[role]) for role in through}
                view = View(
                    len(batch.ids),
                    batch.labels,
                    **reduced,
                    pixels=batch.pixels,
                    normalisation=normalisation,
                    positions=plan.positions(batch.index, batch.ids),
                    planned=plan.planned,
                    stage=stage,
                    fresh=plan.fresh(batch.index),
                    again=forward,
                    indices=batch.ids,
                )
                with exact(study.device.type):
                    terms = returned.named(analysis, "observe", torch.Tensor, view)
            except torch.OutOfMemoryError as error:
                smaller = f"batch_size={max(e.least, e.batch_size // 2)}, which starts a new result"
                fewer = "fewer layers, a smaller model or run.device=cpu"
                raise UserError(
                    f"not enough memory on {study.device} for minibatches of {e.batch_size} images; "
                    f"try {smaller if e.batch_size > e.least else fewer}"
                ) from error
            if batch.skipped:
                terms[SKIPPED] = skipped(plan, batch)
            return terms

        yield observe


def skipped(plan: Plan, batch: Minibatch) -> Tensor:
    """(minibatches, batch_size): 1 for each image of this minibatch that could not be decoded."""
    marks = torch.zeros(len(plan), plan.batch_size)
    for position, index in enumerate(plan.batch(batch.index)):
        marks[batch.index, position] = index in batch.skipped
    return marks


def gather(study: Study, results: Results, stage: int) -> Sums:
    """The sums of a pass over all shards. Raises Incomplete if a minibatch is missing."""
    minibatch_count = len(study.passes[stage].plan)
    states = results.load_states(minibatch_count, stage)
    total = reduce(add, states.values(), Sums.zero(minibatch_count))
    try:
        return total if study.enough(total) else total.complete()
    except Incomplete as waiting:
        how, passes = study.experiment.run, len(study.passes)
        there = ", ".join(path.stem for path in states) or "nothing"
        of = f" (pass {stage + 1} of {passes})" if passes > 1 else ""
        raise Incomplete(
            f"shard {how.shard} of {how.shards} is done{of}, but {waiting} (available: {there}); "
            f"run the other shards, or the same command without run.shard to fill the gaps: "
            f"{results.path}"
        ) from None


def groups_left_out(total: Sums) -> list[Sums]:
    """The sums without each group of minibatches in turn; none if there is only one group."""
    return [total.without(group) for group in total.groups] if len(total.groups) > 1 else []


def times_sampled(study: Study, total: Sums) -> float:
    """How many times an image was drawn on average."""
    if not study.passes:
        return 1.0
    measured = total.seen.nonzero().flatten().tolist()
    return len(measured) / sum(study.plan.fresh(index) for index in measured)


def document(study: Study, results: Results, totals: list[Sums], warnings: list[str]) -> None:
    """Write made_with.json and log the warnings. warnings: those of the analysis."""
    record = provenance.made_with(study, totals)
    record["tolerance"] = stopped(study, totals[-1])
    record["skipped_images"] = skipped_ids(study, totals)
    record["warnings"] = study.warnings() + warnings
    if record["skipped_images"]:
        first, *more = record["skipped_images"]
        record["warnings"].append(
            f"{1 + len(more)} images could not be decoded and were skipped: {first} …"
            if more
            else f"1 image could not be decoded and was skipped: {first}"
        )
    if record["tolerance"] and not record["tolerance"]["reached"]:
        record["warnings"].append(
            "tolerance={asked} was not reached: the largest standard error after all "
            "{minibatches} minibatches is {largest_se:.2g}".format(**record["tolerance"])
        )
    for warning in said_once(record["warnings"]):
        log.warning("warning: %s", warning)
    for model in study.models.values():
        record["warnings"] += model.taken.warnings  # logged when it was loaded
    record["launches"] = results.launches()
    results.save_json("made_with.json", record | summary(record["launches"]))


def advise(study: Study, results: Results, tables: dict[str, pd.DataFrame]) -> None:
    """Log how much time TF32 would have saved."""
    main = tables.get(study.analysis.name, pd.DataFrame())
    error = float(main["se"].median()) if "se" in main else None
    line = faster.advice(study, summary(results.launches())["wall_seconds"], error)
    if line:
        log.info("%s", line)


def stopped(study: Study, total: Sums) -> dict[str, Any] | None:
    """The requested tolerance and the standard error that was reached; None without a tolerance."""
    asked = study.experiment.tolerance
    if asked is None:
        return None
    largest = returned.of(study.analysis, "error", total)
    measured = int(total.seen.sum())
    return {
        "asked": asked,
        "largest_se": largest,
        "minibatches": measured,
        "of": len(total.seen),
        "reached": largest <= asked,
    }


def skipped_ids(study: Study, totals: list[Sums]) -> list[str]:
    """Ids of the images that could not be decoded."""
    found: dict[str, None] = {}
    for each, total in zip(study.passes, totals, strict=False):
        found |= {each.images.id(each.plan.batch(b)[at]): None for b, at in total.skipped}
    return list(found)


def summary(launches: list[dict[str, Any]]) -> dict[str, float]:
    """Time, speed and memory of all launches together."""
    seconds = sum(launch["seconds"] for launch in launches)
    images = sum(launch["images"] for launch in launches)
    waited = sum(launch["waiting_share"] * launch["seconds"] for launch in launches)
    return {
        "wall_seconds": seconds,
        "images_per_second": images / seconds if seconds else 0.0,
        "waiting_share": waited / seconds if seconds else 0.0,
        "peak_memory_mb": max((launch["peak_memory_mb"] for launch in launches), default=0.0),
    }
