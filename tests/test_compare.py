"""Models compared from what is kept of them: each measure against its equation, nulls, tables, atlas."""

from __future__ import annotations

import base64
import itertools
import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import timm
import torch
from calibrated_similarity import calibrate, calibrate_layers
from conftest import tiny_overrides
from reference import hsic1, minibatch_cka
from scipy import linalg, stats
from scipy.spatial.distance import cdist

import vitsee
from vitsee.comparing import comparison, drawing, nulls, ordering, record
from vitsee.comparing.options import Options, of, parsed
from vitsee.errors import UserError
from vitsee.estimators.triangles import to_scale, triangles
from vitsee.io import kept
from vitsee.models import globs
from vitsee.papers.plot import plot, plot_joined
from vitsee.plotting import model_maps
from vitsee.plotting.model_maps import to_one
from vitsee.report.assets import PageFiles
from vitsee.report.show_comparisons import show_comparison
from vitsee.report.write import report
from vitsee.results.folder import Results

Minibatches = Sequence[np.ndarray]
"""Features of one layer, (N, F) for each minibatch."""


def noise(seed: int, n: int = 12, f: int = 6, minibatches: int = 2) -> list[np.ndarray]:
    draw = np.random.default_rng(seed)
    return [draw.normal(size=(n, f)) for _ in range(minibatches)]


def related(seed: int, layers: int = 2) -> list[list[np.ndarray]]:
    """Layers that see the same images, with noise of their own."""
    return [
        [shared + 0.4 * own for shared, own in zip(noise(99), noise(100 * seed + i), strict=True)]
        for i in range(layers)
    ]


def keep(outputs: Path, name: str, layers: Sequence[Minibatches], **changes) -> Path:
    """A result of analysis=grams with these features, its entries in float32."""
    folder = outputs / "grams" / name / "noise-0123abcd"
    tensors = {}
    for b, xs in enumerate(zip(*layers, strict=True)):
        gram = triangles(torch.from_numpy(np.stack([x @ x.T for x in xs])))
        scaled, scale = to_scale(gram)
        tensors[f"gram {b}"], tensors[f"scale {b}"] = scaled.float().numpy(), scale.numpy()
        tensors[f"hsic {b}"] = np.array([hsic1(x @ x.T, x @ x.T) for x in xs])
        for i, x in enumerate(xs):
            tensors[f"pooled {b} layer.{i}"] = x.astype(np.float32)
    count = len(layers[0])
    about = {
        "model": name,
        "data": "noise",
        "layers": [f"layer.{i}" for i in range(len(layers))],
        "minibatches": [[f"{b}/{i}" for i in range(len(layers[0][b]))] for b in range(count)],
        "fresh": [1.0] * count,
        "tokens": "all",
        "precision": "fp32",
        "pooled": True,
    }
    folder.mkdir(parents=True)
    Results(folder).write(kept.NAME, kept.packed(tensors, kept.Index(**about | changes)))
    return folder


def compared(outputs: Path, *paths: Path, **options) -> vitsee.Comparison:
    quiet = {"outputs": str(outputs), "progress": False} | options.pop("run", {})
    return vitsee.compare(*(paths or [outputs / "grams"]), run=quiet, **options)


@pytest.fixture
def undrawn_atlas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vitsee.comparing.comparison.draw", lambda *path, **options: [])


pytestmark = pytest.mark.usefixtures("undrawn", "undrawn_atlas")

# --- measures ------------------------------------------------------------------------------------


def distances(x: np.ndarray) -> np.ndarray:
    return cdist(x, x)


def rbf_cka(xs: Minibatches, ys: Minibatches) -> float:
    """Kornblith et al. 2019, section 3, with the median distance as the bandwidth."""

    def kernels(xs: Minibatches) -> list[np.ndarray]:
        every = [distances(x) for x in xs]
        sigma = np.median([d[i, j] for d in every for i in range(len(d)) for j in range(i)])
        return [np.exp(-(d**2) / (2 * sigma**2)) for d in every]

    ks, ls = kernels(xs), kernels(ys)
    kl, kk, ll = (sum(map(hsic1, a, b)) for a, b in ((ks, ls), (ks, ks), (ls, ls)))
    return kl / math.sqrt(kk * ll)


