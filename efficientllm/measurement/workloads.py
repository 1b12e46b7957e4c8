"""The standard serving workloads of a cell: a batch of served requests, and the prefill of one.

Compared rows run the same one: the same batch of the same tokens at every call, whatever the technique.
"""

from pathlib import Path

import numpy as np
import torch

from efficientllm.config.schema import MeasureSettings
from efficientllm.data.packing import open_split
from efficientllm.device import synchronize
from efficientllm.measurement.protocol import Workload
from efficientllm.models.decoder import Decoder
from efficientllm.serving.engine import GreedyEngine


def serving_prompts(held_out: Path, batch_size: int, length: int, device: torch.device) -> torch.Tensor:
    """Prompts `[B, P]`: consecutive pieces of the test split, the same for every cell of a size.

    Args:
        held_out: Folder with the test split in the model's own tokens; one that has fewer is read again from its start.
        batch_size: Number of prompts.
        length: Tokens of each prompt.
        device: Where the model lies.
    """
    tokens = open_split(held_out, "test")[: batch_size * length]
    return torch.as_tensor(np.resize(tokens.astype(np.int64), (batch_size, length)), device=device)


def serving_engine(decoder: Decoder, settings: MeasureSettings) -> GreedyEngine:
    """Makes the model ready to serve batches of the protocol's shape."""
    return GreedyEngine(
        decoder, settings.serving_batch_size, settings.serving_prompt_length, settings.serving_output_length
    )


def serving_workload(engine: GreedyEngine, prompts: torch.Tensor) -> Workload:
    """One batch of requests: prefill, then greedy decoding of a forced number of tokens."""

    def step() -> None:
        engine.generate(prompts)

    return Workload(
        step=step,
        tokens_per_call=len(prompts) * (engine.decoded_tokens + 1),
        samples_per_call=len(prompts),
        device=prompts.device,
        unseen_bytes=engine.unseen_bytes(),
    )


def prefill_workload(engine: GreedyEngine, prompts: torch.Tensor) -> Workload:
    """The prompts of one batch of requests and their first tokens, waited for as whole requests are."""

    def step() -> None:
        engine.prefill(prompts)
        synchronize(prompts.device)

    return Workload(step=step, tokens_per_call=prompts.numel(), samples_per_call=len(prompts), device=prompts.device)
