"""Held-out perplexity."""

from dataclasses import dataclass

import numpy as np
import torch

from efficientllm.data.packing import IGNORED
from efficientllm.models.decoder import Decoder
from efficientllm.training.losses import token_losses


@dataclass(frozen=True)
class WindowLosses:
    """Summed cross-entropy and number of predicted tokens of each evaluated window.

    Args:
        nats: Summed loss of each window.
        tokens: Predicted tokens of each window.
    """

    nats: np.ndarray
    tokens: np.ndarray

    @property
    def mean(self) -> float:
        """Mean loss in nats per token."""
        return float(self.nats.sum() / self.tokens.sum())


@torch.inference_mode()
def window_losses(decoder: Decoder, windows: np.ndarray, batch_size: int, device: torch.device) -> WindowLosses:
    """Evaluates a model on windows of held-out text.

    Args:
        decoder: The model, in evaluation mode.
        windows: Token ids `[N, T + 1]`, -100 behind the end of a shorter last window.
        batch_size: Windows that are evaluated together.
        device: Where the model lies.
    """
    nats, tokens = [], []
    for start in range(0, len(windows), batch_size):
        batch = torch.as_tensor(windows[start : start + batch_size], device=device)
        inputs, labels = batch[:, :-1].clamp_min(0), batch[:, 1:]
        nats.append(token_losses(decoder(inputs).logits, labels).double().sum(dim=1).cpu().numpy())
        tokens.append((labels != IGNORED).sum(dim=1).cpu().numpy())
    return WindowLosses(np.concatenate(nats), np.concatenate(tokens))


def spread_windows(windows: np.ndarray, limit: int) -> np.ndarray:
    """Takes at most `limit` windows, evenly spread over the split."""
    if len(windows) <= limit:
        return windows
    taken: np.ndarray = windows[np.linspace(0, len(windows) - 1, limit).round().astype(int)]
    return taken
