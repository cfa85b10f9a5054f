"""A small program with llama.cpp's targets takes the whole road: configure, build, install, register."""

import fcntl
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from process_table import goes

from trilithon.engines.llamacpp.compile import (
    Compiled,
    Recipe,
    _CompileSteps,
    compile_llamacpp,
    delete_build,
    require_compiled,
)
from trilithon.engines.registry import Registered, add, registered, remove
from trilithon.engines.toolrun import run_tool
from trilithon.errors import TrilithonError, UserError
from trilithon.settings import Configuration

pytestmark = pytest.mark.skipif(shutil.which("cmake") is None or shutil.which("cc") is None, reason="cmake is missing")

# known(ran): llama-cpp-python 0.3.36: its sdist has llama.cpp's source, these targets and these options
# known(guess): cmake's line about a shader compiler without cooperative matrices
TARGETS = "llama-server llama-bench llama-quantize llama-perplexity"
COMPILED = f"""
cmake_minimum_required(VERSION 3.14)
project(tiny C)
set(CMAKE_RUNTIME_OUTPUT_DIRECTORY ${{CMAKE_BINARY_DIR}}/bin)
message(STATUS "GL_KHR_cooperative_matrix not supported by glslc")
foreach(name {TARGETS.replace(" ", ";")})
  add_executable(${{name}} main.c)
  target_compile_definitions(${{name}} PRIVATE COMMIT="${{LLAMA_BUILD_COMMIT}}" NATIVE="${{GGML_NATIVE}}")
endforeach()
"""
MAIN = '#include <stdio.h>\nint main(void) { puts("version: 7 (" COMMIT "), native " NATIVE); return 0; }\n'
# No compiler: scripts in the place of programs, in a tenth of the time.
SCRIPTS = f"""
cmake_minimum_required(VERSION 3.14)
project(tiny NONE)
foreach(name {TARGETS.replace(" ", ";")})
  add_custom_target(${{name}}
    COMMAND ${{CMAKE_COMMAND}} -E make_directory ${{CMAKE_BINARY_DIR}}/bin
    COMMAND ${{CMAKE_COMMAND}} -E copy ${{CMAKE_SOURCE_DIR}}/program ${{CMAKE_BINARY_DIR}}/bin/${{name}})
endforeach()
"""
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def configuration(home: Path) -> Configuration:
    return Configuration(data=home / "data/trilithon", cache=home / "cache/trilithon")


@pytest.fixture
def scripts(tmp_path: Path) -> Path:
    """A source whose "programs" take no time to make."""
    folder = tmp_path / "scripts"
    folder.mkdir()
    (folder / "CMakeLists.txt").write_text(SCRIPTS)
    program(folder, "echo 'version: 1 (script)'")
    return folder


def program(folder: Path, script: str) -> None:
    (folder / "program").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "program").chmod(0o755)


def make(configuration: Configuration, source: Path, **words: Any) -> Compiled:
    return compile_llamacpp(Recipe(source=source, **words), configuration, lambda text, fraction: None)


def assert_nothing_left(configuration: Configuration) -> None:
    assert registered(configuration) == []
    assert [path.name for path in (configuration.data / "builds").iterdir()] == []
    assert [path.name for path in (configuration.cache / "builds").glob("work-*")] == []


