"""Learned absolute positions: one trained vector per position, added to the embedding, as in GPT-2."""

import torch

from efficientllm.errors import ParameterError
from efficientllm.models.config import DecoderConfig
from efficientllm.models.embedding import embedding
from efficientllm.models.interfaces import Position, Span


class LearnedPosition(Position):
    """Adds a trained table of `context_length` rows to the embeddings."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__(config)
        self.embed_positions = embedding(config.context_length, config.hidden_size)

    def embed(self, hidden_btc: torch.Tensor, span: Span) -> torch.Tensor:
        """Adds the rows of the tokens' positions.

        Raises:
            ParameterError: A token stands beyond the table.
        """
        table = self.embed_positions.weight
        end = span.end
        if end > table.shape[0] and span.positions_bt is not None:
            end = int(span.positions_bt.max()) + 1
        if end > table.shape[0]:
            raise ParameterError(
                f"a sequence of {end} tokens does not fit the {table.shape[0]} learned positions: "
                "raise context_length and train again, or shorten prompt and output"
            )
        if span.positions_bt is None:
            return hidden_btc + table[span.start : span.end]
        return hidden_btc + self.embed_positions(span.positions_bt)


COMPONENT = LearnedPosition
