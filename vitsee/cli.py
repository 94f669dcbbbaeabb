"""`vitsee <verb> …`. Verbs that compose a configuration pass the rest of the line to Hydra."""

from __future__ import annotations

import atexit
import gc
import logging
import os
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from vitsee import choices, config, listing, mistakes, options
from vitsee.errors import (
    Incomplete,
    UserError,
    nearest,
    printable,
    show_traceback,
    speak_plainly,
    unknown,
)
from vitsee.flags import taken
from vitsee.help import RUN_HELP, usage
from vitsee.parallel import interrupt
from vitsee.parallel.interrupt import Interrupted
from vitsee.plugins import import_asked
from vitsee.streams import steady
from vitsee.version import __version__

if TYPE_CHECKING:
    from vitsee.results.reading import Written

CONF = str(choices.CONF)
MISTAKE, INCOMPLETE, INTERRUPTED = 2, 3, 130
UNFINISHED = "what was measured is kept; repeat the command to continue"


def main() -> None:
    """Entry point of the `vitsee` command; exits with a code of the contract."""
    with steady():
        obey()


def obey() -> None:
    """Carry out the command line."""
    if "-sc" in sys.argv or any(word.startswith("--shell-completion") for word in sys.argv):
        return complete()
    verb = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if verb in ("--help", "-h", "help"):
        return print(usage({name: do.__doc__ or "" for name, do in VERBS.items()}))
    if verb in ("--version", "-V"):
        return print(f"vitsee {__version__}")
    if verb.partition("=")[0] in (*choices.FLAGS, "--import"):
        fail(f"vitsee: the verb comes first: {verb_first(sys.argv[1:])}")
    if verb not in VERBS:
        fail(
            f"vitsee: there is no verb {verb!r}; it can be: {', '.join(VERBS)}.{nearest(verb, VERBS)}"
        )
    try:
        os.getcwd()
    except OSError as error:
        fail(
            f"vitsee {verb}: the current folder no longer exists ({error.strerror}); change to another one: cd PATH"
        )
    speak_plainly()
    del sys.argv[1]  # Hydra expects nothing but its own arguments
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # bugs keep their traceback
    os.environ["MPLBACKEND"] = "agg"  # never opens a window, which would fail without a display
    # makes torch request huge pages; without them, a CPU under Linux spends a quarter of its time on page faults
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    answer_for(verb, lambda: with_what_is_theirs(verb))


def verb_first(words: list[str]) -> str:
    """The command line with its first verb in front."""
    verb = next((word for word in words if word in VERBS), "run")
    at = words.index(verb) if verb in words else len(words)
    return shlex.join(["vitsee", verb, *words[:at], *words[at + 1 :]])


def with_what_is_theirs(verb: str) -> None:
    """Carry out a verb with the user's own analyses and claims (--import) and choices (--config-dir)."""
    given, words = taken(sys.argv[1:], *choices.FLAGS, needs=choices.NEEDS)
    with choices.using(*given):
        sys.argv[1:] = import_asked(words)
        answer_for(verb, VERBS[verb])


def answer_for(verb: str, do: Callable[[], object]) -> None:
    """Call `do`. The user's mistakes become one line on standard error and an exit code."""
    try:
        do()
    except Incomplete as waiting:
        fail(f"vitsee {verb}: {waiting}", INCOMPLETE)
    except Interrupted:
        fail(
            f"vitsee {verb}: interrupted, state saved; repeat the command to continue", INTERRUPTED
        )
    except KeyboardInterrupt:
        fail(f"vitsee {verb}: interrupted", INTERRUPTED)
    except Exception as error:
        if interrupt.led_to(error) and not isinstance(error, UserError):
            fail(f"vitsee {verb}: interrupted", INTERRUPTED)
        if mistake := mistakes.mistake(error):
            show_traceback(error)
            fail(f"vitsee {verb}: {mistake}")
        if type(error).__module__.split(".")[0] != "submitit":
            raise
        words = " ".join(str(error).split("-----")[0].split())
        fail(f"vitsee {verb}: a job failed: {words}; {UNFINISHED}", INCOMPLETE)


def fail(message: str, code: int = MISTAKE) -> None:
    print(printable(message), file=sys.stderr)
    sys.exit(code)


