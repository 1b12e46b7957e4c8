"""Rows, techniques and metrics agree with one another and with the folders."""

from efficientllm import metrics, registry
from efficientllm.config.load import component_names


def test_every_technique_has_its_file() -> None:
    assert set(registry.method_keys()) <= set(component_names("tuning/methods"))
    assert set(registry.precision_keys()) <= set(component_names("quantization/precisions"))


def test_rows_are_unique_and_in_table_order() -> None:
    cells = {row.cell for row in registry.ARCHITECTURE_ROWS}
    rows = registry.rows(cells, registry.method_keys(), registry.precision_keys(), reversed(registry.SIZES))
    keys = [(row.axis, row.group, row.technique) for row in rows]
    assert len(set(keys)) == len(keys)
    assert [axis for axis in registry.AXES for row in rows if row.axis == axis] == [row.axis for row in rows]
    expected = len(registry.ARCHITECTURE_ROWS) + 3 * (len(registry.METHODS) + len(registry.PRECISIONS))
    assert len(rows) == expected
    assert [row.group for row in rows if row.technique == "lora"] == ["tune-small", "tune-medium", "tune-large"]


def test_left_out_techniques_are_absent() -> None:
    rows = registry.rows(["dense_medium"], ["dora"], [], ["small"])
    assert {row.cell for row in rows} == {"dense_medium", "dora-small"}
    assert {row.technique for row in rows} >= {"gqa", "rope", "transformer", "dense_medium", "dora"}


def test_metrics_are_unique_and_each_axis_ranks_its_performance_first() -> None:
    keys = [metric.key for metric in metrics.METRICS]
    assert len(set(keys)) == len(keys)
    for axis in registry.AXES:
        assert metrics.ranked_metrics(axis)[0].key == metrics.PERFORMANCE[axis]
        assert {"accelerator_memory_utilization", "average_latency", "energy_per_token"} <= {
            metric.key for metric in metrics.ranked_metrics(axis)
        }
