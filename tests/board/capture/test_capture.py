"""A board that was captured gives the same again."""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest

from trilithon.board.capture.recorder import Recorder
from trilithon.board.capture.redaction import Redactor, redacted_capture
from trilithon.board.capture.replay import CapturedMachine
from trilithon.board.capture.trees import as_tree
from trilithon.board.doctor import findings
from trilithon.board.snapshot import read_board
from trilithon.board.sysfs import Machine

Plant = Callable[..., Machine]
NOBODY = Redactor(names=["ann"], home=Path("/srv/people/ann"))
TREES = sorted(path.stem for path in (Path(__file__).parent.parent / "trees").glob("*.toml"))


def captured(machine: Machine, folders: tuple[Path, ...] = ()) -> CapturedMachine:
    recorder = Recorder(machine.root)
    findings(read_board(recorder, folders), recorder)
    return CapturedMachine.of(json.loads(json.dumps(recorder.capture())), Path("machine.json"))


def described(machine: Machine, folders: tuple[Path, ...] = ()) -> tuple[object, ...]:
    board = read_board(machine, folders)
    return board.facts(), [asdict(finding) for finding in findings(board, machine)]


@pytest.mark.parametrize("name", TREES)
def test_a_capture_and_its_tree_give_the_same_board_and_findings(plant: Plant, tmp_path: Path, name: str) -> None:
    machine = plant(name)
    expected = described(machine)
    capture = captured(machine)
    assert described(capture) == expected
    redacted = redacted_capture(json.loads(capture.capture.model_dump_json(exclude_unset=True)), NOBODY)
    assert described(CapturedMachine.of(redacted, Path("machine.json"))) == expected
    (tmp_path / "again.toml").write_text(as_tree(capture))
    assert described(plant("again", trees=tmp_path)) == expected


def test_a_container_of_docker_with_cgroup_v1_is_told_from_a_redacted_capture(plant: Plant) -> None:
    mounts = (
        "900 800 0:61 / / rw - overlay overlay rw,lowerdir=/var/lib/docker/overlay2/l/A:/var/lib/docker/overlay2/l/B\n"
        "901 900 0:33 / /limits/mem rw - cgroup cgroup rw,memory\n"
    )
    files = {
        "/proc/self/mountinfo": mounts,
        "/proc/self/cgroup": "5:memory:/\n",
        "/limits/mem/memory.limit_in_bytes": "2147483648\n",
    }
    machine = plant("rk3588_container", files=files, without=("/.dockerenv",))
    assert read_board(machine).limits.memory_bytes == 2 << 30
    recorder = Recorder(machine.root)
    findings(read_board(recorder), recorder)
    again = CapturedMachine.of(redacted_capture(recorder.capture(), NOBODY), Path("machine.json"))
    assert described(again) == described(machine)


def test_this_machine_is_captured_with_its_disks(tmp_path: Path) -> None:
    machine = captured(Machine(), (tmp_path,))
    board = read_board(machine, (tmp_path,))
    assert board.page_size_bytes == read_board().page_size_bytes
    assert board.kernel == read_board().kernel
    assert board.disks[0].free_bytes
    assert not machine.is_this_one


def test_content_that_is_not_text_is_kept(tmp_path: Path) -> None:
    (tmp_path / "odd").write_bytes(b"\xff\0a")
    (tmp_path / "closed").mkdir()
    recorder = Recorder(tmp_path)
    for path in ("/odd", "/closed", "/absent"):
        recorder.raw(path)
    machine = CapturedMachine.of(recorder.capture(), Path("x"))
    assert machine.raw("/odd") == recorder.raw("/odd")
    assert machine.raw("/closed") is None
    assert machine.exists("/closed")
    assert not machine.exists("/absent")
    assert not machine.exists("/never looked for")


def test_a_pattern_that_was_not_asked_for_is_matched_against_known_paths(tmp_path: Path) -> None:
    (tmp_path / "cpu0").write_text("x")
    recorder = Recorder(tmp_path)
    recorder.text("/cpu0")
    recorder.text("/cpu1")
    machine = CapturedMachine.of(recorder.capture(), Path("x"))
    assert machine.glob("/cpu[0-9]") == ["/cpu0"]
    assert machine.glob("/cpu[0-9]/x") == []


def test_a_capture_cannot_be_written_to_nor_sampled() -> None:
    machine = CapturedMachine.of({"uname_machine": "", "page_bytes": None, "globs": {}, "paths": {}}, Path("x"))
    with pytest.raises(OSError, match="Read-only"):
        machine.write("/x", "1")
    assert machine.hold("/x") is None


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "uname_machine: Field required"),
        ({"uname_machine": "a", "page_bytes": 0, "globs": {}, "paths": {}}, "page_bytes"),
        ({"uname_machine": "a", "page_bytes": None, "globs": {"*": "x"}, "paths": {}}, "globs"),
        (
            {"uname_machine": "a", "page_bytes": None, "globs": {}, "paths": {"/x": {"access": "yes"}}},
            "paths./x.access",
        ),
        (
            {
                "uname_machine": "a",
                "page_bytes": 1,
                "globs": {},
                "paths": {"/x": {"access": "readable", "base64": "?"}},
            },
            "",
        ),
    ],
)
def test_values_that_are_no_capture_are_refused_in_one_line(values: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=r"^[^\n]*$") as caught:
        CapturedMachine.of(values, Path("x"))
    assert message in str(caught.value)
