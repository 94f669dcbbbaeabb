"""CKA of real models on real photographs against the equation in float64, and its edge cases."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
import timm
import torch
from conftest import composed
from PIL import Image
from reference import hsic1

from vitsee.analyses.cka import CKA, Products
from vitsee.analyses.grams import Grams
from vitsee.analysis import Layer, Setting, View
from vitsee.data.plan import Plan
from vitsee.errors import UserError
from vitsee.estimators.minibatch_cka import cka_and_error
from vitsee.estimators.tokens import Tokens
from vitsee.results.folder import Results
from vitsee.runner import run
from vitsee.study import Study
from vitsee.sums import Sums

pytestmark = pytest.mark.usefixtures("undrawn")

IMAGES, BATCH = 16, 8


def photograph(tar: tarfile.TarFile, name: str) -> Image.Image:
    return Image.open(io.BytesIO(tar.extractfile(f"./{name}").read())).convert("RGB")


def plain_grams(study: Study, role: str, ids: list[str], tar: tarfile.TarFile) -> dict:
    """Gram matrices in float64 of every layer's float32 output, {layer: (N, N)}, by plain hooks."""
    model = study.models[role]
    transform = timm.data.create_transform(**model.data, is_training=False)
    pixels = torch.stack([transform(photograph(tar, name)) for name in ids])
    grams = {}

    def keep(name):
        def hook(module, args, output):
            x = output.flatten(1).double().numpy()
            x = x - x.mean(0)  # exact enough in float64, and HSIC_1 does not depend on it
            grams[name] = x @ x.T

        return hook

    handles = [
        model.net.get_submodule(name).register_forward_hook(keep(name)) for name in study.axes[role]
    ]
    with torch.no_grad():
        model.net(pixels)
    for handle in handles:
        handle.remove()
    return grams


def reference_cka(study: Study, roles: tuple[str, str], tar: tarfile.TarFile) -> np.ndarray:
    """Ratio of averages of HSIC_1 over the minibatches of the plan, for every pair of layers."""
    names = [study.axes[role] for role in roles]
    sums = [np.zeros((len(names[0]), len(names[1]))), *(np.zeros(len(n)) for n in names)]
    for b in range(len(study.plan)):
        ids = [study.images.id(i) for i in study.plan.batch(b)]
        of_role = {role: plain_grams(study, role, ids, tar) for role in {*roles}}
        grams = [of_role[role] for role in roles]
        sums[0] += [[hsic1(grams[0][k], grams[1][l]) for l in names[1]] for k in names[0]]
        for i in (0, 1):
            sums[1 + i] += [hsic1(grams[i][k], grams[i][k]) for k in names[i]]
    return sums[0] / np.sqrt(np.outer(sums[1], sums[2]))


@pytest.mark.parametrize(
    "overrides",
    [
        [
            "model.timm=resnet26",
            "model.args={zero_init_last: false}",
            "model.overlay.input_size=[3,64,64]",
        ],
        [
            "model.timm=vit_tiny_patch16_224",
            "model.args={depth: 4, img_size: 64}",
            "model@other=timm",
            "other.timm=resnet18",
            "other.args={zero_init_last: false}",
            "other.overlay.input_size=[3,64,64]",
            "other.pretrained=false",
        ],
        [
            "model.timm=vit_tiny_patch16_224",
            "model.checkpoint={data}/weights/vit_tiny_patch16_224.safetensors",
            "model.overlay={mean: [0.5, 0.5, 0.5], std: [0.5, 0.5, 0.5]}",
        ],
    ],
    ids=["within a ResNet", "across both", "within a trained ViT"],
)
def test_cka_on_photographs_equals_the_equation_in_float64(overrides, test_data, tmp_path):
    experiment = composed(
        "model=timm",
        *(word.format(data=test_data) if "{data}" in word else word for word in overrides),
        "model.pretrained=false",
        "dataset=folder",
        f"dataset.root={test_data / 'imagenet_sample.tar'}",
        f"images={IMAGES}",
        f"batch_size={BATCH}",
        f"run.outputs={tmp_path}",
        "run.device=cpu",
        "run.progress=false",
    )
    run(experiment)
    study = Study(experiment)
    roles = ("model", "other" if experiment.other else "model")
    table = Results(tmp_path / study.folder).tables()["cka"]
    with tarfile.open(test_data / "imagenet_sample.tar") as tar:
        expected = reference_cka(study, roles, tar)
    error = np.abs(table["cka"].to_numpy().reshape(expected.shape) - expected)
    assert error.max() < 1e-6
    assert list(table.columns) == ["model_layer", "other_layer", "cka", "se", "minibatches"]
    assert list(dict.fromkeys(table["model_layer"])) == study.axes[roles[0]]


