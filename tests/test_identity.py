"""What the identity of a result covers, and that no state of another experiment is ever added to it."""

from __future__ import annotations

import re
import shutil
from dataclasses import fields
from enum import Enum
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from conftest import NEEDED, composed, tiny_overrides, write_images
from torch import nn

from vitsee.analysis import REGISTERED
from vitsee.config import override
from vitsee.errors import UserError
from vitsee.models.structure import structure
from vitsee.options import DatasetOptions, Experiment, ModelOptions
from vitsee.results.folder import Results
from vitsee.runner import run
from vitsee.study import UNREAD, Study
from vitsee.sums import Sums
from vitsee.testing import assert_same

pytestmark = pytest.mark.usefixtures("undrawn")

OTHER: dict[str, list[str]] = {
    "attention_rollout.images_list": ["analysis.images_list=[1,0]", "images=2"],
    "head_maps.fixed": ["analysis.fixed=0.6"],
    "head_maps.images_list": ["analysis.images_list=[1,0]", "images=2"],
    "head_maps.query": ["analysis.query=[0,1]"],
    "cka.tokens": ["analysis.tokens=patches", "analysis.layers=[blocks.0,blocks.1]"],
    "linear_probe.features": ["analysis.features=[gap,first]"],
    "linear_probe.held_out": ["analysis.held_out=4"],
    "linear_probe.l2": ["analysis.l2=[1.0]"],
    "linear_probe.seeds": ["analysis.seeds=[0,2]"],
    "linear_probe.train_split": [
        "analysis.train_split=train",
        "dataset=scenes",
        "dataset.root=null",
        "analysis.shots=1",
    ],
    "localization.tokens": ["analysis.tokens=[[0,0]]"],
    "robustness.changes": ["analysis.changes=[shuffle]"],
    "robustness.drops": ["analysis.drops=[0.25]"],
    "robustness.shuffles": ["analysis.shuffles=[3]"],
    "token_norm.multiple": ["analysis.multiple=2"],
    "model.args": ["model.args={drop_rate: 0.1}"],
    "model.overlay": ["model.overlay={mean: [0.1, 0.1, 0.1]}"],
    "model.pool": ["model.pool=gap"],
    "model.remove_skip": ["model.remove_skip=[0]"],
    "model.timm": ["model.timm=test_vit2"],
    "dataset.split": ["dataset.split=train"],
    "dataset.resolution": ["dataset.resolution=64"],
    "dataset.size": ["dataset.size=40"],
    "experiment.images": ["images=32"],
    "experiment.model": ["model.timm=test_vit2"],
    "experiment.other": ["model@other=timm", "other.timm=test_vit2", "other.pretrained=false"],
    "experiment.dataset": ["dataset=scenes", "dataset.root=null", "dataset.size=41"],
    "experiment.analysis": ["analysis=attention_distance"],
    "experiment.precision": ["precision=bf16"],
    "experiment.tolerance": ["tolerance=0.5"],
}
"""Another value of an option whose present value suggests none, and what else that asks for."""

BY_CONTENT = {
    "name": "a label",
    "kind": "how images are read: they count by name, size and some of their bytes, or by their formula",
    "root": "where they lie",
    "split_is_root": "which folder is read: images count by name and size",
    "path": "names the images of a stream, which count by content",
    "config": "the same",
    "column": "the same",
    "take": "the same",
    "on_bad_image": "whether to stop: tables that lack images exist with `skip` alone, and list them",
}
"""Options of a data set that need not be in the identity, and why they can change no number."""


@cache
def identity(*given: str) -> str:
    """The fingerprint of the experiment of these overrides; nothing is run."""
    return Study(composed(*given)).fingerprint


def options(kind: Any, *but: str) -> list[str]:
    return [field.name for field in fields(kind) if field.init and field.name not in but]


def words(name: str, images: Path, outputs: Path = Path("outputs")) -> list[str]:
    return [*tiny_overrides(images, outputs), f"analysis={name}", *NEEDED.get(name, [])]


def changed(key: str, owner: str, value: Any) -> list[str]:
    """Overrides that give the option another value than this one."""
    if f"{owner}.{key.rpartition('.')[2]}" in OTHER:
        return OTHER[f"{owner}.{key.rpartition('.')[2]}"]
    if isinstance(value, Enum):
        return [f"{key}={next(one.value for one in type(value) if one is not value)}"]
    assert isinstance(value, int), f"{key} is new: is it in the identity, or why need it not be?"
    return [override(key, not value if isinstance(value, bool) else value + 1)]


OF_ANALYSES = [
    (name, field)
    for name, kind in sorted(REGISTERED.items())
    for field in options(kind, "name", *UNREAD["analysis"], *kind.unread)
]


