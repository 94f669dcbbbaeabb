"""Distances, similarity of heads and rollout: whole runs against plain float64 references, and their messages."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import timm
import torch
from conftest import composed
from reference import hsic1

from vitsee.analysis import REGISTERED, Labels, Layer
from vitsee.errors import UserError
from vitsee.runner import minibatches, run
from vitsee.study import Study

pytestmark = pytest.mark.usefixtures("undrawn")

PAIR = ["analysis=head_similarity", "model@other=timm", "other.timm=test_resnet"]
PAIR += ["other.pretrained=false", "analysis.subset=1"]


def plain_attention(net, pixels: torch.Tensor, block: int) -> tuple[np.ndarray, np.ndarray]:
    """Weights and A V of a block of a timm ViT in float64, (N, heads, tokens, …), from the equations."""
    net = net.double()
    kept = {}
    attn = net.blocks[block].attn
    handle = attn.register_forward_pre_hook(lambda m, args: kept.update(x=args[0]))
    with torch.no_grad():
        net(pixels.double())
        handle.remove()
        n, tokens, width = kept["x"].shape
        heads = attn.num_heads
        qkv = (kept["x"] @ attn.qkv.weight.T + attn.qkv.bias).reshape(n, tokens, 3, heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        weights = (q @ k.mT / (width // heads) ** 0.5).softmax(-1)
    net.float()
    return weights.numpy(), (weights @ v).numpy()


def plain_distance(
    weights: np.ndarray, grid: tuple[int, int], pitch: float, prefix: int
) -> np.ndarray:
    """(N, heads): the mean over patches of the distance weighted by the attention, by loops over patches."""
    places = [(r * pitch, c * pitch) for r in range(grid[0]) for c in range(grid[1])]
    total = np.zeros(weights.shape[:2])
    for q, (row, col) in enumerate(places):
        for k, (other_row, other_col) in enumerate(places):
            apart = ((row - other_row) ** 2 + (col - other_col) ** 2) ** 0.5
            total += weights[:, :, prefix + q, prefix + k] * apart
    return total / len(places)


def all_pixels(study: Study, role: str = "model") -> list[torch.Tensor]:
    return [b.pixels[role] for b in minibatches(study, 0, list(range(len(study.plan))))]


def check_distances(experiment, blocks: list[int], tolerance: float) -> None:
    study = Study(experiment)
    table = pd.read_csv(run(experiment).files[0])
    net, (layer, *_) = study.models["model"].net, study.layers["model"]
    for block in blocks:
        found = table[table["block"] == block]["distance_px"].to_numpy()
        values = np.concatenate(
            [
                plain_distance(
                    plain_attention(net, p, block)[0], layer.grid, layer.pitch[0], layer.prefix
                )
                for p in all_pixels(study)
            ]
        )
        np.testing.assert_allclose(found, values.mean(0), atol=tolerance)
        se = table[table["block"] == block]["se"].to_numpy()
        np.testing.assert_allclose(se, values.std(0, ddof=1) / len(values) ** 0.5, rtol=1e-3)


def test_distances_and_their_errors_are_those_of_plain_loops(tiny):
    check_distances(tiny("analysis=attention_distance"), [0, 3, 5], 1e-4)


def test_distances_on_photographs_are_those_of_plain_loops_to_a_ten_thousandth_pixel(
    test_data, tmp_path
):
    experiment = composed(
        "analysis=attention_distance",
        *("model=timm", "model.timm=vit_tiny_patch16_224", "model.pretrained=false"),
        "model.args.depth=3",
        *("dataset=folder", f"dataset.root={test_data}/imagenet_sample.tar", "images=8"),
        *(f"run.outputs={tmp_path}", "run.workers=0", "run.progress=false"),
    )
    check_distances(experiment, [2], 1e-4)


def test_similarity_of_single_heads_is_that_of_the_equations(tiny):
    experiment = tiny(*PAIR, "analysis.other_layers=[layer1]")
    study = Study(experiment)
    table = pd.read_csv(run(experiment).files[0]).set_index("heads")
    net, prefix = study.models["model"].net, study.layers["model"][0].prefix
    other = study.models["other"].net
    kept = {}
    handle = other.get_submodule("layer1").register_forward_hook(
        lambda m, a, o: kept.update(y=o.flatten(1).double().numpy())
    )
    sums = np.zeros((2, 3))
    for ours, theirs in zip(all_pixels(study), all_pixels(study, "other"), strict=True):
        with torch.no_grad():
            other(theirs)
        y = kept["y"] - kept["y"].mean(0)
        _, values = plain_attention(net, ours, 0)
        for head in range(2):
            x = values[:, head, prefix:].reshape(len(values), -1)
            k, l = (z @ z.T for z in (x - x.mean(0), y))
            sums[head] += [hsic1(k, l), hsic1(k, k), hsic1(l, l)]
    handle.remove()
    expected = sums[:, 0] / np.sqrt(sums[:, 1] * sums[:, 2])
    np.testing.assert_allclose(table.loc[[0, 1], "cka"], expected, atol=1e-5)


def test_a_set_of_heads_is_as_similar_as_its_outputs_side_by_side():
    from vitsee.analyses.head_similarity import of_sets
    from vitsee.estimators.minibatch_cka import cka_and_error, cka_terms

    rng = np.random.default_rng(0)
    chosen = np.array([[1, 1, 0], [0, 1, 1], [1, 1, 1.0]])
    heads: dict[str, np.ndarray] = {}
    sets: dict[str, np.ndarray] = {}
    for _ in range(6):
        u, v = rng.standard_normal((3, 20)), rng.standard_normal((2, 20))
        v[0] += u[0] + u[1]
        hl, hh, ll = u @ v.T, u @ u.T, np.diag(v @ v.T)
        terms = {
            "fresh": 1.0, "hl": hl, "hh": hh, "ll": ll,
            "hl_hl": np.einsum("hl,gl->lhg", hl, hl), "hl_hh": np.einsum("hl,fg->lhfg", hl, hh),
            "hl_ll": hl * ll, "hh_hh": np.einsum("hg,ef->hgef", hh, hh),
            "hh_ll": np.einsum("hg,l->hgl", hh, ll), "ll_ll": ll * ll,
        }  # fmt: skip
        w = chosen @ u
        direct = cka_terms(
            *(torch.from_numpy(x) for x in (w @ v.T, np.diag(w @ w.T).copy(), ll.copy())), 1.0
        )
        heads = {k: heads.get(k, 0) + x for k, x in terms.items()}
        sets = {k: sets.get(k, 0) + x.numpy() for k, x in direct.items()}
    for found, expected in zip(
        cka_and_error(of_sets(heads, chosen), 6), cka_and_error(sets, 6), strict=True
    ):
        np.testing.assert_allclose(found, expected, rtol=1e-9)


def test_sets_of_heads_go_from_local_to_global(tiny):
    table = pd.read_csv(run(tiny(*PAIR, "analysis.other_layers=[layer1]")).files[0])
    assert table["mean_distance_px"].is_monotonic_increasing
    assert len(table) == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            [*PAIR, "analysis.subset=3"],
            r"subset=3: blocks\.0\.attn has 2 heads; use analysis\.subset=2 or",
        ),
        (
            [*PAIR, "analysis.layers=[blocks.*.attn]"],
            "heads of one block, but blocks.0.attn, blocks.1",
        ),
        (
            ["analysis=attention_rollout", "analysis.images_list=[900]"],
            "no image 900; the 40 images go from 0 .* to 39",
        ),
        (
            ["analysis=attention_rollout", "analysis.images_list=[class0/00.png]"],
            r"no image class0/00\.png; .*Did you mean class0",
        ),
        (
            ["analysis=attention_rollout", "analysis.images_list=[0,3,class0/000.png]"],
            r"images_list has image 0 \(class0/000\.png\) more than once; list it once",
        ),
    ],
)
def test_what_cannot_be_is_refused(words, message, tiny):
    with pytest.raises(UserError, match=message):
        run(tiny(*words))


def test_subsets_of_no_head_are_refused(tiny):
    with pytest.raises(UserError, match="subset must be at least 1, got 0"):
        tiny("analysis=head_similarity", "analysis.subset=0")


def test_rollout_is_that_of_a_plain_product_over_the_blocks(tiny):
    experiment = tiny("analysis=attention_rollout", "analysis.images_list=[3,class1/001.png]")
    study = Study(experiment)
    paths = run(experiment).files
    table = pd.read_csv(next(p for p in paths if p.name == "attention_rollout.csv"))
    (pixels,) = all_pixels(study)
    net, layer = study.models["model"].net, study.layers["model"][0]
    mixed = np.eye(layer.grid[0] * layer.grid[1] + layer.prefix)[None].repeat(2, 0)
    for block in range(len(net.blocks)):
        a = plain_attention(net, pixels, block)[0].mean(1) + np.eye(mixed.shape[1])
        mixed = (a / a.sum(-1, keepdims=True)) @ mixed
    start = mixed[:, 0] if layer.class_token else mixed[:, layer.prefix :].mean(1)
    expected = start[:, layer.prefix :].ravel()
    np.testing.assert_allclose(table["weight"], expected, atol=1e-6)
    assert study.plan.batch(0) == [
        3,
        [study.images.id(i) for i in range(40)].index("class1/001.png"),
    ]


SIGLIP = (
    "model.timm=vit_base_patch16_siglip_224",
    "model.args={img_size:32,patch_size:8,embed_dim:32,depth:3,num_heads:2,num_classes:0}",
)


def pooled_attention(pool, tokens: torch.Tensor) -> np.ndarray:
    """Weights of timm's attention pooling in float64, averaged over heads, (N, tokens), from the equation."""
    with torch.no_grad():
        (width,), heads = pool.q.bias.shape, pool.num_heads
        query = (pool.latent[0, 0] @ pool.q.weight.T + pool.q.bias).view(heads, -1)
        keys = (tokens @ pool.kv.weight[:width].T + pool.kv.bias[:width]).unflatten(2, (heads, -1))
        scores = torch.einsum("hd,nthd->nht", query, keys) / (width // heads) ** 0.5
        return scores.softmax(-1).mean(1).numpy()


def test_rollout_starts_at_what_the_head_s_own_attention_reads(tiny):
    experiment = tiny("analysis=attention_rollout", *SIGLIP, "images=6", "batch_size=4")
    study = Study(experiment)
    assert [x.name for x in study.layers["model"]][-2:] == ["blocks.2.attn", "attn_pool"]
    paths = run(experiment).files
    table = pd.read_csv(next(p for p in paths if p.name == "attention_rollout.csv"))
    net = study.models["model"].net
    kept: dict[str, torch.Tensor] = {}
    net.attn_pool.register_forward_pre_hook(lambda m, args: kept.update(x=args[0]))
    expected = []
    for pixels in all_pixels(study):
        mixed = np.eye(16)
        for block in range(3):
            a = plain_attention(net, pixels, block)[0].mean(1)
            mixed = (a / 2 + np.eye(16) / 2) @ mixed
        net.double()(pixels.double())
        start = pooled_attention(net.attn_pool, kept["x"])
        expected.append(np.einsum("nt,ntk->nk", start, mixed))
        net.float()
    np.testing.assert_allclose(table["weight"], np.concatenate(expected).ravel(), atol=1e-6)


def test_rollout_of_chosen_blocks_without_the_head_s_attention_is_refused_and_the_advice_works(
    tiny,
):
    words = ["analysis=attention_rollout", *SIGLIP]
    message = r"the tokens by the attention of attn_pool.*add it to analysis\.layers, e\.g\. .*,attn_pool\]"
    with pytest.raises(UserError, match=message):
        _ = Study(tiny(*words, "analysis.layers=[blocks.*.attn]")).layers
    chosen = Study(tiny(*words, "analysis.layers=[blocks.*.attn,attn_pool]")).layers
    assert chosen == Study(tiny(*words)).layers


def test_distances_are_not_measured_of_the_head_s_own_attention(tiny):
    found = Study(tiny("analysis=attention_distance", *SIGLIP)).layers["model"]
    assert [x.name for x in found] == [f"blocks.{i}.attn" for i in range(3)]


def test_rollout_shows_the_images_in_their_colours(tiny):
    experiment = tiny("analysis=attention_rollout", "analysis.images_list=[5]")
    paths = run(experiment).files
    shown = pd.read_csv(next(p for p in paths if p.name == "attention_rollout_images.csv"))
    study = Study(experiment)
    data = study.models["model"].data | {"mean": (0.0,) * 3, "std": (1.0,) * 3}
    image = timm.data.create_transform(**data, is_training=False)(study.images.open(5))
    side = shown["row"].max() + 1
    small = torch.nn.functional.interpolate(image[None], size=(side, side), mode="area")[0]
    found = shown[["r", "g", "b"]].to_numpy().reshape(side, side, 3)
    assert np.abs(found - 255 * small.permute(1, 2, 0).numpy()).max() <= 1


# ---- stages and windows ----


def attends(
    name: str, tokens: int, grid: tuple[int, int], windows: int = 1, heads: int = 2
) -> Layer:
    return Layer(name, (heads, tokens, 4), 0, False, grid, (4.0, 4.0), windows=windows)


def test_rollout_shows_the_weights_that_are_black_and_fully_lit():
    places = dict(zip(("image", "row", "col"), np.indices((3, 2, 2)).reshape(3, -1), strict=True))
    weight = [0.2, 0.3, 0.2, 0.38, 0.0, 0.1, 0.2, 0.3, *[np.nan] * 4]
    tables = {
        "attention_rollout": pd.DataFrame(places | {"weight": weight}),
        "attention_rollout_images": pd.DataFrame(places | dict.fromkeys("rgb", 200)),
    }
    labels = Labels("m", None, "d", 2)
    figure = REGISTERED["attention_rollout"]().figures(tables, labels)["attention_rollout"]
    texts = [text.get_text() for axes in figure.axes for text in axes.texts]
    assert texts[-3:] == ["0.2 … 0.38 (× 1.9)", "0 … 0.3", "undefined"]
    assert "Below: the weights of black and of fully lit patches" in figure.get_suptitle()


def test_rollout_through_windows_or_stages_is_refused_and_one_stage_is_not():
    rollout = REGISTERED["attention_rollout"]()
    whole, smaller = attends("a.0", 16, (4, 4)), attends("b.0", 4, (2, 2))
    with pytest.raises(
        UserError, match=r"c\.0 attends within windows.*use analysis=attention_distance"
    ):
        rollout.check({"model": [whole, attends("c.0", 4, (2, 2), 4)]})
    message = (
        r"a\.0 and b\.0 attend among different tokens \(16 and 4\); choose the layers of one stage"
    )
    with pytest.raises(UserError, match=message):
        rollout.check({"model": [whole, smaller]})
    rollout.check({"model": [whole, attends("a.1", 16, (4, 4))]})


def test_layers_may_have_different_numbers_of_heads_and_windows(tmp_path, command):
    small = "{img_size:56,embed_dim:24,depths:[2,1],num_heads:[1,2]}"
    code, _, _ = command(
        "run", "analysis=attention_distance", "model=timm", "model.pretrained=false",
        "model.timm=swin_tiny_patch4_window7_224", f"model.args={small}", "dataset=scenes", "images=4",
        "batch_size=2", f"run.outputs={tmp_path}", "run.workers=0", "run.progress=false",
    )  # fmt: skip
    assert code == 0
    (path,) = tmp_path.rglob("attention_distance.csv")
    table = pd.read_csv(path)
    assert table["layer"].tolist() == [
        *("layers.0.blocks.0.attn", "layers.0.blocks.1.attn"),
        *("layers.1.blocks.0.attn",) * 2,
    ]
    assert table["block"].tolist() == [0, 1, 2, 2]
    assert table["head"].tolist() == [0, 0, 0, 1]
    assert table["windows"].tolist() == [4, 4, 1, 1]
    assert (table["distance_px"] > 0).all()
    longest = np.array([24, 24, 48, 48]) * 2**0.5  # from corner to corner of a window
    assert (table["distance_px"] < longest).all()