def measured(
    *minibatches: dict[str, torch.Tensor],
    analysis: CKA | None = None,
    fresh: Callable[[int], float] = lambda index: 1.0,
) -> tuple:
    """Table and warnings of CKA between named features (N, ...), given minibatch by minibatch."""
    analysis = analysis or CKA()
    total = Sums.zero(len(minibatches))
    for i, features in enumerate(minibatches):
        layers = {name: Layer(name, tuple(x.shape[1:]), None) for name, x in features.items()}
        reduced = {name: analysis.reduce(layers[name], x) for name, x in features.items()}
        view = View(len(next(iter(features.values()))), torch.zeros(0), reduced, fresh=fresh(i))
        total += Sums.of(i, len(minibatches), analysis.observe(view), {"model": list(features)})
    return analysis.tables(total)["cka"].set_index(
        ["model_layer", "other_layer"]
    ), analysis.warnings(total)


def random_minibatches(count: int, n: int = 16, **shift: float) -> list[dict[str, torch.Tensor]]:
    """Related random layers a, b, c; `shift` adds a constant to the features of a layer."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for _ in range(count):
        a = torch.randn(n, 40, generator=generator)
        b = a[:, :20] + 0.5 * torch.randn(n, 20, generator=generator)
        c = torch.randn(n, 60, generator=generator)
        found.append({k: v + shift.get(k, 0) for k, v in {"a": a, "b": b, "c": c}.items()})
    return found


def test_features_with_means_a_thousand_times_their_deviation_are_as_exact():
    from reference import minibatch_cka

    batches = random_minibatches(4, a=1000, b=-1000)
    table, _ = measured(*batches)
    for k in "abc":
        for l in "abc":
            exact = minibatch_cka([b[k].numpy() for b in batches], [b[l].numpy() for b in batches])
            assert abs(table.loc[(k, l), "cka"] - exact) < 1e-6


def test_cka_of_a_layer_with_itself_is_exactly_one():
    table, _ = measured(*random_minibatches(3))
    assert all(table.loc[(k, k), "cka"] == 1 for k in "abc")
    assert all(table.loc[(k, k), "se"] < 1e-7 for k in "abc")


def test_cka_is_unchanged_by_rotation_scale_and_translation():
    batches = random_minibatches(2)
    rotation, _ = torch.linalg.qr(torch.randn(40, 40, generator=torch.Generator().manual_seed(1)))
    for batch in batches:
        batch["moved"] = 7 * batch["a"] @ rotation + 5
    table, _ = measured(*batches)
    assert table.loc[("a", "moved"), "cka"] == pytest.approx(1, abs=1e-6)
    assert table.loc[("c", "moved"), "cka"] == pytest.approx(table.loc[("c", "a"), "cka"], abs=1e-6)


def test_cka_of_unrelated_layers_scatters_around_zero_and_is_not_clipped():
    generator = torch.Generator().manual_seed(0)
    pairs = [
        {f"l{i}": torch.randn(8, 30, generator=generator) for i in range(12)} for _ in range(6)
    ]
    table, _ = measured(*pairs)
    off = table[[k != l for k, l in table.index]]["cka"]
    assert off.min() < 0 < off.max()
    assert abs(off.mean()) < 0.05


def test_the_standard_error_is_that_of_the_delta_method_written_out():
    rng = np.random.default_rng(0)
    aa, bb = rng.uniform(1, 2, (2, 50))
    ab = 0.6 * np.sqrt(aa * bb) + 0.1 * rng.standard_normal(50)
    terms = {
        "ab": ab, "aa": aa, "bb": bb, "ab_ab": ab**2, "ab_aa": ab * aa, "ab_bb": ab * bb,
        "aa_bb": aa * bb, "aa_aa": aa**2, "bb_bb": bb**2,
    }  # fmt: skip
    fresh = np.array(50.0)
    matrices = {"ab", "ab_ab", "ab_aa", "ab_bb", "aa_bb"}
    sums = {k: np.full((1, 1) if k in matrices else (1,), v.sum()) for k, v in terms.items()}
    cka, se = cka_and_error(sums | {"fresh": fresh}, 50)
    ratio = ab.sum() / np.sqrt(aa.sum() * bb.sum())
    moves = ab / np.sqrt(aa.sum() * bb.sum()) - ratio / 2 * (aa / aa.sum() + bb / bb.sum())
    assert cka[0, 0] == pytest.approx(ratio, rel=1e-14)
    assert se[0, 0] == pytest.approx(np.sqrt(50 / 49 * np.sum(moves**2)), rel=1e-9)


def test_the_standard_error_is_the_spread_of_repeated_measurements():
    estimates, errors = [], []
    generator = torch.Generator().manual_seed(3)
    for _ in range(60):
        batches = []
        for _ in range(20):
            a = torch.randn(16, 10, generator=generator)
            batches.append({"a": a, "b": a[:, :5] + torch.randn(16, 5, generator=generator)})
        table, _ = measured(*batches)
        estimates.append(table.loc[("a", "b"), "cka"])
        errors.append(table.loc[("a", "b"), "se"])
    assert np.mean(errors) == pytest.approx(np.std(estimates), rel=0.3)


def test_drawing_the_same_images_again_does_not_make_the_standard_error_small():
    estimates, errors = [], []
    generator = torch.Generator().manual_seed(3)
    plan = Plan(size=96, images=96, batch_size=16, seed=0, repeats=6)
    for _ in range(40):
        a = torch.randn(96, 10, generator=generator)
        b = a[:, :5] + torch.randn(96, 5, generator=generator)
        batches = [{"a": a[plan.batch(i)], "b": b[plan.batch(i)]} for i in range(len(plan))]
        table, _ = measured(*batches, fresh=plan.fresh)
        estimates.append(table.loc[("a", "b"), "cka"])
        errors.append(table.loc[("a", "b"), "se"])
    ratio = np.mean(errors) / np.std(estimates)
    assert (
        0.75 < ratio < 1.7
    )  # counting every minibatch as new would give a third of the lower bound


def test_one_minibatch_has_no_standard_error():
    table, _ = measured(*random_minibatches(1))
    assert table["se"].isna().all()


def test_a_constant_layer_is_nan_and_named():
    batches = random_minibatches(2)
    for batch in batches:
        batch["dead"] = torch.full((16, 5), 3.7)
    table, warnings = measured(*batches)
    assert table.loc["dead", "cka"].isna().all()
    assert not table.loc[("a", "b")].isna().any()
    assert warnings == ["dead of the model is constant over the images; its CKA is 0/0, so NaN"]


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_layer_with_nan_or_inf_is_nan_and_named(value):
    batches = random_minibatches(3)
    batches[1]["b"][2, 3] = value
    table, warnings = measured(*batches)
    assert table.loc["b", "cka"].isna().all()
    assert not table.loc[("a", "c")].isna().any()
    assert warnings == ["b of the model has NaN or Inf in 1 of 3 minibatches; its CKA is NaN"]


def test_minibatches_of_several_sizes_keep_cka_within_one():
    sizes = [16, 12, 5, 4]
    table, _ = measured(*(random_minibatches(1, n=n)[0] for n in sizes))
    assert table["cka"].abs().max() <= 1 + 1e-12


@pytest.mark.parametrize(("tokens", "kept"), [("all", 5), ("cls", 1), ("patches", 3)])
def test_tokens_choose_what_is_compared(tokens, kept):
    from vitsee.estimators.kernels import gram

    x = torch.randn(8, 5, 6, generator=torch.Generator().manual_seed(0))
    layer = Layer("blocks.0", (5, 6), prefix=2, class_token=True)
    part = {"all": x, "cls": x[:, :1], "patches": x[:, 2:]}[tokens]
    assert part.shape[1] == kept
    torch.testing.assert_close(CKA(tokens=Tokens[tokens]).reduce(layer, x), gram(part))


def test_tokens_of_a_convolutional_map_are_refused():
    layer = Layer("layer1.0", (64, 56, 56), prefix=None)
    with pytest.raises(
        UserError, match=r"layer1\.0 of the model has no token axis \(its output is 64 x"
    ):
        CKA(tokens=Tokens.patches).check({"model": [layer]})


def test_the_class_token_of_a_model_without_one_is_refused():
    layer = Layer("blocks.0", (200, 64), prefix=4, class_token=False)
    with pytest.raises(
        UserError, match=r"the model has no class token; use analysis\.tokens=all or"
    ):
        CKA(tokens=Tokens.cls).check({"model": [layer]})


@pytest.mark.parametrize("kind", [CKA, Grams])
def test_layers_without_the_asked_tokens_are_refused_and_others_are_not(kind):
    """CaiT's first blocks have no class token yet, and its last ones nothing else."""
    early = Layer("blocks.0", (196, 64), prefix=0, class_token=True)
    late = Layer("late.0", (1, 64), prefix=1, class_token=True)
    message = r"tokens=cls: blocks\.0 of the model has no class token; use .*all or patches"
    with pytest.raises(UserError, match=message):
        kind(tokens=Tokens.cls).check({"model": [late, early]})
    with pytest.raises(UserError, match=r"tokens=patches: late\.0 of the model has no patches"):
        kind(tokens=Tokens.patches).check({"model": [early, late]})
    kind(tokens=Tokens.cls).check({"model": [late]})
    kind(tokens=Tokens.patches).check({"model": [early]})


