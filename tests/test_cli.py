"""The command line as a user types it: what it prints, its exit codes, its messages."""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from conftest import composed, tiny_overrides, wait_until, write_images
from hydra.errors import MissingConfigException
from omegaconf import OmegaConf

from vitsee import config
from vitsee.errors import UserError
from vitsee.mistakes import explain
from vitsee.models import cards
from vitsee.models.sources.timm import EMBEDDED
from vitsee.results.folder import Results
from vitsee.runner import run
from vitsee.study import Study, choose_device
from vitsee.sums import Sums


def vitsee_command(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "vitsee", *words],
        capture_output=True,
        text=True,
        env=os.environ | environment,
        check=False,
    )


MISTAKES = {
    "an unknown verb": (["rnu"], "there is no verb 'rnu'; it can be: run, .*Did you mean run?"),
    "a flag before the verb": (
        ["--config-dir", "my conf", "run", "model=mine"],
        r"vitsee: the verb comes first: vitsee run --config-dir 'my conf' model=mine",
    ),
    "a flag and no verb": (["--import=f.py"], r"the verb comes first: vitsee run --import=f\.py"),
    "a recipe without training": (
        ["run", "recipe=vit_nano"],
        r"recipe=NAME is for training: vitsee train recipe=NAME \(`vitsee list recipes`\)",
    ),
    "an option of a list": (
        ["list", "models", "vit"],
        "vitsee list models takes a library and a pattern, but 'vit' was given; e.g. model=timm",
    ),
    "an unknown analysis": (
        ["run", "analysis=ckaa"],
        "there is no analysis=ckaa .*; .*Did you mean cka?",
    ),
    "an unknown model": (
        ["run", "model=vit_l61"],
        r"no model=vit_l61; .*vit_b16.*Did you mean vit_l16\? One of timm: model=timm model.timm=vit_l61",
    ),
    "a folder as a data set": (
        ["run", "dataset=photos"],
        "no dataset=photos; .* Your own images: dataset=folder dataset.root=photos",
    ),
    "an unknown second model": (
        ["run", "model@other=r50x"],
        r"no model=r50x; .*Did you mean r50x1\?",
    ),
    "an unknown data set": (["run", "dataset=scene"], r"no dataset=scene; .*Did you mean scenes\?"),
    "an unknown option": (
        ["run", "batchsize=8"],
        "no option batchsize; .*Did you mean batch_size?",
    ),
    "an option without its group": (["run", "layers=blocks"], "Did you mean analysis.layers?"),
    "one added with + without its group": (["run", "+device=cpu"], "Did you mean run.device?"),
    "a misspelt figure=": (["run", "figre=fig01"], "Did you mean figure?"),
    "a figure without its zero": (["run", "figure=fig1"], r"Did you mean fig01\?"),
    "a second model as in Python": (["run", "other=r50x1"], "second model with model@other=NAME"),
    "no name of timm": (["run", "model=timm"], "model.timm is missing: give model.timm=VALUE"),
    "several values": (["run", "model=vit_nano,vit_mini"], "run -m model=vit_nano,vit_mini"),
    "an option with dashes": (
        ["run", "--batch-size", "8"],
        r"no flag --batch-size \(options are written without dashes: batch_size=VALUE\)",
    ),
    "a misspelt flag": (["run", "--form", "x.yaml"], r"no flag --form.*Did you mean --from\?"),
    "layers of a second model that is missing": (
        ["run", "analysis.other_layers=[blocks.0]"],
        "analysis.other_layers is for a second model: name it with model@other=NAME",
    ),
    "two models of what measures one, and draws several": (
        ["run", "analysis=token_norm", "model@other=vit_nano"],
        "model=NAME,NAME .several results are drawn in one figure by `vitsee plot",
    ),
    "two models of what measures one": (
        ["run", "analysis=head_maps", "model@other=vit_nano"],
        "analysis=head_maps model=NAME,NAME$",
    ),
    "an option added with +": (
        ["run", "+batchsize=8"],
        "no option batchsize; .*Did you mean batch_size?",
    ),
    "an unknown option of the analysis": (
        ["run", "analysis.layrs=x"],
        "layrs; .*Did you mean layers?",
    ),
    "one added with +": (["run", "+analysis.layrs=x"], "CKA has: layers, .*Did you mean layers?"),
    "one of the run": (["run", "run.divice=cpu"], "run.divice; .*Did you mean device?"),
    "a value of the wrong type": (["run", "batch_size=many"], "batch_size: Value 'many' .*Integer"),
    "a value that is no choice": (
        ["run", "precision=fp16"],
        "precision: Invalid value 'fp16', expected",
    ),
    "a word without =": (["run", "1"], "cannot read '1': options are written key=value"),
    "an analysis without analysis=": (["run", "cka"], r"cannot read 'cka'.*mean analysis=cka\?"),
    "a figure without figure=": (["run", "fig1"], r"cannot read 'fig1'.*mean figure=fig\w+\?"),
    "a model without model=": (["list", "layers", "vit_nan"], r"'vit_nan'.*mean model=vit_nano\?"),
    "a zoo that does not exist": (["run", "zoo=tiny"], "no zoo=tiny; zoo can be: mini, paper"),
    "a misspelt zoo": (["run", "figure=all", "zoo=mni"], r"no zoo=mni; .*Did you mean mini\?"),
    "a zoo without a figure": (
        ["run", "zoo=small"],
        "zoo=small chooses the models of a figure: vitsee run figure=NAME zoo=small",
    ),
    "a list that is not closed": (
        ["run", "analysis.layers=[blocks.0,"],
        r"nothing closes the \[ .a space ends the word.*; write 'analysis.layers=\[blocks.0\]'$",
    ),
    "a list that is not opened": (
        ["run", "analysis.layers=blocks.0]"],
        r"no \[ opens the \]; write 'analysis.layers=\[blocks.0\]'$",
    ),
    "a list in a mapping that is not closed": (
        ["run", "model.args={a:[1,2}"],
        r"nothing closes the \[; write 'model.args=\{a:\[1,2\]\}'$",
    ),
    "a minibatch of three": (["run", "batch_size=3"], "batch_size must be at least 4 .*, got 3"),
    "fewer images than a minibatch": (["run", "images=8"], "images=8 is fewer than one minibatch"),
    "no repeats": (["run", "repeats=0"], "repeats must be at least 1, got 0"),
    "repeats of what needs none": (
        ["run", "analysis=position_similarity", "repeats=2"],
        "repeats=2: position_similarity does not depend on how images are split into minibatches",
    ),
    "a tolerance of nothing": (["run", "tolerance=0"], "tolerance must be above 0, .* got 0.0"),
    "a tolerance of shards": (
        ["run", "tolerance=0.1", "run.shards=2"],
        "tolerance=0.1 cannot be combined with run.shards=2: where to stop depends on all",
    ),
    "a shard that is not there": (
        ["run", "run.shard=3", "run.shards=3"],
        r"must be in 0…2 .*got 3",
    ),
    "no shards": (["run", "run.shards=0"], "run.shards must be at least 1, got 0"),
    "another name for an analysis": (
        ["run", "analysis.name=foo"],
        "analysis.name=foo: the name of cka cannot be changed; .* analysis=NAME",
    ),
    "the name of another analysis": (
        ["run", "analysis.name=linear_probe", "batch_size=8"],
        "analysis.name=linear_probe: the name of cka cannot be changed",
    ),
    "layers that are no pattern": (
        ["run", "analysis.layers=[1]"],
        r"analysis.layers must be a preset or",
    ),
    "a number for a choice": (
        ["run", "analysis=0"],
        "invalid configuration: .*must be a string",
    ),
    "no such list": (["list", "modles"], "no list of 'modles'; .*Did you mean models?"),
    "no such result": (
        ["plot", "nowhere"],
        "nowhere does not exist",
    ),
    "no such experiment": (["run", "--from", "no.yaml"], "there is no file no.yaml"),
    "--from nothing": (["run", "--from"], "--from needs the path of an experiment.yaml"),
    "an unknown recipe": (
        ["train", "recipe=vit_mni"],
        "no recipe=vit_mni; .*Did you mean vit_mini?",
    ),
    "an unknown option of a recipe": (
        ["train", "recipe.lrr=1"],
        "no option recipe.lrr; .*Did you mean lr?",
    ),
}


