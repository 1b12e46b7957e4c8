"""The decoder: embedding, blocks, final norm, output head."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import nn
from torch.nn import functional as F

from efficientllm.errors import CellFailure
from efficientllm.models.cache import BlockState, DecodingCache
from efficientllm.models.components import component
from efficientllm.models.config import DecoderConfig
from efficientllm.models.embedding import embedding
from efficientllm.models.interfaces import Block, Component, Kernel, Mixer, Position
from efficientllm.models.recomputation import TwinGenerators, recomputing
from efficientllm.models.spans import reads_whole_rows, share, span_behind, whole_rows

_INITIAL_DEVIATION = 0.02


class DecoderOutput(NamedTuple):
    """Result of a forward pass.

    Args:
        logits: Scores of the next token `[B, T, V]`.
        auxiliary_loss: Scalar to add to the training loss, already weighted; None in evaluation mode and where the
            architecture has none.
    """

    logits: torch.Tensor
    auxiliary_loss: torch.Tensor | None


class Decoder(nn.Module):
    """A causal language model.

    Weights are drawn from torch's default generator as in GPT-2: normal with deviation 0.02, and for the projections
    that write to the residual stream 0.02 / sqrt(2 layers); biases are zero, norms one; the token embedding has the
    configured deviation.

    Args:
        config: Shape and components.

    Raises:
        ParameterError: A component is unknown, or its options or the shape do not suit it.
    """

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config = config
        self.gradient_checkpointing = False
        self._twin_generators: TwinGenerators | None = None
        self._compiled: list[Callable[..., Any]] | None = None
        self._compiled_decoding: list[Callable[..., Any]] | None = None
        block_class = component("block", config.block)
        self.embed_tokens = embedding(config.vocabulary_size, config.hidden_size)
        self.position: Position = component("position", config.position)(config)
        self.layers = nn.ModuleList(block_class(config, layer) for layer in range(config.layers))
        self.position.check_width(self._mixer.rotary_dim)
        self.norm = block_class.final_norm(config)
        self.lm_head = None
        if not config.tie_embeddings:
            self.lm_head = nn.Linear(config.hidden_size, config.vocabulary_size, bias=False)
        if not self.embed_tokens.weight.is_meta:  # there is nothing to draw there, which takes PyTorch its time
            self.reset_parameters()

    def blocks(self) -> list[Block]:
        """Lists the residual blocks."""
        return [cast(Block, layer) for layer in self.layers]

    def components(self) -> list[Component]:
        """Lists the mixers, feed-forward layers and positional encodings."""
        return [module for module in self.modules() if isinstance(module, Component)]

    def select_kernel(self, kernel: Kernel) -> None:
        """Chooses the implementation that the components run: `auto`, `reference` or `fast`.

        Where `fast` is chosen and cannot run, the next forward pass, or `kernels`, raises a `ParameterError`.
        """
        for part in self.components():
            part.kernel = kernel

    def kernels(self, device: torch.device) -> dict[str, str]:
        """Names the implementation that each kind of component runs on a device, in the type now computed in.

        Raises:
            ParameterError: `fast` was chosen and cannot run.
        """
        described = {part.kind: part.kernel_description(device) for part in self.components()}
        if self._compiled is not None:
            described["training compilation"] = "torch.compile, block by block"
        return described

    def compile_blocks(self, *, inside_hooks: bool = False) -> None:
        """Compiles the blocks for training, once per shape; inference and cached decoding stay as they are.

        All blocks run one compiled program: their code is the same, and only their weights differ.

        Args:
            inside_hooks: Compile what the blocks' hooks enclose, and leave the hooks out: FSDP gathers a block's weights
                in them, at which a program that held them would break off.

        Raises:
            CellFailure: The model lies on a CPU, for which torch.compile cannot compile one of its components.
        """
        if self.embed_tokens.weight.device.type == "cpu":
            for part in self.components():
                if not part.compiles_on_cpu:
                    raise CellFailure(
                        f"torch.compile cannot compile {type(part).__name__} for a CPU: set training.compile to none or auto"
                    )
        if inside_hooks:
            for block in self.layers:
                block.forward = _compiled_for_training(block)
            self._compiled = list(self.layers)
        else:
            self._compiled = [torch.compile(block, dynamic=False) for block in self.layers]

    def compile_decoding(self, options: Mapping[str, Any] | None = None) -> None:
        """Compiles the blocks for decoding token by token behind a cache, once for all batch sizes and positions.

        A step of a small batch consists of small kernels, several to a norm or a rotation, and the compiler fuses them.
        As in training all blocks run one program.

        Args:
            options: Of the compiler, as `torch.compile` takes them.
        """
        self._compiled_decoding = [
            torch.compile(block, dynamic=True, options=dict(options or {})) for block in self.layers
        ]

    @property
    def decoding_period(self) -> int:
        """Positions after which decoding has taken all its paths."""
        return self._mixer.decoding_period

    def decode_uncompiled(self) -> None:
        """Takes `compile_decoding` back."""
        self._compiled_decoding = None

    @property
    def _mixer(self) -> Mixer:
        return self.blocks()[0].mixer

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draws all weights anew, then lets each component draw those that want a law of their own."""
        residual_deviation = _INITIAL_DEVIATION / math.sqrt(2 * self.config.layers)
        residual = {
            id(weight)
            for block in self.blocks()
            for part in (block.mixer, block.feedforward)
            for weight in part.residual_projections()
        }
        for name, parameter in self.named_parameters():
            if parameter.dim() > 1:
                nn.init.normal_(parameter, std=residual_deviation if id(parameter) in residual else _INITIAL_DEVIATION)
            elif name.endswith(".bias"):
                nn.init.zeros_(parameter)
            else:
                nn.init.ones_(parameter)
        nn.init.normal_(self.embed_tokens.weight, std=self.config.embedding_deviation)
        for part in self.components():
            part.initialize()

    def hidden_states(
        self,
        input_ids_bt: torch.Tensor,
        *,
        cache: DecodingCache | None = None,
        padding_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Computes everything but the output head.

        Args:
            input_ids_bt: Token ids `[B, T]`: whole sequences, or with a cache the tokens that follow it.
            cache: Filled with this chunk; None computes whole sequences without one.
            padding_mask: Boolean `[B, T]`, True where a token is real; None where all are. Padding is never attended
                to and does not count as a position; behind real tokens it may stand in attention alone, since Mamba-2 and
                RWKV-7 mix each token with those that stand before it.

        Returns:
            Normalized hidden states `[B, T, C]`.

        Raises:
            ParameterError: The chunk does not fit the cache.
        """
        return self.hidden_states_and_loss(input_ids_bt, cache=cache, padding_mask=padding_mask)[0]

    def project(self, hidden_btc: torch.Tensor) -> torch.Tensor:
        """Returns the logits `[B, T, V]` of hidden states."""
        if self.lm_head is None:
            return F.linear(hidden_btc, self.embed_tokens.weight)
        return cast(torch.Tensor, self.lm_head(hidden_btc))

    def forward(
        self,
        input_ids_bt: torch.Tensor,
        *,
        cache: DecodingCache | None = None,
        padding_mask: torch.Tensor | None = None,
    ) -> DecoderOutput:
        """Computes the logits of every token; arguments as `hidden_states`."""
        hidden_btc, auxiliary_loss = self.hidden_states_and_loss(input_ids_bt, cache=cache, padding_mask=padding_mask)
        return DecoderOutput(self.project(hidden_btc), auxiliary_loss)

    def new_cache(
        self, batch_size: int, max_length: int, dtype: torch.dtype | None = None, device: Any = None
    ) -> DecodingCache:
        """Allocates an empty cache.

        Args:
            batch_size: Number of sequences.
            max_length: Longest sequence, prompt and output together; a GPU may be given up to fifteen rows more.
            dtype: Type of the states; by default the embedding's.
            device: Their device; by default the embedding's.
        """
        dtype = dtype or self.embed_tokens.weight.dtype
        device = device or self.embed_tokens.weight.device
        # some behind the last: a program that reads a part of the cache is not the one that reads all of it
        whole = reads_whole_rows(self.position, self._mixer, torch.device(device))
        rows = whole_rows(max_length) + 8 if whole else max_length
        blocks = [
            BlockState(
                block.mixer.new_cache(batch_size, rows, dtype, device),
                block.feedforward.new_cache(batch_size, rows, dtype, device),
            )
            for block in self.blocks()
        ]
        return DecodingCache(blocks, batch_size, max_length)

    def hidden_states_and_loss(
        self,
        input_ids_bt: torch.Tensor,
        *,
        cache: DecodingCache | None = None,
        padding_mask: torch.Tensor | None = None,
        balanced: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Returns `hidden_states` and the weighted auxiliary loss, for a caller that projects in its own way.

        Args:
            input_ids_bt: As for `hidden_states`, and so are the cache and the padding mask.
            cache: The cache.
            padding_mask: The padding mask.
            balanced: Tokens that count in the auxiliary loss `[B, T]`; by default those that are no padding.
        """
        span = span_behind(input_ids_bt, cache, padding_mask)
        span.balanced_bt = span.padding_mask_bt if balanced is None else balanced
        hidden_btc = self.position.embed(self.embed_tokens(input_ids_bt), span)
        share(span, hidden_btc, self.position, self._mixer)
        auxiliary_loss: torch.Tensor | None = None
        recomputes = self.gradient_checkpointing and self.training and cache is None
        recomputed = recomputing(self._twin_generators, random=self._draws_random_numbers()) if recomputes else None
        blocks: Sequence[Callable[..., Any]] = self.blocks()
        if self._compiled is not None and self.training and cache is None:
            blocks = self._compiled
        elif self._compiled_decoding is not None and cache is not None and span.length == 1:
            blocks = self._compiled_decoding
        for layer, block in enumerate(blocks):
            state = None if cache is None else cache.blocks[layer]
            parts = (None, None) if state is None else state.parts()
            if recomputed is not None:
                hidden_btc, loss = recomputed(layer, block, hidden_btc, span, *parts)
            else:
                hidden_btc, loss = block(hidden_btc, span, *parts)
            if loss is not None:
                auxiliary_loss = loss if auxiliary_loss is None else auxiliary_loss + loss
        if cache is not None:
            cache.length = span.end
        return self.norm(hidden_btc), auxiliary_loss

    def twin_generators(self, device: torch.device) -> list[torch.Generator]:
        """Has recomputed blocks draw from generators of their own from now on, where they draw any random numbers.

        Args:
            device: The CUDA device that the decoder lies on.

        Returns:
            The generators, which a CUDA graph of the training step has to know.
        """
        if not (self.gradient_checkpointing and self._draws_random_numbers()):
            return []
        self._twin_generators = TwinGenerators(len(self.layers), device)
        return self._twin_generators.all()

    @property
    def balances_experts(self) -> bool:
        """Whether training adds a loss that depends on which experts the tokens are sent to."""
        return any(block.feedforward.balances_experts for block in self.blocks())

    def _draws_random_numbers(self) -> bool:
        """Whether training draws any: an adapter's dropout may."""
        return any("Dropout" in type(part).__name__ and getattr(part, "p", 0.0) > 0 for part in self.modules())


def _compiled_for_training(block: nn.Module) -> Callable[..., Any]:
    """The block's forward pass, compiled where it trains and as it is elsewhere."""
    plain, compiled = block.forward, torch.compile(block.forward, dynamic=False)

    def forward(*inputs: Any) -> Any:
        return (compiled if block.training else plain)(*inputs)

    return forward
