"""Prints what an installation without the web pages needs, one requirement a line: for `scripts/install.sh --no-pages`.

It runs before anything is installed, with the standard library alone."""

import re
import tomllib
from pathlib import Path

PROJECT = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text(encoding="utf-8"))
PAGES = PROJECT["tool"]["trilithon"]["pages"]

for requirement in (*PROJECT["project"]["dependencies"], *PROJECT["project"]["optional-dependencies"]["demo"]):
    if re.split(r"[^\w.-]", requirement)[0] not in PAGES:
        print(requirement)
