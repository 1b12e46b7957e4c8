"""What the sections say: that it follows from the evidence, and nothing else."""

import re
from dataclasses import replace

import factories
import pytest
from markup import Page

from efficientllm import metrics
from efficientllm.ranking.compare import read_result_set
from efficientllm.ranking.paper import Disagreement, paper_agreement
from efficientllm.ranking.results import Result, to_csv
from efficientllm.reporting import certainty, comparison, flags, serving, summary, tables, tradeoffs
from efficientllm.reporting.appendix import merged, quality_tables
from efficientllm.reporting.evidence import collect
from efficientllm.reporting.gaps import Gap, Gaps
from efficientllm.reporting.groups import cells_listing, groups_of
from efficientllm.reporting.page import render
from efficientllm.reporting.text import DASH, percent


def test_fronts_follow_from_the_figures(evidence) -> None:
    for figure in tradeoffs.trade_offs(evidence):
        group = figure.group
        quality = metrics.metric(metrics.PERFORMANCE[group.axis])
        for panel, cost in zip(figure.panels, tradeoffs.COSTS, strict=True):
            both = {
                row.label: (group.results[row.technique, quality.key].value, group.results[row.technique, cost].value)
                for row in group.rows
                if None
                not in (group.results[row.technique, quality.key].value, group.results[row.technique, cost].value)
            }
            sign = 1 if quality.direction == "lower" else -1
            points = {label: (sign * worth, price) for label, (worth, price) in both.items()}
            front = [
                label for label, own in points.items()
                if not any(other != own and other[0] <= own[0] and other[1] <= own[1] for other in points.values())
            ]  # fmt: skip
            named = re.split(r", | and ", panel.finding.removeprefix("On the front: ").removesuffix("."))
            assert named == front


def test_speed_is_traded_where_there_is_no_quality(evidence) -> None:
    random_weights = [
        replace(line, value=None, rank=None) if line.metric in metrics.QUALITY else line for line in evidence.ranking
    ]
    for figure in tradeoffs.trade_offs(replace(evidence, ranking=random_weights)):
        speed = metrics.metric(metrics.THROUGHPUT[figure.group.axis])
        assert figure.heads[0].startswith(speed.label)
        assert len(figure.panels) == 2
        assert all(speed.label in panel.svg for panel in figure.panels)
        assert figure.note is not None
    assert all(figure.note is None for figure in tradeoffs.trade_offs(evidence))


def test_cells_without_a_curve_stand_together_where_their_reason_is_one(evidence) -> None:
    reasons = {
        ("tune", "lora-small"): "out of memory",
        ("pretrain", "mqa"): "not trained",
        ("pretrain", "nsa"): "not trained",
    }
    texts = [text for text, _ in Page(render(replace(evidence, without_curve=reasons))).texts]
    assert "MQA and NSA: not trained" in texts
    assert "LoRA (small model): out of memory" in texts


def test_several_cells_are_named_once_for_all_their_sizes(evidence) -> None:
    def named(axis: str, *cells: str) -> str:
        return cells_listing(evidence.rows, axis, cells)

    both = ("lora-small", "dora-small", "lora-medium", "dora-medium")
    assert named("tune", *both) == "LoRA and DoRA (small model and medium model)"
    assert named("tune", "lora-small", "lora-medium", "full-small") == (
        "LoRA (small model and medium model); Full (small model)"
    )
    assert named("pretrain", "mqa", "nsa") == "MQA and NSA"


def test_quality_per_joule_is_right_tokens_per_joule(evidence) -> None:
    results = [result for result in evidence.results if result.axis == "quantize" and result.size == "medium"]
    by_key = {(result.technique, result.metric): result for result in results}
    found = summary.quality_per_joule("quantize", results)
    assert {result.technique for result in found} == {"bfloat16", "int4"}, "float16 failed"
    for result in found:
        accuracy, energy = (by_key[result.technique, key] for key in ("task_accuracy", "energy_per_token"))
        assert result.value == pytest.approx(accuracy.value / 100 / energy.value)
        assert result.ci_low < result.value < result.ci_high
        assert result.ci_low == pytest.approx(accuracy.ci_low / 100 / energy.ci_high)
        assert result.source == "modelled", "as its energy"


