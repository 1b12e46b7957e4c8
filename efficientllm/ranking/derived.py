"""Figures that follow from several cells of a run, and so stand in no single record."""

from collections.abc import Mapping
from pathlib import Path

from efficientllm import paths
from efficientllm.files import check_directory, read_json
from efficientllm.metrics import metric
from efficientllm.records import Record, Value
from efficientllm.registry import Axis, cell_name
from efficientllm.telemetry import CURVE_FILE, RUN_FILE, Curve, read_curve

_KEY = "energy_to_lora_loss"


def with_energy_to_loss(
    records: Mapping[tuple[Axis, str], Record], root: Path = Path()
) -> dict[tuple[Axis, str], Record]:
    """Adds to each tuned cell the energy that its training took to reach LoRA's final validation loss.

    Args:
        records: Records by axis and cell.
        root: The repository's root.

    Returns:
        The records; a tuned cell has the figure, or the reason for its absence.

    Raises:
        ArtifactError: A run's telemetry is damaged.
    """
    curves = {
        record.cell: curve
        for record in records.values()
        if record.axis == "tune" and record.status == "ok" and (curve := _curve(record.cell, root)) is not None
    }
    return {
        key: _added(record, curves, root) if record.axis == "tune" and record.status == "ok" else record
        for key, record in records.items()
    }


def joules_to_reach(curve: Curve, loss: float) -> float | None:
    """Energy until a run's validation loss first is as low as asked, linear between two evaluations.

    Args:
        curve: The run's telemetry.
        loss: Validation loss in nats per token.

    Returns:
        Joules since the run's start; None where the loss was never reached, or no energy was read.
    """
    before: tuple[float, float] | None = None
    for found, joules in zip(curve.validation_loss, curve.joules, strict=True):
        if found is None:
            continue
        if joules is None:
            return None
        if found <= loss:
            if before is None or before[0] == found:
                return joules
            share = (before[0] - loss) / (before[0] - found)
            return before[1] + share * (joules - before[1])
        before = (found, joules)
    return None


def _curve(cell: str, root: Path) -> Curve | None:
    folder = root / paths.telemetry("tune", cell)
    check_directory(folder)
    return read_curve(folder / CURVE_FILE) if (folder / CURVE_FILE).exists() else None


def _added(record: Record, curves: Mapping[str, Curve], root: Path) -> Record:
    reference = cell_name("lora", record.size)
    if record.cell not in curves:
        return _missing(record, "its training left no curve")
    if reference not in curves:
        return _missing(record, f"this run has no training curve of {reference}, whose loss would be the goal")
    hardware = read_json(root / paths.telemetry("tune", record.cell) / RUN_FILE)["hardware"]
    if others := hardware.get("shared_with"):
        return _missing(record, f"the joules are not its own: {', '.join(others)} computed on its device meanwhile")
    target = [loss for loss in curves[reference].validation_loss if loss is not None][-1]
    joules = joules_to_reach(curves[record.cell], target)
    if joules is None:
        reached = any(loss is not None and loss <= target for loss in curves[record.cell].validation_loss)
        return _missing(
            record, "its training read no energy" if reached else f"its validation loss stayed above {target:.4g}"
        )
    known = metric(_KEY)
    value = Value(
        value=joules, unit=known.unit, direction=known.direction, source=hardware["energy_source"], n=1,
        method=f"the training run on {hardware['device']}, to a validation loss of {target:.4g}; {hardware['energy_method']}",
    )  # fmt: skip
    return record.model_copy(update={"metrics": {**record.metrics, _KEY: value}})


def _missing(record: Record, reason: str) -> Record:
    return record.model_copy(update={"missing": {**record.missing, _KEY: reason}})