@pytest.mark.parametrize(
    "word", ["analysis.layers=[blocks.0", "analysis.layers=blocks.0]", "analysis.layers=[blocks.0}"]
)
def test_the_word_that_a_message_about_brackets_shows_can_be_read(word, command):
    written = re.search("write '(.*)'", command("run", word)[2])
    assert written
    assert composed(written[1]).analysis.layers == ["blocks.0"]


def test_layers_of_a_model_are_listed_with_the_word_that_the_message_shows(command):
    shown = re.search(r"Did you mean (.*)\?", command("list", "layers", "vit_nano")[2])
    assert shown
    assert "blocks.11" in command("list", "layers", shown[1])[1]


@pytest.mark.parametrize(("words", "message"), MISTAKES.values(), ids=MISTAKES.keys())
def test_a_mistake_is_answered_in_one_line_with_exit_code_2(words, message, command):
    code, out, err = command(*words)
    assert code == 2
    assert out == ""
    assert len(err.strip().splitlines()) == 1
    assert pd.Series([err]).str.contains(message).all(), err


TINY_MISTAKES = {
    "a misspelt pattern": (
        ["analysis.layers=[block.*]"],
        r"nothing in VisionTransformer matches 'block",
    ),
    "more images than there are": (
        ["images=41"],
        r"images=41, but images\d* has 40; use images=40",
    ),
    "a device that is nowhere": (
        ["run.device=tpu"],
        "no run.device=tpu; it can be: auto, all, cpu",
    ),
    "tf32 without CUDA": (
        ["precision=tf32"],
        "precision=tf32 exists on CUDA devices only, not on cpu",
    ),
    "a model timm does not have": (
        ["model.timm=vit_tiny_patch61"],
        "timm has no model 'vit_tiny_patch61'",
    ),
    "an argument the model does not have": (
        ["model.args.depht=3"],
        r"cannot be built with model.args=",
    ),
}