def test_the_first_sentence_says_of_which_size_it_speaks(evidence) -> None:
    cards = summary.answers(evidence)
    assert summary.finding(cards).startswith("Among models of size medium, ")
    mixed = [replace(cards[0], scope="models of size small"), *cards[1:]]
    sentence = summary.finding(mixed)
    assert not sentence.startswith("Among")
    assert sentence.count("among models of size small") == 1
    assert sentence.count("among models of size medium") == len(cards) - 1
    assert len(re.findall("uses? the least energy per token", sentence)) == 1
    assert "uses the least energy per token in tuning" in summary.finding(card for card in cards if card.axis == "tune")


def test_answers_compare_within_a_group_only(evidence, page) -> None:
    card = summary.answers(evidence)[0]
    groups = {group.label: group for group in groups_of(evidence) if group.axis == "pretrain"}
    for question in card.questions:
        assert [answer.group for answer in question.answers] == list(groups)
        for answer in question.answers:
            assert answer.label in [row.label for row in groups[answer.group].rows]
    fastest = next(question for question in card.questions if question.text == "Fastest").answers[0]
    speeds = {
        result.label: result.value for (_, key), result in groups[fastest.group].results.items()
        if key == metrics.THROUGHPUT["pretrain"]
    }  # fmt: skip
    assert fastest.label == max(speeds, key=speeds.get)
    sentence = summary.finding([card])
    assert f"{card.questions[0].answers[0].label} (Attention" in sentence
    assert "use the least energy per token of their groups in training" in sentence


def test_the_order_of_a_cpu_comes_with_a_warning(evidence, page) -> None:
    assert "Measured on a CPU: another run" in page.text(page.all("header")[0])
    assert "Measured on a CPU: another run" in page.section("answers")
    gpu = {"gpus": [{"name": "NVIDIA H200"}]}
    records = {
        key: record.model_copy(update={"provenance": record.provenance.model_copy(update={"hardware": gpu})})
        for key, record in evidence.records.items()
    }
    elsewhere = Page(render(replace(evidence, records=records)))
    assert "Measured on a CPU" not in elsewhere.text(elsewhere.all("body")[0])


def test_rows_that_share_a_serving_curve_are_named(evidence) -> None:
    records = dict(evidence.records)
    shared = records["pretrain", "mqa"].information["serving_curves"]
    information = records["pretrain", "mla"].information | {"serving_curves": shared}
    records["pretrain", "mla"] = records["pretrain", "mla"].model_copy(update={"information": information})
    attention = next(serving.serving_figures(replace(evidence, records=records)))
    assert {panel.coinciding for panel in attention.panels} == {"MQA and MLA"}
    assert {panel.coinciding for panel in next(serving.serving_figures(evidence)).panels} == {""}


def test_a_row_that_is_alone_is_called_so_and_is_sure_of_nothing(tmp_path) -> None:
    def only_gqa(record):
        return factories.failed(record, "no memory") if record.cell in ("mqa", "mla", "nsa") else record

    evidence = collect(factories.make_run(tmp_path, only_gqa), tmp_path)
    group = tables.ranking_tables(evidence, Gaps(evidence))[0].groups[0]
    assert (group.label, group.best, group.sure, group.lone) == ("Attention Mechanism", "GQA", None, True)
    shares = [standing.share for table in certainty.stability_tables(evidence) if table.group.key == "attention"
              for _, standings in table.rows for standing in standings]  # fmt: skip
    assert set(shares) == {None}
    page = Page(render(evidence))
    assert "Attention Mechanism: GQA (the only one with a score)" in re.sub(r"\s+", " ", page.section("ranking"))


def test_failed_rows_that_might_have_been_the_answer_are_named(evidence, page) -> None:
    cards = {card.axis: card for card in summary.answers(evidence)}
    assert cards["quantize"].absent == ["float16"]
    assert cards["pretrain"].absent == ["MoE medium x8"]
    assert cards["tune"].absent == [], "another size's cell"
    assert ", 1 failed)" in summary.finding(cards.values())
    assert "Not compared, since their cells failed: float16; see gaps." in re.sub(r"\s+", " ", page.section("answers"))


