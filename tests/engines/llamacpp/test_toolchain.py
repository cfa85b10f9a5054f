import shutil
from pathlib import Path

import pytest

from trilithon.engines.llamacpp import toolchain
from trilithon.engines.llamacpp.toolchain import choose_jobs, find_toolchain, install_command, require_space
from trilithon.errors import UserError

MISSING = {
    "g++": "there is no C++ compiler",
    "cmake": "there is no cmake",
    "ninja-build": "there is neither ninja nor make",
}


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only folder that programs are looked for in."""
    folder = tmp_path / "path"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    for name in ("CXX", "VULKAN_SDK"):
        monkeypatch.delenv(name, raising=False)
    return folder


def tool(folder: Path, name: str, script: str = "exit 0") -> None:
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)


def whole(folder: Path, *, cmake: str = "3.25.1", lacks: str = "nothing at all") -> None:
    """All tools, as scripts; a compiler that has every header but those whose source mentions `lacks`."""
    tool(
        folder,
        "c++",
        '[ "$1" = --version ] && echo "c++ (Debian 12.2.0-14) 12.2.0" && exit\n'
        'for word; do case "$word" in *probe.cpp) while read -r line; do case "$line" in '
        f'*"{lacks}"*) exit 1;; esac; done < "$word";; esac; done',
    )
    tool(folder, "cmake", f"echo 'cmake version {cmake}'; echo; echo more")
    tool(folder, "ninja")
    tool(folder, "glslc", "echo 'shaderc 2023.2-1'")


def refusal(*, vulkan: bool = False) -> str:
    with pytest.raises(UserError) as caught:
        find_toolchain(vulkan=vulkan)
    return str(caught.value)


def test_a_whole_one(path: Path) -> None:
    whole(path)
    found = find_toolchain(vulkan=True)
    assert (found.compiler, found.cmake) == ("c++ (Debian 12.2.0-14) 12.2.0", "3.25.1")
    assert (found.generator, found.glslc) == ("Ninja", "shaderc 2023.2-1")


def test_make_where_there_is_no_ninja(path: Path) -> None:
    whole(path)
    (path / "ninja").rename(path / "make")
    assert find_toolchain(vulkan=False).generator == "Unix Makefiles"


def test_everything_that_is_missing_is_named_with_one_command(path: Path) -> None:
    tool(path, "apt")
    words = ", ".join(MISSING.values())
    assert refusal() == f"cannot compile here: {words}; run: sudo apt install {' '.join(MISSING)}"


@pytest.mark.parametrize(
    ("installer", "command"),
    [
        ("dnf", "run: sudo dnf install gcc-c++ glslc vulkan-headers vulkan-loader-devel"),
        ("pacman", "run: sudo pacman -S gcc shaderc vulkan-headers vulkan-icd-loader"),
        ("zypper", "run: sudo zypper install gcc-c++ shaderc vulkan-devel"),
        ("apk", "run: sudo apk add g++ shaderc vulkan-headers vulkan-loader-dev"),
        ("", "install the packages that Debian names g++ glslc libvulkan-dev"),
    ],
)
def test_the_command_of_the_distribution(path: Path, installer: str, command: str) -> None:
    if installer:
        tool(path, installer)
    assert install_command(["compiler", "glslc", "vulkan"]) == command


def test_a_compiler_that_is_too_old(path: Path) -> None:
    whole(path, lacks="charconv")
    assert refusal().startswith("cannot compile here: c++ (Debian 12.2.0-14) 12.2.0 knows no C++17; ")


@pytest.mark.parametrize(("version", "vulkan", "least"), [("3.13.4", False, "3.14"), ("3.18.9", True, "3.19")])
def test_a_cmake_that_is_too_old(path: Path, version: str, vulkan: bool, least: str) -> None:
    whole(path, cmake=version)
    said = f"cmake {version} is too old: {least} or newer is needed; run: pipx install cmake, or: uv tool install cmake"
    assert refusal(vulkan=vulkan) == said


@pytest.mark.parametrize(
    ("lacks", "thing", "package"),
    [
        ("vulkan/vulkan.hpp", "there are no Vulkan headers", "libvulkan-dev"),
        ("spirv/unified1", "there are no SPIR-V headers", "spirv-headers"),
    ],
)
def test_headers_that_are_missing(path: Path, lacks: str, thing: str, package: str) -> None:
    whole(path, lacks=lacks)
    tool(path, "apt")
    assert refusal(vulkan=True) == f"cannot compile here: {thing}; run: sudo apt install {package}"
    assert find_toolchain(vulkan=False).glslc == ""


def test_no_glslc(path: Path) -> None:
    whole(path)
    (path / "glslc").unlink()
    tool(path, "apt")
    assert refusal(vulkan=True).endswith("no glslc, which compiles Vulkan's shaders; run: sudo apt install glslc")


@pytest.mark.parametrize("new", [False, True])
def test_vulkan_headers_by_a_real_compiler(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, new: bool
) -> None:
    """Those of the SDK, as CMake takes them: Debian 12's 1.3.239 have no VK_EXT_layer_settings."""
    real = shutil.which("c++", path="/usr/local/bin:/usr/bin:/bin")
    if real is None:
        pytest.skip("a C++ compiler is missing")
    whole(path)
    tool(path, "c++", f'PATH=/usr/local/bin:/usr/bin:/bin exec {real} "$@"')
    include = tmp_path / "sdk/include"
    for name in ("vulkan/vulkan.hpp", "vulkan/vulkan_core.h", "spirv/unified1/spirv.hpp"):
        (include / name).parent.mkdir(parents=True, exist_ok=True)
        (include / name).write_text("#define VK_EXT_layer_settings 1\n" if new else "#define VK_HEADER_VERSION 239\n")
    monkeypatch.setenv("VULKAN_SDK", str(tmp_path / "sdk"))
    if new:
        assert find_toolchain(vulkan=True).glslc
    else:
        assert refusal(vulkan=True).startswith("the Vulkan headers are too old: 1.3.272 or newer is needed")


def test_jobs_by_cpus_and_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.setattr(toolchain, "_JOB_BYTES", 1 << 20)
    assert choose_jobs(None) == 8
    monkeypatch.setattr(toolchain, "_JOB_BYTES", 1 << 60)
    assert choose_jobs(None) == 1
    assert choose_jobs(5) == 5


def test_too_little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toolchain, "_LEAST_BYTES", 1 << 60)
    with pytest.raises(UserError, match=r"of memory are free .* stop other programs, or add swap"):
        choose_jobs(4)


def test_too_little_space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    require_space(tmp_path, vulkan=False)
    monkeypatch.setattr(toolchain, "_SPACE_VULKAN_BYTES", 1 << 70)
    with pytest.raises(UserError, match="free some or name another folder with TRILITHON_CACHE"):
        require_space(tmp_path, vulkan=True)
