"""Which direction is better for a metric that somebody else has named."""

import re

from efficientllm.metrics import METRICS, Direction

# beside the registry's keys, labels and abbreviations; only names that everybody reads the same way
_LOWER = (
    "ppl loss nll cross_entropy bpb bpc bits_per_character error error_rate wer cer mae mse rmse latency time runtime duration "
    "wall_time step_time time_per_output_token tpot memory memory_usage vram ram energy energy_consumption joules "
    "joules_per_token power power_draw watts cost price carbon co2 co2e emissions size model_size disk_size"
)
_HIGHER = (
    "accuracy acc exact_match f1 f1_score auc auroc recall bleu rouge rouge_l pass_1 win_rate throughput tokens_per_second "
    "samples_per_second requests_per_second sequences_per_second tokens_s tok_s "
    "samples_s requests_s utilization utilisation gpu_utilization speedup compression_rate"
)
_QUALIFIERS = (
    "performance train training val valid validation dev test eval evaluation held_out heldout mean average avg median "
    "peak max p50 p90 p95 p99 total"
)
_UNITS = (
    "s sec ms us ns min h gb gib mb mib kb kib w mw kw j mj kj wh kwh g kg percent pct nats bits iter token tok step"
)


def _normal(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")


_KNOWN: dict[str, Direction] = {
    **dict.fromkeys(_LOWER.split(), "lower"),
    **dict.fromkeys(_HIGHER.split(), "higher"),
    # abbreviations in capitals, as the paper's AMU; other symbols of the registry are words for narrow column heads
    **{_normal(entry.symbol): entry.direction for entry in METRICS if entry.symbol.isupper()},
    **{_normal(name): entry.direction for entry in METRICS for name in (entry.key, entry.label)},
}
_BEFORE = re.compile(rf"(?:{'|'.join(_QUALIFIERS.split())})_(.+)")
_AFTER = re.compile(rf"(.+)_(?:{'|'.join(_UNITS.split())})")


def known_direction(name: str) -> Direction | None:
    """Says which direction is better for a metric's name, or None where the name does not tell.

    Known are the keys, labels and abbreviations of the metric registry and common names, each also with a qualifier before
    it or a unit behind it: "test_loss", "Latency (ms)", "performance: accuracy".

    Args:
        name: The name, in any case and with any separators.
    """
    remaining: str | None = _normal(name)
    while remaining:
        if remaining in _KNOWN:
            return _KNOWN[remaining]
        shorter = _BEFORE.fullmatch(remaining) or _AFTER.fullmatch(remaining)
        remaining = shorter[1] if shorter else None
    return None
