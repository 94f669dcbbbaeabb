"""Reads weight files without running any code in them."""

from __future__ import annotations

import pickle
import re
import warnings
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from vitsee.errors import UserError, nearest, remedy
from vitsee.lazy import torch


class _Inert:
    """Replaces an object in a checkpoint that is not a weight. Accepts any arguments and keeps nothing."""

    def __init__(self, *args: object, **more: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass


class _Dictionary:
    """Replaces a dictionary subclass with a plain dictionary."""

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
"""Classes of objects that training code stores with the weights. They are never created; `_Inert` replaces them."""

DICTIONARIES = (
    "collections.defaultdict",
    "lightning.fabric.utilities.data.AttributeDict",
    "lightning_fabric.utilities.data.AttributeDict",
    "pytorch_lightning.utilities.parsing.AttributeDict",
)
"""Dictionary classes, which `_Dictionary` replaces. Their content is read."""

FOREIGN = {
    b"version https://git-lfs": "is a Git LFS pointer, not the weights: run `git lfs pull`",
    b"\x89HDF": "is HDF5 (Keras?), which vitsee does not read; convert it to .safetensors",
    b"\x1f\x8b": "is compressed with gzip: unpack it first",
    b"BZh": "is compressed with bzip2: unpack it first",
    b"\xfd7zXZ": "is compressed with xz: unpack it first",
    b"\x28\xb5\x2f\xfd": "is compressed with zstd: unpack it first",
    b"\x93NUMPY": "is a single NumPy array, not a checkpoint",
    b"<": "is a web page or XML, not a checkpoint: did the download fail?",
    b"{": "is text, not a checkpoint (if it is an index of several files: merge those first)",
}
"""The first bytes of files that are not checkpoints, and the message for each."""

ALONE = "save only its state dict (torch.save(net.state_dict(), PATH)), preferably as .safetensors"


# --- reading -------------------------------------------------------------------------------------


def require_file(path: Path) -> None:
    """Raise UserError unless this is a file that can be read as a checkpoint."""
    try:
        if path.is_dir():
            inside = sorted(one.name for one in path.iterdir() if one.is_file())
            raise UserError(
                f"checkpoint {path} is a folder; name a file in it: {few(inside) or 'it contains none'}"
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
            f"checkpoint {path} is {'all zeros' if head else 'empty'}: was it copied completely?"
        )
    for start, what in FOREIGN.items():
        if head.startswith(start) and not is_safetensors(path):
            raise UserError(f"checkpoint {path} {what}")
    _refuse_bomb(path)


def _refuse_bomb(path: Path) -> None:
    """Raise UserError if a small archive would fill the memory. Weights hardly compress."""
    try:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return  # not an archive, or a damaged one, which is reported when it is read
    refuse_larger(path, unpacked)


def refuse_larger(path: Path, unpacked: int) -> None:
    if unpacked > max(2**30, 100 * path.stat().st_size):
        raise UserError(
            f"checkpoint {path} was refused: its {path.stat().st_size:,} bytes would unpack to "
            f"{unpacked:,}, but weights hardly compress"
        )


def is_npz(path: Path) -> bool:
    """Return whether the file is an archive of NumPy arrays, whatever its name."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return False
    return bool(names) and all(name.endswith(".npy") for name in names)


def is_safetensors(path: Path) -> bool:
    """Return whether the file is safetensors: it begins with the length of a JSON header."""
    with path.open("rb") as file:
        head = file.read(9)
    return head[8:] == b"{" and int.from_bytes(head[:8], "little") < 2**27


def read_checked(path: Path) -> Any:
    """Return the content of the file, without running any code in it. Raises UserError if it is not a checkpoint."""
    from safetensors.torch import load_file

    try:
        loaded = load_file(path) if is_safetensors(path) else _unpickled(path)
    except Exception as error:
        raise UserError(f"checkpoint {path} {_refusal(error)}") from error
    if isinstance(loaded, Mapping):
        return loaded
    kind = type(loaded).__name__
    raise UserError(
        f"checkpoint {path} contains a single object ({kind}), not a state dict; {ALONE}"
    )


def _unpickled(path: Path) -> Any:
    stand_ins = [(_Inert, name) for name in INERT] + [(_Dictionary, name) for name in DICTIONARIES]
    with (
        torch.serialization.safe_globals(stand_ins),  # type: ignore[arg-type]  # names may be given
        warnings.catch_warnings(),
        path.open("rb") as file,  # given a path, torch would go by its extension
    ):
        warnings.simplefilter("ignore")  # about protocols and storages, which the user cannot fix
        return torch.load(file, map_location="cpu", weights_only=True)


def _refusal(error: Exception) -> str:
    """Return why a file cannot be read. torch's own message would advise running the code in it."""
    message = str(error)
    named = re.search(r"GLOBAL (\S+)", message)
    if named or "Can only" in message or "unrecognized function" in message:
        what = named[1] if named else "of an unknown class"
        return f"was refused: it contains objects that could run code ({what}); {ALONE}"
    if "TorchScript" in message:
        return f"is a TorchScript program, not only weights; {ALONE}"
    if "Unsupported operand" in message:
        return (
            f"is damaged, or was pickled with a protocol other than torch.save's own, 2; save it without "
            f"pickle_protocol, or {ALONE}"
        )
    if isinstance(error, (pickle.UnpicklingError, LookupError, TypeError, ValueError)):
        return f"is damaged or was not written by torch.save; {ALONE}"
    reason = re.sub(r"\[enforce fail .*?\] ?\. ?", "", line(error))
    return f"is damaged or not a checkpoint: {reason}"


def few(names: Iterable[str], count: int = 3) -> str:
    """Return the first names on one line."""
    shown = list(names)
    return ", ".join(shown[:count]) + (", …" if len(shown) > count else "")


def line(error: object) -> str:
    """Return the first line of an error message."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