def test_an_sdist_becomes_a_build(configuration: Configuration, tmp_path: Path) -> None:
    files = {
        "x/PKG-INFO": "Version: 0.9.9\n",
        "x/.git/modules/vendor/llama.cpp/HEAD": COMMIT,
        "x/vendor/llama.cpp/CMakeLists.txt": COMPILED,
        "x/vendor/llama.cpp/main.c": MAIN,
    }
    with tarfile.open(tmp_path / "x.tar.gz", "w:gz") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content.encode()))
    steps: list[tuple[str, float | None]] = []
    recipe = Recipe(source=tmp_path / "x.tar.gz", rpc=False, jobs=2)
    done = compile_llamacpp(recipe, configuration, lambda text, fraction: steps.append((text, fraction)))
    entry = done.entry
    assert (done.fresh, entry.name, entry.folder) == (True, "native-0.9.9", configuration.data / "builds/native-0.9.9")
    assert registered(configuration) == [entry]
    assert {path.name for path in entry.folder.iterdir()} == set(TARGETS.split())
    said = subprocess.run([entry.folder / "llama-server"], capture_output=True, text=True, check=True).stdout
    assert said == f"version: 7 ({COMMIT[:9]}), native ON\n"
    facts = entry.facts
    assert (facts["version"], facts["commit"]) == ("0.9.9", COMMIT[:9])
    assert facts["flags"]["GGML_NATIVE"] == "ON"
    assert facts["without"] == ["GL_KHR_cooperative_matrix"]
    assert facts["seconds"] > 0
    assert {"compiler", "cmake", "cpu", "made", "source_sha256"} <= facts.keys()
    fractions = [fraction for text, fraction in steps if text == "compiling" and fraction is not None]
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1.0
    assert list(dict.fromkeys(text for text, _ in steps)) == [
        "unpacking the source",
        "configuring",
        "compiling",
        "installing",
    ]
    assert "-DGGML_NATIVE=ON" in done.log.read_text()
    assert list((configuration.cache / "builds").glob("work-*")) == []


def test_the_engine_finds_it(configuration: Configuration, scripts: Path) -> None:
    from trilithon.engines.llamacpp.engine import LlamaCpp

    entry = make(configuration, scripts).entry
    build = next(build for build in LlamaCpp(configuration).builds() if build.name == entry.name)
    assert build.version == "1 (script)"


def test_the_same_again_is_not_made_again(configuration: Configuration, scripts: Path) -> None:
    first = make(configuration, scripts)
    again = make(configuration, scripts)
    assert (first.fresh, again.fresh) == (True, False)
    assert again.entry == first.entry


def test_other_flags_make_another_build(configuration: Configuration, scripts: Path) -> None:
    make(configuration, scripts)
    (scripts / "CMakeLists.txt").write_text(SCRIPTS.replace(TARGETS.split()[0], "ggml-rpc-server;llama-server"))
    make(configuration, scripts, rpc=True)
    assert [entry.name for entry in registered(configuration)] == ["native-local", "native-local-rpc"]
    assert (registered(configuration)[1].folder / "ggml-rpc-server").is_file()


def test_force_replaces_it(configuration: Configuration, scripts: Path) -> None:
    first = make(configuration, scripts).entry
    program(scripts, "echo 'version: 2 (script)'")
    again = make(configuration, scripts, force=True)
    assert again.fresh
    assert "version: 2" in (first.folder / "llama-server").read_text()
    assert [path.name for path in first.folder.parent.iterdir()] == ["native-local"]
    assert [entry.name for entry in registered(configuration)] == ["native-local"]


def test_a_build_whose_folder_is_gone_is_made_again(configuration: Configuration, scripts: Path) -> None:
    shutil.rmtree(make(configuration, scripts).entry.folder)
    assert make(configuration, scripts).fresh


# -- failing


def test_an_error_of_the_compiler_is_told(configuration: Configuration, tmp_path: Path) -> None:
    (tmp_path / "CMakeLists.txt").write_text(COMPILED)
    (tmp_path / "main.c").write_text("int main(void) { return nothing; }\n")
    with pytest.raises(TrilithonError, match=r"cmake failed: .*main\.c:1:\d+: error: .*nothing.* \(log: .*\.log\)"):
        make(configuration, tmp_path)
    assert_nothing_left(configuration)
    assert "nothing" in (configuration.cache / "builds/native-local.log").read_text()


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ('message(FATAL_ERROR "no such luck")', "no such luck"),
        ('message(FATAL_ERROR "Could NOT find Vulkan (missing: glslc)")', "install libvulkan-dev and glslc"),
        ('message(FATAL_ERROR "file DOWNLOAD kleidiai: Failed to download")', "fetched from GitHub"),
    ],
)
def test_an_error_of_cmake_is_told(configuration: Configuration, scripts: Path, lines: str, said: str) -> None:
    (scripts / "CMakeLists.txt").write_text(f"{SCRIPTS}\n{lines}\n")
    with pytest.raises(TrilithonError, match=rf"cmake failed: .*{said}"):
        make(configuration, scripts)
    assert_nothing_left(configuration)