@pytest.mark.parametrize(("words", "message"), TINY_MISTAKES.values(), ids=TINY_MISTAKES.keys())
def test_a_mistake_found_later_is_answered_alike(words, message, run_tiny):
    code, out, err = run_tiny(*words)
    assert (code, out) == (2, "")
    assert len(err.strip().splitlines()) == 1
    assert pd.Series([err]).str.contains(message).all(), err


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_cuda_where_there_is_none_is_refused(run_tiny):
    code, _, err = run_tiny("run.device=cuda")
    assert code == 2
    assert "run.device=cuda, but no cuda device is available" in err
    assert "available: cpu" in err


def test_auto_is_a_device_that_is_there():
    assert choose_device("auto").type in ("cpu", "cuda", "mps")


def test_the_main_job_prints_where_its_table_and_figure_are(run_tiny):
    code, out, _ = run_tiny()
    csv, png = map(Path, out.split())
    assert (code, csv.name, png.name) == (0, "cka.csv", "cka.png")
    assert csv.parent.parent.parent.name == "cka"
    assert csv.parent.name.startswith("folder-")
    assert png.read_bytes().startswith(b"\x89PNG")


def test_a_result_records_what_it_was_made_with(run_tiny):
    _, out, _ = run_tiny("batch_size=16")
    record = json.loads((Path(out.split()[0]).parent / "made_with.json").read_text())
    assert record["models"]["model"]["weights"] == "random, seed 0"
    assert len(record["models"]["model"]["digest"]) == 64
    (only,) = record["passes"]
    assert len(only["image_ids"]) == 32
    assert only["plan"]["left_out"] == 8
    assert record["versions"]["torch"] == torch.__version__
    assert record["launches"][0]["images"] == 32
    assert record["images_per_second"] > 0
    assert 0 <= record["waiting_share"] < 1
    assert record["peak_memory_mb"] > 0


def test_a_folder_gives_its_name_to_figures_and_not_to_the_result_path(
    run_tiny, tmp_path, undrawn, caplog
):
    caplog.set_level("INFO")
    for root, asked, label, path in (
        ("photos", [], "photos", "folder"),
        ("写真", [], "folder", "folder"),  # no font of the figures has these
        ("photos", ["dataset.name=mine"], "mine", "mine"),
    ):
        _, out, _ = run_tiny(f"dataset.root={write_images(tmp_path / root, 16)}", *asked)
        folder = Path(out.split()[0]).parent
        record = Results(folder).load_json("made_with.json")
        assert (record["labels"]["dataset"], record["dataset"]) == (label, path)
        assert folder.name.startswith(f"{path}-")
    assert "photos has 16 images, fewer than the default of 2560" in caplog.text


