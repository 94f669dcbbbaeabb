"""Finds published weights in a cache or a folder, or downloads them."""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from vitsee.errors import UserError, nearest, unknown
from vitsee.io.fetching import has, megabytes
from vitsee.io.reachable import require
from vitsee.lazy import timm, torch
from vitsee.models.weight_files import few, line
from vitsee.options import ModelOptions

log = logging.getLogger(__name__)

T = TypeVar("T")

LARGE = 2**20
"""Smallest size in bytes of a download that is announced."""

REMEDY = (
    "download it on a machine with network access and set HF_HUB_CACHE to that cache, or name a local file with "
    "model.checkpoint=PATH, or use random weights with model.pretrained=false"
)


def cached_first(load: Callable[[bool], T], what: str, remedy: str) -> T:
    """Return what `load` loads from its library's cache (True), or else from the Hugging Face hub (False).

    Without a network the libraries themselves would keep retrying. Raises UserError (what, why, remedy).
    """
    from huggingface_hub import constants

    with suppress(OSError):
        return load(True)
    if constants.HF_HUB_OFFLINE:
        raise UserError(
            f"{what} is not in {constants.HF_HUB_CACHE}, and HF_HUB_OFFLINE is set; {remedy}"
        )
    require(constants.ENDPOINT, what, remedy)
    try:
        return load(False)
    except OSError as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{what} could not be downloaded ({reason}); {remedy}") from error


def check_source(model: ModelOptions, source: str, place: str) -> None:
    """Raise UserError unless a config.json on the hub or in a folder describes the architecture."""
    if source == "hf-hub":
        # timm would fetch it itself, but without a network it keeps retrying for most of a minute
        config = fetch_from_hub(model, *repository(model, place), "config.json")
    elif source == "local-dir":
        config = Path(place) / "config.json"
        if not config.is_file():
            raise UserError(f"model.timm={model.timm}: there is no {config}")
    else:
        raise unknown(
            f"model.timm={model.timm} has an unknown source {source!r}",
            source,
            ["hf-hub", "local-dir"],
            "available",
        )
    _check_config(config)


def _check_config(path: Path) -> None:
    """Raise UserError unless a config.json names an architecture that timm knows."""
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON: {line(error)}") from error
    named = config.get("architecture") if isinstance(config, dict) else None
    if not isinstance(named, str):
        raise UserError(
            f'{path} does not name an architecture of timm, e.g. "architecture": "resnet50"'
        )
    name = named.partition(".")[0]
    if not timm.is_model(name):
        hint = nearest(name, timm.list_models())
        raise UserError(f"{path} names the architecture {name!r}, which timm does not have.{hint}")
    for key in ("pretrained_cfg", "model_args"):
        if not isinstance(config.get(key) or {}, dict):
            raise UserError(f"{path}: its {key} must be a mapping, got {config[key]!r}")


def repository(model: ModelOptions, place: str) -> tuple[str, str | None]:
    """Return the name and revision of a hub repository. Raises UserError if the name is not valid."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    name, at, revision = place.partition("@")
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise UserError(
            f"model={model.name}: {name!r} is not a valid repository name of the Hugging Face hub; write "
            f"owner/name or owner/name@revision, with letters, digits and - _ . only"
        ) from error
    if at and (not re.fullmatch(r"[\w./-]+", revision) or ".." in revision):
        raise UserError(
            f"model={model.name}: {revision!r} is not a valid revision; e.g. {name}@main"
        )
    return name, revision or None


def weights_in(folder: Path) -> Path:
    """Return the weight file that timm would load from a folder. Raises UserError unless there is exactly one."""
    # Private, but nothing else says which files timm reads, and in which order.
    from timm.models._hub import _EXT_PRIORITY, _PREFERRED_FILES

    for name in _PREFERRED_FILES:
        if (folder / name).is_file():
            return folder / name
    for ending in _EXT_PRIORITY:
        files = sorted(folder.glob(f"*{ending}"))
        if len(files) == 1:
            return files[0]
        if files:
            raise UserError(
                f"{folder} has several weight files ({few(p.name for p in files)}); choose one: "
                f"model.checkpoint={files[0]}"
            )
    raise UserError(
        f"{folder} has a config.json but no weights ({', '.join(_PREFERRED_FILES)}); name a file with "
        f"model.checkpoint=PATH, or use random weights with model.pretrained=false"
    )


def fetched(model: ModelOptions, source: str, place: Any) -> Path:
    """Return the local path of published weights, downloading them if they are not cached."""
    if source == "hf-hub":
        named, name = place if isinstance(place, tuple) else (place, None)
        names = (name,) if name else ("model.safetensors", "pytorch_model.bin")
        return fetch_from_hub(model, *repository(model, named), *names)
    if source == "file":
        return Path(place)
    cached = Path(torch.hub.get_dir()) / "checkpoints" / os.path.basename(place)
    if not cached.exists():
        what = f"model={model.name} ({model.timm})"
        require(place, what, REMEDY)
        cached.parent.mkdir(parents=True, exist_ok=True)
        digest = torch.hub.HASH_REGEX.search(cached.name)
        try:
            torch.hub.download_url_to_file(place, str(cached), digest and digest.group(1))
        except Exception as error:
            reason = " ".join(str(error).split())
            raise UserError(f"{what} could not be downloaded ({reason}); {REMEDY}") from error
    return cached


def fetch_from_hub(
    model: ModelOptions, place: str, revision: str | None, *names: str, remedy: str = REMEDY
) -> Path:
    """Return the local path of the first of these files in a repository, downloading it if it is not cached."""
    from huggingface_hub import constants, try_to_load_from_cache
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    for file in names:
        cached = try_to_load_from_cache(place, file, revision=revision)
        if isinstance(cached, str):
            return Path(cached)
    what = f"model={model.name} ({place} of the Hugging Face hub)"
    if constants.HF_HUB_OFFLINE:
        raise UserError(
            f"{what} is not in {constants.HF_HUB_CACHE}, and HF_HUB_OFFLINE is set; {remedy}"
        )
    require(constants.ENDPOINT, what, remedy)
    for file in names:
        try:
            return _download(place, file, revision, what)
        except Exception as error:
            # LocalEntryNotFoundError means that the hub did not answer, not that the file does not exist
            absent = isinstance(error, EntryNotFoundError)
            if absent and not isinstance(error, LocalEntryNotFoundError):
                continue
            reason = " ".join(str(error).split())
            raise UserError(f"{what} could not be downloaded ({reason}); {remedy}") from error
    raise UserError(f"{what} does not contain {' or '.join(names)}; {remedy}")


def _download(place: str, file: str, revision: str | None, what: str) -> Path:
    """Download a file, or its missing part, into the hub's cache. Raises OSError if it is damaged."""
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_download, hf_hub_url

    expected = get_hf_file_metadata(hf_hub_url(place, file, revision=revision))
    size, cache = expected.size or 0, constants.HF_HUB_CACHE
    if size > LARGE:
        log.info("%s: downloading %s into %s, once", what, megabytes(size), cache)
    path = Path(hf_hub_download(place, file, revision=revision))
    digest = expected.etag or ""
    known = re.fullmatch("[0-9a-f]{64}", digest)  # a large file's; a small file has git's digest
    if known and not has(path, "sha256", digest):
        path.resolve().unlink()
        raise OSError(f"{file} was damaged in transit and removed: repeat the command")
    return path
