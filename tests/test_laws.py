"""Laws every analysis obeys, whatever it measures. A new analysis is tested by existing."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, reduce
from operator import add
from pathlib import Path

import pandas as pd
import pytest
from conftest import composed, tiny_overrides

from vitsee.analysis import REGISTERED
from vitsee.errors import Incomplete, UserError
from vitsee.options import Experiment
from vitsee.papers.plot import plot
from vitsee.results.folder import Results
from vitsee.runner import run
from vitsee.study import Study
from vitsee.sums import Sums

NEEDED: dict[str, list[str]] = {
    "attention_rollout": ["images=16", "batch_size=4"],
    "block_similarity": [
        "model@other=timm",
        "other.timm=test_vit2",
        "other.pretrained=false",
    ],
    "head_similarity": [
        "model@other=timm",
        "other.timm=test_resnet",
        "other.pretrained=false",
        "analysis.subset=1",
    ],
    "linear_probe": [
        "analysis.train_split=null",
        "analysis.shots=3",
        "analysis.held_out=5",
        "analysis.seeds=[0,1]",
        "batch_size=4",
    ],
    "receptive_field": ["analysis.channels=2", "images=24"],
    "scaling": ["model.args={num_classes: 2}"],
}
"""What an analysis cannot do without, or not fast enough, by name, as overrides."""
STREAMING = [name for name in sorted(REGISTERED) if not REGISTERED[name].weights_only]


pytestmark = pytest.mark.xdist_group("laws")  # one worker, so that each analysis is measured once


@dataclass(frozen=True)
class Measured:
    """An analysis as laws need it.

    words: overrides that choose it. experiment: composed of them, its passes begun. parts: the
    contribution of every minibatch of the last pass alone; of weights there is one. paths: what an
    undisturbed run wrote; no law may change it.
    """

    words: list[str]
    experiment: Experiment
    parts: list[Sums]
    paths: list[Path]

    @property
    def folder(self) -> Path:
        return self.paths[0].parent


@pytest.fixture(scope="session")
def measured(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Measured]:
    """Each analysis by its name, measured once."""

    @cache
    def measure(name: str) -> Measured:
        words = [f"analysis={name}", *NEEDED.get(name, [])]
        asked = [*tiny_overrides(images, tmp_path_factory.mktemp("laws")), *words]
        experiment = composed(*asked)
        return Measured(words, experiment, parts(experiment), run(composed(*asked)))

    return measure


@pytest.fixture(params=sorted(REGISTERED))
def analysis(request: pytest.FixtureRequest, measured: Callable[[str], Measured]) -> Measured:
    return measured(request.param)


@pytest.fixture(params=STREAMING)
def streaming(request: pytest.FixtureRequest, measured: Callable[[str], Measured]) -> Measured:
    """Of those that read images."""
    return measured(request.param)


def parts(experiment) -> list[Sums]:
    """The contribution of every minibatch of the last pass alone; of weights there is one."""
    from vitsee.runner import minibatches, observer, of_weights

    study = Study(experiment)
    if not study.passes:
        return [of_weights(study)]
    before: list[Sums] = []
    for stage, each in enumerate(study.passes):
        experiment.analysis.begin(before)
        todo = list(range(len(each.plan)))
        with observer(study, stage) as observe:
            found = [
                Sums.of(b.index, len(todo), observe(b), study.axes)
                for b in minibatches(study, stage, todo)
            ]
        before.append(reduce(add, found))
    return found


def assert_same_tables(one: dict[str, pd.DataFrame], two: dict[str, pd.DataFrame]) -> None:
    assert one.keys() == two.keys()
    assert one
    for name in one:
        pd.testing.assert_frame_equal(one[name], two[name], rtol=1e-9, atol=1e-7)


def test_any_order_and_grouping_gives_the_same_tables(analysis):
    p, tables = analysis.parts, analysis.experiment.analysis.tables
    whole = reduce(add, p).complete()
    regrouped = (reduce(add, p[1::2], Sums.zero(len(p))) + reduce(add, p[::2][::-1])).complete()
    assert_same_tables(tables(whole), tables(regrouped))


def test_zero_changes_nothing(analysis):
    one, zero = analysis.parts[0], Sums.zero(len(analysis.parts))
    for sums in (zero + one, one + zero):
        assert sums.terms.keys() == one.terms.keys()
        assert all(sums.terms[k].equal(one.terms[k]) for k in one.terms)


def test_a_saved_sum_is_the_same_sum(analysis, tmp_path):
    one = analysis.parts[-1]
    results = Results(tmp_path / "result")
    results.prepare()
    results.save_state(results.state(0, 1), one)
    back = Sums.load(results.state(0, 1))
    assert back.axes == one.axes
    assert back.seen.equal(one.seen)
    assert all(back.terms[k].equal(one.terms[k]) for k in one.terms)


def test_a_missing_or_repeated_minibatch_is_named(streaming):
    p = streaming.parts
    twice, missing = p[1], len(p) - 2
    with pytest.raises(
        Incomplete, match=rf"{missing} of {len(p)} minibatches are missing .* and 1 are counted"
    ):
        (p[0] + twice + twice).complete()


def test_sums_of_different_layers_are_not_added(streaming):
    one = streaming.parts[0]
    other = Sums(one.seen, one.parts, {role: [*names, "more"] for role, names in one.axes.items()})
    with pytest.raises(ValueError, match="these sums measure different things"):
        one + other


def test_shards_give_the_tables_of_the_whole(streaming, tiny):
    passes = len(streaming.experiment.analysis.splits)
    merged: list[Path] = []
    told: list[tuple[int, str]] = []
    for shard in [2, 0, 1] * passes:  # a pass needs the one before
        try:
            merged = run(tiny(*streaming.words, "run.shards=3", f"run.shard={shard}"))
            break
        except Incomplete as waiting:
            told.append((shard, str(waiting)))
    assert len(told) >= 2
    for shard, message in told:
        assert re.match(rf"shard {shard} of 3 is done.*, but \d of \d minibatches", message)
    assert_same_tables(Results(streaming.folder).tables(), Results(merged[0].parent).tables())


def test_a_plain_run_fills_the_gaps_that_shards_left(streaming, tiny):
    with pytest.raises(Incomplete):
        run(tiny(*streaming.words, "run.shards=3", "run.shard=1"))
    filled = run(tiny(*streaming.words))
    assert_same_tables(Results(streaming.folder).tables(), Results(filled[0].parent).tables())


def test_the_same_command_measures_nothing_twice(streaming, images, monkeypatch):
    monkeypatch.setattr("vitsee.runner.Minibatches", None)  # would fail if it were called
    outputs = Path(streaming.experiment.run.outputs)
    again = run(composed(*tiny_overrides(images, outputs), *streaming.words))
    assert again == streaming.paths


def test_the_csv_draws_the_same_png_again(analysis, tmp_path):
    copy = shutil.copytree(analysis.folder, tmp_path / "copy")
    pictures = {path: path.read_bytes() for path in copy.glob("*.png")}
    assert {path.name for path in pictures} == {
        path.name for path in analysis.paths if path.suffix == ".png"
    }
    assert pictures
    for path in pictures:
        path.unlink()
    plot(copy)
    assert all(path.read_bytes() == before for path, before in pictures.items())


def test_drawing_never_imports_torch(measured, tmp_path):
    folders = [measured(name).folder for name in sorted(REGISTERED)]
    copies = [str(shutil.copytree(folder, tmp_path / f"{i}")) for i, folder in enumerate(folders)]
    code = (
        "import sys; from pathlib import Path; import vitsee.cli; from vitsee.papers.plot import plot\n"
        "for folder in sys.argv[1:]:\n"
        "    assert plot(Path(folder))\n"
        "    assert 'torch' not in sys.modules, folder"
    )
    subprocess.run([sys.executable, "-c", code, *copies], check=True)


def test_tables_keep_every_digit(analysis):
    exact = analysis.experiment.analysis.tables(reduce(add, analysis.parts))
    back = Results(analysis.folder).tables(analysis.experiment.analysis.columns)
    assert back.keys() == exact.keys()
    for name, table in exact.items():
        pd.testing.assert_frame_equal(back[name], table, check_exact=True, check_dtype=False)


def test_a_standard_error_over_minibatches_says_of_how_many(analysis):
    kind, count = analysis.experiment.analysis, len(analysis.parts)
    for name, table in kind.tables(reduce(add, analysis.parts)).items():
        if kind.equal_minibatches and "se" in table:
            assert set(table["minibatches"]) == {count}, name


def test_a_minibatch_needs_four_images_only_where_hsic_is_computed(analysis, tiny):
    if not analysis.experiment.analysis.equal_minibatches:
        assert tiny(*analysis.words, "batch_size=1").batch_size == 1
        return
    with pytest.raises(UserError, match=r"batch_size must be at least 4 \(unbiased HSIC divides"):
        tiny(*analysis.words, "batch_size=3")


def test_minibatches_of_one_image_give_the_same_tables_where_nothing_needs_more(streaming, tiny):
    if streaming.experiment.analysis.equal_minibatches:
        return
    found = []
    for size in (1, 8):
        experiment = tiny(*streaming.words, f"batch_size={size}")
        found.append(experiment.analysis.tables(reduce(add, parts(experiment)).complete()))
    for name, table in found[0].items():
        pd.testing.assert_frame_equal(table, found[1][name], rtol=1e-4, atol=1e-4)
