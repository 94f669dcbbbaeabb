"""Everything that can be configured, typed; and the composed configuration as typed objects."""

from __future__ import annotations

import re
import threading
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, is_dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from hydra.version import VersionBase
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

import vitsee.analyses  # noqa: F401  (declares the schema of every analysis)
from vitsee import plain
from vitsee.analysis import REGISTERED, Analysis
from vitsee.errors import UserError, expanded, printable, refused, unknown
from vitsee.names import told_apart

_PACKAGED = Path(__file__).parent / "conf"
CONF = _PACKAGED if _PACKAGED.is_dir() else Path(__file__).parents[1] / "conf"


class Pool(Enum):
    """What the classifier of a ViT reads: its class token, or the mean of its tokens (and no class token)."""

    cls = "cls"
    gap = "gap"


@dataclass(kw_only=True)
class Model:
    """A timm architecture and where its weights come from."""

    name: str = MISSING
    """Short name used in paths."""
    timm: str = MISSING
    """timm model name, with the tag of its weights."""
    pretrained: bool = True
    """false: random weights, drawn with `seed`; labels and figures then say so."""
    checkpoint: str | None = None
    """Local weights: any file that torch or safetensors reads without running code, or .npz of the ViT authors."""
    checkpoint_key: str | None = None
    """Which state dict of a checkpoint that holds several, e.g. teacher, state_dict_ema; by default the usual one."""
    embedded: bool = False
    """The weights ship with vitsee (vitsee/weights/<name>.safetensors)."""
    seed: int = 0
    """Seed of random weights."""
    args: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments of `timm.create_model`, e.g. {pad_type: same}."""
    pool: Pool | None = None
    """cls or gap: a ViT with a class token, or without one and with global average pooling; by default timm's."""
    remove_skip: list[int] = field(default_factory=list)
    """Blocks without their skip connections, counted from 0."""
    overlay: dict[str, Any] = field(default_factory=dict)
    """What to change in timm's pretrained_cfg, e.g. {mean: [0.5, 0.5, 0.5], crop_pct: 0.9}."""
    dataset: str = "imagenette"
    """The data set used when none is named."""

    def __post_init__(self) -> None:
        if not -(2**63) <= self.seed < 2**64:
            raise UserError(f"model.seed must be a whole number of 64 bits, got {self.seed}")


class OnBadImage(Enum):
    """What to do with an image that cannot be decoded."""

    error = "error"
    skip = "skip"


@dataclass(kw_only=True)
class Dataset:
    """Images, in a fixed order, each with an id."""

    name: str = MISSING
    """Short name used in paths; `auto` is the one that suits the model."""
    kind: str = MISSING
    """How it is read: scenes, folder (also a tar), imagenette, cifar10, cifar100 or hf."""
    root: str | None = None
    """Folder, tar file, or cache folder of a download."""
    split: str | None = None
    """Which part: e.g. train, val or test."""
    path: str | None = None
    """Hugging Face data set: owner/name, or a local folder."""
    config: str | None = None
    """Hugging Face configuration (subset) of the data set."""
    column: str | None = None
    """Hugging Face column that holds the images; found by its type if not given."""
    take: int = 10240
    """Hugging Face: how many images to stream into the local cache."""
    seed: int = 0
    """Seed of made images (scenes), and of the shuffling of a stream (hf)."""
    resolution: int | None = None
    """Side of made images in pixels (scenes); the model's own input size if not given."""
    size: int | None = None
    """How many images to make (scenes)."""
    on_bad_image: OnBadImage = OnBadImage.error
    """error: stop and name the image; skip: leave it out for all models, count and list it."""


class Precision(Enum):
    """Arithmetic of the forward pass. Statistics are float32 products summed in float64."""

    fp32 = "fp32"
    tf32 = "tf32"
    bf16 = "bf16"


@dataclass(kw_only=True)
class Run:
    """How and where to run; nothing here may change a number in a table."""

    outputs: str = "outputs"
    """Folder of all results."""
    device: str = "auto"
    """auto (cuda, else mps, else cpu), all (every GPU, a process each), cpu, cuda, cuda:N or mps."""
    gpus: int | None = None
    """How many GPUs share the work, a process each (with run.device=cpu: how many processes)."""
    workers: int | None = None
    """Processes that decode images; by default as many as help."""
    shard: int = 0
    """This job measures minibatches shard, shard + shards, shard + 2 shards, …"""
    shards: int = 1
    """How many jobs share the work."""
    save_every: int = 10
    """Minibatches between two checkpoints of the sums."""
    progress: bool = True
    """Show a progress bar."""
    pdf: bool = False
    """Write figures as PDF too."""
    memory_gb: float | None = None
    """How much memory the sums of an analysis may take; by default all that the device has."""

    def __post_init__(self) -> None:
        self.outputs = str(
            expanded(self.outputs)
        )  # the shell leaves the ~ of run.outputs=~/results
        if not 0 <= self.shard < self.shards:
            raise UserError(
                f"run.shard must be in 0…{self.shards - 1} (run.shards={self.shards}), "
                f"got {self.shard}"
            )
        if self.save_every < 1:
            raise UserError(f"run.save_every must be at least 1, got {self.save_every}")
        if self.gpus is not None and self.gpus < 1:
            raise UserError(f"run.gpus must be at least 1, got {self.gpus}")
        if self.workers is not None and self.workers < 0:
            raise UserError(f"run.workers must be at least 0, got {self.workers}")
        if self.memory_gb is not None and self.memory_gb <= 0:
            raise UserError(f"run.memory_gb must be more than 0, got {self.memory_gb}")


