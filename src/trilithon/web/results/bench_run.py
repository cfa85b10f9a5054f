"""A bench that was started from the page: `trilithon bench` as a child of the server, one at a time, whether or not
anybody watches."""

import asyncio
import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from trilithon.engines.base import Launch
from trilithon.errors import TrilithonError, UserError
from trilithon.measure.records import TestKind
from trilithon.runtime.pool.pool import Pool
from trilithon.runtime.process import Process, workspace
from trilithon.settings import Configuration
from trilithon.units import parse_duration, parse_integers

__all__ = ["TESTS", "Bench", "BenchState", "Wish", "arguments", "read_progress"]

TESTS: tuple[TestKind, ...] = ("pp", "tg", "pg", "question", "cold")
_PROGRAM = "from trilithon.cli.main import entry; entry()"
_GRACE_SECONDS = 15.0  # it ends its own children first
_LOOK_SECONDS = 0.3
_MOST_LOG_BYTES = 1 << 20

Phase = Literal["unloading", "running", "finished", "failed", "cancelled"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What to measure. `model` is a path, `name` what the reader calls it; `placements` are spelled, none of them is
    every one that can. `repetitions` and `budget` ("5m") may be left open."""

    model: Path
    name: str
    placements: tuple[str, ...] = ()
    tests: tuple[TestKind, ...] = ("pp", "tg", "question")
    prompt: str = "512"
    generated: str = "128"
    repetitions: int | None = None
    budget: str = ""


def arguments(wish: Wish) -> tuple[str, ...]:
    """The words after `trilithon`. Raises UserError for those that it would refuse."""
    if not wish.tests:
        raise UserError("nothing to measure; choose a test")
    parse_integers(wish.prompt, name="-p", least=1)
    parse_integers(wish.generated, name="-n", least=1)
    words = ["bench", "--progress", "json", "-o", "jsonl", "-p", wish.prompt, "-n", wish.generated]
    words += [word for test in wish.tests for word in ("--test", test)]
    words += [word for placement in wish.placements for word in ("--placement", placement)]
    if wish.repetitions is not None:
        words += ["-r", str(wish.repetitions)]
    if wish.budget:
        parse_duration(wish.budget, name="--time-budget")
        words += ["--time-budget", wish.budget]
    return (*words, "--", str(wish.model))


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchState:
    """How far it is. `campaign` is known at the end; `problem` says why it failed."""

    wish: Wish
    phase: Phase
    text: str = ""
    runs_done: int = 0
    runs_planned: int = 0
    remaining_seconds: float | None = None
    campaign: int | None = None
    problem: str = ""

    @property
    def over(self) -> bool:
        return self.phase in ("finished", "failed", "cancelled")


def read_progress(log: str, state: BenchState) -> BenchState:
    """The state after what the child wrote."""
    for line in log.splitlines():
        facts = _object(line)
        if "runs_planned" in facts and "remaining_seconds" in facts:
            known = {name: facts[name] for name in ("text", "runs_done", "runs_planned", "remaining_seconds")}
            state = replace(state, **known)
        elif facts.keys() == {"campaign"}:
            state = replace(state, campaign=facts["campaign"])
    return state


def _object(line: str) -> Mapping[str, Any]:
    try:
        parsed = json.loads(line) if line.startswith("{") else None
    except ValueError:
        return {}
    return parsed if isinstance(parsed, dict) else {}


class Bench:
    """The server's only one. `state` is None until one was started."""

    def __init__(self, pool: Pool, configuration: Configuration):
        self._pool = pool
        self._configuration = configuration
        self._task: asyncio.Task[None] | None = None
        self._cancelled = False
        self.state: BenchState | None = None

    @property
    def running(self) -> bool:
        return self.state is not None and not self.state.over

    def loaded(self) -> tuple[str, ...]:
        """The models that have to go first: with them in memory and at work no figure would be right."""
        return tuple(model.key for model in self._pool.loaded())

    def start(self, wish: Wish) -> None:
        """Unloads what is loaded, then measures. Raises UserError where one runs, and for a wish that is no good."""
        if self.running:
            raise UserError("a bench runs already; wait for its end, or stop it")
        words = arguments(wish)
        self._cancelled = False
        self.state = BenchState(wish=wish, phase="unloading")
        self._task = asyncio.create_task(self._run(words))

    def cancel(self) -> None:
        """What was finished is kept."""
        if self._task is not None and self.running and not self._cancelled:
            self._cancelled = True
            self._task.cancel()

    async def close(self) -> None:
        self.cancel()
        if self._task is not None:
            await asyncio.wait([self._task])

    async def _run(self, words: Sequence[str]) -> None:
        assert self.state is not None
        try:
            for key in self.loaded():
                await self._pool.unload(key)
            with workspace() as folder:
                await self._watch(words, folder / "bench.log")
        except asyncio.CancelledError:
            self.state = replace(self.state, phase="cancelled")
            if not self._cancelled:  # not by us
                raise
        except TrilithonError as error:
            self.state = replace(self.state, phase="failed", problem=str(error))

    async def _watch(self, words: Sequence[str], log: Path) -> None:
        assert self.state is not None
        launch = Launch(
            argv=(sys.executable, "-c", _PROGRAM, *words), socket=log, environment=_environment(self._configuration)
        )
        process = await Process.start(launch, log)
        self.state = replace(self.state, phase="running")
        try:
            waiting = asyncio.ensure_future(process.wait())
            while not waiting.done():
                await asyncio.wait([waiting], timeout=_LOOK_SECONDS)
                self.state = read_progress(await asyncio.to_thread(_tail, log), self.state)
        finally:
            await asyncio.shield(process.stop(_GRACE_SECONDS))
            self.state = read_progress(_tail(log), self.state)
        code = process.returncode
        problem = "" if code == 0 else _last_words(_tail(log)) or f"exit code {code}"
        self.state = replace(self.state, phase="failed" if problem else "finished", problem=problem)


def _environment(configuration: Configuration) -> dict[str, str]:
    """The child's configuration is the server's, wherever that came from."""
    folders = {name: getattr(configuration, name) for name in ("builds", "stores", "models")}
    return {
        "TRILITHON_DATA": str(configuration.data),
        "TRILITHON_CACHE": str(configuration.cache),
        "TRILITHON_START_SECONDS": str(configuration.start_seconds),
        "TRILITHON_HANG_SECONDS": str(configuration.hang_seconds),
        **{
            f"TRILITHON_{name.upper()}": os.pathsep.join(map(str, environment))
            for name, environment in folders.items()
            if environment
        },
    }


def _tail(log: Path) -> str:
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - _MOST_LOG_BYTES))
        return file.read().decode(errors="replace")


def _last_words(log: str) -> str:
    """What it said to people at its end."""
    said = [line for line in log.splitlines() if line.strip() and not line.startswith(("{", "note:", "warning:"))]
    return " ".join(said[-1:])
