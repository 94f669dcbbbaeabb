"""Every option of an experiment, typed: the model, the data set, and how to run it."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from enum import Enum
from pathlib import PurePath
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, DictConfig, OmegaConf

from vitsee.analysis import REGISTERED, Analysis
from vitsee.errors import UserError, expanded
from vitsee.names import told_apart


class Pool(Enum):
    """What the classifier of a ViT reads: the class token, or the mean of the tokens (of a ViT without one)."""

    cls = "cls"
    gap = "gap"


class Source(Enum):
    """Where a model comes from: a library, a user's function, or a Python object."""

    timm = "timm"
    torchvision = "torchvision"
    transformers = "transformers"
    open_clip = "open_clip"
    function = "import"
    python = "python"


@dataclass(kw_only=True)
class ModelOptions:
    """A model: its source, its architecture, and where its weights come from."""

    name: str = MISSING
    """Short name used in paths."""
    source: Source = Source.timm
    """timm, torchvision, transformers, open_clip, import (a function of your own), or python (`vitsee.Model`)."""
    timm: str = MISSING
    """timm model name, with the tag of its weights."""
    id: str | None = None
    """Name in torchvision, transformers or open_clip, a folder (transformers, open_clip), or its role (python)."""
    weights: str | None = None
    """torchvision: DEFAULT, none or the name of its weights. open_clip: a tag, none or a file."""
    import_: str | None = None
    """`model.import=package.module:function`, which returns an nn.Module or a vitsee.Model."""
    pretrained: bool = True
    """false: random weights, drawn with `seed`; labels and figures say so."""
    checkpoint: str | None = None
    """Local weights: any file that torch or safetensors reads without running code, or .npz of the ViT authors."""
    checkpoint_key: str | None = None
    """Which state dict to read if a checkpoint has several, e.g. teacher, state_dict_ema; by default the usual one."""
    embedded: bool = False
    """Whether the weights ship with vitsee (vitsee/weights/<name>.safetensors)."""
    seed: int = 0
    """Seed of random weights."""
    drawn_as: str | None = None
    """Weights of `vitsee train` with their card: random weights are drawn as those that this training began with. By
    default, those of a model that ships with vitsee."""
    args: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments of `timm.create_model` (e.g. {pad_type: same}), of torchvision's or your own function, or
    settings of a transformers configuration."""
    pool: Pool | None = None
    """cls: a ViT with a class token. gap: global average pooling, and no class token. By default as in timm."""
    remove_skip: list[int] = field(default_factory=list)
    """Blocks without their skip connections, counted from 0."""
    overlay: dict[str, Any] = field(default_factory=dict)
    """Changes to timm's pretrained_cfg, e.g. {mean: [0.5, 0.5, 0.5], crop_pct: 0.9}."""
    dataset: str = "imagenette"
    """The default data set for this model."""

    def __post_init__(self) -> None:
        if not -(2**63) <= self.seed < 2**64:
            raise UserError(f"model.seed must be a whole number of 64 bits, got {self.seed}")
        for each in fields(self):
            able, given = readers(each.name), getattr(self, each.name)
            default = each.default_factory() if callable(each.default_factory) else each.default
            if self.source not in able and given not in ("", default):
                value = given.value if isinstance(given, Enum) else given
                raise UserError(
                    f"model={self.source.value} does not read model.{spoken(each.name)}={value}, which is for "
                    f"model={' or '.join(source.value for source in able)}: leave it out"
                )
        if self.source in _NAMED and not self.id:
            raise UserError(f"model={self.source.value} needs model.id={_NAMED[self.source]}")
        if self.source is Source.function and not self.import_:
            raise UserError("model=import needs model.import=package.module:function")
        self.name = self.name or self._own_name()

    def _own_name(self) -> str:
        """Return the model's default name: its id, without the path."""
        name = self.id or self.import_ or self.source.value
        return PurePath(name).name if name.startswith(("/", ".", "~")) else name

    @property
    def random(self) -> bool:
        """Whether the weights are drawn with `seed`."""
        drawn = not self.pretrained or (self.weights or "").lower() == "none"
        return drawn and self.checkpoint is None

    @property
    def request(self) -> str:
        """The request as written on the command line, for messages."""
        named = {Source.timm: "timm", Source.function: "import_", Source.python: "name"}
        name = named.get(self.source, "id")
        return f"model={self.source.value} model.{spoken(name)}={getattr(self, name)}"


