"""`vitsee run figure=NAME`: runs the experiments of a published figure and composes their panels."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from vitsee.analysis import REGISTERED, Analysis
from vitsee.config import override
from vitsee.errors import Busy, Incomplete, UserError, unknown
from vitsee.options import Experiment, ModelOptions, readers
from vitsee.papers import atlas, composing, evidence
from vitsee.papers.atlas import Panel, Published, Zoo
from vitsee.papers.claims import CLAIMS
from vitsee.papers.description import Shown, describe, listing, tell_what_is_replaced
from vitsee.papers.evidence import Reader
from vitsee.papers.plot import plot_joined
from vitsee.papers.request import Request, overrides
from vitsee.results.folder import Results, formats_of
from vitsee.results.reading import Written

log = logging.getLogger(__name__)

POLL = 5.0
"""Seconds between checks on a result that another process is measuring."""


def publish(words: list[str]) -> Iterator[Written]:
    """Measure missing panels, compose the figures and test their claims; yield what was written, figure by figure.

    words: `figure=NAME`, `figure=NAME,NAME`, `figure=all` or `figure=extra`, `zoo=NAME`, `untrained=false`
    (measure no null of the claims), `figure.width=text|column` and `figure.caption=false` (as wide as
    the text or a column of a journal, without a caption), and overrides applied last in each panel. If one of
    several figures fails, the others continue, and the error is raised at the end. Raises UserError, or Incomplete if
    only shards are missing.
    """
    request = Request.read(words)
    figures = [atlas.published(name) for name in request.figures]
    atlas.zoo(request.zoo)  # a mistake in its name concerns all of them
    for figure in figures:
        request.check(figure)
        check_panels(figure)
    measured: dict[str, Path] = {}
    failed: dict[str, UserError] = {}
    folders, reader = [], Reader()
    for figure in figures:
        try:
            written = publish_one(figure, request, measured, reader)
        except UserError as reason:
            if len(figures) == 1:
                raise
            log.warning("warning: figure=%s is left out: %s", figure.name, reason)
            failed[figure.name] = reason
            continue
        folders.append(written.folder)
        yield written
    if len(folders) > 1:
        formats = formats_of(pdf=request.settings.pdf, svg=request.settings.svg)
        yield Written(folders[0].parent, plot_joined(folders, formats=formats))
    if failed:
        incomplete = all(isinstance(reason, Incomplete) for reason in failed.values())
        reasons = "; ".join(f"figure={name}: {reason}" for name, reason in failed.items())
        raise (Incomplete if incomplete else UserError)(
            f"{len(failed)} of {len(figures)} figures are incomplete: {reasons}"
        )


def check_panels(figure: Published) -> None:
    """Raise UserError for a panel or a claim that does not exist, or that its analysis or evidence does not allow.

    A panel of several roles needs an analysis that draws them together; a claim needs exactly its evidence.
    """
    for called, one in figure.panels.items():
        kind = REGISTERED.get(one.analysis)  # if there is none, composing it says so
        if len(one.roles) > 1 and kind and kind.joined is Analysis.joined:
            raise UserError(
                f"the panel {called} of figure={figure.name} has several roles, which analysis={one.analysis} cannot "
                f"draw together; make one panel per role, or define `joined`"
            )
    for panel in (panel for row in figure.rows for panel in row):
        if panel not in figure.panels:
            asked = f"a row of figure={figure.name} names a panel {panel}"
            raise unknown(asked, panel, figure.panels, "there are")
    for name, given in figure.claims.items():
        asked = f"the claim {name} of figure={figure.name}"
        if name not in CLAIMS:
            own = " (if it is your own: --import its file)"
            raise unknown(f"{asked} does not exist{own}", name, CLAIMS, "there are")
        needed = sorted(CLAIMS[name].evidence)
        if sorted(given) != needed:
            raise UserError(f"{asked} needs {', '.join(needed)}; got {', '.join(sorted(given))}")
        for panel in (panel for panels in given.values() for panel in panels):
            if panel not in figure.panels:
                raise unknown(f"{asked} names a panel {panel}", panel, figure.panels, "there are")


def publish_one(
    figure: Published, request: Request, measured: dict[str, Path], reader: Reader
) -> Written:
    """Measure and compose one figure and test its claims.

    measured: result folders by experiment; these are reused, and new ones are added.
    """
    zoo = atlas.zoo(request.zoo)
    zoo.check(atlas.wants(figure))
    shown: dict[str, Shown] = {}
    waiting: list[str] = []
    for name, panel in figure.panels.items():
        try:
            shown[name] = measure(panel, zoo, request, measured, reader)
        except Incomplete as part:
            waiting.append(f"{panel.title}: {part}")
        except UserError as reason:
            if not figure.lenient:
                raise
            log.warning("warning: %s is left out: %s", panel.title, reason)
            shown[name] = Shown({}, [str(reason)])
    untrained = {}
    for name in with_null(figure) if request.untrained else []:
        try:
            untrained[name] = nulls(
                figure.panels[name], zoo, request, measured, reader, shown[name]
            )
        except Incomplete as part:
            waiting.append(f"{figure.panels[name].title}, untrained: {part}")
    if waiting:
        raise Incomplete("; ".join(waiting))
    asked = request.settings
    results = Results(Path(asked.outputs) / "figures" / request.folder(figure))
    results.prepare()
    about = describe(figure, zoo, request, shown, results.path, reader)
    tell_what_is_replaced(results.path, about)
    results.save_json("figure.json", about)
    folders = {name: panel.folders for name, panel in shown.items()}
    files = results.save_tables(
        {
            "panels": listing(figure, shown, results.path, reader),
            "claims": evidence.verdicts(figure, folders, untrained, reader),
        }
    )
    formats = formats_of(pdf=asked.pdf, svg=asked.svg)
    return Written(results.path, files + composing.draw(results.path, formats=formats, read=reader))


def measure(
    panel: Panel, zoo: Zoo, request: Request, measured: dict[str, Path], reader: Reader
) -> Shown:
    """Run the panel's experiments that have not been measured yet and whose roles have a model."""
    folders: dict[str, Path] = {}
    missing = []
    for role in panel.roles:
        cast = [role, panel.other] if panel.other else [role]
        chosen = {name: zoo.role(name) for name in cast if name not in atlas.ASKED}
        absent = {name: p.missing for name, p in chosen.items() if p.model is None}
        if absent:
            missing += [f"{name}: {why}" for name, why in absent.items()]
            for name, why in absent.items():
                log.warning("warning: %s of zoo %s is left out: %s", name, zoo.name, why)
            continue
        experiment = request.experiment(overrides(panel, role, zoo, request))
        folders[role] = result(experiment, measured, reader)
    return Shown(folders, missing)


