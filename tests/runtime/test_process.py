import asyncio
import contextlib
import fcntl
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path

import pytest
from process_table import goes, is_gone

from trilithon.engines.base import Launch
from trilithon.errors import EngineTimeout, StartError, UserError
from trilithon.runtime import process as process_module
from trilithon.runtime.process import Process, keep_to_cpus, workspace


def launch(*argv: str, **more: object) -> Launch:
    return Launch(argv=argv, socket=Path("unused.sock"), **more)  # type: ignore[arg-type]


def shell(script: str) -> Launch:
    return launch("sh", "-c", script)


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "child.log"


def with_process(each: Launch, log: Path, body: Callable[[Process], Coroutine[None, None, None]]) -> Process:
    """Start it, do `body`, and make sure that nothing of it is left."""

    async def whole() -> Process:
        process = await Process.start(each, log)
        try:
            await body(process)
        finally:
            await process.stop(grace_seconds=0)
        return process

    return asyncio.run(whole())


async def ended(process: Process) -> None:
    async with asyncio.timeout(20):
        await process.wait()


async def said(log: Path, text: str) -> str:
    async with asyncio.timeout(60):
        while text not in log.read_text():  # noqa: ASYNC110 (a file has no event)
            await asyncio.sleep(0.01)
    return log.read_text()


def test_a_clean_end_of_its_own(log: Path) -> None:
    before = time.monotonic_ns()
    process = with_process(shell("echo out; echo err >&2"), log, ended)
    assert process.returncode == 0
    assert log.read_text() == "out\nerr\n"
    assert process.diagnose().cause == "ended by itself (exit code 0)"
    assert before <= process.started_ns <= time.monotonic_ns()


def test_a_crash_has_its_signal_and_last_words(log: Path) -> None:
    process = with_process(shell("echo last words; kill -SEGV $$"), log, ended)
    diagnosis = process.diagnose()
    assert process.returncode == -signal.SIGSEGV
    assert diagnosis.cause == diagnosis.signal == "segmentation fault (SIGSEGV)"
    assert diagnosis.last_words == ("last words",)


@pytest.mark.parametrize(
    ("script", "cause"),
    [
        ("kill -KILL $$", "killed from outside (SIGKILL), most often out of memory"),
        ("kill -TERM $$", "killed from outside (SIGTERM)"),
        ("exit 0", "ended by itself (exit code 0)"),
    ],
)
def test_an_end_that_nobody_waited_for_is_not_our_stop(log: Path, script: str, cause: str) -> None:
    async def body(process: Process) -> None:
        # Blocking, so that asyncio cannot have heard of the end when stop is called.
        assert goes(process.pid)
        await process.stop()

    assert with_process(shell(script), log, body).diagnose().cause == cause


def test_an_exit_code(log: Path) -> None:
    process = with_process(shell("exit 3"), log, ended)
    assert (process.returncode, process.diagnose().cause, process.diagnose().exit_code) == (3, "exit code 3", 3)


def test_a_program_that_is_not_there(log: Path) -> None:
    process = with_process(launch("no-such-program-at-all"), log, ended)
    assert process.returncode == 127
    assert process.diagnose().cause == "the engine's program cannot be started"
    assert process.diagnose().last_words == ("trilithon guard: cannot start no-such-program-at-all: not found",)


def test_a_log_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(StartError, match="No such file"):
        asyncio.run(Process.start(shell("true"), tmp_path / "none" / "child.log"))


def test_stop_asks_first_and_is_idempotent(log: Path) -> None:
    async def body(process: Process) -> None:
        await said(log, "ready")
        await asyncio.gather(process.stop(), process.stop())
        await process.stop()

    process = with_process(shell("trap 'echo bye; exit 0' TERM; echo ready; sleep 60 & wait"), log, body)
    assert process.returncode == 0
    assert "bye" in log.read_text()
    assert process.diagnose().cause == ""


def test_who_ignores_the_term_is_killed_after_the_grace(log: Path) -> None:
    async def body(process: Process) -> None:
        await said(log, "ready")
        begun = time.monotonic()
        await process.stop(grace_seconds=0.2)
        assert 0.2 <= time.monotonic() - begun < 60

    process = with_process(shell("trap '' TERM; echo ready; while :; do sleep 1; done"), log, body)
    assert process.returncode == -signal.SIGKILL
    assert process.diagnose().cause == ""  # it was us, not the want of memory


def test_a_cancelled_stop_still_kills(log: Path) -> None:
    async def body(process: Process) -> None:
        await said(log, "ready")
        stopping = asyncio.create_task(process.stop(grace_seconds=60))
        await asyncio.sleep(0.05)
        stopping.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await stopping
        assert await process.wait() == -signal.SIGKILL

    with_process(shell("trap '' TERM; echo ready; while :; do sleep 1; done"), log, body)


