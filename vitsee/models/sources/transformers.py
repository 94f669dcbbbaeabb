"""Image models of Hugging Face transformers, with their image processors."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitsee.errors import UserError, expanded
from vitsee.lazy import torch
from vitsee.models import preprocessing
from vitsee.models.hub import cached_first, repository
from vitsee.models.sources.found import Found, built, missing
from vitsee.models.sources.tokens import say_tokens
from vitsee.models.weight_files import few

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor, nn

    from vitsee.options import ModelOptions

REMEDY = (
    "download it on a machine with network access and set HF_HUB_CACHE to that cache, or name a folder: "
    "model.id=/a/folder"
)


@dataclass(frozen=True)
class Processed:
    """A model's image processor, as a transform of a single image."""

    processor: Any

    def __call__(self, image: Image.Image) -> Tensor:
        return self.processor(images=image, return_tensors="pt")["pixel_values"][0]

    def __repr__(self) -> str:
        return " ".join(repr(self.processor).split())


def load(model: ModelOptions, weights: bool = True) -> Found:
    """Return the model as it was saved, or its image tower if it is for images and text.

    Weights in half precision become float32. Raises UserError if it is not available, does not take images, or
    lacks weights.
    """
    try:
        import transformers
    except ImportError:
        raise missing("transformers", "transformers") from None
    place, revision = _place(model)
    with _quietly(transformers):
        config = _from(transformers.AutoConfig, model, place, revision)
        kind, config = _class(model, transformers, config)
        for key in model.args:
            if not hasattr(config, key):
                raise UserError(
                    f"{model.request}: its {type(config).__name__} has no setting {key}"
                )
        config.update(model.args)
        processor = _processor(model, transformers, place, revision)
        if model.random or not weights:
            torch.manual_seed(model.seed)
            net, source = built(model, lambda: kind(config)), f"random, seed {model.seed}"
        else:
            net, source = (
                _with_weights(model, kind, config, place, revision),
                f"transformers {place}",
            )
    data = preprocessing.measured(Processed(processor), model.request)
    if "interpolate_pos_encoding" in signature(net.forward).parameters:
        net.register_forward_pre_hook(_Resize(tuple(data["input_size"][1:])), with_kwargs=True)
    say_tokens(net, data["input_size"])
    settings = config.to_json_string(use_diff=False)
    return Found(net, data, source, made_of=[settings])


def _place(model: ModelOptions) -> tuple[str, str | None]:
    """Return the folder, or the repository and its revision."""
    named = str(model.id)
    folder = expanded(named)
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise UserError(
                f"{model.request}: there is no config.json in it; save_pretrained writes such folders"
            )
        return str(folder), None
    if named.startswith(("/", ".", "~")):
        raise UserError(f"{model.request}: there is no such folder")
    return repository(model, named)


def _from(
    loader: Any, model: ModelOptions, place: str, revision: str | None, **options: Any
) -> Any:
    """Return what a transformers class loads from a folder or the hub."""
    if Path(place).is_dir():
        return built(model, lambda: loader.from_pretrained(place, local_files_only=True, **options))
    return built(
        model,
        lambda: cached_first(
            lambda cached: loader.from_pretrained(
                place, revision=revision or "main", local_files_only=cached, **options
            ),
            model.request,
            REMEDY,
        ),
    )


def _class(model: ModelOptions, transformers: Any, config: Any) -> tuple[Any, Any]:
    """Return the model's class and configuration, or its image tower's if the model also reads text.

    Raises UserError if it does not take images.
    """
    tower = getattr(config, "vision_config", None)
    if tower is not None:
        kind, config = transformers.MODEL_MAPPING.get(type(tower), None), tower
    else:
        saved = (config.architectures or [""])[0]
        kind = getattr(transformers, saved, None) or transformers.MODEL_MAPPING.get(
            type(config), None
        )
    if kind is None or kind.main_input_name != "pixel_values":
        raise UserError(
            f"{model.request} is a {type(config).__name__}, which transformers does not list as an image model; use "
            f"a ViT, DINOv2, BEiT, Swin or ConvNeXt, the image tower of a CLIP or SigLIP, or similar"
        )
    return kind, config


def _processor(model: ModelOptions, transformers: Any, place: str, revision: str | None) -> Any:
    """Return the image processor. Raises UserError if there is none."""
    try:
        return _from(transformers.AutoImageProcessor, model, place, revision)
    except UserError as error:
        raise UserError(
            f"{model.request}: how its images are preprocessed is unknown, because there is no "
            f"preprocessor_config.json that transformers can read ({error.__cause__}); save one there: "
            f"transformers.ViTImageProcessor(…).save_pretrained(FOLDER)"
        ) from error


def _with_weights(
    model: ModelOptions, kind: Any, config: Any, place: str, revision: str | None
) -> nn.Module:
    """Return the model with the weights of the folder or repository. Raises UserError if some are missing."""
    options = {"config": config, "dtype": torch.float32, "output_loading_info": True}
    net, info = _from(kind, model, place, revision, **options)
    lacking = sorted(info["missing_keys"]) + sorted(str(key) for key in info["mismatched_keys"])
    optional = "add_pooling_layer" in signature(kind.__init__).parameters
    if lacking and optional and all(name.startswith("pooler.") for name in lacking):
        # many models were saved without it and run without it
        net, _ = _from(kind, model, place, revision, **options, add_pooling_layer=False)
        lacking = []
    if lacking:
        raise UserError(
            f"{model.request} lacks weights of its {kind.__name__}, which would be random: {few(lacking)}"
        )
    return net


class _Resize:
    """A hook that makes a model interpolate its position embeddings for images of a different size than its own."""

    def __init__(self, size: tuple[int, ...]) -> None:
        self.size = size

    def __call__(self, net: nn.Module, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
        own = tuple(args[0].shape[-2:]) == self.size
        return args, options if own else options | {"interpolate_pos_encoding": True}


@contextmanager
def _quietly(transformers: Any) -> Iterator[None]:
    """Run the block with transformers' logs and progress bars off: vitsee checks and reports what matters."""
    said, shown = (
        transformers.logging.get_verbosity(),
        transformers.logging.is_progress_bar_enabled(),
    )
    transformers.logging.set_verbosity(logging.CRITICAL)
    transformers.logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        transformers.logging.set_verbosity(said)
        if shown:
            transformers.logging.enable_progress_bar()
