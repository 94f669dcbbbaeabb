"""What the system refuses is told in one line; streams that take no words, and tools that are missing, cost nothing."""

from __future__ import annotations

import builtins
import errno
import io
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest
from conftest import TINY, tiny_overrides
from test_edited import result

import vitsee
import vitsee.data.datasets
import vitsee.models.loader
from vitsee import mistakes
from vitsee.errors import UserError, expanded, printable, refused, unwritable
from vitsee.options import DatasetOptions, ModelOptions, RunOptions
from vitsee.parallel import leases
from vitsee.results import provenance
from vitsee.results.folder import Results
from vitsee.streams import CLOSED_PIPE, UNPRINTED, Steady, steady

# --- errors of the system ------------------------------------------------------------------------

REFUSALS = (
    *("EACCES", "EPERM", "ENOENT", "ENOTDIR", "EISDIR", "EEXIST", "ENAMETOOLONG"),
    *("ELOOP", "ENXIO", "ENODEV", "EBUSY", "ENOSPC", "EDQUOT", "EFBIG"),
    *("EROFS", "EMFILE", "ENFILE", "EAGAIN", "ENOMEM", "EIO", "ESTALE"),
    *("ETIMEDOUT", "ENOTCONN", "EHOSTDOWN", "EINVAL", "EREMOTEIO"),
)
"""Names of errors that systems answer with."""


@pytest.fixture
def refuse(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path, str], AbstractContextManager[None]]:
    """Within the block, whatever Python asks about a path, or about what lies in it, fails with this error."""

    @contextmanager
    def arrange(refused: Path, name: str) -> Iterator[None]:
        number = getattr(errno, name)

        def guarded(ask: Callable[..., Any]) -> Callable[..., Any]:
            def answer(path: Any = ".", *rest: Any, **options: Any) -> Any:
                text = os.fsdecode(path) if isinstance(path, (str, bytes, os.PathLike)) else ""
                if text == str(refused) or text.startswith(f"{refused}/"):
                    raise OSError(number, os.strerror(number), text)
                return ask(path, *rest, **options)

            return answer

        places: dict[Any, tuple[str, ...]] = {
            os: ("stat", "lstat", "open", "listdir", "scandir", "mkdir", "replace", "unlink"),
            builtins: ("open",),
            io: ("open",),
        }
        with monkeypatch.context() as patch:
            for place, asks in places.items():
                for ask in asks:
                    patch.setattr(place, ask, guarded(getattr(place, ask)))
            yield

    return arrange


ABSENT = ("ENOENT", "ENOTDIR", "ELOOP")
"""Of these what is said like: it is not there."""
SLOW = ("EACCES", "ENAMETOOLONG", "ELOOP", "EIO")
"""Of these where a command composes a configuration first."""
TRAINED = ("EACCES", "ELOOP")
"""Of these where a training is prepared as well."""


def asked_of(folder: Path, images: Path) -> dict[str, tuple[Path, list[str]]]:
    """By what is asked: the path that is refused, and the command that names it."""
    there, weights = folder / "outputs/cka/a/photos-0123abcd", folder / "weights.safetensors"
    tiny = tiny_overrides(images, folder / "new")
    local = f"model.timm=local-dir:{folder}/local"
    of_train = ["recipe=vit_nano", "run.device=cpu", f"run.outputs={folder}/new"]
    photos = ["dataset=folder", f"dataset.root={images}", "dataset.size=null"]
    return {
        "images": (images, ["run", *tiny]),
        "weights": (weights, ["run", *tiny, f"model.checkpoint={weights}"]),
        "outputs": (folder / "new", ["run", *tiny]),
        "an experiment": (there / "experiment.yaml", ["run", "--from", f"{there}/experiment.yaml"]),
        "a result": (there, ["plot", str(there)]),
        "a table": (there / "cka.csv", ["plot", str(there)]),
        "a record": (there / "made_with.json", ["plot", str(there)]),
        "a folder of results": (folder / "outputs", ["report", f"{folder}/outputs"]),
        "a page": (folder / "pages", ["report", f"{folder}/outputs", "-o", f"{folder}/pages/page"]),
        "a card": (folder / "card.md", ["plot", f"{folder}/card.md"]),
        "a model's folder": (folder / "local", ["list", "layers", *TINY, local]),
        "images to train with": (images, ["train", *of_train, *photos]),
        "outputs of a training": (folder / "new", ["train", *of_train]),
    }


