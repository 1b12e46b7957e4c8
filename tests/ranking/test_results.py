"""The tidy tables: every row and metric present, ranks that follow from them, and files that are safe to open."""

import csv
import io
import json
from dataclasses import replace
from pathlib import Path

import pytest

from efficientllm import metrics, paths, registry
from efficientllm.errors import ArtifactError
from efficientllm.ranking.results import (
    AVERAGE_RANK,
    Ranked,
    Result,
    rank,
    read_records,
    reference_size,
    summarize,
    tabulate,
    to_csv,
)
from efficientllm.records import Record, write_record

ROWS = [row for row in registry.ARCHITECTURE_ROWS if row.cell in ("mqa", "dense_medium")]
VALUES = {"mqa": 1.0, "dense_medium": 2.0}


def make_record(cell: str, **changes) -> Record:
    entries = metrics.measured_metrics("pretrain")
    content = {
        "axis": "pretrain", "cell": cell, "technique": cell, "size": "medium", "status": "ok",
        "model": {
            "parameters_total": 1, "parameters_active": 1, "parameters_trainable": 1, "bytes_on_disk": 4,
            "bytes_in_memory": 4,
        },
        "metrics": {
            entry.key: {
                "value": VALUES[cell], "unit": entry.unit, "direction": entry.direction, "source": "measured",
                "method": "=cmd()", "n": 3, "ci_low": VALUES[cell] - 0.1, "ci_high": VALUES[cell] + 0.1,
                "coefficient_of_variation": 0.01, "window_s": 1.0,
            }
            for entry in entries
            if entry.key != "model_flops_utilization"
        },
        "missing": {"model_flops_utilization": "no peak is known"},
        "provenance": {"seed": 0, "profile": "cpu"},
    }  # fmt: skip
    return Record.model_validate(content | changes)


def make_failed(cell: str) -> Record:
    return make_record(cell, status="failed", reason="out of memory", model=None, metrics={}, missing={})


def make_table(**records: Record) -> list[Result]:
    found = {("pretrain", cell): records.get(cell, make_record(cell)) for cell in VALUES}
    return tabulate(ROWS, found)


def line_of(ranking: list[Ranked], group: str, technique: str, metric: str) -> Ranked:
    return next(item for item in ranking if (item.group, item.technique, item.metric) == (group, technique, metric))


def test_one_line_per_row_and_metric() -> None:
    table = make_table()
    measured = metrics.measured_metrics("pretrain")
    assert len(table) == len(ROWS) * len(measured)
    assert [(line.group, line.technique) for line in table[:: len(measured)]] == [(r.group, r.technique) for r in ROWS]
    missing = [line for line in table if line.value is None]
    assert {line.metric for line in missing} == {"model_flops_utilization"}
    assert {line.missing_reason for line in missing} == {"no peak is known"}
    assert all((line.value is None) != (line.missing_reason is None) for line in table)


def test_a_failed_cell_keeps_its_row_without_ranks() -> None:
    table = make_table(mqa=make_failed("mqa"))
    own = [line for line in table if line.technique == "mqa"]
    assert len(own) == len(metrics.measured_metrics("pretrain"))
    assert {line.missing_reason for line in own} == {"failed: out of memory"}
    ranking = rank(table)
    assert all(line.rank is None and not line.tied for line in ranking if line.technique == "mqa")
    assert line_of(ranking, "attention", "gqa", "perplexity").rank == 1
    assert line_of(ranking, "attention", "gqa", "perplexity").tier is None  # alone: nothing to compare with


def test_ranks_follow_the_directions_of_the_registry() -> None:
    ranking = rank(make_table())
    for entry in metrics.ranked_metrics("pretrain"):
        best = "mqa" if entry.direction == "lower" else "gqa"
        assert line_of(ranking, "attention", best, entry.key).rank == 1
        assert line_of(ranking, "attention", best, entry.key).normalized == 1.0
        assert line_of(ranking, "attention", best, entry.key).tier == "high"
    lower = sum(entry.direction == "lower" for entry in metrics.ranked_metrics("pretrain"))
    higher = len(metrics.ranked_metrics("pretrain")) - lower
    average = line_of(ranking, "attention", "mqa", AVERAGE_RANK)
    assert average.value == pytest.approx((lower + 2 * higher) / (lower + higher))
    assert average.rank == (1 if lower > higher else 2 if lower < higher else 1)


def test_ties_name_their_neighbours() -> None:
    close = make_record("mqa").model_dump()
    close["metrics"]["perplexity"] |= {"value": 1.85, "ci_low": 1.8, "ci_high": 1.95}
    ranking = rank(make_table(mqa=Record.model_validate(close)))
    first, second = (line_of(ranking, "attention", name, "perplexity") for name in ("mqa", "gqa"))
    assert (first.rank, first.tied, first.tied_with) == (1, True, ("gqa",))
    assert (second.rank, second.tied, second.tied_with) == (2, True, ("mqa",))
    assert not line_of(ranking, "attention", "mqa", "average_latency").tied


