"""Whatever is typed, added or written: no traceback, no other sum, no lost digit."""

from __future__ import annotations

import sys
from functools import reduce
from operator import add

import numpy as np
import pandas as pd
import pytest
import torch
from hydra.errors import HydraException
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from omegaconf.errors import OmegaConfBaseException

from vitsee import config, mistakes
from vitsee.cli import VERBS
from vitsee.errors import Incomplete, UserError, printable
from vitsee.results.folder import Results
from vitsee.sums import Damaged, Sums

bounded = settings(
    max_examples=150,
    deadline=None,
    derandomize=True,  # the same examples everywhere: a test that passes, passes
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

# --- the configuration ----------------------------------------------------------------------------

KEYS = [
    "analysis", "model", "model@other", "dataset", "protocol", "batch_size", "images", "repeats",
    "seed", "precision", "analysis.layers", "analysis.tokens", "analysis.other_layers",
    "analysis.name", "model.timm", "model.args", "model.args.depth", "model.overlay", "model.seed",
    "other.timm", "dataset.kind", "dataset.root", "dataset.on_bad_image", "dataset.size",
    "run.device", "run.gpus", "run.shard", "run.shards", "run.save_every", "run.outputs", "run",
    "hydra.job.name", "nonsense", "",
]  # fmt: skip
VALUES = [
    "cka", "vit_mini", "scenes", "paper", "0", "-1", "4", "1e9", "99999999999999999999", "1.5", "nan",
    "null", "true", "none", "", "[]", "[1]", "[blocks.*,norm]", "{}", "{a: 1}", "{depth: 2}", "${seed}",
    "${oc.env:HOME}", "${nowhere}", "'quoted'", '"', "'", "a b", "a,b", "range(3)", "choice(1,2)",
    "\\", "(", "ü", "\n", "???", "_target_", "!!python/object:os.system", "@", "~", "=",
]  # fmt: skip
prefixes = st.sampled_from(["", "", "", "", "+", "++", "~"])
values = st.one_of(st.sampled_from(VALUES), st.text(max_size=8))
overrides = st.builds("{}{}={}".format, prefixes, st.sampled_from(KEYS), values)
words = st.lists(st.one_of(overrides, st.text(max_size=12)), min_size=1, max_size=3)


@bounded
@given(words)
def test_no_override_gives_a_traceback(words):
    from conftest import composed

    try:
        composed(*words)
        mistake = None
    except (HydraException, OmegaConfBaseException, UserError) as error:
        mistake = mistakes.explain(error)
    except Exception as error:
        if not mistakes.of_composition(error):
            raise
        mistake = " ".join(str(error).split())
    assert mistake is None or (mistake.strip() and len(printable(mistake).splitlines()) == 1)


@bounded
@given(st.text(max_size=60) | st.binary(max_size=60))
def test_no_experiment_file_gives_a_traceback(tmp_path, text):
    path = tmp_path / "experiment.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass"))
    with pytest.raises(UserError):
        config.load_experiment(path, [])


plain_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip
FIELDS = ["analysis", "model", "other", "dataset", "batch_size", "images", "precision", "run"]


@bounded
@given(st.dictionaries(st.sampled_from(FIELDS), plain_values, max_size=3), plain_values)
def test_no_wrong_value_in_an_experiment_file_gives_a_traceback(tmp_path, found, layers):
    import yaml

    whole = {
        "analysis": {"name": "cka", "layers": layers},
        "model": {"name": "m", "timm": "test_vit"},
        "dataset": {"name": "scenes", "kind": "scenes"},
    }
    path = tmp_path / "experiment.yaml"
    path.write_text(yaml.safe_dump(whole | found), encoding="utf-8", errors="surrogatepass")
    mistake = None
    try:
        config.load_experiment(path, [])
    except (HydraException, OmegaConfBaseException, UserError) as error:
        mistake = mistakes.explain(error)
    assert mistake is None or len(printable(mistake).splitlines()) == 1


KNOWN = ("--help", "-h", "help", "--version", "-V", "-sc")


@bounded
@given(st.text(max_size=12).filter(lambda verb: verb not in (*VERBS, *KNOWN)))
def test_no_verb_gives_a_traceback(verb):
    import vitsee.cli

    before, sys.argv = sys.argv, ["vitsee", verb]
    try:
        with pytest.raises(SystemExit, match="2"):
            vitsee.cli.main()
    finally:
        sys.argv = before


# --- sums -----------------------------------------------------------------------------------------

SIZE = 6


@st.composite
def contributions(draw) -> list[Sums]:
    """One for each minibatch of a plan. Whole numbers add up exactly in any order."""
    axes = {"model": [f"layer{i}" for i in range(draw(st.integers(1, 3)))]}
    n = len(axes["model"])
    whole = st.integers(-(2**40), 2**40)
    rows = [draw(st.lists(whole, min_size=n, max_size=n)) for _ in range(SIZE)]
    return [
        Sums.of(b, SIZE, {"a": torch.tensor(row, dtype=torch.float64)}, axes)
        for b, row in enumerate(rows)
    ]


def same(one: Sums, two: Sums) -> bool:
    equal = all(one.terms[k].equal(two.terms[k]) for k in one.terms)
    return equal and one.terms.keys() == two.terms.keys() and one.seen.equal(two.seen)


@bounded
@given(contributions(), st.permutations(range(SIZE)), st.integers(1, SIZE))
def test_sums_add_up_alike_in_any_order_and_grouping(parts, order, shards):
    whole = reduce(add, parts)
    zero = Sums.zero(SIZE)
    groups = [reduce(add, (parts[b] for b in order[k::shards]), zero) for k in range(shards)]
    assert same(reduce(add, groups), whole)
    assert same(reduce(add, groups[::-1]), whole)
    assert same(whole + zero, whole)
    assert same(zero + whole, whole)


@bounded
@given(contributions(), st.lists(st.integers(0, SIZE - 1), max_size=2 * SIZE))
def test_sums_are_complete_only_with_every_minibatch_once(parts, chosen):
    total = reduce(add, (parts[b] for b in chosen), Sums.zero(SIZE))
    if sorted(chosen) == list(range(SIZE)):
        assert total.complete() is total
    else:
        with pytest.raises(Incomplete):
            total.complete()


@bounded
@given(contributions(), st.data())
def test_packed_sums_come_back_or_are_refused(tmp_path, parts, data):
    path, one = tmp_path / "sums.pt", parts[2]
    packed = one.packed()
    path.write_bytes(packed)
    assert same(Sums.load(path), one)
    assert Sums.load(path).axes == one.axes
    start = data.draw(st.integers(0, len(packed) - 1))
    patch = data.draw(st.binary(min_size=1, max_size=40))
    changed = packed[:start] + patch + packed[start + len(patch) :]
    path.write_bytes(changed)
    if changed != packed:
        with pytest.raises(Damaged):
            Sums.load(path)


# --- tables ---------------------------------------------------------------------------------------

numbers = st.floats(allow_infinity=True, allow_nan=True, width=64)
names = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=8)


@bounded
@given(st.lists(st.tuples(names, st.integers(-(2**62), 2**62), numbers), min_size=1, max_size=8))
def test_a_table_comes_back_from_its_csv_to_the_last_digit(tmp_path, rows):
    table = pd.DataFrame(rows, columns=["layer", "row", "value"])
    Results(tmp_path).save_tables({"t": table})
    back = Results(tmp_path).tables()["t"]
    assert back["row"].tolist() == table["row"].tolist()
    assert np.array_equal(back["value"], table["value"], equal_nan=True)
    assert back["layer"].tolist() == table["layer"].tolist()
