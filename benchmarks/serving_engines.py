"""Models of random weights at named shapes, and the engines that serve them in the serving benchmark."""

from collections.abc import Callable
from typing import Any, Protocol

import torch

from efficientllm.models.accounting import bytes_in_memory
from efficientllm.models.decoder import Decoder
from efficientllm.models.imports import from_transformers
from efficientllm.quantization.precision import precision
from efficientllm.serving.clock import Clock
from efficientllm.serving.engine import GreedyEngine

_LLAMA = {"rope_parameters": {"rope_type": "default", "rope_theta": 500000.0}, "rms_norm_eps": 1e-5}
_QWEN = {"rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0}, "rms_norm_eps": 1e-6}

SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "tiny": (
        "Llama",
        {
            "hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
            "intermediate_size": 256, "vocab_size": 512, "tie_word_embeddings": False, **_LLAMA,
        },
    ),
    "168M": (
        "Llama",
        {
            "hidden_size": 1024, "num_hidden_layers": 12, "num_attention_heads": 16, "num_key_value_heads": 4,
            "intermediate_size": 2816, "vocab_size": 32000, "tie_word_embeddings": True, **_LLAMA,
        },
    ),
    "Llama-3.2-1B": (
        "Llama",
        {
            "hidden_size": 2048, "num_hidden_layers": 16, "num_attention_heads": 32, "num_key_value_heads": 8,
            "intermediate_size": 8192, "vocab_size": 128256, "tie_word_embeddings": True, **_LLAMA,
        },
    ),
    "Qwen2.5-7B": (
        "Qwen2",
        {
            "hidden_size": 3584, "num_hidden_layers": 28, "num_attention_heads": 28, "num_key_value_heads": 4,
            "intermediate_size": 18944, "vocab_size": 152064, "tie_word_embeddings": False, **_QWEN,
        },
    ),
}  # fmt: skip
"""Transformers' class and its configuration by name."""

ENGINES = ("generate", "static", "ours")

_WARM_UP_TOKENS = 8


class Server(Protocol):
    """An engine with its model, ready for batches of one shape."""

    @property
    def execution(self) -> str:
        """What ran."""

    def warm_up(self, prompts: torch.Tensor) -> None:
        """Compiles, records and tunes whatever is, so that requests are as fast as they will be."""

    def request(self, prompts: torch.Tensor, clock: Clock | None = None) -> torch.Tensor:
        """Generates, marking each token on the clock; may return before the device has finished."""

    def prefill(self, prompts: torch.Tensor) -> None:
        """Computes the first token alone."""


class Ours:
    """Our engine."""

    def __init__(self, decoder: Decoder, batch: int, prompt: int, output: int) -> None:
        self._decoder = decoder
        self._engine = GreedyEngine(decoder, batch, prompt, output)
        self.times: list[float] = []

    @property
    def execution(self) -> str:
        """What ran."""
        return self._engine.execution

    def warm_up(self, prompts: torch.Tensor) -> None:
        """A request where steps are recorded, which loads them to the device; else a few tokens, which take as long."""
        if self.execution.startswith("CUDA graphs"):
            self.request(prompts)
        else:
            GreedyEngine(self._decoder, prompts.shape[0], prompts.shape[1], _WARM_UP_TOKENS).generate(prompts)

    def request(self, prompts: torch.Tensor, clock: Clock | None = None) -> torch.Tensor:
        """Generates; the engine has a clock of its own, whose times `times` holds then."""
        generation = self._engine.generate(prompts, time_tokens=clock is not None)
        self.times = generation.token_times
        return generation.tokens

    def prefill(self, prompts: torch.Tensor) -> None:
        """Computes the first token alone."""
        self._engine.prefill(prompts)


