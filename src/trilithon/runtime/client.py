"""The client of a child: llama-server's HTTP API, as typed events with timestamps."""

import asyncio
import math
import re
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

from trilithon.board.processes import cpu_seconds
from trilithon.engines.wire.messages import (
    CacheTransfer,
    Candidate,
    Chat,
    Completion,
    Event,
    Finished,
    PromptProgress,
    Timings,
    Token,
    ToolCallPiece,
)
from trilithon.errors import EngineError, EngineTimeout
from trilithon.runtime.endpoint import Endpoint
from trilithon.runtime.engine_errors import (
    Disconnected,
    engine_error,
    engine_timeout,
    json_object,
    translated,
    well_formed,
)
from trilithon.runtime.exchange import Exchange

__all__ = ["Client", "Disconnected"]

# An engine sends nothing during prefill, so the time limit grows with the prompt: 2 tokens per second is slower than
# any prefill published for these boards (the slowest is 3.3).
_SECONDS_PER_PROMPT_TOKEN = 0.5
# A slower device, or one that first compiles its shaders, is told from a driver that hangs by the CPU time of its
# process: one that uses this part of a core gets so many times as long.
_BUSY, _BUSY_FACTOR = 0.1, 6.0
# A chat template may add so many tokens to the messages.
_TEMPLATE_TOKENS = 512
# Status requests within `hang_seconds`; and no limit, for a request that `watch` limits.
_POLLS, _NO_LIMIT_SECONDS = 4, 1e6
_PROCESSING = re.compile(rb'"is_processing":\s*true')
_DECODING = re.compile(rb'"n_decoded":\s*[1-9]')


