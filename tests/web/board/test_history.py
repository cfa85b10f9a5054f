"""The last minutes: which lines there are, how they are drawn, and what is written in the table."""

import itertools
import xml.etree.ElementTree as ET
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from trilithon.board.snapshot import Board, read_board
from trilithon.web.board.chip import read_chip
from trilithon.web.board.history import HistoryChart, HistoryLine, charts
from trilithon.web.board.lines import draw_chart
from trilithon.web.board.readings import Moment
from trilithon.web.board.table import rows, table
from trilithon.web.texts import texts_for

ENGLISH, RUSSIAN = texts_for("en"), texts_for("ru")
SECOND = 10**9
SVG = "{http://www.w3.org/2000/svg}"


def moment(second: float, **values: float) -> Moment:
    names = {"cpu": ("load", "cpu4-7"), "core": ("load", "cpu4"), "watts": ("power", "ina226")}
    names |= {"npu0": ("load", "NPU core 0"), "npu1": ("load", "NPU core 1"), "free": ("memory", "free")}
    return Moment(round(second * SECOND), {names[name]: value for name, value in values.items()}, 1, 0)  # type: ignore[misc]


def test_a_chart_has_what_there_are_values_for() -> None:
    seen = [moment(each, cpu=0.5, core=0.9, npu0=0.2, npu1=0.6, watts=9.0) for each in range(5)]
    found = {chart.key: chart for chart in charts(seen, ENGLISH)}
    assert list(found) == ["load", "power", "requests"]
    assert [line.name for line in found["load"].lines] == ["cpu4-7", "NPU"]
    assert found["load"].lines[1].points[-1] == (0.0, 0.4)
    assert found["power"].top == 10.0
    assert [point[0] for point in found["power"].lines[0].points] == [4.0, 3.0, 2.0, 1.0, 0.0]


def test_nothing_seen_gives_no_chart() -> None:
    assert charts([], ENGLISH) == ()


def test_many_moments_give_few_points_and_the_newest_is_one() -> None:
    (load, *_) = charts([moment(each, cpu=0.5) for each in range(300)], ENGLISH)
    assert len(load.lines[0].points) == 150
    assert load.lines[0].points[-1] == (0.0, 0.5)


def test_a_pause_is_no_line() -> None:
    line = HistoryLine("cpu", tuple((float(ago), 0.5) for ago in (200, 199, 20, 19)))
    svg = draw_chart(HistoryChart("load", "load", (line,), 1.0), ENGLISH, width=400)
    path = next(each for each in ET.fromstring(svg).iter(f"{SVG}path") if each.get("class") == "lines-0")
    assert path.attrib["d"].count("M") == 2
    assert path.attrib["d"].count("L") == 2


def test_a_chart_says_in_words_what_is_now() -> None:
    (load, *_) = charts([moment(1, cpu=0.25), moment(2, cpu=0.75)], RUSSIAN)
    label = ET.fromstring(draw_chart(load, RUSSIAN, width=400)).attrib["aria-label"]
    assert label == "Загрузка за последние пять минут. Сейчас: cpu4-7 75 %."


@given(
    ages=st.lists(st.floats(0, 400), max_size=8),
    value=st.floats(0, 1e300) | st.just(float("nan")),
    name=st.text(max_size=80),
)
@settings(deadline=None, max_examples=30)
def test_odd_values_give_well_formed_charts(ages: list[float], value: float, name: str) -> None:
    seen = [
        Moment(round(age * SECOND), {("temperature", name): value, ("power", name): value}, 0, 0)
        for age in itertools.accumulate(ages)
    ]
    for chart in charts(seen, ENGLISH, memory_bytes=1e10):
        assert "nan" not in draw_chart(chart, ENGLISH, width=400).split("<text", 1)[0]
        ET.fromstring(draw_chart(chart, RUSSIAN, width=400))


def test_the_table_says_all_that_the_picture_shows(rk3588_board: Board) -> None:
    values: Any = {
        ("load", "cpu4"): 0.94,
        ("load", "NPU core 2"): 0.64,
        ("temperature", "bigcore0-thermal"): 63.0,
        ("clock", "cpu4-5"): 2.352e9,
        ("clock", "cpu6-7"): 2.352e9,
        ("memory", "free"): 2.0**32,
        ("power", "ina226"): 9.84,
    }
    found = dict(rows(read_chip(rk3588_board, values), ENGLISH))
    assert found["core 4: load"] == "94%"
    assert found["NPU, core 2: load"] == "64%"
    assert found["Big cores Cortex-A76, cores 4-5: temperature"] == "63 °C"
    assert found["Big cores Cortex-A76, cores 4-5: clock"] == "2.35 GHz"
    assert found["Memory: free"] == "4.0 GiB"
    assert found["Power, ina226"] == "9.8 W"
    assert not any(value.startswith("0") for name, value in found.items() if "requests" not in name)


def test_a_name_in_the_table_is_no_markup(rk3588_board: Board) -> None:
    chip = read_chip(rk3588_board, {("temperature", "<b>&</b>"): 50.0})
    assert "<b>" not in table(chip, ENGLISH)
    ET.fromstring(table(chip, RUSSIAN))


def test_this_machine_has_a_board() -> None:
    assert rows(read_chip(read_board(), {}), ENGLISH)
