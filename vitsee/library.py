"""vitsee from Python: run an experiment or load a result, and use its tables and figures.

Imports inside functions keep `import vitsee` fast: reading results needs no torch.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitsee.errors import UserError, refused, unknown

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from vitsee.analysis import Analysis, Labels
    from vitsee.results.reading import StoredResult


Folder = str | os.PathLike[str]
Folders = Folder | Sequence[Folder]


def run_experiment(*overrides: str, config_dir: Folders | None = None, **options: Any) -> Result:
    """Do what `vitsee run` does with the same overrides, in this process, and return the result.

    overrides: as on the command line, e.g. "analysis=cka", "model@other=resnet_mini".
    options: the same with Python values, e.g. images=512, run={"outputs": "results"}; a string is taken
        literally, and a mapping changes the options that it names. model and other can also be a `vitsee.Model` or
        an nn.Module, and dataset a torch Dataset of images or of (image, label), or a mapping from splits to these.
    config_dir: a folder of your own choices (`--config-dir`), e.g. "conf" with conf/model/mine.yaml for
        "model=mine", or a list of such folders.

    The result goes where the command puts it, and nothing is measured twice. A GPU is used if available.
    Experiments run one at a time, in any thread.

    Raises UserError with the message of the command line; its subclass Incomplete if minibatches of other
    shards are missing; and Interrupted on Ctrl-C or SIGTERM in the main thread. In all cases, everything
    measured so far is saved, and the same call resumes.
    """
    if "torch" not in sys.modules:  # as in `vitsee`; torch reads it once, on import
        os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    from vitsee import choices, config, given, mistakes

    objects = {key: value for key, value in options.items() if given.is_object(key, value)}
    of_objects: dict[str, Any] = {}
    for key, value in objects.items():
        of_objects |= given.options(key, value)
    named: dict[str, Any] = {}
    for key, value in options.items():
        # a name selects a whole group of options; the second model's group has a different name
        of = "model@other" if key == "other" and isinstance(value, str) else key
        named |= {} if key in objects else {of: value}
    chosen, asked = (
        [config.override(key, value) for key, value in some.items()] for some in (of_objects, named)
    )
    words = [*chosen, *overrides, *asked]  # so that model.name=mine overrides an object's own name
    for word in words:
        if word.startswith(choices.FLAGS):
            raise UserError(f"{word}: from Python this is config_dir=FOLDER")
        if word.startswith("--import"):
            raise UserError(f"{word}: from Python, import the file itself: import my_analysis")
        if word.startswith("-") and not word.startswith(("-m", "--multirun")):
            raise UserError(f"{word} is for the command line: vitsee run {word} …")
        if word.startswith(("-", "figure=")):
            raise UserError(
                f"{word}: run_experiment runs one experiment; "
                f"use the command line to run several: vitsee run {word} …"
            )
    try:
        with choices.using(*_folders(config_dir)):
            experiment = config.composed(words)
        from vitsee.gpus import choose, run  # imports torch, which takes seconds

        if objects and len(choose(experiment.run)) > 1:
            raise UserError(
                f"{' and '.join(objects)} from Python cannot be given to the processes of several GPUs: use one "
                f"(run.device=cuda), or model=import and dataset=folder"
            )
        with given.here(objects):
            written = run(experiment)
    except UserError:
        raise
    except Exception as error:
        mistake = mistakes.mistake(error)
        if mistake is None:
            raise
        raise UserError(mistake) from None
    return _result(written.folder, written.stored)


def _folders(given: Folders | None) -> Sequence[Folder]:
    """The folders of `config_dir`. Raises UserError if it is something else."""
    several = [given] if isinstance(given, (str, os.PathLike)) else given or []
    if not isinstance(several, (list, tuple)) or not all(
        isinstance(one, (str, os.PathLike)) for one in several
    ):
        raise UserError(f"config_dir must be a folder or a list of folders, got {given!r}")
    return [one for one in several if one != ""]


def load(path: str | os.PathLike[str]) -> Result:
    """Load a result folder, e.g. "outputs/cka/vit_mini/scenes-9d7112f8". Does not import torch.

    Raises UserError if it is not a result folder, or has no tables yet.
    """
    return _result(Path(path))


def _result(folder: Path, stored: StoredResult | None = None) -> Result:
    from vitsee.results.folder import Results
    from vitsee.results.reading import read

    try:
        stored = stored or read(folder)
        made_with = Results(folder).load_json("made_with.json")
    except OSError as error:
        raise UserError(refused(error)) from error
    return Result(folder, stored.tables, stored.labels, made_with, stored.analysis)


def compare(*results: str | os.PathLike[str], **options: Any) -> Comparison:
    """Do what `vitsee compare` does with the same results and options, and return the comparison.

    results: result folders of analysis=grams, or folders that contain some. options: as in `vitsee compare
    --help`, with Python values, e.g. measure="rsa", null=1000, run={"outputs": "results"}. Does not import torch.

    Raises UserError with the message of the command line, and Interrupted on Ctrl-C or SIGTERM in the main thread;
    finished pairs are then saved, and the same call resumes.
    """
    from vitsee.comparing import comparison
    from vitsee.comparing.options import of

    run = options.pop("run", {})
    chosen = of(options | {f"run.{name}": value for name, value in run.items()})
    try:
        written = comparison.compare([Path(path) for path in results], chosen)
    except OSError as error:
        raise UserError(refused(error)) from error
    return Comparison(written.folder)


@dataclass(frozen=True)
class Comparison:
    """A comparison of models. path: its folder."""

    path: Path

    @property
    def table(self) -> pd.DataFrame:
        """One row per pair of layers of each pair of models: compare.csv."""
        return self._tables["compare"]

    @property
    def atlas(self) -> pd.DataFrame:
        """One row per pair of models: atlas.csv."""
        return self._tables["atlas"]

    @cached_property
    def _tables(self) -> dict[str, pd.DataFrame]:
        from vitsee.comparing import drawing

        return drawing.read(self.path)[1]

    def matrix(self, column: str = "value") -> pd.DataFrame:
        """A column of the atlas as a matrix, models x models, NaN for missing pairs and on the diagonal.

        Raises UserError if there is no such column.
        """
        import pandas as pd

        if column not in self.atlas:
            raise unknown(
                f"the atlas has no column {column}", column, map(str, self.atlas), "it has"
            )
        names = sorted({*self.atlas["model"], *self.atlas["other"]})
        pairs = {"model": "other", "at_model_layer": "at_other_layer"}
        turned = self.atlas.rename(columns=pairs | {b: a for a, b in pairs.items()})
        both = pd.concat([self.atlas, turned])
        return both.pivot(index="model", columns="other", values=column).reindex(
            names, columns=names
        )

    def figures(self) -> dict[str, Figure]:
        """The figures of `vitsee plot` by name, redrawn from the tables."""
        from vitsee.comparing import drawing

        return drawing.figures(self.path)


@dataclass(frozen=True, eq=False, repr=False)
class Result:
    """The result of an experiment. Notebooks display its first figure.

    path: its folder. tables: by name, read from their CSVs, one observation per row. labels: the names of the
    models and the data in figures (model, other, dataset, images, repeats). made_with: the contents of
    made_with.json: versions, device, git commit, digests, image ids, seconds, memory.
    """

    path: Path
    tables: dict[str, pd.DataFrame]
    labels: Labels
    made_with: dict[str, Any]
    _analysis: Analysis

    @property
    def analysis(self) -> str:
        """The name of the analysis, e.g. "cka"."""
        return self._analysis.name

    @property
    def table(self) -> pd.DataFrame:
        """The main table, which has the name of the analysis."""
        return self.tables.get(self.analysis, next(iter(self.tables.values())))

    def matrix(self, column: str = "cka") -> pd.DataFrame:
        """A column of the main table as a matrix, in the order of the layers (input first).

        For `cka` (layers of the model) x (layers of the model, or of the other); for `head_similarity`
        (sets of heads) x (layers of the other). Raises UserError unless the table has such a column, and one row
        per pair.
        """
        table = self.table
        declared = self._analysis.columns.get(self.analysis)
        axes = list(declared.grid) if declared else []
        if len(axes) != 2 or table.duplicated(axes).any():
            raise UserError(
                f"the table of {self.analysis} is not a matrix: it does not have one row for each pair of layers; "
                f"use .table"
            )
        if column not in table:
            asked = f"the table of {self.analysis} has no column {column}"
            raise unknown(asked, column, map(str, table), "it has")
        rows, columns = axes
        wide = table.pivot(index=rows, columns=columns, values=column)
        return wide.loc[table[rows].unique(), table[columns].unique()]

    def figures(self) -> dict[str, Figure]:
        """The figures of `vitsee plot` by name, redrawn from the tables.

        Raises UserError if a custom analysis fails, or returns anything other than figures.
        """
        from matplotlib.figure import Figure

        from vitsee import returned

        return returned.named(self._analysis, "figures", Figure, self.tables, self.labels)

    def __repr__(self) -> str:
        models = self.labels.model + (f" × {self.labels.other}" if self.labels.other else "")
        return f"<{self.analysis} of {models}, {self.labels.data}: {self.path}>"

    def _repr_png_(self) -> bytes:
        """The first figure, for Jupyter."""
        buffer = io.BytesIO()
        next(iter(self.figures().values())).savefig(buffer, format="png", dpi=100)
        return buffer.getvalue()