class Client:
    """The client of one child. Closing a stream, or cancelling the task that reads it, cancels the request.

    Raises EngineError when the engine answers with an error, EngineTimeout when nothing arrived for `hang_seconds`, and
    Disconnected when the connection broke."""

    def __init__(self, place: Path | Endpoint, *, hang_seconds: float = 60.0):
        """`place` is a Unix socket or an endpoint."""
        self.endpoint = Endpoint(place) if isinstance(place, Path) else place
        self.hang_seconds = hang_seconds

    async def ready(self) -> bool:
        """True once the model is loaded; False while it loads, or while the child does not answer yet."""
        try:
            return bool(await self._call("GET", "/health"))
        except (Disconnected, EngineError, EngineTimeout):
            return False

    async def vocabulary_size(self) -> int:
        """The number of token ids of the loaded model."""
        models = await self._call("GET", "/v1/models")
        with well_formed("/v1/models", models):
            return int(models["data"][0]["meta"]["n_vocab"])

    async def tokenize(self, text: str, *, add_special: bool = True) -> list[int]:
        reply = await self._call("POST", "/tokenize", {"content": text, "add_special": add_special})
        with well_formed("/tokenize", reply):
            return [int(token) for token in reply["tokens"]]

    async def apply_template(self, request: Chat | Mapping[str, Any]) -> str:
        """The prompt that the model's template makes of the messages and the other fields of a chat request."""
        body = {"messages": request.body(stream=False)["messages"]} if isinstance(request, Chat) else request
        reply = await self._call("POST", "/apply-template", body)
        with well_formed("/apply-template", reply):
            return str(reply["prompt"])

    async def save_slot(self, slot: int, name: str) -> CacheTransfer:
        """Write the slot's KV cache to the file `name` in the folder that the launch gave the engine."""
        return await self._transfer(slot, "save", name, ("n_saved", "n_written"))

    async def restore_slot(self, slot: int, name: str) -> CacheTransfer:
        """Replace the slot's KV cache by what `save_slot` of a compatible engine wrote."""
        return await self._transfer(slot, "restore", name, ("n_restored", "n_read"))

    async def erase_slot(self, slot: int) -> None:
        """Empty the slot's KV cache."""
        await self._call("POST", f"/slots/{slot}?action=erase", {})

    async def _transfer(self, slot: int, action: str, name: str, counts: tuple[str, str]) -> CacheTransfer:
        path = f"/slots/{slot}?action={action}"
        reply = await self._call("POST", path, {"filename": name})
        with well_formed(path, reply):
            return CacheTransfer(int(reply[counts[0]]), int(reply[counts[1]]), float(reply["timings"][f"{action}_ms"]))

    async def distribution(self, request: Completion) -> tuple[list[Candidate], Timings]:
        """The most probable next tokens after `request.prompt`, `request.candidates` of them, best first."""
        reply = await self._answered(request)
        with well_formed(request.path, reply):
            entries = reply["completion_probabilities"][0]["top_logprobs"]
            return [_candidate(entry) for entry in entries], Timings.parse(reply["timings"])

    async def stream(self, request: Completion | Chat) -> AsyncGenerator[Event, None]:
        """Run one request; yields events as they arrive, `Finished` last."""
        reader = _EventReader(request)
        limit = self._allowance(request)
        with translated(limit):
            async with self.exchange(request.path, request.body(stream=True)) as exchange:
                while not exchange.complete:
                    with translated(limit):
                        await exchange.wait(limit)
                    events = reader.events(exchange)
                    if reader.begun:  # the head may arrive before prefill
                        limit = self.hang_seconds
                    for event in events:
                        yield event
        yield reader.finished()

    async def complete(self, request: Completion | Chat) -> tuple[list[Event], Finished]:
        """Run one request to its end, and parse the answer only then: the same events with the same timestamps as
        `stream`, for a tenth of the CPU time while the child works."""
        reader = _EventReader(request)
        limit = self._allowance(request)
        with translated(limit):
            async with self.exchange(request.path, request.body(stream=True)) as exchange:
                await exchange.wait_until_closed(limit, self.hang_seconds)
                events = reader.events(exchange)
        return events, reader.finished()

    async def timed(self, request: Completion) -> Finished:
        """Run one request without a stream, only for its timings. Nothing is sent per token, which would take CPU time
        from the child (3% of decode on two cores)."""
        reply = await self._answered(request)
        with well_formed(request.path, reply):
            return Finished(time.monotonic_ns(), _finish_reason(reply), Timings.parse(reply["timings"]))

    async def _answered(self, request: Completion) -> dict[str, Any]:
        """The whole answer, without a stream. `/slots` is polled to see whether the child is alive."""
        answer = asyncio.create_task(
            self._call("POST", request.path, request.body(stream=False), allowance=_NO_LIMIT_SECONDS)
        )

        async def arrived(seconds: float) -> bool:
            return bool((await asyncio.wait([answer], timeout=seconds))[0])

        try:
            await self.watch(arrived, self._allowance(request))
            return await answer
        finally:
            answer.cancel()
            await asyncio.wait([answer])

    async def watch(self, arrived: Callable[[float], Awaitable[bool]], limit: float) -> None:
        """Await `arrived(seconds)` until it returns True. Raises EngineTimeout when no slot made progress for `limit`
        seconds during prefill (one batch may take that long, and six times as long while the child computes), or for
        `hang_seconds` during decode."""
        loop, allowed = asyncio.get_running_loop(), limit
        state, since, cpu_before = None, loop.time(), self._cpu_seconds()
        while not await arrived(self.hang_seconds / _POLLS):
            slots = await self._slots()
            if slots is not None and slots != state:
                allowed = self.hang_seconds if _DECODING.search(slots) else limit
                if state is not None:
                    since, cpu_before = loop.time(), self._cpu_seconds()
                state = slots
            silent = loop.time() - since
            computes = allowed > self.hang_seconds and self._cpu_seconds() - cpu_before >= _BUSY * silent
            if silent > allowed * (_BUSY_FACTOR if computes else 1.0):
                raise engine_timeout(f"{silent:.0f}" if computes else f"{allowed:g}")

    def _cpu_seconds(self) -> float:
        """CPU time of the child so far; 0 where its process is not known."""
        return cpu_seconds(self.endpoint.pid) if self.endpoint.pid else 0.0

    def exchange(self, path: str, body: Mapping[str, Any]) -> AbstractAsyncContextManager[Exchange]:
        """One request, for callers that need the answer's bytes."""
        return Exchange.open(self.endpoint, "POST", path, body)

    async def idle(self) -> bool:
        """Whether no slot is processing; True also when the server does not report it. It answers between two
        batches."""
        try:
            slots = await self._fetch("GET", "/slots")
        except (EngineError, Disconnected):
            return True
        except EngineTimeout:
            return False
        return not _PROCESSING.search(slots)

    async def _slots(self) -> bytes | None:
        """The state of the slots; None when the server does not answer, as during a long batch."""
        try:
            return await self._fetch("GET", "/slots", allowance=self.hang_seconds / _POLLS)
        except (EngineTimeout, EngineError, Disconnected):
            return None

    def _allowance(self, request: Completion | Chat) -> float:
        """Seconds that may pass before the first event."""
        if isinstance(request, Completion):
            tokens = len(request.prompt)  # of a string: its characters, which are more
        else:
            tokens = _TEMPLATE_TOKENS + sum(len(content) for _, content in request.messages)
            tokens += len(str(request.tools)) if request.tools else 0
        return self.hang_seconds + self.patience_seconds(tokens)

    @staticmethod
    def patience_seconds(tokens: int) -> float:
        """The time limit for a prompt of so many tokens."""
        return tokens * _SECONDS_PER_PROMPT_TOKEN

    async def _call(
        self, method: str, path: str, body: Mapping[str, Any] | None = None, *, allowance: float | None = None
    ) -> dict[str, Any]:
        return json_object(await self._fetch(method, path, body, allowance=allowance))

    async def _fetch(
        self, method: str, path: str, body: Mapping[str, Any] | None = None, *, allowance: float | None = None
    ) -> bytes:
        limit = allowance or self.hang_seconds
        content = b""
        with translated(limit):
            async with Exchange.open(self.endpoint, method, path, body) as exchange, asyncio.timeout(limit):
                while not exchange.complete:
                    await exchange.wait(limit)
                    content += b"".join(piece for _, piece in exchange.read())
        if exchange.status is None or exchange.status >= 400:
            raise engine_error(exchange.status or 500, content, path)
        return content


