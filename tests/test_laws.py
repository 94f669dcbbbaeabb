"""Laws every analysis obeys, whatever it measures. A new analysis is tested by existing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from functools import reduce
from operator import add
from pathlib import Path

import pandas as pd
import pytest
from conftest import tiny_overrides

from vitsee.analysis import REGISTERED
from vitsee.errors import Incomplete
from vitsee.plotting import plot
from vitsee.results import Results
from vitsee.runner import run
from vitsee.study import Study
from vitsee.sums import Sums

BATCHES = 5  # 40 images in minibatches of 8


@pytest.fixture(params=sorted(REGISTERED))
def analysis(request: pytest.FixtureRequest) -> str:
    return f"analysis={request.param}"


def parts(experiment) -> list[Sums]:
    """The contribution of every minibatch alone."""
    from vitsee.loading import Minibatches
    from vitsee.runner import observer

    study = Study(experiment)
    batches = Minibatches(
        study.images,
        {role: model.data for role, model in study.models.items()},
        study.plan,
        list(range(len(study.plan))),
        device=study.device,
        workers=0,
        on_bad_image=experiment.dataset.on_bad_image,
    )
    with observer(study) as observe:
        return [Sums.of(b.index, BATCHES, observe(b), study.axes) for b in batches]


def assert_same_tables(one: dict[str, pd.DataFrame], two: dict[str, pd.DataFrame]) -> None:
    assert one.keys() == two.keys()
    assert one
    for name in one:
        pd.testing.assert_frame_equal(one[name], two[name], rtol=1e-9, atol=1e-7)


def test_any_order_and_grouping_gives_the_same_tables(analysis, tiny):
    experiment = tiny(analysis)
    p = parts(experiment)
    whole = reduce(add, p).complete()
    regrouped = ((p[4] + p[1]) + (p[0] + (p[3] + p[2]))).complete()
    tables = experiment.analysis.tables
    assert_same_tables(tables(whole), tables(regrouped))


def test_zero_changes_nothing(analysis, tiny):
    one = parts(tiny(analysis))[0]
    for sums in (Sums.zero(BATCHES) + one, one + Sums.zero(BATCHES)):
        assert sums.terms.keys() == one.terms.keys()
        assert all(sums.terms[k].equal(one.terms[k]) for k in one.terms)


def test_a_saved_sum_is_the_same_sum(analysis, tiny, tmp_path):
    one = parts(tiny(analysis))[2]
    results = Results(tmp_path / "result")
    results.prepare()
    results.save_state(results.state(0, 1), one)
    back = Sums.load(results.state(0, 1))
    assert back.axes == one.axes
    assert back.seen.equal(one.seen)
    assert all(back.terms[k].equal(one.terms[k]) for k in one.terms)


def test_a_missing_or_repeated_minibatch_is_named(analysis, tiny):
    p = parts(tiny(analysis))
    with pytest.raises(
        Incomplete, match=r"2 of 5 minibatches are missing \[2, 3\] and 1 are counted"
    ):
        reduce(add, [p[0], p[1], p[1], p[4]]).complete()


def test_sums_of_different_layers_are_not_added(analysis, tiny):
    one = parts(tiny(analysis))[0]
    other = parts(tiny(analysis, "analysis.layers=[blocks.0]"))[1]
    with pytest.raises(ValueError, match="these sums measure different things"):
        one + other


def test_shards_give_the_tables_of_the_whole(analysis, tiny, tmp_path):
    whole = run(tiny(analysis, f"run.outputs={tmp_path / 'whole'}"))
    sharded = [f"run.outputs={tmp_path / 'sharded'}", "run.shards=3"]
    for shard in (2, 0):
        with pytest.raises(
            Incomplete, match=rf"shard {shard} of 3 is done, but \d of 5 minibatches"
        ):
            run(tiny(analysis, *sharded, f"run.shard={shard}"))
    merged = run(tiny(analysis, *sharded, "run.shard=1"))
    assert_same_tables(Results(whole[0].parent).tables(), Results(merged[0].parent).tables())


def test_a_plain_run_fills_the_gaps_that_shards_left(analysis, tiny, tmp_path):
    whole = run(tiny(analysis, f"run.outputs={tmp_path / 'whole'}"))
    gaps = f"run.outputs={tmp_path / 'gaps'}"
    with pytest.raises(Incomplete):
        run(tiny(analysis, gaps, "run.shards=3", "run.shard=1"))
    filled = run(tiny(analysis, gaps))
    assert_same_tables(Results(whole[0].parent).tables(), Results(filled[0].parent).tables())


def test_a_killed_run_goes_on_and_gives_the_same_bytes(analysis, images, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert command(images, whole, analysis).wait() == 0
    process = command(images, killed, analysis)
    deadline = time.monotonic() + 60
    while not list(killed.rglob("000-of-001.pt")) and time.monotonic() < deadline:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    (state,) = killed.rglob("000-of-001.pt")
    assert 0 < Sums.load(state).seen.sum() <= BATCHES
    assert command(images, killed, analysis).wait() == 0
    files = [path.relative_to(whole) for path in whole.rglob("*.csv")]
    assert files
    assert all((whole / f).read_bytes() == (killed / f).read_bytes() for f in files)


def command(images: Path, outputs: Path, *overrides: str) -> subprocess.Popen:
    """`vitsee run` of the tiny experiment, saving after every minibatch."""
    words = [*tiny_overrides(images, outputs), "run.save_every=1", *overrides]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    return subprocess.Popen([sys.executable, "-m", "vitsee", "run", *words], **quiet)


def test_the_same_command_measures_nothing_twice(analysis, tiny, monkeypatch):
    first = run(tiny(analysis))
    monkeypatch.setattr("vitsee.runner.Minibatches", None)  # would fail if it were called
    assert run(tiny(analysis)) == first


def test_the_csv_draws_the_same_png_again(analysis, tiny):
    written = run(tiny(analysis))
    pictures = {path: path.read_bytes() for path in written if path.suffix == ".png"}
    assert pictures
    for path in pictures:
        path.unlink()
    plot(written[0].parent)
    assert all(path.read_bytes() == before for path, before in pictures.items())


def test_drawing_never_imports_torch(analysis, tiny):
    folder = run(tiny(analysis))[0].parent
    code = (
        "import sys; from pathlib import Path; import vitsee.cli; from vitsee.plotting import plot;"
        f"plot(Path({str(folder)!r})); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], env=os.environ, check=False).returncode == 0


def test_tables_keep_every_digit(analysis, tiny):
    experiment = tiny(analysis)
    folder = run(experiment)[0].parent
    exact = experiment.analysis.tables(Sums.load(Results(folder).state(0, 1)))
    back = Results(folder).tables()
    for name, table in exact.items():
        pd.testing.assert_frame_equal(back[name], table, check_exact=True, check_dtype=False)
