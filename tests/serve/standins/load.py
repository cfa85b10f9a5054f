"""Many clients at once against a live server, and what became of each request."""

import asyncio
import os
import random
import time
from collections import Counter
from pathlib import Path

import httpx
from live_server import Server

READY_SECONDS = 5.0


def body(server: Server, tokens: int = 4, *, stream: bool = True) -> dict[str, object]:
    message = {"role": "user", "content": "tell me about stones"}
    return {"model": server.model, "messages": [message], "max_tokens": tokens, "stream": stream}


async def answered(
    client: httpx.AsyncClient, server: Server, tokens: int = 4, *, leave_after: int | None = None
) -> str:
    """ "whole"; "error" where the server says what went wrong; "left" where this client went after some pieces; else
    what was wrong with the answer."""
    content, pieces = b"", 0
    try:
        async with client.stream("POST", "/v1/chat/completions", json=body(server, tokens)) as answer:
            async for chunk in answer.aiter_bytes():
                content, pieces = content + chunk, pieces + 1
                if leave_after is not None and pieces >= leave_after:
                    return "left"
    except httpx.RemoteProtocolError:
        return "broken off"
    if answer.status_code != 200:
        return "error" if b'"error"' in content else f"status {answer.status_code} without a word"
    if b"[DONE]" in content:
        return "whole"
    return "error" if b'"error"' in content else "cut"


async def many(server: Server, count: int, tokens: int = 4, *, leaving: float = 0.0, seed: int = 1) -> Counter[str]:
    """`leaving` is the share of clients that go in the middle."""
    random_ = random.Random(seed)
    limits = httpx.Limits(max_connections=count)
    async with httpx.AsyncClient(base_url=server.url, timeout=100, limits=limits) as client:
        leave = [random_.randint(1, 4) if random_.random() < leaving else None for _ in range(count)]
        asked = (answered(client, server, tokens, leave_after=after) for after in leave)
        return Counter(await asyncio.gather(*asked))


def ready_again(server: Server, seconds: float = READY_SECONDS) -> None:
    """A new request is answered whole before the time is over."""
    deadline, found = time.monotonic() + seconds, ""
    while time.monotonic() < deadline:
        found = next(iter(asyncio.run(many(server, 1))))
        if found == "whole":
            return
        time.sleep(0.05)
    raise AssertionError(f"not ready after {seconds} s: {found}")


def children() -> set[int]:
    """Processes that this one started and that still live."""
    found = set()
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = entry.read_text(encoding="utf-8").rpartition(")")[2].split()[:2]
        except OSError:
            continue
        if int(parent) == os.getpid() and state != "Z":
            found.add(int(entry.parent.name))
    return found


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - as the kernel lists them