def test_a_compiler_without_memory(tmp_path: Path) -> None:
    words = ["sh", "-c", "echo 'c++: fatal error: Killed signal terminated program cc1plus'; exit 1"]
    with pytest.raises(TrilithonError, match="sh failed: the compiler ran out of memory; use --jobs 1"):
        run_tool(words, tmp_path / "log", lambda line: None)


def test_what_does_not_run_is_not_installed(configuration: Configuration, scripts: Path) -> None:
    program(scripts, "kill -ILL $$")
    with pytest.raises(TrilithonError, match=r"the compiled server does not work: .*instructions that this CPU"):
        make(configuration, scripts)
    assert_nothing_left(configuration)


def test_a_failing_one_leaves_the_one_before(configuration: Configuration, scripts: Path) -> None:
    first = make(configuration, scripts).entry
    program(scripts, "exit 3")
    with pytest.raises(TrilithonError):
        make(configuration, scripts, force=True)
    assert registered(configuration) == [first]
    assert "version: 1" in (first.folder / "llama-server").read_text()
    assert [path.name for path in first.folder.parent.iterdir()] == ["native-local"]


def test_a_register_that_fails_leaves_the_one_before(
    configuration: Configuration, scripts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = make(configuration, scripts).entry
    program(scripts, "echo 'version: 2 (script)'")

    def full(*_: object) -> None:
        raise UserError("the disk is full")

    monkeypatch.setattr("trilithon.engines.llamacpp.compile.add", full)
    with pytest.raises(UserError, match="the disk is full"):
        make(configuration, scripts, force=True)
    assert "version: 1" in (first.folder / "llama-server").read_text()
    assert [path.name for path in first.folder.parent.iterdir()] == ["native-local"]


@pytest.mark.parametrize("failing", [".new-native-local", "native-local"])
def test_a_rename_that_fails_leaves_the_one_before(
    configuration: Configuration, scripts: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    first = make(configuration, scripts).entry
    program(scripts, "echo 'version: 2 (script)'")
    rename = Path.rename

    def stopped(self: Path, target: Path) -> Path:
        if self.name == failing:
            raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", stopped)
    with pytest.raises(KeyboardInterrupt):
        make(configuration, scripts, force=True)
    assert "version: 1" in (first.folder / "llama-server").read_text()
    assert [path.name for path in first.folder.parent.iterdir()] == ["native-local"]


def test_a_name_that_another_folder_has(configuration: Configuration, scripts: Path) -> None:
    add(configuration, Registered(name="native-local", folder=Path("/x")))
    with pytest.raises(UserError, match="native-local is already the build in /x; choose another name with --name"):
        make(configuration, scripts)
    assert make(configuration, scripts, name="mine").entry.name == "mine"


def test_kleidiai_is_for_arm(configuration: Configuration, scripts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if os.uname().machine != "aarch64":
        with pytest.raises(UserError, match="KleidiAI has kernels for 64-bit Arm only"):
            make(configuration, scripts, kleidiai=True)
    assert Recipe(kleidiai=True).flags["GGML_CPU_KLEIDIAI"] == "ON"
    assert Recipe(kleidiai=True, vulkan=True).name_of("1.0") == "native-1.0-vulkan-kleidiai"


# -- stopping, and others at work


def test_a_stopped_one_leaves_nothing(home: Path, configuration: Configuration, scripts: Path) -> None:
    """A real process, a real signal: compilers end, the work folder goes, nothing is registered."""
    mark = scripts / "pid"
    sleeping = f"COMMAND sh -c 'echo $$$$ > {mark} && sleep 60'\n    COMMAND"
    (scripts / "CMakeLists.txt").write_text(SCRIPTS.replace("COMMAND", sleeping, 1))
    words = [sys.executable, "-c", "from trilithon.cli.main import entry; entry()", "engines", "build", "--source"]
    process = subprocess.Popen([*words, scripts], stderr=subprocess.PIPE, text=True)
    try:
        limit = time.monotonic() + 60
        while not (mark.exists() and mark.read_text().strip()):
            assert time.monotonic() < limit
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 130, said
    assert said.endswith("error: stopped; nothing was installed\n")
    assert_nothing_left(configuration)
    assert goes(int(mark.read_text()))


def test_what_a_tool_started_ends_with_it(tmp_path: Path) -> None:
    """Also what does not listen to SIGTERM and has lost its parent."""
    stubborn = "trap '' TERM; echo $$; exec sleep 60"
    seen: list[str] = []

    def stop(line: str) -> None:
        seen.append(line)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_tool(["sh", "-c", f'sh -c "{stubborn.replace("$", chr(92) + "$")}" & wait'], tmp_path / "log", stop)
    assert goes(int(seen[0]))


def test_one_at_a_time(configuration: Configuration, scripts: Path) -> None:
    folder = configuration.cache / "builds"
    folder.mkdir(parents=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="another compilation"):
            make(configuration, scripts)
    assert make(configuration, scripts).fresh


def test_what_a_power_cut_left_is_swept(configuration: Configuration, scripts: Path) -> None:
    first = make(configuration, scripts).entry
    builds = first.folder.parent
    first.folder.rename(builds / ".old-native-local")  # between the two renames of --force
    for left in (builds / ".new-native-local", builds / ".gone-x", configuration.cache / "builds/work-1"):
        left.mkdir()
    make(configuration, scripts, name="other")
    assert {path.name for path in builds.iterdir()} == {"native-local", "other"}
    assert not (configuration.cache / "builds/work-1").exists()
    assert (first.folder / "llama-server").is_file()


# -- removing


def test_a_build_made_here_can_be_deleted(configuration: Configuration, scripts: Path) -> None:
    entry = make(configuration, scripts).entry
    require_compiled(entry.name, configuration)
    delete_build(remove(configuration, entry.name))
    assert_nothing_left(configuration)
    delete_build(entry)  # its folder may be gone


def test_a_users_own_folder_is_never_deleted(configuration: Configuration, tmp_path: Path) -> None:
    add(configuration, Registered(name="mine", folder=tmp_path))
    with pytest.raises(UserError, match=r"mine was not compiled here, so its folder .* is kept; leave --delete out"):
        require_compiled("mine", configuration)


# -- progress


@given(
    st.lists(
        st.one_of(
            st.text(max_size=20),
            st.builds("[{}/{}] x".format, st.integers(0, 400), st.integers(0, 400)),
            st.builds("[{:3}%] x".format, st.integers(0, 200)),
        )
    )
)
def test_progress_only_grows(lines: list[str]) -> None:
    seen: list[float] = []
    steps = _CompileSteps(lambda text, fraction: seen.append(-1.0 if fraction is None else fraction))
    for line in lines:
        steps(line)
    assert seen == sorted(seen)
    assert all(0 <= fraction <= 1 for fraction in seen)


def test_progress_in_both_forms() -> None:
    seen: list[float | None] = []
    steps = _CompileSteps(lambda text, fraction: seen.append(fraction))
    for line in ("[1/200] a", "[1/2] inner", "[2/2] inner", "[100/200] b", "note: [x/y]", "[ 75%] c", "[100%] d"):
        steps(line)
    assert seen == [0.005, 0.5, 0.75, 1.0]


def test_facts_are_json(configuration: Configuration, scripts: Path) -> None:
    facts = make(configuration, scripts).entry.facts
    assert json.loads(json.dumps(facts)) == facts
