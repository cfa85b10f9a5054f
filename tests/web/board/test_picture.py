"""The picture: well-formed for whatever a machine says, and no words beyond their place."""

import math
import re
import xml.etree.ElementTree as ET
from collections.abc import Callable, Mapping
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trilithon.board.sensors.probes import Quantity
from trilithon.board.snapshot import read_board
from trilithon.board.sysfs import Machine
from trilithon.runtime.pool.pool import Loaded
from trilithon.web.board.chip import MEMORY_KINDS, Block, ChipView, CoreView, Memory, PlacedModel, read_chip
from trilithon.web.board.picture import NARROW, WIDE, draw
from trilithon.web.board.style import standalone
from trilithon.web.board.svg import fitted, text_width
from trilithon.web.texts import texts_for

ENGLISH, RUSSIAN = texts_for("en"), texts_for("ru")
SVG = "{http://www.w3.org/2000/svg}"
TREES = (
    "pc_x86_64",
    "raspberry_pi_5",
    "rk3562",
    "rk3566",
    "rk3576",
    "rk3588_container",
    "rk3588_mainline",
    "rk3588_throttled",
    "rk3588_vendor",
)

Sense = Callable[[Machine], Mapping[tuple[Quantity, str], float]]

numbers = st.one_of(st.floats(), st.sampled_from([math.nan, math.inf, -1.0, 0.0, 1e300]))
words = st.text(max_size=200)
shares = st.none() | st.floats(0, 1)
clocks = st.none() | st.floats(1, 20e9)
heats = st.none() | st.floats(0.001, 149.999)
blocks = st.builds(
    Block,
    part=st.sampled_from(["little", "big", "all", "gpu", "npu"]),
    name=words,
    cores=st.lists(st.builds(CoreView, name=st.from_regex(r"[0-9]{1,4}", fullmatch=True), load=shares, clock_hz=clocks))
    .map(tuple)
    .flatmap(lambda cores: st.sampled_from([cores, cores * 30])),
    load=shares,
    clock_hz=clocks,
    top_hz=clocks,
    celsius=heats,
)
bytes_ = st.floats(0, 2.0**50)
memories = st.builds(
    Memory,
    total_bytes=st.none() | bytes_,
    kinds=st.lists(st.tuples(st.sampled_from(MEMORY_KINDS), bytes_), max_size=6).map(tuple),
    swap_bytes=st.none() | bytes_,
    clock_hz=clocks,
    top_hz=clocks,
    celsius=heats,
)
placed_models = st.builds(
    PlacedModel,
    unit=st.sampled_from(["cpu", "gpu", "npu"]),
    model=words,
    placement=words,
    role=st.sampled_from(["whole", "prefill", "decode"]),
    state=st.sampled_from(["loading", "ready", "leaving"]),
    users=st.integers(0, 10**6),
    waiting=st.integers(0, 10**6),
    size_bytes=st.integers(0, 2**50),
)
chips = st.builds(
    ChipView,
    name=words,
    model=words,
    blocks=st.lists(blocks, max_size=6).map(tuple),
    memory=memories,
    temperatures=st.lists(st.tuples(words, st.floats(0.001, 149.999)), max_size=4).map(tuple),
    watts=st.lists(st.tuples(words, st.floats(0, 10e3)), max_size=4).map(tuple),
    placed_models=st.lists(placed_models, max_size=4).map(tuple),
    running=st.integers(0, 10**9),
    waiting=st.integers(0, 10**9),
)


def drawn(svg: str) -> ET.Element:
    """Parsed, with the words inside the picture and every number finite."""
    root = ET.fromstring(svg)
    _, _, width, height = map(float, root.attrib["viewBox"].split())
    assert not re.search(r'"[^"]*\b(nan|inf)\b[^"]*"', re.sub(r'(aria-label|class)="[^"]*"', "", svg))
    for text in root.iter(f"{SVG}text"):
        x, y, size = (float(text.attrib[name]) for name in ("x", "y", "font-size"))
        wide = text_width(text.text or "", size, bold="font-weight" in text.attrib)
        left = x - {"start": 0.0, "middle": wide / 2, "end": wide}[text.attrib.get("text-anchor", "start")]
        assert left >= -0.5, text.text
        assert left + wide <= width + 0.5, text.text
        assert size * 0.7 <= y <= height
    for box in root.iter(f"{SVG}rect"):
        assert float(box.attrib["x"]) + float(box.attrib["width"]) <= width + 0.5
        assert float(box.attrib["y"]) + float(box.attrib["height"]) <= height + 0.5
    return root


