"""What users add in folders and files of their own: models, data sets, figures and claims, found by every verb."""

from __future__ import annotations

import os
import pickle
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import yaml
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig

import vitsee
from vitsee import choices, cli, config
from vitsee.errors import UserError
from vitsee.options import Experiment
from vitsee.papers import atlas, composing
from vitsee.papers.claims import CLAIMS
from vitsee.papers.request import Request
from vitsee.papers.verdicts import Gathered, verdict
from vitsee.plugins import import_asked
from vitsee.training import recipes  # noqa: F401  (declares the schema of recipes)

MINE = {
    "model/mine": "# A tiny ViT.\nname: mine\ntimm: test_vit\npretrained: false\ndataset: few\n",
    "dataset/few": "# A few images.\ndefaults: [folder, _self_]\nname: few\nroot: {images}\n",
    "protocol/fast": "# @package _global_\n# A first look.\nimages: 8\nbatch_size: 4\n",
    "recipe/brief": "# @package _global_\n# Brief.\ndefaults: [vit_nano, _self_]\n"
    "recipe: {{name: brief, images_seen: 64}}\n",
    "zoo/one": "# One model.\nname: one\nroles:\n  my_vit: {{model: mine}}\n",
    "figure/own": (
        "# CKA of mine.\nname: own\nsource: none\ntitle: CKA\nshows: CKA.\npanels:\n"
        "  vit: {{title: mine, analysis: cka, figure: cka, roles: [my_vit]}}\nrows: [[vit]]\n"
    ),
}
"""A file for each kind of choice."""
FAST = ["run.device=cpu", "run.workers=0", "run.progress=false", "analysis.layers=[norm]"]


@pytest.fixture
def conf(tmp_path: Path, images: Path) -> Path:
    """A folder of a user's, with a choice of each group."""
    folder = tmp_path / "conf"
    for name, content in MINE.items():
        write(folder / f"{name}.yaml", content.format(images=images))
    return folder


