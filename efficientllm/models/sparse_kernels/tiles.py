"""What the kernels share: loads and steps of a tile, and how their operators are declared to PyTorch."""

import functools
import math
from typing import Any

# mypy: disable-error-code="untyped-decorator,no-untyped-def"
import torch
import triton  # type: ignore[import-not-found,import-untyped,unused-ignore]
import triton.language as tl  # type: ignore[import-not-found,import-untyped,unused-ignore]

LOG2_E = math.log2(math.e)
_SMALL_SHARED_MEMORY = 128 * 1024


@triton.jit
def load_rows(x, token, token_stride, inside, column, width, transposed: tl.constexpr):
    """Loads rows of a tensor whose head is already chosen, as `[tokens, padded]` or transposed; zeros outside."""
    if transposed:
        address = x + token[None, :] * token_stride + column[:, None]
        mask = inside[None, :] & (column < width)[:, None]
    else:
        address = x + token[:, None] * token_stride + column[None, :]
        mask = inside[:, None] & (column < width)[None, :]
    return tl.load(address, mask=mask, other=0.0)


@triton.jit
def softmax_step(scores, highest, total, mixed, v):
    """Adds a tile of scores and values to a running softmax."""
    new = tl.maximum(highest, tl.max(scores, 1))
    finite = tl.where(new == float("-inf"), 0.0, new)
    weights = tl.exp2(scores - finite[:, None])
    shrink = tl.exp2(highest - finite)
    mixed = mixed * shrink[:, None] + tl.dot(weights.to(v.dtype), v, input_precision="ieee")
    return new, total * shrink + tl.sum(weights, 1), mixed


@triton.jit
def after_earlier_kernels(early: tl.constexpr):
    """From here on what earlier kernels wrote is there, and the next one may set up (programmatic dependent launch)."""
    if early:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()


@triton.jit
def key_step(q_tile, upstream, base, own, k_tile, v_tile, visible, scale, k_found, v_found):
    """Adds some queries' share to a tile of keys' and values' gradients; scores are `[columns, rows]`."""
    scores = tl.dot(k_tile, tl.trans(q_tile), input_precision="ieee") * scale
    weights = tl.exp2(tl.where(visible, scores - base[None, :], float("-inf")))
    v_found += tl.dot(weights.to(upstream.dtype), upstream, input_precision="ieee")
    change = weights * (tl.dot(v_tile, tl.trans(upstream), input_precision="ieee") - own[None, :])
    k_found += tl.dot(change.to(q_tile.dtype), q_tile, input_precision="ieee")
    return k_found, v_found


def unit_stride(x: torch.Tensor) -> torch.Tensor:
    """Makes the last dimension contiguous."""
    return x if x.stride(-1) == 1 else x.contiguous()


def strides(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, out: torch.Tensor) -> list[int]:
    """Strides of batch, token and head of each, as the kernels take them."""
    return [stride for x in (q, k, v, out) for stride in x.stride()[:3]]


def power_of_two(size: int) -> int:
    """The least that a matrix product of the kernels takes."""
    return max(16, int(triton.next_power_of_2(size)))


def shared_memory(device: torch.device) -> int:
    """Bytes that a block may have of a multiprocessor's shared memory: 227 KiB on an H100, 99 on GPUs for one person."""
    if device.type != "cuda":
        return _SMALL_SHARED_MEMORY
    properties = torch.cuda.get_device_properties(device)
    return int(getattr(properties, "shared_memory_per_block_optin", properties.shared_memory_per_block))


def is_small(device: torch.device) -> bool:
    """Whether the tiles that suit a data centre's GPU take more shared memory than there is."""
    return shared_memory(device) < _SMALL_SHARED_MEMORY


def is_large(q: torch.Tensor) -> bool:
    """Whether a head takes more shared memory than the larger tiles leave room for."""
    return q.dtype == torch.float32 or q.shape[-1] > (64 if is_small(q.device) else 128)


def multiprocessors(device: torch.device) -> int:
    """A GPU's multiprocessors; sixteen where the kernels are interpreted."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 16


@functools.cache
def finished_parts(device: torch.device, groups: int) -> torch.Tensor:
    """How many parts of each group are done; zero between calls."""
    return torch.zeros(groups, dtype=torch.int32, device=device)


def save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, torch.Tensor]) -> None:
    """Keeps an operator's inputs and outputs for its gradient."""
    tensors = [x for x in inputs if isinstance(x, torch.Tensor)]
    ctx.save_for_backward(*tensors, *output)
    ctx.numbers = [x for x in inputs if not isinstance(x, torch.Tensor)]


def fake_attention(q: torch.Tensor, *rest: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Shapes that an attention operator returns."""
    del rest
    return q.new_empty(q.shape), q.new_empty(q.shape[:3], dtype=torch.float32)


def fake_gradient(
    gradient: torch.Tensor, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *rest: Any
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Shapes that its gradient returns."""
    del gradient, rest
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)
