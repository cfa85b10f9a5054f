"""Run the fast tests on every Python that pyproject.toml's classifiers name, with the versions of constraints.txt.

    .venv/bin/python scripts/every_python.py [--python VERSION_OR_PATH]... [PYTEST ARGUMENTS]

A Python that this machine does not have fails the run. pyenv offers several at once: PYENV_VERSION=3.12.1:3.13.0.
"""

import argparse
import re
import tomllib

from _environments import ROOT, environment, run_fast_tests, uv

__all__ = ["classified", "main"]


def classified(project: dict[str, list[str]]) -> list[str]:
    """The versions that the classifiers name: 3.11, 3.12 and so on."""
    found = [re.fullmatch(r"Programming Language :: Python :: (3\.\d+)", line) for line in project["classifiers"]]
    return [match[1] for match in found if match]


def tested_on(python: str, words: list[str]) -> bool:
    print(f"Python {python}", flush=True)
    try:
        with environment(python) as programs:
            uv(
                *("pip", "install", "--quiet", "--python", programs / "python"),
                *("--constraint", "constraints.txt", "--editable", ".[demo,dev]"),
            )
            return run_fast_tests(programs, words) == 0
    except SystemExit:  # its reason was printed; the other Pythons are tested all the same
        return False


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", action="append", help="version or path of an interpreter, in place of all")
    words, more = parser.parse_known_args()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    results = {python: tested_on(python, more or ["-n", "2"]) for python in words.python or classified(project)}
    for python, passed in results.items():
        print(f"Python {python}: {'passed' if passed else 'FAILED'}")
    return 0 if all(results.values()) else 1


if __name__ == "__main__":
    raise SystemExit(main())
