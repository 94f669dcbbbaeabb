"""Linear probes against scikit-learn's ridge regression, and what is refused."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from functools import reduce
from itertools import pairwise
from operator import add
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import timm
import torch
from conftest import TINY, composed, write_images
from PIL import Image
from sklearn.linear_model import Ridge as Reference

from vitsee.analyses.linear_probe import LinearProbe
from vitsee.analysis import Labels, Layer, Setting, View
from vitsee.data.few_shot import sample
from vitsee.data.images import Images
from vitsee.errors import Incomplete, UserError
from vitsee.estimators import places, ridge
from vitsee.models import layers, presets
from vitsee.papers.plot import plot, plot_joined
from vitsee.results.folder import Results
from vitsee.results.reading import Written
from vitsee.runner import run
from vitsee.sums import Sums

GRID = [2.0**e for e in range(-10, 21, 2)]


def random_features(n: int, d: int, classes: int, *, mean: float = 0) -> tuple:
    """Features (N, D) float64 of unequal scales that tell something about their labels (N,)."""
    generator = torch.Generator().manual_seed(n + d)
    y = torch.arange(n) % classes
    means = torch.randn(classes, d, generator=generator, dtype=torch.float64)
    x = means[y] + torch.randn(n, d, generator=generator, dtype=torch.float64)
    return x * torch.logspace(-2, 1, d, dtype=torch.float64) + mean, y


def solutions(x: torch.Tensor, y: torch.Tensor, classes: int) -> dict[str, ridge.Ridge]:
    one_hot = torch.nn.functional.one_hot(y, classes).double()
    return {
        "primal": ridge.from_sums(one_hot.sum(0), one_hot.mT @ x, x.mT @ x),
        "dual": ridge.from_rows(x, y, classes),
    }


def standardised(train: np.ndarray, x: np.ndarray) -> np.ndarray:
    return (x - train.mean(0)) / (train.std(0) + 1e-5)


def plain_probe(x: np.ndarray, y: np.ndarray, classes: int, l2: float) -> Reference:
    """scikit-learn's ridge regression to targets of -1 and +1."""
    return Reference(alpha=l2, solver="svd").fit(x, 2.0 * np.eye(classes)[y] - 1)


