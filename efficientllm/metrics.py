"""The metric registry: one table drives records, CSV columns, the report, the documentation and the tests."""

from dataclasses import dataclass
from typing import Literal

from efficientllm.errors import unknown_name
from efficientllm.registry import AXES, Axis

Direction = Literal["lower", "higher"]


@dataclass(frozen=True)
class Metric:
    """One measured quantity.

    Args:
        key: Name in records and CSV files.
        symbol: Short column head; the paper's abbreviation where it has one.
        label: Full name.
        unit: Unit of the stored value; empty for a pure number.
        direction: Which direction is better.
        description: What it is and how it is computed, in one or two sentences.
        ranked_on: Axes on which the ranking table ranks it.
        shown_on: Further axes on which it is measured and shown, but not ranked.
        derived_on: Axes on which it follows from several cells, so that no single record holds it; shown, not ranked.
        is_share: Whether it is a share of a whole in percent: no interval reaches below 0 or above 100.
        is_difference: Whether it is the difference of two values, so that its percent are percentage points.
    """

    key: str
    symbol: str
    label: str
    unit: str
    direction: Direction
    description: str
    ranked_on: tuple[Axis, ...] = ()
    shown_on: tuple[Axis, ...] = ()
    derived_on: tuple[Axis, ...] = ()
    is_share: bool = False
    is_difference: bool = False

    @property
    def shown_unit(self) -> str:
        """Unit as people read it; records and CSV files keep `unit`."""
        return "pp" if self.is_difference and self.unit == "%" else self.unit

    @property
    def measured_on(self) -> tuple[Axis, ...]:
        """All axes on which a record must hold the metric, or the reason for its absence."""
        return self.ranked_on + self.shown_on


