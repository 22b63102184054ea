"""The processes that train one network together: one by itself, or those that ``torchrun`` started on any machines."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor, nn

from medvisionllama.errors import InputError

if TYPE_CHECKING:
    from lightning_fabric import Fabric

# Others wait while the first validates; a process that dies is noticed by torchrun, not by waiting.
LONGEST_WAIT = timedelta(days=1)


class Processes(Protocol):
    """What a training must know of the processes it is spread over.

    Attributes:
        count: How many there are, on all machines.
        rank: This one's number among them, from 0; the first alone writes files and validates.
        device: Where this one computes; None to choose freely.
    """

    count: int
    rank: int
    device: torch.device | None

    def joined(self, model: nn.Module) -> nn.Module:
        """The model to call for a forward pass whose gradients will be the mean over all processes.

        Only parameters that require gradients are synchronised, and running statistics (the first's are everybody's);
        nothing is sent of a frozen block. Every process must have built the model alike.
        """
        ...

    def backward(self, loss: Tensor) -> None:
        """Gradients of what :meth:`joined` gave, averaged over all processes when this returns."""
        ...

    def mean(self, *numbers: float) -> tuple[float, ...]:
        """Each number's mean over all processes."""
        ...

    def of_first(self, *numbers: float) -> tuple[float, ...]:
        """The first process's numbers, once it has come here."""
        ...

    def first_goes_first(self, *, each_machine: bool = False) -> AbstractContextManager[None]:
        """The first process, of all or of each machine, goes through the block alone; then the others do."""
        ...

    def part(self) -> None:
        """No more will be exchanged."""
        ...


class Alone:
    """One process by itself."""

    count = 1
    rank = 0
    device: torch.device | None = None

    def joined(self, model: nn.Module) -> nn.Module:
        """The model itself."""
        return model

    def backward(self, loss: Tensor) -> None:
        """Plain gradients."""
        loss.backward()  # type: ignore[no-untyped-call]

    def mean(self, *numbers: float) -> tuple[float, ...]:
        """The numbers."""
        return numbers

    def of_first(self, *numbers: float) -> tuple[float, ...]:
        """The numbers."""
        return numbers

    def first_goes_first(self, *, each_machine: bool = False) -> AbstractContextManager[None]:
        """Nobody waits."""
        return nullcontext()

    def part(self) -> None:
        """Nothing to do."""


ALONE = Alone()


class Together:
    """Several processes, joined by Lightning Fabric's distributed data parallel strategy.

    Args:
        fabric: Launched.
    """

    def __init__(self, fabric: Fabric) -> None:
        self._fabric = fabric
        self.count = fabric.world_size
        self.rank = fabric.global_rank
        self.device: torch.device | None = fabric.device

    def joined(self, model: nn.Module) -> nn.Module:
        """The model wrapped; its parameters are the same tensors."""
        joined: nn.Module = self._fabric.setup_module(model, move_to_device=False)
        return joined

    def backward(self, loss: Tensor) -> None:
        """Gradients are exchanged while they are computed."""
        self._fabric.backward(loss)

    def mean(self, *numbers: float) -> tuple[float, ...]:
        """One exchange for all numbers, in float64."""
        total = self._fabric.all_reduce(self._tensor(numbers), reduce_op="mean")
        assert isinstance(total, Tensor)
        return tuple(total.tolist())

    def of_first(self, *numbers: float) -> tuple[float, ...]:
        """As one tensor: a broadcast of objects would pickle them."""
        tensor = self._tensor(numbers)
        torch.distributed.broadcast(tensor, src=0)
        return tuple(tensor.tolist())

    def first_goes_first(self, *, each_machine: bool = False) -> AbstractContextManager[None]:
        """Others wait as long as it takes."""
        order: AbstractContextManager[None] = self._fabric.rank_zero_first(local=each_machine)
        return order

    def part(self) -> None:
        """Close the connections."""
        torch.distributed.destroy_process_group()

    def _tensor(self, numbers: tuple[float, ...]) -> Tensor:
        return torch.tensor(numbers, dtype=torch.float64, device=self.device)


def started_by_torchrun(device: str = "auto") -> Processes:
    """The processes that ``torchrun`` started, this one among them; :data:`ALONE` where it did not.

    Args:
        device: ``auto`` for a GPU each where there are GPUs, ``cpu`` or ``cuda``.

    Raises:
        InputError: Fabric is not installed, or there is not a GPU for each process.
    """
    if not (torch.distributed.is_available() and torch.distributed.is_torchelastic_launched()):
        return ALONE
    try:
        from lightning_fabric import Fabric
        from lightning_fabric.strategies.ddp import DDPStrategy
    except ImportError as error:
        raise InputError(
            "training in several processes needs Lightning Fabric",
            got=str(error),
            mend="pip install 'medvisionllama[distributed]', or train without torchrun.",
        ) from error
    kind = "cuda" if device == "auto" and torch.cuda.is_available() else "cpu" if device == "auto" else device
    # How torchrun tells its processes where they stand.
    here, everywhere = int(os.environ["LOCAL_WORLD_SIZE"]), int(os.environ["WORLD_SIZE"])
    if kind not in ("cpu", "cuda") or (kind == "cuda" and torch.cuda.device_count() < here):
        raise InputError(
            f"{here} processes on this machine need a GPU each, or the CPU",
            got=f"--device {device}, {torch.cuda.device_count()} GPUs",
            mend="Start as many as there are GPUs by --nproc-per-node, or train with --device cpu.",
        )
    # The start is alike by its seed, so nothing is sent at first: of a frozen block that would be gigabytes.
    strategy = DDPStrategy(timeout=LONGEST_WAIT, init_sync=False)
    fabric = Fabric(accelerator=kind, devices=here, num_nodes=everywhere // here, strategy=strategy)
    fabric.launch()
    return Together(fabric)