def write(path: Path, content: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    return path


def composed_with(folder: Path, *words: str) -> Experiment:
    with choices.using(folder):
        return config.composed([*words])


@pytest.fixture
def run_mine(command, conf, tmp_path) -> Callable[..., Path]:
    """The folder of the result of `vitsee run` with that folder."""

    def call(*words: str) -> Path:
        asked = ["--config-dir", str(conf), *FAST, f"run.outputs={tmp_path}", *words]
        code, out, err = command("run", *asked)
        assert code == 0, err
        return Path(out.splitlines()[0]).parent

    return call


# ---- where they are found ----


@pytest.mark.parametrize("flag", [["--config-dir={}"], ["-cd", "{}"]], ids=["long", "short"])
def test_every_list_and_help_has_the_choices_of_the_user_s_folder(conf, command, flag):
    flag = [word.format(conf) for word in flag]
    for name in MINE:
        group, _, choice = name.partition("/")
        rows = command("list", f"{group}s", *flag)[1].splitlines()
        (line,) = (row for row in rows if row.split()[0] == choice)
        assert {"model": "random", "figure": "0 of 1 models"}.get(group, "") in line
    helped = command("run", "--help", *flag)[1]
    assert " mine," in helped
    assert "protocol   fast, paper\n" in helped
    assert "brief" in command("train", *flag, "--help")[1]
    assert not [row for row in command("list", "models")[1].splitlines() if row.startswith("mine")]


def test_a_model_with_its_own_data_set_and_protocol_is_measured(run_mine, undrawn):
    folder = run_mine("model=mine", "protocol=fast")
    assert folder.parent.name == "mine"
    assert folder.name.startswith("few-")
    made = yaml.safe_load((folder / "experiment.yaml").read_text())
    assert (made["model"]["timm"], made["images"]) == ("test_vit", 8)
    repeated = run_mine("--from", str(folder / "experiment.yaml"), "seed=1")
    assert repeated.parent == folder.parent
    assert repeated != folder


def test_a_sweep_finds_them(run_mine, tmp_path, undrawn):
    run_mine("-m", "model=mine,vit_nano", "dataset=few", "protocol=fast")
    assert {path.parent.parent.name for path in tmp_path.rglob("cka.csv")} == {"mine", "vit_nano"}


def test_a_job_on_another_machine_finds_them(conf, monkeypatch):
    """It gets the configuration and Hydra's own, but none of the flags."""
    with choices.using(conf), initialize_config_dir(str(choices.CONF), version_base="1.3"):
        cfg = compose("run", ["model=mine"], return_hydra_config=True)
    HydraConfig.instance().set_config(cfg)
    asked = []
    monkeypatch.setattr("vitsee.cli.perform", asked.append)
    del cfg._content["hydra"]
    cli.one_of_many(cfg)
    assert [each.dataset.name for each in asked] == ["few"]


def test_a_process_per_device_needs_none_of_the_files(conf):
    made = composed_with(conf, "model=mine")
    sent = pickle.dumps(made)
    shutil.rmtree(conf)
    assert pickle.loads(sent) == made


def test_a_figure_of_the_user_s_is_drawn_by_its_name_with_their_zoo(run_mine):
    folder = run_mine("figure=own", "zoo=one", "protocol=fast", "untrained=false")
    assert (folder / "own.png").is_file()
    assert "cka/mine/" in (folder / "panels.csv").read_text()


def test_all_figures_are_those_of_the_papers(conf):
    with choices.using(conf):
        assert "own" in choices.names("figure")
        for several in ("all", "extra"):
            assert "own" not in Request.read([f"figure={several}"]).figures


def test_a_recipe_is_found(conf, command):
    code, out, err = command("train", "--config-dir", str(conf), "recipe=brief", "--cfg", "job")
    assert code == 0, err
    assert yaml.safe_load(out)["recipe"]["images_seen"] == 64


def test_tab_completion_offers_them(conf, command, monkeypatch):
    for line, offered in (("model=mi", "model=mine"), ("", "")):
        monkeypatch.setenv("COMP_LINE", f"vitsee run --config-dir {conf} {line}")
        assert offered in command("-sc", "query=bash")[1]
    monkeypatch.setenv("COMP_LINE", f"vitsee run --config-dir {conf}/mo model=mi")
    assert command("-sc", "query=bash")[:2] == (0, "")


def test_they_are_found_from_python_for_one_call(conf, tmp_path, undrawn):
    asked = {"run": {"outputs": tmp_path, "device": "cpu", "workers": 0, "progress": False}}
    words = ("model=mine", "protocol=fast", "analysis.layers=[norm]")
    for given in (conf, [str(conf), conf]):
        assert vitsee.run_experiment(*words, config_dir=given, **asked).path.parent.name == "mine"
    with pytest.raises(UserError, match=r"config_dir must be a folder or a list of folders, got 3"):
        vitsee.run_experiment(*words, config_dir=3, **asked)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"there is no protocol=fast; .*own: --config-dir FOLDER\)"):
        vitsee.run_experiment(*words, **asked)
    with pytest.raises(
        UserError, match=r"--config-dir=conf: from Python this is config_dir=FOLDER"
    ):
        vitsee.run_experiment("--config-dir=conf", *words, **asked)


def test_a_result_is_that_of_the_options_wherever_they_are_written(conf, tmp_path, undrawn):
    def path(folder: Path) -> Path:
        asked = {"run": {"outputs": tmp_path, "device": "cpu", "workers": 0, "progress": False}}
        words = ("model=mine", "protocol=fast", "analysis.layers=[norm]")
        return vitsee.run_experiment(*words, config_dir=folder, **asked).path

    here = path(conf)
    elsewhere = Path(shutil.copytree(conf, tmp_path / "elsewhere" / "conf"))
    assert path(elsewhere) == here
    mine = elsewhere / "model" / "mine.yaml"
    mine.write_text(f"{mine.read_text()}seed: 1\n")
    assert path(elsewhere).parent == here.parent
    assert path(elsewhere) != here


