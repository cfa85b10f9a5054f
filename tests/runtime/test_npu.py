"""The NPU lock between real processes: nobody overlaps, nobody starves, and no dead or cancelled one keeps it."""

import asyncio
import contextlib
import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from itertools import groupby, pairwise
from pathlib import Path

import pytest

from trilithon.board.sysfs import Machine
from trilithon.engines.base import Launch, Placement, Settings
from trilithon.engines.scripted.engine import ScriptedEngine
from trilithon.engines.wire.messages import Completion
from trilithon.errors import RunError, StartError, UserError
from trilithon.models.files.model_file import ModelFile
from trilithon.runtime import npu
from trilithon.runtime.npu import NpuLock, lock_path, other_npu_users
from trilithon.runtime.runner import Runner

# A tenant as a program of its own: argv is the lock, the log, the turns, and the seconds of each.
TENANT = """
import asyncio, os, sys
from pathlib import Path
from trilithon.runtime.npu import NpuLock

async def work(lock, log, turns, seconds):
    note = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    exclusive = NpuLock("model", path=Path(lock), limit_seconds=30)
    for _ in range(int(turns)):
        async with exclusive.held():
            os.write(note, f"{os.getpid()} in\\n".encode())
            await asyncio.sleep(float(seconds))
            os.write(note, f"{os.getpid()} out\\n".encode())

asyncio.run(work(*sys.argv[1:]))
"""


@pytest.fixture
def lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "rknpu.lock"
    monkeypatch.setenv("TRILITHON_NPU_LOCK", str(path))
    return path


