"""Things of real boards that Debian and PyPI have: `.ci/fixtures` fetches them into build/fixtures."""

import os
import platform
import subprocess
from pathlib import Path

import pytest

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
