"""For which Arm instructions an engine is compiled. The features are those that Linux lists for these cores."""

import shutil
from pathlib import Path

import pytest

from trilithon.board.sysfs import Machine
from trilithon.cli.engines.rows import _made_text
from trilithon.engines.ik_llamacpp.source import IK_LLAMA_CPP
from trilithon.engines.llamacpp.compile import Recipe, compile_llamacpp
from trilithon.engines.llamacpp.instructions import target_of
from trilithon.settings import Configuration

OLD = "fp asimd evtstrm aes pmull sha1 sha2 crc32 cpuid"
NEW = f"{OLD} atomics fphp asimdhp asimdrdm lrcpc dcpop asimddp"
A53, A72, A55, A76 = ("0xd03", OLD), ("0xd08", OLD), ("0xd05", NEW), ("0xd0b", NEW)
A720 = ("0xd81", f"{NEW} sve sve2 i8mm bf16")
DOT = "armv8.2-a+dotprod+fp16"


def machine(folder: Path, *cores: tuple[str, str], capacities: tuple[int, ...] = ()) -> Machine:
    blocks = [
        f"processor\t: {number}\nFeatures\t: {features}\nCPU implementer\t: 0x41\nCPU part\t: {part}\n"
        for number, (part, features) in enumerate(cores)
    ]
    (folder / "proc").mkdir()
    (folder / "proc/cpuinfo").write_text("\n".join(blocks))
    cpus = folder / "sys/devices/system/cpu"
    cpus.mkdir(parents=True)
    (cpus / "online").write_text(f"0-{len(cores) - 1}\n")
    for number, capacity in enumerate(capacities):
        (cpus / f"cpu{number}").mkdir()
        (cpus / f"cpu{number}/cpu_capacity").write_text(f"{capacity}\n")
    return Machine(folder)


@pytest.mark.parametrize(
    ("cores", "capacities", "march", "place"),
    [
        ((A76, A76), (), DOT, "every CPU has (Cortex-A76)"),
        ((A55, A55), (), DOT, "every CPU has (Cortex-A55)"),
        ((A72,), (), "armv8-a", "every CPU has (Cortex-A72)"),
        ((A53, A53), (), "armv8-a", "every CPU has (Cortex-A53)"),
        ((A55, A55, A76, A76), (530, 530, 1024, 1024), DOT, "CPU 2-3 has (Cortex-A76)"),
        ((A53, A53, A72, A72), (460, 460, 1024, 1024), "armv8-a", "CPU 2-3 has (Cortex-A72)"),
        # What the little cores lack does not matter where nothing is pinned to them; what they alone have neither.
        ((A53, A53, A76, A76), (300, 300, 1024, 1024), DOT, "CPU 2-3 has (Cortex-A76)"),
        ((A76, A76, A53), (1024, 1024, 300), DOT, "CPU 0-1 has (Cortex-A76)"),
        ((A55, A72), (500, 1024), "armv8-a", "CPU 1 has (Cortex-A72)"),
        # Big cores of two kinds: what both have.
        ((A76, A72), (1000, 1024), "armv8-a", "every CPU has (Cortex-A72, Cortex-A76)"),
        ((A720,), (), f"{DOT}+i8mm+sve+sve2", "every CPU has (Cortex-A720)"),
        # A virtual machine that hides a part of Armv8.2-A.
        ((("0xd0b", f"{OLD} asimddp"),), (), "armv8-a+dotprod", "every CPU has (Cortex-A76)"),
        ((("0xd0b", NEW.replace("asimddp", "")),), (), "armv8.2-a+fp16", "every CPU has (Cortex-A76)"),
        ((("0xfff", NEW),), (), DOT, "every CPU has (Arm part 0xfff)"),
    ],
)
def test_what_the_pinned_cores_have(
    tmp_path: Path, cores: tuple[tuple[str, str], ...], capacities: tuple[int, ...], march: str, place: str
) -> None:
    target = target_of(machine(tmp_path, *cores, capacities=capacities), lambda _: True)
    assert target.march == march
    assert target.words == f"compiling for {march}, which {place}"


