"""The one client of the wire: llama-server's HTTP API over a Unix socket, as typed events with timestamps."""

import asyncio
import math
import re
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

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
)
from trilithon.errors import EngineError, EngineTimeout
from trilithon.runtime.engine_errors import Disconnected, hung, json_object, refusal, translated, understood
from trilithon.runtime.exchange import Exchange

__all__ = ["Client", "Disconnected"]

# Evaluating a prompt gives no sign of life, so its length buys time: 2 tokens per second is slower than any
# prefill published for these boards (the slowest is 3.3).
_SECONDS_PER_PROMPT_TOKEN = 0.5
# What a chat template may add to the messages.
_TEMPLATE_TOKENS = 512
# How often within `hang_seconds` a server is asked what it is at, and a limit that only says: watched elsewhere.
_LOOKS, _ANY_SECONDS = 4, 1e6
_PROCESSING = re.compile(rb'"is_processing":\s*true')
_DECODING = re.compile(rb'"n_decoded":\s*[1-9]')


class Client:
    """Speaks to one child. Closing a stream (or cancelling the task that reads it) cancels the request.

    Raises Refused when the engine answers with an error, Hung when nothing came for `hang_seconds`,
    Disconnected when the connection broke.
    """

    def __init__(self, socket: Path, *, hang_seconds: float = 60.0):
        self._socket = socket
        self.hang_seconds = hang_seconds

    async def ready(self) -> bool:
        """True once the model is loaded; False while it loads, does not answer, or while nobody listens yet."""
        try:
            return bool(await self._call("GET", "/health"))
        except (Disconnected, EngineError, EngineTimeout):
            return False

    async def vocabulary(self) -> int:
        """How many token ids the loaded model knows."""
        models = await self._call("GET", "/v1/models")
        with understood("/v1/models", models):
            return int(models["data"][0]["meta"]["n_vocab"])

    async def tokenize(self, text: str, *, add_special: bool = True) -> list[int]:
        reply = await self._call("POST", "/tokenize", {"content": text, "add_special": add_special})
        with understood("/tokenize", reply):
            return [int(token) for token in reply["tokens"]]

    async def rendered(self, request: Chat | Mapping[str, Any]) -> str:
        """The prompt that the model's template makes of the messages, and of all else that a chat's body has."""
        body = {"messages": request.body(stream=False)["messages"]} if isinstance(request, Chat) else request
        reply = await self._call("POST", "/apply-template", body)
        with understood("/apply-template", reply):
            return str(reply["prompt"])

    async def save_slot(self, slot: int, name: str) -> CacheTransfer:
        """Write the slot's KV cache to the file `name` in the folder that the launch gave the engine."""
        return await self._moved(slot, "save", name, ("n_saved", "n_written"))

    async def restore_slot(self, slot: int, name: str) -> CacheTransfer:
        """Put what `save_slot` of a like engine wrote in place of the slot's KV cache."""
        return await self._moved(slot, "restore", name, ("n_restored", "n_read"))

    async def _moved(self, slot: int, action: str, name: str, counts: tuple[str, str]) -> CacheTransfer:
        path = f"/slots/{slot}?action={action}"
        reply = await self._call("POST", path, {"filename": name})
        with understood(path, reply):
            return CacheTransfer(int(reply[counts[0]]), int(reply[counts[1]]), float(reply["timings"][f"{action}_ms"]))

    async def distribution(self, request: Completion) -> tuple[list[Candidate], Timings]:
        """The most probable next tokens after `request.prompt`, `request.candidates` of them, best first."""
        allowance = self._allowance(request)
        reply = await self._call("POST", "/completion", request.body(stream=False), allowance=allowance)
        with understood("/completion", reply):
            entries = reply["completion_probabilities"][0]["top_logprobs"]
            return [_candidate(entry) for entry in entries], Timings.parse(reply["timings"])

    async def stream(self, request: Completion | Chat) -> AsyncGenerator[Event, None]:
        """Run one request; yields events as they arrive, Finished last."""
        reader = _EventReader(request)
        limit = self._allowance(request)
        with translated(limit):
            async with self.exchange(request.path, request.body(stream=True)) as exchange:
                while not exchange.complete:
                    with translated(limit):
                        await exchange.wait(limit)
                    events = reader.events(exchange)
                    if reader.begun:  # the head comes before the prompt is evaluated
                        limit = self.hang_seconds
                    for event in events:
                        yield event
        yield reader.finished()

    async def complete(self, request: Completion | Chat) -> tuple[list[Event], Finished]:
        """Run one request to its end and only then look at what came: the same events with the same timestamps as
        `stream`, at a tenth of the CPU time while the child works."""
        reader = _EventReader(request)
        limit = self._allowance(request)
        with translated(limit):
            async with self.exchange(request.path, request.body(stream=True)) as exchange:
                await exchange.wait_until_over(limit, self.hang_seconds)
                events = reader.events(exchange)
        return events, reader.finished()

    async def timed(self, request: Completion) -> Finished:
        """Run one request without a stream, for its timings alone. Nothing is sent per token, so nothing takes time
        from the child (a stream cost 3% of decode on two cores); whether it still lives is asked of `/slots` now
        and then."""
        answer = asyncio.create_task(
            self._call("POST", request.path, request.body(stream=False), allowance=_ANY_SECONDS)
        )

        async def arrived(seconds: float) -> bool:
            return bool((await asyncio.wait([answer], timeout=seconds))[0])

        try:
            await self.watch(arrived, self._allowance(request))
            reply = await answer
        finally:
            answer.cancel()
            await asyncio.wait([answer])
        with understood(request.path, reply):
            return Finished(time.monotonic_ns(), _finish_reason(reply), Timings.parse(reply["timings"]))

    async def watch(self, arrived: Callable[[float], Awaitable[bool]], limit: float) -> None:
        """Until `arrived`, asked to wait so many seconds, says yes. Raises EngineTimeout when no slot showed any
        progress for `limit` seconds while a prompt is evaluated (in large batches, each of which may take that long),
        or for `hang_seconds` while decoding."""
        loop, allowed = asyncio.get_running_loop(), limit
        state, since = None, loop.time()
        while not await arrived(self.hang_seconds / _LOOKS):
            slots = await self._slots()
            if slots is not None and slots != state:
                allowed = self.hang_seconds if _DECODING.search(slots) else limit
                since = since if state is None else loop.time()
                state = slots
            if loop.time() - since > allowed:
                raise hung(f"{allowed:g}")

    def exchange(self, path: str, body: Mapping[str, Any]) -> AbstractAsyncContextManager[Exchange]:
        """The bare request, for those who want the answer's bytes."""
        return Exchange.open(self._socket, "POST", path, body)

    async def idle(self) -> bool:
        """Whether no slot is at work; True also of a server that does not say. It answers between two batches."""
        try:
            slots = await self._fetch("GET", "/slots")
        except (EngineError, Disconnected):
            return True
        except EngineTimeout:
            return False
        return not _PROCESSING.search(slots)

    async def _slots(self) -> bytes | None:
        """What the server is at; None when it does not say (in the middle of a long batch it does not)."""
        try:
            return await self._fetch("GET", "/slots", allowance=self.hang_seconds / _LOOKS)
        except (EngineTimeout, EngineError, Disconnected):
            return None

    def _allowance(self, request: Completion | Chat) -> float:
        """Seconds that may pass before the first event."""
        if isinstance(request, Completion):
            tokens = len(request.prompt)  # of a text: its characters, which are more
        else:
            tokens = _TEMPLATE_TOKENS + sum(len(content) for _, content in request.messages)
        return self.hang_seconds + self.patience_seconds(tokens)

    @staticmethod
    def patience_seconds(tokens: int) -> float:
        """How long a prompt of so many tokens may take."""
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
            async with Exchange.open(self._socket, method, path, body) as exchange, asyncio.timeout(limit):
                while not exchange.complete:
                    await exchange.wait(limit)
                    content += b"".join(piece for _, piece in exchange.read())
        if exchange.status is None or exchange.status >= 400:
            raise refusal(exchange.status or 500, content)
        return content