METRICS: tuple[Metric, ...] = (
    Metric(
        "perplexity", "PPL", "Held-out perplexity", "", "lower",
        "Exponential of the mean cross-entropy per token over windows spread evenly over the test split (measure.perplexity_windows).",
        ranked_on=("pretrain",), shown_on=("tune", "quantize"),
    ),
    Metric(
        "bits_per_byte", "BPB", "Bits per byte", "bit/B", "lower",
        "Cross-entropy of the same windows in bits per token, times the test split's tokens per UTF-8 byte: comparable across tokenizers.",
        shown_on=("pretrain",),
    ),
    Metric(
        "task_loss", "Loss", "Held-out task loss", "nat/token", "lower",
        "Mean cross-entropy of the reference answers' tokens, given their prompts, over the task's test examples.",
        ranked_on=("tune",), shown_on=("quantize",),
    ),
    Metric(
        "task_accuracy", "Acc", "Task accuracy", "%", "higher",
        "Share of test examples whose reference answer is the likeliest of the candidate answers, by mean "
        "log-likelihood per token.",
        ranked_on=("quantize",), shown_on=("tune",), is_share=True,
    ),
    Metric(
        "exact_match", "EM", "Exact match", "%", "higher",
        "Share of test examples whose reference answer greedy decoding gives, word for word and to its end.",
        shown_on=("tune", "quantize"), is_share=True,
    ),
    Metric(
        "perplexity_change", "dPPL", "Change of held-out perplexity", "", "lower",
        "Perplexity less that of the untuned base (tuning: what was forgotten) or of the same model in bfloat16 "
        "(quantization), on the same windows.",
        shown_on=("tune", "quantize"), is_difference=True,
    ),
    Metric(
        "task_accuracy_change", "dAcc", "Change of task accuracy", "%", "higher",
        "Task accuracy less that of the untuned base (tuning) or of the same model in bfloat16 (quantization), on the same "
        "examples, in percentage points.",
        shown_on=("tune", "quantize"), is_difference=True,
    ),
    Metric(
        "accelerator_memory_utilization", "AMU", "Accelerator memory utilization", "GiB", "lower",
        "Mean memory that the cell holds on its device while it runs: allocated GPU memory, or on a CPU the resident "
        "memory above the idle process.",
        ranked_on=AXES,
    ),
    Metric(
        "memory_peak", "Peak", "Peak memory", "GiB", "lower",
        "Highest value of the same memory during the measured window.",
        shown_on=AXES,
    ),
    Metric(
        "processor_compute_utilization", "PCU", "Processor compute utilization", "%", "higher",
        "Mean busy share of the processor: NVML's GPU busy time, or CPU time over wall time and allowed cores.",
        ranked_on=AXES, is_share=True,
    ),
    Metric(
        "model_flops_utilization", "MFU", "Model FLOPs utilization", "%", "higher",
        "Floating-point operations that the model needs per second over the device's dense peak at the used type.",
        shown_on=("pretrain", "tune"), is_share=True,
    ),
    Metric(
        "average_latency", "AL", "Average latency", "s", "lower",
        "Seconds per training step (pretraining, tuning) or per served request batch (quantization).",
        ranked_on=AXES,
    ),
    Metric(
        "time_to_first_token", "TTFT", "Time to first token", "s", "lower",
        "Seconds from a batch of prompts to its first generated tokens.",
        shown_on=AXES,
    ),
    Metric(
        "inter_token_latency", "ITL", "Inter-token latency", "s", "lower",
        "Median seconds between two generated tokens of a sequence.",
        shown_on=AXES,
    ),
    Metric(
        "inter_token_latency_p95", "ITL p95", "Inter-token latency, 95th percentile", "s", "lower",
        "95th percentile of the seconds between two generated tokens of a sequence.",
        shown_on=AXES,
    ),
    Metric(
        "memory_bandwidth_utilization", "MBU", "Memory bandwidth utilization", "%", "higher",
        "Bytes that a decoding step has to read (the weights, and the cache at the mean context) over the median time "
        "between two tokens, as a share of the device's measured copy bandwidth.",
        shown_on=AXES,
    ),
    Metric(
        "weights_memory", "Weights", "Memory of the weights", "GiB", "lower",
        "Bytes of the served model's weights as they lie in memory, scales of quantized layers included.",
        shown_on=AXES,
    ),
    Metric(
        "cache_memory", "Cache", "Memory of the decoding cache", "GiB", "lower",
        "Bytes of the decoding cache that the served batch needs for its prompts and its output.",
        shown_on=AXES,
    ),
    Metric(
        "training_throughput", "TT", "Training throughput", "token/s", "higher",
        "Training tokens consumed per second in the steady window; in tuning with the padding of its batches.",
        ranked_on=("pretrain",), shown_on=("tune",),
    ),
    Metric(
        "training_throughput_per_parameter", "TT/N", "Training throughput per parameter", "token/s/param", "higher",
        "The paper's definition: training tokens per second over the model's active parameters.",
        shown_on=("pretrain", "tune"),
    ),
    Metric(
        "sample_throughput", "ST", "Sample throughput", "1/s", "higher",
        "Training sequences per second (pretraining, tuning) or served requests per second (quantization).",
        ranked_on=("tune", "quantize"), shown_on=("pretrain",),
    ),
    Metric(
        "inference_throughput", "IT", "Inference throughput", "token/s", "higher",
        "Generated tokens per second over the serving workload, prefill included.",
        ranked_on=("quantize",), shown_on=("pretrain", "tune"),
    ),
    Metric(
        "average_energy_consumption", "AEC", "Average energy consumption", "W", "lower",
        "Mean power while the cell runs: joules over seconds of the energy window. A power, not an energy.",
        ranked_on=AXES,
    ),
    Metric(
        "energy_per_token", "EPT", "Energy per token", "J/token", "lower",
        "Joules per training token (pretraining; tuning, with the padding of its batches) or per generated token (quantization).",
        ranked_on=AXES,
    ),
    Metric(
        "energy_per_sample", "EPS", "Energy per sample", "J", "lower",
        "Joules per training sequence.",
        shown_on=("tune",),
    ),
    Metric(
        "net_energy_per_token", "EPT net", "Net energy per token", "J/token", "lower",
        "Energy per token less what the idle machine would have taken in the same time; never ranked.",
        shown_on=AXES,
    ),
    Metric(
        "prefill_energy_per_token", "EPT prefill", "Prefill energy per prompt token", "J/token", "lower",
        "Joules per prompt token while the served batch's prompts alone are computed.",
        shown_on=("quantize",),
    ),
    Metric(
        "decode_energy_per_token", "EPT decode", "Decoding energy per token", "J/token", "lower",
        "Joules per token generated after the first: those of the whole request less those of its prefill.",
        shown_on=("quantize",),
    ),
    Metric(
        "energy_to_lora_loss", "E/LoRA", "Energy to LoRA's loss", "J", "lower",
        "Joules of the training run until its validation loss is as low as LoRA's at the end of its run, between two "
        "evaluations by interpolation.",
        derived_on=("tune",),
    ),
    Metric(
        "model_compression_rate", "MCR", "Model compression rate", "x", "higher",
        "Quantization: bytes of the bfloat16 weights over this cell's, times its quality over bfloat16's. Tuning: "
        "bytes of the full weights over the bytes that the method has to store.",
        ranked_on=("quantize",), shown_on=("tune",),
    ),
)  # fmt: skip

_BY_KEY = {metric.key: metric for metric in METRICS}

QUALITY: tuple[str, ...] = ("perplexity", "bits_per_byte", "task_loss", "task_accuracy", "exact_match")
"""Metrics that only a trained model has."""

PERFORMANCE: dict[str, str] = {"pretrain": "perplexity", "tune": "task_loss", "quantize": "task_accuracy"}
"""The metric that stands in the Performance column of each axis."""

THROUGHPUT: dict[str, str] = {
    "pretrain": "training_throughput", "tune": "sample_throughput", "quantize": "inference_throughput",
}  # fmt: skip
"""The metric by which the rows of each axis are fast."""


def metric(key: str) -> Metric:
    """Looks a metric up.

    Raises:
        ParameterError: No metric has this key; the message names the nearest.
    """
    if key not in _BY_KEY:
        raise unknown_name("metric", key, _BY_KEY)
    return _BY_KEY[key]


def ranked_metrics(axis: str) -> list[Metric]:
    """Metrics that the ranking table ranks on an axis, its performance metric first."""
    ranked = [entry for entry in METRICS if axis in entry.ranked_on]
    return sorted(ranked, key=lambda entry: entry.key != PERFORMANCE[axis])


def measured_metrics(axis: Axis) -> list[Metric]:
    """Metrics that every record of an axis must hold, or explain the absence of."""
    return [entry for entry in METRICS if axis in entry.measured_on]
