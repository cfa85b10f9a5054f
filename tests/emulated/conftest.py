"""Things of real boards that Debian and PyPI have: `.ci/fixtures` fetches them into build/fixtures."""

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from arm64_root import Arm64Root

SCRIPT = Path(__file__).with_name("rknn_toolkit.py")
FIXTURES = Path(__file__).parent.parent.parent / "build" / "fixtures"


def fetched(name: str, what: str) -> Path:
    """A path below the fixtures; skips the test where it is not there."""
    path = FIXTURES / name
    if not path.exists():
        if os.environ.get("TRILITHON_TEST_WITHOUT_FIXTURES"):
            pytest.skip(f"TRILITHON_TEST_WITHOUT_FIXTURES is set: {what} cannot be fetched here")
        pytest.skip(f"{what} are missing; run: .ci/fixtures")
    return path


@pytest.fixture(scope="session")
def device_trees() -> Path:
    """The folder with the .dtb files of Debian's arm64 kernel, in a folder for each maker."""
    return fetched("dtb", "Debian's device trees")


@pytest.fixture(scope="session")
def ik_library_arm64() -> Path:
    """The folder with the package ik-llama-cpp-python for arm64."""
    return fetched("ik-library-arm64", "ik-llama-cpp-python for arm64")


@pytest.fixture(scope="session")
def rknn_toolkit() -> Path:
    """The Python of an environment with rknn-toolkit2."""
    if platform.machine() != "x86_64":
        pytest.skip("rknn-toolkit2's simulator is for x86-64")
    return fetched("rknn/bin/python", "rknn-toolkit2 and its packages")


@pytest.fixture(scope="session")
def encoders(rknn_toolkit: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """N.onnx with 1 and 4 outputs, and N-CHIP.rknn for each chip."""
    folder = tmp_path_factory.mktemp("encoders")
    subprocess.run([rknn_toolkit, SCRIPT, "make", folder], check=True, capture_output=True)
    return folder


@pytest.fixture(scope="session")
def qemu() -> Path:
    if platform.machine() != "x86_64":
        pytest.skip("arm64 is emulated on x86-64")
    return fetched("qemu-aarch64", "qemu and the arm64 programs")


@pytest.fixture(scope="session")
def arm64_llama(qemu: Path) -> Path:
    """The root with Debian's llama.cpp for arm64."""
    return fetched("arm64-llama", "Debian's llama.cpp for arm64")


@pytest.fixture(scope="session")
def arm64(qemu: Path, tmp_path_factory: pytest.TempPathFactory) -> Arm64Root:
    """arm64 Debian with Python, in which the project is installed from its wheel."""
    if shutil.which("unshare") is None:
        pytest.skip("unshare (util-linux) is missing")
    root = Arm64Root(fetched("arm64-root", "arm64 Debian and its Python"), qemu, tmp_path_factory.mktemp("arm64"))
    tried = root.run("true")
    if tried.returncode:
        pytest.skip(f"this kernel gives no name space with binary formats of its own: {tried.stderr.strip()}")
    wheels = root.work / "wheels"
    build = ["wheel", "-q", "--no-deps", "--no-build-isolation", "-w", wheels, Path(__file__).parent.parent.parent]
    subprocess.run([sys.executable, "-m", "pip", *build], check=True)
    (wheel,) = wheels.iterdir()
    root.install(wheel, sys.executable)
    return root
