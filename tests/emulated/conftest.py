"""Things of real boards that Debian and PyPI have: `.ci/fixtures` fetches them into build/fixtures."""

import os
from pathlib import Path

import pytest

FIXTURES = Path(__file__).parent.parent.parent / "build" / "fixtures"


@pytest.fixture(scope="session")
def device_trees() -> Path:
    """The folder with the .dtb files of Debian's arm64 kernel, in a folder for each maker."""
    folder = FIXTURES / "dtb"
    if not folder.is_dir():
        if os.environ.get("TRILITHON_TEST_WITHOUT_FIXTURES"):
            pytest.skip("TRILITHON_TEST_WITHOUT_FIXTURES is set: Debian's device trees cannot be fetched here")
        pytest.skip("Debian's device trees are missing; run: .ci/fixtures")
    return folder
