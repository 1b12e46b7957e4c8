"""The decoder as a Transformers model, for PEFT, bitsandbytes, `generate` and export.

Importing this module takes seconds and registers the model with the Auto classes, so it is imported only where one of
those libraries is used. The wrapper holds the decoder as `self.decoder`, whose parameters keep their names.
"""

from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoModelForCausalLM, GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from efficientllm.data.packing import IGNORED
from efficientllm.errors import ArtifactError, ParameterError
from efficientllm.files import MISSING_REMEDY
from efficientllm.models.cache import DecodingCache
from efficientllm.models.config import DecoderConfig
from efficientllm.models.decoder import Decoder
from efficientllm.models.weights import MODEL_TYPE, load_decoder


class EfficientLLMConfig(PretrainedConfig):
    """The fields of `DecoderConfig`, with the names that Transformers expects as aliases."""

    model_type = MODEL_TYPE
    attribute_map = {  # noqa: RUF012 - Transformers' convention
        "vocab_size": "vocabulary_size",
        "num_hidden_layers": "layers",
        "num_attention_heads": "heads",
        "num_key_value_heads": "key_value_heads",
        "max_position_embeddings": "context_length",
    }
    keys_to_ignore_at_inference = ["past_key_values"]  # noqa: RUF012

    # the defaults are Transformers' need (it builds empty configurations); `decoder_config` rejects them
    vocabulary_size: int = 0
    hidden_size: int = 0
    layers: int = 0
    heads: int = 0
    key_value_heads: int = 0
    intermediate_size: int = 0
    context_length: int = 0
    tie_embeddings: bool = False
    block: str = ""
    mixer: str = ""
    position: str = ""
    feedforward: str = ""
    mixer_options: dict[str, Any] | None = None
    position_options: dict[str, Any] | None = None
    feedforward_options: dict[str, Any] | None = None
    embedding_deviation: float = DecoderConfig.embedding_deviation
    norm_epsilon: float = DecoderConfig.norm_epsilon
    # the decoder ties its head itself: there is no second tensor that Transformers would have to tie
    tie_word_embeddings: bool = False
    use_cache: bool = True

    def decoder_config(self) -> DecoderConfig:
        """Returns the decoder's configuration.

        Raises:
            ArtifactError: A field was never set.
        """
        values = {name: getattr(self, name) for name in DecoderConfig.field_names()}
        return DecoderConfig.from_dict({name: value for name, value in values.items() if value not in (0, "", None)} | {
            "tie_embeddings": self.tie_embeddings
        })  # fmt: skip