def run() -> None:
    """measure one experiment and draw its figures (with -m: several)"""
    if wants_help():
        return print(RUN_HELP.replace("{choices}", listing.every_choice()))
    if any(word.startswith("figure=") for word in sys.argv):
        from vitsee.papers import publish
        from vitsee.results.repeated import counted

        with counted(publish.log):  # several figures may lack the same model
            for written in publish.publish(sys.argv[1:]):
                print(*written.files, sep="\n")
        return None
    if "--from" in sys.argv:
        at = sys.argv.index("--from")
        if len(sys.argv) <= at + 1:
            raise UserError("--from needs the path of an experiment.yaml")
        path, overrides = Path(sys.argv[at + 1]), sys.argv[1:at] + sys.argv[at + 2 :]
        return repeat(path, overrides)
    refuse_unknown_flags()
    config.refuse_bare(sys.argv[1:])
    refuse_zoo(sys.argv[1:])
    flags = [word for word in sys.argv[1:] if word in ("-m", "--multirun")]
    rest = [word for word in sys.argv[1:] if word not in flags]
    if any("glob:" in word for word in rest):
        from vitsee.models import globs

        rest = globs.expanded(rest, sweep=bool(flags))
    if not flags and one_configuration(rest):
        perform(config.composed(rest))
        return None
    sys.argv[1:] = [*flags, *map(config.quoted, rest)]  # Hydra wants its flags in one place
    compose_and_run()
    if waiting:
        fail(f"vitsee run: incomplete: {'; '.join(waiting.values())}", INCOMPLETE)


def one_configuration(words: list[str]) -> bool:
    """Whether the arguments describe one configuration and ask nothing else of Hydra.

    It is then composed directly: as an application, Hydra composes everything twice.
    """
    return not any(
        word.lstrip("+~").startswith(("-", "hydra")) or "${hydra" in word for word in words
    )


OF_HYDRA = (
    *(
        "--cfg",
        "--config-name",
        "--config-path",
        "--experimental-rerun",
        "--hydra-help",
    ),
    *("--info", "--multirun", "--package", "--resolve", "--run", "--shell-completion", "--version"),
)
"""Flags that Hydra takes."""


def refuse_unknown_flags() -> None:
    """Raise UserError for a flag that `vitsee run` does not have."""
    for word in sys.argv[1:]:
        flag, _, _ = word.partition("=")
        if flag.startswith("--") and flag not in OF_HYDRA:
            written = (
                f" (options are written without dashes: {flag.strip('-').replace('-', '_')}=VALUE)"
            )
            valid = ["--from", "--import", "--config-dir", "--help", *OF_HYDRA]
            raise unknown(f"there is no flag {flag}{written}", flag, valid, "vitsee run has")


def refuse_zoo(words: list[str]) -> None:
    """Raise UserError for a zoo without a figure."""
    for key, _, value in (word.partition("=") for word in words):
        if key == "zoo":
            from vitsee.papers import atlas

            atlas.zoo(value)
            raise UserError(
                f"zoo={value} chooses the models of a figure: vitsee run figure=NAME zoo={value} "
                f"(`vitsee list figures`); for one model use model=NAME"
            )


waiting: dict[str, str] = {}
"""Why experiments of a sweep in this process are incomplete."""


@hydra.main(version_base="1.3", config_path=CONF, config_name="run")
def compose_and_run(cfg: DictConfig) -> None:
    if HydraConfig.get().mode is RunMode.MULTIRUN:
        return one_of_many(cfg)
    # Hydra prints a line of its own about exceptions that pass through it.
    answer_for("run", lambda: perform(config.build(cfg)))


def one_of_many(cfg: DictConfig) -> None:
    """Run one experiment of a sweep. Mistakes go through Hydra, so that the other experiments still run.

    Later jobs of the sweep may complete a shard, so incomplete results are reported at the end; a job on
    another machine reports them in its log.
    """
    speak_plainly()
    sources = HydraConfig.get().runtime.config_sources
    with choices.using(*(one.path for one in sources if one.provider == choices.PROVIDER)):
        experiment = config.build(cfg)
    question = repr(experiment.what())
    try:
        perform(experiment)
        waiting.pop(question, None)
    except Interrupted:
        fail("vitsee run: interrupted, state saved; repeat the command to continue", INTERRUPTED)
    except Incomplete as what:
        waiting[question] = str(what)
        logging.getLogger("vitsee").info("%s", what)


def perform(experiment: options.Experiment) -> Written:
    """Run one experiment and print the paths of its tables and figures."""
    with importing_torch():
        from vitsee.gpus import run

    written = run(experiment)
    print(*written.files, sep="\n")
    return written


def repeat(path: Path, overrides: list[str]) -> None:
    """Run the experiment of an experiment.yaml; warn if the result is not the one beside it."""
    written = perform(config.load_experiment(path, overrides))
    if all(word.startswith("run.") for word in overrides):
        from vitsee.results.changes import tell_if_not_repeated

        tell_if_not_repeated(path.parent, written.folder)


@contextmanager
def importing_torch() -> Iterator[None]:
    """Run the block, which imports torch, with garbage collection off: nothing that torch creates is garbage.

    The objects are then frozen, so the collector skips them until the process ends.
    """
    if "torch" in sys.modules or not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
        atexit.register(gc.unfreeze)


