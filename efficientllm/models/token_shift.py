"""RWKV's token shift (Peng et al. 2023, arXiv 2305.13048, section 3.1)."""

import torch
from torch.nn import functional as F

from efficientllm.models.interfaces import LayerState


def shifted_difference(hidden_btc: torch.Tensor, state: LayerState | None) -> torch.Tensor:
    """Returns the previous token's hidden state minus each token's own; before the first token stands zero.

    Args:
        hidden_btc: The layer's input.
        state: Holds the last token of the pass before as `previous`, and gets this pass' last one; None without cache.
    """
    if state is None:
        return F.pad(hidden_btc, (0, 0, 1, -1)) - hidden_btc
    first = state["previous"].unsqueeze(1).to(hidden_btc.dtype)
    shifted = torch.cat((first, hidden_btc[:, :-1]), dim=1)
    state["previous"].copy_(hidden_btc[:, -1])
    return shifted - hidden_btc
