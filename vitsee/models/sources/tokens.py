"""Measures the tokens of networks that are not timm's and describes them by timm's attributes."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress

import torch
from torch import Tensor, nn

from vitsee.errors import UserError
from vitsee.models import layers, layout
from vitsee.models.outputs import tensor_of

_CLASS = re.compile(r"(.*\.)?(cls|class)_(token|embedding)s?")
_POSITIONS = re.compile(r"(.*\.)?pos[a-z_]*(\.weight)?")
_MOST = 64
"""Largest number of class and register tokens before the patches."""


def say_tokens(net: nn.Module, input_size: tuple[int, int, int]) -> None:
    """Give a network the attributes by which timm's networks describe their tokens, if it turns patches into tokens.

    The patch embedding is the first convolution, if its stride equals its kernel size; its output is the grid.
    Tokens that most layers have in addition to one per patch are prefix tokens. A parameter's name shows whether the
    first is a class token; the gradient of the network's output shows whether the head reads it. If such tokens come
    after the patches, the network gets the attribute `patches_first` alone: places of tokens are then unknown.
    """
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
        tokens = [
            name
            for name, shape in shapes.items()
            if shape and len(shape) == 3 and shape[1] == patches + prefix
        ]
        if prefix and _first_patch(net, tokens[0], patches + prefix, embedding, input_size) not in (
            prefix,
            None,
        ):
            vars(net)["patches_first"] = True
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
        if said["has_class_token"] and _reads_patches_alone(net, tokens, prefix, input_size):
            said["global_pool"] = "avg"
        # bypasses nn.Module, which would register them a second time
        vars(net).update({key: value for key, value in said.items() if not hasattr(net, key)})


def _first_patch(
    net: nn.Module, name: str, count: int, embedding: nn.Conv2d, input_size: tuple[int, int, int]
) -> int | None:
    """Return which of `count` tokens that this module gets, or else gives, depends on the image's first patch.

    None if not exactly one does.
    """
    if next(net.parameters()).is_meta:
        return None
    pixels = torch.zeros(1, *input_size).to(next(net.parameters()))
    pixels[..., : embedding.stride[0], : embedding.stride[1]] = torch.nan
    seen: list[object] = []

    def hook(module: nn.Module, args: tuple[object, ...], output: object) -> None:
        seen.extend([*args[:1], tensor_of(output)])

    with ExitStack() as stack, suppress(Exception):  # it may refuse such an image
        stack.callback(net.train, net.training)
        stack.enter_context(torch.no_grad())
        stack.callback(net.get_submodule(name).register_forward_hook(hook).remove)
        net.eval()(pixels)
    for tokens in seen:  # the input, unless this module adds the other tokens
        if isinstance(tokens, Tensor) and tokens.ndim == 3 and tokens.shape[1] == count:
            (found,) = tokens.isnan().any(2)[0].nonzero(as_tuple=True)
            return int(found) if len(found) == 1 else None
    return None


def _reads_patches_alone(
    net: nn.Module, tokens: Sequence[str], prefix: int, input_size: tuple[int, int, int]
) -> bool:
    """Return whether the output of the network depends on the patches and on no prefix token, after the last block.

    tokens: modules that output tokens, in running order; the last one that the output depends on counts. False if
    this cannot be measured: without values (on the meta device), or without gradients.
    """
    some = next(net.parameters())
    if some.is_meta:
        return False
    drawn = torch.randn(1, *input_size, generator=torch.Generator().manual_seed(0))
    pixels = drawn.to(some).requires_grad_()
    kept: dict[str, Tensor | None] = {}

    def hook(name: str) -> Callable[[nn.Module, object, object], None]:
        return lambda module, args, output: kept.update({name: tensor_of(output)})

    with ExitStack() as stack, suppress(RuntimeError):  # no gradient reaches the pixels
        stack.callback(net.train, net.training)
        stack.enter_context(torch.enable_grad())
        for name in tokens:
            handle = net.get_submodule(name).register_forward_hook(hook(name))
            stack.callback(handle.remove)
        output = tensor_of(net.eval()(pixels))
        last = [there for name in tokens if (there := kept.get(name)) is not None]
        if output is None or not last:
            return False
        slopes = torch.autograd.grad(output.square().sum(), last, allow_unused=True)
        for slope in reversed(slopes):
            if slope is not None:
                return bool(slope[:, prefix:].any()) and not slope[:, :prefix].any()
    return False


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
