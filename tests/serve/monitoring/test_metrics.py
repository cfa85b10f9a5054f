"""The figures for Prometheus, read back with its own parser: from requests through a small application, from a pool of
known counts, and from a board that these tests write."""

import asyncio
import itertools
import threading
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse
from starlette.responses import StreamingResponse

from trilithon.board.sysfs import Machine
from trilithon.engines.wire.messages import Timings
from trilithon.runtime.handover_state import HandoverState
from trilithon.serve.access.security import SecurityOptions, install
from trilithon.serve.monitoring import metrics as module
from trilithon.serve.monitoring.board_readings import BoardReadings
from trilithon.serve.monitoring.metrics import Metrics
from trilithon.serve.request_record import (
    Generated,
    RequestRecord,
    note_first_token,
    note_generated,
    note_retried,
    recording,
)

TIMINGS = Timings(cache_n=100, prompt_n=20, prompt_ms=500.0, predicted_n=11, predicted_ms=400.0)


@dataclass
class Model:
    key: str
    state: str = "ready"
    users: int = 1
    waiting: int = 0
    size_bytes: int = 1000
    handover: HandoverState | None = None


class Figures:
    """A pool's counts, as they might be."""

    loads, unloads, crashes, evictions, waiting = 5, 3, 2, 1, 7
    failed_loads, load_seconds = 4, 12.5

    def loaded(self) -> list[Model]:
        paused = HandoverState(state="paused", reason="a miss", retry_in_seconds=9.5, misses=3)
        return [
            Model("a:latest", handover=paused),
            Model("b:latest", "loading", 0, 3, 500),
            Model("c:latest", "leaving", 0, handover=HandoverState(state="active", misses=1)),
        ]