def rsa(xs: Minibatches, ys: Minibatches) -> float:
    each = []
    for x, y in zip(xs, ys, strict=True):
        rows, columns = np.triu_indices(len(x), 1)
        each.append(stats.spearmanr(distances(x)[rows, columns], distances(y)[rows, columns])[0])
    return float(np.mean(each))


def mutual_knn(xs: Minibatches, ys: Minibatches, k: int = 10) -> float:
    """Huh et al. 2024, eq. 11: the mean share of common neighbours."""
    shares = []
    for x, y in zip(xs, ys, strict=True):
        for i, (to_x, to_y) in enumerate(zip(distances(x), distances(y), strict=True)):
            others = [j for j in range(len(x)) if j != i]
            near = [{*sorted(others, key=to.__getitem__)[:k]} for to in (to_x, to_y)]
            shares.append(len(near[0] & near[1]) / k)
    return float(np.mean(shares))


def procrustes(xs: Minibatches, ys: Minibatches) -> float:
    """Ding et al. 2021: 1 - d² / 2 for the best rotation of centred features of norm 1."""
    x, y = (np.concatenate(zs) for zs in (xs, ys))
    x, y = x - x.mean(0), y - y.mean(0)
    x, y = x / np.linalg.norm(x), y / np.linalg.norm(y)
    rotation, _ = linalg.orthogonal_procrustes(x, y)
    return 1 - np.linalg.norm(x @ rotation - y) ** 2 / 2


EQUATIONS = {
    "cka": minibatch_cka,
    "rbf_cka": rbf_cka,
    "rsa": rsa,
    "mutual_knn": mutual_knn,
    "procrustes": procrustes,
}


@pytest.mark.parametrize("measure", EQUATIONS)
def test_every_measure_is_its_equation_in_float64(measure, tmp_path):
    models = {"a": related(1), "b": related(2, layers=3)}
    for name, layers in models.items():
        keep(tmp_path, name, layers)
    table = compared(tmp_path, measure=measure).table
    expected = [EQUATIONS[measure](x, y) for x in models["a"] for y in models["b"]]
    assert table["value"].to_numpy() == pytest.approx(expected, abs=2e-6)
    assert table["model_layer"].tolist() == [f"layer.{i // 3}" for i in range(6)]
    assert table["other_layer"].tolist() == [f"layer.{i % 3}" for i in range(6)]


@pytest.mark.parametrize("measure", EQUATIONS)
def test_standard_errors_are_those_of_leaving_minibatches_out(measure, tmp_path):
    count, equation = 20, EQUATIONS[measure]
    x = noise(1, n=20, minibatches=count)
    y = [a + b for a, b in zip(x, noise(2, n=20, minibatches=count), strict=True)]
    keep(tmp_path, "a", [x])
    keep(tmp_path, "b", [y])
    found = compared(tmp_path, measure=measure).table["se"][0]
    if measure in ("rsa", "mutual_knn"):  # means over minibatches
        each = [equation([a], [b]) for a, b in zip(x, y, strict=True)]
        assert found == pytest.approx(np.std(each, ddof=1) / math.sqrt(count), rel=1e-4)
        return
    without = [equation(x[:i] + x[i + 1 :], y[:i] + y[i + 1 :]) for i in range(count)]
    jackknife = math.sqrt((count - 1) / count * np.square(without - np.mean(without)).sum())
    assert found == pytest.approx(jackknife, rel=0.1)


