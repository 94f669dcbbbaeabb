"""torchvision's models, with its weights and their preprocessing."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitsee.errors import expanded, unknown
from vitsee.io.reachable import require
from vitsee.lazy import torch
from vitsee.models import preprocessing
from vitsee.models.fitting import fill
from vitsee.models.sources.found import Found, built
from vitsee.models.sources.tokens import say_tokens

if TYPE_CHECKING:
    from vitsee.options import ModelOptions

REMEDY = (
    "download them on a machine with network access and set TORCH_HOME to that cache, or use random weights with "
    "model.weights=none"
)


def names() -> list[str]:
    """Return the names of torchvision's image models."""
    from torchvision import models

    return models.list_models(module=models)


def load(model: ModelOptions, weights: bool = True) -> Found:
    """Return the model with the preprocessing of the chosen weights, or of the default weights if none are chosen.

    Raises UserError if torchvision does not have the model or the weights, or cannot download them.
    """
    from torchvision import models

    if model.id not in names():
        raise unknown(f"torchvision has no model {model.id!r}", str(model.id), names(), "it has")
    chosen = _weights(model)
    data = preprocessing.measured(chosen.transforms(), model.request)
    torch.manual_seed(model.seed)
    if model.random or model.checkpoint or not weights:
        more = {"init_weights": True} if model.id in ("googlenet", "inception_v3") else {}
        net = built(model, lambda: models.get_model(model.id, weights=None, **more | model.args))
        say_tokens(net, data["input_size"])
        if not model.checkpoint or not weights:
            return Found(net, data, f"random, seed {model.seed}")
        path = expanded(model.checkpoint)
        taken = fill(net, path, model.checkpoint_key)
        return Found(net, data, f"checkpoint {path}", taken=taken)
    cached = Path(torch.hub.get_dir()) / "checkpoints" / Path(chosen.url).name
    if not cached.exists():
        require(chosen.url, f"{model.request} model.weights={model.weights}", REMEDY)
    net = built(model, lambda: models.get_model(model.id, weights=chosen, **model.args))
    say_tokens(net, data["input_size"])
    return Found(net, data, f"torchvision {chosen}")


def _weights(model: ModelOptions) -> Any:
    """Return the requested weights; the default ones for a model with random weights."""
    from torchvision import models

    there = models.get_model_weights(model.id)
    asked = model.weights or "DEFAULT"
    if model.random or asked.upper() == "DEFAULT":
        return there.DEFAULT
    if asked not in there.__members__:
        valid = ["none", *there.__members__]
        problem = f"torchvision has no weights {asked!r} for {model.id}"
        raise unknown(problem, asked, valid, "model.weights can be")
    return there[asked]
