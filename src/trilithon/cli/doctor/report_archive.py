"""The archive of `trilithon board-report`: a zip file with a few JSON and text members, read with bounds."""

import json
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trilithon.errors import UserError

if TYPE_CHECKING:
    from trilithon.board.capture.replay import CapturedMachine

__all__ = ["FORMAT", "BoardReport", "member_texts", "printable", "printable_text", "read_report", "write_members"]

FORMAT = 1
_SUFFIXES = (".json", ".jsonl", ".log")
_MOST_MEMBERS = 32
_MOST_FILE_BYTES = 32 << 20
_MOST_MEMBER_BYTES = 16 << 20
_FIXED_DATE = (2020, 1, 1, 0, 0, 0)  # the date is in report.json; equal content gives an equal archive


@dataclass(frozen=True, slots=True, kw_only=True)
class BoardReport:
    """`folders` are those whose free disk doctor states; `other_findings` those that are not made from the machine's
    files; `doctor` is what `trilithon doctor --json` printed. `members` are all texts by name."""

    machine: "CapturedMachine"
    folders: tuple[Path, ...]
    other_findings: tuple[Mapping[str, str], ...]
    doctor: Mapping[str, Any]
    members: Mapping[str, str]


def member_texts(members: Mapping[str, Any]) -> dict[str, str]:
    """Each value as the text of a file: texts as they are, others as JSON."""
    return {
        name: value if isinstance(value, str) else json.dumps(value, indent=2, ensure_ascii=False) + "\n"
        for name, value in members.items()
    }


def write_members(file: Path, texts: Mapping[str, str]) -> None:
    """Raises UserError when the file exists or cannot be written."""
    try:
        with file.open("xb") as opened:
            try:
                with zipfile.ZipFile(opened, "w", zipfile.ZIP_DEFLATED) as archive:
                    for name, text in texts.items():
                        entry = zipfile.ZipInfo(name, _FIXED_DATE)
                        entry.compress_type = zipfile.ZIP_DEFLATED
                        archive.writestr(entry, text.encode("utf-8", "replace"))
            except BaseException:
                file.unlink()
                raise
    except FileExistsError:
        raise UserError("{file} exists; choose another file with -o", file=file) from None
    except OSError as error:
        raise UserError(
            "cannot write {file}: {reason}; choose another file with -o", file=file, reason=error.strerror
        ) from None


def printable(values: Mapping[str, Any]) -> dict[str, Any]:
    """The texts in `values` without control characters, which a stranger's file could send to a terminal. Raises
    TypeError for values that are neither texts nor truth values."""
    if not all(isinstance(value, str | bool) for value in values.values()):
        raise TypeError("neither a text nor a truth value")
    return {name: printable_text(value) if isinstance(value, str) else value for name, value in values.items()}


def printable_text(text: str) -> str:
    """With its lines and tabs; other control characters are replaced by spaces."""
    return "".join(letter if letter.isprintable() or letter in "\n\t" else " " for letter in text)


def read_report(file: Path) -> BoardReport:
    """Raises UserError, in one line, for anything that is not a whole report."""
    from trilithon.board.capture.replay import CapturedMachine

    try:
        texts = _texts(file)
        heading, doctor = _object(texts, "report.json"), _object(texts, "doctor.json")
        if heading.get("format") != FORMAT:
            raise ValueError(f"its format is {heading.get('format')!r}, and this version reads {FORMAT}")
        folders, other = heading.get("folders", []), heading.get("other_findings", [])
        if not _are(folders, str) or not _are(other, dict):
            raise ValueError("report.json: folders or other_findings are not lists of texts and of objects")
        machine = CapturedMachine.of(_object(texts, "machine.json"), file)
    except OSError as error:
        raise UserError("cannot read {file}: {reason}", file=file, reason=error.strerror or error) from None
    # zipfile raises RuntimeError for an encrypted member, NotImplementedError for an unknown compression.
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, ValueError, RecursionError) as error:
        text = " ".join(str(error).split())[:200]
        raise UserError(
            "{file} is not a board report: {text}; ask for a new one: trilithon board-report", file=file, text=text
        ) from None
    return BoardReport(
        machine=machine, folders=tuple(map(Path, folders)), other_findings=tuple(other), doctor=doctor, members=texts
    )


def _texts(file: Path) -> dict[str, str]:
    if file.stat().st_size > _MOST_FILE_BYTES:
        raise ValueError(f"it is larger than {_MOST_FILE_BYTES >> 20} MiB")
    texts: dict[str, str] = {}
    with zipfile.ZipFile(file) as archive:
        entries = archive.infolist()
        if len(entries) > _MOST_MEMBERS:
            raise ValueError(f"it has {len(entries)} members, and at most {_MOST_MEMBERS} are read")
        for entry in entries:
            if "/" in entry.filename or not entry.filename.endswith(_SUFFIXES) or entry.filename in texts:
                raise ValueError(f"member {entry.filename[:60]!r} does not belong there")
            with archive.open(entry) as member:  # the stated size may be wrong: only so much is unpacked
                data = member.read(_MOST_MEMBER_BYTES + 1)
            if len(data) > _MOST_MEMBER_BYTES:
                raise ValueError(f"{entry.filename} is larger than {_MOST_MEMBER_BYTES >> 20} MiB")
            texts[entry.filename] = data.decode()
    return texts


def _object(texts: Mapping[str, str], name: str) -> dict[str, Any]:
    if name not in texts:
        raise ValueError(f"{name} is missing")
    value = json.loads(texts[name])
    if not isinstance(value, dict):
        raise ValueError(f"{name} is not an object")
    return value


def _are(values: Any, kind: type) -> bool:
    return isinstance(values, list) and all(isinstance(value, kind) for value in values)
