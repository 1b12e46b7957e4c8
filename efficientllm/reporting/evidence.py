"""Everything that the report is made from, read once and checked."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from efficientllm import paths, registry
from efficientllm.config import Configuration
from efficientllm.data.manifest import read_manifest
from efficientllm.errors import ArtifactError
from efficientllm.files import read_json
from efficientllm.measurement.hardware import read_hardware
from efficientllm.ranking.replicas import read_run
from efficientllm.ranking.results import (
    RANKING_FILE,
    RESULTS_FILE,
    Ranked,
    Result,
    rank,
    tabulate,
    to_csv,
)
from efficientllm.records import Record
from efficientllm.stage import failure
from efficientllm.telemetry import CURVE_FILE, RUN_FILE, UNTRAINED_FILE, Curve, read_curve


@dataclass(frozen=True)
class Evidence:
    """The inputs of the report.

    Args:
        rows: Rows of the ranking, in the table's order.
        records: Records by axis and cell.
        results: One line per row and metric.
        ranking: One line per row and ranked metric.
        hardware: Content of hardware.json.
        manifest: Content of the data's manifest.
        curves: Telemetry by axis and cell.
        without_curve: Why a training cell has no curve, by axis and cell.
        training_energy: Whether the joules of a training run were measured or modelled, by axis and cell.
        profile: Name of the profile.
        method: The tuning method whose model was quantized.
    """

    rows: list[registry.Row]
    records: dict[tuple[registry.Axis, str], Record]
    results: list[Result]
    ranking: list[Ranked]
    hardware: dict[str, Any]
    manifest: dict[str, Any]
    curves: dict[tuple[registry.Axis, str], Curve]
    without_curve: dict[tuple[registry.Axis, str], str]
    training_energy: dict[tuple[registry.Axis, str], str]
    profile: str
    method: str


def collect(configuration: Configuration, root: Path = Path()) -> Evidence:
    """Reads the records, telemetry, hardware and manifest of the declared cells.

    Args:
        configuration: The run's parameters.
        root: The repository's root.

    Raises:
        ArtifactError: A file is missing or damaged, or the tables in results/ come from other records.
    """
    rows = configuration.rows()
    records = read_run(configuration, root)
    results = tabulate(rows, records)
    ranking = rank(results)
    for name, expected in ((RESULTS_FILE, to_csv(results, Result)), (RANKING_FILE, to_csv(ranking, Ranked))):
        _check_table(root / paths.RESULTS / name, expected)
    hardware = read_hardware(root / paths.HARDWARE)
    curves: dict[tuple[registry.Axis, str], Curve] = {}
    without: dict[tuple[registry.Axis, str], str] = {}
    energy: dict[tuple[registry.Axis, str], str] = {}
    for axis, cell in records:
        if axis not in registry.TRAINED_AXES:
            continue
        folder = root / paths.telemetry(axis, cell)
        reason = failure(folder)
        if reason is not None:
            without[axis, cell] = f"failed: {reason}"
        elif (folder / CURVE_FILE).exists():
            curves[axis, cell] = read_curve(folder / CURVE_FILE)
            energy[axis, cell] = _energy_source(folder / RUN_FILE)
        else:
            without[axis, cell] = str(read_json(folder / UNTRAINED_FILE)["reason"])
    chosen = configuration.parameters
    return Evidence(
        rows, records, results, ranking, hardware, read_manifest(root / paths.DATA), curves, without, energy,
        chosen.profile, chosen.method,
    )  # fmt: skip


def _energy_source(path: Path) -> str:
    """Says whether the joules of a training run were measured or modelled."""
    try:
        return str(read_json(path)["hardware"]["energy_source"])
    except (KeyError, TypeError) as error:
        raise ArtifactError(
            f"{path} does not say where its energy comes from: delete its folder and run `dvc repro`"
        ) from error


def _check_table(path: Path, expected: str) -> None:
    """Makes sure that the published table and the page say the same."""
    try:
        found = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ArtifactError(f"{path} cannot be read ({error}): run `dvc repro normalize`") from error
    if found != expected:
        raise ArtifactError(f"{path} does not match the records: run `dvc repro normalize`, then `dvc repro report`")
