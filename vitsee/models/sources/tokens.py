"""The tokens of networks that are not timm's, measured, and said as timm's own networks say them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING

from vitsee.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor, nn

_CLASS = re.compile(r"(.*\.)?(cls|class)_(token|embedding)s?")
_POSITIONS = re.compile(r"(.*\.)?pos[a-z_]*(\.weight)?")
_MOST = 64
"""Most class and register tokens before the patches."""


def say_tokens(net: nn.Module, input_size: tuple[int, int, int]) -> None:
    """Give a network the attributes by which timm's describe their tokens, if it turns patches into tokens.

    The patch embedding is the first convolution, if its steps are as long as its patches; its output is the grid.
    What most layers have more than one token for each patch are prefix tokens. Whether the first one is a class token
    only a parameter's name says.
    """
    from torch import nn

    from vitsee.models import layers, layout

    with suppress(UserError):  # an image of this size is tried, and refused, elsewhere
        shapes = layout.dry_run(net, (1, *input_size), layers.record_modules)
        modules = dict(net.named_modules())
        convolutions = (name for name in shapes if isinstance(modules[name], nn.Conv2d))
        name = next(convolutions, "")
        embedding, grid = modules[name], (shapes.get(name) or ())[2:]
        if not isinstance(embedding, nn.Conv2d) or embedding.stride != embedding.kernel_size:
            return
        if len(grid) != 2 or embedding.stride == (1, 1):
            return
        patches = grid[0] * grid[1]
        more = Counter(shape[1] - patches for shape in shapes.values() if shape and len(shape) == 3)
        prefix, _ = more.most_common(1)[0] if more else (-1, 0)
        if not 0 <= prefix <= _MOST:
            return
        vars(embedding).update(grid_size=grid, num_patches=patches)
        named = dict(net.named_parameters())
        said = {
            "patch_embed": embedding,
            "num_prefix_tokens": prefix,
            "has_class_token": prefix > 0 and any(map(_CLASS.fullmatch, named)),
        }
        places = _positions(named, (patches, patches + prefix))
        if places is not None:
            said["pos_embed"] = places
        # past nn.Module, which would register them a second time
        vars(net).update({key: value for key, value in said.items() if not hasattr(net, key)})


def _positions(named: Mapping[str, Tensor], lengths: tuple[int, int]) -> Tensor | None:
    """Return the position embeddings, (1, tokens, features), if exactly one parameter can be them."""
    found = [
        value
        for name, value in named.items()
        if _POSITIONS.fullmatch(name) and value.ndim in (2, 3) and value.shape[-2] in lengths
    ]
    if len(found) != 1:
        return None
    return found[0] if found[0].ndim == 3 else found[0][None].detach()
