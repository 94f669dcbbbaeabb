"""timm models with their weights: from a local file, random, embedded, or from the hub."""

from __future__ import annotations

import hashlib
import inspect
import logging
import os
import re
import sys
import traceback
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitsee import cards
from vitsee.cards import Card
from vitsee.config import Model, Pool
from vitsee.errors import UserError, nearest, unknown
from vitsee.network import require

if TYPE_CHECKING:
    import torch
    from numpy.lib.npyio import NpzFile
    from torch import Tensor, nn

log = logging.getLogger(__name__)

EMBEDDED = Path(__file__).parent / "weights"
ENDINGS = (".safetensors", ".pt", ".pth", ".bin", ".npz")
POOLING: dict[Pool, dict[str, Any]] = {
    Pool.cls: {"class_token": True, "global_pool": "token"},
    Pool.gap: {"class_token": False, "global_pool": "avg", "fc_norm": False},
}
"""Arguments of timm's ViTs; as in the authors' code, the mean is taken after the last norm."""
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
    they were trained, if a model card lies beside them.
    """

    name: str
    label: str
    net: nn.Module
    data: dict[str, Any]
    weights: str
    digest: str
    card: Card | None


def load(model: Model, device: str | torch.device) -> Loaded:
    """The model with its weights. Raises UserError if they cannot be had exactly as asked for."""
    import torch

    random = not model.pretrained and model.checkpoint is None
    if model.checkpoint is not None:
        net, weights = _from_file(model, Path(model.checkpoint).expanduser())
    elif random:
        net, weights = build(model), f"random, seed {model.seed}"
    elif model.embedded:
        net, weights = _from_package(model), "ship with vitsee"
    else:
        net, weights = _from_hub(model)
    _refuse_nonfinite(model, net)
    net = net.eval().requires_grad_(False).to(device)
    return Loaded(
        name=model.name,
        label=f"{model.name} (random weights)" if random else model.name,
        # Channels last is how convolutions are computed fastest, on CPUs and on GPUs.
        net=net.to(memory_format=torch.channels_last),
        data=data_config(net),
        weights=weights,
        digest=digest(net.state_dict()),
        card=_card(model),
    )


def _card(model: Model) -> Card | None:
    if model.checkpoint is not None:
        return cards.beside(Path(model.checkpoint).expanduser())
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
    _check_overlay(model)
    try:
        return _timm_model(model)
    except UserError:
        raise
    except (TypeError, ValueError, AssertionError, RuntimeError) as error:
        pool = f" and model.pool={model.pool.value}" if model.pool else ""
        raise UserError(
            f"{model.timm} cannot be made with model.args={model.args}{pool}: {_line(error)}"
        ) from error


def _timm_model(model: Model, file: Path | None = None) -> nn.Module:
    """`timm.create_model` with the weights in `file`, or random ones."""
    import timm

    place = {} if file is None else {"file": str(file), "source": ""}
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


def _check_overlay(model: Model) -> None:
    from timm.models import PretrainedCfg

    valid = [f.name for f in fields(PretrainedCfg)]
    for key in model.overlay:
        if key not in valid:
            raise unknown(f"there is no option model.overlay.{key}", key, valid, "timm has")


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
    from timm.models._hub import hf_split

    if source == "hf-hub":
        # timm would ask by itself, but retries for most of a minute without a network
        repository, revision = hf_split(place)
        _fetch_from_hub(model, repository, revision, "config.json")
    elif source != "local-dir":
        raise unknown(
            f"model.timm={model.timm} is of an unknown source {source!r}",
            source,
            ["hf-hub", "local-dir"],
            "there are",
        )
    elif not (Path(place) / "config.json").is_file():
        raise UserError(f"model.timm={model.timm}: there is no {place}/config.json")


def data_config(net: nn.Module) -> dict[str, Any]:
    """How images are prepared for the model: timm's data configuration with the size it was built for."""
    from timm.data import resolve_model_data_config

    data = resolve_model_data_config(net)
    built_for = getattr(getattr(net, "patch_embed", None), "img_size", None)
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
    named = _pretrained_cfg(net).get("classifier") or ()
    names = [named] if isinstance(named, str) else list(named)
    return [name for name in names if any(True for _ in net.get_submodule(name).parameters())]


def without_classifier(model: Model, path: Path) -> nn.Module:
    """The architecture with all weights of a file but those of its classifier, which are random.

    Raises UserError if the rest does not fit.
    """
    net = build(model)
    _require_file(path)
    state = dict(_converted(net, _read(path), path))
    own = net.state_dict()
    for name in classifier_names(net):
        state = {key: value for key, value in state.items() if not key.startswith(f"{name}.")}
        state |= {key: value for key, value in own.items() if key.startswith(f"{name}.")}
    _load_all(net, state, path)
    return net


