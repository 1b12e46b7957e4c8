"""What evaluating a model gave window by window and example by example, which is what paired comparisons are made of."""

from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from efficientllm.evaluation.perplexity import WindowLosses


@dataclass(frozen=True)
class Outcomes:
    """Outcomes of one model on the held-out text and on the task.

    Args:
        losses: Losses of the held-out windows.
        correct: 1.0 or 0.0 for each test example with choices, as it was answered rightly or not; None where there is none.
    """

    losses: WindowLosses
    correct: np.ndarray | None

    def content(self) -> dict[str, Any]:
        """Returns them as JSON holds them."""
        return {
            "windows": {"nats": self.losses.nats.tolist(), "tokens": self.losses.tokens.tolist()},
            "correct": None if self.correct is None else self.correct.tolist(),
        }

    @classmethod
    def of(cls, content: dict[str, Any]) -> Self:
        """Reads them from what `content` returned.

        Raises:
            KeyError: Something is missing.
            TypeError: Something is of another kind.
            ValueError: Something is not a number.
        """
        windows, answers = content["windows"], content["correct"]
        losses = WindowLosses(np.array(windows["nats"], dtype=np.float64), np.array(windows["tokens"], dtype=np.int64))
        return cls(losses, None if answers is None else np.array(answers, dtype=np.float64))
