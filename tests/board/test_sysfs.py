import os
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trilithon.board import sysfs
from trilithon.board.sysfs import Machine, format_cpu_list, parse_count, parse_cpu_list, parse_time_in_state


def write(root: Path, path: str, content: bytes) -> None:
    place = root / path.lstrip("/")
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_bytes(content)


@contextmanager
def without_privileges() -> Iterator[None]:
    """Root may read everything, so a test that runs as root takes another user's rights for a moment."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_absent_is_none_in_every_form(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    for read in (machine.text, machine.integer, machine.integers, machine.cpus, machine.strings, machine.link):
        assert read("/sys/nothing") is None
    assert machine.fields("/proc/nothing") == {}
    assert machine.glob("/sys/class/drm/card*") == []
    assert machine.access("/sys/nothing") == "absent"
    assert not machine.exists("/sys/nothing")
    assert not machine.usable("/dev/nothing")


def test_values_are_read_in_the_kernel_s_forms(tmp_path: Path) -> None:
    write(tmp_path, "/proc/device-tree/compatible", b"radxa,rock-5b\0rockchip,rk3588\0")
    write(tmp_path, "/sys/max", b"2400000\n")
    write(tmp_path, "/sys/table", b"408000 2400000 \n")
    write(tmp_path, "/proc/meminfo", b"MemTotal:       16 kB\nHugePages_Total:   0\nnonsense\n")
    write(tmp_path, "/proc/vmstat", b"pswpin 12\npswpout 0\n")
    machine = Machine(tmp_path)
    assert machine.strings("/proc/device-tree/compatible") == ("radxa,rock-5b", "rockchip,rk3588")
    assert machine.integer("/sys/max") == 2_400_000
    assert machine.integers("/sys/table") == (408_000, 2_400_000)
    assert machine.fields("/proc/meminfo") == {"MemTotal": "16 kB", "HugePages_Total": "0"}
    assert machine.fields("/proc/vmstat", None) == {"pswpin": "12", "pswpout": "0"}


def test_garbled_numbers_and_text_do_not_raise(tmp_path: Path) -> None:
    write(tmp_path, "/sys/value", b"\xff\xfe<unknown>\n")
    machine = Machine(tmp_path)
    assert machine.integer("/sys/value") is None
    assert machine.cpus("/sys/value") is None
    assert machine.text("/sys/value") == "��<unknown>"


def test_denied_is_told_apart_from_absent() -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        root.chmod(0o755)
        write(root, "/sys/secret", b"1\n")
        write(root, "/sys/debug/rknpu/version", b"v0.9.8\n")
        write(root, "/dev/read-only", b"")
        (root / "sys/secret").chmod(0)
        (root / "sys/debug").chmod(0)
        (root / "dev/read-only").chmod(0o444)
        machine = Machine(root)
        with without_privileges():
            assert machine.access("/sys/secret") == "denied"
            assert machine.text("/sys/secret") is None
            assert machine.access("/sys/debug/rknpu/version") == "denied"
            assert machine.access("/sys/nothing") == "absent"
            assert machine.readable("/dev/read-only")
            assert not machine.usable("/dev/read-only")
        (root / "sys/debug").chmod(0o755)


def test_a_pipe_that_nobody_writes_to_does_not_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert Machine(tmp_path).text("/pipe") == ""


def test_a_driver_that_does_not_answer_is_left_behind_until_it_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, answer, content = "/sys/class/thermal/thermal_zone0/temp", threading.Event(), sysfs._content

    def stuck(place: str) -> bytes | None:
        if place.endswith("temp"):
            answer.wait(60)
        return content(place)

    monkeypatch.setattr(sysfs, "_content", stuck)
    monkeypatch.setattr(sysfs, "_PATIENCE_SECONDS", 0.5)
    write(tmp_path, path, b"45000\n")
    write(tmp_path, "/sys/class/thermal/thermal_zone0/type", b"soc-thermal\n")
    machine, before = Machine(tmp_path), threading.active_count()
    began = time.monotonic()
    assert [machine.integer(path) for _ in range(40)] == [None] * 40
    assert time.monotonic() - began < 10  # it is waited for once, not 40 times 0.5 s
    assert threading.active_count() == before + 1
    assert machine.text("/sys/class/thermal/thermal_zone0/type") == "soc-thermal"
    answer.set()
    deadline = time.monotonic() + 60
    while machine.integer(path) != 45000:
        assert time.monotonic() < deadline


@given(st.one_of(st.text(), st.integers().map(str), st.sampled_from(["9" * 5000, "²", "-1", ""])))
def test_any_text_is_a_count_or_none(text: str) -> None:
    count = parse_count(text)
    assert count is None or (count >= 0 and count == int(text))


def test_a_folder_and_an_endless_file_are_survived(tmp_path: Path) -> None:
    assert Machine(tmp_path).text("/") is None
    assert len(Machine().text("/dev/zero") or "") == 0  # bounded; NULs are stripped


def test_paths_are_sorted_by_counting(tmp_path: Path) -> None:
    for number in (10, 2, 0):
        write(tmp_path, f"/sys/cpu{number}/online", b"1")
    assert Machine(tmp_path).glob("/sys/cpu*") == ["/sys/cpu0", "/sys/cpu2", "/sys/cpu10"]


def test_a_driver_is_the_last_name_of_its_link(tmp_path: Path) -> None:
    (tmp_path / "driver").symlink_to("../../bus/platform/drivers/RKNPU")
    assert Machine(tmp_path).link("/driver") == "RKNPU"


@pytest.mark.parametrize(
    ("text", "cpus"), [("0-3,6", (0, 1, 2, 3, 6)), ("0 1 2 3\n", (0, 1, 2, 3)), ("", ()), ("5,4", (4, 5))]
)
def test_cpu_lists(text: str, cpus: tuple[int, ...]) -> None:
    assert parse_cpu_list(text) == cpus


@pytest.mark.parametrize("text", ["3-1", "a", "0-99999", "-1", "1-", "0x3", "٣"])
def test_what_is_no_cpu_list_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not a CPU list"):
        parse_cpu_list(text)


@given(st.sets(st.integers(0, 8191)))
def test_cpu_lists_survive_the_round_trip(cpus: set[int]) -> None:
    assert parse_cpu_list(format_cpu_list(list(cpus))) == tuple(sorted(cpus))


@given(st.text(alphabet="0123456789-, \n\tx"))
def test_any_text_is_a_cpu_list_or_a_value_error(text: str) -> None:
    try:
        cpus = parse_cpu_list(text)
    except ValueError:
        return
    assert cpus == parse_cpu_list(format_cpu_list(cpus))


@given(st.dictionaries(st.integers(1, 10**7), st.integers(0, 10**12)))
def test_time_in_state_reads_what_the_kernel_writes(ticks: dict[int, int]) -> None:
    assert parse_time_in_state("".join(f"{khz} {count}\n" for khz, count in ticks.items())) == ticks


@pytest.mark.parametrize("text", ["408000", "408000 1 2", "fast 12"])
def test_what_is_no_time_in_state_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"time_in_state|invalid literal"):
        parse_time_in_state(text)
