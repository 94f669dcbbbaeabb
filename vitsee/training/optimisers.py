"""The optimisers of a training run, and which weights each of them updates."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from timm.optim.muon import zeropower_via_newtonschulz
from torch import Tensor, nn

from vitsee.training.recipes import Optimiser, Recipe

TOKENS = ("pos_embed", "cls_token", "reg_token", "dist_token")
"""Ends of the names of weights that are vectors, whatever their shape."""
QUERIES_OR_KEYS = ("q", "k", "q_proj", "k_proj", "query", "key")
"""timm's names of layers that compute either queries or keys."""
TOGETHER = {"qkv": 3, "kv": 2}
"""timm's names of layers whose last rows compute values, with the number of what they compute."""
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the Newton-Schulz iteration that makes matrices orthogonal (Jordan et al. 2024)."""
State = Mapping[str, Any]


class Optimisers:
    """The optimisers that together update all weights of a model.

    adamw, sgd: a single one. muon: Muon for the matrices inside the model; AdamW for all other weights, for the
    first and the last layer, and for the matrices that compute queries and keys.
    """

    def __init__(self, net: nn.Module, recipe: Recipe, capturable: bool) -> None:
        """capturable: as part of a CUDA graph."""
        self.parts: list[tuple[Tensor, Tensor, slice]] = []
        """Parameters that are some rows of a weight, with the weight."""
        muon: list[Tensor] = []
        decayed: list[Tensor] = []
        others: list[Tensor] = []
        exempt = (*TOKENS, *getattr(net, "no_weight_decay", set)())
        inside = _inside(net) if recipe.optimiser is Optimiser.muon else {}
        for name, weight in net.named_parameters():
            if name in inside:
                given = self._rows(weight, inside[name])
                decayed += given[:-1]
                muon += given[-1:]
            elif sum(n > 1 for n in weight.shape) > 1 and not name.endswith(exempt):
                decayed.append(weight)
            else:
                others.append(weight)
        groups = [
            {"params": decayed, "weight_decay": recipe.weight_decay},
            {"params": others, "weight_decay": 0.0},
        ]
        if recipe.optimiser is Optimiser.sgd:
            first: torch.optim.Optimizer = torch.optim.SGD(groups, lr=recipe.lr, momentum=0.9)
        else:
            device = next(net.parameters()).device
            first = torch.optim.AdamW(
                groups,
                lr=torch.tensor(recipe.lr, device=device) if capturable else recipe.lr,
                betas=(0.9, recipe.beta2),
                fused=device.type in ("cpu", "cuda"),
                capturable=capturable,
            )
        lr = first.param_groups[0]["lr"]
        self.all = [first, *([Muon(muon, lr, recipe.weight_decay)] if muon else [])]

    def _rows(self, weight: Tensor, first: int) -> list[Tensor]:
        """Return the rows before `first`, if there are any, and the others, as parameters."""
        if not first:
            return [weight]
        cuts = (slice(0, first), slice(first, None))
        cut = [weight.detach()[rows] for rows in cuts]
        self.parts += [(part, weight, rows) for part, rows in zip(cut, cuts, strict=True)]
        return cut

    def set_rate(self, rate: float) -> None:
        """Set the learning rate of the next step."""
        for group in (group for optimiser in self.all for group in optimiser.param_groups):
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate

    def step(self) -> None:
        """Update the weights, given their gradients."""
        for part, weight, rows in self.parts:
            part.grad = None if weight.grad is None else weight.grad[rows]
        for optimiser in self.all:
            optimiser.step()

    def states(self) -> dict[int, State]:
        """Return what is remembered of each parameter, by its number."""
        states: dict[int, State] = {}
        for first, optimiser in self._numbered():
            for number, state in optimiser.state_dict()["state"].items():
                states[first + number] = state
        return states

    def restore(self, states: Mapping[int, State]) -> None:
        """Restore what `states` returned."""
        for first, optimiser in self._numbered():
            count = _count(optimiser)
            own = {n - first: states[n] for n in states if first <= n < first + count}
            optimiser.load_state_dict(optimiser.state_dict() | {"state": own})

    def _numbered(self) -> Iterable[tuple[int, torch.optim.Optimizer]]:
        """Yield each optimiser with the number of its first parameter."""
        first = 0
        for optimiser in self.all:
            yield first, optimiser
            first += _count(optimiser)


def _count(optimiser: torch.optim.Optimizer) -> int:
    return sum(len(group["params"]) for group in optimiser.param_groups)


def _inside(net: nn.Module) -> dict[str, int]:
    """Return the names of the matrices inside the model: those of linear layers and convolutions, but for the
    first and the last.

    With each goes the number of its first rows that compute queries and keys. Matrices that compute only these
    are left out.
    """
    about = getattr(net, "default_cfg", {})
    outer = {*_names(about.get("first_conv")), *_names(about.get("classifier"))}
    inside = {}
    for name, module in net.named_modules():
        last = name.rpartition(".")[2]
        if name in outer or last in QUERIES_OR_KEYS:
            continue
        if isinstance(module, nn.Linear):
            width, parts = module.in_features, TOGETHER.get(last, 1)
            inside[f"{name}.weight"] = (parts - 1) * width * (module.out_features == parts * width)
        elif isinstance(module, nn.Conv2d) and module.groups == 1:
            inside[f"{name}.weight"] = 0
    return inside


def _names(given: str | Iterable[str] | None) -> list[str]:
    return [given] if isinstance(given, str) else list(given or ())


class Muon(torch.optim.Optimizer):
    """Muon (Jordan et al. 2024) with steps as large as AdamW's (Liu et al. 2025, equation 4).

    Matrices of one shape are made orthogonal together: one by one, as in the Muon of torch and of timm, takes as
    long as the rest of a small model's step.
    """

    def __init__(self, matrices: Iterable[Tensor], lr: float | Tensor, weight_decay: float) -> None:
        alike = defaultdict(list)
        for matrix in matrices:
            alike[matrix.shape].append(matrix)
        groups = [{"params": params} for params in alike.values()]
        super().__init__(groups, {"lr": lr, "weight_decay": weight_decay, "momentum": 0.95})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]  # no closure
        """Update the matrices, given their gradients."""
        for group in self.param_groups:
            momentum, lr = group["momentum"], group["lr"]
            matrices = [matrix for matrix in group["params"] if matrix.grad is not None]
            if not matrices:
                continue
            gradients = [matrix.grad for matrix in matrices]
            means = [self._mean(matrix) for matrix in matrices]
            torch._foreach_lerp_(means, gradients, 1 - momentum)
            ahead = torch.stack(torch._foreach_lerp(gradients, means, momentum))  # Nesterov's
            flat = ahead.flatten(2)
            steps = zeropower_via_newtonschulz(flat, 5, [COEFFICIENTS], dtype=flat.dtype)
            steps = steps.view_as(ahead) * (lr * (0.2 * max(flat.shape[1:]) ** 0.5))
            torch._foreach_mul_(matrices, 1 - lr * group["weight_decay"])
            torch._foreach_sub_(matrices, list(steps.unbind()))

    def _mean(self, matrix: Tensor) -> Tensor:
        """Return the running mean of a matrix's gradients."""
        state = self.state[matrix]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(matrix)
        return state["momentum_buffer"]