def test_cka_and_its_error_equal_those_of_the_analysis(images, tmp_path, command):
    words = [*tiny_overrides(images, tmp_path), "images=24"]
    other = ["other.timm=test_vit2", "other.pretrained=false"]
    assert command("run", *words, "analysis=grams")[0] == 0
    assert command("run", *words, "analysis=grams", "model.timm=test_vit2")[0] == 0
    assert (
        command(
            "run", *words, "analysis=cka", "analysis.layers=blocks", "model@other=timm", *other
        )[0]
        == 0
    )
    (direct,) = tmp_path.glob("cka/*/*/cka.csv")
    said = pd.read_csv(direct)
    table = compared(tmp_path).table
    assert table["other"].unique().tolist() == ["test_vit2"]
    assert np.abs(table["value"] - said["cka"]).max() < 1e-6
    assert np.abs(table["se"] - said["se"]).max() < 1e-6
    assert table["minibatches"].tolist() == said["minibatches"].tolist()
    assert table["other_layer"].tolist() == said["other_layer"].tolist()


def test_a_constant_layer_is_undefined_and_does_not_count(tmp_path):
    constant = [np.ones((12, 3))] * 2
    keep(tmp_path, "a", [*related(1, 1), constant])
    keep(tmp_path, "b", related(2))
    for measure in EQUATIONS:
        found = compared(tmp_path, measure=measure, null=9)
        undefined = found.table["model_layer"] == "layer.1"
        assert found.table.loc[undefined, ["value", "p", "calibrated"]].isna().all(axis=None), (
            measure
        )
        assert found.table.loc[~undefined, ["value", "p", "p_max"]].notna().all(axis=None), measure
        assert found.atlas["at_model_layer"].tolist() == ["layer.0"]
        assert found.atlas["value"][0] == found.table["value"].max()


# --- nulls ---------------------------------------------------------------------------------------


def permuted(count: int, n: int):
    """The permutations of a comparison with seed 0, one after the other, for calibrated-similarity."""
    orders = iter(nulls.orders(0, 0, n, count))
    return lambda size, device: torch.from_numpy(next(orders))


def test_p_and_null_are_those_of_calibrated_similarity(tmp_path):
    n, count = 12, 40
    a, b = ([[xs[0]] for xs in related(seed, layers=2)] for seed in (1, 2))
    keep(tmp_path, "a", a)
    keep(tmp_path, "b", b)
    found = compared(tmp_path, null=count)

    def sim(x, y):
        return minibatch_cka([x.numpy()], [y.numpy()])

    x, y = ([torch.from_numpy(xs[0]) for xs in layers] for layers in (a, b))
    cells = itertools.product(x, y)
    for row, (one, other) in zip(found.table.itertuples(), cells, strict=True):
        score, p, high = calibrate(one, other, sim, K=count, perm_fn=permuted(count, n))
        assert row.calibrated == pytest.approx(float(score), abs=1e-6)
        assert row.p == pytest.approx(float(p), abs=1e-6)
        assert row.null_high == pytest.approx(float(high), abs=1e-6)
    score, p, high = calibrate_layers(x, y, sim, K=count, perm_fn=permuted(count, n))
    (best,) = found.atlas.itertuples()
    assert best.calibrated == pytest.approx(float(score), abs=1e-6)
    assert best.p_max == pytest.approx(float(p), abs=1e-6)
    assert best.max_high == pytest.approx(float(high), abs=1e-6)


@pytest.mark.parametrize("measure", EQUATIONS)
def test_a_null_is_the_measure_of_permuted_images(measure, tmp_path):
    a, b = related(1, layers=1), related(2, layers=1)
    keep(tmp_path, "a", a)
    keep(tmp_path, "b", b)
    found = compared(tmp_path, measure=measure, null=19, seed=3).table.iloc[0]
    orders = [nulls.orders(3, minibatch, 12, 19) for minibatch in (0, 1)]
    expected = [
        EQUATIONS[measure](a[0], [y[order[r]] for y, order in zip(b[0], orders, strict=True)])
        for r in range(19)
    ]
    assert found["null_mean"] == pytest.approx(np.mean(expected), abs=2e-6)
    assert found["null_high"] == pytest.approx(sorted([*expected, found["value"]])[18], abs=2e-6)
    assert found["p"] == (1 + sum(null >= found["value"] - 1e-6 for null in expected)) / 20


