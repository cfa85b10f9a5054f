"""Many requests at once over the RKLLM stand-in, with clients that leave and a runtime that crashes: nothing is left
behind, and nobody gets another one's answer."""

import asyncio
import contextlib
import json
import os
import random
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from trilithon.engines.base import Launch
from trilithon.engines.wire.messages import Completion, Token
from trilithon.runtime.client import Client, Disconnected
from trilithon.runtime.process import Process

FIRST_BYTE = 3
AT_ONCE = 6
CRASH_EVERY = 45


def _prompt(text):
    return [byte + FIRST_BYTE for byte in text.encode()]


class Child:
    """The server as the house runs it, started again when it has died."""

    def __init__(self, library, folder):
        self.folder, self.socket, self.record = folder, folder / "wire.sock", folder / "record"
        model = folder / "model.rkllm"
        model.write_text("x\n#standin\ndecode_us=200\nprefill_us=20\n")
        options = json.dumps({"context": 512})
        words = {"--socket": self.socket, "--library": library, "--model": model, "--options": options}
        self.launch = Launch(
            argv=(
                *(sys.executable, "-P", "-m", "trilithon.engines.rkllm.child.server"),
                *(str(word) for pair in words.items() for word in pair),
            ),
            socket=self.socket,
            environment={"STANDIN_RECORD": str(self.record)},
        )
        self.client = Client(self.socket, hang_seconds=20)
        self.process, self.suspect = None, False
        self.starts, self.pids = 0, []
        self._starting = asyncio.Lock()

    async def ready(self):
        """One start, however many ask for it."""
        async with self._starting:
            if self.process is not None and (not self.suspect or await _alive(self.process)):
                self.suspect = False
                return
            if self.process is not None:
                assert await self.process.wait() == -11
            self.socket.unlink(missing_ok=True)
            self.process = await Process.start(self.launch, self.folder / "log")
            self.starts, self.suspect = self.starts + 1, False
            self.pids.append(self.process.pid)
            deadline = time.monotonic() + 20
            while not await self.client.ready():
                assert self.process.returncode is None and time.monotonic() < deadline, self._log()
                await asyncio.sleep(0.01)

    def _log(self):
        return (self.folder / "log").read_text()


async def _alive(process):
    """A broken connection may be heard of before the death that broke it."""
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(process.wait(), 1)
    return process.returncode is None


async def _one(child, number, chance):
    """One request, and how it went. Its answer can be nobody else's."""
    await child.ready()
    answer = f"answer number {number} " * chance.randint(1, 4)
    crash = "#crash" if number % CRASH_EVERY == CRASH_EVERY // 2 else ""
    leave_after = None if crash else chance.choice([None, None, None, 0, 1, 5, 17])
    request = Completion(prompt=_prompt(f"{crash}[[{answer}]]"), max_tokens=200, cache_prompt=chance.random() < 0.7)
    text = ""
    stream = child.client.stream(request)
    try:
        async with contextlib.aclosing(stream), asyncio.timeout(0.01 if leave_after == 0 else None):
            async for event in stream:
                text += event.text if isinstance(event, Token) else ""
                if leave_after and len(text) >= leave_after:
                    assert answer.startswith(text)
                    return "left"
    except TimeoutError:
        assert answer.startswith(text)
        return "left"
    except Disconnected:
        child.suspect = True
        assert answer.startswith(text)
        return "crashed"
    assert text == answer
    return "answered"


async def _left_behind(child):
    """The child's threads and open files, once the slot is free and nobody's connection is open any more."""
    pid, deadline = child.process.pid, time.monotonic() + 10
    while time.monotonic() < deadline:
        slot = json.loads(await child.client._slots())[0]
        links = _links(pid)
        connections = sum(target.startswith("socket:") for target in links)
        if not slot["is_processing"] and connections <= _SOCKETS:
            return len(os.listdir(f"/proc/{pid}/task")), len(links)  # noqa: PTH208
        await asyncio.sleep(0.02)
    raise AssertionError(f"{connections} sockets are open, the slot is {slot}")


_SOCKETS = 3  # the one that is listened on, and the event loop's own pair


def _links(pid):
    """What the child's descriptors point at; one that is closed while they are read is left out."""
    targets = []
    for name in os.listdir(f"/proc/{pid}/fd"):  # noqa: PTH208
        with contextlib.suppress(FileNotFoundError):
            targets.append(os.readlink(f"/proc/{pid}/fd/{name}"))  # noqa: PTH115
    return targets


async def _chaos(child, count, seed):
    chance, outcomes, numbers = random.Random(seed), Counter(), iter(range(count))

    async def worker():
        for number in numbers:
            outcomes[await _one(child, number, chance)] += 1

    try:
        await asyncio.gather(*(worker() for _ in range(AT_ONCE)))
        await child.ready()
        await _one_more(child)
        before = await _left_behind(child)
        for number in range(12):  # of this very process: threads and files do not grow
            await _leave(child, number)
        await _one_more(child)
        assert await _left_behind(child) == before
    finally:
        await child.process.stop()
    return outcomes


async def _one_more(child):
    events = [event async for event in child.client.stream(Completion(prompt=_prompt("[[last]]"), max_tokens=9))]
    assert "".join(event.text for event in events if isinstance(event, Token)) == "last"


async def _leave(child, number):
    stream = child.client.stream(Completion(prompt=_prompt(f"[[leaving {number} early]]"), max_tokens=50))
    async for _ in stream:
        break
    await stream.aclose()


def _run(library, folder, count, seed):
    own = sorted(os.listdir("/proc/self/fd"))  # noqa: PTH208

    async def everything():
        child = Child(library, folder)
        return child, await _chaos(child, count, seed)

    child, outcomes = asyncio.run(everything())
    assert sorted(os.listdir("/proc/self/fd")) == own  # noqa: PTH208
    assert not [pid for pid in child.pids if Path(f"/proc/{pid}").exists()]
    record = [json.loads(line) for line in child.record.read_text().splitlines()]
    assert [line for line in record if "violation" in line] == []
    assert sum(outcomes.values()) == count
    assert outcomes["answered"] > count * 0.2
    assert outcomes["left"] > count * 0.2
    return child, outcomes


@pytest.mark.parametrize("version", [pytest.param("1.2.0", marks=pytest.mark.slow), "1.3.0"])
def test_leaving_and_crashing_leaves_nothing_behind(standin, tmp_path, version):
    child, outcomes = _run(standin(version), tmp_path, 50, seed=3)
    assert outcomes["crashed"] >= 1
    assert child.starts >= 2


@pytest.mark.slow
def test_five_hundred_generations(standin, tmp_path):
    started = time.monotonic()
    child, outcomes = _run(standin("1.3.0"), tmp_path, 500, seed=1)
    assert outcomes["crashed"] >= 5
    assert child.starts >= 5
    assert time.monotonic() - started < 60
