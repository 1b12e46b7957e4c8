"""Bytes that a decoding step has to read, from the model's structure and the tensors that it really holds."""

from dataclasses import dataclass

from torch import nn

from efficientllm.models.accounting import bytes_in_memory
from efficientllm.models.cache import BlockState, DecodingCache
from efficientllm.models.decoder import Decoder
from efficientllm.models.interfaces import Block
from efficientllm.models.sparse_attention import SparseLayout
from efficientllm.models.sparse_memory import BlockCompression


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

    All weights but the rows of tables that are not looked up (a tied embedding is read whole, as the output head; of learned
    positions one row is read), the experts that no token of the batch is sent to, and native sparse attention's
    compression, which one step in `compression_stride` runs; of the cache all tokens, of a recurrent state all, and with
    native sparse attention the entries that a query attends to.

    Args:
        decoder: The model.
        cache: Its cache, for the batch and the lengths that are served.
        context: Tokens in each sequence's cache, the step's own included.
    """
    batch = cache.batch_size
    weights = float(bytes_in_memory(decoder))
    if decoder.lm_head is not None:
        weights -= _unread_rows(decoder.embed_tokens, batch)
    weights -= sum(_unread_rows(table, 1) for table in decoder.position.modules() if isinstance(table, nn.Embedding))
    weights -= sum(_idle_experts(block, batch) + _idle_compression(block) for block in decoder.blocks())
    states = zip(decoder.blocks(), cache.blocks, strict=True)
    return Traffic(weights, sum(_read(block, state, cache, context) for block, state in states))


def _unread_rows(table: nn.Embedding, looked_up: int) -> float:
    """Bytes of the rows of a table that a step does not look up."""
    rows = table.weight
    return float((len(rows) - min(looked_up, len(rows))) * rows[0].nbytes)


def _idle_experts(block: Block, batch: int) -> float:
    """Bytes of the experts that no token of a step is sent to, if each is as likely as any other."""
    options = block.feedforward.options
    experts = getattr(options, "experts", None)
    if experts is None:
        return 0.0
    stacked = sum(weight.nbytes for weight in _stacked(block.feedforward))
    return stacked * float((1 - options.experts_per_token / experts) ** batch)


def _idle_compression(block: Block) -> float:
    """Bytes of what compresses blocks of keys, in the share of steps that complete no block."""
    layout = getattr(block.mixer, "layout", None)
    if not isinstance(layout, SparseLayout):
        return 0.0
    parts = (part for part in block.mixer.modules() if isinstance(part, BlockCompression))
    return sum(map(bytes_in_memory, parts)) * (1 - 1 / layout.compression_stride)


def _stacked(module: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in module.parameters() if parameter.dim() == 3]


def _read(block: Block, state: BlockState, cache: DecodingCache, context: float) -> float:
    """Bytes of a block's state that a step reads."""
    mixer = block.mixer
    fixed = float(sum(tensor.nbytes for tensor in state.feedforward.values()))
    tensors = state.mixer.values()
    grown = mixer.cache_elements_per_token()
    if not grown:
        return fixed + float(sum(tensor.nbytes for tensor in tensors))
    layout = getattr(mixer, "layout", None)
    if isinstance(layout, SparseLayout):
        entry = sum(state.mixer[f"selected_{part}"][:, 0].nbytes for part in ("keys", "values"))
        recent = sum(state.mixer[f"recent_{part}"].nbytes for part in ("keys", "values"))
        entries = layout.compressed(int(context)) + min(context, layout.selected_blocks * layout.selection_block)
        return fixed + recent + entry * (entries + min(context, layout.sliding_window))
    # not a share of what is allocated, which on a GPU may be some rows more than tokens
    dtype = next(iter(tensors)).dtype
    fixed += sum(tensor.nbytes for tensor in mixer.new_cache(cache.batch_size, 0, dtype, "meta").values())
    return fixed + grown * dtype.itemsize * cache.batch_size * context