def test_one_in_twenty_pairs_of_independent_noise_is_significant(tmp_path):
    for i in range(30):
        keep(tmp_path, f"{i:02}", [noise(100 * i), noise(100 * i + 1)])
    for measure in ("cka", "rsa"):
        found = compared(tmp_path, measure=measure, null=99)
        assert 0.03 < (found.table["p"] <= 0.05).mean() < 0.07
        assert 0.02 < (found.atlas["p_max"] <= 0.05).mean() < 0.08
        assert (found.table["p_max"] >= found.table["p"] - 1e-12).all()


def test_what_is_related_is_significant_for_every_measure(tmp_path):
    keep(tmp_path, "a", related(1))
    keep(tmp_path, "b", related(2))
    for measure in EQUATIONS:
        options = {"neighbours": 3} if measure == "mutual_knn" else {}
        atlas = compared(tmp_path, measure=measure, null=99, **options).atlas
        assert atlas["p_max"][0] == 0.01, measure
        assert 0 < atlas["calibrated"][0] < atlas["value"][0], measure


# --- all pairs -----------------------------------------------------------------------------------


@pytest.fixture
def four(tmp_path: Path) -> Path:
    for i, name in enumerate("dbca"):
        keep(tmp_path, name, related(i, layers=1 + i % 2))
    return tmp_path


def test_every_pair_is_compared_once(four):
    atlas = compared(four).atlas
    pairs = [*zip(atlas["model"], atlas["other"], strict=True)]
    assert pairs == [*itertools.combinations("abcd", 2)]


def test_memory_changes_no_number(four, monkeypatch):
    whole = compared(four, null=9)
    calls = []
    monkeypatch.setattr(
        comparison, "blocks", lambda *args: calls.append(args) or similarity_blocks(*args)
    )
    monkeypatch.setattr(record, "earlier", lambda *args: {})
    layers = comparison._bytes(2, 78, 9) / 2**30
    small = compared(four, null=9, run={"memory_gb": layers})
    assert len(calls) == 4  # groups: a; b; c and d
    pd.testing.assert_frame_equal(whole.table, small.table, rtol=1e-5, atol=1e-6)


similarity_blocks = comparison.blocks


def test_too_little_memory_is_refused_with_advice_that_works(four):
    with pytest.raises(
        UserError, match=r"comparing 2 layers with 2 others needs 0.0 GB, more"
    ) as caught:
        compared(four, run={"memory_gb": 1e-7})
    advice = str(caught.value).rpartition("=")[2]
    assert compared(four, run={"memory_gb": float(advice)})


def test_new_models_are_compared_and_known_pairs_are_not(four, monkeypatch):
    names = [four / "grams" / name for name in "acd"]
    before = compared(four, *names, null=9)
    done = []

    def blocks(measure, ones, others, *rest):
        done.extend((a.name, b.name) for a in ones for b in others)
        return similarity_blocks(measure, ones, others, *rest)

    monkeypatch.setattr(comparison, "blocks", blocks)
    after = compared(four, null=9)
    assert ("a", "b") in done
    assert ("a", "d") not in done
    assert after.path != before.path
    known = after.table[(after.table["model"] != "b") & (after.table["other"] != "b")]
    pd.testing.assert_frame_equal(known.reset_index(drop=True), before.table)
    done.clear()
    assert compared(four, null=9).path == after.path
    assert not done
    compared(four, null=19)
    assert done


def test_numbers_of_a_table_that_was_edited_are_not_used(four):
    first = compared(four, four / "grams/a", four / "grams/b")
    table = first.path / "compare.csv"
    before = table.read_text()
    table.write_text(before.replace(",0.", ",0.1", 1))
    assert table.read_text() != before
    assert compared(four, four / "grams/a", four / "grams/b").path == first.path
    assert table.read_text() == before