class _EventReader:
    """Turns the pieces of a server-sent event stream into events; keeps how the request ended."""

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
                self._rest = b"\n".join([*lines, self._rest])  # not events but one error object
                continue
            for message in _parse(lines):
                with understood("the stream", message):
                    events += self._decode(at_ns, message)
                    self._reason = _finish_reason(message) or self._reason
                    self._timings = Timings.parse(message["timings"]) if message.get("timings") else self._timings
                self._at_ns = at_ns
        if exchange.complete and exchange.status is not None and exchange.status >= 400:
            raise refusal(exchange.status, self._rest)
        return events

    def finished(self) -> Finished:
        if not self._reason:
            raise Disconnected("the connection broke: the answer broke off before its end")
        return Finished(self._at_ns, self._reason, self._timings)


def _candidate(entry: Mapping[str, Any]) -> Candidate:
    logprob = entry["logprob"]  # null where it is -inf or no number: JSON has neither
    return Candidate(int(entry["id"]), -math.inf if logprob is None else float(logprob))


def _parse(lines: Sequence[bytes]) -> list[dict[str, Any]]:
    messages = []
    for line in lines:
        field, _, value = line.strip().partition(b":")
        # llama-server names the field "error" for some failures, and puts an error object into "data" for others.
        if field in (b"data", b"error") and (value := value.strip()) and value != b"[DONE]":
            message = json_object(value)
            if field == b"error" or message.get("error"):
                raise refusal(500, value)
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
    return events


def _finish_reason(message: Mapping[str, Any]) -> str:
    if message.get("stop") is True:
        return {"limit": "length"}.get(str(message.get("stop_type")), "stop")
    reasons = [choice.get("finish_reason") for choice in message.get("choices") or []]
    return next((str(reason) for reason in reasons if reason), "")