# ---- mistakes ----


@pytest.mark.parametrize("words", [["--config-dir"], ["model=mine", "-cd"]])
def test_a_flag_without_a_folder_says_what_is_missing(command, words):
    code, _, err = command("run", *words)
    assert code == 2
    assert f"{words[-1]} needs a folder of YAML files: --config-dir conf" in err


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("models/x.yaml", "name: x", r"conf/models is not read; .* model/NAME.*mean model\?"),
        ("analysis/cka.yaml", "", r"conf/analysis: analyses are Python files: --import"),
        ("model/vit_mini.yaml", "name: vit_mini", r"vit_mini\.yaml: vitsee has a file of that nam"),
        ("model/x.yml", "name: x", r"model/x\.yml is not read; rename it x\.yaml"),
        ("run.yaml", "images: 8", r"conf/run\.yaml: vitsee has a file of that name; rename yours"),
        ("model/x.yaml", "name: vit_mini", r"x\.yaml has name: vit_mini; write name: x, as the f"),
        ("dataset/x.yaml", "defaults: [folder]", r"dataset/x\.yaml has no name; write name: x"),
        ("figure/x.yaml", "name: own", r"figure/x\.yaml has name: own; write name: x"),
        ("model/x.yaml", "name: x\nargs: ]", r"model/x\.yaml, line 2 is not YAML: did not find"),
        ("model/x.yaml", "x", r"model/x\.yaml: it has no options, which are written NAME: VALUE"),
        ("protocol/x.yaml", "images: 8", r"x\.yaml lacks its first line: # @package _global_"),
        ("recipe/x.yaml", "recipe: {}", r"x\.yaml lacks its first line: # @package _global_"),
        (
            "model/x.yaml",
            "defaults: [vit_nan, _self_]\nname: x",
            r"model/x\.yaml: there is no model=vit_nan; .*mine, .*Did you mean vit_nano\?",
        ),
        ("model/x.yaml", "defaults: [x]\nname: x", r"model/x\.yaml: its defaults lead back to it"),
        (
            "model/x.yaml",
            "defaults: [_self_, vit_nano]\nname: x\npretrained: false",
            r"model/x\.yaml: what stands after _self_ .*; write defaults: \[vit_nano, _self_\]",
        ),
        (
            "model/x.yaml",
            "defaults: vit_nano\nname: x",
            r"model/x\.yaml: defaults must be a list; write defaults: \[vit_nano, _self_\]",
        ),
        (
            "recipe/x.yaml",
            "# @package _global_\ndefaults: [vit_nano, _self_]\nrecipe: {images_seen: 64}",
            r"recipe/x\.yaml has no name; write recipe: \{name: x\}, as the file is called",
        ),
    ],
)
def test_a_file_that_would_not_be_what_it_seems_is_refused(conf, name, content, message):
    write(conf / name, content)
    with pytest.raises(UserError, match=message), choices.using(conf):
        pass
    (conf / name).unlink()
    with choices.using(conf):
        assert "mine" in choices.names("model")


def test_a_folder_that_is_not_there_or_has_nothing_is_refused(conf):
    with pytest.raises(UserError, match=r"there is no such folder\. Did you mean conf\?"):
        composed_with(conf.with_name("cnf"), "model=mine")
    (conf.parent / "empty").mkdir()
    with pytest.raises(UserError, match=r"empty contains no choices, which are model/NAM"):
        composed_with(conf.parent / "empty", "model=mine")


def test_what_those_messages_advise_is_accepted(conf):
    content = "defaults: [vit_nano, _self_]\nname: x\npretrained: false"
    write(conf / "model" / "x.yaml", content)
    model = composed_with(conf, "model=x").model
    assert (model.name, model.pretrained) == ("x", False)
    late = "# @package _global_\ndefaults: [vit_nano, _self_, {override /model: mine}]\n"
    write(conf / "recipe" / "x.yaml", f"{late}recipe: {{name: x}}\n")
    with choices.using(conf):
        made = config.configuration("train", ["recipe=x"])
    assert (made.recipe.name, made.model.name) == ("x", "mine")


