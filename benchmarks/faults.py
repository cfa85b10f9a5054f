"""What becomes of requests while their engines are killed, and what the server keeps of it.

    python benchmarks/faults.py [--requests 1500] [--clients 24] [--requests-per-kill 15] [--seed 1]
                                [--json]

One `trilithon serve` with the scripted engine, four slots. Clients send chats, completions, messages, responses and
embeddings in every API, streamed and whole; one in ten leaves in the middle. Meanwhile engines are killed by SIGKILL,
SIGSEGV, SIGABRT or SIGTERM, or stopped by SIGSTOP, which looks like a hang.

An answer counts as whole with the end that its API promises, as an error with a status or an event that says what went
wrong. Anything else is no answer: a connection that breaks off, a stream without an end, silence. Before and after the
campaign the server is idle, with one engine: its memory, descriptors and children have to be as before.
"""

import asyncio
import contextlib
import json
import os
import random
import signal
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from _figures import Bound, CannotMeasure, Figure, arguments, attempted, count, report, run
from _server import Server, at_rest, children, private_folders, serving

from trilithon.models.synthetic.tiny import write_tiny_model

_PLACEMENT = "scripted/cpu:prefill=20000,decode=300,np=4"
_HANG_SECONDS = 5
_SIGNALS = (signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT, signal.SIGTERM, signal.SIGSTOP)
_LEAVING = 0.1
_PATIENCE_SECONDS = 100.0
_LONGEST_PAUSE_SECONDS = 2.0
_MESSAGES = [{"role": "user", "content": "Tell me about stone circles."}]
# Path, body, the end of a streamed answer; without one it is never streamed.
_ROUTES: list[tuple[str, dict[str, Any], str]] = [
    ("/v1/chat/completions", {"messages": _MESSAGES}, "data: [DONE]"),
    ("/v1/chat/completions", {"messages": _MESSAGES, "n": 2}, "data: [DONE]"),
    ("/v1/completions", {"prompt": "Stone"}, "data: [DONE]"),
    ("/v1/responses", {"input": "Stone"}, '"type":"response.completed"|"type":"response.incomplete"'),
    ("/v1/messages", {"messages": _MESSAGES}, '"type":"message_stop"'),
    ("/api/chat", {"messages": _MESSAGES}, '"done":true'),
    ("/api/generate", {"prompt": "Stone"}, '"done":true'),
    ("/v1/embeddings", {"input": ["one", "two"]}, ""),
    ("/api/embed", {"input": "one"}, ""),
    ("/tokenize", {"content": "Stone"}, ""),
]
_READY = "seconds until it answers again"
_ERRORS = ('"error"', '"response.failed"')
_BOUNDS = [
    Bound("complete requests without an answer", most=0),
    Bound("memory MB more than before", most=20.0),
    Bound("descriptors more than before", most=0),
    Bound("children more than before", most=0),
    Bound(_READY, most=10.0),
]


@dataclass(slots=True)
class Tally:
    outcomes: Counter[str] = field(default_factory=Counter)
    unanswered: Counter[str] = field(default_factory=Counter)
    kills: Counter[str] = field(default_factory=Counter)


async def request(client: httpx.AsyncClient, random_: random.Random, tally: Tally) -> None:
    path, body, end = random_.choice(_ROUTES)
    streams = bool(end) and random_.random() < 0.7
    leaves = random_.random() < _LEAVING
    tokens = random_.randint(16, 120)
    limit = {"max_tokens": tokens, "max_output_tokens": tokens, "options": {"num_predict": tokens}, "stream": streams}
    content, status = "", 0
    try:
        async with client.stream("POST", path, json={"model": "tiny", **body, **(limit if end else {})}) as answer:
            status = answer.status_code
            async for piece in answer.aiter_text():
                content += piece
                if leaves:
                    tally.outcomes["left"] += 1
                    return
        outcome = _outcome(status, content, end if streams else "")
        if retry_after := answer.headers.get("retry-after"):
            await asyncio.sleep(min(float(retry_after), _LONGEST_PAUSE_SECONDS))
    except httpx.HTTPError as error:
        outcome = f"no answer: {type(error).__name__}"
    tally.outcomes[outcome.partition(":")[0]] += 1
    if outcome.startswith("no answer"):
        tally.unanswered[f"{path} {'streamed' if streams else 'whole'}: {outcome} after {content[-80:]!r}"] += 1


def _outcome(status: int, content: str, end: str) -> str:
    if status != 200:
        return "error" if status >= 400 and any(word in content for word in _ERRORS) else f"no answer: status {status}"
    if end:
        if any(mark in content for mark in end.split("|")):
            return "whole"
        return "error" if any(word in content for word in _ERRORS) else "no answer: no end"
    try:
        json.loads(content)
    except ValueError:
        return "no answer: half"
    return "whole"


