"""The two standard workloads of a cell: a window of training steps, and a batch of served requests.

Compared rows run the same ones: the same batch of the same tokens at every call, whatever the technique.
"""

import torch

from efficientllm import paths
from efficientllm.config.schema import MeasureSettings
from efficientllm.data.packing import evaluation_windows, open_split
from efficientllm.measurement.protocol import Workload
from efficientllm.models.decoder import Decoder
from efficientllm.serving.engine import GreedyEngine


def serving_prompts(settings: MeasureSettings, device: torch.device) -> torch.Tensor:
    """Prompts `[B, P]` from the start of the test split's windows, the same for every cell."""
    windows = evaluation_windows(open_split(paths.DATA, "test"), settings.serving_prompt_length)
    return torch.as_tensor(windows[: settings.serving_batch_size, : settings.serving_prompt_length], device=device)


def serving_engine(decoder: Decoder, settings: MeasureSettings) -> GreedyEngine:
    """Makes the model ready to serve batches of the protocol's shape."""
    return GreedyEngine(
        decoder, settings.serving_batch_size, settings.serving_prompt_length, settings.serving_output_length
    )


def serving_workload(engine: GreedyEngine, settings: MeasureSettings, device: torch.device) -> Workload:
    """One batch of requests: prefill, then greedy decoding of a forced number of tokens."""
    prompts = serving_prompts(settings, device)

    def step() -> None:
        engine.generate(prompts)

    return Workload(
        step=step,
        tokens_per_call=len(prompts) * settings.serving_output_length,
        samples_per_call=len(prompts),
        device=device,
    )