@dataclass(kw_only=True)
class Experiment:
    """One analysis of one model, or of one model against another, on one data set."""

    analysis: Analysis = MISSING
    model: Model = MISSING
    other: Model | None = None
    """A second model to compare with: `model@other=NAME`."""
    dataset: Dataset = MISSING
    batch_size: int = MISSING
    """Images in a minibatch; by default the analysis's own number."""
    images: int | None = None
    """How many images of the data set, drawn with `seed`; by default the analysis's own number."""
    repeats: int = 1
    """How many times images are drawn and shuffled anew."""
    tolerance: float | None = None
    """Stop as soon as the largest standard error in the table is this small; at the latest after all images."""
    seed: int = 0
    """Seed of the draw and the order of the images."""
    precision: Precision = Precision.fp32
    run: Run = field(default_factory=Run)

    def __post_init__(self) -> None:
        # a name that is no Unicode could be written into no table
        self.analysis.cast = {role: printable(name) for role, name in self.names.items()}
        if self.batch_size < self.least:
            why = " (unbiased HSIC divides by n - 3)" if self.analysis.equal_minibatches else ""
            raise UserError(f"batch_size must be at least {self.least}{why}, got {self.batch_size}")
        if self.images is not None and self.images < 1:
            raise UserError(f"images must be at least 1, got {self.images}")
        few = self.images is not None and self.images < self.batch_size
        if few and self.analysis.equal_minibatches:
            raise UserError(
                f"images={self.images} is less than one minibatch (batch_size={self.batch_size}); "
                f"ask for more images or a smaller batch_size"
            )
        if self.repeats < 1:
            raise UserError(f"repeats must be at least 1, got {self.repeats}")
        if self.repeats > 1 and not self.analysis.equal_minibatches:
            raise UserError(
                f"repeats={self.repeats}: {self.analysis.name} does not depend on how images are cut into "
                f"minibatches, so the same images again tell nothing new; ask for more images=…"
            )
        if self.tolerance is not None:
            _check_tolerance(self)

    @property
    def least(self) -> int:
        """Images that a minibatch must have."""
        return 4 if self.analysis.equal_minibatches else 1

    @property
    def models(self) -> dict[str, Model]:
        """The models by role: `model`, and `other` if there is one."""
        return {"model": self.model} | ({"other": self.other} if self.other else {})

    @property
    def names(self) -> dict[str, str]:
        """What results call the models, by role."""
        return told_apart(self.models)

    def what(self) -> dict[str, Any]:
        """Everything but `run`: what was asked, as plain values."""
        plain = OmegaConf.to_container(OmegaConf.structured(self), enum_to_str=True)
        assert isinstance(plain, dict)
        return {str(key): value for key, value in plain.items() if key != "run"}


def _check_tolerance(e: Experiment) -> None:
    """Raise UserError if this experiment cannot stop at `tolerance`."""
    able = [name for name, kind in REGISTERED.items() if kind.error is not Analysis.error]
    if not e.tolerance or not 0 < e.tolerance < float("inf"):
        raise UserError(f"tolerance must be above 0, e.g. tolerance=0.01; got {e.tolerance}")
    if e.analysis.name not in able:
        raise UserError(
            f"tolerance={e.tolerance}: {e.analysis.name} has no standard error to stop at; "
            f"analyses that have: {', '.join(able)}"
        )
    shared = {
        f"run.shards={e.run.shards}": e.run.shards > 1,
        "run.device=all": e.run.device == "all",
        f"run.gpus={e.run.gpus}": e.run.gpus is not None and e.run.gpus > 1,
    }
    for option, given in shared.items():
        if given:
            raise UserError(
                f"tolerance={e.tolerance} with {option}: where to stop depends on all minibatches so far, "
                f"which no process that shares the work has; use one of the two"
            )


def _schema(kind: type, *open_to_any_key: str) -> DictConfig:
    """The class as a schema; keys of these dictionaries are not declared, so any may be set."""
    schema = OmegaConf.structured(kind)
    for name in open_to_any_key:
        OmegaConf.set_struct(schema[name], False)
    return schema


