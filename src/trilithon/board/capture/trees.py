"""A capture in the form of the files in tests/board/trees, so that an owner's report becomes a test."""

import json

from trilithon.board.capture.replay import CapturedMachine, CapturedPath

__all__ = ["as_tree"]


def as_tree(machine: CapturedMachine) -> str:
    """TOML with `nodes` (paths without content), `[files]` and `[links]`. Content that is not UTF-8 is left out, and so
    is what a folder cannot say: free disk, who may open a device."""
    capture = machine.capture
    matched = {path for paths in capture.globs.values() for path in paths}
    entries = {path: machine.entry(path) for path in {*capture.paths, *matched}}
    files = {path: text for path, entry in entries.items() if (text := _content(entry)) is not None}
    links = {path: entry.link for path, entry in entries.items() if entry.link is not None and path not in files}
    present = {path for path, entry in entries.items() if entry.access != "absent"} | matched
    above = {parent for path in {*files, *links, *present} for parent in _above(path)}
    nodes = present - {*files, *links} - above
    lines = ["# Captured on a board: trilithon board-report.", "", f"nodes = {_toml(sorted(nodes))}", "", "[files]"]
    lines += [f"{_toml(path)} = {_toml(text)}" for path, text in sorted(files.items())]
    lines += ["", "[links]", *(f"{_toml(path)} = {_toml(target)}" for path, target in sorted(links.items()))]
    return "\n".join(lines) + "\n"


def _content(entry: CapturedPath) -> str | None:
    """Of a library that was only searched: the markers with what follows them."""
    searched = "\n".join(marker + text for marker, texts in entry.after.items() for text in texts)
    return searched or None if entry.text is None else entry.text


def _above(path: str) -> list[str]:
    parts = path.split("/")
    return ["/".join(parts[:count]) for count in range(2, len(parts))]


def _toml(value: str | list[str]) -> str:
    """JSON's strings and lists of them are TOML's, but for DEL, which TOML wants escaped."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