@pytest.mark.parametrize(
    ("count", "advice"),
    [(12, "use batch_size=6"), (5, "use batch_size=4"), (3, "at least 4 are needed")],
)
def test_fewer_images_than_a_minibatch_are_refused_and_the_advice_works(count, advice, tmp_path):
    root = write_images(tmp_path / "photos", count)
    words = ["analysis=cka", "model=vit_nano", "dataset=folder", f"dataset.root={root}"]
    with pytest.raises(
        UserError, match=f"{count} images, fewer than one minibatch .batch_size=256.; {advice}"
    ):
        _ = Study(composed(*words)).plan
    if advice.startswith("use"):
        assert len(Study(composed(*words, advice.removeprefix("use "))).plan) >= 1


def test_a_last_partial_minibatch_is_left_out_and_the_log_says_so(tiny, caplog):
    caplog.set_level("INFO")
    run(tiny("images=30"))
    assert "6 of 30 images are left out because they do not fill a last minibatch" in caplog.text


def test_an_experiment_file_repeats_the_experiment(command, run_tiny, tmp_path, undrawn):
    _, out, _ = run_tiny("analysis.layers=blocks", "seed=3")
    folder = Path(out.split()[0]).parent
    again = tmp_path / "again"
    code, out, _ = command(
        "run", "--from", f"{folder}/experiment.yaml", f"run.outputs={again}", "run.progress=false"
    )
    assert code == 0
    copy = Path(out.split()[0])
    assert copy.relative_to(again) == (folder / "cka.csv").relative_to(tmp_path)
    assert copy.read_bytes() == (folder / "cka.csv").read_bytes()


@pytest.fixture
def experiment_file(tiny, tmp_path):
    """An experiment.yaml of the tiny experiment."""
    path = tmp_path / "experiment.yaml"
    path.write_text(OmegaConf.to_yaml(OmegaConf.structured(tiny())))
    return path


@pytest.mark.parametrize(
    "word",
    ["model.args={depth:2}", "seed=010", "model.name=off", "analysis.layers=[*]", "seed=1_0"],
)
def test_a_change_to_an_experiment_file_means_what_it_means_without(word, experiment_file, tiny):
    changed = config.load_experiment(experiment_file, [word])
    assert changed.what() == tiny(word).what()


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("model=vit_nano", "for a different model give the whole command without --from"),
        ("model=null", "for a different model give"),
        ("analysis=cka", "for a different analysis give"),
        ("dataset=scenes", "for a different dataset give"),
        ("model@other=vit_nano", "for a different model@other give"),
        ("other=vit_nano", "for a different other give"),
        ("protocol=paper", "for a different protocol give"),
        ("+seed=1", r"\+seed=1: --from takes key=value"),
        ("~seed", "~seed: --from takes key=value"),
        ("b/experiment.yaml", "b/experiment.yaml: --from takes key=value, .* one experiment.yaml"),
        ("seed=1,2", "with one value"),
        ("-m", "-m cannot be given with --from"),
        ("sed=1", "there is no option sed; .*Did you mean seed"),
    ],
)
def test_what_an_experiment_file_cannot_be_changed_by_is_refused(
    word, said, experiment_file, command
):
    code, _, err = command("run", "--from", str(experiment_file), word)
    assert code == 2
    assert re.search(said, err), err


def test_a_folder_in_place_of_an_experiment_file_is_told(command, tmp_path):
    code, _, err = command("run", "--from", str(tmp_path))
    assert code == 2
    assert f"{tmp_path} is a folder; name the experiment.yaml in it" in err


def test_an_experiment_file_with_an_interpolation_is_refused(command, tmp_path):
    (tmp_path / "e.yaml").write_text("analysis: {name: cka}\nmodel: {name: '${oc.env:HOME}'}")
    code, _, err = command("run", "--from", f"{tmp_path}/e.yaml")
    assert code == 2
    assert "has an interpolation" in err


