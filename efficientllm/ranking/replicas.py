"""Quality over several seeds: the records of a run, with the replicas that params.yaml asks for worked in."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from efficientllm import paths
from efficientllm.config import Configuration
from efficientllm.ranking.derived import with_energy_to_loss
from efficientllm.ranking.results import SEEDS, read_records
from efficientllm.records import Record, Replica, read_replica
from efficientllm.registry import Axis


def read_run(configuration: Configuration, root: Path = Path()) -> dict[tuple[Axis, str], Record]:
    """Reads the records of all declared cells, and works in what several cells tell together.

    Where a cell was replicated, its quality is that of all its seeds.

    Args:
        configuration: The run's parameters.
        root: The repository's root.

    Returns:
        Records by axis and cell, in the rows' order.

    Raises:
        ArtifactError: A record is missing or breaks the contract.
    """
    records = read_records(configuration.rows(), root)
    found: dict[tuple[Axis, str], list[Replica]] = defaultdict(list)
    for axis, cell, seed in configuration.replicas():
        found[axis, cell].append(read_replica(root / paths.replica(axis, cell, seed)))
    for key, replicas in found.items():
        records[key] = over_seeds(records[key], replicas)
    return with_energy_to_loss(records, root)


def over_seeds(record: Record, replicas: Sequence[Replica]) -> Record:
    """Replaces the quality of a record by the median over its own seed and those of its replicas.

    The interval then says how far apart training runs come out, no longer how the windows of the test text differ; those
    are the same for all rows. What a replica lacks stays as it was, and the reason of a failed one is kept.

    Args:
        record: The record of the cell with the run's seed.
        replicas: The same cell with other seeds.
    """
    from efficientllm.measurement.statistics import summarize

    trained = [replica for replica in replicas if replica.status == "ok"]
    values, counts = dict(record.metrics), {}
    for key, value in record.metrics.items():
        further = [replica.metrics[key].value for replica in trained if key in replica.metrics]
        if further:
            counts[key] = len(further) + 1
            values[key] = summarize(
                key,
                [value.value, *further],
                source=value.source,
                method=f"median of {counts[key]} seeds; each: {value.method}",
            )
    failed = {str(replica.seed): replica.reason for replica in replicas if replica.status == "failed"}
    information = (
        record.information | ({SEEDS: counts} if counts else {}) | ({"failed_seeds": failed} if failed else {})
    )
    return record.model_copy(update={"metrics": values, "information": information})
