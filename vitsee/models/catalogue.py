"""The models that libraries offer, with the weights available for each."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from vitsee.lazy import timm
from vitsee.models.sources.found import missing

Row = tuple[str, str]
"""The name of a model and its weights."""


def _timm() -> list[Row]:
    rows: dict[str, list[str]] = {name: [] for name in timm.list_models()}
    for full in timm.list_pretrained():
        name, _, tag = full.partition(".")
        rows[name].append(tag)
    return [(name, _listed(tags)) for name, tags in rows.items()]


def _torchvision() -> list[Row]:
    from torchvision import models

    from vitsee.models.sources.torchvision import names

    return [(name, _listed(models.get_model_weights(name).__members__)) for name in names()]


def _open_clip() -> list[Row]:
    try:
        import open_clip
    except ImportError:
        raise missing("open_clip", "open_clip_torch") from None
    tags = open_clip.list_pretrained_tags_by_model
    return [(name, _listed(tags(name))) for name in sorted(open_clip.list_models())]


def _transformers() -> list[Row]:
    try:
        from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_MAPPING_NAMES
    except ImportError:
        raise missing("transformers", "transformers") from None
    return [
        (kind, f"a folder or repository of the hub saved from {name}, or from its image classifier")
        for kind, name in sorted(MODEL_FOR_IMAGE_MAPPING_NAMES.items())
    ]


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names) or "none: random ones"


LIBRARIES: dict[str, Callable[[], list[Row]]] = {
    "timm": _timm,
    "torchvision": _torchvision,
    "open_clip": _open_clip,
    "transformers": _transformers,
}