def plot() -> None:
    """redraw result folders from their CSVs; results of the same analysis also in one figure"""
    if wants_help() or len(sys.argv) == 1:
        return print(
            "usage: vitsee plot [--pdf] [--svg] PATH…   (result folders, e.g. outputs/cka/vit_mini/*)"
        )
    from vitsee.papers.plot import check, plot, plot_joined
    from vitsee.results.folder import VECTOR

    asked = [word.removeprefix("--") for word in sys.argv[1:] if word.startswith("--")]
    for word in asked:
        if word not in VECTOR:
            raise UserError(
                f"vitsee plot has no option --{word}; it has: --pdf, --svg.{nearest(word, VECTOR)}"
            )
    formats = ("png", *dict.fromkeys(asked))
    paths = [Path(path) for path in sys.argv[1:] if not path.startswith("--")]
    if not paths:
        raise UserError(f"vitsee plot --{asked[0]} needs a result folder: outputs/cka/vit_mini/*")
    for path in paths:
        check(path)  # all of them before the first is drawn
    for path in paths:
        print(*plot(path, formats=formats), sep="\n")
    for joined in plot_joined(paths, formats=formats) if len(paths) > 1 else []:
        print(joined)


def compare() -> None:
    """compare any number of models from the results of analysis=grams"""
    from vitsee.comparing import comparison, options

    if wants_help() or len(sys.argv) == 1:
        return print(options.USAGE)
    print(*comparison.compare(*options.parsed(sys.argv[1:])).files, sep="\n")


def report() -> None:
    """write an HTML page with results, figures and claims"""
    from vitsee.report import write

    if wants_help():
        return print(write.USAGE)
    print(write.report(*write.parsed(sys.argv[1:])))


def list_() -> None:
    """list analyses, models, datasets, figures, …, or the layers of a model"""
    kinds = listing.KINDS
    if wants_help() or len(sys.argv) == 1:
        return print(
            f"usage: vitsee list [--config-dir DIR] {'|'.join(kinds)}   (layers: model=NAME; models: "
            f"model=timm|torchvision|open_clip|transformers, and a pattern, e.g. model.id='resnet*')"
        )
    kind, overrides = sys.argv[1], sys.argv[2:]
    if kind not in kinds:
        raise UserError(
            f"there is no list of {kind!r}; it can be: {', '.join(kinds)}.{nearest(kind, kinds)}"
        )
    if overrides and kind not in ("layers", "models"):
        raise UserError(f"vitsee list {kind} takes no options, but {overrides[0]} was given")
    print(kinds[kind](overrides))


def train() -> None:
    """train a model with a recipe (on several GPUs: under torchrun)"""
    if wants_help():
        names = "|".join(listing.names("recipe"))
        return print(f"usage: vitsee train [--config-dir DIR] recipe={names} [key=value …]")
    from vitsee.training import recipes  # noqa: F401  (declares the schema of recipes)

    if one_configuration(sys.argv[1:]):
        return train_with(config.configuration("train", sys.argv[1:]))
    sys.argv[1:] = map(config.quoted, sys.argv[1:])
    compose_and_train()


@hydra.main(version_base="1.3", config_path=CONF, config_name="train")
def compose_and_train(cfg: DictConfig) -> None:
    answer_for("train", lambda: train_with(cfg))


def train_with(cfg: DictConfig) -> None:
    """Train the model of a configuration and print the path of its weights."""
    from vitsee.training import recipes

    with importing_torch():
        from vitsee.training import trainer

    print(trainer.train(recipes.build(cfg)))


VERBS: dict[str, Callable[[], None]] = {
    "run": run,
    "plot": plot,
    "compare": compare,
    "report": report,
    "list": list_,
    "train": train,
}


def wants_help() -> bool:
    return any(word in ("--help", "-h") for word in sys.argv[1:])


def complete() -> None:
    """Tab completion: verbs first, then the verb's arguments; Hydra completes options."""
    line = os.environ.get("COMP_LINE", "")
    words = line.split()
    action, _, shell = sys.argv[2].partition("=") if len(sys.argv) == 3 else ("", "", "")
    if action not in ("install", "uninstall", "query") or shell not in ("bash", "zsh", "fish"):
        fail(
            'vitsee: Tab completion is turned on by: eval "$(vitsee -sc install=bash)" (or zsh, fish)'
        )
    if action != "query":
        return compose_and_run()
    done = words if line.endswith(" ") else words[:-1]
    typed = "" if line.endswith(" ") else (words[-1] if words else "")
    if len(done) < 2:
        return print(*(verb for verb in VERBS if verb.startswith(typed)))
    if done[1] == "list" and len(done) == 2:
        return print(*(kind for kind in listing.KINDS if kind.startswith(typed)))
    os.environ["COMP_LINE"] = line.replace(f" {words[1]}", "", 1)
    try:
        given, _ = taken(done, *choices.FLAGS, needs=choices.NEEDS)
        with choices.using(*given):
            if done[1] == "train":
                from vitsee.training import recipes  # noqa: F401  (declares the schema of recipes)

                return compose_and_train()
            compose_and_run()
    except UserError:  # the folder is being typed, or cannot be used
        return
