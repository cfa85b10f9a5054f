import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from trilithon.engines.wire import guard

ALLOWED = sorted(os.sched_getaffinity(0))
WHAT_IT_SEES = """
import json, os, resource, sys
print(json.dumps({
    "cpus": sorted(os.sched_getaffinity(0)),
    "open_files": resource.getrlimit(resource.RLIMIT_NOFILE),
    "core": resource.getrlimit(resource.RLIMIT_CORE),
    "ignored": [line.split()[1] for line in open("/proc/self/status") if line.startswith("SigIgn")][0],
    "argv": sys.argv[1:],
    "pid": os.getpid(),
}))
"""


def run(*words: str, parent: int | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "trilithon.engines.wire.guard", "--parent", str(parent or os.getpid()), *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)


def test_becomes_the_program_with_its_arguments_cpus_and_limits() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = soft + 7 if hard == resource.RLIM_INFINITY or soft + 7 <= hard else hard
    cpu = ALLOWED[-1]
    ended = run(
        "--cpus", str(cpu), "--open-files", str(wanted), "--", sys.executable, "-c", WHAT_IT_SEES, "--parent", "a b"
    )
    seen = json.loads(ended.stdout)
    assert ended.returncode == 0
    assert seen["cpus"] == [cpu]
    assert seen["open_files"] == [wanted, hard]
    assert seen["core"] == [0, 0]
    assert seen["argv"] == ["--parent", "a b"]


def test_ignored_signals_of_python_are_not_passed_on() -> None:
    ended = run("--", "grep", "SigIgn", "/proc/self/status")
    ignored = int(ended.stdout.split()[1], 16)
    assert not ignored & (1 << 12 | 1 << 24)  # SIGPIPE, SIGXFSZ


def test_open_files_are_never_lowered_and_the_shortage_is_said() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    ended = run("--open-files", "3", "--", "sh", "-c", "ulimit -n")
    assert ended.stdout.strip() == ("unlimited" if soft == resource.RLIM_INFINITY else str(soft))
    if hard != resource.RLIM_INFINITY:
        ended = run("--open-files", str(hard + 1), "--", "sh", "-c", "ulimit -n")
        assert ended.stdout.strip() == str(hard)
        assert f"{hard} open files allowed, {hard + 1} needed" in ended.stderr


LIMITS = "import resource as r; print(r.getrlimit(r.RLIMIT_DATA)[0], r.getrlimit(r.RLIMIT_CPU)[0])"


def test_limits_of_memory_and_cpu_time_are_only_lowered() -> None:
    words = ("--memory", str(300 << 20), "--cpu-seconds", "50", "--", sys.executable, "-c", LIMITS)
    assert run(*words).stdout.split() == [str(300 << 20), "50"]
    words = (*words[:3], "70", *words[4:])
    lower = ["prlimit", f"--data={200 << 20}:", "--cpu=60:", sys.executable, "-m", "trilithon.engines.wire.guard"]
    ended = subprocess.run([*lower, "--parent", str(os.getpid()), *words], capture_output=True, text=True, check=True)
    assert ended.stdout.split() == [str(200 << 20), "60"]


def test_private_memory_is_limited_and_mapped_files_are_not(tmp_path: Path) -> None:
    weights = tmp_path / "weights"
    with weights.open("wb") as file:
        file.truncate(500 << 20)
    code = f"import mmap; file = open({str(weights)!r}, 'rb'); print(len(mmap.mmap(file.fileno(), 0, access=1)))"
    limited = ("--memory", str(200 << 20), "--", sys.executable, "-c")
    assert run(*limited, code).stdout == f"{500 << 20}\n"
    assert "MemoryError" in run(*limited, "bytearray(500 << 20)").stderr


def test_ranges_of_cpus() -> None:
    first = ALLOWED[0]
    ended = run("--cpus", f"{first}-{first}", "--", sys.executable, "-c", WHAT_IT_SEES)
    assert json.loads(ended.stdout)["cpus"] == [first]


@pytest.mark.skipif(len(ALLOWED) < 2, reason="a second CPU is missing")
def test_a_parent_that_keeps_to_other_cpus_does_not_bind_its_child() -> None:
    first, last = ALLOWED[0], ALLOWED[-1]
    code = (
        f"import os, sys; os.sched_setaffinity(0, {{{first}}}); "
        "os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
    )
    words = ["-m", "trilithon.engines.wire.guard", "--parent", str(os.getpid()), "--cpus", str(last), "--"]
    command = [sys.executable, "-c", code, *words, sys.executable, "-c", WHAT_IT_SEES]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    assert json.loads(ended.stdout)["cpus"] == [last]


def test_cpus_that_do_not_exist_are_refused_not_left_out() -> None:
    ended = run("--cpus", f"{ALLOWED[0]},9999", "--", "true")
    assert ended.returncode == guard.NOT_PREPARED
    assert "CPUs 9999 are not available here" in ended.stderr


def test_a_program_that_is_not_there(tmp_path: Path) -> None:
    for program in ("no-such-program-at-all", str(tmp_path / "none")):
        ended = run("--", program)
        assert ended.returncode == guard.NOT_FOUND
        assert ended.stderr == f"trilithon guard: cannot start {program}: not found\n"


def test_a_program_without_its_interpreter(tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_text("#!/no/such/interpreter\n")
    script.chmod(0o755)
    ended = run("--", str(script))
    assert ended.returncode == guard.NOT_FOUND
    assert "its interpreter or loader is missing" in ended.stderr


def test_programs_that_cannot_be_executed(tmp_path: Path) -> None:
    garbage = tmp_path / "garbage"
    garbage.write_bytes(b"\x7fELF and no more")
    garbage.chmod(0o755)
    for program, why in ((str(garbage), "Exec format error"), (str(tmp_path), "Permission denied")):
        ended = run("--", program)
        assert ended.returncode == guard.CANNOT_EXECUTE
        assert ended.stderr == f"trilithon guard: cannot start {program}: {why}\n"


def test_a_parent_that_is_already_gone() -> None:
    ended = run("--", "echo", "alive", parent=1 << 22)
    assert ended.returncode == guard.NOT_PREPARED
    assert ended.stdout == ""
    assert "has ended" in ended.stderr


@pytest.mark.parametrize(
    "words",
    [(), ("--",), ("true",), ("--cpus", "--", "true"), ("--cpus", "x", "--", "true"), ("--cpus", "3-1", "--", "true")],
)
def test_wrong_words_give_one_line(words: tuple[str, ...]) -> None:
    ended = run(*words)
    assert ended.returncode == guard.NOT_PREPARED
    assert ended.stderr.count("\n") == 1
    assert "usage: --parent PID" in ended.stderr


def test_it_imports_nothing_that_is_slow() -> None:
    # Each of these costs more than a millisecond; metadata about 50.
    code = "import sys, trilithon.engines.wire.guard; print(*sys.modules)"
    command = [sys.executable, "-S", "-c", code]
    environment = {**os.environ, "PYTHONPATH": str(Path(guard.__file__).parents[3])}
    loaded = subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout.split()
    assert not {"argparse", "importlib.metadata", "pathlib", "re", "enum", "signal", "typing"} & set(loaded)


def test_the_version_is_still_there() -> None:
    import trilithon

    assert trilithon.__version__[0].isdigit()
    with pytest.raises(AttributeError, match="nonsense"):
        _ = trilithon.nonsense
