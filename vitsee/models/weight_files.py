"""Weight files read without running any code in them."""

from __future__ import annotations

import pickle
import re
import warnings
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from vitsee.errors import UserError, nearest, remedy


class _Inert:
    """Stands for an object in a checkpoint that is no weight: made from anything, holds nothing."""

    def __init__(self, *args: object, **more: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass


class _Dictionary:
    """Stands for a dictionary of another class: a plain one is made."""

    def __new__(cls, *args: object) -> dict[Any, Any]:  # type: ignore[misc]  # that is the point
        return {}


INERT = (
    "argparse.Namespace",
    "types.SimpleNamespace",
    "typing.Any",
    "datetime.datetime",
    "datetime.timedelta",
    *(f"builtins.{kind}" for kind in ("bool", "dict", "float", "int", "list", "str", "tuple")),
    *(f"pathlib{part}.{kind}Path" for part in ("", "._local") for kind in ("Posix", "Windows")),
    *(f"pathlib{part}.Pure{kind}Path" for part in ("", "._local") for kind in ("Posix", "Windows")),
    "numpy.dtype",
    "numpy.ndarray",
    *(
        f"numpy.{core}.multiarray.{maker}"
        for core in ("core", "_core")
        for maker in ("scalar", "_reconstruct")
    ),
    "torch.torch_version.TorchVersion",
    "omegaconf.dictconfig.DictConfig",
    "omegaconf.listconfig.ListConfig",
    "omegaconf.base.ContainerMetadata",
    "omegaconf.base.Metadata",
    *(
        f"omegaconf.nodes.{kind}Node"
        for kind in ("Any", "Boolean", "Bytes", "Enum", "Float", "Integer", "Path", "String")
    ),
)
"""Objects that trainers write beside the weights; none of them is made, `_Inert` takes their place."""

DICTIONARIES = (
    "collections.defaultdict",
    "lightning.fabric.utilities.data.AttributeDict",
    "lightning_fabric.utilities.data.AttributeDict",
    "pytorch_lightning.utilities.parsing.AttributeDict",
)
"""The same, for dictionaries: `_Dictionary` takes their place, and what is in them is read."""

FOREIGN = {
    b"version https://git-lfs": "is a pointer of Git LFS, not the weights: run `git lfs pull`",
    b"\x89HDF": "is HDF5 (Keras?), which is not read; convert it to .safetensors",
    b"\x1f\x8b": "is compressed with gzip: unpack it first",
    b"BZh": "is compressed with bzip2: unpack it first",
    b"\xfd7zXZ": "is compressed with xz: unpack it first",
    b"\x28\xb5\x2f\xfd": "is compressed with zstd: unpack it first",
    b"\x93NUMPY": "is a single NumPy array, no checkpoint",
    b"<": "is a web page or XML, no checkpoint: was it downloaded whole?",
    b"{": "is text, no checkpoint (if it is an index of several files: join these first)",
}
"""What other files begin with."""

ALONE = "save its state dict alone (torch.save(net.state_dict(), PATH)), best as .safetensors"


# --- reading -------------------------------------------------------------------------------------


def require_file(path: Path) -> None:
    """Raise UserError unless this is a file that may be read as a checkpoint."""
    try:
        if path.is_dir():
            inside = sorted(one.name for one in path.iterdir() if one.is_file())
            raise UserError(
                f"checkpoint {path} is a folder; name a file in it: {few(inside) or 'none'}"
            )
        if path.exists() and not path.is_file():
            raise UserError(f"checkpoint {path} is a pipe or a device, not a file")
        if path.is_symlink() and not path.exists():
            raise UserError(f"checkpoint {path} is a link that leads to no file: {path.readlink()}")
        if not path.is_file():
            beside = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
            raise UserError(f"there is no checkpoint {path}.{nearest(path.name, beside)}")
        with path.open("rb") as file:
            head = file.read(32)
    except OSError as error:
        raise UserError(
            f"cannot read checkpoint {path}: {error.strerror or error}; {remedy(error)}"
        ) from error
    if not head.strip(b"\0"):
        raise UserError(
            f"checkpoint {path} is {'of zeros' if head else 'empty'}: was it copied whole?"
        )
    for start, what in FOREIGN.items():
        if head.startswith(start) and not is_safetensors(path):
            raise UserError(f"checkpoint {path} {what}")
    _refuse_bomb(path)


def _refuse_bomb(path: Path) -> None:
    """Raise UserError if a small archive would fill the memory; weights can hardly be compressed."""
    try:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return  # not an archive, or a damaged one: whoever reads it says so
    refuse_larger(path, unpacked)


def refuse_larger(path: Path, unpacked: int) -> None:
    if unpacked > max(2**30, 100 * path.stat().st_size):
        raise UserError(
            f"checkpoint {path} was refused: its {path.stat().st_size:,} bytes would unpack to "
            f"{unpacked:,}, which weights do not"
        )


def is_npz(path: Path) -> bool:
    """Whether it is an archive of NumPy arrays, whatever it is called."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return False
    return bool(names) and all(name.endswith(".npy") for name in names)


def is_safetensors(path: Path) -> bool:
    """It begins with the length of a header in JSON."""
    with path.open("rb") as file:
        head = file.read(9)
    return head[8:] == b"{" and int.from_bytes(head[:8], "little") < 2**27


def read_checked(path: Path) -> Any:
    """What is in the file, without running any code in it. Raises UserError."""
    from safetensors.torch import load_file

    try:
        loaded = load_file(path) if is_safetensors(path) else _unpickled(path)
    except Exception as error:
        raise UserError(f"checkpoint {path} {_refusal(error)}") from error
    if isinstance(loaded, Mapping):
        return loaded
    kind = type(loaded).__name__
    raise UserError(f"checkpoint {path} holds one object ({kind}) and no state dict; {ALONE}")


def _unpickled(path: Path) -> Any:
    import torch

    stand_ins = [(_Inert, name) for name in INERT] + [(_Dictionary, name) for name in DICTIONARIES]
    with (
        torch.serialization.safe_globals(stand_ins),  # type: ignore[arg-type]  # names may be given
        warnings.catch_warnings(),
        path.open("rb") as file,  # given a name, torch goes by its ending
    ):
        warnings.simplefilter("ignore")  # about protocols and storages: nothing the user can mend
        return torch.load(file, map_location="cpu", weights_only=True)


def _refusal(error: Exception) -> str:
    """Why a file cannot be read, in vitsee's words: torch advises to run what it holds."""
    said = str(error)
    named = re.search(r"GLOBAL (\S+)", said)
    if named or "Can only" in said or "unrecognized function" in said:
        what = named[1] if named else "of a kind that only running it would make"
        return f"was refused: it holds objects that could run code ({what}); {ALONE}"
    if "TorchScript" in said:
        return f"is a TorchScript program, not weights alone; {ALONE}"
    if "Unsupported operand" in said:
        return (
            f"is damaged, or pickled by another protocol than torch.save's own, 2; save it without "
            f"pickle_protocol, or {ALONE}"
        )
    if isinstance(error, (pickle.UnpicklingError, LookupError, TypeError, ValueError)):
        return f"is damaged or no checkpoint that torch.save wrote; {ALONE}"
    reason = re.sub(r"\[enforce fail .*?\] ?\. ?", "", line(error))
    return f"is damaged or no checkpoint: {reason}"


def few(names: Iterable[str], count: int = 3) -> str:
    """The first of them, in a line."""
    shown = list(names)
    return ", ".join(shown[:count]) + (", …" if len(shown) > count else "")


def line(error: object) -> str:
    """What an error says first."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
