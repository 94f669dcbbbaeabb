"""Input from strangers and broken input: nothing is run, nothing is written elsewhere, mistakes are named."""

from __future__ import annotations

import io
import json
import os
import struct
import subprocess
import tarfile
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import write_images
from PIL import Image

from vitsee import config
from vitsee.data import datasets, images
from vitsee.errors import UserError, printable
from vitsee.io import plain
from vitsee.models import loader
from vitsee.names import folder_name
from vitsee.options import DatasetOptions, ModelOptions
from vitsee.papers.plot import plot
from vitsee.runner import run

# --- checkpoints ---------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", [".pt", ".npz"])
def test_an_archive_that_would_fill_the_memory_is_refused_unread(ending, tmp_path):
    path = tmp_path / f"bomb{ending}"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb/data/0", bytes(2**20))
        archive.infolist()[0].file_size = 1100 * 2**20  # it is believed, as nothing is unpacked
    assert path.stat().st_size < 2**21
    asked = ModelOptions(name="m", timm="test_vit", checkpoint=str(path))
    with pytest.raises(UserError, match=rf"bomb\{ending} was refused: .* would unpack to 1,153,"):
        loader.load(asked, "cpu")


def test_an_npz_whose_header_claims_more_than_there_is_is_refused(tmp_path):
    path = tmp_path / "liar.npz"
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "<f4", "fortran_order": False, "shape": (2**45,)}
    )
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("embedding/kernel.npy", header.getvalue() + bytes(64))
    asked = ModelOptions(
        name="m", timm="vit_tiny_patch16_224", args={"depth": 1}, checkpoint=str(path)
    )
    with pytest.raises(UserError, match=r"liar\.npz"):
        loader.load(asked, "cpu")


def test_arguments_of_a_model_from_a_stranger_are_data(tmp_path):
    trace = tmp_path / "it-ran"
    args = {"_target_": "os.system", "_args_": [f"touch {trace}"]}
    with pytest.raises(UserError, match=r"cannot be built with model\.args="):
        loader.load(ModelOptions(name="m", timm="test_vit", pretrained=False, args=args), "cpu")
    assert not trace.exists()


# --- data sets -----------------------------------------------------------------------------------


def folder(root: Path) -> images.Images:
    return datasets.load(DatasetOptions(name="folder", kind="folder", root=str(root)), 32)


def png(side: int = 8) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (side, side), "red").save(buffer, "PNG")
    return buffer.getvalue()


def test_paths_in_a_tar_that_lead_out_of_it_write_nothing_and_read_nothing_else(tmp_path):
    path = tmp_path / "evil.tar"
    with tarfile.open(path, "w") as tar:
        for name in ("../../out.png", "/abs/out.png", "class/in.png"):
            member = tarfile.TarInfo(name)
            member.size = len(png())
            tar.addfile(member, io.BytesIO(png()))
        for kind in (tarfile.SYMTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE):
            member = tarfile.TarInfo("class/passwd.png")
            member.type, member.linkname = kind, "/etc/passwd"
            tar.addfile(member)
    images = folder(path)
    assert [images.id(i) for i in range(len(images))] == ["abs/out.png", "class/in.png"]
    assert all(images.open(i).size == (8, 8) for i in range(2))
    assert [p.name for p in tmp_path.iterdir()] == ["evil.tar"]


def test_a_hard_link_in_a_tar_to_a_file_outside_is_refused(tmp_path):
    path = tmp_path / "evil.tar"
    with tarfile.open(path, "w") as tar:
        member = tarfile.TarInfo("class/passwd.png")
        member.type, member.linkname = tarfile.LNKTYPE, "/etc/passwd"
        tar.addfile(member)
    with pytest.raises(UserError, match=r"cannot read .*evil\.tar as an uncompressed tar"):
        folder(path)


def with_size(size: int) -> bytes:
    """A tar of one image whose header claims this size, with a checksum that is right."""
    member = tarfile.TarInfo("class/0.png")
    header = bytearray(member.tobuf(tarfile.GNU_FORMAT))
    header[124:136] = (size % 256**12).to_bytes(12, "big") if size < 0 else b"%011o\0" % size
    header[124] = 0xFF if size < 0 else header[124]
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header) + png().ljust(512, b"\0") + bytes(1024)


@pytest.mark.timeout(60)  # read with a negative size, a tar never ends
@pytest.mark.parametrize("size", [-512, -1024, 2**32])
def test_a_tar_whose_sizes_are_not_true_is_refused(size, tmp_path):
    (tmp_path / "liar.tar").write_bytes(with_size(size))
    with pytest.raises(UserError, match="cannot read"):
        folder(tmp_path / "liar.tar")


def test_a_sparse_tar_that_claims_terabytes_is_refused(tmp_path):
    path = tmp_path / "sparse.tar"
    with open(tmp_path / "x.png", "wb") as file:
        file.write(png())
        file.truncate(2**42)
    made = subprocess.run(
        ["tar", "--sparse", "-cf", str(path), "-C", str(tmp_path), "x.png"], check=False
    )
    if made.returncode:
        pytest.skip("this tar makes no sparse archives")
    with pytest.raises(UserError, match=r"x\.png is a sparse file: pack without --sparse"):
        folder(path)


