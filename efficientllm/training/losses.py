"""Next-token losses.

The logits of a batch are by far its largest tensor: at a vocabulary of 151,936, those of 8192 tokens take 5 GB in
float32, and cross-entropy with its gradient holds them several times over. So the head's loss is computed a chunk of
positions at a time, and its gradients with it, as in Liger Kernel (Hsu et al. 2024, arXiv 2410.10989, section 3.2) and
Cut Cross-Entropy (Wijmans et al. 2024, arXiv 2411.09009): the logits of one chunk are all that ever exist.
"""

import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeAlias, cast

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from efficientllm.data.packing import IGNORED
from efficientllm.device import to_device
from efficientllm.models.decoder import Decoder

EVALUATION_BATCH = 32
"""Held-out sequences that a training run evaluates together."""
_CHUNK_BYTES = 1 << 30

_Elementwise: TypeAlias = Callable[
    [torch.Tensor, torch.Tensor, bool, bool], tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]
]


@dataclass(frozen=True)
class Targets:
    """A batch's labels where the loss reads them, as `targets` makes them.

    Args:
        labels_n: Token ids on the model's device.
        rows_n: The positions that they belong to, where the others were dropped; None where every position has one.
        any_ignored: Whether some of them may be `IGNORED`.
    """

    labels_n: torch.Tensor
    rows_n: torch.Tensor | None
    any_ignored: bool


def targets(labels: torch.Tensor, device: torch.device) -> Targets:
    """Brings labels to the model's device, and drops ignored positions where that costs nothing.

    That is where the labels lie in host memory. On a GPU the host would have to wait to learn how many are left, so
    ignored positions whose labels lie there are multiplied by the head all the same, to no effect.

    Args:
        labels: Token ids of any shape, `IGNORED` where there is no loss; in host memory, or on `device`.
        device: Where the model lies.
    """
    labels_n = labels.flatten()
    if labels_n.device.type != "cpu":
        return Targets(labels_n, None, any_ignored=True)
    kept_n, rows_n = labels_n != IGNORED, None
    if not bool(kept_n.all()):
        rows_n = kept_n.nonzero().flatten()
        labels_n, rows_n = labels_n[rows_n], to_device(rows_n, device)
    return Targets(to_device(labels_n, device), rows_n, any_ignored=False)


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


def mean_loss(decoder: Decoder, batches: Iterable[tuple[torch.Tensor, torch.Tensor]]) -> float:
    """Mean cross-entropy of held-out batches in nats per predicted token.

    Args:
        decoder: The model, on the device of the batches.
        batches: Inputs `[B, T]` and the token after each of them `[B, T]`, `IGNORED` where there is no loss.
    """
    total, count = 0.0, 0
    for inputs_bt, labels_bt in batches:
        total += float(token_losses(decoder(inputs_bt).logits, labels_bt).sum())
        count += int((labels_bt != IGNORED).sum())
    return total / count


