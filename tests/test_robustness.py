"""Dropped and shuffled images against plain loops, and that changes of strength 0 change nothing."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import composed
from test_token_norm import experiment
from torch import nn

from vitsee.analyses import robustness
from vitsee.analyses.robustness import Robustness
from vitsee.analysis import Layer, View
from vitsee.errors import UserError
from vitsee.estimators.attention import reached
from vitsee.estimators.changed_images import drop, dropped_first, shuffle, shuffled
from vitsee.models.taps import watch
from vitsee.options import Precision
from vitsee.runner import minibatches, observer, run
from vitsee.study import Study

pytestmark = pytest.mark.usefixtures("undrawn")

OWN = ("analysis=robustness", "images=6", "batch_size=4", "analysis.grid=5")
FEW = ("analysis.drops=[0.0,0.5,1.0]", "analysis.shuffles=[1,3]")
OTHER = ("model@other=timm", "other.timm=test_vit", "other.pretrained=false")


def test_dropped_patches_are_the_first_of_the_order_and_nothing_else_changes():
    pixels = torch.randn(3, 3, 10, 13)  # no side is a multiple of the grid
    order = dropped_first(4, [5, 0, 9], seed=1)
    for share in (0, 0.25, 0.6, 1):
        found = drop(pixels, order, 4, share, (7, 8, 9)).numpy()
        for n, y, x in np.ndindex(3, 10, 13):
            gone = order[n, : round(share * 16)].tolist()
            patch = (y * 4 // 10) * 4 + x * 4 // 13
            expected = [7, 8, 9] if patch in gone else pixels[n, :, y, x].tolist()
            assert found[n, :, y, x].tolist() == expected
    assert drop(pixels, order, 4, 0, (7, 8, 9)).equal(pixels)


def test_shuffled_tiles_are_those_of_the_order_and_the_rest_stays():
    pixels = torch.randn(2, 3, 10, 13)
    order = shuffled(3, [4, 2], seed=1)
    found = shuffle(pixels, 3, order)
    for n, place in np.ndindex(2, 9):
        (r, c), (from_r, from_c) = divmod(place, 3), divmod(int(order[n, place]), 3)
        there = found[n, :, 3 * r : 3 * r + 3, 4 * c : 4 * c + 4]
        assert there.equal(pixels[n, :, 3 * from_r : 3 * from_r + 3, 4 * from_c : 4 * from_c + 4])
    assert found[:, :, 9:].equal(pixels[:, :, 9:])
    assert found[..., 12:].equal(pixels[..., 12:])
    assert shuffle(pixels, 1, shuffled(1, [4, 2], 1)).equal(pixels)


def test_masks_and_shuffles_depend_on_the_image_and_the_seed_alone():
    for made in (dropped_first, shuffled):
        first = made(4, [3, 7, 8], 0)
        assert first[1:].equal(made(4, [7, 8], 0))
        assert not first[0].equal(first[1])
        assert not first.equal(made(4, [3, 7, 8], 1))
        assert all(sorted(row) == list(range(16)) for row in first.tolist())


def test_salient_patches_go_first_and_equal_ones_at_random():
    saliency = torch.tensor([[0.0, 3, 1, 3], [2, 2, 2, 2]])
    order = dropped_first(2, [0, 1], 0, saliency).tolist()
    assert {*order[0][:2]} == {1, 3}
    assert order[0][2:] == [2, 0]
    assert order[1] == dropped_first(2, [1], 0)[0].tolist()


@pytest.fixture(scope="module")
def table(images, tmp_path_factory) -> tuple[Study, pd.DataFrame]:
    asked = experiment(images, tmp_path_factory.mktemp("out"), *OWN, *FEW, *OTHER)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vitsee.runner.draw", lambda *path, **options: [])
        return Study(asked), pd.read_csv(run(asked).files[0])


def test_a_drop_of_nothing_and_a_shuffle_of_one_tile_change_nothing(table):
    rows = table[1]
    same = rows[(rows["strength"] == 0) | ((rows["change"] == "shuffle") & (rows["strength"] == 1))]
    assert list(same["change"]) == ["drop_random", "drop_salient", "drop_other", "shuffle"]
    assert (same["agreement"] == 1).all()
    np.testing.assert_allclose(same["cosine"], 1, atol=1e-6)
    assert (rows[rows["strength"] == 0.5]["cosine"] < 1 - 1e-6).all()


def test_without_any_patch_all_drops_are_one(table):
    gone = table[1][(table[1]["strength"] == 1) & (table[1]["change"] != "shuffle")]
    assert len(gone) == 3
    assert gone.drop(columns="change").drop_duplicates().shape[0] == 1


def test_agreement_and_cosine_are_those_of_changed_images_run_by_hand(table):
    """In float64, with masks made patch by patch from the other model's rollout."""
    study, found = table
    saliencies = rollouts(study)
    net = study.models["model"].net.double()
    kept: list[torch.Tensor] = []
    last = study.layers["model"][0].name
    hook = net.get_submodule(last).register_forward_hook(lambda m, a, out: kept.append(out[:, 0]))
    mean, std = (np.array(study.models["model"].data[key]) for key in ("mean", "std"))
    clean, changed = [], []
    with torch.no_grad():
        for batch in minibatches(study, 0, [0, 1]):
            at = study.plan.positions(batch.index, batch.ids)
            x = batch.pixels["model"].double()
            clean.append((net(x).argmax(1), kept.pop()))
            dark = x.clone()
            side = x.shape[-1] // 5
            for n, position in enumerate(at):
                small = saliencies[position].reshape(5, 2, 5, 2)  # 10 x 10 tokens
                ranked = np.argsort(-small.mean((1, 3)).ravel())
                for patch in ranked[:12]:
                    r, c = divmod(int(patch), 5)
                    part = dark[n, :, r * side : (r + 1) * side, c * side : (c + 1) * side]
                    part[:] = torch.tensor(-mean / std)[:, None, None]
            changed.append((net(dark).argmax(1), kept.pop()))
    hook.remove()
    net.float()
    before, after = (
        [torch.cat(parts) for parts in zip(*outcomes, strict=True)] for outcomes in (clean, changed)
    )
    row = found[(found["change"] == "drop_salient") & (found["strength"] == 0.5)].iloc[0]
    assert row["agreement"] == float((before[0] == after[0]).double().mean())
    cosines = (before[1] * after[1]).sum(1) / before[1].norm(dim=1) / after[1].norm(dim=1)
    assert row["cosine"] == pytest.approx(float(cosines.mean()), abs=1e-5)
    assert row["cosine_se"] == pytest.approx(float(cosines.std() / len(cosines) ** 0.5), rel=0.01)