def test_modelled_values_are_not_ranked_against_measured_ones() -> None:
    table = [
        replace(line, source="modelled") if (line.technique, line.metric) == ("mqa", "energy_per_token") else line
        for line in make_table()
    ]
    ranking = rank(table)
    modelled = line_of(ranking, "attention", "mqa", "energy_per_token")
    assert (modelled.rank, modelled.normalized, modelled.value) == (None, None, None)
    assert line_of(ranking, "attention", "gqa", "energy_per_token").rank == 1
    everywhere = rank([replace(line, source="modelled") for line in make_table()])
    assert line_of(everywhere, "attention", "mqa", "energy_per_token").rank == 1


def test_average_uses_only_the_metrics_that_all_measured_rows_have() -> None:
    gap = make_record("mqa").model_dump()
    gap["metrics"].pop("perplexity")
    gap["missing"]["perplexity"] = "not measured: random weights"
    ranking = rank(make_table(mqa=Record.model_validate(gap)))
    others = [entry for entry in metrics.ranked_metrics("pretrain") if entry.key != "perplexity"]
    expected = sum(1 if entry.direction == "lower" else 2 for entry in others) / len(others)
    assert line_of(ranking, "attention", "mqa", AVERAGE_RANK).value == pytest.approx(expected)
    assert line_of(ranking, "attention", "gqa", AVERAGE_RANK).value == pytest.approx(3 - expected)


def test_csv_reads_back_and_runs_no_formula() -> None:
    table = make_table()
    table[0] = replace(
        table[0], label="=HYPERLINK(0)", value=-1.5, cell="@x", group="+1", technique="-x", method="a\nb,c"
    )
    text = to_csv(table, Result)
    assert text == to_csv(table, Result)
    lines = list(csv.DictReader(io.StringIO(text)))
    assert list(lines[0]) == [
        "axis", "group", "technique", "label", "cell", "size", "metric", "value", "unit", "direction", "source",
        "method", "ci_low", "ci_high", "n", "coefficient_of_variation", "noisy", "window_s", "seeds", "missing_reason",
    ]  # fmt: skip
    first = lines[0]
    assert [first[key] for key in ("label", "cell", "group", "technique")] == ["'=HYPERLINK(0)", "'@x", "'+1", "'-x"]
    assert first["value"] == "-1.5" and first["method"] == "a\nb,c"
    assert lines[1]["method"] == "'=cmd()"
    for line, result in zip(lines, table, strict=True):
        for key in ("value", "ci_low", "ci_high", "window_s"):
            assert (float(line[key]) if line[key] else None) == getattr(result, key)
        assert line["noisy"] == {None: "", False: "false", True: "true"}[result.noisy]
    ranked = list(csv.DictReader(io.StringIO(to_csv(rank(make_table()), Ranked))))
    assert list(ranked[0])[:9] == ["axis", "group", "technique", "metric", "value", "normalized", "rank", "tied", "tier"]  # fmt: skip
    assert to_csv([], Result).splitlines() == [text.splitlines()[0]]


def test_tables_do_not_depend_on_the_order_of_the_rows() -> None:
    records = {("pretrain", cell): make_record(cell) for cell in VALUES}
    forward, backward = rank(tabulate(ROWS, records)), rank(tabulate(ROWS[::-1], records))
    assert set(forward) == set(backward)


def test_records_are_read_from_the_declared_grid_only(tmp_path: Path) -> None:
    for cell in VALUES:
        write_record(tmp_path / paths.record("pretrain", cell), make_record(cell))
    (tmp_path / paths.record("pretrain", "forgotten")).write_text("not JSON")
    assert list(read_records(ROWS, tmp_path)) == [("pretrain", "mqa"), ("pretrain", "dense_medium")]
    (tmp_path / paths.record("pretrain", "mqa")).write_text(json.dumps(make_record("dense_medium").model_dump()))
    with pytest.raises(ArtifactError, match=r"mqa\.json describes pretrain@dense_medium"):
        read_records(ROWS, tmp_path)
    (tmp_path / paths.record("pretrain", "mqa")).unlink()
    with pytest.raises(ArtifactError, match=r"mqa\.json is missing"):
        read_records(ROWS, tmp_path)


def test_summary_keeps_its_keys_when_cells_fail() -> None:
    summary = summarize(make_table())
    assert summary == {"pretrain": {"perplexity": {"mqa": 1.0, "dense_medium": 2.0}, "lowest_energy_per_token": 1.0}}
    failed = summarize(make_table(mqa=make_failed("mqa")))
    assert failed == {"pretrain": {"perplexity": {"mqa": None, "dense_medium": 2.0}, "lowest_energy_per_token": 2.0}}
    assert summarize([]) == {}


def test_reference_size_is_medium_or_the_middle_one() -> None:
    table = make_table()
    assert reference_size(table, "pretrain") == "medium"
    assert reference_size([replace(line, size="large") for line in table], "pretrain") == "large"
    assert reference_size(table, "tune") is None
    mixed = [replace(table[0], size=size) for size in ("large", "small")]
    assert reference_size(mixed, "pretrain") == "small"
