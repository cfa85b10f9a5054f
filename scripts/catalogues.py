"""The catalogues of `trilithon.language`: collects the sources' texts in each `.po`, and compiles it into a `.mo`.

New texts are added without a translation, and those that are gone are dropped. The `.mo` is in the repository: Python's
gettext reads no other form, and a clone runs without a build. Run by `make docs`."""

import ast
import errno
import json
import os
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from trilithon.board.processors import ClusterKind
from trilithon.board.storage import DiskKind
from trilithon.cli.help_texts import texts_of
from trilithon.cli.main import _COMMANDS, loaded, main
from trilithon.measure.metrics import METRICS
from trilithon.results.simulated import SOFTWARE, STAND_IN
from trilithon.tables import table_beside

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src" / "trilithon"
LOCALE = SOURCE / "locale"
# Of click, which takes them from the same catalogue; with the plurals that there are.
CLICK = dict.fromkeys(
    (
        *("Usage:", "Options", "Commands", "Positional arguments", "default: {default}", "required"),
        *("Show this message and exit.", "Error: {message}", "Try '{command} {option}' for help."),
        *("Invalid value: {message}", "Invalid value for {param_hint}: {message}", "Choose from:\n\t{choices}"),
        *("Missing command.", "Missing argument", "Missing option", "Missing parameter"),
        *("No such option {name!r}.", "No such command {name!r}.", "Option {name!r} does not take a value."),
        *("Argument {name!r} takes {nargs} values.", "{value!r} is not a valid {number_type}."),
        *("{value} is not in the range {range}.", "{name} {filename!r} does not exist."),
        *("{name} {filename!r} is a file.", "{name} {filename!r} is a directory."),
        *("{name} {filename!r} is not readable.", "Error: invalid input"),
        # The names of its placeholders.
        *("[OPTIONS]", "COMMAND [ARGS]...", "[COMMAND] [ARGS]...", "TEXT", "PATH", "FILE", "DIRECTORY"),
        *("INTEGER", "INTEGER RANGE", "FLOAT", "FLOAT RANGE"),
    ),
    "",
) | {
    "Got unexpected extra argument ({args})": "Got unexpected extra arguments ({args})",
    "Option {name!r} requires an argument.": "Option {name!r} requires {nargs} arguments.",
    "{value!r} is not {choice}.": "{value!r} is not one of {choices}.",
}
# The errors whose texts are collected, and the folders and files where they are raised.
ERRORS = frozenset(
    [
        "AccessDenied",
        "BoardUnreachable",
        "DownloadError",
        "ModelError",
        "NoRoom",
        "NoSuchModel",
        "NobodyListens",
        "NotAModel",
        "PlacementError",
        "PlainHttp",
        "StoreError",
        "TrilithonError",
        "UserError",
    ]
)
TRANSLATED = (
    *("bench", "board", "cli", "estimate", "fleet", "models", "tune", "results/store"),
    *(
        "engines/install",
        "engines/remote",
        "engines/conversion.py",
        "engines/placement_spec.py",
        "engines/placing.py",
        "engines/registry.py",
    ),
    *("engines/table.py", "files.py", "settings.py", "units.py"),
)
# They speak of the inside of files that other programs or the project write.
TECHNICAL = (
    *("estimate/rows.py", "models/adopt", "models/store/manifest.py", "models/store/manifests.py"),
    *("models/synthetic/tiny.py", "engines/install/sources.py"),
)
# Of the C library, which Python takes in English.
SYSTEM_ERRORS = tuple(
    map(os.strerror, (errno.ENOENT, errno.EACCES, errno.EPERM, errno.ENOSPC, errno.EROFS, errno.EISDIR, errno.ENOTDIR))
)
# Their messages come from a table, from errors and from messages.
_OTHER_SOURCES = ("container.py", "errors.py", "language.py")
_ENTRY = re.compile(r'^(msgid|msgid_plural|msgstr(?:\[\d\])?) (".*"(?:\n".*")*)', re.MULTILINE)
_HEADER = (
    "Content-Type: text/plain; charset=UTF-8\n"
    "Plural-Forms: nplurals=3; plural=(n%10==1 && n%100!=11 ? 0 : "
    "n%10>=2 && n%10<=4 && (n%100<10 || n%100>=20) ? 1 : 2);\n"
)


@dataclass(frozen=True, slots=True)
class CatalogueEntry:
    """`plural` is empty for a text without one; `translations` has one text, or one for each plural form."""

    text: str
    plural: str
    translations: tuple[str, ...]


