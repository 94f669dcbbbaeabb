"""Laws every analysis obeys, whatever it measures. A new analysis is tested by existing."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from functools import reduce
from operator import add
from pathlib import Path

import pandas as pd
import pytest
from conftest import tiny_overrides, wait_until

from vitsee.analysis import REGISTERED
from vitsee.errors import Incomplete, UserError
from vitsee.plotting import plot
from vitsee.results import Results
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


@pytest.fixture(params=sorted(REGISTERED))
def analysis(request: pytest.FixtureRequest) -> list[str]:
    """Overrides that choose each analysis."""
    return [f"analysis={request.param}", *NEEDED.get(request.param, [])]


@pytest.fixture(params=STREAMING)
def streaming(request: pytest.FixtureRequest) -> list[str]:
    """Overrides that choose each analysis that reads images."""
    return [f"analysis={request.param}", *NEEDED.get(request.param, [])]


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


def test_any_order_and_grouping_gives_the_same_tables(analysis, tiny):
    experiment = tiny(*analysis)
    p = parts(experiment)
    whole = reduce(add, p).complete()
    regrouped = (reduce(add, p[1::2], Sums.zero(len(p))) + reduce(add, p[::2][::-1])).complete()
    tables = experiment.analysis.tables
    assert_same_tables(tables(whole), tables(regrouped))


def test_zero_changes_nothing(analysis, tiny):
    p = parts(tiny(*analysis))
    one = p[0]
    for sums in (Sums.zero(len(p)) + one, one + Sums.zero(len(p))):
        assert sums.terms.keys() == one.terms.keys()
        assert all(sums.terms[k].equal(one.terms[k]) for k in one.terms)


def test_a_saved_sum_is_the_same_sum(analysis, tiny, tmp_path):
    one = parts(tiny(*analysis))[-1]
    results = Results(tmp_path / "result")
    results.prepare()
    results.save_state(results.state(0, 1), one)
    back = Sums.load(results.state(0, 1))
    assert back.axes == one.axes
    assert back.seen.equal(one.seen)
    assert all(back.terms[k].equal(one.terms[k]) for k in one.terms)


def test_a_missing_or_repeated_minibatch_is_named(streaming, tiny):
    p = parts(tiny(*streaming))
    twice, missing = p[1], len(p) - 2
    with pytest.raises(
        Incomplete, match=rf"{missing} of {len(p)} minibatches are missing .* and 1 are counted"
    ):
        (p[0] + twice + twice).complete()


def test_sums_of_different_layers_are_not_added(streaming, tiny):
    one = parts(tiny(*streaming))[0]
    other = Sums(one.seen, one.parts, {role: [*names, "more"] for role, names in one.axes.items()})
    with pytest.raises(ValueError, match="these sums measure different things"):
        one + other


def test_shards_give_the_tables_of_the_whole(streaming, tiny, tmp_path):
    whole = run(tiny(*streaming, f"run.outputs={tmp_path / 'whole'}"))
    sharded = [f"run.outputs={tmp_path / 'sharded'}", "run.shards=3"]
    passes = len(REGISTERED[streaming[0].removeprefix("analysis=")].splits)
    merged: list[Path] = []
    told: list[tuple[int, str]] = []
    for shard in [2, 0, 1] * passes:  # a pass needs the one before
        try:
            merged = run(tiny(*streaming, *sharded, f"run.shard={shard}"))
            break
        except Incomplete as waiting:
            told.append((shard, str(waiting)))
    assert len(told) >= 2
    for shard, message in told:
        assert re.match(rf"shard {shard} of 3 is done.*, but \d of \d minibatches", message)
    assert_same_tables(Results(whole[0].parent).tables(), Results(merged[0].parent).tables())


def test_a_plain_run_fills_the_gaps_that_shards_left(streaming, tiny, tmp_path):
    whole = run(tiny(*streaming, f"run.outputs={tmp_path / 'whole'}"))
    gaps = f"run.outputs={tmp_path / 'gaps'}"
    with pytest.raises(Incomplete):
        run(tiny(*streaming, gaps, "run.shards=3", "run.shard=1"))
    filled = run(tiny(*streaming, gaps))
    assert_same_tables(Results(whole[0].parent).tables(), Results(filled[0].parent).tables())


def test_a_killed_run_goes_on_and_gives_the_same_bytes(streaming, forks, images, tmp_path):
    def words(outputs: Path) -> list[str]:
        return [*tiny_overrides(images, outputs), "run.save_every=1", *streaming]

    whole, killed = tmp_path / "whole", tmp_path / "killed"
    forks.run(words(whole))
    process = forks.start(words(killed))
    wait_until(lambda: list(killed.rglob("000-of-001.pt")))
    os.kill(process, signal.SIGKILL)
    assert forks.end() == -signal.SIGKILL
    (state,) = killed.rglob("000-of-001.pt")
    assert Sums.load(state).seen.sum() > 0
    forks.run(words(killed))
    files = [path.relative_to(whole) for path in whole.rglob("*.csv")]
    assert files
    assert all((whole / f).read_bytes() == (killed / f).read_bytes() for f in files)


def test_the_same_command_measures_nothing_twice(streaming, tiny, monkeypatch):
    first = run(tiny(*streaming))
    monkeypatch.setattr("vitsee.runner.Minibatches", None)  # would fail if it were called
    assert run(tiny(*streaming)) == first


def test_the_csv_draws_the_same_png_again(analysis, tiny):
    written = run(tiny(*analysis))
    pictures = {path: path.read_bytes() for path in written if path.suffix == ".png"}
    assert pictures
    for path in pictures:
        path.unlink()
    plot(written[0].parent)
    assert all(path.read_bytes() == before for path, before in pictures.items())


def test_drawing_never_imports_torch(analysis, tiny):
    folder = run(tiny(*analysis))[0].parent
    code = (
        "import sys; from pathlib import Path; import vitsee.cli; from vitsee.plotting import plot;"
        f"plot(Path({str(folder)!r})); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], env=os.environ, check=False).returncode == 0


def test_tables_keep_every_digit(analysis, tiny):
    experiment = tiny(*analysis)
    folder = run(experiment)[0].parent
    exact = experiment.analysis.tables(reduce(add, parts(experiment)))
    back = Results(folder).tables(experiment.analysis.columns)
    assert back.keys() == exact.keys()
    for name, table in exact.items():
        pd.testing.assert_frame_equal(back[name], table, check_exact=True, check_dtype=False)


def test_a_standard_error_over_minibatches_says_of_how_many(analysis, tiny):
    experiment = tiny(*analysis)
    total = reduce(add, parts(experiment))
    for name, table in experiment.analysis.tables(total).items():
        if experiment.analysis.equal_minibatches and "se" in table:
            assert set(table["minibatches"]) == {int(total.seen.sum())}, name


def test_a_minibatch_needs_four_images_only_where_hsic_is_computed(analysis, tiny):
    kind = REGISTERED[analysis[0].removeprefix("analysis=")]
    if not kind.equal_minibatches:
        assert tiny(*analysis, "batch_size=1").batch_size == 1
        return
    with pytest.raises(UserError, match=r"batch_size must be at least 4 \(unbiased HSIC divides"):
        tiny(*analysis, "batch_size=3")


def test_minibatches_of_one_image_give_the_same_tables_where_nothing_needs_more(streaming, tiny):
    if REGISTERED[streaming[0].removeprefix("analysis=")].equal_minibatches:
        return
    found = []
    for size in (1, 8):
        experiment = tiny(*streaming, f"batch_size={size}")
        found.append(experiment.analysis.tables(reduce(add, parts(experiment)).complete()))
    for name, table in found[0].items():
        pd.testing.assert_frame_equal(table, found[1][name], rtol=1e-4, atol=1e-4)
