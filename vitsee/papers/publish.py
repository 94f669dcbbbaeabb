"""`vitsee run figure=NAME`: runs the experiments of a published figure and composes their panels."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import pandas as pd

from vitsee import choices, returned
from vitsee.config import composed
from vitsee.errors import Busy, Incomplete, UserError, unknown
from vitsee.io.record import Shape
from vitsee.names import folder_name
from vitsee.options import Experiment, RunOptions, readers
from vitsee.papers import atlas, composing, evidence
from vitsee.papers.atlas import Panel, Published, Zoo
from vitsee.papers.claims import CLAIMS
from vitsee.papers.evidence import Reader
from vitsee.papers.plot import plot_joined
from vitsee.results.folder import Results, formats_of
from vitsee.results.reading import Written

log = logging.getLogger(__name__)

RANDOM = ("pretrained=false", "checkpoint=null", "checkpoint_key=null")
"""Options that give a model random weights."""
SHOWN: Shape = {"panels?": [{"name": str, "results": [str]}]}
"""The part of a figure.json that says which results the figure shows."""
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
    """Raise UserError for a panel or a claim that does not exist, or a claim with other evidence than it needs."""
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


CHOICES = {
    "figure.width": tuple(composing.WIDTHS),
    "figure.caption": ("true", "false"),
    "untrained": ("true", "false"),
}
"""The values of the options of a figure."""


@dataclass(frozen=True)
class Request:
    """The request on the command line."""

    figure: str
    zoo: str = "mini"
    width: str = "text"
    captioned: bool = True
    untrained: bool = True
    """Whether claims are also measured on the same networks with random weights."""
    overrides: list[str] = field(default_factory=list)
    models: dict[str, list[str]] = field(default_factory=lambda: {"model": [], "other": []})
    """Overrides for the models with these roles, all written as for `model`."""

    @classmethod
    def read(cls, words: list[str]) -> Request:
        """Parse the command line. Raises UserError for options that a whole figure cannot take."""
        named = {
            "figure": "", "zoo": "mini", "untrained": "true",
            "figure.width": "text", "figure.caption": "true",
        }  # fmt: skip
        rest: list[str] = []
        models: dict[str, list[str]] = {"model": [], "other": []}
        for word in words:
            key, _, value = word.partition("=")
            if key in named:
                named[key] = value
            elif key.startswith("figure."):
                options = [name for name in named if name.startswith("figure.")]
                raise unknown(f"{word}: a figure has no such option", key, options, "it has")
            elif key in ("analysis", "-m", "--multirun"):
                raise UserError(
                    f"{word} cannot be combined with figure={named['figure'] or '…'}: a figure chooses its "
                    f"own experiments; request several figures with figure=fig01,fig02 or figure=all"
                )
            elif key == "model@other" or key.startswith("other."):
                models["other"].append(
                    word.replace("model@other", "model").replace("other.", "model.", 1)
                )
            elif key == "model" or key.startswith("model."):
                models["model"].append(word)
            else:
                rest.append(word)
        for key, can_be in CHOICES.items():
            if named[key] not in can_be:
                raise unknown(f"there is no {key}={named[key]}", named[key], can_be, "it can be")
        return cls(
            named["figure"], named["zoo"], named["figure.width"], named["figure.caption"] == "true",
            named["untrained"] == "true", rest, models,
        )  # fmt: skip

    @property
    def figures(self) -> list[str]:
        """Names of the requested figures.

        `all` means the figures of the two papers whose models are in the zoos, `extra` those from later papers;
        the user's own figures are in neither.
        """
        if self.figure not in ("all", "extra"):
            return list(dict.fromkeys(self.figure.split(",")))
        every = [atlas.published(name) for name in choices.names("figure", choices.CONF)]
        extra = self.figure == "extra"
        return [one.name for one in every if not atlas.asks(one) and one.extra == extra]

    def folder(self, figure: Published) -> str:
        """The figure's name, followed by its zoo or the names of its models."""
        return "-".join([figure.name, "-vs-".join(map(folder_name, self.asked)) or self.zoo])

    @cached_property
    def asked(self) -> list[str]:
        """Names of the models from the command line."""
        return [composed(words).model.name for words in self.models.values() if words]

    def check(self, figure: Published) -> None:
        """Raise UserError for models that the figure does not accept, or that it needs and lacks."""
        asked = atlas.asks(figure)
        for role in atlas.ASKED:
            if self.models[role] and role not in asked:
                raise UserError(
                    f"{self.models[role][0]} with figure={figure.name}: its models come from the zoo; "
                    f"choose a different zoo, or use figure=claims model=NAME model@other=NAME for your own"
                )
        missing = [role for role in sorted(asked) if not self.models[role]]
        if missing:
            raise UserError(f"figure={figure.name} needs its models: model=NAME model@other=NAME")

    def experiment(self, begin: list[str]) -> Experiment:
        """Compose these overrides, then those of the command line; the last value of a key wins."""
        last = {word.partition("=")[0]: word for word in [*begin, *self.overrides]}
        return composed(list(last.values()))

    def played_by(self, role: str, zoo: Zoo) -> list[str]:
        """Overrides that select the model for a role."""
        if role in atlas.ASKED:
            return list(self.models[role])
        return [f"model={zoo.role(role).model}"]

    @cached_property
    def settings(self) -> RunOptions:
        """Where and how to write results; the same for all figures and panels."""
        return composed([word for word in self.overrides if word.startswith("run.")]).run


