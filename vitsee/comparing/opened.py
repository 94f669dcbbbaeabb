"""Finds and opens the results to compare, and refuses those that cannot be compared."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from vitsee.comparing.measures import KeptModel
from vitsee.comparing.options import Options
from vitsee.errors import UserError, unknown
from vitsee.io import kept, plain
from vitsee.io.kept import Kept

log = logging.getLogger(__name__)
MEASURE = "vitsee run -m analysis=grams model=NAME,NAME"
TOGETHER = (
    "measure all models with the same dataset, images, batch_size and seed (for generated images and models with "
    "different input sizes: dataset.resolution=N too)"
)


def models(paths: Sequence[Path], options: Options) -> list[KeptModel]:
    """Return the models of all results at or below these paths. Raises UserError.

    Their order does not depend on which others are given: in a null, the images of the later one are permuted.
    """
    results = list(dict.fromkeys(folder.resolve() for path in paths for folder in _below(path)))
    opened = [kept.read(folder / kept.NAME) for folder in results]
    _refuse_twice(opened)
    if len(opened) < 2:
        raise UserError(
            f"there is only one result of analysis=grams in {', '.join(map(str, paths))}; give two or more "
            f"(measure them with: {MEASURE})"
        )
    for other in opened[1:]:
        _refuse_other_images(opened[0], other)
    names = _told_apart(opened)
    models = [
        KeptModel(names[one.digest], one, _layers(one, options.layers), options.neighbours)
        for one in opened
    ]
    _refuse_unfit(models, options)
    return sorted(models, key=lambda model: (model.kept.index.model, model.kept.digest))


def first_of(paths: Sequence[Path], models: Sequence[KeptModel]) -> KeptModel:
    """Return the model of the first given result."""
    folder = _below(paths[0])[0].resolve()
    return next(model for model in models if model.kept.path.parent == folder)


def _below(path: Path) -> list[Path]:
    """Return the result folders of analysis=grams at or below a path. Raises UserError if there are none."""
    if path.name == kept.NAME:
        return [path.parent]
    if (path / kept.NAME).exists():
        return [path]
    if not path.is_dir():
        raise UserError(
            f"there is no folder {path}; give results of analysis=grams, or a folder that contains some "
            f"(measure them with: {MEASURE})"
        )
    below = sorted(file.parent for file in path.rglob(kept.NAME))
    if below:
        return below
    there = path / "experiment.yaml"
    if there.is_file():
        analysis = plain.analysis_of(plain.read(there), there)
        if analysis != "grams":
            raise UserError(
                f"{path} is a result of analysis={analysis}, which stores no Gram matrices; measure the model "
                f"with: {MEASURE}"
            )
        raise UserError(f"{path} is not finished; run `vitsee run --from {there}`")
    raise UserError(f"there is no result of analysis=grams in {path}; measure them with: {MEASURE}")


def _refuse_twice(opened: Sequence[Kept]) -> None:
    seen: dict[str, Path] = {}
    for one in opened:
        if one.digest in seen:
            raise UserError(
                f"{seen[one.digest]} and {one.path.parent} are the same result; name one of them"
            )
        seen[one.digest] = one.path.parent


def _refuse_other_images(one: Kept, other: Kept) -> None:
    """Raise UserError that names the first difference, unless both have the same images in the same minibatches."""
    a, b = one.index, other.index
    difference = None
    if a.data != b.data:
        difference = f"the data set ({a.data} and {b.data})"
    elif len(a.minibatches) != len(b.minibatches):
        difference = f"the number of minibatches ({len(a.minibatches)} and {len(b.minibatches)})"
    for number, (x, y) in enumerate(zip(a.minibatches, b.minibatches, strict=False)):
        if difference:
            break
        if len(x) != len(y):
            difference = f"the images in minibatch {number} ({len(x)} and {len(y)} images)"
        elif x != y:
            place = next(i for i in range(len(x)) if x[i] != y[i])
            difference = f"image {place} of minibatch {number} ({x[place]} and {y[place]})"
    if difference:
        raise UserError(
            f"{one.path.parent} and {other.path.parent} differ in {difference}, so they cannot be compared; "
            f"{TOGETHER}"
        )


def _told_apart(opened: Sequence[Kept]) -> dict[str, str]:
    """Return names by digest. Models with the same name get the identity of their results added."""
    count = Counter(one.index.model for one in opened)
    return {
        one.digest: one.index.model
        if count[one.index.model] == 1
        else f"{one.index.model}-{one.path.parent.name.rpartition('-')[2]}"
        for one in opened
    }


def _layers(one: Kept, pattern: str) -> tuple[int, ...]:
    """Return the positions of the layers to compare. Raises UserError if there are none."""
    names = one.index.layers
    if pattern == "all":
        return tuple(range(len(names)))
    if pattern == "last":
        return (len(names) - 1,)
    depth = pattern.count(".")
    positions = [
        i for i, name in enumerate(names) if name.count(".") == depth and fnmatchcase(name, pattern)
    ]
    if not positions:
        raise unknown(
            f"layers={pattern}: nothing that {one.path.parent} keeps matches",
            *(pattern, ["all", "last", *names], "use"),
        )
    return tuple(positions)


def _refuse_unfit(models: Sequence[KeptModel], options: Options) -> None:
    """Raise UserError if these results lack what the measure needs."""
    index = models[0].kept.index
    if options.measure == "procrustes":
        for model in models:
            if not model.kept.index.pooled:
                raise UserError(
                    f"measure=procrustes needs pooled features, which {model.kept.path.parent} lacks; measure "
                    f"with analysis=grams analysis.features=pooled, or use another measure"
                )
    smallest = min(map(len, index.minibatches))
    if options.measure == "mutual_knn" and options.neighbours >= smallest:
        raise UserError(
            f"neighbours={options.neighbours}, but minibatches have {smallest} images; use "
            f"neighbours={smallest - 1} or fewer"
        )
    if options.null and min(index.fresh) < 1:
        raise UserError(
            "null=… needs each image in only one minibatch, but they were drawn several times (repeats); measure "
            "with repeats=1, or use null=0"
        )
    kinds = {(model.kept.index.tokens, model.kept.index.precision) for model in models}
    if len(kinds) > 1:
        words = ", ".join(f"tokens={tokens} precision={how}" for tokens, how in sorted(kinds))
        log.warning("warning: the results were measured in different ways: %s", words)
