"""The trees of tests/board/trees as folders, in which a Machine reads as on the board."""

import re
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path

from trilithon.board.sysfs import Machine

__all__ = ["TREES", "plant_tree"]

TREES = Path(__file__).parent.parent / "board" / "trees"


def plant_tree(
    folder: Path, name: str, *, without: Iterable[str] = (), files: Mapping[str, str] | None = None, trees: Path = TREES
) -> Machine:
    """The tree `name` in a new folder below `folder`, without some paths and with other files."""
    root = folder / name
    while root.exists():
        root = root.with_name(f"{root.name}-again")
    tree = tomllib.loads((trees / f"{name}.toml").read_text(encoding="utf-8"))
    content = {path: text for key, value in tree["files"].items() for path, text in _expanded(key, value)}
    content |= dict.fromkeys(tree.get("nodes", ()), "") | dict(files or {})
    for path, text in content.items():
        if path not in without:
            _at(root, path).write_bytes(text.encode("utf-8", "surrogateescape"))
    for path, target in tree.get("links", {}).items():
        if path not in without:
            _at(root, path).symlink_to(target)
    return Machine(root)


def _expanded(path: str, text: str) -> list[tuple[str, str]]:
    match = re.search(r"\{(\d+)-(\d+)\}", path)
    if match is None:
        return [(path, text)]
    numbers = range(int(match[1]), int(match[2]) + 1)
    return [(path.replace(match[0], str(n)), text.replace("{n}", str(n))) for n in numbers]


def _at(root: Path, path: str) -> Path:
    place = root / path.lstrip("/")
    place.parent.mkdir(parents=True, exist_ok=True)
    return place
