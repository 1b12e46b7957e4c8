"""Quality of a cell's model on held-out text and on the task, with 95 % intervals over windows and examples."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch

from efficientllm import paths
from efficientllm.config import Configuration
from efficientllm.data.manifest import read_manifest
from efficientllm.data.packing import evaluation_windows, open_split, split_path
from efficientllm.data.prompts import encode_questions
from efficientllm.errors import CellFailure
from efficientllm.evaluation.half_products import half_products_in_float32
from efficientllm.evaluation.perplexity import WindowLosses, spread_windows, window_losses
from efficientllm.evaluation.task import score_questions
from efficientllm.measurement.statistics import bootstrap_interval, share_interval, single
from efficientllm.models.decoder import Decoder
from efficientllm.records import Value

NO_CHOICES = (
    "no test example of the task has choices: free answers have a loss and an exact match, and no label to pick"
)
"""Why a task of free answers has no accuracy."""

_LARGEST_LOSS = 700.0  # nat per token, of which exp is still a number


class NoQualityError(CellFailure):
    """A model's loss is no number, or beyond any perplexity; its speed and energy may be measured all the same."""


def held_out_folder(base: Path | None) -> Path:
    """Folder with the held-out tokens that a model understands: those of the prepared data, or a base's own.

    Args:
        base: Folder of the base that the model was tuned from; None for a pretraining run.
    """
    return base if base is not None and split_path(base, "test").exists() else paths.DATA


def perplexity_values(
    configuration: Configuration, decoder: Decoder, device: torch.device, base: Path | None = None
) -> tuple[dict[str, Value], WindowLosses]:
    """Perplexity and bits per byte of the test split.

    Args:
        configuration: The run's parameters.
        decoder: The model, in evaluation mode.
        device: Where it lies.
        base: Folder of the base that the model was tuned from; None for a pretraining run.

    Returns:
        The values, and the losses of the windows that they come from.

    Raises:
        NoQualityError: The loss is no number, or beyond any perplexity.
    """
    settings = configuration.profile.measure
    tokens = open_split(held_out_folder(base), "test")
    windows = evaluation_windows(tokens, configuration.profile.pretrain.training.sequence_length)
    taken = spread_windows(windows, settings.perplexity_windows)
    with half_products_in_float32(decoder):
        losses = window_losses(decoder, taken, settings.evaluation_batch_size, device)
    interval = _ratio_interval(losses.nats, losses.tokens)
    bits = len(tokens) / read_manifest(paths.DATA)["splits"]["test"]["bytes"] / math.log(2)
    _require_numbers(losses.nats, losses.tokens, "held-out loss")
    method = f"{len(taken)} of {len(windows)} windows of {windows.shape[1] - 1} tokens, evenly spread; bootstrap over windows"
    values = {
        "perplexity": single(
            "perplexity", math.exp(losses.mean), method=method, n=len(taken),
            interval=interval and (math.exp(interval[0]), math.exp(interval[1])),
        ),
        "bits_per_byte": single(
            "bits_per_byte", losses.mean * bits, method=method, n=len(taken),
            interval=interval and (interval[0] * bits, interval[1] * bits),
        ),
    }  # fmt: skip
    return values, losses


def task_values(
    configuration: Configuration, decoder: Decoder, device: torch.device, base: Path
) -> tuple[dict[str, Value], dict[str, Any], np.ndarray | None]:
    """Accuracy, exact match and loss on the task's test examples.

    Args:
        configuration: The run's parameters.
        decoder: The model, in evaluation mode.
        device: Where it lies.
        base: Folder of the base that it was tuned from, whose tokenizer it understands.

    Returns:
        The values; accuracy, exact match and majority class of each group of examples, as information; and 1.0 or 0.0 for
        each example with choices, as it was answered rightly or not. Without such examples that is None, and so is the
        accuracy missing: `NO_CHOICES`.

    Raises:
        NoQualityError: The loss is no number.
    """
    settings = configuration.profile.measure
    questions = encode_questions(
        paths.DATA, "test", configuration.profile.tune.training.sequence_length, tokenizer_folder=base
    )
    with half_products_in_float32(decoder):
        scores = score_questions(decoder, questions, settings.evaluation_batch_size, pad_token=0, device=device)
    _require_numbers(scores.nats, scores.tokens, "loss of the task's answers")
    examples = f"{len(questions)} test examples"
    values = {
        "task_loss": single(
            "task_loss", scores.loss, n=len(questions), interval=_ratio_interval(scores.nats, scores.tokens),
            method=f"{examples}, tokens of the reference answers; bootstrap over examples",
        ),
        "exact_match": _share("exact_match", scores.exact, f"{examples}, greedy decoding; Jeffreys' interval"),
    }  # fmt: skip
    labelled = ~np.isnan(scores.correct)
    correct = scores.correct[labelled] if labelled.any() else None
    if correct is not None:
        method = f"{len(correct)} test examples, candidates by mean log-likelihood per token; Jeffreys' interval"
        values["task_accuracy"] = _share("task_accuracy", correct, method)
    groups = np.array([question.group for question in questions])
    facts = read_manifest(paths.DATA)["task"]["groups"]
    information = {
        str(group): {
            "accuracy": _percent(scores.correct[(groups == group) & labelled]),
            "exact_match": _percent(scores.exact[groups == group]),
            "examples": int((groups == group).sum()),
            "majority_accuracy": 100 * facts[group]["majority_accuracy"],
        }
        for group in sorted(set(groups.tolist()))
    }
    return values, information, correct


def _share(key: str, outcomes: np.ndarray, method: str) -> Value:
    shares = share_interval(outcomes)
    interval = shares and (100 * shares[0], 100 * shares[1])
    return single(key, 100 * float(outcomes.mean()), method=method, n=len(outcomes), interval=interval)


def _percent(outcomes: np.ndarray) -> float | None:
    return 100 * float(outcomes.mean()) if len(outcomes) else None


def _require_numbers(nats: np.ndarray, tokens: np.ndarray, name: str) -> None:
    """Makes sure that a model's losses are numbers of which exp can be taken, interval included."""
    worst = float(np.max(nats / tokens))
    if not worst < _LARGEST_LOSS:
        found = f"{worst:.4g} nat per token in places" if math.isfinite(worst) else "not finite in places"
        raise NoQualityError(
            f"the {name} is {found}: training diverged (lower its learning_rate), the weights are damaged, or they are too large "
            "for their type"
        )


def _ratio_interval(sums: np.ndarray, counts: np.ndarray) -> tuple[float, float] | None:
    """Interval of sum over count, resampling both together."""
    pairs = np.stack([sums, counts], axis=1)
    return bootstrap_interval(pairs, lambda draws: draws[..., 0].sum(axis=1) / draws[..., 1].sum(axis=1))
