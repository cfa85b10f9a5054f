"""Energy of an answer, by a meter of a captured machine."""

import asyncio
import time
from pathlib import Path

import pytest

from trilithon.board.sysfs import Machine
from trilithon.measure.records import SensorLog, SensorValues
from trilithon.web.chat.answer_view import figures_words
from trilithon.web.chat.energy import EnergyMeter, joules_between
from trilithon.web.texts import texts_for

SECOND = 10**9


async def metered(machine: Machine, seconds: float) -> float | None:
    async with EnergyMeter(machine) as meter:
        await asyncio.sleep(seconds / 3)
        start_ns = time.monotonic_ns()
        await asyncio.sleep(seconds)
    joules = meter.joules_since(start_ns)
    return None if joules is None else joules / ((time.monotonic_ns() - start_ns) / 1e9)


@pytest.mark.slow
def test_a_meter_tells_what_was_taken_and_a_machine_without_one_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "sys/class/hwmon/hwmon0"
    folder.mkdir(parents=True)
    assert asyncio.run(metered(Machine(root=tmp_path), 0.0)) is None
    (folder / "name").write_text("ina226\n")
    (folder / "power1_input").write_text("8000000\n")
    watts = asyncio.run(metered(Machine(root=tmp_path), 2.0))
    assert watts == pytest.approx(8, rel=0.25)  # the rest is what this test takes after the answer's end


def log_of(quantity: str, unit: str, values: tuple[float | None, ...]) -> SensorLog:
    sensor = SensorValues(quantity=quantity, name="rail", unit=unit, source="/sys/x", values=values)
    return SensorLog(at_ns=tuple(place * SECOND // 2 for place in range(len(values))), sensors=(sensor,))


def test_watts_are_added_up_and_counters_subtracted() -> None:
    assert joules_between(log_of("power", "W", (5.0,) * 9), 0, 4 * SECOND) == pytest.approx(20)
    assert joules_between(log_of("energy", "J", tuple(map(float, range(9)))), SECOND, 3 * SECOND) == pytest.approx(4)


def test_too_few_readings_tell_nothing() -> None:
    assert joules_between(log_of("power", "W", (5.0,) * 9), 0, SECOND) is None
    assert joules_between(log_of("power", "W", (5.0, None, None, None, None, 5.0)), 0, 2 * SECOND) is None
    assert joules_between(log_of("temperature", "°C", (5.0,) * 9), 0, 4 * SECOND) is None


def test_what_is_known_is_said_and_nothing_else() -> None:
    text = texts_for("en")
    whole = {"first_seconds": 1.5, "load_seconds": 1.0, "decode_rate": 9.96, "answer_tokens": 30}
    whole |= {"engine": "rkllm", "prefill_unit": "npu", "decode_unit": "cpu", "joules_per_token": 0.456, "cut": True}
    assert figures_words(whole, text) == (
        "time to first token 1.50 s, of which loading 1.00 s · decode 10.0 tokens/s (30 tokens) · "
        "rkllm: prefill on the NPU, decode on the CPU · 0.46 J per token · token limit reached"
    )
    assert figures_words({"first_seconds": 0.25}, text) == "time to first token 0.25 s"
    assert figures_words({}, text) == ""