_LIBRARIES = (Source.torchvision, Source.transformers, Source.open_clip)
READERS: dict[str, tuple[Source, ...]] = {
    "timm": (Source.timm,),
    "id": (*_LIBRARIES, Source.python),
    "weights": (Source.torchvision, Source.open_clip),
    "import_": (Source.function,),
    "pretrained": (Source.timm, *_LIBRARIES),
    "checkpoint": (Source.timm, Source.torchvision),
    "checkpoint_key": (Source.timm, Source.torchvision),
    "embedded": (Source.timm,),
    "seed": (Source.timm, *_LIBRARIES),
    "drawn_as": (Source.timm,),
    "args": (Source.timm, Source.torchvision, Source.transformers, Source.function),
    "pool": (Source.timm,),
    "remove_skip": (Source.timm,),
    "overlay": (Source.timm,),
}
"""The sources that read an option of a model; the others would silently ignore it."""
_NAMED = {
    Source.torchvision: "resnet50 (`vitsee list models model=torchvision`)",
    Source.transformers: "owner/name of the Hugging Face hub, or a folder of save_pretrained",
    Source.open_clip: "ViT-B-32 (`vitsee list models model=open_clip`)",
}
"""An example of `model.id` for each source that needs one."""


def readers(option: str) -> tuple[Source, ...]:
    """Return the sources that read an option of a model."""
    return READERS.get(option, tuple(Source))


def spoken(option: str) -> str:
    """Return the option's name on the command line: `import` is a keyword of Python."""
    return option.removesuffix("_")


class OnBadImage(Enum):
    """What to do with an image that cannot be decoded."""

    error = "error"
    skip = "skip"


@dataclass(kw_only=True)
class DatasetOptions:
    """Images, in a fixed order, each with an id."""

    name: str = MISSING
    """Short name used in paths; `auto` is the model's default data set."""
    kind: str = MISSING
    """Where the images come from: contours, lines, scenes, folder (or tar), imagenette, cifar10, cifar100, hf,
    webdataset, or python (an object given from Python)."""
    root: str | None = None
    """Folder, tar file, shards ('shards-{000..009}.tar'), or cache folder of a download."""
    split: str | None = None
    """For example train, val or test."""
    split_is_root: bool = False
    """Whether `root` may be the split's own folder, with the classes in it (folder)."""
    path: str | None = None
    """Hugging Face data set: owner/name, or a local folder."""
    config: str | None = None
    """Hugging Face configuration (subset) of the data set."""
    column: str | None = None
    """Hugging Face column of the images, or their extension in WebDataset shards; by default the first with images."""
    take: int = 10240
    """Hugging Face: how many images to stream into the local cache."""
    seed: int = 0
    """Seed of generated images (contours, lines, scenes) and of the shuffled stream (hf)."""
    resolution: int | None = None
    """Side of generated images in pixels; by default the model's input size."""
    size: int | None = None
    """Number of generated images."""
    on_bad_image: OnBadImage = OnBadImage.error
    """error: stop and report the image. skip: leave it out for all models, and list it."""


class Precision(Enum):
    """Arithmetic of the forward pass. Statistics are float32 products summed in float64."""

    fp32 = "fp32"
    tf32 = "tf32"
    bf16 = "bf16"


