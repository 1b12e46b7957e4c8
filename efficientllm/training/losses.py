"""Next-token losses."""

from typing import TYPE_CHECKING

import torch
from torch.nn import functional as F

from efficientllm.data.packing import IGNORED

if TYPE_CHECKING:
    from efficientllm.models.decoder import Decoder


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
    output = decoder(inputs_bt)
    loss = F.cross_entropy(output.logits.float().flatten(0, 1), labels_bt.flatten(), ignore_index=IGNORED)
    total = loss if output.auxiliary_loss is None else loss + output.auxiliary_loss
    return total, loss.detach()
