"""What the decoder asks of its components.

Shape suffixes used in this package: B sequences, T tokens of this pass, S keys (cached tokens and this pass), C hidden
size, H query heads, K key-value heads, G = H / K, D head size, I intermediate size, E experts, V vocabulary, N = B T.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import torch
from torch import nn

from efficientllm.config.options import NoOptions, checked_options
from efficientllm.config.schema import Section
from efficientllm.errors import ParameterError
from efficientllm.models.config import DecoderConfig

LayerState: TypeAlias = dict[str, torch.Tensor]
"""What one layer keeps between decoding steps: preallocated tensors whose first dimension is the batch."""

Kernel: TypeAlias = Literal["auto", "reference", "fast"]
"""Which implementation a component runs: the plain one, the fast one, or the fast one where it can run."""

Rotation: TypeAlias = tuple[torch.Tensor, torch.Tensor]
"""Cosines and sines (negative in the first half of a head), each broadcastable to `[B, T, H, D]`."""


@dataclass
class Span:
    """The tokens that one forward pass computes, and what all its layers share.

    Args:
        start: Tokens already in the cache.
        length: Tokens of this pass.
        padding_mask_bt: True where a token of this pass is real; None where all are.
        balanced_bt: True where a token counts in the balancing of a mixture's experts; None where all do.
        positions_bt: Position of each token, counting real ones only; None where it is `start`, `start + 1`, ...
        key_positions_bs: The same of every key, cached ones included; None as above.
        key_real_bs: Whether each key is a real token; None where all are.
        causal: Whether attention is plain causal attention of this pass to itself, with no mask beside it.
        attention_mask: Boolean mask (True = attends) or additive scores, broadcastable to `[B, H, T, S]`, or None.
        rotation: The rotation of queries and keys at these positions, or None.
        bias_by_distance_hp: Scores added to the attention's by distance between query and key, `[H, P]` (see
            `Position.bias_by_distance`), where no mask carries them; None otherwise.
        causal_blocks: FlexAttention's block mask of a causal pass, where a bias by distance needs one; None otherwise.
        keys: Number of keys S that a mixer reads from its cache: those up to `end`, or some more that the mask hides.
        shared: Tensors that an earlier layer of this pass left for later ones.
    """

    start: int
    length: int
    padding_mask_bt: torch.Tensor | None = None
    balanced_bt: torch.Tensor | None = None
    positions_bt: torch.Tensor | None = None
    key_positions_bs: torch.Tensor | None = None
    key_real_bs: torch.Tensor | None = None
    causal: bool = True
    attention_mask: torch.Tensor | None = None
    rotation: Rotation | None = None
    bias_by_distance_hp: torch.Tensor | None = None
    causal_blocks: Any = None
    keys: int = field(init=False)
    shared: dict[str, torch.Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.keys = self.end

    @property
    def end(self) -> int:
        """Number of tokens up to here: the cached ones and this pass."""
        return self.start + self.length


class Component(nn.Module):
    """Base of mixers, positional encodings and feed-forward layers.

    A component whose mathematics has a fast implementation beside the plain one names both, says in `fast_obstacle`
    where the fast one cannot run, and asks `runs_fast` which of them to run.

    Args:
        config: The decoder's configuration.
    """

    kind: str
    Options: type[Section] = NoOptions
    reference_kernel: str = "plain PyTorch"
    fast_kernel: str | None = None
    """What the fast implementation is, as records show it; None where there is but one."""
    compiles_on_cpu: bool = True
    """Whether torch.compile's programs for a CPU train it rightly."""
    undecayed: tuple[str, ...] = ()
    """Own parameters of two dimensions that are no matrices, but vectors side by side or a table: weight decay leaves them out."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.options: Any = self.checked_options(config)
        self.kernel: Kernel = "auto"

    def fast_obstacle(self, device: torch.device) -> str | None:
        """Says why the fast implementation cannot run on a device; None where it can."""
        del device
        return None

    def runs_fast(self, device: torch.device) -> bool:
        """Whether the fast implementation is the one to run on a device.

        Raises:
            ParameterError: It is asked for (`kernel: fast`) and cannot run.
        """
        if self.fast_kernel is None or self.kernel == "reference":
            return False
        obstacle = self.fast_obstacle(device)
        if obstacle is not None and self.kernel == "fast":
            raise ParameterError(f"kernel 'fast': {self.fast_kernel} {obstacle}; use kernel 'auto' or 'reference'")
        return obstacle is None

    def kernel_description(self, device: torch.device) -> str:
        """Says which implementation runs on a device, and why where it is not the fast one."""
        if self.fast_kernel is None:
            return self.reference_kernel
        if self.runs_fast(device):
            return self.fast_kernel
        reason = "asked for" if self.kernel == "reference" else f"{self.fast_kernel} {self.fast_obstacle(device)}"
        return f"{self.reference_kernel} ({reason})"

    @classmethod
    def checked_options(cls, config: DecoderConfig) -> Any:
        """Validates the component's own block of parameters.

        Raises:
            ParameterError: One is unknown, missing or out of range.
        """
        return checked_options(cls.Options, getattr(config, f"{cls.kind}_options"), cls.kind)

    def residual_projections(self) -> list[torch.Tensor]:
        """Lists the weights that write to the residual stream; their initial scale shrinks with depth."""
        return []

    def initialize(self) -> None:
        """Draws weights that do not follow the decoder's law: matrices normal, vectors one."""

    def active_parameters(self) -> int:
        """Number of parameters that take part in computing one token."""
        return sum(parameter.numel() for parameter in self.parameters())