def rollouts(study: Study) -> dict[int, np.ndarray]:
    """Rollout of the other model by position in the plan."""
    found = {}
    analysis = study.analysis

    class Seen(type(analysis)):
        def observe(self, view: View) -> dict[str, torch.Tensor]:
            maps = reached(list(view.other.values()), self.setting.layers["other"])
            found.update(zip(view.positions, maps.double().numpy(), strict=True))
            return {}

    spy = Study(study.experiment)
    vars(spy)["models"] = study.models
    spy.experiment.analysis.__class__ = Seen
    with observer(spy, []) as observe:
        for batch in minibatches(spy, 0, [0, 1]):
            observe(batch)
    spy.experiment.analysis.__class__ = type(analysis)
    return found


def test_accuracy_is_measured_where_outputs_are_classes(images, tmp_path):
    """The folder has two classes: a model of two outputs has an accuracy, one of 1,000 has none."""
    words = ("analysis.drops=[0.5]", "analysis.changes=[drop_random]")
    two = pd.read_csv(
        run(experiment(images, tmp_path, *OWN, *words, "model.args={num_classes: 2}")).files[0]
    )
    assert two["accuracy"].between(0, 1).all()
    asked = experiment(images, tmp_path, *OWN, *words)
    many = pd.read_csv(run(asked).files[0])
    assert many["accuracy"].isna().all()
    assert many["agreement"].notna().all()


