"""The user's mistakes as one-line messages that name the valid choices."""

from __future__ import annotations

import traceback
from dataclasses import fields, is_dataclass

from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf.errors import OmegaConfBaseException

from vitsee.errors import UserError, refused, unknown
from vitsee.options import spoken


def of_composition(error: BaseException) -> bool:
    """Return whether Hydra, OmegaConf or a parser under them raised this error, whatever its class."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    where = str(frames[-1].f_globals.get("__name__")) if frames else ""
    return where.split(".")[0] in ("hydra", "omegaconf", "antlr4", "yaml")


def mistake(error: BaseException) -> str | None:
    """Return the message for an error that the user can fix; None for any other error.

    An OSError is almost never a bug: paths, permissions, disks and limits are the user's to fix.
    """
    if isinstance(error, (HydraException, OmegaConfBaseException, UserError)):
        return explain(error)
    if isinstance(error, OSError):
        return refused(error)
    if of_composition(error):
        return f"invalid configuration: {' '.join(str(error).split())}"
    return None


def explain(error: BaseException) -> str:
    """Return one line that says which key, option or value is wrong, and which are valid."""
    if isinstance(error, OverrideParseException):
        if "=" not in str(error.override):
            return f"cannot read {error.override!r}: options are written key=value"
        key, _, value = str(error.override).partition("=")
        return (
            f"cannot read {error.override!r}: quote a value with special characters twice, for the shell and "
            f"for vitsee: '{key}=\"{value}\"'"
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
        return str(unknown(asked, str(error.key), map(spoken, names), f"{kind.__name__} has"))
    return f"{error.full_key}: {str(error.msg).splitlines()[0]}"


def _no_such_choice(error: MissingConfigException) -> str:
    if error.options is None:
        return str(error).splitlines()[0]
    group, _, option = str(error.missing_cfg_file).rpartition("/")
    if option.startswith("submitit"):
        return f"{group}={option} needs the SLURM launcher: pip install 'vitsee[slurm]'"
    own = " (if it is your own: --import its file)" if group == "analysis" else ""
    return str(
        unknown(f"there is no {group}={option}{own}", option, error.options, f"{group} can be")
    )
