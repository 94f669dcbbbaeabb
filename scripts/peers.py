"""Other tools that compute CKA, each called as in its documentation; used by `make bench`."""

from __future__ import annotations

import contextlib
import io
import warnings
from importlib.util import find_spec

import numpy as np
from torch import Tensor, inference_mode, nn


def torch_cka(net: nn.Module, layers: list[str], batches: list[Tensor]) -> np.ndarray:
    from torch_cka import CKA

    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()), inference_mode():
        warnings.simplefilter("ignore")
        cka = CKA(net, net, model1_layers=layers, model2_layers=layers, device=_device(batches))
        cka.compare(_Loader(batches))
    for module in net.modules():  # torch_cka never removes its hooks
        module._forward_hooks.clear()
    return cka.export()["CKA"].numpy()


def pytorch_cka(net: nn.Module, layers: list[str], batches: list[Tensor]) -> np.ndarray:
    from cka import compute_cka

    loaders = [_Loader(batches)]
    found = compute_cka(net, net, loaders, layers=layers, device=_device(batches), progress=False)
    return found[0].cpu().numpy()


class _Loader(list):
    """Minibatches (images, labels) in memory, with the DataLoader attributes that the tools expect."""

    def __init__(self, batches: list[Tensor]) -> None:
        super().__init__((pixels, 0) for pixels in batches)
        self.dataset = "noise"


def _device(batches: list[Tensor]) -> str:
    return batches[0].device.type


TOOLS = {"torch_cka": torch_cka, "pytorch_cka": pytorch_cka}
_MODULES = {"torch_cka": "torch_cka", "pytorch_cka": "cka"}


def installed() -> list[str]:
    """Names of the installed tools; `pip install 'vitsee[bench]'` installs them all."""
    return [name for name in TOOLS if find_spec(_MODULES[name])]
