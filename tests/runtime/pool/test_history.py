"""What the pool remembers of models."""

import asyncio
import math
import threading
from pathlib import Path

import pytest

from trilithon.engines.base import Placement, Settings
from trilithon.engines.scripted.engine import ScriptedEngine
from trilithon.errors import ModelError
from trilithon.models.files.model_file import ModelFile
from trilithon.runtime.memory_need import bytes_needed
from trilithon.runtime.pool.history import Histories, History


def placement(name: str = "scripted/cpu", *, size_bytes: int = 1000, path: str = "any.rkllm") -> Placement:
    file = ModelFile(
        path=Path(path),
        format=Path(path).suffix[1:],  # type: ignore[arg-type]
        name="any",
        architecture="none",
        quantization="none",
        size_bytes=size_bytes,
        sha256="",
    )
    return Placement(name=name, file=file, build=ScriptedEngine().builds()[0], unit="cpu", settings=Settings())


def test_a_new_model_has_no_past() -> None:
    history, one = History(), placement()
    assert (history.need_of(one), history.crashes, history.last_error) == (None, 0, "")
    assert history.retry_in_seconds(one, -1e9) == 0.0
    history.need = one, 7
    assert (history.need_of(one), history.need_of(placement("other"))) == (7, None)


@pytest.mark.parametrize(("failures", "seconds"), [(1, 0.0), (2, 1.0), (3, 2.0), (5, 8.0)])
def test_failures_in_a_row_are_counted_by_placement(failures: int, seconds: float) -> None:
    history, one, other = History(), placement(), placement("other")
    history.record_failure(other, "before", 0.0)
    for number in range(failures):
        history.record_failure(one, f"error {number}", 100.0)
    assert history.retry_in_seconds(one, 100.0) == seconds
    assert history.retry_in_seconds(one, 100.0 + seconds - 0.25) == 0.25
    assert history.retry_in_seconds(one, 100.0 + seconds + 0.25) == 0.0
    assert history.retry_in_seconds(other, 100.0) == 0.0
    assert history.last_error == f"error {failures - 1}"
    history.record_success(1.0)
    assert (history.retry_in_seconds(one, 100.0), history.last_error) == (0.0, "")
    history.record_failure(one, "again", 100.0)
    assert history.retry_in_seconds(one, 100.0) == 0.0


@pytest.mark.parametrize(
    ("services", "waiting", "slots", "seconds"),
    [
        ((), 3, 1, 6.0),  # two seconds each, before a request has ended
        ((), 3, 2, 3.0),
        ((), 3, 0, 6.0),
        ((4.0,), 3, 1, 12.0),
        ((4.0, 9.0), 3, 1, 15.0),  # a fifth of the way from 4 to 9
        ((4.0, 9.0, 0.0), 3, 1, 12.0),
        ((0.0,), 3, 1, 1.0),
        ((0.5,), 3, 1, 1.5),
        ((100.0,), 2, 2, 100.0),
        ((100.0,), 3, 2, 120.0),
    ],
)
def test_when_to_try_again(services: tuple[float, ...], waiting: int, slots: int, seconds: float) -> None:
    history = History()
    for service in services:
        history.record_success(service)
    assert history.retry_after_seconds(waiting, slots) == pytest.approx(seconds)


def test_a_model_that_is_not_started_again_yet() -> None:
    history = History()
    history.record_failure(placement(), "no driver", 0.0)
    busy = history.busy("gemma", 3.21)
    assert (str(busy), busy.retry_after_seconds) == ("gemma is not started again for 3.2 s: no driver", 3.21)


def test_the_need_is_read_once_per_placement() -> None:
    histories, one, other = Histories(), placement(), placement(size_bytes=10**9)
    assert histories.need_bytes("a", one) == bytes_needed(one)
    histories.of("a").need = one, 5
    assert histories.need_bytes("a", one) == 5
    assert histories.need_bytes("a", other) == bytes_needed(other) != bytes_needed(one)
    assert histories.need_bytes("b", one) == bytes_needed(one) == histories.of("b").need_of(one)
    assert histories.of("b") is histories.of("b") is not histories.of("a")


def test_many_first_requests_read_the_header_once_in_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[Placement, bool]] = []

    def counted(placement: Placement) -> int:
        calls.append((placement, threading.current_thread() is threading.main_thread()))
        return bytes_needed(placement)

    monkeypatch.setattr("trilithon.runtime.pool.history.bytes_needed", counted)
    histories, one, other = Histories(), placement(), placement(size_bytes=10**9)

    async def ask() -> list[int]:
        needs = await asyncio.gather(*(histories.read_need_bytes("a", one) for _ in range(4)))
        return [*needs, await histories.read_need_bytes("a", one), await histories.read_need_bytes("a", other)]

    assert asyncio.run(ask()) == [bytes_needed(one)] * 5 + [bytes_needed(other)]
    assert calls == [(one, False), (other, False)]


def test_a_header_that_cannot_be_read_is_an_error_each_time(tmp_path: Path) -> None:
    histories, broken = Histories(), placement(path=str(tmp_path / "missing.gguf"))
    for _ in range(2):
        with pytest.raises(ModelError):
            histories.need_bytes("a", broken)
        with pytest.raises(ModelError):
            asyncio.run(histories.read_need_bytes("a", broken))
    assert histories.of("a").need is None


def test_last_errors_are_of_models_that_failed_and_are_not_loaded() -> None:
    histories = Histories()
    for key in ("failed", "loaded", "worked"):
        histories.of(key).record_failure(placement(), f"{key}: no driver", math.inf)
    histories.of("worked").record_success(1.0)
    histories.of("new")
    assert histories.last_errors(except_of={"loaded"}) == {"failed": "failed: no driver"}
    assert histories.last_errors(except_of=()) == {"failed": "failed: no driver", "loaded": "loaded: no driver"}