def training_loss(
    decoder: Decoder, inputs_bt: torch.Tensor, labels: torch.Tensor | Targets, weight: float = 1.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean next-token loss of a batch.

    Args:
        decoder: The model.
        inputs_bt: Token ids `[B, T]`.
        labels: The token after each input `[B, T]`, `IGNORED` where there is no loss, or the targets made of them. Labels
            may stay in host memory where the decoder lies on a GPU: ignored positions then cost nothing in the head.
        weight: Factor of the cross-entropy, for a batch that is one process' share of a larger one.

    Returns:
        The loss to minimise (with the mixture of experts' balancing loss, where there is one), and the cross-entropy
        alone, detached.
    """
    balanced = None
    if decoder.balances_experts and isinstance(labels, torch.Tensor):
        balanced = _before_padding(labels)
        whole = balanced.device.type == "cpu" and bool(balanced.all())  # on a GPU the host would wait to learn it
        balanced = None if whole else to_device(balanced, inputs_bt.device)
    hidden_btc, auxiliary_loss = decoder.hidden_states_and_loss(inputs_bt, balanced=balanced)
    hidden_nc = hidden_btc.flatten(0, 1)
    found = labels if isinstance(labels, Targets) else targets(labels, hidden_nc.device)
    head: nn.Module = decoder.embed_tokens if decoder.lm_head is None else decoder.lm_head
    # a head that is adapted or quantized is a class of its own, and does more than multiply by its weight
    if type(head) in (nn.Embedding, nn.Linear) and getattr(head, "bias", None) is None:
        loss = linear_cross_entropy(hidden_nc, cast(torch.Tensor, head.weight), found)
    else:
        logits_nv = decoder.project(_with_targets(hidden_nc, found))
        loss = F.cross_entropy(logits_nv.float(), found.labels_n, ignore_index=IGNORED)
    loss = loss * weight
    total = loss if auxiliary_loss is None else loss + auxiliary_loss
    return total, loss.detach()


def _before_padding(labels_bt: torch.Tensor) -> torch.Tensor:
    """True up to each sequence's last label, which is that of an answer's end: what follows is padding."""
    return (labels_bt != IGNORED).flip(1).cummax(dim=1).values.flip(1)


class TrainingLoss(nn.Module):
    """`training_loss` as a module around the trained model, which is what DDP and FSDP wrap.

    Args:
        model: Holds the trained parameters.
        decoder: The decoder inside it that is called.
        evaluate: Returns the held-out loss in nats per token; it calls the decoder too.
    """

    def __init__(self, model: nn.Module, decoder: Any, evaluate: Callable[[], float]) -> None:
        super().__init__()
        self.model = model
        self._called = (decoder,)  # in a tuple, or its parameters would be listed twice
        self._evaluate = evaluate

    def forward(
        self, inputs_bt: torch.Tensor, labels: torch.Tensor | Targets, weight: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Computes `training_loss`."""
        return training_loss(self._called[0], inputs_bt, labels, weight)

    def evaluate(self) -> float:
        """Evaluates the model."""
        return self._evaluate()


def default_chunk(vocabulary: int) -> int:
    """Number of positions whose float32 logits take 1 GiB; at least one."""
    return max(1, _CHUNK_BYTES // (4 * vocabulary))


def linear_cross_entropy(
    hidden_nc: torch.Tensor, weight_vc: torch.Tensor, labels: torch.Tensor | Targets, chunk: int | None = None
) -> torch.Tensor:
    """Mean cross-entropy under `softmax(hidden_nc @ weight_vc.T)`, of which no more than a chunk exists at a time.

    Matrix products are computed in autocast's type where it is on, else in the tensors' own; all between them in
    float32 or better. Gradients are ready with the loss, so they can be backpropagated only once.

    Args:
        hidden_nc: Hidden states `[N, C]`.
        weight_vc: The output head `[V, C]`.
        labels: Token ids `[N]`, `IGNORED` where there is no loss, or the `targets` made of them.
        chunk: Positions in a chunk; by default `default_chunk`.

    Returns:
        The mean over labels that are not ignored, as a scalar in float32 or better; nan where all are.
    """
    found = labels if isinstance(labels, Targets) else targets(labels, hidden_nc.device)
    loss: torch.Tensor = _LinearCrossEntropy.apply(
        _with_targets(hidden_nc, found),
        weight_vc,
        found.labels_n,
        chunk or default_chunk(len(weight_vc)),
        found.any_ignored,
        torch.is_grad_enabled() and hidden_nc.requires_grad,
        torch.is_grad_enabled() and weight_vc.requires_grad,
    )
    return loss


def _with_targets(hidden_nc: torch.Tensor, found: Targets) -> torch.Tensor:
    """The hidden states that have a target."""
    return hidden_nc if found.rows_n is None else hidden_nc.index_select(0, found.rows_n)


class _LinearCrossEntropy(torch.autograd.Function):
    """The loss with its gradients, which the backward pass only scales."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_nc: torch.Tensor,
        weight_vc: torch.Tensor,
        labels_n: torch.Tensor,
        chunk: int,
        any_ignored: bool,
        hidden_wanted: bool,
        weight_wanted: bool,
    ) -> torch.Tensor:
        device, weight_type = hidden_nc.device, weight_vc.dtype
        ctx.hidden_type = hidden_nc.dtype
        if torch.is_autocast_enabled(device.type) and hidden_nc.dtype != torch.float64:
            dtype = torch.get_autocast_dtype(device.type)
            hidden_nc, weight_vc = hidden_nc.to(dtype), weight_vc.to(dtype)
        wanted = hidden_wanted or weight_wanted
        elementwise = _elementwise_on(device.type)
        count = (labels_n != IGNORED).sum()
        losses = []
        hidden_gradient_nc = torch.empty_like(hidden_nc) if hidden_wanted else None
        weight_gradient_vc = None
        with torch.autocast(device.type, enabled=False):
            for start in range(0, max(1, len(hidden_nc)), chunk):
                rows = slice(start, start + chunk)
                rows_nc, row_labels_n = hidden_nc[rows], labels_n[rows]
                logits_nv = rows_nc @ weight_vc.T
                if len(rows_nc) < chunk and elementwise is not _elementwise:
                    # the last chunk's length and place are the batch's: one program serves all, so that none is compiled in
                    # the middle of a run
                    row_labels_n = row_labels_n.clone()
                    torch._dynamo.maybe_mark_dynamic(logits_nv, 0)
                    torch._dynamo.maybe_mark_dynamic(row_labels_n, 0)
                loss, errors_nv, at_label_n1 = elementwise(logits_nv, row_labels_n, any_ignored, wanted)
                del logits_nv
                losses.append(loss)
                if errors_nv is None or at_label_n1 is None:
                    continue
                errors_nv.scatter_(1, row_labels_n[:, None].clamp_min(0), at_label_n1)
                if hidden_gradient_nc is not None:
                    torch.mm(errors_nv, weight_vc, out=hidden_gradient_nc[rows])
                if weight_wanted:
                    weight_gradient_vc = _accumulated(weight_gradient_vc, errors_nv, rows_nc, weight_type)
                del errors_nv  # before the next chunk's are made
        ctx.save_for_backward(hidden_gradient_nc, weight_gradient_vc, count)
        return torch.stack(losses).sum() / count

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        hidden_gradient_nc, weight_gradient_vc, count = ctx.saved_tensors
        # without labels the gradients are zero, and stay so
        scale = gradient / count.clamp_min(1)
        # in place: autograd refuses to read them a second time
        if hidden_gradient_nc is not None:
            hidden_gradient_nc = hidden_gradient_nc.mul_(scale).to(ctx.hidden_type)
        if weight_gradient_vc is not None:
            weight_gradient_vc = weight_gradient_vc.mul_(scale)
        return hidden_gradient_nc, weight_gradient_vc, None, None, None, None, None


def _accumulated(
    total_vc: torch.Tensor | None, errors_nv: torch.Tensor, rows_nc: torch.Tensor, dtype: torch.dtype
) -> torch.Tensor:
    """Adds one chunk's share to the weight's gradient, whose sum is kept in `dtype`, the weight's own."""
    if dtype == errors_nv.dtype:
        return errors_nv.T @ rows_nc if total_vc is None else total_vc.addmm_(errors_nv.T, rows_nc)
    if total_vc is None:
        total_vc = torch.zeros(errors_nv.shape[1], rows_nc.shape[1], dtype=dtype, device=rows_nc.device)
    if dtype == torch.float32 and rows_nc.device.type == "cuda":
        # the product's float32 sums reach the total without being rounded, and without a pass of their own
        return torch.addmm(total_vc, errors_nv.T, rows_nc, out_dtype=dtype, out=total_vc)
    return total_vc.add_(errors_nv.T @ rows_nc)


def _elementwise(
    logits_nv: torch.Tensor, labels_n: torch.Tensor, any_ignored: bool, gradients: bool
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
    """What lies between the matrix products of the loss and those of its gradients.

    Args:
        logits_nv: Scores `[N, V]`.
        labels_n: Token ids `[N]`.
        any_ignored: Whether some of them may be `IGNORED`.
        gradients: Whether the gradients are wanted.

    Returns:
        The summed loss; the softmax, 0 at ignored positions; and what belongs in its place at the labels, `[N, 1]`, to
        make it the gradient of the sum by the logits. The last two are in the logits' type, or None.
    """
    dtype = torch.promote_types(logits_nv.dtype, torch.float32)
    log_softmax_nv = F.log_softmax(logits_nv, dim=1, dtype=dtype)
    at_label_n1 = log_softmax_nv.gather(1, labels_n.clamp_min(0)[:, None])
    real_n1 = (labels_n != IGNORED)[:, None]
    loss = -at_label_n1.where(real_n1, 0).sum()
    if not gradients:
        return loss, None, None
    softmax_nv = log_softmax_nv.exp_()
    error_n1 = at_label_n1.expm1()
    if any_ignored:
        softmax_nv, error_n1 = softmax_nv * real_n1, error_n1 * real_n1
    return loss, softmax_nv.to(logits_nv.dtype), error_n1.to(logits_nv.dtype)


@functools.cache
def _elementwise_on(device_type: str) -> _Elementwise:
    """Compiles the elementwise part for a GPU, where each pass over the logits counts."""
    return torch.compile(_elementwise) if device_type == "cuda" else _elementwise