def test_a_folder_that_is_given_twice_counts_once(conf, monkeypatch):
    monkeypatch.chdir(conf.parent)
    with choices.using(conf, "conf"):
        assert choices.folders() == (conf, choices.CONF)


def test_of_two_folders_with_the_same_name_none_wins(conf, tmp_path):
    other = write(tmp_path / "other" / "model" / "mine.yaml", "name: mine\ntimm: test_vit2\n")
    both = (conf, other.parent.parent)
    message = r"other/model/mine\.yaml: .*conf has one of that name; rename yours"
    with pytest.raises(UserError, match=message), choices.using(*both):
        pass
    other.unlink()
    write(other.with_name("yours.yaml"), "name: yours\ntimm: test_vit2\n")
    with choices.using(*both):
        assert {"mine", "yours"} <= set(choices.names("model"))


@pytest.mark.parametrize(
    ("verb", "word", "message"),
    [
        ("run", "model=mien", r"there is no model=mien; .*, mine, .*Did you mean mine\?"),
        ("run", "figure=onw", r"there is no figure=onw; .*, own, .*Did you mean own\?"),
        ("run", "model=mnie", r"there is no model=mnie; .*Did you mean mine\?"),
        ("train", "recipe=breif", r"there is no recipe=breif; .*brief.*Did you mean brief\?"),
    ],
)
def test_an_unknown_choice_is_compared_with_those_of_the_user_s(conf, command, verb, word, message):
    code, _, err = command(verb, "--config-dir", str(conf), word)
    assert code == 2
    assert len(err.splitlines()) == 1
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(err)
    assert "files of your own: --config-dir FOLDER" not in err
    assert "(files of your own: --config-dir FOLDER)" in command(verb, word)[2]


def test_a_recipe_that_extends_one_that_does_not_exist_says_so(conf, command):
    wrong = MINE["recipe/brief"].replace("vit_nano", "vit_nan").format()
    write(conf / "recipe" / "brief.yaml", wrong)
    code, _, err = command("train", "--config-dir", str(conf), "recipe=brief")
    assert code == 2
    assert "In 'recipe/brief': there is no recipe=vit_nan; recipe can be: brief, " in err
    assert "Did you mean vit_nano?" in err


def test_an_option_that_is_a_word_of_python_s_ends_in_an_underscore(conf, command):
    model = conf / "model" / "theirs.yaml"
    model.write_text("defaults: [import, _self_]\nname: theirs\nimport: nets:make\n")
    _, _, err = command("run", "--config-dir", str(conf), "model=theirs")
    assert "no option model.import in a YAML file: write import_: VALUE there" in err
    model.write_text(model.read_text().replace("import: ", "import_: "))
    assert composed_with(conf, "model=theirs").model.import_ == "nets:make"


def test_a_figure_with_a_mistake_is_refused_before_anything_is_measured(conf, command):
    figure = conf / "figure" / "own.yaml"
    right = figure.read_text()
    for old, new, message in (
        (
            "[[vit]]",
            "[[vti]]",
            "a row of figure=own names a panel vti; there are: vit. Did you mean",
        ),
        ("rows:", "row:", f"{figure}: there is no key row; there can be: abreast, "),
        (
            "roles: [my_vit]",
            "roles: my_vit",
            f"{figure}: panels.vit.roles is a list; write `roles: [my_vit]`",
        ),
        ("my_vit]}", "my_vit]}\nclaims: {unifrom: {}}", "does not exist (if it is your own: --imp"),
    ):
        figure.write_text(right.replace(old, new))
        code, out, err = command("run", "-cd", str(conf), "figure=own", "zoo=one")
        assert (code, out) == (2, "")
        assert message in err