def _from_hub(model: Model) -> tuple[nn.Module, str]:
    """The published weights, from the local cache if they are there, else downloaded."""
    from timm.models._builder import _resolve_pretrained_source

    source, place = _resolve_pretrained_source(_pretrained_cfg(skeleton(model)))
    if not source:
        raise UserError(
            f"there are no published weights of {model.timm}; name a local file with "
            f"model.checkpoint=PATH, or use random weights with model.pretrained=false"
        )
    try:
        net = _timm_model(model, _fetch(model, source, place))
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"loading the weights of {model.timm} failed ({_line(error)}); {_REMEDY}"
        ) from error
    if net.num_classes != _pretrained_cfg(net)["num_classes"]:
        log.warning("warning: the classifier of %s is random: num_classes was changed", model.name)
    return net, f"{source} {place}"


def _fetch(model: Model, source: str, place: Any) -> Path:
    """Local path of published weights, downloaded if they are not in the cache."""
    import torch
    from timm.models._hub import download_cached_file, hf_split

    if source == "hf-hub":
        repository, name = place if isinstance(place, tuple) else (place, None)
        repository, revision = hf_split(repository)
        return _fetch_from_hub(model, repository, revision, name)
    if source in ("file", "local-dir"):
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


def _from_file(model: Model, path: Path) -> tuple[nn.Module, str]:
    """The architecture with all of its weights from a local file, and nothing left random."""
    _require_file(path)
    net = build(model)
    if path.suffix == ".npz":
        _load_npz(net, path)
    else:
        _load_all(net, _converted(net, _read(path), path), path)
    return net, f"checkpoint {path}"


def _require_file(path: Path) -> None:
    """Raise UserError unless this is a file that may be read as a checkpoint."""
    if not path.is_file():
        beside = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        raise UserError(f"there is no checkpoint {path}.{nearest(path.name, beside)}")
    if path.suffix not in ENDINGS:
        raise UserError(
            f"checkpoint {path} is of an unknown kind; these are read: {', '.join(ENDINGS)}"
        )
    _refuse_bomb(path)


def _refuse_bomb(path: Path) -> None:
    """Raise UserError if a small archive would fill the memory; weights can hardly be compressed."""
    try:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return  # not an archive, or a damaged one: whoever reads it says so
    if unpacked > max(2**30, 100 * path.stat().st_size):
        raise UserError(
            f"checkpoint {path} was refused: its {path.stat().st_size:,} bytes would unpack to "
            f"{unpacked:,}, which weights do not"
        )


def _load_npz(net: nn.Module, path: Path) -> None:
    """Weights as the ViT authors published them, read by timm."""
    load_pretrained = getattr(net, "load_pretrained", None)
    if load_pretrained is None:
        raise UserError(
            f"{path}: timm reads .npz files for ViT, hybrids and BiT, not {type(net).__name__}"
        )
    if not zipfile.is_zipfile(path):
        raise UserError(f"checkpoint {path} is damaged: it is not a whole .npz archive")
    import numpy as np
    import torch

    with torch.no_grad():
        for parameter in net.parameters():
            parameter.fill_(torch.nan)  # timm passes over what does not fit: so it can be seen
    try:
        load_pretrained(str(path))
        with np.load(path) as archive:
            _refuse_partial_npz(net, archive, path)
    except UserError:
        raise
    except Exception as error:
        traceback.clear_frames(error.__traceback__)  # timm's would keep the file open
        raise UserError(
            f"{path} is not a checkpoint of {type(net).__name__}: {_line(error)}"
        ) from error


def _refuse_partial_npz(net: nn.Module, archive: NpzFile, path: Path) -> None:
    """Raise UserError if a parameter was left out, or a block of the file; warn of resampling."""
    left = [name for name, value in net.named_parameters() if value.isnan().all()]
    if left:
        raise UserError(
            f"{path} does not fit the model: it has nothing for {len(left)} parameters "
            f"({_few(left)}).{_npz_remedy(net, archive)}"
        )
    stored, own = _blocks_stored(archive), _blocks_of(net)
    if stored != own:
        raise UserError(f"{path} does not fit the model: it has {stored} blocks instead of {own}")
    resampled = list(_resampled(net, archive))
    if resampled:
        log.warning(
            "warning: %s was resampled to another shape: %s", path.name, ", ".join(resampled)
        )


def _resampled(net: nn.Module, archive: NpzFile) -> Iterator[str]:
    """What timm brought to the model's resolution or patch size."""
    positions = getattr(net, "pos_embed", None)
    projection = getattr(getattr(net, "patch_embed", None), "proj", None)
    for key in archive.files:
        if key.endswith("pos_embedding") and positions is not None:
            own = positions.shape
        elif key.endswith("embedding/kernel") and projection is not None:
            own = projection.weight.permute(2, 3, 1, 0).shape
        else:
            continue
        if archive[key].shape != own:
            yield key