@pytest.mark.parametrize(
    "text", ["just words", "[1, 2]", "analysis: {nam: x}", "a: [", "analysis: cka"]
)
def test_a_file_that_is_no_experiment_is_refused(text, command, tmp_path):
    (tmp_path / "e.yaml").write_text(text)
    code, _, err = command("run", "--from", f"{tmp_path}/e.yaml")
    assert code == 2
    assert "is not an experiment" in err


def test_an_incomplete_result_exits_with_3_and_says_what_is_missing(run_tiny):
    code, _, err = run_tiny("run.shards=2", "run.shard=1")
    assert code == 3
    assert "shard 1 of 2 is done, but 3 of 5 minibatches are missing [0, 2, 4]" in err


def test_an_interrupt_saves_the_state_and_exits_with_130(run_tiny, monkeypatch, tmp_path, undrawn):
    from vitsee.parallel.interrupt import Interruptible

    real = Interruptible.check

    def pressed(self):
        self.asked = True
        real(self)

    monkeypatch.setattr(Interruptible, "check", pressed)
    code, _, err = run_tiny()
    assert code == 130
    assert "interrupted, state saved; repeat the command to continue" in err
    monkeypatch.setattr(Interruptible, "check", real)
    assert run_tiny()[0] == 0


def test_sigterm_is_an_interrupt(forks, images, tmp_path):
    words = ["run", *tiny_overrides(images, tmp_path), "repeats=2000", "run.save_every=1"]
    process = forks.start(words)
    wait_until(lambda: list(tmp_path.rglob("000-of-001.pt")), process)
    process.send(signal.SIGTERM)
    assert process.end() == 130
    assert "state saved" in process.err


def test_a_sweep_runs_every_experiment(command, images, tmp_path, undrawn):
    words = tiny_overrides(images, tmp_path)
    code, out, _ = command("run", *words, "-m", "analysis.layers=blocks", "seed=0,1")
    assert code == 0
    assert len({line for line in out.splitlines() if line.endswith("cka.csv")}) == 2


def test_a_folder_that_cannot_be_written_is_named_before_anything_is_measured(run_tiny, tmp_path):
    (tmp_path / "file").write_text("in the way")
    code, _, err = run_tiny(f"run.outputs={tmp_path}/file/outputs")
    assert code == 2
    assert f"cannot write {tmp_path}/file/outputs" in err
    assert "choose another folder with run.outputs=PATH" in err


def test_a_full_disk_loses_nothing(run_tiny, monkeypatch, tmp_path, undrawn):
    real, calls = os.fsync, []

    def full_after_two_states(descriptor):
        calls.append(descriptor)
        if len(calls) > 5:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", full_after_two_states)
    code, _, err = run_tiny("run.save_every=1")
    assert code == 2
    assert "No space left on device; free some space" in err
    assert not list(tmp_path.rglob("*.partial"))
    monkeypatch.setattr(os, "fsync", real)
    assert list(tmp_path.rglob("000-of-001.pt"))
    assert run_tiny()[0] == 0


def test_too_little_memory_suggests_a_smaller_minibatch_and_keeps_what_was_measured(
    run_tiny, monkeypatch, tmp_path
):
    from vitsee.analyses.cka import CKA

    real, calls = CKA.observe, []

    def out_of_memory_at_the_third(self, view):
        calls.append(view)
        if len(calls) == 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(self, view)

    monkeypatch.setattr(CKA, "observe", out_of_memory_at_the_third)
    code, _, err = run_tiny()
    assert code == 2
    assert (
        "not enough memory on cpu for minibatches of 8 images; try batch_size=4, which starts a new result"
        in err
    )
    (state,) = tmp_path.rglob("000-of-001.pt")
    assert Sums.load(state).seen.sum() == 2
    calls.clear()
    code, _, err = run_tiny("batch_size=4")
    assert "minibatches of 4 images; try fewer layers, a smaller model or run.device=cpu" in err
    assert len([*tmp_path.rglob("000-of-001.pt")]) == 2


def test_an_undecodable_image_is_named(run_tiny, tmp_path):
    folder = write_images(tmp_path / "photos", 16)
    (folder / "class0" / "004.png").write_bytes(b"not an image")
    code, _, err = run_tiny(f"dataset.root={folder}")
    assert code == 2
    assert (
        "cannot decode image class0/004.png (its content is not in a known image format); fix"
        in err
    )
    assert "dataset.on_bad_image=skip" in err