def test_a_kill_in_the_grace_that_is_not_ours_is_told(log: Path) -> None:
    async def body(process: Process) -> None:
        await said(log, "ready")
        stopping = asyncio.create_task(process.stop(grace_seconds=60))
        await said(log, "asked")
        os.kill(process.pid, signal.SIGKILL)
        await stopping

    process = with_process(shell("trap 'echo asked' TERM; echo ready; while :; do sleep 0.1; done"), log, body)
    assert "SIGKILL" in process.diagnose().cause


def test_a_process_that_the_kernel_holds(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def body(process: Process) -> None:
        with monkeypatch.context() as patch:
            # The nearest thing to a driver that never returns: a kill that does not arrive.
            patch.setattr("trilithon.runtime.process._KILL_SECONDS", 0.05)
            patch.setattr(os, "killpg", lambda pid, number: None)
            with pytest.raises(EngineTimeout, match="restart the board"):
                await process.stop(grace_seconds=0)

    process = with_process(launch("sleep", "60"), log, body)
    assert process.returncode in (-signal.SIGTERM, -signal.SIGKILL)


@pytest.mark.parametrize("waits", [True, False])
def test_grandchildren_go_too(log: Path, waits: bool) -> None:
    grandchild = 0

    async def body(process: Process) -> None:
        nonlocal grandchild
        grandchild = int((await said(log, "\n")).split()[0])
        if waits:
            await ended(process)
        else:
            assert goes(process.pid)
            assert not is_gone(grandchild)
            await process.stop()

    with_process(shell("(trap '' TERM; sleep 60) & echo $!"), log, body)
    assert goes(grandchild)


def test_big_output_never_blocks(log: Path) -> None:
    writer = "import sys; [print('x' * 99999, file=stream) for _ in range(50) for stream in (sys.stdout, sys.stderr)]"

    async def body(process: Process) -> None:
        # Blocking: it has to end although nobody reads and the event loop stands still.
        assert goes(process.pid)

    process = with_process(launch(sys.executable, "-c", writer), log, body)
    assert process.returncode == 0
    assert log.stat().st_size == 10_000_000
    assert len(process.diagnose().last_words) <= 8


def test_variables_of_the_user_can_be_hidden(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAMA_ARG_CTX_SIZE", "8")
    monkeypatch.setenv("COLOUR", "red")
    each = launch("env", hidden=("LLAMA_ARG_",), environment={"LLAMA_ARG_OURS": "1"})
    with_process(each, log, ended)
    assert "LLAMA_ARG_CTX_SIZE" not in log.read_text()
    assert "COLOUR=red" in log.read_text()
    assert "LLAMA_ARG_OURS=1" in log.read_text()


def test_environment_cpus_limits_and_no_input(log: Path) -> None:
    cpu = sorted(os.sched_getaffinity(0))[-1]
    script = "cat; echo $COLOUR $HOME; grep Cpus_allowed_list /proc/self/status; ulimit -c"
    each = launch("sh", "-c", script, environment={"COLOUR": "blue"}, cpus=(cpu,), open_files=1 << 30)
    process = with_process(each, log, ended)
    lines = log.read_text().splitlines()
    assert process.returncode == 0
    assert "open files allowed" in lines[0]
    assert lines[1] == f"blue {os.environ['HOME']}"
    assert lines[2].split() == ["Cpus_allowed_list:", str(cpu)]
    assert lines[3] == "0"


def test_a_log_that_goes_on_is_not_taken_for_this_childs_words(log: Path) -> None:
    log.write_text("std::bad_alloc\n")
    process = with_process(shell("exit 3"), log, ended)
    assert process.diagnose().cause == "exit code 3"
    log.unlink()
    assert process.diagnose().last_words == ()


def test_waiting_costs_nothing(log: Path) -> None:
    async def body(process: Process) -> None:
        begun = time.process_time()
        await ended(process)
        assert time.process_time() - begun < 0.05

    with_process(launch("sleep", "0.5"), log, body)


PARENT = """
import asyncio, sys
from pathlib import Path
from trilithon.engines.base import Launch
from trilithon.runtime.process import Process, workspace

async def main():
    with workspace() as folder:
        process = await Process.start(Launch(argv=("sleep", "60"), socket=folder / "s"), folder / "log")
        print(process.pid, folder, flush=True)
        await process.wait()

asyncio.run(main())
"""


@contextlib.contextmanager
def parent_with_child(base: Path) -> Iterator[tuple[subprocess.Popen[str], int, Path]]:
    environment = {**os.environ, "XDG_RUNTIME_DIR": str(base)}
    command = [sys.executable, "-c", PARENT]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as parent:
        assert parent.stdout is not None
        child, folder = parent.stdout.readline().split()
        yield parent, int(child), Path(folder)


@pytest.fixture
def base(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A short folder of our own; pytest's are too long for sockets."""
    folder = Path(subprocess.check_output(["mktemp", "-d", "/tmp/t.XXXXXX"], text=True).strip())
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(folder))
    yield folder
    subprocess.run(["rm", "-rf", folder], check=True)


@pytest.mark.parametrize("early", [True, False])
def test_the_child_dies_with_its_parent_and_the_folder_is_swept(base: Path, early: bool) -> None:
    with parent_with_child(base) as (parent, child, folder):
        if not early:  # otherwise it is still the guard
            while Path(f"/proc/{child}/comm").read_text() != "sleep\n":
                time.sleep(0.01)
        assert not is_gone(child)
        with workspace():
            assert folder.exists()  # its owner lives
        parent.kill()
    assert goes(child)
    assert folder.exists()
    with workspace() as mine:
        assert list(base.iterdir()) == [mine]


def test_a_workspace_is_private_short_and_goes(base: Path) -> None:
    with workspace() as folder:
        assert folder.parent == base
        assert folder.name.startswith(f"trilithon-{os.getpid()}-")
        assert folder.stat().st_mode & 0o777 == 0o700
        assert len(str(folder / ("x" * 31))) <= 107
        (folder / "log").write_text("words")
        with workspace() as second:
            assert second != folder
        assert folder.exists()
    assert list(base.iterdir()) == []


def test_a_recycled_pid_does_not_save_a_folder_and_strangers_are_left(base: Path) -> None:
    recycled = base / f"trilithon-{os.getpid()}-1-abcdefgh"
    held = base / f"trilithon-{1 << 22}-1-abcdefgh"
    others = [base / "trilithon-notes", base / f"trilithon-{1 << 22}-1"]
    for folder in (recycled, held, *others):
        folder.mkdir()
    target = base / "target"
    target.mkdir()
    link = base / f"trilithon-{1 << 22}-2-abcdefgh"
    link.symlink_to(target)
    lock = os.open(held, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    with workspace():
        pass
    os.close(lock)
    assert not recycled.exists()
    assert all(path.exists() for path in (held, link, target, *others))  # held: its owner lives out of our sight


@pytest.mark.parametrize("unfit", ["/nowhere/at/all", "relative", "long"])
def test_an_unfit_runtime_folder_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unfit: str) -> None:
    if unfit == "long":
        folder = tmp_path / ("x" * 60)
        folder.mkdir()
        unfit = str(folder)
    elif unfit == "relative":
        (tmp_path / unfit).mkdir()
        monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_RUNTIME_DIR", unfit)
    with workspace() as folder:
        assert folder.is_absolute()
        assert not str(folder).startswith(unfit)


def test_no_room_at_all_is_one_clear_line(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trilithon.runtime.process._NAME_BYTES", 200)
    with pytest.raises(UserError, match="set TMPDIR"), workspace():
        pass


@pytest.fixture
def little_memory() -> Iterator[Path]:
    """A memory cgroup of 64 MiB; its file `tasks` or `cgroup.procs` takes processes in."""
    roots = {
        Path("/sys/fs/cgroup/memory"): ("memory.limit_in_bytes", "tasks"),
        Path("/sys/fs/cgroup"): ("memory.max", "cgroup.procs"),
    }
    for root, (limit, members) in roots.items():
        group = root / f"trilithon-test-{os.getpid()}"
        with contextlib.suppress(OSError):
            group.mkdir()
            try:
                (group / limit).write_text(str(64 << 20))
                yield group / members
                return
            finally:
                deadline = time.monotonic() + 30
                while list_of(group / members) and time.monotonic() < deadline:
                    time.sleep(0.01)
                group.rmdir()
    pytest.skip("no memory cgroup can be made here (that needs root)")


def list_of(members: Path) -> list[str]:
    return members.read_text().split() if members.exists() else []


def test_a_real_kill_for_want_of_memory_is_called_one(little_memory: Path, log: Path) -> None:
    hog = f"print('growing', flush=True); b = bytearray({512 << 20})"
    script = f'echo $$ > {little_memory}; exec {sys.executable} -c "{hog}"'
    process = with_process(shell(script), log, ended)
    diagnosis = process.diagnose()
    assert process.returncode == -signal.SIGKILL
    assert diagnosis.cause == "killed by the kernel: out of memory"
    # The kernel's own line, where this user may read it.
    printed, *kernel = diagnosis.last_words
    assert printed == "growing"
    assert all(f"out of memory: Killed process {process.pid} ({Path(sys.executable).name})" in line for line in kernel)


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="a second CPU is missing")
def test_children_get_their_own_cpus_where_the_parent_keeps_to_few(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process_module, "_cpus_for_children", frozenset())
    allowed = sorted(os.sched_getaffinity(0))
    script = "import os; print(sorted(os.sched_getaffinity(0)))"
    seen = {}

    def parent() -> None:  # in a thread, whose CPUs are its own
        keep_to_cpus(allowed[:1])
        keep_to_cpus(allowed[:1])  # once more is the same
        for name, cpus in (("all", None), ("last", (allowed[-1],))):
            with_process(launch(sys.executable, "-c", script, cpus=cpus), tmp_path / name, ended)
            seen[name] = (tmp_path / name).read_text().strip()

    thread = threading.Thread(target=parent)
    thread.start()
    thread.join()
    assert seen == {"all": str(allowed), "last": str(allowed[-1:])}
    assert sorted(os.sched_getaffinity(0)) == allowed
