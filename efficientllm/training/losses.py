"""Next-token losses.

The logits of a batch are by far its largest tensor: at a vocabulary of 151,936, 8192 tokens take 5 GB in float32, and
cross-entropy holds them several times over. The loss of the output head is therefore computed rows by rows, and with
it at once the gradients, so that the logits of one chunk are all that ever exists (the idea of Hsu et al. 2024, arXiv
2410.10989, section 3.2, and of Wijmans et al. 2024, arXiv 2411.09009).
"""

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional as F

from efficientllm.data.packing import IGNORED

if TYPE_CHECKING:
    from efficientllm.models.decoder import Decoder

_CHUNK_BYTES = 1 << 30
"""Most that the logits of one chunk may take in float32."""


def token_losses(logits_btv: torch.Tensor, labels_bt: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of each position in nats, computed in float32.

    Args:
        logits_btv: Scores `[B, T, V]`; position t scores `labels_bt[:, t]`.
        labels_bt: Token ids `[B, T]`, `IGNORED` where there is no loss.

    Returns:
        Losses `[B, T]`, 0 at ignored positions.
    """
    flat = F.cross_entropy(
        logits_btv.float().flatten(0, 1), labels_bt.flatten(), ignore_index=IGNORED, reduction="none"
    )
    return flat.view(labels_bt.shape)


def projected_token_losses(
    decoder: "Decoder", hidden_btc: torch.Tensor, labels_bt: torch.Tensor, *, chunk: int | None = None
) -> torch.Tensor:
    """`token_losses` of hidden states, chunk by chunk of positions; for evaluation, with gradients switched off.

    Args:
        decoder: The model, whose head may be of any kind.
        hidden_btc: What `Decoder.hidden_states` returns.
        labels_bt: Token ids `[B, T]`, `IGNORED` where there is no loss.
        chunk: Positions whose logits exist at a time; by default as many as take 1 GiB in float32.

    Returns:
        Losses `[B, T]`, 0 at ignored positions.
    """
    rows = chunk or default_chunk(decoder.embed_tokens.num_embeddings)
    pieces = zip(hidden_btc.flatten(0, 1).split(rows), labels_bt.flatten().split(rows), strict=True)
    losses = [token_losses(decoder.project(hidden[None]), labels[None])[0] for hidden, labels in pieces]
    return torch.cat(losses).view(labels_bt.shape)


def default_chunk(vocabulary: int) -> int:
    """Number of rows whose float32 logits take 1 GiB, and at least one."""
    return max(1, _CHUNK_BYTES // (4 * vocabulary))


def linear_cross_entropy(
    hidden_nc: torch.Tensor, weight_vc: torch.Tensor, labels_n: torch.Tensor, chunk: int | None = None
) -> torch.Tensor:
    """Mean cross-entropy of `softmax(hidden_nc @ weight_vc.T)`, without ever holding the logits of more than a chunk.

    Products are computed in autocast's type where it is on and in the tensors' own elsewhere, everything between them
    in at least float32. Gradients come with the loss; they can be backpropagated once, and not differentiated again.

    Args:
        hidden_nc: Hidden states `[N, C]`.
        weight_vc: The output head `[V, C]`.
        labels_n: Token ids `[N]`, `IGNORED` where there is no loss.
        chunk: Rows whose logits exist at a time; by default as many as take 1 GiB in float32.

    Returns:
        The mean over labels that are not ignored, a float32 scalar (float64 for float64); nan where all are.
    """
    device = hidden_nc.device.type
    if torch.is_autocast_enabled(device) and hidden_nc.dtype != torch.float64:
        dtype = torch.get_autocast_dtype(device)
        # outside the function, so that autograd converts the gradients back
        hidden_nc, weight_vc = hidden_nc.to(dtype), weight_vc.to(dtype)
    wanted = torch.is_grad_enabled()
    loss: torch.Tensor = _LinearCrossEntropy.apply(
        hidden_nc,
        weight_vc,
        labels_n,
        chunk or default_chunk(len(weight_vc)),
        wanted and hidden_nc.requires_grad,
        wanted and weight_vc.requires_grad,
    )
    return loss


class _LinearCrossEntropy(torch.autograd.Function):
    """The loss, whose gradients are computed on the way and only scaled in the backward pass."""

    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx,
        hidden_nc: torch.Tensor,
        weight_vc: torch.Tensor,
        labels_n: torch.Tensor,
        chunk: int,
        hidden_wanted: bool,
        weight_wanted: bool,
    ) -> torch.Tensor:
        wanted = hidden_wanted or weight_wanted
        elementwise = _elementwise(hidden_nc.device.type, wanted)
        count = (labels_n != IGNORED).sum()
        several = len(hidden_nc) > chunk
        total = None
        hidden_gradients: list[torch.Tensor] = []
        weight_gradient = None
        with torch.autocast(hidden_nc.device.type, enabled=False):
            for rows_nc, labels in zip(hidden_nc.split(chunk), labels_n.split(chunk), strict=True):
                loss, scores = elementwise(rows_nc @ weight_vc.T, labels, count)
                total = loss if total is None else total + loss
                if hidden_wanted:
                    hidden_gradients.append(scores @ weight_vc)
                if not weight_wanted:
                    continue
                if not several:
                    weight_gradient = scores.T @ rows_nc
                elif weight_gradient is None:
                    # sums over chunks are kept in float32, as one product would keep them inside
                    weight_gradient = (scores.T @ rows_nc).to(total.dtype)
                else:
                    weight_gradient += scores.T @ rows_nc
                del scores
        ...
