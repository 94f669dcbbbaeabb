"""Files of sums that are damaged, of somebody else, or counted twice; what changed under a result."""

from __future__ import annotations

import os
import shutil
import tarfile
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import write_images
from PIL import Image

from vitsee.data import datasets
from vitsee.errors import Incomplete, UserError
from vitsee.io import writing
from vitsee.options import DatasetOptions
from vitsee.papers.plot import plot
from vitsee.proof import Doubts, Impossible
from vitsee.results import changes
from vitsee.results.folder import Results
from vitsee.runner import run
from vitsee.study import Study
from vitsee.sums import Damaged, Sums
from vitsee.testing import assert_same

pytestmark = pytest.mark.usefixtures("undrawn")


def cut(content: bytes) -> bytes:
    return content[: len(content) // 2]


def flipped(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


DAMAGES = {
    "cut off": cut,
    "a flipped bit": flipped,
    "empty": lambda content: b"",
    "zeros at the end, as after a power cut": lambda content: content[:-512].ljust(
        len(content), b"\0"
    ),
    "something else": lambda content: b"PK\x03\x04 not sums",
}


@pytest.fixture
def counted(monkeypatch):
    """Which minibatches are measured, in order."""
    import vitsee.runner

    seen, real = [], vitsee.runner.minibatches

    def spy(study, stage, todo):
        seen.append(list(todo))
        return real(study, stage, todo)

    monkeypatch.setattr(vitsee.runner, "minibatches", spy)
    return seen


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_a_damaged_state_file_is_set_aside_and_measured_again_to_the_same_bytes(
    damage, tiny, counted, caplog
):
    csv = run(tiny()).files[0]
    before = csv.read_bytes()
    state = csv.parent / "state/000-of-001.pt"
    state.write_bytes(damage(state.read_bytes()))
    csv.unlink()
    assert run(tiny()).files[0].read_bytes() == before
    assert counted == [[0, 1, 2, 3, 4]] * 2
    assert "000-of-001.pt is set aside as 000-of-001.pt." in caplog.text
    assert "checksum is wrong; its content is measured again" in caplog.text
    assert len(list(state.parent.glob("*.aside"))) == 1


def test_only_the_minibatches_of_the_damaged_file_are_measured_again(tiny, counted, tmp_path):
    whole = run(tiny(f"run.outputs={tmp_path / 'whole'}")).folder
    for shard in (0, 1):
        with pytest.raises(Incomplete):
            run(tiny("run.shards=3", f"run.shard={shard}"))
    folder = run(tiny("run.shards=3", "run.shard=2")).folder
    state = folder / "state/001-of-003.pt"
    state.write_bytes(flipped(state.read_bytes()))
    counted.clear()
    run(tiny())
    assert counted == [[1, 4]]
    assert_same(Results(folder).tables(), Results(whole).tables())


def test_any_single_flipped_byte_of_a_state_file_is_found(tmp_path):
    path = tmp_path / "sums.pt"
    packed = Sums.of(0, 2, {"a": torch.arange(3.0)}, {"model": ["x"]}).packed()
    for place in range(len(packed)):
        path.write_bytes(packed[:place] + bytes([packed[place] ^ 0x40]) + packed[place + 1 :])
        with pytest.raises(Damaged):
            Sums.load(path)


def test_sums_of_another_plan_are_set_aside(tiny, caplog):
    folder = run(tiny()).folder
    results = Results(folder, Study(tiny()).fingerprint)
    results.save_state(folder / "state/001-of-002.pt", Sums.zero(7))
    assert run(tiny()).files
    assert "it is for 7 minibatches instead of 5" in caplog.text


def test_what_two_files_count_is_counted_once(tiny, caplog, tmp_path):
    """Two runs that could not see each other's leases."""
    csv = run(tiny()).files[0]
    before = csv.read_bytes()
    shutil.copy(csv.parent / "state/000-of-001.pt", csv.parent / "state/001-of-002.pt")
    csv.unlink()
    assert run(tiny()).files[0].read_bytes() == before
    assert "it contains minibatches that another file contains too" in caplog.text


def test_what_a_killed_process_left_half_written_is_removed_later(tmp_path, monkeypatch):
    results = Results(tmp_path)
    results.prepare()
    left = tmp_path / "state/.000-of-001.pt.0123abcd.partial"
    left.write_bytes(b"half")
    results.prepare()
    assert left.exists()  # it may be somebody's who is writing it now
    old = time.time() - writing.LEFT - 1
    os.utime(left, (old, old))
    results.prepare()
    assert not left.exists()


def test_two_machines_never_write_to_the_same_temporary_name(tmp_path, monkeypatch):
    names, real = [], os.replace
    monkeypatch.setattr(os, "replace", lambda a, b: (names.append(a), real(a, b)))
    for _ in range(2):  # the same process number
        Results(tmp_path).write("cka.csv", b"x")
    assert len(set(names)) == 2


def test_a_damaged_record_of_launches_is_set_aside(tiny, caplog):
    folder = run(tiny()).folder
    (folder / "state/000-of-001.json").write_text("{")
    assert run(tiny()).files
    assert "000-of-001.json is set aside" in caplog.text


def test_damaged_provenance_says_how_to_mend_it(tiny):
    folder = run(tiny()).folder
    (folder / "made_with.json").write_text("{")
    with pytest.raises(
        UserError, match=r"made_with.json is damaged: .* repeat the same `vitsee run`"
    ):
        plot(folder)
    run(tiny())
    assert plot(folder)


def test_changed_weights_are_not_continued_silently(tiny, tmp_path, caplog):
    from safetensors.torch import save_file

    from vitsee.models import timm_architecture

    state = timm_architecture.build(tiny().model).state_dict()
    path = tmp_path / "weights.safetensors"
    save_file(state, path)
    first = run(tiny(f"model.checkpoint={path}")).folder
    state["norm.weight"][0] += 1e-3
    save_file(state, path)
    second = run(tiny(f"model.checkpoint={path}")).folder
    assert first != second
    assert (
        f"{first} was measured, there was a change in the weights; this is a new result"
        in caplog.text
    )


def test_a_changed_list_of_images_is_not_continued_silently(tiny, tmp_path, caplog):
    folder = write_images(tmp_path / "photos", 40)
    overrides = [f"dataset.root={folder}", "images=16"]
    run(tiny(*overrides))
    (folder / "class0" / "000.png").unlink()
    run(tiny(*overrides))
    assert (
        "was measured, there was a change in the images and the minibatches; this is a new result"
        in caplog.text
    )


def test_images_edited_in_place_are_not_continued_silently(tiny, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr("vitsee.data.image_files.SAMPLE", 2)  # the edited one is not among them
    folder = tmp_path / "photos/class"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (16, 48, 48, 3), dtype=np.uint8)
    for i, image in enumerate(pixels):
        Image.fromarray(image).save(folder / f"{i:02d}.bmp")
    overrides = [f"dataset.root={folder.parent}"]
    with pytest.raises(Incomplete):
        run(tiny(*overrides, "run.shards=2"))
    assert "newer" not in caplog.text
    Image.fromarray(255 - pixels[3]).save(folder / "03.bmp")
    later = time.time() + 5
    os.utime(folder / "03.bmp", (later, later))
    run(tiny(*overrides))
    assert (
        f"{folder / '03.bmp'} is newer than this result: if its content has changed" in caplog.text
    )
    assert "the result mixes old and new" in caplog.text


def test_what_is_newer_than_a_result_is_counted_and_called_by_its_name(tmp_path, caplog):
    names = {"a tar": ["photos.tar"] * 2, "one": ["a.png"], "many": ["a.png", "b.png", "a.png"]}
    for which, said in {
        "a tar": "warning: photos.tar is newer than this result: if its content has changed, the result mixes",
        "one": "warning: a.png is newer than this result: if its content has changed, the result mixes",
        "many": "warning: 2 images are newer than this result (a.png …): if their content has changed,",
    }.items():
        results = Results(tmp_path / which)
        results.prepare()
        results.save_json(changes.RECORD, {"seed": 0})
        images = SimpleNamespace(changed_since=lambda moment, which=which: names[which])
        changes.tell(SimpleNamespace(passes=[SimpleNamespace(images=images)]), results)
        assert said in caplog.text
        caplog.clear()


def test_a_tar_that_was_touched_is_what_is_newer_not_an_image(tmp_path):
    root = write_images(tmp_path / "photos", 8)
    with tarfile.open(tmp_path / "photos.tar", "w") as tar:
        tar.add(root, arcname=".")
    asked = DatasetOptions(name="folder", kind="folder", root=str(tmp_path / "photos.tar"))
    images = datasets.load(asked, 32)
    os.utime(tmp_path / "photos.tar", (2e9, 2e9))
    assert images.changed_since(1.9e9) == [str(tmp_path / "photos.tar")]
    assert images.changed_since(2.1e9) == []


def test_an_impossible_number_names_layer_and_minibatch_and_is_not_saved(tiny, monkeypatch):
    from vitsee.analyses.cka import CKA

    real, calls = CKA.observe, []

    def broken_at_the_third(self, view):
        terms = real(self, view)
        calls.append(view)
        if len(calls) == 3:
            terms["ab"] = terms["ab"].clone()
            terms["ab"][1, 0] *= 2
        return terms

    monkeypatch.setattr(CKA, "observe", broken_at_the_third)
    named = r"minibatch 2, \S+ of the model and \S+ of the other: their \|CKA\| is above 1 \+ 1e-9"
    with pytest.raises(Impossible, match=named):
        run(tiny("run.save_every=1"))
    monkeypatch.setattr(CKA, "observe", real)
    (state,) = Path(tiny().run.outputs).rglob("000-of-001.pt")
    assert Sums.load(state).seen.tolist() == [1, 1, 0, 0, 0]
    assert run(tiny()).files


def test_negative_hsic_of_a_layer_with_itself_is_impossible_and_nan_is_not():
    from vitsee.analyses.cka import CKA

    aa = torch.tensor([1.0, float("nan"), -1e-30], dtype=torch.float64)
    terms = {"aa": aa, "bb": aa.abs(), "ab": torch.zeros(3, 3)}
    doubts = Doubts({"model": ["x", "y", "z"]})
    doubts.add(5, CKA().impossible(terms))
    with pytest.raises(
        Impossible, match="minibatch 5, z of the model: its HSIC with itself is neg"
    ):
        doubts.settle()
    doubts = Doubts({"model": ["x", "y", "z"]})
    doubts.add(5, CKA().impossible(terms | {"aa": aa.abs()}))
    doubts.settle()


def test_repeating_a_result_says_what_has_changed_since(tiny, tmp_path, command, caplog):
    from safetensors.torch import save_file

    from vitsee.models import timm_architecture

    state = timm_architecture.build(tiny().model).state_dict()
    path = tmp_path / "weights.safetensors"
    save_file(state, path)
    first = run(tiny(f"model.checkpoint={path}")).folder
    again = ["run", "--from", str(first / "experiment.yaml"), f"run.outputs={tmp_path}"]
    assert command(*again)[0] == 0
    assert "this is not the result" not in caplog.text
    state["norm.weight"][0] += 1e-3
    save_file(state, path)
    run(tiny(f"model.checkpoint={path}"))
    assert command(*again)[0] == 0
    told = f"this is not the result in {first}: since then, there was a change in the weights"
    assert told in caplog.text


def test_every_part_of_a_result_s_record_has_a_name_for_messages(tiny):
    parts = Study(tiny("tolerance=0.1")).made_of.keys() | {"cards"}
    assert parts == changes.WORDS.keys()
