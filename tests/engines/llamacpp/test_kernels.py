"""For which instructions a llama.cpp was compiled. The lines for Arm are the wheel's on aarch64, those of builds that
have more, and the output of `llama-server --version` of Debian's package."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from trilithon.board.processors import cpu_features
from trilithon.board.sysfs import Machine
from trilithon.cli.serve.serve import _about_builds
from trilithon.engines.base import Build, Placement, Settings
from trilithon.engines.build_findings import build_findings
from trilithon.engines.llamacpp import engine as engine_module
from trilithon.engines.llamacpp import kernels, programs
from trilithon.engines.llamacpp.engine import LlamaCpp
from trilithon.engines.llamacpp.kernels import embedded_system_line, lacking, loaded_variant, system_line
from trilithon.models.files.model_file import read_model_file
from trilithon.settings import Configuration

CORTEX_A72 = frozenset({"fp", "asimd", "evtstrm", "aes", "pmull", "sha1", "sha2", "crc32", "cpuid"})
CORTEX_A76 = CORTEX_A72 | {"atomics", "fphp", "asimdhp", "asimdrdm", "lrcpc", "dcpop", "asimddp"}
CORTEX_A720 = CORTEX_A76 | {"sve", "i8mm", "bf16"}
# known(ran): xllamacpp 2026.10: instructions of the wheel on aarch64
# known(ran): Debian llama.cpp 8681: the lines of --version
# known(guess): instructions of native builds on Arm
WHEEL = "NEON = 1 | ARM_FMA = 1 | LLAMAFILE = 1 | REPACK = 1"
NATIVE = "NEON = 1 | ARM_FMA = 1 | FP16_VA = 1 | DOTPROD = 1 | LLAMAFILE = 1 | REPACK = 1"
NEWEST = "NEON = 1 | ARM_FMA = 1 | FP16_VA = 1 | MATMUL_INT8 = 1 | SVE = 1 | DOTPROD = 1 | SVE_CNT = 16"
X86 = "SSE3 = 1 | SSSE3 = 1 | AVX = 1 | AVX2 = 1 | F16C = 1 | FMA = 1 | REPACK = 1"
DOT, MATRIX = "dot product", "8-bit matrix multiplication"
DEBIAN = """load_backend: loaded CPU backend from /usr/lib/aarch64-linux-gnu/ggml/backends0/libggml-cpu-armv8.2_2.so
version: 8681 (Debian)
built with GNU 15.2.0 for Linux aarch64"""


@pytest.mark.parametrize(
    ("system", "variant", "features", "words"),
    [
        (WHEEL, "", CORTEX_A76, (DOT,)),
        (WHEEL, "", CORTEX_A720, (DOT, MATRIX)),
        (WHEEL, "", CORTEX_A72, ()),
        (NATIVE, "", CORTEX_A76, ()),
        (NATIVE, "", CORTEX_A720, (MATRIX,)),
        (NEWEST, "", CORTEX_A720, ()),
        (f"{WHEEL} | DOTPROD = 0", "", CORTEX_A76, (DOT,)),
        ("", "", CORTEX_A76, ()),
        (X86, "", frozenset({"avx512f"}), ()),
        ("", "armv8.0_1", CORTEX_A76, (DOT,)),
        ("", "armv8.2_1", CORTEX_A76, ()),
        ("", "armv8.2_3", CORTEX_A720, (MATRIX,)),
        ("", "armv8.6_1", CORTEX_A720, ()),
        ("", "armv9.2_2", CORTEX_A720, ()),
        ("", "icelake", frozenset({"avx512f"}), ()),
    ],
)
def test_what_a_copy_lacks(system: str, variant: str, features: frozenset[str], words: tuple[str, ...]) -> None:
    assert lacking(system, variant, features) == words


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (f"CPU : {WHEEL} | ", WHEEL),
        (f"system_info: n_threads = 4 (n_threads_batch = 4) / 8 | CPU : {NATIVE} | \nmain: loading", NATIVE),
        (f"\n0.00.1 I system_info: n_threads = 4 / 8 | CUDA : ARCHS = 800 | CPU : {WHEEL} | ", WHEEL),
        ("load_tensors: CPU : 4 MiB", ""),
        ("", ""),
    ],
)
def test_the_system_line_in_a_text(text: str, line: str) -> None:
    assert system_line(text) == line


@pytest.mark.parametrize(
    ("text", "variant"),
    [
        (DEBIAN, "armv8.2_2"),
        ("load_backend: loaded CPU backend from /opt/llama/libggml-cpu-icelake.so\n", "icelake"),
        ("load_backend: loaded RPC backend from /opt/llama/libggml-rpc.so\nversion: 1", ""),
        ("load_backend: loaded CPU backend from /opt/llama/libggml-cpu.so\n", ""),
        ("version: 6123 (abc1234)", ""),
    ],
)
def test_the_plug_in_that_a_program_has_loaded(text: str, variant: str) -> None:
    assert loaded_variant(text) == variant


def test_features_are_those_that_every_cpu_has(tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    blocks = [f"processor : {n}\nFeatures\t: {' '.join(sorted(f))}\n" for n, f in enumerate((CORTEX_A76, CORTEX_A72))]
    (tmp_path / "proc/cpuinfo").write_text("\n".join(blocks))
    assert cpu_features(Machine(tmp_path)) == CORTEX_A72
    (tmp_path / "proc/cpuinfo").write_text("processor : 0\nflags\t\t: fpu avx2\n")
    assert cpu_features(Machine(tmp_path)) == {"fpu", "avx2"}
    assert cpu_features(Machine(tmp_path / "absent")) == frozenset()


def test_the_wheel_prints_its_own_line(tmp_path: Path) -> None:
    """A CPU's features in question: with others no child is started."""
    assert embedded_system_line(tmp_path, CORTEX_A72) == ""
    assert not (tmp_path / "kernels").exists()
    line = embedded_system_line(tmp_path, CORTEX_A76)
    assert " = 1" in line
    assert ("NEON" in line) == (os.uname().machine == "aarch64")
    code = (
        "import subprocess, sys; from pathlib import Path; from trilithon.engines.llamacpp import kernels\n"
        "subprocess.run = None  # a call of it fails: the line is in the cache\n"
        f"print(kernels.embedded_system_line(Path({str(tmp_path)!r}), {{'asimddp'}}))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == line


@pytest.fixture
def cortex_a76(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Configuration:
    """This machine as an RK3588 with the wheel of aarch64 and no program of its own."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(programs, "_WHEEL", "no-such-package")
    monkeypatch.setattr(engine_module, "cpu_features", lambda _: CORTEX_A76)
    monkeypatch.setattr(kernels, "_printed", lambda path, place: WHEEL)
    return Configuration(data=tmp_path / "data", cache=tmp_path / "cache", builds=(tmp_path / "mine",))


def _program(configuration: Configuration, printed: str) -> None:
    (folder,) = configuration.builds
    folder.mkdir()
    (folder / "llama-server").write_text(f'#!/bin/sh\n[ "$1" = --version ] || exit 0\ncat >&2 <<END\n{printed}\nEND\n')
    (folder / "llama-server").chmod(0o755)


def test_the_doctor_says_what_the_wheel_lacks(cortex_a76: Configuration) -> None:
    (finding,) = build_findings(cortex_a76)
    assert (finding.id, finding.severity) == ("dot-product", "warning")
    assert "llama.cpp@embedded was compiled without dot product, which this CPU has" in finding.message
    assert finding.fix.startswith("trilithon engines build")
    (line,) = _about_builds(cortex_a76)  # of `trilithon serve`
    assert line == f"note: {finding.message}; run: {finding.fix}"


def test_a_package_with_run_time_dispatch_goes_before_the_wheel(cortex_a76: Configuration) -> None:
    _program(cortex_a76, DEBIAN)
    first, second = LlamaCpp(cortex_a76).builds()
    assert (first.name, first.version, first.kernels, first.lacks) == ("native", "8681 (Debian)", "armv8.2_2", ())
    assert (second.name, second.lacks) == ("embedded", (DOT,))
    assert build_findings(cortex_a76) == []


def test_a_package_that_chose_the_oldest_kernels_is_no_better(cortex_a76: Configuration) -> None:
    _program(cortex_a76, DEBIAN.replace("armv8.2_2", "armv8.0_1"))
    assert [build.lacks for build in LlamaCpp(cortex_a76).builds()] == [(DOT,), (DOT,)]
    assert [finding.id for finding in build_findings(cortex_a76)] == ["dot-product"]


def _placement(build: Build, tiny: Path, cache: Path) -> Placement:
    file = read_model_file(tiny, cache)
    return Placement(name="llama.cpp/cpu", file=file, build=build, unit="cpu", settings=Settings())


def test_the_bench_remarks_on_it(cortex_a76: Configuration, tiny: Path, tmp_path: Path) -> None:
    engine = LlamaCpp(cortex_a76)
    (embedded,) = engine.builds()
    (remark,) = engine.remarks(_placement(embedded, tiny, tmp_path), "")
    assert remark == (
        "this llama.cpp was compiled without dot product, which this CPU has: prefill can take 2 to 3 times as long; "
        "run: trilithon engines build"
    )


@pytest.mark.parametrize(("line", "count"), [(WHEEL, 1), (NATIVE, 0)])
def test_the_log_of_a_program_says_it_too(
    cortex_a76: Configuration, tiny: Path, tmp_path: Path, line: str, count: int
) -> None:
    _program(cortex_a76, "version: 6123 (abc1234)")
    engine = LlamaCpp(cortex_a76)
    native = engine.builds()[0]
    log = f"main: starting\nsystem_info: n_threads = 4 / 8 | CPU : {line} | \n"
    assert (native.name, native.lacks) == ("native", ())
    assert len(engine.remarks(_placement(native, tiny, tmp_path), log)) == count
