"""Greedy generation of a fixed number of tokens for a batch of prompts.

Lengths are forced, since an early end of text would make two models incomparable. All memory is allocated beforehand:
the cache, the prompts, the tokens. Nothing is read back from the device between tokens.

On a GPU every step is recorded once as a CUDA graph, one for the prompt and one for each position, and later only
replayed. A decoding step of a small model takes the device a fraction of the time that the host needs to launch its
kernels one by one; without graphs one would measure Python. Decoding is compiled block by block before: between its matrix
products stand dozens of kernels that take the device longer to start than to compute. For a single sequence, whose products
are all of a matrix and a vector, these are kernels of our own, with the norms, gates and sums around them: they read the weights
faster than a library's, which are made for matrices. Products with 4-bit weights are such kernels for several sequences too.
Compiled steps are kept where they are faster. A graph of its own for each position lets each step read just the tokens that are
there, and every architecture be recorded as it is.
"""

import functools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from efficientllm.device import synchronize
from efficientllm.errors import first_line
from efficientllm.models.cuda_graphs import RecordingError, Step, record
from efficientllm.models.decoder import Decoder
from efficientllm.models.second_context import speed_up_replays
from efficientllm.serving.clock import Clock

_COMPARED, _TRIES = 5, 5
"""Steps that are tried compiled, the prompt and four tokens, and how often those tokens are timed beside uncompiled ones."""

_VOCABULARY_PARTS = 64
"""Parts whose most likely token is sought at once; vocabularies are multiples of that but for few."""