def test_an_interrupted_comparison_goes_on(four, monkeypatch):
    calls = itertools.count()

    def blocks(*args):
        if next(calls) == 3:
            raise vitsee.Interrupted
        return similarity_blocks(*args)

    small = {"memory_gb": comparison._bytes(2, 78, 0) / 2**30}
    with monkeypatch.context() as patch:
        patch.setattr(comparison, "blocks", blocks)
        with pytest.raises(vitsee.Interrupted):
            compared(four, run=small)
    (folder,) = four.glob("compare/*/*")
    with pytest.raises(UserError, match=r"is not finished; repeat the same `vitsee compare`"):
        plot(folder)
    known = pd.read_csv(folder / "atlas.csv")
    assert 0 < len(known) < 6
    assert len(compared(four, run=small).atlas) == 6


def test_the_first_result_is_compared_with_the_others(four):
    found = compared(four, four / "grams/c", four / "grams", first=True)
    assert found.atlas["model"].unique().tolist() == ["c"]
    assert found.atlas["other"].tolist() == ["a", "b", "d"]
    every = compared(four)
    layers = every.matrix("at_model_layer")
    for row in every.atlas.to_dict("records"):
        assert layers.loc[row["model"], row["other"]] == row["at_model_layer"]
        assert layers.loc[row["other"], row["model"]] == row["at_other_layer"]
    whole = every.matrix()
    assert found.atlas["value"].tolist() == whole.loc["c", ["a", "b", "d"]].tolist()
    row = found.table.iloc[0]
    assert (row["model_layer"], row["other_layer"]) == ("layer.0", "layer.0")


def test_layers_are_chosen_by_last_or_by_a_pattern(four):
    last = compared(four, layers="last").table
    assert last.groupby("model")["model_layer"].unique().map(list).to_dict() == {
        "a": ["layer.1"],
        "b": ["layer.1"],
        "c": ["layer.0"],
    }
    assert set(compared(four, layers="*.0").table["model_layer"]) == {"layer.0"}
    with pytest.raises(
        UserError, match=r"layers=layer.1: nothing that .*/c/noise-0123abcd keeps matches"
    ):
        compared(four, layers="layer.1")
    with pytest.raises(
        UserError, match=r"layers=lost: nothing .* matches; use: .*Did you mean last\?"
    ):
        compared(four, layers="lost")


# --- refusals ------------------------------------------------------------------------------------

TWELVE = [[f"{b}/{i}" for i in range(12)] for b in (0, 1)]


@pytest.mark.parametrize(
    ("changes", "difference"),
    [
        ({"data": "other noise"}, r"the data set \(noise and other noise\)"),
        ({"minibatches": TWELVE[:1], "fresh": [1.0]}, r"the number of minibatches \(2 and 1\)"),
        (
            {"minibatches": [TWELVE[0], TWELVE[1][:11]]},
            r"the images in minibatch 1 \(12 and 11 images\)",
        ),
        (
            {"minibatches": [TWELVE[0], [*TWELVE[1][:3], "x", *TWELVE[1][4:]]]},
            r"image 3 of minibatch 1 \(1/3 and x\)",
        ),
    ],
)
def test_other_images_are_refused_and_the_difference_is_named(changes, difference, tmp_path):
    keep(tmp_path, "a", related(1))
    keep(tmp_path, "b", related(2), **changes)
    with pytest.raises(
        UserError, match=rf"/b/noise-0123abcd differ in {difference}, so they cannot"
    ):
        compared(tmp_path)