@dataclass(kw_only=True)
class RunOptions:
    """How and where to run; nothing here may change a number in a table, except by rounding."""

    outputs: str = "outputs"
    """Folder of all results."""
    device: str = "auto"
    """auto (cuda, else mps, else cpu), all (every GPU, one process each), cpu, cuda, cuda:N or mps."""
    gpus: int | None = None
    """How many GPUs share the work, one process each (with run.device=cpu: how many processes)."""
    workers: int | None = None
    """Number of processes that decode images; by default chosen automatically."""
    shard: int = 0
    """This job measures minibatches shard, shard + shards, shard + 2 shards, …"""
    shards: int = 1
    """How many jobs share the work."""
    save_every: int = 10
    """Minibatches between two checkpoints of the sums."""
    progress: bool = True
    """Show a progress bar."""
    pdf: bool = False
    """Also write figures as PDF."""
    svg: bool = False
    """Also write figures as SVG."""
    memory_gb: float | None = None
    """Memory that the sums of an analysis may use, in GB; by default all of the device's."""

    def __post_init__(self) -> None:
        self.outputs = str(
            expanded(self.outputs)
        )  # the shell leaves the ~ of run.outputs=~/results
        if self.shards < 1:
            raise UserError(f"run.shards must be at least 1, got {self.shards}")
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
    model: ModelOptions = MISSING
    other: ModelOptions | None = None
    """A second model to compare with: `model@other=NAME`."""
    dataset: DatasetOptions = MISSING
    batch_size: int = MISSING
    """Images in a minibatch; by default the analysis's own number."""
    images: int | None = None
    """How many images are drawn from the data set; by default the analysis's own number."""
    repeats: int = 1
    """How many times the images are drawn and shuffled."""
    tolerance: float | None = None
    """Stop once the largest standard error in the table is this small, or after all images."""
    seed: int = 0
    """Seed that draws and orders the images."""
    precision: Precision = Precision.fp32
    run: RunOptions = field(default_factory=RunOptions)

    def __post_init__(self) -> None:
        _check_models(self)
        if self.batch_size < self.least:
            why = " (unbiased HSIC divides by n - 3)" if self.analysis.equal_minibatches else ""
            raise UserError(f"batch_size must be at least {self.least}{why}, got {self.batch_size}")
        if self.images is not None and self.images < 1:
            raise UserError(f"images must be at least 1, got {self.images}")
        few = self.images is not None and self.images < self.batch_size
        if few and self.analysis.equal_minibatches:
            raise UserError(
                f"images={self.images} is fewer than one minibatch (batch_size={self.batch_size}); "
                f"use more images or a smaller batch_size"
            )
        if self.repeats < 1:
            raise UserError(f"repeats must be at least 1, got {self.repeats}")
        if self.repeats > 1 and not self.analysis.equal_minibatches:
            raise UserError(
                f"repeats={self.repeats}: {self.analysis.name} does not depend on how images are split into "
                f"minibatches, so repeating them adds nothing; use more images=… instead"
            )
        if self.tolerance is not None:
            _check_tolerance(self)

    @property
    def least(self) -> int:
        """The smallest minibatch."""
        return 4 if self.analysis.equal_minibatches else 1

    @property
    def models(self) -> dict[str, ModelOptions]:
        """The models by role: `model`, and `other` if there is one."""
        return {"model": self.model} | ({"other": self.other} if self.other else {})

    @property
    def names(self) -> dict[str, str]:
        """The models' names in results, by role."""
        return told_apart(self.models)

    def what(self) -> dict[str, Any]:
        """Everything but `run`, as plain values."""
        plain = OmegaConf.to_container(OmegaConf.structured(self), enum_to_str=True)
        assert isinstance(plain, dict)
        return {str(key): value for key, value in plain.items() if key != "run"}


def _check_models(e: Experiment) -> None:
    """Raise UserError if the analysis does not measure this many models, or has options for one that is missing."""
    if e.other is None and e.analysis.selects_other:
        raise UserError(
            "analysis.other_layers is for a second model: name it with model@other=NAME, or leave the option out"
        )
    if len(e.models) in e.analysis.models:
        return
    if e.other is None:
        raise UserError(
            f"analysis={e.analysis.name} compares two models; choose the second one: model@other=NAME"
        )
    together = (
        " (several results are drawn in one figure by `vitsee plot FOLDER FOLDER`)"
        if e.analysis.draws_several
        else ""
    )
    raise UserError(
        f"analysis={e.analysis.name} measures one model, but model@other is given; measure each model "
        f"alone: vitsee run -m analysis={e.analysis.name} model=NAME,NAME{together}"
    )


def _check_tolerance(e: Experiment) -> None:
    """Raise UserError if this experiment cannot stop at `tolerance`."""
    able = [name for name, kind in REGISTERED.items() if kind.standard_errors]
    if not e.tolerance or not 0 < e.tolerance < float("inf"):
        raise UserError(f"tolerance must be above 0, e.g. tolerance=0.01; got {e.tolerance}")
    if e.analysis.name not in able:
        raise UserError(
            f"tolerance={e.tolerance}: {e.analysis.name} has no standard error to stop at; "
            f"analyses that have one: {', '.join(able)}"
        )
    shared = {
        f"run.shards={e.run.shards}": e.run.shards > 1,
        "run.device=all": e.run.device == "all",
        f"run.gpus={e.run.gpus}": e.run.gpus is not None and e.run.gpus > 1,
    }
    for option, given in shared.items():
        if given:
            raise UserError(
                f"tolerance={e.tolerance} cannot be combined with {option}: where to stop depends on all "
                f"minibatches so far, and no single process has them"
            )


def _schema(kind: type, *open_to_any_key: str) -> DictConfig:
    """The class as a schema. The named dictionaries accept any key."""
    schema = OmegaConf.structured(kind)
    for name in open_to_any_key:
        OmegaConf.set_struct(schema[name], False)
    return schema


for _name, _node in {
    "experiment": _schema(Experiment),
    "model": _schema(ModelOptions, "args", "overlay"),
    "dataset": _schema(DatasetOptions),
}.items():
    ConfigStore.instance().store(group="schema", name=_name, node=_node, provider="vitsee")