PASS_TOKENS = 32768
"""Prompt tokens, over the whole batch, that are computed in one pass; longer prompts take several, as servers do."""


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
        output_length: Tokens to generate for each prompt, at least two.
        pass_tokens: Prompt tokens, over the whole batch, that are computed in one pass.
    """

    @torch.inference_mode()
    def __init__(
        self,
        decoder: Decoder,
        batch_size: int,
        prompt_length: int,
        output_length: int,
        *,
        pass_tokens: int = PASS_TOKENS,
    ) -> None:
        self._decoder = decoder
        self._device = decoder.embed_tokens.weight.device
        self._columns = max(1, pass_tokens // batch_size)
        self.cache = decoder.new_cache(batch_size, prompt_length + output_length)
        self._prompts = torch.zeros(batch_size, prompt_length, dtype=torch.long, device=self._device)
        self._tokens = torch.zeros(batch_size, output_length, dtype=torch.long, device=self._device)
        # not kept as steps of its own, whose references to itself would keep the cache alive until the next collection
        self._graphs: list[Step] = []
        self._between = torch.cuda.Event(enable_timing=True) if self._device.type == "cuda" else None
        self._project: Callable[[torch.Tensor], torch.Tensor] = decoder.project
        self._most_likely: Callable[[torch.Tensor], torch.Tensor] = _most_likely
        self.execution = f"launched kernel by kernel ({self._device.type.upper()})"
        if self._device.type == "cuda":
            self._record(output_length)
            # behind all recording and all graphs that were given back
            if self._graphs and (obstacle := speed_up_replays(self._device)) is not None:
                self.execution += f", at the slower of two speeds: {obstacle}"

    @property
    def prompt_length(self) -> int:
        """Tokens of each prompt."""
        return self._prompts.shape[1]

    @property
    def decoded_tokens(self) -> int:
        """Tokens of each sequence that come after the first, and so from a decoding step of their own."""
        return self._tokens.shape[1] - 1

    @torch.inference_mode()
    def unseen_bytes(self) -> int:
        """Measures the device memory that the prompts need for a while, and that their graph keeps where the allocator does not see it.

        The prompts, the largest step by far, are computed once for it, launched kernel by kernel. Without graphs it is 0.
        """
        if not self._graphs:
            return 0
        torch.cuda.reset_peak_memory_stats(self._device)
        before = torch.cuda.memory_allocated(self._device)
        self._launch(0)
        return torch.cuda.max_memory_allocated(self._device) - before

    @torch.inference_mode()
    def generate(self, prompts: torch.Tensor, *, time_tokens: bool = False) -> Generation:
        """Generates greedily, and waits for the result.

        Args:
            prompts: Token ids `[B, P]`, of the engine's shape.
            time_tokens: Whether to note the time of each token: on a GPU by events between the steps, which do not make
                the host wait, so that the steps follow each other as they do without.
        """
        self._prompts.copy_(prompts)
        clock = Clock(self._device) if time_tokens else None
        synchronize(self._device)
        if clock is not None:
            clock.mark()
        for index in range(self._tokens.shape[1]):
            self._step(index)
            if clock is not None:
                clock.mark()
        synchronize(self._device)
        return Generation(self._tokens.clone(), [] if clock is None else clock.seconds())

    @torch.inference_mode()
    def prefill(self, prompts: torch.Tensor) -> None:
        """Computes the prompts and their first tokens; may return before the device has finished."""
        self._prompts.copy_(prompts)
        self._step(0)

    @torch.inference_mode()
    def decode(self) -> None:
        """Decodes all tokens after the first, behind the prompts of the last call; may return before the device has finished.

        Called again it decodes at the same positions anew. A state that moves along with the tokens (a recurrent one, the
        window of sparse attention) goes on from where it was, which changes what is generated but not the work.
        """
        self.cache.length = self.prompt_length
        for index in range(1, self._tokens.shape[1]):
            self._step(index)

    def _record(self, output_length: int) -> None:
        """Records all steps, compiled where that is possible and faster, or says why they cannot be recorded."""
        steps = [functools.partial(self._launch, index) for index in range(output_length)]
        self._decode_uncompiled()  # as another engine for this decoder may have left it
        try:
            # without the prompt, which takes the longest by far and is never compiled: what the cache holds changes no time
            plain = record([self._first_decoding_step, *steps[2:_COMPARED]], self._device)
            obstacle = self._compile(steps)
            if obstacle is None:
                obstacle = self._record_compiled(steps, plain)
            if obstacle is not None:
                self._decode_uncompiled()
                self._graphs = record(steps, self._device)
            how = "decoding compiled block by block" if obstacle is None else f"decoding not compiled: {obstacle}"
            self.execution = f"CUDA graphs, one per position; {how}"
        except RecordingError as error:
            self.execution = f"launched kernel by kernel (no CUDA graphs: {error})"

    def _record_compiled(self, steps: Sequence[Step], plain: Sequence[Step]) -> str | None:
        """Records steps that have run compiled, or says why others are better."""
        try:
            self._graphs = record(steps, self._device, prepared=True)
        except RecordingError as error:
            return str(error)
        speed_up_replays(self._device)  # or what has more kernels would seem slower than it will be
        # packed weights, for example, which the compiler takes apart for a product of its own
        compiled_seconds, plain_seconds = self._seconds(self._graphs[1:_COMPARED], plain)
        return "that would be slower" if compiled_seconds > plain_seconds else None

    def _first_decoding_step(self) -> None:
        self.cache.length = self.prompt_length
        self._launch(1)

    def _compile(self, steps: Sequence[Step]) -> str | None:
        """Has decoding run compiled from now on, or says why not."""
        single = self._prompts.shape[0] == 1
        options = single_sequence_options() if single else several_sequences_options()
        self._decoder.compile_decoding(options)
        if single:
            self._project = torch.compile(self._decoder.project, dynamic=True, options=options)
        self._most_likely = torch.compile(_most_likely, dynamic=True)
        try:
            for step in steps[: max(_COMPARED, 1 + self._decoder.decoding_period)]:
                step()
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:  # the kind that PyTorch's compiler raises
            return first_line(error)
        return None

    def _decode_uncompiled(self) -> None:
        self._decoder.decode_uncompiled()
        self._project = self._decoder.project
        self._most_likely = _most_likely

    def _seconds(self, *alternatives: Sequence[Step]) -> list[float]:
        """The shortest times in which alternatives are replayed: by turns, since a device that was idle is slow at first."""
        times: list[list[float]] = [[] for _ in alternatives]
        for _ in range(_TRIES):
            for graphs, found in zip(alternatives, times, strict=True):
                synchronize(self._device)
                started = time.perf_counter()
                for replay in graphs:
                    replay()
                synchronize(self._device)
                found.append(time.perf_counter() - started)
        return [min(found) for found in times]

    def _step(self, index: int) -> None:
        """Computes the tokens at one index: the first from the prompts, each later one from the one before."""
        if self._graphs:
            self._graphs[index]()
            if self._between is not None:
                # without it the device waits up to 70 us between graphs of a process' later engines (docs/log.md)
                self._between.record()
        else:
            self._launch(index)

    def _launch(self, index: int) -> None:
        if index:
            self._advance(self._tokens[:, index - 1 : index], index)
            return
        self.cache.clear()
        for first in range(0, self.prompt_length, self._columns):
            self._advance(self._prompts[:, first : first + self._columns], 0)

    def _advance(self, inputs_bt: torch.Tensor, index: int) -> None:
        hidden = self._decoder.hidden_states(inputs_bt, cache=self.cache)
        self._tokens[:, index] = self._most_likely(self._project(hidden[:, -1]))


def _most_likely(logits_bv: torch.Tensor) -> torch.Tensor:
    if logits_bv.device.type == "cpu" or logits_bv.shape[-1] % _VOCABULARY_PARTS:
        return logits_bv.argmax(dim=-1)
    return _most_likely_by_parts(logits_bv)


def _most_likely_by_parts(logits_bv: torch.Tensor) -> torch.Tensor:
    """The first of the highest; a GPU's kernels, PyTorch's and the compiler's, would have each row read by a single block."""
    size = logits_bv.shape[-1] // _VOCABULARY_PARTS
    highest, place = logits_bv.unflatten(-1, (_VOCABULARY_PARTS, size)).max(dim=-1)
    part = highest.argmax(dim=-1, keepdim=True)
    return (place.gather(-1, part) + part * size).squeeze(-1)


# each is one object, or every engine of a process would compile anew


@functools.cache
def several_sequences_options() -> dict[str, Any]:
    """Options of the compiler for decoding several sequences."""
    from efficientllm.serving.packed_product_pass import PackedProducts  # which brings the compiler

    return {"post_grad_custom_pre_pass": PackedProducts()}


@functools.cache
def single_sequence_options() -> dict[str, Any]:
    """Options of the compiler for decoding a single sequence."""
    from efficientllm.serving.matrix_vector_pass import MatrixVectorProducts  # which brings the compiler

    return {
        "post_grad_custom_pre_pass": MatrixVectorProducts(),
        # a kernel is set up while the one before it ends (programmatic dependent launch, where the device has it)
        "triton.enable_pdl": True,
    }
