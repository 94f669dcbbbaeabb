"""The image towers of open_clip's models, with their preprocessing."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitsee.errors import UserError, expanded, unknown
from vitsee.io.reachable import require
from vitsee.lazy import torch
from vitsee.models import preprocessing
from vitsee.models.hub import fetch_from_hub, repository
from vitsee.models.sources.found import Found, built, missing
from vitsee.models.sources.tokens import say_tokens

if TYPE_CHECKING:
    from vitsee.options import ModelOptions

REMEDY = (
    "download them on a machine with network access and set HF_HUB_CACHE to that cache, name a file with "
    "model.weights=PATH, or use random weights with model.weights=none"
)
CONFIG = "open_clip_config.json"
FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
HUB, FOLDER = "hf-hub:", "local-dir:"


def load(model: ModelOptions, weights: bool = True) -> Found:
    """Return the image tower with the preprocessing of its weights.

    Raises UserError if open_clip does not have the model or the weights, or cannot download them.
    """
    try:
        import open_clip
    except ImportError:
        raise missing("open_clip", "open_clip_torch") from None
    drawn = model.random or not weights
    name = _name(model, open_clip, drawn)
    options = {} if name.startswith(FOLDER) else _weights(model, open_clip, name, drawn)
    torch.manual_seed(model.seed)
    said = logging.root.level
    logging.root.setLevel(
        logging.CRITICAL
    )  # open_clip logs there; vitsee checks and reports what matters
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            whole, _, transform = built(
                model,
                lambda: open_clip.create_model_and_transforms(
                    name, load_weights=not drawn, pretrained_text=False, **options
                ),
            )
    finally:
        logging.root.setLevel(said)
    net = whole.visual
    data = preprocessing.measured(transform, model.request)
    say_tokens(net, data["input_size"])
    source = f"open_clip {model.weights or model.id}"
    return Found(net, data, f"random, seed {model.seed}" if drawn else source)


def _name(model: ModelOptions, open_clip: Any, drawn: bool) -> str:
    """Return the name of an architecture, or local-dir:FOLDER. Raises UserError if there is none."""
    named = str(model.id)
    if named.startswith(HUB):
        place, revision = repository(model, named.removeprefix(HUB))
        config = fetch_from_hub(model, place, revision, CONFIG, remedy=REMEDY)
        if not drawn:
            fetch_from_hub(model, place, revision, *FILES, remedy=REMEDY)
        return f"{FOLDER}{config.parent}"
    folder = expanded(named.removeprefix(FOLDER))
    if named.startswith(FOLDER) or folder.is_dir():
        if not (folder / CONFIG).is_file():
            raise UserError(f"{model.request}: there is no {CONFIG} in {folder}")
        if model.weights and not model.random:
            raise UserError(
                f"{model.request} model.weights={model.weights}: a folder has its own weights; leave this option out, "
                f"or use model.weights=none"
            )
        endings = (".safetensors", ".bin", ".pth")
        if not drawn and not any(path.suffix in endings for path in folder.iterdir()):
            raise UserError(
                f"{model.request}: there are no weights in {folder}, e.g. open_clip_model.safetensors; use random "
                f"weights with model.weights=none"
            )
        return f"{FOLDER}{folder}"
    if named not in open_clip.list_models():
        raise unknown(f"open_clip has no model {named!r}", named, open_clip.list_models(), "it has")
    return named


def _weights(model: ModelOptions, open_clip: Any, name: str, drawn: bool) -> dict[str, Any]:
    """Return the options of `create_model_and_transforms` for the weights and their preprocessing."""
    if drawn:
        return {}
    tags = open_clip.list_pretrained_tags_by_model(name)
    there = f"available: {', '.join(tags) or 'none'}; or a file, or none (random weights)"
    if not model.weights:
        raise UserError(f"{model.request} needs model.weights=TAG; {there}")
    file = expanded(model.weights)
    if file.is_file():
        return {"pretrained": str(file)}
    if model.weights not in tags:
        asked = f"{model.request} has no model.weights={model.weights}"
        raise unknown(asked, model.weights, [*tags, "none"], "it can be a file, or")
    config = open_clip.get_pretrained_cfg(name, model.weights)
    return {
        "pretrained": str(_file(model, open_clip, config)),
        # open_clip itself only warns if the weights were trained with a different GELU than the model's
        "force_quick_gelu": config.get("quick_gelu", False),
        "image_mean": config.get("mean"),
        "image_std": config.get("std"),
        "image_interpolation": config.get("interpolation"),
        "image_resize_mode": config.get("resize_mode"),
    }


def _file(model: ModelOptions, open_clip: Any, config: dict[str, Any]) -> Path:
    """Return the file of published weights, from the cache or downloaded."""
    if config.get("hf_hub"):
        place, _, name = config["hf_hub"].rpartition("/")
        return fetch_from_hub(model, place, None, *((name,) if name else FILES), remedy=REMEDY)
    cached = Path("~/.cache/clip").expanduser() / Path(config["url"]).name
    if not cached.exists():
        require(config["url"], f"{model.request} model.weights={model.weights}", REMEDY)
    return Path(open_clip.download_pretrained(config))
