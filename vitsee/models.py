"""timm models with their weights: from a local file, random, embedded, or from the hub; options checked."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import re
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitsee import cards
from vitsee.cards import Card
from vitsee.config import Model, Pool
from vitsee.errors import UserError, expanded, nearest, unknown
from vitsee.network import require
from vitsee.weight_files import Taken, classifiers, few, fill, line, resampled

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

log = logging.getLogger(__name__)

EMBEDDED = Path(__file__).parent / "weights"
POOLING: dict[Pool, dict[str, Any]] = {
    Pool.cls: {"class_token": True, "global_pool": "token"},
    Pool.gap: {"class_token": False, "global_pool": "avg", "fc_norm": False},
}
"""Arguments of timm's ViTs; as in the authors' code, the mean is taken after the last norm."""
RESERVED = {
    "args.checkpoint_path": "model.checkpoint=PATH",
    "args.device": "run.device",
    "args.dtype": "precision",
    "args.pretrained": "model.pretrained",
    "args.pretrained_cfg": "model.overlay",
    "args.pretrained_cfg_overlay": "model.overlay",
    "overlay.file": "model.checkpoint=PATH",
    "overlay.state_dict": "model.checkpoint=PATH",
}
"""What timm would take too, past all checks; and what to use."""
_REMEDY = (
    "download it where there is a network and set HF_HUB_CACHE to that cache, or name a local file with "
    "model.checkpoint=PATH, or use random weights with model.pretrained=false"
)


@dataclass(frozen=True)
class Loaded:
    """A model ready to be watched.

    label: what figures call it. net: in evaluation mode, without gradients, on the device; it takes
    normalised pixels. data: timm's data configuration (input_size, interpolation, mean, std, crop_pct,
    crop_mode). weights: where they come from, in words. digest: SHA-256 of names and values. card: how
    they were trained, if a model card lies beside them. taken: what of the file they are from.
    """

    name: str
    label: str
    net: nn.Module
    data: dict[str, Any]
    weights: str
    digest: str
    card: Card | None
    taken: Taken = field(default_factory=Taken)


def load(model: Model, device: str | torch.device, name: str | None = None) -> Loaded:
    """The model with its weights. Raises UserError if they cannot be had exactly as asked for.

    name: what to call it where its own name does not tell it from another model.
    """
    import torch

    name, taken = name or model.name, Taken()
    random = not model.pretrained and model.checkpoint is None
    if model.checkpoint_key is not None and model.checkpoint is None:
        raise UserError(f"model.checkpoint_key={model.checkpoint_key} needs model.checkpoint=PATH")
    if model.checkpoint is not None:
        path = expanded(model.checkpoint)
        net, taken = _from_file(model, path)
        weights = f"checkpoint {path}"
    elif random:
        net, weights = build(model), f"random, seed {model.seed}"
    elif model.embedded:
        net, weights = _from_package(model), "ship with vitsee"
    else:
        net, weights, taken = _from_hub(model)
    _refuse_nonfinite(model, net)
    net = net.eval().requires_grad_(False).to(device)
    data = data_config(net)
    refuse_unrunnable(model, net, data["input_size"])
    return Loaded(
        name=name,
        label=f"{name} (random weights)" if random else name,
        # Channels last is how convolutions are computed fastest, on CPUs and on GPUs.
        net=net.to(memory_format=torch.channels_last),
        data=data,
        weights=weights,
        digest=digest(net.state_dict()),
        card=_card(model),
        taken=taken,
    )


def _card(model: Model) -> Card | None:
    if model.checkpoint is not None:
        return cards.beside(expanded(model.checkpoint))
    return cards.beside(shipped(model.name)) if model.embedded and model.pretrained else None


def shipped(name: str) -> Path:
    """Where the weights of a model that ships with vitsee are, or would be."""
    return EMBEDDED / f"{name}.safetensors"


def _from_package(model: Model) -> nn.Module:
    """The model with the weights that ship with vitsee. Raises UserError if they do not yet."""
    path = shipped(model.name)
    if not path.is_file():
        there = ", ".join(sorted(found.stem for found in EMBEDDED.glob("*.safetensors")))
        raise UserError(
            f"the weights of model={model.name} do not ship with vitsee yet (there are: {there}); train them: "
            f"scripts/zoo.sh {model.name}"
        )
    return _from_file(model, path)[0]


def build(model: Model, *, seed: int | None = None) -> nn.Module:
    """The architecture with random weights drawn with `seed` (default: the model's own), on the CPU."""
    import torch

    _refuse_huge(model)
    torch.manual_seed(model.seed if seed is None else seed)
    return _create(model)


def skeleton(model: Model) -> nn.Module:
    """The architecture on torch's meta device: shapes and names at no cost."""
    import torch

    with torch.device("meta"):
        return _create(model)


def _create(model: Model) -> nn.Module:
    """`timm.create_model` without weights, its errors in the user's words. Raises UserError."""
    _check_name(model)
    _check_options(model)
    try:
        net = _timm_model(model)
        data = data_config(net)
        _check_data(data, f"{model.timm}: its ")
        for key in ("mean", "std"):
            if len(data[key]) not in (1, 3, data["input_size"][0]):
                raise UserError(
                    f"model.overlay.{key} must have a number a channel, got {data[key]}"
                )
    except UserError:
        raise
    except Exception as error:
        if not _asked(model):
            raise
        raise UserError(
            f"{model.timm} cannot be made with {_asked(model)}: {_reason(error)}"
        ) from error
    _require_size(model, net)
    return net


def _asked(model: Model) -> str:
    """What the user changed in the architecture, as on the command line; nothing if nothing."""
    options = {
        "args": model.args,
        "pool": model.pool and model.pool.value,
        "remove_skip": model.remove_skip,
        "overlay": model.overlay,
    }
    changed = [f"model.{name}={value}" for name, value in options.items() if value]
    return " and ".join(changed or ["its config.json"] * (":" in model.timm))


def _reason(error: Exception) -> str:
    """What a library says, with the kind of the error where the words alone say little."""
    kind = "" if isinstance(error, (AssertionError, RuntimeError)) else f"{type(error).__name__}: "
    return f"{kind}{line(error)}"


def _refuse_huge(model: Model) -> None:
    """Raise UserError if the weights that were asked for do not fit into this machine's memory."""
    if not model.args:
        return
    try:
        net = skeleton(model)
    except UserError:
        return  # making it in earnest says so, if the skeleton is not all that cannot be made
    size = sum(tensor.nbytes for tensor in (*net.parameters(), *net.buffers()))
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if size > memory:
        raise UserError(
            f"{model.timm} with {_asked(model)} has {size / 2**30:,.0f} GiB of weights, and this machine "
            f"{memory / 2**30:,.0f} GiB of memory"
        )


def refuse_unrunnable(model: Model, net: nn.Module, size: tuple[int, int, int]) -> None:
    """Raise UserError if what the user changed makes a model that cannot be run on its images."""
    import torch

    if not _asked(model):
        return
    try:
        with torch.no_grad():
            net(torch.zeros(1, *size, device=next(net.parameters()).device))
    except Exception as error:
        shape = " x ".join(map(str, size))
        raise UserError(
            f"{model.timm} with {_asked(model)} cannot be run on images of {shape}: {_reason(error)}"
        ) from error


def _timm_model(model: Model, file: Path | None = None) -> nn.Module:
    """`timm.create_model` with the weights in `file`, or random ones."""
    import timm

    place = {} if file is None else {"file": str(file), "source": ""}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Initializing zero-element")  # an error says so later
        net = timm.create_model(
            model.timm,
            pretrained=file is not None,
            pretrained_cfg_overlay=model.overlay | place,
            **(POOLING[model.pool] if model.pool else {}),
            **model.args,
        )
    if model.remove_skip:
        from vitsee.skipless import remove_skips

        remove_skips(net, model.remove_skip)
    return net


def _check_options(model: Model) -> None:
    """Raise UserError for what is no option of timm, or no value for one."""
    from timm.models import PretrainedCfg

    given = [f"args.{key}" for key in model.args] + [f"overlay.{key}" for key in model.overlay]
    for option in given:
        if option in RESERVED:
            raise UserError(f"model.{option} is not passed on to timm: use {RESERVED[option]}")
    valid = [f.name for f in fields(PretrainedCfg)]
    for key in model.overlay:
        if key not in valid:
            raise unknown(f"there is no option model.overlay.{key}", key, valid, "timm has")
    _check_data(model.overlay, "model.overlay.")
    for option, channels in {
        "model.args.in_chans": model.args.get("in_chans", 3),
        "model.overlay.input_size[0]": model.overlay.get("input_size", [3])[0],
    }.items():
        if channels != 3:
            raise UserError(
                f"{option}={channels}: vitsee gives a model RGB images, so it must take 3 channels; leave the "
                f"option out, or set it to 3"
            )


def _require_size(model: Model, net: nn.Module) -> None:
    """Raise UserError if a size of images is asked for that is not the one that the model is built for."""
    asked = model.overlay.get("input_size")
    (_, *size) = data_config(net)["input_size"]
    if asked is not None and list(asked[1:]) != size:
        wanted, built = (n[0] if n[0] == n[1] else n for n in (list(asked[1:]), size))
        raise UserError(
            f"model.overlay.input_size={list(asked)}, but this {type(net).__name__} is built for images of "
            f"{size[0]} x {size[1]} pixels: build it with model.args.img_size={wanted} instead of {built}"
        )


def _check_data(data: Mapping[str, Any], lead: str) -> None:
    """Raise UserError for a data configuration that images cannot be prepared by."""
    for key, (fits, wanted) in DATA.items():
        if key in data and not fits(data[key]):
            raise UserError(f"{lead}{key} must be {wanted}, got {data[key]!r}")


def _numbers(value: object, fits: Callable[[float], bool], count: int | None = None) -> bool:
    """Whether it is a list of so many numbers that fit."""
    return (
        isinstance(value, (list, tuple))
        and (len(value) == count or (count is None and len(value) > 0))
        and all(_number(one) and fits(one) for one in value)
    )


def _number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _one_of(*choices: str) -> tuple[Callable[[Any], bool], str]:
    return lambda value: value in choices, f"one of {', '.join(choices)}"


DATA: dict[str, tuple[Callable[[Any], bool], str]] = {
    "input_size": (
        lambda value: _numbers(value, lambda side: side == int(side) and side > 0, 3),
        "three whole numbers, e.g. [3,224,224]",
    ),
    "mean": (
        lambda value: _numbers(value, lambda x: True),
        "a number a channel, e.g. [0.5,0.5,0.5]",
    ),
    "std": (
        lambda value: _numbers(value, lambda x: x > 0),
        "a number above 0 a channel, e.g. [0.5,0.5,0.5]",
    ),
    "crop_pct": (
        lambda value: _number(value) and 0 < value <= 2,
        "a number above 0 and at most 2, e.g. 0.9 (1.0: nothing is cut off)",
    ),
    "crop_mode": _one_of("center", "squash", "border"),
    "interpolation": _one_of("nearest", "bilinear", "bicubic", "box", "hamming", "lanczos"),
    "num_classes": (lambda value: isinstance(value, int) and value >= 0, "a whole number from 0"),
}
"""timm's data configuration: which values can be used, and how to ask for one."""


def _check_name(model: Model) -> None:
    """Raise UserError unless timm knows this architecture and this tag of weights."""
    import timm

    import vitsee.architectures  # noqa: F401  (registers more of them)

    name = model.timm
    if ":" in name:
        _check_source(model, *name.split(":", 1))
        return
    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture):
        hint = nearest(architecture, timm.list_models())
        raise UserError(
            f"timm has no model {architecture!r} (model.timm={name}).{hint} `python -c 'import timm; "
            f'print(timm.list_models("*vit*"))\'` lists names'
        )
    tags = [full.partition(".")[2] for full in timm.list_pretrained(f"{architecture}.*")]
    if tag and tag not in tags:
        raise unknown(f"timm has no weights {tag!r} of {architecture}", tag, tags, "there are")