def test_what_is_not_a_result_is_refused(four, images, tmp_path):
    with pytest.raises(
        UserError, match=r"give the results to compare, e\.g\. vitsee compare outputs/grams"
    ):
        vitsee.compare()
    with pytest.raises(
        UserError, match=r"there is no folder nowhere; .*vitsee run -m analysis=grams"
    ):
        vitsee.compare("nowhere")
    with pytest.raises(UserError, match=r"there is no result of analysis=grams in"):
        vitsee.compare(images)
    with pytest.raises(UserError, match="only one result of analysis=grams"):
        vitsee.compare(four / "grams/a")
    copy = four / "grams/copy/noise-0123abcd"
    copy.mkdir(parents=True)
    (copy / kept.NAME).write_bytes((four / "grams/a/noise-0123abcd" / kept.NAME).read_bytes())
    with pytest.raises(
        UserError, match=r"and .*/copy/noise-0123abcd are the same result; name one"
    ):
        compared(four)
    other = four / "cka" / "x"
    other.mkdir(parents=True)
    (other / "experiment.yaml").write_text("analysis: {name: cka}\n")
    with pytest.raises(
        UserError, match=r"is a result of analysis=cka, which stores no Gram matrices"
    ):
        vitsee.compare(other)
    (other / "experiment.yaml").write_text("analysis: {name: grams}\n")
    with pytest.raises(
        UserError, match=r"is not finished; run `vitsee run --from .*experiment.yaml`"
    ):
        vitsee.compare(other)


def test_what_a_measure_or_a_null_needs_is_said(tmp_path):
    keep(tmp_path, "a", related(1), pooled=False)
    keep(tmp_path, "b", related(2), fresh=[1.0, 0.5])
    with pytest.raises(UserError, match=r"procrustes needs pooled features, which .*/a/.* lacks"):
        compared(tmp_path, measure="procrustes")
    with pytest.raises(
        UserError, match=r"neighbours=12, but minibatches have 12 images; use neighbours=11"
    ):
        compared(tmp_path, measure="mutual_knn", neighbours=12)


def test_images_that_were_drawn_again_have_no_null(tmp_path):
    for i, name in enumerate("ab"):
        keep(tmp_path, name, related(i), fresh=[1.0, 0.5])
    with pytest.raises(
        UserError, match=r"drawn several times \(repeats\); measure with repeats=1, or use null=0"
    ):
        compared(tmp_path, null=9)
    assert compared(tmp_path).atlas["p_max"].isna().all()


def test_results_measured_in_different_ways_are_compared_with_a_warning(tmp_path, caplog):
    keep(tmp_path, "a", related(1))
    keep(tmp_path, "b", related(2), tokens="cls")
    compared(tmp_path)
    assert "tokens=all precision=fp32, tokens=cls precision=fp32" in caplog.text


def test_models_of_one_name_are_told_apart(tmp_path):
    keep(tmp_path, "x", related(1))
    keep(tmp_path, "y", related(2), model="x").rename(tmp_path / "grams/y/noise-ffff0000")
    atlas = compared(tmp_path).atlas
    assert {atlas["model"][0], atlas["other"][0]} == {"x-0123abcd", "x-ffff0000"}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["mesure=cka"], r"there is no option mesure; .*Did you mean measure\?"),
        (["measure=cca"], r"there is no measure=cca; it can be: .*Did you mean cka\?"),
        (["null=many"], r"null must be a whole number, got many"),
        (["null=-1"], r"null must be at least 0, got -1"),
        (["first=yes"], r"first must be true or false, got yes"),
        (["calibrated=true"], r"calibrated=true needs a null: add null=1000"),
        (["run.memory_gb=0"], r"run.memory_gb must be more than 0, got 0"),
        (
            ["--null"],
            r"there is no option --null; options are written key=value, such as null=1000",
        ),
    ],
)
def test_a_mistake_in_an_option_is_one_line(words, said):
    with pytest.raises(UserError, match=said):
        parsed(["outputs", *words])


def test_python_and_the_command_take_the_same_options(four, command):
    words = ["measure=rsa", "null=9", "layers=last", f"run.outputs={four}", "run.progress=false"]
    code, out, _ = command("compare", str(four / "grams"), *words)
    assert code == 0
    folder = Path(out.splitlines()[0]).parent
    assert compared(four, measure="rsa", null=9, layers="last").path == folder
    assert of({"null": 9, "first": True}) == Options(null=9, first=True)
    assert command("compare", "--help")[1].startswith("usage: vitsee compare RESULT")
    code, _, err = command("compare", "nowhere")
    assert (code, len(err.splitlines())) == (2, 1)


# --- the atlas -----------------------------------------------------------------------------------


