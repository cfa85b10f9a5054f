"""Debian's own llama-server for arm64, under qemu, as an engine of this machine's Trilithon: a real Arm engine behind
the wire, which chooses its kernels at run time."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

PLUG_INS = Path("usr/lib/aarch64-linux-gnu/ggml/backends0")
# For ARMv8.2 with dot product.
PLUG_IN = PLUG_INS / "libggml-cpu-armv8.2_2.so"
Trilithon = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def trilithon(home: Path) -> Trilithon:
    """The program, with the core that the engine runs on."""

    def trilithon(*argv: str | Path, core: str = "cortex-a76") -> subprocess.CompletedProcess[str]:
        program = [Path(sys.executable).with_name("trilithon"), *argv]
        environment = {**os.environ, "QEMU_CPU": core}
        return subprocess.run(program, capture_output=True, text=True, check=False, timeout=280, env=environment)

    return trilithon


# known(ran): llama.cpp 0.7.0: the program is Debian's own for arm64; the script only starts qemu
def engine(folder: Path, qemu: Path, root: Path) -> Path:
    """A folder with a llama-server that is the one of `root`, under qemu."""
    folder.mkdir()
    program = folder / "llama-server"
    program.write_text(f'#!/bin/sh\nexec {qemu} -L {root} {root}/usr/bin/llama-server "$@"\n')
    program.chmod(0o755)
    return folder


@pytest.fixture
def debian(tmp_path: Path, qemu: Path, arm64_llama: Path, trilithon: Trilithon) -> str:
    folder = engine(tmp_path / "debian", qemu, arm64_llama)
    assert trilithon("engines", "add", folder, "--name", "debian").returncode == 0
    return "llama.cpp@debian"


@pytest.fixture
def tuned(tmp_path: Path, qemu: Path, arm64_llama: Path, trilithon: Trilithon) -> Callable[[bool], str]:
    """A build for ARMv8.2 alone. With `asks` it asks the CPU, as plug-ins do; else it is as one that was compiled for
    its own board and copied to another."""

    def tuned(asks: bool) -> str:
        root = tmp_path / "root"
        shutil.copytree(arm64_llama, root, symlinks=True)
        content = (root / PLUG_IN).read_bytes()
        shutil.rmtree(root / PLUG_INS)
        (root / PLUG_INS).mkdir()
        # ggml loads a plug-in that has no such function as it is.
        content = content if asks else content.replace(b"ggml_backend_score\0", b"ggml_backend_other\0")
        (root / PLUG_INS / "libggml-cpu.so").write_bytes(content)
        assert trilithon("engines", "add", engine(tmp_path / "tuned", qemu, root), "--name", "tuned").returncode == 0
        return "llama.cpp@tuned"

    return tuned


def checked(trilithon: Trilithon, build: str, core: str) -> Any:
    return json.loads(trilithon("engines", "check", build, "--json", "--anew", core=core).stdout)[0]


@pytest.mark.parametrize("core", ["cortex-a76", "cortex-a53"])
def test_it_works_with_and_without_dot_product(trilithon: Trilithon, debian: str, core: str) -> None:
    trial = checked(trilithon, debian, core)
    assert trial["works"], trial
    # The same log-probabilities as the packaged build's on x86-64, by kernels of another architecture.
    (divergence,) = [step["detail"] for step in trial["capabilities"] if step["capability"] == "log-probabilities"]
    assert float(re.findall(r"divergence ([\d.e-]+)", divergence)[0]) < 1e-4


def test_a_measurement(trilithon: Trilithon, debian: str, tiny: Path) -> None:
    argv = ("--placement", f"{debian}/cpu", "--test", "tg", "-n", "8", "-r", "1", "--no-quality", "-o", "json")
    done = trilithon("bench", tiny, *argv)
    assert done.returncode == 0, done.stderr
    (row,) = json.loads(done.stdout)
    assert row["n_gen"] == 8 and row["avg_ts"] > 0


def test_an_answer(trilithon: Trilithon, debian: str, tiny: Path) -> None:
    done = trilithon("run", tiny, "hello", "--placement", f"{debian}/cpu", "-p", "num_predict=4")
    assert done.returncode == 0 and done.stdout.strip(), done.stderr


def test_a_build_for_another_core_is_named_with_its_fix(trilithon: Trilithon, tuned: Callable[[bool], str]) -> None:
    build = tuned(False)
    assert checked(trilithon, build, "cortex-a76")["works"]
    (step,) = checked(trilithon, build, "cortex-a53")["capabilities"]
    assert "illegal instruction (the build was made for a CPU with more instructions)" in step["detail"]
    assert "trilithon engines build" in step["detail"]


def test_plug_ins_of_which_none_fits_the_core(trilithon: Trilithon, tuned: Callable[[bool], str]) -> None:
    (step,) = checked(trilithon, tuned(True), "cortex-a72")["capabilities"]
    assert (
        "no back end of this build runs on this CPU; put a libggml-cpu….so for it beside the program" in step["detail"]
    )
