"""What a run lacks, and why: absence is a result."""

from dataclasses import dataclass

from efficientllm import metrics, registry
from efficientllm.ranking.results import Result
from efficientllm.reporting.evidence import Evidence
from efficientllm.reporting.groups import cells_listing, results_by_cell


@dataclass(frozen=True)
class Gap:
    """The same metrics, missing for the same reason in one or more cells of an axis."""

    id: str
    axis: str
    labels: str
    metrics: list[str]
    whole_cell: bool
    reason: str

    @property
    def hint(self) -> str:
        """The reason as a sentence of its own, beside nothing but a dash."""
        return self.reason if self.reason.startswith("not measured") else f"not measured: {self.reason}"


class Gaps:
    """Collects the missing metrics of each cell and reason, and puts cells with equal gaps together."""

    def __init__(self, evidence: Evidence) -> None:
        missing: dict[tuple[registry.Axis, str, str], list[str]] = {}
        for (axis, cell, key), result in results_by_cell(evidence).items():
            if result.missing_reason is not None:
                missing.setdefault((axis, cell, result.missing_reason), []).append(key)
        alike: dict[tuple[registry.Axis, str, tuple[str, ...]], list[str]] = {}
        for (axis, cell, reason), keys in missing.items():
            alike.setdefault((axis, reason, tuple(keys)), []).append(cell)
        self._listed: list[Gap] = []
        self._by_cell: dict[tuple[str, str, str], Gap] = {}
        for (axis, reason, absent), cells in alike.items():
            gap = Gap(
                id=f"gap-{len(self._listed) + 1}",
                axis=registry.AXIS_LABELS[axis],
                labels=cells_listing(evidence.rows, axis, cells),
                metrics=[metrics.metric(key).label for key in absent],
                whole_cell=all(evidence.records[axis, cell].status == "failed" for cell in cells),
                reason=reason,
            )
            self._listed.append(gap)
            self._by_cell |= {(axis, cell, reason): gap for cell in cells}

    def of(self, result: Result) -> Gap | None:
        """Returns the gap that a result is part of, or None where it has a value."""
        reason = result.missing_reason
        return None if reason is None else self._by_cell[result.axis, result.cell, reason]

    def all(self) -> list[Gap]:
        """Lists the gaps in the order of the table."""
        return list(self._listed)