def board(root: Path, files: Mapping[str, str]) -> Machine:
    for path, text in files.items():
        place = root / path.lstrip("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text)
    return Machine(root)


def bare(tmp_path: Path, **more: Any) -> Metrics:
    return Metrics(BoardReadings(board(tmp_path / "bare", {"/proc/none": ""})), **more)


def read(metrics: Metrics, pool: Any = None) -> dict[str, float]:
    """`name{label="value",…}` to its number."""
    body, _ = asyncio.run(metrics.text(pool))
    return samples(body.decode())


def samples(text: str) -> dict[str, float]:
    return {
        sample.name + "".join(f" {name}={value}" for name, value in sorted(sample.labels.items())): sample.value
        for family in parse(text)
        for sample in family.samples
    }


def record(**more: Any) -> RequestRecord:
    plain = {"request_id": "1", "method": "POST", "path": "/api/chat", "route": "/api/chat", "status": 200}
    return RequestRecord(**{**plain, "began_ns": 0, "ended_ns": 2_000_000_000, **more})


def answer(model: str = "a:latest", timings: Timings = TIMINGS, prefill_unit: str = "npu") -> Generated:
    return Generated(model=model, placement="x", prefill_unit=prefill_unit, decode_unit="cpu", timings=timings)


# -- what is counted


def test_tokens_are_counted_where_they_were_made(tmp_path: Path) -> None:
    metrics = bare(tmp_path)
    metrics.count(record(generated=[answer()], first_token_ns=1_500_000_000))
    found = read(metrics)
    assert found["trilithon_prompt_tokens_total model=a:latest unit=npu"] == 20
    assert found["trilithon_cached_tokens_total model=a:latest unit=npu"] == 100
    assert found["trilithon_generated_tokens_total model=a:latest unit=cpu"] == 11
    assert found["trilithon_prefill_seconds_total model=a:latest unit=npu"] == 0.5
    assert found["trilithon_decode_seconds_total model=a:latest unit=cpu"] == 0.4
    assert found["trilithon_first_token_seconds_sum model=a:latest unit=npu"] == 1.5
    assert found["trilithon_token_seconds_sum model=a:latest unit=cpu"] == pytest.approx(0.04)  # ten steps in 400 ms
    assert found["trilithon_requests_total dialect=ollama route=/api/chat status=200"] == 1
    assert found["trilithon_request_seconds_sum dialect=ollama route=/api/chat"] == 2


def test_guesses_are_counted_where_there_were_any(tmp_path: Path) -> None:
    metrics = bare(tmp_path)
    metrics.count(record(generated=[answer()]))
    assert not any(name.startswith("trilithon_guessed") for name in read(metrics))
    metrics.count(record(generated=[answer(timings=replace(TIMINGS, draft_n=8, draft_accepted=6))]))
    found = read(metrics)
    assert found["trilithon_guessed_tokens_total model=a:latest unit=cpu"] == 8
    assert found["trilithon_guessed_right_tokens_total model=a:latest unit=cpu"] == 6


def test_what_was_not_measured_is_not_counted(tmp_path: Path) -> None:
    metrics = bare(tmp_path)
    nothing = Timings(cache_n=0, prompt_n=3, prompt_ms=1.0, predicted_n=1, predicted_ms=0.0)
    metrics.count(record(generated=[answer(timings=nothing)]))
    found = read(metrics)
    assert not any(name.startswith(("trilithon_first_token_seconds_", "trilithon_token_seconds_")) for name in found)


@given(st.lists(st.text(max_size=20), max_size=40))
def test_labels_stay_few_whatever_models_are_called(names: list[str]) -> None:
    metrics = Metrics(most_models=5)
    for name in names:
        metrics.count(record(generated=[answer(model=name)]))
    labels = {
        sample.labels["model"]
        for family in metrics.registry.collect()
        for sample in family.samples
        if "model" in sample.labels
    }
    assert len(labels) <= 6
    total = sum(
        sample.value
        for family in metrics.registry.collect()
        for sample in family.samples
        if sample.name == "trilithon_generated_tokens_total"
    )
    assert total == 11 * len(names)


def test_two_applications_do_not_share_counts(tmp_path: Path) -> None:
    one, other = bare(tmp_path), bare(tmp_path)
    one.count(record())
    assert "trilithon_requests_total dialect=ollama route=/api/chat status=200" in read(one)
    assert "trilithon_requests_total dialect=ollama route=/api/chat status=200" not in read(other)


def test_the_pool_is_asked_when_the_figures_are(tmp_path: Path) -> None:
    metrics, pool = bare(tmp_path), Figures()
    assert read(metrics, pool)["trilithon_loads_total"] == 5
    pool.loads = 6
    found = read(metrics, pool)
    assert found["trilithon_loads_total"] == 6
    assert found["trilithon_unloads_total"] == 3
    assert found["trilithon_crashes_total"] == 2
    assert found["trilithon_evictions_total"] == 1
    assert found["trilithon_queue_length"] == 7
    assert found["trilithon_models_loaded state=ready"] == found["trilithon_models_loaded state=loading"] == 1
    assert found["trilithon_model_users model=a:latest"] == 1
    assert found["trilithon_model_size_bytes model=b:latest"] == 500
    assert found["trilithon_handover_active model=a:latest"] == 0
    assert found["trilithon_handover_misses model=a:latest"] == 3
    assert found["trilithon_handover_active model=c:latest"] == found["trilithon_handover_misses model=c:latest"] == 1
    assert "trilithon_handover_active model=b:latest" not in found


# -- the board


STAT = "cpu  1 0 1 1 0 0 0\ncpu0 {busy} 0 0 {idle} 0 0 0 0 0 0\nintr 1\n"
BOARD = {
    "/sys/class/thermal/thermal_zone0/type": "npu-thermal",
    "/sys/class/thermal/thermal_zone0/temp": "48500",
    "/sys/class/devfreq/fdab0000.npu/cur_freq": "1000000000",
    "/proc/rknpu/load": "NPU load:  Core0: 12%, Core1:  0%, Core2:  3%,\n",
    "/sys/devices/system/cpu/present": "0",
    "/sys/devices/system/cpu/cpufreq/policy0/related_cpus": "0",
    "/sys/devices/system/cpu/cpufreq/policy0/scaling_cur_freq": "1800000",
    "/proc/stat": STAT.format(busy=100, idle=100),
    "/proc/meminfo": "MemAvailable: 8 kB\nAnonPages: 4 kB\n",
}


def test_the_sensors_say_what_is_now(tmp_path: Path) -> None:
    machine = board(tmp_path, BOARD)
    metrics = Metrics(BoardReadings(machine))
    found = read(metrics)
    assert found["trilithon_temperature_celsius sensor=npu-thermal"] == 48.5
    assert found["trilithon_clock_hertz sensor=cpu0"] == 1.8e9
    assert found["trilithon_load_ratio sensor=NPU core 0"] == 0.12
    assert found["trilithon_memory_bytes sensor=available"] == 8192


def test_the_load_of_cpus_is_that_since_the_last_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trilithon.serve.monitoring.board_readings._LEAST_SECONDS", 0.0)
    readings = BoardReadings(board(tmp_path, BOARD))

    async def load() -> float:
        return next(each.value for each in await readings.now() if (each.quantity, each.name) == ("load", "cpu0"))

    async def run() -> None:
        await readings.now()
        (tmp_path / "proc/stat").write_text(STAT.format(busy=175, idle=125))
        assert await load() == 0.75

    asyncio.run(run())


def test_sensors_are_read_once_a_second_however_many_ask(tmp_path: Path) -> None:
    readings = BoardReadings(board(tmp_path, BOARD))

    async def run() -> None:
        first = await readings.now()
        assert first
        (tmp_path / "sys/class/thermal/thermal_zone0/temp").write_text("60000")
        many = await asyncio.gather(*(readings.now() for _ in range(50)))
        assert len({id(each) for each in many}) <= 2  # more than one only where this machine held us up for a second

    asyncio.run(run())


def test_a_sensor_that_does_not_answer_holds_nobody_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trilithon.serve.monitoring.board_readings._LEAST_SECONDS", 0.0)
    monkeypatch.setattr("trilithon.serve.monitoring.board_readings._PATIENCE_SECONDS", 0.2)
    readings = BoardReadings(board(tmp_path, BOARD))
    stuck, free = threading.Event(), threading.Event()

    async def run() -> None:
        assert await readings.now()
        sensors = readings._sampler._sensors
        assert sensors is not None
        held = next(each for each in sensors._live if each.probe.quantity == "temperature")
        before = held.probe.parse

        def hangs(data: Any, at_ns: int) -> Any:
            stuck.set()
            free.wait(60)
            return before(data, at_ns)

        object.__setattr__(held.probe, "parse", hangs)
        began = time.monotonic()
        asked, ticks = asyncio.create_task(readings.now()), itertools.count()
        while not asked.done():
            next(ticks)
            await asyncio.sleep(0.01)
        assert stuck.is_set()
        assert next(ticks) > 5  # the event loop went on
        assert time.monotonic() - began < 20
        found = {each.quantity for each in await readings.now()}
        assert "temperature" not in found  # it is left out from now on
        assert "clock" in found

    try:
        asyncio.run(run())
    finally:
        free.set()


# -- the route


def application() -> FastAPI:
    app = FastAPI()
    app.include_router(module.router)

    @app.post("/v1/chat/completions")
    async def chat() -> StreamingResponse:
        async def pieces() -> AsyncIterator[bytes]:
            yield b"data: 1\n\n"
            note_generated(
                model="a:latest", placement="llama.cpp/cpu", prefill_unit="cpu", decode_unit="cpu", timings=TIMINGS
            )

        return StreamingResponse(pieces(), media_type="text/event-stream")

    @app.post("/api/generate")
    async def generate() -> dict[str, str]:
        note_retried()
        note_first_token(time.monotonic_ns())
        note_generated(
            model="a:latest", placement="llama.cpp/cpu", prefill_unit="cpu", decode_unit="cpu", timings=TIMINGS
        )
        return {}

    @app.get("/api/blobs/{digest}")
    async def blob(digest: str) -> dict[str, str]:
        return {}

    install(app, SecurityOptions())
    return app


def test_requests_are_counted_by_route_and_never_by_path() -> None:
    async def run() -> None:
        transport = httpx.ASGITransport(application(), raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            for number in range(20):
                await client.get(f"/api/blobs/sha256:{number}")
                await client.get(f"/wp-admin/{number}.php")
            await client.post("/v1/chat/completions")
            await client.post("/api/generate")
            await client.get("/api/blobs/1", headers={"Host": "evil.example"})
            found = samples((await client.get("/metrics")).text)
            count = "trilithon_requests_total"
            assert found[f"{count} dialect=ollama route=/api/blobs/{{digest}} status=200"] == 20
            assert found[f"{count} dialect=plain route=none status=404"] == 20
            assert found[f"{count} dialect=ollama route=none status=403"] == 1
            assert found[f"{count} dialect=openai route=/v1/chat/completions status=200"] == 1
            assert found["trilithon_generated_tokens_total model=a:latest unit=cpu"] == 22
            assert found["trilithon_first_token_seconds_count model=a:latest unit=cpu"] == 2
            assert found["trilithon_retried_total dialect=ollama"] == 1
            assert found["trilithon_requests_in_flight"] == 1  # this one
            assert "process_resident_memory_bytes" in found

    asyncio.run(run())


def test_the_forms_that_can_be_asked_for() -> None:
    async def run() -> None:
        transport = httpx.ASGITransport(application())
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            plain = await client.get("/metrics")
            assert plain.headers["content-type"].startswith("text/plain; version=0.0.4")
            assert list(parse(plain.text))
            open_ = await client.get("/metrics", headers={"Accept": "application/openmetrics-text; version=1.0.0"})
            assert open_.headers["content-type"].startswith("application/openmetrics-text")
            assert list(parse_openmetrics(open_.text))
            for odd in ("application/openmetrics-text; version=x", "text/plain; version=..", "*/*", "é".encode()):
                assert (await client.get("/metrics", headers={"Accept": odd})).status_code == 200

    asyncio.run(run())


def test_what_a_stream_sends_before_the_engine_says_anything_is_no_first_token() -> None:
    request = RequestRecord(request_id="r", method="POST", path="/v1/messages", began_ns=0, streamed=True)
    with recording(request):
        request.sent(b"event: message_start\n\n")
        first_ns = time.monotonic_ns() + 1000
        note_first_token(first_ns)
        assert request.first_token_ns == first_ns
        request.generated.append(answer())
        note_first_token(first_ns + 1000)  # of a second answer
        assert request.first_token_ns == first_ns
