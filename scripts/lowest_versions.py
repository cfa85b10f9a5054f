"""Run the fast tests with the lowest version that pyproject.toml allows of each direct dependency.

    .venv/bin/python scripts/lowest_versions.py [--python 3.11] [PYTEST ARGUMENTS]

A lower bound that cannot be installed together with the others is an error too: it would be a promise that no test
has seen.
"""

import argparse
import json
import tomllib

from _environments import ROOT, environment, output_of, refuse, run_fast_tests, uv
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

__all__ = ["lower_bounds", "main", "untested"]

_EXTRAS = ("demo", "dev")


def lower_bounds(project: dict[str, object]) -> dict[str, Version]:
    """Of every direct dependency of the project and its extras that has one; the highest where it has several."""
    extras: dict[str, list[str]] = project["optional-dependencies"]  # type: ignore[assignment]
    lines: list[str] = [*project["dependencies"], *(line for name in _EXTRAS for line in extras[name])]  # type: ignore[misc]
    bounds: dict[str, Version] = {}
    for requirement in map(Requirement, lines):
        if requirement.marker is not None and not requirement.marker.evaluate():
            continue
        name = canonicalize_name(requirement.name)
        for part in requirement.specifier:
            if part.operator in (">=", "=="):
                bounds[name] = max(bounds.get(name, Version("0")), Version(part.version))
    return bounds


def untested(bounds: dict[str, Version], installed: dict[str, Version]) -> list[str]:
    """One line for each bound below what is installed: 2.7 allows 2.7.x, but not 2.12."""
    lines = []
    for name, bound in sorted(bounds.items()):
        version = installed[name]
        if version.release[: len(bound.release)] != bound.release:
            lines.append(f"{name}>={bound} is not what is installed; state {name}>={version}")
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", default="3.11", help="version or path of the interpreter (default: %(default)s)")
    words, more = parser.parse_known_args()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    with environment(words.python) as programs:
        python = programs / "python"
        wish = f".[{','.join(_EXTRAS)}]"
        uv("pip", "install", "--quiet", "--python", python, "--resolution", "lowest-direct", "--editable", wish)
        listed = json.loads(output_of(python, "-c", _LIST))
        installed = {str(canonicalize_name(name)): Version(version) for name, version in listed.items()}
        if lines := untested(lower_bounds(project), installed):
            refuse("; ".join(lines))
        return run_fast_tests(programs, more or ["-n", "2"])


_LIST = (
    "import importlib.metadata as m, json; "
    "print(json.dumps({d.metadata['Name']: d.version for d in m.distributions()}))"
)

if __name__ == "__main__":
    raise SystemExit(main())
