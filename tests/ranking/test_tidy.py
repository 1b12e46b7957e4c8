"""Reading anybody's table: what is accepted, and that each fault is one line that names its place and the remedy."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from efficientllm import metrics
from efficientllm.errors import DataError
from efficientllm.ranking.directions import known_direction
from efficientllm.ranking.tidy import parse_tidy, read_tidy

HEADER = "group,technique,metric,value\n"
INTERVALS = "group,technique,metric,value,ci_low,ci_high\n"
AXES = "axis,group,technique,metric,value,direction\n"
UNITS = "group,technique,metric,value,unit\n"


def parse(text: str):
    return parse_tidy(text.encode(), "t.csv")


def test_the_four_columns_are_enough() -> None:
    (line,) = parse(HEADER + "g, LoRA ,loss, 1.5e-1 \n")
    assert (line.axis, line.group, line.technique, line.metric, line.model) == ("", "g", "LoRA", "loss", "")
    assert (line.value, line.direction, line.ci_low, line.n, line.number) == (0.15, "lower", None, None, 2)


def test_all_columns_in_any_order_and_others_are_ignored() -> None:
    text = (
        "\ufeffN,ci_high,ci_low,Direction,model,axis,colour,value,metric,technique,group\r\n"
        '3,2,1,HIGHER,7B,tune,red,1.5,my metric,"a, b",g\r\n\r\n,,,,8B,tune,,,my metric,c,g\r\n'
    )
    first, second = parse(text)
    assert (first.n, first.ci_high, first.ci_low, first.direction, first.model) == (3, 2.0, 1.0, "higher", "7B")
    assert (first.axis, first.technique) == ("tune", "a, b")
    assert (second.value, second.direction, second.number) == (None, "higher", 4), (
        "what one line states holds for the metric"
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "t.csv is empty: it needs the columns group, technique, metric, value"),
        ("\n \n", "t.csv is empty"),
        (HEADER, "has a header and no line below it"),
        ("group,technique,value\ng,a,1\n", "lacks the column 'metric': it has 'group', 'technique', 'value'"),
        ("group;technique;metric;value\ng;a;loss;1\n", "separate the columns by commas, not by ';'"),
        ("group,technique,metric,value,value\ng,a,loss,1,2\n", "the column 'value' is there twice"),
        ("group,technique,metric,value,direcion\ng,a,loss,1,lower\n", "unknown column 'direcion'; did you mean 'direction'?"),
        (HEADER + "g,a,loss,1\ng,b,loss\n", "line 3 has 3 cells, the header has 4"),
        (HEADER + "g,a,loss,1.2.3\n", "line 2, column 'value': '1.2.3' is not a number"),
        (HEADER + "g,a,loss,\"1,5\"\n", "column 'value': '1,5' is not a number"),
        (HEADER + "g,a,loss,1_000\n", "column 'value': '1_000' is not a number"),
        (HEADER + "g,a,loss,\u0661\n", "is not a number"),
        (HEADER + "g,a,loss,NaN\n", "column 'value': NaN is no figure to rank; leave the cell empty"),
        (HEADER + "g,a,loss,-inf\n", "column 'value': -inf is no figure to rank"),
        (HEADER + "g,a,loss,1e400\n", "column 'value': 1e400 is beyond 1e+150: take another unit"),
        (HEADER + "g,a,loss,-1e151\n", "is beyond 1e+150"),
        (HEADER + ",a,loss,1\n", "line 2, column 'group' is empty"),
        (HEADER + "g,,loss,1\n", "line 2, column 'technique' is empty"),
        (HEADER + 'g,"a\nb",loss,1\n', "line 2, column 'technique' holds a control character"),
        (HEADER + "g,a\x1b[31m,loss,1\n", "holds a control character"),
        (HEADER + 'g,"a"b,loss,1\n', "line 2: not valid CSV"),
        (HEADER + 'g,"a,loss,1\n', "line 2: not valid CSV"),
        (HEADER + "g,a,loss,1\ng,b,loss,1\ng,a,loss,2\n", "line 4 repeats line 2 (g, a, loss): keep one of them"),
        (HEADER + "g,a,wobble,1\n", "line 2, column 'metric': it is not known whether lower or higher is better for 'wobble'; add"),
        (HEADER + "g,a,Performance,1\n", "name it perplexity, loss or accuracy, or add a column 'direction'"),
        ("group,technique,metric,value,direction\ng,a,x,1,lowr\n", "line 2, column 'direction': unknown 'lowr'; did you mean 'lower'?"),
        (
            "group,technique,metric,value,source\ng,a,loss,1,measured\ng,b,loss,1,modeled\n",
            "line 3, column 'source': unknown 'modeled'; did you mean 'modelled'? known: measured, modelled",
        ),
        (
            "group,technique,metric,value,direction\ng,a,x,1,lower\nh,a,x,1,higher\n",
            "line 3, column 'direction': higher is better for 'x', but line 2 says lower",
        ),
        (
            AXES + "x,g,a,accuracy,1,lower\ny,g,a,accuracy,1,higher\nz,g,a,accuracy,1,\n",
            "line 4, column 'direction': the axis 'z' has none for 'accuracy', and other axes differ (lower on line 2, higher on line 3)",
        ),
        (UNITS + "g,a,memory,1,GiB\ng,b,memory,900,MiB\n", "line 3, column 'unit': 'memory' has 'MiB' here, but 'GiB' on line 2"),
        (UNITS + "g,a,memory,1,GiB\nh,b,memory,900,\n", "line 3, column 'unit': 'memory' has '' here, but 'GiB' on line 2"),
        ("group,technique,metric,value,units\ng,a,memory,1,GiB\n", "unknown column 'units'; did you mean 'unit'?"),
        ("group,technique,metric,value,ci_low,ci_high\ng,a,loss,1,2,0\n", "line 2: ci_low 2 is above ci_high 0"),
        ("group,technique,metric,value,ci_low,ci_high\ng,a,loss,1,2,\n", "ci_low and ci_high come together"),
        (INTERVALS + "g,a,loss,1,0,2\ng,b,loss,22,1,2\n", "line 3, column 'value': 22 is outside its interval, ci_low 1 to ci_high 2: correct"),
        (INTERVALS + "g,a,loss,0.999,1,2\n", "line 2, column 'value': 0.999 is outside its interval"),
        (INTERVALS + "g,a,loss,-1.001,-1,2\n", "line 2, column 'value': -1.001 is outside its interval"),
        ("group,technique,metric,value,n\ng,a,loss,1,0\n", "column 'n': 0 is not a count"),
        ("group,technique,metric,value,n\ng,a,loss,1,2.5\n", "column 'n': 2.5 is not a count"),
    ],
)  # fmt: skip
def test_faults(text: str, message: str) -> None:
    with pytest.raises(DataError) as caught:
        parse(text)
    assert message in str(caught.value)
    assert str(caught.value).startswith("t.csv")
    assert "\n" not in str(caught.value) and "\x1b" not in str(caught.value)


def test_a_direction_that_one_axis_states_holds_for_those_that_state_none() -> None:
    stated = "x,g,a,accuracy,1,lower\n"
    assert [line.direction for line in parse(AXES + stated + "y,g,a,accuracy,1,\n")] == ["lower", "lower"]
    assert [line.direction for line in parse(AXES + stated + "y,g,a,accuracy,1,higher\n")] == ["lower", "higher"]


def test_units_may_differ_between_axes_and_where_there_is_no_value() -> None:
    header = "axis,group,technique,metric,value,unit\n"
    lines = parse(header + "x,g,a,memory,1,GiB\nx,g,b,memory,,\ny,g,a,memory,900,MiB\n")
    assert [line.unit for line in lines] == ["GiB", "", "MiB"]


@pytest.mark.parametrize(
    "line", ["1.0000000000001,0,1", "-1.0000000000001,-1,0", "1,1,1", "0,0,0", ",1,2", "1,,"]
)  # fmt: skip
def test_values_within_their_interval_or_rounded_out_of_it(line: str) -> None:
    assert len(parse(f"{INTERVALS}g,a,loss,{line}\n")) == 1


@pytest.mark.parametrize(
    "text",
    [
        "{long}\n1\n", "group,technique,metric,{long},{long}\n", "{head}\ng,a,loss,{long},,,,\n", "{head}\ng,a,loss,+{digits},,,,\n",
        "{head}\ng,a,loss,{signs}nan,,,,\n", "{head}\ng,a,loss,1,0{digits}1,0,,\n", "{head}\ng,a,loss,{zeros}9,0,1,,\n",
        "{head}\ng,a,loss,1,,,{zeros},\n", "{head}\ng,a,{long},1,,,,\n", "{head}\ng,a,loss,1,,,,{long}\n",
        "{head}\ng,{long},loss,1,,,,\ng,{long},loss,1,,,,\n", "{head}\ng,{long}\x1b,loss,1,,,,\n",
        "{head}\ng,a,{long},1,,,,lower\ng,b,{long},1,,,,higher\n",
    ],
)  # fmt: skip
def test_long_cells_are_not_repeated_whole(text: str) -> None:
    head = "group,technique,metric,value,ci_low,ci_high,n,direction"
    filled = text.format(head=head, long="x" * 5000, digits="9" * 5000, zeros="0" * 5000, signs="-" * 5000)
    with pytest.raises(DataError) as caught:
        parse(filled)
    assert len(str(caught.value)) < 500


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.csv does not exist"):
        read_tidy(tmp_path / "none.csv")
    with pytest.raises(DataError, match="cannot be read: Is a directory"):
        read_tidy(tmp_path)
    (tmp_path / "utf16.csv").write_text(HEADER, encoding="utf-16")
    with pytest.raises(DataError, match=r"is not UTF-8 \(byte 0\): save it as CSV in UTF-8"):
        read_tidy(tmp_path / "utf16.csv")
    (tmp_path / "latin.csv").write_bytes((HEADER + "g,\xe9,loss,1\n").encode("latin-1"))
    with pytest.raises(DataError, match="is not UTF-8"):
        read_tidy(tmp_path / "latin.csv")
    with (tmp_path / "huge.csv").open("wb") as stream:
        stream.truncate(33 << 20)
    with pytest.raises(DataError, match="has more than 32 MiB"):
        read_tidy(tmp_path / "huge.csv")
    (tmp_path / "long.csv").write_text(HEADER + "g," + "a" * 200_000 + ",loss,1\n")
    with pytest.raises(DataError, match=r"not valid CSV .*field larger"):
        read_tidy(tmp_path / "long.csv")


def test_a_device_without_end_is_too_large() -> None:
    with pytest.raises(DataError, match="/dev/zero has more than 32 MiB"):
        read_tidy(Path("/dev/zero"))


@given(st.binary(max_size=200))
def test_any_bytes_are_lines_or_one_error(content: bytes) -> None:
    for prefix in (b"", HEADER.encode()):
        try:
            assert parse_tidy(prefix + content, "t.csv")
        except DataError as error:
            assert "\n" not in str(error)


@given(st.text(alphabet=',"\n\r g1e+-.loss;', max_size=60))
def test_any_text_is_lines_or_one_error(content: str) -> None:
    try:
        assert parse(HEADER + content)
    except DataError as error:
        assert "\n" not in str(error)


def test_directions_of_the_registry_and_of_the_papers_abbreviations() -> None:
    for entry in metrics.METRICS:
        assert known_direction(entry.key) == known_direction(entry.label) == entry.direction
    found = {name: known_direction(name) for name in ("AMU", "PCU", "AL", "TT", "ST", "IT", "AEC", "MCR", "EPT", "PPL")}
    assert found == {
        "AMU": "lower", "PCU": "higher", "AL": "lower", "TT": "higher", "ST": "higher", "IT": "higher", "AEC": "lower",
        "MCR": "higher", "EPT": "lower", "PPL": "lower",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "direction"),
    [
        ("Perplexity", "lower"), ("val_loss", "lower"), ("Test accuracy", "higher"), ("performance (perplexity)", "lower"),
        ("performance: accuracy", "higher"), ("performance_loss", "lower"), ("Latency (ms)", "lower"), ("memory_gb", "lower"),
        ("peak memory [GiB]", "lower"), ("tokens/s", "higher"), ("tokens_per_second", "higher"), ("GPU utilization", "higher"),
        ("performance", None), ("loss_reduction", None), ("memory saved", None), ("lossless", None), ("", None), ("%", None),
        ("s", None), ("mean", None), ("Peak", None), ("score", None),
    ],
)  # fmt: skip
def test_common_names_are_known_and_doubtful_ones_are_not(name: str, direction: str | None) -> None:
    assert known_direction(name) == direction