def test_the_paper_stands_beside_ours(evidence, page) -> None:
    listed = {table.group.key: table for table in certainty.paper_tables(evidence)}
    attention = listed["attention"]
    assert attention.names == ["MQA", "GQA", "MLA", "NSA"]
    latency = attention.columns[[column.symbol for column in attention.columns].index("AL")]
    assert [theirs for theirs, _ in latency.ranks] == [1, 2, 3, 4], "the paper's table"
    agreement = next(one for one in paper_agreement(evidence.ranking) if (one.group, one.metric) == ("attention", "average_latency"))  # fmt: skip
    assert latency.tau == f"{agreement.tau:.2f}".replace("-", "−")  # noqa: RUF001
    text = page.section("paper")
    for pair in agreement.disagreements:
        names = [next(row.label for row in attention.group.rows if row.technique == technique) for technique in (pair.run_prefers, pair.paper_prefers)]  # fmt: skip
        said = re.search(rf"{names[0]} \([\d.,]+\) before {names[1]} \([\d.,]+\)", text)
        assert bool(said) != pair.tied or said, "a pair that is told apart is named with its figures"


def test_ranks_beside_the_paper_are_those_among_its_rows(evidence) -> None:
    (mixtures,) = [table for table in certainty.paper_tables(evidence) if "Dense large" in table.names]
    assert "Dense small" not in mixtures.names, "the paper has no such row"
    latency = mixtures.columns[[column.symbol for column in mixtures.columns].index("AL")]
    ours = [rank for _, rank in latency.ranks if rank is not None]
    assert sorted(ours) == list(range(1, len(ours) + 1))


def test_a_gap_says_once_that_nothing_was_measured() -> None:
    gap = Gap("gap-1", "pretrain", "MQA", ["Held-out perplexity"], False, "not measured: random weights")
    assert gap.hint == "not measured: random weights"
    assert replace(gap, reason="no RAPL").hint == "not measured: no RAPL"


def test_remarks_tell_ties_from_clear_differences(evidence) -> None:
    remarks = [remark for table in certainty.paper_tables(evidence) for remark in table.remarks]
    assert any("tied here" in remark for remark in remarks)
    assert any("Beyond the intervals" in remark for remark in remarks)


def test_stability_is_summed_up(evidence, page) -> None:
    shares = [line.stability for line in evidence.ranking if line.stability is not None]
    sentence = certainty.stability_finding(evidence)
    assert (
        f"Of {len(shares)} ranks" in sentence
        and f"{sum(share < 0.5 for share in shares)} in less than 50 %" in sentence
    )
    assert sentence in page.section("certainty")


@pytest.mark.parametrize(("share", "text"), [(1.0, "100 %"), (0.999, "99.9 %"), (0.5, "50 %"), (0.9995, "99.9 %"), (0.9999, "99.9 %"), (0.0, "0 %"), (0.001, "0.1 %"), (0.0001, "0.1 %"), (0.9999999999, "100 %")])  # fmt: skip
def test_nearly_always_is_not_always(share, text) -> None:
    assert percent(share) == text


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [(60.0, 65.0, "better"), (60.0, 66.04, "not distinguishable"), (60.0, 70.0, "not distinguishable"), (67.0, 70.0, "not better")],
)  # fmt: skip
def test_a_baseline_within_the_interval_is_not_beaten(evidence, low, high, verdict) -> None:
    changed = [
        replace(result, value=(low + high) / 2, ci_low=low, ci_high=high)
        if (result.cell, result.metric) == ("mqa", "perplexity")
        else result
        for result in evidence.results
    ]
    table = quality_tables(replace(evidence, results=changed))[0]
    (row,) = [row for row in table.rows if row.name.startswith("MQA")]
    assert (table.baseline, row.verdict) == ("66.0", verdict)
    page = Page(render(replace(evidence, results=changed)))
    head, rows = page.text(page.all("header")[0]), [row for one in quality_tables(replace(evidence, results=changed)) for row in one.rows]  # fmt: skip
    unlearned = sum(row.verdict in ("not distinguishable", "not better") for row in rows)
    assert f"{unlearned} of {sum(row.verdict is not None for row in rows)} quality figures" in head


def test_differences_have_their_own_units(evidence) -> None:
    units = {
        column.key: (column.unit, column.shown_unit)
        for table in tables.value_tables(evidence, Gaps(evidence))
        for column in table.columns
    }
    assert units["task_accuracy_change"] == ("%", "pp")
    assert units["perplexity_change"] == ("", "difference")
    assert (units["perplexity"], units["task_accuracy"]) == (("", "per token"), ("%", "%"))