@pytest.mark.parametrize(("name", "field"), OF_ANALYSES, ids=map(".".join, OF_ANALYSES))
def test_every_option_of_an_analysis_changes_the_identity(name, field, images):
    given = words(name, images)
    value = getattr(composed(*given).analysis, field)
    other = changed(f"analysis.{field}", name, value)
    given += [word for word in other if not word.startswith(f"analysis.{field}=")]
    assert identity(*given, *other) != identity(*given)


@pytest.mark.parametrize("field", options(ModelOptions, *UNREAD["model"], "id", "import_"))
@pytest.mark.parametrize("role", ["model", "other"])
def test_every_option_of_a_model_changes_the_identity(role, field, images):
    given = words("cka", images)
    given += ["model@other=timm", "other.timm=test_vit", "other.pretrained=false"]
    value = getattr(composed(*given).model, field)
    other = [
        word.replace("model.", f"{role}.", 1) for word in changed(f"model.{field}", "model", value)
    ]
    assert identity(*given, *other) != identity(*given)


@pytest.mark.parametrize("field", options(DatasetOptions, *BY_CONTENT))
def test_every_option_of_the_data_that_can_change_an_image_changes_the_identity(
    field, images, tmp_path
):
    given = [*words("cka", images), "dataset=scenes", "dataset.root=null", "dataset.size=32"]
    given = [word for word in given if not word.startswith("dataset.root")]
    value = getattr(composed(*given).dataset, field)
    other = changed(f"dataset.{field}", "dataset", value)
    assert identity(*given, *other) != identity(*given)


@pytest.mark.parametrize("field", options(Experiment, "run"))
def test_every_option_of_an_experiment_but_how_it_is_run_changes_the_identity(
    field, images, tmp_path
):
    given = [*words("cka", images), "images=24"]
    other = changed(field, "experiment", getattr(composed(*given), field))
    assert identity(*given, *other) != identity(*given)


def test_weights_and_settings_of_the_model_change_the_identity(images):
    given = words("cka", images)
    settings = (["model.args={num_classes: 2, drop_rate: 0.1}"], ["model.args={num_classes: 2}"])
    found = {identity(*given, *more) for more in (*settings, ["model.seed=1"])}
    assert len(found) == 3


@pytest.mark.parametrize("name", sorted(REGISTERED))
def test_weights_and_settings_of_every_model_and_the_version_are_in_the_identity_of_every_analysis(
    name, images, monkeypatch
):
    experiment = composed(*words(name, images))
    study = Study(experiment)
    made_of, before = study.made_of, study.fingerprint
    for role, model in study.models.items():
        assert made_of["weights"][role] == model.digest
        assert made_of["architecture"][role]["args"] == experiment.models[role].args
    monkeypatch.setattr(REGISTERED[name], "version", 1000)
    del vars(study)["made_of"], vars(study)["fingerprint"]
    assert study.fingerprint != before


def test_options_that_change_no_number_change_no_identity(images, tmp_path):
    given = words("cka", images, tmp_path)
    Path(tmp_path / "elsewhere").mkdir()
    moved = shutil.copytree(images, tmp_path / "elsewhere/again")
    same = [
        "run.outputs=elsewhere",
        "run.save_every=3",
        "model.name=mine",
        "dataset.name=photos",
        f"dataset.root={moved}",
        "dataset.on_bad_image=skip",
        "analysis.layers=[paper]",
    ]
    for word in same:
        assert identity(*given, word) == identity(*given), word


# Two networks with equal weights that compute different things

PAIRS = {
    "numbers of heads": ({"num_heads": 2}, {"num_heads": 4}),
    "activations": ({}, {"act_layer": "relu"}),
    "scales of positions that are rotated": (
        {"use_rot_pos_emb": True, "use_abs_pos_emb": False},
        {"use_rot_pos_emb": True, "use_abs_pos_emb": False, "ref_feat_shape": (7, 7)},
    ),
}


@pytest.mark.parametrize("pair", PAIRS.values(), ids=PAIRS.keys())
def test_equal_weights_in_another_architecture_have_another_structure(pair):
    name = "eva02_tiny_patch14_224" if "use_rot_pos_emb" in pair[0] else "test_vit"
    nets = [timm.create_model(name, **arguments).eval() for arguments in pair]
    assert nets[0].state_dict().keys() == nets[1].state_dict().keys()
    assert structure(nets[0]) != structure(nets[1])


def test_the_structure_is_that_of_the_architecture_whatever_its_weights_and_its_process():
    one, two = (timm.create_model("test_vit") for _ in range(2))
    two.to(memory_format=torch.channels_last).requires_grad_(False).train()
    assert structure(one.eval()) == structure(two)


