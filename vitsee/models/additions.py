"""Finds where a block adds to its own input while it runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from vitsee.models.calls import Calls
from vitsee.models.layout import SUMS, Record
from vitsee.models.outputs import flat, tensor_of
from vitsee.models.units import layers_in, parts_of

Deliver = Callable[[Tensor | None, Tensor], None]
"""Called with the skip and the branch of an addition, before they are added."""

_RESHAPES = {
    *(torch.reshape, torch.permute, torch.transpose, torch.flatten, torch.unflatten),
    *(Tensor.reshape, Tensor.view, Tensor.permute, Tensor.transpose, Tensor.flatten),
    *(Tensor.unflatten, Tensor.contiguous, Tensor.squeeze, Tensor.unsqueeze),
}
"""Functions that only reshape: their result is still what entered the block."""


def record_additions(
    name: str, block: nn.Module, seen: Record, *, everything: bool
) -> list[RemovableHandle]:
    """Add hooks that report, when a block ends, the branches that it adds to its input.

    name: of the block. A single addition has this name; if there are several, each name also contains the part that
    computed the branch, e.g. `layers.0.blocks.1.+attn`. everything: a block that adds nothing reports its output.
    """
    branches: dict[str, Tensor] = {}

    def leave(output: Tensor | None) -> None:
        for label, branch in branches.items():
            seen(f"{name}.+{label}" if len(branches) > 1 else name, branch)
        if everything and not branches and output is not None:
            seen(name, output)
        branches.clear()

    return _hooks(name, block, lambda label, skip, branch: branches.update({label: branch}), leave)


def meet_addition(
    name: str, block: nn.Module, label: str | None, deliver: Deliver
) -> list[RemovableHandle]:
    """Add hooks that deliver the addition of this label, as `record_additions` names it, without a copy.

    None: the only addition of the block; if it adds nothing, its output, with None for the skip.
    """
    met: list[str] = []

    def found(which: str, skip: Tensor, branch: Tensor) -> None:
        if label in (None, which):
            met.append(which)
            deliver(skip, branch)

    def leave(output: Tensor | None) -> None:
        if not met and output is not None:
            deliver(None, output)
        met.clear()

    return _hooks(name, block, found, leave)


def _hooks(
    name: str,
    block: nn.Module,
    found: Callable[[str, Tensor, Tensor], None],
    ended: Callable[[Tensor | None], None],
) -> list[RemovableHandle]:
    """Add hooks that call `found` with label, skip and branch of each addition, and `ended` with the output."""
    modules = dict(block.named_modules())
    parts = parts_of(name, block, {f"{name}.{inner}" for inner in modules})
    roles = {part.name.removeprefix(f"{name}."): part.role for part in parts}
    parents = {label.rpartition(".")[0] for label in roles} | {""}
    labels = [
        label
        for label, module in modules.items()
        if label
        and label.rpartition(".")[0] in parents
        and (layers_in(module) or [*module.children()])
    ]
    tracer = _Tracer(found)

    def enter(module: nn.Module, args: Any, kwargs: Any) -> None:
        tracer.begin(args, kwargs)
        tracer.__enter__()

    def leave(module: nn.Module, args: Any, output: object) -> None:
        tracer.__exit__(None, None, None)
        tracer.begin()
        ended(tensor_of(output, args))

    def fed(module: nn.Module, args: object) -> None:
        tracer.follow(args)

    def skipped(module: nn.Module, args: object, output: object) -> None:
        tracer.follow(output)

    def started(label: str) -> Callable[[nn.Module, object], None]:
        return lambda module, args: tracer.running.append(label)

    def passed(module: nn.Module, args: object, output: object) -> None:
        tracer.last = tracer.running.pop()

    handles = [
        block.register_forward_pre_hook(enter, with_kwargs=True),
        block.register_forward_hook(leave, always_call=True),
    ]
    handles += [modules[label].register_forward_pre_hook(started(label)) for label in labels]
    handles += [modules[label].register_forward_hook(passed) for label in labels]
    # the input of a norm, an attention or an MLP is the stream, even if it is no longer the block's input
    entries = [n for n, role in roles.items() if role != "hidden"]
    handles += [modules[n].register_forward_pre_hook(fed) for n in entries]
    shortcuts = [n for n in modules if n.rpartition(".")[2] in ("downsample", "shortcut")]
    return handles + [modules[n].register_forward_hook(skipped) for n in shortcuts]


class _Tracer(Calls):
    """Follows a block's input through additions and changes of shape.

    running: the parts of the block that are running, innermost last. last: the part that ended last.
    """

    def __init__(self, found: Callable[[str, Tensor, Tensor], None]) -> None:
        super().__init__()
        self.found = found
        self.begin()

    def begin(self, *inputs: object) -> None:
        """Follow these tensors instead of the previous ones."""
        self.stream: dict[int, Tensor] = {}
        self.labels: Counter[str] = Counter()
        self.running: list[str] = []
        self.last = "input"
        self.follow(inputs)

    def follow(self, tensors: object) -> None:
        """Follow these tensors too."""
        self.stream |= {id(x): x for x in flat(tensors) if isinstance(x, Tensor)}

    def call(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        added = func in SUMS and len(args) == 2 and not kwargs and self._adds(*args)
        result = func(*args, **kwargs)
        if added or (func in _RESHAPES and id(args[0]) in self.stream):
            self.follow(result)
        return result

    def _adds(self, one: Any, other: Any) -> bool:
        """Return whether one of the two is in the stream; if so, report the addition."""
        if not (isinstance(one, Tensor) and isinstance(other, Tensor)) or one.shape != other.shape:
            return False
        inside = [id(x) in self.stream for x in (one, other)]
        if inside[0] is inside[1]:
            return False
        label = self.last
        if self.running and not label.startswith(f"{self.running[-1]}."):
            label = self.running[-1]
        self.labels[label] += 1
        if self.labels[label] > 1:
            label = f"{label}_{self.labels[label]}"
        self.found(label, *((one, other) if inside[0] else (other, one)))
        return True
