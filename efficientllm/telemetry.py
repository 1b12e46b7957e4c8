"""What a training run leaves beside its model, as later stages read it: the curve, and the whole run's time and energy."""

import csv
import io
from dataclasses import dataclass
from pathlib import Path

from efficientllm.errors import ArtifactError

CURVE_FILE = "curve.csv"
RUN_FILE = "run.json"
UNTRAINED_FILE = "untrained.json"
_CURVE_COLUMNS = ("tokens", "loss", "validation_loss", "seconds", "joules")


@dataclass(frozen=True)
class Curve:
    """A training run's telemetry; each list has one entry per logged step, None where nothing was logged.

    Losses are in nats per token; `seconds` and `joules` count from the run's start.
    """

    tokens: list[float]
    loss: list[float | None]
    validation_loss: list[float | None]
    seconds: list[float | None]
    joules: list[float | None]


def read_curve(path: Path) -> Curve:
    """Reads a curve.csv.

    Raises:
        ArtifactError: A column is missing or a cell is no number; the message names the line.
    """
    reader = csv.DictReader(io.StringIO(path.read_text(encoding="utf-8")))
    if absent := [name for name in _CURVE_COLUMNS if name not in (reader.fieldnames or ())]:
        raise ArtifactError(f"{path} has no column {', '.join(absent)}: delete its folder and run `dvc repro`")
    columns: dict[str, list[float | None]] = {name: [] for name in _CURVE_COLUMNS}
    for number, line in enumerate(reader, start=2):
        for name in _CURVE_COLUMNS:
            text = line[name]
            try:
                columns[name].append(float(text) if text else None)
            except ValueError as error:
                raise ArtifactError(f"{path}, line {number}: {name} is {text!r}, which is no number") from error
    tokens = [value for value in columns.pop("tokens") if value is not None]
    if any(len(column) != len(tokens) for column in columns.values()):
        raise ArtifactError(f"{path}: a line has no token count: delete its folder and run `dvc repro`")
    return Curve(tokens=tokens, **columns)