def texts() -> dict[str, str]:
    """Every text that can be translated, with its plural or "". Raises ValueError for a Message without a literal."""
    short_helps = (short_help for _, short_help in _COMMANDS.values())
    helps = (text for command in (main, *map(loaded, _COMMANDS)) for text in texts_of(command))
    collected = CLICK | dict.fromkeys((*SYSTEM_ERRORS, *short_helps, *helps, *_of_tables()), "")
    for path in sorted(SOURCE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                collected |= dict(_of_call(node, path))
    return collected


def _of_tables() -> Iterator[str]:
    yield from (metric.title for metrics in METRICS.values() for metric in metrics)
    yield from (STAND_IN, SOFTWARE)
    yield from (*get_args(DiskKind), *(kind for kind in get_args(ClusterKind) if kind != "all"))
    models = table_beside(str(SOURCE / "estimate" / "recommend.py"), "models_to_recommend.toml")["models"].values()
    yield from (row[name] for row in models for name in ("languages", "benchmark") if " " in row.get(name, ""))
    sources = table_beside(str(SOURCE / "engines" / "install" / "sources.py"), "sources.toml").values()
    yield from (source[name] for source in sources for name in ("title", "licence") if source[name] != "MIT")
    names = ("name", "device_tree", "devices", "memory", "quota", "cpus")
    for kind, row in table_beside(str(SOURCE / "board" / "limits" / "container.py"), "container.toml").items():
        comments = (row[name] for name in names if name == "name" or "  # " in row[name] or kind == "other")
        yield from comments


def _of_call(call: ast.Call, path: Path) -> Iterator[tuple[str, str]]:
    name, arguments = getattr(call.func, "id", ""), call.args
    if name == "Finding" and len(arguments) > 2 and isinstance(arguments[2], ast.Constant):
        yield str(arguments[2].value), ""
    if name in ERRORS and is_translated(path) and arguments and isinstance(arguments[0], ast.Constant):
        yield str(arguments[0].value), ""
    if name != "Message":
        return
    if not isinstance(arguments[0], ast.Constant):
        if path.name in _OTHER_SOURCES:
            return
        raise ValueError(f"{path}:{call.lineno}: a Message needs a literal")
    plurals = [
        keyword.value.value
        for keyword in call.keywords
        if keyword.arg == "plural" and isinstance(keyword.value, ast.Constant)
    ]
    yield str(arguments[0].value), str(plurals[0]) if plurals else ""


def is_translated(path: Path) -> bool:
    """Whether the errors that a module raises are in the catalogue."""
    place = path.relative_to(SOURCE).as_posix()
    among = [[place == name or place.startswith(f"{name}/") for name in names] for names in (TRANSLATED, TECHNICAL)]
    return any(among[0]) and not any(among[1])


def read(text: str) -> dict[str, CatalogueEntry]:
    """The entries of a `.po` by their English text, without its header."""
    entries = {}
    for block in text.split("\n\n"):
        fields = {
            name: "".join(json.loads(line) for line in quoted.splitlines()) for name, quoted in _ENTRY.findall(block)
        }
        if fields.get("msgid"):
            translations = tuple(value for name, value in fields.items() if name.startswith("msgstr"))
            entry = CatalogueEntry(fields["msgid"], fields.get("msgid_plural", ""), translations)
            entries[entry.text] = entry
    return entries


def merged(entries: dict[str, CatalogueEntry]) -> list[CatalogueEntry]:
    """Of all texts, in alphabetical order, with the translations that there are."""
    fresh = []
    for text, plural in sorted(texts().items()):
        known = entries.get(text)
        kept = known.translations if known and known.plural == plural else ("",) * (3 if plural else 1)
        fresh.append(CatalogueEntry(text, plural, kept))
    return fresh


def written(entries: list[CatalogueEntry]) -> str:
    """The text of a `.po`."""
    blocks = ['msgid ""\nmsgstr ""\n' + "\n".join(map(_quoted, _HEADER.splitlines(keepends=True)))]
    for entry in entries:
        lines = [f"msgid {_quoted(entry.text)}"]
        if entry.plural:
            lines.append(f"msgid_plural {_quoted(entry.plural)}")
        for number, translation in enumerate(entry.translations):
            lines.append(f"msgstr{f'[{number}]' if entry.plural else ''} {_quoted(translation)}")
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks) + "\n"


def compiled(entries: list[CatalogueEntry]) -> bytes:
    """A `.mo`, as the manual of GNU gettext describes it ("The Format of GNU MO Files")."""
    pairs = [(b"", _HEADER.encode())]
    for entry in entries:
        if all(entry.translations):
            key = f"{entry.text}\0{entry.plural}" if entry.plural else entry.text
            pairs.append((key.encode(), "\0".join(entry.translations).encode()))
    pairs.sort()
    count, head = len(pairs), 28
    tables, content, offset = b"", b"", head + 16 * count
    for texts_of_side in zip(*pairs, strict=True):
        for text in texts_of_side:
            tables += struct.pack("<II", len(text), offset + len(content))
            content += text + b"\0"
    return struct.pack("<7I", 0x950412DE, 0, count, head, head + 8 * count, 0, 0) + tables + content


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


if __name__ == "__main__":
    for file in sorted(LOCALE.glob("*/LC_MESSAGES/trilithon.po")):
        catalogue = merged(read(file.read_text(encoding="utf-8")))
        file.write_text(written(catalogue), encoding="utf-8")
        file.with_suffix(".mo").write_bytes(compiled(catalogue))