def test_a_name_with_the_same_letters_is_the_nearest(conf, command):
    write(conf / "zoo" / "mine.yaml", MINE["zoo/one"].replace("one", "mine").format())
    _, _, err = command("run", "-cd", str(conf), "figure=own", "zoo=mien")
    assert "there is no zoo=mien; zoo can be: mine, mini, " in err
    assert err.endswith("Did you mean mine?\n")


def test_all_roles_that_a_zoo_lacks_are_named_before_anything_is_measured(conf, command):
    zoo = conf / "zoo" / "one.yaml"
    figure = conf / "figure" / "own.yaml"
    figure.write_text(figure.read_text().replace("[my_vit]", "[huge], other: tiny"))
    code, out, err = command("run", "-cd", str(conf), "figure=own", "zoo=one")
    assert (code, out) == (2, "")
    assert "zoo one has no role huge, tiny; it has: my_vit. In your own zoo, add" in err
    advice = '`huge: {missing: "why"}`'
    assert advice in err
    missing = f"  {advice.strip('`')}\n"
    zoo.write_text(zoo.read_text() + missing + missing.replace("huge", "tiny"))
    with choices.using(conf):
        atlas.zoo("one").check(atlas.wants(atlas.published("own")))


LIST, KEYS = "is a list", "has keys of its own"


@pytest.mark.parametrize(
    ("file", "old", "new", "wrong", "message", "right"),
    [
        ("figure/own", "figure: cka", "figure: cka, %s", "options: {images: 8, run.pdf: true}",
         f"panels.vit.options {LIST}", "options: [images=8, run.pdf=true]"),
        ("figure/own", "figure: cka", "figure: cka, %s", "options: [images: 8]",
         f"panels.vit.options {LIST}", "options: [images=8]"),
        ("figure/own", "roles: [my_vit]", "%s", "roles: my_vit",
         f"panels.vit.roles {LIST}", "roles: [my_vit]"),
        ("figure/own", "rows: [[vit]]", "%s", "rows: [vit]", f"rows {LIST}", "rows: [[vit]]"),
        ("figure/own", "rows: [[vit]]", "%s", "rows:", f"rows {LIST}", "rows: [[…]]"),
        ("figure/own", "rows:", "%s\nrows:", "claims: [uniform]",
         f"claims {KEYS}", "claims: {NAME: …}"),
        ("figure/own", "vit: {title: mine, analysis: cka, figure: cka, roles: [my_vit]}", "%s",
         "vit: cka", f"panels.vit {KEYS}", "vit: {title: …, analysis: …, figure: …, roles: …}"),
        ("zoo/one", "my_vit: {model: mine}", "%s", "my_vit: mine",
         f"roles.my_vit {KEYS}", "my_vit: {model: mine}"),
        ("zoo/one", "roles:", "%s\nroles:", "options: dataset=few",
         f"options {LIST}", "options: [dataset=few]"),
    ],
)  # fmt: skip
def test_what_should_be_a_list_or_have_keys_is_shown_as_it_is_written(
    conf, file, old, new, wrong, message, right
):
    path = conf / f"{file}.yaml"
    text, read = path.read_text(), {"figure": atlas.published, "zoo": atlas.zoo}[path.parent.name]
    assert old in text
    with choices.using(conf):
        path.write_text(text.replace(old, new % wrong))
        with pytest.raises(UserError, match=re.escape(f"{path}: {message}; write `{right}`")):
            read(path.stem)
        if "…" not in right:
            path.write_text(text.replace(old, new % right))
            assert read(path.stem)


def test_a_panel_of_several_roles_that_its_analysis_cannot_draw_is_refused(conf, command):
    figure = conf / "figure" / "own.yaml"
    figure.write_text(figure.read_text().replace("[my_vit]", "[my_vit, my_vit]"))
    code, out, err = command("run", "-cd", str(conf), "figure=own", "zoo=one")
    assert (code, out) == (2, "")
    assert (
        "the panel vit of figure=own has several roles, which analysis=cka cannot draw together; make one panel "
        "per role, or define `joined`" in err
    )