def _check_source(model: Model, source: str, place: str) -> None:
    """Raise UserError unless the architecture is described there, on the hub or in a folder."""
    if source == "hf-hub":
        # timm would ask by itself, but retries for most of a minute without a network
        config = _fetch_from_hub(model, *_repository(model, place), "config.json")
    elif source == "local-dir":
        config = Path(place) / "config.json"
        if not config.is_file():
            raise UserError(f"model.timm={model.timm}: there is no {config}")
    else:
        raise unknown(
            f"model.timm={model.timm} is of an unknown source {source!r}",
            source,
            ["hf-hub", "local-dir"],
            "there are",
        )
    _check_config(config)


def _check_config(path: Path) -> None:
    """Raise UserError unless a config.json names an architecture that timm knows."""
    import timm

    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON: {line(error)}") from error
    named = config.get("architecture") if isinstance(config, dict) else None
    if not isinstance(named, str):
        raise UserError(f'{path} names no architecture of timm, e.g. "architecture": "resnet50"')
    name = named.partition(".")[0]
    if not timm.is_model(name):
        hint = nearest(name, timm.list_models())
        raise UserError(f"{path} names the architecture {name!r}, which timm does not have.{hint}")
    for key in ("pretrained_cfg", "model_args"):
        if not isinstance(config.get(key) or {}, dict):
            raise UserError(f"{path}: its {key} must be a mapping, got {config[key]!r}")


