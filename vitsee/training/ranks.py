"""The processes of one training under `torchrun`, one per GPU. A single-process training has one rank."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, distributed, nn

from vitsee.errors import UserError


@dataclass(frozen=True)
class Ranks:
    """This process's rank among `count` processes. local: its rank on this machine."""

    rank: int = 0
    count: int = 1
    local: int = 0

    @property
    def first(self) -> bool:
        """Whether this process writes files and shows progress."""
        return self.rank == 0

    def device(self, chosen: torch.device) -> torch.device:
        """Return this rank's own GPU if there are several ranks, else the chosen device, as torch's current one."""
        if chosen.type != "cuda":
            return chosen
        device = torch.device("cuda", self.local) if self.count > 1 else chosen
        if device.index is not None:
            torch.cuda.set_device(device)
        return device

    def share(self, net: nn.Module, device: torch.device) -> nn.Module:
        """Return the model with gradients averaged over all ranks."""
        if self.count == 1:
            return net
        from torch.nn.parallel import DistributedDataParallel

        return DistributedDataParallel(net, [device] if device.type == "cuda" else None)

    @contextmanager
    def one_before_others(self) -> Iterator[None]:
        """Run the block in one process of this machine first, then in the others, which reuse its files."""
        if self.count > 1 and self.local:
            distributed.barrier()
        yield
        if self.count > 1 and not self.local:
            distributed.barrier()

    def added(self, numbers: Tensor) -> Tensor:
        """Return the sum over all ranks."""
        if self.count > 1:
            distributed.all_reduce(numbers)
        return numbers


@contextmanager
def ranks(batch_size: int) -> Iterator[Ranks]:
    """Run the block with the ranks that `torchrun` started connected.

    Raises UserError if the batch size is not a multiple of the number of ranks.
    """
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        yield Ranks()
        return
    if batch_size % count:
        raise UserError(
            f"recipe.batch_size={batch_size} cannot be divided evenly among {count} processes; "
            f"try {batch_size - batch_size % count or count}"
        )
    distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield Ranks(distributed.get_rank(), count, int(os.environ.get("LOCAL_RANK", "0")))
    finally:
        distributed.destroy_process_group()
