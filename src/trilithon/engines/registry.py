"""Folders with builds of engines that the user added or had compiled here, kept in one small file."""

import json
import os
import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from trilithon.errors import UserError
from trilithon.settings import Configuration

__all__ = ["Registered", "add", "registered", "remove"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Registered:
    """`folder` holds a `llama-server` or a `librkllmrt.so`; `name` is what `@BUILD` says; `facts` is what is known
    of how it was made (version, flags, compiler), for people and for results."""

    name: str
    folder: Path
    facts: dict[str, Any] = field(default_factory=dict)


def registered(configuration: Configuration) -> list[Registered]:
    """In the order they were added. Raises UserError when the file is damaged."""
    file = _file(configuration)
    try:
        entries = json.loads(file.read_text(encoding="utf-8"))
        return [Registered(name=e["name"], folder=Path(e["folder"]), facts=dict(e["facts"])) for e in entries]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"{file} is damaged ({error}); remove it, and add the builds again") from error


def add(configuration: Configuration, entry: Registered) -> None:
    """Keep it; one of the same name or folder is replaced."""
    known = [e for e in registered(configuration) if e.name != entry.name and e.folder != entry.folder]
    _write(configuration, [*known, entry])


def remove(configuration: Configuration, name: str) -> Registered:
    """Forget it; its folder stays. Raises UserError when there is none of that name."""
    known = registered(configuration)
    for entry in known:
        if entry.name == name:
            _write(configuration, [e for e in known if e is not entry])
            return entry
    names = ", ".join(e.name for e in known) or "none"
    raise UserError(f"no build called {name} was added; there are: {names}")


def _file(configuration: Configuration) -> Path:
    return configuration.data / "builds.json"


def _write(configuration: Configuration, entries: list[Registered]) -> None:
    """Whole or not at all, also when the power goes."""
    file = _file(configuration)
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=file.parent, prefix="builds-", delete=False, encoding="utf-8") as new:
        json.dump([asdict(e) | {"folder": str(e.folder)} for e in entries], new, indent=1)
        new.flush()
        os.fsync(new.fileno())
    Path(new.name).replace(file)