def test_cka_within_a_network_is_symmetric(tiny):
    table = pd.read_csv(run(tiny()).files[0]).pivot(
        index="model_layer", columns="other_layer", values="cka"
    )
    np.testing.assert_allclose(table, table.T, atol=1e-12)


def test_all_entries_lie_between_minus_one_and_one(tiny):
    table = pd.read_csv(run(tiny()).files[0])
    assert table["cka"].abs().max() <= 1 + 1e-9


def test_neighbouring_blocks_are_more_alike_than_distant_ones(tiny):
    experiment = tiny("analysis.layers=blocks")
    path = run(experiment).files[0]
    grid = pd.read_csv(path)["cka"].to_numpy().reshape(-1, len(Study(experiment).axes["model"]))
    assert all(b <= a + 0.05 for a, b in pairwise(grid[0]))


@pytest.mark.parametrize(
    ("precision", "rounding"), [("fp32", "exact"), ("tf32", "tf32"), ("bf16", "native")]
)
def test_automatic_products_are_rounded_as_far_as_the_forward_pass_allows(precision, rounding):
    analysis = CKA().on(Setting(precision=precision))
    assert analysis.rounding("cuda") == rounding
    assert analysis.rounding("cpu") == "exact"


@pytest.mark.parametrize("products", ["exact", "tf32", "bf16"])
def test_products_that_are_asked_for_are_what_is_used(products):
    analysis = CKA(products=Products[products]).on(Setting(precision="bf16"))
    assert analysis.rounding("cuda") == products


def test_the_setting_has_the_precision_of_the_experiment(tiny):
    study = Study(tiny("precision=bf16"))
    assert study.setting.precision == "bf16"