def test_the_list_of_claims_has_the_user_s(imported, command):
    imported("claims_here", CLAIM.format(name="all_is_well"))
    rows = command("list", "claims")[1].splitlines()
    assert "all_is_well all is well" in {" ".join(row.split()) for row in rows}


def test_a_panel_of_a_figure_that_its_analysis_does_not_draw_is_named(conf, run_mine, command):
    folder = run_mine("figure=own", "zoo=one", "protocol=fast", "untrained=false")
    record = folder / "figure.json"
    record.write_text(record.read_text().replace('"figure": "cka"', '"figure": "ckaa"'))
    with pytest.raises(UserError, match=r"no figure ckaa of cka; it draws: cka\. Did you mean cka"):
        composing.draw(folder)


# ---- claims in a file of one's own ----

CLAIM = '''
from vitsee.papers.verdicts import claim
from vitsee.papers.claims.statistics import table_of

@claim("all is well", "one", above=0)
def {name}(all_of_it):
    """'All is well.'

    Threshold: more than nothing.
    Null: untrained networks.
    Premise: none.
    """
    return 1.0
'''


@pytest.fixture
def imported(tmp_path, monkeypatch):
    """`--import` of a file of this content; what it brings is forgotten afterwards."""
    monkeypatch.setenv("PYTHONPATH", os.environ.get("PYTHONPATH", ""))
    monkeypatch.setattr(sys, "path", [*sys.path])
    before, modules = dict(CLAIMS), set(sys.modules)

    def call(name: str, content: str) -> None:
        import_asked(["--import", str(write(tmp_path / f"{name}.py", content))])

    yield call
    CLAIMS.clear()
    CLAIMS.update(before)
    for name in set(sys.modules) - modules:
        del sys.modules[name]


def test_a_claim_in_a_file_is_found_under_its_name_and_may_be_imported_again(imported):
    imported("claims_here", CLAIM.format(name="all_is_well"))
    first = CLAIMS["all_is_well"]
    assert first.evidence == ["all_of_it"]
    del sys.modules["claims_here"]
    imported("claims_here", CLAIM.format(name="all_is_well"))
    assert CLAIMS["all_is_well"].measure is sys.modules["claims_here"].all_is_well  # type: ignore[attr-defined]
    assert CLAIMS["all_is_well"] is not first


@pytest.mark.parametrize("name", ["uniform", "all_is_well"])
def test_two_claims_of_one_name_are_refused_wherever_they_are(imported, name):
    if name == "all_is_well":
        imported("claims_before", CLAIM.format(name=name))
    there = CLAIMS[name]
    with pytest.raises(UserError, match=rf"two claims are called {name}: .*, line \d+, and .*/cla"):
        imported("claims_after", CLAIM.format(name=name))
    assert CLAIMS[name] is there
    sys.modules.pop("claims_after", None)
    imported("claims_renamed", CLAIM.format(name="well"))
    assert "well" in CLAIMS


def test_of_two_claims_of_one_name_in_one_file_none_is_lost(imported):
    with pytest.raises(UserError, match=r"two claims are called twice: .*line 5, and .*line 18; r"):
        imported("claims_twice", CLAIM.format(name="twice") * 2)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "    Null: untrained networks.\n",
            "",
            r"its docstring lacks Null; it must begin with the auth",
        ),
        (
            "'All is well.'\n\n",
            "",
            r"its docstring lacks the authors' words; .* Threshold: …, Null: …, Prem",
        ),
        ("Threshold: more", "Threshold more", r"its docstring lacks Threshold; "),
        (", above=0", "", r"needs exactly one threshold: above=… or below=…"),
        ("above=0", "above='0'", r"has above='0'; a threshold is a number: above=1"),
        ("above=0", "below=float('nan')", r"has below=nan; a threshold is a number: below=1"),
        ("above=0", "above=0, premise='none'", r"has premise='none'; a premise is a function of"),
    ],
)
def test_a_claim_that_is_not_declared_in_full_is_refused(imported, old, new, message):
    content = CLAIM.format(name="unfounded")
    with pytest.raises(
        UserError, match=rf"the claim unfounded \(.*claims_x\.py, line 5\).*{message}"
    ):
        imported("claims_x", content.replace(old, new))
    assert "unfounded" not in CLAIMS


