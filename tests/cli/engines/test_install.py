"""`trilithon engines install` against hosts on loopback: what is shown, asked and fetched, and what goes wrong."""

import hashlib
import json
import os
import random
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from standin_git import GitHost, commit_of
from standin_web import Fault, WebStandIn

from trilithon.engines.install import installing
from trilithon.engines.registry import registered
from trilithon.settings import load_configuration

Program = Callable[..., Any]

PROGRAM = str(Path(sys.executable).with_name("trilithon"))
HERE = os.uname().machine
# An ELF file of this machine that says what version it is, as the vendor's does.
LIBRARY = (
    Path(sys.executable).resolve().read_bytes()[:4096]
    + b"RKLLM SDK (version: 1.2.3 | target: Linux)\0"
    + random.Random(1).randbytes(3_000_000)
)
FOREIGN = LIBRARY[:18] + b"\x08\x00" + LIBRARY[20:]  # e_machine of MIPS
ADDRESS = "/v/librkllmrt.so"


@pytest.fixture
def web(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[WebStandIn]:
    with WebStandIn() as server:
        server.put(ADDRESS, LIBRARY)
        write_table(home, server.url)
        monkeypatch.setenv("TRILITHON_ENGINE_TABLE", str(home / "table.toml"))
        yield server


def write_table(home: Path, url: str, machine: str = HERE, library: bytes = LIBRARY, size: int = 0) -> None:
    (home / "table.toml").write_text(
        f"""
[rkllm]
title = "a runtime"
default = "1.2.3"
licence = "somebody's licence"
licence_url = "https://example.org/licence"
machine = "{machine}"
file = "librkllmrt.so"
address = "{url}/{{ref}}/librkllmrt.so"
[rkllm.versions."1.2.3"]
ref = "v"
sha256 = "{hashlib.sha256(library).hexdigest()}"
{f"size_bytes = {size}" if size else ""}
published = "nobody"
"""
    )


def assert_nothing_added(home: Path) -> None:
    assert registered(load_configuration()) == []
    assert list((home / "data/trilithon").glob("builds/*")) == []


@pytest.mark.slow
def test_fetched_verified_added_and_found(trilithon: Program, home: Path, web: WebStandIn) -> None:
    done = trilithon("engines", "install", "rkllm", "--yes")
    folder = home / "data/trilithon/builds/rkllm-1.2.3"
    assert (done.code, done.stdout) == (0, f"rkllm-1.2.3  {folder}\n")
    before, _, after = done.stderr.partition("fetching librkllmrt.so")
    assert f"from       {web.url}/v/librkllmrt.so" in before
    assert "licence    somebody's licence\n           https://example.org/licence\n" in before
    assert f"SHA-256 {hashlib.sha256(LIBRARY).hexdigest()}\n           computed by nobody" in before
    assert "engines check rkllm-1.2.3" in after
    assert (folder / "librkllmrt.so").read_bytes() == LIBRARY
    rows = json.loads(trilithon("engines", "list", "--json").stdout)
    (row,) = [row for row in rows if row["name"] == "rkllm-1.2.3"]
    assert (row["engine"], row["version"], row["usable"]) == ("rkllm", "1.2.3", True)
    sent = web.sent_bytes
    again = trilithon("engines", "install", "rkllm", "--yes", "--json")
    assert json.loads(again.stdout)["fresh"] is False
    assert web.sent_bytes == sent
    assert trilithon("engines", "remove", "--delete", "rkllm-1.2.3").code == 0
    assert not folder.exists()


def test_without_a_terminal_nothing_is_agreed_to(trilithon: Program, home: Path, web: WebStandIn) -> None:
    done = trilithon("engines", "install", "rkllm")
    assert done.code == 2
    assert "licence    somebody's licence" in done.stderr
    assert done.stderr.endswith("there is no terminal to ask on; add --yes to agree\n")
    assert "add --yes" in trilithon("engines", "install", "rkllm", "--json").stderr
    assert web.asked == []


def test_a_cut_connection_goes_on_where_it_was(trilithon: Program, web: WebStandIn) -> None:
    web.fault = lambda asked: None if asked.is_look or asked.number > 4 else Fault(after=100_000)
    assert trilithon("engines", "install", "rkllm", "--yes").code == 0
    assert web.sent_bytes < len(LIBRARY) + 1000
    assert any(asked.span and asked.span[0] % 1000 for asked in web.asked)


def test_a_file_without_end_is_left(
    trilithon: Program, home: Path, web: WebStandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The size of most versions is not in the table."""
    monkeypatch.setattr(installing, "_MOST_LIBRARY_BYTES", len(LIBRARY) - 1)
    done = trilithon("engines", "install", "rkllm", "--yes")
    assert done.code == 2
    assert f"error: {web.url}/v/librkllmrt.so: it has over " in done.stderr
    assert_nothing_added(home)


@pytest.mark.slow
def test_a_stopped_download_goes_on(home: Path, web: WebStandIn) -> None:
    web.fault = lambda asked: None if asked.is_look else Fault(after=400_000, silent_seconds=60)
    parts = home / "cache/trilithon/engines/partial"
    deadline = time.monotonic() + 60
    with subprocess.Popen([PROGRAM, "engines", "install", "rkllm", "-y"], stderr=subprocess.PIPE, text=True) as process:
        while sum(file.stat().st_blocks * 512 for file in parts.glob("*.data")) < 400_000:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert "the same command goes on" in errors
    assert process.returncode == 130
    assert_nothing_added(home)
    web.fault, sent = lambda _: None, web.sent_bytes
    done = subprocess.run([PROGRAM, "engines", "install", "rkllm", "-y"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert web.sent_bytes - sent < len(LIBRARY) - 300_000


@pytest.mark.parametrize(
    ("fault", "code", "message"),
    [
        (Fault(spoil=True), 2, "its SHA-256 is "),
        (Fault(status=404), 2, "has no such file"),
        (Fault(status=302, headers={"Location": "http://example.org/x"}), 1, "redirects to plain http"),
    ],
)
def test_another_file_is_not_installed(
    trilithon: Program, home: Path, web: WebStandIn, fault: Fault, code: int, message: str
) -> None:
    web.fault = lambda asked: fault
    done = trilithon("engines", "install", "rkllm", "-y")
    assert done.code == code
    assert message in done.stderr.splitlines()[-1]
    assert "/v/librkllmrt.so" in done.stderr.splitlines()[-1]
    assert "pull it again" not in done.stderr
    assert_nothing_added(home)
    web.fault = lambda _: None
    assert trilithon("engines", "install", "rkllm", "-y").code == 0


def test_another_machine_is_told_before_anything_is_fetched(trilithon: Program, home: Path, web: WebStandIn) -> None:
    write_table(home, web.url, machine="mips")
    done = trilithon("engines", "install", "rkllm", "-y")
    assert (done.code, web.asked) == (2, [])
    assert f"rkllm is for mips machines with its chip, and this one is {HERE}" in done.stderr
    write_table(home, web.put(ADDRESS, FOREIGN).removesuffix(ADDRESS), library=FOREIGN)
    done = trilithon("engines", "install", "rkllm", "-y")
    assert done.code == 2
    assert "librkllmrt.so is for " in done.stderr
    assert_nothing_added(home)


@pytest.mark.slow
@pytest.mark.parametrize("full", ["cache", "data"])
@pytest.mark.parametrize("says_size", [True, False])
def test_a_full_disk(home: Path, web: WebStandIn, full: str, says_size: bool) -> None:
    write_table(home, web.url, size=len(LIBRARY) if says_size else 0)
    folder = home / full / "trilithon"
    folder.mkdir(parents=True)
    rights = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    script = f"mount -t tmpfs -o size=1m none {shlex.quote(str(folder))} || exit 77; exec {shlex.quote(PROGRAM)} "
    command = ["unshare", *rights, "--mount", "sh", "-c", f"{script} engines install rkllm --yes"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode == 77:
        pytest.skip("no file system can be mounted here")
    assert done.returncode in (1, 2), done.stderr
    last = done.stderr.splitlines()[-1]
    assert "TRILITHON_CACHE" in last if full == "cache" else "free some space" in last
    assert "Traceback" not in done.stderr
    assert_nothing_added(home)


@pytest.mark.parametrize("known", [True, False])
def test_a_file_of_the_user(trilithon: Program, home: Path, web: WebStandIn, known: bool) -> None:
    library = LIBRARY if known else LIBRARY + b"."
    place = home / "stick/Linux/librkllm_api/aarch64"
    place.mkdir(parents=True)
    (place / "librkllmrt.so").write_bytes(library)
    done = trilithon("engines", "install", "rkllm", "--from", home / "stick", "-y")
    assert done.code == 0, done.stderr
    assert f"SHA-256 {hashlib.sha256(library).hexdigest()}" in done.stderr
    assert ("that of rkllm 1.2.3" if known else "which is not in the table: nobody vouches for it") in done.stderr
    shutil.rmtree(home / "stick")
    assert (home / "data/trilithon/builds/rkllm-1.2.3/librkllmrt.so").read_bytes() == library
    assert web.asked == []


@pytest.mark.parametrize(
    ("content", "message"),
    [(FOREIGN, "name the file itself"), (b"text", "no library"), (None, "there is no librkllmrt.so")],
)
def test_a_wrong_file_of_the_user(
    trilithon: Program, home: Path, web: WebStandIn, content: bytes | None, message: str
) -> None:
    (home / "stick").mkdir()
    if content is not None:
        (home / "stick/librkllmrt.so").write_bytes(content)
    done = trilithon("engines", "install", "rkllm", "--from", home / "stick", "-y")
    assert done.code == 2
    assert message in done.stderr
    assert (
        "does not exist; name the file or folder"
        in trilithon("engines", "install", "rkllm", "--from", home / "x", "-y").stderr
    )
    assert_nothing_added(home)


# known(source): invisiofficial/rk-llama.cpp: the back end's CMakeLists.txt links libs/librknnrt.so by -rpath-link
SOURCE = """
cmake_minimum_required(VERSION 3.14)
project(fork C)
set(CMAKE_RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/bin)
set(CMAKE_LIBRARY_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/bin)
add_library(ggml-rknpu2 SHARED backend.c)
set_target_properties(ggml-rknpu2 PROPERTIES VERSION 0.9.4 SOVERSION 0)
target_link_libraries(ggml-rknpu2 PRIVATE ${CMAKE_CURRENT_SOURCE_DIR}/ggml/src/ggml-rknpu2/libs/librknnrt.so)
target_link_options(ggml-rknpu2 PUBLIC "-Wl,-rpath-link,${CMAKE_CURRENT_SOURCE_DIR}/ggml/src/ggml-rknpu2/libs")
foreach(name llama-server;llama-bench;llama-quantize;llama-perplexity)
  add_executable(${name} main.c)
  target_link_libraries(${name} PRIVATE ggml-rknpu2)
endforeach()
"""
MAIN = """
#include <stdio.h>
#include <string.h>
const char *rknpu(void);
int main(int count, char **words) {
    if (count > 1 && !strcmp(words[1], "--list-devices"))
        puts("Available devices:\\n  RKNPU: Rockchip NPU (0 MiB, 0 MiB free)");
    else fprintf(stderr, "version: 7 (abc) %s\\n", rknpu());
    return 0;
}
"""
BACKEND = 'int rknn(void);\nconst char *rknpu(void) { return rknn() ? "RKNPU_DEVICE" "RKNPU_CPU_DECODE" : ""; }\n'


@pytest.fixture
def fork(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[GitHost]:
    if shutil.which("cmake") is None or shutil.which("cc") is None or shutil.which("git") is None:
        pytest.skip("cmake, cc or git is missing")
    source, libraries = home / "fork", home / "fork/ggml/src/ggml-rknpu2/libs"
    libraries.mkdir(parents=True)
    for name, text in {"CMakeLists.txt": SOURCE, "main.c": MAIN, "backend.c": BACKEND}.items():
        (source / name).write_text(text)
    command = ["cc", "-shared", "-o", libraries / "librknnrt.so", "-Wl,-soname,librknnrt.so", "-x", "c", "-"]
    subprocess.run(command, input=b"int rknn(void) { return 1; }", check=True)
    (source / "noise").write_bytes(random.Random(2).randbytes(50_000))
    (home / "hosted").mkdir()
    commit = commit_of(source, serve_as=home / "hosted/fork")
    with GitHost(home / "hosted") as host:
        (home / "table.toml").write_text(
            f"""
["rk-llama.cpp"]
title = "a fork"
default = "mine"
licence = "MIT"
licence_url = "https://example.org/licence"
machine = "{HERE}"
compiled = "rk"
["rk-llama.cpp".versions.mine]
git = "{host.url}/fork"
commit = "{commit}"
["rk-llama.cpp".versions.gone]
git = "{host.url}/fork"
commit = "{"0" * 40}"
"""
        )
        monkeypatch.setenv("TRILITHON_ENGINE_TABLE", str(home / "table.toml"))
        yield host


@pytest.mark.slow
def test_a_fork_is_fetched_by_its_commit_and_compiled(trilithon: Program, home: Path, fork: GitHost) -> None:
    """A real git and a real compiler. The first answer is cut, and git is asked again."""
    fork.cuts = 1
    done = trilithon("engines", "install", "rk-llama.cpp", "--yes")
    assert done.code == 0, done.stderr
    folder = home / "data/trilithon/builds/rk-llama-mine"
    assert done.stdout == f"rk-llama-mine  {folder}\n"
    assert fork.cuts == 0
    assert "git compares everything with it" in done.stderr
    shutil.rmtree(home / "cache")  # nothing of the source is needed any more
    shown = subprocess.run([folder / "llama-server", "--version"], capture_output=True, text=True)
    assert shown.stderr.startswith("version: 7 (abc) RKNPU_DEVICE")
    rows = json.loads(trilithon("engines", "list", "--json").stdout)
    (row,) = [row for row in rows if row["name"] == "rk-llama-mine"]
    assert (row["engine"], row["usable"]) == ("rk-llama.cpp", True)
    assert f"{fork.url}/fork" in json.dumps(row)
    again = trilithon("engines", "install", "rk-llama.cpp", "-y", "--from", home / "fork")
    assert "rk-llama-mine is installed already" in again.stderr


def test_a_commit_that_is_gone_and_a_host_that_cuts(trilithon: Program, home: Path, fork: GitHost) -> None:
    done = trilithon("engines", "install", "rk-llama.cpp", "--version", "gone", "-y")
    assert done.code == 1
    assert f"error: {fork.url}/fork: git failed: " in done.stderr
    assert done.stderr.endswith("; run this again, or use --from FOLDER\n")
    fork.cuts = 3
    done = trilithon("engines", "install", "rk-llama.cpp", "-y")
    assert (done.code, fork.cuts) == (1, 0)
    assert "Traceback" not in done.stderr
    assert_nothing_added(home)
    assert list((home / "cache/trilithon/sources").iterdir()) == []


def test_a_fork_is_compiled_from_a_source_alone(trilithon: Program, home: Path) -> None:
    done = trilithon("engines", "build", "--engine", "rk")
    assert done.code == 2
    assert "rk-llama.cpp is fetched with: trilithon engines install rk-llama.cpp" in done.stderr


def test_it_completes(home: Path) -> None:
    for words, expected in {"rk": {"rkllm", "rk-llama.cpp"}, "rkllm --version 1.3": {"1.3.0", "1.3.1"}}.items():
        line = f"trilithon engines install {words}"
        count = str(len(line.split()) - 1)
        environment = {**os.environ, "_TRILITHON_COMPLETE": "bash_complete", "COMP_WORDS": line, "COMP_CWORD": count}
        shown = subprocess.run([PROGRAM], env=environment, capture_output=True, text=True).stdout
        assert {row.partition(",")[2] for row in shown.splitlines()} == expected