def test_a_file_of_terabytes_is_no_image(tmp_path):
    (tmp_path / "class").mkdir()
    with open(tmp_path / "class/x.png", "wb") as file:
        file.write(png())
        file.truncate(2**42)
    with pytest.raises(ValueError, match="4398046511104 bytes are too many for an image file"):
        folder(tmp_path).open(0)


def test_pipes_and_devices_called_like_images_are_passed_over(tmp_path):
    (tmp_path / "class").mkdir()
    (tmp_path / "class/a.png").write_bytes(png())
    os.mkfifo(tmp_path / "class/b.png")
    os.symlink("/dev/zero", tmp_path / "class/c.png")
    assert len(folder(tmp_path)) == 1


def test_links_that_lead_to_themselves_are_bad_images_not_endless(tmp_path):
    (tmp_path / "class").mkdir()
    os.symlink("a.png", tmp_path / "class/a.png")
    images = folder(tmp_path)
    with pytest.raises(OSError, match="symbolic links"):
        images.open(0)


def chunk(kind: bytes, content: bytes) -> bytes:
    check = zlib.crc32(kind + content)
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", check)


def bomb(side: int) -> bytes:
    """A PNG of some kilobytes that claims side x side pixels."""
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(bytes(2**20), 9))
        + chunk(b"IEND", b"")
    )


def text_bomb() -> bytes:
    """A PNG with a comment that unpacks to 64 MiB."""
    whole, note = png(), zlib.compress(bytes(2**26), 9)
    return whole[:33] + chunk(b"zTXt", b"x\0\0" + note) + whole[33:]


BROKEN = {
    "of zero bytes": b"",
    "of zero pixels": b"\x89PNG\r\n\x1a\n"
    + chunk(b"IHDR", struct.pack(">IIBBBBB", 0, 0, 8, 2, 0, 0, 0))
    + chunk(b"IEND", b""),
    "no image": b"<html>not found</html>",
    "cut off": png(64)[:60],
    "a bomb of pixels": bomb(100_000),
    "a bomb of text": text_bomb(),
}


@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN.keys())
def test_a_broken_image_is_named_in_one_line(content, run_tiny, tmp_path):
    root = write_images(tmp_path / "photos", 16)
    (root / "class0/004.png").write_bytes(content)
    code, out, err = run_tiny(f"dataset.root={root}")
    assert (code, out) == (2, "")
    assert err.count("cannot decode image class0/004.png") == 1
    assert "Traceback" not in err


def test_an_exif_rotation_is_not_applied_as_in_the_field_s_evaluation(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    (tmp_path / "class").mkdir()
    Image.new("RGB", (9, 7), "red").save(tmp_path / "class/x.jpg", exif=exif)
    assert folder(tmp_path).open(0).size == (9, 7)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_damaged_exif_and_colour_profiles_are_passed_over(tmp_path):
    (tmp_path / "class").mkdir()
    image = Image.new("RGB", (9, 7), "red")
    image.save(tmp_path / "class/x.jpg", exif=b"Exif\0\0II*\0\xff\xff\xff\xff", icc_profile=b"junk")
    assert folder(tmp_path).open(0).size == (9, 7)


# --- names ---------------------------------------------------------------------------------------

NAMES = {
    "HTML": "<script>alert(1)<b>",
    "a new line": "two\nlines",
    "what a terminal obeys": "\x1b[31mred\x1b[0m",
    "commas and quotes": 'a,"b",c',
    "a formula": "=1+1",
    "no Unicode": os.fsdecode(b"\xff\xfe"),
    "spaces and accents": "größe ﷽ 日本",
}


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES.keys())
def test_classes_of_any_name_leave_records_tables_and_messages_whole(
    name, run_tiny, undrawn, tmp_path
):
    root = write_images(tmp_path / "photos", 16)
    try:
        os.rename(root / "class0", root / name)
    except OSError:
        pytest.skip("this file system has no such names")
    code, out, err = run_tiny(f"dataset.root={root}", "analysis.layers=blocks")
    assert code == 0, err
    csv = Path(out.split("\n")[0])
    record = json.loads((csv.parent / "made_with.json").read_text())
    assert f"{name}/000.png" in record["passes"][0]["image_ids"]
    assert pd.read_csv(csv).notna().any(axis=None)
    (root / name / "004.png").write_bytes(b"not an image")
    code, out, err = run_tiny(f"dataset.root={root}", "analysis.layers=blocks")
    assert (code, out) == (2, "")
    assert err.splitlines()[-1].startswith(f"vitsee run: cannot decode image {printable(name)}")
    assert err.replace("\n", "").isprintable()


@pytest.mark.parametrize("name", ["größe – 写真", "a (copy) [2]", "x=1 'y' \"z\"", "back\\slash\\"])
def test_outputs_and_data_may_have_spaces_and_any_letters(name, run_tiny, tmp_path):
    root = write_images(tmp_path / name, 16)
    code, out, err = run_tiny(f"dataset.root={root}", f"run.outputs={tmp_path}/to {name}")
    assert code == 0, err
    assert Path(out.split("\n")[0]).is_relative_to(tmp_path / f"to {name}")