def said(root: ET.Element) -> list[str]:
    return [text.text or "" for text in root.iter(f"{SVG}text")]


@pytest.mark.parametrize("name", TREES)
def test_every_board_is_drawn(plant: Any, sense: Sense, name: str) -> None:
    machine = plant(name)
    chip = read_chip(read_board(machine), sense(machine))
    for text in (ENGLISH, RUSSIAN):
        for width in (WIDE, NARROW):
            assert said(drawn(draw(chip, text, width=width)))


def test_an_rk3588_at_work(rk3588: Machine, sense: Sense, loaded: Callable[..., Loaded]) -> None:
    board, values = read_board(rk3588), sense(rk3588)
    chip = read_chip(board, values, [loaded("cpu", prefill="npu", users=2, key="qwen3:4b")], waiting=1)
    words = said(drawn(draw(chip, ENGLISH)))
    assert words.count("Big cores") == 2
    for expected in (
        "RK3588",
        "Little cores",
        "97%",
        "27%",
        "71%",
        "0.30 of 1.00 GHz · 55 °C",
        "power, ina226 power1",
        "9.8 W",
        "clock 2.11 GHz",
        "DMA buffers 1.4 GiB",
        "decode · 2 running",
        "prefill · 2 running",
    ):
        assert expected in words
    russian = said(drawn(draw(chip, RUSSIAN)))
    assert "9,8 Вт" in russian
    assert "Большие ядра" in russian


def test_nothing_is_shown_as_nought_that_is_not_known(plant: Any, sense: Sense) -> None:
    machine = plant("rk3588_mainline")
    words = " ".join(said(drawn(draw(read_chip(read_board(machine), sense(machine)), ENGLISH))))
    assert "%" not in words
    assert " W" not in words
    assert "page cache" not in words


def test_heat_is_said_by_a_mark_too(plant: Any, sense: Sense) -> None:
    machine = plant("rk3588_throttled")
    words = said(drawn(draw(read_chip(read_board(machine), sense(machine)), ENGLISH)))
    assert any("▲ 89 °C" in word for word in words)


@given(values=st.dictionaries(st.sampled_from([
    ("load", "GPU"), ("load", "NPU core 1"), ("load", "cpu4"), ("clock", "cpu4-5"), ("clock", "memory"),
    ("temperature", "soc-thermal"), ("temperature", "bigcore0-thermal"), ("memory", "free"), ("memory", "anonymous"),
    ("memory", "DMA buffers"), ("memory", "swap"), ("power", "ina226"),
]), numbers))  # fmt: skip
@settings(max_examples=30, deadline=None)
def test_odd_values_do_no_harm(rk3588_board: Any, values: Any) -> None:
    for width in (WIDE, NARROW):
        drawn(draw(read_chip(rk3588_board, values), ENGLISH, width=width))


@given(chip=chips, width=st.sampled_from([WIDE, NARROW]), text=st.sampled_from([ENGLISH, RUSSIAN]))
@settings(max_examples=25, deadline=None)
def test_any_chip_is_drawn_within_its_bounds(chip: ChipView, width: float, text: Any) -> None:
    drawn(draw(chip, text, width=width))


@given(text=words, width=st.floats(0, 400), size=st.sampled_from([11.0, 13.0, 22.0]))
def test_what_is_fitted_fits(text: str, width: float, size: float) -> None:
    short = fitted(text, width, size)
    assert text_width(short, size) <= width or not short
    if text_width(text, size) <= width and text.isprintable():
        assert short == text


def test_the_picture_by_itself_brings_its_colours(rk3588: Machine, sense: Sense) -> None:
    svg = standalone(draw(read_chip(read_board(rk3588), sense(rk3588)), ENGLISH))
    style = drawn(svg).find(f"{SVG}style")
    assert style is not None
    classes = set(re.findall(r'class="([^"]*)"', svg))
    used = {name for each in classes for name in each.split() if name.startswith("chip")}
    missing = {name for name in used if f".{name}" not in (style.text or "")}
    assert missing <= {"chip-unit", "chip-core", "chip-seat"}  # which only group
