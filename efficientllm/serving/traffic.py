"""Bytes that a decoding step has to read, from the model's structure and the tensors that it really holds."""

from dataclasses import dataclass

from torch import nn

from efficientllm.models.accounting import bytes_in_memory
from efficientllm.models.cache import BlockState, DecodingCache
from efficientllm.models.decoder import Decoder
from efficientllm.models.interfaces import Block
from efficientllm.models.sparse_attention import SparseLayout


@dataclass(frozen=True)
class Traffic:
    """Bytes read by one decoding step of a batch.

    Args:
        weights: Of the model.
        cache: Of the sequences' cache.
    """

    weights: float
    cache: float

    @property
    def total(self) -> float:
        """Both."""
        return self.weights + self.cache


def decoding_traffic(decoder: Decoder, cache: DecodingCache, context: float) -> Traffic:
    """Returns what one decoding step cannot do without reading; what it writes is not counted.

    All weights but the rows of the embedding that are looked up (a tied embedding is read whole, as the output head) and
    the experts that no token of the batch is sent to; of the cache all tokens, of a recurrent state all, and with native
    sparse attention the entries that a query attends to.

    Args:
        decoder: The model.
        cache: Its cache, for the batch and the lengths that are served.
        context: Tokens in each sequence's cache, the step's own included.
    """
    batch = cache.batch_size
    weights = float(bytes_in_memory(decoder))
    if decoder.lm_head is not None:
        embedding = decoder.embed_tokens.weight
        weights -= embedding.nbytes - min(batch, len(embedding)) * embedding[0].nbytes
    weights -= sum(_idle_experts(block, batch) for block in decoder.blocks())
    states = zip(decoder.blocks(), cache.blocks, strict=True)
    return Traffic(weights, sum(_read(block, state, cache, context) for block, state in states))


def _idle_experts(block: Block, batch: int) -> float:
    """Bytes of the experts that no token of a step is sent to, if each is as likely as any other."""
    options = block.feedforward.options
    experts = getattr(options, "experts", None)
    if experts is None:
        return 0.0
    stacked = sum(weight.nbytes for weight in _stacked(block.feedforward))
    return stacked * float((1 - options.experts_per_token / experts) ** batch)


def _stacked(module: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in module.parameters() if parameter.dim() == 3]


def _read(block: Block, state: BlockState, cache: DecodingCache, context: float) -> float:
    """Bytes of a block's state that a step reads."""
    mixer = block.mixer
    fixed = float(sum(tensor.nbytes for tensor in state.feedforward.values()))
    tensors = state.mixer.values()
    allocated = float(sum(tensor.nbytes for tensor in tensors))
    grown = mixer.cache_elements_per_token()
    if not grown:
        return fixed + allocated
    element = next(iter(tensors)).element_size()
    layout = getattr(mixer, "layout", None)
    if isinstance(layout, SparseLayout):
        entry = sum(state.mixer[f"selected_{part}"][:, 0].nbytes for part in ("keys", "values"))
        recent = sum(state.mixer[f"recent_{part}"].nbytes for part in ("keys", "values"))
        entries = layout.compressed(int(context)) + min(context, layout.selected_blocks * layout.selection_block)
        return fixed + recent + entry * (entries + min(context, layout.sliding_window))
    per_token = float(grown * element * cache.batch_size)
    return fixed + allocated - per_token * cache.max_length + per_token * context
