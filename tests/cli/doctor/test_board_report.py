import io
import json
import resource
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from trilithon.cli.doctor.report_archive import member_texts, read_report, write_members
from trilithon.errors import UserError

Program = Callable[..., Any]

MEMBERS = {
    "report.json": {"format": 1, "folders": [], "other_findings": []},
    "doctor.json": {"engines": []},
    "machine.json": {"uname_machine": "aarch64", "page_bytes": 4096, "globs": {}, "paths": {}},
}
PRIVATE = "ann-smith"


@pytest.fixture
def report(trilithon: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Of this machine, whose user is ann-smith."""
    monkeypatch.setenv("LOGNAME", PRIVATE)
    monkeypatch.setenv("LD_LIBRARY_PATH", f"/srv/{PRIVATE}/lib")
    file = tmp_path / "out" / "r.zip"
    file.parent.mkdir()
    done = trilithon("board-report", "--no-check", "-y", "-o", file)
    assert (done.code, done.stdout.splitlines()[-1]) == (0, str(file))
    assert "/proc/meminfo  " in done.stdout  # shown before it is written
    return file


def test_the_report_gives_the_same_doctor_byte_for_byte(trilithon: Program, report: Path) -> None:
    there = trilithon("board-report", "show", report, "--member", "doctor.json")
    here = trilithon("doctor", "--root", report, "--json")
    assert (here.code, here.stdout) == (0, there.stdout)
    text = trilithon("doctor", "--root", report)
    assert text.stdout.startswith(json.loads(there.stdout)["board"]["description"])
    assert "llama.cpp@" in text.stdout


def test_nothing_private_is_in_the_report(report: Path, home: Path) -> None:
    texts = read_report(report).members
    for name, text in texts.items():
        assert PRIVATE not in text, name
        assert str(home) not in text, name
        assert "TRILITHON_" not in text, name


def test_it_is_written_only_after_a_yes(trilithon: Program, tmp_path: Path, report: Path) -> None:
    done = trilithon("board-report", "--no-check", "-o", tmp_path / "other.zip")
    assert (done.code, done.stderr) == (2, "error: nothing was written; add --yes to write without a question\n")
    assert not (tmp_path / "other.zip").exists()
    done = trilithon("board-report", "--no-check", "-y", "-o", report)
    assert (done.code, done.stderr) == (2, f"error: {report} exists; choose another file with -o\n")


@pytest.mark.slow
def test_the_check_of_the_engines_is_in_the_report(trilithon: Program, tmp_path: Path) -> None:
    file = tmp_path / "r.zip"
    assert trilithon("board-report", "-y", "-o", file).code == 0
    assert '"capability": "load"' in read_report(file).members["engines.log"]


def test_the_tree_of_a_report_is_one_of_the_tests(trilithon: Program, report: Path) -> None:
    done = trilithon("board-report", "tree", report)
    assert done.code == 0
    assert '"/proc/meminfo" = "MemTotal:' in done.stdout


def archive(members: dict[str, Any], **more: bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as opened:
        for name, data in (member_texts(members) | more).items():
            opened.writestr(name, data)
    return stream.getvalue()


WHOLE = archive(MEMBERS)
MANY = {f"{number}.json": {} for number in range(40)}


def changed(**members: Any) -> bytes:
    return archive(MEMBERS | {name.replace("_", "."): value for name, value in members.items()})


def with_path(**entry: Any) -> bytes:
    return changed(machine_json=MEMBERS["machine.json"] | {"paths": {"/x": entry}})


def encrypted() -> bytes:
    data = bytearray(WHOLE)
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        at = data.find(signature)
        while at >= 0:
            data[at + offset] |= 1
            at = data.find(signature, at + 4)
    return bytes(data)


HOSTILE = {
    "empty": b"",
    "no archive": b"hello\n",
    "cut short": WHOLE[:-30],
    "only its end": WHOLE[-40:],
    "garbled": WHOLE[:60] + b"\xff" * 40 + WHOLE[100:],
    "encrypted": encrypted(),
    "no members": archive({}),
    "too many members": archive(MEMBERS | MANY),
    "path out of the folder": archive(MEMBERS | {"../x.json": {}}),
    "absolute path": archive(MEMBERS | {"/etc/x.json": {}}),
    "a program": archive(MEMBERS | {"run.sh": "rm"}),
    "bomb": archive(MEMBERS | {"big.log": "0" * (17 << 20)}),
    "not UTF-8": archive({}, **{"report.json": b"\xff\xfe"}),
    "not JSON": archive(MEMBERS | {"report.json": "{"}),
    "a list": changed(report_json=[]),
    "deep": archive(MEMBERS | {"report.json": "[" * 200_000}),
    "another format": changed(report_json={"format": 99}),
    "folders of numbers": changed(report_json={"format": 1, "folders": [5]}),
    "no capture": changed(machine_json={"paths": {}}),
    "unknown access": with_path(access="maybe"),
    "unknown field": with_path(access="readable", run="x"),
    "bad base64": with_path(access="readable", base64="???"),
    "huge number": with_path(access="readable", free_bytes=-1),
    "other findings": changed(report_json={"format": 1, "other_findings": [{"x": "y"}]}),
    "other engine rows": changed(doctor_json={"engines": [{"x": 1}]}),
    "an engine row of numbers": changed(doctor_json={"engines": [{"placement": 1, "usable": True}]}),
    "no engine rows": changed(doctor_json={}),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_or_damaged_report_is_refused_in_one_line(trilithon: Program, tmp_path: Path, name: str) -> None:
    file = tmp_path / "r.zip"
    file.write_bytes(HOSTILE[name])
    done = trilithon("doctor", "--root", file)
    assert (done.code, done.stdout) == (2, "")
    assert done.stderr.startswith(f"error: {file} ")
    assert done.stderr.count("\n") == 1
    assert len(done.stderr) < 500


def test_a_report_sends_no_control_characters_to_the_terminal(trilithon: Program, tmp_path: Path) -> None:
    file = tmp_path / "r.zip"
    row = {"placement": "a\x1b]52;c;eA==\x07", "usable": False, "why": "b\x1b[2J", "fix": "c\rd"}
    finding = {"id": "x", "severity": "note", "subject": "s\x9b2J", "message": "m\x1b[1m", "fix": ""}
    heading = {"format": 1, "other_findings": [finding]}
    file.write_bytes(archive(MEMBERS | {"report.json": heading, "doctor.json": {"engines": [row]}, "e.log": "\x1b[2J"}))
    for words in (("doctor", "--root", file), ("board-report", "show", file, "--member", "e.log")):
        done = trilithon(*words)
        assert done.code == 0
        assert all(letter.isprintable() or letter == "\n" for letter in done.stdout)


def test_a_report_that_is_missing_or_a_folder(trilithon: Program, tmp_path: Path) -> None:
    done = trilithon("doctor", "--root", tmp_path / "none.zip")
    assert (done.code, done.stderr.count("\n")) == (2, 1)
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc" / "meminfo").write_text("MemTotal: 1048576 kB\n")
    done = trilithon("doctor", "--root", tmp_path)
    assert done.code == 0
    assert "1.0 GiB" in done.stdout


def test_a_full_disk_leaves_no_half_report(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50, hard))  # the write fails as on a full disk: EFBIG for ENOSPC
    try:
        with pytest.raises(UserError, match=r"cannot write .*: File too large; choose another file with -o"):
            write_members(tmp_path / "r.zip", member_texts(MEMBERS))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []
