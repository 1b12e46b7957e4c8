"""Next-token losses."""

from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional as F

from efficientllm.data.packing import IGNORED
from efficientllm.training.linear_cross_entropy import linear_cross_entropy

if TYPE_CHECKING:
    from efficientllm.models.decoder import Decoder

_WHOLE_LOGITS_BYTES = 2**26  # below, one pass over logits that are held is faster than several products


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


def training_loss(
    decoder: "Decoder", inputs_bt: torch.Tensor, labels_bt: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean next-token loss of a batch.

    Args:
        decoder: The model.
        inputs_bt: Token ids `[B, T]`.
        labels_bt: The token after each input, `IGNORED` where there is no loss.

    Returns:
        The loss to minimise (with the mixture of experts' balancing loss, where there is one), and the cross-entropy
        alone, detached.
    """
    hidden_btc, auxiliary_loss = decoder.hidden_states_and_loss(inputs_bt)
    loss = _mean_loss(decoder, hidden_btc.flatten(0, 1), labels_bt.flatten())
    total = loss if auxiliary_loss is None else loss + auxiliary_loss
    return total, loss.detach()


def _mean_loss(decoder: "Decoder", hidden_nc: torch.Tensor, labels_n: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy; logits that are large, of a head that is a plain matrix, are never held whole."""
    head = decoder.embed_tokens if decoder.lm_head is None else decoder.lm_head
    large = 4 * len(labels_n) * head.weight.shape[0] > _WHOLE_LOGITS_BYTES
    if large and type(head) in (nn.Embedding, nn.Linear):
        return linear_cross_entropy(hidden_nc, head.weight, labels_n, ignored=IGNORED)
    return F.cross_entropy(decoder.project(hidden_nc).float(), labels_n, ignore_index=IGNORED)
