"""The main path of `vitsee compare`: results -> missing pairs -> tables (CSV) -> figures (PNG)."""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import platform
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import scipy
from tqdm import tqdm

from vitsee.comparing import opened, record, tables
from vitsee.comparing.drawing import draw
from vitsee.comparing.measures import MEASURES, KeptModel
from vitsee.comparing.options import Options
from vitsee.comparing.record import Key
from vitsee.comparing.similarity import blocks
from vitsee.comparing.tables import Pair
from vitsee.errors import UserError, unwritable
from vitsee.io import writing
from vitsee.names import folder_name
from vitsee.parallel.interrupt import Interruptible
from vitsee.results.folder import Results, formats_of
from vitsee.results.reading import Written

log = logging.getLogger(__name__)
LONGEST = 100
"""Maximum length of all model names in a folder's name; beyond it, the folder's name gives their number."""


def compare(paths: Sequence[Path], options: Options) -> Written:
    """Compare the missing pairs, then write the tables and draw the figures.

    Raises UserError for the user's mistakes, and Interrupted on a signal. Finished pairs are then saved, and the
    same call resumes.
    """
    if not paths:
        raise UserError(
            "give the results to compare, e.g. vitsee compare outputs/grams (vitsee compare --help)"
        )
    models = opened.models(paths, options)
    first = opened.first_of(paths, models) if options.first else None
    wanted = [
        (a, b) for a, b in itertools.combinations(models, 2) if first is None or first in (a, b)
    ]
    keys = {_key(a, b): (a, b) for a, b in wanted}
    outputs = Path(options.outputs)
    results = Results(outputs / _folder(models, options, first))
    known = record.earlier(outputs, options.question, set(keys))
    todo = [pair for key, pair in keys.items() if key not in known]
    groups = list(_groups(models, options))
    _prepare(results.path)
    log.info(
        "%s", f"{len(keys)} pairs of {len(models)} models, {len(keys) - len(todo)} of them known"
    )
    started = time.perf_counter()
    if todo:
        try:
            _compute(todo, groups, known, options)
        finally:
            if known:
                _save(results, models, options, first, keys, known, time.perf_counter() - started)
    files = _save(results, models, options, first, keys, known, time.perf_counter() - started)
    files += draw(results.path, formats=formats_of(pdf=options.pdf, svg=options.svg))
    return Written(results.path, files)


