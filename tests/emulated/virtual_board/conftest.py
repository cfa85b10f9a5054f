"""One virtual board for all tests that change nothing for good; `boot` starts others."""

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
from virtual_board import PROGRAMS, VirtualBoard, make_disk, started

from trilithon.models.synthetic.tiny import write_tiny_model

REPOSITORY = Path(__file__).parent.parent.parent.parent
FIXTURES = REPOSITORY / "build" / "fixtures"

Boot = Callable[..., AbstractContextManager[VirtualBoard]]


@pytest.fixture(scope="session")
def boot(tmp_path_factory: pytest.TempPathFactory) -> Boot:
    if platform.machine() != "x86_64":
        pytest.skip("the virtual board is emulated on x86-64")
    if not all((FIXTURES / name).is_dir() for name in ("virtual-board", "arm64-root", "dtb")):
        if os.environ.get("TRILITHON_TEST_WITHOUT_FIXTURES"):
            pytest.skip("TRILITHON_TEST_WITHOUT_FIXTURES is set: the virtual board's system cannot be fetched here")
        pytest.skip("the virtual board's system is missing; run: .ci/fixtures")
    if shutil.which("mke2fs", path=PROGRAMS) is None:
        pytest.skip("mke2fs (e2fsprogs) is missing")
    folder = tmp_path_factory.mktemp("virtual_board")
    make_disk(FIXTURES / "arm64-root", folder / "disk")
    pip = [sys.executable, "-m", "pip", "-q", "--disable-pip-version-check"]
    subprocess.run([*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", folder, REPOSITORY], check=True)
    (wheel,) = folder.glob("*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--target", folder / "site", wheel], check=True)

    def boot_one(**options: Any) -> AbstractContextManager[VirtualBoard]:
        return started(FIXTURES, folder / "disk", folder / "site", tmp_path_factory.mktemp("boot"), **options)

    return boot_one


@pytest.fixture(scope="session")
def board(boot: Boot) -> Iterator[VirtualBoard]:
    with boot() as virtual_board:
        write_tiny_model(virtual_board.folder / "tiny.gguf")
        yield virtual_board
