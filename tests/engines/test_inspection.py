import os
import struct
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trilithon.engines import inspection
from trilithon.engines.elf import elf_machine, foreign_machine
from trilithon.engines.inspection import check_program, find_build, name_for
from trilithon.errors import UserError

OTHER_MACHINE, OTHER_NAME = (183, "aarch64") if os.uname().machine == "x86_64" else (62, "x86_64")


def header(machine: int, bits: int = 2, order: int = 1) -> bytes:
    return b"\x7fELF" + bytes([bits, order, 1]) + bytes(9) + struct.pack("<HH" if order == 1 else ">HH", 3, machine)


def own_library(folder: Path) -> Path:
    """This Python's own bytes: an ELF file for this machine."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "librkllmrt.so"
    path.write_bytes(Path(sys.executable).resolve().read_bytes()[:4096])
    return path


# known(log): ggml-org/llama.cpp#16659: --version says "version: NUMBER (COMMIT)" and "built with"
def program(folder: Path, script: str = "echo 'version: 1 (abc)'") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "llama-server"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


def refusal(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        find_build(path)
    assert "\n" not in str(caught.value)
    return str(caught.value).replace(str(path), "PATH")


# -- ELF


@pytest.mark.parametrize(
    ("content", "machine"),
    [
        (header(62), "x86_64"),
        (header(183), "aarch64"),
        (header(40, bits=1), "armv7l"),
        (header(22, order=2), "s390x"),
        (header(999), "machine 999"),
        (b"#!/bin/sh\necho here we are\n", None),
        (b"", None),
        (header(62)[:19], None),
        (b"\x7fELF\x09\x01" + bytes(40), None),
    ],
)
def test_the_machine_of_a_file(tmp_path: Path, content: bytes, machine: str | None) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    assert elf_machine(path) == machine


@given(st.binary(max_size=64))
def test_any_bytes_have_a_machine_or_none(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "bytes"
    path.write_bytes(content)
    assert elf_machine(path) is None or content.startswith(b"\x7fELF")


def test_what_runs_here_is_not_foreign(tmp_path: Path) -> None:
    assert foreign_machine(Path(sys.executable).resolve()) == ""
    (tmp_path / "script").write_text("#!/bin/sh\n")
    assert foreign_machine(tmp_path / "script") == ""


# -- folders


@pytest.mark.parametrize("place", ["", "bin", "build/bin"])
def test_a_program_at_or_below_the_folder(tmp_path: Path, place: str) -> None:
    program(tmp_path / place)
    assert find_build(tmp_path) == tmp_path / place
    assert find_build(tmp_path / place / "llama-server") == tmp_path / place


def test_a_library_for_this_machine(tmp_path: Path) -> None:
    own_library(tmp_path / "lib")
    assert find_build(tmp_path) == tmp_path / "lib"


def test_what_is_not_there(tmp_path: Path) -> None:
    assert refusal(tmp_path / "no") == "PATH does not exist; name the folder that has llama-server or librkllmrt.so"
    assert refusal(tmp_path) == "PATH has neither llama-server nor librkllmrt.so; name the folder that has one"


@pytest.mark.parametrize("name", ["llama-server", "librkllmrt.so"])
def test_one_for_another_machine(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(header(OTHER_MACHINE) + bytes(100))
    (tmp_path / name).chmod(0o755)
    machine = os.uname().machine
    assert (
        refusal(tmp_path) == f"PATH/{name} was compiled for {OTHER_NAME}, this machine is {machine}; use a build for it"
    )


def test_a_library_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "librkllmrt.so").write_text("<html>404</html>")
    assert "is not a library (no ELF header); download it again" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("script", "why"),
    [
        ("kill -ILL $$", "it uses instructions that this CPU does not have; compile one here: trilithon engines build"),
        ("kill -SEGV $$", "it was killed by SIGSEGV; take another build"),
        (
            "echo 'x: error while loading shared libraries: libggml.so: cannot open' >&2; exit 127",
            "the library libggml.so is missing; put it beside the program, or install the package that has it",
        ),
        ("echo one; echo two >&2; exit 3", "exit code 3 (one); fix that, and add it again"),
        ("exit 3", "exit code 3 (no output); fix that, and add it again"),
    ],
)
def test_a_program_that_does_not_run(tmp_path: Path, script: str, why: str) -> None:
    program(tmp_path, script)
    assert refusal(tmp_path) == f"PATH/llama-server does not run: {why}"


def test_a_program_that_says_nothing_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inspection, "_PROBE_SECONDS", 0.2)
    program(tmp_path, "exec sleep 60")
    assert "--version did not end within 0.2 s" in refusal(tmp_path)


def test_a_program_that_may_not_be_run(tmp_path: Path) -> None:
    program(tmp_path).chmod(0o644)
    assert refusal(tmp_path) == "PATH/llama-server is not executable; run: chmod +x PATH/llama-server"


def test_a_program_of_no_known_form(tmp_path: Path) -> None:
    program(tmp_path).write_bytes(b"\0rubbish")
    assert "does not run: Exec format error; take a build for this machine" in refusal(tmp_path)


def test_what_it_says_of_itself(tmp_path: Path) -> None:
    assert check_program(program(tmp_path)) == "version: 1 (abc)"


@pytest.mark.parametrize(
    ("folder", "name"),
    [
        ("/home/me/rk-llama.cpp/build/bin", "rk-llama.cpp"),
        ("/usr/local/bin", "added"),
        ("/opt/rkllm runtime (1.2)/lib", "rkllm-runtime-1.2"),
        ("/", "added"),
        ("/été", "t"),
    ],
)
def test_a_name_for_a_folder(folder: str, name: str) -> None:
    assert name_for(Path(folder)) == name
