"""How a technique changes a model's quality: differences on the same windows and examples, with paired intervals."""

import math

import numpy as np

from efficientllm.evaluation.perplexity import WindowLosses
from efficientllm.measurement.statistics import bootstrap_interval, paired_share_interval, single
from efficientllm.records import Value


def perplexity_change(losses: WindowLosses, reference: WindowLosses, compared_with: str) -> Value:
    """Difference in perplexity on the same windows; both models are drawn together.

    Args:
        losses: The model's losses of the windows.
        reference: The losses of the model that it is compared with, on the same windows.
        compared_with: What that model is, for the record.
    """
    triples = np.stack([losses.nats, reference.nats, losses.tokens], axis=1)

    def difference(draws: np.ndarray) -> np.ndarray:
        nats, reference_nats, tokens = np.moveaxis(draws.sum(axis=1), -1, 0)
        changed: np.ndarray = np.exp(nats / tokens) - np.exp(reference_nats / tokens)
        return changed

    return single(
        "perplexity_change", math.exp(losses.mean) - math.exp(reference.mean), n=len(losses.nats),
        interval=bootstrap_interval(triples, difference),
        method=f"perplexity less that of {compared_with}, on the same windows; paired bootstrap over windows",
    )  # fmt: skip


def accuracy_change(correct: np.ndarray, reference: np.ndarray, compared_with: str) -> Value:
    """Difference in task accuracy on the same examples, in percentage points.

    Args:
        correct: 1.0 or 0.0 for each example.
        reference: The same of the model that it is compared with.
        compared_with: What that model is, for the record.
    """
    ends = paired_share_interval(correct, reference)
    return single(
        "task_accuracy_change", 100 * float((correct - reference).mean()), n=len(correct),
        interval=ends and (100 * ends[0], 100 * ends[1]),
        method=f"task accuracy less that of {compared_with}, on the same examples; Agresti and Min's paired interval",
    )  # fmt: skip
