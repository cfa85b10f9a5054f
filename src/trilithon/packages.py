"""Python packages beside this Trilithon: the install line for the tool that made this environment."""

import re
import shlex
import sys
from importlib.metadata import PackageNotFoundError, requires
from importlib.util import find_spec

__all__ = ["install_line"]


def install_line(*packages: str) -> str:
    """A command that works in this environment: by its pip, or by uv, whose environments have none. A package that
    Trilithon knows gets the bounds that it names."""
    python = sys.executable
    words = [python, "-m", "pip", "install"] if find_spec("pip") else ["uv", "pip", "install", "--python", python]
    return shlex.join([*words, *map(_with_bounds, packages)])


def _with_bounds(package: str) -> str:
    try:
        lines = requires("trilithon") or ()
    except PackageNotFoundError:  # a source tree on PYTHONPATH
        lines = ()
    named = (line.partition(";")[0].strip() for line in lines)
    return next((line for line in named if re.split(r"[^\w.-]", line)[0] == package), package)