for _name, _node in {
    "experiment": _schema(Experiment),
    "model": _schema(Model, "args", "overlay"),
    "dataset": _schema(Dataset),
}.items():
    ConfigStore.instance().store(group="schema", name=_name, node=_node, provider="vitsee")


def composed(words: list[str]) -> Experiment:
    """The experiment that `vitsee run` with these words asks for. Raises what `mistake` explains."""
    with _hydra_apart(), initialize_config_dir(str(CONF), version_base="1.3"):
        return build(compose("run", [quoted(word) for word in words]))


_one_at_a_time = threading.Lock()


@contextmanager
def _hydra_apart() -> Iterator[None]:
    """A process has one Hydra: within the block nobody else's, afterwards again whose it was."""
    with _one_at_a_time:
        theirs, base = GlobalHydra.instance().hydra, VersionBase.instance().version_base
        GlobalHydra.instance().clear()
        try:
            yield
        finally:
            GlobalHydra.instance().hydra = theirs
            VersionBase.instance().version_base = base


def build(cfg: DictConfig) -> Experiment:
    """The composed configuration as typed objects. Raises UserError for an option that is not declared."""
    refuse_undeclared(cfg)
    if cfg.dataset.name == "auto":
        cfg.dataset = _suitable_dataset(cfg)
    if OmegaConf.is_missing(cfg, "batch_size"):
        cfg.batch_size = REGISTERED[cfg.analysis.name].default_batch_size
    experiment = OmegaConf.to_object(cfg)
    assert isinstance(experiment, Experiment)
    return experiment


def load_experiment(path: Path, overrides: list[str]) -> Experiment:
    """The experiment of an experiment.yaml, with `key=value` changes. Raises UserError if it is not one."""
    stored = plain.read(path)
    chosen = plain.analysis_of(stored, path)
    if chosen not in REGISTERED:
        raise unknown(f"there is no analysis {chosen}", chosen, REGISTERED, "there are")
    schema = OmegaConf.structured(Experiment)
    schema.analysis = OmegaConf.structured(REGISTERED[chosen])
    try:
        whole = OmegaConf.merge(schema, OmegaConf.create(stored))
    except OmegaConfBaseException as error:
        raise UserError(f"{path}: {explain(error).removeprefix(': ')}") from error
    merged = OmegaConf.merge(whole, OmegaConf.from_dotlist(overrides))
    assert isinstance(merged, DictConfig)
    return build(merged)


def _suitable_dataset(cfg: DictConfig) -> DictConfig:
    """The data set that suits the model, with what the user changed in `dataset=auto`."""
    schema = OmegaConf.structured(Dataset)
    chosen = OmegaConf.load(CONF / "dataset" / f"{cfg.model.dataset}.yaml")
    assert isinstance(chosen, DictConfig)
    del chosen["defaults"]
    changed = {
        key: cfg.dataset[key]
        for key in schema
        if key not in ("name", "kind") and cfg.dataset[key] != schema[key]
    }
    suitable = OmegaConf.merge(schema, chosen, changed)
    assert isinstance(suitable, DictConfig)
    return suitable


def refuse_undeclared(node: DictConfig, prefix: str = "") -> None:
    """Hydra lets `+key=value` add keys that nothing reads; here that is an error. Raises UserError."""
    kind = OmegaConf.get_type(node)
    if not is_dataclass(kind):
        return
    names = [f.name for f in fields(kind)]
    for key in map(str, node):
        if key not in names:
            raise unknown(f"there is no option {prefix}{key}", key, names, f"{kind.__name__} has")
        if not OmegaConf.is_missing(node, key) and OmegaConf.is_dict(node[key]):
            refuse_undeclared(node[key], f"{prefix}{key}.")


PATHS = (
    "dataset.root",
    "dataset.path",
    "model.checkpoint",
    "other.checkpoint",
    "run.outputs",
    "recipe.start",
)


def quoted(word: str) -> str:
    """The word, its value in quotes if it is a path with letters that Hydra's grammar does not know."""
    key, _, value = word.partition("=")
    if key not in PATHS:
        return word
    try:
        OverridesParser.create().parse_override(word)
    except HydraException:
        return f"{key}={in_quotes(value)}"
    return word


def in_quotes(text: str) -> str:
    """The text as a quoted value of Hydra's grammar, where backslashes count before a quote only."""
    escaped = re.sub(r'(\\*)"', r'\1\1\\"', text)
    return '"{}"'.format(re.sub(r"(\\+)\Z", r"\1\1", escaped))


def override(key: str, value: Any) -> str:
    """`key=value` with a Python value: what it holds is taken literally, a mapping changes what it names."""
    return f"{key}={_literal(value)}"


def _literal(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, (str, Path)):
        return in_quotes(str(value))
    if isinstance(value, Mapping):
        return "{{{}}}".format(", ".join(f"{key}: {_literal(one)}" for key, one in value.items()))
    if isinstance(value, (list, tuple)):
        return "[{}]".format(", ".join(map(_literal, value)))
    return str(value)


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
