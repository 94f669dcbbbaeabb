"""The options of a comparison, and how they are written on the command line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from vitsee.comparing.measures import MEASURES
from vitsee.errors import UserError, expanded, nearest, unknown

USAGE = f"""usage: vitsee compare RESULT… [key=value …]

Compares any number of models from the results of `vitsee run -m analysis=grams model=NAME,NAME`, without
running a model. RESULT is a result folder, or a folder that contains some.

  vitsee compare outputs/grams                            all pairs of all models there
  vitsee compare outputs/grams null=1000 layers=last      with a permutation test
  vitsee compare outputs/grams/vit_mini outputs/grams first=true      the first with each of the others

  measure=cka          {", ".join(MEASURES)}
  null=0               permutations of the images for p values (1000 is usual)
  layers=all           all, last, or a pattern such as blocks.*
  first=false          compare only the first result with the others
  neighbours=10        nearest neighbours of measure=mutual_knn
  calibrated=false     draw similarities relative to their null (needs null)
  seed=0               seed of the permutations
  run.outputs=outputs  folder of all results       run.pdf=false   also write figures as PDF (run.svg: SVG)
  run.memory_gb=2      memory limit                run.progress=true"""


@dataclass(frozen=True, kw_only=True)
class Options:
    """The options of a comparison: see USAGE."""

    measure: str = "cka"
    null: int = 0
    layers: str = "all"
    first: bool = False
    neighbours: int = 10
    calibrated: bool = False
    seed: int = 0
    outputs: str = "outputs"
    pdf: bool = False
    svg: bool = False
    memory_gb: float = 2.0
    progress: bool = True

    def __post_init__(self) -> None:
        if self.measure not in MEASURES:
            asked = f"there is no measure={self.measure}"
            raise unknown(asked, self.measure, MEASURES, "it can be")
        for name, least in (("null", 0), ("neighbours", 1), ("seed", 0)):
            if getattr(self, name) < least:
                raise UserError(f"{name} must be at least {least}, got {getattr(self, name)}")
        if not self.memory_gb > 0:
            raise UserError(f"run.memory_gb must be more than 0, got {self.memory_gb:g}")
        if self.calibrated and not self.null:
            raise UserError("calibrated=true needs a null: add null=1000")

    @property
    def question(self) -> dict[str, Any]:
        """The options that a pair's numbers depend on."""
        return {
            "measure": self.measure,
            "null": self.null,
            "layers": self.layers,
            "neighbours": self.neighbours if self.measure == "mutual_knn" else None,
            "seed": self.seed if self.null else None,
        }


RUN = ("outputs", "pdf", "svg", "memory_gb", "progress")
"""Options written as `run.NAME`, which change no number."""
WRITTEN = {f"run.{f.name}" if f.name in RUN else f.name: f for f in fields(Options)}


def parsed(words: Sequence[str]) -> tuple[list[Path], Options]:
    """Parse the command line: the results and the options. Raises UserError."""
    paths, values = [], {}
    for word in words:
        key, given, value = word.partition("=")
        if given and (key in WRITTEN or not Path(word).exists()):
            values[key] = value
        elif word.startswith("-"):
            raise UserError(
                f"there is no option {word}; options are written key=value, such as null=1000 "
                f"(`vitsee compare --help` lists them)"
            )
        else:
            paths.append(expanded(word))
    return paths, of(values)


def of(values: Mapping[str, Any]) -> Options:
    """Return the options with these values, named as on the command line, as text or in their own types."""
    for key in values:
        if key not in WRITTEN:
            raise unknown(f"there is no option {key}", key, WRITTEN, "it has")
    return Options(**{WRITTEN[key].name: _typed(key, value) for key, value in values.items()})


def _typed(key: str, value: Any) -> Any:
    kind = {"int": int, "float": float, "bool": bool, "str": str}[str(WRITTEN[key].type)]
    if kind is str:
        return str(expanded(str(value))) if key == "run.outputs" else str(value)
    if kind is bool:
        words = {"true": True, "false": False}
        if str(value).lower() not in words:
            raise UserError(
                f"{key} must be true or false, got {value}.{nearest(str(value), words)}"
            )
        return words[str(value).lower()]
    try:
        return kind(str(value))
    except ValueError:
        what = "a whole number" if kind is int else "a number"
        raise UserError(f"{key} must be {what}, got {value}") from None
