"""Relative position bias of T5 (Raffel et al. 2019, arXiv 1910.10683, section 2.1), for causal attention.

Each head adds a learned number to the score of query t and key s, chosen by the distance t - s: small distances have a
bucket each, larger ones share buckets that widen logarithmically up to `max_distance`, beyond which all share the last.
All layers share the numbers.
"""

import math

import torch
from pydantic import Field, model_validator
from torch import nn

from efficientllm.config.schema import Section
from efficientllm.models.config import DecoderConfig
from efficientllm.models.interfaces import Position


class RelativeOptions(Section):
    """Parameters of the buckets; the defaults are T5's."""

    buckets: int = Field(default=32, ge=4)
    max_distance: int = Field(default=128, ge=4)

    @model_validator(mode="after")
    def _room_for_logarithm(self) -> "RelativeOptions":
        if self.max_distance <= self.buckets // 2:
            raise ValueError(f"max_distance {self.max_distance} must exceed half of the buckets {self.buckets}")
        return self


def distance_buckets(length: int, buckets: int, max_distance: int) -> torch.Tensor:
    """Returns the bucket of each distance 0, 1, ..., `length` - 1.

    Half of the buckets are exact; distance n >= exact falls into
    exact + floor(log(n / exact) / log(max_distance / exact) * (buckets - exact)), at most the last.
    """
    exact = buckets // 2
    distance = torch.arange(length)
    # float32 as in T5: the bucket of an exact power lies on the edge of its rounding
    ratio = torch.log(distance.clamp_min(1).float() / exact) / math.log(max_distance / exact)
    wide = (exact + (ratio * (buckets - exact)).to(torch.long)).clamp_max(buckets - 1)
    return torch.where(distance < exact, distance, wide)


class RelativePosition(Position):
    """Adds a learned bias by distance to the attention scores."""

    Options = RelativeOptions
    biases_scores = True
    undecayed = ("bias",)

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__(config)
        self.bias = nn.Parameter(torch.empty(self.options.buckets, config.heads))
        self._buckets: dict[torch.device, torch.Tensor] = {}

    def bias_by_distance(self, length: int, like: torch.Tensor) -> torch.Tensor:
        """Returns the heads' biases `[H, max_distance + 1]`: the last bucket begins at or before `max_distance`."""
        del length
        buckets = self._buckets.get(like.device)
        if buckets is None:
            options = self.options
            # outside inference mode: a table first used in an evaluation is later saved for a backward pass
            with torch.inference_mode(False):
                buckets = distance_buckets(options.max_distance + 1, options.buckets, options.max_distance)
                buckets = self._buckets[like.device] = buckets.to(like.device)
        return self.bias.to(like.dtype)[buckets].t()


COMPONENT = RelativePosition