def _prepare(folder: Path) -> None:
    """Create the folder. Raises UserError now, rather than after hours, if it cannot be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unwritable(folder, error) from error
    writing.clear(folder)


def _compute(
    todo: Sequence[tuple[KeptModel, KeptModel]],
    groups: Sequence[list[KeptModel]],
    known: dict[Key, Pair],
    options: Options,
) -> None:
    """Compute the pairs in `todo` block by block, and add them to the known ones."""
    measure, left = MEASURES[options.measure], {_key(a, b) for a, b in todo}
    work = [
        block
        for ones, others in itertools.combinations_with_replacement(groups, 2)
        for block in _rectangles(ones, others, left)
    ]
    title = f"{options.measure} of {len(todo)} pairs of models"
    steps = sum(_steps(rows, columns, options) for rows, columns in work)
    with (
        Interruptible() as signals,
        tqdm(desc=title, total=steps, disable=not options.progress) as bar,
    ):

        def step() -> None:
            bar.update()
            signals.check()

        for rows, columns in work:
            found = blocks(measure, rows, columns, options.null, options.seed, step)
            for (i, j), cells in found.items():
                a, b = rows[i], columns[j]
                if _key(a, b) in left:
                    known[_key(a, b)] = Pair(a.name, b.name, a.layer_names, b.layer_names, cells)


def _rectangles(
    ones: Sequence[KeptModel], others: Sequence[KeptModel], left: set[Key]
) -> list[tuple[list[KeptModel], list[KeptModel]]]:
    """Return rows and columns of models whose pairs cover the remaining ones.

    One block if most of its pairs remain; otherwise one for all rows that lack the same columns.
    """
    lacking = {a.name: [b for b in others if _key(a, b) in left] for a in ones}
    rows = [a for a in ones if lacking[a.name]]
    columns = [b for b in others if any(_key(a, b) in left for a in rows)]
    if not rows or 2 * sum(map(len, lacking.values())) > len(rows) * len(columns):
        return [(rows, columns)] if rows else []
    alike = itertools.groupby(
        sorted(rows, key=lambda a: [b.name for b in lacking[a.name]]),
        key=lambda a: [b.name for b in lacking[a.name]],
    )
    blocks = [list(some) for _, some in alike]
    return [(some, lacking[some[0].name]) for some in blocks]


def _steps(ones: Sequence[KeptModel], others: Sequence[KeptModel], options: Options) -> int:
    """Number of times `similarity.blocks` calls `step`."""
    pairs = sum(len(a.layers) * len(b.layers) for a in ones for b in others)
    times = len(ones[0].kept.index.minibatches) if MEASURES[options.measure].vectors else pairs
    return times * (1 + options.null)


def _groups(models: Sequence[KeptModel], options: Options) -> Iterator[list[KeptModel]]:
    """Divide the models into groups, any two of which fit in memory. Raises UserError if single models do not."""
    n = max(map(len, models[0].kept.index.minibatches))
    entries = n * n if MEASURES[options.measure].directed else n * (n + 1) // 2
    most = _layers_at_once(entries, options)
    largest = max(len(model.layers) for model in models)
    if largest > most:
        need = _bytes(largest, entries, options.null) / 2**30
        raise UserError(
            f"comparing {largest} layers with {largest} others needs {need:.1f} GB, more than "
            f"run.memory_gb={options.memory_gb:g}; compare fewer layers (layers=last, layers=PATTERN), use a "
            f"smaller null, or allow more: run.memory_gb={float(f'{need + 0.05:.1f}'):g}"
        )
    group: list[KeptModel] = []
    for model in models:
        if group and sum(len(one.layers) for one in [*group, model]) > most:
            yield group
            group = []
        group.append(model)
    yield group


def _bytes(layers: int, entries: int, null: int) -> float:
    """Memory needed to compare this many layers with as many others.

    Vectors of both sides, with working copies: 32 bytes per entry. Sums: 72 bytes per pair. The null: 4 bytes per
    pair and permutation, in three copies, if all these layers belong to two models.
    """
    return layers * entries * 32 + layers**2 * (72 + 16 * null)


def _layers_at_once(entries: int, options: Options) -> int:
    """The largest number of layers per group for which two groups fit in run.memory_gb."""
    budget, layers = options.memory_gb * 2**30, 0
    while _bytes(layers + 1, entries, options.null) <= budget:
        layers += 1
    return layers


def _key(a: KeptModel, b: KeptModel) -> Key:
    return a.kept.digest, b.kept.digest


def _folder(models: Sequence[KeptModel], options: Options, first: KeptModel | None) -> str:
    """The folder of the comparison, relative to the outputs."""
    of = {
        "version": record.VERSION,
        "question": options.question,
        "calibrated": options.calibrated,
        "models": sorted((model.name, model.kept.digest) for model in models),
        "first": first.kept.digest if first else None,
    }
    identity = hashlib.sha256(json.dumps(of, sort_keys=True).encode()).hexdigest()[:8]
    names = "-vs-".join(folder_name(model.name) for model in models)
    if len(names) > LONGEST:
        names = f"{len(models)}-models"
    return f"compare/{names}/{folder_name(_dataset(models[0]))}-{identity}"


def _dataset(model: KeptModel) -> str:
    """The name of the data set, from the result's folder."""
    return model.kept.path.parent.name.rpartition("-")[0] or "images"


def _save(
    results: Results,
    models: Sequence[KeptModel],
    options: Options,
    first: KeptModel | None,
    keys: dict[Key, tuple[KeptModel, KeptModel]],
    known: dict[Key, Pair],
    seconds: float,
) -> list[Path]:
    """Write the tables of all known pairs, and the record."""
    pairs = []
    for key, (a, b) in keys.items():
        if key in known:
            cells = known[key].cells  # an earlier comparison may have used different names
            pair = Pair(a.name, b.name, a.layer_names, b.layer_names, cells)
            pairs.append(pair.turned() if b is first else pair)
    index = models[0].kept.index
    made = {
        "compare": tables.compare(pairs, options.measure, len(index.minibatches)),
        "atlas": tables.atlas(pairs, options.measure),
    }
    written = results.save_tables(made)
    about: dict[str, Any] = {
        "version": record.VERSION,
        "question": options.question,
        "calibrated": options.calibrated,
        "first": first.name if first else None,
        "dataset": _dataset(models[0]),
        "images": len({name for ids in index.minibatches for name in ids}),
        "minibatches": len(index.minibatches),
        "models": record.about(models),
        "finished": len(pairs) == len(keys),
        "sha256": record.digest(written[0]),
        "seconds": seconds,
        "written": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {
            "python": platform.python_version(),
            "numpy": np.__version__,
            "scipy": scipy.__version__,
        },
    }
    results.save_json(record.NAME, about)
    return written
