"""The one client of the wire: llama-server's HTTP API over a Unix socket, as typed events with timestamps."""

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx

from trilithon.children.wire import Candidate, Chat, Completion, Event, Finished, Progress, Timings, Token
from trilithon.errors import Hung, Refused, RunError

__all__ = ["Client", "Disconnected"]

# Evaluating a prompt gives no sign of life, so its length buys time: 2 tokens per second is slower than any
# published prefill on these boards (../data: the slowest is 3.3).
_SECONDS_PER_PROMPT_TOKEN = 0.5


class Disconnected(RunError):
    """The connection broke or was refused: the child is gone or going. The runner finds out why."""

    kind = "disconnected"


class Client:
    """Speaks to one child. Closing a stream (or cancelling the task that reads it) cancels the request.

    Raises Refused when the engine answers with an error, Hung when nothing came for `hang_seconds`,
    Disconnected when the connection broke.
    """

    def __init__(self, socket: Path, *, hang_seconds: float = 60.0):
        self._hang_seconds = hang_seconds
        # Time is limited here, per event; httpx's own limits would only be a second, different clock.
        self._http = httpx.AsyncClient(
            transport=httpx.AsyncHTTPTransport(uds=str(socket)), base_url="http://runner", timeout=None
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._http.aclose()

    async def ready(self) -> bool:
        """True once the model is loaded; False while it loads or while nobody listens yet."""
        try:
            return (await self._http.get("/health")).status_code == httpx.codes.OK
        except httpx.TransportError:
            return False

    async def properties(self) -> dict[str, Any]:
        return await self._call("GET", "/props")

    async def vocabulary(self) -> int:
        """How many token ids the loaded model knows."""
        models = await self._call("GET", "/v1/models")
        return int(models["data"][0]["meta"]["n_vocab"])

    async def tokenize(self, text: str, *, add_special: bool = True) -> list[int]:
        reply = await self._call("POST", "/tokenize", {"content": text, "add_special": add_special})
        return [int(token) for token in reply["tokens"]]

    async def distribution(self, request: Completion) -> tuple[list[Candidate], Timings]:
        """The most probable next tokens after `request.prompt`, `request.candidates` of them, best first."""
        allowance = self._allowance(request)
        reply = await self._call("POST", "/completion", request.body(stream=False), allowance=allowance)
        entries = reply["completion_probabilities"][0]["top_logprobs"]
        return [Candidate(int(e["id"]), float(e["logprob"])) for e in entries], Timings.parse(reply["timings"])

    async def stream(self, request: Completion | Chat) -> AsyncGenerator[Event, None]:
        """Run one request; yields events as they arrive, Finished last."""
        path, decode = (
            ("/completion", _completion_events)
            if isinstance(request, Completion)
            else ("/v1/chat/completions", _chat_events)
        )
        reason, timings = "", None
        body, allowance = request.body(stream=True), self._allowance(request)
        async with contextlib.aclosing(self._messages(path, body, allowance)) as messages:
            async for at_ns, message in messages:
                for event in decode(at_ns, message):
                    yield event
                reason = _finish_reason(message) or reason
                timings = Timings.parse(message["timings"]) if "timings" in message else timings
        if not reason:
            raise Disconnected("the answer broke off before its end")
        yield Finished(time.monotonic_ns(), reason, timings)

    def _allowance(self, request: Completion | Chat) -> float:
        """Seconds that may pass before the first event."""
        tokens = len(request.prompt) if isinstance(request, Completion) else 512
        return self._hang_seconds + tokens * _SECONDS_PER_PROMPT_TOKEN

    async def _messages(
        self, path: str, body: Mapping[str, Any], allowance: float
    ) -> AsyncGenerator[tuple[int, Mapping[str, Any]], None]:
        """The JSON messages of a server-sent event stream, each stamped when its bytes arrived."""
        rest = b""
        async with contextlib.aclosing(self._pieces(path, body, allowance)) as pieces:
            async for at_ns, piece in pieces:
                *lines, rest = (rest + piece).split(b"\n")
                for message in _parse(lines):
                    yield at_ns, message

    async def _pieces(
        self, path: str, body: Mapping[str, Any], allowance: float
    ) -> AsyncGenerator[tuple[int, bytes], None]:
        request = self._http.build_request("POST", path, json=body)
        async with contextlib.AsyncExitStack() as stack:
            with _translated(allowance):
                async with asyncio.timeout(allowance):
                    response = await self._http.send(request, stream=True)
                    stack.push_async_callback(response.aclose)
                    if response.is_error:
                        raise _refusal(response.status_code, await response.aread())
            pieces, limit = response.aiter_raw(), allowance
            while True:
                with _translated(limit):
                    async with asyncio.timeout(limit):
                        piece = await anext(pieces, None)
                if piece is None:
                    return
                yield time.monotonic_ns(), piece
                limit = self._hang_seconds

    async def _call(
        self, method: str, path: str, body: Mapping[str, Any] | None = None, *, allowance: float | None = None
    ) -> dict[str, Any]:
        limit = allowance or self._hang_seconds
        with _translated(limit):
            async with asyncio.timeout(limit):
                response = await self._http.request(method, path, json=body)
        if response.is_error:
            raise _refusal(response.status_code, response.content)
        try:
            reply: dict[str, Any] = response.json()
        except ValueError as error:
            raise Refused(f"{path} answered something that is not JSON", status=response.status_code) from error
        return reply


@contextlib.contextmanager
def _translated(limit_seconds: float) -> Iterator[None]:
    """Foreign errors in Trilithon's words."""
    try:
        yield
    except TimeoutError as error:
        raise Hung(
            f"no sign of life for {limit_seconds:.0f} s",
            cause="hang",
            advice="allow longer with TRILITHON_HANG_SECONDS if the machine is just slow",
        ) from error
    except httpx.TransportError as error:
        raise Disconnected(f"the connection broke: {str(error) or type(error).__name__}") from error


def _parse(lines: Sequence[bytes]) -> list[Mapping[str, Any]]:
    messages = []
    for line in lines:
        field, _, value = line.strip().partition(b":")
        # llama-server names the field "error" for some failures, and puts an error object into "data" for others.
        if field in (b"data", b"error") and (value := value.strip()) and value != b"[DONE]":
            message = json.loads(value)
            if field == b"error" or "error" in message:
                raise _refusal(500, value)
            messages.append(message)
    return messages


def _completion_events(at_ns: int, message: Mapping[str, Any]) -> list[Event]:
    progress = message.get("prompt_progress")
    if progress:
        return [Progress(at_ns, int(progress["processed"]), int(progress["total"]))]
    if message.get("stop") and not message.get("content"):
        return []
    return [Token(at_ns, str(message.get("content", "")))]


def _chat_events(at_ns: int, message: Mapping[str, Any]) -> list[Event]:
    events: list[Event] = []
    for choice in message.get("choices", []):
        delta = choice.get("delta", {})
        if delta.get("reasoning_content"):
            events.append(Token(at_ns, delta["reasoning_content"], reasoning=True))
        if delta.get("content"):
            events.append(Token(at_ns, delta["content"]))
    return events


def _finish_reason(message: Mapping[str, Any]) -> str:
    if message.get("stop") is True:
        return {"limit": "length"}.get(str(message.get("stop_type")), "stop")
    reasons = [choice.get("finish_reason") for choice in message.get("choices", [])]
    return next((str(reason) for reason in reasons if reason), "")


def _refusal(status: int, body: bytes) -> Refused:
    try:
        error = json.loads(body)
        error = error.get("error", error)
        text = str(error.get("message", error) if isinstance(error, dict) else error)
        status = int(error.get("code", status)) if isinstance(error, dict) else status
    except (ValueError, AttributeError):
        text = body.decode(errors="replace").strip() or "no reason given"
    return Refused(f"the engine refused ({status}): {' '.join(text.split())[:500]}", status=status, cause="refused")
