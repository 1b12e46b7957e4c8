"""The paper's ranks in the project's own words, and the agreement of a run with them."""

import pytest

from efficientllm import metrics, registry
from efficientllm.ranking.paper import Disagreement, paper_agreement, paper_ranks, paper_source
from efficientllm.ranking.rank import ranks
from efficientllm.ranking.results import Ranked


def lines(group: str, metric: str, standings: dict[str, int | None], tied: dict[str, tuple[str, ...]] | None = None):
    axis = group.split("-")[0] if "-" in group else "pretrain"
    return [
        Ranked(axis, group, name, metric, None, None, standing, bool(tied), None, (tied or {}).get(name, ()))
        for name, standing in standings.items()
    ]


def test_every_rank_is_of_a_row_of_the_registry_that_the_paper_has() -> None:
    rows = registry.rows(
        {row.cell for row in registry.ARCHITECTURE_ROWS},
        registry.method_keys(),
        registry.precision_keys(),
        registry.SIZES,
    )
    of_paper: dict[tuple[str, str], set[str]] = {}
    for row in rows:
        if row.paper_label is not None:
            of_paper.setdefault((row.axis, row.group), set()).add(row.technique)
    assert {(axis, group) for axis, group, _ in paper_ranks()} == set(of_paper)
    for (axis, group, metric), column in paper_ranks().items():
        assert set(column) == of_paper[axis, group]
        assert metric in {entry.key for entry in metrics.ranked_metrics(axis)}
    assert "2505.13840" in paper_source()


def test_every_column_is_a_competition_ranking() -> None:
    for column in paper_ranks().values():
        assert ranks([float(rank) for rank in column.values()], "lower") == list(column.values())


def test_only_what_the_authors_ranked() -> None:
    counts = {
        axis: sum(len(column) for (own, _, _), column in paper_ranks().items() if own == axis) for axis in registry.AXES
    }
    assert counts == {"pretrain": 4 * 4 * 5, "tune": 3 * 7 * 6, "quantize": 3 * 3 * 6}
    assert ("pretrain", "attention", "processor_compute_utilization") not in paper_ranks()
    assert paper_ranks()["tune", "tune-small", "sample_throughput"]["freeze"] == 7
    assert paper_ranks()["quantize", "quantize-large", "average_energy_consumption"]["float16"] == 1


def test_same_order_and_reverse() -> None:
    same = paper_agreement(lines("attention", "perplexity", {"mqa": 4, "gqa": 3, "mla": 1, "nsa": 2}))
    assert [(entry.group, entry.metric, entry.tau, entry.disagreements) for entry in same] == [
        ("attention", "perplexity", 1.0, ())
    ]
    reverse = paper_agreement(lines("attention", "perplexity", {"mqa": 1, "gqa": 2, "mla": 4, "nsa": 3}))
    assert reverse[0].tau == -1.0
    assert len(reverse[0].disagreements) == 6


def test_pairs_that_disagree_and_rows_that_the_paper_lacks() -> None:
    # the paper: MLA 1, NSA 2, GQA 3, MQA 4; of six pairs one is the other way round: tau = (5 - 1) / 6
    found = paper_agreement(
        lines(
            "attention", "perplexity", {"mha": 1, "mla": 3, "nsa": 2, "gqa": 4, "mqa": 5},
            tied={"nsa": ("mla",), "mla": ("nsa",)},
        )
    )[0]  # fmt: skip
    assert found.tau == pytest.approx(4 / 6)
    assert found.techniques == ("mla", "nsa", "gqa", "mqa")
    assert found.disagreements == (Disagreement(paper_prefers="mla", run_prefers="nsa", tied=True),)


def test_equal_ranks_are_no_disagreement_but_lower_tau() -> None:
    found = paper_agreement(lines("quantize-small", "task_accuracy", {"bfloat16": 1, "float16": 2, "int4": 3}))[0]
    assert found.disagreements == ()
    assert found.tau == pytest.approx(2 / (2 * 3) ** 0.5)  # tau-b: the paper ties the first two


@pytest.mark.parametrize(
    ("standings", "reason"),
    [
        ({"mqa": None, "gqa": None}, "this run ranks none of the paper's techniques"),
        ({"mqa": 1, "mha": 2}, "this run ranks only one of the paper's techniques"),
        ({"mqa": 1, "gqa": 1}, "all ranks are equal, so there is no order to compare"),
    ],
)
def test_no_tau_has_a_reason(standings, reason) -> None:
    found = paper_agreement(lines("attention", "perplexity", standings))[0]
    assert (found.tau, found.reason) == (None, reason)


def test_columns_that_the_paper_did_not_rank_are_left_out() -> None:
    assert paper_agreement(lines("attention", "energy_per_token", {"mqa": 1, "gqa": 2})) == []
