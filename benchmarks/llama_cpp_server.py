"""llama.cpp through its Python package, serving the same weights as the benchmark's other engines."""

import ctypes
from pathlib import Path

import llama_cpp
import numpy as np
import torch

_PART = 512  # prompt tokens that llama.cpp computes at once


class LlamaCpp:
    """Greedy generation of forced length by llama.cpp.

    Args:
        path: A GGUF file.
        batch: Sequences served together.
        prompt: Tokens of each prompt.
        output: Tokens to generate.
        threads: Threads of the CPU.
    """

    def __init__(self, path: Path, batch: int, prompt: int, output: int, threads: int) -> None:
        self._shape = (batch, prompt, output)
        llama_cpp.llama_log_set(_SILENT, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
        chosen = llama_cpp.llama_model_default_params()
        chosen.n_gpu_layers = 999 if torch.cuda.is_available() else 0
        self._model = llama_cpp.llama_model_load_from_file(str(path).encode(), chosen)
        settings = llama_cpp.llama_context_default_params()
        # each sequence has a cache of its own, whose length llama.cpp rounds up to 256
        settings.n_ctx, settings.n_seq_max = batch * (-(prompt + output) // 256 * -256), batch
        settings.n_batch = settings.n_ubatch = max(_PART, batch)
        settings.n_threads = settings.n_threads_batch = threads
        self._context = llama_cpp.llama_init_from_model(self._model, settings) if self._model else None
        if not self._context:
            raise RuntimeError(f"llama.cpp cannot serve {path}")
        self._words = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self._model))
        self._batch = llama_cpp.llama_batch_init(settings.n_batch, 0, 1)

    def close(self) -> None:
        """Frees the model and its cache."""
        llama_cpp.llama_batch_free(self._batch)
        llama_cpp.llama_free(self._context)
        llama_cpp.llama_model_free(self._model)

    def prefill(self, prompts: np.ndarray) -> np.ndarray:
        """Computes prompts `[B, P]` and returns the first generated token of each."""
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self._context), True)
        batch, length, _ = self._shape
        first = np.zeros(batch, np.int64)
        for row in range(batch):
            for start in range(0, length, _PART):
                places = range(start, min(start + _PART, length))
                last = places[-1] == length - 1
                found = self._decode(
                    [(prompts[row, place], place, row, last and place == places[-1]) for place in places]
                )
                if last:
                    first[row] = found[0]
        return first

    def decode(self, first: np.ndarray) -> np.ndarray:
        """Generates the tokens `[B, output - 1]` that follow the first ones."""
        _, prompt, output = self._shape
        found, current = [], first
        for step in range(output - 1):
            current = self._decode([(token, prompt + step, row, True) for row, token in enumerate(current)])
            found.append(current)
        return np.stack(found, axis=1)

    def _decode(self, entries: list[tuple[int, int, int, bool]]) -> np.ndarray:
        """Computes entries of token, position, sequence and whether its next token is wanted; returns those tokens."""
        batch = self._batch
        batch.n_tokens = len(entries)
        for place, (token, position, row, asked) in enumerate(entries):
            batch.token[place], batch.pos[place], batch.logits[place] = int(token), position, asked
            batch.n_seq_id[place], batch.seq_id[place][0] = 1, row
        if (code := llama_cpp.llama_decode(self._context, batch)) != 0:
            raise RuntimeError(f"llama_decode returned {code}")
        wanted = [place for place, entry in enumerate(entries) if entry[3]]
        logits = [llama_cpp.llama_get_logits_ith(self._context, place) for place in wanted]
        return np.array([np.ctypeslib.as_array(row, (self._words,)).argmax() for row in logits])


@llama_cpp.llama_log_callback
def _SILENT(level: int, text: bytes, data: ctypes.c_void_p) -> None:  # noqa: N802 - kept alive as a constant
    """llama.cpp tells what it does, tensor by tensor."""
