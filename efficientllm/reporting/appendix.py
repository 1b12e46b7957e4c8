"""What lies behind the ranking: quality against the baselines, methods, commands, provenance and downloads."""

import base64
import gzip
import itertools
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from efficientllm import metrics, pipeline, registry
from efficientllm.ranking.rank import Estimate
from efficientllm.ranking.results import Ranked, Result, to_csv
from efficientllm.reporting.evidence import Evidence
from efficientllm.reporting.flags import split_method
from efficientllm.reporting.groups import axes_of, cell_labels
from efficientllm.reporting.summary import flatten
from efficientllm.reporting.text import DASH, estimate, number, span

Verdict = Literal["better", "not distinguishable", "not better"]
"""How a figure compares with a baseline, which has no interval: not distinguishable where the figure's interval holds it."""

_NUMBERS = re.compile(r"(\d+(?:\.\d+)?)")


@dataclass(frozen=True)
class QualityRow:
    """One line of a quality table: a baseline, or a cell; `verdict` is None where there is nothing to compare."""

    name: str
    value: str | None
    interval: str | None
    remark: str
    baseline: bool
    verdict: Verdict | None


@dataclass(frozen=True)
class QualityTable:
    """A metric's baselines and the cells that have to beat them."""

    metric: metrics.Metric
    caption: str
    baseline: str | None
    rows: list[QualityRow]


def quality_tables(evidence: Evidence) -> list[QualityTable]:
    """Compares perplexity and bits per byte with counting models, and task accuracy with the commonest answer."""
    tables = []
    for key in ("perplexity", "bits_per_byte"):
        floors = {
            f"{name} model": (float(facts[key]), str(facts["method"]))
            for name, facts in sorted(evidence.manifest["baselines"].items(), reverse=True)
        }
        tables.append(
            _quality_table(
                evidence, "pretrain", key, floors, "Pretrained models on the test split, compared with counting models"
            )
        )
    accuracy = majority_accuracy(evidence)
    floors = {} if accuracy is None else {
        "commonest answer": (accuracy, "always the most common answer among the training examples of its question")
    }  # fmt: skip
    for axis in ("tune", "quantize"):
        if axis in axes_of(evidence.rows):
            tables.append(
                _quality_table(
                    evidence, axis, "task_accuracy", floors,
                    f"{'Tuned' if axis == 'tune' else 'Quantized'} models on the task's test examples, compared with always giving "
                    "the commonest answer",
                )
            )  # fmt: skip
    return tables


def majority_accuracy(evidence: Evidence) -> float | None:
    """Returns the accuracy in percent of always giving a question's commonest training answer, over all test examples."""
    groups = evidence.manifest["task"]["groups"].values()
    tested = [
        (group["examples"]["test"], group["majority_accuracy"])
        for group in groups
        if group["majority_accuracy"] is not None
    ]
    total = sum(count for count, _ in tested)
    return 100.0 * sum(count * share for count, share in tested) / total if total else None


def _quality_table(
    evidence: Evidence, axis: registry.Axis, key: str, floors: dict[str, tuple[float, str]], caption: str
) -> QualityTable:
    entry = metrics.metric(key)
    higher = entry.direction == "higher"
    hardest = (max if higher else min)((value for value, _ in floors.values()), default=None)
    rows = [QualityRow(name, number(value), None, remark, True, None) for name, (value, remark) in floors.items()]
    cells = {result.cell: result for result in evidence.results if (result.axis, result.metric) == (axis, key)}
    for cell, result in cells.items():
        name = cell_labels(evidence.rows, axis, cell)
        if result.value is None:
            rows.append(QualityRow(name, None, None, result.missing_reason or "", False, None))
            continue
        value, interval = estimate(result.value, result.ci_low, result.ci_high)
        found = Estimate(result.value, result.ci_low, result.ci_high)
        verdict = None if hardest is None else _verdict(found, hardest, entry.direction)
        rows.append(QualityRow(name, value, interval, "", False, verdict))
    return QualityTable(entry, caption, None if hardest is None else number(hardest), rows)


def _verdict(found: Estimate, baseline: float, direction: metrics.Direction) -> Verdict:
    if found.overlaps(Estimate(baseline)):
        return "not distinguishable"
    return "better" if (found.value > baseline) == (direction == "higher") else "not better"


@dataclass(frozen=True)
class MetricMethod:
    """How a metric is defined, and how this run took it."""

    metric: metrics.Metric
    ranked_on: list[str]
    shown_on: list[str]
    methods: list[str]
    windows: str | None
    repeats: str | None