async def campaign(server: Server, requests: int, clients: int, requests_per_kill: int, seed: int) -> Tally:
    """No kill for `requests_per_kill` 0. Raises nothing that a request meets."""
    tally, random_ = Tally(), random.Random(seed)
    left = iter(range(requests))
    limits = httpx.Limits(max_connections=clients)
    async with httpx.AsyncClient(base_url=server.url, timeout=_PATIENCE_SECONDS, limits=limits) as client:

        async def one_client() -> None:
            for _ in left:
                await request(client, random_, tally)
                whole, kills = tally.outcomes["whole"], tally.kills.total()
                if requests_per_kill and whole // requests_per_kill > kills:
                    kill_engine(server, random_, tally)

        await asyncio.gather(*(one_client() for _ in range(clients)))
    return tally


def kill_engine(server: Server, random_: random.Random, tally: Tally) -> None:
    engines = children(server.process)
    if engines:
        kind = random_.choice(_SIGNALS)
        with contextlib.suppress(ProcessLookupError):
            os.kill(random_.choice(engines), kind)
            tally.kills[kind.name] += 1


def seconds_until_ready(server: Server) -> float:
    """Until a chat is answered whole. Raises CannotMeasure after a minute, with the last answer."""
    began = time.monotonic()
    last: object = "no answer"
    with httpx.Client(base_url=server.url, timeout=60) as client:
        while time.monotonic() - began < 60:
            body = {"model": "tiny", "messages": _MESSAGES, "max_tokens": 8}
            try:
                answer = client.post("/v1/chat/completions", json=body)
            except httpx.HTTPError as error:
                last = repr(error)
            else:
                if answer.status_code == 200:
                    return time.monotonic() - began
                last = f"{answer.status_code} {answer.text}"
            time.sleep(0.1)
    raise CannotMeasure(f"no whole answer within {time.monotonic() - began:.0f} s, at last {last}")


def measured(server: Server, requests: int, clients: int, requests_per_kill: int, seed: int) -> dict[str, Figure]:
    # Every code path, connection pool and cache is warm before the first look.
    asyncio.run(campaign(server, max(requests // 5, 50), clients, 0, seed))
    _only_chat_stays(server)
    before = at_rest(server)
    began = time.monotonic()
    tally = asyncio.run(campaign(server, requests, clients, requests_per_kill, seed + 1))
    seconds = time.monotonic() - began
    ready = attempted((_READY,), _ready_again, server)
    after = at_rest(server, before)
    for words, number in tally.unanswered.most_common(10):
        print(f"{number} times {words}", flush=True)
    return {
        "requests tried": tally.outcomes.total(),
        "answered whole": tally.outcomes["whole"],
        "answered with an error": tally.outcomes["error"],
        "clients that left": tally.outcomes["left"],
        "complete requests without an answer": tally.unanswered.total(),
        "engines killed or stopped": tally.kills.total(),
        **{f"by {name}": number for name, number in sorted(tally.kills.items())},
        "seconds": seconds,
        "memory MB before": before[0],
        "memory MB more than before": after[0] - before[0],
        "descriptors more than before": after[1] - before[1],
        "children more than before": after[2] - before[2],
        **ready,
    }


def _ready_again(server: Server) -> dict[str, Figure]:
    seconds = seconds_until_ready(server)
    _only_chat_stays(server)
    return {_READY: seconds}


def _only_chat_stays(server: Server) -> None:
    """The model is loaded for chats alone: it is unloaded, for vectors too, and one chat loads it again. Raises
    CannotMeasure when the server does not answer."""
    try:
        with httpx.Client(base_url=server.url, timeout=60) as client:
            client.post("/api/generate", json={"model": "tiny", "keep_alive": 0})
            deadline = time.monotonic() + 30
            while client.get("/api/ps").json()["models"] and time.monotonic() < deadline:
                time.sleep(0.1)
    except httpx.HTTPError as error:
        raise CannotMeasure(f"the server does not answer: {error!r}") from error
    seconds_until_ready(server)


def main() -> int:
    parser = arguments(__doc__ or "")
    parser.add_argument("--requests", type=count, default=1500)
    parser.add_argument("--clients", type=count, default=24)
    parser.add_argument("--requests-per-kill", type=count, default=15)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = write_tiny_model(folder / "tiny.gguf")
        environment = private_folders(folder) | {"TRILITHON_HANG_SECONDS": str(_HANG_SECONDS)}
        words = (model, "--placement", _PLACEMENT, "--parallel", "4", "--keep-alive", "-1", "--no-pages")
        with serving(*words, environment=environment) as server:
            figures = measured(server, options.requests, options.clients, options.requests_per_kill, options.seed)
    return report(figures, _BOUNDS, as_json=options.json)


if __name__ == "__main__":
    run(main)
