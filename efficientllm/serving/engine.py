"""Greedy generation of a fixed number of tokens for a batch of prompts.

Lengths are forced, since an early end of text would make two models incomparable. All memory is allocated beforehand:
the cache, the prompts, the tokens. Nothing is read back from the device between tokens.

On a GPU every step is recorded once as a CUDA graph, one for the prompt and one for each position, and later only
replayed. A decoding step of a small model takes the device a fraction of the time that the host needs to launch its
kernels one by one; without graphs one would measure Python. A graph of its own for each position lets each step read
just the tokens that are there.
"""

import time
from collections.abc import Callable
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


class GreedyEngine:
    """Generates for batches of one shape.

    Args:
        decoder: The model, in evaluation mode.
        batch_size: Number of prompts.
        prompt_length: Tokens of each prompt; there is no padding.
        output_length: Tokens to generate for each prompt.
    """

    @torch.inference_mode()
    def __init__(self, decoder: Decoder, batch_size: int, prompt_length: int, output_length: int) -> None:
        self._decoder = decoder
        self._device = decoder.embed_tokens.weight.device
        self._cache = decoder.new_cache(batch_size, prompt_length + output_length)
        self._prompts = torch.zeros(batch_size, prompt_length, dtype=torch.long, device=self._device)
        self._tokens = torch.zeros(batch_size, output_length, dtype=torch.long, device=self._device)
        self._steps: list[Callable[[], None]] = [self._prefill]
        self._steps += [lambda index=index: self._decode(index) for index in range(1, output_length)]  # type: ignore[misc]
        self.execution = "launched kernel by kernel"
        if self._device.type == "cuda":
            self._record()

    @torch.inference_mode()
    def generate(self, prompts: torch.Tensor, *, time_tokens: bool = False) -> Generation:
        """Generates greedily.

        Args:
            prompts: Token ids `[B, P]`, of the engine's shape.
            time_tokens: Whether to wait for each token and note its time.
        """
        self._prompts.copy_(prompts)
        times = []
        self._synchronize()
        started = time.perf_counter()
        for step in self._steps:
            step()
            if time_tokens:
                self._synchronize()
                times.append(time.perf_counter() - started)
        self._synchronize()
        return Generation(self._tokens.clone(), times)

    def _prefill(self) -> None:
        self._cache.clear()
        self._advance(self._prompts, 0)

    def _decode(self, index: int) -> None:
        self._advance(self._tokens[:, index - 1 : index], index)

    def _advance(self, inputs_bt: torch.Tensor, index: int) -> None:
        hidden = self._decoder.hidden_states(inputs_bt, cache=self._cache)
        self._tokens[:, index] = self._decoder.project(hidden[:, -1]).argmax(dim=-1)

    def _record(self) -> None:
        """Replaces each step by the graph of its kernels; where a step cannot be recorded, all stay as they are."""
        for step in self._steps:  # what is prepared at first use must not be recorded
            step()
        self._synchronize()
        graphs: list[torch.cuda.CUDAGraph] = []
        pool = torch.cuda.graph_pool_handle()
        try:
            for step in self._steps:
                graph = torch.cuda.CUDAGraph()
                with torch.cuda.graph(graph, pool=pool):
                    step()
                graphs.append(graph)
        except RuntimeError as error:
            self._synchronize()
            self.execution += f" (a step cannot be recorded as a CUDA graph: {str(error).splitlines()[0]})"
            return
        self._steps = [graph.replay for graph in graphs]
        self.execution = "CUDA graphs, one per position"

    def _synchronize(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
