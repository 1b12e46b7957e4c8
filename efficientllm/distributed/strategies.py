"""What the processes share: gradients (DDP), or weights, gradients and optimizer state (FSDP2)."""

import contextlib
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from efficientllm.distributed.world import World
from efficientllm.errors import CellFailure


def distribute(
    loss: nn.Module, decoder: Any, world: World, device: torch.device, autocast: torch.dtype | None
) -> nn.Module:
    """Wraps the module that computes the training loss.

    DDP (Li et al. 2020, arXiv 2006.15704) averages gradients. FSDP2 shards every weight over the processes (`fully_shard`;
    Zhao et al. 2023, arXiv 2304.11277), block by block, and gathers a block's weights, in autocast's type where that is
    on, only while it computes.

    Args:
        loss: Called with a batch; holds the trained model. Its method `evaluate` uses the model too.
        decoder: The decoder inside it.
        world: The processes.
        device: This process' device.
        autocast: Type of matrix products; None for float32.

    Raises:
        CellFailure: FSDP cannot shard the model's weights.
    """
    if world.strategy == "ddp":
        from torch.nn.parallel import DistributedDataParallel

        return DistributedDataParallel(
            loss,
            device_ids=[device.index] if device.type == "cuda" else None,
            gradient_as_bucket_view=True,
        )
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method

    packed = [name for name, parameter in loss.named_parameters() if not parameter.is_floating_point()]
    if packed:
        raise CellFailure(f"FSDP cannot shard packed weights such as {packed[0]}: set parallel.strategy to ddp")
    mesh = init_device_mesh(device.type, (world.size,))
    policy = MixedPrecisionPolicy(param_dtype=autocast, reduce_dtype=torch.float32, cast_forward_inputs=False)
    for block in decoder.layers:
        fully_shard(block, mesh=mesh, mp_policy=policy)
    fully_shard(loss, mesh=mesh, mp_policy=policy)
    register_fsdp_forward_method(loss, "evaluate")
    return loss


def accumulating(loss: nn.Module) -> contextlib.AbstractContextManager[None]:
    """For a micro-batch that others of the same step follow: DDP need not average gradients before the last one.

    FSDP goes on sharding them, since each process would else hold the gradients of the whole model.
    """
    from torch.nn.parallel import DistributedDataParallel

    if not isinstance(loss, DistributedDataParallel):
        return contextlib.nullcontext()
    waiting: contextlib.AbstractContextManager[None] = loss.no_sync()
    return waiting


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor with the shards of all processes; to be called by all of them."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def sharded_like(tensor: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """This process' shard of a tensor that every process has whole, placed as another tensor of its shape is."""
    if not isinstance(like, DTensor) or tensor.shape != like.shape:
        return tensor
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(tensor, like.device_mesh, like.placements, src_data_rank=None)


def reshard(loss: nn.Module) -> None:
    """Frees the weights that FSDP keeps gathered after a use that no backward pass has followed."""
    from torch.distributed.fsdp import FSDPModule

    for module in loss.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


@torch.no_grad()
def gather_to_first(loss: nn.Module, world: World) -> None:
    """Puts whole weights in the place of shards, in the first process' host memory; the others' become empty.

    After it the model can be saved by the first process, and not be called any more.

    Args:
        loss: What `distribute` returned.
        world: The processes, all of which have to call this.
    """
    reshard(loss)
    for module in loss.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if isinstance(parameter, DTensor):
                full = parameter.full_tensor()
                kept = full.cpu() if world.is_first else full.new_empty(0)
                setattr(module, name, nn.Parameter(kept, requires_grad=parameter.requires_grad))