class _EventReader:
    """Parses the pieces of a server-sent event stream."""

    def __init__(self, request: Completion | Chat):
        self._decode = _completion_events if isinstance(request, Completion) else _chat_events
        self._rest = b""
        self._reason = ""
        self._timings: Timings | None = None
        self._at_ns = 0
        self.begun = False

    def events(self, exchange: Exchange) -> list[Event]:
        events: list[Event] = []
        for at_ns, piece in exchange.read():
            self.begun = True
            *lines, self._rest = (self._rest + piece).split(b"\n")
            if exchange.status is not None and exchange.status >= 400:
                self._rest = b"\n".join([*lines, self._rest])  # one error object instead of events
                continue
            for message in _parse(lines):
                with well_formed("the stream", message):
                    events += self._decode(at_ns, message)
                    self._reason = _finish_reason(message) or self._reason
                    self._timings = Timings.parse(message["timings"]) if message.get("timings") else self._timings
                self._at_ns = at_ns
        if exchange.complete and exchange.status is not None and exchange.status >= 400:
            raise engine_error(exchange.status, self._rest, exchange.path)
        return events

    def finished(self) -> Finished:
        if not self._reason:
            raise Disconnected("the connection broke: the answer is incomplete")
        return Finished(self._at_ns, self._reason, self._timings)


def _candidate(entry: Mapping[str, Any]) -> Candidate:
    logprob = entry["logprob"]  # null stands for -inf and NaN, which JSON does not have
    return Candidate(int(entry["id"]), -math.inf if logprob is None else float(logprob))


def _parse(lines: Sequence[bytes]) -> list[dict[str, Any]]:
    messages = []
    for line in lines:
        field, _, value = line.strip().partition(b":")
        # llama-server uses the field "error" for some errors, and an error object in "data" for others.
        if field in (b"data", b"error") and (value := value.strip()) and value != b"[DONE]":
            message = json_object(value)
            if field == b"error" or message.get("error"):
                raise engine_error(500, value)
            messages.append(message)
    return messages


def _completion_events(at_ns: int, message: Mapping[str, Any]) -> list[Event]:
    progress = message.get("prompt_progress")
    if progress:
        return [PromptProgress(at_ns, int(progress["processed"]), int(progress["total"]))]
    if message.get("stop") and not message.get("content"):
        return []
    return [Token(at_ns, str(message.get("content") or ""))]


def _chat_events(at_ns: int, message: Mapping[str, Any]) -> list[Event]:
    events: list[Event] = []
    for choice in message.get("choices") or []:
        delta = choice.get("delta") or {}
        if delta.get("reasoning_content"):
            events.append(Token(at_ns, delta["reasoning_content"], reasoning=True))
        if delta.get("content"):
            events.append(Token(at_ns, delta["content"]))
        events += [_call_piece(at_ns, call) for call in delta.get("tool_calls") or []]
    return events


def _call_piece(at_ns: int, call: Mapping[str, Any]) -> ToolCallPiece:
    function = call.get("function") or {}
    return ToolCallPiece(
        at_ns, int(call.get("index") or 0), str(function.get("name") or ""), str(function.get("arguments") or "")
    )


def _finish_reason(message: Mapping[str, Any]) -> str:
    if message.get("stop") is True:
        return {"limit": "length"}.get(str(message.get("stop_type")), "stop")
    reasons = [choice.get("finish_reason") for choice in message.get("choices") or []]
    return next((str(reason) for reason in reasons if reason), "")
