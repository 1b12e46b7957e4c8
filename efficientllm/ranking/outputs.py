"""Rankings of tidy tables and comparisons of result sets, as CSV and as plain structures for JSON."""

from collections.abc import Sequence
from typing import Any

from efficientllm.files import csv_text
from efficientllm.ranking.compare import Comparison
from efficientllm.ranking.standings import GroupRanking

RANKING_COLUMNS = ("axis", "group", "technique", "metric", "value", "normalized", "rank", "tied", "tier")
COMPARISON_COLUMNS = (
    "axis", "group", "technique", "metric", "unit", "direction", "set", "value", "ci_low", "ci_high", "source",
    "difference", "ratio", "beyond_intervals", "better", "missing_reason",
)  # fmt: skip


def ranking_csv(rankings: Sequence[GroupRanking]) -> str:
    """Renders a ranking, one line per technique and metric."""
    return csv_text(
        RANKING_COLUMNS,
        (
            [getattr(ranking.standings[metric][technique].line, column) for column in RANKING_COLUMNS]
            for ranking in rankings
            for metric in ranking.metrics
            for technique in ranking.techniques
        ),
    )


def ranking_content(rankings: Sequence[GroupRanking]) -> list[dict[str, Any]]:
    """Returns a ranking as lists and mappings: what the CSV has, and intervals, stability, neighbours, the Pareto front."""
    return [
        {
            "axis": ranking.axis,
            "group": ranking.group,
            "pareto_metrics": list(ranking.pareto_metrics),
            "pareto_front": [name for name in ranking.techniques if ranking.front[name]],
            "standings": [
                {
                    "metric": metric,
                    "direction": standing.direction,
                    "unit": standing.unit,
                    "technique": name,
                    "value": standing.line.value,
                    "ci_low": standing.ci_low,
                    "ci_high": standing.ci_high,
                    "normalized": standing.line.normalized,
                    "rank": standing.line.rank,
                    "tied": standing.line.tied,
                    "tied_with": list(standing.line.tied_with),
                    "tier": standing.line.tier,
                    "stability": standing.line.stability,
                    "reason": standing.reason,
                }
                for metric in ranking.metrics
                for name, standing in ranking.standings[metric].items()
            ],
        }
        for ranking in rankings
    ]


def comparison_csv(names: Sequence[str], comparisons: Sequence[Comparison]) -> str:
    """Renders a comparison, one line per row, metric and set."""
    return csv_text(
        COMPARISON_COLUMNS,
        (
            (row.axis, row.group, row.technique, row.metric, row.unit, row.direction, name, entry.value, entry.ci_low,
             entry.ci_high, entry.source, entry.difference, entry.ratio, entry.beyond, entry.better, entry.reason)
            for row in comparisons
            for name, entry in zip(names, row.values, strict=True)
        ),
    )  # fmt: skip


def comparison_content(names: Sequence[str], comparisons: Sequence[Comparison]) -> dict[str, Any]:
    """Returns a comparison as lists and mappings."""
    return {
        "sets": list(names),
        "compared_with": names[0],
        "rows": [
            {
                "axis": row.axis, "group": row.group, "technique": row.technique, "metric": row.metric, "unit": row.unit,
                "direction": row.direction,
                "values": [
                    {
                        "set": name, "value": entry.value, "ci_low": entry.ci_low, "ci_high": entry.ci_high,
                        "source": entry.source, "difference": entry.difference, "ratio": entry.ratio,
                        "beyond_intervals": entry.beyond, "better": entry.better, "missing_reason": entry.reason,
                    }
                    for name, entry in zip(names, row.values, strict=True)
                ],
            }
            for row in comparisons
        ],
    }  # fmt: skip