@pytest.mark.parametrize("asked", asked_of(Path(), Path()))
def test_whatever_the_system_refuses_is_told_in_one_line_that_names_the_path(
    asked, command, refuse, images, tmp_path
):
    result(tmp_path / "outputs/cka/a/photos-0123abcd")
    (tmp_path / "weights.safetensors").touch()
    path, words = asked_of(tmp_path, images)[asked]
    composed = any("=" in word for word in words)
    for name in TRAINED if words[0] == "train" else SLOW if composed else REFUSALS:
        with refuse(path, name):
            code, out, err = command(*words)
        assert (code, out) == (2, ""), (name, err)
        assert len(err.strip().splitlines()) == 1, (name, err)
        named = path.parent if name in ABSENT and path.suffix in (".csv", ".json") else path
        assert str(named) in err, (name, err)
        assert err.startswith(f"vitsee {words[0]}: ")


def test_every_refusal_says_what_to_do():
    for name in REFUSALS:
        told = refused(OSError(getattr(errno, name), os.strerror(getattr(errno, name)), "/a/b"))
        assert told.startswith("cannot use /a/b: ")
        assert told.partition("; ")[2]
    assert "ulimit -n" in refused(OSError(errno.EMFILE, "Too many open files", "x"))
    assert "free some space" in str(unwritable(Path("x"), OSError(errno.ENOSPC, "No space left")))
    assert refused(OSError("no answer\nat all")).startswith("no answer at all; ")
    assert refused(ConnectionError()).startswith("ConnectionError; ")


def test_a_refusal_that_other_errors_were_made_of_is_told():
    from hydra.errors import HydraException

    told = HydraException("it did not work")
    told.__cause__ = OSError(errno.ENOENT, "No such file", "/nowhere/at/all")
    assert mistakes.explain(told).startswith("cannot use /nowhere/at/all: No such file; ")


def test_what_is_no_refusal_of_the_system_keeps_its_traceback():
    for bug in (KeyError("x"), TypeError("x"), AttributeError("x"), RuntimeError("x")):
        assert mistakes.mistake(bug) is None


def test_names_of_more_than_255_bytes_are_told_to_be_shortened(run_tiny):
    for option in ("dataset.root", "model.checkpoint", "run.outputs"):
        code, _, err = run_tiny(f"{option}=/tmp/{'a' * 300}")
        assert code == 2
        assert (
            "File name too long; most file systems allow names of up to 255 bytes: shorten it"
            in err
        )
        assert len(err.strip().splitlines()) == 1


@pytest.mark.parametrize("home", ["~nosuchuser/x", "~"])
def test_a_home_that_there_is_not_is_told(home, monkeypatch):
    def none(self: Path) -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "expanduser", none)
    words = "there is no user nosuchuser" if "nosuchuser" in home else "HOME is not set"
    with pytest.raises(UserError, match=rf"{home}: .*{words}; write the path in full"):
        expanded(home)
    for ask in (
        lambda: RunOptions(outputs=home),
        lambda: vitsee.data.datasets.load(DatasetOptions(name="f", kind="folder", root=home), 32),
        lambda: vitsee.models.loader.load(
            ModelOptions(name="m", timm="test_vit", checkpoint=home), "cpu"
        ),
    ):
        with pytest.raises(UserError, match="write the path in full"):
            ask()


