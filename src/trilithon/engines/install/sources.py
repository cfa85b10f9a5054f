"""The table of what can be installed: addresses, licences, and what each download is compared with."""

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from trilithon.errors import UserError
from trilithon.files import read_text
from trilithon.language import Message
from trilithon.settings import Configuration
from trilithon.suggestions import alternatives
from trilithon.tables import table_beside

__all__ = ["EngineSource", "installable", "known_digests", "source_of"]

_KEYS = {"title": str, "default": str, "licence": str, "licence_url": str, "machine": str, "versions": dict}
_COMMIT = re.compile(r"[0-9a-f]{40}")
_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSource:
    """One version of an engine. Either `file` is fetched from `address` and has `sha256`, or `commit` of the git
    repository at `address` is compiled as `compiled` (a word of `engines build --engine`)."""

    engine: str
    version: str
    title: str
    licence: str
    licence_url: str
    machine: str
    address: str
    file: str = ""
    sha256: str = ""
    size_bytes: int | None = None
    published: str = ""
    commit: str = ""
    compiled: str = ""

    @property
    def build_name(self) -> str:
        return f"{self.engine.partition('.')[0]}-{self.version}"

    @property
    def pin(self) -> str:
        """What it is compared with, in words."""
        if self.commit:
            return f"commit {self.commit} (git compares everything with it)"
        return f"SHA-256 {self.sha256}" + (f"\n{'':<11}computed by {self.published}" if self.published else "")


def installable(configuration: Configuration) -> Mapping[str, list[str]]:
    """Engine to its versions, the default first."""
    table = _table(configuration)
    return {engine: list(dict.fromkeys((entry["default"], *entry["versions"]))) for engine, entry in table.items()}


def source_of(engine: str, version: str | None, configuration: Configuration) -> EngineSource:
    """Raises UserError for one that the table does not have, and for a table that is damaged."""
    table = _table(configuration)
    if engine not in table:
        raise UserError(
            Message("{engine} cannot be installed this way; {fix}", engine=engine, fix=alternatives(engine, table))
        )
    entry = table[engine]
    wanted = version or entry["default"]
    if wanted not in entry["versions"]:
        raise UserError(
            "{engine} {wanted} is not in the table, and so its digest is unknown; there are {names}. "
            "Fetch it yourself, and add it with --from FILE",
            engine=engine,
            wanted=wanted,
            names=", ".join(entry["versions"]),
        )
    row = entry["versions"][wanted]
    common = {name: entry[name] for name in ("title", "licence", "licence_url", "machine")}
    if "git" in row:
        return EngineSource(
            engine=engine,
            version=wanted,
            address=row["git"],
            commit=row["commit"],
            compiled=entry["compiled"],
            **common,
        )
    return EngineSource(
        engine=engine,
        version=wanted,
        address=entry["address"].format(ref=row["ref"]),
        file=entry["file"],
        sha256=row["sha256"],
        size_bytes=row.get("size_bytes"),
        published=row.get("published", ""),
        **common,
    )


def known_digests(engine: str, configuration: Configuration) -> dict[str, str]:
    """SHA-256 to version."""
    versions = _table(configuration)[engine]["versions"]
    return {row["sha256"]: version for version, row in versions.items() if "sha256" in row}


def _table(configuration: Configuration) -> dict[str, Any]:
    """Trilithon's, or the user's. Raises UserError."""
    path = configuration.engine_table
    if path is None:
        return table_beside(__file__, "sources.toml")
    try:
        table = tomllib.loads(read_text(path))
        for engine, entry in table.items():
            _check(engine, entry)
    except OSError as error:
        raise UserError("{path}: {reason}; check engine_table", path=path, reason=error.strerror) from error
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            "{path} is not a table of engines: {reason}; take engines/install/sources.toml as it",
            path=path,
            reason=error,
        ) from error
    return table


def _check(engine: str, entry: Any) -> None:
    """Raises ValueError, KeyError and TypeError."""
    for key, kind in _KEYS.items():
        if not isinstance(entry[key], kind):
            raise TypeError(f"{engine}: {key} has to be a {kind.__name__}")
    if entry["default"] not in entry["versions"]:
        raise ValueError(f"{engine}: there is no version {entry['default']}")
    for version, row in entry["versions"].items():
        pin, form = ("commit", _COMMIT) if "git" in row else ("sha256", _DIGEST)
        if not form.fullmatch(row[pin]):
            raise ValueError(f"{engine} {version}: {pin} is not {'40' if pin == 'commit' else '64'} hexadecimal digits")
        entry["compiled"] if "git" in row else (entry["address"].format(ref=row["ref"]), entry["file"])