def test_a_cnn_sees_the_same_masks_as_a_vit(images, tmp_path, monkeypatch):
    asked = experiment(images, tmp_path, *OWN, *FEW, *OTHER, "model.timm=test_resnet")
    made: list[torch.Tensor] = []

    def spy(name: str, at: int) -> None:
        real = getattr(robustness, name)
        spied = lambda *given: (made.append(given[at]), real(*given))[1]  # noqa: E731
        monkeypatch.setattr(robustness, name, spied)

    spy("drop", 1)
    spy("shuffle", 2)
    for given in (asked, experiment(images, tmp_path, *OWN, *FEW, *OTHER)):
        study = Study(given)
        with observer(study, []) as observe:
            for batch in minibatches(study, 0, [0]):
                observe(batch)
    cnn, vit = made[: len(made) // 2], made[len(made) // 2 :]
    assert len(vit) == 11
    assert all(a.equal(b) for a, b in zip(vit, cnn, strict=True))


def test_salient_patches_without_a_second_model_are_refused_and_the_advice_works(images, tmp_path):
    asked = ("analysis.changes=[drop_salient]", "analysis.drops=[0.5]")
    with pytest.raises(UserError, match=r"drop_salient needs a second model.*add model@other=NAME"):
        Study(experiment(images, tmp_path, *OWN, *asked)).layers  # noqa: B018
    assert Study(experiment(images, tmp_path, *OWN, *asked, *OTHER)).layers["other"]


def test_layers_that_are_no_representation_and_logits_are_refused(images, tmp_path):
    with pytest.raises(UserError, match=r"such as \[last,logits\]; it selects head"):
        Study(experiment(images, tmp_path, *OWN, "analysis.layers=logits")).layers  # noqa: B018
    assert Study(experiment(images, tmp_path, *OWN, "analysis.layers=[last,logits]")).layers


@pytest.mark.parametrize(
    ("option", "says"),
    [
        (
            "analysis.changes=[drop_salent]",
            r"no drop_salent; there are: .*Did you mean drop_salient",
        ),
        ("analysis.changes=shuffle", r"changes must be a list such as \[drop_random,shuffle\]"),
        ("analysis.changes=[shuffle,shuffle]", r"changes has shuffle twice; name each change once"),
        (
            "analysis.drops=[2]",
            r"drops must be a list such as \[0.25,0.5\] of fractions from 0 to 1",
        ),
        ("analysis.shuffles=[0]", r"shuffles must be a list such as \[2,4\] of whole numbers"),
        ("analysis.grid=0", r"analysis.grid must be at least 1, got 0"),
        ("analysis.seed=-1", r"analysis.seed must be at least 0, got -1"),
    ],
)
def test_options_that_cannot_be_are_refused(option, says):
    with pytest.raises(UserError, match=says):
        composed("analysis=robustness", option)


def test_a_view_made_by_hand_cannot_run_models_again():
    with pytest.raises(RuntimeError, match="without models to run again"):
        View(1, torch.zeros(1), {}).again("model", torch.zeros(1, 3, 4, 4))


@pytest.mark.parametrize(
    ("option", "says", "good"),
    [
        ("shuffles=[2,300]", r"shuffles: 300 rows, .* 160 x 160 pixels; use 160 or fewer", "shuffles=[160]"),
        ("grid=161", r"grid: 161 rows, but the images have 160 x 160 pixels; use 160", "grid=160"),
    ],
)  # fmt: skip
def test_patches_smaller_than_a_pixel_are_refused_and_the_advice_works(
    option, says, good, images, tmp_path
):
    few = (*OWN, "images=2", "analysis.drops=[0.5]", "analysis.shuffles=[2]")
    with pytest.raises(UserError, match=says):
        run(experiment(images, tmp_path, *few, f"analysis.{option}"))
    assert run(experiment(images, tmp_path, *few, f"analysis.{good}"))


@pytest.mark.parametrize(
    ("classes", "says"),
    [
        (0, r"does not have a classifier .* \(model.args.num_classes above 0\)"),
        (
            1,
            r"head has one output, so every prediction is the same; it needs a classifier with two",
        ),
    ],
)
def test_models_that_predict_nothing_are_refused_and_two_classes_are_enough(
    classes, says, images, tmp_path
):
    of = [
        Study(experiment(images, tmp_path, *OWN, f"model.args={{num_classes: {n}}}"))
        for n in (classes, 2)
    ]
    with pytest.raises(UserError, match=says):
        of[0].layers  # noqa: B018
    assert of[1].layers["model"][1].shape == (2,)


@pytest.mark.parametrize("precision", [Precision.fp32, Precision.bf16])
def test_what_is_kept_of_a_layer_is_its_own_output_although_the_next_one_overwrites_it(precision):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.ReLU(inplace=True)).eval()
    pixels = torch.randn(4, 3, 2, 2)
    expected = net[1](pixels.flatten(1))
    assert (expected < 0).any()  # or the ReLU would change nothing
    with watch(net, [Layer("1", (8,), None)], Robustness(), precision) as measure:
        torch.testing.assert_close(measure(pixels)["1"], expected, atol=0.02, rtol=0)
