"""Laws that every analysis obeys, whatever it measures; `check_analysis` tests yours against them."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import reduce
from operator import add
from pathlib import Path
from typing import Any

import pandas as pd

from vitsee.analysis import Analysis
from vitsee.config import composed
from vitsee.errors import Incomplete, UserError
from vitsee.options import Experiment
from vitsee.results.drawing import draw
from vitsee.results.folder import Results
from vitsee.runner import minibatches, observer, of_weights, run
from vitsee.study import Study
from vitsee.sums import Sums

TINY = (
    *("model=timm", "model.timm=test_vit", "model.pretrained=false", "dataset=scenes"),
    *("images=20", "batch_size=4"),
)
"""The default experiment of `check_analysis`: a ViT with a few thousand random weights."""


@dataclass(frozen=True)
class Measured:
    """A measured analysis, the input of every law.

    asked: the experiment that was run. analysis: in its last pass. parts: the contribution of each minibatch of
    that pass; one part if only weights are read. folder: the result of an uninterrupted run, which no law changes.
    """

    asked: Experiment
    analysis: Analysis
    parts: list[Sums]
    folder: Path

    @property
    def total(self) -> Sums:
        return reduce(add, self.parts)

    def experiment(self, outputs: Path, **how: Any) -> Experiment:
        """The same experiment with a different output folder. how: options of `run`."""
        return replace(self.asked, run=replace(self.asked.run, outputs=str(outputs), **how))


def check_analysis(analysis: type[Analysis], *overrides: str) -> None:
    """Test a registered analysis against all laws. Raises AssertionError that names the first broken law, and the
    errors of `vitsee run` if the analysis cannot be measured at all.

    overrides: as in `vitsee run`, for anything the analysis requires, e.g. a second model or different layers; by
    default a tiny random ViT sees 20 embedded images. Takes a few seconds.
    """
    with tempfile.TemporaryDirectory() as folder:
        measured = measure([f"analysis={analysis.name}", *TINY, *overrides], Path(folder) / "whole")
        for law in LAWS:
            try:
                law(measured, Path(folder) / law.__name__)
            except AssertionError as broken:
                broken.add_note(f"analysis={analysis.name} breaks the law: {law.__doc__}")
                raise


def measure(overrides: list[str], outputs: Path) -> Measured:
    """Measure an experiment without interruption, then again minibatch by minibatch."""
    quiet = ("run.device=cpu", "run.workers=0", "run.progress=false")
    experiment = composed([*overrides, *quiet, f"run.outputs={outputs}"])
    return Measured(experiment, *last_pass(experiment), run(experiment).folder)


def last_pass(experiment: Experiment) -> tuple[Analysis, list[Sums]]:
    """The analysis in its last pass, and the contribution of each minibatch of that pass."""
    study = Study(experiment)
    if not study.passes:
        return study.analysis, [of_weights(study)]
    earlier: list[Sums] = []
    for stage, each in enumerate(study.passes):
        todo = list(range(len(each.plan)))
        with observer(study, earlier) as observe:
            parts = [
                Sums.of(
                    batch.index, len(todo), observe(batch), study.axes, kept=study.analysis.keeps
                )
                for batch in minibatches(study, stage, todo)
            ]
        earlier.append(reduce(add, parts))
    return study.analysis_after(earlier[:-1]), parts


Law = Callable[[Measured, Path], None]


def sums_in_any_order(measured: Measured, folder: Path) -> None:
    """Minibatches added up in any order and grouping give the same tables."""
    parts, tables = measured.parts, measured.analysis.tables
    regrouped = reduce(add, parts[1::2], Sums.zero(len(parts))) + reduce(add, parts[::2][::-1])
    assert_same(tables(measured.total.complete()), tables(regrouped.complete()))


def saved_sums(measured: Measured, folder: Path) -> None:
    """Sums are unchanged after saving and loading."""
    results, part = Results(folder), measured.parts[-1]
    results.prepare()
    results.save_state(results.state(0, 1), part)
    back = Sums.load(results.state(0, 1))
    assert back.axes == part.axes
    assert back.seen.equal(part.seen)
    assert all(back.terms[name].equal(part.terms[name]) for name in part.terms)


def shards(measured: Measured, folder: Path) -> None:
    """Shards measured separately, in any order, give the same tables; each but the last reports what is missing."""
    if measured.analysis.weights_only:
        return
    waited = 0
    for shard in [2, 0, 1] * len(measured.analysis.splits):  # a pass needs all of the one before
        experiment = measured.experiment(folder, shards=3, shard=shard)
        try:
            written = run(experiment)
            break
        except Incomplete:
            waited += 1
    else:
        raise AssertionError("three shards did not complete the result")
    assert waited >= 2
    assert_same(Results(measured.folder).tables(), Results(written.folder).tables())


def gaps(measured: Measured, folder: Path) -> None:
    """A plain run fills the gaps of an earlier one, and gives the same tables as an uninterrupted run."""
    if measured.analysis.weights_only:
        return
    try:
        run(measured.experiment(folder, shards=3, shard=1))
        raise AssertionError("one of three shards counts as the complete result")
    except Incomplete:
        pass
    written = run(measured.experiment(folder))
    assert_same(Results(measured.folder).tables(), Results(written.folder).tables())


def nothing_twice(measured: Measured, folder: Path) -> None:
    """Repeating the command measures nothing and writes the same files."""
    outputs = measured.folder.parents[2]
    copy = shutil.copytree(outputs, folder) / measured.folder.relative_to(outputs)
    before = {path.name: path.read_bytes() for path in copy.glob("*.csv")}
    launches = len(Results(copy).launches())
    assert run(measured.experiment(folder)).folder == copy
    assert len(Results(copy).launches()) == launches
    assert {path.name: path.read_bytes() for path in copy.glob("*.csv")} == before


def drawn_again(measured: Measured, folder: Path) -> None:
    """Redrawing from the CSVs alone gives the same PNGs, byte for byte."""
    copy = shutil.copytree(measured.folder, folder)
    pictures = {path: path.read_bytes() for path in copy.glob("*.png")}
    assert pictures, "no figure was drawn"
    for path in pictures:
        path.unlink()
    draw(copy)
    assert {path: path.read_bytes() for path in copy.glob("*.png")} == pictures


def drawn_without_torch(measured: Measured, folder: Path) -> None:
    """Drawing imports no torch."""
    copy = shutil.copytree(measured.folder, folder)
    module = type(measured.analysis).__module__
    own = [] if module.startswith("vitsee.") or module == "__main__" else [module]
    code = (
        f"import sys; sys.path[:0] = {sys.path!r}\n"
        f"from vitsee.results.drawing import draw; {''.join(f'import {name}; ' for name in own)}"
        f"from pathlib import Path; draw(Path(sys.argv[1])); assert 'torch' not in sys.modules"
    )
    if module == "__main__":  # other processes cannot import what a script or notebook defines
        return
    done = subprocess.run(
        [sys.executable, "-c", code, str(copy)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def every_digit(measured: Measured, folder: Path) -> None:
    """Tables read back from their CSVs are equal to the last digit, and have the declared columns."""
    exact = measured.analysis.tables(measured.total)
    back = Results(measured.folder).tables(measured.analysis.columns)
    assert back.keys() == exact.keys()
    for name, table in exact.items():
        pd.testing.assert_frame_equal(back[name], table, check_exact=True, check_dtype=False)


def standard_errors(measured: Measured, folder: Path) -> None:
    """A table with standard errors gives the number of minibatches, and `error` is the largest of them."""
    analysis, total = measured.analysis, measured.total
    tables = analysis.tables(total)
    for name, table in tables.items():
        if analysis.equal_minibatches and "se" in table:
            assert set(table["minibatches"]) == {len(measured.parts)}, name
    if analysis.standard_errors:
        assert analysis.error(total) == tables[analysis.name]["se"].max()


def any_batch_size(measured: Measured, folder: Path) -> None:
    """Minibatches of one image give the same tables, unless full minibatches are required."""
    analysis = measured.analysis
    if analysis.weights_only or analysis.equal_minibatches:
        return
    one, parts = last_pass(replace(measured.asked, batch_size=1))
    assert_same(
        analysis.tables(measured.total), one.tables(reduce(add, parts).complete()), 1e-4, 1e-4
    )


def number_of_models(measured: Measured, folder: Path) -> None:
    """Too many or too few models are rejected before anything is measured."""
    asked = measured.asked
    for count, other in ((1, None), (2, asked.other or asked.model)):
        try:
            accepted = len(replace(asked, other=other).models) == count
        except UserError:
            accepted = False
        assert accepted == (count in measured.analysis.models)


LAWS: tuple[Law, ...] = (
    *(sums_in_any_order, saved_sums, shards, gaps, nothing_twice, drawn_again, drawn_without_torch),
    *(every_digit, standard_errors, any_batch_size, number_of_models),
)


def assert_same(
    one: dict[str, pd.DataFrame],
    two: dict[str, pd.DataFrame],
    rtol: float = 1e-9,
    atol: float = 1e-7,
) -> None:
    """Raise AssertionError unless these tables are equal up to rounding."""
    assert one.keys() == two.keys()
    assert one, "there are no tables"
    for name in one:
        pd.testing.assert_frame_equal(one[name], two[name], rtol=rtol, atol=atol)
