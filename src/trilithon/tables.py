"""Facts that stand in a TOML file beside the module that uses them."""

import tomllib
from pathlib import Path
from typing import Any

__all__ = ["table_beside"]


def table_beside(module_file: str, name: str) -> dict[str, Any]:
    """The content of the file `name` in the folder of a module's `__file__`."""
    return tomllib.loads(Path(module_file).with_name(name).read_text(encoding="utf-8"))