def test_a_tier_that_a_tie_crosses_is_not_coloured(evidence, page) -> None:
    crossed = coloured = 0
    for table in tables.ranking_tables(evidence, Gaps(evidence)):
        groups = [group for group in groups_of(evidence) if group.axis == table.axis]
        for shown, group in zip(table.groups, groups, strict=True):
            for row, line in zip(group.rows, shown.rows, strict=True):
                for column, cell in zip(table.columns, line.cells, strict=True):
                    standing = group.standings[row.technique, column.key]
                    others = {group.standings[other, column.key].tier for other in standing.tied_with}
                    opposite = {"high": "low", "low": "high"}.get(standing.tier)
                    assert cell.tied_across == (opposite in others if opposite else False)
                    crossed += cell.tied_across
                    coloured += cell.rank is not None and not cell.tied_across and cell.tier is not None
    chips = [page.attributes(i).get("class") for i in page.all("span")]
    assert crossed and coloured
    assert sum("chip across" in (name or "") for name in chips) == crossed + 1, "one is in the legend"
    assert "tied across tiers with" in page.section("ranking")


def test_agreement_with_the_paper_is_qualified_as_disagreement_is(evidence) -> None:
    agreement = next(one for one in paper_agreement(evidence.ranking) if (one.group, one.metric) == ("attention", "average_latency"))  # fmt: skip
    group = next(group for group in groups_of(evidence) if group.key == "attention")
    same = replace(agreement, tau=1.0, disagreements=())
    assert certainty._remarks(group, replace(same, tied=3)) == [
        "Average latency: the same order; 3 of 6 pairs are tied."
    ]
    assert certainty._remarks(group, replace(same, tied=0)) == ["Average latency: the same order."]
    turned = replace(agreement, disagreements=(Disagreement("mqa", "gqa", True),), tied=2)
    (remark,) = certainty._remarks(group, turned)
    assert remark.endswith("tied here. Of the rest, 2 of 5 pairs are tied.")


def test_doubts_are_visible_where_the_figure_is(evidence, page) -> None:
    row = next(i for i in page.all("tr") if page.attributes(i).get("id") == "row-pretrain-attention-mqa")
    assert page.text(row).count("doubtful") == 2
    assert factories.DOUBT in page.section("certainty")
    assert "2 doubtful" in page.text(page.all("header")[0])
    listed = [flag for flag in flags.flags(evidence) if flag.kind == "doubtful"]
    assert [(flag.labels, flag.metrics) for flag in listed] == [("MQA", "AL and EPT")]
    assert "DOUBTFUL" not in page.section("method"), "a doubt is no method"


def test_methods_that_differ_in_numbers_are_one() -> None:
    texts = ["copy at 8.6 GB/s over 128 MiB", "copy at 10.2 GB/s over 128 MiB", "other"]
    assert merged(texts) == [f"copy at 8.6{DASH}10.2 GB/s over 128 MiB", "other"]
    assert merged([]) == []


def test_serving_curves_and_points_that_could_not_be_measured(evidence, page) -> None:
    figures = list(serving.serving_figures(evidence))
    assert {figure.group.axis for figure in figures} == {"pretrain", "quantize"}
    attention = figures[0]
    assert attention.energy == "modelled"
    assert len(attention.panels) == 5 and attention.alike == "Cache by context", "all rows cache alike in these records"
    assert "Not drawn, since all rows have the same: Cache by context." in page.section("serving")
    assert "longer than the model's context of 128" in page.section("serving")
    failed = next(figure for figure in figures if figure.group.key == "moe")
    assert "MoE medium x8" not in [label for _, label in failed.legend]


def test_every_metric_is_explained_and_every_term_leads_there(page) -> None:
    ids = {attributes["id"] for _, attributes, _ in page.elements if "id" in attributes}
    assert {f"metric-{entry.key}" for entry in metrics.METRICS} <= ids
    terms = [i for i in page.all("a") if page.attributes(i).get("class") == "term"]
    assert len(terms) > 60
    for index in terms:
        assert page.attributes(index)["title"] and page.attributes(index)["href"][1:] in ids
    text = page.section("method")
    assert all(entry.description in text for entry in metrics.METRICS)


def test_equal_weights_score_what_the_page_says(evidence, page) -> None:
    for group in groups_of(evidence):
        keys = [entry.key for entry in metrics.ranked_metrics(group.axis)]
        for technique, score in tables.equal_weight_scores(group).items():
            values = [group.standings[technique, key].normalized for key in keys]
            if None not in values:
                assert score == pytest.approx(sum(values) / len(values))
                row = next(i for i in page.all("tr") if page.attributes(i).get("id") == f"row-{group.axis}-{group.key}-{technique}".replace("_", "-"))  # fmt: skip
                assert page.text(row).endswith(f"{score:.2f}")
            elif technique in ("moe_medium", "dora"):
                assert score is None