@dataclass(frozen=True)
class Shown:
    """The result folders of a panel, and the reasons for missing ones."""

    folders: dict[str, Path]
    """By role."""
    missing: list[str]


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
        random = [f"{model}.{option}" for model in both for option in RANDOM]
        asked = overrides(panel, role, zoo, request)
        sources = {model.source for model in request.experiment(asked).models.values()}
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


def overrides(panel: Panel, role: str, zoo: Zoo, request: Request) -> list[str]:
    """The overrides of a panel's experiment with this role."""
    models = request.played_by(role, zoo)
    if panel.other:
        models += [as_other(word) for word in request.played_by(panel.other, zoo)]
    options = [] if role in atlas.ASKED else zoo.options
    own = [*panel.options, *panel.role_options.get(role, [])]
    return [*options, f"analysis={panel.analysis}", *models, *own]


def as_other(word: str) -> str:
    """Turn an override of the model into one of the second model."""
    key, _, value = word.partition("=")
    return (
        f"model@other={value}" if key == "model" else f"other.{key.removeprefix('model.')}={value}"
    )


def patiently(run: Callable[[], Written]) -> Written:
    """Call `run`; if another process is measuring the same result, wait and reuse it."""
    while True:
        try:
            return run()
        except Busy as other:
            log.info("waiting: %s", other)
            time.sleep(POLL)


def describe(
    figure: Published,
    zoo: Zoo,
    request: Request,
    shown: dict[str, Shown],
    folder: Path,
    reader: Reader,
) -> dict[str, Any]:
    """The contents of figure.json."""
    panels = [
        {
            "name": name,
            **asdict(panel),
            "results": [relative(path, folder) for path in shown[name].folders.values()],
            "missing": shown[name].missing,
        }
        for name, panel in figure.panels.items()
    ]
    return {
        "name": figure.name,
        "zoo": None if atlas.asks(figure) else zoo.name,
        "source": figure.source,
        "title": figure.title,
        "shows": figure.shows,
        "caption": caption(figure, zoo, shown, reader),
        "width": request.width,
        "captioned": request.captioned,
        "abreast": figure.abreast,
        "rows": figure.rows,
        "panels": panels,
    }