def result(experiment: Experiment, measured: dict[str, Path], reader: Reader) -> Path:
    """The result folder of the experiment, which runs unless it is in `measured`."""
    from vitsee.gpus import run

    question = repr(experiment.what())
    if question not in measured:
        written = patiently(partial(run, experiment))
        reader.keep(written)
        measured[question] = written.folder
    return measured[question]


def with_null(figure: Published) -> list[str]:
    """Names of the panels whose models, with random weights, are the null of a claim."""
    return list(
        dict.fromkeys(
            panel
            for name, evidence in figure.claims.items()
            if CLAIMS[name].untrained
            for panels in evidence.values()
            for panel in panels
        )
    )


def nulls(
    panel: Panel,
    zoo: Zoo,
    request: Request,
    measured: dict[str, Path],
    reader: Reader,
    shown: Shown,
) -> dict[str, Path]:
    """Measure the panel with random weights; return result folders by role, for the models that can have them."""
    folders = {}
    for role in shown.folders:
        both = ["model", "other"] if panel.other else ["model"]
        asked = overrides(panel, role, zoo, request)
        trained = request.experiment(asked).models
        random = [f"{model}.{option}" for model in both for option in untrained(trained[model])]
        sources = {model.source for model in trained.values()}
        if fixed := sources - {*readers("pretrained")}:
            log.warning(
                "warning: %s has no null: vitsee cannot draw random weights for model=%s, so claims about this "
                "panel are tested without untrained networks",
                *(panel.title, fixed.pop().value),
            )
            continue
        try:
            experiment = request.experiment([*asked, *random])
            folders[role] = result(experiment, measured, reader)
        except Incomplete:
            raise
        except UserError as reason:
            log.warning("warning: %s has no null: %s", panel.title, reason)
    return folders


def untrained(model: ModelOptions) -> list[str]:
    """Return the options that give the model random weights: those that its training began with, if it has a card."""
    options: dict[str, object] = {"pretrained": False, "checkpoint": None, "checkpoint_key": None}
    if model.checkpoint is not None and model.source in readers("drawn_as"):
        options["drawn_as"] = model.checkpoint
    return [override(name, value) for name, value in options.items()]


def patiently(run: Callable[[], Written]) -> Written:
    """Call `run`; if another process is measuring the same result, wait and reuse it."""
    while True:
        try:
            return run()
        except Busy as other:
            log.info("waiting: %s", other)
            time.sleep(POLL)