@pytest.mark.parametrize(("n", "d"), [(200, 30), (30, 80), (50, 50)])
@pytest.mark.parametrize("mean", [0, 10])  # as large as 1,000 deviations
@pytest.mark.parametrize("form", ["primal", "dual"])
def test_weights_and_predictions_are_those_of_scikit_learn_for_every_penalty(n, d, mean, form):
    x, y = random_features(n, d, 5, mean=mean)
    new = x.flip(0)[: n // 2] * 1.1 - 0.1 * mean
    found = solutions(x, y, 5)[form]
    scores = found.scores_of_each(new, GRID)
    for l2, mine in zip(GRID, scores, strict=True):
        z = standardised(x.numpy(), x.numpy())
        theirs = plain_probe(z, y.numpy(), 5, l2)
        expected = theirs.predict(standardised(x.numpy(), new.numpy()))
        classifier = found.classifier(torch.tensor(l2))
        np.testing.assert_allclose(found.weights(torch.tensor(l2)).mT, theirs.coef_, atol=1e-6)
        np.testing.assert_allclose(mine, expected, atol=1e-6)
        np.testing.assert_allclose(classifier.scores(new), expected, atol=1e-6)


@pytest.mark.parametrize(("n", "d"), [(200, 30), (30, 80)])
def test_the_primal_and_the_dual_form_agree(n, d):
    x, y = random_features(n, d, 4)
    both = [found.scores_of_each(x, GRID) for found in solutions(x, y, 4).values()]
    for one, other in zip(*both, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-7)


def test_features_that_vary_by_rounding_alone_count_as_constant():
    x, y = random_features(100, 10, 4)
    x[:, 3] = 7 + 1e-6 * torch.randn(100, generator=torch.Generator().manual_seed(0))
    for found in solutions(x, y, 4).values():
        assert found.scale[3] == 0
        without = solutions(x[:, [i for i in range(10) if i != 3]], y, 4)["primal"]
        expected = without.weights(torch.tensor(1.0))
        torch.testing.assert_close(
            found.weights(torch.tensor(1.0))[[*range(3), *range(4, 10)]], expected
        )


def test_examples_that_are_missing_do_not_count():
    x, y = random_features(40, 60, 4)
    y[5:9] = -1
    some = ridge.from_rows(x, y, 4).weights(torch.tensor(4.0))
    only = ridge.from_rows(x[y >= 0], y[y >= 0], 4).weights(torch.tensor(4.0))
    torch.testing.assert_close(some, only)


def test_the_penalty_with_the_most_correct_is_chosen_and_the_largest_of_equals():
    right = torch.tensor([[5.0, 7, 7, 6], [9, 1, 1, 1], [torch.nan] * 4])
    assert ridge.best(right, [1.0, 4.0, 16.0, 64.0]).tolist()[:2] == [16, 1]
    assert ridge.best(right, [1.0, 4.0, 16.0, 64.0])[2].isnan()
    assert ridge.best(right.flip(-1), [64.0, 16.0, 4.0, 1.0]).tolist()[:2] == [16, 1]


class Data(Images):
    """Features that stand for images, with labels."""

    def __init__(self, x: torch.Tensor, y: torch.Tensor, classes: list[str] | None = None) -> None:
        self.x, self.y = x, y
        self.classes = classes or [f"class {k}" for k in range(int(y.max()) + 1)]
        self.fingerprint = f"{len(x)} {float(x.nan_to_num().sum())}"

    def __len__(self) -> int:
        return len(self.x)

    def id(self, index: int) -> str:
        return str(index)

    def label(self, index: int) -> int:
        return int(self.y[index])

    def open(self, index: int) -> Image.Image:
        raise AssertionError("nothing is to be decoded here")


def on(probe: LinearProbe, *layers: Layer) -> LinearProbe:
    """The probe of these layers, which it accepts."""
    probe.check({"model": list(layers)})
    return probe.on(Setting(layers={"model": list(layers)}))


def measured(
    train: Data, test: Data, *, layer: Layer | None = None, batch: int = 64, **options
) -> tuple[pd.DataFrame, list[str], LinearProbe]:
    """Table and warnings of the probe of one layer, given minibatch by minibatch, last ones first."""
    layer = layer or Layer("features", tuple(train.x.shape[1:]), None, depth=1.0)
    data = [train, train, test]
    setting = Setting(layers={"model": [layer]}, images=data)
    options_alone = LinearProbe(**options)
    options_alone.check({"model": [layer]})
    before: list[Sums] = []
    for stage in range(3):
        probe = options_alone.on(replace(setting, earlier=tuple(before)))
        selected = probe.select(stage)
        order = range(len(test)) if selected is None else selected
        cuts = [list(range(i, min(i + batch, len(order)))) for i in range(0, len(order), batch)]
        sums = []
        for b, positions in enumerate(cuts):
            ids = [order[p] for p in positions]
            reduced = {layer.name: probe.reduce(layer, data[stage].x[ids])}
            view = View(
                len(ids),
                data[stage].y[ids],
                reduced,
                positions=positions,
                planned=len(order),
                stage=stage,
            )
            sums.append(Sums.of(b, len(cuts), probe.observe(view), {"model": [layer.name]}))
        before.append(reduce(add, reversed(sums)).complete())
    return probe.tables(before[-1]), probe.warnings(before[-1]), probe


def plain_accuracy(train: Data, test: Data, shots: int, seed: int) -> tuple[float, float]:
    """Chosen penalty and accuracy, in the plain way: every model fitted, the best kept."""
    drawn = sample(train, shots, None, [seed])
    x, y = train.x.double().numpy(), train.y.numpy()
    fit, held = drawn.train[0], drawn.held_out
    z = [standardised(x[fit], part) for part in (x[fit], x[held], test.x.double().numpy())]
    models = {l2: plain_probe(z[0], y[fit], len(train.classes), l2) for l2 in GRID}
    right = {l2: (model.predict(z[1]).argmax(1) == y[held]).mean() for l2, model in models.items()}
    l2 = max(GRID, key=lambda value: (right[value], value))
    return l2, float((models[l2].predict(z[2]).argmax(1) == test.y.numpy()).mean())


@pytest.mark.parametrize(("shots", "d"), [(5, 64), (30, 16), (0, 24)])
def test_the_whole_probe_is_that_of_a_plain_reference(shots, d):
    x, y = random_features(500, d, 6)
    x = x + 2 * torch.randn(x.shape, generator=torch.Generator().manual_seed(9)) * x.std(0)
    train, test = Data(x[:400].float(), y[:400]), Data(x[400:].float(), y[400:])
    table = measured(train, test, shots=shots, seeds=[3, 8])[0]["linear_probe"]
    assert list(table.columns[:7]) == [
        "layer", "depth", "features", "shots", "seed", "l2", "accuracy",
    ]  # fmt: skip
    assert table["seed"].tolist() == ([3, 8] if shots else [3])
    for row in table.itertuples():
        l2, accuracy = plain_accuracy(train, test, shots, row.seed)
        assert row.l2 == l2
        assert row.accuracy == pytest.approx(accuracy, abs=1e-12)
        assert 0.3 < row.accuracy < 1


def cifar(test_data: Path, split: str, count: int) -> Data:
    arrays = np.load(test_data / "cifar10_lossless_5k.npz")
    x = torch.from_numpy(arrays[f"{split}_x"][:count].reshape(count, -1).astype(np.float32))
    return Data(x, torch.from_numpy(arrays[f"{split}_y"][:count].astype(np.int64)))


@pytest.mark.parametrize("shots", [0, 10])
def test_raw_pixels_of_cifar10_are_classified_as_by_a_plain_reference(shots, test_data):
    train, test = cifar(test_data, "train", 1500), cifar(test_data, "test", 1000)
    train.x, test.x = (
        x.unflatten(1, (32, 32, 3))[:, ::4, ::4].flatten(1) for x in (train.x, test.x)
    )
    table = measured(train, test, shots=shots, seeds=[0])[0]["linear_probe"]
    l2, accuracy = plain_accuracy(train, test, shots, 0)
    assert table["l2"].item() == l2
    assert table["accuracy"].item() == pytest.approx(accuracy, abs=0.001)
    assert 0.15 < accuracy < 0.45  # better than chance, far from a trained network


def test_a_random_network_on_cifar10_is_that_of_a_plain_reference(test_data, tmp_path, undrawn):
    arrays = np.load(test_data / "cifar10_lossless_5k.npz")
    for split, count in (("train", 300), ("test", 100)):
        pairs = zip(arrays[f"{split}_x"][:count], arrays[f"{split}_y"][:count], strict=True)
        for i, (pixels, label) in enumerate(pairs):
            path = tmp_path / "cifar" / split / f"{label}" / f"{i:04d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)
    words = [*TINY, "dataset=folder", f"dataset.root={tmp_path / 'cifar'}", "dataset.split=test"]
    quiet = ["run.device=cpu", "run.workers=0", "run.progress=false"]
    options = ["analysis=linear_probe", "analysis.seeds=[0]", "analysis.layers=[blocks.1,blocks.5]"]
    options += [f"run.outputs={tmp_path / 'out'}"]
    table = pd.read_csv(run(composed(*words, *quiet, *options)).files[0])
    data = [plain_features(tmp_path / "cifar" / split) for split in ("train", "test")]
    for name, row in table.set_index("layer").iterrows():
        train, test = (Data(x[name], y) for x, y in data)
        l2, accuracy = plain_accuracy(train, test, 10, 0)
        assert row["l2"] == l2
        assert row["accuracy"] == pytest.approx(accuracy, abs=0.001)
    assert list(table["layer"]) == ["blocks.1", "blocks.5"]


def plain_features(folder: Path) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Mean over all tokens of every block of the tiny network, by plain hooks; and labels."""
    torch.manual_seed(0)
    net = timm.create_model("test_vit").eval()
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(net))
    paths = sorted(folder.rglob("*.png"), key=lambda p: (int(p.parent.name), p.name))
    pixels = torch.stack([transform(Image.open(path).convert("RGB")) for path in paths])
    kept: dict[str, torch.Tensor] = {}
    for i, block in enumerate(net.blocks):
        block.register_forward_hook(
            lambda module, args, output, name=f"blocks.{i}": kept.update({name: output.mean(1)})
        )
    with torch.no_grad():
        net(pixels)
    return kept, torch.tensor([int(path.parent.name) for path in paths])


def test_seeds_vary_as_the_binomial_distribution_says_where_features_tell_nothing():
    generator = torch.Generator().manual_seed(0)
    data = [Data(torch.randn(n, 20, generator=generator), torch.arange(n) % 5) for n in (400, 500)]
    table = measured(*data, shots=10, seeds=list(range(60)))[0]["linear_probe"]
    assert table["accuracy"].mean() == pytest.approx(0.2, abs=0.01)
    assert table["accuracy"].std() == pytest.approx(np.sqrt(0.2 * 0.8 / 500), rel=0.3)


def test_draws_are_balanced_disjoint_from_those_held_out_and_differ_between_seeds():
    data = Data(torch.zeros(300, 1), torch.arange(300) % 3)
    drawn = sample(data, 10, 7, [0, 1, 2])
    for images in drawn.train:
        assert np.bincount(images % 3).tolist() == [10, 10, 10]
        assert not set(images) & set(drawn.held_out)
    assert np.bincount(drawn.held_out % 3).tolist() == [7, 7, 7]
    assert len({tuple(images) for images in drawn.train}) == 3
    alone = sample(data, 10, 7, [2])
    assert (alone.train[0] == drawn.train[2]).all()
    assert (alone.held_out == drawn.held_out).all()


def test_without_shots_the_first_nine_tenths_train_and_the_last_choose():
    generator = torch.Generator().manual_seed(0)
    mixed = torch.randint(
        3, (300,), generator=generator
    )  # as CIFAR: not the same number in the end
    drawn = sample(Data(torch.zeros(300, 1), mixed), 0, None, [0])
    assert drawn.train[0].tolist() == list(range(270))
    assert drawn.held_out.tolist() == list(range(270, 300))
    assert len(sample(Data(torch.zeros(300, 1), mixed), 0, 7, [0]).held_out) == 21


def test_without_shots_a_tenth_of_each_class_chooses_where_classes_are_listed_in_turn():
    data = Data(torch.zeros(300, 1), torch.arange(300) // 100)
    drawn = sample(data, 0, None, [0])
    assert drawn.held_out.tolist() == [*range(90, 100), *range(190, 200), *range(290, 300)]
    assert not set(drawn.held_out) & set(drawn.train[0])
    down = np.repeat([2, 0, 1], 100)  # class by class, in another order
    drawn = sample(Data(torch.zeros(300, 1), torch.from_numpy(down)), 0, None, [0])
    assert drawn.held_out.tolist() == [*range(90, 100), *range(190, 200), *range(290, 300)]
    assert drawn.train.shape == (1, 270)


TOKENS = Layer(
    "blocks.0", (10, 8), prefix=1, class_token=True, grid=(3, 3), pitch=(8, 8), depth=1.0
)


def test_features_are_the_tokens_that_their_names_say():
    x = torch.randn(4, 10, 8, generator=torch.Generator().manual_seed(0))
    probe = on(LinearProbe(features=["gap", "cls", "gap_patches", "first", "each_token"]), TOKENS)
    seen = probe.reduce(TOKENS, x)
    expected = [x.mean(1), x[:, 0], x[:, 1:].mean(1), x[:, 0], *x[:, 1:].unbind(1)]
    torch.testing.assert_close(seen, torch.stack(expected, 1))


def test_a_stride_keeps_some_rows_and_columns_of_the_tokens():
    x = torch.randn(4, 10, 8, generator=torch.Generator().manual_seed(0))
    probe = on(LinearProbe(features="each_token", token_stride=2), TOKENS)
    torch.testing.assert_close(probe.reduce(TOKENS, x), x[:, [1, 3, 7, 9]])


def test_maps_of_a_cnn_are_cut_into_patches_and_pooled_to_the_grid_of_the_last():
    early = Layer("layer1", (4, 8, 8), None, grid=(8, 8))
    last = Layer("layer4", (20, 2, 2), None, grid=(2, 2))
    probe = on(LinearProbe(features=["gap", "each_token"]), early, last)
    x = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    seen = probe.reduce(early, x)
    assert seen.shape == (3, 5, 16)  # 4 channels x 2 x 2 pixels
    for i, (row, col) in enumerate([(0, 0), (0, 4), (4, 0), (4, 4)]):
        quarter = x[:, :, row : row + 4, col : col + 4]
        patches = [quarter[:, :, r : r + 2, c : c + 2] for r in (0, 2) for c in (0, 2)]
        torch.testing.assert_close(seen[:, 1 + i], torch.stack(patches).mean(0).flatten(1))
    torch.testing.assert_close(seen[:, 0], seen[:, 1:].mean(1))


def test_maps_with_their_channels_last_have_the_features_of_maps_with_their_channels_first():
    x = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    last = Layer("layer4", (20, 2, 2), None, grid=(2, 2))
    turned = Layer("head.norm", (2, 2, 20), None, grid=(2, 2), channels_last=True)
    seen, widths = [], []
    for deepest, layer, output in (
        (last, Layer("a", (4, 8, 8), None, grid=(8, 8)), x),
        (
            turned,
            Layer("a", (8, 8, 4), None, grid=(8, 8), channels_last=True),
            x.permute(0, 2, 3, 1),
        ),
    ):
        probe = on(LinearProbe(features=["gap", "each_token"]), layer, deepest)
        seen.append(probe.reduce(layer, output))
        widths.append(probe._seen.width(layer))
    assert seen[0].equal(seen[1])
    assert widths == [16, 16]
    with pytest.raises(
        UserError, match=r"q_norm is neither a sequence of tokens, nor a feature map"
    ):
        LinearProbe().check({"model": [Layer("q_norm", (3, 197, 64), None)]})


@pytest.mark.parametrize(
    ("shape", "side"),
    [
        ((256, 56, 56), 2),
        ((512, 28, 28), 2),
        ((1024, 14, 14), 1),
        ((2048, 7, 7), 1),
        ((24, 56, 56), 8),
    ],
)
def test_the_patches_of_a_resnet50_are_those_of_the_paper(shape, side):
    assert places.patch_side(shape, 2048, (7, 7)) == side


def test_the_accuracy_of_each_token_is_the_mean_over_its_tokens_with_a_map_beside(tmp_path, images):
    options = [*TINY, "dataset=folder", f"dataset.root={images}", "analysis=linear_probe"]
    more = ["analysis.train_split=null", "analysis.shots=3", "analysis.features=[gap,each_token]"]
    quiet = [f"run.outputs={tmp_path}", "run.device=cpu", "run.workers=0", "run.progress=false"]
    written = run(composed(*options, *more, *quiet))
    tables = Results(written.folder).tables()
    table, tokens = tables["linear_probe"], tables["linear_probe_tokens"]
    columns = ["layer", "depth", "row", "col", "shots", "seed", "l2", "accuracy"]
    assert list(tokens.columns) == columns
    means = table[table["features"] == "each_token"].set_index(["layer", "seed"])["accuracy"]
    expected = tokens.groupby(["layer", "seed"])["accuracy"].mean()
    np.testing.assert_allclose(means, expected[means.index], rtol=1e-12)
    assert {path.name for path in written.files if path.suffix == ".png"} == {
        "linear_probe.png", "linear_probe_tokens.png",
    }  # fmt: skip


def test_tokens_probed_with_a_stride_are_drawn_unless_a_place_is_missing(tmp_path, images):
    words = ["analysis.train_split=null", "analysis.shots=3", "analysis.seeds=[0]"]
    words += ["analysis.features=each_token", "analysis.token_stride=3", "analysis.layers=blocks.0"]
    written = tiny_run(tmp_path, images, *words)
    assert "linear_probe_tokens.png" in {path.name for path in written.files}
    path = written.folder / "linear_probe_tokens.csv"
    table = pd.read_csv(path)
    assert sorted(set(table["row"])) == [0, 3, 6, 9]
    for lost in (table["row"] == 3, (table["row"] == 6) & (table["col"] == 9)):
        table[~lost].to_csv(path, index=False)
        with pytest.raises(UserError, match=rf"{lost.sum()} of 16 rows of the grid row x col"):
            plot(path.parent)


@pytest.mark.parametrize("shots", [4, 20])
def test_constant_features_have_no_accuracy_and_a_warning(shots):
    x, y = random_features(200, 20, 4)
    table, warnings, _ = measured(Data(x * 0 + 3.3, y), Data(x + 1, y), shots=shots, seeds=[0])
    assert table["linear_probe"][["l2", "accuracy"]].isna().to_numpy().all()
    assert len(warnings) == 1
    assert "gap of features: 1 of 1 probes have no accuracy" in warnings[0]
    assert "constant over the training images" in warnings[0]


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize(
    ("where", "reason"),
    [
        ("train", "of training images are NaN or Inf"),
        ("held out", "or NaN or Inf in held-out ones"),
        ("test", "of test images are NaN or Inf"),
    ],
)
@pytest.mark.parametrize("shots", [4, 20])
def test_nan_and_inf_have_no_accuracy_and_a_warning(value, where, reason, shots):
    x, y = random_features(200, 20, 4)
    data = {"train": Data(x.clone(), y), "test": Data(x + 1, y)}
    drawn = sample(data["train"], shots, None, [0])
    index = drawn.held_out[0] if where == "held out" else drawn.train[0][0]
    data["test" if where == "test" else "train"].x[index] = value
    table, warnings, _ = measured(data["train"], data["test"], shots=shots, seeds=[0])
    assert table["linear_probe"]["accuracy"].isna().all()
    assert len(warnings) == 1
    assert reason in warnings[0]


def test_seeds_that_cannot_differ_are_named():
    x, y = random_features(40, 20, 4)
    warnings = measured(Data(x, y), Data(x + 1, y), shots=5, seeds=[0, 1])[1]
    assert "all seeds draw the same training images" in warnings[0]
    assert not measured(Data(x, y), Data(x + 1, y), shots=4, seeds=[0, 1])[1]


def test_labels_of_the_test_are_matched_by_the_names_of_classes():
    x, y = random_features(200, 20, 4)
    train = Data(x, y, ["a", "b", "c", "d"])
    same = Data(x + 0.01, y, ["a", "b", "c", "d"])
    some = Data(same.x[(y == 1) | (y == 3)], (y[(y == 1) | (y == 3)] - 1) // 2, ["b", "d"])
    accuracy = measured(train, same, seeds=[0])[0]["linear_probe"]["accuracy"].item()
    assert accuracy > 0.9
    assert measured(train, some, seeds=[0])[0]["linear_probe"]["accuracy"].item() > 0.9
    with pytest.raises(UserError, match=r"1 classes that the training images lack \(first: 'e'\)"):
        measured(train, Data(x + 1, y, ["a", "b", "c", "e"]))


def test_a_class_with_too_few_images_is_refused():
    y = torch.cat([torch.arange(60) % 3, torch.full((12,), 3)])
    data = Data(torch.zeros(72, 2), y, ["ant", "bee", "cat", "dog"])
    message = (
        r"class 'dog' has 12 training images, but 20 are needed \(10 to train, 10 held out .*1 of 4"
    )
    with pytest.raises(UserError, match=message + r".*analysis\.shots=6 or less"):
        sample(data, 10, None, [0])
    assert sample(data, 6, None, [0]).train.shape == (1, 24)
    with pytest.raises(
        UserError, match=r"class 'one' has 1 .* Use a training set with more images"
    ):
        sample(Data(torch.zeros(3, 1), torch.tensor([0, 0, 1]), ["two", "one"]), 0, None, [0])


def test_images_without_classes_are_refused(tmp_path):
    for i in range(30):
        path = tmp_path / "flat" / f"{i}.png"
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (8, 8), (8 * i, 0, 0)).save(path)
    with pytest.raises(UserError, match=r"at least two classes, but all 30 .*folder of its own"):
        tiny_run(tmp_path, tmp_path / "flat", "analysis.train_split=null")


def tiny_run(tmp_path: Path, root: Path, *overrides: str) -> Written:
    quiet = [f"run.outputs={tmp_path / 'out'}", "run.device=cpu", "run.workers=0"]
    words = [*TINY, "dataset=folder", f"dataset.root={root}", "analysis=linear_probe", *quiet]
    return run(composed(*words, "run.progress=false", *overrides))


def test_a_test_split_that_is_the_training_split_is_refused(tmp_path):
    write_images(tmp_path / "data" / "train", 40)
    with pytest.raises(
        UserError, match=r"the test images are the training images .*dataset\.split"
    ):
        tiny_run(tmp_path, tmp_path / "data", "dataset.split=train", "analysis.shots=2")


def test_data_without_a_training_split_are_refused(tmp_path, images):
    with pytest.raises(
        UserError, match=r"has no folder 'train'; .* in no splits: (analysis\.\S+=null)$"
    ) as said:
        tiny_run(tmp_path, images)
    advised = re.search(r"analysis\.\S+=null", str(said.value))
    assert advised
    assert tiny_run(tmp_path, images, advised[0], "analysis.shots=2", "analysis.seeds=[0]")


def test_a_few_shot_run_reads_only_the_images_that_it_needs(tmp_path):
    train = write_images(tmp_path / "data" / "train", 40)
    write_images(tmp_path / "data" / "test", 16, seed=1)
    words = ["dataset.split=test", "analysis.shots=2", "analysis.seeds=[0]"]
    written = tiny_run(tmp_path, tmp_path / "data", *words)
    record = json.loads((written.folder / "made_with.json").read_text())
    used = [set(each["image_ids"]) for each in record["passes"]]
    assert [len(ids) for ids in used] == [4, 4, 16]
    for path in train.rglob("*.png"):
        if path.relative_to(train).as_posix() not in used[0] | used[1]:
            path.write_bytes(path.read_bytes()[:50].ljust(path.stat().st_size, b"x"))
    again = tiny_run(tmp_path / "again", tmp_path / "data", *words)
    assert again.files[0].read_bytes() == written.files[0].read_bytes()


def test_an_image_that_is_skipped_is_neither_trained_on_nor_counted(tmp_path, images):
    split = write_images(tmp_path / "data", 40)
    words = ["analysis.train_split=null", "analysis.shots=8", "analysis.seeds=[0]"]
    whole = tiny_run(tmp_path, split, *words)
    record = json.loads((whole.folder / "made_with.json").read_text())
    for each in record["passes"]:
        (split / each["image_ids"][0]).write_bytes(b"not an image")
    words.append("dataset.on_bad_image=skip")
    table = pd.read_csv(tiny_run(tmp_path / "again", split, *words).files[0])
    tested = len(record["passes"][-1]["image_ids"])
    assert (table["test_images"] == tested - 1).all()
    assert (table["accuracy"] * (tested - 1) % 1).round(9).isin([0, 1]).all()


def test_a_shard_without_minibatches_of_a_pass_says_what_is_missing(tmp_path, images):
    words = ["analysis.train_split=null", "analysis.shots=2", "run.shards=3", "run.shard=2"]
    with pytest.raises(Incomplete, match=r"1 of 1 minibatches are missing .*available: nothing"):
        tiny_run(tmp_path, images, *words)


def test_images_limits_those_that_test(tmp_path, images):
    words = ["analysis.train_split=null", "analysis.shots=2", "batch_size=4"]
    table = pd.read_csv(tiny_run(tmp_path, images, *words, "images=6").files[0])
    assert (table["test_images"] == 6).all()
    with pytest.raises(UserError, match=r"images=40, but only 2\d of images\d* are left"):
        tiny_run(tmp_path, images, *words, "images=40")
    with pytest.raises(UserError, match=r"no images are left to test on: all 40 are drawn"):
        tiny_run(tmp_path, images, "analysis.train_split=null")


@pytest.mark.parametrize(
    ("layer", "features", "message"),
    [
        (
            Layer("layer1", (4, 8, 8), None, grid=(8, 8)),
            "cls",
            r"layer1 has no class token \(its output",
        ),
        (Layer("b", (9, 4), 0, grid=(3, 3)), "cls", "b has no class token"),
        (Layer("fc", (10,), None), "each_token", "fc has no grid of tokens or locations"),
        (
            Layer("odd", (7, 7, 32), None),
            "gap",
            "odd is neither a sequence of tokens, nor a feature map",
        ),
    ],
)
def test_features_that_a_layer_does_not_have_are_refused(layer, features, message):
    with pytest.raises(UserError, match=message):
        LinearProbe(features=features).check({"model": [layer]})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"features": "gapp"},
            r"there is no analysis\.features=gapp; they can be: .*Did you mean gap\?",
        ),
        ({"features": []}, r"analysis\.features must name at least one of: cls, gap"),
        ({"shots": -1}, r"analysis\.shots must be at least 0, got -1"),
        ({"held_out": 0}, r"analysis\.held_out must be at least 1, got 0"),
        ({"token_stride": 0}, r"analysis\.token_stride must be at least 1"),
        ({"seeds": [1, 1]}, r"analysis\.seeds must be distinct numbers"),
        ({"l2": [0.0]}, r"analysis\.l2 must be penalties above 0, got \[0\.0\]"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        LinearProbe(**options)


def test_sums_that_do_not_fit_are_refused_before_any_image_with_their_size_and_what_to_do(
    tmp_path, images
):
    words = ["analysis.train_split=null", "analysis.shots=8", "analysis.seeds=[0,1]"]
    few = "run.memory_gb=0.00001"
    with pytest.raises(
        UserError, match=r"need 0\.0 GB, but 0\.0 GB are available \(run\.memory_gb\); use few"
    ):
        tiny_run(tmp_path, images, *words, few)
    assert not list(tmp_path.rglob("*.pt"))


def test_the_probes_of_every_token_of_a_large_vit_are_refused_on_a_small_machine():
    large = [
        Layer(f"blocks.{i}", (197, 1024), 1, True, grid=(14, 14), pitch=(16, 16)) for i in range(24)
    ]
    train = Data(torch.zeros(11_000, 1), torch.arange(11_000) % 10)
    probe = LinearProbe(features="each_token", shots=500)
    probe = probe.on(Setting(layers={"model": large}, images=[train]))
    message = r"24 layers x 196 probes x 1,024 features x 3 seeds need 334\.\d GB, but 64\.0 GB are available"
    remedies = r"token_stride=2.*seeds=\[0\].*kernel form.*analysis\.shots=102 or fewer"
    with pytest.raises(UserError, match=f"{message}.*{remedies}"):
        probe.check_memory(64 * 2**30)
    probe.check_memory(400 * 2**30)


@pytest.mark.parametrize("shots", [4, 60])
def test_the_size_that_is_foretold_is_that_of_the_sums(shots):
    x, y = random_features(400, 40, 3)
    probe = measured(Data(x, y), Data(x + 1, y), shots=shots)[2]
    (layer,) = probe._layers
    found = [term for name, term in probe.setting.earlier[0].terms.items() if name != "there"]
    assert sum(8 * term.numel() for term in found) == probe._bytes(layer)


def test_the_depth_of_a_layer_is_the_share_of_blocks_that_have_run():
    net = timm.create_model("test_vit")
    survey = layers.survey(net, (3, 160, 160))
    found = {l.name: l.depth for l in presets.choose(net, survey, ["paper"])}
    blocks = [found[f"blocks.{i}"] for i in range(len(net.blocks))]
    assert blocks == [(i + 1) / len(net.blocks) for i in range(len(net.blocks))]
    assert found["blocks.0.norm1"] == blocks[0]
    assert found["norm"] == 1
    assert all(a <= b for a, b in pairwise(found.values()))


def test_several_results_are_joined_in_one_figure_where_all_lie(tmp_path, images):
    words = ["analysis.train_split=null", "analysis.shots=3", "analysis.seeds=[0]"]
    folders = [tiny_run(tmp_path, images, *words, f"model.seed={seed}").folder for seed in (0, 1)]
    (joined,) = plot_joined(folders)
    assert joined.parent == folders[0].parent
    assert joined.name.startswith("linear_probe-")
    before = joined.read_bytes()
    assert plot_joined(folders) == [joined]
    assert joined.read_bytes() == before


def test_lines_of_a_joined_figure_say_what_differs():
    from vitsee.analysis import Labels

    def table(*features: str) -> pd.DataFrame:
        rows = [(f"b.{i}", i, f, 10, 0, 1.0, 0.5, 0.5, 100, 4) for f in features for i in (0, 1)]
        names = "layer depth features shots seed l2 accuracy held_out_accuracy test_images classes"
        return pd.DataFrame(rows, columns=names.split())

    def lines(*results: tuple) -> list[str]:
        tables = [({"linear_probe": t}, Labels(m, None, "scenes", 100)) for m, t in results]
        figure = LinearProbe().joined(tables)["linear_probe"]
        return [line.get_label() for line in figure.axes[0].get_lines()]

    assert lines(("a", table("gap")), ("b", table("gap"))) == ["a", "b", "chance"]
    assert lines(("a", table("gap", "cls")), ("b", table("gap"))) == [
        "a, mean of all tokens", "a, class token", "b, mean of all tokens", "chance",
    ]  # fmt: skip
    assert lines(("a", table("gap"))) == ["mean of all tokens", "chance"]


def test_layers_of_a_block_are_points_of_their_own():
    layers = ["b.0.attn", "b.0", "b.1.attn", "b.1"]
    rows = {"layer": layers, "depth": [0.5, 0.5, 1, 1], "accuracy": [0.1, 0.2, 0.4, 0.8]}
    table = pd.DataFrame(rows).assign(features="gap", shots=5, seed=0, classes=16)
    labels = Labels("vit", None, "scenes", 100)
    (line, _) = (
        LinearProbe().joined([({"linear_probe": table}, labels)])["linear_probe"].axes[0].lines
    )
    assert line.get_xydata().tolist() == [[0.25, 10], [0.5, 20], [0.75, 40], [1, 80]]


def test_layers_before_the_first_block_are_on_the_page_and_unknown_depths_are_drawn_by_training():
    rows = {"layer": ["patch_embed", "norm_pre", "b.0"], "depth": [0.0, 0.0, 1.0]}
    table = pd.DataFrame(rows | {"accuracy": [0.1, 0.2, 0.4]})
    table = table.assign(features="gap", shots=5, seed=0, classes=16)
    labels = Labels("vit", None, "scenes", 100, family="ViT", train_images=10)
    drawn = LinearProbe().joined([({"linear_probe": table}, labels)])
    assert drawn["linear_probe"].axes[0].lines[0].get_xdata().tolist() == [0, 0.5, 1]
    rows = {"layer": ["stem", "pos_drop", "b.0.attn", "b.0", "b.1"], "depth": [0, 0, 0.5, 0.5, 1]}
    more = pd.DataFrame(rows).assign(accuracy=0.1, features="gap", shots=5, seed=0, classes=16)
    drawn_more = LinearProbe().joined([({"linear_probe": more}, labels)])["linear_probe"]
    places = drawn_more.axes[0].lines[0].get_xdata()
    assert places == pytest.approx([0, 0.5 / 3, 1 / 3, 0.5, 1])
    unknown = table.assign(depth=np.nan)
    drawn = LinearProbe().joined([({"linear_probe": unknown}, labels)])
    (line, _) = drawn["linear_probe_by_training"].axes[0].lines
    assert line.get_ydata().tolist() == [40]


def test_the_same_model_on_more_images_of_a_set_is_a_line_of_its_own():
    rows = {"layer": ["b.0", "b.1"], "depth": [0.5, 1.0], "features": "gap", "shots": 5, "seed": 0}
    results = []
    for images, accuracy in ((640, 0.2), (1280, 0.8)):
        table = pd.DataFrame(rows | {"classes": 16, "accuracy": accuracy})
        results.append(({"linear_probe": table}, Labels("vit", None, "scenes", images)))
    figure = LinearProbe().joined(results)["linear_probe"]
    found = {line.get_label(): line.get_ydata()[0] for line in figure.axes[0].lines[:2]}
    assert found == {
        "mean of all tokens, 640 images of scenes": 20,
        "mean of all tokens, 1,280 images of scenes": 80,
    }


def trained_on(name: str, images: int | None, accuracy: float, dataset: str = "scenes"):
    """The result of a model that was trained on so many images, probed at two depths."""
    rows = {"features": "gap", "shots": 5, "seed": 0, "classes": 16, "depth": [0.5, 1.0]}
    table = pd.DataFrame(rows | {"accuracy": [0.1, accuracy], "layer": ["b.0", "b.1"]})
    family = "ViT" if name.startswith("vit") else "ResNet"
    labels = Labels(name, None, dataset, 100, family=family, train_images=images)
    return {"linear_probe": table}, labels


def test_the_deepest_layers_of_a_family_are_a_line_over_the_images_it_was_trained_on():
    results = [
        trained_on("vit_10", 10, 0.3),
        trained_on("vit", 100, 0.8),
        trained_on("rn", 100, 0.9),
    ]
    figure = LinearProbe().joined(results)["linear_probe_by_training"]
    found = {line.get_label(): line.get_xydata().tolist() for line in figure.axes[0].lines}
    assert found["vit"] == [[10, 30], [100, 80]]
    assert found["rn"] == [[100, 90]]


@pytest.mark.parametrize(
    "other", [trained_on("rn", None, 0.9), trained_on("rn", 100, 0.9, "cifar10")]
)
def test_models_without_a_card_or_probed_on_other_images_share_no_line_over_training_images(other):
    assert list(LinearProbe().joined([trained_on("vit", 10, 0.3), other])) == ["linear_probe"]