@pytest.fixture
def tenant(lock: Path, tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    started: list[subprocess.Popen[bytes]] = []

    def start(turns: int, seconds: float) -> subprocess.Popen[bytes]:
        words = [sys.executable, "-c", TENANT, lock, tmp_path / "log", turns, seconds]
        started.append(subprocess.Popen([str(word) for word in words]))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


def until(condition: Callable[[], object], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def notes(tmp_path: Path) -> list[list[str]]:
    path = tmp_path / "log"
    return [line.split() for line in path.read_text().splitlines()] if path.exists() else []


async def taken_within(seconds: float, **more: object) -> float:
    """Seconds that it took to get a turn."""
    began = time.monotonic()
    async with NpuLock("late", limit_seconds=seconds, **more).held():  # type: ignore[arg-type]
        return time.monotonic() - began


# -- processes


def test_a_hundred_turns_of_three_processes_never_overlap(tenant: Callable[..., object], tmp_path: Path) -> None:
    for process in [tenant(34, 0.001) for _ in range(3)]:
        assert process.wait(60) == 0  # type: ignore[attr-defined]
    written = notes(tmp_path)
    assert len(written) == 2 * 3 * 34
    for entered, left in zip(written[::2], written[1::2], strict=True):
        assert (entered[1], left[1]) == ("in", "out")
        assert entered[0] == left[0]


def test_who_comes_back_at_once_cannot_overtake(tenant: Callable[..., object], tmp_path: Path) -> None:
    """While both are there, they alternate, but for what a busy machine does to their clocks."""
    processes = [tenant(40, 0.01) for _ in range(2)]
    for process in processes:
        assert process.wait(60) == 0  # type: ignore[attr-defined]
    order = [name for name, what in notes(tmp_path) if what == "in"]
    first_of_second = order.index(next(name for name in order if name != order[0]))
    both = order[first_of_second : -first_of_second or None]
    turns = [len(list(group)) for _, group in groupby(both)]
    assert max(turns) <= 5, order
    assert sum(turns) / len(turns) <= 1.5, order


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_holder_frees_it(
    tenant: Callable[..., subprocess.Popen[bytes]], lock: Path, tmp_path: Path, number: int
) -> None:
    process = tenant(1, 60)
    until(lambda: notes(tmp_path))
    assert lock.read_text() == f"{process.pid} trilithon: model\n"
    process.send_signal(number)
    process.wait()
    assert asyncio.run(taken_within(60)) < 30


def test_a_holder_who_does_not_end_is_named(
    tenant: Callable[..., subprocess.Popen[bytes]], lock: Path, tmp_path: Path
) -> None:
    process = tenant(1, 60)
    until(lambda: notes(tmp_path))
    told: list[str] = []
    with pytest.raises(RunError) as caught:
        asyncio.run(taken_within(1.3, tell=told.append))
    assert str(caught.value) == (
        f"late: process {process.pid} (trilithon: model) still uses the NPU after 1.3 s; "
        "end that program, or wait until it is done"
    )
    assert caught.value.cause == "NPU in use"
    assert told == [f"late: waiting for the NPU, which process {process.pid} (trilithon: model) uses"]


def test_a_cancelled_waiter_keeps_nothing(
    tenant: Callable[..., subprocess.Popen[bytes]], lock: Path, tmp_path: Path
) -> None:
    process = tenant(1, 60)
    until(lambda: notes(tmp_path))
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208

    async def waits() -> None:
        waiting = [asyncio.create_task(taken_within(30)) for _ in range(3)]
        await asyncio.sleep(0.1)
        for task in waiting:
            task.cancel()
        assert all(
            isinstance(end, asyncio.CancelledError) for end in await asyncio.gather(*waiting, return_exceptions=True)
        )
        process.kill()
        assert await taken_within(60) < 30

    asyncio.run(waits())
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208


def test_a_program_that_only_locks_the_file_is_waited_for_and_waits(lock: Path) -> None:
    code = "import fcntl, sys, time; f = open(sys.argv[1], 'a'); fcntl.flock(f, fcntl.LOCK_EX); print(); time.sleep(60)"
    other = subprocess.Popen([sys.executable, "-u", "-c", code, str(lock)], stdout=subprocess.PIPE)
    try:
        assert other.stdout is not None
        other.stdout.readline()
        with pytest.raises(
            RunError, match=r"late: (another program|process \d+ \(\S+\)) still uses the NPU after 0\.2 s"
        ):
            asyncio.run(taken_within(0.2))
    finally:
        other.kill()
        other.communicate()

    async def holds() -> None:
        async with NpuLock("ours").held():
            with lock.open() as file, pytest.raises(BlockingIOError):
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with lock.open() as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)

    asyncio.run(holds())
    assert lock.read_text() == ""


def test_any_user_can_make_the_file_and_any_other_can_lock_it(tmp_path: Path) -> None:
    if os.getuid() != 0:
        pytest.skip("only root can become two users")
    shared = Path("/tmp") / f"trilithon-test-{os.getpid()}"
    shared.mkdir()
    shared.chmod(0o1777)
    code = """
import asyncio, os, sys
from pathlib import Path
from trilithon.runtime.npu import NpuLock
os.setgid(int(sys.argv[2])); os.setuid(int(sys.argv[2])); os.umask(0o077)
async def turn():
    async with NpuLock("x", path=Path(sys.argv[1]), limit_seconds=1).held():
        print(Path(sys.argv[1]).read_text(), end="")
asyncio.run(turn())
"""
    try:
        for user in (65534, 65533, 0):
            words = [sys.executable, "-c", code, str(shared / "rknpu.lock"), str(user)]
            done = subprocess.run(words, capture_output=True, text=True)
            assert done.stdout.endswith("trilithon: x\n"), done.stderr
        for path in shared.iterdir():
            path.chmod(0o644)  # by a program with another habit: locked all the same
        words = [sys.executable, "-c", code, str(shared / "rknpu.lock"), "65533"]
        assert subprocess.run(words, capture_output=True).returncode == 0
    finally:
        for path in shared.iterdir():
            path.unlink()
        shared.rmdir()


# -- the file


def test_a_lock_that_was_removed_while_somebody_waits(lock: Path) -> None:
    async def whole() -> None:
        async with NpuLock("first").held():
            waiting = asyncio.create_task(taken_within(60))
            await asyncio.sleep(0.05)
            lock.unlink()
        assert await waiting < 30
        assert lock.exists()

    asyncio.run(whole())


@pytest.mark.parametrize("what", ["folder", "link", "pipe", "nowhere"])
def test_what_is_no_lock_file(lock: Path, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if what == "folder":
        lock.with_name("rknpu.lock.next").mkdir()
    elif what == "link":
        lock.symlink_to("/etc/passwd")
    elif what == "pipe":
        os.mkfifo(lock)
    else:
        monkeypatch.setenv("TRILITHON_NPU_LOCK", str(lock.parent / "absent" / "lock"))
    with pytest.raises(UserError, match=r"^the NPU lock \S+ .*; .*name another one with TRILITHON_NPU_LOCK$"):
        asyncio.run(taken_within(1))


def test_the_place_is_the_same_for_every_user(lock: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert lock_path() == lock
    monkeypatch.delenv("TRILITHON_NPU_LOCK")
    mine, everybodys = tmp_path / "mine", tmp_path / "everybodys"
    mine.mkdir(mode=0o755)
    everybodys.mkdir()
    everybodys.chmod(0o1777)
    monkeypatch.setattr(npu, "_FOLDERS", (tmp_path / "absent", mine, everybodys))
    assert lock_path() == everybodys / "rknpu.lock"


# -- who else is there


@pytest.fixture
def board(tmp_path: Path) -> Machine:
    root = tmp_path / "root"
    driver = root / "sys/class/drm/renderD129/device/driver"
    for link, target in (
        (driver, "../../bus/platform/drivers/RKNPU"),
        (root / "sys/class/drm/card1/device/driver", "../../bus/platform/drivers/RKNPU"),
        (root / "proc/41/fd/7", "/dev/dri/renderD129"),
        (root / "proc/41/fd/8", "/dev/dri/renderD129"),
        (root / "proc/42/fd/3", "/dev/dri/card1"),
        (root / "proc/43/fd/3", "/dev/dri/renderD128"),
        (root / "proc/44/fd/3", "/dev/dri/renderD129"),
        (root / "proc/45/fd/3", "/dev/dri/renderD129"),
    ):
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(target)
    (root / "proc/41/comm").write_text("rkllama\n")
    (root / "proc/44/status").write_text(f"Name:\tllama-server\nPPid:\t{os.getpid()}\n")
    return Machine(root)


def test_strangers_on_the_npu_are_seen(board: Machine) -> None:
    """Not the display's server (a card), not another render node, not our own children."""
    assert other_npu_users(board) == (
        "process 41 (rkllama) also has the NPU open",
        "process 45 (unknown) also has the NPU open",
    )


def test_without_an_npu_nobody_is_looked_for(tmp_path: Path) -> None:
    assert other_npu_users(Machine(tmp_path)) == ()


# -- runners


class OnNpu(ScriptedEngine):
    """The scripted engine, as if it worked on the NPU."""

    def launch(self, placement: Placement, folder: Path) -> Launch:
        return replace(super().launch(placement, folder), exclusive="npu")


ASK = Completion(prompt=[5, 6, 7], max_tokens=20, ignore_eos=True)
LONG = Completion(prompt=[5, 6, 7], max_tokens=200, ignore_eos=True)


@contextlib.asynccontextmanager
async def opened(
    folder: Path, name: str = "scripted/npu", tell: Callable[[str], None] | None = None, **options: str
) -> AsyncIterator[Runner]:
    script = {"prefill": "100000", "decode": "2000", "noise": "0", "seed": "1"} | options
    file = ModelFile(
        path=Path("any"), format="gguf", name="", architecture="", quantization="", size_bytes=0, sha256=""
    )
    settings = Settings(context=512, options=tuple(script.items()))
    engine = OnNpu()
    placement = Placement(name=name, file=file, build=engine.builds()[0], unit="npu", settings=settings)
    async with Runner.open(engine, placement, folder, start_seconds=60, hang_seconds=20, tell=tell) as runner:
        yield runner


async def free() -> bool:
    with contextlib.suppress(RunError):
        await taken_within(0.001)
        return True
    return False


@pytest.mark.slow
def test_it_is_held_while_loading_and_during_every_request_and_not_between(lock: Path, tmp_path: Path) -> None:
    async def whole() -> None:
        opening = opened(tmp_path / "a", load="1")
        start = asyncio.create_task(opening.__aenter__())
        while not (lock.exists() and lock.read_text()):  # noqa: ASYNC110 (a file has no event)
            await asyncio.sleep(0.01)
        assert not await free()
        assert lock.read_text() == f"{os.getpid()} trilithon: scripted/npu\n"
        runner = await start
        try:
            assert await free()
            for ask in (runner.complete(LONG), runner.timed(LONG), runner.distribution(replace(LONG, candidates=2))):
                request = asyncio.create_task(ask)  # type: ignore[arg-type]
                await asyncio.sleep(0.03)
                assert request.done() or not await free()
                await request
                assert await free()
            async with contextlib.aclosing(runner.stream(LONG)) as events:
                async for _ in events:
                    assert not await free()
            assert await free()
        finally:
            await opening.__aexit__(None, None, None)
        assert await free()

    asyncio.run(whole())


def test_two_loaded_models_take_turns(lock: Path, tmp_path: Path) -> None:
    spans: list[tuple[int, int]] = []

    async def asks(runner: Runner) -> None:
        for _ in range(5):
            events, finished = await runner.complete(ASK)
            spans.append((events[0].at_ns, finished.at_ns))

    async def whole() -> None:
        async with opened(tmp_path / "a", "a") as first, opened(tmp_path / "b", "b") as second:
            await asyncio.gather(asks(first), asks(second))

    asyncio.run(whole())
    spans.sort()
    assert len(spans) == 10
    assert all(earlier[1] <= later[0] for earlier, later in pairwise(spans))


def test_requests_to_one_model_may_overlap(lock: Path, tmp_path: Path) -> None:
    async def whole() -> None:
        async with opened(tmp_path / "a") as runner:
            began = time.monotonic()
            async with runner.unit_lock(), runner.unit_lock():
                assert time.monotonic() - began < 60
            assert await free()

    asyncio.run(whole())


def test_a_request_that_is_broken_off_is_waited_for(lock: Path, tmp_path: Path) -> None:
    """The caller is free at once; the NPU is once the engine has stopped."""

    async def whole() -> None:
        async with opened(tmp_path / "a", decode="200") as runner:
            idle, looks = runner.client.idle, 0

            async def busy_for_a_while() -> bool:
                nonlocal looks
                looks += 1
                return looks > 2 and await idle()

            runner.client.idle = busy_for_a_while  # type: ignore[method-assign]
            request = asyncio.create_task(runner.complete(LONG))
            await asyncio.sleep(0.05)
            request.cancel()
            with pytest.raises(asyncio.CancelledError):
                await request
            assert not await free()
            assert 0.1 < await taken_within(60) < 30
            assert looks == 3

    asyncio.run(whole())


def test_a_child_that_dies_frees_it(lock: Path, tmp_path: Path) -> None:
    async def whole() -> None:
        async with opened(tmp_path / "a", crash_after="5") as runner:
            with pytest.raises(RunError, match="died"):
                await runner.complete(ASK)
            assert await taken_within(60) < 30
        with pytest.raises(RunError, match="did not start"):
            async with opened(tmp_path / "b", refuse_start="no"):
                pass
        assert await free()

    asyncio.run(whole())


def test_other_users_are_named_when_a_child_dies_or_does_not_start(
    lock: Path, tmp_path: Path, board: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trilithon.runtime.runner.other_npu_users", lambda: other_npu_users(board))

    async def whole() -> None:
        async with opened(tmp_path / "a", crash_after="5") as runner:
            assert runner.notices[0] == "process 41 (rkllama) also has the NPU open"
            with pytest.raises(RunError) as caught:
                await runner.complete(ASK)
            assert "process 41 (rkllama) also has the NPU open" in caught.value.advice
        with pytest.raises(StartError) as refused:
            async with opened(tmp_path / "b", refuse_start="no"):
                pass
        assert "process 41 (rkllama) also has the NPU open" in refused.value.advice

    asyncio.run(whole())


def test_a_start_that_waits_says_for_whom(lock: Path, tmp_path: Path) -> None:
    told: list[str] = []

    async def whole() -> None:
        other = NpuLock("other")
        async with contextlib.AsyncExitStack() as held:
            await held.enter_async_context(other.held())
            start = asyncio.create_task(opened(tmp_path / "a", tell=told.append).__aenter__())
            await asyncio.sleep(1.2)
            assert not (tmp_path / "a" / "log").exists()  # not even its process
            start.cancel()
            with pytest.raises(asyncio.CancelledError):
                await start
        assert await free()

    asyncio.run(whole())
    assert told == [f"scripted/npu: waiting for the NPU, which process {os.getpid()} (trilithon: other) uses"]


def test_an_engine_elsewhere_waits_for_nobody(lock: Path, tmp_path: Path) -> None:
    async def whole() -> None:
        async with NpuLock("held").held():
            engine = ScriptedEngine()
            async with opened_plainly(engine, tmp_path / "a") as runner:
                await runner.complete(ASK)
                assert runner.notices == ()

    asyncio.run(whole())


@contextlib.asynccontextmanager
async def opened_plainly(engine: ScriptedEngine, folder: Path) -> AsyncIterator[Runner]:
    file = ModelFile(
        path=Path("any"), format="gguf", name="", architecture="", quantization="", size_bytes=0, sha256=""
    )
    options = (("prefill", "100000"), ("decode", "2000"))
    settings = Settings(context=512, options=options)
    placement = Placement(name="p", file=file, build=engine.builds()[0], unit="cpu", settings=settings)
    async with Runner.open(engine, placement, folder, start_seconds=60, hang_seconds=20) as runner:
        yield runner