def test_a_value_with_special_characters_is_told_to_be_quoted(command):
    code, _, err = command("run", "model.name=a(b), c")
    assert code == 2
    assert "quote a value with special characters" in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize("name", ["../../up", "..", "/etc", "a/b", "a\\b", "two\nlines", "", "."])
def test_a_name_leads_to_no_other_folder(name, tmp_path):
    made = folder_name(name)
    assert made.isprintable()
    assert (tmp_path / made).resolve().parent == tmp_path.resolve()


def test_a_data_set_s_name_leads_to_no_other_folder(tiny, tmp_path):
    written = run(tiny("dataset.name=../../up", "model.name=..")).files[0]
    assert written.resolve().is_relative_to(Path(tiny().run.outputs).resolve())
    assert written.parent.parent.name == "__"


# --- experiment.yaml -----------------------------------------------------------------------------

HARMFUL = {
    "an object": "analysis: {name: cka}\nx: !!python/object/apply:os.system ['touch {trace}']",
    "an interpolation": "analysis: {name: cka}\nmodel: {name: '${oc.env:HOME}'}",
    "one in an escape": 'analysis: {name: cka}\nmodel: {name: "\\x24{oc.env:HOME}"}',
    "one in a key": "analysis: {name: cka}\nmodel: {args: {'${oc.env:HOME}': 1}}",
    "aliases": "a: &a [1, 1]\nb: &b [*a, *a]\nanalysis: {name: cka}",
    "depth": "analysis: " + "[" * 5000,
    "binary": "\0\1\2",
    "another encoding": "analysis: \xff",
    "something instantiated": (
        "analysis: {name: cka, _target_: os.system, _args_: ['touch {trace}']}\n"
        "model: {name: x, timm: test_vit}\ndataset: {name: scenes, kind: scenes}"
    ),
    "options of Hydra": (
        "analysis: {name: cka}\nhydra: {launcher: {_target_: os.system}}\n"
        "model: {name: x, timm: test_vit}\ndataset: {name: scenes, kind: scenes}"
    ),
}


@pytest.mark.parametrize("text", HARMFUL.values(), ids=HARMFUL.keys())
def test_an_experiment_of_a_stranger_runs_nothing(text, command, tmp_path):
    trace, path = tmp_path / "it-ran", tmp_path / "experiment.yaml"
    path.write_bytes(text.replace("{trace}", str(trace)).encode("latin-1"))
    code, out, err = command("run", "--from", str(path))
    assert (code, out) == (2, ""), err
    assert len(err.strip().splitlines()) == 1
    assert str(Path.home()) not in err.replace(str(path), "")
    assert not trace.exists()


@pytest.mark.timeout(60)  # parsed to its end, it would take hours
def test_an_experiment_that_is_nested_more_than_30_levels_deep_is_refused_at_once(tmp_path):
    path = tmp_path / "e.yaml"
    for text in ("a: " + "[" * 29 + "1" + "]" * 29, "[" * plain.LARGEST):
        path.write_text(text)
        with pytest.raises(UserError, match="nested more than 30 levels deep"):
            plain.read(path)
    path.write_text("a: " + "[" * 28 + "1" + "]" * 28)
    assert plain.read(path).keys() == {"a"}


def test_an_experiment_of_megabytes_is_refused(tmp_path):
    (tmp_path / "e.yaml").write_bytes(b"#" * (plain.LARGEST + 1))
    with pytest.raises(UserError, match="is larger than 1048576 bytes"):
        config.load_experiment(tmp_path / "e.yaml", [])


def test_a_result_folder_of_a_stranger_runs_nothing_when_drawn(tiny, monkeypatch):
    monkeypatch.setenv("SECRET", "told")
    made = run(tiny()).folder
    kept = (made / "experiment.yaml").read_text()
    (made / "experiment.yaml").write_text(kept.replace("name: cka", 'name: "\\x24{oc.env:SECRET}"'))
    with pytest.raises(UserError, match="has an interpolation") as caught:
        plot(made)
    assert "told" not in str(caught.value)


def test_a_state_file_of_a_stranger_runs_nothing(tiny, undrawn, tmp_path, caplog):
    import hashlib
    import pickle

    from test_models import Harmful

    from vitsee.sums import HEAD

    trace = tmp_path / "it-ran"
    made = run(tiny()).folder
    state = made / "state/000-of-001.pt"
    for content in (pickle.dumps(Harmful(trace)), b"", _saved(Harmful(trace))):
        state.write_bytes(HEAD + hashlib.sha256(content).digest() + content)
        run(tiny())
        assert not trace.exists()
        assert "000-of-001.pt is set aside" in caplog.text
        caplog.clear()


def _saved(what: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(what, buffer)
    return buffer.getvalue()


def test_the_command_line_reaches_no_constructor_through_model_args(run_tiny):
    code, _, err = run_tiny("+model.args._target_=os.system")
    assert code == 2
    assert "model.args" in err
