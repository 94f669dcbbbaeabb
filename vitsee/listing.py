"""`vitsee list`: the available choices, as text."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any

from vitsee import choices
from vitsee.analysis import REGISTERED, Analysis
from vitsee.choices import names
from vitsee.config import composed
from vitsee.errors import UserError, unknown
from vitsee.models.catalogue import LIBRARIES
from vitsee.models.sources.timm import shipped
from vitsee.options import ModelOptions
from vitsee.papers import atlas
from vitsee.setting import Layer


def every_choice() -> str:
    """One line per group of choices."""
    return "\n".join(
        f"  {group:10} {', '.join(there)}"
        for group, there in {
            "analysis": sorted(REGISTERED),
            "model": names("model"),
            "dataset": names("dataset"),
            "protocol": names("protocol"),
        }.items()
    )


def table(rows: Iterable[Iterable[object]]) -> str:
    """Rows of cells as aligned columns."""
    cells = [[str(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    padded = ([c.ljust(w) for c, w in zip(row, widths, strict=True)] for row in cells)
    return "\n".join("  ".join(row).rstrip() for row in padded)


def analyses(overrides: list[str]) -> str:
    docs = ((name, _question(kind)) for name, kind in REGISTERED.items())
    return table([("analysis", "what it answers"), *sorted(docs)])


def _question(kind: type[Analysis]) -> str:
    """The first line of the docstring; none if `dataclass` wrote it, which writes the signature."""
    written = (kind.__doc__ or "").strip()
    return "" if written.startswith(f"{kind.__name__}(") else written.partition("\n")[0]


def models(overrides: list[str]) -> str:
    """The models by name; with a library (`model=torchvision`), its models that match a pattern."""
    if overrides:
        return models_of(overrides)
    rows = [("model", "timm name", "weights", "default data set")]
    for name in names("model"):
        options = choices.options("model", name)
        source = options.get("source", "timm")
        if source != "timm":
            which = options.get("id") or options.get("import_") or ANY.get(source, "")
            data = options.get("dataset", ModelOptions.dataset)
            rows.append((name, which, "its own", data))
            continue
        shown = options.get("timm", "any: model.timm=NAME")
        weights = _weights(name, options)
        rows.append((name, shown, weights, options.get("dataset", ModelOptions.dataset)))
    return table(rows)


def _weights(name: str, options: Mapping[str, Any]) -> str:
    """Where the weights of a timm model come from."""
    if checkpoint := options.get("checkpoint"):
        return str(checkpoint)
    if not options.get("pretrained", True):
        return "random"
    if not options.get("embedded"):
        return "downloaded from the hub"
    return "ship with vitsee" if shipped(name).is_file() else "none: model.checkpoint=PATH"


ANY = {
    "torchvision": "any of torchvision: model.id=NAME",
    "transformers": "any image model: model.id=OWNER/NAME",
    "open_clip": "any image tower: model.id=NAME",
    "function": "yours: model.import=package.module:function",
    "python": "yours, from Python: vitsee.Model",
}
"""Text in place of the timm name, for models from other sources."""


def models_of(words: list[str]) -> str:
    """The models of a library with their available weights. Raises UserError for other requests."""
    asked = dict(word.partition("=")[::2] for word in words)
    if "model" not in asked:
        raise UserError(
            f"vitsee list models takes a library and a pattern, but {words[0]!r} was given; e.g. model=timm "
            f"model.timm='vit_*', or model=torchvision model.id='resnet*'"
        )
    library = asked.pop("model")
    if library not in LIBRARIES:
        raise unknown(f"vitsee list models model={library}", library, LIBRARIES, "model can be")
    pattern = asked.pop("model.timm" if library == "timm" else "model.id", "*")
    if asked:
        raise UserError(
            f"vitsee list models: {next(iter(asked))} is not a pattern; e.g. model=timm model.timm='vit_*', or "
            f"model=torchvision model.id='resnet*'"
        )
    there = LIBRARIES[library]()
    found = [row for row in there if fnmatchcase(row[0], pattern)]
    if not found:
        raise unknown(
            f"{library} has no model {pattern!r}", pattern, [name for name, _ in there], "it has"
        )
    return table([(library, "weights"), *found])


def commented(group: str) -> str:
    """The choices in a group, with the comment at the top of each file."""
    rows = [(group, "what it is")]
    for name in names(group):
        lines = choices.path(group, name).read_text(encoding="utf-8").splitlines()
        comments = [line[2:] for line in lines if line.startswith("# ") and "@package" not in line]
        rows.append((name, comments[0] if comments else ""))
    return table(rows)


def figures(overrides: list[str]) -> str:
    """Each published figure: what it shows, how many of its models each zoo has, its cost, its claims."""
    zoos = [atlas.zoo(name) for name in atlas.zoos()]
    head = ("figure", "of", "shows", *(f"zoo={zoo.name}" for zoo in zoos))
    rows = [(*head, "cost with zoo=paper (A100)", "claims")]
    for name in atlas.figures():
        figure = atlas.published(name)
        wanted = atlas.wants(figure)
        offered = (
            sum(role in zoo.roles and zoo.role(role).model is not None for role in wanted)
            for zoo in zoos
        )
        shares = (f"{count} of {len(wanted)} models" if wanted else "yours" for count in offered)
        cost, claims = figure.cost, ", ".join(figure.claims) or "none"
        spent = f"{cost.images:,} images, {cost.gpu_minutes:g} min" if cost else ""
        rows.append((name, figure.source, figure.title, *shares, spent, claims))
    return table(rows)


def claims(overrides: list[str]) -> str:
    """Each claim by name, those of the user too."""
    from vitsee.papers.claims import CLAIMS

    rows = ((name, claim.statement) for name, claim in sorted(CLAIMS.items()))
    return table([("claim", "what it says"), *rows])


def layers(overrides: list[str]) -> str:
    """Every layer of the model that runs, with the presets and patterns that select it."""
    from vitsee.models import loader, presets
    from vitsee.models.taps import SURVEY

    experiment = composed(overrides)
    found = loader.frame(experiment.model)
    net, size = found.net, found.data["input_size"]
    reads = experiment.analysis.reads_of("model")
    every = SURVEY[reads](net, size)
    chosen = {name: set(presets.preset(net, every, name)) for name in presets.PRESETS}
    asked = experiment.analysis.layers
    if any(pattern not in presets.PRESETS for pattern in asked):
        chosen["asked"] = {layer.name for layer in presets.choose(net, every, asked)}
    counts = ", ".join(f"{name} {len(found)}" for name, found in chosen.items())
    rows = [("layer", "output", *chosen)]
    for layer in every:
        marks = ("x" if layer.name in found else "" for found in chosen.values())
        rows.append((layer.name, _output(layer), *marks))
    named = experiment.model.timm or experiment.model.name
    return f"{named}: {len(every)} layers; selected by preset: {counts}\n\n{table(rows)}"


def _output(layer: Layer) -> str:
    """A layer's output for one image: its shape, and its axes where they are known."""
    shape = " x ".join(map(str, layer.shape))
    if not layer.images:
        return f"{shape}, not by image"
    if layer.windows > 1:
        return shape.replace(" x ", " windows x ", 1)
    return shape


KINDS: dict[str, Callable[[list[str]], str]] = {
    "analyses": analyses,
    "models": models,
    "datasets": lambda overrides: commented("dataset"),
    "protocols": lambda overrides: commented("protocol"),
    "recipes": lambda overrides: commented("recipe"),
    "figures": figures,
    "claims": claims,
    "zoos": lambda overrides: commented("zoo"),
    "layers": layers,
}
