"""`vitsee plot`: figures of a result folder from its CSVs; computes nothing, imports no torch."""

from __future__ import annotations

from pathlib import Path

from omegaconf import OmegaConf

import vitsee.analyses  # noqa: F401  (registers every analysis)
from vitsee import plain
from vitsee.analysis import REGISTERED, Analysis, Labels
from vitsee.errors import UserError, unknown
from vitsee.results import Results


def plot(path: Path, *, pdf: bool = False) -> list[Path]:
    """Draw the figures of a result folder, return their paths. Raises UserError if it is not one."""
    results = Results(path)
    for needed in ("experiment.yaml", "made_with.json"):
        if not (path / needed).is_file():
            raise UserError(
                f"{path} is not a result folder: it has no {needed}; "
                f"name a folder such as outputs/cka/<model>/<dataset>-<identity>"
            )
    options = OmegaConf.create(plain.read(path / "experiment.yaml")).analysis
    if options.name not in REGISTERED:
        raise unknown(f"there is no analysis {options.name}", options.name, REGISTERED, "there are")
    analysis = OmegaConf.to_object(OmegaConf.merge(REGISTERED[options.name], options))
    assert isinstance(analysis, Analysis)
    tables = results.tables()
    if not tables:
        raise UserError(f"{path} has no tables yet; run `vitsee run --from {path}/experiment.yaml`")
    labels = Labels(**results.load_json("made_with.json")["labels"])
    return results.save_figures(analysis.figures(tables, labels), pdf=pdf)
