from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trilithon.board.libraries import environment, find_library, find_runtimes, own_paths, parse_version
from trilithon.board.sysfs import Machine

Plant = Callable[..., Machine]
RKLLM = "RKLLM SDK (version: {} | target: Linux | build: 2025-11-25)"


def _library(root: Path, path: str, content: bytes) -> Path:
    place = root / path.lstrip("/")
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_bytes(content)
    return place


def test_runtimes_are_told_by_their_bytes(plant: Plant) -> None:
    found = [(each.library, each.version) for each in find_runtimes(plant("rk3576"))]
    assert found == [("librkllmrt.so", "1.2.3"), ("librknnrt.so", "2.3.2")]


def test_every_folder_of_the_loader_is_looked_into_in_its_order(tmp_path: Path) -> None:
    folders = ["/opt/own", "/usr/local/lib", "/lib", "/usr/lib/aarch64-linux-gnu"]
    for number, folder in enumerate(folders):
        _library(tmp_path, f"{folder}/librkllmrt.so", RKLLM.format(f"1.2.{number}").encode())
    _library(tmp_path, "/proc/self/environ", b"LD_LIBRARY_PATH=relative::/opt/own\0")
    found = find_runtimes(Machine(tmp_path))
    assert [each.path for each in found] == [f"{folder}/librkllmrt.so" for folder in folders]
    assert [each.version for each in found] == ["1.2.0", "1.2.1", "1.2.2", "1.2.3"]


def test_one_file_under_two_names_is_one_runtime(tmp_path: Path) -> None:
    _library(tmp_path, "/usr/lib/librkllmrt.so", RKLLM.format("1.3.0").encode())
    (tmp_path / "lib").symlink_to("usr/lib")
    assert [each.path for each in find_runtimes(Machine(tmp_path))] == ["/lib/librkllmrt.so"]
    assert find_library(Machine(tmp_path), "librkllmrt.so") == "/lib/librkllmrt.so"
    assert find_library(Machine(tmp_path), "librknnrt.so") is None


@pytest.mark.parametrize("before", [0, (1 << 20) - 30, (1 << 20) - 5, (1 << 20) + 1, 3 << 20])
def test_a_version_is_found_wherever_it_lies(tmp_path: Path, before: int) -> None:
    content = b"\0" * before + b"RKLLM SDK (version: %s)\0" + RKLLM.format("1.2.3").encode() + b"\0" * 100
    _library(tmp_path, "/usr/lib/librkllmrt.so", content)
    assert find_runtimes(Machine(tmp_path))[0].version == "1.2.3"


def test_a_large_file_is_not_held_in_memory_nor_read_for_ever(tmp_path: Path) -> None:
    place = _library(tmp_path, "/usr/lib/librkllmrt.so", b"")
    with place.open("r+b") as file:
        file.truncate(1 << 40)  # sparse: takes no room
    assert find_runtimes(Machine(tmp_path))[0].version is None


@given(st.binary(max_size=300))
def test_the_environment_is_read_whatever_it_holds(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    root = tmp_path_factory.mktemp("environment")
    _library(root, "/proc/self/environ", content)
    for value in environment(Machine(root)).values():
        assert all(path.startswith("/") and "\0" not in path for path in own_paths(value))


@pytest.mark.parametrize(
    ("text", "version"), [("0.9.8", (0, 9, 8)), ("25.0.7-2", (25, 0, 7, 2)), ("", ()), (None, ()), ("v1", (1,))]
)
def test_versions_compare_by_number(text: str | None, version: tuple[int, ...]) -> None:
    assert parse_version(text) == version
    assert parse_version("0.9.10") > parse_version("0.9.8")
