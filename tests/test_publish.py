"""Published figures by name: every definition is sound, panels are measured once, the composition is redrawn."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from math import nan
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from conftest import composed
from PIL import Image

from vitsee import gpus, runner
from vitsee.analysis import REGISTERED
from vitsee.choices import CONF
from vitsee.errors import UserError
from vitsee.models import cards, loader
from vitsee.models.sources.timm import EMBEDDED
from vitsee.papers import atlas, composing, evidence
from vitsee.papers.claims import CLAIMS
from vitsee.papers.description import Shown, tell_what_is_replaced
from vitsee.papers.evidence import Reader
from vitsee.papers.plot import plot
from vitsee.papers.publish import check_panels, nulls, publish, untrained
from vitsee.papers.request import Request, overrides
from vitsee.papers.verdicts import COLUMNS, perturbed
from vitsee.plotting.scorecard import scorecard
from vitsee.results import reading
from vitsee.results.reading import Written

QUICK = ["run.device=cpu", "run.workers=0", "run.progress=false"]
PAPER = [f"fig{n:02}" for n in range(1, 14)]
APPENDIX = ["figB1", *(f"figC{n}" for n in range(1, 7)), *(f"figD{n}" for n in range(1, 5))]
APPENDIX += ["figE1", "figE2", "figF1", "figF2", "figF3", "figG1", "figG2", "figH1", "figH2"]
EXTRA = [f"extra_{name}" for name in ("registers", "massive", "occlusion", "shuffle", "fourier")]
VIT = [f"vit_fig{n:02}" for n in (3, 4, 5, 6, 7, 10, 11, 14)]


@pytest.fixture(autouse=True, scope="module")
def quickly_composed() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vitsee.papers.request.composed", lambda words: composed(*words))
        yield


@pytest.fixture
def cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    """Receptive fields are those of one channel, and intervals come from 20 draws: other tests look at the numbers."""

    def one_channel(panel: atlas.Panel, *rest: Any) -> list[str]:
        fewer = ["analysis.channels=1"] if panel.analysis == "receptive_field" else []
        return [*overrides(panel, *rest), *fewer]

    monkeypatch.setattr("vitsee.papers.publish.overrides", one_channel)
    monkeypatch.setattr(
        "vitsee.papers.verdicts.perturbed", lambda gathered, _: perturbed(gathered, 20)
    )


@pytest.mark.parametrize("name", [*PAPER, *APPENDIX, *VIT, *EXTRA, "claims"])
def test_a_figure_is_defined_and_its_roles_are_known_to_every_zoo(name):
    figure = atlas.published(name)
    assert figure.name == name
    assert sorted(p for row in figure.rows for p in row) == sorted(figure.panels)
    for zoo in map(atlas.zoo, atlas.zoos()):
        for panel in figure.panels.values():
            for role in {*panel.roles, *([panel.other] if panel.other else [])} - set(atlas.ASKED):
                player = zoo.role(role)
                assert (player.model is None) != (player.missing is None)


@pytest.mark.parametrize("name", [*PAPER, *APPENDIX, *VIT, *EXTRA])
def test_the_options_of_every_panel_exist(name):
    """With the first model that plays in it; that the other ones exist is tested below."""
    count, zoos = 0, [atlas.zoo(zoo) for zoo in atlas.zoos()]
    for panel in atlas.published(name).panels.values():
        played = [
            (zoo, role)
            for zoo in zoos
            for role in panel.roles
            if all(zoo.role(one).model for one in (role, panel.other or role))
        ]
        for zoo, role in played[:1]:
            request = Request(name, zoo.name)
            experiment = request.experiment(overrides(panel, role, zoo, request))
            assert experiment.analysis.name == panel.analysis
            count += 1
    assert count


def test_zoos_name_models_that_exist():
    there = {path.stem for path in (CONF / "model").glob("*.yaml")}
    for zoo in map(atlas.zoo, atlas.zoos()):
        assert {role.model for role in zoo.roles.values() if role.model} <= there


def test_panels_name_analyses_that_exist():
    wanted = {p.analysis for name in atlas.figures() for p in atlas.published(name).panels.values()}
    assert wanted <= set(REGISTERED)


# One worker, so that it is measured once.
@pytest.fixture(
    scope="module", params=[pytest.param("vit_fig07", marks=pytest.mark.xdist_group("published"))]
)
def published(request, tmp_path_factory) -> Path:
    """The folder of a figure whose panels read weights alone, or few images."""
    outputs = tmp_path_factory.mktemp("published")
    words = [f"figure={request.param}", f"run.outputs={outputs}", "batch_size=8", "images=32"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vitsee.runner.draw", lambda *path, **options: [])  # of a panel alone
        (written,) = publish([*words, *QUICK])
    assert {path.name for path in written.files} == {
        *("panels.csv", "claims.csv", "vit_fig07.png", "claims.png")
    }
    return written.folder


def test_a_figure_has_its_panels_claims_and_description(published):
    panels = pd.read_csv(published / "panels.csv")
    assert panels["panel"].tolist() == ["filters", "positions", "distance"]
    assert panels["images"].tolist() == [0, 0, 32]
    assert all((published / result / "experiment.yaml").is_file() for result in panels["result"])
    verdicts = pd.read_csv(published / "claims.csv")
    assert tuple(verdicts.columns) == COLUMNS
    assert set(verdicts["claim"]) == {"near_positions_are_similar", "distance_grows_with_depth"}
    record = json.loads((published / "figure.json").read_text())
    assert record["caption"].startswith("Dosovitskiy et al. 2021, Figure 7, with zoo=mini. ")
    shown = cards.read(EMBEDDED / "vit_mini.md").model["dataset"]
    assert f"32 images of {shown}" in record["caption"]


def test_a_claim_about_weights_alone_is_exact(published):
    verdicts = pd.read_csv(published / "claims.csv").set_index("claim")
    found = verdicts.loc["near_positions_are_similar"]
    assert found["low"] == found["value"] == found["high"]
    assert found["holds"] == ("yes" if found["value"] > 0.8 else "no")


def test_a_composed_figure_is_as_wide_as_the_text_of_a_page(published):
    with Image.open(published / "vit_fig07.png") as picture:
        width, _ = picture.size
    assert width == 6.75 * 200


def test_plot_draws_the_composed_figure_again_to_the_byte(published):
    paths = [published / "vit_fig07.png", published / "claims.png"]
    before = [path.read_bytes() for path in paths]
    for path in paths:
        path.unlink()
    assert plot(published) == paths
    assert [path.read_bytes() for path in paths] == before


def test_the_scorecard_of_a_figure_is_titled_with_its_source_and_zoo(published, monkeypatch):
    titles = []

    def titled(table, title):
        titles.append(title)
        return scorecard(table, title)

    monkeypatch.setattr("vitsee.plotting.scorecard.scorecard", titled)
    composing.draw(published)
    assert titles == ["Dosovitskiy et al. 2021, Figure 7, with zoo=mini"]


def test_claims_of_several_figures_make_one_scorecard(published, command):
    code, out, _ = command("plot", str(published), str(published))
    assert code == 0
    scorecard = published / "scorecard.csv"
    assert out.splitlines()[-2:] == [str(scorecard), str(published / "scorecard.png")]
    assert pd.read_csv(scorecard).equals(pd.read_csv(published / "claims.csv"))
    for path in published.glob("scorecard.*"):
        path.unlink()


def test_a_scorecard_of_two_zoos_has_a_row_for_each_that_says_which(published, tmp_path):
    folders = [tmp_path / name for name in ("vit_fig07-mini", "vit_fig07-small")]
    for folder in folders:
        shutil.copytree(published, folder)
    claims = pd.read_csv(folders[0] / "claims.csv")
    claims.loc[0, ["value", "low", "high"]] = nan
    claims.loc[0, "holds"] = "not testable"
    for folder in folders:
        claims.to_csv(folder / "claims.csv", index=False)
    composing.draw_together(folders, formats=())
    found = pd.read_csv(tmp_path / "scorecard.csv")
    assert len(found) == 2 * len(claims)
    assert set(found["figure"]) == {"vit_fig07, mini", "vit_fig07, small"}
    apart = [tmp_path / of / "outputs/figures/vit_fig07-mini" for of in ("one", "two")]
    for folder in apart:
        shutil.copytree(folders[0], folder)
    composing.draw_together(apart, formats=())
    found = pd.read_csv(tmp_path / "scorecard.csv")
    named = {f"vit_fig07, mini in {of}/outputs/figures" for of in ("one", "two")}
    assert set(found["figure"]) == named


def test_a_scorecard_says_verdict_interval_and_threshold():
    rows = [
        ("a", "fig01", "layers are alike", "mean (above is claimed)", 0.75, 0.7, 0.8, 0.5, "yes", 0.1, ""),
        ("b", "fig02", "heads are local", "least (below is claimed)", 0.6, nan, nan, 0.5, "undecided", nan, ""),
        ("c", "fig03", "fields grow", "rank (above is claimed)", nan, nan, nan, 0.9, "not testable", nan, "x"),
    ]  # fmt: skip
    drawn = scorecard(pd.DataFrame(rows, columns=list(COLUMNS)), "Claims")
    words = [text.get_text() for text in drawn.texts]
    assert words[6:11] == ["layers are alike (fig01)", "✓  yes", "0.75 [0.7, 0.8]", "> 0.5", "0.1"]
    assert words[11:16] == ["heads are local (fig02)", "?  undecided", "0.6", "< 0.5", ""]
    assert words[16:21] == ["fields grow (fig03)", "–  not testable", "", "> 0.9", ""]


def test_results_that_are_there_are_not_measured_again(published, monkeypatch, undrawn):
    monkeypatch.setattr("vitsee.runner.Minibatches", None)  # would fail if it were called
    outputs = published.parents[1]
    words = [f"run.outputs={outputs}", "batch_size=8", "images=32", *QUICK]
    assert list(publish(["figure=vit_fig07", *words]))


def test_a_role_that_nobody_plays_is_said_in_the_figure_and_in_the_log(
    tmp_path, caplog, monkeypatch
):
    nobody = atlas.Zoo(
        name="mini",
        roles={
            name: atlas.Role(missing="train it: vitsee train recipe=x")
            for name in atlas.zoo("mini").roles
        },
    )
    monkeypatch.setattr("vitsee.papers.atlas.zoo", lambda name: nobody)
    assert list(publish(["figure=fig02", f"run.outputs={tmp_path}", *QUICK]))
    assert "vit_large of zoo mini is left out: train it: vitsee train recipe=x" in caplog.text
    verdicts = pd.read_csv(tmp_path / "figures" / "fig02-mini" / "claims.csv")
    assert set(verdicts["holds"]) == {"not testable"}


def test_fewer_images_than_some_other_analysis_needs_are_no_mistake(tmp_path):
    (written,) = publish(["figure=vit_fig06", "images=2", f"run.outputs={tmp_path}", *QUICK])
    assert "vit_fig06.png" in {path.name for path in written.files}


def test_a_figure_whose_panels_compare_two_models_is_composed(tmp_path, undrawn):
    words = ["figure=figG1", "images=8", "batch_size=4", f"run.outputs={tmp_path}", *QUICK]
    (written,) = publish(words)
    assert "figG1.png" in {path.name for path in written.files}
    verdicts = pd.read_csv(written.folder / "claims.csv")
    assert verdicts["value"].notna().all()


def test_of_two_models_the_one_that_is_missing_is_named(tmp_path, caplog, monkeypatch):
    zoo = atlas.zoo("mini")
    zoo.roles["resnet50"] = atlas.Role(missing="train it: vitsee train recipe=x")
    monkeypatch.setattr("vitsee.papers.atlas.zoo", lambda name: zoo)
    assert list(publish(["figure=fig02", f"run.outputs={tmp_path}", *QUICK]))
    assert "resnet50 of zoo mini is left out: train it: vitsee train recipe=x" in caplog.text
    record = json.loads((tmp_path / "figures" / "fig02-mini" / "figure.json").read_text())
    assert record["panels"][0]["missing"] == ["resnet50: train it: vitsee train recipe=x"]


def test_a_panel_that_another_process_measures_is_waited_for(monkeypatch):
    from vitsee.errors import Busy
    from vitsee.papers.publish import patiently

    written = Written(Path("x"), [Path("x/x.csv")])
    answers = iter([Busy("held"), Busy("held"), written])

    def run() -> Written:
        answer = next(answers)
        if isinstance(answer, Busy):
            raise answer
        return answer

    monkeypatch.setattr("vitsee.papers.publish.POLL", 0.0)
    assert patiently(run) is written


def test_the_claims_are_scored_on_any_two_models_and_what_one_cannot_give_is_left_out(
    tmp_path, images, undrawn, cheap
):
    tiny = ["model=timm", "model.timm=test_resnet", "model.pretrained=false"]
    tiny += ["model@other=timm", "other.timm=test_vit", "other.pretrained=false", "other.name=mine"]
    tiny += ["model.overlay={input_size: [3, 64, 64]}", "other.args={img_size: 64}"]
    data = [
        "dataset=folder",
        f"dataset.root={images}",
        "batch_size=4",
        "images=8",
        f"run.outputs={tmp_path}",
    ]
    (written,) = publish(["figure=claims", *tiny, *data, *QUICK])
    assert written.folder.name == "claims-test_resnet-vs-mine"
    record = json.loads((written.folder / "figure.json").read_text())
    assert record["zoo"] is None
    missing = {panel["name"] for panel in record["panels"] if panel["missing"]}
    assert missing == {"distance", "heads"}  # a ResNet attends to nothing
    verdicts = pd.read_csv(written.folder / "claims.csv").set_index("claim")
    assert verdicts.loc["high_blocks_are_global", "holds"] == "not testable"
    assert "untrained too" in set(verdicts["holds"])  # both models are random
    tested = verdicts[verdicts["untrained"].notna()]
    assert tested["untrained"].equals(tested["value"])
    assert verdicts.loc["uniform", ["low", "high"]].notna().all()


def test_weights_of_other_libraries_have_a_null_without_a_card():
    words = ["model=torchvision", "model.id=resnet18", "model.checkpoint=x.pth"]
    options = untrained(composed(*words).model)
    composed(*words, *(f"model.{option}" for option in options))  # is accepted
    assert "pretrained=False" in options


def test_the_null_of_a_trained_model_has_the_weights_that_its_training_began_with(tmp_path, caplog):
    caplog.set_level("INFO")
    for end in ("md", "safetensors"):
        shutil.copy(EMBEDDED / f"vit_nano.{end}", tmp_path / f"mine.{end}")
    words = ["model=vit_nano", f"model.checkpoint={tmp_path}/mine.safetensors"]
    options = untrained(composed(*words).model)
    random = composed(*words, *(f"model.{option}" for option in options)).model
    assert loader.load(random, "cpu").weights.endswith("the training of vit_nano began with")
    (tmp_path / "mine.md").unlink()
    assert loader.load(random, "cpu").weights == "random, seed 0"
    assert (
        "mine.safetensors has no card of `vitsee train`: random weights are timm's" in caplog.text
    )


def test_a_model_that_cannot_be_given_random_weights_has_no_null_and_the_log_says_so(caplog):
    own = ["model=import", "model.import=package:function", "model@other=resnet_mini"]
    request, panels = Request.read(["figure=claims", *own]), atlas.published("claims").panels
    shown = Shown({"model": Path("anywhere")}, [])
    assert nulls(panels["within"], atlas.zoo("mini"), request, {}, Reader(), shown) == {}
    assert (
        "Within the model has no null: vitsee cannot draw random weights for model=import, so claims about this "
        "panel are tested without untrained networks" in caplog.text
    )


def test_a_zoo_that_does_not_exist_is_refused_once_for_all_figures(caplog):
    with pytest.raises(UserError, match=r"^there is no zoo=mni; .*Did you mean mini\?"):
        list(publish(["figure=all", "zoo=mni"]))
    assert not caplog.text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["figure=fig1"], r"there is no figure=fig1; .*Did you mean fig"),
        (["figure=fig01", "zoo=big"], "there is no zoo=big; zoo can be: mini, paper, small"),
        (["figure=fig01", "analysis=cka"], "analysis=cka cannot be combined with figure=fig01"),
        (
            ["figure=fig01", "model=vit_mini"],
            "model=vit_mini with figure=fig01: its models come from the zoo",
        ),
        (
            ["figure=claims", "model=vit_mini"],
            "figure=claims needs its models: model=NAME model@oth",
        ),
        (["figure=fig01", "-m"], "-m cannot be combined with figure=fig01"),
    ],
)
def test_what_makes_no_sense_for_a_figure_is_refused(words, message):
    with pytest.raises(UserError, match=message):
        list(publish(words))


def test_a_figure_file_with_an_unknown_key_is_refused(tmp_path, monkeypatch):
    (tmp_path / "figure").mkdir()
    (tmp_path / "figure" / "mine.yaml").write_text("name: mine\npanel: {}\n")
    monkeypatch.setattr("vitsee.choices.CONF", tmp_path)
    with pytest.raises(UserError, match=r"mine\.yaml: there is no key panel; .* mean panels\?"):
        atlas.published("mine")


def test_a_role_that_no_zoo_has_heard_of_is_refused():
    with pytest.raises(UserError, match=r"zoo mini has no role vit_larg; .*Did you mean vit_large"):
        atlas.zoo("mini").role("vit_larg")


@pytest.mark.parametrize("name", ["figE1", "figC1", "vit_fig10", "extra_massive", "claims"])
def test_the_cost_of_a_figure_is_what_the_script_reckons(name, monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "scripts"))
    import costs

    assert atlas.published(name).cost == costs.cost_of(name)


def test_the_list_of_figures_says_what_each_costs_and_claims(command):
    _, out, _ = command("list", "figures")
    (line,) = (line for line in out.splitlines() if line.startswith("figE1 "))
    assert "1,024 images, 0.019 min" in line
    (line,) = (line for line in out.splitlines() if line.startswith("fig01 "))
    assert line.endswith("uniform, low_to_high")


def test_of_several_figures_the_failed_one_is_named_at_the_end_and_the_others_are_done(
    tmp_path, images, command, undrawn
):
    words = ["figure=vit_fig10,vit_fig06,vit_fig10", f"run.outputs={tmp_path}", *QUICK]
    data = ["dataset=folder", f"dataset.root={images / 'missing'}"]
    code, out, err = command("run", *words, *data)
    assert code == 2
    assert "vit_fig10-mini/vit_fig10.png" in out  # of weights alone
    assert re.search(
        r"1 of 2 figures are incomplete: figure=vit_fig06: dataset.root=\S+ does not", err
    )


@pytest.mark.parametrize(
    ("claims", "message"),
    [
        ({"unifrm": {"square": ["tokens"]}}, r"claim unifrm of .* does not exist.*mean uniform\?"),
        ({"class_token_first": {"x": ["tokens"]}}, r"class_token_first of .* needs \w+; got x"),
        (
            {
                "class_token_first": {
                    key: ["toekns"] for key in CLAIMS["class_token_first"].evidence
                }
            },
            r"class_token_first of figure=fig07 names a panel toekns; .*Did you mean tokens\?",
        ),
    ],
    ids=["a claim", "its evidence", "a panel"],
)
def test_a_figure_whose_claims_are_misspelt_is_refused_before_it_is_measured(claims, message):
    with pytest.raises(UserError, match=message):
        check_panels(replace(atlas.published("fig07"), claims=claims))


def test_a_figure_of_models_is_called_after_them():
    words = ["model=timm", "model.timm=test_vit", "model@other=import", "other.import=net:make"]
    request = Request.read(["figure=claims", *words])
    assert request.folder(atlas.published("claims")) == "claims-test_vit-vs-net_make"


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ('{"panels": [{"name": "a", "results": ["x"]}, {"name": "b", "results": ["y"]}]}', True),
        ('{"panels": [{"name": "a", "results": ["z"]}, {"name": "b", "results": []}]}', False),
        ('{"panels": [{"name": "c", "results": ["x"]}]}', False),
        ("{}", False),
        ("[", False),
    ],
    ids=["another result", "the same and more", "another panel", "nothing", "damaged"],
)
def test_a_figure_that_takes_the_place_of_one_of_other_results_says_so(
    content, told, tmp_path, caplog
):
    (tmp_path / "figure.json").write_text(content)
    new = [{"name": "a", "results": ["z"]}, {"name": "b", "results": ["y"]}]
    tell_what_is_replaced(tmp_path, {"panels": new})
    assert caplog.text.count("showed other results (x), and is replaced") == told


def test_an_experiment_that_two_figures_share_is_measured_and_read_once(
    tmp_path, monkeypatch, undrawn
):
    runs, reads = [], []
    real = gpus.run, reading.read

    def read(path):
        reads.append(path)
        return real[1](path)

    monkeypatch.setattr(gpus, "run", lambda e: runs.append(e.analysis.name) or real[0](e))
    for module in (evidence, runner):
        monkeypatch.setattr(module, "read", read)
    words = [f"run.outputs={tmp_path}", "images=4", "batch_size=2", *QUICK]
    written = list(publish(["figure=vit_fig06,vit_fig14", *words]))
    assert [path.name for one in written for path in one.files] == [
        *("panels.csv", "claims.csv", "vit_fig06.png"),
        *("panels.csv", "claims.csv", "vit_fig14.png"),
    ]
    assert runs == ["attention_rollout"]
    assert len(reads) == 1


def test_all_figures_are_those_of_the_two_papers_whose_models_are_in_the_zoos():
    every = Request.read(["figure=all"]).figures
    assert set(every) == set(atlas.figures()) - {"claims", *EXTRA}


def test_extra_figures_are_those_of_later_papers():
    assert set(Request.read(["figure=extra"]).figures) == set(EXTRA)