def _blocks_stored(archive: NpzFile) -> int:
    """Blocks of a transformer, of a ResNet, or of both (hybrids)."""
    stacked = [k for k in archive.files if k.endswith("encoderblock/LayerNorm_0/scale")]
    if stacked:
        return len(archive[stacked[0]])
    found = (re.search(r"encoderblock_\d+/|block\d+/unit\d+/", k) for k in archive)
    return len({match.group() for match in found if match})


def _blocks_of(net: nn.Module) -> int:
    backbone = getattr(getattr(net, "patch_embed", None), "backbone", net)
    stages = getattr(backbone, "stages", ())
    return len(getattr(net, "blocks", ())) + sum(len(stage.blocks) for stage in stages)


def _npz_remedy(net: nn.Module, archive: NpzFile) -> str:
    biases = [k for k in archive.files if k.endswith(("head/bias", "head/conv2d/bias"))]
    if not biases:
        return " If it has no classifier: model.args={num_classes: 0}"
    classes = archive[biases[0]].shape[-1]
    if classes != getattr(net, "num_classes", classes):
        return f" If it is of other classes: model.args={{num_classes: {classes}}}"
    return " Choose the architecture that it was made with: model.timm=NAME"


def _read(path: Path) -> dict[str, Tensor]:
    """The state dict in a file, without running any code in it. Raises UserError."""
    from safetensors import SafetensorError
    from timm.models import load_state_dict

    try:
        state = load_state_dict(str(path))
    except SafetensorError as error:
        raise UserError(f"checkpoint {path} is damaged: {error}") from error
    except Exception as error:
        cause = f"{error} {error.__cause__ or ''}"
        if "GLOBAL" in cause or "Unsupported" in cause:
            raise UserError(
                f"checkpoint {path} was refused: it holds objects that could run code "
                f"({_line(error.__cause__ or error)}); save its state dict alone, best as .safetensors"
            ) from error
        raise UserError(f"checkpoint {path} is damaged or no checkpoint: {_line(error)}") from error
    import torch

    tensors = {name: value for name, value in state.items() if isinstance(value, torch.Tensor)}
    if not tensors:
        raise UserError(
            f"checkpoint {path} holds no tensors; its keys: {', '.join(list(state)[:5])}"
        )
    return tensors


def _converted(net: nn.Module, state: dict[str, Tensor], path: Path) -> Mapping[str, Tensor]:
    """The state dict after the architecture's own conversion in timm (other layouts, other resolutions)."""
    convert = getattr(sys.modules[type(net).__module__], "checkpoint_filter_fn", None)
    if convert is None:
        return state
    before = {name: tensor.shape for name, tensor in state.items()}
    try:
        few = len(inspect.signature(convert).parameters) == 1
        converted = convert(dict(state)) if few else convert(dict(state), net)
    except Exception as error:
        raise UserError(
            f"checkpoint {path} does not fit {type(net).__name__}: timm's conversion failed: {_line(error)}"
        ) from error
    resized = [n for n, t in converted.items() if n in before and before[n] != t.shape]
    if resized:
        log.warning("warning: %s was resampled to another shape: %s", path.name, ", ".join(resized))
    return converted


def _load_all(net: nn.Module, state: Mapping[str, Tensor], path: Path) -> None:
    """Load every weight, or raise UserError that says which keys do not fit."""
    own = net.state_dict()
    problems = {
        "missing": [name for name in own if name not in state],
        "unexpected": [name for name in state if name not in own],
        "of another shape": [
            f"{name} {tuple(state[name].shape)} instead of {tuple(own[name].shape)}"
            for name in own
            if name in state and state[name].shape != own[name].shape
        ],
    }
    found = [f"{len(keys)} {kind} ({_few(keys)})" for kind, keys in problems.items() if keys]
    if found:
        raise UserError(
            f"checkpoint {path} does not fit the model: {'; '.join(found)}.{_remedy(net, state)}"
        )
    net.load_state_dict(state)


def _remedy(net: nn.Module, state: Mapping[str, Tensor]) -> str:
    """What to set if only the classifier differs."""
    classifier = str(getattr(net, "default_cfg", {}).get("classifier", "head"))
    missing = [name for name in net.state_dict() if name not in state]
    if missing and all(name.startswith(f"{classifier}.") for name in missing):
        return " If it has no classifier: model.args={num_classes: 0}"
    weight = state.get(f"{classifier}.weight")
    if not missing and weight is not None and len(weight) != getattr(net, "num_classes", None):
        return f" If it is of other classes: model.args={{num_classes: {len(weight)}}}"
    return " Choose the architecture that it was made with: model.timm=NAME"


def _few(keys: list[str]) -> str:
    return ", ".join(keys[:3]) + (", …" if len(keys) > 3 else "")


def _line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