def _repository(model: Model, place: str) -> tuple[str, str | None]:
    """Name and revision of a repository of the hub. Raises UserError if it can be the name of none."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    name, at, revision = place.partition("@")
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise UserError(
            f"model={model.name}: {name!r} is no name of a repository of the Hugging Face hub; they are "
            f"written owner/name or owner/name@revision, with letters, digits and - _ . only"
        ) from error
    if at and (not re.fullmatch(r"[\w./-]+", revision) or ".." in revision):
        raise UserError(f"model={model.name}: {revision!r} is no revision; e.g. {name}@main")
    return name, revision or None


def data_config(net: nn.Module) -> dict[str, Any]:
    """How images are prepared for the model: timm's data configuration with the size it was built for."""
    from timm.data import resolve_model_data_config

    data = resolve_model_data_config(net)
    embedding = getattr(net, "patch_embed", None) or getattr(net, "stem", None)
    built_for = getattr(embedding, "img_size", None)
    if built_for:
        data["input_size"] = (data["input_size"][0], *built_for)
    return data


def digest(state: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, types, shapes and values of a state dict, as hex."""
    import torch

    total = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        values = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        total.update(values.numpy().data)
    return total.hexdigest()


def _refuse_nonfinite(model: Model, net: nn.Module) -> None:
    for name, tensor in net.state_dict().items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise UserError(f"the weights of {model.name} are damaged: {name} has NaN or Inf")


def _pretrained_cfg(net: nn.Module) -> dict[str, Any]:
    """timm's record of the model's published weights."""
    return vars(net)["pretrained_cfg"]


def published(model: Model) -> nn.Module:
    """The model with its published weights, on the CPU. Raises UserError if they cannot be had."""
    return _from_hub(model)[0]


def classifier_names(net: nn.Module) -> list[str]:
    """Names of the modules that turn features into logits; none if the model has no classifier."""
    there = dict(net.named_modules())
    return [
        name
        for name in classifiers(net)
        if name in there and any(True for _ in there[name].parameters())
    ]


def without_classifier(model: Model, path: Path) -> nn.Module:
    """The architecture with all weights of a file but those of its classifier, which are random.

    Raises UserError if the rest does not fit.
    """
    net = build(model)
    fill(net, path, model.checkpoint_key, keep=classifier_names(net))
    return net


def _from_hub(model: Model) -> tuple[nn.Module, str, Taken]:
    """The published weights, from a local folder or cache if they are there, else downloaded."""
    from timm.models._builder import _resolve_pretrained_source

    frame = skeleton(model)
    try:
        source, place = _resolve_pretrained_source(_pretrained_cfg(frame))
    except Exception as error:
        raise UserError(
            f"model.overlay={model.overlay}: no weights are found by it: {_reason(error)}"
        ) from error
    if not source:
        raise UserError(
            f"there are no published weights of {model.timm}; name a local file with "
            f"model.checkpoint=PATH, or use random weights with model.pretrained=false"
        )
    if source == "local-dir":
        path = _weights_in(Path(place))
        net, taken = _from_file(model, path)
        return net, f"{source} {path}", taken
    path = _fetch(model, source, place)
    try:
        net = _timm_model(model, path)
        taken = Taken(model.timm, resampled=resampled(net, path))
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"loading the weights of {model.timm} failed ({line(error)}); {_REMEDY}"
        ) from error
    if net.num_classes != _pretrained_cfg(net)["num_classes"]:
        log.warning("warning: the classifier of %s is random: num_classes was changed", model.name)
    taken.say()
    return net, f"{source} {place}", taken


def _weights_in(folder: Path) -> Path:
    """The file of weights that timm would load from a folder. Raises UserError unless there is one."""
    from timm.models._hub import _EXT_PRIORITY, _PREFERRED_FILES

    for name in _PREFERRED_FILES:
        if (folder / name).is_file():
            return folder / name
    for ending in _EXT_PRIORITY:
        found = sorted(folder.glob(f"*{ending}"))
        if len(found) == 1:
            return found[0]
        if found:
            raise UserError(
                f"{folder} has several files of weights ({few(p.name for p in found)}); choose one: "
                f"model.checkpoint={found[0]}"
            )
    raise UserError(
        f"{folder} has a config.json, but no weights ({', '.join(_PREFERRED_FILES)}); name a file with "
        f"model.checkpoint=PATH, or use random weights with model.pretrained=false"
    )


def _fetch(model: Model, source: str, place: Any) -> Path:
    """Local path of published weights, downloaded if they are not in the cache."""
    import torch
    from timm.models._hub import download_cached_file

    if source == "hf-hub":
        repository, name = place if isinstance(place, tuple) else (place, None)
        return _fetch_from_hub(model, *_repository(model, repository), name)
    if source == "file":
        return Path(place)
    cached = Path(torch.hub.get_dir()) / "checkpoints" / os.path.basename(place)
    if not cached.exists():
        require(place, f"model={model.name} ({model.timm})", _REMEDY)
    return Path(download_cached_file(place, progress=True))


def _fetch_from_hub(model: Model, repository: str, revision: str | None, name: str | None) -> Path:
    from huggingface_hub import constants, hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    wanted = [name] if name else ["model.safetensors", "pytorch_model.bin"]
    for file in wanted:
        cached = try_to_load_from_cache(repository, file, revision=revision)
        if isinstance(cached, str):
            return Path(cached)
    what = f"model={model.name} ({repository} of the Hugging Face hub)"
    if constants.HF_HUB_OFFLINE:
        raise UserError(
            f"{what} is not in {constants.HF_HUB_CACHE}, and HF_HUB_OFFLINE is set; {_REMEDY}"
        )
    require(constants.ENDPOINT, what, _REMEDY)
    for file in wanted:
        try:
            return Path(hf_hub_download(repository, file, revision=revision))
        except Exception as error:
            # the local one means that the hub gave no answer, not that the file does not exist
            absent = isinstance(error, EntryNotFoundError)
            if absent and not isinstance(error, LocalEntryNotFoundError):
                continue
            reason = " ".join(str(error).split())
            raise UserError(f"{what} could not be downloaded ({reason}); {_REMEDY}") from error
    raise UserError(f"{what} has none of {', '.join(wanted)}; {_REMEDY}")


def _from_file(model: Model, path: Path) -> tuple[nn.Module, Taken]:
    """The architecture with all of its weights from a local file, and nothing left random."""
    net = build(model)
    return net, fill(net, path, model.checkpoint_key)