def test_settings_of_a_class_of_ones_own_count():
    class Scaled(nn.Module):
        def __init__(self, by, buffer):
            super().__init__()
            self.by = by
            self.register_buffer("shift", torch.tensor(buffer), persistent=False)

    different = [Scaled(1.0, 0.0), Scaled(2.0, 0.0), Scaled(1.0, 1.0), Scaled([1.0], 0.0)]
    assert len({structure(net) for net in different}) == len(different)
    assert structure(Scaled(1.0, 0.0)) == structure(different[0])


def test_another_architecture_with_the_same_weights_is_another_result(tiny):
    """Its layers have the same names too: nothing but the skip differs."""
    intact = run(tiny("analysis.layers=blocks")).files[0]
    before = intact.read_bytes()
    without = run(tiny("analysis.layers=blocks", "model.remove_skip=[0]")).files[0]
    assert without.parent != intact.parent
    assert without.read_bytes() != before
    assert intact.read_bytes() == before
    assert "remove_skip: []" in (intact.parent / "experiment.yaml").read_text()


# States of other experiments


def test_a_state_of_another_experiment_is_set_aside(tiny, caplog):
    """It has the same plan and the same layers."""
    mine, other = run(tiny()).files[0], run(tiny("seed=1")).files[0]
    before = mine.read_bytes()
    shutil.copy(other.parent / "state/000-of-001.pt", mine.parent / "state/000-of-001.pt")
    assert run(tiny()).files[0].read_bytes() == before
    assert "000-of-001.pt is set aside" in caplog.text
    assert (
        "it belongs to a different experiment or a different version of the analysis" in caplog.text
    )


def test_a_state_of_other_layers_as_a_further_shard_is_set_aside(tiny, caplog):
    mine = run(tiny()).files[0]
    other = run(tiny("analysis.layers=blocks")).files[0]
    before = mine.read_bytes()
    shutil.copy(other.parent / "state/000-of-001.pt", mine.parent / "state/001-of-002.pt")
    assert run(tiny()).files[0].read_bytes() == before
    assert "001-of-002.pt is set aside" in caplog.text


def test_a_state_of_another_pass_is_set_aside(images, tmp_path, caplog):
    given = words("linear_probe", images, tmp_path)
    mine = run(composed(*given)).files[0]
    right = Results(mine.parent).tables()
    first, second = mine.parent / "state/000-of-001.pt", mine.parent / "state/pass2-000-of-001.pt"
    assert Sums.load(first).seen.shape == Sums.load(second).seen.shape
    shutil.copy(second, first)
    run(composed(*given))
    assert "000-of-001.pt is set aside" in caplog.text
    assert_same(Results(mine.parent).tables(), right)


def test_a_folder_that_somebody_gave_the_name_of_another_result_is_not_overwritten(
    run_tiny, tmp_path
):
    assert run_tiny("seed=1")[0] == 0
    assert run_tiny("seed=2")[0] == 0
    one, two = sorted(
        (tmp_path / "cka/test_vit").iterdir(), key=lambda folder: folder.stat().st_mtime
    )
    experiment = (one / "experiment.yaml").read_text()
    shutil.rmtree(two)
    one.rename(two)
    code, _, err = run_tiny("seed=2")
    assert code == 2
    assert re.search(
        r"contains a different experiment, which differs in the minibatches; move it away and repeat the",
        err,
    )
    assert (two / "experiment.yaml").read_text() == experiment
    two.rename(tmp_path / "away")
    assert run_tiny("seed=2")[0] == 0


def test_a_damaged_record_of_what_a_result_is_made_of_is_written_anew(tiny):
    csv = run(tiny()).files[0]
    record = csv.parent / "state/made_of.json"
    before = record.read_bytes()
    record.write_bytes(b"")
    run(tiny())
    assert record.read_bytes() == before


# Going on where an image was bad


@pytest.mark.parametrize(
    "name", [name for name, kind in sorted(REGISTERED.items()) if not kind.weights_only]
)
def test_what_was_measured_before_a_bad_image_counts_when_bad_images_are_skipped(name, tmp_path):
    """The advice of the message, followed, gives the numbers of a run that skipped from the beginning."""
    photos = write_images(tmp_path / "photos", 40)
    few = ["images=16", f"analysis={name}", *NEEDED.get(name, [])]
    given = [*tiny_overrides(photos, tmp_path / "out"), "run.save_every=1", *few]
    study = Study(composed(*given))
    last = study.plan.batch(len(study.plan) - 1)[0]
    (photos / study.images.id(last)).write_bytes(b"")
    with pytest.raises(UserError, match=r"dataset\.on_bad_image=skip"):
        run(composed(*given))
    resumed = run(composed(*given, "dataset.on_bad_image=skip")).folder
    fresh = [*tiny_overrides(photos, tmp_path / "fresh"), "dataset.on_bad_image=skip", *few]
    whole = run(composed(*fresh)).folder
    assert_same(Results(resumed).tables(), Results(whole).tables())
    assert Results(resumed).load_json("made_with.json")["skipped_images"] == [study.images.id(last)]
