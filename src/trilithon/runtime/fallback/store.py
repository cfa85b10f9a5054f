"""Which safer settings a placement stands on, and the crash that they avoid: kept, so that the crash happens once.

One small file each, replaced whole, in the data folder: several processes may find the same at once. It counts as long
as the build, the devices with their drivers and the kernel are what they were.
"""

import hashlib
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from trilithon.engines.base import Build, Placement, Unit
from trilithon.errors import UserError
from trilithon.files import JsonStore
from trilithon.settings import Configuration

__all__ = ["FailedAttempt", "StoredFallback", "forget", "known_of", "recall", "remember"]


@dataclass(frozen=True, slots=True, kw_only=True)
class FailedAttempt:
    """What happened with the settings of `rung` (empty: the placement's own), on which `date`."""

    rung: str
    kind: str
    cause: str
    date: str
    last_words: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.rung or 'as planned'}: {self.kind}, {self.cause or 'no known cause'} ({self.date})"


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredFallback:
    """`rung` is empty where the placement's own settings held."""

    architecture: str
    quantization: str
    rung: str
    falls: tuple[FailedAttempt, ...]


def recall(configuration: Configuration, placement: Placement) -> StoredFallback | None:
    """None when nothing is known, or no longer: then it is forgotten."""
    file = _file(configuration, placement)
    kept = _read(file)
    if kept is None:
        return None
    if kept["state"] != _state(placement.build, placement.unit):
        with suppress(FileNotFoundError):  # somebody else forgot it first
            file.unlink()
        return None
    return _known(kept)


def remember(configuration: Configuration, placement: Placement, rung: str, falls: tuple[FailedAttempt, ...]) -> None:
    """`placement` with its own settings. Raises UserError when it cannot be written down."""
    file = _file(configuration, placement)
    content = {
        "where": placement.build.where,
        "unit": placement.unit,
        "state": _state(placement.build, placement.unit),
        "architecture": placement.file.architecture,
        "quantization": placement.file.quantization,
        "rung": rung,
        "falls": [asdict(fall) for fall in falls],
    }
    _store(file).write(content)


def known_of(configuration: Configuration, build: Build, unit: Unit) -> Iterator[StoredFallback]:
    """What is known of a build on a unit, for people."""
    for _, kept in _of(configuration, build, unit):
        if kept["state"] == _state(build, unit):
            yield _known(kept)


def forget(configuration: Configuration, build: Build, unit: Unit) -> int:
    """Of how many kinds of model something was known of a build on a unit; it is found out anew. Raises OSError where
    the folder cannot be written."""
    files = [file for file, _ in _of(configuration, build, unit)]
    for file in files:
        file.unlink(missing_ok=True)  # another process may forget the same
    return len(files)


def _of(configuration: Configuration, build: Build, unit: Unit) -> Iterator[tuple[Path, Mapping[str, Any]]]:
    for file in sorted(_folder(configuration).glob("*.json")):
        kept = _read(file)
        if kept and (kept["where"], kept["unit"]) == (build.where, unit):
            yield file, kept


def _read(file: Path) -> Mapping[str, Any] | None:
    """A file that is damaged tells nothing: what was in it can be found out again."""
    try:
        return _store(file).read()
    except UserError:
        return None


def _store(file: Path) -> JsonStore[Mapping[str, Any]]:
    return JsonStore(path=file, parse=_checked, fix="remove it")


def _checked(kept: Any) -> Mapping[str, Any]:
    _known(kept), kept["where"], kept["unit"], kept["state"]
    return kept  # type: ignore[no-any-return]


def _known(kept: Mapping[str, Any]) -> StoredFallback:
    falls = tuple(FailedAttempt(**{**fall, "last_words": tuple(fall["last_words"])}) for fall in kept["falls"])
    return StoredFallback(
        architecture=kept["architecture"], quantization=kept["quantization"], rung=kept["rung"], falls=falls
    )


def _folder(configuration: Configuration) -> Path:
    return configuration.data / "footholds"


def _file(configuration: Configuration, placement: Placement) -> Path:
    """Per build, unit, architecture, quantisation, and what the user himself set that may be what it falls over."""
    settings = placement.settings
    identity = (
        (placement.build.engine, placement.build.where, placement.unit),
        (placement.file.architecture, placement.file.quantization),
        (settings.flash_attention, settings.kv_type_k, settings.kv_type_v, settings.speculation, settings.options),
    )
    return _folder(configuration) / f"{hashlib.sha256(repr(identity).encode()).hexdigest()[:16]}.json"


def _state(build: Build, unit: Unit) -> list[str]:
    """What must be as it was for the knowledge to count."""
    devices = [f"{each.id} {each.name} {each.driver}" for each in build.devices if each.unit == unit]
    return [build.version, build.fingerprint, *devices, os.uname().release]
