"""Where the lead changes from one line to another."""

from typing import Any

import pytest

from trilithon.results.report.charts import Line
from trilithon.results.report.crossings import crossings

XS = (0.0, 1000.0, 2000.0, 4000.0)


def line(label: str, *values: float, spread: float = 0.0, **more: Any) -> Line:
    points = tuple((x, y, y - spread, y + spread) for x, y in zip(XS, values, strict=False))
    return Line(label=label, unit="cpu", points=points, **more)


def crossed(*lines: Line) -> list[tuple[float, float, str, str]]:
    return [(round(one.x), round(one.y, 2), one.before, one.after) for one in crossings(lines)]


@pytest.mark.parametrize("order", [1, -1])
def test_the_lead_changes_where_the_lines_cross(order: int) -> None:
    lines = [line("npu", 30, 20, 10, 5), line("cpu", 15, 15, 14, 13)][::order]
    assert crossed(*lines) == [(1556, 14.44, "npu", "cpu")]


def test_there_and_back() -> None:
    assert crossed(line("a", 10, 20, 10, 20), line("b", 15, 15, 15, 15)) == [
        (500, 15.0, "b", "a"),
        (1500, 15.0, "a", "b"),
        (3000, 15.0, "b", "a"),
    ]


def test_a_crossing_within_the_intervals_is_none() -> None:
    assert crossed(line("a", 16, 15.5, 14.5, 14, spread=1), line("b", 15, 15, 15, 15, spread=1)) == []
    assert crossed(line("a", 20, 15.5, 14.5, 10, spread=1), line("b", 15, 15, 15, 15, spread=1)) == [
        (1500, 15.0, "a", "b")
    ]


def test_only_the_best_two_count() -> None:
    lines = (line("a", 10, 10, 10, 10), line("b", 15, 9, 8, 7), line("best", 30, 30, 30, 30))
    assert crossed(*lines) == []
    assert crossed(*lines[:2]) == [(833, 10.0, "b", "a")]


def test_what_is_broken_or_too_short_never_leads() -> None:
    flat = line("b", 15, 15, 15, 15)
    assert crossed(line("a", 30, 20, 10, 5, broken=True), flat) == []
    assert crossed(line("a", 30), flat) == []
    assert crossed(line("a", 30, 20), flat) == []
    assert crossed(line("a", 15, 15, 15, 15), flat) == []
    assert crossed() == []


def test_lines_that_end_earlier_do_not_hide_a_crossing() -> None:
    assert crossed(line("short", 100, 50), line("a", 30, 20, 10, 5), line("b", 15, 15, 14, 13)) == [
        (1556, 14.44, "a", "b")
    ]