def atlas_of(places: np.ndarray) -> pd.DataFrame:
    """Models whose distances, 1 - value, are those of points."""
    rows = [
        {"model": f"m{i}", "other": f"m{j}", "value": 1 - np.linalg.norm(places[i] - places[j])}
        for i, j in itertools.combinations(range(len(places)), 2)
    ]
    return pd.DataFrame(rows)


def test_points_of_a_plane_are_found_again():
    places = np.random.default_rng(0).uniform(0, 0.3, (7, 2))
    found = ordering.arranged(atlas_of(places), "value")
    again = np.array([found.places[found.names.index(f"m{i}")] for i in range(7)])
    for i, j in itertools.combinations(range(7), 2):
        apart = np.linalg.norm(again[i] - again[j])
        assert apart == pytest.approx(np.linalg.norm(places[i] - places[j]))
    assert found.stress == pytest.approx(0, abs=1e-6)


def test_distances_that_fit_no_plane_have_the_stress_that_is_said():
    corners = np.eye(4) * 0.3
    found = ordering.arranged(atlas_of(corners), "value")
    whole = shown = 0.0
    for i, j in itertools.combinations(range(4), 2):
        apart = np.linalg.norm(found.places[i] - found.places[j])
        true = 0.3 * math.sqrt(2)
        shown, whole = shown + (apart - true) ** 2, whole + true**2
    assert found.stress == pytest.approx(math.sqrt(shown / whole))
    assert found.stress > 0.1


def test_groups_of_models_stand_together():
    places = np.array([[0, 0], [0.5, 0.5], [0.01, 0], [0.5, 0.51], [0, 0.01], [0.51, 0.5]])
    names = ordering.arranged(atlas_of(places), "value").names
    assert {frozenset(names[:3]), frozenset(names[3:])} == {
        frozenset({"m0", "m2", "m4"}),
        frozenset({"m1", "m3", "m5"}),
    }


def test_undefined_similarities_are_drawn_as_undefined():
    atlas = atlas_of(np.array([[0, 0], [0.1, 0], [0, 0.1]]))
    atlas.loc[0, "value"] = np.nan
    found = ordering.arranged(atlas, "value")
    assert np.isnan(found.similarity).sum() == 2
    assert np.isfinite(found.places).all()


def test_negative_similarities_have_a_dot_and_undefined_ones_are_at_the_bottom():
    values = np.array([0.5, np.nan, -0.15, 0.9])
    figure = to_one(
        list("abcd"), values, np.full(4, np.nan), limits=(-0.2, 1), xlabel="RSA", title=""
    )
    (axes,) = figure.axes
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert names == ["b (undefined)", "c", "a", "d"]
    assert axes.get_xlim()[0] < -0.15


def test_the_axis_of_a_comparison_begins_below_its_smallest_value(tmp_path, monkeypatch):
    taken = []
    monkeypatch.setattr(model_maps, "to_one", lambda *given, limits, **words: taken.append(limits))
    paths = [keep(tmp_path, name, [noise(seed)]) for seed, name in enumerate("abcd")]
    found = compared(tmp_path, *paths, measure="rsa", first=True)
    drawing.figures(found.path)
    lowest = found.atlas["value"].min()
    assert lowest < 0  # of noise
    assert taken[-1][0] <= lowest
    assert taken[-1][0] > lowest - 0.11


def test_figures_are_drawn_again_from_the_tables(four):
    folder = compared(four, null=9, calibrated=True).path
    single = compared(four, four / "grams/a", four / "grams/b")
    star = compared(four, four / "grams/a", four / "grams", first=True, null=9)
    drawn = {path.name: path.read_bytes() for path in plot(folder)}
    assert drawn.keys() == {"atlas.png", "atlas_map.png"}
    assert single.figures().keys() == {"compare", "atlas", "atlas_map"}
    assert star.figures().keys() == {"atlas"}
    assert plot_joined([folder, single.path]) == []
    for path in folder.glob("*.png"):
        path.unlink()
    assert {path.name: path.read_bytes() for path in plot(folder)} == drawn