def tell_what_is_replaced(folder: Path, about: dict[str, Any]) -> None:
    """Log a warning if the figure that lies in this folder shows other results than the new one."""
    try:
        panels = Results(folder).load_json("figure.json", SHOWN).get("panels", [])
    except UserError:  # a damaged record is written anew
        return
    former = {panel["name"]: panel["results"] for panel in panels}
    new = {panel["name"]: panel["results"] for panel in about["panels"]}
    kept = {result for results in new.values() for result in results}
    before = dict.fromkeys(result for name in new if new[name] for result in former.get(name, []))
    if gone := [result for result in before if result not in kept]:
        log.warning(
            "warning: the figure in %s showed other results (%s), and is replaced; to keep both, use another "
            "run.outputs, or name a model of yours with model.name=NAME",
            folder,
            ", ".join(gone),
        )


def caption(figure: Published, zoo: Zoo, shown: dict[str, Shown], reader: Reader) -> str:
    """Source, models with their roles, data, the meaning of bands and marks, and the missing roles."""
    cast: dict[str, dict[str, dict[str, None]]] = {}
    explained: dict[str, None] = {}
    for name, panel in figure.panels.items():
        for role, path in shown[name].folders.items():
            result = reader(path)
            models = cast.setdefault(result.labels.data, {})
            models.setdefault(result.labels.model, {})[role] = None
            if result.labels.other and panel.other:
                models.setdefault(result.labels.other, {})[panel.other] = None
            words = returned.of(result.analysis, "caption", panel.figure, result.tables)
            explained[words] = None
    parts = [
        f"{data}: " + ", ".join(f"{model}{played(roles, zoo)}" for model, roles in models.items())
        for data, models in cast.items()
    ]
    sentences = [f"{figure.source}, with {cast_of(figure, zoo)}", "; ".join(parts), *explained]
    sentences += [f"Not shown: {absent}" for absent in [left_out(figure, zoo, shown)] if absent]
    return ". ".join(sentence.rstrip(".") for sentence in sentences if sentence) + "."


def played(roles: Iterable[str], zoo: Zoo) -> str:
    """The roles that a model plays, and how it differs from the paper's."""
    names = [role for role in roles if role not in atlas.ASKED]
    notes = list(dict.fromkeys(zoo.role(role).note for role in names if zoo.role(role).note))
    return (f" for {' and '.join(names)}" if names else "") + (
        f" ({'; '.join(notes)})" if notes else ""
    )


def left_out(figure: Published, zoo: Zoo, shown: dict[str, Shown]) -> str:
    """The roles and panels that are not shown, by reason; empty if all are."""
    reasons: dict[str, dict[str, None]] = {}
    for name, panel in figure.panels.items():
        cast = [role for role in (*panel.roles, panel.other) if role and role not in atlas.ASKED]
        absent = {role: zoo.role(role).missing for role in cast if zoo.role(role).model is None}
        for role, why in absent.items():
            reasons.setdefault(str(why), {})[role] = None
        if not absent and not shown[name].folders:
            reasons.setdefault("; ".join(shown[name].missing), {})[panel.title] = None
    return "; ".join(f"{', '.join(what)} ({why})" for why, what in reasons.items())


def cast_of(figure: Published, zoo: Zoo) -> str:
    """Where the models come from, for the caption."""
    roles = {role for panel in figure.panels.values() for role in panel.roles}
    return "the chosen models" if roles <= set(atlas.ASKED) else f"zoo={zoo.name}"


def listing(
    figure: Published, shown: dict[str, Shown], folder: Path, reader: Reader
) -> pd.DataFrame:
    """The rows of panels.csv."""
    rows = []
    for name, panel in figure.panels.items():
        for path in shown[name].folders.values():
            labels = reader(path).labels
            result = relative(path, folder)
            rows.append(
                (
                    *(name, panel.title, panel.analysis, labels.model, labels.other or ""),
                    *(labels.dataset, labels.images, result),
                )
            )
    columns = ["panel", "title", "analysis", "model", "other", "dataset", "images", "result"]
    return pd.DataFrame(rows, columns=columns)


def relative(path: Path, folder: Path) -> str:
    """Path of a result folder relative to the figure's folder, so that both can be moved together."""
    return Path(os.path.relpath(path.resolve(), folder.resolve())).as_posix()
