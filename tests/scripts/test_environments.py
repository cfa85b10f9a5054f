"""What scripts/lowest_versions.py and scripts/every_python.py read from pyproject.toml, and what they refuse."""

import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from packaging.version import Version

SCRIPTS = Path(__file__).parents[2] / "scripts"
PROJECT = tomllib.loads((SCRIPTS.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]


@pytest.fixture(autouse=True)
def scripts_can_be_imported(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    before = set(sys.modules)
    monkeypatch.syspath_prepend(SCRIPTS)
    yield
    for name in set(sys.modules) - before:
        if Path(getattr(sys.modules[name], "__file__", None) or "/").parent == SCRIPTS:
            del sys.modules[name]


def lowest_versions() -> ModuleType:
    import lowest_versions

    return lowest_versions


def test_lower_bounds() -> None:
    extras = {"demo": ["model==1.0.0"], "dev": ["Some_Thing>=2.1"]}
    dependencies = ["some-thing>=2.3,<3", "other>=0.5", "elsewhere>=1; sys_platform == 'x'"]
    project = {"dependencies": dependencies, "optional-dependencies": extras}
    bounds = {"some-thing": Version("2.3"), "other": Version("0.5"), "model": Version("1.0.0")}
    assert lowest_versions().lower_bounds(project) == bounds


def test_every_dependency_of_the_project_has_a_lower_bound_that_is_tried() -> None:
    assert len(lowest_versions().lower_bounds(PROJECT)) >= len(PROJECT["dependencies"]) + 15


@pytest.mark.parametrize(
    ("bound", "installed", "lines"),
    [
        ("2.3", "2.3.0", []),
        ("2.3", "2.3.7", []),
        ("2026.10", "2026.10.11549", []),
        ("2.3", "2.12.0", ["thing>=2.3 is not what is installed; state thing>=2.12.0"]),
        ("2.3.1", "2.3.2", ["thing>=2.3.1 is not what is installed; state thing>=2.3.2"]),
    ],
)
def test_a_bound_below_what_is_installed(bound: str, installed: str, lines: list[str]) -> None:
    assert lowest_versions().untested({"thing": Version(bound)}, {"thing": Version(installed)}) == lines


def test_the_pythons_that_are_tested() -> None:
    import every_python

    assert every_python.classified(PROJECT)[:4] == ["3.11", "3.12", "3.13", "3.14"]


def test_a_python_that_is_not_here(capfd: pytest.CaptureFixture[str]) -> None:
    import every_python

    assert not every_python.tested_on("3.999", [])
    assert "3.999" in capfd.readouterr().err