class GenerationCache:
    """What `generate` passes from step to step: a `DecodingCache`, allocated once the number of beams is known.

    Args:
        decoder: The model.
        max_length: Longest sequence.
    """

    is_compileable = False

    def __init__(self, decoder: Decoder, max_length: int) -> None:
        self._decoder, self._max_length = decoder, max_length
        self._cache: DecodingCache | None = None

    def decoding_cache(self, batch_size: int) -> DecodingCache:
        """Returns the cache, allocating it on first use."""
        if self._cache is None:
            self._cache = self._decoder.new_cache(batch_size, self._max_length)
        return self._cache

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Returns the number of cached tokens."""
        del layer_idx
        return 0 if self._cache is None else self._cache.length

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        """Follows the beams that survive."""
        if self._cache is not None:
            self._cache.reorder(beam_idx)


class EfficientLLMForCausalLM(PreTrainedModel, GenerationMixin):
    """A `Decoder` with Transformers' interface."""

    config_class = EfficientLLMConfig
    base_model_prefix = ""
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = False

    def __init__(self, config: EfficientLLMConfig) -> None:
        super().__init__(config)
        self.decoder = Decoder(config.decoder_config())
        self._no_split_modules = [type(block).__name__ for block in self.decoder.blocks()[:1]]
        self.post_init()

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """Loads a stored model as Transformers does, but refuses one that is incomplete or damaged.

        Raises:
            ArtifactError: The folder or a weight is missing, or a file is damaged.
        """
        from safetensors import SafetensorError

        path = pretrained_model_name_or_path
        if isinstance(path, Path) and not path.is_dir():
            raise ArtifactError(f"{path} is missing: {MISSING_REMEDY}")
        wants_information = kwargs.pop("output_loading_info", False)
        try:
            model, found = super().from_pretrained(path, *args, output_loading_info=True, **kwargs)
        except SafetensorError as error:
            raise ArtifactError(f"{path}: the weights are damaged ({error}): delete it and run `dvc repro`") from error
        for fault in ("missing_keys", "unexpected_keys", "mismatched_keys"):
            if found[fault]:
                first = sorted(str(key) for key in found[fault])[0]
                raise ArtifactError(f"{path}: {fault.replace('_keys', '')} weight {first}: run `dvc repro` again")
        return (model, found) if wants_information else model

    @classmethod
    def from_folder(cls, folder: Path, *, device: Any, dtype: torch.dtype) -> "EfficientLLMForCausalLM":
        """Loads what `save_decoder` or `save_random` wrote, or `save_pretrained`.

        Raises:
            ArtifactError: A file is missing or damaged.
        """
        decoder = load_decoder(folder, device=device, dtype=dtype)
        config = EfficientLLMConfig(**decoder.config.to_dict(), dtype=dtype)
        with torch.device("meta"):
            model = cls(config)
        model.decoder = decoder
        return model

    def _init_weights(self, module: nn.Module) -> None:
        """Does nothing: the decoder draws its weights when it is built."""
        del module

    def get_input_embeddings(self) -> nn.Module:
        """Returns the token embedding."""
        return self.decoder.embed_tokens

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        """Replaces the token embedding."""
        self.decoder.embed_tokens = value

    def get_output_embeddings(self) -> nn.Module | None:
        """Returns the output head, or None where it is the token embedding."""
        return self.decoder.lm_head

    def set_output_embeddings(self, new_embeddings: nn.Linear) -> None:
        """Replaces the output head."""
        self.decoder.lm_head = new_embeddings

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        past_key_values: GenerationCache | None = None,
        labels: torch.Tensor | None = None,
        logits_to_keep: int = 0,
        inputs_embeds: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Computes logits, and a loss where labels are given.

        Args:
            input_ids: Token ids `[B, T]`.
            attention_mask: `[B, S]` with 0 at padding; its last T columns are those of `input_ids`.
            past_key_values: The cache that `generate` made.
            labels: `[B, T]`, aligned with `input_ids` (they are shifted here); -100 is ignored.
            logits_to_keep: Compute the logits of the last tokens only; 0 for all.
            inputs_embeds: Not supported.
            kwargs: Options of Transformers that do not concern this model (`position_ids` follow from the mask).

        Returns:
            Logits `[B, T, V]`; the loss is the mean cross-entropy plus the auxiliary loss.

        Raises:
            ParameterError: Embeddings are given instead of tokens.
        """
        del kwargs
        if inputs_embeds is not None:
            raise ParameterError("this model takes input_ids, not inputs_embeds")
        batch, length = input_ids.shape
        padding_mask = None if attention_mask is None else attention_mask[:, -length:].bool()
        if padding_mask is not None and bool(padding_mask.all()):
            padding_mask = None
        cache = None if past_key_values is None else past_key_values.decoding_cache(batch)
        hidden, auxiliary_loss = self.decoder.hidden_states_and_loss(input_ids, cache=cache, padding_mask=padding_mask)
        logits = self.decoder.project(hidden[:, -logits_to_keep:] if logits_to_keep else hidden)
        loss = None
        if labels is not None:
            shifted = F.pad(labels[:, 1:], (0, 1), value=IGNORED)[:, -logits.shape[1] :]
            loss = F.cross_entropy(logits.float().flatten(0, 1), shifted.flatten(), ignore_index=IGNORED)
            loss = loss if auxiliary_loss is None else loss + auxiliary_loss
        return CausalLMOutputWithPast(loss=loss, logits=logits, past_key_values=past_key_values)

    def _prepare_cache_for_generation(
        self,
        generation_config: Any,
        model_kwargs: dict[str, Any],
        generation_mode: Any,
        batch_size: int,
        max_cache_length: int,
    ) -> None:
        """Gives `generate` our cache in place of Transformers'."""
        del generation_mode, batch_size
        if model_kwargs.get("past_key_values") is None and generation_config.use_cache:
            model_kwargs["past_key_values"] = GenerationCache(self.decoder, max_cache_length)


AutoConfig.register(MODEL_TYPE, EfficientLLMConfig)
AutoModelForCausalLM.register(EfficientLLMConfig, EfficientLLMForCausalLM)
