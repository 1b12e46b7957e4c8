"""The full description of a decoder; free of torch, so that light programs can read it."""

from dataclasses import MISSING, asdict, dataclass, fields
from typing import Any, get_origin

from efficientllm.errors import ArtifactError, did_you_mean, shown

_NEEDED: dict[Any, str] = {
    int: "a whole number above 0",
    float: "a number",
    bool: "true or false",
    str: "a name",
    dict: "a mapping",
}
"""What a field of each type holds, as a message says it."""


@dataclass(frozen=True)
class DecoderConfig:
    """Shape and components of a decoder.

    Args:
        vocabulary_size: Number of token ids.
        hidden_size: Width of the residual stream.
        layers: Number of blocks.
        heads: Query heads of each attention layer.
        key_value_heads: Key and value heads; the mixers `mqa` and `mha` imply their own number.
        intermediate_size: Hidden width of the feed-forward layer, or of each expert.
        context_length: Longest sequence that the model is made for.
        tie_embeddings: Whether the output head is the embedding matrix.
        block: Module of `components/blocks`.
        mixer: Module of `components/mixers`.
        position: Module of `components/positions`.
        feedforward: Module of `components/feedforwards`.
        mixer_options: The mixer's own parameters.
        position_options: The positional encoding's own parameters.
        feedforward_options: The feed-forward layer's own parameters.
        embedding_deviation: Standard deviation of the embeddings' initial weights.
        norm_epsilon: What RMSNorm adds to the mean square.
    """

    vocabulary_size: int
    hidden_size: int
    layers: int
    heads: int
    key_value_heads: int
    intermediate_size: int
    context_length: int
    tie_embeddings: bool
    block: str
    mixer: str
    position: str
    feedforward: str
    mixer_options: dict[str, Any]
    position_options: dict[str, Any]
    feedforward_options: dict[str, Any]
    embedding_deviation: float = 0.02
    norm_epsilon: float = 1e-6

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.hidden_size // self.heads

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields as JSON-serialisable values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> "DecoderConfig":
        """Rebuilds a configuration from `to_dict`.

        Raises:
            ArtifactError: A field is unknown, missing or of the wrong kind; what is to be done about it, the caller knows.
        """
        known = cls.field_names()
        for name in content:
            if name not in known:
                raise ArtifactError(
                    f"unknown field {name!r} in a model's configuration; {did_you_mean(name, known)}"
                    "it was written by another version"
                )
        missing = [name for name in known if name not in content]
        if missing:
            raise ArtifactError(f"a model's configuration lacks {', '.join(missing)}")
        for field in fields(cls):
            value, needed = content[field.name], _kind(field.type)
            if not _fits(value, needed):
                raise ArtifactError(
                    f"{field.name} is {shown(value)} in a model's configuration, which must be {_NEEDED[needed]}"
                )
        return cls(**content)

    @classmethod
    def field_names(cls) -> list[str]:
        """Lists the fields' names in their order."""
        return [field.name for field in fields(cls)]

    @classmethod
    def defaults(cls) -> dict[str, Any]:
        """Returns the values of the fields that a description may leave out."""
        return {field.name: field.default for field in fields(cls) if field.default is not MISSING}


def _kind(annotation: Any) -> Any:
    return get_origin(annotation) or annotation


def _fits(value: Any, kind: Any) -> bool:
    # Python takes True for a 1
    if isinstance(value, bool) or kind is bool:
        return isinstance(value, bool) and kind is bool
    if kind is int:
        return isinstance(value, int) and value > 0
    return isinstance(value, (int, float) if kind is float else kind)