def metric_methods(evidence: Evidence) -> list[MetricMethod]:
    """Describes every metric of the registry with the methods, windows and repeats that the records state."""
    listed = []
    for entry in metrics.METRICS:
        own = [result for result in evidence.results if result.metric == entry.key and result.value is not None]
        windows = [result.window_s for result in own if result.window_s is not None]
        repeats = [result.n for result in own if result.n is not None]
        listed.append(
            MetricMethod(
                entry, [registry.AXIS_LABELS[axis] for axis in entry.ranked_on], [registry.AXIS_LABELS[axis] for axis in entry.shown_on],
                merged(f"{split_method(result.method)[0]} ({result.source})" for result in own if result.method),
                span(windows, "s") if windows else None, span(repeats) if repeats else None,
            )
        )  # fmt: skip
    return listed


def merged(texts: Iterable[str]) -> list[str]:
    """Joins texts that differ in their numbers only into one with the span of each, such as "8.2-9.6 GB/s"."""
    alike: dict[tuple[str, ...], list[list[str]]] = {}
    for text in sorted(set(texts)):
        pieces = _NUMBERS.split(text)
        alike.setdefault(tuple(pieces[::2]), []).append(pieces[1::2])
    listed = []
    for words, numbers in alike.items():
        spans = [_ends(column) for column in zip(*numbers, strict=True)]
        listed.append("".join(itertools.chain(*itertools.zip_longest(words, spans, fillvalue=""))))
    return sorted(listed)


def _ends(numbers: Sequence[str]) -> str:
    ordered = sorted(set(numbers), key=float)
    return ordered[0] if len(ordered) == 1 else f"{ordered[0]}{DASH}{ordered[-1]}"


@dataclass(frozen=True)
class Reproduction:
    """The commands that produce a cell again."""

    labels: str
    commands: list[str]


def reproductions(evidence: Evidence) -> list[Reproduction]:
    """Lists, for each cell, the command that trains or quantizes it again and the one that measures it again."""
    return [
        Reproduction(
            cell_labels(evidence.rows, axis, cell),
            [f"dvc repro -f -s {pipeline.address(f'{kind}{axis}@{cell}')}" for kind in ("", "measure_")],
        )
        for axis, cell in evidence.records
    ]


def provenance(evidence: Evidence) -> dict[str, list[tuple[str, str]]]:
    """Gathers what all records, the hardware file and the manifest say about where the figures come from.

    Returns:
        Headings, each with names and texts. A fact on which the records differ lists every version of it.
    """
    records = evidence.records.values()
    shared: dict[str, dict[str, set[str]]] = {"Run": {}, "Versions": {}, "Kernels": {}, "Input hashes": {}}
    for record in records:
        origin = record.provenance
        facts = {
            "Run": {
                "seed": str(origin.seed), "profile": origin.profile, "git revision": origin.git_revision or "not known",
                "uncommitted changes": {True: "yes", False: "no", None: "not known"}[origin.git_dirty],
                "tuned model that was quantized": evidence.method,
            },
            "Versions": origin.versions, "Kernels": origin.kernels, "Input hashes": origin.hashes,
        }  # fmt: skip
        for heading, pairs in facts.items():
            for name, value in pairs.items():
                shared[heading].setdefault(name, set()).add(value)
    sections = {
        heading: [(name, _joined(values)) for name, values in sorted(pairs.items())]
        for heading, pairs in shared.items()
    }
    sections["Hardware"] = list(flatten(evidence.hardware))
    described = ("source", "splits", "tokenizer", "task", "vocabulary_size", "baselines")
    sections["Data"] = list(flatten({key: evidence.manifest[key] for key in described}))
    sections["Data files (SHA-256)"] = [
        (name, str(facts.get("sha256", "not known"))) for name, facts in sorted(evidence.manifest["files"].items())
    ]
    return {heading: pairs for heading, pairs in sections.items() if pairs}


def _joined(values: set[str]) -> str:
    ordered = sorted(values)
    shown = ", ".join(ordered[:3])
    return shown if len(ordered) <= 3 else f"{shown} and {len(ordered) - 3} more; each record names its own"


@dataclass(frozen=True)
class Download:
    """A file that the page carries within itself."""

    name: str
    description: str
    size: int
    uri: str


def downloads(evidence: Evidence) -> list[Download]:
    """Packs the tidy tables and all records into data: URIs; compressed, which makes them a tenth."""
    records = [record.model_dump(mode="json") for record in evidence.records.values()]
    packed = json.dumps(records, ensure_ascii=False, sort_keys=True, indent=1, allow_nan=False)
    listed = (
        ("results.csv", "one line per row and metric: value, unit, interval, repeats, method, or the reason for its absence",
         to_csv(evidence.results, Result)),
        ("ranking.csv", "one line per row and ranked metric: value, normalized value, rank, stability, ties, tier",
         to_csv(evidence.ranking, Ranked)),
        ("records.json", "every record in full: repeats, provenance, serving curves, further information", packed),
    )  # fmt: skip
    return [
        Download(name, description, len(content.encode()), _compressed(content))
        for name, description, content in listed
    ]


def _compressed(content: str) -> str:
    # without a time stamp, so that the same content gives the same bytes
    packed = gzip.compress(content.encode(), mtime=0)
    return f"data:application/gzip;base64,{base64.b64encode(packed).decode()}"