def test_skipped_images_are_counted_listed_and_left_out_for_both_models(
    run_tiny, tmp_path, monkeypatch
):
    from vitsee.analyses.cka import CKA

    folder = write_images(tmp_path / "photos", 16)
    (folder / "class0" / "004.png").write_bytes(b"not an image")
    shapes, real = [], CKA.observe

    def spy(self, view):
        both = [*view.model.values(), *view.other.values()]
        shapes.append({view.images, *(u.shape[0] for u in both)})
        return real(self, view)

    monkeypatch.setattr(CKA, "observe", spy)
    code, out, _ = run_tiny(
        f"dataset.root={folder}",
        "dataset.on_bad_image=skip",
        "model@other=timm",
        "other.timm=test_resnet",
        "other.pretrained=false",
    )
    assert code == 0
    assert sorted(map(sorted, shapes)) == [[7], [8]]
    record = Results(Path(out.split()[0]).parent).load_json("made_with.json")
    assert record["skipped_images"] == ["class0/004.png"]
    assert record["warnings"][-1] == "1 image could not be decoded and was skipped: class0/004.png"
    assert "test_vit-vs-test_resnet" in out


def test_the_identity_changes_with_what_changes_a_number_and_with_nothing_else(
    tiny, images, tmp_path
):
    from vitsee.study import Study

    def identity(*overrides: str) -> str:
        return Study(tiny(*overrides)).identity

    base = identity()
    assert identity("run.outputs=elsewhere", "run.save_every=3", "run.workers=1") == base
    assert identity("analysis.layers=[paper]") == base
    changed = [
        identity(word)
        for word in (
            "seed=1",
            "batch_size=10",
            "images=24",
            "repeats=2",
            "precision=bf16",
            "model.seed=1",
            "analysis.tokens=cls",
            "analysis.layers=blocks",
            "model.overlay.mean=[0.1,0.1,0.1]",
        )
        if word != "analysis.tokens=cls"
    ]
    other_images = write_images(tmp_path / "more", 41)
    changed.append(identity(f"dataset.root={other_images}"))
    changed.append(identity("analysis.layers=blocks", "analysis.tokens=patches"))
    assert len({base, *changed}) == len(changed) + 1


def test_the_default_data_set_suits_the_model():
    trained_on = cards.read(EMBEDDED / "vit_mini.md").dataset
    assert trained_on.startswith(f"{composed('model=vit_mini').dataset.name} ")
    assert composed("model=vit_l16").dataset.name == "imagenette"
    assert composed("model=vit_l16", "dataset=cifar10").dataset.name == "cifar10"
    kept = composed("model=vit_l16", "dataset.on_bad_image=skip").dataset
    assert (kept.name, kept.on_bad_image.value) == ("imagenette", "skip")


def test_the_slurm_extra_is_asked_for_when_it_is_missing():
    missing = MissingConfigException("", "hydra/launcher/submitit_slurm", ["basic", "slurm"])
    assert "needs the SLURM launcher: pip install 'vitsee[slurm]'" in explain(missing)


def test_the_paper_protocol_is_the_paper_s():
    experiment = composed("protocol=paper")
    assert (experiment.images, experiment.batch_size, experiment.repeats) == (10240, 1024, 20)


def test_help_lists_the_choices_for_a_person(command):
    code, out, _ = command("run", "--help")
    assert code == 0
    assert all(
        word in out for word in ("vit_l16", "imagenette", "batch_size=N", "Exit codes: 0 done")
    )
    assert "vitsee run " in command("--help")[1]


def test_list_layers_marks_what_each_preset_selects(command):
    code, out, _ = command("list", "layers", "model=vit_l16")
    assert code == 0
    assert "selected by preset: paper 146, four 96, blocks 24" in out
    row = next(line for line in out.splitlines() if line.startswith("blocks.23.mlp.act "))
    assert row.split() == ["blocks.23.mlp.act", "197", "x", "4096", "x", "x"]  # paper and every


def test_list_layers_shows_what_patterns_select(command):
    _, out, _ = command("list", "layers", "model=vit_mini", "analysis.layers=[blocks.*,norm]")
    assert "asked 13" in out


