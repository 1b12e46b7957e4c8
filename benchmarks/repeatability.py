"""How far apart the figures of one cell come out when it is measured again, each time in a fresh process.

    python benchmarks/repeatability.py --run . --times 5 --out repeatability.csv

Measures cells of a finished run (one of each axis by default) by the pipeline's own stage, in random order within each
round, and leaves the run's records as they are. For each metric it prints the median of all processes, the coefficient of
variation between processes, the median one within a process, and how many of the processes' 95 % intervals hold the median
of all: intervals know nothing of what differs between processes. `others` is what other programs took of the cores while
the cell was measured; on a busy machine the table says more about the machine than about the method.
"""

import argparse
import os
import random
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from command_line import add_out, like, new_parser, several, whole
from table import Row, write_table

from efficientllm import metrics, paths
from efficientllm.files import read_json
from efficientllm.measurement.hardware import describe
from efficientllm.measurement.statistics import variation
from efficientllm.records import Record, read_record

_SOURCE = Path(__file__).resolve().parents[1]
_LINKED = (paths.PARAMETERS, paths.PROFILES, paths.HARDWARE)
_ORDER = ("average_latency", "training_throughput", "inference_throughput")


def main() -> None:
    """Measures, and prints a table for each cell."""
    arguments = _arguments()
    cells = [(axis, name) for axis, _, name in (cell.partition(":") for cell in arguments.cells)]
    run = arguments.run.resolve()
    hardware = read_json(run / paths.HARDWARE)
    print("\n".join(describe(hardware)))
    print(f"load average before: {os.getloadavg()[0]:.2f}", flush=True)
    records: dict[tuple[str, str], list[Record]] = {(axis, name): [] for axis, name in cells}
    generator = random.Random(arguments.seed)
    for number in range(arguments.times):
        for axis, name in generator.sample(cells, len(cells)):
            records[axis, name].append(_measured(run, axis, name))
            print(f"round {number + 1}: {axis}:{name}", flush=True)
            if arguments.out:  # after each cell, so that a run that is cut short keeps what it has
                write_table(arguments.out, [row for cell, found in records.items() for row in _rows(*cell, found)])
    print(f"load average after: {os.getloadavg()[0]:.2f}")
    for (axis, name), found in records.items():
        _print(axis, name, found)


def _arguments() -> argparse.Namespace:
    parser = new_parser(__doc__)
    parser.add_argument("--run", type=Path, default=".", metavar="FOLDER", help="folder of a finished run")
    parser.add_argument(
        "--cells",
        type=several(like("(pretrain|tune|quantize):.+", "axis:cell")),
        default="pretrain:dense_medium,tune:lora-medium,quantize:bfloat16-medium",
        help="cells that are measured again, as axis:cell",
    )
    parser.add_argument("--times", type=whole(2), default=5, help="processes for each cell")
    parser.add_argument("--seed", type=int, default=0, help="seed of the order within the rounds")
    add_out(parser)
    return parser.parse_args()


def _measured(run: Path, axis: str, cell: str) -> Record:
    """Measures a cell in a process of its own, in a folder that borrows all but the records of the run."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for linked in _LINKED:
            (folder / linked).symlink_to(run / linked)
        (folder / paths.ARTIFACTS).mkdir()
        for artifact in (run / paths.ARTIFACTS).iterdir():
            if artifact.name != paths.MEASURE.name:
                (folder / paths.ARTIFACTS / artifact.name).symlink_to(artifact)
        search = (str(_SOURCE), os.environ.get("PYTHONPATH"))
        done = subprocess.run(
            [sys.executable, "-m", "stages.measure", "--axis", axis, "--cell", cell],
            cwd=folder, env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, search))}, text=True,
            capture_output=True, check=False,
        )  # fmt: skip
        if done.returncode:
            raise SystemExit(f"{axis}:{cell} could not be measured:\n{done.stdout}{done.stderr}")
        record = read_record(folder / paths.record(axis, cell))
    if record.status == "failed":
        raise SystemExit(f"{axis}:{cell} failed: {record.reason}")
    return record


def _print(axis: str, cell: str, records: list[Record]) -> None:
    workload = "serving" if axis == "quantize" else "training"
    others = [
        share for record in records for share in record.information[workload]["others_cores"] if share is not None
    ]
    busy = f", others {statistics.median(others):.2f} cores (highest {max(others):.2f})" if others else ""
    print(f"\n{axis} {cell}: {len(records)} processes{busy}")
    print(f"{'metric':36s} {'median':>11s} {'unit':14s} {'CV':>7s} {'within':>7s} {'held':>6s}")
    keys = [entry.key for entry in metrics.measured_metrics(axis)]
    for key in sorted(keys, key=lambda key: _ORDER.index(key) if key in _ORDER else len(_ORDER)):
        found = [record.metrics[key] for record in records if key in record.metrics]
        if len(found) < 2 or not found[0].repeats:
            continue  # quality and bytes are the same each time
        middle = statistics.median(value.value for value in found)
        between = variation([value.value for value in found])
        within = [value.coefficient_of_variation for value in found if value.coefficient_of_variation is not None]
        bounded = [value for value in found if value.ci_low is not None and value.ci_high is not None]
        held = sum(value.ci_low <= middle <= value.ci_high for value in bounded)  # type: ignore[operator]
        mark = " (modelled)" if found[0].source == "modelled" else ""
        print(
            f"{key:36s} {middle:11.4g} {found[0].unit:14s} {_percent(between)} "
            f"{_percent(statistics.median(within) if within else None)} "
            f"{f'{held}/{len(bounded)}' if bounded else '-':>6s}{mark}"
        )


def _percent(share: float | None) -> str:
    return f"{'-':>7s}" if share is None else f"{100 * share:6.1f}%"


def _rows(axis: str, cell: str, records: list[Record]) -> list[Row]:
    return [
        {
            "axis": axis, "cell": cell, "process": process, "metric": key, "unit": value.unit, "value": value.value,
            "ci_low": value.ci_low, "ci_high": value.ci_high, "cv_within": value.coefficient_of_variation,
            "source": value.source,
        }
        for process, record in enumerate(records)
        for key, value in record.metrics.items()
    ]  # fmt: skip


if __name__ == "__main__":
    main()
