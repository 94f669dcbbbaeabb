"""The request for a figure on the command line, and the overrides of each experiment that follow from it."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

from vitsee import choices
from vitsee.config import composed
from vitsee.errors import UserError, unknown
from vitsee.names import folder_name
from vitsee.options import Experiment, RunOptions
from vitsee.papers import atlas, composing
from vitsee.papers.atlas import Panel, Published, Zoo

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
