"""Greedy generation of a fixed number of tokens for a batch of prompts.

Lengths are forced, since an early end of text would make two models incomparable. Nothing is read back from the device
between tokens: the next token stays on it, and the host waits only where the caller asks for times.
"""

import time
from dataclasses import dataclass

import torch

from efficientllm.models.decoder import Decoder


@dataclass(frozen=True)
class Generation:
    """A generated batch.

    Args:
        tokens: Token ids `[B, output_length]`.
        token_times: Seconds from the start to each of the `output_length` tokens, empty where they were not asked for.
    """

    tokens: torch.Tensor
    token_times: list[float]


@torch.inference_mode()
def generate(decoder: Decoder, prompts: torch.Tensor, output_length: int, *, time_tokens: bool = False) -> Generation:
    """Generates greedily.

    Args:
        decoder: The model.
        prompts: Token ids `[B, P]` on the model's device, no padding.
        output_length: Tokens to generate for each prompt.
        time_tokens: Whether to wait for each token and note its time.
    """
    device = prompts.device
    cache = decoder.new_cache(prompts.shape[0], prompts.shape[1] + output_length)
    tokens, times = [], []
    _synchronize(device)
    started = time.perf_counter()
    inputs = prompts
    for _ in range(output_length):
        hidden = decoder.hidden_states(inputs, cache=cache)
        inputs = decoder.project(hidden[:, -1:]).argmax(dim=-1)
        tokens.append(inputs)
        if time_tokens:
            _synchronize(device)
            times.append(time.perf_counter() - started)
    _synchronize(device)
    return Generation(torch.cat(tokens, dim=1), times)


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