class Theirs:
    """Transformers' `generate`."""

    def __init__(self, model: Any, batch: int, prompt: int, output: int, *, static: bool) -> None:
        del batch
        self._model, self._prompt, self._output, self._static = model, prompt, output, static

    @property
    def execution(self) -> str:
        """What ran: whether Transformers compiles is its own decision."""
        if not self._static:
            return "default cache, eager"
        return f"static cache, {'eager' if getattr(self._model, '_compiled_call', None) is None else 'compiled'}"

    def warm_up(self, prompts: torch.Tensor) -> None:
        """A few tokens with the cache of a whole request, for which a static one is compiled; twice, as graphs are recorded."""
        for _ in range(2 if self._static else 1):
            self._generate(prompts, self._output, stop_after=_WARM_UP_TOKENS)
        self.prefill(prompts)

    def request(self, prompts: torch.Tensor, clock: Clock | None = None) -> torch.Tensor:
        """Generates; a logits processor is called once a token, and marks it."""

        def mark(ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            del ids
            if clock is not None:
                clock.mark()
            return scores

        if clock is not None:
            clock.mark()
        return self._generate(prompts, self._output, mark)[:, self._prompt :]

    def prefill(self, prompts: torch.Tensor) -> None:
        """Computes the first token alone."""
        self._generate(prompts, 1)

    def _generate(
        self,
        prompts: torch.Tensor,
        count: int,
        mark: Callable[..., torch.Tensor] | None = None,
        stop_after: int | None = None,
    ) -> torch.Tensor:
        options: dict[str, Any] = {"cache_implementation": "static"} if self._static else {}
        if stop_after is not None:
            last = self._prompt + stop_after

            def enough(ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
                del scores
                return torch.full(ids.shape[:1], ids.shape[1] >= last, device=ids.device)

            options["stopping_criteria"] = [enough]
        found: torch.Tensor = self._model.generate(
            prompts, attention_mask=torch.ones_like(prompts), max_new_tokens=count, min_new_tokens=count,
            do_sample=False, logits_processor=[] if mark is None else [mark], **options,
        )  # fmt: skip
        return found


def make_model(shape: str, key: str, engine: str, longest: int, options: dict[str, Any], device: torch.device) -> Any:
    """Makes a model of random weights on the device, in a precision: a decoder of ours, or Transformers' own.

    Args:
        shape: Name of a shape.
        key: The precision.
        engine: One of `ENGINES`.
        longest: Tokens that prompt and output have together.
        options: The precision's parameters.
        device: Where it is made.

    Raises:
        CellFailure: The device lacks the type.
    """
    import transformers

    family, fields = SHAPES[shape]
    # matrices of unit gain: activations then stand between those of a trained model, and few are outliers to LLM.int8()
    config = getattr(transformers, f"{family}Config")(
        **fields, max_position_embeddings=max(2048, longest), initializer_range=fields["hidden_size"] ** -0.5,
        bos_token_id=None, eos_token_id=None, pad_token_id=None,
    )  # fmt: skip
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(device):
            model = getattr(transformers, f"{family}ForCausalLM")(config)
    finally:
        torch.set_default_dtype(before)
    model = model.requires_grad_(False).eval()
    model.generation_config.pad_token_id = 0
    if engine == "ours":
        model = from_transformers(model).requires_grad_(False)
    implementation = precision(key)
    implementation.convert(model, implementation.options(options))
    return model


def embedding(model: Any) -> torch.Tensor:
    """Returns the token embedding of a model of either kind."""
    weight: torch.Tensor = (model.embed_tokens if isinstance(model, Decoder) else model.get_input_embeddings()).weight
    return weight


def cache_bytes_per_token(model: Any) -> int:
    """Keys and values of all layers; the same model, so the same for every engine."""
    config = model.config
    layers, heads, shared = (
        (config.layers, config.heads, config.key_value_heads)
        if isinstance(model, Decoder)
        else (config.num_hidden_layers, config.num_attention_heads, config.num_key_value_heads)
    )
    return int(2 * layers * shared * (config.hidden_size // heads) * embedding(model).element_size())


def bytes_per_step(model: Any, batch: int, context: float) -> float:
    """Bytes that a decoding step has to read: weights without the rows of the embedding that are only looked up, and cache."""
    table, config = embedding(model), model.config
    tied = config.tie_embeddings if isinstance(model, Decoder) else config.tie_word_embeddings
    looked_up = 0 if tied else table.nbytes - batch * table[0].nbytes
    return bytes_in_memory(model) - looked_up + batch * context * cache_bytes_per_token(model)
