"""What a training run leaves beside its model: the curve and the whole run's time and energy.

It is volatile (seconds, joules), so it has a folder of its own: no later stage trains or measures from it.
"""

import csv
import io
from pathlib import Path
from typing import Any

from efficientllm.files import whole_directory, write_json, write_text
from efficientllm.telemetry import CURVE_FILE, RUN_FILE, UNTRAINED_FILE
from efficientllm.training.checkpoint import Progress

CURVE_COLUMNS = ("step", "tokens", "loss", "validation_loss", "learning_rate", "seconds", "joules")


def write_telemetry(folder: Path, progress: Progress, tokens_per_step: float, hardware: dict[str, Any]) -> None:
    """Writes `curve.csv` and `run.json`.

    Args:
        folder: Destination.
        progress: The finished run.
        tokens_per_step: Training tokens of one optimizer step.
        hardware: What the figures were taken on, and how the energy was read.
    """
    with whole_directory(folder) as temporary:
        text = io.StringIO()
        writer = csv.DictWriter(text, CURVE_COLUMNS, lineterminator="\n")
        writer.writeheader()
        for row in progress.curve:
            writer.writerow({"tokens": round(row["step"] * tokens_per_step), **row})
        write_text(temporary / CURVE_FILE, text.getvalue())
        summary = {
            "steps": progress.step,
            "seconds": progress.seconds,
            "joules": progress.joules,
            "resumed": progress.resumed,
            "hardware": hardware,
        }
        write_json(temporary / RUN_FILE, summary)


def write_untrained(folder: Path) -> None:
    """Says in place of a curve that nothing was trained."""
    with whole_directory(folder) as temporary:
        write_json(temporary / UNTRAINED_FILE, {"reason": "random weights: the profile trains nothing"})