def test_a_damaged_comparison_is_told(four):
    folder = compared(four).path
    about = folder / record.NAME
    whole = about.read_text()
    for edited, said in (
        (whole[:-20], "comparison.json is damaged"),
        (
            json.dumps(json.loads(whole) | {"question": {"measure": "x"}}),
            "names no measure or no layers",
        ),
        (json.dumps(json.loads(whole) | {"finished": 1}), "finished is not true or false"),
    ):
        about.write_text(edited)
        with pytest.raises(UserError, match=said):
            plot(folder)
    about.write_text(whole)
    (folder / "atlas.csv").write_text("model,other\na,b\n")
    with pytest.raises(UserError, match=r"atlas.csv is damaged: it has no column measure"):
        plot(folder)


def test_the_report_has_the_atlas_and_the_layers_of_every_pair(four):
    found = compared(four)
    plot(found.path)
    shown = show_comparison(found.path, PageFiles(four, []), "anchor")
    names, layers = shown["map"]["rows"], shown["map"]["layers"]
    cells = [*base64.b64decode(shown["map"]["pairs"])]
    for i, j in itertools.combinations(range(4), 2):
        a, b = names[i], names[j]
        for x, y in itertools.product(layers[i], layers[j]):
            pair = {(a, x), (b, y)}
            (value,) = [
                row.value
                for row in found.table.itertuples()
                if {(row.model, row.model_layer), (row.other, row.other_layer)} == pair
            ]
            assert abs(cells.pop(0) / 254 - value) <= 0.5 / 254
    assert not cells
    page = report([four / "compare"]).read_text()
    assert "CKA of 4 models" in page
    assert 'data-figure="atlas"' in page


def test_the_report_names_comparisons_that_are_damaged_or_not_finished(four):
    folder = compared(four).path
    whole = (folder / record.NAME).read_text()
    (folder / record.NAME).write_text(whole.replace('"finished": true', '"finished": false'))
    with pytest.raises(UserError, match=r"no result in .* is finished"):
        report([folder])
    (folder / record.NAME).write_text(whole)
    (folder / "atlas.csv").write_text("model\na\n")
    assert "atlas.csv is damaged" in report([folder]).read_text().replace("<wbr>", "")


# --- many models ---------------------------------------------------------------------------------


def test_a_pattern_stands_for_every_timm_model_it_matches():
    words = ["analysis=grams", "model=timm", "model.timm=glob:test_vit*", "seed=1"]
    found = globs.expanded([*words, "model.pretrained=false"], sweep=True)
    assert found[:2] + found[3:] == [*words[:2], "seed=1", "model.pretrained=false"]
    assert set(found[2].removeprefix("model.timm=").split(",")) == set(
        timm.list_models("test_vit*")
    )
    published = globs.expanded(words, sweep=True)[2]
    assert published == f"model.timm={','.join(timm.list_pretrained('test_vit*'))}"
    assert globs.expanded(words[:2], sweep=False) == words[:2]


def test_a_pattern_that_cannot_be_used_is_told(command):
    code, _, err = command("run", "model=timm", "model.timm=glob:test_vit*")
    assert code == 2
    assert "stands for several models; add -m: vitsee run -m 'model.timm=glob:test_vit*'" in err
    code, _, err = command("run", "-m", "model=timm", "model.timm=glob:vit_bas_patch16_224*")
    assert code == 2
    assert "timm has no model with published weights of that name. Did you mean vit_base" in err


def test_a_sweep_over_a_pattern_measures_each_model(run_tiny, tmp_path):
    words = [
        "analysis=grams",
        "model.timm=glob:test_vit[23]",
        "images=8",
        "hydra.sweep.dir=" + str(tmp_path / "s"),
    ]
    code, _, err = run_tiny("-m", *words)
    assert code == 0, err
    assert {path.name for path in (tmp_path / "grams").iterdir()} == {"test_vit2", "test_vit3"}
    assert len(compared(tmp_path).atlas) == 1