def test_a_claim_that_fails_on_its_evidence_is_named_with_its_line(imported):
    failing = CLAIM.format(name="failing").replace("1.0", "all_of_it['no such role']")
    imported("claims_x", failing)
    message = (
        r"the claim failing failed: KeyError: 'no such role' \(.*claims_x\.py, line 13\); VITSEE_T"
    )
    with pytest.raises(UserError, match=message):
        verdict(CLAIMS["failing"], "mine", Gathered({"all_of_it": [{}]}, []))


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ("[0.5] * 12", r"returns 12 values; write any_of=True if one of them is enough, or return"),
        ("[]", r"returns 0 values; write any_of=True"),
        ("'x'", r"returns 'x'; return a number"),
        ("None", r"returns None; return a number"),
        ("[[1], [1, 2]]", r"returns a list; return a number"),
    ],
)
def test_a_claim_that_returns_anything_but_one_number_is_refused(imported, returned, message):
    imported("claims_x", CLAIM.format(name="unclear").replace("1.0", returned))
    with pytest.raises(UserError, match=rf"the claim unclear \(.*s_x\.py, line 5\) {message}"):
        verdict(CLAIMS["unclear"], "mine", Gathered({"all_of_it": [{}]}, []))


def test_a_claim_about_one_of_many_returns_a_list_of_numbers(imported):
    some = CLAIM.format(name="some").replace("above=0", "above=0, any_of=True")
    imported("claims_x", some.replace("1.0", "[-1, 2, 1]"))
    assert verdict(CLAIMS["some"], "mine", Gathered({"all_of_it": [{}]}, []))["value"] == 2
    del sys.modules["claims_x"]
    imported("claims_x", some.replace("1.0", "[[-1, 2, 1]]"))
    with pytest.raises(UserError, match=r"returns 1 x 3 values; with any_of=True, return a list"):
        verdict(CLAIMS["some"], "mine", Gathered({"all_of_it": [{}]}, []))


@pytest.mark.parametrize("returned", ["False", "None", "True", "0"])
def test_a_premise_returns_a_text(imported, returned):
    premise = f"above=0, premise=lambda all_of_it: {returned}"
    imported("claims_x", CLAIM.format(name="early").replace("above=0", premise))
    message = rf'premise of the claim early \(.*line 5\) returns {returned}; return "" if it holds'
    with pytest.raises(UserError, match=message):
        verdict(CLAIMS["early"], "mine", Gathered({"all_of_it": [{}]}, []))
    for right, holds in (("''", "undecided"), ("'too few'", "not testable")):
        del sys.modules["claims_x"]
        content = CLAIM.format(name="early").replace("above=0", premise)
        imported("claims_x", content.replace(f": {returned}", f": {right}"))
        row = verdict(CLAIMS["early"], "mine", Gathered({"all_of_it": [{}]}, []))
        assert row["holds"] == holds


def test_a_claim_of_one_s_own_that_asks_for_a_table_by_a_wrong_name_is_told_of(imported, caplog):
    asks = CLAIM.format(name="misspelt").replace("1.0", "table_of(all_of_it, 'token_lenght')")
    imported("claims_x", asks)
    evidence = {"vit": {"token_length": pd.DataFrame()}}
    row = verdict(CLAIMS["misspelt"], "mine", Gathered({"all_of_it": [evidence]}, []))
    assert row["why"] == (
        "not measured: table token_lenght; the panel has token_length. Did you mean token_length?"
    )
    assert f"warning: the claim misspelt is not testable: {row['why']}" in caplog.text
