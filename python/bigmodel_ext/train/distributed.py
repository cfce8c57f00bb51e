"""Training one model in several processes, on one machine or many: ``fit(..., across=Processes())`` in a script that
torchrun (or `accelerate launch`) starts::

    torchrun --nproc_per_node 2 train.py

Each process computes its share of a batch, and gradients are averaged, so the run is that of one process with a batch
as many times as large, up to rounding. All see the same seed, and so the same order of examples, of which each takes
its own; an Augment wants the seed plus the process's rank. accelerate (imported on first use) sets up the processes,
devices and DistributedDataParallel; torch's fully_shard shards parameters, gradients and the optimizer's state (FSDP2,
which accelerate has for GPUs only).

Compressed layers are trained as any: what is fixed in them, sparse patterns and int8 weights, are buffers, which
process 0 sends to all at the start. Masks that are drawn while training (``on_step``) are alike in all processes if
they follow from the weights; those that follow from data need the same data in each.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch
from torch import Tensor, nn


class Processes:
    """The processes that torchrun started, as fit's `across`; one alone if it did not.

    Args:
        sharded: spread parameters over the processes (FSDP) instead of keeping all in each (DDP). The model itself
            stays whole and gets the trained weights at the end; a copy is what is sharded.
        cpu: stay on the processor although there is a GPU.

    Raises:
        ImportError: accelerate is not installed.
    """

    def __init__(self, sharded: bool = False, cpu: bool = False) -> None:
        try:
            from accelerate import Accelerator
        except ImportError as error:
            raise ImportError("training in several processes needs accelerate: pip install accelerate") from error
        self._accelerator = Accelerator(cpu=cpu or not torch.cuda.is_available())
        self.rank: int = self._accelerator.process_index
        self.processes: int = self._accelerator.num_processes
        self.device: torch.device = self._accelerator.device
        self.sharded = sharded and self.processes > 1

    def wrap(self, model: nn.Module) -> nn.Module:
        """What is trained: the model moved to this process's device, its gradients averaged over the processes."""
        if self.sharded:
            return self._shard(copy.deepcopy(model).to(self.device))
        return self._accelerator.prepare_model(model)

    def mean(self, value: Tensor) -> Tensor:
        """The mean over the processes."""
        return self._accelerator.reduce(value, "mean")

    def gather(self, value: Tensor) -> Tensor:
        """[processes, ...], each one's value, on the processor."""
        return self._accelerator.gather(value[None].to(self.device)).cpu()

    def finish(self, model: nn.Module, wrapped: nn.Module) -> None:
        """Bring what was trained back into the model, in each process."""
        if not self.sharded:
            return
        from torch.distributed.tensor import DTensor

        with torch.no_grad():  # not by state dicts: some layers store other things in them than they hold
            for kept, trained in ((model.parameters(), wrapped.parameters()), (model.buffers(), wrapped.buffers())):
                for old, new in zip(kept, trained, strict=True):
                    old.copy_(new.full_tensor() if isinstance(new, DTensor) else new)

    def wait(self) -> None:
        """Until all processes have come here."""
        self._accelerator.wait_for_everyone()

    def close(self) -> None:
        """Take leave of the other processes, once all are here; the last thing a script does."""
        self.wait()
        self._accelerator.end_training()
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()

    def _shard(self, model: nn.Module) -> nn.Module:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        for tensor in (*model.parameters(), *model.buffers()):  # as DDP does
            torch.distributed.broadcast(tensor.detach(), 0)
        mesh = init_device_mesh(self.device.type, (self.processes,))
        for block in blocks(model):
            fully_shard(block, mesh=mesh)
        fully_shard(model, mesh=mesh)
        return model


def blocks(model: nn.Module) -> Iterator[nn.Module]:
    """The repeated parts of a model, innermost first: those inside an nn.ModuleList or nn.Sequential that are trained.
    One at a time is whole in memory."""
    for module in reversed(list(model.modules())):
        if isinstance(module, (nn.ModuleList, nn.Sequential)):
            yield from (part for part in module if any(p.requires_grad for p in part.parameters()))
