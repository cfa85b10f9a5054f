"""The log of a model's life, from real children."""

import asyncio
import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from scripted_placement import scripted_placement

from trilithon.engines.base import Placement, Settings
from trilithon.engines.wire.messages import Completion
from trilithon.errors import ChildDied, StartError
from trilithon.runtime.pool.pool import Pool
from trilithon.settings import Configuration

MIB = 1 << 20


def placement(mib: int = 100, context: int = 512, **options: str) -> Placement:
    settings = Settings(context=context, slots=1, options=tuple(options.items()))
    return scripted_placement("scripted/cpu", settings, size_bytes=mib * MIB)


@pytest.fixture
def life(caplog: pytest.LogCaptureFixture) -> Iterator[list[dict[str, Any]]]:
    """The lines as they come: `event` and the facts, without figures that differ each time."""
    lines: list[dict[str, Any]] = []

    class Collecting(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            facts: dict[str, Any] = record.facts  # type: ignore[attr-defined] # of our own
            json.dumps(facts)
            lines.append({"event": record.getMessage(), "level": record.levelname, **facts})

    logger, handler = logging.getLogger("trilithon.model"), Collecting()
    logger.addHandler(handler)
    caplog.set_level(logging.INFO, "trilithon.model")
    yield lines
    logger.removeHandler(handler)


def events(life: list[dict[str, Any]]) -> list[tuple[str, str]]:
    return [(line["event"], line["model"]) for line in life]


async def until(is_so: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not is_so():  # noqa: ASYNC110 # nobody tells it
            await asyncio.sleep(0.01)


def pool(tmp_path: Path, **more: Any) -> Pool:
    return Pool(Configuration(data=tmp_path, cache=tmp_path), tmp_path, **more)


def test_load_eviction_and_the_end(tmp_path: Path, life: list[dict[str, Any]]) -> None:
    async def run() -> Pool:
        models = pool(tmp_path, budget_bytes=150 * MIB)
        async with models.lease("a", placement(), caller="ann"):
            pass
        async with models.lease("b", placement(), caller="ann"):
            pass
        await models.drain(5)
        return models

    models = asyncio.run(run())
    assert events(life) == [
        ("model loading", "a"),
        ("model loaded", "a"),
        ("model evicted", "a"),
        ("model loading", "b"),
        ("model loaded", "b"),
        ("model unloaded", "b"),
    ]
    assert life[0] | {"need_bytes": 0} == {
        "event": "model loading",
        "level": "INFO",
        "model": "a",
        "placement": "scripted/cpu",
        "why": "requested",
        "need_bytes": 0,
        "waiting": 1,
    }
    assert life[1]["load_seconds"] > 0
    assert (life[2]["for"], life[2]["why"]) == ("b", "room is needed")
    assert life[5]["why"] == "the server ends"
    assert models.load_seconds >= life[1]["load_seconds"]


def test_why_a_model_goes(tmp_path: Path, life: list[dict[str, Any]]) -> None:
    async def run() -> None:
        models = pool(tmp_path)
        async with models.lease("a", placement(), caller="ann"):
            pass
        async with models.lease("a", placement(context=1024), caller="ann", keep_alive_seconds=0):
            pass
        await until(lambda: not models.loaded())
        models.pin("a", placement())
        await until(lambda: models.loads == 3)
        await models.unload("a")

    asyncio.run(run())
    assert [line["why"] for line in life if line["event"] == "model unloaded"] == [
        "a request needs scripted/cpu with other settings",
        "it was idle",
        "unload was requested",
    ]
    assert [line["why"] for line in life if line["event"] == "model loading"] == ["requested", "requested", "pinned"]


def test_a_crash_and_a_load_that_fails_are_warnings(tmp_path: Path, life: list[dict[str, Any]]) -> None:
    async def run() -> Pool:
        models = pool(tmp_path)
        with pytest.raises(ChildDied):
            async with models.lease("a", placement(crash_after="3"), caller="ann") as lease:
                await lease.runner.complete(Completion(prompt=[5, 6, 7], max_tokens=20, ignore_eos=True))
        await until(lambda: not models.loaded())
        with pytest.raises(StartError):
            async with models.lease("b", placement(refuse_start="no"), caller="ann"):
                pass
        await models.drain(5)
        return models

    models = asyncio.run(run())
    warnings = [line for line in life if line["level"] == "WARNING"]
    assert [(line["event"], line["model"]) for line in warnings] == [
        ("model crashed", "a"),
        ("model failed to load", "b"),
    ]
    assert all(line["why"] for line in warnings)
    assert (models.crashes, models.failed_loads) == (1, 1)