@pytest.mark.parametrize(
    "kind", ["analyses", "models", "datasets", "protocols", "recipes", "figures", "claims", "zoos"]
)
def test_lists_have_a_line_for_each_choice(kind, command):
    code, out, _ = command("list", kind)
    assert code == 0
    assert len(out.splitlines()) > 1
    assert all(len(line.split("  ", 1)) == 2 for line in out.splitlines()), (
        "every choice is explained"
    )


@pytest.mark.parametrize(
    ("line", "offers"),
    [
        ("vitsee ", ["run", "plot", "list", "train"]),
        ("vitsee pl", ["plot"]),
        ("vitsee list la", ["layers"]),
        ("vitsee run analysis=", ["analysis=cka"]),
        ("vitsee run model=vit_l", ["model=vit_l16", "model=vit_l32"]),
        ("vitsee run analysis.to", ["analysis.tokens="]),
        ("vitsee train recipe=resnet_", ["recipe=resnet_mini", "recipe=resnet_mini_deep"]),
    ],
)
def test_tab_offers_what_fits(line, offers, command, monkeypatch):
    monkeypatch.setenv("COMP_LINE", line)
    monkeypatch.setenv("COMP_POINT", str(len(line)))
    code, out, err = command("-sc", "query=bash")
    assert code == 0, err
    assert set(offers) <= set(out.split())


def test_tab_completion_can_be_installed_for_bash_and_zsh():
    for shell in ("bash", "zsh"):
        script = vitsee_command("-sc", f"install={shell}")
        assert script.returncode == 0
        assert "COMP_LINE" in script.stdout


@pytest.mark.parametrize(
    "words",
    [
        ["run", "--shell-completion"],
        ["-sc"],
        ["-sc", "install=csh"],
        ["run", "-sc", "install=bash"],
    ],
)
def test_tab_completion_asked_for_in_another_way_says_how_it_is_turned_on(words, command):
    code, _, err = command(*words)
    assert code == 2
    assert err.strip() == (
        'vitsee: Tab completion is turned on by: eval "$(vitsee -sc install=bash)" (or zsh, fish)'
    )


def test_completing_never_imports_torch():
    code = (
        "import os, sys; import vitsee.cli, vitsee.listing, vitsee.training.recipes;"
        "sys.exit('torch' in sys.modules or 'timm' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_random_weights_are_said_in_the_figure_s_labels(tiny):
    folder = run(tiny()).folder
    assert (
        Results(folder).load_json("made_with.json")["labels"]["model"]
        == "test_vit (random weights)"
    )


def test_a_bug_keeps_its_traceback_and_exits_with_1(run_tiny, monkeypatch):
    """As Python does with any error that nothing catches."""
    monkeypatch.setattr("vitsee.analyses.cka.gram", lambda *words: 1 / 0)
    with pytest.raises(ZeroDivisionError) as bug:
        run_tiny()
    assert "reduce" in {frame.name for frame in bug.traceback}


def test_the_process_ends_at_once_but_does_what_was_left_for_the_end():
    code = (
        "import atexit, os, sys, threading\n"
        "class Freed:\n"
        "    def __del__(self, write=os.write): write(1, b'freed\\n')\n"
        "freed = Freed(); go_on = threading.Event()\n"
        "def work(): go_on.wait(); print('worked')\n"
        "threading.Thread(target=work).start()\n"
        "threading.Timer(0.01, go_on.set).start()\n"
        "atexit.register(lambda: print('ended'))\n"
        "sys.argv = ['vitsee', 'nothing']\n"
        "from vitsee.__main__ import main; main()"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 2
    assert "there is no verb 'nothing'" in ended.stderr
    assert ended.stdout.split() == ["worked", "ended"]


def test_a_profiler_can_write_its_report_after_the_command(tmp_path):
    words = ["-m", "cProfile", "-o", str(tmp_path / "profile"), "-m", "vitsee", "--version"]
    subprocess.run([sys.executable, *words], capture_output=True, check=True)
    assert (tmp_path / "profile").stat().st_size > 0


def test_an_unwritable_result_says_so_whatever_the_reason(tmp_path, monkeypatch):
    results = Results(tmp_path)

    def read_only(*_):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(os, "replace", read_only)
    with pytest.raises(
        UserError,
        match="Read-only file system; mount the file system read-write, or choose another",
    ):
        results.write("cka.csv", b"x")
    assert list(tmp_path.iterdir()) == []