def test_one_line_of_features_holds_for_every_cpu(tmp_path: Path) -> None:
    """Linux before 3.18 lists them once, at the end."""
    here = machine(tmp_path, ("0xd0b", ""), ("0xd0b", ""))
    text = (tmp_path / "proc/cpuinfo").read_text().replace("Features\t: \n", "")
    (tmp_path / "proc/cpuinfo").write_text(f"{text}\nFeatures\t: {NEW}\n")
    assert target_of(here, lambda _: True).march == DOT


@pytest.mark.parametrize(
    "text", ["processor : 0\nflags : fpu avx2 asimddp\n", "processor : 0\nFeatures : neon vfpv4\n", ""]
)
def test_elsewhere_the_compiler_finds_out(tmp_path: Path, text: str) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/cpuinfo").write_text(text)
    target = target_of(Machine(tmp_path), lambda _: True)
    assert (target.march, target.words) == ("", "")


def test_what_the_compiler_does_not_know_is_left_out_and_told(tmp_path: Path) -> None:
    here = machine(tmp_path, A720)
    old = target_of(here, lambda march: "i8mm" not in march)
    assert old.march == DOT
    assert old.words.endswith("; the compiler is too old for i8mm and sve and sve2")
    assert target_of(here, lambda march: "+" not in march).march == "armv8-a"


def test_each_source_is_told_in_its_own_way() -> None:
    for package, flag in (
        (Recipe().package, ("GGML_CPU_ARM_ARCH", DOT)),
        (IK_LLAMA_CPP, ("GGML_ARCH_FLAGS", f"-march={DOT}")),
    ):
        flags = Recipe(package=package, march=DOT).flags
        assert (flags["GGML_NATIVE"], flags[flag[0]]) == ("OFF", flag[1])
        assert flag[0] not in Recipe(package=package).flags


@pytest.mark.skipif(shutil.which("cmake") is None, reason="cmake is missing")
def test_a_build_for_other_cores_is_another_one(tmp_path: Path, home: Path) -> None:
    configuration = Configuration(data=home / "data", cache=home / "cache")
    source = tmp_path / "source"
    source.mkdir()
    names = " ".join(Recipe().targets)
    (source / "CMakeLists.txt").write_text(
        f"cmake_minimum_required(VERSION 3.14)\nproject(tiny NONE)\nforeach(name {names.replace(' ', ';')})\n"
        "  add_custom_target(${name}\n"
        "    COMMAND ${CMAKE_COMMAND} -E make_directory ${CMAKE_BINARY_DIR}/bin\n"
        "    COMMAND ${CMAKE_COMMAND} -E copy ${CMAKE_SOURCE_DIR}/program ${CMAKE_BINARY_DIR}/bin/${name})\n"
        "endforeach()\n"
    )
    (source / "program").write_text("#!/bin/sh\necho 'version: 1 (script)'\n")
    (source / "program").chmod(0o755)
    lines: list[str] = []
    made = []
    for number, core in enumerate((A72, A72, A53, A53)):
        folder = tmp_path / str(number)
        folder.mkdir()
        here = machine(folder, core)
        made.append(compile_llamacpp(Recipe(source=source), configuration, lambda text, _: lines.append(text), here))
    assert [done.fresh for done in made] == [True, False, False, False]  # the instructions are the same
    facts = made[0].entry.facts
    assert facts["flags"]["GGML_CPU_ARM_ARCH"] == facts["march"] == "armv8-a"
    assert " as armv8-a, in " in _made_text(facts)
    assert "-DGGML_CPU_ARM_ARCH=armv8-a" in made[0].log.read_text()
    assert "compiling for armv8-a, which every CPU has (Cortex-A72)" in lines
