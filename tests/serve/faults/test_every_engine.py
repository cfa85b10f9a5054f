"""The process of a real engine is killed, crashes or hangs: in every dialect its requests are answered, or told so.

ik_llama.cpp is its stand-in, or a build of the real program: TRILITHON_TEST_IK names its folder."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from live_server import Serve, Server
from load import children, ready_again

from trilithon.settings import Configuration

STANDIN = Path(__file__).parents[2] / "engines" / "ik_llamacpp" / "standin" / "llama_server.py"
# Each dialect's path, and how a stream of it ends when it is whole.
DOORS = {
    "/api/chat": '"done":true',
    "/v1/chat/completions": "[DONE]",
    "/v1/messages": "message_stop",
    "/v1/responses": '"type":"response.incomplete"',  # the limit ended it
}
PLACEMENTS = {"llama.cpp": "llama.cpp@embedded/cpu:t=1", "ik_llama.cpp": "ik_llama.cpp/cpu:t=1"}

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]  # loads real engines again and again


@pytest.fixture(scope="module")
def ik(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if real := os.environ.get("TRILITHON_TEST_IK"):
        return Path(real)
    folder = tmp_path_factory.mktemp("ik")
    subprocess.run([sys.executable, STANDIN, "--install", folder], check=True)
    return folder


Start = Callable[..., Server]


@pytest.fixture
def start(serve: Serve, configuration: Configuration, ik: Path, tiny: Path) -> Start:
    """`start(engine, **of the server)`: a server that has loaded the tiny model on it."""

    def started(engine: str, **words: float) -> Server:
        known = replace(configuration, builds=(ik,))
        server = serve(tiny, placement=PLACEMENTS[engine], configuration_of_its_own=known, **words)
        ready_again(server, 60)
        return server

    return started


def runner_pid(server: Server) -> int:
    (pid,) = [loaded.pid for loaded in server.pool.loaded() if loaded.pid is not None]
    return pid


def ask(server: Server, door: str, tokens: int = 4) -> httpx.Response:
    messages = [{"role": "user", "content": "tell me about stones"}]
    limits = {"/api/chat": {"options": {"num_predict": tokens}}, "/v1/responses": {"max_output_tokens": tokens}}
    body = {"model": server.model, "stream": True, "input" if door == "/v1/responses" else "messages": messages}
    return server.http.post(door, json=body | limits.get(door, {"max_tokens": tokens}), timeout=120)


def is_whole(answer: httpx.Response, door: str) -> bool:
    text = answer.text.replace('": ', '":').replace('"error":null', "")
    return answer.status_code == 200 and '"error"' not in text and DOORS[door] in text


def at_work(server: Server, pid: int) -> None:
    deadline = time.monotonic() + 60
    while not any(loaded.pid == pid and loaded.users for loaded in server.pool.loaded()):
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.mark.parametrize("engine", PLACEMENTS)
def test_a_death_before_the_first_word_costs_time_and_nothing_else(start: Start, engine: str) -> None:
    """The engine is stopped, so that the request is surely with it, and then killed or made to crash."""
    others = children()
    server = start(engine)
    with ThreadPoolExecutor() as threads:
        for number, door in enumerate(DOORS):
            pid = runner_pid(server)
            os.kill(pid, signal.SIGSTOP)
            asking = threads.submit(ask, server, door)
            at_work(server, pid)
            os.kill(pid, signal.SIGKILL if number % 2 else signal.SIGSEGV)
            with contextlib.suppress(ProcessLookupError):  # it ended without
                os.kill(pid, signal.SIGCONT)
            answer = asking.result()
            assert is_whole(answer, door), (door, answer.status_code, answer.text)
            ready_again(server, 60)
    assert server.pool.crashes == len(DOORS)
    assert len(children() - others) == 1


@pytest.mark.parametrize("engine", PLACEMENTS)
def test_a_death_at_work_is_told(start: Start, engine: str) -> None:
    """Struck before or after its first word, or when it had ended: the answer is whole, or says that it is not."""
    server = start(engine)
    with ThreadPoolExecutor() as threads:
        for number, door in enumerate(DOORS):
            pid = runner_pid(server)
            os.kill(pid, signal.SIGSTOP)
            asking = threads.submit(ask, server, door, 1500)
            at_work(server, pid)
            os.kill(pid, signal.SIGCONT)
            time.sleep(0.1)
            os.kill(pid, signal.SIGSEGV if number % 2 else signal.SIGKILL)
            answer = asking.result()
            told = '"error"' in answer.text or "response.failed" in answer.text
            assert is_whole(answer, door) or told, (door, answer.text[-500:])
            ready_again(server, 60)
    assert server.pool.crashes >= 4


@pytest.mark.parametrize("engine", PLACEMENTS)
def test_a_hang_is_told_and_the_engine_replaced(start: Start, engine: str) -> None:
    others = children()
    server = start(engine, hang_seconds=1.0)
    with ThreadPoolExecutor() as threads:
        pid = runner_pid(server)
        os.kill(pid, signal.SIGSTOP)
        answer = threads.submit(ask, server, "/v1/messages").result()
        assert is_whole(answer, "/v1/messages") or '"error"' in answer.text, answer.text
        ready_again(server, 60)
        assert runner_pid(server) != pid
    assert len(children() - others) == 1
