"""The fallback that works for a placement, and the failures before it: stored, so that a crash happens only once.

One small file each in the data folder, replaced in one step, because several processes may write it at once. A file is
valid as long as the build, the devices with their drivers and the kernel are the same."""

import hashlib
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trilithon.engines.base import Build, Placement, Unit
from trilithon.errors import UserError
from trilithon.files import JsonStore
from trilithon.settings import Configuration

__all__ = ["FailedAttempt", "StoredFallback", "forget", "known_of", "recall", "remember"]


@dataclass(frozen=True, slots=True, kw_only=True)
class FailedAttempt:
    """What happened with the settings of a fallback step (empty: the placement's own). `date` is in ISO format."""

    step: str
    kind: str
    cause: str
    date: str
    last_words: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"with {self.step or 'its own settings'}: {self.kind}, {self.cause or 'unknown cause'} ({self.date})"


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredFallback:
    """`step` is empty where the placement's own settings work."""

    architecture: str
    quantization: str
    step: str
    failed: tuple[FailedAttempt, ...]


def recall(configuration: Configuration, placement: Placement) -> StoredFallback | None:
    """None when nothing is stored, or it is no longer valid: then its file is removed."""
    file = _file(configuration, placement)
    record = _read(file)
    if record is None:
        return None
    if record["state"] != _state(placement.build, placement.unit):
        with suppress(FileNotFoundError):  # another process removed it first
            file.unlink()
        return None
    return _parse(record)


def remember(configuration: Configuration, placement: Placement, step: str, failed: tuple[FailedAttempt, ...]) -> None:
    """`placement` has its own settings. Raises UserError when the file cannot be written."""
    record = {
        "where": placement.build.where,
        "unit": placement.unit,
        "state": _state(placement.build, placement.unit),
        "architecture": placement.file.architecture,
        "quantization": placement.file.quantization,
        "rung": step,  # this key, `falls` and the folder's name are those of version 0.1
        "falls": [
            {
                "rung": attempt.step,
                "kind": attempt.kind,
                "cause": attempt.cause,
                "date": attempt.date,
                "last_words": attempt.last_words,
            }
            for attempt in failed
        ],
    }
    _store(_file(configuration, placement)).write(record)


def known_of(configuration: Configuration, build: Build, unit: Unit) -> Iterator[StoredFallback]:
    """What is stored for a build on a unit."""
    for _, record in _of(configuration, build, unit):
        if record["state"] == _state(build, unit):
            yield _parse(record)


def forget(configuration: Configuration, build: Build, unit: Unit) -> int:
    """Discard what is stored for a build on a unit; the number of records. Raises OSError where the folder cannot be
    written."""
    files = [file for file, _ in _of(configuration, build, unit)]
    for file in files:
        file.unlink(missing_ok=True)  # another process may have removed it
    return len(files)


def _of(configuration: Configuration, build: Build, unit: Unit) -> Iterator[tuple[Path, Mapping[str, Any]]]:
    for file in sorted(_folder(configuration).glob("*.json")):
        record = _read(file)
        if record and (record["where"], record["unit"]) == (build.where, unit):
            yield file, record


def _read(file: Path) -> Mapping[str, Any] | None:
    """None for a damaged file: what was in it can be found again."""
    try:
        return _store(file).read()
    except UserError:
        return None


def _store(file: Path) -> JsonStore[Mapping[str, Any]]:
    return JsonStore(path=file, parse=_checked, fix="remove it")


def _checked(record: Any) -> Mapping[str, Any]:
    _parse(record), record["where"], record["unit"], record["state"]
    return record  # type: ignore[no-any-return]


def _parse(record: Mapping[str, Any]) -> StoredFallback:
    failed = tuple(
        FailedAttempt(
            step=attempt["rung"],
            kind=attempt["kind"],
            cause=attempt["cause"],
            date=attempt["date"],
            last_words=tuple(attempt["last_words"]),
        )
        for attempt in record["falls"]
    )
    return StoredFallback(
        architecture=record["architecture"], quantization=record["quantization"], step=record["rung"], failed=failed
    )


def _folder(configuration: Configuration) -> Path:
    return configuration.data / "footholds"


def _file(configuration: Configuration, placement: Placement) -> Path:
    """One per build, unit, architecture, quantisation, and the user's own settings that may cause a failure."""
    settings = placement.settings
    identity = (
        (placement.build.engine, placement.build.where, placement.unit),
        (placement.file.architecture, placement.file.quantization),
        (settings.flash_attention, settings.kv_type_k, settings.kv_type_v, settings.speculation, settings.options),
    )
    return _folder(configuration) / f"{hashlib.sha256(repr(identity).encode()).hexdigest()[:16]}.json"


def _state(build: Build, unit: Unit) -> list[str]:
    """What must be the same for a record to be valid."""
    devices = [f"{device.id} {device.name} {device.driver}" for device in build.devices if device.unit == unit]
    return [build.version, build.fingerprint, *devices, os.uname().release]