def test_result_sets_side_by_side(evidence, tmp_path) -> None:
    def slower(result: Result) -> Result:
        if result.metric != "average_latency" or result.value is None:
            return result
        return replace(result, value=result.value * 2, ci_low=result.ci_low * 2, ci_high=result.ci_high * 2)

    for name, results in (("a", evidence.results), ("b", [slower(result) for result in evidence.results])):
        (tmp_path / f"{name}.csv").write_text(to_csv(results, Result))
    sets = [replace(read_result_set(str(tmp_path / f"{name}.csv")), name=name) for name in ("a", "b")]
    assert comparison.compare(evidence, sets[:1]) is None
    found = comparison.compare(evidence, sets)
    latencies = sum(result.metric == "average_latency" and result.value is not None for result in evidence.results)
    assert f"{latencies} worse" in found.findings[0] and "0 are better" in found.findings[0]
    row = found.axes[0].groups[0][1][0]
    position = [symbol for symbol, _ in found.axes[0].heads].index("AL")
    assert row.sets[1][position].change == "×2.00, worse"  # noqa: RUF001
    assert row.sets[1][0].change == "within the intervals"
    from efficientllm.reporting.page import render

    text = Page(render(evidence, sets)).section("comparison")
    assert found.findings[0] in text and "×2.00, worse" in text  # noqa: RUF001


def test_limits_are_those_that_are_applied(evidence, monkeypatch) -> None:
    for name, limit in (("NOISY", 0.07), ("RESOLUTION", 0.003), ("FLOOR", 0.2)):
        monkeypatch.setattr(f"efficientllm.reporting.page.{name}", limit)
    monkeypatch.setattr(certainty, "LOOSE", 0.6)
    page = Page(render(evidence))
    assert "Shares below 60 % are underlined" in page.section("certainty")
    assert re.search(r"\d+ in less than 60 %\.", page.section("certainty"))
    assert "a fifth" not in page.section("certainty"), "the reason of each doubt has the limit that was applied"
    assert "the repeats vary by more than 7 %" in page.section("certainty")
    assert "of the repeats above 7 %" in page.section("method")
    assert page.section("method").count("at least 0.3 % of") == 2
    assert f"0.2{DASH}1.0" in page.section("ranking")


def test_models_that_learned_nothing_and_the_smoke_profile_are_announced(evidence, page) -> None:
    head = page.text(page.all("header")[0])
    limits = {
        ("pretrain", "perplexity"): 66.04, ("pretrain", "bits_per_byte"): 1.67,
        ("tune", "task_accuracy"): 19.0, ("quantize", "task_accuracy"): 19.0,
    }  # fmt: skip
    values = {
        (result.axis, result.metric, result.cell): result
        for result in evidence.results
        if (result.axis, result.metric) in limits and result.value is not None
    }
    # the end of the interval that is nearer to the baseline has to be beyond it
    worse = sum(
        result.ci_low <= limits[axis, key] if key == "task_accuracy" else result.ci_high >= limits[axis, key]
        for (axis, key, _), result in values.items()
    )
    assert worse and f"{worse} of {len(values)} quality figures" in head and "smoke" not in head
    from efficientllm.reporting.page import render

    assert "its figures mean nothing" in render(replace(evidence, profile="smoke"))


def test_a_row_of_one_seed_says_so_beside_one_of_several(evidence, source) -> None:
    assert "seeds</abbr>" not in source and "1 seed</abbr>" not in source
    key = metrics.PERFORMANCE["pretrain"]
    several = [
        replace(result, seeds=3) if (result.cell, result.metric) == ("mqa", key) else result
        for result in evidence.results
    ]
    shown = render(replace(evidence, results=several))
    others = [row for row in evidence.rows if (row.axis, row.group) == ("pretrain", "attention") and row.cell != "mqa"]
    measured = [
        row for row in others
        if any((result.cell, result.metric) == (row.cell, key) and result.value is not None for result in several)
    ]  # fmt: skip
    assert measured
    assert shown.count("3 seeds</abbr>") == 1
    assert shown.count("1 seed</abbr>") == len(measured)