def test_results_go_home_where_the_shell_leaves_the_tilde(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert RunOptions(outputs="~/results").outputs == f"{tmp_path}/results"


def test_from_python_a_refusal_is_a_mistake_too(tmp_path, refuse):
    folder = result(tmp_path / "result")
    with (
        refuse(folder / "cka.csv", "EACCES"),
        pytest.raises(UserError, match=r"cannot use .*cka\.csv: Permission denied; ask its owner"),
    ):
        vitsee.load(folder)


# --- what lies where files are expected ----------------------------------------------------------


def test_a_state_that_is_no_file_is_set_aside(run_tiny, undrawn, caplog):
    _, out, _ = run_tiny("analysis.layers=blocks", "images=16")
    (folder,) = {Path(line).parent for line in out.split()}
    before = (folder / "cka.csv").read_bytes()
    for name in ("000-of-001.pt", "000-of-001.json", "001-of-003.pt"):
        for make in (os.mkfifo, os.mkdir):
            (folder / "state" / name).unlink(missing_ok=True)
            make(folder / "state" / name)
            code, _, err = run_tiny("analysis.layers=blocks", "images=16")
            assert code == 0, err
            assert f"{name} is set aside" in caplog.text
            caplog.clear()
            assert (folder / "cka.csv").read_bytes() == before


def leased(folder: Path) -> list[int]:
    """what a process leases there of one minibatch."""
    with leases.lease(folder / "000-of-001.lease", "*.lease", lambda: [0]) as mine:
        return mine.minibatches


def test_a_lease_that_is_a_pipe_is_nobody_s(tmp_path, monkeypatch):
    monkeypatch.setattr(leases, "PATIENCE", 0.1)
    os.mkfifo(tmp_path / "000-of-001.lease")
    assert leased(tmp_path) == [0]


@pytest.mark.parametrize(
    ("make", "remove", "name"),
    [
        (os.mkdir, os.rmdir, "000-of-001.lease"),
        (os.mkdir, os.rmdir, ".leasing"),
        (os.mkfifo, os.unlink, ".leasing"),
    ],
)
def test_what_is_in_the_way_of_leases_is_named_and_can_be_removed(make, remove, name, tmp_path):
    make(tmp_path / name)
    with pytest.raises(UserError, match=f"{tmp_path}.*(remove it|move it away)"):
        leased(tmp_path)
    remove(tmp_path / name)
    assert leased(tmp_path) == [0]


def test_a_neighbour_that_cannot_be_read_stops_nobody(run_tiny, tmp_path):
    folder = Path(run_tiny()[1].split()[0]).parent
    for number, (name, content) in enumerate(
        {"state/made_of.json": b"{", "experiment.yaml": bytes(9)}.items()
    ):
        beside = folder.with_name(f"{folder.name[:-8]}0000000{number}")
        (beside / "state").mkdir(parents=True)
        for file in ("experiment.yaml", "state/made_of.json"):
            (beside / file).write_bytes((folder / file).read_bytes())
        (beside / name).write_bytes(content)
    for path in sorted(folder.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    assert run_tiny()[0] == 0


# --- between measured and written ----------------------------------------------------------------


@pytest.mark.parametrize(
    "failure", [FileNotFoundError("git"), PermissionError("git"), OSError(errno.EMFILE, "too many"),
                subprocess.TimeoutExpired("git", 30), UnicodeDecodeError("utf-8", b"", 0, 1, "")],
    ids=lambda failure: type(failure).__name__,
)  # fmt: skip
def test_without_git_a_result_has_no_commit(failure, monkeypatch):
    def none(*_: object, **__: object) -> None:
        raise failure

    monkeypatch.setattr(subprocess, "run", none)
    assert provenance.git_commit() is None


def test_without_git_on_the_path_a_result_is_whole(run_tiny, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    code, out, err = run_tiny()
    assert code == 0, err
    record = Results(Path(out.split()[0]).parent).load_json("made_with.json")
    assert record["git_commit"] is None


def test_the_commit_is_vitsee_s_own_whatever_repository_a_hook_runs_in(monkeypatch, tmp_path):
    expected = provenance.git_commit()
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    monkeypatch.setenv("GIT_DIR", str(tmp_path / ".git"))
    monkeypatch.setenv("GIT_WORK_TREE", str(tmp_path))
    assert provenance.git_commit() == expected


def test_what_cannot_be_found_out_of_the_system_is_unknown(monkeypatch):
    def broken(*_: object) -> str:
        raise OSError("no such program")

    monkeypatch.setattr(provenance.platform, "platform", broken)
    monkeypatch.setattr(provenance, "version", broken)
    assert provenance.versions()["platform"] == "unknown (OSError)"
    assert provenance.versions()["timm"] == "unknown (OSError)"


def test_a_model_whose_name_is_no_unicode_is_measured_and_drawn(run_tiny):
    name = os.fsdecode(b"a\xff")
    code, out, err = run_tiny(
        f'model.name="{name}"', "analysis=scaling", "model.args={num_classes: 2}"
    )
    assert code == 0, err
    assert "a\\udcff" in Path(out.split()[0]).read_text()


def test_what_cannot_draw_fails_before_anything_is_measured(tiny, monkeypatch):
    from vitsee import runner

    monkeypatch.setitem(sys.modules, "vitsee.plotting.style", None)
    monkeypatch.setattr(runner, "measure", lambda *_: pytest.fail("it measured"))
    with pytest.raises(ImportError):
        runner.run(tiny())


# --- streams -------------------------------------------------------------------------------------


class Failing(io.StringIO):
    """A stream that takes nothing."""

    encoding = "ascii"

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number

    def write(self, text: str) -> int:
        raise OSError(self.number, os.strerror(self.number))

    def flush(self) -> None:
        raise OSError(self.number, os.strerror(self.number))


@pytest.mark.parametrize("number", [errno.EPIPE, errno.ENOSPC, errno.EIO, errno.EAGAIN])
def test_writing_to_a_stream_that_takes_nothing_does_not_fail(number):
    stream = Steady(Failing(number))
    assert print("words", file=stream, flush=True) is None
    assert stream.failure is not None
    assert stream.failure.errno == number
    stream.end()


def test_letters_that_a_terminal_has_not_are_escaped():
    taken = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    print("größe \udcff", file=Steady(taken), flush=True)
    assert taken.buffer.getvalue() == b"gr\\xf6\\xdfe \\udcff\n"


@pytest.mark.parametrize(
    ("number", "code"), [(errno.EPIPE, CLOSED_PIPE), (errno.ENOSPC, UNPRINTED)]
)
def test_the_exit_code_says_that_standard_output_took_not_all(number, code, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdout", Failing(number))
    with pytest.raises(SystemExit) as stop, steady():
        print("words")
    assert stop.value.code == code
    told = capsys.readouterr().err
    assert ("No space left on device; free some space" in told) == (number == errno.ENOSPC)
    assert len(told.splitlines()) <= 1


def test_a_worse_exit_code_goes_before(monkeypatch):
    monkeypatch.setattr(sys, "stdout", Failing(errno.EPIPE))

    def incomplete() -> None:
        with steady():
            print("words")
            sys.exit(3)

    with pytest.raises(SystemExit, match="3"):
        incomplete()


def test_a_run_is_whole_whatever_standard_error_takes(run_tiny, monkeypatch, tmp_path):
    for number in (errno.ENOSPC, errno.EPIPE, errno.EIO):
        monkeypatch.setattr(sys, "stderr", Failing(number))
        code, out, _ = run_tiny(
            *(f"run.outputs={tmp_path}/{number}", "run.progress=true", "analysis.layers=blocks")
        )
        assert code == 0
        assert all(Path(path).is_file() for path in out.split())


SHELLS = {
    "a reader that has gone": ("{} | true; exit ${{PIPESTATUS[0]}}", 141),
    "closed standard output": ("{} >&-", 0),
    "closed streams": ("{} <&- >&- 2>&-", 0),
    "a full standard output": ("{} >/dev/full", 2),
    "a full standard error": ("{} 2>/dev/full", 0),
    "both full": ("{} >/dev/full 2>&1", 2),
    "a folder that is gone": ("mkdir gone && cd gone && rmdir ../gone && {}", 2),
}


@pytest.mark.parametrize(("line", "code"), SHELLS.values(), ids=SHELLS)
def test_streams_of_a_shell(line, code, tmp_path):
    if "/dev/full" in line and not Path("/dev/full").exists():
        pytest.skip("this system has no full device")
    command = line.format(f"{sys.executable} -m vitsee list protocols")
    done = subprocess.run(
        ["bash", "-c", command],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(Path(vitsee.__file__).parents[1])},
        check=False,
    )
    assert done.returncode == code, done.stderr
    assert len(done.stderr.splitlines()) <= 1
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr
    if "gone" in line:
        assert "the current folder no longer exists" in done.stderr


# --- messages ------------------------------------------------------------------------------------


def test_messages_never_carry_what_a_terminal_obeys():
    wild = "\x1b[31mred\x1b[0m\x07\r\n\u202eevil\x9b2J\udcff"
    told = printable(refused(OSError(errno.EACCES, wild, f"/a/{wild}")))
    assert told.isprintable()
