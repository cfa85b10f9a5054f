"""The server's side of `calculations`: a child that is started when somebody asks, and ends when nobody does."""

import asyncio
import contextlib
import json
import sys
from asyncio.subprocess import PIPE, Process
from pathlib import Path
from typing import Any

from trilithon.errors import StoreError, TrilithonError, UserError

__all__ = ["Calculator"]

_IDLE_SECONDS = 60.0
_LONGEST_ANSWER_BYTES = 1 << 30
_MODULE = "trilithon.web.results.calculations"


class Calculator:
    """One question at a time. A child that does not answer because whoever asked went away is ended: the next question
    starts another."""

    def __init__(self, database: Path | None):
        self._database = database
        self._lock = asyncio.Lock()
        self._child: Process | None = None
        self._retiring: asyncio.TimerHandle | None = None

    async def ask(self, what: str, *about: Any) -> dict[str, Any]:
        """See `calculations`. Raises UserError for what cannot be answered, StoreError where nothing was measured."""
        if self._database is None or not await asyncio.to_thread(self._database.is_file):
            raise StoreError("no measurements yet; start with: trilithon bench")
        async with self._lock:
            if self._retiring is not None:
                self._retiring.cancel()
            try:
                answer = await self._answer(json.dumps([what, str(self._database), *about]))
            except BaseException:
                self._end()
                raise
            self._retiring = asyncio.get_running_loop().call_later(_IDLE_SECONDS, self._end)
        if "error" in answer:
            raise UserError(answer["error"])
        return answer

    async def _answer(self, question: str) -> dict[str, Any]:
        child = self._child or await self._start()
        assert child.stdin is not None and child.stdout is not None
        with contextlib.suppress(ConnectionError):  # the missing answer says so
            child.stdin.write(question.encode() + b"\n")
            await child.stdin.drain()
        line = await child.stdout.readline()
        if not line.endswith(b"\n"):
            raise TrilithonError("the figures could not be worked out: out of memory? See the server's log")
        answer: dict[str, Any] = json.loads(line)
        return answer

    async def _start(self) -> Process:
        """It ends with us: nobody holds its stdin then."""
        self._child = await asyncio.create_subprocess_exec(
            sys.executable, "-P", "-m", _MODULE, stdin=PIPE, stdout=PIPE, limit=_LONGEST_ANSWER_BYTES
        )
        return self._child

    async def close(self) -> None:
        """Whoever waits for an answer gets none."""
        if self._retiring is not None:
            self._retiring.cancel()
        child = self._child
        self._end()
        if child is not None:
            await child.wait()

    def _end(self) -> None:
        child, self._child = self._child, None
        if child is not None and child.returncode is None:
            child.kill()
