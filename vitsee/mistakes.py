"""What the user asked for that cannot be, in one line that names what can."""

from __future__ import annotations

import traceback
from dataclasses import fields, is_dataclass

from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf.errors import OmegaConfBaseException

from vitsee.errors import UserError, refused, unknown


def of_composition(error: BaseException) -> bool:
    """Was it raised by what reads and composes configurations? Not all their errors are of their own kinds."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    where = str(frames[-1].f_globals.get("__name__")) if frames else ""
    return where.split(".")[0] in ("hydra", "omegaconf", "antlr4", "yaml")


def mistake(error: BaseException) -> str | None:
    """What the user asked for that cannot be, in one line; None if the error is not the user's to mend.

    What the system refuses (OSError) is nearly never a bug: paths, rights, disks and limits are the user's.
    """
    if isinstance(error, (HydraException, OmegaConfBaseException, UserError)):
        return explain(error)
    if isinstance(error, OSError):
        return refused(error)
    if of_composition(error):
        return f"these options make no configuration: {' '.join(str(error).split())}"
    return None


def explain(error: BaseException) -> str:
    """A wrong key, option or value, in one line that names the valid ones."""
    if isinstance(error, OverrideParseException):
        if "=" not in str(error.override):
            return f"cannot read {error.override!r}: options are written key=value"
        key, _, value = str(error.override).partition("=")
        return (
            f"cannot read {error.override!r}: quote a value with special characters, once for the shell and "
            f"once for vitsee: '{key}=\"{value}\"'"
        )
    ends = (OmegaConfBaseException, MissingConfigException, UserError, OSError)
    while not isinstance(error, ends):
        deeper = error.__cause__ or error.__context__
        if deeper is None:
            return str(error).splitlines()[0]
        error = deeper
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, MissingConfigException):
        return _no_such_choice(error)
    if isinstance(error, OSError):
        return refused(error)
    kind = error.object_type
    names = [f.name for f in fields(kind)] if kind and is_dataclass(kind) else []
    if kind and names and error.key not in names:
        asked = f"there is no option {error.full_key}"
        return str(unknown(asked, str(error.key), names, f"{kind.__name__} has"))
    return f"{error.full_key}: {str(error.msg).splitlines()[0]}"


def _no_such_choice(error: MissingConfigException) -> str:
    if error.options is None:
        return str(error).splitlines()[0]
    group, _, option = str(error.missing_cfg_file).rpartition("/")
    if option.startswith("submitit"):
        return f"{group}={option} needs the launcher for SLURM: pip install 'vitsee[slurm]'"
    return str(unknown(f"there is no {group}={option}", option, error.options, f"{group} can be"))
