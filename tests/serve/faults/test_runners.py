"""The process behind an answer dies or hangs: every request is answered or told so, and all is well soon after."""

import asyncio
import os
import signal
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from live_server import Serve, Server
from load import answered, body, children, many, ready_again

SLOW = "scripted/cpu:prefill=50000,decode=200,np=4"


def runner_pid(server: Server) -> int:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        pids = [loaded.pid for loaded in server.pool.loaded() if loaded.state == "ready" and loaded.users]
        if pids and pids[0] is not None:
            return pids[0]
        time.sleep(0.005)
    raise AssertionError("nothing is at work")


@pytest.mark.slow
@pytest.mark.parametrize("blow", [signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT, signal.SIGTERM])
def test_a_runner_that_dies_fails_its_requests_alone(serve: Serve, tiny: Path, blow: signal.Signals) -> None:
    others = children()
    server = serve(tiny, placement=SLOW, slots=4)

    async def scenario() -> Counter[str]:
        """Struck in the middle of an answer, beside three others."""
        async with httpx.AsyncClient(base_url=server.url, timeout=60) as client:
            others = asyncio.create_task(many(server, 3, tokens=600))
            async with client.stream("POST", "/v1/chat/completions", json=body(server, 600)) as answer:
                pieces = answer.aiter_bytes()
                await anext(pieces)
                os.kill(runner_pid(server), blow)
                rest = b"".join([piece async for piece in pieces])
            assert b'"error"' in rest and b"[DONE]" not in rest
            return await others

    found = asyncio.run(scenario())
    assert found["whole"] + found["error"] + found["broken off"] == 3
    ready_again(server)
    assert len(children() - others) == 1


# Ollama's, OpenAI's and Anthropic's streams, and an answer in one piece.
DOORS = {"/api/chat": True, "/v1/chat/completions": True, "/v1/messages": True, "/v1/completions": False}
PREFILLING = "scripted/cpu:prefill=20,decode=5000"  # the words of `asked` take a second or two


def asked(server: Server, door: str) -> httpx.Response:
    said = " ".join(["stone"] * 15)
    question = {"prompt": said} if "completions" in door and "chat" not in door else {}
    body = {"model": server.model, "max_tokens": 5, "stream": DOORS[door]}
    return server.http.post(door, json=body | (question or {"messages": [{"role": "user", "content": said}]}))


@pytest.mark.slow
@pytest.mark.parametrize("door", DOORS)
def test_a_death_before_the_first_word_costs_time_and_nothing_else(serve: Serve, tiny: Path, door: str) -> None:
    others = children()
    server = serve(tiny, placement=PREFILLING)
    with ThreadPoolExecutor() as threads:
        asking = threads.submit(asked, server, door)
        os.kill(runner_pid(server), signal.SIGSEGV)
        answer = asking.result()
    assert answer.status_code == 200, answer.text
    assert "error" not in answer.text
    assert answer.text.rstrip().endswith(("}", "[DONE]"))
    assert server.pool.crashes == 1
    assert len(children() - others) == 1


@pytest.mark.parametrize("door", DOORS)
def test_what_kills_an_engine_twice_is_told(serve: Serve, tiny: Path, door: str) -> None:
    server = serve(tiny, placement=PREFILLING)
    with ThreadPoolExecutor() as threads:
        asking = threads.submit(asked, server, door)
        first = runner_pid(server)
        os.kill(first, signal.SIGSEGV)
        while (second := runner_pid(server)) == first:
            time.sleep(0.01)
        os.kill(second, signal.SIGSEGV)
        answer = asking.result()
    # A stream's head may be out before the second death, or not.
    assert answer.status_code in ((200, 502) if DOORS[door] else (502,)), answer.text
    assert "segmentation fault" in answer.text
    ready_again(server, 20)
    assert server.pool.crashes == 2


@pytest.mark.slow
def test_fifty_deaths_under_load(serve: Serve, tiny: Path) -> None:
    others = children()
    server = serve(tiny, placement="scripted/cpu:prefill=50000,decode=2000,np=4", slots=4)
    over = threading.Event()

    def strike() -> None:
        for _ in range(10):
            time.sleep(0.1)
            for loaded in server.pool.loaded():
                if loaded.pid is not None and loaded.state == "ready":
                    os.kill(loaded.pid, signal.SIGKILL)
        over.set()

    striking = threading.Thread(target=strike)
    striking.start()
    total = 0
    while not over.is_set():
        found = asyncio.run(many(server, 20, tokens=20))
        assert set(found) <= {"whole", "error", "broken off"}, found
        total += found.total()
    striking.join()
    assert total >= 20
    ready_again(server, 20)  # ten deaths in a row: it rests for some seconds
    assert len(children() - others) == 1


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["crash_after=3", "oom_after=3", "exit_after=3", "error_after=3"])
def test_faults_in_the_middle_of_an_answer_are_told(serve: Serve, tiny: Path, fault: str) -> None:
    server = serve(tiny, placement=f"scripted/cpu:prefill=50000,decode=2000,{fault}")
    found = asyncio.run(many(server, 3, tokens=50))
    assert found["whole"] == 0
    assert found.total() == 3
    assert not set(found) - {"error", "broken off"}, found


@pytest.mark.slow  # a hang is called one once the prompt has had its time
def test_a_runner_that_hangs_is_told_and_replaced(serve: Serve, tiny: Path) -> None:
    server = serve(tiny, placement=SLOW, hang_seconds=3.0)

    async def scenario() -> str:
        async with httpx.AsyncClient(base_url=server.url, timeout=60) as client:
            asking = asyncio.create_task(answered(client, server, 600))
            os.kill(await asyncio.to_thread(runner_pid, server), signal.SIGSTOP)
            return await asking

    assert asyncio.run(scenario()) in ("error", "broken off")
    ready_again(server, 40)