class Mixer(Component, ABC):
    """Mixes information along the sequence."""

    kind = "mixer"
    rotary_dim: int = 0
    """Width of the part of a head that a positional encoding may rotate; 0 where there is none."""
    decoding_period: int = 1
    """Positions after which decoding has taken all its paths."""
    decodes_by_products: bool = False
    """Whether a GPU without a kernel for it computes the attention of a single query by matrix products even where no mask is
    needed."""
    decoding_group: tuple[int, int] = (1, 0)
    """Heads that read the same keys while decoding, and the width of these; (1, 0) without attention."""

    @abstractmethod
    def forward(self, hidden_btc: torch.Tensor, span: Span, state: LayerState | None) -> torch.Tensor:
        """Mixes a chunk of tokens with each other and with those in the state, which it updates in place."""

    @abstractmethod
    def new_cache(self, batch_size: int, max_length: int, dtype: torch.dtype, device: Any) -> LayerState:
        """Allocates the layer's state for sequences of up to `max_length` tokens."""

    @abstractmethod
    def flops_per_token(self, context: float) -> float:
        """Forward FLOPs for one token that sees `context` tokens; a multiply and an add are two."""

    @abstractmethod
    def cache_elements_per_token(self) -> int:
        """Numbers that the state grows by with each token; 0 for a recurrent state."""

    def applies_bias(self, device: torch.device) -> bool:
        """Whether it adds a bias by distance to its scores itself, on this device, so that no mask need carry it."""
        del device
        return False


class Feedforward(Component, ABC):
    """Transforms each token."""

    kind = "feedforward"
    balances_experts: bool = False
    """Whether its auxiliary loss depends on which experts the tokens are sent to."""

    @abstractmethod
    def forward(
        self, hidden_btc: torch.Tensor, span: Span, state: LayerState | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Returns the transformed tokens `[B, T, C]`, and a weighted auxiliary loss or None."""

    @abstractmethod
    def flops_per_token(self) -> float:
        """Forward FLOPs for one token."""

    def new_cache(self, batch_size: int, max_length: int, dtype: torch.dtype, device: Any) -> LayerState:
        """Allocates the layer's state; most feed-forward layers keep none."""
        del batch_size, max_length, dtype, device
        return {}


class Position(Component):
    """Tells tokens where they stand, by one of three hooks; each default leaves things as they are."""

    kind = "position"
    biases_scores: bool = False
    """Whether it has a bias by distance."""

    def check_width(self, rotary_dim: int) -> None:
        """Makes sure that a mixer has queries and keys of a width that can be marked.

        Raises:
            ParameterError: It has not.
        """
        del rotary_dim

    def embed(self, hidden_btc: torch.Tensor, span: Span) -> torch.Tensor:
        """Marks the embeddings."""
        del span
        return hidden_btc

    def rotation(self, span: Span, rotary_dim: int, like: torch.Tensor) -> Rotation | None:
        """Returns the rotation of queries and keys of width `rotary_dim`, in the type and on the device of `like`."""
        del span, rotary_dim, like
        return None

    def bias_by_distance(self, length: int, like: torch.Tensor) -> torch.Tensor | None:
        """Returns scores to add to the attention's, by distance from key to query, or None.

        Args:
            length: Number of keys; no distance reaches it.
            like: A tensor whose type and device the scores shall have.

        Returns:
            `[H, P]`; distances of P - 1 and more take the last column.
        """
        del length, like
        return None


class Block(nn.Module, ABC):
    """One residual layer.

    Args:
        config: The decoder's configuration.
        layer: The block's index.
    """

    mixer: Mixer
    feedforward: Feedforward

    def __init__(self, config: DecoderConfig, layer: int) -> None:
        super().__init__()
        del config, layer

    @abstractmethod
    def forward(
        self, hidden_btc: torch.Tensor, span: Span, mixer_state: LayerState | None, feedforward_state: LayerState | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Returns the residual stream after the layer, and a weighted auxiliary loss or None."""

    @staticmethod
    @abstractmethod
    def final_norm(config: DecoderConfig) -> nn.Module:
        """Builds the norm between the last block and the output head."""
